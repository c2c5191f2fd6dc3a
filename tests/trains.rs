//! Several transactions in flight on one connection of a real engine.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::peer::Message;
use common::{Conversation, Engine, Peer, Setup, io_modes};

const TABLES: &str = "[destination.default]\nmax_connections = 1\n\
    max_messages_per_connection = 1000\n\
    [bounce_profile.default]\ninitial_retry = \"1s\"\nmax_retry = \"2s\"\n";

/// What a host saw.
#[derive(Default)]
struct Seen {
    bdat: AtomicUsize,
    data: AtomicUsize,
    /// MAIL that had come before the final reply of the message before was sent.
    behind: AtomicUsize,
}

/// A session of a host that offers CHUNKING and shows marks. `final_reply` says what becomes of a
/// message; `None`: its reply is left out.
fn serve(
    peer: &mut Conversation,
    seen: &Seen,
    final_reply: impl Fn(usize, &[u8]) -> Option<&'static str>,
) {
    peer.extensions.push("CHUNKING".into());
    if !peer.hello() {
        return;
    }
    let mut message = Message { mail: String::new(), recipients: vec![], data: vec![] };
    loop {
        let line = peer.line();
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "" => return,
            "MAIL" => {
                message = Message { mail: line, recipients: vec![], data: vec![] };
                peer.say("250 2.1.0 ok");
            }
            "RCPT" if line.contains("<no") => peer.say("550 5.1.1 no such user"),
            "RCPT" => {
                message.recipients.push(line);
                peer.say("250 2.1.5 ok");
            }
            "BDAT" | "DATA" => {
                let data = if words[0] == "DATA" {
                    seen.data.fetch_add(1, Ordering::SeqCst);
                    if message.recipients.is_empty() {
                        peer.say("503 5.5.1 no recipients");
                        continue;
                    }
                    peer.say("354 go on");
                    peer.body()
                } else {
                    seen.bdat.fetch_add(1, Ordering::SeqCst);
                    peer.octets(words[1].parse().unwrap())
                };
                let Some(data) = data else { return };
                seen.behind.fetch_add(usize::from(peer.has_more()), Ordering::SeqCst);
                if message.recipients.is_empty() {
                    peer.say("503 5.5.1 no recipients");
                    continue;
                }
                let reply = final_reply(seen.bdat.load(Ordering::SeqCst), &data);
                if reply.is_none_or(|reply| reply.starts_with('2')) {
                    message.data = data;
                    peer.keep(message.clone());
                }
                if let Some(reply) = reply {
                    peer.say(reply);
                }
            }
            "QUIT" => {
                peer.say("221 2.0.0 bye");
                return;
            }
            _ => peer.say("250 2.0.0 ok"),
        }
    }
}

/// Sends messages over 16 connections at a time; every tenth to nobody.
fn send_many(engine: &Engine, count: usize) {
    std::thread::scope(|scope| {
        for n in 0..16 {
            scope.spawn(move || {
                let mut client = engine.client();
                for i in (n..count).step_by(16) {
                    let to = if i % 10 == 9 { "no@train.test" } else { "a@train.test" };
                    let text = format!("Subject: {i}\r\n\r\n.x\r\n");
                    client.message("s@back.test", &[to], text.as_bytes());
                }
                client.quit();
            });
        }
    });
}

/// An engine with one shard, so that one connection has all the mail.
fn engine(io: &str, routes: String, tables: &str) -> Engine {
    let mut setup = Setup::new(io, routes).tables(tables);
    setup.top = setup.top.replace("shards = 2", "shards = 1");
    Engine::start(&setup)
}

fn subjects(peer: &Peer) -> Vec<String> {
    let subject = |message: &Message| {
        let text = String::from_utf8(message.data.clone()).unwrap();
        assert!(text.ends_with("\r\n.x\r\n"), "{text:?}");
        let line = text.lines().find(|line| line.starts_with("Subject: ")).unwrap();
        line["Subject: ".len()..].to_owned()
    };
    let mut subjects: Vec<String> = peer.messages().iter().map(subject).collect();
    subjects.sort();
    subjects
}

#[test]
fn messages_follow_each_other_without_a_wait_and_each_gets_its_own_answer() {
    for io in io_modes() {
        for trains in ["auto", "off"] {
            let seen = Arc::new(Seen::default());
            let own = seen.clone();
            let peer = Peer::start(move |peer, _| {
                serve(peer, &own, |_, data| {
                    let spam = data.windows(12).any(|part| part == b"Subject: 77\r");
                    Some(if spam { "554 5.6.0 spam" } else { "250 2.0.0 taken" })
                });
            });
            let back = Peer::good();
            let routes = format!("train.test {}\nback.test {}\n", peer.host(0), back.host(0));
            let tables = TABLES.replace("max_conn", &format!("trains = \"{trains}\"\nmax_conn"));
            let engine = engine(io, routes, &tables);
            send_many(&engine, 200);
            engine.wait_empty();
            engine.assert_conservation();
            let mut expected: Vec<String> =
                (0..200).filter(|i| i % 10 != 9 && *i != 77).map(|i| i.to_string()).collect();
            expected.sort();
            assert_eq!(subjects(&peer), expected, "io = {io}");
            assert_eq!(back.messages().len(), 21, "reports to the sender");
            let counts = [&seen.bdat, &seen.behind].map(|count| count.load(Ordering::SeqCst) > 10);
            assert_eq!(counts, [trains == "auto"; 2], "io = {io}");
        }
    }
}

#[test]
fn a_lost_reply_makes_doubt_but_no_loss_and_ends_the_trains() {
    let io = io_modes()[0];
    let seen = Arc::new(Seen::default());
    let own = seen.clone();
    let lost = AtomicBool::new(false);
    let peer = Peer::start(move |peer, _| {
        let loses = |bdat| bdat >= 20 && !lost.swap(true, Ordering::SeqCst);
        serve(peer, &own, |bdat, _| (!loses(bdat)).then_some("250 2.0.0 taken"));
    });
    let back = Peer::good();
    let routes = format!("train.test {}\nback.test {}\n", peer.host(0), back.host(0));
    let timeouts = "[timeouts]\nmail = \"1s\"\nrcpt = \"1s\"\nfinal = \"1s\"\n";
    let engine = engine(io, routes, &format!("{timeouts}{TABLES}"));
    send_many(&engine, 100);
    engine.wait_empty();
    engine.assert_conservation();
    let mut taken = subjects(&peer);
    let all = taken.len();
    taken.dedup();
    assert_eq!(taken.len(), 90, "{taken:?}");
    assert!(engine.metric("ringpost_recipients_uncertain_total") >= (all - 90) as f64);
    // From there on plainly.
    let bdat = seen.bdat.load(Ordering::SeqCst);
    assert!((20..60).contains(&bdat), "{bdat}");
    assert!(seen.data.load(Ordering::SeqCst) > 20);
}
