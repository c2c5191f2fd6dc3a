//! Whole deliveries: source -> engine -> sink, and beside it source -> sink alone.
//!
//! Owns: the rows, the engine in this process, and the table. Never: a target.
//!
//! The engine is the real one: its listeners, its queue on a real disk with every commit synced,
//! its mail log at full detail. Source and sink have one thread each; the engine's CPU time is
//! that of its own threads and of the ring's workers, by name. Messages per second count from the
//! first connect to the last acceptance by the sink.

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the data plane does not")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Arguments, Threads, micros};
use ringpost::config;
use ringpost::lab::sink::{Sink, SinkHandle, SinkOptions};
use ringpost::lab::source::{self, SourceOptions, SourceReport};
use ringpost::shard::{Engine, Stopping};
use ringpost::telemetry::{Conservation, Latencies, Totals};

const USAGE: &str = "cargo bench --bench delivery -- [--row small|wide|large|many] [--messages N] \
                     [--shards N] [--io auto|ring|epoll] [--log full|off] [--spool DIR] [--json] \
                     [--test]";

/// How long a row may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(300);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One load.
struct Row {
    name: &'static str,
    octets: usize,
    sessions: u32,
    domains: u64,
    messages: u64,
    smoke_messages: u64,
}

const ROWS: [Row; 4] = [
    Row {
        name: "small",
        octets: 4096,
        sessions: 20,
        domains: 1,
        messages: 50_000,
        smoke_messages: 500,
    },
    Row {
        name: "wide",
        octets: 4096,
        sessions: 1000,
        domains: 1,
        messages: 100_000,
        smoke_messages: 1000,
    },
    Row {
        name: "large",
        octets: 5 << 20,
        sessions: 20,
        domains: 1,
        messages: 400,
        smoke_messages: 5,
    },
    Row {
        name: "many",
        octets: 4096,
        sessions: 20,
        domains: 10_000,
        messages: 50_000,
        smoke_messages: 500,
    },
];

/// What one run of a row came to.
struct Outcome {
    messages: u64,
    seconds: f64,
    /// CPU time of the engine's threads; nothing without an engine.
    engine: Option<EngineCost>,
    source: SourceReport,
    source_cpu: Duration,
    sink_cpu: Duration,
}

/// What the engine used, and how long mail stayed in it.
struct EngineCost {
    shards_cpu: Duration,
    workers_cpu: Duration,
    totals: Totals,
    latencies: Latencies,
}

impl Outcome {
    fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    fn per_message_us(&self, time: Duration) -> f64 {
        micros(time) / self.messages as f64
    }
}

fn main() {
    let known = ["row", "messages", "shards", "io", "log", "spool"];
    let arguments = Arguments::read(USAGE, &known);
    let wanted = arguments.text("row");
    if let Some(name) = wanted.filter(|name| ROWS.iter().all(|row| row.name != *name)) {
        eprintln!("no row '{name}'\n{USAGE}");
        std::process::exit(64);
    }
    let descriptors = common::raise_descriptor_limit();
    if !arguments.json {
        print_head();
    }
    for row in ROWS.iter().filter(|row| wanted.is_none_or(|name| row.name == name)) {
        // Per session: source, listener and, in the bare run, sink; as many again to the sink.
        if u64::from(row.sessions) * 5 > descriptors {
            println!("{}: skipped: {descriptors} open files are too few", row.name);
            continue;
        }
        let few = if arguments.smoke { row.smoke_messages } else { row.messages };
        let messages = arguments.number("messages").unwrap_or(few);
        let bare = run_bare(row, messages);
        let engine = run_engine(row, messages, &arguments);
        if arguments.json {
            print_json(row, &engine, &bare);
        } else {
            print_row(row, &engine, &bare);
        }
    }
}

fn options(row: &Row, messages: u64, to: SocketAddr) -> SourceOptions {
    let rcpt = if row.domains > 1 { "user@d%n.example" } else { "user@example.com" };
    SourceOptions {
        to,
        messages,
        sessions: row.sessions,
        size: row.octets,
        rcpt: rcpt.to_owned(),
        domains: (row.domains > 1).then_some(row.domains),
        ..SourceOptions::default()
    }
}

