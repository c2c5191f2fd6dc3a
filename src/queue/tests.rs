//! The queue as its executor sees it: on files, in memory, and killed at every effect.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::format::{SegmentKind, SpoolId, State};
use super::memory::{MemFile, MemMedium};
use super::settings::QueueSettings;
use super::*;
use crate::mail::{
    Accepted, Body, BodyKind, Dcid, Icid, Mailbox, MessageFacts, Notify, Now, Recipient, Reply,
    ReplyLines, Ret, ShardId,
};

mod adopt;
mod ahead;
mod direct;
mod early;
mod forward;
mod inspect;
mod recovery;
mod room;
mod stores;

const MIB: u64 = 1 << 20;

fn options(octets_max: u64) -> Options {
    Options {
        shard: ShardId(0),
        spool: SpoolId([7; 16]),
        segment_octets: MIB,
        octets_max,
        segments_ahead: 2,
        commit_messages_max: 1024,
        direct_octets_min: u64::MAX,
        folio_octets: crate::limits::BLOCK_OCTETS,
        directories: vec![0],
        next_block: Arc::new(AtomicU64::new(1)),
        retry_ms_max: 3_600_000,
        is_copy: false,
    }
}

/// An executor: the queue, its files, and a plan of which effect fails or is the last.
struct Rig<M: Medium> {
    medium: M,
    queue: Queue,
    files: HashMap<SegmentId, M::File>,
    recovered: Recovered,
    effects: usize,
    /// The process ends before this effect.
    killed_at: usize,
    /// This effect fails.
    failing: Option<usize>,
    committed: BTreeMap<Ticket, super::Handles>,
    /// In the order in which they were told of.
    committed_in_order: Vec<Ticket>,
    failed: Vec<Ticket>,
    intake: Vec<Option<Closed>>,
    unstorable: Vec<SegmentId>,
    /// No segment can be made, for this reason.
    no_space: Option<io::ErrorKind>,
    /// Every write and sync fails.
    failing_for_ever: bool,
    /// Segments are made only when the test carries out what is held.
    hold_makes: bool,
    held: Vec<Effect>,
    held_events: Vec<(Mid, Vec<Rid>)>,
    now: Now,
}

impl<M: Medium> Rig<M> {
    fn open(medium: M, options: Options) -> Self {
        let mut rig = Self::open_untold(medium, options);
        rig.queue.end_flights();
        rig
    }

    /// A start that has not written its log yet.
    fn open_untold(medium: M, options: Options) -> Self {
        let now = Now::default().plus_ms(1_000_000);
        let Opened { queue, files, recovered } = Queue::open(&medium, options, now).unwrap();
        Self::with(medium, queue, files, recovered)
    }

    fn with(
        medium: M,
        queue: Queue,
        files: Vec<(SegmentId, M::File)>,
        recovered: Recovered,
    ) -> Self {
        let now = Now::default().plus_ms(1_000_000);
        Self {
            medium,
            queue,
            files: files.into_iter().collect(),
            recovered,
            effects: 0,
            killed_at: usize::MAX,
            failing: None,
            committed: BTreeMap::new(),
            committed_in_order: Vec::new(),
            failed: Vec::new(),
            intake: Vec::new(),
            unstorable: Vec::new(),
            no_space: None,
            failing_for_ever: false,
            hold_makes: false,
            held: Vec::new(),
            held_events: Vec::new(),
            now,
        }
    }

    /// Does what the queue wants; false when killed.
    fn run(&mut self) -> bool {
        while let Some(effect) = self.queue.next_effect() {
            if self.effects == self.killed_at {
                return false;
            }
            let makes = matches!(effect, Effect::Make { .. });
            let fails = self.failing == Some(self.effects) || self.failing_for_ever && !makes;
            self.effects += 1;
            if self.hold_makes && makes {
                self.held.push(effect);
                continue;
            }
            self.perform(effect, fails);
            self.poll();
        }
        self.poll();
        true
    }

