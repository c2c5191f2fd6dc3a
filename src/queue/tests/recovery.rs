//! The table of recovery, case by case: what is found, what is done, and that doing it again, or
//! dying in the middle of it, changes nothing.

use super::super::format::{Header, Slot, StateWord, TablePlace};
use super::*;

/// A spool with something in it that a start must deal with.
struct Scene {
    medium: MemMedium,
    options: Options,
    counts: Counts,
    /// Slots that nobody can read any more, and groups that were dropped.
    lost: (u64, u64),
    /// Numbers of segments that are set aside.
    aside: &'static [u32],
    /// Recipients that can be read back.
    readable: usize,
}

/// Messages 10 to 12, one recipient and one commit each: the first two before the durable point.
/// Slots: entry, message, and so on.
fn three() -> (MemMedium, Rig<MemMedium>) {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    for mid in 10..13 {
        rig.append(mid, &["a@one.example"], &body(500));
        assert!(rig.run());
    }
    (medium, rig)
}

fn scene(medium: MemMedium, pending: u64, held: (u64, u64)) -> Scene {
    let (poison, damaged) = held;
    Scene {
        medium,
        options: options(8 * MIB),
        counts: Counts { pending, poison, damaged },
        lost: (0, 0),
        aside: &[],
        readable: small(pending),
    }
}

/// Three messages that nothing has happened to, and one file more.
fn with_file(number: u32, octets: u64, head: impl FnOnce(Header) -> Vec<u8>) -> Scene {
    let (medium, rig) = three();
    let head = head(rig.queue.segments[0].header);
    medium.make(SegmentId(number), octets, &head).unwrap();
    // No number below is missing.
    for between in 2..number {
        let header = Header { segment: SegmentId(between), ..rig.queue.segments[0].header };
        medium.make(SegmentId(between), MIB, &header.encode()).unwrap();
    }
    scene(medium, 3, (0, 0))
}

/// Three messages, and the slot `index` of their table spoiled.
fn with_slot(index: u32, at: u64) -> Scene {
    let (medium, rig) = three();
    let offset = rig.queue.segments[0].geometry.slot_offset(index) + at;
    medium.file(SegmentId(1)).unwrap().change(offset, |octet| octet ^ 1);
    scene(medium, 2, (0, 0))
}

fn future(header: Header) -> Vec<u8> {
    let mut octets = Header { segment: SegmentId(2), ..header }.encode().to_vec();
    octets[8] = 9;
    let sum = format::checksum(&octets[..508]);
    octets[508..].copy_from_slice(&sum.to_le_bytes());
    octets
}

fn adopted() -> Scene {
    let medium = MemMedium::default();
    let gone = Options { shard: ShardId(1), directories: vec![1], ..options(8 * MIB) };
    let mut rig = Rig::open(medium.clone(), gone);
    rig.append(10, &["a@one.example", "b@two.example"], &body(300_000));
    assert!(rig.run());
    let options = Options { directories: vec![0, 1], ..options(8 * MIB) };
    Scene { options, ..scene(medium, 2, (0, 0)) }
}

fn older_generation() -> Scene {
    let (medium, mut rig) = three();
    let segment = &rig.queue.segments[0];
    let header = Header { generation: 2, ..segment.header };
    let place = TablePlace { seed: header.seed(), generation: 2 };
    let Ok(Slot::Message(message)) = segment.slot(5) else { panic!("no message slot") };
    let octets = Slot::Message(message).encode(place, 9);
    rig.queue.segments[0].store_slots(9, &[octets]);
    Scene { aside: &[1], readable: 0, ..scene(medium, 0, (0, 0)) }
}

fn lost_extents() -> Scene {
    let (medium, mut rig) = three();
    rig.append(13, &["b@two.example"], &body(300_000));
    assert!(rig.run());
    // Before the durable point.
    rig.append(14, &["b@two.example"], &body(10));
    assert!(rig.run());
    let extents = rig.queue.segments.iter().find(|s| s.header.kind == SegmentKind::Extents);
    medium.remove(extents.unwrap().header.segment);
    scene(medium, 4, (0, 1))
}

