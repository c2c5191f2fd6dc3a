//! Copying forward: what keeps a nearly empty segment from being used again is moved out of it.
//!
//! Owns: which segment is emptied, which of its messages are moved, how fast, and the switch.
//! Never: a message with a delivery under way or with damage; more than a slice per tick.
//!
//! A message moves whole, with all of its unsettled recipients, in four steps: its copy is
//! appended with the copy number one higher, the commit makes it durable, the index is switched
//! to it, and the old entries are stored as moved. Until the switch the old entries count; every
//! change of their words is made in the copy first, so that a crash finds the newest word in the
//! highest copy. A large body stays where it is: its extents go over to the copy, within one
//! shard directory.
//!
//! Neither of the two segments is used again before the other has synced its part: the old one
//! its marks (or the old entries would come back to life), the new one what was changed while
//! the copy was written.
//!
//! Diagnostics: [`Event::Held`] for recipients whose octets are not what was written.

use std::io;

use super::batch::{Gather, count};
use super::commit::Commit;
use super::format::{
    self, Entry, ExtentPlace, MessageSlot, OutcomeWord, SegmentKind, Slot, State, StateWord,
};
use super::live::Name;
use super::read::{Origin, Piece, ReadPlan};
use super::room::Claim;
use super::{Effect, EffectId, Event, Purpose, Queue};
use crate::mail::{Handle, Mono, Now, Rid};

/// Messages and octets that begin to move in one tick at most: client mail comes first.
const TICK_MESSAGES_MAX: usize = 256;
const TICK_OCTETS_MAX: u64 = 1 << 20;

/// Records of the index that are looked at in one tick.
const TICK_RECORDS_MAX: usize = 50_000;

/// A segment that could not be emptied is left alone for this long.
const AGAIN_MS: u64 = 60_000;

/// A segment is worth emptying when at most one slot in this many is a live recipient: with its
/// message slot that is at most half of it.
const LIVE_PARTS: u32 = 4;

/// Room begins to be made when at most one segment in this many is left for new mail.
const PRESSURE_PARTS: u64 = 8;

/// The emptying of a segment.
pub(super) struct Forward {
    source: usize,
    /// Next record of the index to look at.
    cursor: Option<u32>,
    /// What is still to be moved: message slot and handle, the first in turn at the end.
    found: Vec<(u32, Handle)>,
}

/// A message that is read for its copy, and then waits for its commit.
pub(super) struct Move {
    pub(super) source: usize,
    pub(super) message_slot: u32,
    pub(super) message: MessageSlot,
    pub(super) handles: Vec<Handle>,
    /// Unsettled entries with their slots.
    pub(super) entries: Vec<(u32, Entry)>,
    pub(super) extents: Vec<ExtentPlace>,
    /// What was read: the envelope, and the body unless it is in extents.
    pub(super) octets: Vec<u8>,
}

impl Move {
    pub(super) fn head(&self) -> &[u8] {
        &self.octets[..self.message.head_octets as usize]
    }

    /// The record of an entry; `None` when its place is impossible.
    pub(super) fn record(&self, entry: &Entry) -> Option<&[u8]> {
        let start = entry.record_offset.checked_sub(self.message.head_offset)?;
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(entry.record_octets as usize)?;
        if end > self.message.envelope_octets as usize {
            return None;
        }
        self.octets.get(start..end)
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.octets[self.message.envelope_octets as usize..]
    }

    pub(super) fn slots(&self) -> u32 {
        count(self.entries.len()) + self.message.extent_slots + 1
    }

    pub(super) fn octets(&self) -> u64 {
        self.octets.len() as u64
    }
}

/// A copy in the commit under way.
pub(super) struct Moved {
    source: usize,
    message_slot: u32,
    handles: Vec<Handle>,
    copy_message_slot: u32,
    /// Old and new slot of each entry, in order.
    slots: Vec<(u32, u32)>,
}

