//! The number of shards changes, down and up again, with large messages in the queue.

use super::*;

/// The queue of one shard of `shards`.
fn open(medium: &MemMedium, shard: u8, shards: u8, blocks: &Arc<AtomicU64>) -> Rig<MemMedium> {
    let gone = (shards..4).filter(|directory| directory % shards == shard);
    let options = Options {
        shard: ShardId(shard),
        directories: std::iter::once(shard).chain(gone).collect(),
        next_block: blocks.clone(),
        ..options(48 * MIB / u64::from(shards))
    };
    Rig::open(medium.clone(), options)
}

fn delete(rig: &mut Rig<MemMedium>, keep: impl Fn(u64) -> bool) {
    for handle in rig.handles() {
        let summary = rig.queue.summary(handle).unwrap();
        for recipient in summary.recipients {
            if !keep(summary.mid.0) {
                assert!(rig.queue.deleted(handle, recipient.rid).applied);
            }
        }
    }
    assert!(rig.tick(1_000) && rig.tick(1_000));
}

fn is_clean(rig: &Rig<MemMedium>) {
    let counts = rig.queue.counts();
    assert_eq!((counts.damaged, counts.poison), (0, 0), "{:?}", rig.recovered.notes);
    assert!(!rig.recovered.notes.iter().any(|note| note.is_trouble()), "{:?}", rig.recovered.notes);
}

#[test]
fn no_large_message_is_lost_however_the_shards_change() {
    let (medium, blocks) = (MemMedium::default(), Arc::new(AtomicU64::new(1)));
    let large = body(1_200_000);
    let mut all = BTreeMap::new();
    let mut mid = 0;
    for shards in [4, 1, 4, 2, 3, 4] {
        let mut found = BTreeMap::new();
        for shard in 0..shards {
            let mut rig = open(&medium, shard, shards, &blocks);
            is_clean(&rig);
            found.extend(rig.contents());
            // The older half goes, large and small ones come.
            delete(&mut rig, |known| known + 6 > mid);
            for octets in [&large[..], b"small"] {
                mid += 1;
                rig.append(mid, &["a@one.example", "b@two.example"], octets);
                assert!(rig.run() && rig.tick(1_000) && rig.run());
            }
            assert_eq!(rig.failed, []);
        }
        assert_eq!(found, all, "at {shards} shards");
        all.clear();
        for shard in 0..shards {
            all.extend(open(&medium, shard, shards, &blocks).contents());
        }
    }
}

/// Space of shards that are gone is not lost: at the next start it belongs to those that are here.
#[test]
fn space_of_shards_that_are_gone_comes_back() {
    let (medium, blocks) = (MemMedium::default(), Arc::new(AtomicU64::new(1)));
    let fill = |rig: &mut Rig<MemMedium>, from: u64| {
        let mut mid = from;
        loop {
            let large = mid.is_multiple_of(3);
            let octets = body(if large { 600_000 } else { 100_000 });
            let new = NewMessage { cause: None, ..message(mid, &["a@one.example"], &octets) };
            if rig.queue.append(new).is_err() {
                return mid - from;
            }
            assert!(rig.run());
            mid += 1;
        }
    };
    let mut alone = open(&medium, 0, 4, &blocks);
    let room = fill(&mut alone, 1);
    delete(&mut alone, |_| false);
    drop(alone);
    for shard in 1..4 {
        let mut rig = open(&medium, shard, 4, &blocks);
        fill(&mut rig, 1_000 * u64::from(shard));
        // One is kept at the end of a directory, and one at its beginning.
        let kept = [1_000, 2_000, 2_005];
        delete(&mut rig, |mid| kept.contains(&mid));
    }
    let mut rig = open(&medium, 0, 1, &blocks);
    is_clean(&rig);
    assert_eq!(rig.contents().len(), 3);
    delete(&mut rig, |_| false);
    drop(rig);
    let mut rig = open(&medium, 0, 1, &blocks);
    is_clean(&rig);
    assert!((1..4).all(|directory| medium.list(directory).unwrap().0.is_empty()), "all is ours");
    assert!(fill(&mut rig, 10_000) >= room, "as much as before");
    let ids = rig.queue.ids().next_mid().unwrap();
    assert!(ids.0 >= crate::limits::ID_BLOCK, "{ids:?}");
    // And the shards come back.
    let before = rig.contents();
    drop(rig);
    let mut rig = open(&medium, 0, 4, &blocks);
    assert_eq!(rig.contents(), before);
    is_clean(&open(&medium, 1, 4, &blocks));
}
