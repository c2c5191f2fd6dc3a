//! The run-time state of routes, by name: what survives a change of the configuration.
//!
//! Owns: one [`Host`] per address:port and one [`Group`] (with its cursor) per route, priority
//! and list of hosts, for the whole process. Never: anything per message. Shards keep the `Arc`s
//! in their plans; the lock here is taken when a plan is made, and by metrics and the sweep.
//!
//! Limits: entries that nobody holds and nobody used for [`FORGET_MS`] are dropped by
//! [`Registry::sweep`], to be called every few minutes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use super::atomic::{AtomicU64, Ordering};
use super::cursor::Cursor;
use super::host::{FORGET_MS, Host};
use crate::limits;
use crate::mail::Mono;

/// Names a group: with the same key the cursor goes on where it was.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GroupKey {
    /// The receiving domain of the row, or the domain whose MX they are.
    pub pattern: Box<str>,
    /// The priority that the hosts share.
    pub priority: u16,
    /// The hosts, in the order of the row.
    pub hosts: Vec<SocketAddr>,
}

/// The hosts of one route and priority, as far as they share a cursor.
#[derive(Debug)]
pub struct Group {
    key: GroupKey,
    cursor: Cursor,
    used_ms: AtomicU64,
}

impl Group {
    fn new(key: GroupKey, now: Mono) -> Self {
        Self { key, cursor: Cursor::new(), used_ms: AtomicU64::new(now.0) }
    }

    /// Its name.
    #[must_use]
    pub fn key(&self) -> &GroupKey {
        &self.key
    }

    /// Whose turn it is.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }
}

/// All hosts and groups in use. One per process.
#[derive(Debug)]
pub struct Registry {
    shards: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<SocketAddr, Arc<Host>>,
    groups: HashMap<GroupKey, Arc<Group>>,
}

impl Registry {
    /// An empty registry for `shards` shards, 1..=[`limits::SHARDS_MAX`].
    #[must_use]
    pub fn new(shards: usize) -> Self {
        assert!((1..=limits::SHARDS_MAX).contains(&shards), "{shards} shards");
        Self { shards, state: Mutex::default() }
    }

    /// The host at `address`, made up and unknown if it is new.
    #[must_use]
    pub fn host(&self, address: SocketAddr, now: Mono) -> Arc<Host> {
        let mut state = self.lock();
        let new = || Arc::new(Host::new(address, self.shards, now));
        let host = Arc::clone(state.hosts.entry(address).or_insert_with(new));
        host.touch(now);
        host
    }

    /// The group named `key`, with its cursor at 0 if it is new.
    #[must_use]
    pub fn group(&self, key: GroupKey, now: Mono) -> Arc<Group> {
        let mut state = self.lock();
        if let Some(group) = state.groups.get(&key) {
            // Relaxed: read by the sweep only, under the same lock.
            group.used_ms.fetch_max(now.0, Ordering::Relaxed);
            return Arc::clone(group);
        }
        let group = Arc::new(Group::new(key.clone(), now));
        state.groups.insert(key, Arc::clone(&group));
        group
    }

    /// The host at `address`, if it is known. No use of it is noted: for forecasts.
    #[must_use]
    pub fn known_host(&self, address: SocketAddr) -> Option<Arc<Host>> {
        self.lock().hosts.get(&address).map(Arc::clone)
    }

    /// The group named `key`, if it is known; else one of its own with its cursor at 0, which
    /// nobody else will find. No use of it is noted: for forecasts.
    #[must_use]
    pub(super) fn known_group(&self, key: GroupKey) -> Arc<Group> {
        let known = self.lock().groups.get(&key).map(Arc::clone);
        known.unwrap_or_else(|| Arc::new(Group::new(key, Mono(0))))
    }

    /// The host at `address` if it is known; else one nobody has spoken to, which nobody else
    /// will find.
    pub(super) fn known_or_unknown_host(&self, address: SocketAddr, now: Mono) -> Arc<Host> {
        let known = self.known_host(address);
        known.unwrap_or_else(|| Arc::new(Host::new(address, self.shards, now)))
    }

    /// All hosts, in the order of their addresses: for metrics and status pages.
    #[must_use]
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        let mut hosts: Vec<_> = self.lock().hosts.values().map(Arc::clone).collect();
        hosts.sort_unstable_by_key(|host| host.address());
        hosts
    }

    /// All groups, in no order.
    #[must_use]
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.lock().groups.values().map(Arc::clone).collect()
    }

    /// Forgets hosts and groups unused for [`FORGET_MS`]. A host that a plan still holds stays
    /// here, so that there is never a second one for its address, but its state is forgotten.
    pub fn sweep(&self, now: Mono) {
        let mut state = self.lock();
        state.hosts.retain(|_, host| !(host.forget_if_unused(now) && Arc::strong_count(host) == 1));
        state.groups.retain(|_, group| {
            // Relaxed: see `group`. Nobody can copy the last `Arc` while we hold the lock.
            let used = Mono(group.used_ms.load(Ordering::Relaxed));
            Arc::strong_count(group) > 1 || now.since_ms(used) < FORGET_MS
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No user of the lock leaves the maps half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