    fn poll(&mut self) {
        self.queue.enter_synced();
        while let Some(event) = self.queue.poll_event() {
            match event {
                Event::Accepted { .. } => panic!("nothing is delivered early here"),
                Event::Committed { ticket, safe: _, handles, pending: _ } => {
                    self.committed.insert(ticket, handles);
                    self.committed_in_order.push(ticket);
                }
                Event::Failed { ticket } => self.failed.push(ticket),
                Event::Held { mid, rids, what: _ } => self.held_events.push((mid, rids)),
                Event::Unstorable { segment, error: _ } => self.unstorable.push(segment),
                Event::Intake(closed) => self.intake.push(closed),
            }
        }
    }

    fn perform(&mut self, effect: Effect, fails: bool) {
        let broken = || Err::<(), io::Error>(io::Error::other("broken"));
        match effect {
            Effect::Make { id, segment, octets, map_octets, header } => {
                let broken = fails.then_some(io::ErrorKind::StorageFull);
                if let Some(kind) = self.no_space.or(broken) {
                    return self.queue.handle_made(id, Err(kind.into()));
                }
                let made = self.medium.make(segment, octets, &header);
                let map = made.and_then(|file| {
                    let map = self.medium.map(&file, map_octets);
                    self.files.insert(segment, file);
                    map
                });
                self.queue.handle_made(id, map);
            }
            Effect::Write { id, segment, offset, chunks, direct: _ } => {
                let mut at = offset;
                for chunk in &chunks {
                    // A failing write has written half of its octets.
                    let octets = chunk.as_ref();
                    let octets = if fails { &octets[..octets.len() / 2] } else { octets };
                    self.medium.write_at(&self.files[&segment], at, octets).unwrap();
                    at += octets.len() as u64;
                }
                self.queue.handle_done(id, if fails { broken() } else { Ok(()) });
            }
            Effect::Read { id, plan } => {
                let result =
                    if fails { Err(io::Error::other("broken")) } else { self.read_pieces(&plan) };
                self.queue.handle_read(id, result);
            }
            Effect::Sync { id, segment } => {
                let result = if fails { broken() } else { self.medium.sync(&self.files[&segment]) };
                self.queue.handle_done(id, result);
            }
        }
    }

    fn tick(&mut self, ms: u64) -> bool {
        self.now = self.now.plus_ms(ms);
        self.queue.tick(self.now);
        self.run()
    }

    fn append(&mut self, mid: u64, to: &[&str], body: &[u8]) -> Ticket {
        self.queue.append(message(mid, to, body)).unwrap()
    }

    fn handles(&self) -> Vec<Handle> {
        let (mut out, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            cursor = self.queue.walk(at, 3, &mut out);
        }
        out
    }

    fn read(&mut self, handle: Handle) -> Result<StoredMessage, Damaged> {
        let gone = Damaged { held: vec![], what: "plan", moved: false };
        let plan = self.queue.read_plan(handle).ok_or(gone)?;
        let octets = self.read_pieces(&plan).unwrap_or_default();
        self.queue.parse(handle, &plan, octets)
    }

    fn read_pieces(&self, plan: &ReadPlan) -> io::Result<Vec<u8>> {
        let mut octets = Vec::new();
        for piece in &plan.pieces {
            let mut part = vec![0; usize::try_from(piece.octets).unwrap()];
            let file = self.files.get(&piece.segment).ok_or(io::ErrorKind::NotFound)?;
            self.medium.read_at(file, piece.offset, &mut part)?;
            octets.extend(part);
        }
        Ok(octets)
    }

    /// Every pending recipient, read back, with a checksum of its body.
    fn contents(&mut self) -> BTreeMap<(u64, u32), (String, u32)> {
        let mut out = BTreeMap::new();
        for handle in self.handles() {
            let Ok(stored) = self.read(handle) else { continue };
            let sum = format::checksum(&stored.octets[stored.body.clone()]);
            for recipient in stored.envelope.recipients {
                let key = (stored.mid.0, recipient.rid.0);
                let before = out.insert(key, (recipient.address.to_string(), sum));
                assert!(before.is_none(), "a recipient was found twice");
            }
        }
        out
    }
}

