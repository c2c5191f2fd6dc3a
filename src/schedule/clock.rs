//! The clock of the queue: stored times are wall-clock times, and wall clocks jump.
//!
//! Owns: [`QueueClock`], what a stored time is worth in this run. Never: a clock; both readings
//! are arguments.
//!
//! Within one run the wall clock is read once, at the start; from then on the monotonic clock
//! moves it on. So neither a step by NTP nor an operator's mistake changes the age of a message
//! or the time of its next attempt while the engine runs.
//!
//! Between two runs nothing is known but what the wall clock says. A message that arrived in the
//! future arrived, as far as anybody can tell, at the start. One that looks too old is not given
//! up for its looks: it gets an attempt, whose failure ends it, or the engine has run for
//! [`EVIDENCE_MS`] without being able to make one. Times of attempts are brought back to the
//! longest wait of any bounce profile by recovery.
//!
//! Limits: all arithmetic saturates.

use super::retry;
use super::settings::BounceProfile;
use crate::mail::time::millis;
use crate::mail::{Mono, Now, Wall};

/// How long a run has to last until mail from before it expires by age without an attempt, or
/// its time in queue if that is shorter: twelve hours, in which its hosts were probed over and
/// over.
pub const EVIDENCE_MS: u64 = 12 * 3_600_000;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct QueueClock {
    started: Now,
}

impl QueueClock {
    /// The clock of a run that started at `started`.
    #[must_use]
    pub fn new(started: Now) -> Self {
        Self { started }
    }

    /// The time for what is stored and compared with stored times: that of the start, moved on by
    /// the monotonic clock. For people `now.wall` is right.
    #[must_use]
    pub fn read(&self, mono: Mono) -> Now {
        let elapsed_ms = mono.since_ms(self.started.mono);
        Now { mono, wall: Wall(self.started.wall.0.saturating_add(elapsed_ms)) }
    }

    /// A time of this clock as the wall clock of `now` names it.
    #[must_use]
    pub fn shown(&self, time: Wall, now: Now) -> Wall {
        let here = self.read(now.mono).wall;
        if time >= here {
            Wall(now.wall.0.saturating_add(time.since_ms(here)))
        } else {
            Wall(now.wall.0.saturating_sub(here.since_ms(time)))
        }
    }

    /// When a message came whose stored arrival is `stored`.
    #[must_use]
    pub fn came(&self, stored: Wall, mono: Mono) -> Wall {
        if stored > self.read(mono).wall { self.started.wall } else { stored }
    }

    /// When the time in queue of a message ends that is not attempted: between two attempts, while
    /// it is ready, or while it waits for hosts.
    #[must_use]
    pub fn expires_at(&self, profile: &BounceProfile, stored: Wall, mono: Mono) -> Wall {
        let came = self.came(stored, mono);
        let by_age = retry::expires_at(profile, came);
        if came >= self.started.wall {
            return by_age;
        }
        let evidence_ms = millis(profile.time_in_queue_max).min(EVIDENCE_MS);
        by_age.max(Wall(self.started.wall.0.saturating_add(evidence_ms)))
    }