fn held() -> Scene {
    let (medium, mut rig) = three();
    let handle = rig.handles()[0];
    assert_eq!(rig.queue.hold_all(handle).len(), 1);
    assert!(rig.tick(1_000));
    scene(medium, 2, (0, 1))
}

fn superseded() -> Scene {
    let (medium, mut rig) = three();
    // Of message 12 there is a copy.
    let segment = &mut rig.queue.segments[0];
    store_copies(segment, [(4, 6), (5, 7)]);
    segment.store_state(6, StateWord::READY, Mono(0));
    segment.write_words();
    scene(medium, 3, (0, 0))
}

/// A power cut may leave a copy that does not know yet that it was moved, and whose extents went
/// to others since the copy that counts was delivered.
#[test]
fn a_copy_that_does_not_count_misses_no_extents() {
    let (medium, mut rig) = three();
    rig.append(13, &["b@two.example"], &body(300_000));
    assert!(rig.run());
    let segment = &mut rig.queue.segments[0];
    store_copies(segment, [(6, 9), (7, 10), (8, 11)]);
    let delivered = StateWord { state: format::State::Delivered, ..StateWord::READY };
    segment.store_state(9, delivered, Mono(0));
    segment.next_slot = 12;
    // All of it comes to stand before the durable point.
    for mid in [14, 15] {
        rig.append(mid, &["b@two.example"], &body(10));
        assert!(rig.run());
    }
    let extents = rig.queue.segments.iter().find(|s| s.header.kind == SegmentKind::Extents);
    medium.remove(extents.unwrap().header.segment);
    let rig = Rig::open(medium, options(8 * MIB));
    assert_eq!(rig.queue.counts(), Counts { pending: 5, poison: 0, damaged: 0 });
    assert_eq!(rig.recovered.damaged, []);
    let cases: Vec<_> = rig.recovered.notes.iter().map(|note| note.case).collect();
    assert_eq!(cases, [RecoveryCase::Superseded]);
}

/// A power cut may leave a copy whose commit failed, as it stood before the flight of the copy that
/// it was made of began.
#[test]
fn the_copy_in_flight_counts_whatever_its_number() {
    for is_first in [false, true] {
        let (medium, mut rig) = three();
        let segment = &mut rig.queue.segments[0];
        store_copies(segment, [(4, 6), (5, 7)]);
        segment.store_state(6, StateWord::READY, Mono(0));
        let slot = if is_first { 4 } else { 6 };
        segment.store_state(slot, StateWord { in_flight: true, ..StateWord::READY }, Mono(0));
        segment.write_words();
        // The first start dies before it has told.
        for _ in 0..2 {
            let rig = Rig::open_untold(medium.clone(), options(8 * MIB));
            assert_eq!(rig.queue.counts(), Counts { pending: 3, poison: 0, damaged: 0 });
            assert_eq!(rig.recovered.uncertain, [(Mid(12), vec![Rid(0)])]);
        }
        drop(Rig::open(medium.clone(), options(8 * MIB)));
        let rig = Rig::open(medium, options(8 * MIB));
        assert_eq!(rig.queue.counts(), Counts { pending: 3, poison: 0, damaged: 0 });
        assert_eq!(rig.recovered.uncertain, []);
    }
}

/// The header copies of a segment.
fn headers(medium: &MemMedium, number: u32) -> Vec<Header> {
    let file = medium.file(SegmentId(number)).unwrap();
    let copy = |offset| {
        let mut octets = [0; format::HEADER_OCTETS];
        medium.read_at(&file, offset, &mut octets).ok()?;
        Header::decode(&octets).ok()
    };
    [0, format::HEADER_COPY_OFFSET].into_iter().filter_map(copy).collect()
}

/// A page of the table that is lost takes the durable points with it that stood there: a header
/// tells of it too, at most a second late, however steadily commits follow each other.
#[test]
fn a_header_follows_the_commits_within_a_second() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(64 * MIB));
    for mid in 0..60 {
        rig.append(mid, &["a@one.example"], &body(100));
        assert!(rig.tick(100));
        let known = headers(&medium, 1).iter().map(|header| header.durable_slots).max().unwrap();
        let came = rig.queue.segments[0].next_slot;
        assert!(known + 2 * 12 >= came, "the header knows of {known} slots of {came}");
    }
}

