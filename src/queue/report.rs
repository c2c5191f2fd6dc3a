//! What a start is given, and what it tells.
//!
//! Owns: the values that go into and come out of [`super::Queue::open`]. Never: the opening.
//!
//! Limits: at most 1,000 notes; more are counted.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::format::SpoolId;
use crate::mail::{Mid, Rid, ShardId};

/// Notes of one start at most; more are only counted.
const NOTES_MAX: usize = 1_000;

/// What a shard's queue is opened with; made by [`super::Spool::options`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The shard.
    pub shard: ShardId,
    /// The spool's id.
    pub spool: SpoolId,
    /// Octets of a message segment.
    pub segment_octets: u64,
    /// Most octets of all segments of this shard.
    pub octets_max: u64,
    /// Segments that stand ready behind the one in use, once a segment was filled.
    pub segments_ahead: usize,
    /// Messages of one commit at most.
    pub commit_messages_max: usize,
    /// Messages that wait for a commit are written past the page cache when they take so many
    /// octets of room, table and bodies: see [`super::Effect::Write`].
    pub direct_octets_min: u64,
    /// Octets of the page cache's largest piece: within so many of a table nothing is written past
    /// it.
    pub folio_octets: u64,
    /// Shard directories to read: its own first, then those of shards that are gone.
    pub directories: Vec<u8>,
    /// The spool's next free id block.
    pub next_block: Arc<AtomicU64>,
    /// Stored times further ahead than this are brought back to it: the clock was wrong.
    pub retry_ms_max: u64,
    /// The spool stands elsewhere than at the start before.
    pub is_copy: bool,
}

/// The cases, by name and label.
macro_rules! cases {
    ($($name:ident $label:literal,)*) => {
        /// The case of a finding; see the table of [`super::recovery`].
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[expect(missing_docs, reason = "the table of `recovery` says what each is")]
        pub enum RecoveryCase {
            $($name,)*
        }

        impl RecoveryCase {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The label, as the log shows it.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

cases! {
    Copied "copied",
    Adopted "adopted",
    Foreign "foreign",
    Duplicate "duplicate",
    Missing "missing",
    FutureVersion "future-version",
    OlderGeneration "older-generation",
    Truncated "truncated",
    Unreadable "unreadable",
    Unlocked "unlocked",
    TornGroup "torn-group",
    TornBody "torn-body",
    DamagedSlot "damaged-slot",
    DamagedGroup "damaged-group",
    DamagedWord "damaged-word",
    LostExtents "lost-extents",
    Held "held",
    Superseded "superseded",
    InFlight "in-flight",
    Poison "poison",
}

/// One line for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveryNote {
    /// The case.
    pub case: RecoveryCase,
    /// What and where.
    pub text: String,
}

impl RecoveryNote {
    /// Does the operator have to look at it? Not at the ordinary traces of a crash.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        match self.case {
            RecoveryCase::Superseded | RecoveryCase::InFlight | RecoveryCase::Adopted => false,
            RecoveryCase::Copied
            | RecoveryCase::Foreign
            | RecoveryCase::Duplicate
            | RecoveryCase::Missing
            | RecoveryCase::FutureVersion
            | RecoveryCase::OlderGeneration
            | RecoveryCase::Truncated
            | RecoveryCase::Unreadable
            | RecoveryCase::Unlocked
            | RecoveryCase::TornGroup
            | RecoveryCase::TornBody
            | RecoveryCase::DamagedSlot
            | RecoveryCase::DamagedGroup
            | RecoveryCase::DamagedWord
            | RecoveryCase::LostExtents
            | RecoveryCase::Held
            | RecoveryCase::Poison => true,
        }
    }
}

impl std::fmt::Display for RecoveryNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.case.label(), self.text)
    }
}

/// What a start found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Recovered {
    /// Recipients found: pending, poison and damaged together (the term "found at start").
    pub found_recipients: u64,
    /// Recipients whose delivery was under way, by message: each may arrive twice.
    pub uncertain: Vec<(Mid, Vec<Rid>)>,
    /// Recipients now held as poison, by message.
    pub poison: Vec<(Mid, Vec<Rid>)>,
    /// Recipients now held as damaged, by message.
    pub damaged: Vec<(Mid, Vec<Rid>)>,
    /// Slots that could not be read at all: each may have been a recipient.
    pub damaged_slots: u64,
    /// Groups dropped because their commit had not been acknowledged.
    pub dropped: u64,
    /// What happened, at most 1,000 lines.
    pub notes: Vec<RecoveryNote>,
    /// Lines that did not fit.
    pub notes_lost: u64,
}

impl Recovered {
    pub(super) fn note(&mut self, case: RecoveryCase, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(RecoveryNote { case, text });
        } else {
            self.notes_lost += 1;
        }
    }
}
