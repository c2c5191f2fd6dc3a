//! Our own machine has no room for a connection: no host is blamed, and mail waits until it has.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Client, Engine, Peer, Setup, io_modes};

const WARNING: &str = "Warning: no room for a connection: ";

/// The soft limit of open files of the engine; false where prlimit(1) is missing.
fn limit_files(engine: &Engine, most: u64) -> bool {
    let pid = engine.pid().to_string();
    let limit = format!("--nofile={most}:");
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    status.is_ok_and(|status| status.success())
}

/// The smallest number that a new descriptor of the engine would get.
fn next_descriptor(engine: &Engine) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{}/fd", engine.pid())).unwrap();
    let open: Vec<u64> =
        open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    (0..).find(|number| !open.contains(number)).unwrap()
}

/// CPU time of the engine, in clock ticks.
fn ticks(engine: &Engine) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", engine.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// `/metrics` of the host: is it up, and was no connection to it called a failure?
fn assert_not_blamed(engine: &Engine, peer: &Peer) {
    let up = format!("ringpost_host_state{{host=\"{}\",state=\"up\"}}", peer.address);
    let metrics = engine.metrics();
    assert_eq!(metrics.get(&up), Some(&1.0), "{metrics:#?}");
    assert_eq!(metrics["ringpost_connection_errors_total"], 0.0);
    assert_eq!(metrics["ringpost_soft_bounces_total"], 0.0);
    assert_eq!(metrics["ringpost_deferrals_total"], 0.0);
    assert_eq!(metrics["ringpost_failovers_total"], 0.0);
    assert!(metrics["ringpost_shortages_total"] >= 1.0);
}

#[test]
fn without_a_free_descriptor_mail_and_clients_wait_and_no_host_goes_down() {
    for io in io_modes() {
        let (first, second) = (Peer::good(), Peer::good());
        let routes = format!("short.test {}, {}\n", first.host(0), second.host(10));
        let engine = Engine::start(&Setup::new(io, routes));
        let mut client = engine.client();
        if !limit_files(&engine, next_descriptor(&engine)) {
            println!("skipped: prlimit(1) is missing");
            return;
        }
        client.message("s@x.test", &["a@short.test", "b@short.test"], b"Subject: x\r\n\r\nx\r\n");
        // The kernel takes this one; the engine cannot.
        let waiting = TcpStream::connect(engine.smtp).unwrap();
        engine.wait_log(WARNING);
        let begun = ticks(&engine);
        std::thread::sleep(Duration::from_secs(2));
        let used = ticks(&engine) - begun;
        assert!(used < 50, "{used} clock ticks in two seconds");
        assert_eq!(first.connections() + second.connections(), 0);
        assert!(limit_files(&engine, 1_000));
        engine.wait("the mail on its way", || first.messages().len() == 1);
        let mut waiting = Client::over(waiting);
        assert!(waiting.reply().starts_with("220"));
        engine.wait_empty();
        engine.wait_log("Message finished");
        assert_not_blamed(&engine, &first);
        assert_eq!(second.connections(), 0, "priority 10 while 0 is up");
        let log = engine.log();
        assert_eq!(log.matches(WARNING).count(), 1, "{log}");
        assert!(log.contains("LimitNOFILE"), "{log}");
        assert!(!log.contains("Connection Error") && !log.contains("Delayed:"), "{log}");
    }
}

/// Addresses that this machine does not have.
fn foreign() -> impl Iterator<Item = String> {
    let all = (1..=255).map(|n| format!("203.0.113.{n}"));
    all.filter(|ip| std::net::TcpListener::bind((ip.as_str(), 0)).is_err())
}

/// An address that is not ours stands for a range of ports that is used up: the same errno.
#[test]
fn without_a_source_port_mail_waits_grows_old_and_leaves_once_there_is_one() {
    for io in io_modes() {
        let peer = Peer::good();
        let [here, there] = [0, 1].map(|n| foreign().nth(n).unwrap());
        let tables = format!(
            "[destination.\"port.test\"]\ninterface = \"{here}\"\n\
             [destination.\"old.test\"]\ninterface = \"{there}\"\nbounce_profile = \"short\"\n\
             [bounce_profile.short]\nmax_time_in_queue = \"2s\"\nsend_bounces = false\n"
        );
        let routes = format!("ALL {}\n", peer.host(0));
        let engine = Engine::start(&Setup::new(io, routes).tables(&tables));
        engine.send("s@x.test", &["a@port.test"]);
        engine.send("s@x.test", &["a@old.test"]);
        engine.wait_log(WARNING);
        // One destination's trouble is nobody else's.
        let begun = Instant::now();
        engine.send("s@x.test", &["a@fine.test"]);
        engine.wait("the mail of another destination", || peer.messages().len() == 1);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        engine.wait_log("Bounced: DCID 0 MID");
        let config = engine.path("ringpost.toml");
        let healed = std::fs::read_to_string(&config).unwrap().replace(&here, "127.0.0.1");
        std::fs::write(&config, healed).unwrap();
        engine.signal("HUP");
        engine.wait("the mail on its way", || peer.messages().len() == 2);
        engine.wait_empty();
        assert_not_blamed(&engine, &peer);
        let log = engine.log();
        assert_eq!(log.matches(WARNING).count(), 1, "{log}");
        assert!(log.contains("ip_local_port_range"), "{log}");
        assert!(!log.contains("Connection Error") && !log.contains("Delayed:"), "{log}");
    }
}
