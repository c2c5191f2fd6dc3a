//! What the shards of one process share, and nothing else.
//!
//! Owns: [`Shared`]: the configuration snapshot, cursors and host health (`registry`), permits,
//! wake-up gates, counters, doorbells, notes for the log and the turn to write it, the time of a
//! warning. Never: per-message state. No lock here is taken per message: those there are guard maps
//! that a shard looks into when it meets a destination or a client address for the first time,
//! copies that are published once a second, and the log's turn, taken once per batch of lines.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use super::balance::Balance;
use super::receive_memory::ReceiveUsage;
use crate::config::{Snapshot, Store};
use crate::mail::{Domain, Mono, ShardId, Shortage};
use crate::queue::Usage;
use crate::route::{Permits, Registry};
use crate::schedule::Gates;
use crate::telemetry::line::Level;
use crate::telemetry::{Counters, Latencies};

/// Notes that wait for the log at most; further ones are dropped.
const NOTES_MAX: usize = 64;

/// How far the engine has come to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stopping {
    /// It runs.
    No,
    /// SIGTERM: no new mail, no new attempts; what is under way ends in good order.
    Gently,
    /// A second SIGTERM: connections are cut.
    Now,
}

/// What a shard publishes once a second, for status pages.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// What the queue takes.
    pub usage: Usage,
    /// Destinations with mail.
    pub destinations: usize,
    /// Time from final dot to the next hop's acceptance.
    pub latencies: Latencies,
    /// Time from final dot to the end of the commit.
    pub commit_latencies: Latencies,
    /// False when the shard takes no mail because its disk or its queue does not.
    pub takes_mail: bool,
    /// Memory of messages on their way in.
    pub receive: ReceiveUsage,
}

/// Shared by all shards and the control plane.
pub struct Shared {
    /// The configuration in force.
    pub config: Store,
    /// Hosts and cursors by name.
    pub registry: Registry,
    /// Wake-up gates by destination.
    pub gates: Gates,
    /// Outbound connections of the process.
    pub connections_out: Permits,
    /// One set of counters per shard, each written by its shard alone.
    pub counters: Vec<CachePadded<Counters>>,
    /// One report per shard.
    pub reports: Vec<Mutex<ShardReport>>,
    /// Clients by shard.
    pub(super) balance: Balance,
    doorbells: Vec<Notify>,
    destination_permits: Mutex<HashMap<Domain, Arc<Permits>>>,
    clients: Mutex<HashMap<(usize, Option<IpAddr>), u32>>,
    notes: Mutex<VecDeque<(Level, String)>>,
    /// By kind, when the log was last warned of a shortage, plus 1; 0: never.
    warned: [AtomicU64; Shortage::ALL.len()],
    stopping: AtomicU8,
    log_generation: AtomicU64,
    /// Whose turn it is to append to the log.
    pub(super) log_turn: tokio::sync::Mutex<()>,
    /// The configuration that each shard works under.
    epochs: Vec<AtomicU64>,
}

impl Shared {
    /// For `shards` shards under `config`.
    #[must_use]
    pub fn new(config: Store, shards: usize) -> Self {
        let connections_out = Permits::new(config.load().connections_out_max);
        Self {
            registry: Registry::new(shards),
            gates: Gates::default(),
            connections_out,
            counters: (0..shards).map(|_| CachePadded::default()).collect(),
            reports: (0..shards).map(|_| Mutex::default()).collect(),
            balance: Balance::new(shards),
            doorbells: (0..shards).map(|_| Notify::new()).collect(),
            destination_permits: Mutex::default(),
            clients: Mutex::default(),
            notes: Mutex::default(),
            warned: Default::default(),
            // Relaxed and acquire/release below: a flag that shards look at when they are rung.
            stopping: AtomicU8::new(0),
            log_generation: AtomicU64::new(0),
            log_turn: tokio::sync::Mutex::default(),
            epochs: (0..shards).map(|_| AtomicU64::new(1)).collect(),
            config,
        }
    }

