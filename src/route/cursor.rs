//! The round robin between equal hosts: one counter, no lock.
//!
//! Owns: who is next. Never: which hosts are up (`host`), or what a full lane means (`plan`).
//! Every turn is handed out exactly once, over all shards, so hosts that are all up differ by at
//! most one turn at any moment.
//!
//! Limits: 2^64 turns; at ten million a second they last for 58,000 years.

use crossbeam_utils::CachePadded;

use super::atomic::{AtomicU64, Ordering};

/// The turns of one route and priority group, shared by all shards.
#[derive(Debug)]
pub struct Cursor {
    /// A line of its own: every delivery of a busy route writes here.
    next: CachePadded<AtomicU64>,
}

impl Cursor {
    /// A cursor whose first turn is 0.
    #[must_use]
    pub fn new() -> Self {
        Self { next: CachePadded::new(AtomicU64::new(0)) }
    }

    /// Takes `turns` turns in one step and gives the first; the others follow it without a gap.
    /// Take only as many as there are deliveries in hand, and bind each to its turn at once: a
    /// turn that is taken and not used is a turn its host has lost.
    pub fn take(&self, turns: u64) -> u64 {
        // Relaxed: an addition is one step in any order, and no other memory depends on it.
        self.next.fetch_add(turns, Ordering::Relaxed)
    }

    /// The turn that the next delivery would take, without taking it.
    #[must_use]
    pub fn peek(&self) -> u64 {
        // Relaxed: a forecast for people; it may be old when it is read.
        self.next.load(Ordering::Relaxed)
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::new()
    }
}
