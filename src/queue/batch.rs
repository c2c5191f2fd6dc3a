//! Appending: group commit, and the segments it needs.
//!
//! Owns: the order on which the promise rests: octets written, then slots stored (message slot
//! last), then synced, then [`Safe`]. Never: a retry of a failed write or sync.
//!
//! Diagnostics: [`Event::Failed`] for what a failed effect carried.

use super::format::{
    self, Entry, ExtentPlace, ExtentSlot, HeadTexts, Header, MessageSlot, RecipientTexts,
    SegmentId, SegmentKind, Slot, SlotOctets, State, flags,
};
use super::index;
use super::live::{Name, Segment};
use super::segment::Mapping;
use super::{
    Chunk, Effect, EffectId, Event, Full, MAKE_PAUSE_MS, NewMessage, Purpose, Queue, STATE_SYNC_MS,
    Safe, Ticket,
};
use crate::limits;
use crate::mail::{BodyKind, Domain, Envelope, Handle, MessageFacts, Mono, Now, Recipient, Ret};
use std::io;

/// Bodies up to here are copied together: one buffer costs less than many small ones.
const COPY_OCTETS_MAX: usize = 64 * 1024;
/// A commit begins no further message above this, to keep its latency bounded.
const COMMIT_OCTETS_MAX: u64 = 16 << 20;
/// Extents of one extent segment at most: it is filled with zeros when made.
const EXTENTS_MAX: u64 = 64;

/// An append that waits for its commit.
pub(super) struct Pending {
    ticket: Ticket,
    message: NewMessage,
    /// Positions of the recipients, by domain and RID: entries of a domain are adjacent.
    order: Vec<u32>,
    head_octets: usize,
    envelope_octets: u64,
    extents: u32,
}

impl Pending {
    fn body_octets(&self) -> u64 {
        if self.extents > 0 { 0 } else { self.message.data.len() as u64 }
    }

    fn octets(&self) -> u64 {
        self.envelope_octets + self.body_octets()
    }

    fn extent_slots(&self) -> u32 {
        self.extents.div_ceil(count(format::EXTENTS_PER_SLOT))
    }

    fn slots(&self) -> u32 {
        count(self.order.len()) + self.extent_slots() + 1
    }

    /// The receiving domains, each once.
    fn domains(&self) -> impl Iterator<Item = &Domain> {
        let recipients = &self.message.envelope.recipients;
        let at = |i: usize| recipients[self.order[i] as usize].address.domain();
        (0..self.order.len()).filter(move |i| *i == 0 || at(*i) != at(i - 1)).map(at)
    }
}

/// A commit under way.
pub(super) struct Commit {
    segment: usize,
    messages: Vec<Placed>,
    first_slot: u32,
    slots: Vec<SlotOctets>,
    body_start: u64,
    extent_segments: Vec<usize>,
    extents: Vec<(usize, u32)>,
    phase: Phase,
    failed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Writing { left: usize },
    Written,
    Syncing { left: usize },
}

struct Placed {
    ticket: Ticket,
    message_slot: u32,
}

impl Commit {
    pub(super) fn messages(&self) -> usize {
        self.messages.len()
    }
}

/// What a commit gathers while messages take their places.
struct Gather {
    commit: Commit,
    chunks: Vec<Chunk>,
    buffer: Vec<u8>,
    at: u64,
    extent_writes: Vec<(usize, u64, Chunk)>,
}

impl Queue {
    /// Takes a message into the next commit.
    ///
    /// # Errors
    /// See [`Full`]; the message is then not in the queue.
    pub fn append(&mut self, message: NewMessage) -> Result<Ticket, Full> {
        assert!(!message.envelope.recipients.is_empty(), "a message without recipients");
        assert!(message.envelope.recipients.len() <= limits::RECIPIENTS_MAX);
        let pending = self.measure(message)?;
        let geometry = self.message_geometry();
        let body_max = geometry.octets - geometry.body_offset;
        // In octets of body room, whichever of the two, table or bodies, is used up first.
        let slot_share = body_max / u64::from(geometry.slots);
        let need = pending.octets().max(u64::from(pending.slots()) * slot_share);
        let names: u64 =
            pending.domains().map(|d| format::name_record_octets(d.as_str().len())).sum();
        let labels = pending.message.bounce_profile.len() + pending.message.listener.len() + 32;
        let names_max = geometry.hosts_offset - format::HEADERS_END;
        if need > body_max
            || pending.slots() > geometry.slots
            || names + labels as u64 > names_max
            || u64::from(pending.extents) * limits::EXTENT_OCTETS > self.options.octets_max
        {
            return Err(Full::TooLarge);
        }
        if self.pending_octets + need + self.extents_wanting(&pending) > self.room(body_max) {
            return Err(Full::NoSpace);
        }
        let ticket = pending.ticket;
        self.pending_octets += need;
        self.pending.push_back(pending);
        Ok(ticket)
    }