fn message(mid: u64, to: &[&str], body: &[u8]) -> NewMessage {
    let recipient = |(rid, address): (usize, &&str)| Recipient {
        rid: Rid(u32::try_from(rid).unwrap()),
        address: Mailbox::parse(address.as_bytes()).unwrap(),
        notify: Notify(Notify::FAILURE),
        orcpt: Some("rfc822;x".into()),
    };
    NewMessage {
        mid: Mid(mid),
        envelope: Arc::new(Envelope {
            sender: Some(Mailbox::parse(b"s@from.example").unwrap()),
            body: BodyKind::EightBitMime,
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some("id+41".into()),
            recipients: to.iter().enumerate().map(recipient).collect(),
        }),
        arrival: Wall(5_000),
        bounce_profile: "default".into(),
        listener: "in".into(),
        cause: Some(Mid(3)),
        body: Arc::new(Body {
            bytes: body.to_vec().into(),
            facts: MessageFacts { leading_dot: true, eight_bit: false, utf8_header: true },
        }),
    }
}

fn accepted() -> Accepted {
    Accepted::from_end_of_data(Reply { code: 250, enhanced: None, lines: ReplyLines::default() })
        .unwrap()
}

fn last() -> LastOutcome {
    let status = Enhanced::new(4, 2, 1);
    LastOutcome { code: 450, status, host: Some("mx.a.example".into()), warnings: 2 }
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

#[test]
fn what_is_appended_is_settled_and_found_again() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(64 * MIB));
    let one = rig.append(10, &["x@b.example", "y@a.example", "z@b.example"], b"one\r\n");
    let two = rig.append(11, &["w@b.example"], b"two\r\n");
    assert!(rig.run());
    let domains: Vec<_> = rig.committed[&one].iter().map(|(_, d)| d.to_string()).collect();
    assert_eq!(domains, ["a.example", "b.example"]);
    assert_eq!(rig.queue.counts().pending, 4);
    let (a, b) = (rig.committed[&one][0].0, rig.committed[&one][1].0);
    let w = rig.committed[&two][0].0;
    let mut list = Vec::new();
    rig.queue.walk_destination(&Domain::parse(b"b.example").unwrap(), None, 9, &mut list);
    assert_eq!(list, [b, w]);

    let stored = rig.read(b).unwrap();
    let expected = message(10, &["x@b.example", "y@a.example", "z@b.example"], b"one\r\n");
    let rids: Vec<u32> = stored.envelope.recipients.iter().map(|r| r.rid.0).collect();
    assert_eq!(rids, [0, 2]);
    assert_eq!(stored.envelope.sender, expected.envelope.sender);
    assert_eq!(stored.envelope.recipients[1], expected.envelope.recipients[2]);
    assert_eq!(stored.envelope.envid, expected.envelope.envid);
    assert_eq!(&stored.octets[stored.body], b"one\r\n");
    assert_eq!(stored.facts, expected.body.facts);

    assert_eq!(rig.queue.begin(b, &[Rid(0), Rid(2), Rid(1)]), 2);
    let change = rig.queue.delivered(b, Rid(0), &accepted());
    assert_eq!(change, Change { applied: true, handle_gone: false, message_gone: false });
    assert!(!rig.queue.delivered(b, Rid(0), &accepted()).applied);
    let next = Wall(rig.now.wall.0 + 60_000);
    assert!(rig.queue.defer(b, Rid(2), &last(), 3, next).applied);
    let gone = Change { applied: true, handle_gone: true, message_gone: false };
    assert_eq!(rig.queue.bounced(a, Rid(1), &last()), gone);
    assert_eq!(rig.queue.begin(w, &[Rid(0)]), 1);
    assert!(rig.tick(2_000));
    assert!(rig.queue.is_quiet());

    // A power cut: all of it was synced.
    let mut rig = Rig::open(medium.after_power_cut(|| false), options(64 * MIB));
    assert_eq!(rig.recovered.found_recipients, 2);
    assert_eq!(rig.recovered.uncertain, [(Mid(11), vec![Rid(0)])]);
    let handles = rig.handles();
    let summary = rig.queue.summary(handles[0]).unwrap();
    assert_eq!((summary.mid, summary.recipients.len(), summary.cause), (Mid(10), 1, Some(Mid(3))));
    let recipient = &summary.recipients[0];
    assert_eq!((recipient.state, recipient.attempts), (State::Deferred, 3));
    assert_eq!(recipient.next_attempt, next);
    assert_eq!(recipient.last, Some(last()));
    assert_eq!(&*summary.bounce_profile, "default");
    assert_eq!(rig.contents().len(), 2);
}

