//! The source against the sink: both test peers hold each other to account.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ringpost::lab::sink::{Answered, Behaviour, Sink, SinkHandle, SinkOptions, Stage};
use ringpost::lab::source::{self, SourceOptions, SourceReport};

fn sink(behaviour: Behaviour) -> SinkHandle {
    Sink::start(SinkOptions { behaviour, keep_ids: true, ..SinkOptions::default() }).unwrap()
}

fn options(to: SocketAddr, messages: u64) -> SourceOptions {
    let patience = Duration::from_secs(10);
    SourceOptions { to, messages, keep_ids: true, patience, ..SourceOptions::default() }
}

/// What was acknowledged arrived, and nothing else did.
fn assert_ledgers_agree(sink: &SinkHandle, report: &SourceReport) {
    let received = sink.received();
    assert_eq!(received.len() as u64, report.acknowledged);
    for n in &report.acknowledged_ids {
        assert_eq!(received[&report.id(*n)].times, 1, "message {n}");
    }
}

#[test]
fn every_way_of_sending_is_counted_alike_on_both_sides() {
    let plain = Behaviour::default();
    let stepwise = Behaviour { pipelining: false, ..plain.clone() };
    let no_chunking = Behaviour { chunking: false, ..plain.clone() };
    let table = [
        (plain.clone(), false, 1),
        (plain.clone(), true, 1),
        (plain, true, 8),
        (stepwise, true, 8),
        (no_chunking, true, 8),
    ];
    for (behaviour, bdat, window) in table {
        let sink = sink(behaviour);
        let report = source::run(SourceOptions {
            sessions: 4,
            recipients: 3,
            size: 700,
            bdat,
            window,
            ..options(sink.address(), 203)
        })
        .unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!((report.sent, report.connections, report.connections_lost), (203, 4, 0));
        assert_ledgers_agree(&sink, &report);
        let summary = sink.stop();
        assert_eq!((summary.messages, summary.recipients), (203, 609));
        assert_eq!((summary.octets, summary.connections), (203 * 700, 4));
    }
}

#[test]
fn dumped_messages_are_what_was_sent() {
    let content = b".\r\n..\r\n.a\r\nb\r\n. \r\n...c\r\n.\r\n".to_vec();
    for bdat in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let dump = Some(folder.path().join("mail"));
        let sink = Sink::start(SinkOptions { dump, ..SinkOptions::default() }).unwrap();
        for content in [Some(content.clone()), None] {
            let run = "same".to_owned();
            let options = SourceOptions { bdat, run, content, ..options(sink.address(), 1) };
            assert!(source::run(options).unwrap().is_complete());
        }
        let dumped = std::fs::read(folder.path().join("mail/00000001.eml")).unwrap();
        assert!(dumped.ends_with(&[b"\r\n\r\n".as_slice(), &content].concat()));
        assert!(dumped.starts_with(b"From: <sender@"));
        assert_eq!(std::fs::read(folder.path().join("mail/00000002.eml")).unwrap().len(), 4096);
    }
}

#[test]
fn each_drop_stage_breaks_the_connection_where_it_says() {
    for stage in Stage::all() {
        let sink = sink(Behaviour::default().drop_at(stage));
        let report = source::run(options(sink.address(), 1)).unwrap();
        let acknowledged = u64::from(matches!(stage, Stage::Quit | Stage::Rset));
        assert_eq!(report.acknowledged, acknowledged, "{stage:?}: {report:?}");
        let greeted = !matches!(stage, Stage::Connect | Stage::Greeting | Stage::Ehlo);
        assert_eq!(report.connections, u64::from(greeted), "{stage:?}");
        assert_eq!(report.connects_failed, u64::from(!greeted), "{stage:?}");
        let sent = matches!(stage, Stage::Body | Stage::Dot | Stage::Quit | Stage::Rset);
        assert_eq!(report.sent, u64::from(sent), "{stage:?}");
        assert_ledgers_agree(&sink, &report);
    }
}

#[test]
fn a_refusing_greeting_is_seen_as_such() {
    let sink = sink(Behaviour::default().reply(Answered::Greeting, "431 4.3.1 full\\nlater"));
    let report = source::run(options(sink.address(), 3)).unwrap();
    assert_eq!((report.acknowledged, report.connections), (0, 0));
    assert_eq!(report.last_error.as_deref(), Some("refused with 431"));
}

#[test]
fn refusals_are_counted_by_code_and_do_not_harm_the_next_message() {
    let table = [
        (Behaviour::default().reply(Answered::Mail, "450 4.2.0 busy"), 450, 20),
        (Behaviour::default().reply(Answered::Rcpt, "550 5.1.1 no\\nnobody"), 550, 20),
        (Behaviour::default().reply(Answered::Dot, "452 4.3.1 full"), 452, 20),
        (Behaviour::default().reply_to_recipient("7@", "551 5.1.6 moved"), 551, 2),
    ];
    for (behaviour, code, count) in table {
        for (bdat, pipelining) in [(false, true), (true, true), (false, false)] {
            let sink = sink(Behaviour { pipelining, ..behaviour.clone() });
            let rcpt = "u%n@example.com".to_owned();
            let window = 8;
            let options = SourceOptions { bdat, window, rcpt, ..options(sink.address(), 20) };
            let report = source::run(options).unwrap();
            assert_eq!(report.refused.get(&code), Some(&count), "{report:?}");
            assert_eq!(report.acknowledged, 20 - count, "{report:?}");
            assert_eq!(report.connections_lost, 0, "{report:?}");
            assert_ledgers_agree(&sink, &report);
        }
    }
}