    /// Reports that an [`Effect::Make`] was done: the mapping of the new segment.
    pub fn handle_made(&mut self, id: EffectId, result: io::Result<Mapping>) {
        let Some(Purpose::Make(kind)) = self.purposes.remove(&id) else {
            unreachable!("an effect was reported that is no making under way")
        };
        let position = self.making.iter().position(|(made, _)| *made == kind);
        let Some(position) = position else { unreachable!("nothing of this kind is being made") };
        let (kind, segment) = self.making.swap_remove(position);
        let Ok(map) = result else {
            self.make_after = Mono(self.now.0 + MAKE_PAUSE_MS);
            return;
        };
        let header = self.fresh_header(kind, segment);
        let mut made = Segment::new(header, map);
        let new = self.segments.len();
        match kind {
            SegmentKind::Messages => {
                made.appendable = true;
                self.spare = Some(new);
            }
            SegmentKind::Extents => {
                let extents = made.geometry.extents();
                self.extents_free.extend((0..extents).rev().map(|index| (new, index)));
            }
        }
        self.segments.push(made);
    }

    /// Reports that an [`Effect::Write`] (of all its octets) or an [`Effect::Sync`] was done.
    pub fn handle_done(&mut self, id: EffectId, result: io::Result<()>) {
        let Some(purpose) = self.purposes.remove(&id) else {
            unreachable!("an effect was reported that is not under way")
        };
        let ok = result.is_ok();
        match purpose {
            Purpose::Make(_) => unreachable!("the result of a making goes to handle_made"),
            Purpose::CommitWrite(segment) => {
                if !ok {
                    self.poison(segment);
                }
                self.commit_step(ok);
            }
            Purpose::CommitSync(segment) => {
                self.synced(segment, ok);
                self.commit_step(ok);
            }
            Purpose::StateSync(segment) => {
                self.synced(segment, ok);
            }
            Purpose::Recycle(segment) => {
                self.recycling = false;
                self.synced(segment, ok);
                if ok {
                    self.spare = Some(segment);
                }
            }
        }
    }

    /// Tells the queue the time: words that changed long enough ago are synced.
    pub fn tick(&mut self, now: Now) {
        self.now = now.mono;
        if self.ids.wants_blocks()
            && let Some(active) = self.active
        {
            self.ids.take_blocks(3);
            self.segments[active].dirty_since.get_or_insert(now.mono);
        }
        for segment in 0..self.segments.len() {
            let due = self.segments[segment]
                .dirty_since
                .is_some_and(|since| now.mono.since_ms(since) >= STATE_SYNC_MS);
            if due {
                self.start_sync(segment, Purpose::StateSync(segment));
            }
        }
    }

    /// Syncs every changed segment now: for a clean end.
    pub fn flush(&mut self) {
        for segment in 0..self.segments.len() {
            if self.segments[segment].dirty_since.is_some() {
                self.start_sync(segment, Purpose::StateSync(segment));
            }
        }
    }

