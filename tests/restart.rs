//! What a restart keeps: retry times, ages, large messages; what it finds, and whom it refuses.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use common::{Engine, Peer, Setup};

/// A host that answers 450 to RCPT while `busy` is set, and the moments at which it was asked.
fn moody(busy: &Arc<AtomicBool>) -> (Peer, Arc<Mutex<Vec<Instant>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (busy, moments) = (busy.clone(), asked.clone());
    let peer = Peer::start(move |peer, _| {
        if peer.hello() {
            let (busy, moments) = (busy.clone(), moments.clone());
            peer.serve_with(move |line| {
                if !line.starts_with("RCPT") {
                    return None;
                }
                moments.lock().unwrap().push(Instant::now());
                let later = "450 4.2.1 mailbox is busy".to_owned();
                busy.load(Ordering::SeqCst).then_some(later)
            });
        }
    });
    (peer, asked)
}

fn retries(initial: &str, rest: &str) -> String {
    format!("[bounce_profile.default]\ninitial_retry = \"{initial}\"\nmax_retry = \"1h\"\n{rest}")
}

/// A time of the day in seconds, from `... pending till Www Mmm dd hh:mm:ss yyyy [profile]`.
fn pending_till(log: &str) -> u32 {
    let line = log.lines().find(|line| line.contains(" pending till ")).expect("a retry time");
    let clock = line.split(" pending till ").nth(1).unwrap();
    let clock = clock.split_whitespace().find(|word| word.contains(':')).unwrap();
    let parts: Vec<u32> = clock.split(':').map(|part| part.parse().unwrap()).collect();
    parts[0] * 3600 + parts[1] * 60 + parts[2]
}

/// The time of the day of the `count`-th line with `text`, in seconds.
fn time_of(log: &str, text: &str, count: usize) -> u32 {
    let line = log.lines().filter(|line| line.contains(text)).nth(count - 1).unwrap();
    let clock = line.split_whitespace().nth(3).unwrap();
    let parts: Vec<u32> = clock.split(':').map(|part| part.parse().unwrap()).collect();
    parts[0] * 3600 + parts[1] * 60 + parts[2]
}

each_io!(a_retry_time_is_kept_across_a_restart);
fn a_retry_time_is_kept_across_a_restart(io: &str) {
    for kill in [false, true] {
        let busy = Arc::new(AtomicBool::new(true));
        let (peer, asked) = moody(&busy);
        let setup = Setup::new(io, format!("ALL {}", peer.host(0)));
        let mut engine = Engine::start(&setup.tables(&retries("4s", "")));
        engine.send("a@a.test", &["b@b.test"]);
        engine.wait_log("pending till");
        let first = asked.lock().unwrap()[0];
        let till = pending_till(&engine.log());
        if kill {
            engine.kill()
        } else {
            engine.stop()
        }
        busy.store(false, Ordering::SeqCst);
        engine.launch();
        engine.wait_empty();
        engine.wait_log("Message finished MID");
        let second = *asked.lock().unwrap().last().unwrap();
        assert_eq!(asked.lock().unwrap().len(), 2, "{}", engine.log());
        let gap = second - first;
        assert!(gap >= Duration::from_millis(3_950), "too early: {gap:?}\n{}", engine.log());
        assert!(gap < Duration::from_millis(5_500), "too late: {gap:?}\n{}", engine.log());
        let log = engine.log();
        let attempt = time_of(&log, "Delivery start DCID", 2);
        let day = 24 * 3600;
        assert!((attempt + day - till) % day <= 1, "{attempt} s for {till} s\n{log}");
        assert!(!log.contains("Possible Delivery"), "{log}");
    }
}

