//! Starting: what is found on disk, case by case.
//!
//! Owns: [`Queue::open`]. Never: deletes anything (what is set aside goes to the folder
//! `damaged` of the spool); it stores state words (held, in flight ended,
//! superseded) and header copies only, so doing it twice changes nothing.
//!
//! | label | what is found | what is done |
//! |---|---|---|
//! | `foreign` | a file that is no segment, or a segment of another spool | left alone, Warning |
//! | `duplicate` | a segment whose id is not its name: a copy | set aside, Warning |
//! | `missing` | a number below the last one without a segment | Warning |
//! | `future-version` | a header of a newer program | left alone, Warning |
//! | `truncated` | a file shorter than its header says, or empty | set aside, Warning |
//! | `unreadable` | no good header copy | set aside, Warning |
//! | `unreadable` | an error of the medium | left alone, Warning |
//! | `unlocked` | tables that the system does not lock in memory | one Warning |
//! | `torn-group` | entries without their message slot behind the durable point | never answered: dropped, counted |
//! | `torn-body` | a group behind the durable point whose octets are not what was written | the same |
//! | `damage` | a slot, a group or a state word before the point that is not what was written | held, listed, alarm |
//! | `superseded` | an entry of which a higher copy stands elsewhere, or a settled one | marked as moved |
//! | `in-flight` | a recipient whose delivery was under way | `uncertain`: one crash more, ready |
//! | `poison` | the same, at [`limits::CRASHES_IN_FLIGHT_MAX`] crashes | held |
//!
//! Directories of shards that are gone are read by those that are here, and emptied (`adopt`).
//!
//! A slot of an older generation and an empty slot are nothing at all. Behind the durable point
//! all octets are verified; before it bodies are not read.
//!
//! Diagnostics: an error only when no segment can be used for new mail or ids.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;

use super::format::{
    self, Entry, ExtentPlace, Geometry, Header, HeaderFault, MessageSlot, NameKind, SegmentId,
    SegmentKind, Slot, State, StateWord,
};
use super::live::{Name, Segment};
use super::report::{Options, Recovered, RecoveryCase};
use super::scan::{Found, Scan};
use super::segment::Medium;
use super::{Counts, Ids, Queue};
use crate::limits;
use crate::mail::{Domain, Handle, Mid, Mono, Now, Rid, Wall};

mod adopt;
mod copies;
mod verify;

/// Id blocks reserved at a start: one in use and one in reserve for each kind.
const START_BLOCKS: usize = 6;

/// An opened queue, its files by segment for the executor, and what was found.
pub struct Opened<F> {
    /// The queue; its deliveries are found by [`Queue::walk`].
    pub queue: Queue,
    /// The open files.
    pub files: Vec<(SegmentId, F)>,
    /// What was found.
    pub recovered: Recovered,
}

/// Why a segment is not used.
struct Refused {
    case: RecoveryCase,
    what: String,
    /// It never can be.
    is_damaged: bool,
}

fn refused(case: RecoveryCase, what: String) -> Refused {
    Refused { case, what, is_damaged: true }
}

/// A start under way.
struct Opening<'a, M: Medium> {
    medium: &'a M,
    queue: Queue,
    /// In the order of the queue's segments.
    files: Vec<M::File>,
    recovered: Recovered,
    now: Now,
    /// Groups of a copy number above 0: segment, first slot, entries.
    copies: Vec<(usize, u32, u32)>,
    /// Groups with a body in extents: segment, first slot, entries.
    large: Vec<(usize, u32, u32, Vec<ExtentPlace>)>,
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
            large: Vec::new(),
            mid_max: 0,
        };
        opening.open_segments()?;
        for segment in 0..opening.queue.segments.len() {
            if opening.queue.segments[segment].header.kind == SegmentKind::Messages {
                opening.read_table(segment)?;
            }
        }
        opening.supersede();
        opening.sync_all();
        opening.derive_extents();
        opening.choose_active()?;
        opening.reserve_ids()?;
        opening.look_at_locks();
        let Opening { queue, files, mut recovered, .. } = opening;
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
            commit: None,
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
            trouble_until: Mono(0),
            now,
            last_id: 0,
            last_segment_number: 0,
            counts: Counts::default(),
        }
    }
}

