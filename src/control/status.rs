//! The state of the engine as one value: what `GET /api/v1/status` answers.
//!
//! Owns: [`Status`] and how it is taken from what shards share. Never: a lock that a shard waits
//! for longer than for a copy of its report.
//!
//! Limits: [`HOSTS_MAX`] hosts, those first that need a look: down before up, then by turns.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Control;
use crate::mail::{Mono, Now};
use crate::route::{Host, Status as Health};
use crate::shard::{ShardReport, Stopping};
use crate::telemetry::{Conservation, Totals};

/// Hosts listed one by one.
pub const HOSTS_MAX: usize = 1_000;

/// Time between two samples for the rates, in milliseconds.
pub(super) const SAMPLE_MS: u64 = 5_000;

/// Samples kept: the rates are those of the last minute.
const SAMPLES_MAX: usize = 13;

/// The state of the engine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version that runs.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// How it does its I/O: `ring` or `epoll`.
    pub io: String,
    /// `running`, or `stopping`.
    pub state: String,
    /// Counts the configurations since start.
    pub configuration: u64,
    /// Receiving domains with mail, counted once per shard that has some.
    pub destinations: usize,
    /// Every counter and gauge, summed over all shards.
    pub totals: Totals,
    /// The law of conservation.
    pub conservation: Balance,
    /// What happened per second, lately.
    pub rates: Rates,
    /// Each shard.
    pub shards: Vec<ShardStatus>,
    /// Hosts known.
    pub hosts_total: usize,
    /// Hosts, [`HOSTS_MAX`] at most.
    pub hosts: Vec<HostStatus>,
}

/// The law of conservation, in recipients.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Balance {
    /// Taken from clients, made here, found at start.
    pub accepted: u64,
    /// Delivered, bounced, discarded, deleted, damaged.
    pub settled: u64,
    /// Neither.
    pub pending: u64,
    /// Accepted less settled less pending. While mail flows it may be off for a moment.
    pub balance: i64,
    /// True when it is 0.
    pub holds: bool,
}

/// Per second, over the last `seconds`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// How long was looked at, at most a minute; 0: just started.
    pub seconds: f64,
    /// Recipients taken from clients.
    pub accepted: f64,
    /// Recipients delivered.
    pub delivered: f64,
    /// Recipients bounced.
    pub bounced: f64,
    /// Temporary failures.
    pub soft_bounces: f64,
}

/// One shard, as it reported within the last second.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: usize,
    /// False: its disk or its queue takes no mail.
    pub takes_mail: bool,
    /// Recipients pending.
    pub pending: u64,
    /// Octets of its queue files.
    pub queue_octets: u64,
    /// Most octets they may have.
    pub queue_octets_max: u64,
    /// Segments.
    pub segments: usize,
    /// Segments that may be used again.
    pub segments_free: usize,
    /// Segments given up after a failed write or sync.
    pub segments_poisoned: usize,
    /// Octets of memory of its index.
    pub index_octets: usize,
    /// Messages that wait for their commit.
    pub uncommitted: usize,
    /// Octets of memory held by messages on their way in.
    pub receive_octets: u64,
    /// Most octets that they may hold.
    pub receive_octets_max: u64,
    /// Clients that wait for such memory.
    pub receive_waiting: usize,
    /// True: new mail is refused for want of it.
    pub receive_refuses: bool,
    /// Receiving domains with mail.
    pub destinations: usize,
}

/// One host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Address and port.
    pub address: String,
    /// `up`, `slow connect`, `passed over`, `down`, `probe due`, `probing`, or `unknown`.
    pub state: String,
    /// Milliseconds until that ends by itself or may be looked at again.
    pub state_ends_in_ms: Option<u64>,
    /// Connections open.
    pub connections: u32,
    /// Most connections now.
    pub connections_max: u32,
    /// The ceiling that refused connections have left; none: never lowered.
    pub ceiling: Option<u32>,
    /// Turns taken.
    pub turns: u64,
    /// Recipients it took.
    pub delivered: u64,
    /// Usual time to a reply, in milliseconds; 0: not known.
    pub usual_reply_ms: u64,
}

impl HostStatus {
    pub(super) fn of(host: &Host, now: Mono) -> Self {
        let health = host.status(now);
        let ends = match health {
            Health::Up | Health::SlowConnect | Health::ProbeDue => None,
            Health::PassedOver { until } | Health::Down { until } | Health::Probing { until } => {
                Some(until.since_ms(now))
            }
        };
        Self {
            address: host.address().to_string(),
            state: health.name().to_owned(),
            state_ends_in_ms: ends,
            connections: host.permits().taken(),
            connections_max: host.connections_max(now),
            ceiling: host.ceiling(now),
            turns: host.turns(),
            delivered: host.delivered(),
            usual_reply_ms: host.usual_reply_ms(),
        }
    }
}