/// Both header copies belong to a use as soon as there is mail in it: one of them may be lost.
#[test]
fn the_first_commit_of_a_use_renews_the_other_header_copy() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    for mid in 1..200 {
        rig.append(mid, &["a@one.example"], &body(100_000));
        assert!(rig.run());
        let handle = rig.handles()[0];
        assert!(rig.queue.deleted(handle, Rid(0)).applied);
        assert!(rig.run());
        let active = &rig.queue.segments[rig.queue.active.unwrap()];
        let generation = active.header.generation;
        let copies = headers(&medium, active.header.segment.number());
        assert_eq!(copies.iter().filter(|copy| copy.generation == generation).count(), 2);
        assert!(mid % 10 > 0 || rig.tick(1_000));
    }
    assert!(rig.queue.segments.iter().any(|segment| segment.header.generation > 4));
}

/// What a start has synced is durable, also where nothing is appended any more.
#[test]
fn a_start_knows_of_all_that_it_has_synced() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(64 * MIB));
    for mid in 1..30 {
        rig.append(mid, &["a@one.example"], &body(100_000));
        assert!(rig.run());
    }
    let rig = Rig::open(medium, options(64 * MIB));
    assert!(rig.queue.segments.len() > 3);
    let knows = |s: &live::Segment| s.header.durable_slots == s.next_slot;
    assert!(rig.queue.segments.iter().all(knows));
}

/// The message segment is synced and one of the extents is not: its group is not taken for
/// durable before the words are that withdraw it.
#[test]
fn a_commit_that_failed_for_its_extents_is_not_durable() {
    let mut rig = Rig::open(MemMedium::default(), options(64 * MIB));
    rig.append(1, &["a@one.example"], &body(100));
    assert!(rig.run());
    let before = rig.queue.segments[0].header.durable_slots;
    let ticket = rig.append(2, &["a@one.example"], &body(300_000));
    let mut syncs = Vec::new();
    while let Some(effect) = rig.queue.next_effect() {
        match effect {
            Effect::Sync { .. } => syncs.push(effect),
            effect => rig.perform(effect, false),
        }
    }
    let [of_extents, of_message] = syncs.try_into().unwrap();
    rig.perform(of_message, false);
    rig.perform(of_extents, true);
    rig.poll();
    assert_eq!(rig.queue.segments[0].header.durable_slots, before);
    assert!(rig.run());
    assert_eq!(rig.failed, [ticket]);
}

/// The first message in flight at this many crashes.
fn crashed_in_flight(crashes: u32) -> MemMedium {
    let (medium, mut rig) = three();
    for crash in 0..crashes {
        if crash > 0 {
            rig = Rig::open(medium.clone(), options(8 * MIB));
        }
        let handle = rig.handles()[0];
        assert_eq!(rig.queue.begin(handle, &[Rid(0)]), 1);
        rig.queue.write_words();
    }
    medium
}

