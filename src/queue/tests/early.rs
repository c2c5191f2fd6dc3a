//! Messages before their commit: their handles are used again once nobody holds them.

use super::*;

/// Two receiving domains, two handles.
fn take(rig: &mut Rig<MemMedium>, mid: u64) -> (Ticket, Vec<Handle>) {
    let new = message(mid, &["a@one.example", "b@two.example"], &body(100));
    let (ticket, handles) = rig.queue.take_early(new, rig.now.mono).unwrap();
    (ticket, handles.into_iter().map(|(handle, _)| handle).collect())
}

#[test]
fn a_handle_that_is_done_before_its_message_is_used_again() {
    let mut rig = Rig::open(MemMedium::default(), options(64 * MIB));
    let mut used = std::collections::BTreeSet::new();
    for mid in 1..20 {
        let (ticket, handles) = take(&mut rig, mid);
        used.extend(handles.iter().map(|handle| handle.0));
        assert!(rig.queue.discarded(handles[0], Rid(0)).applied);
        rig.queue.forget_early(handles[0]);
        rig.queue.write_now(handles[1]);
        assert!(rig.run());
        assert_eq!(rig.committed[&ticket].len(), 1, "the other one is on disk");
        assert!(rig.queue.deleted(handles[1], Rid(1)).message_gone);
        rig.queue.forget_early(handles[1]);
    }
    assert_eq!((used.len(), rig.queue.counts().pending), (2, 0));
}

#[test]
fn a_handle_of_a_refused_message_is_used_again() {
    let mut rig = Rig::open(MemMedium::default(), options(64 * MIB));
    let (ticket, handles) = take(&mut rig, 1);
    assert_eq!(rig.queue.begin(handles[0], &[Rid(0)]), 1);
    rig.queue.write_now(handles[1]);
    rig.failing_for_ever = true;
    assert!(rig.run());
    assert_eq!(rig.failed, [ticket]);
    assert!(rig.queue.is_refused(handles[0]));
    assert!(rig.queue.summary(handles[1]).unwrap().recipients.is_empty(), "it was not begun");
    rig.queue.forget_early(handles[1]);
    rig.queue.withdraw(handles[0], Rid(0));
    assert!(!rig.queue.is_refused(handles[0]));
    rig.queue.forget_early(handles[0]);
    let (_, again) = take(&mut rig, 2);
    assert_eq!(
        again.iter().collect::<std::collections::BTreeSet<_>>(),
        handles.iter().collect(),
        "no handle is lost"
    );
}

/// Accepted between its write and the end of its sync: its extents are free with the next sync.
#[test]
fn a_large_message_that_is_accepted_during_its_commit_leaves_no_extent_behind() {
    let mut rig = Rig::open(MemMedium::default(), options(16 * MIB));
    for mid in 1..40 {
        let new = message(mid, &["a@one.example"], &body(900_000));
        let (_, early) = rig.queue.take_early(new, rig.now.mono).unwrap();
        let handle = early[0].0;
        rig.queue.write_now(handle);
        loop {
            let effect = rig.queue.next_effect().unwrap();
            if matches!(effect, Effect::Sync { .. }) {
                assert_eq!(rig.queue.begin(handle, &[Rid(0)]), 1);
                assert!(rig.queue.delivered(handle, Rid(0), &accepted()).message_gone);
                assert!(matches!(rig.queue.poll_event(), Some(Event::Accepted { .. })));
                rig.perform(effect, false);
                break;
            }
            rig.perform(effect, false);
        }
        assert!(rig.run() && rig.tick(1_000), "message {mid}");
    }
    assert_eq!(rig.queue.counts(), Counts::default());
}

/// Whatever has begun or ended when the process is killed, at each step of the commit: the next
/// start calls it uncertain, or does not find it any more.
#[test]
fn what_happens_during_the_commit_is_in_the_table_at_once() {
    // The delivery begins, is accepted, and the process is killed before this many effects of the
    // commit are done. 0: nothing is written; 1: the octets are, and the slots are stored; 2: the
    // sync has ended too.
    const NEVER: usize = usize::MAX;
    let table = [
        (0, NEVER, 0, 0, 0),
        (0, NEVER, 1, 2, 1),
        (1, NEVER, 1, 2, 1),
        (0, NEVER, 2, 2, 1),
        (2, NEVER, 2, 2, 1),
        (0, 0, 1, 1, 0),
        (0, 1, 1, 1, 0),
        (1, 1, 1, 1, 0),
        (1, 1, 2, 1, 0),
        (2, 2, 2, 1, 0),
    ];
    for row in table {
        let (begun_at, accepted_at, killed_at, pending, uncertain) = row;
        let medium = MemMedium::default();
        let mut rig = Rig::open(medium.clone(), options(64 * MIB));
        // The first segment is made beforehand.
        rig.append(1, &["first@one.example"], &body(10));
        assert!(rig.run());
        let (_, handles) = take(&mut rig, 2);
        rig.queue.write_now(handles[0]);
        for done in 0..=killed_at {
            if done == begun_at {
                assert_eq!(rig.queue.begin(handles[0], &[Rid(0)]), 1, "{row:?}");
            }
            if done == accepted_at {
                let change = rig.queue.delivered(handles[0], Rid(0), &accepted());
                assert!(change.applied, "{row:?}");
            }
            rig.queue.write_words();
            if done < killed_at {
                let effect = rig.queue.next_effect().unwrap();
                rig.perform(effect, false);
                rig.poll();
            }
        }
        drop(rig);
        let rig = Rig::open(medium, options(64 * MIB));
        assert_eq!(rig.queue.counts().pending, 1 + pending, "{row:?}");
        let seen: Vec<_> = rig.recovered.uncertain.iter().map(|(mid, _)| *mid).collect();
        assert_eq!(seen, vec![Mid(2); uncertain], "{row:?}");
    }
}