    /// True when nothing waits for the disk.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let dirty = |s: &Segment| !s.poisoned && (s.dirty_since.is_some() || s.syncing);
        self.pending.is_empty() && self.commit.is_none() && !self.segments.iter().any(dirty)
    }

    /// Issues what can be issued now.
    pub(super) fn advance(&mut self) {
        if self.commit.as_ref().is_some_and(|commit| commit.phase == Phase::Written) {
            self.start_commit_sync();
        }
        if self.commit.is_none() && !self.pending.is_empty() {
            self.begin_commit();
        }
        let half_full = self.active.is_none_or(|active| {
            let segment = &self.segments[active];
            let bodies = segment.geometry.octets - segment.geometry.body_offset;
            segment.slots_left() < segment.geometry.slots / 2 || segment.body_left() < bodies / 2
        });
        if half_full {
            self.prepare_spare();
        }
    }

    fn measure(&mut self, message: NewMessage) -> Result<Pending, Full> {
        let recipients = &message.envelope.recipients;
        let mut order: Vec<u32> = (0..count(recipients.len())).collect();
        if order.len() > 1 {
            let key = |i: &u32| {
                let recipient = &recipients[*i as usize];
                (recipient.address.domain(), recipient.rid)
            };
            order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
            let twice = order.windows(2).any(|pair| key(&pair[0]) == key(&pair[1]));
            assert!(!twice, "a RID stands twice in one message");
        }
        let head_octets = head_texts(&message.envelope).octets();
        let recipient_octets: usize =
            recipients.iter().map(|recipient| recipient_texts(recipient).octets()).sum();
        let body_octets = message.data.len() as u64;
        if body_octets > limits::MESSAGE_OCTETS_MAX {
            return Err(Full::TooLarge);
        }
        let in_extents = body_octets > limits::INLINE_MESSAGE_OCTETS_MAX;
        let extents = if in_extents { body_octets.div_ceil(limits::EXTENT_OCTETS) } else { 0 };
        self.last_id += 1;
        Ok(Pending {
            ticket: Ticket(self.last_id),
            message,
            order,
            head_octets,
            envelope_octets: (head_octets + recipient_octets) as u64,
            extents: u32::try_from(extents).map_err(|_| Full::TooLarge)?,
        })
    }

    /// Body octets that appends may still take, counting segments that could be made.
    fn room(&self, body_max: u64) -> u64 {
        let active = self.active.map_or(0, |active| {
            let segment = &self.segments[active];
            let slot_share = body_max / u64::from(segment.geometry.slots);
            segment.body_left().min(u64::from(segment.slots_left()) * slot_share)
        });
        let coming = usize::from(self.spare.is_some())
            + usize::from(self.recycling)
            + self.free.len()
            + self.making.iter().filter(|(kind, _)| *kind == SegmentKind::Messages).count();
        let makeable = if self.now < self.make_after {
            0
        } else {
            self.octets_makeable() / self.options.segment_octets
        };
        active + (coming as u64 + makeable) * body_max
    }

    fn extents_wanting(&self, pending: &Pending) -> u64 {
        let free = count(self.extents_free.len());
        u64::from(pending.extents.saturating_sub(free)) * limits::EXTENT_OCTETS
    }

    fn octets_makeable(&self) -> u64 {
        let making: u64 = self.making.iter().map(|(kind, _)| self.octets_of(*kind)).sum();
        self.options.octets_max.saturating_sub(self.octets() + making)
    }

    fn message_geometry(&self) -> format::Geometry {
        format::Geometry::of(SegmentKind::Messages, self.options.segment_octets)
    }

    pub(super) fn octets_of(&self, kind: SegmentKind) -> u64 {
        match kind {
            SegmentKind::Messages => self.options.segment_octets,
            SegmentKind::Extents => {
                let extents = self.options.segment_octets / limits::EXTENT_OCTETS;
                format::HEADERS_END + extents.clamp(1, EXTENTS_MAX) * limits::EXTENT_OCTETS
            }
        }
    }

    pub(super) fn fresh_header(&self, kind: SegmentKind, segment: SegmentId) -> Header {
        let octets = self.octets_of(kind);
        Header {
            kind,
            spool: self.options.spool,
            segment,
            generation: 1,
            sequence: 0,
            octets,
            durable_slots: 0,
            durable_body_end: format::Geometry::of(kind, octets).body_offset,
            id_block_max: 0,
        }
    }

    fn make(&mut self, kind: SegmentKind) {
        let under_way = self.making.iter().any(|(making, _)| *making == kind);
        let octets = self.octets_of(kind);
        if under_way || self.now < self.make_after || self.octets_makeable() < octets {
            return;
        }
        self.last_segment_number += 1;
        let segment = SegmentId::new(self.options.shard.0, self.last_segment_number);
        let header = self.fresh_header(kind, segment);
        self.making.push((kind, segment));
        let id = self.effect_id(Purpose::Make(kind));
        self.effects.push_back(Effect::Make {
            id,
            segment,
            octets,
            map_octets: format::Geometry::of(kind, octets).body_offset,
            header: header.encode().to_vec(),
        });
    }

    /// Sees to it that a segment stands ready behind the active one.
    fn prepare_spare(&mut self) {
        if self.spare.is_some() || self.recycling {
            return;
        }
        let Some(free) = self.free.pop() else {
            self.make(SegmentKind::Messages);
            return;
        };
        for name in self.segments[free].reuse() {
            if let Name::Domain(number) = name {
                self.index.unname(number);
            }
        }
        self.recycling = true;
        self.start_sync(free, Purpose::Recycle(free));
    }

    fn begin_commit(&mut self) {
        let Some(first) = self.pending.front() else { return };
        let fits = |queue: &Self, active| queue.fits(active, first, 0, 0);
        if let Some(active) = self.active.filter(|active| !fits(self, *active)) {
            self.active = None;
            self.segments[active].seal();
            self.free_if_empty(active);
        }
        if self.active.is_none() {
            self.active = self.spare.take();
        }
        let Some(active) = self.active else {
            self.prepare_spare();
            let coming = self.recycling
                || self.making.iter().any(|(kind, _)| *kind == SegmentKind::Messages);
            if !coming && self.spare.is_none() {
                self.fail_pending();
            }
            return;
        };
        let mut gather = self.gather(active);
        let mut without_extents = Vec::new();
        while let Some(pending) = self.pending.pop_front() {
            let gathered = gather.at - gather.commit.body_start;
            let slots = count(gather.commit.slots.len());
            if gathered > COMMIT_OCTETS_MAX || !self.fits(active, &pending, slots, gathered) {
                self.pending.push_front(pending);
                break;
            }
            if count(self.extents_free.len()) < pending.extents {
                without_extents.push(pending);
                continue;
            }
            self.place(&pending, &mut gather);
        }
        if !without_extents.is_empty() {
            self.make(SegmentKind::Extents);
            let coming = self.making.iter().any(|(kind, _)| *kind == SegmentKind::Extents);
            for pending in without_extents.into_iter().rev() {
                if coming {
                    self.pending.push_front(pending);
                } else {
                    self.events.push_back(Event::Failed { ticket: pending.ticket });
                }
            }
        }
        self.count_pending();
        if !gather.commit.messages.is_empty() {
            self.write(gather);
        }
    }

    fn count_pending(&mut self) {
        let geometry = self.message_geometry();
        let slot_share = (geometry.octets - geometry.body_offset) / u64::from(geometry.slots);
        let need = |p: &Pending| p.octets().max(u64::from(p.slots()) * slot_share);
        self.pending_octets = self.pending.iter().map(need).sum();
    }

    fn fail_pending(&mut self) {
        let failed = self.pending.drain(..).map(|p| Event::Failed { ticket: p.ticket });
        self.events.extend(failed);
        self.pending_octets = 0;
    }

    fn fits(&self, segment: usize, pending: &Pending, slots: u32, octets: u64) -> bool {
        let live = &self.segments[segment];
        let (mut names, mut name_octets) = (2, 0);
        for label in [&pending.message.bounce_profile, &pending.message.listener] {
            name_octets += format::name_record_octets(label.len());
        }
        for domain in pending.domains() {
            let known = self.index.known(domain).and_then(|n| live.destination_index(n));
            if known.is_none() {
                names += 1;
                name_octets += format::name_record_octets(domain.as_str().len());
            }
        }
        live.slots_left() >= slots + pending.slots()
            && live.body_left() >= octets + pending.octets()
            && live.names_fit(names, name_octets)
    }

    fn gather(&self, active: usize) -> Gather {
        let segment = &self.segments[active];
        let expected = self.pending_octets.min(COMMIT_OCTETS_MAX);
        Gather {
            commit: Commit {
                segment: active,
                messages: Vec::with_capacity(self.pending.len()),
                first_slot: segment.next_slot,
                slots: Vec::with_capacity(self.pending.len() * 2),
                body_start: segment.next_body,
                extent_segments: Vec::new(),
                extents: Vec::new(),
                phase: Phase::Written,
                failed: false,
            },
            chunks: Vec::new(),
            buffer: Vec::with_capacity(usize::try_from(expected).unwrap_or(0)),
            at: segment.next_body,
            extent_writes: Vec::new(),
        }
    }

    /// Gives a message its place in the commit: octets to write, slots to store.
    fn place(&mut self, pending: &Pending, gather: &mut Gather) {
        let active = gather.commit.segment;
        let message = &pending.message;
        let sender = message.envelope.sender.as_ref().map_or("", |s| s.as_str());
        let sender_hash = format::address_hash(sender.as_bytes());
        let profile = self.label(active, &message.bounce_profile);
        let listener = self.label(active, &message.listener);
        let place = self.segments[active].place;
        let head_offset = gather.at;
        let head_start = gather.buffer.len();
        head_texts(&message.envelope).encode_into(&mut gather.buffer);
        let head_checksum =
            format::checksum_at(place.seed, head_offset, &gather.buffer[head_start..]);
        gather.at += pending.head_octets as u64;
        self.place_entries(pending, sender_hash, gather);
        let (body_offset, body_checksum) = if pending.extents > 0 {
            self.place_extents(pending, gather);
            (0, 0)
        } else {
            let at = gather.at;
            (at, place_body(message, place.seed, gather))
        };
        let slot = Slot::Message(MessageSlot {
            flags: flags_of(&message.envelope, message.facts),
            copy: 0,
            entries: count(pending.order.len()),
            mid: message.mid,
            cause: message.cause,
            arrival: message.arrival,
            sender_hash,
            body_octets: message.data.len() as u64,
            head_offset,
            head_octets: count(pending.head_octets),
            head_checksum,
            envelope_octets: u32::try_from(pending.envelope_octets).unwrap_or(u32::MAX),
            body_checksum,
            body_offset,
            extents: pending.extents,
            extent_slots: pending.extent_slots(),
            profile,
            listener,
        });
        let message_slot = gather.commit.push(&slot, place);
        gather.commit.messages.push(Placed { ticket: pending.ticket, message_slot });
    }

    fn place_entries(&mut self, pending: &Pending, sender_hash: u64, gather: &mut Gather) {
        let active = gather.commit.segment;
        let place = self.segments[active].place;
        let behind = pending.extent_slots();
        let mut last: Option<(&Domain, u16)> = None;
        for (i, position) in pending.order.iter().enumerate() {
            let recipient = &pending.message.envelope.recipients[*position as usize];
            let domain = recipient.address.domain();
            let index = match last {
                Some((before, index)) if before == domain => index,
                _ => self.domain_index(active, domain),
            };
            last = Some((domain, index));
            let start = gather.buffer.len();
            recipient_texts(recipient).encode_into(&mut gather.buffer);
            let record = &gather.buffer[start..];
            let entry = Entry {
                notify: recipient.notify.0,
                copy: 0,
                rid: recipient.rid,
                mid: pending.message.mid,
                domain: index,
                distance: count(pending.order.len() - i) + behind,
                recipient_hash: format::address_hash(recipient.address.as_str().as_bytes()),
                sender_hash,
                record_offset: gather.at,
                record_octets: count(record.len()),
                record_checksum: format::checksum_at(place.seed, gather.at, record),
            };
            gather.at += record.len() as u64;
            let slot = gather.commit.push(&Slot::Entry(entry), place);
            let word = format::StateWord::READY.encode(place, slot).to_le_bytes();
            if let Some(stored) = gather.commit.slots.last_mut() {
                stored[120..].copy_from_slice(&word);
            }
        }
    }

    fn place_extents(&mut self, pending: &Pending, gather: &mut Gather) {
        let place = self.segments[gather.commit.segment].place;
        let data = &pending.message.data;
        let mut places = Vec::with_capacity(pending.extents as usize);
        let extent_octets = usize::try_from(limits::EXTENT_OCTETS).unwrap_or(usize::MAX);
        for start in (0..data.len()).step_by(extent_octets) {
            let Some((segment, index)) = self.extents_free.pop() else {
                unreachable!("the free extents were counted before")
            };
            let end = data.len().min(start + extent_octets);
            let live = &self.segments[segment];
            let offset = live.geometry.extent_offset(index);
            places.push(ExtentPlace {
                segment: live.header.segment,
                generation: live.header.generation,
                index,
                checksum: format::checksum_at(live.place.seed, offset, &data[start..end]),
            });
            let chunk = Chunk::Shared { data: data.clone(), start, end };
            gather.extent_writes.push((segment, offset, chunk));
            gather.commit.extents.push((segment, index));
            if !gather.commit.extent_segments.contains(&segment) {
                gather.commit.extent_segments.push(segment);
            }
        }
        let mut first = 0;
        for part in places.chunks(format::EXTENTS_PER_SLOT) {
            let slot = ExtentSlot { copy: 0, first, places: part.to_vec() };
            gather.commit.push(&Slot::Extents(slot), place);
            first += count(part.len());
        }
    }

    fn label(&mut self, segment: usize, label: &std::sync::Arc<str>) -> u16 {
        let segment = &mut self.segments[segment];
        segment
            .label_index(label)
            .unwrap_or_else(|| segment.add_name(Name::Label(label.clone()), label))
    }

    fn domain_index(&mut self, segment: usize, domain: &Domain) -> u16 {
        let live = &mut self.segments[segment];
        let known = self.index.known(domain).and_then(|number| live.destination_index(number));
        known.unwrap_or_else(|| {
            let number = self.index.name(domain);
            live.add_name(Name::Domain(number), domain.as_str())
        })
    }

    fn write(&mut self, gather: Gather) {
        let Gather { mut commit, mut chunks, buffer, at, extent_writes } = gather;
        if !buffer.is_empty() {
            chunks.push(Chunk::Owned(buffer));
        }
        commit.phase = Phase::Writing { left: 1 + extent_writes.len() };
        let segment = &mut self.segments[commit.segment];
        segment.next_slot += count(commit.slots.len());
        segment.next_body = at;
        let (name, offset, segment) = (segment.header.segment, commit.body_start, commit.segment);
        self.commit = Some(commit);
        let id = self.effect_id(Purpose::CommitWrite(segment));
        self.effects.push_back(Effect::Write { id, segment: name, offset, chunks });
        for (segment, offset, chunk) in extent_writes {
            let name = self.segments[segment].header.segment;
            let id = self.effect_id(Purpose::CommitWrite(segment));
            let chunks = vec![chunk];
            self.effects.push_back(Effect::Write { id, segment: name, offset, chunks });
        }
    }

    /// One write or sync of the commit was done.
    fn commit_step(&mut self, ok: bool) {
        let Some(commit) = &mut self.commit else {
            unreachable!("a result without a commit under way")
        };
        commit.failed |= !ok;
        match &mut commit.phase {
            Phase::Written => unreachable!("a result between writing and syncing"),
            Phase::Writing { left } => {
                *left -= 1;
                if *left == 0 {
                    commit.phase = Phase::Written;
                    self.start_commit_sync();
                }
            }
            Phase::Syncing { left } => {
                *left -= 1;
                if *left == 0 {
                    self.finish_commit();
                }
            }
        }
    }

    /// All octets are written: stores the slots and syncs, as soon as no other sync runs.
    fn start_commit_sync(&mut self) {
        let Some(commit) = &mut self.commit else { return };
        let all = || commit.extent_segments.iter().chain([&commit.segment]);
        if all().any(|segment| self.segments[*segment].poisoned) {
            commit.failed = true;
        }
        if commit.failed {
            self.withdraw_unstored();
            return;
        }
        if all().any(|segment| self.segments[*segment].syncing) {
            return;
        }
        let segments: Vec<usize> = all().copied().collect();
        commit.phase = Phase::Syncing { left: segments.len() };
        let live = &self.segments[commit.segment];
        for (slot, octets) in (commit.first_slot..).zip(&commit.slots) {
            live.store_slot(slot, octets);
        }
        for segment in segments {
            self.start_sync(segment, Purpose::CommitSync(segment));
        }
    }

    /// The writing failed: nothing of the commit is in the table.
    fn withdraw_unstored(&mut self) {
        let Some(commit) = self.commit.take() else { return };
        let segment = &mut self.segments[commit.segment];
        if !segment.poisoned {
            segment.next_slot = commit.first_slot;
            segment.next_body = commit.body_start;
        }
        let segments = &self.segments;
        let usable = commit.extents.iter().filter(|(segment, _)| !segments[*segment].poisoned);
        self.extents_free.extend(usable);
        let failed = commit.messages.iter().map(|m| Event::Failed { ticket: m.ticket });
        self.events.extend(failed);
    }

    fn finish_commit(&mut self) {
        let Some(commit) = self.commit.take() else { return };
        if commit.failed {
            self.withdraw_stored(&commit);
            return;
        }
        for message in &commit.messages {
            let (slot, entries) = self.group(commit.segment, message.message_slot);
            self.counts.pending += u64::from(slot.entries);
            let mut handles = Vec::with_capacity(1);
            let first = message.message_slot + 1 - slot.group_slots();
            let (segment, message_slot) = (commit.segment, message.message_slot);
            self.enter_at(segment, first, message_slot, &entries, &mut handles);
            let with_domain = |handle: Handle| match self.domain(handle) {
                Some(domain) => (handle, domain.clone()),
                None => unreachable!("a handle was just entered"),
            };
            let handles = handles.into_iter().map(with_domain).collect();
            let (ticket, safe) = (message.ticket, Safe(()));
            self.events.push_back(Event::Committed { ticket, safe, handles });
        }
    }

    /// A sync failed: the slots are in the table, and must not be found there at the next start
    /// if that can be helped, for the clients are told to send again.
    fn withdraw_stored(&mut self, commit: &Commit) {
        let deleted = format::StateWord { state: State::Deleted, ..format::StateWord::READY };
        for message in &commit.messages {
            let (slot, entries) = self.group(commit.segment, message.message_slot);
            let first = message.message_slot + 1 - slot.group_slots();
            for i in 0..count(entries.len()) {
                self.segments[commit.segment].store_state(first + i, deleted, self.now);
            }
            self.settle_extents(commit.segment, message.message_slot);
            self.events.push_back(Event::Failed { ticket: message.ticket });
        }
    }

    /// A group that this process stored: its message slot and its entries.
    fn group(&self, segment: usize, message_slot: u32) -> (MessageSlot, Vec<Entry>) {
        let live = &self.segments[segment];
        let Ok(Slot::Message(slot)) = live.slot(message_slot) else {
            panic!("a message slot changed in memory under our hands")
        };
        let first = message_slot + 1 - slot.group_slots();
        let entry = |at| match live.slot(at) {
            Ok(Slot::Entry(entry)) => entry,
            Ok(Slot::Message(_) | Slot::Extents(_)) | Err(_) => {
                panic!("an entry changed in memory under our hands")
            }
        };
        (slot, (first..first + slot.entries).map(entry).collect())
    }

    /// Enters entries that begin at slot `first` into the index: one record per domain with
    /// unsettled ones.
    pub(super) fn enter_at(
        &mut self,
        segment: usize,
        mut first: u32,
        message_slot: u32,
        entries: &[Entry],
        handles: &mut Vec<Handle>,
    ) {
        for group in entries.chunk_by(|a, b| a.domain == b.domain) {
            let live_segment = &mut self.segments[segment];
            let entries = count(group.len());
            let unsettled = |slot: &u32| !live_segment.state(*slot).state.is_settled();
            let live = count((first..first + entries).filter(unsettled).count());
            let Some(Name::Domain(destination)) =
                live_segment.names.get(usize::from(group[0].domain)).cloned()
            else {
                unreachable!("names of entries are checked before they are entered")
            };
            if live > 0 {
                live_segment.live += live;
                handles.push(self.index.insert(index::NewRecord {
                    segment: u16::try_from(segment).unwrap_or(u16::MAX),
                    first_slot: first,
                    message_slot,
                    destination,
                    entries: u16::try_from(entries).unwrap_or(u16::MAX),
                    live: u16::try_from(live).unwrap_or(u16::MAX),
                }));
            }
            first += entries;
        }
    }

    /// Starts a sync with a new header copy, unless one runs or the segment is poisoned: what is
    /// dirty then stays so, and its turn comes with the next tick.
    fn start_sync(&mut self, segment: usize, purpose: Purpose) {
        let block_max = self.ids.block_max();
        let live = &mut self.segments[segment];
        if live.poisoned {
            live.dirty_since = None;
            return;
        }
        if live.syncing {
            return;
        }
        // Slots of a commit that is being written are not stored yet; `durable_slots` is what
        // the syncs before this one covered, so both stay behind them.
        live.store_header(block_max);
        live.syncing = true;
        live.dirty_since = None;
        live.extents_syncing.append(&mut live.extents_settled);
        let name = live.header.segment;
        let id = self.effect_id(purpose);
        self.effects.push_back(Effect::Sync { id, segment: name });
    }

    fn synced(&mut self, segment: usize, ok: bool) {
        let live = &mut self.segments[segment];
        live.syncing = false;
        if !ok {
            self.poison(segment);
            return;
        }
        self.ids.reserved(live.header.id_block_max);
        let writing = self.commit.as_ref().filter(|commit| {
            commit.segment == segment && !matches!(commit.phase, Phase::Syncing { .. })
        });
        let live = &mut self.segments[segment];
        (live.header.durable_slots, live.header.durable_body_end) = match writing {
            Some(commit) => (commit.first_slot, commit.body_start),
            None => (live.next_slot, live.next_body),
        };
        for extent in std::mem::take(&mut live.extents_syncing) {
            self.free_extent(extent);
        }
        self.free_if_empty(segment);
    }

    fn free_extent(&mut self, place: ExtentPlace) {
        let found = self.segments.iter().position(|s| s.header.segment == place.segment);
        if let Some(segment) = found.filter(|segment| !self.segments[*segment].poisoned) {
            self.extents_free.push((segment, place.index));
        }
    }

    fn poison(&mut self, segment: usize) {
        self.segments[segment].poisoned = true;
        self.segments[segment].dirty_since = None;
        if self.active == Some(segment) {
            self.active = None;
            self.segments[segment].seal();
        }
        self.extents_free.retain(|(free, _)| *free != segment);
    }

    pub(super) fn free_if_empty(&mut self, segment: usize) {
        let live = &self.segments[segment];
        let idle = !live.appendable && !live.syncing && !live.poisoned;
        let empty = live.live == 0 && live.dirty_since.is_none();
        let settled = live.extents_settled.is_empty() && live.extents_syncing.is_empty();
        let messages = live.header.kind == SegmentKind::Messages;
        if idle && empty && settled && messages && !self.free.contains(&segment) {
            self.free.push(segment);
        }
    }
}