impl Queue {
    /// Reports that an [`Effect::Read`] was done: the octets of its pieces, one behind the other.
    pub fn handle_read(&mut self, id: EffectId, result: io::Result<Vec<u8>>) {
        let Some(Purpose::Read) = self.purposes.remove(&id) else {
            unreachable!("an effect was reported that is no reading under way")
        };
        let Some(mut moving) = self.reads.remove(&id) else {
            unreachable!("nothing is read for this effect")
        };
        let octets = result.unwrap_or_default();
        let expected = u64::from(moving.message.envelope_octets)
            + if moving.message.extents == 0 { moving.message.body_octets } else { 0 };
        if octets.len() as u64 != expected {
            return self.hold_message(&moving, "it cannot be read");
        }
        moving.octets = octets;
        let seed = self.segments[moving.source].place.seed;
        let message = &moving.message;
        let head = format::checksum_at(seed, message.head_offset, moving.head());
        let body = message.extents > 0
            || format::checksum_at(seed, message.body_offset, moving.body())
                == message.body_checksum;
        let record = |entry: &Entry| {
            moving.record(entry).is_some_and(|record| {
                format::checksum_at(seed, entry.record_offset, record) == entry.record_checksum
            })
        };
        let records = moving.entries.iter().all(|(_, entry)| record(entry));
        if head != message.head_checksum || !body || !records {
            return self.hold_message(&moving, "its octets do not fit their checksum");
        }
        self.moves.push_back(moving);
    }

    /// Goes on with copying forward: called once a tick.
    pub(super) fn forward_tick(&mut self, now: Now) {
        if !self.reads.is_empty() || !self.moves.is_empty() || self.now < self.trouble_until {
            return;
        }
        let Some(forward) = &mut self.forward else {
            if self.is_short_of_room()
                && let Some(source) = self.segment_to_empty()
            {
                self.forward = Some(Forward { source, cursor: Some(0), found: Vec::new() });
            }
            return;
        };
        if let Some(cursor) = forward.cursor {
            let found = &mut forward.found;
            forward.cursor = self.index.of_segment(cursor, TICK_RECORDS_MAX, forward.source, found);
            if forward.cursor.is_none() {
                // Taken from the end: oldest first.
                found.sort_unstable_by_key(|(slot, _)| std::cmp::Reverse(*slot));
            }
            return;
        }
        let mut octets = 0;
        for _ in 0..TICK_MESSAGES_MAX {
            if octets >= TICK_OCTETS_MAX {
                return;
            }
            match self.next_of_source() {
                Some(begun) => octets += begun,
                None => return self.end_of_source(now.mono),
            }
        }
    }

    fn end_of_source(&mut self, now: Mono) {
        // What was begun in this tick is still being read.
        if self.reads.is_empty()
            && let Some(forward) = self.forward.take()
        {
            self.segments[forward.source].forward_after = Mono(now.0 + AGAIN_MS);
            self.free_if_empty(forward.source);
        }
    }

    /// Is a message of it on its way out? What it says of its recipients is still needed then,
    /// even when all of them are settled meanwhile.
    pub(super) fn is_being_moved(&self, segment: usize) -> bool {
        let mut waiting = self.reads.values().chain(&self.moves);
        let mut committing = self.commits().flat_map(|commit| &commit.moves);
        waiting.any(|moving| moving.source == segment)
            || committing.any(|moved| moved.source == segment)
    }

    /// The commit of these copies has ended, and so has what it needed their sources for.
    pub(super) fn release_sources(&mut self, moves: &[Moved]) {
        for moved in moves {
            self.free_if_empty(moved.source);
        }
    }

    fn is_short_of_room(&self) -> bool {
        let all = self.options.octets_max / self.options.segment_octets;
        let left = (self.segments_coming() + self.free.len()) as u64 + self.makeable();
        left.saturating_sub(self.segments_reserved()) <= (all / PRESSURE_PARTS).max(1)
    }

    fn segment_to_empty(&self) -> Option<usize> {
        let worth = |(_, live): &(usize, &super::live::Segment)| {
            live.header.kind == SegmentKind::Messages
                && live.header.segment.directory() == self.options.shard.0
                && !live.appendable
                && !live.poisoned
                && !live.has_damage
                && live.live > 0
                && live.live <= live.next_slot / LIVE_PARTS
                && live.forward_after <= self.now
        };
        let candidates = self.segments.iter().enumerate().filter(worth);
        candidates.min_by_key(|(_, live)| live.live).map(|(position, _)| position)
    }

