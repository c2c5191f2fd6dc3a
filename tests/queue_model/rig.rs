//! The queue under a test: its executor, with effects that take their time, fail, or lie.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringpost::mail::{
    Body, BodyKind, Envelope, Handle, Mailbox, MessageFacts, Mid, Mono, Notify, Now, Recipient,
    Rid, ShardId, Wall,
};
use ringpost::queue::format::SpoolId;
use ringpost::queue::memory::{MemFile, MemMedium};
use ringpost::queue::{
    Effect, EffectId, Event, Medium, NewMessage, Opened, Options, Queue, ReadPlan, Recovered,
    SegmentId, State, StoredMessage, Ticket,
};

pub(crate) const MIB: u64 = 1 << 20;

/// As in the engine.
const TICK_MS: u64 = 100;

/// Messages read to be copied forward, in all lives.
pub(crate) static COPIES: AtomicU64 = AtomicU64::new(0);

/// Syncs begun while another one of the same segment ran, in all lives; and those of them that
/// were told of no error, as one that ran beside them had heard of it.
pub(crate) static SYNCS_BESIDE: AtomicU64 = AtomicU64::new(0);
pub(crate) static SYNCS_DECEIVED: AtomicU64 = AtomicU64::new(0);

/// What is planted to see whether it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    None,
    /// One commit is answered though its sync was left out.
    CommitWithoutSync,
    /// A write is left out and called good.
    LostWrite,
    /// State words are never synced but by commits.
    StateWithoutSync,
    /// Words that changed are not written when a round is over.
    WordsUnwritten,
    /// What was in flight is forgotten before it stands in a log.
    FlightsEndedUntold,
}

/// What a seed decides.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d);
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    pub(crate) fn one_in(&mut self, parts: u64) -> bool {
        self.below(parts) == 0
    }
}

pub(crate) fn options(octets_max: u64, medium: &MemMedium) -> Options {
    Options {
        shard: ShardId(0),
        spool: SpoolId([7; 16]),
        segment_octets: MIB,
        octets_max,
        segments_ahead: 1,
        commit_messages_max: 1024,
        direct_octets_min: 2_000,
        folio_octets: ringpost::limits::BLOCK_OCTETS,
        directories: vec![0],
        next_block: Arc::new(AtomicU64::new(largest_block(medium) + 1)),
        retry_ms_max: 3_600_000,
        is_copy: false,
    }
}

fn largest_block(medium: &MemMedium) -> u64 {
    let block = |id: &SegmentId| {
        let mut head = vec![0; 8192];
        medium.read_at(&medium.file(*id)?, 0, &mut head).ok()?;
        let header = ringpost::queue::format::Header::choose(&head[..4096], &head[4096..]);
        header.ok().map(|header| header.id_block_max)
    };
    medium.list(0).unwrap_or_default().0.iter().filter_map(block).max().unwrap_or(0)
}

/// A running queue.
pub(crate) struct Rig {
    pub(crate) medium: MemMedium,
    pub(crate) queue: Queue,
    /// What the last start has to say; nothing any more once it is told.
    pub(crate) recovered: Recovered,
    files: HashMap<SegmentId, Arc<MemFile>>,
    /// The write under way: one at a time.
    current: Option<Effect>,
    /// What is under way beside it; true for a sync that the disk has carried out already.
    beside: VecDeque<(Effect, bool)>,
    pub(crate) committed: BTreeMap<Ticket, ringpost::queue::Handles>,
    /// Answered because every next hop had accepted.
    pub(crate) accepted: Vec<Ticket>,
    pub(crate) failed: Vec<Ticket>,
    pub(crate) now: Now,
    pub(crate) bug: Bug,
    /// Effects carried out; this one fails, and with `for_ever` all after it.
    pub(crate) effects: u64,
    pub(crate) failing: Option<u64>,
    pub(crate) for_ever: bool,
    /// Segments of which a write or a sync failed.
    pub(crate) failed_segments: BTreeSet<SegmentId>,
    /// How long the disk had something to do and did not do it, of the time so far.
    stalled_ms: u64,
    /// Messages read to be copied forward.
    pub(crate) copies: u64,
    /// What writes and syncs came to, to be told then: the disk stalls.
    late: VecDeque<(Mono, EffectId, io::Result<()>)>,
    /// Commits are told of some time after their sync, as by a shard that is busy.
    pub(crate) tells_late: bool,
    /// Syncs take longer than writes, and end in any order.
    pub(crate) syncs_beside: bool,
    steps: u64,
    /// Syncs that will find nothing to write: one begun before them has failed, and took the error.
    deceived: BTreeSet<EffectId>,
}