#[test]
fn files_keep_it_too_and_a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let settings = QueueSettings {
        spool: folder.path().join("spool"),
        octets_max: 256 * MIB,
        free_octets_min: Some(0),
    };
    let spool = Spool::open(&settings, 2).unwrap();
    let error = Spool::open(&settings, 2).unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    let mut rig = Rig::open(spool.medium(), spool.options(ShardId(1), 1000));
    let large = body(5 << 20);
    let mid = rig.queue.ids().next_mid().unwrap();
    rig.append(mid.0, &["l@large.example", "m@other.example"], &large);
    rig.append(mid.0 + 1, &["s@small.example"], b"small");
    assert!(rig.run());
    assert_eq!(rig.committed.len(), 2);
    let before = rig.contents();
    assert_eq!(before.len(), 3);
    assert_eq!(before[&(mid.0, 0)].1, format::checksum(&large));
    drop((rig, spool));

    // One shard now: it adopts the directory of the one that is gone.
    let spool = Spool::open(&settings, 1).unwrap();
    let mut rig = Rig::open(spool.medium(), spool.options(ShardId(0), 1000));
    assert_eq!(rig.contents(), before);
    assert!(rig.queue.ids().next_mid().unwrap() > Mid(mid.0 + 1));
    let handles = rig.handles();
    for handle in handles {
        for recipient in rig.queue.summary(handle).unwrap().recipients {
            assert!(rig.queue.discarded(handle, recipient.rid).applied);
        }
    }
    assert!(rig.tick(1_000));
    assert_eq!(rig.queue.counts(), Counts::default());
    let again = rig.append(mid.0 + 9, &["l@large.example"], &large);
    assert!(rig.run());
    assert!(rig.committed.contains_key(&again));
}

#[test]
fn ids_are_never_given_twice() {
    let medium = MemMedium::default();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        let mut options = options(8 * MIB);
        let largest = largest_block(&medium);
        options.next_block = Arc::new(AtomicU64::new(largest + 1));
        let mut rig = Rig::open(medium.clone(), options);
        for _ in 0..3 {
            let Some(Mid(mid)) = rig.queue.ids().next_mid() else { panic!("no MID") };
            let Some(Icid(icid)) = rig.queue.ids().next_icid() else { panic!("no ICID") };
            let Some(Dcid(dcid)) = rig.queue.ids().next_dcid() else { panic!("no DCID") };
            assert!(seen.insert(mid) && seen.insert(icid) && seen.insert(dcid));
        }
        assert!(rig.tick(1_000) && rig.tick(1_000));
    }
}

fn largest_block(medium: &MemMedium) -> u64 {
    let block = |id: &SegmentId| {
        let mut head = vec![0; 8192];
        medium.read_at(&medium.file(*id).unwrap(), 0, &mut head).unwrap();
        format::Header::choose(&head[..4096], &head[4096..]).unwrap().id_block_max
    };
    medium.list(0).unwrap().0.iter().map(block).max().unwrap_or(0)
}

/// What a life of the queue does, until it is killed; what it had acknowledged, and for each
/// recipient that it had settled whether that was durable.
fn life(rig: &mut Rig<MemMedium>) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    let large = body(270_000);
    for round in 0..4 {
        let mut tickets = Vec::new();
        if let Some(handle) = rig.handles().first().copied() {
            // A sync of state words that ends while the next commit is being written.
            assert_eq!(rig.queue.begin(handle, &[Rid(0)]), 1);
            assert!(rig.queue.release(handle, Rid(0)).applied);
            rig.now = rig.now.plus_ms(1_000);
            rig.queue.tick(rig.now);
        }
        for n in 0..3 {
            let mid = 100 + round * 10 + n;
            let data = if n == 2 { large.clone() } else { body(3000 + small(n)) };
            let to = ["a@one.example", "b@two.example"];
            tickets.push((mid, rig.append(mid, &to, &data)));
        }
        let alive = rig.run();
        let done = tickets.iter().filter(|(_, ticket)| rig.committed.contains_key(ticket));
        acknowledged.extend(done.map(|(mid, _)| *mid));
        if !alive || !rig.tick(1_000) {
            break;
        }
    }
    acknowledged
}

