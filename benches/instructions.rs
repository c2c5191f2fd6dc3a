//! Instructions per step, counted by callgrind: a figure that a busy machine does not change.
//!
//! Owns: the cases, and the difference of two counts. Never: time. Each case runs twice in a
//! process of its own under `valgrind --tool=callgrind`, the second time with twice the steps: the
//! difference is what the steps take, without the start. Where valgrind is missing it says so.
//!
//! * `reply`: the replies to MAIL, RCPT and the end of data
//! * `command`: MAIL, RCPT and BDAT of one message
//! * `cursor`: one turn
//! * `append`: one message of 4 KiB appended, committed in a batch of 100, and settled; what would
//!   go to the disk is taken for done
//! * `delivery`: one message of 4 KiB in and out, by the program itself with one shard on epoll
//!   (valgrind knows no ring), its log at full detail; system calls count nothing

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the data plane does not")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

mod common;
#[path = "common/history.rs"]
mod history;

use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::Arguments;
use ringpost::lab::sink::{Sink, SinkOptions};
use ringpost::lab::source::{self, SourceOptions};
use ringpost::mail::{
    Body, BodyKind, Envelope, Mailbox, MessageFacts, Notify, Recipient, Rid, ShardId,
};
use ringpost::queue::settings::QueueSettings;
use ringpost::queue::{Effect, Event, Medium, NewMessage, Opened, Queue, Spool};
use ringpost::route::Cursor;
use ringpost::shard::io as ring;
use ringpost::smtp::command::{self, LastDomains};
use ringpost::smtp::reply::ReplyParser;
use serde_json::json;

const USAGE: &str = "cargo bench --bench instructions -- [options]
  --case NAME     reply, command, cursor, append or delivery; all without it
  --steps N       steps of the first of the two runs
  --spool DIR     folder for the spools
  --json          one line of JSON per case
  --record        puts the figures into benches/history.ndjson
  --test          a smoke run: each case once, without valgrind";

/// Each case with its steps.
const CASES: [(&str, u64); 5] =
    [("reply", 2000), ("command", 2000), ("cursor", 10_000), ("append", 2000), ("delivery", 1000)];

/// Messages of one commit.
const BATCH: usize = 100;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments = Arguments::read(USAGE, &["case", "steps", "spool", "only"]);
    let chosen = arguments.text("case");
    if let Some(name) = chosen.filter(|name| CASES.iter().all(|(case, _)| case != name)) {
        eprintln!("no case '{name}'\n{USAGE}");
        std::process::exit(64);
    }
    if let Some(steps) = arguments.number("only") {
        // The process that is counted.
        return run(chosen.unwrap(), steps, &arguments);
    }
    let has_valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    if !has_valgrind && !arguments.smoke {
        println!("skipped: valgrind is not installed");
        return;
    }
    for (case, usual) in CASES.iter().filter(|(case, _)| chosen.is_none_or(|c| c == *case)) {
        let steps = arguments.number("steps").unwrap_or(*usual).max(1);
        if arguments.smoke {
            if *case != "delivery" {
                run(case, 2, &arguments);
            }
            continue;
        }
        let (once, twice) = (count(case, steps, &arguments), count(case, 2 * steps, &arguments));
        let figure = twice.saturating_sub(once) / steps;
        if arguments.json {
            println!("{}", json!({ "case": case, "instructions": figure }));
        } else {
            println!("{case:<10} {figure:>8} instructions");
        }
        if arguments.record {
            history::record("instructions", json!({ *case: figure }));
        }
    }
}

/// One case, here and now.
fn run(case: &str, steps: u64, arguments: &Arguments) {
    match case {
        "reply" => replies(steps),
        "command" => commands(steps),
        "cursor" => {
            let cursor = Cursor::new();
            for _ in 0..steps {
                black_box(cursor.take(1));
            }
        }
        _ => {
            let folder = common::folder(arguments);
            append(folder.path(), steps);
        }
    }
}

/// The instructions of a process that does so many steps.
fn count(case: &str, steps: u64, arguments: &Arguments) -> u64 {
    let folder = common::folder(arguments);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    if case == "delivery" {
        return count_deliveries(valgrind, folder.path(), steps);
    }
    let own = std::env::current_exe().unwrap();
    valgrind.arg(own).args(["--case", case, "--only", &steps.to_string(), "--spool"]);
    let output = valgrind.arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    collected(&String::from_utf8_lossy(&output.stderr))
}

fn collected(said: &str) -> u64 {
    let line = said.lines().find(|line| line.contains("Collected :"));
    let figure = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    figure.unwrap_or_else(|| panic!("callgrind counted nothing:\n{said}"))
}

