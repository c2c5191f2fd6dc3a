//! Whole deliveries: source -> engine -> sink, and beside them the bare limit of the machine.
//!
//! Owns: the order of the runs, the table, and what goes into the history. Never: a target.
//!
//! The engine is the real one: its listeners, its queue on a real disk with every commit synced,
//! its mail log at full detail. Source and sink have one thread each; CPU time and waits of the
//! engine are those of its own threads and of the ring's workers, by name. The bare limit is a
//! relay that receives, forwards and, where the engine syncs, appends and syncs, with the same
//! framing and the same batch, and does nothing else (`bare`).

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the data plane does not")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]
#![allow(clippy::cast_possible_truncation, reason = "indices that were made from usize")]
#![allow(unreachable_pub, reason = "the parts of a bench are used by the bench alone")]

mod bare;
#[path = "../common/mod.rs"]
mod common;
mod engine;
mod far;
#[path = "../common/history.rs"]
mod history;
mod row;

use bare::Served;
use common::{Arguments, micros};
use engine::{Carried, Cost, is_shard, is_worker};
use ringpost::lab::sink::{Sink, SinkOptions};
use ringpost::telemetry::Latencies;
use row::{ROWS, Row};
use serde_json::{Value, json};

const USAGE: &str = "cargo bench --bench delivery -- [options]
  --row NAME      wire, small, wide, large, many, 100k, link or stall; all but 100k without it
  --messages N    messages of each run
  --sessions N    connections of the source
  --window N      messages of a train into the engine; 1: one per round trip, by DATA
  --per-connection N  messages that engine and bare relay send over one connection (usual: 50)
  --commit MODE   deliver-or-sync (usual) or sync
  --runs N        measures N times and shows the run in the middle, by its CPU time (usual: 1)
  --shards N      threads of the engine; 0, as usual: one per processor
  --io WAY        auto, ring or epoll
  --log DETAIL    full or off
  --spool DIR     folder on the disk that is to be measured
  --json          one line of JSON per row
  --record        puts ratios into benches/history.ndjson
  --test          a smoke run: seconds, the figures mean nothing";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections of the bare relay to the sink.
const BARE_CONNECTIONS: usize = 4;

/// How long the run at half the rate takes.
const HALF_RATE_SECONDS: f64 = 4.0;

/// What the bare relay took.
struct Bare {
    carried: Carried,
    served: Served,
}

impl Bare {
    fn per_message_us(&self) -> f64 {
        micros(self.served.cpu) / self.carried.messages as f64
    }

    fn syncs_per_message(&self) -> f64 {
        self.served.syncs as f64 / self.carried.messages as f64
    }
}

/// All that was measured of a row.
struct Measured {
    row: Row,
    commit: String,
    cost: Cost,
    bare: Bare,
    late: Latencies,
    calls: Option<f64>,
    per_connection: u64,
}

fn main() {
    let known = [
        "row",
        "messages",
        "sessions",
        "window",
        "per-connection",
        "commit",
        "runs",
        "shards",
        "io",
        "log",
        "spool",
    ];
    let arguments = Arguments::read(USAGE, &known);
    let wanted = arguments.text("row");
    let extra = ["wire", "link", "stall"];
    let names: Vec<&str> = ROWS.iter().map(|row| row.name).chain(extra).collect();
    if let Some(name) = wanted.filter(|name| !names.contains(name)) {
        eprintln!("no row '{name}'\n{USAGE}");
        std::process::exit(64);
    }
    let commit = arguments.text("commit").unwrap_or("deliver-or-sync");
    let descriptors = common::raise_descriptor_limit();
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    if is_wanted("wire") {
        keep(&arguments, "wire", wire(&arguments));
    }
    let rows = ROWS.iter().filter(|row| is_wanted(row.name));
    for (at, row) in rows.filter(|row| wanted.is_some() || row.name != "100k").enumerate() {
        let mut row = row.clone();
        let sessions = arguments.number("sessions").and_then(|n| u32::try_from(n).ok());
        row.sessions = sessions.unwrap_or(row.sessions);
        let window = arguments.number("window").and_then(|n| usize::try_from(n).ok());
        row.window = window.unwrap_or(row.window).max(1);
        // Per session: source, listener and, in the bare run, sink; as many again to the sink.
        if u64::from(row.sessions) * 5 > descriptors {
            println!("{}: skipped: {descriptors} open files are too few", row.name);
            continue;
        }
        if at == 0 && !arguments.json {
            print_head();
        }
        let measured = measure(&row, commit, &arguments);
        if arguments.json {
            println!("{}", measured.json());
        } else {
            measured.print();
        }
        keep(&arguments, &format!("{} {commit}", row.name), measured.ratios());
    }
    if is_wanted("link") {
        keep(&arguments, "link", far::long_link(&arguments));
    }
    if is_wanted("stall") {
        keep(&arguments, "stall", far::stalled_host(&arguments));
    }
}

