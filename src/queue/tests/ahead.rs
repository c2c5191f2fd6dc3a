//! Writing ahead: what waits is written, and synced, while the commit before it is synced.

use super::*;

/// A commit under way up to its sync, which is given back, not carried out.
fn until_sync(rig: &mut Rig<MemMedium>) -> Effect {
    loop {
        let effect = rig.queue.next_effect().expect("a commit ends with a sync");
        if matches!(effect, Effect::Sync { .. }) {
            return effect;
        }
        rig.perform(effect, false);
    }
}

/// The next write, which is given back; segments may be made before it.
fn next_write(rig: &mut Rig<MemMedium>) -> Effect {
    loop {
        match rig.queue.next_effect().expect("nothing is written ahead") {
            write @ Effect::Write { .. } => return write,
            other => rig.perform(other, false),
        }
    }
}

/// What there is to do, no sync among it.
fn all_but_syncs(rig: &mut Rig<MemMedium>) {
    let mut writes = 0;
    while let Some(effect) = rig.queue.next_effect() {
        assert!(!matches!(effect, Effect::Sync { .. }), "a sync beside another");
        writes += usize::from(matches!(effect, Effect::Write { .. }));
        rig.perform(effect, false);
    }
    assert!(writes > 0, "nothing is written ahead");
}

/// A queue with a message whose sync runs, and more behind it: `behind` octets each.
fn synced_with_more(behind: &[usize]) -> (Rig<MemMedium>, Effect, Vec<Ticket>) {
    let mut rig = Rig::open(MemMedium::default(), options(8 * MIB));
    let mut tickets = vec![rig.append(1, &["a@one.example"], &body(100))];
    let sync = until_sync(&mut rig);
    for (mid, octets) in (2..).zip(behind) {
        tickets.push(rig.append(mid, &["a@one.example"], &body(*octets)));
    }
    (rig, sync, tickets)
}

/// A queue whose first segment takes no fifth message like its four, the sync of which runs.
fn synced_and_full() -> (Rig<MemMedium>, Effect) {
    let mut rig = Rig::open(MemMedium::default(), options(8 * MIB));
    for mid in 1..=4 {
        rig.append(mid, &["a@one.example"], &body(200_000));
    }
    let sync = until_sync(&mut rig);
    (rig, sync)
}

/// More comes while a segment is synced than fits into it: it is given up, and not free.
fn give_up_during(rig: &mut Rig<MemMedium>, sync: Effect, mids: std::ops::RangeInclusive<u64>) {
    for mid in mids {
        rig.append(mid, &["a@one.example"], &body(200_000));
    }
    let write = next_write(rig);
    rig.perform(write, false);
    rig.perform(sync, false);
    assert_eq!(rig.queue.usage().segments_free, 0);
    assert!(rig.run());
}

/// Two commits whose syncs run: of one message, and of two.
fn two_syncs() -> (Rig<MemMedium>, [Effect; 2], Vec<Ticket>) {
    let (mut rig, first, tickets) = synced_with_more(&[150_000, 150_000]);
    let write = next_write(&mut rig);
    rig.perform(write, false);
    let second = until_sync(&mut rig);
    (rig, [first, second], tickets)
}

fn committed(rig: &Rig<MemMedium>) -> &[Ticket] {
    &rig.committed_in_order
}

#[test]
fn much_mail_is_written_and_synced_during_a_sync() {
    let (mut rig, first, mut tickets) = synced_with_more(&[150_000, 150_000]);
    let write = next_write(&mut rig);
    // More comes while that is written, and waits for its end.
    tickets.push(rig.append(4, &["b@two.example"], &body(200_000)));
    tickets.push(rig.append(5, &["b@two.example"], &body(100_000)));
    while let Some(effect) = rig.queue.next_effect() {
        assert!(matches!(effect, Effect::Make { .. }), "a write beside another");
        rig.perform(effect, false);
    }
    rig.perform(write, false);
    let second = until_sync(&mut rig);
    assert!(!rig.queue.is_quiet());
    rig.perform(first, false);
    rig.poll();
    assert_eq!(committed(&rig), &tickets[..1]);
    rig.perform(second, false);
    assert!(rig.run());
    assert_eq!(committed(&rig), tickets);
    assert_eq!(rig.contents().len(), 5);
    assert!(rig.tick(1_000));
    let medium = rig.medium.after_power_cut(|| false);
    assert_eq!(Rig::open(medium, options(8 * MIB)).contents(), rig.contents());
}