#[test]
fn killed_at_every_effect_it_loses_nothing_and_invents_nothing() {
    for kill in 0..32 {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ kill as u64;
        let medium = MemMedium::default();
        let mut rig = Rig::open(medium.clone(), options(64 * MIB));
        rig.killed_at = kill;
        let acknowledged = life(&mut rig);
        drop(rig);
        let mut bits = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random & 1 == 1
        };
        let images =
            [medium.after_power_cut(|| false), medium.after_power_cut(&mut bits), medium.clone()];
        for image in images {
            let first = Rig::open(image.clone(), options(64 * MIB)).contents();
            let mut rig = Rig::open(image, options(64 * MIB));
            assert_eq!(rig.contents(), first, "recovery is idempotent");
            assert_eq!(rig.recovered.damaged, [], "no crash looks like damage");
            assert_eq!(rig.recovered.damaged_slots, 0, "no crash looks like damage");
            for mid in &acknowledged {
                let data = if mid % 10 == 2 { 270_000 } else { 3000 + small(*mid % 10) };
                let sum = format::checksum(&body(data));
                for (rid, to) in [(0, "a@one.example"), (1, "b@two.example")] {
                    assert_eq!(first.get(&(*mid, rid)), Some(&(to.to_owned(), sum)), "kill {kill}");
                }
            }
            // It goes on from there.
            let ticket = rig.append(999, &["n@new.example"], b"new");
            assert!(rig.run());
            assert!(rig.committed.contains_key(&ticket));
            assert_eq!(rig.contents().len(), first.len() + 1);
        }
    }
}

#[test]
fn a_failed_write_or_sync_acknowledges_nothing_and_is_not_repeated() {
    for failing in 0..24 {
        let medium = MemMedium::default();
        let mut rig = Rig::open(medium.clone(), options(64 * MIB));
        rig.failing = Some(failing);
        let acknowledged = life(&mut rig);
        let appended = 12;
        assert_eq!(rig.committed.len() + rig.failed.len(), appended, "failing {failing}");
        assert!(rig.failed.len() <= 3);
        assert_eq!(rig.queue.counts().pending, 2 * acknowledged.len() as u64);
        let found = rig.contents();
        assert_eq!(found.len(), 2 * acknowledged.len());
        drop(rig);
        let again = Rig::open(medium, options(64 * MIB)).contents();
        assert_eq!(again, found, "failing {failing}");
    }
}

#[test]
fn flipped_bits_are_never_handed_out() {
    let to = ["a@one.example", "b@two.example"];
    let make = |commits: u64| {
        let medium = MemMedium::default();
        let mut rig = Rig::open(medium.clone(), options(8 * MIB));
        for n in 0..commits {
            rig.append(50 + n, &to, &body(300));
            assert!(rig.run());
        }
        let expected = rig.contents();
        (medium, rig.queue.segments[0].geometry, expected)
    };
    let (_, geometry, expected) = make(2);
    let table = geometry.table_offset..geometry.table_offset + 6 * 128;
    let bodies = geometry.body_offset..geometry.body_offset + 700;
    let names = format::HEADERS_END..format::HEADERS_END + 100;
    for at in table.chain(bodies).chain(names).chain(0..100).step_by(11) {
        let (medium, ..) = make(2);
        let file: Arc<MemFile> = medium.file(SegmentId(1)).unwrap();
        file.change(at, |octet| octet ^ 0x10);
        let mut rig = Rig::open(medium, options(8 * MIB));
        let counted = rig.queue.counts();
        for (key, value) in rig.contents() {
            assert_eq!(expected.get(&key), Some(&value), "octet {at}");
        }
        let after = rig.queue.counts();
        assert_eq!(
            counted.pending + counted.damaged,
            after.pending + after.damaged,
            "octet {at}: reading holds, and never loses"
        );
    }
}

