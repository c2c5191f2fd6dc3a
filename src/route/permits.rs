//! Permits for connections: how many there may be at once, and which shards wait for one.
//!
//! Owns: the count, the limit and the set of waiting shards. Never: sleeping or waking; a shard
//! is told whom to ring, and rings through its own doorbell.
//!
//! The protocol, which `tests/loom.rs` proves to lose no wake-up:
//!
//! * *Acquire*: try; if there is none, set our own bit, try again, sleep.
//! * *Release*: return the permit, take the next waiting bit, ring that shard.
//! * *Rung*: try again, or [`Permits::stop_waiting`], which passes the ring on. A ring that is
//!   simply dropped leaves a permit unused while others sleep.
//! * While [`Permits::wanted`], holders give idle permits back at once and busy ones soon, and
//!   a lane that gave one back for that reason does not ask again for a while: permits are not
//!   handed over, so it would win them back from the shard it has just rung. A permit comes back
//!   only a moment later, when the peer has closed; whoever gives one back says so before
//!   ([`Permits::comes_back`]), or all would.
//!
//! Limits: [`limits::SHARDS_MAX`] shards. A lowered limit takes nothing away: the count sinks as
//! permits come back.

use crossbeam_utils::CachePadded;

use super::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::limits;
use crate::mail::{Mono, ShardId};

/// A shard that waits, waits for all its lanes: so many permits may be on their way back for it.
const RETURNS_PER_SHARD: u32 = 4;

/// A permit that did not come back by then, in milliseconds, is waited for no more: its peer is far
/// or does not close.
const RETURN_MS_MAX: u64 = 200;

/// The right to one connection. Give it back with [`Permits::release`] of the same [`Permits`],
/// once the peer's end of file was read; dropping it loses it for good.
#[must_use = "a permit that is dropped is lost; release it"]
#[derive(Debug)]
pub struct Permit(());

/// A permit, and the shard to ring because of the way it was got.
#[must_use = "holds a permit, and perhaps a shard to ring"]
#[derive(Debug)]
pub struct Grant {
    /// The permit.
    pub permit: Permit,
    /// Ring this shard: a ring meant for us has to go on.
    pub ring: Option<ShardId>,
}

/// Shards to ring, all at once.
#[must_use = "these shards sleep until they are rung"]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waiters(u64);

impl Iterator for Waiters {
    type Item = ShardId;