fn keep(arguments: &Arguments, row: &str, figures: Value) {
    if arguments.record && !arguments.smoke {
        history::record("delivery", json!({ row: figures }));
    }
}

/// Source straight into sink, and beside it the minimal client into the minimal server.
fn wire(arguments: &Arguments) -> Value {
    let mut figures = json!({});
    for window in [8, 1] {
        let messages = if arguments.smoke { 500 } else { 300_000 };
        let messages = arguments.number("messages").unwrap_or(messages);
        let row = Row { window, ..ROWS[0].clone() };
        let server = bare::Server::start(bare::Way::default());
        let sessions = row.sessions as usize;
        let sent = bare::send(server.address(), messages, row.octets, sessions, window);
        let served_us = micros(server.end().cpu) / messages as f64;
        let bare_rate = messages as f64 / sent.seconds;
        let sink = Sink::start(SinkOptions::default()).unwrap();
        let carried = engine::carry(row.source(messages, sink.address(), None), &sink);
        let framing = if window > 1 { "BDAT x 8" } else { "DATA" };
        let (source_us, sink_us) = ends_us(&carried);
        if arguments.json {
            println!(
                "{}",
                json!({
                    "row": "wire", "framing": framing, "messages_per_s": carried.rate(),
                    "bare_messages_per_s": bare_rate, "source_cpu_us": source_us,
                    "sink_cpu_us": sink_us,
                })
            );
        } else {
            println!(
                "wire   {framing:<9} source to sink {:>8.0} per s ({source_us:.2} + \
                 {sink_us:.2} us), bare {bare_rate:>8.0} per s ({:.2} + {served_us:.2} us), \
                 ratio {:.2}",
                carried.rate(),
                micros(sent.cpu) / messages as f64,
                carried.rate() / bare_rate,
            );
        }
        figures[framing] = json!(round(carried.rate() / bare_rate));
    }
    figures
}

fn ends_us(carried: &Carried) -> (f64, f64) {
    let of = |thread: &'static str| carried.per_message_us(move |name| name == thread);
    (of("source"), of("sink"))
}

fn measure(row: &Row, commit: &str, arguments: &Arguments) -> Measured {
    let few = if arguments.smoke { row.smoke_messages } else { row.messages };
    let messages = arguments.number("messages").unwrap_or(few);
    let runs = arguments.number("runs").unwrap_or(1).max(1);
    let mut all: Vec<(Cost, Bare)> = (0..runs)
        .map(|_| {
            let bare = bare_relay(row, messages, commit, arguments);
            (engine::at_full_speed(row, messages, arguments, commit), bare)
        })
        .collect();
    let ratio = |(cost, bare): &(Cost, Bare)| engine_us(cost) / bare.per_message_us();
    all.sort_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    let (cost, bare) = all.swap_remove(all.len() / 2);
    let half = cost.carried.rate() / 2.0;
    let for_a_while = (half * HALF_RATE_SECONDS) as u64;
    let late = engine::at_rate(row, half, messages.min(for_a_while.max(1)), arguments, commit);
    let few = (messages / 4).max(1);
    let calls = match arguments.smoke {
        true => None,
        false => engine::system_calls(row, few, arguments, commit),
    };
    let per_connection = engine::per_connection(arguments);
    Measured {
        row: row.clone(),
        commit: commit.to_owned(),
        cost,
        bare,
        late,
        calls,
        per_connection,
    }
}

fn bare_relay(row: &Row, messages: u64, commit: &str, arguments: &Arguments) -> Bare {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let folder = common::folder(arguments);
    let route = Some(bare::Route {
        to: sink.address(),
        connections: BARE_CONNECTIONS.min(row.sessions as usize),
        per_connection: engine::per_connection(arguments),
    });
    let append_in = (commit == "sync").then_some(folder.path());
    let server = bare::Server::start(bare::Way { route, append_in });
    common::touch_free_memory(arguments);
    let carried = engine::carry(row.source(messages, server.address(), None), &sink);
    Bare { carried, served: server.end() }
}

