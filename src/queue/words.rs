//! State words: what becomes of recipients, one aligned store each.
//!
//! Owns: the moves between states and the counts. Never: the decision (`settle`), or a wait.

use super::early::is_early;
use super::format::{OutcomeWord, Slot, State, StateWord};
use super::{LastOutcome, Queue, index};
use crate::mail::{Accepted, Handle, PossiblyAccepted, Rid, Wall};

/// What a change came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a change that was not applied must not be counted"]
pub struct Change {
    /// False: the recipient is not (or no longer) in this state of affairs: settled or held
    /// meanwhile, by the operator or by damage. Count nothing.
    pub applied: bool,
    /// The handle has no unsettled recipient left: it is gone and may be given to others.
    pub handle_gone: bool,
    /// The message has no unsettled recipient left in any domain.
    pub message_gone: bool,
}

const NOT_APPLIED: Change = Change { applied: false, handle_gone: false, message_gone: false };

impl Queue {
    /// Ends the flights that the start has found, each counted as a crash: call it once what
    /// [`super::Recovered::uncertain`] says stands in the log, and before any delivery. Were it
    /// done earlier, a second crash could leave a delivery that is repeated and was never called
    /// uncertain.
    pub fn end_flights(&mut self) {
        for (segment, slot, word) in std::mem::take(&mut self.flights) {
            self.store_state(segment, slot, word);
        }
        self.write_words();
    }

    /// Writes the words that changed into their tables: for a kill -9 it has not happened before.
    /// To be called when a round of changes is over, and after [`Self::begin`] before the first
    /// octet of a body is sent.
    pub fn write_words(&mut self) {
        for segment in self.unwritten.drain(..) {
            self.segments[segment].write_words();
        }
    }

    /// Marks recipients as in flight, in force with [`Self::write_words`]. Gives how many were
    /// marked: pending, and not in flight yet.
    pub fn begin(&mut self, handle: Handle, rids: &[Rid]) -> usize {
        let handle = self.current(handle);
        if is_early(handle) {
            return self.early_begin(handle, rids);
        }
        let Some(record) = self.index.get(handle) else { return 0 };
        let mut begun = 0;
        for rid in rids {
            let Some((slot, word)) = self.pending_word(record, *rid) else { continue };
            if !word.in_flight {
                self.put(record, slot, StateWord { in_flight: true, ..word });
                begun += 1;
            }
        }
        begun
    }

    /// A next hop took it.
    pub fn delivered(&mut self, handle: Handle, rid: Rid, _proof: &Accepted) -> Change {
        self.settle(handle, rid, State::Delivered)
    }

    /// A next hop may have it, and the configuration counts that as delivered.
    pub fn possibly_delivered(
        &mut self,
        handle: Handle,
        rid: Rid,
        _proof: &PossiblyAccepted,
    ) -> Change {
        self.settle(handle, rid, State::Delivered)
    }

    /// Failed for good.
    pub fn bounced(&mut self, handle: Handle, rid: Rid, last: &LastOutcome) -> Change {
        let handle = self.on_disk(handle);
        if let Some(record) = self.index.get(handle)
            && let Some((slot, _)) = self.pending_word(record, rid)
        {
            self.put_outcome(record, slot, last);
        }
        self.settle(handle, rid, State::Bounced)
    }

    /// Discarded by its route.
    pub fn discarded(&mut self, handle: Handle, rid: Rid) -> Change {
        self.settle(handle, rid, State::Discarded)
    }

    /// Deleted by the operator: held recipients too.
    pub fn deleted(&mut self, handle: Handle, rid: Rid) -> Change {
        self.settle(handle, rid, State::Deleted)
    }

    /// Failed for now: attempts made in all, and when the next one is due.
    pub fn defer(
        &mut self,
        handle: Handle,
        rid: Rid,
        last: &LastOutcome,
        attempts: u32,
        next_attempt: Wall,
    ) -> Change {
        let handle = self.on_disk(handle);
        let Some(record) = self.index.get(handle) else { return NOT_APPLIED };
        let Some((slot, word)) = self.pending_word(record, rid) else { return NOT_APPLIED };
        self.put_outcome(record, slot, last);
        let word = StateWord {
            state: State::Deferred,
            in_flight: false,
            attempts: u16::try_from(attempts).unwrap_or(u16::MAX),
            next_attempt,
            ..word
        };
        self.put(record, slot, word);
        Change { applied: true, handle_gone: false, message_gone: false }
    }

    /// Out of flight, untried: as it was before [`Self::begin`].
    pub fn release(&mut self, handle: Handle, rid: Rid) -> Change {
        let handle = self.current(handle);
        if is_early(handle) {
            return self.early_release(handle, rid);
        }
        let Some(record) = self.index.get(handle) else { return NOT_APPLIED };
        let Some((slot, word)) = self.pending_word(record, rid) else { return NOT_APPLIED };
        if word.in_flight {
            self.put(record, slot, StateWord { in_flight: false, ..word });
        }
        Change { applied: word.in_flight, handle_gone: false, message_gone: false }
    }

