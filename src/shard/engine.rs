//! The threads of the engine: one per shard, made at start, joined at the end.
//!
//! Owns: start (lock, recovery, listeners), the end in good order, and the choice between
//! io_uring and epoll. Never: a shard's work.
//!
//! Diagnostics: [`StartError`] with the exit code's meaning; what recovery found goes to the
//! mail log.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::connection::Bell;
use super::hot::Hot;
use super::io::{self, Backend, BoundListener, Files};
use super::receive_memory::ReceiveMemory;
use super::shortage::Pause;
use super::{Shard, Shared, Stopping};
use crate::config::tuning::Tuning;
use crate::config::{IoMode, Snapshot, Store};
use crate::mail::time::millis;
use crate::mail::{Mono, ShardId};
use crate::queue::{Opened, Queue, Spool};
use crate::schedule::QueueClock;
use crate::telemetry::MailLog;
use crate::telemetry::settings::LogTime;

/// How long everything but final replies may take at the end.
const GRACE: Duration = Duration::from_secs(10);

/// Why the engine does not start.
#[derive(Debug)]
pub enum StartError {
    /// io_uring was demanded and is refused.
    Ring(String),
    /// A listener cannot be bound.
    Listen(SocketAddr, std::io::Error),
    /// The spool cannot be opened.
    Spool(crate::queue::SpoolError),
    /// A shard could not be started.
    Shard(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(why) => write!(f, "{why}; or set io = \"auto\" or \"epoll\""),
            Self::Listen(address, error) => {
                write!(
                    f,
                    "cannot listen on {address}: {error}; choose another [[listener]] address"
                )
            }
            Self::Spool(error) => error.fmt(f),
            Self::Shard(error) => write!(f, "a shard did not start: {error}"),
        }
    }
}

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    listening: Vec<SocketAddr>,
    backend: Backend,
    note: Option<String>,
}

impl Engine {
    /// Opens the spool, binds the listeners and starts the shards. Returns when all of them take
    /// mail.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(config: Snapshot) -> Result<Self, StartError> {
        let (backend, note) = choose_backend(config.io)?;
        let shards = config.shard_count();
        let spool_shards = u8::try_from(shards).unwrap_or(u8::MAX);
        let spool = Spool::open(&config.queue, spool_shards).map_err(StartError::Spool)?;
        let spool = Arc::new(spool);
        let (listening, mut bound) = bind(&config, shards)?;
        let shared = Arc::new(Shared::new(Store::new(config), shards));
        let (ready, is_ready) = mpsc::channel();
        let mut threads = Vec::with_capacity(shards);
        for number in (0..shards).rev() {
            let listeners = bound.pop().unwrap_or_default();
            let id = ShardId(u8::try_from(number).unwrap_or(u8::MAX));
            let (shared, spool, ready) = (shared.clone(), spool.clone(), ready.clone());
            let body = move || {
                let _guard = AbortOnPanic;
                run_shard(id, backend, shared, &spool, listeners, &ready);
            };
            let thread = std::thread::Builder::new().name(format!("shard-{number}")).spawn(body);
            threads.push(thread.map_err(|e| StartError::Shard(e.to_string()))?);
        }
        drop(ready);
        let engine = Self { shared, threads, listening, backend, note };
        for _ in 0..shards {
            let answer = is_ready.recv().unwrap_or_else(|_| Err("it panicked".to_owned()));
            if let Err(why) = answer {
                engine.shared.stop(Stopping::Now);
                return Err(StartError::Shard(why));
            }
        }
        Ok(engine)
    }

    /// What shards share, for the control plane.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The addresses it takes mail on, in the order of the configuration.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// How it does its I/O.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Why it does not run on io_uring, in one line, when it was free to.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Waits for the end of all shards, after [`Shared::stop`].
    pub fn join(self) {
        for thread in self.threads {
            thread.join().expect("a shard that panics ends the process");
        }
    }
}

/// Ends the process when its thread panics, also where panics unwind: the state of a shard is
/// unknown then, and the others would run on without it, or wait for it at start for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn choose_backend(mode: IoMode) -> Result<(Backend, Option<String>), StartError> {
    match (mode, io::probe_ring()) {
        (IoMode::Epoll, _) => Ok((Backend::Epoll, None)),
        (_, Ok(())) => Ok((Backend::Ring, None)),
        (IoMode::Ring, Err(why)) => Err(StartError::Ring(why)),
        (IoMode::Auto, Err(why)) => Ok((Backend::Epoll, Some(format!("{why}; running on epoll")))),
    }
}

type Bound = Vec<Vec<(usize, BoundListener)>>;

