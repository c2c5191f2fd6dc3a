//! Looking at a spool, and what a start sets aside in it.

use super::super::inspect::inspect;
use super::*;

#[test]
fn what_is_wrong_with_a_spool_is_listed_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let settings =
        QueueSettings { spool: path.clone(), octets_max: 64 * MIB, free_octets_min: Some(0) };
    let start = || {
        let spool = Spool::open(&settings, 1).unwrap();
        Rig::open(spool.medium(), spool.options(ShardId(0), 1000))
    };
    let mut rig = start();
    for mid in 1..=5 {
        rig.append(mid, &["a@one.example", "b@two.example"], &body(200_000));
        assert!(rig.run());
    }
    let handle = rig.handles()[0];
    assert_eq!(rig.queue.begin(handle, &[Rid(0)]), 1);
    assert!(rig.tick(1_000));
    drop(rig);
    let seen = inspect(&path).unwrap();
    assert!(seen.is_sound(), "{seen:?}");
    assert_eq!((seen.pending, seen.held, seen.in_flight), (10, 0, 1));
    assert!(seen.segments >= 2 && seen.octets >= 2 * MIB, "{seen:?}");

    // A copy, a headless file and a cut one: named, kept, and everything else goes on.
    let shard = path.join("shard-00");
    std::fs::copy(shard.join("000001.segment"), shard.join("000040.segment")).unwrap();
    std::fs::write(shard.join("000041.segment"), vec![0; 1 << 20]).unwrap();
    std::fs::write(shard.join("000042.segment"), [0; 100]).unwrap();
    assert_eq!(inspect(&path).unwrap().findings.len(), 3);
    let mut rig = start();
    assert_eq!(rig.contents().len(), 10);
    drop(rig);
    let seen = inspect(&path).unwrap();
    assert_eq!((seen.findings.len(), seen.set_aside.len()), (0, 3), "{seen:?}");
    assert_eq!(seen.pending, 10);
    let rig = start();
    assert_eq!(rig.queue.last_segment_number, 0x42, "their numbers are not given again");

    drop(rig);
    let first = shard.join("000001.segment");
    let mut octets = std::fs::read(&first).unwrap();
    let geometry = format::Geometry::of(SegmentKind::Messages, octets.len() as u64);
    octets[usize::try_from(geometry.slot_offset(1)).unwrap() + 40] ^= 1;
    std::fs::write(&first, octets).unwrap();
    let seen = inspect(&path).unwrap();
    assert_eq!(seen.findings.len(), 1);
    assert!(seen.findings[0].to_string().ends_with("1 of its slots are damaged"));
}
