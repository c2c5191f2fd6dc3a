//! Memory for messages on their way in is bounded: large messages take turns, small mail flows,
//! and what gets no room in time is refused for now.
//!
//! `RINGPOST_RECEIVE_SESSIONS` and `RINGPOST_RECEIVE_OCTETS` make the crowd larger, and
//! `RINGPOST_RECEIVE_MEMORY` its room (as in a profile); what the process took of memory at most
//! is printed.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Engine, Peer, Setup};

/// How long a crowd may take.
const LONGEST: Duration = Duration::from_secs(1500);

/// A profile with this much receive memory, in its folder.
fn profile(receive_memory: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.conf");
    let text = format!("ringpost.receive_memory_octets = {receive_memory}\n");
    std::fs::write(&file, text).unwrap();
    let key = format!("profile = \"{}\"", file.display());
    (folder, key)
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn lines(octets: usize) -> Vec<u8> {
    format!("{}\r\n", "x".repeat(998)).repeat(octets / 1000).into_bytes()
}

/// MAIL with SIZE, RCPT, DATA; the replies must be good.
fn begin(client: &mut Client, octets: usize) {
    let reply = client.command(&format!("MAIL FROM:<s@from.test> SIZE={octets}"));
    assert!(reply.starts_with("250"), "{reply}");
    assert!(client.command("RCPT TO:<r@to.test>").starts_with("250"));
    assert!(client.command("DATA").starts_with("354"));
}

/// Peak of the resident memory of a process, in octets.
fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A next hop that throws away what it is sent: the test's own memory stays small.
fn drain() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || swallow(stream));
        }
    });
    address
}

fn swallow(mut stream: std::net::TcpStream) -> Option<()> {
    use std::io::Write;
    stream.write_all(b"220 drain\r\n").ok()?;
    let (mut buffer, mut tail) = (vec![0; 64 * 1024], Vec::new());
    let mut in_data = false;
    loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        tail.extend_from_slice(&buffer[..count]);
        if in_data {
            if !tail.ends_with(b"\r\n.\r\n") {
                tail.drain(..tail.len().saturating_sub(4));
                continue;
            }
            in_data = false;
            tail.clear();
            stream.write_all(b"250 2.0.0 gone\r\n").ok()?;
        }
        while let Some(end) = tail.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = tail.drain(..=end).collect();
            in_data = line.starts_with(b"DATA");
            let reply: &[u8] = if in_data { b"354 go\r\n" } else { b"250 ok\r\n" };
            stream.write_all(reply).ok()?;
        }
    }
}

/// Octets that a shard holds of messages on their way in: never above its limit.
fn held_within_limit(metrics: &HashMap<String, f64>, shard: usize) -> f64 {
    let of = |name: &str| metrics[&format!("{name}{{shard=\"{shard}\"}}")];
    let held = of("ringpost_shard_receive_bytes");
    let at_most = of("ringpost_shard_receive_max_bytes") + 600_000.0;
    assert!(held <= at_most, "{held} of {at_most}");
    held
}