/// Sends, and waits until the sink has it all.
fn carry(row: &Row, messages: u64, to: SocketAddr, sink: &SinkHandle) -> (Outcome, Threads) {
    let (mut before, mut after) = (Threads::default(), Threads::default());
    before.sample();
    let start = Instant::now();
    let options = options(row, messages, to);
    let sending = std::thread::spawn(move || source::run(options));
    while sink.counts().messages < messages {
        assert!(start.elapsed() < PATIENCE, "{} stands still", row.name);
        after.sample();
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = start.elapsed().as_secs_f64();
    after.sample();
    let source = sending.join().unwrap().unwrap();
    assert!(source.is_complete(), "{}: {source:?}", row.name);
    let used = Threads::since(&before, after);
    let source_cpu = used.used(|name| name == "source");
    let sink_cpu = used.used(|name| name == "sink");
    (Outcome { messages, seconds, engine: None, source, source_cpu, sink_cpu }, used)
}

fn run_bare(row: &Row, messages: u64) -> Outcome {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    carry(row, messages, sink.address(), &sink).0
}

fn run_engine(row: &Row, messages: u64, arguments: &Arguments) -> Outcome {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let folder = common::folder(arguments);
    let engine = start_engine(folder.path(), sink.address(), arguments);
    let (mut outcome, used) = carry(row, messages, engine.listening()[0], &sink);
    let shared = engine.shared().clone();
    // A shard publishes its latencies once a second.
    let published = Instant::now();
    let latencies = loop {
        let mut all = Latencies::new();
        shared.reports().iter().for_each(|report| all.merge(&report.latencies));
        if all.count() >= messages || published.elapsed() > Duration::from_secs(3) {
            break all;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    shared.stop(Stopping::Gently);
    engine.join();
    let totals = Totals::of(shared.counters.iter().map(|counters| &**counters));
    assert_eq!(Conservation::of(&totals).balance(), 0, "recipients were lost");
    assert_eq!(totals.delivered, messages, "not all was delivered once");
    outcome.engine = Some(EngineCost {
        shards_cpu: used.used(|name| name.starts_with("shard-")),
        workers_cpu: used.used(|name| name.starts_with("iou-") || name.starts_with("ringpost-")),
        totals,
        latencies,
    });
    outcome
}

fn start_engine(folder: &Path, sink: SocketAddr, arguments: &Arguments) -> Engine {
    std::fs::write(folder.join("smtproutes"), format!("ALL {sink}\n")).unwrap();
    let (shards, io) = (arguments.number("shards").unwrap_or(0), arguments.text("io"));
    let log = if arguments.text("log") == Some("off") { "off" } else { "mail_logs" };
    let text = format!(
        "hostname = \"out.example.net\"\nspool = \"spool\"\nroutes = \"smtproutes\"\n\
         shards = {shards}\nio = \"{}\"\n[[listener]]\naddress = \"{}\"\n\
         [log]\nmail = \"{log}\"\n",
        io.unwrap_or("auto"),
        free_address(),
    );
    let snapshot = match config::load_text(&folder.join("ringpost.toml"), text) {
        Ok(snapshot) => snapshot,
        Err(problems) => panic!("{problems:?}"),
    };
    Engine::start(snapshot).unwrap_or_else(|error| panic!("{error}"))
}

/// An address that nobody listened on a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn print_head() {
    println!(
        "{:<6} {:>8} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9}",
        "row",
        "messages",
        "per s",
        "bare/s",
        "ratio",
        "engine us",
        "worker us",
        "source us",
        "sink us",
        "syncs/m",
        "p50 ms",
        "p99 ms",
        "p99.9 ms"
    );
}

fn print_row(row: &Row, outcome: &Outcome, bare: &Outcome) {
    let Some(cost) = &outcome.engine else { return };
    let late_ms = |percent| cost.latencies.percentile_us(percent) as f64 / 1e3;
    println!(
        "{:<6} {:>8} {:>9.0} {:>9.0} {:>6.3} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>7.3} {:>9.1} \
         {:>9.1} {:>9.1}",
        row.name,
        outcome.messages,
        outcome.rate(),
        bare.rate(),
        outcome.rate() / bare.rate(),
        outcome.per_message_us(cost.shards_cpu),
        outcome.per_message_us(cost.workers_cpu),
        outcome.per_message_us(outcome.source_cpu),
        outcome.per_message_us(outcome.sink_cpu),
        cost.totals.queue_syncs as f64 / outcome.messages as f64,
        late_ms(50.0),
        late_ms(99.0),
        late_ms(99.9),
    );
}

fn print_json(row: &Row, outcome: &Outcome, bare: &Outcome) {
    let Some(cost) = &outcome.engine else { return };
    let line = serde_json::json!({
        "row": row.name,
        "messages": outcome.messages,
        "octets": row.octets,
        "sessions": row.sessions,
        "domains": row.domains,
        "seconds": outcome.seconds,
        "messages_per_s": outcome.rate(),
        "bare_messages_per_s": bare.rate(),
        "ratio": outcome.rate() / bare.rate(),
        "engine_cpu_us_per_message": outcome.per_message_us(cost.shards_cpu),
        "worker_cpu_us_per_message": outcome.per_message_us(cost.workers_cpu),
        "source_cpu_us_per_message": outcome.per_message_us(outcome.source_cpu),
        "sink_cpu_us_per_message": outcome.per_message_us(outcome.sink_cpu),
        "bare_sink_cpu_us_per_message": bare.per_message_us(bare.sink_cpu),
        "syncs_per_message": cost.totals.queue_syncs as f64 / outcome.messages as f64,
        "connections_out": cost.totals.connections_out,
        "latency_us": {
            "p50": cost.latencies.percentile_us(50.0),
            "p99": cost.latencies.percentile_us(99.0),
            "p99_9": cost.latencies.percentile_us(99.9),
        },
        "accept_us": {
            "p50": outcome.source.p50_us,
            "p99": outcome.source.p99_us,
            "p99_9": outcome.source.p99_9_us,
        },
    });
    println!("{line}");
}
