//! Two loads that are not about speed on the spot: one connection over a long link, and ten hosts
//! of which one stalls after DATA for ever.

use std::time::{Duration, Instant};

use ringpost::lab::link::Link;
use ringpost::lab::sink::{Behaviour, Sink, SinkHandle, SinkOptions, Stage};
use ringpost::lab::source;
use ringpost::shard::Stopping;
use serde_json::{Value, json};

use super::common::{self, Arguments, Threads};
use super::engine::{Carried, Running, Settings, is_shard, is_worker};
use super::row::{ROWS, Row};

/// One way of the link.
const DELAY: Duration = Duration::from_millis(25);

/// Hosts of which one stalls.
const HOSTS: usize = 10;

/// Connections to all of them.
const PERMITS: u64 = 40;

/// 4 KiB over one connection, 50 ms there and back: with CHUNKING and many messages per
/// connection, with the usual 50, and with PIPELINING only.
pub fn long_link(arguments: &Arguments) -> Value {
    let ways = [
        ("chunking", true, 10_000, 4000, 400.0),
        ("chunking-50", true, 50, 1000, 100.0),
        ("pipelining", false, 10_000, 120, 17.0),
    ];
    let mut figures = json!({});
    for (name, chunking, per_connection, messages, asked) in ways {
        let messages = if arguments.smoke { 20 } else { messages };
        let behaviour = Behaviour { chunking, ..Behaviour::default() };
        let sink = Sink::start(SinkOptions { behaviour, ..SinkOptions::default() }).unwrap();
        let link = Link::start(sink.address(), DELAY).unwrap();
        let folder = common::folder(arguments);
        let settings = Settings {
            // One shard: several would hand the one permit around, a second each.
            shards: arguments.number("shards").unwrap_or(1),
            tables: format!(
                "[destination.default]\nmax_connections = 1\n\
                 max_messages_per_connection = {per_connection}\n"
            ),
            ..Settings::of(arguments, "deliver-or-sync", link.address())
        };
        let mut engine = Running::start(folder.path(), &settings);
        let carried = engine.carry(&ROWS[0], messages, None, &sink);
        if !arguments.json {
            println!(
                "link   {name:<12} {messages:>6} messages {:>8.1} per s ({asked} asked for), \
                 {} connections, {} at once",
                carried.rate(),
                link.connections(),
                sink.counts().connections_peak,
            );
        }
        assert_eq!(sink.counts().connections_peak, 1, "more connections than permits");
        figures[name] = json!((carried.rate() * 10.0).round() / 10.0);
        engine.end();
    }
    if arguments.json {
        println!("{}", json!({ "row": "link", "messages_per_s": figures }));
    }
    figures
}

/// What nine hosts got of a load.
struct Nine {
    messages_per_s: f64,
    engine_cpu_us_per_message: f64,
}

/// What nine hosts get when there is no tenth, and when the tenth stalls after DATA for ever. Shows
/// the pair of runs in the middle, by its ratio.
pub fn stalled_host(arguments: &Arguments) -> Value {
    // Enough for a rate: the first tenths of a second, until it counts as silent, are dearer.
    let messages = if arguments.smoke { 1000 } else { 1_200_000 };
    let row = Row { messages: arguments.number("messages").unwrap_or(messages), ..ROWS[0].clone() };
    let runs = arguments.number("runs").unwrap_or(1).max(1);
    let mut all: Vec<(Nine, Nine, u64)> = (0..runs)
        .map(|run| {
            let stalls = Behaviour { stall_at: Some(Stage::Data), ..Behaviour::default() };
            let stalls = SinkOptions { behaviour: stalls, ..SinkOptions::default() };
            let stalled = Sink::start(stalls).unwrap();
            let mut beside = || nine(&row, Some(&stalled), arguments);
            // Either goes first as often, for the machine changes meanwhile.
            let early = (run % 2 == 1).then(&mut beside);
            let healthy = nine(&row, None, arguments);
            let beside = early.unwrap_or_else(beside);
            let connections = stalled.counts().connections_peak;
            assert!(connections <= PERMITS, "{connections} connections to the stalled host");
            (healthy, beside, connections)
        })
        .collect();
    let ratio =
        |(healthy, beside, _): &(Nine, Nine, u64)| beside.messages_per_s / healthy.messages_per_s;
    all.sort_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    let middle = all.swap_remove(all.len() / 2);
    let ratio = ratio(&middle);
    let (healthy, beside, connections) = middle;
    if arguments.json {
        println!(
            "{}",
            json!({
                "row": "stall",
                "nine_per_s": healthy.messages_per_s,
                "nine_cpu_us_per_message": healthy.engine_cpu_us_per_message,
                "nine_beside_stalled_per_s": beside.messages_per_s,
                "nine_beside_stalled_cpu_us_per_message": beside.engine_cpu_us_per_message,
                "ratio": ratio,
                "stalled_connections": connections,
            })
        );
    } else {
        println!(
            "stall  nine of ten hosts: {:.0} per s alone ({:.2} us), {:.0} per s beside one that \
             stalls ({:.2} us; {:.1} %), which holds {connections} of {PERMITS} connections",
            healthy.messages_per_s,
            healthy.engine_cpu_us_per_message,
            beside.messages_per_s,
            beside.engine_cpu_us_per_message,
            100.0 * ratio,
        );
    }
    json!({ "nine_beside_stalled": (ratio * 1000.0).round() / 1000.0 })
}

/// Nine hosts until they have nine tenths of the mail.
fn nine(row: &Row, tenth: Option<&SinkHandle>, arguments: &Arguments) -> Nine {
    let listen = vec![([127, 0, 0, 1], 0).into(); HOSTS - 1];
    let sink = Sink::start(SinkOptions { listen, ..SinkOptions::default() }).unwrap();
    let tenth = tenth.map(SinkHandle::address);
    let hosts: Vec<String> =
        sink.addresses().iter().copied().chain(tenth).map(|a| a.to_string()).collect();
    let folder = common::folder(arguments);
    let settings = Settings {
        route: format!("ALL {}\n", hosts.join(", ")),
        tables: format!("[destination.default]\nmax_connections = {PERMITS}\n"),
        ..Settings::of(arguments, "deliver-or-sync", sink.address())
    };
    let engine = Running::start(folder.path(), &settings);
    let options = row.source(row.messages, engine.address(), None);
    let (mut before, mut after) = (Threads::default(), Threads::default());
    before.sample();
    let start = Instant::now();
    let sending = std::thread::spawn(move || source::run(options));
    let most = row.messages * 9 / 10;
    while sink.counts().messages < most {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", sink.counts());
        std::thread::sleep(Duration::from_millis(2));
    }
    let messages = sink.counts().messages;
    let seconds = start.elapsed().as_secs_f64();
    after.sample();
    let used = Threads::since(&before, after);
    let carried = Carried { messages, seconds, used };
    let report = sending.join().unwrap().unwrap();
    assert!(report.is_complete(), "{report:?}");
    engine.stop(Stopping::Now);
    Nine {
        messages_per_s: carried.rate(),
        engine_cpu_us_per_message: carried.per_message_us(|name| is_shard(name) || is_worker(name)),
    }
}