#[test]
fn a_stalled_or_mute_sink_is_given_up_in_time() {
    let stalls = [Stage::Connect, Stage::Mail, Stage::Body, Stage::Dot]
        .map(|stage| Behaviour { stall_at: Some(stage), ..Behaviour::default() });
    let mutes = [Answered::Greeting, Answered::Rcpt].map(|at| Behaviour::default().reply(at, ""));
    for behaviour in stalls.into_iter().chain(mutes) {
        let sink = sink(behaviour);
        let patience = Duration::from_millis(100);
        let report = source::run(SourceOptions { patience, ..options(sink.address(), 1) }).unwrap();
        assert_eq!(report.acknowledged, 0);
        assert_eq!(report.last_error.as_deref(), Some("no answer in time"));
    }
}

/// A peer that answers each burst of octets with the next text, whatever was said.
fn canned_peer(answers: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"220 canned\r\n").unwrap();
        for answer in answers {
            peer.set_read_timeout(None).unwrap();
            let mut octets = [0; 65536];
            while peer.read(&mut octets).is_ok_and(|count| count > 0) {
                peer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            }
            peer.write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn a_transaction_left_open_by_a_refusal_costs_no_other_message() {
    let to = canned_peer(&[
        "250-canned\r\n250-CHUNKING\r\n250 PIPELINING\r\n",
        "250 ok\r\n550 no\r\n503 none\r\n503 nested\r\n503 -\r\n503 -\r\n",
        "250 reset\r\n250 ok\r\n250 ok\r\n250 done\r\n250 ok\r\n250 ok\r\n250 done\r\n",
        "221 bye\r\n",
    ]);
    let report = source::run(SourceOptions { bdat: true, window: 2, ..options(to, 3) }).unwrap();
    assert_eq!(report.refused.get(&550), Some(&1), "{report:?}");
    assert_eq!((report.acknowledged, report.refused_total()), (2, 1), "{report:?}");
    assert_eq!(report.acknowledged_ids, [1, 2]);
}

#[test]
fn the_latency_is_that_of_the_final_reply() {
    let sink = sink(Behaviour { delay: Duration::from_millis(20), ..Behaviour::default() });
    for bdat in [false, true] {
        let report = source::run(SourceOptions { bdat, ..options(sink.address(), 5) }).unwrap();
        for measured_us in [report.p50_us, report.p99_us, report.p99_9_us] {
            assert!((19_900..2_000_000).contains(&measured_us), "{report:?}");
        }
    }
}

#[test]
fn some_recipients_refused_is_not_complete() {
    let sink = sink(Behaviour::default().reply_to_recipient("+1@", "550 5.1.1 no"));
    let options = SourceOptions { recipients: 2, ..options(sink.address(), 5) };
    let report = source::run(options).unwrap();
    assert_eq!((report.acknowledged, report.recipients_refused.get(&550)), (5, Some(&5)));
    assert!(!report.is_complete());
    let received = sink.received();
    assert!(received.values().all(|r| r.recipients == ["recipient@sink.ringpost.test"]));
}

#[test]
fn a_host_dies_and_comes_back_and_retry_delivers_all() {
    let sink = sink(Behaviour { delay: Duration::from_millis(2), ..Behaviour::default() });
    let to = sink.address();
    let sender = std::thread::spawn(move || {
        source::run(SourceOptions { sessions: 3, retry: true, ..options(to, 300) }).unwrap()
    });
    let mut idle = TcpStream::connect(to).unwrap();
    idle.read_exact(&mut [0; 4]).unwrap();
    wait_until(|| sink.counts().messages >= 50);
    sink.die().unwrap();
    let broken = std::io::copy(&mut idle, &mut std::io::sink()).unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(sink.counts().connections_open, 0);
    let refused = TcpStream::connect(to).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    sink.revive().unwrap();
    let report = sender.join().unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.connections_lost, 3);
    let received = sink.received();
    assert_eq!(received.len(), 300);
    assert!(received.values().map(|r| r.times).sum::<u64>() <= 303);
}

#[test]
fn behaviour_changes_while_connections_are_open() {
    let sink = sink(Behaviour::default());
    let to = sink.address();
    let rate = Some(200.0);
    let sender = std::thread::spawn(move || {
        source::run(SourceOptions { rate, ..options(to, 100) }).unwrap()
    });
    wait_until(|| sink.counts().messages >= 20);
    sink.set_behaviour(&Behaviour::default().reply(Answered::Rcpt, "450 4.2.1 not now"));
    let report = sender.join().unwrap();
    assert!(report.acknowledged >= 20 && report.refused.contains_key(&450), "{report:?}");
    assert_eq!(report.acknowledged + report.refused_total(), 100);
    assert!(report.seconds >= 0.49, "the rate was not kept: {report:?}");
}

