//! What a shard does ten times a second, whatever else happens.
//!
//! Owns: the sweep of deadlines, timers that are due, wake-ups, probes, expiry, the sync of state
//! words, and once a second the report for status pages. Never: more than a slice of each per
//! tick.

use std::rc::Rc;
use std::time::Duration;

use super::io;
use super::shared::lock;
use super::{Shard, ShardReport, Stopping};
use crate::mail::Mono;
use crate::telemetry::line::Level;

/// The length of a tick.
const TICK: Duration = Duration::from_millis(100);

/// Deliveries whose timers are looked at in one tick.
const EXPIRE_MAX: usize = 10_000;

/// Deliveries woken in one tick.
const WAKE_MAX: usize = 10_000;

/// Destinations whose hosts are looked at in one tick.
const LOOK_MAX: usize = 4_000;

/// Ready deliveries whose age is looked at in one tick.
const SWEEP_MAX: usize = 1_000;

impl Shard {
    /// Ticks until the shard ends.
    pub(super) async fn run_ticks(self: Rc<Self>) {
        let mut count = 0u64;
        self.publish();
        loop {
            io::sleep(TICK).await;
            count += 1;
            self.tick();
            if count.is_multiple_of(10) {
                self.each_second();
            }
        }
    }

    /// Listens to the other shards and to the control plane.
    pub(super) async fn run_doorbell(self: Rc<Self>) {
        loop {
            self.shared.rung(self.id).await;
            self.log_bell.ring();
            self.refresh_config();
            self.take_clients();
            if self.stopping() == Stopping::No {
                self.retry_lanes();
                self.feed_bell.ring();
            } else {
                self.ring_all_sessions();
            }
        }
    }

    /// Feeds lanes whenever something has become ready.
    pub(super) async fn run_feed(self: Rc<Self>) {
        loop {
            let is_done = self.feed();
            self.write_words();
            if is_done {
                self.feed_bell.rung().await;
            } else {
                // A pause, not a yield: the ring is entered only when the thread parks.
                io::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn tick(self: &Rc<Self>) {
        let now = self.now();
        self.bells.borrow_mut().retain(|bell| match bell.upgrade() {
            Some(bell) => {
                bell.sweep(now.mono);
                true
            }
            None => false,
        });
        self.queue.borrow_mut().tick(now);
        self.commit_bell.ring();
        self.log_notes();
        self.watch_receive_memory(now.mono);
        if self.stopping() != Stopping::No {
            return;
        }
        self.refresh_config();
        self.fire_timers();
        self.look_for_silence();
        self.look_at_hosts();
        self.expire_ready();
        self.retry_lanes();
        let wakes = self.shared.gates.wakes();
        if self.destinations.borrow_mut().wake(now.mono, wakes, WAKE_MAX) > 0 {
            self.feed_bell.ring();
        }
    }

    /// Says when new mail begins to be refused for want of memory, and when that ends.
    fn watch_receive_memory(&self, now: Mono) {
        match self.receive_memory.tick(now) {
            Some(true) => {
                let usage = self.receive_memory.usage();
                let text = format!(
                    "receive memory is full, {} clients wait: new mail is refused with 452 from \
                     now on (ringpost.receive_memory_octets = {})",
                    usage.waiting, usage.octets_max
                );
                self.log(|log, now| log.warning(now, &text));
            }
            Some(false) => {
                self.log(|log, now| log.info(now, "receive memory has room again"));
            }
            None => {}
        }
    }

    /// What the control plane has to say in the log.
    fn log_notes(&self) {
        if self.id.0 != 0 {
            return;
        }
        for (level, text) in self.shared.take_notes() {
            self.log(|log, now| match level {
                Level::Info => log.info(now, &text),
                Level::Warning => log.warning(now, &text),
                Level::Critical => log.critical(now, &text),
            });
        }
    }

    /// Deferred deliveries whose time has come, or whose time in queue is over while they wait.
    fn fire_timers(self: &Rc<Self>) {
        let now = self.now();
        let due = self.destinations.borrow_mut().expire(now.mono, EXPIRE_MAX);
        for handle in due {
            let domain = self.queue.borrow().domain(handle).cloned();
            let mut destinations = self.destinations.borrow_mut();
            let Some(id) = domain.as_ref().and_then(|domain| destinations.find(domain)) else {
                continue;
            };
            destinations.fired(id);
            destinations.push_ready(id, handle);
            destinations.done(id);
            drop(destinations);
            self.feed_bell.ring();
        }
    }

    /// Gates of destinations that wait for a host, and hosts whose probe is due: the next slice of
    /// the destinations with mail.
    fn look_at_hosts(self: &Rc<Self>) {
        let now = self.now().mono;
        let from = self.looked_at.get();
        let (next, slice) = self.destinations.borrow().slice(from, LOOK_MAX);
        self.looked_at.set(next);
        for domain in slice {
            let destination = self.destination(&domain);
            let Some(plan) = destination.plan() else { continue };
            if destination.gate.is_down() && !destination.has_no_host(now) {
                destination.gate.host_up(now);
            }
            for pick in plan.probes_due(now) {
                self.probe(&destination, pick);
            }
        }
    }

    /// Mail that is ready but gets no turn grows old too.
    fn expire_ready(self: &Rc<Self>) {
        let now = self.now().mono;
        let config = self.config();
        let keep = |_, handle| {
            let brief = self.queue.borrow().brief(handle);
            brief.is_none_or(|brief| {
                let profile = config.bounce_profile_for(&brief.bounce_profile, &brief.domain);
                !self.clock.is_expired(profile, brief.arrival, now)
            })
        };
        let expired = self.destinations.borrow_mut().sweep(SWEEP_MAX, keep);
        for (_, handle) in expired {
            self.expire_one(handle);
        }
    }

    fn each_second(self: &Rc<Self>) {
        self.forget_unused_destinations();
        self.forget_unused_lanes();
        self.publish();
        if self.id.0 == 0 {
            self.shared.registry.sweep(self.now().mono);
        }
    }

    /// Tells status pages how things are.
    fn publish(&self) {
        let queue = self.queue.borrow();
        let usage = queue.usage();
        let takes_mail = self.takes_mail.get() && queue.takes_mail();
        drop(queue);
        let report = ShardReport {
            usage,
            destinations: self.destinations.borrow().iter().count(),
            latencies: self.latencies.borrow().clone(),
            commit_latencies: self.commit_latencies.borrow().clone(),
            takes_mail,
            receive: self.receive_memory.usage(),
        };
        *lock(&self.shared.reports[usize::from(self.id.0)]) = report;
    }
}
