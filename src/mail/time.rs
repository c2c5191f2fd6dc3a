//! Time as an argument: the pure folders never read a clock.
//!
//! Owns: a monotonic and a wall-clock instant, both in milliseconds. Never: a clock (`shard/io`).

use std::ops::Add;
use std::time::Duration;

/// Milliseconds on the monotonic clock since the process started: for timers and deadlines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Mono(pub u64);

/// Milliseconds since 1970-01-01 UTC: for log lines, headers and what is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Wall(pub u64);

/// One reading of both clocks, taken together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// For what people and the disk see.
    pub wall: Wall,
}

impl Mono {
    /// Milliseconds from `earlier` to `self`; 0 when `earlier` is later.
    #[must_use]
    pub fn since_ms(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Wall {
    /// Milliseconds from `earlier` to `self`; 0 when `earlier` is later.
    #[must_use]
    pub fn since_ms(self, earlier: Wall) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Now {
    /// Both clocks moved on by `ms` milliseconds: virtual time for tests and forecasts.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Now {
        Now { mono: Mono(self.mono.0 + ms), wall: Wall(self.wall.0 + ms) }
    }
}

/// Whole milliseconds of a duration, saturating.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, duration: Duration) -> Mono {
        Mono(self.0.saturating_add(millis(duration)))
    }
}

impl Add<Duration> for Wall {
    type Output = Wall;
    fn add(self, duration: Duration) -> Wall {
        Wall(self.0.saturating_add(millis(duration)))
    }
}
