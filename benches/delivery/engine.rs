//! The engine in this process, a source before it, a sink behind it, and what each of them used.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use ringpost::config;
use ringpost::lab::sink::{Sink, SinkHandle, SinkOptions};
use ringpost::lab::source::{self, SourceOptions};
use ringpost::schedule::settings::DestinationControls;
use ringpost::shard::{Engine, Stopping};
use ringpost::telemetry::{Conservation, Latencies, Totals};

use super::common::{self, Arguments, Threads};
use super::row::Row;

/// How long a load may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(300);

/// What carrying one load took.
pub struct Carried {
    pub messages: u64,
    /// From the first connect to the last acceptance by the sink.
    pub seconds: f64,
    pub used: Threads,
}

impl Carried {
    pub fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    pub fn per_message_us(&self, chosen: impl Fn(&str) -> bool) -> f64 {
        common::micros(self.used.used(chosen)) / self.messages as f64
    }
}

/// Threads that do the engine's work: its shards, its helpers, and the ring's workers.
pub fn is_shard(name: &str) -> bool {
    name.starts_with("shard-")
}

/// See [`is_shard`].
pub fn is_worker(name: &str) -> bool {
    name.starts_with("iou-") || name.starts_with("ringpost-")
}

/// Sends, and waits until the sink has it all.
pub fn carry(options: SourceOptions, sink: &SinkHandle) -> Carried {
    let messages = options.messages;
    let accepted_before = sink.counts().messages;
    let (mut before, mut after) = (Threads::default(), Threads::default());
    before.sample();
    let start = Instant::now();
    let sending = std::thread::spawn(move || source::run(options));
    while sink.counts().messages - accepted_before < messages {
        assert!(start.elapsed() < PATIENCE, "the load stands still: {:?}", sink.counts());
        after.sample();
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = start.elapsed().as_secs_f64();
    after.sample();
    let report = sending.join().unwrap().unwrap();
    assert!(report.is_complete(), "{report:?}");
    Carried { messages, seconds, used: Threads::since(&before, after) }
}

/// What the configuration of an engine depends on.
pub struct Settings<'a> {
    pub shards: u64,
    pub io: &'a str,
    pub log: &'a str,
    pub commit: &'a str,
    /// Line of smtproutes.
    pub route: String,
    /// Tables that follow.
    pub tables: String,
}

impl<'a> Settings<'a> {
    pub fn of(arguments: &'a Arguments, commit: &'a str, to: SocketAddr) -> Self {
        Self {
            shards: arguments.number("shards").unwrap_or(0),
            io: arguments.text("io").unwrap_or("auto"),
            log: if arguments.text("log") == Some("off") { "off" } else { "mail_logs" },
            commit,
            route: format!("ALL {to}\n"),
            tables: format!(
                "[destination.default]\nmax_messages_per_connection = {}\n",
                per_connection(arguments)
            ),
        }
    }
}

/// Messages that one connection to the sink carries: `--per-connection`, or what the engine does
/// unless it is told otherwise.
pub fn per_connection(arguments: &Arguments) -> u64 {
    let usual = u64::from(DestinationControls::default().messages_per_connection_max);
    arguments.number("per-connection").unwrap_or(usual).max(1)
}

/// An engine that runs.
pub struct Running {
    engine: Engine,
    /// Messages carried so far.
    carried: u64,
}

impl Running {
    pub fn start(folder: &Path, settings: &Settings<'_>) -> Self {
        let Settings { shards, io, log, commit, route, tables } = settings;
        std::fs::write(folder.join("smtproutes"), route).unwrap();
        let text = format!(
            "hostname = \"out.example.net\"\nspool = \"spool\"\nroutes = \"smtproutes\"\n\
             shards = {shards}\nio = \"{io}\"\ncommit = \"{commit}\"\n\
             [[listener]]\naddress = \"{}\"\n[log]\nmail = \"{log}\"\n{tables}",
            free_address(),
        );
        let snapshot = match config::load_text(&folder.join("ringpost.toml"), text) {
            Ok(snapshot) => snapshot,
            Err(problems) => panic!("{problems:?}"),
        };
        let engine = Engine::start(snapshot).unwrap_or_else(|error| panic!("{error}"));
        Self { engine, carried: 0 }
    }

    /// One more load of a row, at `rate` messages per second if there is one.
    pub fn carry(
        &mut self,
        row: &Row,
        messages: u64,
        rate: Option<f64>,
        sink: &SinkHandle,
    ) -> Carried {
        self.carried += messages;
        carry(row.source(messages, self.address(), rate), sink)
    }

    pub fn address(&self) -> SocketAddr {
        self.engine.listening()[0]
    }

    pub fn totals(&self) -> Totals {
        let shared = self.engine.shared();
        Totals::of(shared.counters.iter().map(|counters| &**counters))
    }

