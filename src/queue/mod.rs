//! The durable memory-mapped queue: what was answered with 250 is here until it is settled.
//!
//! Owns: the segments of one shard, the index of what is queued, and the proof [`Safe`]. Never
//! waits: it hands out effects (make this file, write these octets there, sync that segment) and
//! is told their results. Only [`Queue::open`] blocks.
//!
//! The flow of a message: [`Queue::append`] -> one gathered [`Effect::Write`] for all that came
//! meanwhile, also while the commit before is synced -> the slots are stored into the mapped
//! table, the message slot last -> one [`Effect::Sync`] -> [`Event::Committed`] with its [`Safe`].
//! Settling a recipient is one store of its state word, synced by the next commit or at most
//! [`STATE_SYNC_MS`] later.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@format`] | every byte on disk, the assumptions about the medium, states and moves |
//! | [`segment`], [`medium`], [`memory`] | the seam to the disk, files, a disk in memory |
//! | `direct` | which files are written past the page cache, and from where |
//! | `live` | one segment in use: header, names, what is dirty |
//! | `batch`, `place` | append: what goes into the next commit, and where |
//! | `commit` | its slots and syncs, and their end |
//! | `early` | messages before their commit: held back, answered by full acceptance |
//! | `room`, `extents` | making, recycling and remaking of segments |
//! | `forward` | nearly empty segments emptied: copies, and the switch to them |
//! | `sync` | results of effects, state words made durable, poison |
//! | `words` | state words: begin, settle, defer |
//! | [`inspect`] | a look at a spool that is not in use |
//! | `index`, `read` | what is queued, and reading it back |
//! | [`recovery`], `scan` | starting: cases with labels |
//! | [`spool`], `ids` | the lock, the shards, ids that are never used twice |
//! | [`settings`], `report` | what a start is given, and what it tells |
//!
//! Diagnostics: a failed write or sync poisons its segment for the life of the process: no sync of
//! it is begun any more, and who waits for one that failed, or was begun later, gets
//! [`Event::Failed`]. Octets that fail their checksum are held as damaged, never handed out.
//!
//! Limits: [`Full`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::mail::{Body, Domain, Enhanced, Envelope, Handle, Mid, Mono, ProofOfSafety, Rid, Wall};

mod batch;
mod commit;
mod direct;
mod early;
mod extents;
pub mod format;
mod forward;
mod ids;
mod index;
pub mod inspect;
mod live;
pub mod medium;
pub mod memory;
mod place;
mod read;
pub mod recovery;
mod report;
mod room;
mod scan;
pub mod segment;
pub mod settings;
pub mod spool;
mod sync;
mod words;

#[cfg(test)]
mod tests;

pub use direct::open_direct;
pub use format::{SegmentId, State};
pub use ids::Ids;
pub use medium::FileMedium;
pub use read::{Brief, Damaged, Piece, ReadPlan, RecipientSummary, StoredMessage, Summary};
pub use recovery::Opened;
pub use report::{Options, Recovered, RecoveryCase, RecoveryNote};
pub use segment::{Mapping, Medium};
pub use spool::{Spool, SpoolError};
pub use words::Change;

use index::Index;
use live::Segment;

/// A changed state word is on its way to the disk this long after the change at the latest; with
/// the time of the sync itself this keeps below one second.
pub const STATE_SYNC_MS: u64 = 800;

/// How long no new segment is tried after making one failed.
const MAKE_PAUSE_MS: u64 = 1_000;

/// Segments in a row in which commits may fail before no mail is taken for [`TROUBLE_PAUSE_MS`].
const COMMITS_FAILED_MAX: u32 = 3;

/// How long no mail is taken from a disk that fails.
const TROUBLE_PAUSE_MS: u64 = 10_000;

