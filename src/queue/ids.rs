//! Ids that are never used twice, whatever crashes.
//!
//! Owns: blocks of ids that a synced header names as reserved. Never: an id outside of them.
//!
//! Limits: [`limits::ID_BLOCK`] ids a block; each kind keeps one block in hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits;
use crate::mail::{Dcid, Icid, Mid};

/// The allocator of a shard. `None` from it means that the disk did not take the reservation of
/// the next block for the time of a whole block: treat it as a full queue.
pub struct Ids {
    next_block: Arc<AtomicU64>,
    kinds: [Kind; 3],
    /// Largest block of this shard, to be written with every header.
    block_max: u64,
    /// Blocks that stand in no synced header yet; the largest one.
    unreserved: Vec<u64>,
    /// Reserved by a sync, for the kind that needs one first.
    spare: Vec<u64>,
}

#[derive(Clone, Copy, Default)]
struct Kind {
    next: u64,
    end: u64,
}

/// Blocks that are held in reserve for the three kinds together.
const SPARE_BLOCKS: usize = 3;

impl Ids {
    pub(super) fn new(next_block: Arc<AtomicU64>, block_max: u64) -> Self {
        Self {
            next_block,
            kinds: [Kind::default(); 3],
            block_max,
            unreserved: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// The next message id.
    pub fn next_mid(&mut self) -> Option<Mid> {
        self.next(0).map(Mid)
    }

    /// The next injection connection id.
    pub fn next_icid(&mut self) -> Option<Icid> {
        self.next(1).map(Icid)
    }

    /// The next delivery connection id.
    pub fn next_dcid(&mut self) -> Option<Dcid> {
        self.next(2).map(Dcid)
    }

    /// True when blocks should be reserved: a header must be written and synced.
    pub(super) fn wants_blocks(&self) -> bool {
        self.unreserved.is_empty() && self.spare.len() < SPARE_BLOCKS
    }

    /// Takes blocks from the spool's counter; they count when a header with
    /// [`Self::block_max`] is synced and [`Self::reserved`] was called.
    pub(super) fn take_blocks(&mut self, blocks: usize) {
        for _ in 0..blocks {
            // Relaxed: each block goes to one shard; nothing else is published with it.
            let block = self.next_block.fetch_add(1, Ordering::Relaxed);
            self.block_max = self.block_max.max(block);
            self.unreserved.push(block);
        }
    }

    /// What the next header must say.
    pub(super) fn block_max(&self) -> u64 {
        self.block_max
    }

    /// A header that says `block_max` was synced.
    pub(super) fn reserved(&mut self, block_max: u64) {
        let spare = &mut self.spare;
        self.unreserved.retain(|block| {
            let durable = *block <= block_max;
            if durable {
                spare.push(*block);
            }
            !durable
        });
    }

    fn next(&mut self, kind: usize) -> Option<u64> {
        if self.kinds[kind].next == self.kinds[kind].end {
            if self.spare.is_empty() {
                return None;
            }
            let block = self.spare.remove(0);
            let next = block.checked_mul(limits::ID_BLOCK)?;
            self.kinds[kind] = Kind { next, end: next + limits::ID_BLOCK };
        }
        let id = self.kinds[kind].next;
        self.kinds[kind].next += 1;
        Some(id)
    }
}