#[test]
fn one_connection_too_many_is_greeted_with_421() {
    let sink = sink(Behaviour { connections_max: Some(2), ..Behaviour::default() });
    let held: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(sink.address()).unwrap()).collect();
    wait_until(|| sink.counts().connections_open == 2);
    let report = source::run(options(sink.address(), 1)).unwrap();
    assert_eq!(report.last_error.as_deref(), Some("refused with 421"));
    drop(held);
    wait_until(|| sink.counts().connections_open == 0);
    assert!(source::run(options(sink.address(), 1)).unwrap().is_complete());
    assert_eq!(sink.counts().connections_peak, 3);
}

#[test]
fn files_keep_the_count_and_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let (count, ledger) = (folder.path().join("count"), folder.path().join("ledger"));
    let sink = Sink::start(SinkOptions {
        count_file: Some(count.clone()),
        keep_ids: true,
        ..SinkOptions::default()
    })
    .unwrap();
    let read = || std::fs::read_to_string(&count).unwrap().trim().parse::<u64>().unwrap();
    assert_eq!(read(), 0);
    let report = source::run(SourceOptions {
        ledger: Some(ledger.clone()),
        bdat: true,
        window: 8,
        sessions: 2,
        ..options(sink.address(), 100)
    })
    .unwrap();
    wait_until(|| read() == 100);
    assert!(source::run(options(sink.address(), 1)).unwrap().is_complete());
    sink.stop();
    assert_eq!(read(), 101);
    let ids: Vec<String> = report.acknowledged_ids.iter().map(|n| report.id(*n)).collect();
    let lines: Vec<String> =
        std::fs::read_to_string(ledger).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines, ids);
}

#[test]
fn it_ends_by_itself_after_enough_messages_and_all_addresses_serve() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = Sink::start(SinkOptions {
        listen: vec![any, any],
        exit_after: Some(6),
        ..SinkOptions::default()
    })
    .unwrap();
    for address in sink.addresses().to_vec() {
        assert!(source::run(options(address, 3)).unwrap().is_complete());
    }
    assert_eq!(sink.wait().messages, 6);
}

#[test]
fn a_taken_port_is_an_error() {
    let first = sink(Behaviour::default());
    let second = Sink::start(SinkOptions { listen: vec![first.address()], ..Default::default() });
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

/// The program's own sink, on a free port.
fn program_sink(arguments: &[&str]) -> (Child, String) {
    let mut sink = Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .args(["sink", "--json", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(sink.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening on ").unwrap().trim().to_owned();
    (sink, address)
}

fn program_source(to: &str, arguments: &[&str]) -> Command {
    let mut source = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    source.args(["source", "--json", "--to", to]).args(arguments);
    source.stdout(Stdio::piped()).stderr(Stdio::piped());
    source
}

/// Ends a program by SIGTERM; its exit code and the line of JSON that it printed.
fn terminate(program: Child) -> (Option<i32>, serde_json::Value) {
    let id = rustix::process::Pid::from_child(&program);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    json(&program.wait_with_output().unwrap())
}

fn json(output: &Output) -> (Option<i32>, serde_json::Value) {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code(), serde_json::from_str(text).unwrap())
}

#[test]
fn the_verbs_end_with_a_summary_and_the_right_code() {
    let (sink, to) = program_sink(&[]);
    let many = ["--messages", "500", "--sessions", "3", "--bdat", "--window", "8"];
    let (code, report) = json(&program_source(&to, &many).output().unwrap());
    assert_eq!((code, &report["acknowledged"]), (Some(0), &500.into()));
    let slow = program_source(&to, &["--messages", "1000", "--rate", "50"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let (code, report) = terminate(slow);
    let acknowledged = report["acknowledged"].as_u64().unwrap();
    assert!(code == Some(75) && (1..1000).contains(&acknowledged), "{code:?} {report}");
    let (code, report) = terminate(sink);
    // The signal may have come between a message and its 250.
    let accepted = report["messages"].as_u64().unwrap() - 500;
    assert!(code == Some(0) && (acknowledged..=acknowledged + 1).contains(&accepted), "{report}");
}

#[test]
fn refusals_by_the_program_are_told_in_one_line() {
    let (sink, to) = program_sink(&["--reply", "RCPT=450 4.2.0 busy\\nlater", "--no-chunking"]);
    let output = program_source(&to, &["--messages", "3", "--bdat"]).output().unwrap();
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(error.contains("3 times 450") && error.lines().count() == 1, "{error}");
    let (code, report) = json(&output);
    assert_eq!((code, &report["refused"]["450"]), (Some(75), &3.into()));
    terminate(sink);
    let output = program_source(&to, &["--messages", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
}

fn wait_until(mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "not reached in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}
