//! Writes past the page cache: whole blocks, beside which nothing else is written.

use std::collections::BTreeSet;

use super::*;
use crate::limits::{BLOCK, BLOCK_OCTETS};

const MIN: u64 = 20_000;

fn direct(octets_max: u64) -> Options {
    Options { direct_octets_min: MIN, ..options(octets_max) }
}

/// Where a write begins, its octets, and whether it may go past the page cache.
fn look_at(write: &Effect) -> (u64, u64, bool) {
    let Effect::Write { offset, chunks, direct, .. } = write else { panic!("no write") };
    let octets = chunks.iter().map(|chunk| chunk.as_ref().len() as u64).sum();
    let is_whole = |octets: &[u8]| {
        octets.len().is_multiple_of(BLOCK) && octets.as_ptr().addr().is_multiple_of(BLOCK)
    };
    let is_one = chunks.len() == 1 && is_whole(chunks[0].as_ref());
    assert!(!direct || is_one && offset.is_multiple_of(BLOCK_OCTETS));
    (*offset, octets, *direct)
}

/// Does what there is to do; the writes, in their order.
fn run(rig: &mut Rig<MemMedium>) -> Vec<(u64, u64, bool)> {
    let mut writes = Vec::new();
    while let Some(effect) = rig.queue.next_effect() {
        if matches!(effect, Effect::Write { .. }) {
            writes.push(look_at(&effect));
        }
        rig.perform(effect, false);
        rig.poll();
    }
    writes
}

fn append(rig: &mut Rig<MemMedium>, mids: std::ops::Range<u64>, octets: usize) {
    for mid in mids {
        rig.append(mid, &["a@one.example"], &body(octets));
    }
}

#[test]
fn many_messages_are_written_in_blocks_of_their_own() {
    let mut rig = Rig::open(MemMedium::default(), direct(8 * MIB));
    let mut end = 0;
    for (round, (messages, octets)) in
        [(1, 100), (9, 5_000), (1, 100), (4, 5_000)].iter().enumerate()
    {
        let first = round as u64 * 10 + 1;
        append(&mut rig, first..first + messages, *octets);
        let writes = run(&mut rig);
        let [(offset, octets, is_direct)] = writes[..] else { panic!("{writes:?}") };
        assert_eq!(is_direct, *messages > 1, "round {round}");
        assert!(offset >= end, "round {round}: over what is there");
        end = offset + octets;
    }
    assert_eq!(rig.contents().len(), 15);
    let medium = rig.medium.after_power_cut(|| false);
    let mut again = Rig::open(medium, direct(8 * MIB));
    assert_eq!(again.contents(), rig.contents());
}

/// Pieces of the cache that hold a part of the table hold octets that stored words make dirty.
#[test]
fn nothing_is_written_past_the_cache_near_a_table() {
    let options = Options { folio_octets: 512 << 10, ..direct(8 * MIB) };
    let mut rig = Rig::open(MemMedium::default(), options);
    let mut both = BTreeSet::new();
    for round in 0..12 {
        append(&mut rig, round * 10 + 1..round * 10 + 11, 5_000);
        let [(offset, _, is_direct)] = run(&mut rig)[..] else { panic!("one write") };
        assert_eq!(is_direct, offset >= 512 << 10, "{offset}");
        both.insert(is_direct);
    }
    assert_eq!(both.len(), 2);
}

#[test]
fn a_direct_write_is_bounded() {
    let options = Options { segment_octets: 32 * MIB, ..direct(128 * MIB) };
    let mut rig = Rig::open(MemMedium::default(), options);
    append(&mut rig, 1..101, 200_000);
    let writes = run(&mut rig);
    assert!(writes.len() >= 3);
    for (_, octets, is_direct) in writes {
        assert!(is_direct && octets <= 8 * MIB + 200_000 + 2 * BLOCK_OCTETS, "{octets}");
    }
    assert_eq!(rig.contents().len(), 100);
}

/// Whatever the sizes, no write reaches beyond its segment, and each segment is filled.
#[test]
fn segments_are_filled_to_their_ends() {
    for octets in [3_000, 10_000, 25_000, 70_000, 200_000] {
        let mut rig = Rig::open(MemMedium::default(), direct(16 * MIB));
        let (mut mid, mut writes) = (1, Vec::new());
        while rig.queue.usage().segments < 4 {
            append(&mut rig, mid..mid + 7, octets);
            mid += 7;
            writes.extend(run(&mut rig));
        }
        assert!(writes.iter().any(|(_, _, is_direct)| *is_direct), "{octets}");
        assert!(writes.iter().all(|(offset, octets, _)| offset + octets <= MIB), "{octets}");
        let last = writes.iter().map(|(offset, octets, _)| offset + octets).max().unwrap();
        let left = MIB - last;
        assert!(left < octets as u64 + 2 * BLOCK_OCTETS, "{octets}: {left} left");
        assert_eq!(rig.contents().len() as u64, mid - 1);
        assert!(rig.failed.is_empty());
    }
}

/// Its table by way of the page cache, the rest past it: all of it zeros on the disk.
#[test]
fn a_made_segment_is_its_header_and_zeros() {
    // Where temporary files are there may be no disk below.
    let program = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let medium = FileMedium::new(folder.path(), 0);
    for (number, octets) in [(1, MIB), (2, 4 * MIB), (3, 20 * MIB), (4, 5 * MIB + 4096)] {
        for (number, kind) in [(number, SegmentKind::Messages), (number + 9, SegmentKind::Extents)]
        {
            let segment = SegmentId::new(0, number);
            let spool = SpoolId([7; 16]);
            let header = format::Header::first(kind, spool, segment, octets).encode();
            let file = medium.make(segment, octets, &header).unwrap();
            let mut made = vec![1; usize::try_from(octets).unwrap()];
            medium.read_at(&file, 0, &mut made).unwrap();
            assert_eq!(medium.octets(&file).unwrap(), octets);
            assert_eq!(made[..header.len()], header);
            assert!(made[header.len()..].iter().all(|octet| *octet == 0));
        }
    }
}