/// The test of a case. A case without one does not compile.
fn scene_of(case: RecoveryCase) -> Scene {
    match case {
        RecoveryCase::Copied => {
            let options = Options { is_copy: true, ..options(8 * MIB) };
            Scene { options, ..scene(three().0, 3, (0, 0)) }
        }
        RecoveryCase::Adopted => adopted(),
        RecoveryCase::Foreign => {
            let other = |header| Header { spool: SpoolId([8; 16]), ..header };
            with_file(2, MIB, |header| other(header).encode().to_vec())
        }
        RecoveryCase::Duplicate => {
            let scene = with_file(2, MIB, |header| header.encode().to_vec());
            Scene { aside: &[2], ..scene }
        }
        RecoveryCase::Missing => {
            let third = |header| Header { segment: SegmentId(3), durable_slots: 0, ..header };
            let scene = with_file(3, MIB, |header| third(header).encode().to_vec());
            scene.medium.remove(SegmentId(2));
            scene
        }
        RecoveryCase::FutureVersion => with_file(2, MIB, future),
        RecoveryCase::OlderGeneration => older_generation(),
        RecoveryCase::Truncated => Scene { aside: &[2], ..with_file(2, 0, |_| vec![]) },
        RecoveryCase::Unreadable => Scene { aside: &[2], ..with_file(2, MIB, |_| vec![0; 512]) },
        RecoveryCase::Unlocked => {
            let (medium, _) = three();
            medium.refuse_locks();
            scene(medium, 3, (0, 0))
        }
        RecoveryCase::TornGroup => Scene { lost: (0, 1), ..with_slot(5, 50) },
        RecoveryCase::TornBody => {
            let (medium, rig) = three();
            let at = rig.queue.segments[0].next_body - 100;
            medium.file(SegmentId(1)).unwrap().change(at, |octet| octet ^ 1);
            Scene { lost: (0, 1), ..scene(medium, 2, (0, 0)) }
        }
        RecoveryCase::DamagedSlot => Scene { lost: (1, 0), ..with_slot(0, 50) },
        RecoveryCase::DamagedGroup => {
            let counts = Counts { pending: 2, poison: 0, damaged: 1 };
            Scene { lost: (1, 0), counts, ..with_slot(1, 50) }
        }
        RecoveryCase::DamagedWord => {
            let counts = Counts { pending: 2, poison: 0, damaged: 1 };
            Scene { counts, ..with_slot(0, format::STATE_OFFSET + 2) }
        }
        RecoveryCase::LostExtents => lost_extents(),
        RecoveryCase::Held => held(),
        RecoveryCase::Superseded => superseded(),
        RecoveryCase::InFlight => scene(crashed_in_flight(1), 3, (0, 0)),
        RecoveryCase::Poison => scene(crashed_in_flight(3), 2, (1, 0)),
    }
}

/// What a start makes of a spool; with `tells`, it lives long enough to write its log.
fn start(medium: &MemMedium, scene: &Scene, tells: bool) -> Rig<MemMedium> {
    let mut rig = Rig::open_untold(medium.clone(), scene.options.clone());
    if tells {
        rig.queue.end_flights();
    }
    rig
}

fn files(medium: &MemMedium) -> Vec<SegmentId> {
    let mut all = Vec::new();
    for directory in 0..2 {
        all.extend(medium.list(directory).unwrap().0);
        all.extend(medium.list_aside(directory).unwrap());
    }
    all.sort_unstable();
    all
}

impl Scene {
    fn hold_against(&self, case: RecoveryCase, rig: &mut Rig<MemMedium>, when: &str) {
        let recovered = &rig.recovered;
        let name = format!("{}, {when}: {:?}", case.label(), recovered.notes);
        assert_eq!(rig.queue.counts(), self.counts, "{name}");
        let Counts { pending, poison, damaged } = self.counts;
        assert_eq!(recovered.found_recipients, pending + poison + damaged, "{name}");
        assert_eq!((recovered.damaged_slots, recovered.dropped), self.lost, "{name}");
        let listed = |list: &[(Mid, Vec<Rid>)]| list.iter().map(|(_, rids)| rids.len()).sum();
        let lists: (usize, usize) = (listed(&recovered.poison), listed(&recovered.damaged));
        assert_eq!(lists, (small(poison), small(damaged)), "what is held is listed, {name}");
        assert_eq!(rig.contents().len(), self.readable, "{name}");
        let aside = rig.medium.list_aside(0).unwrap();
        let aside: Vec<u32> = aside.iter().map(|id| id.number()).collect();
        assert_eq!(aside, self.aside, "{name}");
    }
}