/// A message to be queued.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Its id, from [`Ids::next_mid`].
    pub mid: Mid,
    /// Its envelope, with at least one recipient and distinct RIDs.
    pub envelope: Arc<Envelope>,
    /// When it came.
    pub arrival: Wall,
    /// Name of the bounce profile of its listener.
    pub bounce_profile: Arc<str>,
    /// Name of its listener.
    pub listener: Arc<str>,
    /// The message that it reports on.
    pub cause: Option<Mid>,
    /// The message.
    pub body: Arc<Body>,
}

/// The handles of a message, each with its receiving domain: few nearly always.
pub type Handles = SmallVec<[(Handle, Domain); 1]>;

/// Names an append until its commit is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// Names an effect until it is done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EffectId(pub u64);

/// Why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// The queue or the file system is full: 452 4.3.1.
    NoSpace,
    /// No segment could ever hold it: 552 5.3.4.
    TooLarge,
}

/// Why new mail is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// All segments that the limit allows are in use, but for the reserve.
    Limit,
    /// No segment can be made: the file system is full, out of quota or read-only.
    NoSegment,
    /// Writes or syncs fail.
    Failing,
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Limit => "the queue is full up to its reserve",
            Self::NoSegment => "no segment can be made: is the file system full or read-only?",
            Self::Failing => "the disk fails: look at the kernel's log",
        })
    }
}

/// Proof that a message is on disk, or that every recipient is accepted by its next hop. Made by a
/// commit and by full acceptance only.
#[derive(Debug)]
pub struct Safe(());

impl ProofOfSafety for Safe {}

/// Octets of an [`Effect::Write`].
#[derive(Clone, Debug)]
pub struct Chunk {
    /// A message, or what was put together for the commit: envelopes and small messages.
    pub body: Arc<Body>,
    /// Which octets of it; they lie together.
    pub range: Range<usize>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.body.bytes.slice(self.range.clone())
    }
}

/// What the queue wants done. The executor owns the files.
#[derive(Debug)]
pub enum Effect {
    /// Make a segment with [`Medium::make`] and map it with [`Medium::map`], on a helper that
    /// may block; then [`Queue::handle_made`]. One that is there already is made anew.
    Make {
        /// Names the effect.
        id: EffectId,
        /// The segment.
        segment: SegmentId,
        /// Octets of the file.
        octets: u64,
        /// Octets to map.
        map_octets: u64,
        /// What the file begins with.
        header: Vec<u8>,
    },
    /// Write the chunks one behind the other at `offset`; then [`Queue::handle_done`], before the
    /// next one of the same segment is begun: that may begin in the block in which this one ends.
    Write {
        /// Names the effect.
        id: EffectId,
        /// The segment.
        segment: SegmentId,
        /// Where.
        offset: u64,
        /// What.
        chunks: Vec<Chunk>,
        /// It is meant to go past the page cache, where the file system takes it so: whole blocks
        /// ([`crate::limits::BLOCK_OCTETS`]) that nothing else is cached near to.
        direct: bool,
    },
    /// Read the plan's pieces, one behind the other, while other effects go on; then
    /// [`Queue::handle_read`].
    Read {
        /// Names the effect.
        id: EffectId,
        /// What to read.
        plan: ReadPlan,
    },
    /// fdatasync the segment's file, while other effects go on; then [`Queue::handle_done`]. Two
    /// of a segment may be under way: each must hear of errors by itself, or they are carried out
    /// in their order.
    Sync {
        /// Names the effect.
        id: EffectId,
        /// The segment.
        segment: SegmentId,
    },
}