    fn next(&mut self) -> Option<ShardId> {
        let bit = (self.0 != 0).then(|| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(ShardId(u8::try_from(bit).unwrap_or(u8::MAX)))
    }
}

/// The permits of one host or of one destination, shared by all shards.
#[derive(Debug)]
pub struct Permits {
    taken: CachePadded<AtomicU32>,
    limit: AtomicU32,
    /// One bit for each shard that sleeps, or is about to.
    waiting: AtomicU64,
    /// Permits on their way back: `time << 16 | count`, the time in milliseconds of the first one
    /// that is waited for.
    returns: AtomicU64,
    /// The shard that was rung last; the search for the next one begins behind it.
    rung_last: AtomicU32,
}

impl Permits {
    /// `limit` permits, none taken.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            taken: CachePadded::new(AtomicU32::new(0)),
            limit: AtomicU32::new(limit),
            waiting: AtomicU64::new(0),
            returns: AtomicU64::new(0),
            rung_last: AtomicU32::new(0),
        }
    }

    /// A permit, or a place among the waiting: after `None` a ring will come.
    #[must_use = "holds a permit"]
    pub fn acquire(&self, shard: ShardId) -> Option<Grant> {
        if let Some(permit) = self.try_acquire() {
            return Some(Grant { permit, ring: None });
        }
        let bit = bit_of(shard);
        // AcqRel: whoever takes the bit sees what we did before; a limit that was raised before
        // the bits were last collected is seen by us.
        self.waiting.fetch_or(bit, Ordering::AcqRel);
        // SeqCst fence, paired with the one in `release`: either we see the permit that came
        // back, or its releaser sees our bit. Without both fences each could miss the other.
        fence(Ordering::SeqCst);
        let permit = self.try_acquire()?;
        // AcqRel: as above. A bit that is gone means that a ring is on its way to us, for a
        // permit that another shard may need now.
        let rung = self.waiting.fetch_and(!bit, Ordering::AcqRel) & bit == 0;
        Some(Grant { permit, ring: if rung { self.ring_if_free() } else { None } })
    }

    /// A permit if there is one now; never waits, sets no bit.
    #[must_use = "holds a permit"]
    pub fn try_acquire(&self) -> Option<Permit> {
        // Relaxed load: the compare-exchange below decides.
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            // Relaxed: the limit is a number of its own; `set_limit` rings all who missed it.
            if taken >= self.limit.load(Ordering::Relaxed) {
                return None;
            }
            // Acquire: what the last holder did is over before we begin. Relaxed on failure:
            // only the number is used.
            match self.taken.compare_exchange_weak(
                taken,
                taken + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Permit(())),
                Err(now) => taken = now,
            }
        }
    }

    /// Returns a permit; the shard it names must be rung.
    #[must_use = "this shard sleeps until it is rung"]
    pub fn release(&self, permit: Permit) -> Option<ShardId> {
        let Permit(()) = permit;
        // Relaxed, both: see `wanted`. Most permits come back when nobody waits.
        let returns = self.returns.load(Ordering::Relaxed);
        if returns & 0xFFFF > 0 {
            self.returns.store(returns - 1, Ordering::Relaxed);
        }
        // Release: our use of the permit is over before another one begins.
        let before = self.taken.fetch_sub(1, Ordering::Release);
        assert!(before > 0, "a permit came back that was never taken");
        // SeqCst fence: see `acquire`.
        fence(Ordering::SeqCst);
        self.take_waiter()
    }

    /// The shard no longer needs a permit, or was rung and has no use for it: its bit is cleared
    /// and, if a permit is free, the next waiting shard must be rung.
    #[must_use = "this shard sleeps until it is rung"]
    pub fn stop_waiting(&self, shard: ShardId) -> Option<ShardId> {
        // AcqRel: reading the cleared bit brings us the release that cleared it.
        self.waiting.fetch_and(!bit_of(shard), Ordering::AcqRel);
        self.ring_if_free()
    }

    /// Changes the limit; all who waited are given back to be rung, for any of them may find
    /// room now.
    pub fn set_limit(&self, limit: u32) -> Waiters {
        // Relaxed store, SeqCst fence: a shard whose bit the swap below misses sets it later,
        // and then sees this limit through the swap.
        self.limit.store(limit, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // AcqRel: see `acquire`.
        Waiters(self.waiting.swap(0, Ordering::AcqRel))
    }

    /// Lowers the limit. Nobody is rung: those who wait find no more room than before.
    pub fn lower_limit(&self, limit: u32) {
        // Relaxed: a shard that still sees the old limit takes a permit a moment before the change.
        self.limit.fetch_min(limit, Ordering::Relaxed);
    }

    /// True while any shard waits.
    #[must_use]
    pub fn waiting(&self) -> bool {
        // Relaxed, here and below: hints that are read again soon.
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// True while shards wait, and few permits are on their way back for each of them: holders
    /// give back what they can spare.
    #[must_use]
    pub fn wanted(&self, now: Mono) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed).count_ones();
        waiting > 0 && self.returning(now).1 < u64::from(waiting * RETURNS_PER_SHARD)
    }

    /// A holder is about to give its permit back because it is wanted. Two that say so at once may
    /// count as one.
    pub fn comes_back(&self, now: Mono) {
        let (since, count) = self.returning(now);
        self.returns.store(since << 16 | (count + 1).min(0xFFFF), Ordering::Relaxed);
    }

    /// Since when, and how many.
    fn returning(&self, now: Mono) -> (u64, u64) {
        let word = self.returns.load(Ordering::Relaxed);
        let (since, count) = (word >> 16, word & 0xFFFF);
        let is_recent = count > 0 && now.0.saturating_sub(since) < RETURN_MS_MAX;
        if is_recent { (since, count) } else { (now.0, 0) }
    }

    /// Does this shard wait, and has not been rung since?
    #[must_use]
    pub fn is_waiting(&self, shard: ShardId) -> bool {
        // Relaxed: only the shard itself sets its bit.
        self.waiting.load(Ordering::Relaxed) & bit_of(shard) != 0
    }

    /// Permits in use.
    #[must_use]
    pub fn taken(&self) -> u32 {
        // Relaxed: for people and metrics, and for a guess.
        self.taken.load(Ordering::Relaxed)
    }

    /// Are so few taken that one more than needed, for a moment, is missed by nobody? Where many
    /// hosts share few permits it would be taken from another lane, which gives its own back and
    /// waits.
    #[must_use]
    pub fn are_plenty(&self) -> bool {
        self.taken() < self.limit() / 4
    }

    /// Most permits in use at a time.
    #[must_use]
    pub fn limit(&self) -> u32 {
        // Relaxed: for people, metrics, and to see whether it has to change.
        self.limit.load(Ordering::Relaxed)
    }

    fn ring_if_free(&self) -> Option<ShardId> {
        // SeqCst fence: see `acquire`; the count read here is not older than the bit we cleared.
        fence(Ordering::SeqCst);
        if self.taken() < self.limit() { self.take_waiter() } else { None }
    }

    /// Takes one bit out of the waiting set, going round from the shard that was rung last.
    fn take_waiter(&self) -> Option<ShardId> {
        loop {
            // Relaxed: the fence before each call orders this load.
            let waiting = self.waiting.load(Ordering::Relaxed);
            if waiting == 0 {
                return None;
            }
            // Relaxed: only fairness depends on it.
            let from = (self.rung_last.load(Ordering::Relaxed) + 1) % u64::BITS;
            let shard = (waiting.rotate_right(from).trailing_zeros() + from) % u64::BITS;
            let bit = 1_u64 << shard;
            // AcqRel: the rung shard's next look at the set sees what we did.
            if self.waiting.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                self.rung_last.store(shard, Ordering::Relaxed);
                return Some(ShardId(u8::try_from(shard).unwrap_or(u8::MAX)));
            }
        }
    }
}

fn bit_of(shard: ShardId) -> u64 {
    assert!(usize::from(shard.0) < limits::SHARDS_MAX, "shard {shard} has no bit");
    1 << shard.0
}
