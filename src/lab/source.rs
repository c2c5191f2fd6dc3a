//! A sender that measures: so many messages, over so many sessions, as fast as they are taken.
//!
//! Owns: [`run`], and the report of what was acknowledged, refused and lost. Never: a queue, or a
//! retry of what was refused.
//!
//! Each message has a unique Message-ID and a field `X-Ledger: <run>-<n>`, so that a test can hold
//! what was acknowledged here against what arrived elsewhere. Plainly, one message goes per round
//! trip: its body and final dot leave together with MAIL, RCPT and DATA of the next (RFC 2920
//! 3.1). With BDAT whole transactions follow each other, a window of them in flight (RFC 3030).
//!
//! Diagnostics: [`SourceError`] when nothing can be sent at all; everything that a peer does is a
//! figure in the [`SourceReport`].

mod message;
mod session;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use message::Mint;

/// Longer waits for a reply count as this long: one hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// What a source is started with.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Whom to connect to.
    pub to: SocketAddr,
    /// Messages to send.
    pub messages: u64,
    /// Connections at once.
    pub sessions: u32,
    /// Octets of each message, its header included; large enough for the header (about 250).
    pub size: usize,
    /// Recipients of each message; those behind the first get `+1`, `+2` and so on before
    /// the at sign.
    pub recipients: u32,
    /// Reverse-path, without brackets; empty is the null reverse-path.
    pub from: String,
    /// Forward-path, without brackets; `%n` becomes the number of the message.
    pub rcpt: String,
    /// `%n` becomes the number of the message modulo this.
    pub domains: Option<u64>,
    /// Subject of each message.
    pub subject: String,
    /// Name in EHLO.
    pub helo: String,
    /// First part of every id; empty makes a new one from time and process.
    pub run: String,
    /// Send by BDAT where CHUNKING and PIPELINING are offered.
    pub bdat: bool,
    /// Messages in flight per connection with BDAT, at least 1.
    pub window: usize,
    /// At most this many messages per second, over all sessions.
    pub rate: Option<f64>,
    /// Connect again when a connection breaks, and send again what was not answered.
    pub retry: bool,
    /// File that gets each acknowledged id, one per line, as soon as it is acknowledged.
    pub ledger: Option<PathBuf>,
    /// Give the numbers of acknowledged messages back in the report.
    pub keep_ids: bool,
    /// Longest wait for the connection or for one reply.
    pub patience: Duration,
    /// Sent behind the header in place of filler; `size` is not looked at then.
    pub content: Option<Vec<u8>>,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            to: SocketAddr::from(([127, 0, 0, 1], 2525)),
            messages: 1,
            sessions: 1,
            size: 4096,
            recipients: 1,
            from: "sender@source.ringpost.test".to_owned(),
            rcpt: "recipient@sink.ringpost.test".to_owned(),
            domains: None,
            subject: "Test message".to_owned(),
            helo: "source.ringpost.test".to_owned(),
            run: String::new(),
            bdat: false,
            window: 1,
            rate: None,
            retry: false,
            ledger: None,
            keep_ids: false,
            patience: Duration::from_secs(300),
            content: None,
        }
    }
}

/// Why a source could not begin.
#[derive(Debug)]
pub enum SourceError {
    /// The size is smaller than a message's header.
    Size {
        /// The smallest size that these options allow.
        octets_min: usize,
    },
    /// An address, a name or the subject holds a line end or an angle bracket.
    Text(String),
    /// The ledger cannot be opened.
    Ledger(PathBuf, io::Error),
    /// The machine gives no thread.
    Io(io::Error),
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceError::Size { octets_min } => {
                write!(f, "the size is too small for a header, take at least {octets_min}")
            }
            SourceError::Text(text) => {
                write!(f, "'{text}' holds a line end or an angle bracket, take it out")
            }
            SourceError::Ledger(file, error) => {
                write!(f, "cannot write the ledger {}: {error}", file.display())
            }
            SourceError::Io(error) => write!(f, "cannot begin: {error}"),
        }
    }
}