    /// Begins to read the next message of the source; its octets, 0 when it is passed over.
    fn next_of_source(&mut self) -> Option<u64> {
        let forward = self.forward.as_mut()?;
        let source = forward.source;
        let (message_slot, handle) = forward.found.pop()?;
        let mut handles = vec![handle];
        while let Some((_, handle)) = forward.found.pop_if(|(slot, _)| *slot == message_slot) {
            handles.push(handle);
        }
        // A handle may have been given to another message since it was found.
        handles.retain(|handle| self.is_of(*handle, source, message_slot));
        let Some(moving) = self.movable(source, message_slot, handles) else { return Some(0) };
        let message = &moving.message;
        let (name, offset) = (self.segments[source].header.segment, message.head_offset);
        let mut pieces =
            vec![Piece { segment: name, offset, octets: u64::from(message.envelope_octets) }];
        if message.extents == 0 {
            let (offset, octets) = (message.body_offset, message.body_octets);
            pieces.push(Piece { segment: name, offset, octets });
        }
        let plan = ReadPlan { pieces, origin: Origin { mid: message.mid, source, message_slot } };
        let octets = plan.octets();
        let geometry = self.segments[source].geometry;
        let inside = |p: &Piece| p.offset.saturating_add(p.octets) <= geometry.octets;
        if !plan.pieces.iter().all(inside) || octets > self.room(Claim::Forward) {
            return Some(0);
        }
        let id = self.effect_id(Purpose::Read);
        self.reads.insert(id, moving);
        self.effects.push_back(Effect::Read { id, plan });
        Some(octets)
    }

    /// The message, unless something speaks against moving it now.
    fn movable(&self, source: usize, message_slot: u32, handles: Vec<Handle>) -> Option<Move> {
        let live = &self.segments[source];
        let Ok(Slot::Message(message)) = live.slot(message_slot) else { return None };
        if message.copy == u16::MAX
            || u64::from(message.head_octets) > message.envelope_octets.into()
        {
            return None;
        }
        let first = (message_slot + 1).checked_sub(message.group_slots())?;
        let mut entries = Vec::new();
        for slot in first..first + message.entries {
            let word = live.state(slot);
            if word.in_flight || word.state == State::Damaged {
                return None;
            }
            if !word.state.is_settled() {
                let Ok(Slot::Entry(entry)) = live.slot(slot) else { return None };
                entries.push((slot, entry));
            }
        }
        // Its extents are free when the copy is settled: by then what is left out of it must be
        // settled for good, or a power cut would bring it back without a body.
        let is_clean = live.dirty_since.is_none() && live.syncs.is_empty();
        if message.extents > 0 && count(entries.len()) < message.entries && !is_clean {
            return None;
        }
        let record = self.index.get(*handles.first()?)?;
        let extents = self.extents(record, &message)?;
        (!entries.is_empty()).then_some(Move {
            source,
            message_slot,
            message,
            handles,
            entries,
            extents,
            octets: Vec::new(),
        })
    }

    fn hold_message(&mut self, moving: &Move, what: &'static str) {
        let mut rids: Vec<Rid> = Vec::new();
        for handle in &moving.handles {
            if self.is_of(*handle, moving.source, moving.message_slot) {
                rids.extend(self.hold_all(*handle));
            }
        }
        if !rids.is_empty() {
            self.events.push_back(Event::Held { mid: moving.message.mid, rids, what });
        }
    }

    fn is_of(&self, handle: Handle, source: usize, message_slot: u32) -> bool {
        self.index.get(handle).is_some_and(|record| {
            usize::from(record.segment) == source && record.message_slot == message_slot
        })
    }

