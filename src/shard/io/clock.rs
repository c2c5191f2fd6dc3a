//! Time and randomness of the data plane.
//!
//! Owns: the only readings of the clocks and of the system's random numbers. Never: a decision.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::mail::{Mono, Now, Wall, time::millis};

/// Both clocks, read together. The first reading of the process is monotonic 1.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the clock seam")]
pub fn now() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Mono(millis(start.elapsed()) + 1), wall: Wall(millis(wall)) }
}

/// A random number that a peer cannot guess: the keys of the standard library's hash maps, which
/// come from the system's generator.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}
