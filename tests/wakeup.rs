//! Host health and wake-up: a dead host costs one connect, mail that found all hosts down is not
//! attempted, and mail deferred while a destination was down is woken when it comes up.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Engine, Peer, Setup, io_modes};
use ringpost::lab::source::{self, SourceOptions};

/// Deferred mail comes back after a minute: what arrives sooner was woken.
const SLOW_RETRY: &str = "[bounce_profile.default]\ninitial_retry = \"60s\"\n";

/// A host that refuses as `refuse` says until the switch is thrown.
fn switched(step: &'static str, reply: &'static str) -> (Peer, Arc<AtomicBool>) {
    let good = Arc::new(AtomicBool::new(false));
    let switch = good.clone();
    let peer = Peer::start(move |peer, _| {
        let good = switch.clone();
        if step == "GREETING" && !good.load(Ordering::SeqCst) {
            peer.say(reply);
            peer.line();
            return;
        }
        if peer.hello() {
            peer.serve_with(|line| {
                let refuses = line.starts_with(step) && !good.load(Ordering::SeqCst);
                refuses.then(|| reply.to_owned())
            });
        }
    });
    (peer, good)
}

fn count(engine: &Engine, text: &str) -> usize {
    engine.log().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_dead_host_costs_one_connect_and_a_probe_brings_it_back() {
    for io in io_modes() {
        let address = Peer::nobody();
        let tables = SLOW_RETRY;
        let routes = format!("dead.test {address}\n");
        let engine = Engine::start(&Setup::new(io, routes).tables(tables));
        engine.send("s@dead.test", &["a@dead.test"]);
        engine.wait_log("pending till");
        for _ in 0..20 {
            engine.send("s@dead.test", &["b@dead.test"]);
        }
        // Probes go on, at growing distances: after 1 s, 2 s, 4 s.
        engine.wait_log_count("Connection Error", 3);
        assert_eq!(count(&engine, "Delayed:"), 1, "only the first was attempted");
        assert_eq!(count(&engine, "Delivery start"), 0);
        let host = Peer::on(address, |peer, _| peer.serve());
        let back = Instant::now();
        engine.wait("the probe", || host.connections() > 0);
        assert!(back.elapsed() > Duration::from_secs(2), "the back-off doubles");
        engine.wait_empty();
        assert_eq!(host.messages().len(), 21);
        assert!(count(&engine, "Connection Error") <= 3);
        assert_eq!(count(&engine, "Delayed:"), 1);
    }
}

/// 431 in the greeting: the case of the tech note.
#[test]
fn mail_is_woken_when_a_host_that_refused_comes_back() {
    for io in io_modes() {
        for (step, reply) in [("GREETING", "431 Mail system full"), ("MAIL", "450 4.3.2 not now")] {
            let (peer, good) = switched(step, reply);
            let engine = Engine::start(
                &Setup::new(io, format!("w.test {}\n", peer.host(0))).tables(SLOW_RETRY),
            );
            let names = ["a@w.test", "b@w.test", "c@w.test", "d@w.test"];
            for name in names {
                engine.send("s@w.test", &[name]);
                if step == "MAIL" {
                    engine.wait_log_count("Delayed:", 1);
                }
            }
            engine.wait_log("Delayed:");
            std::thread::sleep(Duration::from_millis(300));
            good.store(true, Ordering::SeqCst);
            let back = Instant::now();
            if step == "MAIL" {
                // Nothing tells that the host takes mail again but new mail.
                engine.send("s@w.test", &["new@w.test"]);
            }
            engine.wait_empty();
            assert!(back.elapsed() < Duration::from_secs(15), "io = {io}, {step}: not woken");
            assert_eq!(peer.messages().len(), 4 + usize::from(step == "MAIL"), "{io} {step}");
        }
    }
}

#[test]
fn the_oldest_is_woken_first_and_no_more_than_ten_in_the_first_second() {
    for io in io_modes() {
        let (peer, good) = switched("MAIL", "450 4.3.2 not now");
        let mut setup = Setup::new(io, format!("w.test {}\n", peer.host(0))).tables(SLOW_RETRY);
        setup.top = setup.top.replace("shards = 2", "shards = 1");
        let engine = Engine::start(&setup);
        for n in 0..25 {
            engine.send("s@w.test", &[&format!("m{n}@w.test")]);
            engine.wait_log_count("Delayed:", n + 1);
        }
        good.store(true, Ordering::SeqCst);
        engine.send("s@w.test", &["new@w.test"]);
        engine.wait("the first", || peer.messages().len() >= 2);
        std::thread::sleep(Duration::from_millis(500));
        let early = peer.messages().len();
        assert!(early <= 11, "{early} in the first second");
        engine.wait_empty();
        let order: Vec<String> = peer.messages().iter().map(|m| m.recipients[0].clone()).collect();
        let first: Vec<&str> = order[1..11].iter().map(String::as_str).collect();
        for n in 0..10 {
            let name = format!("<m{n}@");
            assert!(first.iter().any(|rcpt| rcpt.contains(&name)), "{first:?}");
        }
    }
}

#[test]
fn mail_for_a_full_mailbox_is_not_woken() {
    for io in io_modes() {
        let (peer, good) = switched("RCPT TO:<full@", "452 4.2.2 mailbox full");
        let engine =
            Engine::start(&Setup::new(io, format!("w.test {}\n", peer.host(0))).tables(SLOW_RETRY));
        engine.send("s@w.test", &["full@w.test"]);
        engine.wait_log("Delayed:");
        good.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            engine.send("s@w.test", &["new@w.test"]);
        }
        engine.wait("the others", || peer.messages().len() == 3);
        std::thread::sleep(Duration::from_millis(1_200));
        assert_eq!(peer.messages().len(), 3, "io = {io}");
        assert_eq!(engine.metric("ringpost_recipients_pending"), 1.0);
    }
}