#[test]
fn every_case_of_the_table_is_met_named_and_met_again() {
    for case in RecoveryCase::ALL.iter().copied() {
        let scene = scene_of(case);
        let image = || scene.medium.after_power_cut(|| true);
        let before = files(&scene.medium);
        let medium = image();
        let mut rig = start(&medium, &scene, true);
        scene.hold_against(case, &mut rig, "first start");
        let named = |rig: &Rig<MemMedium>| rig.recovered.notes.iter().any(|n| n.case == case);
        assert!(named(&rig), "{}: {:?}", case.label(), rig.recovered.notes);
        assert!(before.iter().all(|file| files(&medium).contains(file)), "{}", case.label());
        let mut rig = start(&medium, &scene, true);
        scene.hold_against(case, &mut rig, "second start");

        // It dies at each call in turn, is started again and dies again, and then is not.
        for call in 0.. {
            let medium = image();
            let calls: Vec<u64> = [call, call / 2]
                .into_iter()
                .map(|call| {
                    medium.fail(Some(call), true);
                    drop(Queue::open(&medium, scene.options.clone(), Now::default()));
                    medium.fail(None, false)
                })
                .collect();
            let mut rig = start(&medium, &scene, false);
            rig.queue.end_flights();
            scene.hold_against(case, &mut rig, &format!("after two deaths at call {call}"));
            assert!(before.iter().all(|file| files(&medium).contains(file)));
            // Without an error to report, the start that died has told nobody.
            let uncertain = rig.recovered.uncertain.len();
            assert_eq!(uncertain, usize::from(case == RecoveryCase::InFlight), "call {call}");
            if calls[0] <= call {
                break;
            }
        }
    }
}

/// A sector may be torn between an entry and its words, which then are those of before.
#[test]
fn words_that_are_torn_behind_the_durable_point_are_no_damage() {
    let scene = with_slot(4, format::STATE_OFFSET + 2);
    let rig = start(&scene.medium, &scene, true);
    assert_eq!(rig.queue.counts(), Counts { pending: 2, poison: 0, damaged: 0 });
    assert_eq!(rig.recovered.dropped, 1);
    assert_eq!(rig.recovered.notes[0].case, RecoveryCase::TornGroup);
}

#[test]
fn the_table_in_the_documentation_is_the_one_in_the_code() {
    let page = include_str!("../recovery.rs");
    let rows = page.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let mut written: Vec<&str> = rows.filter_map(|row| Some(row.split_once('`')?.0)).collect();
    written.dedup();
    let labels: Vec<&str> = RecoveryCase::ALL.iter().map(|case| case.label()).collect();
    assert_eq!(written, labels);
}

/// Shards go and come: a message and its extents are found by whoever reads their directory, and
/// nobody else takes the extents for free.
#[test]
fn shards_that_go_and_come_leave_no_message_without_its_extents() {
    let medium = MemMedium::default();
    let of = |shard, directories: &[u8]| Options {
        shard: ShardId(shard),
        directories: directories.to_vec(),
        ..options(64 * MIB)
    };
    let large = |mid: u64| body(300_000 + small(mid));
    let mut mid = 0;
    let mut append = |rig: &mut Rig<MemMedium>| {
        for _ in 0..3 {
            mid += 1;
            rig.append(mid, &["a@one.example"], &large(mid));
            assert!(rig.run());
        }
        assert!(rig.tick(1_000));
        mid
    };
    for _ in 0..2 {
        // Two shards, then one, which appends wherever there is room; then two again.
        for shard in 0..2 {
            append(&mut Rig::open(medium.clone(), of(shard, &[shard])));
        }
        append(&mut Rig::open(medium.clone(), of(0, &[0, 1])));
    }
    let mut last = 0;
    for shard in 0..2 {
        last = append(&mut Rig::open(medium.clone(), of(shard, &[shard])));
    }
    let mut found = BTreeMap::new();
    for shard in 0..2 {
        let mut rig = Rig::open(medium.clone(), of(shard, &[shard]));
        assert_eq!(rig.recovered.notes, []);
        found.extend(rig.contents());
    }
    assert_eq!(found.len(), small(last));
    for ((mid, _), (_, sum)) in found {
        assert_eq!(sum, format::checksum(&large(mid)), "message {mid}");
    }
}