each_io!(the_second_wait_doubles_across_a_restart);
fn the_second_wait_doubles_across_a_restart(io: &str) {
    let busy = Arc::new(AtomicBool::new(true));
    let (peer, asked) = moody(&busy);
    let setup = Setup::new(io, format!("ALL {}", peer.host(0)));
    let mut engine = Engine::start(&setup.tables(&retries("1s", "")));
    engine.send("a@a.test", &["b@b.test"]);
    engine.wait_log("pending till");
    engine.kill();
    engine.launch();
    engine.wait_log_count("pending till", 2);
    engine.kill();
    busy.store(false, Ordering::SeqCst);
    engine.launch();
    engine.wait_empty();
    let asked = asked.lock().unwrap();
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps.len(), 2, "{gaps:?}");
    assert!(gaps[0] >= Duration::from_millis(950), "{gaps:?}");
    assert!(gaps[1] >= Duration::from_millis(1_950), "{gaps:?}");
}

each_io!(mail_bounces_after_its_last_retry_also_across_a_restart);
fn mail_bounces_after_its_last_retry_also_across_a_restart(io: &str) {
    let busy = Arc::new(AtomicBool::new(true));
    let (peer, asked) = moody(&busy);
    let setup = Setup::new(io, format!("ALL {}", peer.host(0)));
    let mut engine = Engine::start(&setup.tables(&retries("1s", "max_retries = 1\n")));
    engine.send("", &["b@b.test"]);
    engine.wait_log("pending till");
    engine.stop();
    engine.launch();
    engine.wait_log("Bounced: DCID");
    engine.wait_log("Message finished MID");
    assert_eq!(asked.lock().unwrap().len(), 2, "{}", engine.log());
    let log = engine.log();
    assert!(log.contains("4.2.1") && log.contains("Message finished MID"), "{log}");
}

each_io!(mail_bounces_when_its_time_in_queue_is_over_also_while_all_hosts_are_down);
fn mail_bounces_when_its_time_in_queue_is_over_also_while_all_hosts_are_down(io: &str) {
    for kill in [None, Some(false), Some(true)] {
        let setup = Setup::new(io, format!("ALL {}", Peer::nobody()));
        let mut engine =
            Engine::start(&setup.tables(&retries("1s", "max_time_in_queue = \"3s\"\n")));
        let start = Instant::now();
        engine.send("", &["deferred@b.test"]);
        engine.wait_log("Connection Error: DCID");
        // Its host is down by now: this one waits without an attempt.
        engine.send("", &["waiting@b.test"]);
        match kill {
            None => {}
            Some(true) => engine.kill(),
            Some(false) => engine.stop(),
        }
        if kill.is_some() {
            engine.launch();
        }
        engine.wait_log_count("Bounced: DCID", 2);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(2_900), "{took:?}\n{}", engine.log());
        assert!(took < Duration::from_secs(6), "{took:?}\n{}", engine.log());
        engine.wait_empty();
        engine.assert_conservation();
    }
}

/// Writes another number of shards into the configuration.
fn set_shards(engine: &Engine, from: u32, to: u32) {
    let file = engine.path("ringpost.toml");
    let toml = fs::read_to_string(&file).unwrap();
    let changed = toml.replace(&format!("shards = {from}\n"), &format!("shards = {to}\n"));
    assert_ne!(toml, changed);
    fs::write(file, changed).unwrap();
}