/// What the shard must know.
#[derive(Debug)]
pub enum Event {
    /// It is on disk.
    Committed {
        /// Which one.
        ticket: Ticket,
        /// The key to 250.
        safe: Safe,
        /// Its deliveries: one per receiving domain.
        handles: Handles,
        /// Recipients of it that are not settled: those that were not accepted before.
        pending: u64,
    },
    /// Every recipient was accepted by its next hop, or discarded by its route, before the
    /// commit: it is safe without the disk.
    Accepted {
        /// Which one.
        ticket: Ticket,
        /// The key to 250.
        safe: Safe,
    },
    /// It is not on disk, and will not be found there at the next start: 451.
    Failed {
        /// Which one.
        ticket: Ticket,
    },
    /// Recipients are held as damaged from now on: their octets are not what was written.
    Held {
        /// The message.
        mid: Mid,
        /// Which ones.
        rids: Vec<Rid>,
        /// What is wrong, for the log.
        what: &'static str,
    },
    /// The file of a segment refuses what is stored into its table: the segment is poisoned.
    Unstorable {
        /// Which one.
        segment: SegmentId,
        /// What the system says.
        error: String,
    },
    /// New mail is not taken from now on, for this reason; `None`: it is taken again.
    Intake(Option<Closed>),
}

/// What a recipient's last attempt came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastOutcome {
    /// Reply code, 0 without a reply.
    pub code: u16,
    /// Enhanced status.
    pub status: Enhanced,
    /// The host that said it.
    pub host: Option<Arc<str>>,
    /// Delay warnings sent.
    pub warnings: u8,
}

/// Recipients in the queue, for the conservation sum.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// To be delivered: ready, deferred, in flight.
    pub pending: u64,
    /// Held as poison.
    pub poison: u64,
    /// Held because their octets are damaged.
    pub damaged: u64,
}

/// What the queue takes of the disk and of memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Octets of all segment files.
    pub octets: u64,
    /// Most octets they may have.
    pub octets_max: u64,
    /// Segments.
    pub segments: usize,
    /// Segments whose mail is all settled.
    pub segments_free: usize,
    /// Segments that stand ready to be appended to next.
    pub segments_spare: usize,
    /// Segments kept from new mail, for copying forward and for reports.
    pub segments_reserved: u64,
    /// Why new mail is not taken.
    pub closed: Option<Closed>,
    /// Segments that failed a write or a sync since the start.
    pub segments_poisoned: usize,
    /// Octets of memory of the index.
    pub index_octets: usize,
    /// Messages that wait for their commit.
    pub uncommitted: usize,
}

/// Why an effect was issued.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Make(format::SegmentKind),
    CommitWrite(usize),
    CommitSync(usize),
    StateSync(usize),
    Recycle(usize),
    Read,
}

/// The queue of one shard.
pub struct Queue {
    options: Options,
    segments: Vec<Segment>,
    /// Takes appends.
    active: Option<usize>,
    /// Take them next, in this order.
    spares: VecDeque<usize>,
    /// May be used again, the most recently freed last: its dead octets may not have been
    /// written back yet, and never will be.
    free: Vec<usize>,
    extents_free: extents::FreeExtents,
    index: Index,
    early: early::Early,
    ids: Ids,
    pending: VecDeque<batch::Pending>,
    pending_octets: u64,
    /// So many are to wait for the next commit, if they come soon.
    expected: usize,
    /// The commit whose octets are written, and those before it, which are synced.
    writing: Option<commit::Commit>,
    syncing: VecDeque<commit::Commit>,
    /// A commit that is on disk and not told of yet: the next sync goes first.
    untold: Option<commit::Commit>,
    /// What the last commit has written: its buffer is used again.
    gathered: Option<Arc<Body>>,
    /// No slots: where those of the next commit are put together.
    slots: Vec<format::SlotOctets>,
    forward: Option<forward::Forward>,
    /// Messages that are read for their copy.
    reads: HashMap<EffectId, forward::Move>,
    /// Messages whose copy waits for the next commit.
    moves: VecDeque<forward::Move>,
    effects: VecDeque<Effect>,
    events: VecDeque<Event>,
    purposes: HashMap<EffectId, Purpose>,
    making: Vec<(format::SegmentKind, SegmentId)>,
    /// Making a segment failed, and none was made since; the next try comes then.
    make_failing: Option<Mono>,
    recycling: bool,
    /// A segment was filled since the start: spares are kept ahead of need.
    busy: bool,
    /// Why new mail is not taken.
    closed: Option<Closed>,
    /// Segments in which commits failed since the last good one, the last of them; from some on,
    /// none is tried until then.
    commits_failed: u32,
    failed_last: Option<usize>,
    trouble_until: Mono,
    now: Mono,
    last_id: u64,
    last_segment_number: u32,
    /// Entries found in flight, and what their words become: segment, slot, word.
    flights: Vec<(usize, u32, format::StateWord)>,
    /// Segments with words that changed and are not in the file yet.
    unwritten: Vec<usize>,
    counts: Counts,
}

