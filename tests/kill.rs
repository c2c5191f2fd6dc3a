//! kill -9 under load, again and again: every message that was answered with 250 arrives, and
//! each one that arrives twice was named uncertain in the log beforehand.
//!
//! `RINGPOST_KILL_ROUNDS` sets how often the engine is killed under load (3 if unset). In every
//! second round the start that follows is killed too, twice, somewhere in its recovery.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime};

use common::{Engine, Setup};
use ringpost::lab::sink::{Behaviour, Sink, SinkOptions};
use ringpost::lab::source::{self, Progress, SourceOptions};

/// The engine runs between these times before it is killed.
const LIFE_MS: std::ops::Range<u64> = 300..1_200;

/// Starts are killed within this time, however slow the machine is at the moment.
const START_MAX: Duration = Duration::from_secs(1);

each_io!(what_was_answered_survives_kill_9);
fn what_was_answered_survives_kill_9(io: &str) {
    let rounds: u32 =
        std::env::var("RINGPOST_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let dump = tempfile::tempdir().unwrap();
    let sink = Sink::start(SinkOptions {
        // A reply takes a little, so that every kill meets transactions in flight.
        behaviour: Behaviour { delay: Duration::from_millis(3), ..Behaviour::default() },
        keep_ids: true,
        dump: Some(dump.path().to_owned()),
        ..SinkOptions::default()
    })
    .unwrap();
    let mut engine = Engine::start(&Setup::new(io, format!("ALL {}", sink.address())));
    engine.kill();
    let smtp = pin_port(&engine);
    let start = Instant::now();
    engine.launch();
    let mut usual_us = u64::try_from(start.elapsed().as_micros()).unwrap();
    let mut starts = 0;

    let progress = Arc::new(Progress::default());
    let watched = progress.clone();
    let source = std::thread::spawn(move || source::run_watched(load(smtp), watched).unwrap());
    let mut random = Random::new();
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.within(LIFE_MS)));
        engine.kill();
        if round % 2 == 1 {
            for _ in 0..2 {
                // Anywhere from its first instruction to a little after it listens.
                engine.launch_and_kill(Duration::from_micros(random.within(0..usual_us * 5 / 4)));
                starts += 1;
            }
        }
        let before = engine.log_octets();
        let start = Instant::now();
        engine.launch();
        let back = start.elapsed();
        usual_us = u64::try_from(back.min(START_MAX).as_micros()).unwrap();
        engine.wait_log_behind(before, "Begin Logfile");
        engine.assert_conservation();
        let found = engine.metric("ringpost_recipients_accepted_total{source=\"found_at_start\"}");
        eprintln!("io = {io}, round {round}: back after {back:?}, found {found} recipients");
    }
    std::thread::sleep(Duration::from_millis(200));
    progress.stop();
    let report = source.join().unwrap();
    engine.wait_empty();
    engine.assert_conservation();
    engine.stop();

    let received = sink.received();
    let ids = report.acknowledged_ids.iter().map(|n| report.id(*n));
    let missing: Vec<_> = ids.filter(|id| !received.contains_key(id)).collect();
    assert!(missing.is_empty(), "{} answered and lost: {missing:?}", missing.len());
    assert!(report.acknowledged > 0, "nothing was sent");

    let arrivals = arrivals_by_mid(dump.path());
    let uncertain = uncertain_mids(&engine.log());
    let repeated: Vec<_> = arrivals.iter().filter(|(_, times)| **times > 1).collect();
    let unexplained: Vec<_> =
        repeated.iter().filter(|(mid, _)| !uncertain.contains(mid.as_str())).collect();
    assert!(unexplained.is_empty(), "repeated, but never called uncertain: {unexplained:?}");
    let again = received.values().filter(|received| received.times > 1).count();
    println!(
        "io = {io}, {rounds} kills under load, {starts} of a start: {} answered, {} received, \
         0 lost; {} named uncertain, {} of them repeated, all of them named; {again} ids received \
         more than once, those included that the source sent again",
        report.acknowledged,
        arrivals.values().sum::<usize>(),
        uncertain.len(),
        repeated.len(),
    );
}

fn load(to: SocketAddr) -> SourceOptions {
    SourceOptions {
        to,
        messages: u64::MAX,
        sessions: 8,
        size: 2_000,
        rcpt: "user@d%n.test".to_owned(),
        domains: Some(20),
        rate: Some(2_000.0),
        retry: true,
        keep_ids: true,
        patience: Duration::from_secs(10),
        ..SourceOptions::default()
    }
}

/// Puts the listener on a port that it keeps from life to life. It lies below the range of
/// ephemeral ports, so that no outgoing connection takes it while the engine is down.
fn pin_port(engine: &Engine) -> SocketAddr {
    static ENGINES: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 5_000).unwrap();
    // Each engine of this process looks through ports of its own.
    let first = first + 1_000 * ENGINES.fetch_add(1, Ordering::Relaxed);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (first..first + 1_000).find(free).unwrap();
    let file = engine.path("ringpost.toml");
    let toml = fs::read_to_string(&file).unwrap();
    let pinned = toml.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1);
    assert_ne!(toml, pinned);
    fs::write(file, pinned).unwrap();
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// How often each MID arrived, by our own Received field in the messages that the sink kept.
fn arrivals_by_mid(folder: &Path) -> HashMap<String, usize> {
    let mut arrivals = HashMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let message = fs::read(entry.unwrap().path()).unwrap();
        let head = String::from_utf8_lossy(&message[..message.len().min(400)]).into_owned();
        let received = head.split_once(" id ").expect("a Received field").1;
        let mid: String = received.chars().take_while(char::is_ascii_digit).collect();
        assert!(!mid.is_empty(), "{head}");
        *arrivals.entry(mid).or_default() += 1;
    }
    arrivals
}

/// The MIDs of all `Possible Delivery: DCID d MID m to RID [..]` lines.
fn uncertain_mids(log: &str) -> HashSet<String> {
    let lines = log.lines().filter_map(|line| line.split_once("Possible Delivery: "));
    let mids = lines.filter_map(|(_, line)| line.split_once(" MID "));
    mids.map(|(_, mid)| mid.split(' ').next().unwrap().to_owned()).collect()
}

/// Random moments; their seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        eprintln!("seed {}", now.as_nanos());
        Self(u64::try_from(now.as_nanos() % u128::from(u64::MAX)).unwrap() | 1)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0 % (range.end - range.start)
    }
}