/// What an unread table says is not known: the extents it lists are not given to others.
#[test]
fn extents_of_a_table_that_could_not_be_read_are_kept() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(64 * MIB));
    rig.append(1, &["a@one.example"], &body(300_000));
    assert!(rig.run());
    drop(rig);
    let mut calls = 0;
    loop {
        medium.fail(Some(calls), false);
        let opened = Queue::open(&medium, options(64 * MIB), Now::default());
        if medium.fail(None, false) <= calls {
            break;
        }
        calls += 1;
        let Ok(Opened { queue, files, .. }) = opened else { continue };
        let recovered = Recovered::default();
        let mut rig = Rig::with(medium.clone(), queue, files, recovered);
        if rig.queue.counts().pending == 0 {
            rig.append(900 + calls, &["a@one.example"], &body(400_000));
            assert!(rig.run());
        }
        drop(rig);
        let found = Rig::open(medium.clone(), options(64 * MIB)).contents();
        let sum = format::checksum(&body(300_000));
        assert_eq!(found.get(&(1, 0)), Some(&("a@one.example".to_owned(), sum)), "call {calls}");
    }
    assert!(calls > 8, "only {calls} calls");
}

#[test]
fn a_copied_spool_is_told_and_gives_other_ids() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |name: &str| QueueSettings {
        spool: folder.path().join(name),
        octets_max: 64 * MIB,
        free_octets_min: Some(0),
    };
    let start = |name: &str| {
        let spool = Spool::open(&settings(name), 1).unwrap();
        let rig = Rig::open(spool.medium(), spool.options(ShardId(0), 1000));
        (rig, spool)
    };
    let (mut rig, spool) = start("one");
    let mid = rig.queue.ids().next_mid().unwrap();
    rig.append(mid.0, &["a@one.example"], b"once");
    assert!(rig.run() && rig.tick(1_000));
    drop((rig, spool));
    let (rig, spool) = start("one");
    assert_eq!(rig.recovered.notes.iter().filter(|n| n.case == RecoveryCase::Copied).count(), 0);
    drop((rig, spool));

    let copied = std::process::Command::new("cp")
        .args(["-a", "one", "two"])
        .current_dir(folder.path())
        .status();
    assert!(copied.unwrap().success());
    let mut seen = std::collections::HashSet::new();
    for (name, is_copy) in [("one", false), ("two", true), ("two", false), ("one", false)] {
        let (mut rig, spool) = start(name);
        let told = rig.recovered.notes.iter().any(|n| n.case == RecoveryCase::Copied);
        assert_eq!(told, is_copy, "{name}");
        assert_eq!(rig.contents().len(), 1);
        let ids = rig.queue.ids();
        assert!(seen.insert(ids.next_mid().unwrap().0), "{name} gives an id twice");
        assert!(rig.tick(1_000));
        drop((rig, spool));
    }
}

/// A call that fails once at a start, whichever it is: what could not be read is found by the next
/// one, whatever the start went on to do. Before the durable point and behind it.
#[test]
fn what_cannot_be_read_waits_for_a_start_that_can() {
    for is_told in [false, true] {
        let medium = MemMedium::default();
        let mut rig = Rig::open(medium.clone(), options(6 * MIB));
        rig.append(1, &["a@one.example", "b@two.example"], &body(600_000));
        assert!(rig.run());
        // The next sync tells how far this one came.
        assert!(!is_told || rig.tick(1_000));
        let handle = rig.handles()[0];
        assert!(!is_told || rig.queue.delivered(handle, Rid(0), &accepted()).applied);
        assert!(!is_told || rig.tick(1_000));
        let expected = rig.contents();
        let mut waited = 0;
        for call in 0.. {
            let image = medium.after_power_cut(|| false);
            image.fail(Some(call), false);
            let opened = Queue::open(&image, options(6 * MIB), rig.now);
            let calls = image.fail(None, false);
            if let Ok(Opened { queue, files, recovered }) = opened {
                let waits = |note: &&RecoveryNote| note.text.contains("MID 1: ");
                waited += recovered.notes.iter().filter(waits).count();
                assert_eq!((&recovered.damaged, recovered.dropped), (&vec![], 0), "call {call}");
                let mut going_on = Rig::with(image.clone(), queue, files, recovered);
                churn(&mut going_on, &[1]);
            }
            let mut again = Rig::open(image, options(6 * MIB));
            assert_eq!(again.contents(), expected, "call {call}");
            if calls <= call {
                break;
            }
        }
        assert!(waited > 0, "no start was without the body");
    }
}
