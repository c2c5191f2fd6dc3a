//! The end in good order: what SIGTERM waits for and what it cuts, and what SIGHUP does.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Client, Engine, Peer, Setup};
use ringpost::lab::sink::{Behaviour, Sink, SinkOptions};
use ringpost::lab::source::{self, SourceOptions};

fn engine(io: &str, peer: &Peer) -> Engine {
    Engine::start(&Setup::new(io, format!("ALL {}", peer.host(0))))
}

/// A peer that takes everything, but lets `delay` pass before its reply to a final dot, and tells
/// when it has seen one.
fn late_peer(delay: Duration) -> (Peer, mpsc::Receiver<()>) {
    let (dot, has_dot) = mpsc::channel();
    let peer = Peer::start(move |peer, _| {
        if peer.hello() {
            let dot = dot.clone();
            peer.serve_with(move |line| {
                if line == "." {
                    dot.send(()).unwrap_or_default();
                    std::thread::sleep(delay);
                }
                None
            });
        }
    });
    (peer, has_dot)
}

each_io!(term_and_int_while_idle_end_at_once_with_exit_code_0);
fn term_and_int_while_idle_end_at_once_with_exit_code_0(io: &str) {
    let peer = Peer::good();
    let mut engine = engine(io, &peer);
    engine.send("a@a.test", &["b@b.test"]);
    engine.wait_empty();
    // It does not read its 421, and is waited for a little.
    let idle = engine.client();
    for name in ["TERM", "INT"] {
        let start = Instant::now();
        engine.signal(name);
        assert_eq!(engine.wait_exit(), Some(0), "{name}: {}", engine.stderr());
        assert!(start.elapsed() < Duration::from_secs(4), "{name}: {:?}", start.elapsed());
        engine.launch();
    }
    drop(idle);
}

each_io!(an_idle_client_hears_421);
fn an_idle_client_hears_421(io: &str) {
    let peer = Peer::good();
    let mut engine = engine(io, &peer);
    let mut client = engine.client();
    engine.signal("TERM");
    let farewell = client.reply();
    assert!(farewell.starts_with("421 4.3.2"), "{farewell:?}");
    assert_eq!(client.reply(), "");
    assert_eq!(engine.wait_exit(), Some(0));
}

each_io!(a_client_in_the_middle_of_data_finishes);
fn a_client_in_the_middle_of_data_finishes(io: &str) {
    let peer = Peer::good();
    let mut engine = engine(io, &peer);
    let mut client = engine.client();
    client.envelope("a@a.test", &["b@b.test"]);
    assert!(client.command("DATA").starts_with("354"));
    client.raw(b"Subject: half\r\n\r\nfirst half\r\n");
    engine.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    client.raw(b"second half\r\n.\r\n");
    let reply = client.reply();
    assert!(reply.starts_with("250") || reply.starts_with("421"), "{reply:?}");
    let taken = reply.starts_with("250");
    if taken {
        assert!(client.reply().starts_with("421"));
    }
    assert_eq!(client.reply(), "");
    assert_eq!(engine.wait_exit(), Some(0));
    engine.launch();
    engine.wait_empty();
    assert_eq!(peer.messages().len(), usize::from(taken));
}

each_io!(a_client_that_stalls_in_data_is_cut_after_10_s);
/// Everything but replies to a final dot gets 10 s.
fn a_client_that_stalls_in_data_is_cut_after_10_s(io: &str) {
    let peer = Peer::good();
    let mut engine = engine(io, &peer);
    let mut client = engine.client();
    client.envelope("a@a.test", &["b@b.test"]);
    assert!(client.command("DATA").starts_with("354"));
    client.raw(b"Subject: half\r\n\r\nfirst half\r\n");
    let start = Instant::now();
    engine.signal("TERM");
    assert_eq!(engine.wait_exit(), Some(0));
    let took = start.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(14)).contains(&took), "{took:?}");
    assert!(engine.log().contains("Message aborted MID"), "{}", engine.log());
}

