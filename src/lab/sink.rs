//! A receiver that accepts mail as fast as it comes, and misbehaves on demand.
//!
//! Owns: [`Sink`], which starts one, and [`SinkHandle`], through which a test, a bench or the verb
//! `sink` watches and steers it while it runs. Never: delivery, relaying, or mail that must last.
//!
//! One thread serves all connections. Everything that one read brought is answered in one write.
//! A host that dies resets its connections and refuses new ones; its port stays reserved, so that
//! it comes back under the same address.
//!
//! Diagnostics: only starting and coming back can fail, with the error of the socket. A message
//! that cannot be dumped is answered with 452.

mod dialogue;
mod ledger;
mod script;
mod serve;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use memchr::memmem;
use serde::Serialize;
use tokio::time::Instant;

pub use ledger::{Envelope, IDS_MAX, Received};
pub use script::{Answered, Behaviour, Stage};

use ledger::Ledger;
use script::Script;
use serve::{Control, Order, Server};

/// What a sink is started with.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// How it behaves at first.
    pub behaviour: Behaviour,
    /// File that holds the number of accepted messages, at most 100 ms late.
    pub count_file: Option<PathBuf>,
    /// Folder that gets one file per accepted message, without dot-stuffing.
    pub dump: Option<PathBuf>,
    /// Remember the ids and recipients of accepted messages for [`SinkHandle::received`].
    pub keep_ids: bool,
    /// End by itself after this many accepted messages.
    pub exit_after: Option<u64>,
}

impl Default for SinkOptions {
    fn default() -> SinkOptions {
        SinkOptions {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            behaviour: Behaviour::default(),
            count_file: None,
            dump: None,
            keep_ids: false,
            exit_after: None,
        }
    }
}

/// What a sink has counted so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SinkCounts {
    /// Messages accepted: a 2yz was given to their end.
    pub messages: u64,
    /// Recipients of accepted messages.
    pub recipients: u64,
    /// Octets of accepted messages, as sent.
    pub octets: u64,
    /// Connections taken since start, refused ones included.
    pub connections: u64,
    /// Connections that are open now.
    pub connections_open: u64,
    /// Most connections that were open at once.
    pub connections_peak: u64,
}

/// The summary of a sink that has ended.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct SinkReport {
    /// Messages accepted.
    pub messages: u64,
    /// Recipients of accepted messages.
    pub recipients: u64,
    /// Connections taken.
    pub connections: u64,
    /// Octets of accepted messages, as sent.
    pub octets: u64,
    /// From the first connection to the last accepted message.
    pub seconds: f64,
    /// Accepted messages per second of these.
    pub rate: f64,
}

/// Starts sinks.
#[derive(Debug)]
pub struct Sink;

impl Sink {
    /// Binds the addresses and serves them on a thread of its own. When this returns,
    /// connections are taken.
    ///
    /// # Errors
    /// An address cannot be bound, the dump folder cannot be made, or the count file cannot be
    /// written.
    pub fn start(options: SinkOptions) -> io::Result<SinkHandle> {
        let shared = Arc::new(Shared::new(&options));
        if let Some(folder) = &options.dump {
            std::fs::create_dir_all(folder).map_err(|error| named(folder.display(), &error))?;
        }
        if let Some(file) = &options.count_file {
            ledger::write_count(file, 0).map_err(|error| named(file.display(), &error))?;
        }
        let (server, control) = Server::bind(&options, Arc::clone(&shared))?;
        let addresses = server.addresses().to_vec();
        let thread =
            std::thread::Builder::new().name("sink".to_owned()).spawn(move || server.run())?;
        let handle = SinkHandle { addresses, shared, control, thread: Some(thread) };
        handle.control.order(Order::Up)?;
        Ok(handle)
    }
}

/// The error, with what it is about.
fn named(what: impl fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// A running sink; dropping it stops it.
#[derive(Debug)]
pub struct SinkHandle {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    control: Control,
    thread: Option<JoinHandle<()>>,
}

impl SinkHandle {
    /// The first address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All addresses that it listens on, in the order asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> SinkCounts {
        self.shared.counts()
    }

    /// The ids of accepted messages (X-Ledger, else Message-ID, else empty) and what was accepted
    /// under each. Empty unless `keep_ids` was asked for.
    ///
    /// # Panics
    /// When there were more than [`IDS_MAX`] ids.
    #[must_use]
    pub fn received(&self) -> HashMap<String, Received> {
        self.shared.ledger().ids()
    }

    /// Changes how it behaves: new connections at once, open ones from their next read on.
    pub fn set_behaviour(&self, behaviour: &Behaviour) {
        self.shared.script.store(Arc::new(Script::new(behaviour)));
    }

    /// The host dies: when this returns, open connections are reset and new ones refused.
    ///
    /// # Errors
    /// The sink has already ended.
    pub fn die(&self) -> io::Result<()> {
        self.control.order(Order::Down)
    }

    /// The host comes back under the same addresses.
    ///
    /// # Errors
    /// The sink has already ended, or its port was taken by another.
    pub fn revive(&self) -> io::Result<()> {
        self.control.order(Order::Up)
    }

    /// Resets the open connections; new ones are still taken.
    ///
    /// # Errors
    /// The sink has already ended.
    pub fn reset_connections(&self) -> io::Result<()> {
        self.control.order(Order::Reset)
    }

    /// Something that can stop this sink from another thread, while this one is in
    /// [`SinkHandle::wait`].
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.control.clone())
    }

    /// Waits until it ends by itself or by a [`Stopper`].
    ///
    /// # Panics
    /// When its thread has panicked.
    pub fn wait(mut self) -> SinkReport {
        self.join();
        self.shared.report()
    }

    /// Ends it: connections are closed, the count file is written.
    ///
    /// # Panics
    /// When its thread has panicked.
    pub fn stop(self) -> SinkReport {
        self.stopper().stop();
        self.wait()
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the thread of the sink has panicked");
        }
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stopper().stop();
            self.join();
        }
    }
}

