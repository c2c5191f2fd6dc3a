//! Room: spares made ahead, the reserve, and what a full or failing disk does to new mail.

use super::*;

/// Appends messages of 100,000 octets until the queue refuses one; gives how many it took.
fn fill(rig: &mut Rig<MemMedium>, first: u64, cause: Option<Mid>) -> u64 {
    for mid in first.. {
        let new = NewMessage { cause, ..message(mid, &["a@one.example"], &body(100_000)) };
        if rig.queue.append(new).is_err() {
            return mid - first;
        }
        assert!(rig.run());
    }
    unreachable!()
}

fn delete_all(rig: &mut Rig<MemMedium>) {
    for handle in rig.handles() {
        assert!(rig.queue.deleted(handle, Rid(0)).applied);
    }
}

#[test]
fn no_append_waits_for_a_segment_to_be_made() {
    let mut rig = Rig::open(MemMedium::default(), options(64 * MIB));
    assert_eq!(rig.queue.usage().segments, 1, "an idle engine makes no more than it needs");
    rig.hold_makes = true;
    for mid in 0..80 {
        let ticket = rig.append(1 + mid, &["a@one.example"], &body(100_000));
        assert!(rig.run());
        assert!(rig.committed.contains_key(&ticket), "append {mid} waited");
        for effect in std::mem::take(&mut rig.held) {
            rig.perform(effect, false);
        }
    }
    let usage = rig.queue.usage();
    assert!(usage.segments_spare >= 1 && usage.segments > 8, "{usage:?}");
}

#[test]
fn the_reserve_is_for_reports_and_never_for_new_mail() {
    let mut rig = Rig::open(MemMedium::default(), options(32 * MIB));
    assert_eq!(rig.queue.usage().segments_reserved, 4);
    let taken = fill(&mut rig, 1, None);
    assert!((27 * 8 - 8..=28 * 8).contains(&taken), "{taken}");
    assert_eq!(rig.intake, [Some(Closed::Limit)]);
    assert!(!rig.queue.takes_mail());
    assert_eq!(rig.queue.has_room(0), Err(Full::NoSpace));
    let reports = fill(&mut rig, 1_000, Some(Mid(1)));
    assert!((2 * 8..=3 * 8).contains(&reports), "{reports}");
    assert_eq!(rig.failed, [], "what was taken was stored");
    delete_all(&mut rig);
    assert!(rig.tick(1_000) && rig.tick(1_000));
    assert_eq!(rig.intake, [Some(Closed::Limit), None], "it is taken again by itself");
    assert_eq!(rig.queue.has_room(100_000), Ok(()));
}

#[test]
fn a_full_file_system_stops_new_mail_until_there_is_space() {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    for why in [StorageFull, QuotaExceeded, ReadOnlyFilesystem] {
        no_segment_can_be_made(why);
    }
}

fn no_segment_can_be_made(why: io::ErrorKind) {
    let mut rig = Rig::open(MemMedium::default(), options(64 * MIB));
    fill_some(&mut rig, 100);
    rig.no_space = Some(why);
    let more = fill(&mut rig, 1_000, None);
    assert!(more < 5 * 8, "{more}");
    assert_eq!(rig.failed, []);
    assert_eq!(rig.intake, [Some(Closed::NoSegment)]);
    assert!(fill(&mut rig, 2_000, Some(Mid(1))) > 0, "a report still finds room");
    for _ in 0..20 {
        assert!(rig.tick(100));
    }
    assert_eq!(rig.intake.len(), 1, "it does not flutter");
    // Deliveries free space, though the file system stays full.
    delete_all(&mut rig);
    assert!(rig.tick(1_000) && rig.tick(1_000));
    assert_eq!(rig.intake, [Some(Closed::NoSegment), None]);
    assert!(fill(&mut rig, 3_000, None) > 0);
    rig.no_space = None;
    assert!(rig.tick(1_000) && rig.tick(1_000));
    assert_eq!(rig.intake.last(), Some(&None), "it is noticed that there is space again");
}

fn fill_some(rig: &mut Rig<MemMedium>, messages: u64) {
    for mid in 0..messages {
        rig.queue.append(message(1 + mid, &["a@one.example"], &body(100_000))).unwrap();
        assert!(rig.run());
    }
}

/// The name is given again, so nothing may be left under it.
#[test]
fn a_segment_that_cannot_be_mapped_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let medium = FileMedium::new(folder.path(), 0);
    let name = SegmentId(1);
    let too_long = medium.make_mapped(name, MIB, 2 * MIB, &[0; 512]);
    assert_eq!(too_long.err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    assert!(!medium.path(name).exists());
    assert!(medium.make_mapped(name, MIB, MIB, &[0; 512]).is_ok());
}

/// That would be taken for a name that is taken, and the next number be tried at once, for ever.
#[test]
fn a_file_in_the_place_of_a_directory_is_no_taken_name() {
    let folder = tempfile::tempdir().unwrap();
    let medium = FileMedium::new(folder.path(), 0);
    std::fs::write(FileMedium::directory(folder.path(), 0), "").unwrap();
    let made = medium.make(SegmentId(1), MIB, &[0; 512]);
    assert_eq!(made.err().unwrap().kind(), io::ErrorKind::NotADirectory);
}