fn count_deliveries(mut valgrind: Command, folder: &Path, messages: u64) -> u64 {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let routes = format!("ALL {}\n", sink.address());
    std::fs::write(folder.join("smtproutes"), routes).unwrap();
    let text = "hostname = \"out.example.net\"\nspool = \"spool\"\nroutes = \"smtproutes\"\n\
                shards = 1\nio = \"epoll\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
                [admin]\naddress = \"127.0.0.1:0\"\n[log]\nmail = \"mail_logs\"\n";
    let config = folder.join("ringpost.toml");
    std::fs::write(&config, text).unwrap();
    valgrind.arg(env!("CARGO_BIN_EXE_ringpost")).args(["serve", "--config"]).arg(&config);
    valgrind.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = valgrind.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = loop {
        let line = lines.next().expect("the engine starts").unwrap();
        if let Some(address) = line.strip_prefix("listening on ") {
            break address.split(' ').next().unwrap().parse().unwrap();
        }
    };
    let report = source::run(SourceOptions {
        to: address,
        messages,
        sessions: 4,
        bdat: true,
        window: 8,
        ..SourceOptions::default()
    });
    assert!(report.unwrap().is_complete());
    while sink.counts().messages < messages {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    collected(&String::from_utf8_lossy(&output.stderr))
}

fn replies(steps: u64) {
    let said: [&[u8]; 3] = [
        b"250 2.1.0 Sender ok\r\n",
        b"250 2.1.5 Recipient ok\r\n",
        b"250 2.0.0 Ok: queued as 3jjSKc6HnKz4GTHJ\r\n",
    ];
    let mut parser = ReplyParser::default();
    for _ in 0..steps {
        for mut reply in said {
            black_box(parser.parse(&mut reply).unwrap().unwrap());
        }
    }
}

fn commands(steps: u64) {
    let lines: [&[u8]; 3] = [
        b"MAIL FROM:<bounces+4711@out.example.net> SIZE=4096 BODY=8BITMIME",
        b"RCPT TO:<user@example.com>",
        b"BDAT 4096 LAST",
    ];
    for _ in 0..steps {
        for line in lines {
            black_box(command::parse(black_box(line), &mut LastDomains::default()).unwrap());
        }
    }
}

/// A queue whose writes and syncs are done as soon as they are asked for.
fn append(folder: &Path, steps: u64) {
    let settings =
        QueueSettings { spool: folder.join("spool"), octets_max: 1 << 30, free_octets_min: None };
    let spool = Spool::open(&settings, 1).unwrap();
    let medium = spool.medium();
    let opened = Queue::open(&medium, spool.options(ShardId(0), 0), ring::now()).unwrap();
    let Opened { mut queue, .. } = opened;
    let address = |text: &str| Mailbox::parse(text.as_bytes()).unwrap();
    let envelope = Arc::new(Envelope {
        sender: Some(address("bounces+4711@out.example.net")),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients: vec![Recipient {
            rid: Rid(0),
            address: address("user@example.com"),
            notify: Notify::default(),
            orcpt: None,
        }],
    });
    let mut left = usize::try_from(steps).unwrap();
    while left > 0 {
        let now = ring::now();
        for _ in 0..left.min(BATCH) {
            let body = Body { bytes: vec![b'x'; 4096].into(), facts: MessageFacts::default() };
            let message = NewMessage {
                mid: queue.ids().next_mid().expect("ids are reserved in time"),
                envelope: envelope.clone(),
                arrival: now.wall,
                bounce_profile: "default".into(),
                listener: "127.0.0.1:2525".into(),
                cause: None,
                body: Arc::new(body),
            };
            black_box(queue.append(message).unwrap());
        }
        let mut committed = Vec::new();
        while committed.len() < left.min(BATCH) {
            step(&mut queue, &medium);
            queue.enter_synced();
            while let Some(Event::Committed { handles, .. }) = queue.poll_event() {
                committed.extend(handles.into_iter().map(|(handle, _)| handle));
            }
        }
        queue.tick(now);
        for handle in committed {
            assert!(queue.deleted(handle, Rid(0)).applied);
        }
        left -= left.min(BATCH);
    }
}

fn step(queue: &mut Queue, medium: &impl Medium) {
    match queue.next_effect().expect("messages wait and nothing is to be done") {
        Effect::Make { id, segment, octets, map_octets, header } => {
            let made = medium.make(segment, octets, &header);
            let made = made.and_then(|file| medium.map(&file, map_octets));
            queue.handle_made(id, made);
        }
        Effect::Write { id, .. } | Effect::Sync { id, .. } => queue.handle_done(id, Ok(())),
        Effect::Read { .. } => panic!("nothing is read from a new spool"),
    }
}