/// CPU time of shards and workers per message.
fn engine_us(cost: &Cost) -> f64 {
    cost.carried.per_message_us(|name| is_shard(name) || is_worker(name))
}

fn print_head() {
    println!(
        "{:<6} {:>8} {:>8} {:>8} {:>7} {:>7} {:>7} {:>6} {:>7} {:>7} {:>8} {:>7} {:>7} {:>7} \
         {:>8} {:>8} {:>8}",
        "row",
        "messages",
        "per s",
        "bare/s",
        "shard us",
        "work us",
        "bare us",
        "ratio",
        "calls/m",
        "syncs/m",
        "bare s/m",
        "waits/m",
        "src us",
        "sink us",
        "p50 ms",
        "p99 ms",
        "p99.9 ms"
    );
}

impl Measured {
    fn per_message(&self, count: u64) -> f64 {
        count as f64 / self.cost.carried.messages as f64
    }

    fn waits(&self) -> f64 {
        self.per_message(self.cost.carried.used.waits(|name| is_shard(name) || is_worker(name)))
    }

    fn late_ms(&self, percent: f64) -> f64 {
        self.late.percentile_us(percent) as f64 / 1e3
    }

    fn print(&self) {
        let carried = &self.cost.carried;
        let (source_us, sink_us) = ends_us(carried);
        let calls = self.calls.map_or("-".to_owned(), |calls| format!("{calls:.2}"));
        println!(
            "{:<6} {:>8} {:>8.0} {:>8.0} {:>8.2} {:>7.2} {:>7.2} {:>6.2} {:>7} {:>7.4} {:>8.4} \
             {:>7.3} {:>7.2} {:>7.2} {:>8.2} {:>8.2} {:>8.2}",
            self.row.name,
            carried.messages,
            carried.rate(),
            self.bare.carried.rate(),
            carried.per_message_us(is_shard),
            carried.per_message_us(is_worker),
            self.bare.per_message_us(),
            engine_us(&self.cost) / self.bare.per_message_us(),
            calls,
            self.per_message(self.cost.syncs),
            self.bare.syncs_per_message(),
            self.waits(),
            source_us,
            sink_us,
            self.late_ms(50.0),
            self.late_ms(99.0),
            self.late_ms(99.9),
        );
    }

    fn json(&self) -> Value {
        let carried = &self.cost.carried;
        let (source_us, sink_us) = ends_us(carried);
        json!({
            "row": self.row.name,
            "commit_mode": self.commit,
            "messages": carried.messages,
            "octets": self.row.octets,
            "sessions": self.row.sessions,
            "window": self.row.window,
            "domains": self.row.domains,
            "messages_per_s": carried.rate(),
            "bare_messages_per_s": self.bare.carried.rate(),
            "shard_cpu_us_per_message": carried.per_message_us(is_shard),
            "worker_cpu_us_per_message": carried.per_message_us(is_worker),
            "bare_cpu_us_per_message": self.bare.per_message_us(),
            "cpu_ratio_to_bare": engine_us(&self.cost) / self.bare.per_message_us(),
            "source_cpu_us_per_message": source_us,
            "sink_cpu_us_per_message": sink_us,
            "system_calls_per_message": self.calls,
            "syncs_per_message": self.per_message(self.cost.syncs),
            "bare_syncs_per_message": self.bare.syncs_per_message(),
            "waits_per_message": self.waits(),
            "connections_out": self.cost.connections_out,
            "bare_connections_out": self.bare.served.connections,
            "latency_at_half_rate_us": {
                "p50": self.late.percentile_us(50.0),
                "p99": self.late.percentile_us(99.0),
                "p99_9": self.late.percentile_us(99.9),
            },
        })
    }

    /// What may be compared between commits: no figure of this machine alone. Of rows without
    /// `messages_per_connection` the bare relay kept its connections, whatever the engine did.
    fn ratios(&self) -> Value {
        json!({
            "messages_per_connection": self.per_connection,
            "cpu_to_bare": round(engine_us(&self.cost) / self.bare.per_message_us()),
            "rate_to_bare": round(self.cost.carried.rate() / self.bare.carried.rate()),
            "calls_per_message": self.calls.map(round),
            "syncs_per_message": round(self.per_message(self.cost.syncs)),
            "bare_syncs_per_message": round(self.bare.syncs_per_message()),
            "waits_per_message": round(self.waits()),
        })
    }
}

fn round(figure: f64) -> f64 {
    (figure * 1e4).round() / 1e4
}