impl Control {
    /// The state now.
    pub(super) fn status(&self) -> Status {
        let (shared, now) = (&self.shared, crate::shard::io::now());
        let reports = shared.reports();
        let totals = self.totals();
        let law = Conservation::of(&totals);
        let mut hosts = shared.registry.hosts();
        let hosts_total = hosts.len();
        hosts.sort_by_cached_key(|host| {
            let well = matches!(host.status(now.mono), Health::Up);
            (well, std::cmp::Reverse(host.turns()), host.address())
        });
        hosts.truncate(HOSTS_MAX);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.uptime_s(now),
            io: self.backend.name().to_owned(),
            state: match shared.stopping() {
                Stopping::No => "running".to_owned(),
                Stopping::Gently | Stopping::Now => "stopping".to_owned(),
            },
            configuration: shared.config.load().epoch,
            destinations: reports.iter().map(|report| report.destinations).sum(),
            conservation: Balance {
                accepted: law.came,
                settled: law.went,
                pending: law.pending,
                balance: law.balance(),
                holds: law.holds(),
            },
            rates: self.rates(&totals, now.mono),
            totals,
            shards: (0..).zip(&reports).map(|(shard, report)| self.shard(shard, report)).collect(),
            hosts_total,
            hosts: hosts.iter().map(|host| HostStatus::of(host, now.mono)).collect(),
        }
    }

    /// The sums over all shards.
    pub(super) fn totals(&self) -> Totals {
        Totals::of(self.shared.counters.iter().map(|counters| &**counters))
    }

    pub(super) fn uptime_s(&self, now: Now) -> u64 {
        now.mono.since_ms(self.started.mono) / 1000
    }

    fn shard(&self, shard: usize, report: &ShardReport) -> ShardStatus {
        let usage = report.usage;
        ShardStatus {
            shard,
            takes_mail: report.takes_mail,
            pending: self.shared.counters[shard].pending.get(),
            queue_octets: usage.octets,
            queue_octets_max: usage.octets_max,
            segments: usage.segments,
            segments_free: usage.segments_free,
            segments_poisoned: usage.segments_poisoned,
            index_octets: usage.index_octets,
            uncommitted: usage.uncommitted,
            receive_octets: report.receive.octets,
            receive_octets_max: report.receive.octets_max,
            receive_waiting: report.receive.waiting,
            receive_refuses: report.receive.refuses,
            destinations: report.destinations,
        }
    }

    fn rates(&self, totals: &Totals, now: Mono) -> Rates {
        let samples = super::lock(&self.samples);
        samples
            .oldest()
            .map_or_else(Rates::default, |(at, before)| rates(before, totals, now.since_ms(*at)))
    }

    /// Takes a sample for the rates.
    pub(super) fn sample(&self) {
        let totals = self.totals();
        super::lock(&self.samples).take(crate::shard::io::now().mono, totals);
    }
}

/// Totals of the last minute.
#[derive(Default)]
pub(super) struct Samples(VecDeque<(Mono, Totals)>);

impl Samples {
    fn take(&mut self, now: Mono, totals: Totals) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, totals));
    }

    fn oldest(&self) -> Option<&(Mono, Totals)> {
        self.0.front()
    }
}

fn rates(before: &Totals, after: &Totals, ms: u64) -> Rates {
    if ms == 0 {
        return Rates::default();
    }
    // Counts and times of a minute are far below 2^52, where f64 begins to round.
    let seconds = ms as f64 / 1000.0;
    let rate = |before: u64, after: u64| {
        let rate = after.wrapping_sub(before) as f64 / seconds;
        (rate * 10.0).round() / 10.0
    };
    Rates {
        seconds,
        accepted: rate(before.accepted_from_clients, after.accepted_from_clients),
        delivered: rate(before.delivered, after.delivered),
        bounced: rate(before.bounced, after.bounced),
        soft_bounces: rate(before.soft_bounces, after.soft_bounces),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_minute() {
        let mut samples = Samples::default();
        for n in 0..100 {
            let totals = Totals { delivered: n * 50, ..Totals::default() };
            samples.take(Mono(n * SAMPLE_MS), totals);
        }
        let (at, before) = samples.oldest().unwrap();
        let after = Totals { delivered: 99 * 50 + 7, ..Totals::default() };
        let rates = rates(before, &after, Mono(99 * SAMPLE_MS).since_ms(*at));
        assert_eq!((rates.seconds, rates.delivered, rates.accepted), (60.0, 10.1, 0.0));
        assert_eq!(super::rates(&after, &after, 0), Rates::default());
    }
}