    /// Shards of the process.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.counters.len()
    }

    /// Wakes a shard: a permit is free, a gate moved, the engine stops.
    pub fn ring(&self, shard: ShardId) {
        self.doorbells[usize::from(shard.0)].notify_one();
    }

    /// Wakes all shards.
    pub fn ring_all(&self) {
        for doorbell in &self.doorbells {
            doorbell.notify_one();
        }
    }

    /// Waits until somebody rings.
    pub async fn rung(&self, shard: ShardId) {
        self.doorbells[usize::from(shard.0)].notified().await;
    }

    /// The permits of a destination, which all shards draw from (limit_type = "domain").
    #[must_use]
    pub fn permits_of(&self, domain: &Domain, limit: u32) -> Arc<Permits> {
        let mut known = lock(&self.destination_permits);
        let mut is_new = false;
        let permits = known.entry(domain.clone()).or_insert_with(|| {
            is_new = true;
            Arc::new(Permits::new(limit))
        });
        let permits = Arc::clone(permits);
        if is_new && known.len().is_power_of_two() {
            // At each doubling the unused ones go, so that a walk through domains costs O(1) each.
            known.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        drop(known);
        if permits.limit() != limit {
            permits.set_limit(limit).for_each(|shard| self.ring(shard));
        }
        permits
    }

    /// Counts a client of listener number `listener`; false when the listener or the address has
    /// as many as it may have.
    #[must_use]
    pub fn client_came(&self, listener: usize, ip: IpAddr, config: &Snapshot) -> bool {
        let Some(settings) = config.listeners.get(listener) else { return false };
        let mut clients = lock(&self.clients);
        let all = clients.get(&(listener, None)).copied().unwrap_or(0);
        let same = clients.get(&(listener, Some(ip))).copied().unwrap_or(0);
        let room = all < settings.connections_max && same < settings.connections_per_ip_max;
        if room {
            clients.insert((listener, None), all + 1);
            clients.insert((listener, Some(ip)), same + 1);
        }
        room
    }

    /// A client that [`Shared::client_came`] counted is gone.
    pub fn client_left(&self, listener: usize, ip: IpAddr) {
        let mut clients = lock(&self.clients);
        for key in [(listener, None), (listener, Some(ip))] {
            match clients.get_mut(&key) {
                Some(1) | None => drop(clients.remove(&key)),
                Some(count) => *count -= 1,
            }
        }
    }

    /// What each shard published last.
    #[must_use]
    pub fn reports(&self) -> Vec<ShardReport> {
        self.reports.iter().map(|report| lock(report).clone()).collect()
    }

    /// A line for the mail log, from outside of the shards; shard 0 writes it within 100 ms.
    pub fn note(&self, level: Level, text: String) {
        let mut notes = lock(&self.notes);
        if notes.len() < NOTES_MAX {
            notes.push_back((level, text));
        }
    }

    /// The notes that were not taken yet.
    #[must_use]
    pub fn take_notes(&self) -> VecDeque<(Level, String)> {
        std::mem::take(&mut lock(&self.notes))
    }

    /// True for one shard in `every_ms` milliseconds: it warns of the shortage.
    pub(super) fn may_warn_of(&self, shortage: Shortage, now: Mono, every_ms: u64) -> bool {
        let Some(last) = self.warned.get(shortage as usize) else { return false };
        // Relaxed: the time alone counts, and one of those who come together wins it.
        let at = last.load(Ordering::Relaxed);
        let due = at == 0 || now.since_ms(Mono(at - 1)) >= every_ms;
        let order = Ordering::Relaxed;
        due && last.compare_exchange(at, now.0 + 1, order, order).is_ok()
    }

    /// How far the end has come.
    #[must_use]
    pub fn stopping(&self) -> Stopping {
        match self.stopping.load(Ordering::Acquire) {
            0 => Stopping::No,
            1 => Stopping::Gently,
            _ => Stopping::Now,
        }
    }

    /// Begins the end, or hastens it.
    pub fn stop(&self, how: Stopping) {
        self.stopping.fetch_max(how as u8, Ordering::AcqRel);
        self.ring_all();
    }

    /// A shard works under configuration `epoch` from now on.
    pub fn works_under(&self, shard: ShardId, epoch: u64) {
        self.epochs[usize::from(shard.0)].store(epoch, Ordering::Release);
    }

    /// True when every shard works under configuration `epoch`, or a later one.
    #[must_use]
    pub fn all_work_under(&self, epoch: u64) -> bool {
        self.epochs.iter().all(|of_shard| of_shard.load(Ordering::Acquire) >= epoch)
    }

    /// Counts how often the log was asked to reopen its file.
    #[must_use]
    pub fn log_generation(&self) -> u64 {
        self.log_generation.load(Ordering::Acquire)
    }

    /// Has every shard reopen the log file (SIGHUP).
    pub fn reopen_log(&self) {
        self.log_generation.fetch_add(1, Ordering::AcqRel);
        self.ring_all();
    }
}

/// A lock whose holders never leave its value half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