each_io!(another_number_of_shards_adopts_what_is_queued);
fn another_number_of_shards_adopts_what_is_queued(io: &str) {
    let busy = Arc::new(AtomicBool::new(true));
    let (peer, _) = moody(&busy);
    let mut setup = Setup::new(io, format!("ALL {}", peer.host(0)));
    setup.top = setup.top.replace("shards = 2", "shards = 1");
    let mut engine = Engine::start(&setup.tables(&retries("6s", "")));
    let pending = |engine: &Engine| engine.metric("ringpost_recipients_pending");
    let mut sent = 0;
    let mut send = |engine: &Engine, count: u32| {
        for _ in 0..count {
            engine.send("a@a.test", &[&format!("r{sent}@d{}.test", sent % 7)]);
            sent += 1;
        }
    };
    send(&engine, 20);
    engine.wait_log_count("pending till", 20);
    engine.stop();
    set_shards(&engine, 1, 3);
    engine.launch();
    assert_eq!(pending(&engine), 20.0);
    engine.assert_conservation();
    send(&engine, 20);
    engine.wait_log_count("pending till", 40);
    engine.kill();
    set_shards(&engine, 3, 2);
    engine.launch();
    assert_eq!(pending(&engine), 40.0, "{}", engine.log());
    engine.assert_conservation();
    busy.store(false, Ordering::SeqCst);
    engine.wait_empty();
    let messages = peer.messages();
    assert_eq!(messages.len(), 40);
    for n in 0..40 {
        let to = format!("<r{n}@d{}.test>", n % 7);
        assert_eq!(messages.iter().filter(|m| m.recipients[0].contains(&to)).count(), 1, "{to}");
    }
}

each_io!(a_second_engine_on_the_spool_refuses_and_names_the_first);
fn a_second_engine_on_the_spool_refuses_and_names_the_first(io: &str) {
    let peer = Peer::good();
    let engine = Engine::start(&Setup::new(io, format!("ALL {}", peer.host(0))));
    let config = engine.path("ringpost.toml");
    let config = config.to_str().unwrap();
    let (code, stdout, stderr) = common::ringpost(&["serve", "--config", config], &engine.path(""));
    assert_eq!(code, 75, "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&format!("process {}", engine.pid())), "{stderr}");
    assert_eq!(stdout, "");
    engine.send("a@a.test", &["b@b.test"]);
    engine.wait_empty();
    assert_eq!(peer.messages().len(), 1, "the first one is not disturbed");
}

each_io!(the_log_says_what_a_start_found);
fn the_log_says_what_a_start_found(io: &str) {
    let (seen, has_seen) = mpsc::channel();
    let peer = Peer::start(move |peer, number| {
        if number > 0 {
            return peer.serve();
        }
        if peer.hello() && peer.up_to_data() && peer.body().is_some() {
            seen.send(()).unwrap_or_default();
            peer.hang();
        }
    });
    let mut engine = Engine::start(&Setup::new(io, format!("ALL {}", peer.host(0))));
    engine.send("a@a.test", &["b@b.test", "c@b.test"]);
    has_seen.recv().unwrap();
    engine.kill();
    engine.launch();
    engine.wait_empty();
    engine.wait_log("Message finished MID");
    let lines = engine.log_lines();
    let found = lines.iter().filter(|line| line.starts_with("queue: ")).count();
    assert!(found >= 1, "{lines:#?}");
    let uncertain: Vec<_> = lines.iter().filter(|l| l.starts_with("Possible Delivery")).collect();
    assert_eq!(uncertain.len(), 1, "{lines:#?}");
    assert!(uncertain[0].ends_with("to RID [0, 1]"), "{uncertain:?}");
    assert_eq!(engine.metric("ringpost_recipients_uncertain_total"), 2.0);
    assert_eq!(lines.iter().filter(|line| *line == "Begin Logfile").count(), 2);
    assert_eq!(peer.messages().len(), 1);
}

each_io!(ids_are_not_used_twice);
fn ids_are_not_used_twice(io: &str) {
    let peer = Peer::good();
    let mut engine = Engine::start(&Setup::new(io, format!("ALL {}", peer.host(0))));
    for n in 1..=3 {
        engine.send("a@a.test", &["b@b.test"]);
        engine.wait_empty();
        engine.wait_log_count("Message finished MID", n);
        engine.kill();
        engine.launch();
    }
    let lines = engine.log_lines();
    for (what, word) in [("Start MID ", 2), ("New SMTP ICID ", 3), ("New SMTP DCID ", 3)] {
        let of = |line: &String| line.split(' ').nth(word).unwrap().to_owned();
        let mut ids: Vec<_> = lines.iter().filter(|l| l.starts_with(what)).map(of).collect();
        assert_eq!(ids.len(), 3, "{what}: {lines:#?}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 3, "{what}: one was used twice: {lines:#?}");
    }
}

each_io!(a_large_message_survives_byte_for_byte);
fn a_large_message_survives_byte_for_byte(io: &str) {
    const OCTETS: usize = 20 << 20;
    for kill in [false, true] {
        let busy = Arc::new(AtomicBool::new(true));
        let (peer, _) = moody(&busy);
        let setup = Setup::new(io, format!("ALL {}", peer.host(0)));
        let mut engine = Engine::start(&setup.tables(&retries("2s", "")));
        let mut message = b"Subject: large\r\n\r\n".to_vec();
        let mut n = 0u64;
        while message.len() < OCTETS {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            message.extend_from_slice(format!(".{n:016x} {n:x}\r\n").as_bytes());
        }
        let mut client = engine.client();
        client.message("a@a.test", &["b@b.test"], &message);
        drop(client);
        engine.wait_log("pending till");
        if kill {
            engine.kill()
        } else {
            engine.stop()
        }
        busy.store(false, Ordering::SeqCst);
        engine.launch();
        engine.wait_empty();
        let messages = peer.messages();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].data.starts_with(b"Received: from "));
        assert!(messages[0].data.ends_with(&message), "the bytes changed");
        assert!(messages[0].data.len() < message.len() + 400);
    }
}

each_io!(only_what_is_open_is_tried_again);
fn only_what_is_open_is_tried_again(io: &str) {
    let busy = Arc::new(AtomicBool::new(true));
    let (peer, asked) = moody(&busy);
    let good = Peer::good();
    let routes = format!("good.test {}\nALL {}", good.host(0), peer.host(0));
    let mut engine = Engine::start(&Setup::new(io, routes).tables(&retries("1s", "")));
    engine.send("a@a.test", &["x@good.test", "y@busy.test", "z@good.test"]);
    engine.wait_log("pending till");
    engine.wait_log("Message done DCID");
    engine.kill();
    busy.store(false, Ordering::SeqCst);
    engine.launch();
    engine.wait_empty();
    engine.wait_log("Message finished MID");
    assert_eq!(good.messages().len(), 1, "delivered once, before the crash");
    assert_eq!(asked.lock().unwrap().len(), 2);
    let taken = peer.messages();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].recipients, ["RCPT TO:<y@busy.test>"]);
}

