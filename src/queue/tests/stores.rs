//! Files that refuse what is stored into their tables.

use super::*;

#[test]
fn nothing_is_acknowledged_that_the_table_did_not_take() {
    let mut rig = Rig::open(MemMedium::default(), options(8 * MIB));
    rig.append(1, &["a@one.example"], &body(100));
    assert!(rig.run());
    let before = rig.handles();
    let active = rig.queue.active.unwrap();
    rig.queue.segments[active].refuse_stores();
    let refused = rig.append(2, &["a@one.example"], &body(100));
    assert!(rig.run());
    assert_eq!(rig.failed, [refused]);
    assert_eq!(rig.unstorable, [rig.queue.segments[active].header.segment]);
    assert_eq!(rig.queue.usage().segments_poisoned, 1);
    // The next message finds another segment; what was safe before is still delivered once.
    let taken = rig.append(3, &["a@one.example"], &body(100));
    assert!(rig.run());
    assert!(rig.committed.contains_key(&taken));
    assert!(rig.queue.delivered(before[0], Rid(0), &accepted()).applied);
    assert!(!rig.queue.delivered(before[0], Rid(0), &accepted()).applied);
    assert_eq!(rig.unstorable.len(), 1, "said once");
}

#[test]
fn a_settlement_that_the_table_did_not_take_poisons_the_segment() {
    let mut rig = Rig::open(MemMedium::default(), options(8 * MIB));
    rig.append(1, &["a@one.example"], &body(100));
    assert!(rig.run());
    let (handles, active) = (rig.handles(), rig.queue.active.unwrap());
    rig.queue.segments[active].refuse_stores();
    assert!(rig.queue.delivered(handles[0], Rid(0), &accepted()).applied);
    assert_eq!((rig.queue.counts().pending, rig.unstorable.len()), (0, 0));
    assert!(rig.tick(1_000));
    assert_eq!((rig.unstorable.len(), rig.queue.usage().segments_poisoned), (1, 1));
    assert!(rig.queue.is_quiet());
}
