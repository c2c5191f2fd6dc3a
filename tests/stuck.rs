//! Corners in which mail could be held up although nothing stands in its way any more: lanes that
//! were full, permits of idle sessions, refusals that nobody takes back, commits that failed; and
//! what must not wake it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Engine, Peer, Setup, io_modes, program};

/// Deferred mail comes back after a minute: what arrives sooner was woken.
const SLOW_RETRY: &str = "[bounce_profile.default]\ninitial_retry = \"60s\"\n";

/// A number that a script reads and the test sets.
fn dial() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let dial = Arc::new(AtomicUsize::new(0));
    (dial.clone(), dial)
}

/// Receiving domains with mail, all shards together.
fn destinations(engine: &Engine) -> f64 {
    let metrics = engine.metrics();
    let of_shard = |name: &str| name.starts_with("ringpost_shard_destinations{");
    metrics.iter().filter(|(name, _)| of_shard(name)).map(|(_, value)| value).sum()
}

/// Its destination was set aside because the lane was full; the lane empties when the host goes
/// down, and it may be another shard whose probe brings the host back.
#[test]
fn a_destination_feeds_again_after_its_full_lane_went_down() {
    for io in io_modes() {
        let (set, state) = dial();
        let peer = Peer::start(move |peer, _| match state.load(Ordering::SeqCst) {
            // Silent, until the lanes are full; then nobody is let in.
            0 => {
                while state.load(Ordering::SeqCst) == 0 {
                    peer.pause(Duration::from_millis(10));
                }
            }
            1 => {}
            _ => peer.serve(),
        });
        let tables = "[bounce_profile.default]\ninitial_retry = \"3s\"\n\
                      [destination.default]\nmax_recipients_per_transaction = 1\n";
        let routes = format!("full.test {}\n", peer.host(0));
        let engine = Engine::start(&Setup::new(io, routes).tables(tables));
        let to: Vec<String> = (0..700).map(|n| format!("r{n}@full.test")).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        for _ in 0..10 {
            engine.send("s@full.test", &to);
        }
        set.store(1, Ordering::SeqCst);
        engine.wait_log("Connection Error");
        set.store(2, Ordering::SeqCst);
        engine.wait_empty();
        assert_eq!(peer.messages().len(), 7000);
    }
}

/// A destination whose only host refused it, and then went down for the sake of another one.
#[test]
fn a_refusal_before_the_host_went_down_holds_no_mail_when_it_comes_up() {
    for io in io_modes() {
        let (set, state) = dial();
        let peer = Peer::start(move |peer, _| match state.load(Ordering::SeqCst) {
            0 => {
                if peer.hello() && peer.expect("MAIL") {
                    peer.say("450 4.3.2 not now");
                }
            }
            1 => {}
            _ => peer.serve(),
        });
        let routes = format!("e.test {0}\nd.test {0}\n", peer.host(0));
        let tables = "[bounce_profile.default]\ninitial_retry = \"3s\"\n";
        let engine = Engine::start(&Setup::new(io, routes).tables(tables));
        engine.send("s@e.test", &["a@e.test"]);
        engine.wait_log("pending till");
        set.store(1, Ordering::SeqCst);
        engine.send("s@d.test", &["a@d.test"]);
        // Its retry finds the host down and is no attempt.
        engine.wait_log_count("Connection Error", 3);
        set.store(2, Ordering::SeqCst);
        engine.wait_empty();
        assert_eq!(peer.messages().len(), 2);
    }
}

/// A host that greets, answers EHLO and then sends everybody away.
#[test]
fn a_host_that_ends_every_session_at_once_is_not_hammered() {
    for io in io_modes() {
        let peer = Peer::start(|peer, _| {
            peer.say("220 peer.test");
            if peer.expect("EHLO") {
                peer.raw(b"250 peer.test\r\n421 4.3.2 closing\r\n");
            }
        });
        let routes = format!("away.test {}\n", peer.host(0));
        let engine = Engine::start(&Setup::new(io, routes).tables(SLOW_RETRY));
        engine.send("s@away.test", &["a@away.test"]);
        std::thread::sleep(Duration::from_secs(1));
        assert!(peer.connections() < 10, "{} connections", peer.connections());
    }
}

