//! Starting: what is found on disk, case by case.
//!
//! Owns: [`Queue::open`]. Never: deletes anything (what is set aside goes to the folder
//! `damaged` of the spool); it stores state words (held, in flight ended,
//! superseded) and header copies only, so doing it twice changes nothing.
//!
//! | label | what is found | what is done |
//! |---|---|---|
//! | `copied` | the spool stands elsewhere than before: moved, copied or restored | ids go on far from those of the original, Warning |
//! | `adopted` | the directory of a shard that is gone | read by a shard that is here |
//! | `foreign` | a file that is no segment, or a segment of another spool | left alone, Warning |
//! | `duplicate` | a segment whose id is not its name: a copy | set aside, Warning |
//! | `missing` | a number below the last one without a segment | Warning |
//! | `future-version` | a header of a newer program | left alone, Warning |
//! | `older-generation` | a header older than its table, which holds slots of a later use | set aside, Warning |
//! | `truncated` | a file shorter than its header says, or empty | set aside, Warning |
//! | `unreadable` | no good header copy | set aside, Warning |
//! | `unreadable` | an error of the medium | left alone, and messages with what cannot be read, Warning |
//! | `unlocked` | tables that the system does not lock in memory | one Warning |
//! | `torn-group` | entries without their message slot, or without their words, behind the durable point | never answered: dropped, counted, one Warning a segment |
//! | `torn-body` | a group behind the durable point whose octets are not what was written | the same |
//! | `damaged-slot` | slots before the point that cannot be read | counted, the segment is kept as it is, one Warning a segment |
//! | `damaged-group` | entries before the point that do not hold together with their message | held, listed |
//! | `damaged-word` | a state word before the point that is not what was stored | held, listed: it may have been delivered, or not |
//! | `lost-extents` | a message whose body stood in extents that are not there any more | held, listed |
//! | `held` | a recipient that was held before | held still, listed |
//! | `superseded` | an entry of which a higher copy stands elsewhere, or a settled one, or one in flight | marked as moved |
//! | `in-flight` | a recipient whose delivery was under way | `uncertain`: one crash more, ready |
//! | `poison` | the same, at [`limits::CRASHES_IN_FLIGHT_MAX`] crashes | held |
//!
//! Directories of shards that are gone are read by those that are here, and emptied (`adopt`).
//!
//! A slot of an older generation and an empty slot are nothing at all: the ordinary rest of a
//! segment in use. Behind the durable point all octets are verified; before it bodies are not
//! read.
//!
//! A start that dies in the middle is met by the next one like any other crash, with the same
//! outcome. For that the marks in flight stay on disk until [`Queue::end_flights`]: what is
//! uncertain must stand in the log before nothing on disk says so any more.
//!
//! Diagnostics: an error only when no segment can be used for new mail or ids.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;

use hashbrown::{HashMap, HashSet};

use super::format::{
    self, ExtentPlace, Geometry, Header, NameKind, SegmentId, SegmentKind, Slot, SlotOctets,
    StateWord, TablePlace,
};
use super::live::{Name, Segment};
use super::report::{Options, Recovered, RecoveryCase};
use super::scan::{Scan, newest_durable_point};
use super::segment::Medium;
use super::{Counts, Ids, Queue};
use crate::limits;
use crate::mail::{Domain, Mid, Mono, Now, Rid};

mod adopt;
mod copies;
mod files;
mod groups;
mod verify;

use files::Refused;

/// Id blocks reserved at a start: one in use and one in reserve for each kind.
const START_BLOCKS: usize = 6;

/// Slots of a table that are read at a time: 1 MiB.
const PIECE_SLOTS: u32 = 8192;

/// An opened queue, its files by segment for the executor, and what was found.
pub struct Opened<F> {
    /// The queue; its deliveries are found by [`Queue::walk`].
    pub queue: Queue,
    /// The open files.
    pub files: Vec<(SegmentId, F)>,
    /// What was found.
    pub recovered: Recovered,
}