impl Rig {
    pub(crate) fn open(medium: MemMedium, octets_max: u64, now: Now) -> io::Result<Self> {
        let options = options(octets_max, &medium);
        let Opened { queue, files, recovered } = Queue::open(&medium, options, now)?;
        Ok(Self {
            medium,
            queue,
            recovered,
            files: files.into_iter().collect(),
            current: None,
            beside: VecDeque::new(),
            committed: BTreeMap::new(),
            accepted: Vec::new(),
            failed: Vec::new(),
            now,
            bug: Bug::None,
            effects: 0,
            failing: None,
            for_ever: false,
            failed_segments: BTreeSet::new(),
            stalled_ms: 0,
            copies: 0,
            late: VecDeque::new(),
            tells_late: false,
            syncs_beside: false,
            steps: 0,
            deceived: BTreeSet::new(),
        })
    }

    /// The time so far without what the disk had stalled.
    pub(crate) fn unstalled_ms(&self) -> u64 {
        self.now.mono.0 - self.stalled_ms
    }

    /// Takes up what the queue wants; false when there is nothing to carry out.
    pub(crate) fn take_up(&mut self) -> bool {
        loop {
            self.take_effects();
            let has_work =
                self.current.is_some() || !self.late.is_empty() || !self.beside.is_empty();
            if !has_work || self.effects.is_multiple_of(3) {
                self.queue.enter_synced();
            }
            let heard = self.poll();
            if has_work || !heard {
                return has_work;
            }
        }
    }

    fn take_effects(&mut self) {
        while self.current.is_none() {
            match self.queue.next_effect() {
                Some(effect @ (Effect::Make { .. } | Effect::Read { .. })) => {
                    self.beside.push_back((effect, false));
                }
                Some(effect @ Effect::Sync { segment, .. }) => {
                    let is_sync = |effect: &Effect| match effect {
                        Effect::Sync { segment: other, .. } => *other == segment,
                        Effect::Make { .. } | Effect::Write { .. } | Effect::Read { .. } => false,
                    };
                    if self.beside.iter().any(|(effect, _)| is_sync(effect)) {
                        SYNCS_BESIDE.fetch_add(1, Ordering::Relaxed);
                    }
                    // What is written from now on may be on disk at its end, or not.
                    let at_once = self.bug == Bug::None && self.effects.is_multiple_of(2);
                    if at_once {
                        self.medium.sync(&self.files[&segment]).unwrap();
                    }
                    self.beside.push_back((effect, at_once));
                }
                Some(effect @ Effect::Write { .. }) => self.current = Some(effect),
                None => break,
            }
        }
    }

    /// Carries out one effect: the one in turn, or one beside it. False when there is none, or
    /// when the disk has not come to its end with it.
    pub(crate) fn step(&mut self, beside: bool) -> bool {
        if let Some(at) = self.late.iter().position(|(due, ..)| *due <= self.now.mono)
            && let Some((_, id, result)) = self.late.remove(at)
        {
            self.queue.handle_done(id, result);
            self.poll();
            return true;
        }
        if !self.take_up() || self.beside.is_empty() && self.current.is_none() {
            return false;
        }
        let writing = |rig: &mut Self| rig.current.take().map(|effect| (effect, false));
        self.steps += 1;
        let next = if beside || self.current.is_none() {
            let one = match self.steps % 5 {
                // Of two syncs the later one may end first.
                1 | 4 if self.syncs_beside => self.beside.pop_back(),
                _ => self.beside.pop_front(),
            };
            one.or_else(|| writing(self))
        } else {
            writing(self)
        };
        if let Some((effect, is_synced)) = next {
            self.carry_out(effect, is_synced);
        }
        true
    }