each_io!(a_message_in_flight_at_three_crashes_is_held);
/// A message under which the engine dies again and again is held, and others pass.
fn a_message_in_flight_at_three_crashes_is_held(io: &str) {
    let (seen, has_seen) = mpsc::channel();
    let fatal = Peer::start(move |peer, _| {
        if peer.hello() && peer.up_to_data() && peer.body().is_some() {
            seen.send(()).unwrap_or_default();
            peer.hang();
        }
    });
    let good = Peer::good();
    let routes = format!("good.test {}\nALL {}", good.host(0), fatal.host(0));
    let mut engine = Engine::start(&Setup::new(io, routes));
    engine.send("a@a.test", &["x@fatal.test"]);
    for crash in 1..=3 {
        has_seen.recv_timeout(common::PATIENCE).unwrap();
        engine.kill();
        engine.launch();
        engine.wait_log_count("Begin Logfile", crash + 1);
    }
    engine.send("a@a.test", &["y@good.test"]);
    engine.wait("the other one", || good.messages().len() == 1);
    engine.wait_empty();
    engine.assert_conservation();
    assert_eq!(engine.metric("ringpost_recipients_total{outcome=\"damaged\"}"), 1.0);
    assert!(has_seen.recv_timeout(Duration::from_millis(300)).is_err(), "it was tried again");
    let log = engine.log();
    assert!(log.contains("queue: poison"), "{log}");
}