#[test]
fn a_crowd_of_large_messages_keeps_within_the_memory_and_all_come_in() {
    let sessions = number("RINGPOST_RECEIVE_SESSIONS", 40);
    let octets = number("RINGPOST_RECEIVE_OCTETS", 2_000_000);
    let room = std::env::var("RINGPOST_RECEIVE_MEMORY").unwrap_or_else(|_| "8MiB".into());
    let (_folder, key) = profile(&room);
    let peer = Peer::good();
    let routes = format!("to.test {}\nsmall.test {}\n", drain(), peer.host(0));
    let engine = Engine::start(&Setup::new("auto", routes).top(&key));
    engine.send("s@from.test", &["r@to.test"]);
    let before = peak(engine.pid());
    let start = Instant::now();
    let (taken, refused, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let mut held_most = 0.0;
    std::thread::scope(|scope| {
        for _ in 0..sessions {
            let (engine, taken, refused) = (&engine, &taken, &refused);
            scope.spawn(move || {
                let line = lines(100_000);
                let mut client = engine.client();
                // One that is refused comes again, as every client does.
                while start.elapsed() < LONGEST {
                    let reply = client.command(&format!("MAIL FROM:<s@from.test> SIZE={octets}"));
                    if reply.starts_with("250") {
                        assert!(client.command("RCPT TO:<r@to.test>").starts_with("250"));
                        assert!(client.command("DATA").starts_with("354"));
                        (0..octets / line.len()).for_each(|_| client.raw(&line));
                        client.raw(b".\r\n");
                        let reply = client.long_reply();
                        if reply.starts_with("250") {
                            taken.fetch_add(1, Ordering::SeqCst);
                            return client.quit();
                        }
                        assert!(reply.starts_with("452 4.3.1"), "{reply}");
                    }
                    assert!(reply.starts_with("250") || reply.starts_with("452 4.3.1"), "{reply}");
                    refused.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        }
        let watch = scope.spawn(|| {
            let mut held_most = 0.0_f64;
            while !done.load(Ordering::SeqCst) {
                let metrics = engine.metrics();
                for shard in 0..2 {
                    held_most = held_most.max(held_within_limit(&metrics, shard));
                }
                // Small mail flows meanwhile.
                let start = Instant::now();
                engine.send("s@from.test", &["r@small.test"]);
                assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
                std::thread::sleep(Duration::from_millis(50));
            }
            held_most
        });
        let some_wait = || taken.load(Ordering::SeqCst) < sessions && start.elapsed() < LONGEST;
        while some_wait() && !watch.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::SeqCst);
        held_most = watch.join().unwrap();
    });
    let after = peak(engine.pid());
    println!(
        "{sessions} sessions of {octets} octets: {} refused for now; {held_most} octets held by \
         one shard at most; resident memory at most {after} octets, {} before",
        refused.load(Ordering::SeqCst),
        before
    );
    assert_eq!(taken.load(Ordering::SeqCst), sessions);
    engine.wait_empty();
}

/// Clients that stall with large messages take all of the large part. Others wait, new large mail
/// is refused, small mail flows; and all of it goes on as soon as one of them ends.
#[test]
fn stalled_clients_make_others_wait_and_then_new_mail_is_refused() {
    const OCTETS: usize = 2_000_000;
    let (_folder, key) = profile("4MiB");
    let peer = Peer::good();
    let setup = Setup::new("auto", format!("to.test {}\n", peer.host(0))).top(&key);
    let setup = Setup { top: setup.top.replace("shards = 2", "shards = 1"), ..setup };
    let engine = Engine::start(&setup);
    let mut stalled = engine.client();
    begin(&mut stalled, OCTETS);
    stalled.raw(&lines(300_000));
    let waiting = |count: f64| {
        engine.wait("clients that wait", || {
            engine.metric("ringpost_shard_receive_waiting{shard=\"0\"}") == count
        });
    };
    let mut second = engine.client();
    begin(&mut second, OCTETS);
    std::thread::scope(|scope| {
        let rest = scope.spawn(|| {
            second.raw(&lines(OCTETS));
            second.raw(b".\r\n");
            second.reply()
        });
        waiting(1.0);
        engine.wait_log("Warning: receive memory is full, 1 clients wait: new mail is refused");
        let mut third = engine.client();
        let reply = third.command(&format!("MAIL FROM:<s@from.test> SIZE={OCTETS}"));
        assert!(reply.starts_with("452 4.3.1"), "{reply}");
        third.message("s@from.test", &["r@to.test"], b"Subject: small\r\n\r\nflows\r\n");
        engine.wait("the refusal in the metrics", || {
            engine.metric("ringpost_receive_refused_total") == 1.0
        });
        let (code, page, _) = engine.verb(&["status"]);
        assert_eq!(code, 0);
        let line = "1 clients wait, new mail is refused with 452";
        assert!(page.contains("Receive memory: ") && page.contains(line), "{page}");
        // A client that is gone gives back what it held.
        drop(stalled);
        assert!(rest.join().unwrap().starts_with("250"));
        waiting(0.0);
        engine.wait_log("receive memory has room again");
        let reply = third.command(&format!("MAIL FROM:<s@from.test> SIZE={OCTETS}"));
        assert!(reply.starts_with("250"), "{reply}");
    });
    engine.wait_empty();
    engine.wait("all memory given back", || {
        engine.metric("ringpost_shard_receive_bytes{shard=\"0\"}") == 0.0
    });
}

/// Messages without SIZE: those that turn out to be large, and find no place to wait in, are
/// refused at their end and leave the others alone.
#[test]
fn large_messages_that_do_not_say_so() {
    let (_folder, key) = profile("4MiB");
    let engine = Engine::start(&Setup::new("auto", format!("to.test {}\n", drain())).top(&key));
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let mut client = engine.client();
                client.envelope("s@from.test", &["r@to.test"]);
                let reply = client.data(&lines(1_500_000));
                if reply.starts_with("452 4.3.1") {
                    refused.fetch_add(1, Ordering::SeqCst);
                    // The session goes on as if nothing had been.
                    client.message("s@from.test", &["r@to.test"], b"Subject: small\r\n\r\n");
                } else {
                    assert!(reply.starts_with("250"), "{reply}");
                }
                client.quit();
            });
        }
    });
    assert!(refused.load(Ordering::SeqCst) < 24, "none came in");
    engine.wait_empty();
}