    /// Gives a copy its place in the commit: as it is now, its settled recipients left out.
    pub(super) fn place_move(&mut self, mut moving: Move, gather: &mut Gather) {
        let source = moving.source;
        let live = &self.segments[source];
        let read = moving.entries.len();
        moving.entries.retain(|(slot, _)| !live.state(*slot).state.is_settled());
        let active = gather.commit.segment;
        // With extents as in `movable`: it is tried again.
        let leaves_out_more = moving.message.extents > 0 && moving.entries.len() < read;
        if moving.entries.is_empty() || leaves_out_more {
            return;
        }
        let place = self.segments[active].place;
        let (profile, listener) = self.labels_for(&moving, active);
        let head_offset = gather.at;
        let head_checksum = format::checksum_at(place.seed, head_offset, moving.head());
        gather.append(moving.head());
        let slots = self.place_copies(&moving, gather);
        let body_offset = if moving.message.extents == 0 { gather.at } else { 0 };
        let envelope_octets = u32::try_from(gather.at - head_offset).unwrap_or(u32::MAX);
        let body_checksum = if moving.message.extents == 0 {
            gather.append(moving.body());
            format::checksum_at(place.seed, body_offset, moving.body())
        } else {
            0
        };
        let copy = moving.message.copy + 1;
        gather.push_extents(&moving.extents, copy, place);
        let slot = Slot::Message(MessageSlot {
            copy,
            entries: count(slots.len()),
            head_offset,
            head_checksum,
            envelope_octets,
            body_checksum,
            body_offset,
            profile,
            listener,
            durable_slots: 0,
            ..moving.message
        });
        let copy_message_slot = gather.commit.push(&slot, place);
        let Move { message_slot, handles, .. } = moving;
        let moved = Moved { source, message_slot, handles, copy_message_slot, slots };
        gather.commit.moves.push(moved);
    }

    fn labels_for(&mut self, moving: &Move, active: usize) -> (u16, u16) {
        let (profile, listener) = self.labels_of(moving);
        (self.label(active, &profile), self.label(active, &listener))
    }

    /// The names of a message's bounce profile and listener.
    pub(super) fn labels_of(&self, moving: &Move) -> (std::sync::Arc<str>, std::sync::Arc<str>) {
        let live = &self.segments[moving.source];
        let label = |index| live.label(index).unwrap_or_else(|| "default".into());
        (label(moving.message.profile), label(moving.message.listener))
    }

    fn place_copies(&mut self, moving: &Move, gather: &mut Gather) -> Vec<(u32, u32)> {
        let (source, active) = (moving.source, gather.commit.segment);
        let place = self.segments[active].place;
        let mut slots = Vec::with_capacity(moving.entries.len());
        for (i, (old, entry)) in moving.entries.iter().enumerate() {
            let Some(record) = moving.record(entry) else {
                unreachable!("records were verified when they were read")
            };
            let Some(Name::Domain(number)) =
                self.segments[source].names.get(usize::from(entry.domain)).cloned()
            else {
                unreachable!("names of entries are checked before they are entered")
            };
            let domain = self.index.domain(number).clone();
            let copied = Entry {
                copy: entry.copy + 1,
                domain: self.domain_index(active, &domain),
                distance: count(moving.entries.len() - i) + moving.message.extent_slots,
                record_offset: gather.at,
                record_checksum: format::checksum_at(place.seed, gather.at, record),
                ..*entry
            };
            gather.append(record);
            let new = gather.commit.push(&Slot::Entry(copied), place);
            let word = self.segments[source].state(*old);
            let outcome = self.segments[source].outcome(*old);
            let outcome = outcome.map(|outcome| self.outcome_for(outcome, source, active));
            gather.commit.set_words(new, Some(word), outcome, place);
            slots.push((*old, new));
        }
        slots
    }

    /// The outcome with its host as another segment knows it.
    fn outcome_for(&mut self, outcome: OutcomeWord, source: usize, target: usize) -> OutcomeWord {
        let host = outcome.host.and_then(|host| self.segments[source].host(host));
        let host = host.and_then(|host| self.segments[target].host_index(&host));
        OutcomeWord { host, ..outcome }
    }

