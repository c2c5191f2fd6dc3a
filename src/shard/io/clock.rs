//! Time and randomness of the data plane.
//!
//! Owns: the only readings of the clocks and of the system's random numbers. Never: a decision.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::mail::{Mono, Now, Wall, time::millis};

/// Both clocks, read together. The first reading of the process is monotonic 1.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the clock seam")]
pub fn now() -> Now {
    let since_start = since_start();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Mono(millis(since_start) + 1), wall: Wall(millis(wall)) }
}

/// The monotonic clock in microseconds: for latencies, which [`now`] is too coarse for.
#[must_use]
pub fn now_us() -> u64 {
    u64::try_from(since_start().as_micros()).unwrap_or(u64::MAX)
}

#[allow(clippy::disallowed_methods, reason = "this is the clock seam")]
fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A random number that a peer cannot guess: the keys of the standard library's hash maps, which
/// come from the system's generator.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}
