//! The two words of an entry that change: state and last outcome.
//!
//! Owns: their encoding; the layout is drawn in the parent's table. Never: the moves between
//! states.

use super::{ABSENT, ATTEMPTS_MAX, TablePlace, WARNINGS_MAX, placed_checksum};
use crate::mail::{Enhanced, Wall};

const TIME_UNIT_MS: u64 = 125;
const TIME_BITS: u64 = (1 << 36) - 1;

/// What has become of a recipient.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// May be tried at once.
    Ready,
    /// Waits for its next attempt.
    Deferred,
    /// A next hop took it.
    Delivered,
    /// Failed for good.
    Bounced,
    /// Discarded by its route.
    Discarded,
    /// Deleted by the operator, or withdrawn because its commit failed.
    Deleted,
    /// Held: it was in flight at too many crashes.
    Poison,
    /// Held: its octets on disk are not what was written.
    Damaged,
    /// A later copy stands elsewhere.
    Moved,
}

impl State {
    /// Still to be delivered.
    #[must_use]
    pub fn is_pending(self) -> bool {
        match self {
            Self::Ready | Self::Deferred => true,
            Self::Delivered | Self::Bounced | Self::Discarded | Self::Deleted => false,
            Self::Poison | Self::Damaged | Self::Moved => false,
        }
    }

    /// Kept, listed, and never sent.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, Self::Poison | Self::Damaged)
    }

    /// Done with: its octets may go.
    #[must_use]
    pub fn is_settled(self) -> bool {
        !self.is_pending() && !self.is_held()
    }

    fn code(self) -> u64 {
        match self {
            Self::Ready => 1,
            Self::Deferred => 2,
            Self::Delivered => 3,
            Self::Bounced => 4,
            Self::Discarded => 5,
            Self::Deleted => 6,
            Self::Poison => 7,
            Self::Damaged => 8,
            Self::Moved => 9,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Ready,
            2 => Self::Deferred,
            3 => Self::Delivered,
            4 => Self::Bounced,
            5 => Self::Discarded,
            6 => Self::Deleted,
            7 => Self::Poison,
            8 => Self::Damaged,
            9 => Self::Moved,
            _ => return None,
        })
    }
}

/// The state word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateWord {
    /// What has become of it.
    pub state: State,
    /// A delivery of it is under way.
    pub in_flight: bool,
    /// Crashes while it was in flight.
    pub crashes: u8,
    /// Attempts made.
    pub attempts: u16,
    /// When it may be tried next; kept in steps of 125 ms, rounded up.
    pub next_attempt: Wall,
}

impl StateWord {
    /// The word of a recipient that was never tried.
    pub const READY: Self = Self {
        state: State::Ready,
        in_flight: false,
        crashes: 0,
        attempts: 0,
        next_attempt: Wall(0),
    };

    /// The word for slot `slot` of the table at `place`.
    #[must_use]
    pub fn encode(self, place: TablePlace, slot: u32) -> u64 {
        let time = self.next_attempt.0.div_ceil(TIME_UNIT_MS).min(TIME_BITS);
        let word = self.state.code() << 8
            | u64::from(self.in_flight) << 12
            | u64::from(self.crashes.min(7)) << 13
            | u64::from(self.attempts.min(ATTEMPTS_MAX)) << 16
            | time << 28;
        word | word_check(word, place, slot)
    }

    /// Reads the word; `None`: it is not what was stored.
    #[must_use]
    pub fn decode(word: u64, place: TablePlace, slot: u32) -> Option<Self> {
        let bare = word & !0xff;
        if word_check(bare, place, slot) != word & 0xff {
            return None;
        }
        Some(Self {
            state: State::from_code(bits(word, 8, 4))?,
            in_flight: bits(word, 12, 1) == 1,
            crashes: u8::try_from(bits(word, 13, 3)).ok()?,
            attempts: u16::try_from(bits(word, 16, 12)).ok()?,
            next_attempt: Wall(bits(word, 28, 36) * TIME_UNIT_MS),
        })
    }
}

/// The last outcome word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutcomeWord {
    /// Reply code, 0 without a reply.
    pub code: u16,
    /// Enhanced status.
    pub status: Enhanced,
    /// Index into the segment's hosts.
    pub host: Option<u16>,
    /// Delay warnings sent.
    pub warnings: u8,
}

impl OutcomeWord {
    /// The word for slot `slot` of the table at `place`.
    #[must_use]
    pub fn encode(self, place: TablePlace, slot: u32) -> u64 {
        let word = u64::from(self.code.min(999)) << 8
            | u64::from(self.status.class.min(7)) << 18
            | u64::from(self.status.subject.min(999)) << 21
            | u64::from(self.status.detail.min(999)) << 31
            | u64::from(self.host.unwrap_or(ABSENT)) << 41
            | u64::from(self.warnings.min(WARNINGS_MAX)) << 57
            | 1 << 61;
        word | word_check(word, place, slot)
    }

    /// Reads the word; `None`: there was no outcome yet, or it is not what was stored.
    #[must_use]
    pub fn decode(word: u64, place: TablePlace, slot: u32) -> Option<Self> {
        let bare = word & !0xff;
        if bits(word, 61, 1) == 0 || word_check(bare, place, slot) != word & 0xff {
            return None;
        }
        let small = |at, width| u16::try_from(bits(word, at, width)).unwrap_or(ABSENT);
        let status =
            Enhanced::new(bits(word, 18, 3).to_le_bytes()[0], small(21, 10), small(31, 10));
        let host = Some(small(41, 16)).filter(|host| *host != ABSENT);
        Some(Self {
            code: small(8, 10),
            status,
            host,
            warnings: bits(word, 57, 4).to_le_bytes()[0],
        })
    }
}

fn bits(word: u64, at: u32, width: u32) -> u64 {
    word >> at & ((1 << width) - 1)
}

fn word_check(word: u64, place: TablePlace, slot: u32) -> u64 {
    let sum = placed_checksum(place.seed, slot.to_le_bytes(), &word.to_le_bytes());
    u64::from(sum & 0xff)
}
