//! The demo as a newcomer runs it: its scenes, its outcome, and what it leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const MESSAGES: &str = "200";

/// Starts the demo with its temporary folder below `folder`.
fn start(folder: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .args(["demo", "--messages", MESSAGES])
        .args(arguments)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its outcome as JSON; it must end well and leave nothing behind.
fn report(folder: &Path, child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_empty(folder);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn assert_empty(folder: &Path) {
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn assert_report(io: &str, report: &Value) {
    assert_eq!(report["io"], io);
    assert_eq!(report["problems"], serde_json::json!([]));
    let scenes = report["scenes"].as_array().unwrap();
    assert_eq!(scenes.len(), 3);

    let log: Vec<&str> =
        scenes[0]["log"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let host = |at: usize| scenes[0]["hosts"][at]["address"].as_str().unwrap();
    let to = |at: usize| {
        let (ip, port) = host(at).split_once(':').unwrap();
        (ip, format!("address {ip} port {port}"))
    };
    let dcid: u64 = log[0].split(' ').nth(3).unwrap().parse().unwrap();
    assert!(log[0].starts_with(&format!("New SMTP DCID {dcid} interface 127.0.0.1 ")), "{log:?}");
    assert!(log[0].ends_with(&to(0).1), "{log:?}");
    let error = format!("Connection Error: DCID {dcid} domain: example.com IP: {} ", to(0).0);
    assert!(log[1].starts_with(&error), "{log:?}");
    let details = r"details: 431-'example.com ESMTP\nMail system full' interface: 127.0.0.1 ";
    assert!(log[1].contains(details), "{log:?}");
    assert!(log[1].ends_with("reason: unexpected SMTP response"), "{log:?}");
    assert!(log[2].starts_with(&format!("New SMTP DCID {} ", dcid + 1)), "{log:?}");
    assert!(log[2].ends_with(&to(1).1), "{log:?}");
    assert_eq!(scenes[0]["hosts"][0]["messages"], 0);
    assert!(scenes[0]["failovers"].as_u64() >= Some(1));

    let of_hosts = scenes[1]["hosts"].as_array().unwrap();
    assert!(of_hosts.iter().all(|host| host["turns"].as_u64() > Some(0)), "{of_hosts:?}");
    assert!(scenes[2]["deferrals"].as_u64() >= scenes[2]["messages"].as_u64());
    for scene in scenes {
        assert_eq!(scene["arrived"], scene["messages"]);
        let p = |name: &str| scene[name].as_u64().unwrap();
        assert!(0 < p("p50_us") && p("p50_us") <= p("p99_us") && p("p99_us") <= p("p99_9_us"));
    }

    let sum = |name: &str| report["sum"][name].as_i64().unwrap();
    let came = sum("accepted_from_clients") + sum("generated_here") + sum("found_at_start");
    let went = ["delivered", "bounced", "discarded_by_route", "deleted", "damaged"];
    let went: i64 = went.into_iter().map(sum).sum();
    let sent: i64 = scenes.iter().map(|scene| scene["messages"].as_i64().unwrap()).sum();
    assert_eq!((came, went, sum("pending"), sum("balance")), (sent, sent, 0, 0));
}

#[test]
fn every_scene_happens_side_by_side_on_ring_and_epoll() {
    let folder = || tempfile::tempdir().unwrap();
    // It is told how to do its I/O, so it cannot be one to which io_uring is refused.
    let modes = common::io_modes().into_iter().filter(|io| *io != "refused");
    let runs = modes.map(|io| {
        let folder = folder();
        let child = start(folder.path(), &["--json", "--io", io]);
        (io, folder, child)
    });
    let runs: Vec<_> = runs.collect();
    for (io, folder, child) in runs {
        assert_report(io, &report(folder.path(), child));
    }
}

#[test]
fn it_reads_well_where_there_is_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let output = start(folder.path(), &[]).wait_with_output().unwrap();
    let page = text(&output);
    assert_eq!(output.status.code(), Some(0), "{page}");
    assert!(output.stderr.is_empty(), "{page}");
    let wide: Vec<&str> = page.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    assert!(!page.contains('\u{1b}') && !page.contains('\r'), "{page}");
    let in_order = [
        "1. The first host is full",
        "New SMTP DCID",
        "Connection Error: DCID",
        "New SMTP DCID",
        "Message done DCID",
        "2. One of three hosts dies",
        "3. All hosts refuse for a while",
        "Delayed: DCID",
        "pending till",
        "Message done DCID",
        "came ",
        "went ",
        " = 0: every recipient is accounted for",
        "ringpost serve",
    ];
    let mut rest = page.as_str();
    for text in in_order {
        let at = rest.find(text).unwrap_or_else(|| panic!("{text:?} is missing in\n{page}"));
        rest = &rest[at + text.len()..];
    }
    assert_empty(folder.path());
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = start(folder.path(), &[]);
    let started = Instant::now();
    while fs::read_dir(folder.path()).unwrap().next().is_none() {
        assert!(started.elapsed() < common::PATIENCE, "the demo does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.unwrap().success());
    let asked = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(asked.elapsed() < Duration::from_secs(8), "the demo does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).contains("nothing is left behind"), "{}", text(&output));
    assert_empty(folder.path());
}
