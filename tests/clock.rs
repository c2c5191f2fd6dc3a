//! A wall clock that is wrong by a year, in either direction, between two runs of the engine: no
//! mail is given up for its looks, and none stays for a year.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use common::{Engine, Peer, Setup};
use ringpost::mail::{
    Body, BodyKind, Enhanced, Envelope, Mailbox, MessageFacts, Notify, Now, Recipient, Rid,
    ShardId, Wall,
};
use ringpost::queue::settings::QueueSettings;
use ringpost::queue::{
    Effect, Event, LastOutcome, Medium, NewMessage, Opened, Queue, SegmentId, Spool,
};

const YEAR_MS: u64 = 365 * 24 * 3_600_000;

/// Profiles with long waits, but for the first one.
const TABLES: &str = "[bounce_profile.default]\ninitial_retry = \"2s\"\nmax_retry = \"1h\"\n\
                      max_time_in_queue = \"72h\"\n";

fn message(queue: &mut Queue, to: &str, arrival: Wall) -> NewMessage {
    let address = |text: &str| Mailbox::parse(text.as_bytes()).unwrap();
    let recipient =
        Recipient { rid: Rid(0), address: address(to), notify: Notify::default(), orcpt: None };
    NewMessage {
        mid: queue.ids().next_mid().unwrap(),
        envelope: Arc::new(Envelope {
            sender: Some(address("s@from.test")),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients: vec![recipient],
        }),
        arrival,
        bounce_profile: "default".into(),
        listener: "127.0.0.1:2525".into(),
        cause: None,
        body: Arc::new(Body {
            bytes: b"Subject: old\r\n\r\nold\r\n".to_vec().into(),
            facts: MessageFacts::default(),
        }),
    }
}

/// Leaves a spool as a run at `wall` leaves it: half of the mail deferred, half of it ready.
fn spool_of(path: &Path, wall: Wall, to: &[&str], each: usize) {
    let settings =
        QueueSettings { spool: path.to_owned(), octets_max: 256 << 20, free_octets_min: Some(0) };
    let spool = Spool::open(&settings, 2).unwrap();
    let medium = spool.medium();
    let now = Now { wall, ..Now::default() };
    let opened = Queue::open(&medium, spool.options(ShardId(0), 3_600_000), now).unwrap();
    let Opened { mut queue, files, .. } = opened;
    let mut files: HashMap<SegmentId, _> = files.into_iter().collect();
    for to in to.iter().cycle().take(each * to.len()) {
        let message = message(&mut queue, to, wall);
        let _ticket = queue.append(message).unwrap();
    }
    let mut committed = 0;
    while let Some(effect) = queue.next_effect() {
        match effect {
            Effect::Make { id, segment, octets, map_octets, header } => {
                let file = medium.make(segment, octets, &header).unwrap();
                let map = medium.map(&file, map_octets);
                files.insert(segment, file);
                queue.handle_made(id, map);
            }
            Effect::Write { id, segment, mut offset, chunks, direct: _ } => {
                for chunk in chunks {
                    medium.write_at(&files[&segment], offset, chunk.as_ref()).unwrap();
                    offset += chunk.as_ref().len() as u64;
                }
                queue.handle_done(id, Ok(()));
            }
            Effect::Sync { id, segment } => {
                queue.handle_done(id, medium.sync(&files[&segment]));
            }
            Effect::Read { .. } => panic!("nothing is copied forward here"),
        }
        queue.enter_synced();
        while let Some(event) = queue.poll_event() {
            let Event::Committed { handles, .. } = event else { panic!("{event:?}") };
            for (handle, _) in handles {
                committed += 1;
                if committed % 2 == 0 {
                    let status = Enhanced::new(4, 2, 1);
                    let last = LastOutcome { code: 450, status, host: None, warnings: 0 };
                    let next = Wall(wall.0 + 3_600_000);
                    assert!(queue.defer(handle, Rid(0), &last, 4, next).applied);
                }
            }
            if committed == each * to.len() {
                queue.flush();
            }
        }
    }
    assert_eq!(committed, each * to.len());
}

fn wall_now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_millis()).unwrap()
}

/// An engine that finds the mail of a run at `wall`.
fn engine_after(wall: u64, routes: String, tables: &str, to: &[&str], each: usize) -> Engine {
    let mut engine = Engine::start(&Setup::new("auto", routes).tables(tables));
    engine.stop();
    std::fs::remove_dir_all(engine.path("spool")).unwrap();
    spool_of(&engine.path("spool"), Wall(wall), to, each);
    engine.launch();
    engine
}

fn bounced(engine: &Engine) -> Vec<String> {
    engine.log_lines().into_iter().filter(|line| line.starts_with("Bounced: ")).collect()
}

fn mid_of(line: &str) -> &str {
    line.split("MID ").nth(1).unwrap().split(' ').next().unwrap()
}

/// Everything looks a year old. What a host takes is delivered; of the mail for a host that is
/// gone nothing is bounced but what was attempted.
#[test]
fn a_clock_a_year_ahead_bounces_nothing_without_an_attempt() {
    let peer = Peer::good();
    let routes = format!("to.test {}\ngone.test {}\n", peer.host(0), Peer::nobody());
    let to = ["r@to.test", "r@gone.test"];
    let engine = engine_after(wall_now() - YEAR_MS, routes, TABLES, &to, 100);
    engine.wait("all deliveries", || peer.messages().len() == 100);
    engine.wait_log("Connection Error");
    // Ready and waiting mail is looked at ten times a second, deferred mail a moment later.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let log = engine.log_lines();
    let attempted = |mid: &str| {
        let line = format!(" MID {mid} to RID 0 - ");
        log.iter().any(|l| l.starts_with("Delayed: ") && l.contains(&line))
    };
    let bounced = bounced(&engine);
    for line in &bounced {
        assert!(attempted(mid_of(line)), "without an attempt: {line}");
    }
    assert!(!log.iter().any(|line| line.contains("to.test") && line.starts_with("Bounced")));
}

/// Everything came a year from now, and is due in a year and an hour. It is delivered soon: the
/// wait that a profile allows at most is the longest there is.
#[test]
fn a_clock_a_year_back_keeps_no_mail_for_a_year() {
    let peer = Peer::good();
    let routes = format!("to.test {}\n", peer.host(0));
    let tables = TABLES.replace("1h", "3s");
    let engine = engine_after(wall_now() + YEAR_MS, routes, &tables, &["r@to.test"], 100);
    engine.wait("all deliveries", || peer.messages().len() == 100);
    engine.wait_empty();
    assert_eq!(bounced(&engine), Vec::<String>::new());
}