/// One socket per shard and listener; port 0 is chosen once and shared.
fn bind(config: &Snapshot, shards: usize) -> Result<(Vec<SocketAddr>, Bound), StartError> {
    let mut bound: Bound = (0..shards).map(|_| Vec::new()).collect();
    let mut listening = Vec::new();
    for (number, listener) in config.listeners.iter().enumerate() {
        let failed = |error| StartError::Listen(listener.address, error);
        // Without this look a second engine would share the port through SO_REUSEPORT.
        io::wait_until_free(listener.address).map_err(failed)?;
        let Tuning { listen_backlog, socket_buffer_octets, .. } = config.tuning;
        let bind = |address| BoundListener::bind(address, listen_backlog, socket_buffer_octets);
        let first = bind(listener.address).map_err(failed)?;
        let address = first.local_addr().map_err(failed)?;
        bound[0].push((number, first));
        for of_shard in &mut bound[1..] {
            of_shard.push((number, bind(address).map_err(failed)?));
        }
        listening.push(address);
    }
    Ok((listening, bound))
}

fn run_shard(
    id: ShardId,
    backend: Backend,
    shared: Arc<Shared>,
    spool: &Spool,
    listeners: Vec<(usize, BoundListener)>,
    ready: &mpsc::Sender<Result<(), String>>,
) {
    if shared.shards() > 1 {
        // An unpinned shard works all the same, only less evenly.
        let _pinned = io::pin_thread(usize::from(id.0));
    }
    let outcome = io::run(backend, async {
        match Shard::open(id, backend, shared, spool) {
            Ok(shard) => shard.live(listeners, ready).await,
            Err(why) => drop(ready.send(Err(why))),
        }
    });
    if let Err(error) = outcome {
        drop(ready.send(Err(error.to_string())));
    }
}

impl Shard {
    /// Recovers the shard's queue and schedules what is in it.
    fn open(
        id: ShardId,
        backend: Backend,
        shared: Arc<Shared>,
        spool: &Spool,
    ) -> Result<Rc<Self>, String> {
        let config = shared.config.load_full();
        let files = Files::start(backend).map_err(|e| e.to_string())?;
        let medium = Arc::new(spool.medium());
        let now = io::now();
        let longest = config.bounce_profiles.values().map(|p| millis(p.retry_max)).max();
        let mut options = spool.options(id, longest.unwrap_or(0));
        options.segments_ahead = config.tuning.queue_segments_ahead;
        options.commit_messages_max = config.tuning.commit_batch_max;
        options.direct_octets_min = match (backend, config.tuning.direct_write_octets) {
            // The helper would lock the file for as long as the disk writes, and a shard that
            // stores a word waits for it; a ring lets go of it at once.
            (Backend::Epoll, _) | (_, 0) => u64::MAX,
            (Backend::Ring, octets) => octets,
        };
        let opened = Queue::open(&*medium, options, now).map_err(|e| {
            let spool = config.queue.spool.display();
            format!("spool {spool}: {e}; see that its disk has room and that we may write to it")
        })?;
        let zone = match config.log.time {
            LogTime::Local => jiff::tz::TimeZone::system(),
            LogTime::Utc => jiff::tz::TimeZone::UTC,
        };
        let Opened { queue, files: segments, recovered } = opened;
        let adopted = segments.into_iter().map(|(id, file)| (id, files.adopt(file))).collect();
        let shard = Rc::new(Self {
            id,
            backend,
            files,
            medium,
            queue: RefCell::new(queue),
            segment_files: RefCell::new(adopted),
            disk_trouble: RefCell::new((String::new(), now.mono)),
            uncommitted: RefCell::default(),
            parked: RefCell::default(),
            usual_delivery_us: Cell::new(0),
            answered_us: Cell::new(0),
            waiters: RefCell::default(),
            hot: RefCell::new(Hot::new(
                usize::try_from(config.tuning.hot_body_octets).unwrap_or(usize::MAX),
            )),
            receive_memory: ReceiveMemory::new(config.tuning.receive_memory_octets),
            destinations: RefCell::default(),
            looked_at: Cell::new(0),
            resolved: RefCell::default(),
            under_way: RefCell::default(),
            pool: RefCell::default(),
            mail_log: RefCell::new(MailLog::new(zone, config.log.detail)),
            log_under_way: Cell::new(false),
            latencies: RefCell::default(),
            commit_latencies: RefCell::default(),
            bells: RefCell::default(),
            commit_bell: Bell::default(),
            feed_bell: Bell::default(),
            log_bell: Bell::default(),
            hold_bell: Bell::default(),
            clients: Cell::new(0),
            sessions: Cell::new(0),
            pause: Pause::default(),
            takes_mail: Cell::new(true),
            stopped_at: Cell::new(None),
            clock: QueueClock::new(now),
            snapshot: RefCell::new(Rc::new(Snapshot::clone(&config))),
            shared,
        });
        shard.take_over(&recovered);
        Ok(shard)
    }

