//! Failover by the table: what each answer of a host at each step does to host and recipients,
//! with the lines it leaves in the mail log, against hosts with and without PIPELINING.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test may fail and reads time"
)]

#[path = "../common/mod.rs"]
mod common;
mod log;
mod rows;
mod script;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Engine, Peer, Setup, io_modes};
use rows::Row;
use script::Seen;

/// Short deadlines, and mail that is deferred comes back after a second.
const TABLES: &str = "[timeouts]\nconnect = \"5s\"\ngreeting = \"1s\"\nehlo = \"1s\"\n\
    mail = \"1s\"\nrcpt = \"1s\"\ndata = \"1s\"\nfinal = \"1s\"\nidle = \"10s\"\nblock = \"1s\"\n\
    [bounce_profile.default]\ninitial_retry = \"1s\"\nmax_retry = \"2s\"\n";

/// A row with its hosts listening.
struct Stage {
    row: Row,
    peers: Vec<Option<Peer>>,
    ports: Vec<u16>,
    seen: Vec<Arc<Seen>>,
}

impl Stage {
    fn new(mut row: Row, pipelining: bool) -> Self {
        let mut peers = Vec::new();
        let mut ports = Vec::new();
        let mut seen = Vec::new();
        for script in std::mem::take(&mut row.hosts) {
            let Some(script) = script else {
                ports.push(Peer::nobody().port());
                peers.push(None);
                continue;
            };
            let own = Arc::new(Seen::default());
            seen.push(own.clone());
            let peer = Peer::start(move |peer, _| {
                if !pipelining {
                    peer.extensions.retain(|e| e != "PIPELINING");
                }
                script::play(peer, &script, &own);
            });
            ports.push(peer.address.port());
            peers.push(Some(peer));
        }
        Self { row, peers, ports, seen }
    }

    fn route(&self) -> String {
        let host = |(i, port): (usize, &u16)| format!("127.0.0.1:{port}/pri={}", i * 10);
        let hosts: Vec<String> = self.ports.iter().enumerate().map(host).collect();
        format!("{}.test {}\n", self.row.name, hosts.join(", "))
    }

    fn taken(&self) -> Vec<usize> {
        let taken = |peer: &Option<Peer>| peer.as_ref().map_or(0, |peer| peer.messages().len());
        self.peers.iter().map(taken).collect()
    }

    /// Every host that EHLO told of PIPELINING sees commands without a wait, and no other does.
    fn assert_pipelining(&self, offered: bool) {
        for seen in self.seen.iter().filter(|seen| seen.mail.load(Ordering::SeqCst)) {
            let pipelined = seen.pipelined.load(Ordering::SeqCst);
            assert_eq!(pipelined, offered, "{}: pipelined", self.row.name);
        }
    }
}

/// Plays all rows in one engine and compares the log of each.
fn play(rows: Vec<Row>, io: &str, pipelining: bool, top: &str) {
    let stages: Vec<Stage> = rows.into_iter().map(|row| Stage::new(row, pipelining)).collect();
    let back = Peer::good();
    let mut routes: String = stages.iter().map(Stage::route).collect();
    routes.push_str(&format!("back.test {}\n", back.host(0)));
    let mut engine = Engine::start(&Setup::new(io, routes).top(top).tables(TABLES));
    let mut reports = 0;
    for Stage { row, .. } in &stages {
        let name = |n: usize| format!("{}@{}.test", ["a", "b", "c"][n], row.name);
        let to: Vec<String> = (0..row.recipients).map(name).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let mut data = b"Subject: test\r\n\r\nhello\r\n".to_vec();
        data.extend(
            b"01234567890123456789012345678901234567890123456789\r\n".repeat(row.octets / 52),
        );
        let mut client = engine.client();
        client.message(row.sender, &to, &data);
        client.quit();
        reports += row.log.iter().filter(|line| line.contains("was generated")).count();
    }
    engine.wait_empty();
    engine.assert_conservation();
    engine.stop();
    let lines = engine.log_lines();
    let mut wrong = String::new();
    for stage in &stages {
        let Row { name, log, unordered, taken, .. } = &stage.row;
        let mut seen = log::of_domain(&lines, &format!("{name}.test"), &stage.ports);
        let mut wanted = log.clone();
        // A failure is settled when the message is safe on disk, while the connection goes on:
        // the lines of a message keep their order, and so do those of its connections.
        seen.sort_by_key(|line| !line.contains("MID M"));
        wanted.sort_by_key(|line| !line.contains("MID M"));
        if *unordered {
            seen.sort();
            wanted.sort();
        }
        stage.assert_pipelining(pipelining);
        if seen != wanted || stage.taken() != *taken {
            wrong.push_str(&format!(
                "\n{name} (taken {:?}, wanted {taken:?})\n  {}\n wanted\n  {}\n",
                stage.taken(),
                seen.join("\n  "),
                wanted.join("\n  ")
            ));
        }
    }
    assert!(wrong.is_empty(), "io = {io}, pipelining = {pipelining}{wrong}");
    assert_eq!(back.messages().len(), reports, "reports to the senders");
    log::assert_connections_close(&lines);
}

fn play_everywhere(rows: fn() -> Vec<Row>, top: &str) {
    for io in io_modes() {
        for pipelining in [true, false] {
            play(rows(), io, pipelining, top);
        }
    }
}

#[test]
fn connections_that_bring_no_session() {
    play_everywhere(rows::connections, "");
}

#[test]
fn temporary_refusals() {
    play_everywhere(rows::temporary, "");
}

#[test]
fn permanent_refusals() {
    play_everywhere(rows::permanent, "");
}

#[test]
fn broken_transactions() {
    play_everywhere(rows::broken, "");
}

#[test]
fn recipients_each_by_its_own_outcome() {
    play_everywhere(rows::recipients, "");
}

#[test]
fn lost_final_replies_counted_as_delivered() {
    play_everywhere(rows::possibly_delivered, "possible_delivery = \"delivered\"");
}

#[test]
fn the_recipients_that_a_host_takes_at_once_are_remembered() {
    for io in io_modes() {
        let script = script::at_most(2, "452 4.5.3 too many");
        let peer = Peer::start(move |peer, _| script::play(peer, &script, &Seen::default()));
        let tables = "[destination.default]\nmax_connections = 1\n";
        let setup = Setup::new(io, format!("few.test {}\n", peer.host(0))).tables(tables);
        let engine = Engine::start(&setup);
        for count in [2, 4] {
            engine.send("s@few.test", &["a@few.test", "b@few.test", "c@few.test"]);
            engine.wait("both transactions", || peer.messages().len() == count);
        }
        engine.wait_log_count("Message finished", 2);
        let lines = engine.log_lines();
        let starts = lines.iter().filter(|line| line.starts_with("Delivery start"));
        let rids: Vec<_> = starts.filter_map(|line| line.split_once(" to RID ")).collect();
        let rids: Vec<_> = rids.into_iter().map(|(_, rids)| rids).collect();
        assert_eq!(rids, ["[0, 1, 2]", "[2]", "[0, 1]", "[2]"]);
    }
}
