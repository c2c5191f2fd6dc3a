//! Shards: the only data-plane I/O. One shard = one pinned thread = one runtime = one ring.
//!
//! Owns: the [`Shard`] and its tasks. Never: failure policy (`settle`), the choice of host
//! (`route`), the dialogue (`smtp`), the disk format (`queue`): it carries their words to and
//! from the kernel.
//!
//! | file | part of the flow |
//! |---|---|
//! | `balance` | inject: clients spread evenly over the shards |
//! | `listener` | inject: accept, a client's dialogue, the message handed to the queue |
//! | `receive_memory` | inject: memory for messages on their way in, and who waits for it |
//! | `early` | queue: deliver-or-sync, between the final dot and the commit |
//! | `commit` | queue: effects carried out, 250 released by their results |
//! | `hot` | queue: bytes of messages that are still in memory |
//! | `delivery` | **the story of one delivery**: schedule, route, connect, transact, settle |
//! | `destination` | route: a receiving domain resolved to a plan and its limits |
//! | `pool` | connect: lanes, growth by need, permits |
//! | `connect` | connect: a TCP connection to a host, within its deadline |
//! | `session` | transact: one connection to a host |
//! | `settlement` | settle: what becomes of each recipient, carried out |
//! | `failover` | settle: what a failed connection does |
//! | `shortage` | settle: what our own machine lacks for a connection |
//! | `bounce` | settle: hard bounces and their reports |
//! | `tick` | timers, wake-ups, probes, expiry, ten times a second |
//! | `engine` | start and end: spool, listeners, one thread per shard |
//! | `shared` | what the shards of a process share, and nothing else |
//! | `connection` | one socket under one task, and the bell that wakes it |
//! | `log` | the writer of the mail log |
//! | `log_file` | its file: whole lines appended, many past the page cache |
//! | [`io`] | the doors to the kernel: io_uring, epoll, files, clock |
//!
//! Shared between shards are only the members of [`Shared`]: the configuration snapshot, cursors
//! and host health, permits, wake-up gates, counters, the time of a warning, the turn to append to
//! the log. No shard ever waits for another; a writer of the log does.
//!
//! Diagnostics: a panic ends the process (its state is unknown then); the marks `in flight` in
//! the queue tell the next start which message it was.

mod balance;
mod bounce;
mod commit;
mod connect;
mod connection;
mod delivery;
mod destination;
mod early;
pub mod engine;
mod failover;
mod hot;
pub mod io;
mod listener;
mod log;
mod log_file;
mod pool;
mod receive_memory;
mod session;
mod settlement;
mod shared;
mod shortage;
mod tick;

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::config::Snapshot;
use crate::mail::{Dcid, Domain, Handle, Mid, Mono, Now, ShardId};
use crate::queue::{FileMedium, Queue, SegmentId};
use crate::schedule::{Destinations, QueueClock};
use crate::telemetry::{Counters, Latencies, MailLog};

use commit::Waiter;
use connection::Bell;
use delivery::UnderWay;
use destination::Destination;
use early::Parked;
use hot::{Hot, Message};
use io::{Backend, File, Files};
use pool::Pool;
use receive_memory::ReceiveMemory;
use shortage::Pause;

pub use engine::Engine;
pub use receive_memory::ReceiveUsage;
pub use shared::{ShardReport, Shared, Stopping};

