//! The groups of a table at a start: what becomes of each recipient.
//!
//! Owns: the cases that concern slots and words. Never: which slots belong together (`scan`).

use std::io;

use super::super::format::{Entry, ExtentPlace, MessageSlot, State, StateWord};
use super::super::live::Name;
use super::super::report::RecoveryCase;
use super::super::scan::{Found, Scan};
use super::super::segment::Medium;
use super::verify::unread;
use super::{Opening, by_message};
use crate::limits;
use crate::mail::{Handle, Wall};

impl<M: Medium> Opening<'_, M> {
    pub(super) fn found(&mut self, segment: usize, found: Found, scan: &mut Scan) {
        match found {
            Found::Group { message_slot, message, entries, extents } => {
                let first = message_slot + 1 - message.group_slots();
                let behind = message_slot >= scan.durable;
                let live = &self.queue.segments[segment];
                let named = |index: u16| {
                    matches!(live.names.get(usize::from(index)), Some(Name::Domain(_)))
                };
                // A sector torn between an entry and its words leaves them as they were before.
                let torn = behind && !(first..).zip(&entries).all(|(slot, _)| live.has_word(slot));
                if torn || !entries.iter().all(|entry| named(entry.domain)) {
                    self.broken(segment, first, &entries, behind, scan);
                    return;
                }
                let verified = if behind {
                    self.verify(segment, &message, &entries, &extents)
                } else if extents.iter().any(|place| self.may_be_unread(place)) {
                    Err(unread())
                } else {
                    Ok(true)
                };
                if matches!(verified, Ok(false)) {
                    scan.spoil(first);
                    scan.torn_bodies += 1;
                    return;
                }
                scan.reach(&message);
                self.mid_max = self.mid_max.max(message.mid.0);
                if let Err(error) = verified {
                    scan.spoil(first);
                    return self.leave(segment, first, &message, extents, &error);
                }
                self.accept(segment, first, message_slot, &message, &entries, &extents);
            }
            Found::Broken { first, entries, behind } => {
                self.broken(segment, first, &entries, behind, scan);
            }
            Found::BadSlot => scan.bad_slots += 1,
        }
    }

    /// Tells what a whole table came to.
    pub(super) fn sum_up(&mut self, segment: usize, scan: &Scan) {
        let name = self.name(segment);
        self.recovered.dropped += scan.torn_groups + scan.torn_bodies;
        self.recovered.damaged_slots += scan.bad_slots;
        // Kept from being used again: somebody may want to look at it.
        self.queue.segments[segment].has_damage |= scan.bad_slots > 0;
        let torn = "had not been answered, dropped";
        let cases = [
            (RecoveryCase::TornGroup, scan.torn_groups, torn),
            (RecoveryCase::TornBody, scan.torn_bodies, torn),
            (RecoveryCase::DamagedSlot, scan.bad_slots, "cannot be read, the segment is kept"),
        ];
        for (case, count, what) in cases {
            if count > 0 {
                let of = if case == RecoveryCase::DamagedSlot { "slots" } else { "messages" };
                self.recovered.note(case, format!("{name}: {count} {of} {what}"));
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
            scan.torn_groups += 1;
            return;
        }
        for (slot, entry) in (first..).zip(entries) {
            let live = &self.queue.segments[segment];
            let name = live.names.get(usize::from(entry.domain));
            if !matches!(name, Some(Name::Domain(_))) {
                scan.bad_slots += 1;
                continue;
            }
            let word = live.state(slot);
            if word.state.is_settled() {
                continue;
            }
            self.hold(segment, slot, entry, word, RecoveryCase::DamagedGroup);
            let message_slot = slot + entry.distance;
            let mut handles = Vec::new();
            self.queue.enter_at(segment, slot, message_slot, &[entry.domain], &mut handles);
        }
    }

    fn hold(
        &mut self,
        segment: usize,
        slot: u32,
        entry: &Entry,
        word: StateWord,
        case: RecoveryCase,
    ) {
        let held = StateWord { state: State::Damaged, in_flight: false, ..word };
        self.queue.store_state(segment, slot, held);
        self.queue.counts.damaged += 1;
        self.held.push((case, entry.mid, entry.rid, (segment, slot)));
    }

    /// Who is held: known once it is known which copies count. What a copy has lost that does not
    /// count, the one that does has taken over.
    pub(super) fn tell_of_held(&mut self) {
        for (case, mid, rid, (segment, slot)) in std::mem::take(&mut self.held) {
            let text = match self.queue.segments[segment].state(slot).state {
                State::Poison => {
                    by_message(&mut self.recovered.poison, mid, rid);
                    format!("MID {mid} RID {rid}: as poison")
                }
                State::Damaged => {
                    by_message(&mut self.recovered.damaged, mid, rid);
                    format!("{}: MID {mid} RID {rid} held", self.name(segment))
                }
                State::Ready
                | State::Deferred
                | State::Delivered
                | State::Bounced
                | State::Discarded
                | State::Deleted
                | State::Moved => continue,
            };
            self.recovered.note(case, text);
        }
    }

    /// Nothing says that a message is damaged that cannot be read: it stays as it is until a start
    /// that can, and everything that it uses with it.
    fn leave(
        &mut self,
        segment: usize,
        first: u32,
        message: &MessageSlot,
        extents: Vec<ExtentPlace>,
        error: &io::Error,
    ) {
        let text = format!("{}: MID {}: {error}, left alone", self.name(segment), message.mid);
        self.recovered.note(RecoveryCase::Unreadable, text);
        self.queue.segments[segment].has_damage = true;
        self.unread.insert(self.queue.directory_of(segment));
        self.left.insert(message.mid);
        self.copies.push((segment, first, message.entries));
        if !extents.is_empty() {
            self.large.push((segment, first, message.entries, extents));
        }
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
            let live = &self.queue.segments[segment];
            let word = live.state(slot);
            unsettled |= !word.state.is_settled();
            match word.state {
                State::Ready | State::Deferred if !has_body => {
                    self.hold(segment, slot, entry, word, RecoveryCase::LostExtents);
                }
                State::Ready | State::Deferred => self.found_pending(segment, slot, entry, word),
                State::Poison => {
                    self.queue.counts.poison += 1;
                    self.held.push((RecoveryCase::Held, entry.mid, entry.rid, (segment, slot)));
                }
                State::Damaged if live.has_word(slot) => {
                    self.hold(segment, slot, entry, word, RecoveryCase::Held);
                }
                State::Damaged => {
                    self.hold(segment, slot, entry, word, RecoveryCase::DamagedWord);
                }
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
            let domains: Vec<u16> = entries.iter().map(|entry| entry.domain).collect();
            self.queue.enter_at(segment, first, message_slot, &domains, &mut handles);
        }
    }

    fn found_pending(&mut self, segment: usize, slot: u32, entry: &Entry, word: StateWord) {
        let latest = Wall(self.now.wall.0.saturating_add(self.queue.options.retry_ms_max));
        let mut next = StateWord { next_attempt: word.next_attempt.min(latest), ..word };
        self.queue.counts.pending += 1;
        if word.in_flight {
            next.in_flight = false;
            next.crashes = word.crashes.saturating_add(1);
            self.flights.push((entry.mid, entry.rid, (segment, slot, next)));
        } else if next != word {
            self.queue.store_state(segment, slot, next);
        }
    }

    /// What the flights that were found come to: known once it is known which copies count.
    pub(super) fn judge_flights(&mut self) {
        for (mid, rid, (segment, slot, mut next)) in std::mem::take(&mut self.flights) {
            if self.queue.segments[segment].state(slot).state.is_settled() {
                continue;
            }
            let (case, list, what) = if next.crashes >= limits::CRASHES_IN_FLIGHT_MAX {
                next.state = State::Poison;
                self.queue.counts.pending -= 1;
                self.queue.counts.poison += 1;
                (RecoveryCase::Poison, &mut self.recovered.poison, "held")
            } else {
                (RecoveryCase::InFlight, &mut self.recovered.uncertain, "uncertain")
            };
            by_message(list, mid, rid);
            self.recovered.note(case, format!("MID {mid} RID {rid} {what}"));
            self.queue.flights.push((segment, slot, next));
        }
    }
}