    /// Is that time over?
    #[must_use]
    pub fn is_expired(&self, profile: &BounceProfile, stored: Wall, mono: Mono) -> bool {
        self.read(mono).wall >= self.expires_at(profile, stored, mono)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::retry::{Retry, due_on, verdict};
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const YEAR_MS: u64 = 365 * 24 * HOUR_MS;
    const NOON: Wall = Wall(1_795_000_000_000);

    fn profile() -> BounceProfile {
        BounceProfile {
            initial_retry: Duration::from_secs(60),
            retry_max: Duration::from_secs(3600),
            retries_max: 100,
            time_in_queue_max: Duration::from_secs(72 * 3600),
            ..BounceProfile::default()
        }
    }

    /// A run of the engine by virtual time: a wall clock that jumps, and one message whose
    /// attempts all fail. The attempts and the bounce, in milliseconds of the monotonic clock.
    fn run(started: Wall, stored: Wall, mut next: Wall, jumps: &[(u64, i64)]) -> (Vec<u64>, u64) {
        let (profile, started) = (profile(), Now { mono: Mono(7), wall: started });
        let clock = QueueClock::new(started);
        next = next.min(Wall(started.wall.0 + HOUR_MS));
        let (mut mono, mut attempts) = (started.mono, Vec::new());
        loop {
            let jumped: i64 = jumps.iter().filter(|(at, _)| *at <= mono.0).map(|(_, by)| by).sum();
            let wall = started.wall.0 + mono.since_ms(started.mono);
            let now = Now { mono, wall: Wall(wall.saturating_add_signed(jumped)) };
            let here = clock.read(now.mono);
            assert_eq!(clock.shown(here.wall, now), now.wall);
            if due_on(here, next, 24 * HOUR_MS) > mono {
                mono = due_on(here, next, 24 * HOUR_MS);
                continue;
            }
            if clock.is_expired(&profile, stored, mono) {
                return (attempts, mono.0);
            }
            attempts.push(mono.0);
            let done = u32::try_from(attempts.len()).unwrap();
            match verdict(&profile, done, clock.came(stored, mono), here.wall) {
                Retry::At(at) => next = at,
                Retry::Expired(_) => return (attempts, mono.0),
            }
        }
    }

    #[test]
    fn a_jump_while_the_engine_runs_changes_nothing() {
        let steady = run(NOON, NOON, NOON, &[]);
        assert!((72 * HOUR_MS..75 * HOUR_MS).contains(&steady.1), "{steady:?}");
        let year = i64::try_from(YEAR_MS).unwrap();
        for by in [year, -year, 3_600_000, -3_600_000] {
            for at in [8, HOUR_MS, 50 * HOUR_MS] {
                assert_eq!(run(NOON, NOON, NOON, &[(at, by)]), steady, "{by} at {at}");
                assert_eq!(run(NOON, NOON, NOON, &[(at, by), (at + 9, -by)]), steady);
            }
        }
    }

    #[test]
    fn a_start_a_year_later_gives_every_message_an_attempt() {
        let later = Wall(NOON.0 + YEAR_MS);
        for next in [NOON, Wall(NOON.0 + HOUR_MS)] {
            let (attempts, bounce) = run(later, NOON, next, &[]);
            assert_eq!((attempts.len(), bounce), (1, attempts[0]));
            assert_eq!(bounce, 7, "at once");
        }
    }

    #[test]
    fn a_start_a_year_earlier_keeps_no_message_for_a_year() {
        let earlier = Wall(NOON.0 - YEAR_MS);
        let (attempts, bounce) = run(earlier, NOON, Wall(NOON.0 + HOUR_MS), &[]);
        assert!(attempts[0] <= 7 + HOUR_MS && attempts.len() > 60, "{attempts:?}");
        assert!((72 * HOUR_MS..75 * HOUR_MS).contains(&bounce), "{bounce}");
    }

    #[test]
    fn without_an_attempt_the_run_itself_is_the_evidence() {
        let clock = QueueClock::new(Now { mono: Mono(0), wall: NOON });
        let profile = profile();
        let old = Wall(NOON.0 - YEAR_MS);
        assert!(!clock.is_expired(&profile, old, Mono(EVIDENCE_MS - 1)));
        assert!(clock.is_expired(&profile, old, Mono(EVIDENCE_MS)));
        let short = BounceProfile { time_in_queue_max: Duration::from_secs(5), ..profile.clone() };
        assert!(clock.is_expired(&short, old, Mono(5_000)));
        // What came before the start and is not old yet has its full time, and no more.
        let young = Wall(NOON.0 - HOUR_MS);
        assert!(!clock.is_expired(&profile, young, Mono(71 * HOUR_MS - 1)));
        assert!(clock.is_expired(&profile, young, Mono(71 * HOUR_MS)));
    }
}