/// Somebody put a file there, or a making that came to an error had got that far.
#[test]
fn a_name_that_is_taken_is_passed_over() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(64 * MIB));
    let header = rig.queue.segments[0].header;
    for number in [2, 3] {
        let header = format::Header { segment: SegmentId(number), ..header };
        medium.make(header.segment, MIB, &header.encode()).unwrap();
    }
    fill_some(&mut rig, 100);
    assert_eq!(rig.intake, []);
    let own = |segment: &Segment| segment.header.segment.number();
    let mut numbers: Vec<u32> = rig.queue.segments.iter().map(own).collect();
    numbers.sort_unstable();
    assert_eq!(numbers[..3], [1, 4, 5]);
}

#[test]
fn a_disk_that_takes_nothing_is_not_given_one_segment_after_the_other() {
    let mut rig = Rig::open(MemMedium::default(), options(64 * MIB));
    rig.failing_for_ever = true;
    let mut refused = 0;
    for mid in 0..50 {
        let new = NewMessage { cause: None, ..message(1 + mid, &["a@one.example"], b"x") };
        refused += u64::from(rig.queue.append(new).is_err());
        assert!(rig.tick(10));
    }
    assert_eq!(rig.committed.len(), 0);
    assert_eq!((rig.failed.len(), refused), (3, 47));
    assert_eq!(rig.intake, [Some(Closed::Failing)]);
    assert_eq!(rig.queue.usage().segments_poisoned, 3);
    rig.failing_for_ever = false;
    assert!(rig.tick(10_000) && rig.tick(100));
    assert_eq!(rig.intake.last(), Some(&None));
    let ticket = rig.append(500, &["a@one.example"], b"x");
    assert!(rig.run());
    assert!(rig.committed.contains_key(&ticket));
}

/// Appends messages of `octets` until one is refused; how many were taken.
fn fill_with(rig: &mut Rig<MemMedium>, first: u64, octets: usize) -> u64 {
    let body = Arc::new(Body { bytes: body(octets).into(), facts: MessageFacts::default() });
    for mid in first.. {
        let new = message(mid, &["a@one.example"], b"");
        let new = NewMessage { cause: None, body: body.clone(), ..new };
        if rig.queue.append(new).is_err() {
            return mid - first;
        }
        assert!(rig.run());
    }
    unreachable!()
}

/// Large mail and small mail take the same space in turn, and none of it is lost to the other.
#[test]
fn space_of_large_mail_serves_small_mail_when_it_is_gone() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(32 * MIB));
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for round in 0..3 {
        large.push(fill_with(&mut rig, 10_000 * round + 1, 3_000_000));
        assert!(
            rig.queue.append(NewMessage { cause: None, ..message(9, &["a@b.c"], b"x") }).is_ok()
        );
        delete_all(&mut rig);
        assert!(rig.tick(1_000) && rig.tick(1_000));
        delete_all(&mut rig);
        assert!(rig.tick(1_000) && rig.tick(1_000) && rig.tick(1_000));
        assert!(rig.queue.takes_mail(), "{:?}", rig.queue.usage());
        small.push(fill_with(&mut rig, 10_000 * round + 5_001, 100_000));
        delete_all(&mut rig);
        assert!(rig.tick(1_000) && rig.tick(1_000) && rig.tick(1_000));
    }
    assert_eq!(rig.failed, [], "what was taken was stored");
    assert!(small.iter().all(|taken| *taken >= 25 * 8), "{small:?}");
    assert!(large.iter().all(|taken| *taken >= 6), "{large:?}");
    assert!(rig.queue.usage().octets <= 32 * MIB);
    // What was remade is what the next start finds.
    let mut rig = Rig::open(medium, options(32 * MIB));
    assert!(rig.recovered.notes.is_empty(), "{:?}", rig.recovered.notes);
    assert!(fill_with(&mut rig, 100_000, 100_000) >= 25 * 8);
}

/// However often words change, what changed first is on disk within a second: 900 ms and the time
/// of the sync itself.
#[test]
fn a_changed_word_is_on_disk_within_a_second() {
    let mut rig = Rig::open(MemMedium::default(), options(8 * MIB));
    let ticket = rig.append(1, &["a@one.example"], b"x");
    assert!(rig.run());
    let handle = rig.committed[&ticket][0].0;
    let file = rig.medium.file(SegmentId::new(0, 1)).unwrap();
    let (mut changed_at, mut longest, mut synced) = (None, 0, 0);
    let mut words = file.durable_words();
    for tick in 0..100_u64 {
        // A word changes in every tick, at its end: a busy shard.
        assert!(rig.tick(100));
        let durable = file.durable_words();
        if durable != words {
            words = durable;
            synced += 1;
            if let Some(at) = changed_at.take() {
                longest = longest.max(tick - at);
            }
        }
        if rig.queue.begin(handle, &[Rid(0)]) == 0 {
            assert!(rig.queue.release(handle, Rid(0)).applied);
        }
        changed_at.get_or_insert(tick);
    }
    assert!((10..=13).contains(&synced), "{synced} syncs in ten seconds");
    assert!(longest <= 9, "{longest} ticks");
}
