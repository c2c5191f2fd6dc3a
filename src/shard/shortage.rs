//! Settle: what our own machine lacks for a moment: file descriptors, ports, memory for sockets.
//!
//! Owns: the pause of new connections, and the one warning a minute. Never: blame on a host: it
//! stays up, no attempt is counted, and its deliveries stay in their lane. Sessions that stand take
//! them meanwhile.
//!
//! Diagnostics: one Warning a minute and kind of shortage says what to change.
//!
//! Limits: pauses of [`PAUSE_MS_MIN`] doubling to [`PAUSE_MS_MAX`].

use std::cell::Cell;
use std::rc::Rc;

use super::Shard;
use super::pool::{Cause, Served};
use crate::mail::{Dcid, Mono, Shortage};
use crate::schedule::retry;
use crate::settle::host::{Reach, reach_of};

/// The first pause, in milliseconds.
const PAUSE_MS_MIN: u64 = 100;

/// The longest pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 1_000;

/// One warning of a kind in this time, in milliseconds.
const WARN_MS: u64 = 60_000;

/// No new connections for a moment, longer with each failure in a row.
#[derive(Default)]
pub(super) struct Pause {
    until: Cell<Mono>,
    ms: Cell<u64>,
}

impl Pause {
    /// True while it lasts.
    pub(super) fn lasts(&self, now: Mono) -> bool {
        now < self.until.get()
    }

    /// There is room: the next pause is short again.
    fn end(&self) {
        self.until.set(Mono(0));
        self.ms.set(0);
    }

    /// A connection failed; its end. Those that were begun together make one pause.
    fn begin(&self, now: Mono) -> Mono {
        if !self.lasts(now) {
            self.ms.set((self.ms.get() * 2).clamp(PAUSE_MS_MIN, PAUSE_MS_MAX));
            self.until.set(Mono(now.0.saturating_add(self.ms.get())));
        }
        self.until.get()
    }
}

impl Shard {
    /// A connection could not be made for want of something here.
    pub(super) fn fell_short(
        self: &Rc<Self>,
        served: &Rc<Served>,
        shortage: Shortage,
        cause: Cause,
    ) {
        let now = self.now().mono;
        self.counters().shortages.one();
        self.warn_of(shortage);
        let until = match reach_of(shortage) {
            Reach::EveryHost => self.pause.begin(now),
            Reach::ThisHost => served.pause.begin(now),
        };
        if let Cause::Probe(probe) = cause {
            served.host.probe_put_off(probe, until);
        } else if reach_of(shortage) == Reach::ThisHost && !served.host.is_alive(now) {
            served.host.pass_over(now, until.since_ms(now));
            self.yield_lane(served);
        }
        self.expire_lane(served);
    }

    /// New connections of this lane wait.
    pub(super) fn is_paused(&self, served: &Served, now: Mono) -> bool {
        self.pause.lasts(now) || served.pause.lasts(now)
    }

    /// There is room again: connections may be tried at once.
    pub(super) fn end_pauses(&self, served: &Served) {
        self.pause.end();
        served.pause.end();
    }

    /// Says what is lacking, once a minute.
    pub(super) fn warn_of(&self, shortage: Shortage) {
        if self.shared.may_warn_of(shortage, self.now().mono, WARN_MS) {
            let text = format!("no room for a connection: {}", shortage.advice());
            self.log(|log, now| log.warning(now, &text));
        }
    }

    /// Mail grows old in a lane that gets no connection.
    fn expire_lane(self: &Rc<Self>, served: &Served) {
        let now = self.now().wall;
        let (expired, stay): (Vec<_>, Vec<_>) = self
            .drain_lane(served)
            .into_iter()
            .partition(|d| retry::is_expired(&d.profile, d.arrival, now));
        let mut lane = served.lane.borrow_mut();
        stay.into_iter().rev().for_each(|delivery| lane.give_back(delivery));
        drop(lane);
        for delivery in expired {
            self.bounce(delivery, retry::expiry_failure(), Dcid(0), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_once_for_each_round_and_begin_anew_after_a_success() {
        let pause = Pause::default();
        let mut now = Mono(1_000);
        for expected in [100, 200, 400, 800, 1_000, 1_000] {
            assert!(!pause.lasts(now));
            assert_eq!(pause.begin(now), Mono(now.0 + expected));
            assert_eq!(pause.begin(Mono(now.0 + 1)), Mono(now.0 + expected), "the same round");
            assert!(pause.lasts(Mono(now.0 + expected - 1)));
            now = Mono(now.0 + expected);
        }
        pause.end();
        assert_eq!(pause.begin(now), Mono(now.0 + 100));
    }
}