    /// Carries out writes and no syncs: the disk is slow to sync, and what is written meanwhile is
    /// synced beside it.
    pub(crate) fn write_only(&mut self) {
        while self.take_up()
            && let Some(effect) = self.current.take()
        {
            self.carry_out(effect, false);
        }
    }

    fn carry_out(&mut self, effect: Effect, is_synced: bool) {
        let at = self.failing;
        let fails = at.is_some_and(|at| at == self.effects || self.for_ever && at < self.effects);
        self.effects += 1;
        if let (true, Effect::Write { segment, .. } | Effect::Sync { segment, .. }) =
            (fails, &effect)
        {
            self.failed_segments.insert(*segment);
        }
        self.perform(effect, is_synced, fails);
        self.poll();
    }

    /// Carries out all there is.
    pub(crate) fn run(&mut self) {
        while self.step(true) {}
    }

    /// A tick of the engine.
    pub(crate) fn tick(&mut self) {
        if self.take_up() {
            self.stalled_ms += TICK_MS;
        }
        self.now = self.now.plus_ms(TICK_MS);
        self.queue.tick(self.now);
    }

    /// Tells the queue what an effect came to: now, or when the disk has finished with it.
    fn done(&mut self, id: EffectId, result: io::Result<()>) {
        match self.medium.taken_ms() {
            0 => self.queue.handle_done(id, result),
            ms => self.late.push_back((Mono(self.now.mono.0 + ms), id, result)),
        }
    }

    /// Hears what the queue has to say; false when it was nothing.
    fn poll(&mut self) -> bool {
        if !self.tells_late {
            self.queue.enter_synced();
        }
        let mut heard = false;
        while let Some(event) = self.queue.poll_event() {
            heard = true;
            match event {
                Event::Committed { ticket, handles, .. } => {
                    self.committed.insert(ticket, handles);
                }
                Event::Failed { ticket } => self.failed.push(ticket),
                Event::Held { mid, rids, what } => panic!("{mid} {rids:?} held: {what}"),
                Event::Accepted { ticket, .. } => self.accepted.push(ticket),
                Event::Unstorable { segment, error } => panic!("{segment:?}: {error}"),
                Event::Intake(_) => {}
            }
        }
        heard
    }

