//! Placing: where each octet and slot of a commit goes.
//!
//! Owns: the layout of a batch, its checksums and names. Never: the order of effects (`batch`).

use std::ops::Range;
use std::sync::Arc;

use super::batch::{COMMIT_OCTETS_MAX, Gather, Pending, count};
use super::commit::{Commit, Placed};
use super::direct::fill_to_block;
use super::format::{
    self, Entry, ExtentPlace, ExtentSlot, HeadTexts, MessageSlot, OutcomeWord, RecipientTexts,
    Slot, StateWord, TablePlace, flags,
};
use super::forward::Move;
use super::live::Name;
use super::{Chunk, NewMessage, Queue};
use crate::limits::{self, BLOCK, BLOCK_OCTETS};
use crate::mail::{Body, BodyKind, Domain, Envelope, MessageFacts, Recipient, Ret};

/// Bodies up to here are copied together with envelopes: below it a piece of its own costs the
/// write more than the copy.
const COPY_OCTETS_MAX: usize = 1024;

/// A direct write begins no further message above this: all of it is copied, into memory that is
/// used for the next one again.
const DIRECT_OCTETS_MAX: u64 = 8 << 20;

/// Where the words of an entry stand in its slot.
const OUTCOME_AT: usize = 112;
const STATE_AT: usize = 120;

const _: () = assert!(OUTCOME_AT as u64 == format::OUTCOME_OFFSET);
const _: () = assert!(STATE_AT as u64 == format::STATE_OFFSET);

impl Queue {
    pub(super) fn gather(&mut self, active: usize) -> Gather {
        let direct = self.goes_direct(active);
        let octets_max = match direct {
            true => DIRECT_OCTETS_MAX + limits::INLINE_MESSAGE_OCTETS_MAX,
            false => COMMIT_OCTETS_MAX,
        };
        let (buffer, lead) = self.take_buffer(self.pending_octets.min(octets_max), direct);
        let segment = &self.segments[active];
        let before = segment.next_body;
        let start = if direct { before.next_multiple_of(BLOCK_OCTETS) } else { before };
        let commit = self.writing.take().unwrap_or_else(|| Commit {
            segment: active,
            messages: Vec::with_capacity(self.pending.len()),
            first_slot: segment.next_slot,
            slots: std::mem::take(&mut self.slots),
            domains: Vec::with_capacity(self.pending.len()),
            body_start: segment.next_body,
            body_end: segment.next_body,
            extent_segments: Vec::new(),
            extents: Vec::new(),
            moves: Vec::new(),
            left: 0,
            failed: false,
        });
        Gather {
            slots_before: commit.slots.len(),
            commit,
            buffer,
            bodies: Vec::with_capacity(self.pending.len()),
            start,
            octets_before: before,
            at: start,
            direct,
            lead,
            extent_writes: Vec::new(),
        }
    }

    /// Does the next write go past the page cache? To copy many messages into it, and to have the
    /// sync write them from there, takes several times the CPU time of a direct write.
    ///
    /// Not near the table. The kernel drops what it has cached of a range that is written past the
    /// cache, in pieces of up to [`super::Options::folio_octets`], and one that a stored word has
    /// made dirty again meanwhile is an error of the file, which the next sync tells.
    fn goes_direct(&self, active: usize) -> bool {
        let segment = &self.segments[active];
        let table_end = segment.geometry.body_offset.next_multiple_of(self.options.folio_octets);
        let first = self.pending.front().map_or(0, Pending::octets);
        self.pending_octets >= self.options.direct_octets_min
            && segment.next_body.next_multiple_of(BLOCK_OCTETS) >= table_end
            && segment.body_left() >= first + BLOCK_OCTETS
    }