/// What is written and waits for its sync takes in what comes meanwhile.
#[test]
fn a_commit_grows_until_its_sync() {
    let (mut rig, [first, second], mut tickets) = two_syncs();
    for mids in [4..6, 6..8] {
        for mid in mids {
            tickets.push(rig.append(mid, &["a@one.example"], &body(132_000)));
        }
        let write = next_write(&mut rig);
        rig.perform(write, false);
        assert!(rig.queue.next_effect().is_none(), "a third sync beside two");
    }
    rig.perform(first, false);
    let third = until_sync(&mut rig);
    rig.perform(second, false);
    rig.poll();
    assert_eq!(committed(&rig), &tickets[..3]);
    rig.perform(third, false);
    rig.poll();
    assert_eq!(committed(&rig), tickets);
    assert!(rig.run());
}

/// A third one waits for the end of the first; a smaller one than that before it for its end too.
#[test]
fn two_syncs_run_at_most_and_a_smaller_one_alone() {
    for (octets, is_beside) in [(150_000, true), (140_000, false)] {
        let (mut rig, [first, second], mut tickets) = two_syncs();
        for mid in [4, 5] {
            tickets.push(rig.append(mid, &["a@one.example"], &body(octets)));
        }
        let write = next_write(&mut rig);
        rig.perform(write, false);
        assert!(rig.queue.next_effect().is_none(), "a third sync beside two");
        rig.perform(first, false);
        let third = rig.queue.next_effect();
        assert_eq!(matches!(third, Some(Effect::Sync { .. })), is_beside);
        rig.perform(second, false);
        let third = third.unwrap_or_else(|| until_sync(&mut rig));
        rig.perform(third, false);
        assert!(rig.run());
        assert_eq!(committed(&rig), tickets);
    }
}

/// The later of two syncs ends first: nothing is told of before the other has ended.
#[test]
fn commits_end_in_the_order_in_which_they_were_begun() {
    let (mut rig, [first, second], tickets) = two_syncs();
    rig.perform(second, false);
    rig.poll();
    assert!(rig.committed.is_empty());
    rig.perform(first, false);
    assert!(rig.run());
    assert_eq!(committed(&rig), tickets);
}

/// The kernel may have told of octets of both to the first sync alone, whichever ends first.
#[test]
fn a_failed_sync_fails_the_one_beside_it_that_was_begun_later() {
    for second_ends_first in [false, true] {
        let (mut rig, [first, second], tickets) = two_syncs();
        let (one, other) = if second_ends_first {
            ((second, false), (first, true))
        } else {
            ((first, true), (second, false))
        };
        rig.perform(one.0, one.1);
        rig.perform(other.0, other.1);
        assert!(rig.run());
        assert_eq!(rig.failed, tickets);
        assert_eq!((rig.queue.usage().segments_poisoned, rig.queue.counts().pending), (1, 0));
    }
}

#[test]
fn a_failed_sync_leaves_the_one_beside_it_good_that_was_begun_before() {
    let (mut rig, [first, second], tickets) = two_syncs();
    rig.perform(second, true);
    rig.poll();
    assert_eq!((committed(&rig).len(), rig.failed.len()), (0, 0));
    // Nothing new goes there.
    assert_eq!(rig.queue.usage().segments_poisoned, 1);
    rig.perform(first, false);
    assert!(rig.run());
    assert_eq!(committed(&rig), &tickets[..1]);
    assert_eq!(rig.failed, tickets[1..]);
    assert_eq!((rig.queue.usage().segments_poisoned, rig.queue.counts().pending), (1, 1));
}

#[test]
fn a_table_that_takes_no_stores_is_told_of_once_whatever_syncs_run() {
    let (mut rig, [first, second], tickets) = two_syncs();
    let active = rig.queue.active.unwrap();
    rig.queue.segments[active].refuse_stores();
    rig.perform(second, false);
    rig.perform(first, false);
    assert!(rig.run());
    assert_eq!((rig.unstorable.len(), &rig.failed), (1, &tickets));
}

/// Mail is refused for a while when commits fail in one segment after the other.
#[test]
fn a_failed_sync_counts_once_whatever_stood_behind_it() {
    let (mut rig, [first, second], mut tickets) = two_syncs();
    for mid in [4, 5] {
        tickets.push(rig.append(mid, &["a@one.example"], &body(150_000)));
    }
    let write = next_write(&mut rig);
    rig.perform(write, false);
    rig.perform(first, true);
    rig.perform(second, true);
    assert!(rig.run());
    rig.failed.sort_unstable();
    assert_eq!(rig.failed, tickets);
    assert_eq!(rig.intake, []);
}