/// A host that works on 20 connections, 20 ms a message, and greets further ones with 421; and
/// how many it turned away.
fn host_of_twenty() -> (Peer, Arc<AtomicUsize>) {
    let (open, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let turned_away = refused.clone();
    let peer = Peer::start(move |peer, _| {
        if open.fetch_add(1, Ordering::SeqCst) >= 20 {
            turned_away.fetch_add(1, Ordering::SeqCst);
            peer.say("421 4.7.0 too many connections");
        } else if peer.hello() {
            peer.serve_with(|line| {
                if line == "." {
                    std::thread::sleep(Duration::from_millis(20));
                }
                None
            });
        }
        open.fetch_sub(1, Ordering::SeqCst);
    });
    (peer, refused)
}

/// Delivers 2,000 messages with at most `connections`; the time it took.
fn deliver_2000(io: &str, peer: &Peer, connections: usize) -> Duration {
    let tables = format!(
        "[destination.default]\nmax_messages_per_connection = 100000\n\
         max_connections = {connections}\n"
    );
    let setup = Setup::new(io, format!("w.test {}\n", peer.host(0))).tables(&tables);
    let engine = Engine::start(&setup);
    let begun = Instant::now();
    // Faster than the host takes it, however slow the machine is: there is always a backlog.
    let options = SourceOptions {
        to: engine.smtp,
        messages: 2_000,
        sessions: 8,
        size: 512,
        rcpt: "a@w.test".to_owned(),
        bdat: true,
        window: 8,
        ..SourceOptions::default()
    };
    assert!(source::run(options).unwrap().is_complete());
    engine.wait_empty();
    let took = begun.elapsed();
    assert_eq!(peer.messages().len(), 2_000);
    assert_eq!(engine.metric("ringpost_soft_bounces_total"), 0.0);
    for state in ["down", "probing", "probe due"] {
        let state = format!("ringpost_host_state{{host=\"{}\",state=\"{state}\"}}", peer.address);
        assert_eq!(engine.metric(&state), 0.0, "a host that works is up");
    }
    took
}

/// The 21st connection is greeted 421 while 20 work: that is a limit and not an illness.
#[test]
fn too_many_connections_do_not_slow_those_that_work() {
    for io in io_modes() {
        let (peer, refused) = host_of_twenty();
        let within = deliver_2000(io, &peer, 20);
        assert_eq!(refused.load(Ordering::SeqCst), 0);
        let (peer, refused) = host_of_twenty();
        let beyond = deliver_2000(io, &peer, 500);
        let refused = refused.load(Ordering::SeqCst);
        eprintln!("{io}: limit known {within:?}, met {beyond:?}, {refused} turned away");
        assert!(beyond < within * 2, "io = {io}: {beyond:?} instead of {within:?}");
        assert!((1..=6).contains(&refused), "the ceiling is lowered: {refused} turned away");
    }
}

/// A port that takes no connection and refuses none: its backlog is full.
struct BlackHole {
    listener: std::net::TcpListener,
    _waiting: Vec<std::net::TcpStream>,
}

impl BlackHole {
    fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let wait = Duration::from_millis(200);
        let mut waiting = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, wait) {
            waiting.push(stream);
            assert!(waiting.len() < 100, "the backlog does not fill");
        }
        Self { listener, _waiting: waiting }
    }
}

/// After two seconds without an answer other hosts take the mail, while the connect runs on and
/// decides the host's health.
#[test]
fn a_connect_without_an_answer_holds_mail_for_two_seconds() {
    for io in io_modes() {
        let hole = BlackHole::new();
        let address = hole.listener.local_addr().unwrap();
        let good = Peer::good();
        let routes = format!("slow.test {address}/pri=0, {}\n", good.host(10));
        let tables = format!("{SLOW_RETRY}[timeouts]\nconnect = \"5s\"\n");
        let mut setup = Setup::new(io, routes).tables(&tables);
        setup.top = setup.top.replace("shards = 2", "shards = 1");
        let engine = Engine::start(&setup);
        let begun = Instant::now();
        for _ in 0..5 {
            engine.send("s@slow.test", &["a@slow.test"]);
        }
        engine.wait("the next host", || good.messages().len() == 5);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(1_900), "io = {io}: {took:?}");
        assert!(took < Duration::from_secs(4), "io = {io}: {took:?}");
        // New mail does not wait for it.
        let begun = Instant::now();
        engine.send("s@slow.test", &["a@slow.test"]);
        engine.wait("the sixth", || good.messages().len() == 6);
        assert!(begun.elapsed() < Duration::from_secs(1), "io = {io}: {:?}", begun.elapsed());
        assert_eq!(count(&engine, "Connection Error"), 0, "the connect runs on");
        engine.wait_log("details: timeout interface: 0.0.0.0 reason: connection timed out");
        assert_eq!(count(&engine, "Delayed:"), 0);
    }
}