    /// The buffer of the commit before, if its write is over: megabytes of fresh memory for each
    /// commit would cost a page fault for every 4 KiB. And how much of it is filled: up to a whole
    /// block in memory, if it is for a direct write.
    fn take_buffer(&mut self, octets: u64, direct: bool) -> (Vec<u8>, usize) {
        let used = self.gathered.take().and_then(|body| Arc::try_unwrap(body).ok());
        let mut buffer = used.map_or_else(Vec::new, |body| body.bytes.into_vec());
        buffer.clear();
        let block = if direct { BLOCK } else { 0 };
        let moves: u64 = self.moves.iter().map(Move::octets).sum();
        // If a huge envelope makes it grow, it goes through the cache.
        buffer.reserve(usize::try_from(octets + moves).unwrap_or(0) + 2 * block);
        let lead = if direct { fill_to_block(&mut buffer) } else { 0 };
        (buffer, lead)
    }

    /// Gives a message its place in the commit: octets to write, slots to store.
    pub(super) fn place(&mut self, pending: &Pending, gather: &mut Gather) {
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
            flags: flags_of(&message.envelope, message.body.facts),
            copy: 0,
            entries: count(pending.order.len()),
            mid: message.mid,
            cause: message.cause,
            arrival: message.arrival,
            sender_hash,
            body_octets: message.body.bytes.len() as u64,
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
            durable_slots: 0,
        });
        let message_slot = gather.commit.push(&slot, place);
        let (ticket, early) = (pending.ticket, pending.early);
        let entries = count(pending.order.len());
        let first_slot = message_slot - pending.extent_slots() - entries;
        gather.commit.messages.push(Placed { ticket, first_slot, entries, message_slot, early });
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
            gather.commit.domains.push(index);
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
            gather.commit.set_words(slot, Some(StateWord::READY), None, place);
        }
    }

    fn place_extents(&mut self, pending: &Pending, gather: &mut Gather) {
        let place = self.segments[gather.commit.segment].place;
        let body = &pending.message.body;
        let mut places = Vec::with_capacity(pending.extents as usize);
        let extent_octets = usize::try_from(limits::EXTENT_OCTETS).unwrap_or(usize::MAX);
        for start in (0..body.bytes.len()).step_by(extent_octets) {
            let Some((segment, index)) = self.extents_free.pop() else {
                unreachable!("the free extents were counted before")
            };
            let end = body.bytes.len().min(start + extent_octets);
            let live = &self.segments[segment];
            let offset = live.geometry.extent_offset(index);
            places.push(ExtentPlace {
                segment: live.header.segment,
                generation: live.header.generation,
                index,
                checksum: body_checksum(live.place.seed, offset, body, start..end),
            });
            let chunk = |range| Chunk { body: body.clone(), range };
            let chunks = body.bytes.cut(start..end).map(chunk).collect();
            gather.extent_writes.push((segment, offset, chunks));
            gather.commit.extents.push((segment, index));
            if !gather.commit.extent_segments.contains(&segment) {
                gather.commit.extent_segments.push(segment);
            }
        }
        gather.push_extents(&places, 0, place);
    }

    pub(super) fn label(&mut self, segment: usize, label: &Arc<str>) -> u16 {
        let segment = &mut self.segments[segment];
        segment
            .label_index(label)
            .unwrap_or_else(|| segment.add_name(Name::Label(label.clone()), label))
    }

    pub(super) fn domain_index(&mut self, segment: usize, domain: &Domain) -> u16 {
        let live = &mut self.segments[segment];
        let known = self.index.known(domain).and_then(|number| live.destination_index(number));
        known.unwrap_or_else(|| {
            let number = self.index.name(domain);
            live.add_name(Name::Domain(number), domain.as_str())
        })
    }
}

impl Gather {
    /// Slots and octets that this write has taken so far.
    pub(super) fn taken(&self) -> (u32, u64) {
        (count(self.commit.slots.len() - self.slots_before), self.at - self.octets_before)
    }

    /// The commit begins no further message.
    pub(super) fn is_full(&self) -> bool {
        self.at - self.commit.body_start > COMMIT_OCTETS_MAX
            || self.direct && self.at - self.start > DIRECT_OCTETS_MAX
    }