#[test]
fn a_segment_is_used_again_when_all_of_it_is_settled() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(3 * MIB));
    for mid in 0..3_000 {
        let ticket = rig.append(mid, &["a@one.example"], &body(4_000));
        assert!(rig.run());
        let (handle, _) = rig.committed[&ticket][0];
        let change = rig.queue.delivered(handle, Rid(0), &accepted());
        assert_eq!(change, Change { applied: true, handle_gone: true, message_gone: true });
        if mid % 50 == 0 {
            assert!(rig.tick(1_000));
        }
    }
    assert!(rig.queue.usage().segments <= 3);
    assert!(rig.queue.segments.iter().any(|s| s.header.generation > 2));
    rig.append(5_000, &["a@one.example"], &body(4_000));
    assert!(rig.run() && rig.tick(1_000));
    drop(rig);
    let mut rig = Rig::open(medium.after_power_cut(|| false), options(3 * MIB));
    assert_eq!(rig.contents().len(), 1);
    assert_eq!(rig.recovered.notes, []);
}

#[test]
fn a_full_queue_says_so_and_takes_mail_again_later() {
    let mut rig = Rig::open(MemMedium::default(), options(2 * MIB));
    let mut taken = Vec::new();
    loop {
        match rig.queue.append(message(1 + taken.len() as u64, &["a@one.example"], &body(4_000))) {
            Ok(ticket) => taken.push(ticket),
            Err(full) => {
                assert_eq!(full, Full::NoSpace);
                break;
            }
        }
        assert!(rig.run());
    }
    assert!(rig.failed.len() <= 1 && taken.len() > 300, "{} {}", rig.failed.len(), taken.len());
    let huge = message(7, &["a@one.example"], &body(3 << 20));
    assert_eq!(rig.queue.append(huge).unwrap_err(), Full::TooLarge);
    for handle in rig.handles() {
        assert!(rig.queue.deleted(handle, Rid(0)).applied);
    }
    assert!(rig.tick(1_000));
    let ticket = rig.append(9_000, &["a@one.example"], &body(4_000));
    assert!(rig.run());
    assert!(rig.committed.contains_key(&ticket));
}

#[test]
fn a_message_in_flight_at_three_crashes_is_held() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    rig.append(5, &["a@one.example"], b"poison");
    assert!(rig.run());
    for crash in 1..=3 {
        let handle = rig.handles()[0];
        assert_eq!(rig.queue.begin(handle, &[Rid(0)]), 1);
        rig.queue.write_words();
        rig = Rig::open(medium.clone(), options(8 * MIB));
        assert_eq!(rig.recovered.uncertain.len(), usize::from(crash < 3));
    }
    assert_eq!(rig.queue.counts(), Counts { pending: 0, poison: 1, damaged: 0 });
    let handle = rig.handles()[0];
    assert_eq!(rig.queue.begin(handle, &[Rid(0)]), 0);
    assert!(rig.queue.deleted(handle, Rid(0)).handle_gone);
    assert_eq!(rig.queue.counts(), Counts::default());
}

/// Stores slots again, each at its new index, as those of the first copy.
fn store_copies<const N: usize>(segment: &mut live::Segment, slots: [(u32, u32); N]) {
    use super::format::{Entry, ExtentSlot, MessageSlot, Slot};
    for (from, to) in slots {
        let copied = match segment.slot(from).unwrap() {
            Slot::Entry(entry) => Slot::Entry(Entry { copy: 1, ..entry }),
            Slot::Extents(extents) => Slot::Extents(ExtentSlot { copy: 1, ..extents }),
            Slot::Message(message) => Slot::Message(MessageSlot { copy: 1, ..message }),
        };
        segment.store_slots(to, &[copied.encode(segment.place, to)]);
    }
}

/// Takes mail and deletes it until each segment that may be was used again; `kept` stays.
fn churn(rig: &mut Rig<MemMedium>, kept: &[u64]) {
    for mid in 100..126 {
        // With a body in extents, or without.
        let octets = if mid % 2 == 0 { 400_000 } else { 200_000 };
        let new = message(mid, &["c@three.example"], &vec![b'z'; octets]);
        if rig.queue.append(new).is_ok() {
            assert!(rig.run());
        }
        for handle in rig.handles() {
            let summary = rig.queue.summary(handle).unwrap();
            if !kept.contains(&summary.mid.0) {
                assert!(rig.queue.deleted(handle, Rid(0)).applied);
            }
        }
        assert!(rig.tick(1_000));
    }
}