each_io!(a_delivery_before_its_final_dot_is_finished_or_kept);
fn a_delivery_before_its_final_dot_is_finished_or_kept(io: &str) {
    let (seen, has_seen) = mpsc::channel();
    let peer = Peer::start(move |peer, number| {
        if peer.hello() {
            let seen = seen.clone();
            peer.serve_with(move |line| {
                if number == 0 && line.starts_with("DATA") {
                    seen.send(()).unwrap_or_default();
                    std::thread::sleep(Duration::from_millis(700));
                }
                None
            });
        }
    });
    let mut engine = engine(io, &peer);
    engine.send("a@a.test", &["b@b.test"]);
    has_seen.recv().unwrap();
    let start = Instant::now();
    engine.signal("TERM");
    assert_eq!(engine.wait_exit(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    let before = peer.messages().len();
    engine.launch();
    engine.wait_empty();
    assert!(before <= 1);
    assert_eq!(peer.messages().len(), 1, "once, and only once:\n{}", engine.log());
    assert!(!engine.log().contains("Possible Delivery"), "{}", engine.log());
}

each_io!(a_delivery_past_its_final_dot_is_waited_for);
fn a_delivery_past_its_final_dot_is_waited_for(io: &str) {
    for signal in ["TERM", "INT"] {
        let (peer, dot) = late_peer(Duration::from_millis(1_500));
        let mut engine = engine(io, &peer);
        engine.send("a@a.test", &["b@b.test"]);
        dot.recv().unwrap();
        engine.signal(signal);
        assert_eq!(engine.wait_exit(), Some(0));
        let log = engine.log();
        assert!(log.contains("Message done DCID"), "{log}");
        assert!(log.contains("Message finished MID"), "{log}");
        engine.launch();
        assert_eq!(engine.metric("ringpost_recipients_pending"), 0.0);
        assert!(!engine.log().contains("Possible Delivery"), "{}", engine.log());
        assert_eq!(peer.messages().len(), 1);
    }
}

each_io!(a_final_reply_that_comes_too_late_leaves_an_uncertain_recipient);
fn a_final_reply_that_comes_too_late_leaves_an_uncertain_recipient(io: &str) {
    let (peer, dot) = late_peer(Duration::from_secs(4));
    let setup = Setup::new(io, format!("ALL {}", peer.host(0)));
    let mut engine = Engine::start(&setup.top("shutdown_final_reply = \"1s\""));
    engine.send("a@a.test", &["b@b.test"]);
    dot.recv().unwrap();
    let start = Instant::now();
    engine.signal("TERM");
    assert_eq!(engine.wait_exit(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    engine.launch();
    engine.wait_log("Possible Delivery: DCID");
    engine.wait_empty();
    assert_eq!(engine.log().matches("Possible Delivery").count(), 1, "{}", engine.log());
    assert_eq!(engine.metric("ringpost_recipients_uncertain_total"), 1.0);
}

each_io!(a_second_term_ends_at_once);
fn a_second_term_ends_at_once(io: &str) {
    let (peer, dot) = late_peer(Duration::from_secs(6));
    let mut engine = engine(io, &peer);
    engine.send("a@a.test", &["b@b.test"]);
    dot.recv().unwrap();
    engine.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    engine.signal("TERM");
    let code = engine.wait_exit();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(code, Some(0));
    engine.launch();
    engine.wait_log("Possible Delivery: DCID");
    engine.wait_empty();
}

each_io!(nothing_is_taken_while_the_end_is_awaited);
fn nothing_is_taken_while_the_end_is_awaited(io: &str) {
    let (peer, dot) = late_peer(Duration::from_secs(2));
    let mut engine = engine(io, &peer);
    engine.send("a@a.test", &["b@b.test"]);
    dot.recv().unwrap();
    engine.signal("TERM");
    engine.wait("the listener to close", || std::net::TcpStream::connect(engine.smtp).is_err());
    let health = common::http_get(engine.admin, "/healthz");
    assert_eq!(health, "stopping\n");
    assert_eq!(engine.wait_exit(), Some(0));
}

each_io!(hup_reopens_the_log);
fn hup_reopens_the_log(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    engine.send("a@a.test", &["first@b.test"]);
    engine.wait_log("Message finished");
    fs::rename(engine.path("mail_logs"), engine.path("mail_logs.1")).unwrap();
    engine.signal("HUP");
    engine.wait_log("Begin Logfile");
    engine.send("a@a.test", &["second@b.test"]);
    engine.wait_log("Message finished");
    let old = fs::read_to_string(engine.path("mail_logs.1")).unwrap();
    assert!(old.contains("first@b.test") && !old.contains("second@b.test"), "{old}");
    assert!(engine.log().contains("second@b.test") && !engine.log().contains("first@b.test"));
    let mut client = Client::connect(engine.smtp);
    assert!(client.command("NOOP").starts_with("250"), "the engine takes mail as before");
}

/// A pipe in the place of the log, in use after a SIGHUP.
fn put_a_pipe_for_the_log(engine: &Engine) -> PathBuf {
    let path = engine.path("mail_logs");
    fs::rename(&path, engine.path("mail_logs.1")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    path
}

each_io!(the_last_lines_reach_a_log_that_is_slow);
/// A pipe that nobody reads: all lines are on their way into it, none waits behind them, and the
/// engine is told to end.
fn the_last_lines_reach_a_log_that_is_slow(io: &str) {
    const MESSAGES: usize = 400;
    const PIPE_OCTETS: usize = 64 * 1024;
    let peer = Peer::good();
    let setup = Setup::new(io, format!("ALL {}", peer.host(0)));
    let mut setup = setup.tables("[destination.default]\nmax_messages_per_connection = 1\n");
    setup.top = setup.top.replace("shards = 2", "shards = 1");
    let mut engine = Engine::start(&setup);
    let path = put_a_pipe_for_the_log(&engine);
    let mut log = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    engine.signal("HUP");
    let mut lines = vec![0; PIPE_OCTETS];
    let count = log.read(&mut lines).unwrap();
    lines.truncate(count);
    for _ in 0..MESSAGES {
        engine.send("a@a.test", &["b@b.test"]);
    }
    let sessions = "ringpost_sessions{direction=\"out\"}";
    engine.wait("the last session to end", || engine.metric(sessions) == 0.0);
    engine.wait_empty();
    // The pipe is full, and what was written last waits before it: once that is in, all the rest
    // follows as one write.
    let mut first = vec![0; PIPE_OCTETS];
    log.read_exact(&mut first).unwrap();
    lines.extend(first);
    std::thread::sleep(Duration::from_millis(300));
    engine.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    // The last writer: behind it comes the end.
    let mut reader = fs::File::open(&path).unwrap();
    drop(log);
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest).unwrap()
    });
    assert_eq!(engine.wait_exit(), Some(0), "{}", engine.stderr());
    let rest = rest.join().unwrap();
    assert!(rest.len() > PIPE_OCTETS, "{} octets are less than the pipe takes at once", rest.len());
    lines.extend(rest);
    let lines = String::from_utf8(lines).unwrap();
    let count = |text: &str| lines.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("Message finished"), MESSAGES);
    assert_eq!(count("New SMTP DCID"), lines.lines().filter(|l| is_close(l, "DCID")).count());
}

each_io!(a_log_that_is_a_pipe_without_a_reader_stops_no_mail);
fn a_log_that_is_a_pipe_without_a_reader_stops_no_mail(io: &str) {
    let peer = Peer::good();
    let mut engine = engine(io, &peer);
    put_a_pipe_for_the_log(&engine);
    engine.signal("HUP");
    let dropped = || engine.metric("ringpost_log_lines_dropped_total");
    engine.wait("the first lines of the new log to be dropped", || dropped() > 0.0);
    let before = dropped();
    engine.send("a@a.test", &["b@b.test"]);
    engine.wait_empty();
    assert_eq!(peer.messages().len(), 1);
    engine.wait("the lines of the mail to be dropped", || dropped() > before);
    engine.stop();
}

each_io!(a_log_that_nobody_reads_stops_no_commit);
/// The pipe is full, and stays so: mail that must be on disk first goes on, and so does the end.
fn a_log_that_nobody_reads_stops_no_commit(io: &str) {
    const MESSAGES: usize = 400;
    let peer = Peer::good();
    let setup = Setup::new(io, format!("ALL {}", peer.host(0))).top("commit = \"sync\"");
    let mut engine = Engine::start(&setup);
    let path = put_a_pipe_for_the_log(&engine);
    let log = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    engine.signal("HUP");
    for _ in 0..MESSAGES {
        engine.send("a@a.test", &["b@b.test"]);
    }
    engine.wait_empty();
    assert_eq!(peer.messages().len(), MESSAGES);
    engine.signal("TERM");
    assert_eq!(engine.wait_exit(), Some(0), "{}", engine.stderr());
    drop(log);
}

fn is_close(line: &str, of: &str) -> bool {
    line.ends_with(" close") && line.contains(&format!(" {of} "))
}

each_io!(term_under_load_loses_and_repeats_nothing);
/// Restarts in good order under load: nothing is lost, and nothing arrives twice either.
fn term_under_load_loses_and_repeats_nothing(io: &str) {
    let sink = Sink::start(SinkOptions {
        behaviour: Behaviour { delay: Duration::from_millis(3), ..Behaviour::default() },
        keep_ids: true,
        ..SinkOptions::default()
    })
    .unwrap();
    let setup = Setup::new(io, format!("ALL {}", sink.address()));
    let mut engine = Engine::start(&setup);
    let mut answered = Vec::new();
    for round in 0..3 {
        let options = SourceOptions {
            to: engine.smtp,
            messages: u64::MAX,
            sessions: 8,
            size: 2_000,
            rcpt: "user@d%n.test".to_owned(),
            domains: Some(20),
            rate: Some(2_000.0),
            run: format!("round{round}"),
            keep_ids: true,
            ..SourceOptions::default()
        };
        let source = std::thread::spawn(move || source::run(options).unwrap());
        std::thread::sleep(Duration::from_millis(500));
        engine.stop();
        // Without its listener the source ends by itself.
        let report = source.join().unwrap();
        answered.extend(report.acknowledged_ids.iter().map(|n| report.id(*n)));
        engine.launch();
        engine.assert_conservation();
    }
    engine.wait_empty();
    let received = sink.received();
    assert!(answered.len() > 100, "only {} were answered", answered.len());
    let lost = answered.iter().filter(|id| !received.contains_key(*id)).count();
    let repeated = received.values().filter(|received| received.times > 1).count();
    assert_eq!((lost, repeated), (0, 0), "of {}", answered.len());
    assert!(!engine.log().contains("Possible Delivery"), "{}", engine.log());
}

each_io!(term_right_after_the_start_ends_in_good_order);
/// The handlers stand before the start is announced.
fn term_right_after_the_start_ends_in_good_order(io: &str) {
    let peer = Peer::good();
    let mut engine = engine(io, &peer);
    for _ in 0..10 {
        engine.stop();
        engine.launch();
    }
}
