//! The configuration as the engine sees it: one immutable value, replaced as a whole.
//!
//! Owns: [`Snapshot`] and its parts that belong to no other folder, and the [`Store`] that hands
//! the snapshot in force to every thread. Never: files, checks (a snapshot that exists is valid).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use hashbrown::HashMap;

use super::net::IpNet;
use super::tuning::Tuning;
use crate::limits;
use crate::mail::{Domain, Mailbox};
use crate::queue::settings::QueueSettings;
use crate::route::Table;
use crate::schedule::settings::{BounceProfile, DestinationControls, PossibleDelivery};
use crate::smtp::settings::{ServerSettings, Timeouts};
use crate::telemetry::settings::LogSettings;

/// Name of the bounce profile that always exists.
pub const DEFAULT_PROFILE: &str = "default";

/// Which engine moves the octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoMode {
    /// io_uring; where the system refuses it, epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Ring,
    /// epoll.
    Epoll,
}

/// What releases the 250 to a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CommitMode {
    /// The commit, or the acceptance of every recipient by its next hop, whichever is first.
    #[default]
    DeliverOrSync,
    /// The commit.
    Sync,
}

/// One address that takes mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerSettings {
    /// Where it listens; also its name in verbs and log.
    pub address: SocketAddr,
    /// Clients that may send to any domain.
    pub relay_from: Vec<IpNet>,
    /// The dialogue.
    pub server: Arc<ServerSettings>,
    /// Connections at the same time, all shards together.
    pub connections_max: u32,
    /// Connections at the same time from one client address.
    pub connections_per_ip_max: u32,
    /// Name of the bounce profile of mail that comes in here.
    pub bounce_profile: Arc<str>,
}

impl ListenerSettings {
    /// May a client at `ip` send to any domain?
    #[must_use]
    pub fn may_relay(&self, ip: IpAddr) -> bool {
        self.relay_from.iter().any(|net| net.contains(ip))
    }
}

/// The name servers, and what DNS may lead to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsSettings {
    /// Servers in the order they are asked; `None`: those of /etc/resolv.conf.
    pub servers: Option<Vec<SocketAddr>>,
    /// Port of the hosts that DNS names.
    pub mx_port: u16,
    /// DNS may send mail to loopback, link-local and multicast addresses.
    pub allow_loopback: bool,
}

/// The admin API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// File of the token, made on the first start.
    pub token_file: PathBuf,
}

/// Destination Controls of every receiving domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Destinations {
    /// For domains without an entry of their own; each such domain counts for itself.
    pub default: Arc<DestinationControls>,
    /// Entries of their own, by exact domain.
    pub exact: HashMap<Domain, Arc<DestinationControls>>,
}

impl Destinations {
    /// The controls of one receiving domain.
    #[must_use]
    pub fn controls(&self, domain: &Domain) -> &Arc<DestinationControls> {
        self.exact.get(domain).unwrap_or(&self.default)
    }
}

