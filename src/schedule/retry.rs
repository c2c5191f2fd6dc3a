//! The bounce profile's arithmetic: when the next attempt is due, and when there is none.
//!
//! Owns: growth of the wait, expiry by count and by age. Never: timers, clocks, reports.
//!
//! Two rules, as the ESA has them. By count: the failed retry after which none is left expires
//! at once. By age: a delivery whose time in queue is over expires immediately before its next
//! attempt; mail that is not attempted because it is ready or waits for hosts expires at
//! [`expires_at`], unless it is from before the start ([`super::clock`]). So a deferred delivery
//! is not cut short between two attempts, and none is attempted past its age.
//!
//! Limits: all arithmetic saturates. Times are those of [`super::QueueClock`], which does not
//! jump; [`due_on`] bounds what a time stored under a wrong clock can do to a timer.

use crate::mail::time::millis;
use crate::mail::{Enhanced, Failure, Mono, Now, Wall};

use super::settings::BounceProfile;

/// What follows a failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Retry {
    /// The next attempt is due then.
    At(Wall),
    /// There is no next attempt: hard bounce now.
    Expired(Failure),
}

/// What follows after `attempts_done` attempts (at least 1, the failed one included) of a message
/// that arrived at `arrival`.
#[must_use]
pub fn verdict(profile: &BounceProfile, attempts_done: u32, arrival: Wall, now: Wall) -> Retry {
    let no_retry_left = attempts_done > profile.retries_max;
    if no_retry_left || is_expired(profile, arrival, now) {
        return Retry::Expired(expiry_failure());
    }
    Retry::At(Wall(now.0.saturating_add(wait_ms(profile, attempts_done))))
}

/// The wait after `attempts_done` failed attempts, in milliseconds: `initial_retry`, doubled for
/// every further attempt, `retry_max` at most.
#[must_use]
pub fn wait_ms(profile: &BounceProfile, attempts_done: u32) -> u64 {
    let doublings = attempts_done.saturating_sub(1).min(63);
    let grown = millis(profile.initial_retry).saturating_mul(1 << doublings);
    grown.min(millis(profile.retry_max))
}

/// Is the time in queue over? To be asked immediately before every attempt.
#[must_use]
pub fn is_expired(profile: &BounceProfile, arrival: Wall, now: Wall) -> bool {
    now.since_ms(arrival) >= millis(profile.time_in_queue_max)
}

/// When the time in queue ends, for mail that is ready or waits for hosts to come up.
#[must_use]
pub fn expires_at(profile: &BounceProfile, arrival: Wall) -> Wall {
    arrival + profile.time_in_queue_max
}

/// The failure of an expired recipient: 5.4.7, without a reply.
#[must_use]
pub fn expiry_failure() -> Failure {
    Failure::local(Enhanced::new(5, 4, 7), "timeout")
}

/// The timer for a wall-clock time, never more than `ahead_ms_max` away: what a jump of the wall
/// clock, or a time stored under a wrong clock, can delay is bounded by the caller.
#[must_use]
pub fn due_on(now: Now, due: Wall, ahead_ms_max: u64) -> Mono {
    Mono(now.mono.0.saturating_add(due.since_ms(now.wall).min(ahead_ms_max)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn profile(initial_s: u64, max_s: u64, retries: u32, queue_s: u64) -> BounceProfile {
        BounceProfile {
            initial_retry: Duration::from_secs(initial_s),
            retry_max: Duration::from_secs(max_s),
            retries_max: retries,
            time_in_queue_max: Duration::from_secs(queue_s),
            ..BounceProfile::default()
        }
    }

    /// Attempts at seconds after arrival, and the second of the bounce, when every attempt fails.
    fn play(profile: &BounceProfile) -> (Vec<u64>, u64) {
        let arrival = Wall(1_000_000);
        let (mut now, mut attempts) = (arrival, Vec::new());
        while !is_expired(profile, arrival, now) {
            attempts.push(now.since_ms(arrival) / 1000);
            match verdict(profile, u32::try_from(attempts.len()).unwrap(), arrival, now) {
                Retry::At(next) => now = next,
                Retry::Expired(_) => break,
            }
        }
        (attempts, now.since_ms(arrival) / 1000)
    }

    #[test]
    fn the_examples_of_the_bounce_profile() {
        let table = [
            // Two retries: bounced immediately after the failed retry at 120.
            (profile(60, 60, 2, 1000), vec![0, 60, 120], 120),
            // 100 s in queue: bounced immediately before the attempt due at 120.
            (profile(60, 60, 100, 100), vec![0, 60], 120),
            (profile(60, 60, 0, 1000), vec![0], 0),
            (profile(60, 300, 5, 10_000), vec![0, 60, 180, 420, 720, 1020], 1020),
            (profile(90, 60, 1, 10_000), vec![0, 60], 60),
        ];
        for (profile, attempts, bounce) in table {
            assert_eq!(play(&profile), (attempts, bounce));
        }
        let failure = expiry_failure();
        assert_eq!((failure.status, &*failure.detail), (Enhanced::new(5, 4, 7), "timeout"));
    }

    #[test]
    fn clocks_that_jump_do_no_harm() {
        let profile = profile(60, 3600, 100, 72 * 3600);
        let arrival = Wall(1_000_000_000_000);
        let set_back = Wall(5);
        assert_eq!(verdict(&profile, 1, arrival, set_back), Retry::At(Wall(60_005)));
        assert!(!is_expired(&profile, arrival, set_back));
        assert_eq!(expires_at(&profile, Wall(u64::MAX)), Wall(u64::MAX));
        let now = Now { mono: Mono(50), wall: set_back };
        assert_eq!(due_on(now, arrival, 3_600_000), Mono(3_600_050));
        assert_eq!(due_on(now, Wall(0), 3_600_000), Mono(50));
    }

    proptest! {
        #[test]
        fn waits_never_shrink_and_keep_their_ceiling(
            initial in 0u64..100_000, max in 0u64..100_000, attempts in 1u32..200,
        ) {
            let profile = profile(initial, max, 100, 1);
            let wait = wait_ms(&profile, attempts);
            prop_assert!(wait <= max * 1000);
            prop_assert!(wait <= wait_ms(&profile, attempts + 1));
            prop_assert_eq!(wait_ms(&profile, 1), initial.min(max) * 1000);
        }
    }
}