/// Each sync of a quiet queue would store a header copy: beside one that has, the other copy is
/// all that a power cut leaves for certain.
#[test]
fn one_header_copy_is_durable_while_the_other_is_on_its_way() {
    let (rig, ..) = two_syncs();
    let segment = &rig.queue.segments[rig.queue.active.unwrap()];
    let id = segment.header.segment;
    let cut = rig.medium.after_power_cut(|| false).file(id).unwrap().durable_words();
    let live = rig.medium.after_power_cut(|| true).file(id).unwrap().durable_words();
    let changed = (0..2).filter(|copy| {
        let words = copy * 512..(copy + 1) * 512;
        live[words.clone()] != cut[words]
    });
    assert_eq!(changed.count(), 1);
}

/// Blocks of ids are taken while a header copy is on its way, and the next commit, which may store
/// none, is the last for a while.
#[test]
fn blocks_of_ids_are_reserved_whatever_syncs_run() {
    let (mut rig, first, _) = synced_with_more(&[150_000, 150_000]);
    let ids = rig.queue.ids();
    while !ids.wants_blocks() {
        assert!(ids.next_mid().is_some());
    }
    rig.queue.tick(rig.now);
    assert!(!rig.queue.ids().wants_blocks());
    let write = next_write(&mut rig);
    rig.perform(write, false);
    let second = until_sync(&mut rig);
    rig.perform(first, false);
    rig.perform(second, false);
    assert!(rig.tick(1_000) && rig.queue.is_quiet());
    let active = &rig.queue.segments[rig.queue.active.unwrap()];
    assert_eq!(active.header.id_block_max, rig.queue.ids.block_max());
}

/// A body in extents is synced with two files: nothing is synced beside it, nor it beside another.
#[test]
fn large_mail_is_synced_alone() {
    let mut rig = Rig::open(MemMedium::default(), options(8 * MIB));
    let large = body(600_000);
    rig.append(1, &["a@one.example"], &large);
    let syncs = [until_sync(&mut rig), until_sync(&mut rig)];
    for mid in [2, 3] {
        rig.append(mid, &["b@two.example"], &body(200_000));
    }
    all_but_syncs(&mut rig);
    syncs.into_iter().for_each(|sync| rig.perform(sync, false));
    assert!(rig.run());
    // Its extent is free again.
    let handle = rig.handles()[0];
    assert!(rig.queue.deleted(handle, Rid(0)).message_gone && rig.tick(1_000));
    rig.append(4, &["a@one.example"], &body(100));
    let small = until_sync(&mut rig);
    rig.append(5, &["a@one.example"], &large);
    for mid in [6, 7] {
        rig.append(mid, &["b@two.example"], &body(150_000));
    }
    all_but_syncs(&mut rig);
    rig.perform(small, false);
    assert!(rig.run());
    assert_eq!(rig.committed.len(), 7);
}

#[test]
fn little_mail_waits_for_the_end_of_the_sync() {
    let (mut rig, first, tickets) = synced_with_more(&[1_000; 20]);
    assert!(rig.queue.next_effect().is_none());
    rig.perform(first, false);
    assert!(rig.run());
    assert_eq!(rig.committed.len(), tickets.len());
}

#[test]
fn a_failed_sync_fails_what_was_written_behind_it() {
    let (mut rig, first, tickets) = synced_with_more(&[150_000, 150_000]);
    let write = next_write(&mut rig);
    rig.perform(write, false);
    rig.perform(first, true);
    assert!(rig.run());
    assert_eq!(rig.failed, tickets);
    assert_eq!((rig.queue.usage().segments_poisoned, rig.queue.counts().pending), (1, 0));
}

#[test]
fn a_failed_write_leaves_the_sync_before_it_good() {
    let (mut rig, first, tickets) = synced_with_more(&[150_000, 150_000]);
    let write = next_write(&mut rig);
    rig.perform(write, true);
    rig.perform(first, false);
    assert!(rig.run());
    assert_eq!(committed(&rig), &tickets[..1]);
    assert_eq!(rig.failed, tickets[1..]);
}

