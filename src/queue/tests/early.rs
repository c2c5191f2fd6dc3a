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
    assert_eq!(rig.queue.begin(handles[0], &[Rid(0)]), [Rid(0)]);
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