impl Commit {
    fn push(&mut self, slot: &Slot, place: format::TablePlace) -> u32 {
        let index = self.first_slot + count(self.slots.len());
        self.slots.push(slot.encode(place, index));
        index
    }
}

fn place_body(message: &NewMessage, seed: u32, gather: &mut Gather) -> u32 {
    let checksum = format::checksum_at(seed, gather.at, &message.data);
    if message.data.len() <= COPY_OCTETS_MAX {
        gather.buffer.extend_from_slice(&message.data);
    } else {
        gather.chunks.push(Chunk::Owned(std::mem::take(&mut gather.buffer)));
        let (data, end) = (message.data.clone(), message.data.len());
        gather.chunks.push(Chunk::Shared { data, start: 0, end });
    }
    gather.at += message.data.len() as u64;
    checksum
}

fn head_texts(envelope: &Envelope) -> HeadTexts<'_> {
    HeadTexts {
        sender: envelope.sender.as_ref().map(|sender| sender.as_str().as_bytes()),
        envid: envelope.envid.as_ref().map(|envid| envid.as_bytes()),
        redirect: None,
    }
}

fn recipient_texts(recipient: &Recipient) -> RecipientTexts<'_> {
    RecipientTexts {
        address: recipient.address.as_str().as_bytes(),
        orcpt: recipient.orcpt.as_ref().map(|orcpt| orcpt.as_bytes()),
    }
}

fn flags_of(envelope: &Envelope, facts: MessageFacts) -> u8 {
    let bit = |set: bool, flag: u8| if set { flag } else { 0 };
    let body = match envelope.body {
        BodyKind::SevenBit => 0,
        BodyKind::EightBitMime => flags::BODY_8BITMIME,
    };
    let ret = match envelope.ret {
        None => 0,
        Some(Ret::Full) => flags::RET_FULL,
        Some(Ret::Headers) => flags::RET_HEADERS,
    };
    bit(facts.leading_dot, flags::LEADING_DOT)
        | bit(facts.eight_bit, flags::EIGHT_BIT)
        | bit(facts.utf8_header, flags::UTF8_HEADER)
        | bit(envelope.smtputf8, flags::SMTPUTF8)
        | body
        | ret
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