impl std::error::Error for SourceError {}

impl From<io::Error> for SourceError {
    fn from(error: io::Error) -> SourceError {
        SourceError::Io(error)
    }
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct SourceReport {
    /// First part of every id; message n is `<run>-<n>`, from 0.
    pub run: String,
    /// Messages asked for.
    pub messages: u64,
    /// Messages that were sent to their end, repeated ones counted again.
    pub sent: u64,
    /// Messages whose end was answered with 2yz.
    pub acknowledged: u64,
    /// Messages refused, by the code that refused them.
    pub refused: BTreeMap<u16, u64>,
    /// Recipients refused of messages that others of their recipients got, by code.
    pub recipients_refused: BTreeMap<u16, u64>,
    /// Connections that were greeted.
    pub connections: u64,
    /// Connections that broke before QUIT.
    pub connections_lost: u64,
    /// Connections that were not made, or not greeted with 2yz.
    pub connects_failed: u64,
    /// From the first connect to the end.
    pub seconds: f64,
    /// Acknowledged messages per second.
    pub rate: f64,
    /// Microseconds from sending the final dot to its reply: median.
    pub p50_us: u64,
    /// The same, 99 of 100.
    pub p99_us: u64,
    /// The same, 999 of 1000.
    pub p99_9_us: u64,
    /// Why the last connection that failed did so.
    pub last_error: Option<String>,
    /// Numbers of acknowledged messages in the order of their replies, when asked for.
    #[serde(skip)]
    pub acknowledged_ids: Vec<u64>,
}

impl SourceReport {
    /// Whether each message was acknowledged for each of its recipients.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.acknowledged == self.messages && self.recipients_refused.is_empty()
    }

    /// Messages that were refused.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The id of message `n`, as its X-Ledger field has it.
    #[must_use]
    pub fn id(&self, n: u64) -> String {
        format!("{}-{n}", self.run)
    }
}

/// Watches and ends a run from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    stop: Notify,
}

impl Progress {
    /// Messages acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Messages refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Ends the run now; its report says what was done until then.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Sends, and returns when everything was answered or given up.
///
/// # Errors
/// Nothing was sent, see [`SourceError`].
pub fn run(options: SourceOptions) -> Result<SourceReport, SourceError> {
    run_watched(options, Arc::default())
}

/// [`run`], watched through `progress`. Runs on a thread of its own while the caller waits.
///
/// # Errors
/// Nothing was sent, see [`SourceError`].
///
/// # Panics
/// When its thread has panicked.
pub fn run_watched(
    options: SourceOptions,
    progress: Arc<Progress>,
) -> Result<SourceReport, SourceError> {
    let thread = std::thread::Builder::new().name("source".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sessions = options.sessions.max(1);
        let work = Rc::new(Work::new(options, progress)?);
        LocalSet::new().block_on(&runtime, send_all(&work, sessions));
        Ok(work.report())
    })?;
    let done = thread.join();
    assert!(done.is_ok(), "the thread of the source has panicked");
    done.unwrap_or_else(|_| unreachable!("asserted above"))
}

async fn send_all(work: &Rc<Work>, sessions: u32) {
    let mut all = JoinSet::new();
    for _ in 0..sessions {
        all.spawn_local(session::run(Rc::clone(work)));
    }
    tokio::select! {
        () = async { while all.join_next().await.is_some() {} } => {}
        () = work.progress.stop.notified() => {}
    }
}

/// What the sessions of a run share; they live on one thread.
struct Work {
    options: SourceOptions,
    run: String,
    mint: Mint,
    next: Cell<u64>,
    /// Numbers whose connection broke before their reply, with `retry`.
    again: RefCell<Vec<u64>>,
    tally: RefCell<Tally>,
    ledger: Option<File>,
    started: Instant,
    progress: Arc<Progress>,
}

struct Tally {
    report: SourceReport,
    latency_us: Histogram<u64>,
}

