//! The same mail over each way of I/O, and what happens where io_uring is refused.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::process::{Command, Stdio};

use common::seccomp::refuse_io_uring;
use common::{Engine, Peer, Setup, io_modes};

/// Runs one message to two hosts' worth of outcomes: delivered, failed over, bounced, deferred.
fn scene(engine: &Engine, good: &Peer) {
    let body: Vec<u8> = (0..4_000u32).flat_map(|n| format!("line {n}\r\n").into_bytes()).collect();
    let mut message = b"Subject: scene\r\n\r\n".to_vec();
    message.extend_from_slice(&body);
    let mut client = engine.client();
    client.message("a@sender.test", &["x@one.test", "y@one.test", "z@two.test"], &message);
    client.message("a@sender.test", &["no@refused.test"], &message);
    client.message("a@sender.test", &["later@busy.test"], &message);
    client.quit();
    engine.wait_log("Bounced: DCID");
    engine.wait_log("pending till");
    engine.wait_empty();
    engine.assert_conservation();
    let messages = good.messages();
    let of = |domain: &str| {
        let to = |m: &&common::peer::Message| m.recipients.iter().any(|r| r.contains(domain));
        messages.iter().filter(to).count()
    };
    // one.test and two.test once each, the report to sender.test, busy.test at the second try.
    assert_eq!([of("one.test"), of("two.test"), of("sender.test"), of("busy.test")], [1; 4]);
    let one = messages.iter().find(|m| m.recipients[0].contains("one.test")).unwrap();
    assert_eq!(one.recipients.len(), 2);
    assert!(one.data.ends_with(&message), "the bytes changed on their way");
}

struct Hosts {
    good: Peer,
    refusing: Peer,
    busy: Peer,
}

impl Hosts {
    fn new() -> Self {
        let refusing = Peer::start(|peer, _| {
            if peer.hello() {
                let refuse = |line: &str| {
                    line.starts_with("RCPT").then(|| "550 5.1.1 no such user".to_owned())
                };
                peer.serve_with(refuse);
            }
        });
        let busy = Peer::start(|peer, _| {
            if peer.hello() {
                let later =
                    |line: &str| line.starts_with("RCPT").then(|| "450 4.2.1 not now".to_owned());
                peer.serve_with(later);
            }
        });
        Self { good: Peer::good(), refusing, busy }
    }

    /// The routes: the second host of busy.test takes what the first one defers, after a while.
    fn routes(&self) -> String {
        format!(
            "refused.test {}\nbusy.test {}, {}\nALL {}, {}\n",
            self.refusing.host(0),
            self.busy.host(0),
            common::Peer::nobody(),
            format_args!("{}/pri=0", Peer::nobody()),
            self.good.host(10),
        )
    }
}

fn setup(io: &str, hosts: &Hosts) -> Setup {
    Setup::new(io, hosts.routes())
}

/// Lets the host that was busy be the good one from now on.
fn relent(engine: &Engine, hosts: &Hosts) {
    let routes = format!("refused.test {}\nALL {}\n", hosts.refusing.host(0), hosts.good.host(0));
    std::fs::write(engine.path("smtproutes"), routes).unwrap();
    engine.signal("HUP");
}

fn play(engine: &Engine, hosts: &Hosts) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            engine.wait_log("pending till");
            relent(engine, hosts);
        });
        scene(engine, &hosts.good);
    });
}

#[test]
fn each_way_of_io_delivers_the_same_scene() {
    for io in io_modes().into_iter().chain(["auto"]) {
        let hosts = Hosts::new();
        let mut engine = Engine::start(&setup(io, &hosts));
        play(&engine, &hosts);
        engine.stop();
    }
}

#[test]
fn where_io_uring_is_refused_auto_says_why_and_runs_on_epoll() {
    let hosts = Hosts::new();
    let mut engine = Engine::start(&setup("auto", &hosts));
    engine.stop();
    engine.launch_through(without_io_uring());
    let stderr = engine.stderr();
    let notes: Vec<_> = stderr.lines().filter(|line| line.contains("io_uring")).collect();
    assert_eq!(notes.len(), 1, "{stderr}");
    assert!(notes[0].starts_with("ringpost: "), "{stderr}");
    assert!(notes[0].contains("seccomp") && notes[0].contains("epoll"), "{stderr}");
    play(&engine, &hosts);
    engine.stop();
}

#[test]
fn where_io_uring_is_refused_ring_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ringpost.toml");
    let toml = "io = \"ring\"\nspool = \"spool\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
                [admin]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(&config, toml).unwrap();
    let mut command = without_io_uring();
    let command = command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.contains("io_uring") && last.contains("io = \"auto\""), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "it listens on nothing");
}

/// The engine's command, behind a filter that refuses the calls of io_uring with EPERM, as
/// containers do.
fn without_io_uring() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    refuse_io_uring(&mut command);
    command
}