    fn perform(&mut self, effect: Effect, is_synced: bool, fails: bool) {
        let outcome = || if fails { Err(io::Error::other("broken")) } else { Ok(()) };
        match effect {
            Effect::Make { id, segment, octets, map_octets, header } => {
                let made = outcome().and_then(|()| self.medium.make(segment, octets, &header));
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
                    let octets = chunk.as_ref();
                    // A failing write has written half of its octets.
                    let part = if fails { &octets[..octets.len() / 2] } else { octets };
                    if self.bug != Bug::LostWrite {
                        self.medium.write_at(&self.files[&segment], at, part).unwrap();
                    }
                    at += octets.len() as u64;
                }
                self.done(id, outcome());
            }
            Effect::Read { id, plan } => {
                COPIES.fetch_add(1, Ordering::Relaxed);
                self.copies += 1;
                let octets = self.read_pieces(&plan);
                self.queue.handle_read(id, octets);
            }
            Effect::Sync { id, segment } => {
                let skipped = match self.bug {
                    Bug::None | Bug::LostWrite | Bug::WordsUnwritten | Bug::FlightsEndedUntold => {
                        false
                    }
                    Bug::CommitWithoutSync => self.queue.usage().uncommitted > 0,
                    Bug::StateWithoutSync => self.queue.usage().uncommitted == 0,
                };
                if self.deceived.remove(&id) {
                    SYNCS_DECEIVED.fetch_add(1, Ordering::Relaxed);
                    return self.done(id, Ok(()));
                }
                if fails {
                    self.deceive_later(id, segment);
                }
                if !fails && !skipped && !is_synced {
                    self.medium.sync(&self.files[&segment]).unwrap();
                }
                self.done(id, outcome());
            }
        }
    }

    /// Syncs of the segment that were begun later than `failed`, and were not carried out yet.
    fn deceive_later(&mut self, failed: EffectId, segment: SegmentId) {
        for (effect, is_synced) in &self.beside {
            if let Effect::Sync { id, segment: other } = effect
                && (*other, *is_synced) == (segment, false)
                && *id > failed
            {
                self.deceived.insert(*id);
            }
        }
    }

    fn read_pieces(&self, plan: &ReadPlan) -> io::Result<Vec<u8>> {
        let mut octets = Vec::new();
        for piece in &plan.pieces {
            let mut part = vec![0; usize::try_from(piece.octets).unwrap()];
            self.medium.read_at(&self.files[&piece.segment], piece.offset, &mut part)?;
            octets.extend(part);
        }
        Ok(octets)
    }

    /// Begins to read a message: the plan and what stood there.
    pub(crate) fn begin_read(&self, handle: Handle) -> Option<(ReadPlan, Vec<u8>)> {
        let plan = self.queue.read_plan(handle)?;
        let octets = self.read_pieces(&plan).unwrap();
        Some((plan, octets))
    }

    pub(crate) fn read(&mut self, handle: Handle) -> Option<StoredMessage> {
        let (plan, octets) = self.begin_read(handle)?;
        Some(self.queue.parse(handle, &plan, octets).unwrap())
    }

    pub(crate) fn handles(&self) -> Vec<Handle> {
        let (mut out, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            cursor = self.queue.walk(at, 100, &mut out);
        }
        out
    }

    /// Every pending recipient, verified: its address, body and attempts.
    pub(crate) fn contents(&mut self) -> BTreeMap<(u64, u32), (String, u32, u16)> {
        let mut out = BTreeMap::new();
        for handle in self.handles() {
            let summary = self.queue.summary(handle).expect("a queued message has a summary");
            if !summary.recipients.iter().any(|recipient| recipient.state.is_pending()) {
                // All of it is held.
                continue;
            }
            let Some(stored) = self.read(handle) else { panic!("a queued message has a plan") };
            let sum = checksum(&stored.octets[stored.body.clone()]);
            for recipient in &stored.envelope.recipients {
                let word = summary.recipients.iter().find(|r| r.rid == recipient.rid).unwrap();
                assert!(matches!(word.state, State::Ready | State::Deferred));
                let value = (recipient.address.to_string(), sum, word.attempts);
                let before = out.insert((stored.mid.0, recipient.rid.0), value);
                assert!(before.is_none(), "a recipient stands twice in the queue");
            }
        }
        assert_eq!(out.len() as u64, self.queue.counts().pending);
        out
    }
}

/// FNV-1a over every seventh octet and the length: quick in a debug build.
pub(crate) fn checksum(octets: &[u8]) -> u32 {
    let start = 0x811c_9dc5 ^ u32::try_from(octets.len()).unwrap();
    octets.iter().step_by(7).fold(start, |sum, o| (sum ^ u32::from(*o)).wrapping_mul(0x0100_0193))
}

pub(crate) fn body(mid: u64, octets: usize) -> Vec<u8> {
    let mut out = vec![b'a' + u8::try_from(mid % 23).unwrap(); octets];
    let mark = mid.to_be_bytes();
    for at in (0..octets.saturating_sub(8)).step_by(509) {
        out[at..at + 8].copy_from_slice(&mark);
    }
    out
}

pub(crate) fn message(mid: u64, to: &[String], octets: usize, cause: Option<Mid>) -> NewMessage {
    let recipient = |(rid, address): (usize, &String)| Recipient {
        rid: Rid(u32::try_from(rid).unwrap()),
        address: Mailbox::parse(address.as_bytes()).unwrap(),
        notify: Notify(Notify::FAILURE),
        orcpt: None,
    };
    let facts = MessageFacts { leading_dot: false, eight_bit: false, utf8_header: false };
    NewMessage {
        mid: Mid(mid),
        envelope: Arc::new(Envelope {
            sender: Some(Mailbox::parse(b"s@from.example").unwrap()),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients: to.iter().enumerate().map(recipient).collect(),
        }),
        arrival: Wall(5_000),
        bounce_profile: "default".into(),
        listener: "in".into(),
        cause,
        body: Arc::new(Body { bytes: body(mid, octets).into(), facts }),
    }
}