    /// From final dot to the next hop's acceptance, of at least `count` messages if they come. A
    /// shard publishes its latencies once a second.
    pub fn latencies(&self, count: u64) -> Latencies {
        let begun = Instant::now();
        loop {
            let mut all = Latencies::new();
            self.engine.shared().reports().iter().for_each(|report| all.merge(&report.latencies));
            if all.count() >= count || begun.elapsed() > Duration::from_secs(3) {
                return all;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it in good order; nothing may be missing.
    pub fn end(self) {
        let (shared, carried) = (self.engine.shared().clone(), self.carried);
        self.stop(Stopping::Gently);
        let totals = Totals::of(shared.counters.iter().map(|counters| &**counters));
        assert_eq!(Conservation::of(&totals).balance(), 0, "recipients were lost");
        assert_eq!(totals.delivered, carried, "not all was delivered once");
    }

    pub fn stop(self, how: Stopping) {
        self.engine.shared().stop(how);
        self.engine.join();
    }
}

/// What a load cost in the engine.
pub struct Cost {
    pub carried: Carried,
    pub syncs: u64,
    pub connections_out: u64,
}

/// An engine as it is after the first minutes of a host. Its spool was used before, as the file of
/// the bare relay was written before: to make segments takes as much of the disk as to fill them,
/// once, so it carries the same load until it makes no more of them (what is never written needs
/// none). And a part of the load has been through the engine itself, for fresh memory costs a page
/// fault for every 4 KiB of it.
fn start_warm(
    row: &Row,
    messages: u64,
    folder: &Path,
    settings: &Settings<'_>,
    sink: &SinkHandle,
) -> Running {
    let mut made = 0;
    loop {
        let mut engine = Running::start(folder, settings);
        let before = std::mem::replace(&mut made, segments(&folder.join("spool")));
        if settings.commit != "sync" || made == before {
            engine.carry(row, messages.div_ceil(4), None, sink);
            return engine;
        }
        engine.carry(row, messages, None, sink);
        engine.end();
    }
}

/// Files in the directories of a spool's shards.
fn segments(spool: &Path) -> usize {
    let shards =
        std::fs::read_dir(spool).unwrap().filter_map(|entry| entry.unwrap().path().read_dir().ok());
    shards.map(Iterator::count).sum()
}

/// A row through the engine, as fast as it goes.
pub fn at_full_speed(row: &Row, messages: u64, arguments: &Arguments, commit: &str) -> Cost {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let folder = common::folder(arguments);
    let settings = Settings::of(arguments, commit, sink.address());
    let mut engine = start_warm(row, messages, folder.path(), &settings, &sink);
    common::touch_free_memory(arguments);
    let before = engine.totals();
    let carried = engine.carry(row, messages, None, &sink);
    let after = engine.totals();
    engine.end();
    Cost {
        carried,
        syncs: after.queue_syncs - before.queue_syncs,
        connections_out: after.connections_out - before.connections_out,
    }
}

/// A row through the engine at a given rate: how late each message was.
pub fn at_rate(
    row: &Row,
    rate: f64,
    messages: u64,
    arguments: &Arguments,
    commit: &str,
) -> Latencies {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let folder = common::folder(arguments);
    let settings = Settings::of(arguments, commit, sink.address());
    let mut engine = start_warm(row, messages, folder.path(), &settings, &sink);
    let warm = engine.carried;
    let before = engine.latencies(warm);
    engine.carry(row, messages, Some(rate), &sink);
    let latencies = engine.latencies(warm + messages).since(&before);
    engine.end();
    latencies
}

/// System calls of the shards per message, counted by `strace -c` in a run of its own; nothing
/// where strace is missing or may not look. strace slows the shards down, so that each of their
/// turns finds more to do than usual: a figure from below.
pub fn system_calls(row: &Row, messages: u64, arguments: &Arguments, commit: &str) -> Option<f64> {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let folder = common::folder(arguments);
    let settings = Settings::of(arguments, commit, sink.address());
    let mut engine = start_warm(row, messages, folder.path(), &settings, &sink);
    let mut threads = Threads::default();
    threads.sample();
    let counts = folder.path().join("calls");
    let mut strace = std::process::Command::new("strace");
    strace.args(["-c", "-U", "calls,name", "-o"]).arg(&counts);
    for id in threads.ids(is_shard) {
        strace.arg("-p").arg(id.to_string());
    }
    strace.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let child = strace.spawn().ok();
    std::thread::sleep(Duration::from_millis(300));
    engine.carry(row, messages, None, &sink);
    let counted = child.and_then(|mut child| {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).ok()?;
        child.wait().ok()?;
        let text = std::fs::read_to_string(&counts).ok()?;
        let total = text.lines().rev().find(|line| line.trim().ends_with("total"))?;
        total.split_whitespace().next()?.parse::<f64>().ok()
    });
    engine.end();
    counted.map(|calls| calls / messages as f64)
}

/// An address that nobody listened on a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