    /// Holds a recipient whose octets are not what was written.
    pub(super) fn hold_damaged(&mut self, handle: Handle, rid: Rid) -> bool {
        let Some(record) = self.index.get(handle) else { return false };
        let Some((slot, word)) = self.pending_word(record, rid) else { return false };
        self.put(record, slot, StateWord { state: State::Damaged, in_flight: false, ..word });
        self.counts.pending -= 1;
        self.counts.damaged += 1;
        true
    }

    /// Another copy of the recipient counts, or says that it is settled.
    pub(super) fn superseded(&mut self, handle: Handle, rid: Rid) -> bool {
        self.settle(handle, rid, State::Moved).applied
    }

    /// A handle whose message is on disk: deferral and bounce wait for that.
    fn on_disk(&self, handle: Handle) -> Handle {
        assert!(!self.is_uncommitted(handle), "deferred or bounced before its commit");
        self.current(handle)
    }

    pub(super) fn settle(&mut self, handle: Handle, rid: Rid, state: State) -> Change {
        let handle = self.current(handle);
        if is_early(handle) {
            return self.early_settle(handle, rid, state);
        }
        let Some(record) = self.index.get(handle) else { return NOT_APPLIED };
        let Some(slot) = self.slot_of(record, rid) else { return NOT_APPLIED };
        let segment = usize::from(record.segment);
        let word = self.segments[segment].state(slot);
        let counted = match word.state {
            State::Ready | State::Deferred => &mut self.counts.pending,
            State::Poison if matches!(state, State::Deleted | State::Moved) => {
                &mut self.counts.poison
            }
            State::Damaged if matches!(state, State::Deleted | State::Moved) => {
                &mut self.counts.damaged
            }
            State::Poison | State::Damaged | State::Moved => return NOT_APPLIED,
            State::Delivered | State::Bounced | State::Discarded | State::Deleted => {
                return NOT_APPLIED;
            }
        };
        *counted -= 1;
        self.put(record, slot, StateWord { state, in_flight: false, ..word });
        self.segments[segment].live -= 1;
        let handle_gone = self.index.settle(handle);
        let just = Some(slot);
        let message_gone =
            handle_gone && self.settle_message(segment, record.message_slot, state, just);
        Change { applied: true, handle_gone, message_gone }
    }

    /// Is all of a message settled? Then its extents become free with the next sync of the words
    /// that say so: not before, or a power cut could leave a live message without its body.
    /// `last` is the state that settled the last of it, `just` the slot if it was stored just now.
    pub(super) fn settle_message(
        &mut self,
        segment: usize,
        message_slot: u32,
        last: State,
        just: Option<u32>,
    ) -> bool {
        let now = self.now;
        let live = &mut self.segments[segment];
        let Ok(Slot::Message(message)) = live.slot(message_slot) else { return false };
        let first = message_slot + 1 - message.group_slots();
        let extents = first + message.entries;
        let mut is_moved = false;
        for slot in first..extents {
            let state = if just == Some(slot) { last } else { live.state(slot).state };
            if !state.is_settled() {
                return false;
            }
            is_moved |= state == State::Moved;
        }
        for slot in extents..message_slot {
            let Ok(Slot::Extents(part)) = live.slot(slot) else { continue };
            // Its extents went over to the copy, but for those that it held beside a copy.
            let beside = last != State::Moved && self.extents_free.are_shared(&part.places);
            if !is_moved || beside {
                live.extents_settled.extend(part.places);
                // Without a change of words too there is a sync to wait for.
                live.dirty_since.get_or_insert(now);
            }
        }
        true
    }

    fn pending_word(&self, record: index::Record, rid: Rid) -> Option<(u32, StateWord)> {
        let slot = self.slot_of(record, rid)?;
        let word = self.segments[usize::from(record.segment)].state(slot);
        word.state.is_pending().then_some((slot, word))
    }

    fn put(&mut self, record: index::Record, slot: u32, word: StateWord) {
        let segment = usize::from(record.segment);
        self.mirror(segment, slot, Some(word), None);
        self.store_state(segment, slot, word);
    }

    fn put_outcome(&mut self, record: index::Record, slot: u32, last: &LastOutcome) {
        let number = usize::from(record.segment);
        let segment = &mut self.segments[number];
        let host = last.host.as_ref().and_then(|host| segment.host_index(host));
        let word =
            OutcomeWord { code: last.code, status: last.status, host, warnings: last.warnings };
        self.mirror(number, slot, None, Some(word));
        self.store_outcome(number, slot, word);
    }

    pub(super) fn store_state(&mut self, segment: usize, slot: u32, word: StateWord) {
        self.segments[segment].store_state(slot, word, self.now);
        self.note_unwritten(segment);
    }

    /// Stored before the state that it explains.
    pub(super) fn store_outcome(&mut self, segment: usize, slot: u32, word: OutcomeWord) {
        self.segments[segment].store_outcome(slot, word, self.now);
        self.note_unwritten(segment);
    }

    fn note_unwritten(&mut self, segment: usize) {
        // One or two at a time: what is settled together mostly came together.
        if !self.unwritten.contains(&segment) {
            self.unwritten.push(segment);
        }
    }
}