    /// Counts, logs and schedules what recovery found.
    fn take_over(self: &Rc<Self>, recovered: &crate::queue::Recovered) {
        let counters = self.counters();
        let counts = self.queue.borrow().counts();
        let held = counts.poison + counts.damaged;
        counters.found_at_start.add(counts.pending + held);
        counters.damaged.add(held);
        counters.pending.set(counts.pending);
        for note in &recovered.notes {
            let text = format!("queue: {note}");
            self.log(|log, now| {
                if note.is_trouble() { log.warning(now, &text) } else { log.info(now, &text) }
            });
        }
        if recovered.notes_lost > 0 {
            let text = format!("queue: {} more findings like these", recovered.notes_lost);
            self.log(|log, now| log.warning(now, &text));
        }
        for (mid, rids) in &recovered.uncertain {
            counters.uncertain.add(rids.len() as u64);
            self.log(|log, now| log.possible_delivery(now, crate::mail::Dcid(0), *mid, rids));
        }
        let (mut cursor, mut handles) = (Some(0), Vec::new());
        while let Some(from) = cursor {
            cursor = self.queue.borrow().walk(from, 1024, &mut handles);
            for handle in handles.drain(..) {
                self.schedule_found(handle);
            }
        }
    }

    async fn live(
        self: Rc<Self>,
        listeners: Vec<(usize, BoundListener)>,
        ready: &mpsc::Sender<Result<(), String>>,
    ) {
        let log = self.begin_log().await;
        // What was found in flight stands in the log now.
        self.queue.borrow_mut().end_flights();
        let mut open = Vec::new();
        for (number, bound) in listeners {
            match bound.open(self.backend) {
                Ok(listener) => open.push((number, listener)),
                Err(error) => return drop(ready.send(Err(error.to_string()))),
            }
        }
        io::rest(&self.files);
        io::spawn(self.clone().run_commits());
        io::spawn(self.clone().run_hold_back());
        io::spawn(self.clone().run_log(log));
        io::spawn(self.clone().run_ticks());
        io::spawn(self.clone().run_doorbell());
        io::spawn(self.clone().run_feed());
        for (number, listener) in &open {
            io::spawn(self.clone().run_listener(*number, listener.clone()));
        }
        drop(ready.send(Ok(())));
        while self.stopping() == Stopping::No {
            io::sleep(Duration::from_millis(50)).await;
        }
        self.stopped_at.set(Some(self.now().mono));
        for (_, listener) in &open {
            listener.shutdown();
        }
        self.end().await;
    }

    /// The end in good order: 10 s for everything, longer for replies to a final dot.
    async fn end(self: &Rc<Self>) {
        while self.clients.get() + self.sessions.get() > 0 && !self.final_reply_is_over() {
            self.ring_all_sessions();
            io::sleep(Duration::from_millis(50)).await;
        }
        // What is left is cut; a transaction past its final dot is uncertain at the next start.
        self.queue.borrow_mut().release_held(Mono(u64::MAX));
        self.queue.borrow_mut().flush();
        self.commit_bell.ring();
        while !self.queue.borrow().is_quiet() {
            io::sleep(Duration::from_millis(10)).await;
        }
        self.finish_log().await;
    }

    /// The time for transactions that have not sent their final dot is over.
    pub(super) fn grace_is_over(&self) -> bool {
        self.stopped_for() >= GRACE
    }

    /// The time for replies to a final dot is over.
    pub(super) fn final_reply_is_over(&self) -> bool {
        self.stopped_for() >= self.config().shutdown_final_reply
            || self.stopping() == Stopping::Now && self.stopped_for() >= Duration::from_secs(1)
    }

    fn stopped_for(&self) -> Duration {
        let since = self.stopped_at.get().unwrap_or(Mono(u64::MAX));
        Duration::from_millis(self.now().mono.since_ms(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_panic_of_a_shard_ends_the_process() {
        const CHILD: &str = "RINGPOST_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            let shard = || {
                let _guard = AbortOnPanic;
                panic!("as a shard might");
            };
            drop(std::thread::spawn(shard).join());
            return;
        }
        let this = std::env::current_exe().unwrap();
        let name = "shard::engine::tests::a_panic_of_a_shard_ends_the_process";
        let output = Command::new(this).args(["--exact", name]).env(CHILD, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }
}