/// A start under way.
struct Opening<'a, M: Medium> {
    medium: &'a M,
    queue: Queue,
    /// In the order of the queue's segments.
    files: Vec<M::File>,
    recovered: Recovered,
    now: Now,
    /// Groups of a copy number above 0, and such as cannot be read: segment, first slot, entries.
    copies: Vec<(usize, u32, u32)>,
    /// Messages that cannot be read and stay as they are.
    left: HashSet<Mid>,
    /// Slots that could be read of each table: behind them a load from the mapping is a signal.
    slots_read: HashMap<usize, u32>,
    /// Groups with a body in extents: segment, first slot, entries.
    large: Vec<(usize, u32, u32, Vec<ExtentPlace>)>,
    /// Recipients that are held, and why; segment, slot.
    held: Vec<(RecoveryCase, Mid, Rid, (usize, u32))>,
    /// Recipients found in flight; segment, slot, and what the word becomes.
    flights: Vec<(Mid, Rid, (usize, u32, StateWord))>,
    /// Directories with a segment that could not be read, this time.
    unread: BTreeSet<u8>,
    /// Takes what is read.
    buffer: Vec<u8>,
    mid_max: u64,
}

impl Queue {
    /// Opens the queue of a shard: blocks while it reads headers and tables.
    ///
    /// # Errors
    /// Those of the medium, when a directory cannot be listed or no segment can be used.
    pub fn open<M: Medium>(medium: &M, options: Options, now: Now) -> io::Result<Opened<M::File>> {
        let ids = Ids::new(options.next_block.clone(), 0);
        let mut opening = Opening {
            medium,
            queue: Self::empty(options, ids, now.mono),
            files: Vec::new(),
            recovered: Recovered::default(),
            now,
            copies: Vec::new(),
            left: HashSet::new(),
            slots_read: HashMap::new(),
            large: Vec::new(),
            held: Vec::new(),
            flights: Vec::new(),
            unread: BTreeSet::new(),
            buffer: Vec::new(),
            mid_max: 0,
        };
        opening.open_segments()?;
        for segment in 0..opening.queue.segments.len() {
            if opening.queue.segments[segment].header.kind == SegmentKind::Messages {
                opening.read_table(segment);
            }
        }
        opening.supersede();
        opening.tell_of_held();
        opening.judge_flights();
        opening.sync_all();
        opening.buffer = Vec::new();
        opening.derive_extents();
        opening.choose_active()?;
        opening.reserve_ids()?;
        opening.look_at_locks();
        let Opening { mut queue, files, mut recovered, .. } = opening;
        queue.write_words();
        let Counts { pending, poison, damaged } = queue.counts;
        recovered.found_recipients = pending + poison + damaged;
        let names = queue.segments.iter().map(|segment| segment.header.segment);
        let files = names.zip(files).collect();
        Ok(Opened { queue, files, recovered })
    }

    fn empty(options: Options, ids: Ids, now: Mono) -> Self {
        Self {
            options,
            segments: Vec::new(),
            active: None,
            spares: std::collections::VecDeque::new(),
            free: Vec::new(),
            extents_free: super::extents::FreeExtents::default(),
            index: super::Index::default(),
            early: super::early::Early::default(),
            ids,
            pending: std::collections::VecDeque::new(),
            pending_octets: 0,
            expected: 0,
            writing: None,
            syncing: std::collections::VecDeque::new(),
            untold: None,
            gathered: None,
            slots: Vec::new(),
            forward: None,
            reads: HashMap::new(),
            moves: std::collections::VecDeque::new(),
            effects: std::collections::VecDeque::new(),
            events: std::collections::VecDeque::new(),
            purposes: HashMap::new(),
            making: Vec::new(),
            make_failing: None,
            recycling: false,
            busy: false,
            closed: None,
            commits_failed: 0,
            failed_last: None,
            trouble_until: Mono(0),
            now,
            last_id: 0,
            last_segment_number: 0,
            flights: Vec::new(),
            unwritten: Vec::new(),
            counts: Counts::default(),
        }
    }
}