/// One shard: everything here belongs to one thread.
pub struct Shard {
    id: ShardId,
    backend: Backend,
    shared: Arc<Shared>,
    /// A copy of the configuration in force, looked at ten times a second and when the doorbell
    /// rings: a reference count that all shards write per message would be a meeting point.
    snapshot: RefCell<Rc<Snapshot>>,
    files: Files,
    medium: Arc<FileMedium>,
    queue: RefCell<Queue>,
    segment_files: RefCell<HashMap<SegmentId, File>>,
    /// What was said last of a failing disk, and when.
    disk_trouble: RefCell<(String, Mono)>,
    /// Messages that are not on disk yet, and pieces of their deliveries that wait for that.
    uncommitted: RefCell<HashMap<Mid, Arc<Message>>>,
    parked: RefCell<HashMap<Mid, Vec<Parked>>>,
    /// The usual time from the final dot to the next hop's acceptance, in microseconds.
    usual_delivery_us: Cell<u64>,
    /// When the clients of the last commit were answered, in microseconds.
    answered_us: Cell<u64>,
    /// Who waits for a commit.
    waiters: RefCell<HashMap<crate::queue::Ticket, Waiter>>,
    hot: RefCell<Hot>,
    receive_memory: ReceiveMemory,
    destinations: RefCell<Destinations>,
    /// Where the next look at the hosts of destinations goes on.
    looked_at: Cell<usize>,
    /// Receiving domains with mail here, resolved.
    resolved: RefCell<HashMap<Domain, Rc<Destination>>>,
    /// Deliveries that have left their ready list, by handle.
    under_way: RefCell<HashMap<Handle, UnderWay>>,
    pool: RefCell<Pool>,
    mail_log: RefCell<MailLog>,
    /// A batch of lines is being written.
    log_under_way: Cell<bool>,
    latencies: RefCell<Latencies>,
    commit_latencies: RefCell<Latencies>,
    /// Bells of all connections, for the sweep of deadlines.
    bells: RefCell<Vec<Weak<Bell>>>,
    /// Rung when there is an effect to carry out, a delivery to feed, a line to write.
    commit_bell: Bell,
    feed_bell: Bell,
    log_bell: Bell,
    hold_bell: Bell,
    clients: Cell<usize>,
    sessions: Cell<usize>,
    pause: Pause,
    takes_mail: Cell<bool>,
    /// When the end began.
    stopped_at: Cell<Option<crate::mail::Mono>>,
    /// What is stored is timed by it.
    clock: QueueClock,
}

impl Shard {
    fn now(&self) -> Now {
        io::now()
    }

    /// The time for what is stored: it does not jump with the wall clock.
    fn queue_now(&self) -> Now {
        self.clock.read(self.now().mono)
    }

    fn config(&self) -> Rc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Looks for a new configuration; what waits in lanes takes its turn anew under it, and
    /// destinations that were set aside under the old one may feed again.
    fn refresh_config(self: &Rc<Self>) {
        if self.shared.config.load().epoch == self.config().epoch {
            return;
        }
        self.snapshot.replace(Rc::new(Snapshot::clone(&self.shared.config.load())));
        self.mail_log.borrow_mut().set_detail(self.config().log.detail);
        self.receive_memory.set_octets_max(self.config().tuning.receive_memory_octets);
        self.turn_lanes_anew();
        self.destinations.borrow_mut().poke_all();
        self.feed_bell.ring();
        self.shared.works_under(self.id, self.config().epoch);
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters[usize::from(self.id.0)]
    }

    /// Writes to the mail log; the writer is woken when much has collected.
    fn log(&self, write: impl FnOnce(&mut MailLog, Now)) {
        let mut log = self.mail_log.borrow_mut();
        write(&mut log, self.now());
        if log.waiting_octets() > log_file::BATCH_OCTETS {
            self.log_bell.ring();
        }
    }

    /// A bell that the sweep of deadlines knows.
    fn new_bell(&self) -> Rc<Bell> {
        let bell = Rc::new(Bell::default());
        self.bells.borrow_mut().push(Rc::downgrade(&bell));
        bell
    }

    /// The id of a delivery connection; 0 when the disk has not taken the reservation of new ids
    /// for a million connections.
    fn next_dcid(&self) -> Dcid {
        self.queue.borrow_mut().ids().next_dcid().unwrap_or(Dcid(0))
    }

    /// A socket to a host, bound to a source address.
    fn socket_to(
        &self,
        peer: SocketAddr,
        source: Option<IpAddr>,
    ) -> std::io::Result<io::Connecting> {
        let buffer_octets = self.config().tuning.socket_buffer_octets;
        io::Socket::to(self.backend, peer, source, buffer_octets)
    }

    /// Rings whoever a permit went to.
    fn ring(&self, shard: Option<ShardId>) {
        if let Some(shard) = shard {
            self.shared.ring(shard);
        }
    }

    fn stopping(&self) -> Stopping {
        self.shared.stopping()
    }
}