/// What a session gets to do next.
enum Take {
    Message(u64),
    /// Nothing before this time, by the rate.
    Later(Instant),
    Nothing,
}

impl Work {
    fn new(options: SourceOptions, progress: Arc<Progress>) -> Result<Work, SourceError> {
        let now = jiff::Zoned::now();
        let run = if options.run.is_empty() {
            format!("{:x}.{:x}", now.timestamp().as_microsecond(), std::process::id())
        } else {
            options.run.clone()
        };
        let date = jiff::fmt::rfc2822::to_string(&now)
            .map_err(|error| SourceError::Text(error.to_string()))?;
        let mint = Mint::new(&options, &run, &date)?;
        let ledger = match &options.ledger {
            Some(path) => {
                let opened = File::options().create(true).append(true).open(path);
                Some(opened.map_err(|error| SourceError::Ledger(path.clone(), error))?)
            }
            None => None,
        };
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).map_err(io::Error::other)?;
        let report = SourceReport {
            run: run.clone(),
            messages: options.messages,
            ..SourceReport::default()
        };
        Ok(Work {
            options,
            run,
            mint,
            next: Cell::new(0),
            again: RefCell::default(),
            tally: RefCell::new(Tally { report, latency_us }),
            ledger,
            started: Instant::now(),
            progress,
        })
    }

    fn take(&self) -> Take {
        if let Some(n) = self.again.borrow_mut().pop() {
            return Take::Message(n);
        }
        let n = self.next.get();
        if n >= self.options.messages {
            return Take::Nothing;
        }
        if let Some(rate) = self.options.rate.filter(|rate| *rate > 0.0) {
            let due = self.started + Duration::from_secs_f64(n as f64 / rate);
            if due > Instant::now() {
                return Take::Later(due);
            }
        }
        self.next.set(n + 1);
        Take::Message(n)
    }

    fn is_done(&self) -> bool {
        self.next.get() >= self.options.messages && self.again.borrow().is_empty()
    }

    fn give_back(&self, n: u64) {
        self.again.borrow_mut().push(n);
    }

    fn acknowledge(&self, n: u64, latency: Duration, refused: &[u16], lines: &mut Vec<u8>) {
        let tally = &mut *self.tally.borrow_mut();
        tally.report.acknowledged += 1;
        self.progress.acknowledged.store(tally.report.acknowledged, Ordering::Relaxed);
        tally.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        for code in refused {
            *tally.report.recipients_refused.entry(*code).or_default() += 1;
        }
        if self.options.keep_ids {
            tally.report.acknowledged_ids.push(n);
        }
        if self.ledger.is_some() {
            lines.extend_from_slice(self.run.as_bytes());
            lines.push(b'-');
            message::number(n, lines);
            lines.push(b'\n');
        }
    }

    /// Appends what [`Work::acknowledge`] gathered; a line that cannot be written is an error of
    /// the run, because the ledger would claim less than was acknowledged.
    fn write_ledger(&self, lines: &mut Vec<u8>) {
        if let Some(mut ledger) = self.ledger.as_ref()
            && !lines.is_empty()
        {
            if let Err(error) = ledger.write_all(lines) {
                self.note(|report| report.last_error = Some(format!("ledger: {error}")));
                self.progress.stop();
            }
            lines.clear();
        }
    }

    fn refuse(&self, code: u16) {
        self.note(|report| *report.refused.entry(code).or_default() += 1);
        self.progress.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, change: impl FnOnce(&mut SourceReport)) {
        change(&mut self.tally.borrow_mut().report);
    }

    fn report(&self) -> SourceReport {
        let tally = self.tally.borrow();
        let seconds = self.started.elapsed().as_secs_f64();
        let quantile = |q| tally.latency_us.value_at_quantile(q);
        SourceReport {
            seconds,
            rate: tally.report.acknowledged as f64 / seconds.max(1e-6),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p99_9_us: quantile(0.999),
            ..tally.report.clone()
        }
    }
}
