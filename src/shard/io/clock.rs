//! Time and randomness of the data plane.
//!
//! Owns: the only readings of the clocks and of the system's random numbers. Never: a decision.
//!
//! While a task of a shard is polled the clock stands still: it is read at the first question and
//! not again. A poll takes microseconds, one message asks for the time some forty times.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use crate::mail::{Mono, Now, Wall};

/// What [`now`] does on this thread.
#[derive(Clone, Copy)]
enum Clock {
    /// It reads the clocks at each call.
    Runs,
    /// A poll has begun: the next reading is kept.
    Unread,
    /// It gives this reading.
    Stands(Now),
}

thread_local! {
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::Runs) };
}

/// Calls `poll`, during which the clock stands still.
pub(super) fn standing<T>(poll: impl FnOnce() -> T) -> T {
    CLOCK.set(Clock::Unread);
    let polled = poll();
    CLOCK.set(Clock::Runs);
    polled
}

/// Both clocks, read together, with the grain of the kernel's tick (1 to 4 ms): the coarse clocks
/// cost a few nanoseconds each. The first reading of the process is monotonic 1.
#[must_use]
pub fn now() -> Now {
    match CLOCK.get() {
        Clock::Runs => read(),
        Clock::Unread => {
            let now = read();
            CLOCK.set(Clock::Stands(now));
            now
        }
        Clock::Stands(now) => now,
    }
}

fn read() -> Now {
    static START_MS: OnceLock<u64> = OnceLock::new();
    let mono = since(&START_MS, || coarse_ms(ClockId::MonotonicCoarse));
    Now { mono, wall: Wall(coarse_ms(ClockId::RealtimeCoarse)) }
}

/// Monotonic 1 is the start, which the first thread that asks sets. It is set before the reading
/// that counts from it: of two threads that ask for the first time together, one may be late.
fn since(start_ms: &OnceLock<u64>, read_ms: impl Fn() -> u64) -> Mono {
    let start_ms = *start_ms.get_or_init(&read_ms);
    Mono(read_ms().saturating_sub(start_ms) + 1)
}

fn coarse_ms(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    // A wall clock before 1970 reads as 1970.
    let ms = time.tv_sec * 1000 + time.tv_nsec / 1_000_000;
    u64::try_from(ms).unwrap_or(0)
}

/// The monotonic clock in microseconds: for latencies, which [`now`] is too coarse for.
#[must_use]
pub fn now_us() -> u64 {
    u64::try_from(since_start().as_micros()).unwrap_or(u64::MAX)
}

#[allow(clippy::disallowed_methods, reason = "this is the clock seam")]
pub(super) fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A random number that a peer cannot guess: the keys of the standard library's hash maps, which
/// come from the system's generator.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_while_a_task_is_polled_and_runs_again_behind_it() {
        let tick = Duration::from_millis(20);
        let (before, within) = standing(|| {
            let before = now();
            std::thread::sleep(tick);
            (before, now())
        });
        assert_eq!(before, within);
        assert!(now().mono.0 >= before.mono.0 + 10);
        let later = standing(now);
        assert!(later.mono.0 >= before.mono.0 + 10);
    }

    #[test]
    fn two_threads_that_ask_first_together_both_get_a_time() {
        let clock = std::cell::Cell::new(5);
        let ticking = || clock.replace(clock.get() + 1);
        assert_eq!(since(&OnceLock::new(), ticking), Mono(2), "the start is read first");
        assert_eq!(since(&OnceLock::from(9), || 7), Mono(1), "never before the start");
    }
}