    /// The last block is written whole: of one that is not cached the kernel would have to read
    /// the rest first. What comes next begins behind its message, or behind the block of a direct
    /// write.
    pub(super) fn fill_block(&mut self) {
        let end = self.at.next_multiple_of(BLOCK_OCTETS);
        let rest = usize::try_from(end - self.at).unwrap_or(0);
        self.buffer.resize(self.buffer.len() + rest, 0);
        if self.direct {
            self.at = end;
        }
    }

    /// Octets to be written next.
    pub(super) fn append(&mut self, octets: &[u8]) {
        self.buffer.extend_from_slice(octets);
        self.at += octets.len() as u64;
    }

    /// The slots that list a large body's extents.
    pub(super) fn push_extents(&mut self, places: &[ExtentPlace], copy: u16, place: TablePlace) {
        let mut first = 0;
        for part in places.chunks(format::EXTENTS_PER_SLOT) {
            let slot = ExtentSlot { copy, first, places: part.to_vec() };
            self.commit.push(&Slot::Extents(slot), place);
            first += count(part.len());
        }
    }
}

impl Commit {
    /// Sets the words of an entry that is not stored yet.
    pub(super) fn set_words(
        &mut self,
        slot: u32,
        word: Option<StateWord>,
        outcome: Option<OutcomeWord>,
        place: TablePlace,
    ) {
        let octets = &mut self.slots[(slot - self.first_slot) as usize];
        if let Some(outcome) = outcome {
            let at = OUTCOME_AT..OUTCOME_AT + 8;
            octets[at].copy_from_slice(&outcome.encode(place, slot).to_le_bytes());
        }
        if let Some(word) = word {
            octets[STATE_AT..].copy_from_slice(&word.encode(place, slot).to_le_bytes());
        }
    }

    pub(super) fn push(&mut self, slot: &Slot, place: TablePlace) -> u32 {
        let index = self.first_slot + count(self.slots.len());
        self.slots.push(slot.encode(place, index));
        index
    }
}

fn place_body(message: &NewMessage, seed: u32, gather: &mut Gather) -> u32 {
    let body = &message.body;
    let checksum = body_checksum(seed, gather.at, body, 0..body.bytes.len());
    for range in body.bytes.cut(0..body.bytes.len()) {
        let part = body.bytes.slice(range.clone());
        if gather.direct || part.len() <= COPY_OCTETS_MAX {
            gather.buffer.extend_from_slice(part);
        } else {
            let chunk = Chunk { body: body.clone(), range };
            gather.bodies.push((gather.buffer.len(), chunk));
        }
    }
    gather.at += body.bytes.len() as u64;
    checksum
}

/// The checksum of a part of a message that is to stand at `offset`.
fn body_checksum(seed: u32, offset: u64, body: &Body, range: Range<usize>) -> u32 {
    let mut parts = body.bytes.cut(range).map(|part| body.bytes.slice(part));
    let first = format::checksum_at(seed, offset, parts.next().unwrap_or_default());
    parts.fold(first, format::checksum_append)
}

/// The buffer, from `lead` on, and the messages in the order of writing.
pub(super) fn chunks_of(
    buffer: &Arc<Body>,
    lead: usize,
    bodies: Vec<(usize, Chunk)>,
) -> Vec<Chunk> {
    let mut chunks = Vec::with_capacity(bodies.len() * 2 + 1);
    let mut done = lead;
    let part = |range: Range<usize>| Chunk { body: buffer.clone(), range };
    for (behind, chunk) in bodies {
        chunks.push(part(done..behind));
        done = behind;
        chunks.push(chunk);
    }
    chunks.push(part(done..buffer.bytes.len()));
    chunks.retain(|chunk| !chunk.range.is_empty());
    chunks
}

pub(super) fn head_texts(envelope: &Envelope) -> HeadTexts<'_> {
    HeadTexts {
        sender: envelope.sender.as_ref().map(|sender| sender.as_str().as_bytes()),
        envid: envelope.envid.as_ref().map(|envid| envid.as_bytes()),
        redirect: None,
    }
}

pub(super) fn recipient_texts(recipient: &Recipient) -> RecipientTexts<'_> {
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