impl Queue {
    /// What is to be done next; `None`: nothing now. Call it until `None` after each round of
    /// appends, results and ticks: what was appended in the round becomes one commit.
    #[must_use]
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.write_words();
        if self.effects.is_empty() {
            self.advance();
        }
        self.effects.pop_front()
    }

    /// What became of an append.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Is new mail taken? Changes are told by [`Event::Intake`].
    #[must_use]
    pub fn takes_mail(&self) -> bool {
        self.closed.is_none()
    }

    /// The id allocator.
    pub fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }

    /// Recipients in the queue.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What the queue takes.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let under_way = self.commits().map(commit::Commit::messages).sum::<usize>();
        Usage {
            octets: self.octets(),
            octets_max: self.options.octets_max,
            segments: self.segments.len(),
            segments_free: self.free.len(),
            segments_spare: self.spares.len(),
            segments_reserved: self.segments_reserved(),
            closed: self.closed,
            segments_poisoned: self.segments.iter().filter(|s| s.poisoned).count(),
            index_octets: self.index.octets(),
            uncommitted: self.pending.len() + under_way + self.early.held(),
        }
    }

    /// Appends up to `items_max` records' handles from `cursor` (0 to begin) to `out`; the next
    /// cursor, `None` at the end. What comes or goes meanwhile may or may not be seen.
    pub fn walk(&self, cursor: u32, items_max: usize, out: &mut Vec<Handle>) -> Option<u32> {
        self.index.walk(cursor, items_max, out)
    }

    /// Appends up to `items_max` handles of a destination to `out`, oldest first, from behind
    /// `after` on.
    pub fn walk_destination(
        &self,
        domain: &Domain,
        after: Option<Handle>,
        items_max: usize,
        out: &mut Vec<Handle>,
    ) {
        let mut next = match after {
            Some(handle) => self.index.younger(handle),
            None => self.index.known(domain).and_then(|number| self.index.oldest(number)),
        };
        for _ in 0..items_max {
            let Some(handle) = next else { return };
            out.push(handle);
            next = self.index.younger(handle);
        }
    }

    /// The receiving domain of a handle.
    #[must_use]
    pub fn domain(&self, handle: Handle) -> Option<&Domain> {
        let handle = self.current(handle);
        if early::is_early(handle) {
            return self.early_domain(handle);
        }
        let record = self.index.get(handle)?;
        Some(self.index.domain(record.destination))
    }

    /// The slots of a handle's recipients among `rids`, all still unsettled.
    fn slot_of(&self, record: index::Record, rid: Rid) -> Option<u32> {
        let segment = &self.segments[usize::from(record.segment)];
        let (mut low, mut high) = (0, u32::from(record.entries));
        // The entries of one domain stand in the order of their RIDs.
        while low < high {
            let middle = low.midpoint(high);
            let slot = record.first_slot + middle;
            let found = segment.rid(slot);
            match found.cmp(&rid) {
                std::cmp::Ordering::Equal => return Some(slot),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn octets(&self) -> u64 {
        self.segments.iter().map(|segment| segment.geometry.octets).sum()
    }

    /// The commits under way, and the one that is not told of yet.
    fn commits(&self) -> impl Iterator<Item = &commit::Commit> {
        self.writing.iter().chain(&self.syncing).chain(&self.untold)
    }

    fn effect_id(&mut self, purpose: Purpose) -> EffectId {
        self.last_id += 1;
        let id = EffectId(self.last_id);
        self.purposes.insert(id, purpose);
        id
    }
}