/// Stops a sink; see [`SinkHandle::stopper`].
#[derive(Clone, Debug)]
pub struct Stopper(Control);

impl Stopper {
    /// Ends the sink. One that has ended already stays so.
    pub fn stop(&self) {
        // An error says that it has ended already, which is what was asked for.
        self.0.order(Order::Stop).unwrap_or_default();
    }
}

/// What the thread of a sink and its handle share. The counters are figures for people and tests:
/// relaxed, as no other memory hangs on them.
#[derive(Debug)]
struct Shared {
    script: ArcSwap<Script>,
    ledger: Mutex<Ledger>,
    keep_ids: bool,
    dump: Option<PathBuf>,
    exit_after: Option<u64>,
    /// Set once `exit_after` messages are accepted.
    enough: tokio::sync::Notify,
    /// Connections that end now are reset.
    reset: AtomicBool,
    end_of_data: memmem::Finder<'static>,
    messages: AtomicU64,
    recipients: AtomicU64,
    octets: AtomicU64,
    connections: AtomicU64,
    connections_open: AtomicU64,
    connections_peak: AtomicU64,
    started: Instant,
    /// Microseconds from `started` to the first connection, and to the last accepted message.
    first_us: AtomicU64,
    last_us: AtomicU64,
}

impl Shared {
    fn new(options: &SinkOptions) -> Shared {
        Shared {
            script: ArcSwap::from_pointee(Script::new(&options.behaviour)),
            ledger: Mutex::default(),
            keep_ids: options.keep_ids,
            dump: options.dump.clone(),
            exit_after: options.exit_after,
            enough: tokio::sync::Notify::new(),
            reset: AtomicBool::new(false),
            end_of_data: memmem::Finder::new(b"\r\n.\r\n"),
            messages: AtomicU64::new(0),
            recipients: AtomicU64::new(0),
            octets: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connections_open: AtomicU64::new(0),
            connections_peak: AtomicU64::new(0),
            started: Instant::now(),
            first_us: AtomicU64::new(u64::MAX),
            last_us: AtomicU64::new(0),
        }
    }

    fn keeps_envelope(&self) -> bool {
        self.keep_ids
    }

    fn keeps_messages(&self) -> bool {
        self.keep_ids || self.dump.is_some()
    }

    /// Counts and keeps a message; false when it could not be kept.
    fn accept(&self, envelope: &Envelope, recipients: u64, octets: u64, message: &[u8]) -> bool {
        let number = self.messages.load(Ordering::Relaxed) + 1;
        if let Some(folder) = &self.dump
            && ledger::dump(folder, number, message).is_err()
        {
            return false;
        }
        if self.keep_ids {
            self.ledger().record(message, envelope);
        }
        self.recipients.fetch_add(recipients, Ordering::Relaxed);
        self.octets.fetch_add(octets, Ordering::Relaxed);
        self.messages.store(number, Ordering::Relaxed);
        true
    }

    /// Ends the sink when it has enough; called after the replies were sent.
    fn notice_enough(&self) {
        let messages = self.messages.load(Ordering::Relaxed);
        if self.exit_after.is_some_and(|enough| messages >= enough) {
            self.enough.notify_one();
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection_begins(&self) -> u64 {
        self.first_us.fetch_min(self.elapsed_us(), Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        let open = self.connections_open.fetch_add(1, Ordering::Relaxed) + 1;
        self.connections_peak.fetch_max(open, Ordering::Relaxed);
        open
    }

    fn connection_ends(&self) {
        self.connections_open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Called once per read that brought messages, as reading the clock for each costs more.
    fn mark_time(&self) {
        self.last_us.store(self.elapsed_us(), Ordering::Relaxed);
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn counts(&self) -> SinkCounts {
        SinkCounts {
            messages: self.messages.load(Ordering::Relaxed),
            recipients: self.recipients.load(Ordering::Relaxed),
            octets: self.octets.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            connections_open: self.connections_open.load(Ordering::Relaxed),
            connections_peak: self.connections_peak.load(Ordering::Relaxed),
        }
    }

    fn report(&self) -> SinkReport {
        let SinkCounts { messages, recipients, octets, connections, .. } = self.counts();
        let first_us = self.first_us.load(Ordering::Relaxed);
        let busy_us = self.last_us.load(Ordering::Relaxed).saturating_sub(first_us);
        let seconds = busy_us as f64 / 1e6;
        let rate = if busy_us == 0 { 0.0 } else { messages as f64 / seconds };
        SinkReport { messages, recipients, connections, octets, seconds, rate }
    }
}