/// Two hosts, one connection for the destination: the session to the first host is idle when the
/// turn of the second comes. When the turn comes back soon, mail must not wait long for a lane
/// that has just given its only permit away.
#[test]
fn an_idle_session_gives_the_permit_of_its_destination_back_at_once() {
    for io in io_modes() {
        // Another shard asks with its doorbell and the tick.
        for (shards, messages, most) in [("1", 20, 2), ("2", 4, 4)] {
            let hosts = [Peer::good(), Peer::good()];
            let routes = format!("one.test {}, {}\n", hosts[0].host(0), hosts[1].host(0));
            let tables = format!("{SLOW_RETRY}[destination.default]\nmax_connections = 1\n");
            let mut setup = Setup::new(io, routes).tables(&tables);
            setup.top = setup.top.replace("shards = 2", &format!("shards = {shards}"));
            let engine = Engine::start(&setup);
            let begun = Instant::now();
            for _ in 0..messages {
                engine.send("s@one.test", &["a@one.test"]);
                engine.wait_empty();
            }
            let took = begun.elapsed();
            assert_eq!(hosts.iter().map(|host| host.messages().len()).sum::<usize>(), messages);
            assert!(took < Duration::from_secs(most), "{shards} shards: {took:?}");
        }
    }
}

/// The disk fails while a delivery is under way: 451, and the delivery ends for good, whatever
/// the next hop says.
#[test]
fn a_delivery_under_way_ends_after_its_commit_failed() {
    for io in io_modes() {
        for (reply, delivered) in [("250 2.0.0 ok", 1.0), ("450 4.2.0 later", 0.0)] {
            let (set, state) = dial();
            let peer = Peer::start(move |peer, _| {
                // The first message brings the session, so that the second is under way at once.
                if !peer.hello() || !peer.up_to_data() || peer.body().is_none() {
                    return;
                }
                peer.say("250 2.0.0 ok");
                if !peer.up_to_data() || peer.body().is_none() {
                    return;
                }
                while state.load(Ordering::SeqCst) == 0 {
                    peer.pause(Duration::from_millis(10));
                }
                peer.say(reply);
                peer.hang();
            });
            let routes = format!("disk.test {}\n", peer.host(0));
            let mut setup = Setup::new(io, routes).tables(SLOW_RETRY);
            setup.top = setup.top.replace("shards = 2", "shards = 1");
            let mut engine = Engine::start(&setup);
            engine.stop();
            // A write beyond the limit below is to be an error and not the end.
            let mut patient = Command::new("sh");
            patient.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program());
            engine.launch_through(patient);
            engine.send("s@disk.test", &["a@disk.test"]);
            engine.wait("no destination", || destinations(&engine) == 0.0);
            let limit = format!("--fsize={0}:{0}", 100_000);
            let pid = engine.pid().to_string();
            let limited = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
            if !limited.is_ok_and(|status| status.success()) {
                println!("skipped: prlimit(1) is missing");
                return;
            }
            let mut client = engine.client();
            client.envelope("s@disk.test", &["a@disk.test"]);
            let refused = client.data(b"Subject: test\r\n\r\nhello\r\n");
            assert!(refused.starts_with("451"), "{refused}");
            engine.wait("the delivery under way", || destinations(&engine) == 1.0);
            set.store(1, Ordering::SeqCst);
            engine.wait("the end of the delivery", || {
                destinations(&engine) == 0.0
                    && engine.metric("ringpost_recipients_total{outcome=\"delivered\"}")
                        == 1.0 + delivered
            });
            assert_eq!(engine.metric("ringpost_recipients_uncertain_total"), delivered);
        }
    }
}

/// Only a host that comes up wakes mail; a reload after which the hosts are the same does not.
#[test]
fn a_reload_that_changes_no_host_wakes_nothing() {
    for io in io_modes() {
        let peer = Peer::start(|peer, _| {
            if peer.hello() {
                peer.serve_with(|line| line.starts_with("MAIL").then(|| "450 4.3.2 no".to_owned()));
            }
        });
        let routes = format!("same.test {}\n", peer.host(0));
        let engine = Engine::start(&Setup::new(io, &*routes).tables(SLOW_RETRY));
        engine.send("s@same.test", &["a@same.test"]);
        engine.wait_log("pending till");
        let more = format!("{routes}other.test /dev/null\n");
        std::fs::write(engine.path("smtproutes"), more).unwrap();
        engine.signal("HUP");
        engine.wait_log("configuration");
        std::thread::sleep(Duration::from_secs(1));
        let delayed = engine.log().matches("Delayed:").count();
        assert_eq!(delayed, 1, "{}", engine.log());
    }
}