/// Everything that the configuration says, checked.
#[derive(Clone)]
pub struct Snapshot {
    /// Counts the snapshots of this process; a higher one is newer.
    pub epoch: u64,
    /// Our name.
    pub hostname: Arc<str>,
    /// The spool.
    pub queue: QueueSettings,
    /// Shards asked for, 0 .. [`limits::SHARDS_MAX`]; 0: see [`Snapshot::shard_count`].
    pub shards: usize,
    /// The I/O engine.
    pub io: IoMode,
    /// What releases a client's 250.
    pub commit: CommitMode,
    /// What a lost reply to the final dot means.
    pub possible_delivery: PossibleDelivery,
    /// Outbound connections at the same time, all shards and destinations together.
    pub connections_out_max: u32,
    /// How long a shutdown waits for replies to a final dot.
    pub shutdown_final_reply: Duration,
    /// Gets double bounces and alarms.
    pub postmaster: Option<Mailbox>,
    /// Where mail comes in.
    pub listeners: Vec<ListenerSettings>,
    /// The mail log.
    pub log: LogSettings,
    /// Name resolution.
    pub dns: DnsSettings,
    /// The admin API.
    pub admin: AdminSettings,
    /// Bounce profiles by name; one named [`DEFAULT_PROFILE`] always exists.
    pub bounce_profiles: HashMap<Arc<str>, Arc<BounceProfile>>,
    /// Destination Controls.
    pub destinations: Destinations,
    /// Deadlines of deliveries.
    pub timeouts: Timeouts,
    /// The routes.
    pub routes: Arc<Table>,
    /// The file the routes came from.
    pub routes_file: Option<PathBuf>,
    /// The tuning profile, as it was named.
    pub profile: Arc<str>,
    /// Its engine keys.
    pub tuning: Tuning,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Shards to start: as configured, or one for each CPU this process may use.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        let online = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let wanted = if self.shards == 0 { online() } else { self.shards };
        wanted.clamp(1, limits::SHARDS_MAX)
    }

    /// The bounce profile named `name`. Queued mail outlives configurations: a profile that is
    /// gone reads as the default one.
    #[must_use]
    pub fn bounce_profile(&self, name: &str) -> &Arc<BounceProfile> {
        let found = self.bounce_profiles.get(name);
        found.unwrap_or_else(|| &self.bounce_profiles[DEFAULT_PROFILE])
    }

    /// The bounce profile of a recipient: its destination's own, else that of the listener (or
    /// of the report) the message came from.
    #[must_use]
    pub fn bounce_profile_for(
        &self,
        message_profile: &str,
        domain: &Domain,
    ) -> &Arc<BounceProfile> {
        let of_destination = self.destinations.controls(domain).bounce_profile.as_deref();
        self.bounce_profile(of_destination.unwrap_or(message_profile))
    }

    /// The snapshot that a reload puts in force: routes, destinations, bounce profiles,
    /// deadlines and the tuning profile of `new`, everything else as this process started. Second:
    /// the keys that differ in `new` and wait for the next start.
    #[must_use]
    pub fn reloaded(&self, new: Snapshot) -> (Snapshot, Vec<&'static str>) {
        let differences = [
            ("hostname", self.hostname != new.hostname),
            ("spool", self.queue != new.queue),
            ("shards", self.shards != new.shards),
            ("io", self.io != new.io),
            ("commit", self.commit != new.commit),
            ("possible_delivery", self.possible_delivery != new.possible_delivery),
            ("max_connections_out", self.connections_out_max != new.connections_out_max),
            ("shutdown_final_reply", self.shutdown_final_reply != new.shutdown_final_reply),
            ("postmaster", self.postmaster != new.postmaster),
            ("listener", self.listeners != new.listeners),
            ("log", self.log != new.log),
            ("dns", self.dns != new.dns),
            ("admin", self.admin != new.admin),
        ];
        let waiting = differences.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key);
        let waiting = waiting.collect();
        let next = Snapshot {
            bounce_profiles: new.bounce_profiles,
            destinations: new.destinations,
            timeouts: new.timeouts,
            routes: new.routes,
            routes_file: new.routes_file,
            profile: new.profile,
            tuning: new.tuning,
            ..self.clone()
        };
        (next, waiting)
    }
}

/// The snapshot in force, for every thread.
#[derive(Debug)]
pub struct Store {
    current: ArcSwap<Snapshot>,
    /// Makes the next epoch and the replacement one step; readers never take it.
    replacing: Mutex<()>,
}

impl Store {
    /// A store with its first snapshot in force.
    #[must_use]
    pub fn new(first: Snapshot) -> Self {
        Self { current: ArcSwap::from_pointee(first), replacing: Mutex::new(()) }
    }

    /// The snapshot in force. Cheap and without a lock; hold it for one step of work, not longer.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The snapshot in force, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts `snapshot` in force with the next epoch, and returns that.
    pub fn replace(&self, mut snapshot: Snapshot) -> u64 {
        let _alone = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.epoch = self.current.load().epoch + 1;
        let epoch = snapshot.epoch;
        self.current.store(Arc::new(snapshot));
        epoch
    }
}
