//! What a session keeps of a message that comes in, for the caller's account of memory.
//!
//! Owns: the octets held, and those that the next input may add. Never: how much there may be in
//! all, or who waits: that is the caller's to say.
//!
//! A message up to [`limits::INLINE_MESSAGE_OCTETS_MAX`] grows as it comes. A larger one, or one
//! that is declared to be larger, is to get the room for its whole size at once
//! ([`Wanted::whole`]), so that it never has to wait with a part of it in memory.

use super::{Session, State, Transaction};
use crate::limits;
use crate::mail::Mono;

/// A message may be larger than its SIZE, which is an estimate (RFC 1870 6.1), by this much; our
/// own header field comes to it too.
const ESTIMATE_OCTETS: usize = 64 * 1024;

/// What the octets that have come in would add to what is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Octets held when they are taken.
    pub octets: u64,
    /// Octets that the message may come to, if it is a large one.
    pub whole: Option<u64>,
    /// They belong to a message whose bytes come in and are kept. Between messages nothing is
    /// lost by leaving them unread.
    pub in_message: bool,
}

impl Session {
    /// Octets held of the message that comes in, its envelope with it.
    #[must_use]
    pub fn held_octets(&self) -> usize {
        self.transaction.as_ref().map_or(0, |t| t.data.held() + t.envelope_octets)
    }

    /// What taking `input` more octets wants; `None`: nothing of them will be kept, or nothing
    /// can be gained by waiting.
    #[must_use]
    pub fn memory_wanted(&self, input: usize) -> Option<Wanted> {
        let Some(transaction) = &self.transaction else {
            let octets = as_u64(input);
            return (self.state == State::Command && !self.shutdown).then_some(Wanted {
                octets,
                whole: None,
                in_message: false,
            });
        };
        let receives = matches!(self.state, State::Data | State::Chunk { .. });
        if !receives || !transaction.is_stored() {
            return None;
        }
        let octets_max = usize::try_from(self.settings.message_octets_max).unwrap_or(usize::MAX);
        let octets_max = octets_max.saturating_add(ESTIMATE_OCTETS);
        let length = transaction.data.len().saturating_add(input);
        let declared = transaction.size_declared.and_then(|size| usize::try_from(size).ok());
        let declared = declared.map(|size| size.saturating_add(ESTIMATE_OCTETS));
        let whole = declared.filter(|size| length <= *size).unwrap_or(octets_max).max(length);
        let large = as_u64(length.max(transaction.size_declared.map_or(0, as_usize)))
            > limits::INLINE_MESSAGE_OCTETS_MAX;
        // A buffer that is full becomes twice as large.
        let capacity = transaction.data.held();
        let buffer = if length <= capacity { capacity } else { length.max(2 * capacity) };
        let envelope = transaction.envelope_octets;
        Some(Wanted {
            octets: as_u64(if large { length } else { buffer } + envelope),
            whole: large.then_some(as_u64(whole + envelope)),
            in_message: true,
        })
    }

    /// The message that comes in has `octets` octets for itself: its buffer grows no more.
    pub fn make_room(&mut self, octets: u64) {
        if let Some(transaction) = &mut self.transaction {
            let buffer = as_usize(octets).saturating_sub(transaction.envelope_octets);
            transaction.data.reserve_exact(buffer.saturating_sub(transaction.data.len()));
        }
    }

    /// Nothing was read from `since` to `now` because there was no memory: the client's time
    /// stood still.
    pub fn handle_pause(&mut self, since: Mono, now: Mono) {
        self.heard = now;
        if let Some(intake) = self.transaction.as_mut().and_then(|t| t.intake.as_mut()) {
            intake.began.0 += now.since_ms(since);
        }
    }
}

impl Transaction {
    /// Octets of the message and its envelope.
    #[must_use]
    pub fn octets(&self) -> u64 {
        as_u64(self.data.len() + self.envelope_octets)
    }
}

fn as_u64(octets: usize) -> u64 {
    octets as u64
}

fn as_usize(octets: u64) -> usize {
    usize::try_from(octets).unwrap_or(usize::MAX)
}