/// The disk goes from one sync to the next: what the first has made durable is told of meanwhile,
/// and before what becomes of the second.
#[test]
fn the_next_sync_begins_before_the_last_is_told_of() {
    let (mut rig, first, tickets) = synced_with_more(&[150_000, 150_000]);
    let write = next_write(&mut rig);
    rig.perform(write, false);
    rig.perform(first, false);
    let second = until_sync(&mut rig);
    assert!(rig.committed.is_empty() && !rig.queue.is_quiet());
    rig.perform(second, true);
    rig.poll();
    assert_eq!(committed(&rig), &tickets[..1]);
    assert_eq!(rig.failed, tickets[1..]);
    assert_eq!((rig.queue.counts().pending, rig.contents().len()), (1, 1));
}

/// The same at the end of a segment: it is not free before its last commit is told of.
#[test]
fn a_segment_is_not_free_before_its_commit_is_told_of() {
    let (mut rig, first) = synced_and_full();
    rig.perform(first, false);
    for mid in 5..=8 {
        rig.append(mid, &["a@one.example"], &body(200_000));
    }
    let second = until_sync(&mut rig);
    assert_eq!(rig.queue.usage().segments_free, 0);
    rig.perform(second, false);
    assert!(rig.run());
    assert_eq!(rig.contents().len(), 8);
}

/// The segment is given up during the sync of its last commit: it is not free before that has
/// entered its messages.
#[test]
fn a_segment_is_full_while_its_last_commit_is_synced() {
    let (mut rig, first) = synced_and_full();
    give_up_during(&mut rig, first, 5..=8);
    assert_eq!(rig.contents().len(), 8);
}

/// As above, and the first message of that commit was accepted after it was written: with
/// nothing of it left in the queue, the segment looks empty until the second one is entered.
#[test]
fn a_segment_is_not_free_between_two_messages_of_a_commit() {
    let (mut rig, first, _) = synced_with_more(&[]);
    let mut handles = Vec::new();
    for mid in 2..=5 {
        let new = message(mid, &["a@one.example"], &body(200_000));
        let (_, early) = rig.queue.take_early(new, rig.now.mono).unwrap();
        rig.queue.write_now(early[0].0);
        handles.push(early[0].0);
    }
    let write = next_write(&mut rig);
    rig.perform(write, false);
    assert!(rig.queue.deleted(handles[0], Rid(0)).message_gone);
    assert!(matches!(rig.queue.poll_event(), Some(Event::Accepted { .. })));
    rig.perform(first, false);
    rig.poll();
    let before = rig.handles()[0];
    assert!(rig.queue.deleted(before, Rid(0)).message_gone);
    let second = until_sync(&mut rig);
    rig.poll();
    give_up_during(&mut rig, second, 6..=9);
    assert_eq!(rig.contents().len(), 7);
}

/// A queue at rest behind a commit of so many messages, with `behind` that came during its sync.
fn at_rest_behind(messages: u64, behind: u64, commit_max: usize) -> Rig<MemMedium> {
    let options = Options { commit_messages_max: commit_max, ..options(8 * MIB) };
    let mut rig = Rig::open(MemMedium::default(), options);
    let append = |rig: &mut Rig<MemMedium>, mid| rig.append(mid, &["a@one.example"], &body(100));
    for mid in 1..=messages {
        append(&mut rig, mid);
    }
    let sync = until_sync(&mut rig);
    for mid in 101..101 + behind {
        append(&mut rig, mid);
    }
    assert!(!rig.queue.is_expecting(), "nobody is waited for while a sync runs");
    rig.perform(sync, false);
    rig
}

#[test]
fn a_commit_of_many_is_followed_by_one_of_all_that_come_back() {
    let mut rig = at_rest_behind(10, 5, 1024);
    for mid in 201..=210 {
        assert!(rig.queue.is_expecting(), "{mid}");
        rig.append(mid, &["a@one.example"], &body(100));
    }
    assert!(!rig.queue.is_expecting(), "all are back");
    assert!(rig.run());
    assert_eq!(rig.queue.counts().pending, 25);
}

#[test]
fn nobody_is_expected_for_long_or_behind_a_few_or_beside_much() {
    let mut rig = at_rest_behind(10, 5, 1024);
    rig.queue.expect_no_more();
    assert!(!rig.queue.is_expecting());
    assert!(!at_rest_behind(7, 5, 1024).queue.is_expecting(), "a few are not worth it");
    assert!(!at_rest_behind(10, 10, 10).queue.is_expecting(), "the next commit is full");
    let mut rig = at_rest_behind(10, 1, 1024);
    assert!(rig.queue.is_expecting());
    rig.append(301, &["a@one.example"], &body(256 << 10));
    assert!(!rig.queue.is_expecting(), "the disk has enough to do");
}