impl<M: Medium> Opening<'_, M> {
    /// Reads the table of a segment, by reads: an error is then an error and not a signal.
    fn read_table(&mut self, segment: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.read_pieces(segment, &mut buffer);
        self.buffer = buffer;
        match read {
            Ok(Some(scan)) => {
                self.sum_up(segment, &scan);
                let live = &mut self.queue.segments[segment];
                live.appendable = !scan.unclean;
                live.next_slot = scan.clean_end();
                live.next_body = live.next_body.max(scan.body_end).next_multiple_of(8);
                live.next_body = live.next_body.min(live.geometry.octets);
            }
            Ok(None) => self.queue.segments[segment].poisoned = true,
            Err(error) => {
                // What was read before the error is good; what comes behind it waits for a start
                // that can read it.
                self.queue.segments[segment].poisoned = true;
                let text = format!("{}: {error}", self.name(segment));
                self.recovered.note(RecoveryCase::Unreadable, text);
                self.unread.insert(self.queue.directory_of(segment));
            }
        }
    }

    /// Reads names, hosts and the table, a piece at a time, and enters what it finds. `None`: the
    /// segment is none that can be used.
    fn read_pieces(&mut self, segment: usize, buffer: &mut Vec<u8>) -> io::Result<Option<Scan>> {
        let geometry = self.queue.segments[segment].geometry;
        let names_octets = usize::try_from(geometry.table_offset).unwrap_or(usize::MAX);
        let piece_octets = PIECE_SLOTS as usize * format::SLOT_OCTETS;
        buffer.resize(names_octets.max(piece_octets), 0);
        self.medium.read_at(&self.files[segment], 0, &mut buffer[..names_octets])?;
        self.read_names(segment, &buffer[..names_octets]);
        self.find_durable_point(segment, buffer);
        let place = self.queue.segments[segment].place;
        let mut scan = Scan::new(self.queue.segments[segment].header.durable_slots);
        let mut first = 0;
        while first < geometry.slots {
            let end = geometry.slots.min(first + PIECE_SLOTS);
            let octets = &mut buffer[..(end - first) as usize * format::SLOT_OCTETS];
            self.medium.read_at(&self.files[segment], geometry.slot_offset(first), octets)?;
            self.slots_read.insert(segment, end);
            let (slots, _) = octets.as_chunks::<{ format::SLOT_OCTETS }>();
            // Each use begins with the first slot.
            let later = if first == 0 { self.later_use(segment, slots) } else { None };
            if let Some(later) = later {
                self.refuse_older(segment, later);
                return Ok(None);
            }
            for (index, octets) in (first..).zip(slots) {
                let slot = Slot::decode(octets, place, index);
                for found in scan.take(index, slot) {
                    self.found(segment, found, &mut scan);
                }
            }
            first = end;
        }
        for found in scan.end() {
            self.found(segment, found, &mut scan);
        }
        Ok(Some(scan))
    }

    /// Commits tell in their last slot of those that had ended before, and only now and then there
    /// is a header that does: the last slot that tells knows best. What cannot be read tells
    /// nothing; the error is met again when the table is read as a whole.
    fn find_durable_point(&mut self, segment: usize, buffer: &mut [u8]) {
        let live = &self.queue.segments[segment];
        let (geometry, place, known) = (live.geometry, live.place, live.header.durable_slots);
        let mut end = geometry.slots;
        while end > known {
            let first = end.saturating_sub(PIECE_SLOTS).max(known);
            let octets = &mut buffer[..(end - first) as usize * format::SLOT_OCTETS];
            let read =
                self.medium.read_at(&self.files[segment], geometry.slot_offset(first), octets);
            let (slots, _) = octets.as_chunks::<{ format::SLOT_OCTETS }>();
            let newest = read.ok().and_then(|()| newest_durable_point(slots, first, place));
            if let Some(newest) = newest {
                self.queue.segments[segment].header.durable_slots = newest.max(known);
                return;
            }
            end = first;
        }
    }

    fn refuse_older(&mut self, segment: usize, later: u32) {
        let header = self.queue.segments[segment].header;
        let what = format!("its header says use {}, its table {later}", header.generation);
        self.refuse(header.segment, &Refused::damaged(RecoveryCase::OlderGeneration, what));
    }

    /// The generation of a slot that was written in a later use than the header knows of. A
    /// crash does not leave that: the header of a use is durable before its first slot is stored.
    fn later_use(&self, segment: usize, slots: &[SlotOctets]) -> Option<u32> {
        let Header { spool, segment: name, generation, .. } = self.queue.segments[segment].header;
        (0..).zip(slots).find_map(|(index, octets)| {
            let later = format::u32_at(octets, 8);
            if later <= generation {
                return None;
            }
            let seed = format::seed(spool, name, later);
            let place = TablePlace { seed, generation: later };
            Slot::decode(octets, place, index).is_ok().then_some(later)
        })
    }

    fn read_names(&mut self, segment: usize, octets: &[u8]) {
        let live = &mut self.queue.segments[segment];
        let (seed, geometry) = (live.place.seed, live.geometry);
        let ranges = [
            format::HEADERS_END..geometry.hosts_offset,
            geometry.hosts_offset..geometry.table_offset,
        ];
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let part =
                    usize::try_from(at).unwrap_or(0)..usize::try_from(range.end).unwrap_or(0);
                let Some((kind, text)) = format::decode_name(seed, at, &octets[part]) else {
                    break;
                };
                let record = format::name_record_octets(text.len());
                let text = String::from_utf8_lossy(text);
                match kind {
                    NameKind::Domain => match Domain::parse(text.as_bytes()) {
                        Ok(domain) => {
                            let number = self.queue.index.name(&domain);
                            live.note_name(Name::Domain(number), record);
                        }
                        Err(_) => break,
                    },
                    NameKind::Label => {
                        live.note_name(Name::Label(text.into()), record);
                    }
                    NameKind::Host => live.note_host(text.into(), record),
                }
                at += record;
            }
        }
    }

    /// What is believed from now on is on disk: the crash before may have left it in the page
    /// cache only, and what counts as settled here may be overwritten next.
    fn sync_all(&mut self) {
        self.queue.write_words();
        for (segment, file) in self.queue.segments.iter_mut().zip(&self.files) {
            segment.dirty_since = None;
            if !segment.poisoned && self.medium.sync(file).is_err() {
                segment.poisoned = true;
            }
            if !segment.poisoned {
                segment.header.durable_slots = segment.next_slot;
                segment.header.durable_body_end = segment.next_body;
            }
        }
    }

    fn choose_active(&mut self) -> io::Result<()> {
        let queue = &mut self.queue;
        let roomy = |s: &Segment| {
            let own = s.header.segment.directory() == queue.options.shard.0;
            let messages = s.header.kind == SegmentKind::Messages;
            own && messages
                && s.appendable
                && !s.poisoned
                && s.header.octets == queue.options.segment_octets
        };
        let candidates = queue.segments.iter().enumerate().filter(|(_, s)| roomy(s));
        let best = candidates.max_by_key(|(_, s)| (s.next_slot > 0, s.slots_left()));
        queue.active = best.map(|(position, _)| position);
        for segment in 0..queue.segments.len() {
            if queue.active != Some(segment) {
                queue.segments[segment].seal();
                if queue.segments[segment].header.octets == queue.options.segment_octets {
                    queue.free_if_empty(segment);
                }
            }
        }
        let own = queue.options.shard.0;
        let unusable = |s: &Segment| {
            let is_own = s.header.segment.directory() == own;
            !is_own || s.poisoned || s.header.kind == SegmentKind::Extents
        };
        if queue.segments.iter().all(unusable) {
            queue.last_segment_number += 1;
            let name = SegmentId::new(queue.options.shard.0, queue.last_segment_number);
            let header = queue.fresh_header(SegmentKind::Messages, name);
            let file = self.medium.make(name, header.octets, &header.encode())?;
            let geometry = Geometry::of(header.kind, header.octets);
            let mut segment = Segment::new(header, self.medium.map(&file, geometry.body_offset)?);
            segment.appendable = true;
            self.files.push(file);
            queue.active = Some(queue.segments.len());
            queue.segments.push(segment);
        }
        Ok(())
    }

    fn reserve_ids(&mut self) -> io::Result<()> {
        let queue = &mut self.queue;
        // Ids seen in use count even if the header that reserved them was damaged.
        let floor = self.mid_max / limits::ID_BLOCK + 1;
        // Relaxed: see Ids.
        queue.options.next_block.fetch_max(floor, Ordering::Relaxed);
        queue.ids.take_blocks(START_BLOCKS);
        let good = queue.active.or_else(|| queue.segments.iter().position(|s| !s.poisoned));
        let Some(good) = good else { return Err(io::Error::other("no usable segment")) };
        let segment = &mut queue.segments[good];
        segment.store_header(queue.ids.block_max(), queue.now);
        self.medium.sync(&self.files[good])?;
        queue.ids.reserved(segment.header.id_block_max);
        Ok(())
    }

    /// One Warning for the process is enough: the limit is the same for all shards.
    fn look_at_locks(&mut self) {
        let shard = self.queue.options.shard.0;
        if shard == 0 && !self.queue.segments.iter().all(Segment::is_locked) {
            let text = "tables are not locked in memory: raise the limit of locked memory \
                        (LimitMEMLOCK of the service, ulimit -l)";
            self.recovered.note(RecoveryCase::Unlocked, text.to_owned());
        }
    }

    fn name(&self, segment: usize) -> SegmentId {
        self.queue.segments[segment].header.segment
    }
}

fn by_message(list: &mut Vec<(Mid, Vec<Rid>)>, mid: Mid, rid: Rid) {
    match list.last_mut() {
        Some((last, rids)) if *last == mid => rids.push(rid),
        _ => list.push((mid, vec![rid])),
    }
}