impl<M: Medium> Opening<'_, M> {
    fn open_segments(&mut self) -> io::Result<()> {
        for directory in self.queue.options.directories.clone() {
            let (segments, others) = self.medium.list(directory)?;
            let mut present: BTreeSet<u32> = segments.iter().map(|s| s.number()).collect();
            for name in others {
                // What a making left that did not come to its end; it holds no mail.
                if let Some(unfinished) = name.strip_suffix(".new") {
                    present.extend(u32::from_str_radix(unfinished, 16));
                } else {
                    let text = format!("shard-{directory:02}/{name}: not a segment, left alone");
                    self.recovered.note(RecoveryCase::Foreign, text);
                }
            }
            for segment in segments {
                if directory == self.queue.options.shard.0 {
                    let last = &mut self.queue.last_segment_number;
                    *last = (*last).max(segment.number());
                }
                if let Err(refused) = self.open_segment(segment) {
                    self.refuse(segment, &refused);
                }
            }
            for segment in self.medium.list_aside(directory)? {
                if directory == self.queue.options.shard.0 {
                    let last = &mut self.queue.last_segment_number;
                    *last = (*last).max(segment.number());
                }
                present.insert(segment.number());
            }
            let last = present.last().copied().unwrap_or(0);
            for number in (1..last).filter(|number| !present.contains(number)) {
                let text = format!("{}: it is not there", label(SegmentId::new(directory, number)));
                self.recovered.note(RecoveryCase::Missing, text);
            }
        }
        Ok(())
    }

    /// Says why a segment is not used, and sets it aside when it never can be.
    fn refuse(&mut self, segment: SegmentId, refused: &Refused) {
        let (case, what) = (refused.case, &refused.what);
        let aside = refused.is_damaged && self.medium.set_aside(segment).is_ok();
        let done = if aside { "moved to the folder damaged" } else { "left alone" };
        self.recovered.note(case, format!("{}: {what}, {done}", label(segment)));
    }

    fn open_segment(&mut self, segment: SegmentId) -> Result<(), Refused> {
        let unreadable = |error: io::Error| Refused {
            is_damaged: false,
            ..refused(RecoveryCase::Unreadable, error.to_string())
        };
        let file = self.medium.open(segment).map_err(unreadable)?;
        let octets = self.medium.octets(&file).map_err(unreadable)?;
        if octets < format::HEADERS_END {
            return Err(refused(RecoveryCase::Truncated, format!("only {octets} octets")));
        }
        let mut head = vec![0; usize::try_from(format::HEADERS_END).unwrap_or(0)];
        self.medium.read_at(&file, 0, &mut head).map_err(unreadable)?;
        let (first, second) = head.split_at(head.len() / 2);
        let header = Header::choose(first, second).map_err(|fault| match fault {
            HeaderFault::Unreadable => {
                refused(RecoveryCase::Unreadable, "no good header".to_owned())
            }
            HeaderFault::FutureVersion(version) => {
                let what = format!("format version {version}");
                Refused { is_damaged: false, ..refused(RecoveryCase::FutureVersion, what) }
            }
        })?;
        if header.spool != self.queue.options.spool {
            let what = "belongs to another spool".to_owned();
            return Err(Refused { is_damaged: false, ..refused(RecoveryCase::Foreign, what) });
        }
        if header.segment != segment {
            let what = format!("is a copy of {}", label(header.segment));
            return Err(refused(RecoveryCase::Duplicate, what));
        }
        if octets < header.octets {
            let what = format!("{octets} of {} octets", header.octets);
            return Err(refused(RecoveryCase::Truncated, what));
        }
        let map_octets = Geometry::of(header.kind, header.octets).body_offset;
        let map = self.medium.map(&file, map_octets).map_err(unreadable)?;
        self.queue.segments.push(Segment::new(header, map));
        self.files.push(file);
        Ok(())
    }

    /// Reads the table of a segment, by reads: an error is then an error and not a signal.
    fn read_table(&mut self, segment: usize) -> io::Result<()> {
        let geometry = self.queue.segments[segment].geometry;
        let mut octets = vec![0; usize::try_from(geometry.body_offset).unwrap_or(0)];
        let read = self.medium.read_at(&self.files[segment], 0, &mut octets);
        if let Err(error) = read {
            self.queue.segments[segment].poisoned = true;
            let text = format!("{}: {error}", self.label(segment));
            self.recovered.note(RecoveryCase::Unreadable, text);
            return Ok(());
        }
        self.read_names(segment, &octets);
        let table = &octets[usize::try_from(geometry.table_offset).unwrap_or(0)..];
        let (slots, _) = table.as_chunks::<{ format::SLOT_OCTETS }>();
        let place = self.queue.segments[segment].place;
        let mut scan = Scan::new(self.queue.segments[segment].header.durable_slots);
        for (index, octets) in (0..).zip(slots) {
            let slot = Slot::decode(octets, place, index);
            for found in scan.take(index, slot) {
                self.found(segment, found, &mut scan);
            }
        }
        for found in scan.end() {
            self.found(segment, found, &mut scan);
        }
        let live = &mut self.queue.segments[segment];
        live.appendable = !scan.unclean;
        live.next_slot = scan.clean_end();
        live.next_body = live.next_body.max(scan.body_end).next_multiple_of(8);
        live.next_body = live.next_body.min(geometry.octets);
        Ok(())
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

    fn found(&mut self, segment: usize, found: Found, scan: &mut Scan) {
        match found {
            Found::Group { message_slot, message, entries, extents } => {
                let first = message_slot + 1 - message.group_slots();
                let behind = message_slot >= scan.durable;
                let live = &self.queue.segments[segment];
                let named = |index: u16| {
                    matches!(live.names.get(usize::from(index)), Some(Name::Domain(_)))
                };
                if !entries.iter().all(|entry| named(entry.domain)) {
                    self.broken(segment, first, &entries, behind, scan);
                    return;
                }
                if behind && !self.verify(segment, &message, &entries, &extents) {
                    scan.spoil(first);
                    self.recovered.dropped += 1;
                    let text = format!(
                        "{}: MID {} had not been answered, dropped",
                        self.label(segment),
                        message.mid
                    );
                    self.recovered.note(RecoveryCase::TornBody, text);
                    return;
                }
                scan.reach(&message);
                self.mid_max = self.mid_max.max(message.mid.0);
                self.accept(segment, first, message_slot, &message, &entries, &extents);
            }
            Found::Broken { first, entries, behind } => {
                self.broken(segment, first, &entries, behind, scan);
            }
            Found::BadSlot { index } => {
                self.recovered.damaged_slots += 1;
                // Keeps the segment from being used again: somebody may want to look at it.
                self.queue.segments[segment].live += 1;
                self.queue.segments[segment].has_damage = true;
                let text = format!("{}: slot {index} is damaged", self.label(segment));
                self.recovered.note(RecoveryCase::Damage, text);
            }
        }
    }

    /// Entries whose group does not hold together.
    fn broken(
        &mut self,
        segment: usize,
        first: u32,
        entries: &[Entry],
        behind: bool,
        scan: &mut Scan,
    ) {
        scan.spoil(first);
        if behind {
            self.recovered.dropped += 1;
            let text = format!("{}: slot {first} on, dropped", self.label(segment));
            self.recovered.note(RecoveryCase::TornGroup, text);
            return;
        }
        let names = self.queue.segments[segment].names.len();
        for (slot, entry) in (first..).zip(entries) {
            if usize::from(entry.domain) >= names {
                self.recovered.damaged_slots += 1;
                self.queue.segments[segment].live += 1;
                self.queue.segments[segment].has_damage = true;
                continue;
            }
            let word = self.queue.segments[segment].state(slot);
            if word.state.is_settled() {
                continue;
            }
            self.hold(segment, slot, entry, word);
            let message_slot = slot + entry.distance;
            let mut handles = Vec::new();
            let one = std::slice::from_ref(entry);
            self.queue.enter_at(segment, slot, message_slot, one, &mut handles);
        }
    }

    fn hold(&mut self, segment: usize, slot: u32, entry: &Entry, word: StateWord) {
        let held = StateWord { state: State::Damaged, in_flight: false, ..word };
        self.queue.segments[segment].store_state(slot, held, self.now.mono);
        self.queue.counts.damaged += 1;
        by_message(&mut self.recovered.damaged, entry.mid, entry.rid);
        let text = format!("{}: MID {} RID {} held", self.label(segment), entry.mid, entry.rid);
        self.recovered.note(RecoveryCase::Damage, text);
    }

    fn accept(
        &mut self,
        segment: usize,
        first: u32,
        message_slot: u32,
        message: &MessageSlot,
        entries: &[Entry],
        extents: &[ExtentPlace],
    ) {
        let mut unsettled = false;
        let has_body = extents.iter().all(|place| self.extent_segment(place).is_some());
        for (slot, entry) in (first..).zip(entries) {
            let word = self.queue.segments[segment].state(slot);
            unsettled |= !word.state.is_settled();
            match word.state {
                State::Ready | State::Deferred if !has_body => {
                    self.hold(segment, slot, entry, word);
                }
                State::Ready | State::Deferred => self.found_pending(segment, slot, entry, word),
                State::Poison => {
                    self.queue.counts.poison += 1;
                    by_message(&mut self.recovered.poison, entry.mid, entry.rid);
                }
                State::Damaged => self.hold(segment, slot, entry, word),
                State::Delivered
                | State::Bounced
                | State::Discarded
                | State::Deleted
                | State::Moved => {}
            }
        }
        if message.copy > 0 {
            self.copies.push((segment, first, message.entries));
        }
        if unsettled {
            if !extents.is_empty() {
                self.large.push((segment, first, message.entries, extents.to_vec()));
            }
            let mut handles: Vec<Handle> = Vec::new();
            self.queue.enter_at(segment, first, message_slot, entries, &mut handles);
        }
    }

    fn found_pending(&mut self, segment: usize, slot: u32, entry: &Entry, word: StateWord) {
        let latest = Wall(self.now.wall.0.saturating_add(self.queue.options.retry_ms_max));
        let mut next = StateWord { next_attempt: word.next_attempt.min(latest), ..word };
        let counts = &mut self.queue.counts;
        if word.in_flight {
            next.in_flight = false;
            next.crashes = word.crashes.saturating_add(1);
            if next.crashes >= limits::CRASHES_IN_FLIGHT_MAX {
                next.state = State::Poison;
                counts.poison += 1;
                by_message(&mut self.recovered.poison, entry.mid, entry.rid);
                let text = format!("MID {} RID {} held", entry.mid, entry.rid);
                self.recovered.note(RecoveryCase::Poison, text);
            } else {
                counts.pending += 1;
                by_message(&mut self.recovered.uncertain, entry.mid, entry.rid);
                let text = format!("MID {} RID {} uncertain", entry.mid, entry.rid);
                self.recovered.note(RecoveryCase::InFlight, text);
            }
        } else {
            counts.pending += 1;
        }
        if next != word {
            self.queue.segments[segment].store_state(slot, next, self.now.mono);
        }
    }

    /// What is believed from now on is on disk: the crash before may have left it in the page
    /// cache only, and what counts as settled here may be overwritten next.
    fn sync_all(&mut self) {
        for (segment, file) in self.queue.segments.iter_mut().zip(&self.files) {
            segment.dirty_since = None;
            if !segment.poisoned && self.medium.sync(file).is_err() {
                segment.poisoned = true;
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
        segment.store_header(queue.ids.block_max());
        self.medium.sync(&self.files[good])?;
        segment.header.durable_slots = segment.next_slot;
        segment.header.durable_body_end = segment.next_body;
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

    fn label(&self, segment: usize) -> String {
        label(self.queue.segments[segment].header.segment)
    }
}

fn by_message(list: &mut Vec<(Mid, Vec<Rid>)>, mid: Mid, rid: Rid) {
    match list.last_mut() {
        Some((last, rids)) if *last == mid => rids.push(rid),
        _ => list.push((mid, vec![rid])),
    }
}

fn label(segment: SegmentId) -> String {
    format!("shard-{:02}/{:06x}.segment", segment.directory(), segment.number())
}