    /// Changes the words of an entry's copy that is being committed, before the entry's own.
    pub(super) fn mirror(
        &mut self,
        segment: usize,
        slot: u32,
        word: Option<StateWord>,
        outcome: Option<OutcomeWord>,
    ) {
        let copy_in = |commit: &Commit| {
            let mut of_source = commit.moves.iter().filter(|moved| moved.source == segment);
            of_source.find_map(|moved| {
                let at = moved.slots.binary_search_by_key(&slot, |(old, _)| *old).ok()?;
                Some((commit.segment, moved.slots[at].1))
            })
        };
        if let Some((target, copy)) = self.syncing.iter().find_map(copy_in) {
            let outcome = outcome.map(|outcome| self.outcome_for(outcome, segment, target));
            if let Some(outcome) = outcome {
                self.store_outcome(target, copy, outcome);
            }
            if let Some(word) = word {
                self.store_state(target, copy, word);
            }
        } else if let Some((target, copy)) = self.writing.as_ref().and_then(copy_in) {
            let outcome = outcome.map(|outcome| self.outcome_for(outcome, segment, target));
            if let Some(commit) = &mut self.writing {
                commit.set_words(copy, word, outcome, self.segments[target].place);
            }
        }
    }

    /// The copy is durable: the index goes over to it, and what it was copied from is marked.
    pub(super) fn switch(&mut self, target: usize, moved: &Moved) {
        let source = moved.source;
        let mut marked = false;
        for handle in &moved.handles {
            if !self.is_of(*handle, source, moved.message_slot) {
                continue;
            }
            let Some(record) = self.index.get(*handle) else { continue };
            let olds = record.first_slot..record.first_slot + u32::from(record.entries);
            let of_handle = moved.slots.iter().filter(|(old, _)| olds.contains(old));
            let Some((_, first)) = of_handle.clone().next() else { continue };
            let entries = u16::try_from(of_handle.clone().count()).unwrap_or(u16::MAX);
            self.index.relocate(*handle, target, *first, moved.copy_message_slot, entries);
            let live = u32::from(record.live);
            self.segments[source].live -= live;
            self.segments[target].live += live;
            for (old, _) in of_handle {
                let word = self.segments[source].state(*old);
                if !word.state.is_settled() {
                    let word = StateWord { state: State::Moved, in_flight: false, ..word };
                    self.store_state(source, *old, word);
                    marked = true;
                }
            }
        }
        self.hold_as_long(source, target);
        if marked {
            self.hold_until_synced(source, target);
        }
        if self.segments[target].dirty_since.is_some() {
            self.hold_until_synced(target, source);
        }
    }

    /// `kept` is not used again before what `by` has stored until now is synced.
    fn hold_until_synced(&mut self, by: usize, kept: usize) {
        self.segments[by].releases.push(kept);
        self.segments[kept].holds += 1;
    }

    /// What is held is so because an older copy elsewhere may come back with a power cut; once its
    /// messages have moved on, only the segment they moved to can tell that one was settled.
    fn hold_as_long(&mut self, held: usize, target: usize) {
        for by in (0..self.segments.len()).filter(|by| *by != target) {
            let live = &mut self.segments[by];
            let mut more = 0;
            let running = live.syncs.iter_mut().map(|sync| &mut sync.releases);
            for list in running.chain([&mut live.releases]) {
                if list.contains(&held) && !list.contains(&target) {
                    list.push(target);
                    more += 1;
                }
            }
            self.segments[target].holds += more;
        }
    }

    /// The commit of the copies failed: if it can be helped, the next start does not find them.
    ///
    /// The sources are not used again before that is synced, with a poisoned target not at all: a
    /// power cut may leave the copies without their marks, and then only the source still tells
    /// that a recipient was settled.
    pub(super) fn withdraw_copies(&mut self, target: usize, moves: &[Moved]) {
        for moved in moves {
            for (_, copy) in &moved.slots {
                let word = self.segments[target].state(*copy);
                let word = StateWord { state: State::Moved, in_flight: false, ..word };
                self.store_state(target, *copy, word);
            }
            self.hold_until_synced(target, moved.source);
        }
    }
}