#[test]
fn of_two_copies_the_higher_one_counts() {
    use super::format::StateWord;
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    for _ in 0..2 {
        rig.append(5, &["a@one.example"], b"same");
        assert!(rig.run());
    }
    let segment = &mut rig.queue.segments[0];
    store_copies(segment, [(2, 2), (3, 3)]);
    segment.store_state(2, StateWord::READY, Mono(0));
    segment.write_words();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    assert_eq!((rig.contents().len(), rig.queue.counts().pending), (1, 1));
    assert_eq!(rig.recovered.notes[0].case, RecoveryCase::Superseded);
    let handle = rig.handles()[0];
    assert!(rig.queue.delivered(handle, Rid(0), &accepted()).applied);
    rig.queue.write_words();
    let rig = Rig::open(medium, options(8 * MIB));
    assert_eq!(rig.queue.counts(), Counts::default());
}

/// The commit of one failed, and its disk kept what it had said it had not.
#[test]
fn of_two_copies_with_one_number_only_one_counts() {
    use super::format::StateWord;
    for in_flight in [None, Some(0), Some(2)] {
        let medium = MemMedium::default();
        let mut rig = Rig::open(medium.clone(), options(8 * MIB));
        for _ in 0..2 {
            rig.append(5, &["a@one.example"], b"same");
            assert!(rig.run());
        }
        let segment = &mut rig.queue.segments[0];
        store_copies(segment, [(0, 0), (1, 1), (2, 2), (3, 3)]);
        for slot in [0, 2] {
            let word = StateWord { in_flight: in_flight == Some(slot), ..StateWord::READY };
            segment.store_state(slot, word, Mono(0));
        }
        segment.write_words();
        let mut rig = Rig::open(medium, options(8 * MIB));
        assert_eq!((rig.contents().len(), rig.queue.counts().pending), (1, 1));
        let uncertain = usize::from(in_flight.is_some());
        assert_eq!(rig.recovered.uncertain, vec![(Mid(5), vec![Rid(0)]); uncertain]);
    }
}

#[test]
fn foreign_files_are_left_alone_and_named() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    rig.append(5, &["a@one.example"], b"mine");
    assert!(rig.run());
    let header = rig.queue.segments[0].header;
    let mut other = header;
    other.spool = SpoolId([8; 16]);
    other.segment = SegmentId(50);
    medium.make(SegmentId(50), MIB, &other.encode()).unwrap();
    medium.make(SegmentId(51), MIB, &header.encode()).unwrap();
    medium.make(SegmentId(52), 0, &[]).unwrap();
    medium
        .make(SegmentId(53), MIB / 2, &format::Header { segment: SegmentId(53), ..header }.encode())
        .unwrap();
    medium.make(SegmentId(54), MIB, &[0; 512]).unwrap();
    let mut future = format::Header { segment: SegmentId(55), ..header }.encode();
    future[8] = 9;
    let sum = format::checksum(&future[..508]);
    future[508..].copy_from_slice(&sum.to_le_bytes());
    medium.make(SegmentId(55), MIB, &future).unwrap();
    let mut rig = Rig::open(medium.clone(), options(8 * MIB));
    let cases: Vec<_> = rig.recovered.notes.iter().map(|note| note.case.label()).collect();
    let expected =
        ["foreign", "duplicate", "truncated", "truncated", "unreadable", "future-version"];
    assert_eq!(cases[..6], expected);
    assert!(cases[6..].iter().all(|case| *case == "missing"));
    assert_eq!(cases[6..].len(), 48, "2 to 49");
    let aside: Vec<u32> = medium.list_aside(0).unwrap().iter().map(|id| id.number()).collect();
    assert_eq!(aside, [51, 52, 53, 54], "what can never be used is kept elsewhere");
    assert_eq!(rig.contents().len(), 1);
    assert_eq!(rig.queue.last_segment_number, 55, "their names are not given again");
}

#[test]
fn extent_segments_hold_what_their_geometry_says() {
    let octets = format::HEADERS_END + 4 * MIB;
    assert_eq!(format::Geometry::of(SegmentKind::Extents, octets).extents(), 4);
}
