//! A disk that gives back something else than was written, or nothing: what is damaged is held and
//! named, the rest goes on, and nothing wrong is ever sent.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Engine, Peer, Setup, io_modes};

/// Where `text` stands in the files of the spool.
fn find(engine: &Engine, text: &str) -> (PathBuf, u64) {
    let folder = engine.path("spool/shard-00");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let octets = std::fs::read(&path).unwrap();
        if let Some(at) = memchr::memmem::find(&octets, text.as_bytes()) {
            return (path, at as u64);
        }
    }
    panic!("{text} is not in the spool");
}

fn body(name: &str) -> Vec<u8> {
    format!("Subject: {name}\r\n\r\nbody of {name}\r\n").into_bytes()
}

/// Messages are read back from the disk before they are sent: none stays in memory.
#[test]
fn damaged_messages_are_held_and_the_others_go_on() {
    for io in io_modes() {
        let busy = Arc::new(AtomicBool::new(true));
        let is_busy = busy.clone();
        let peer = Peer::start(move |peer, _| {
            if peer.hello() {
                let busy = is_busy.clone();
                peer.serve_with(move |line| {
                    let later = "450 4.2.1 mailbox is busy".to_owned();
                    (line.starts_with("RCPT") && busy.load(Ordering::SeqCst)).then_some(later)
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let profile = folder.path().join("cold.conf");
        std::fs::write(&profile, "ringpost.hot_body_octets = 0\n").unwrap();
        let tables = "[bounce_profile.default]\ninitial_retry = \"3s\"\nmax_retry = \"3s\"\n";
        let setup = Setup::new(io, format!("to.test {}\n", peer.host(0)))
            .top(&format!("profile = \"{}\"", profile.display()))
            .tables(tables);
        let setup = Setup { top: setup.top.replace("shards = 2", "shards = 1"), ..setup };
        let mut engine = Engine::start(&setup);
        for name in ["whole", "flipped", "gone"] {
            let mut client = engine.client();
            client.message("s@from.test", &["r@to.test"], &body(name));
        }
        engine.wait_log_count("pending till", 3);
        let (path, at) = find(&engine, "body of flipped");
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"B", at).unwrap();
        // The last message is behind the new end of the file: reading it is an error.
        let (path, at) = find(&engine, "body of gone");
        let octets = File::open(&path).unwrap().metadata().unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(at).unwrap();
        busy.store(false, Ordering::SeqCst);
        engine.wait_empty();
        let messages = peer.messages();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].data.ends_with(&body("whole")), "nothing wrong was sent");
        engine.wait_log_count("1 recipients held as damaged", 2);
        engine.wait_log("Critical: queue: cannot read a message");
        assert_eq!(engine.metric("ringpost_recipients_total{outcome=\"damaged\"}"), 2.0);
        let (code, page, _) = engine.verb(&["status"]);
        let held = page.lines().find(|line| line.contains("Held as damaged")).unwrap();
        assert!(code == 0 && held.ends_with(" 2"), "{page}");
        engine.assert_conservation();
        // The file gets its length back, as from a copy of a failing disk; both stay held.
        OpenOptions::new().write(true).open(&path).unwrap().set_len(octets).unwrap();
        engine.stop();
        let (_, report, _) = engine.verb(&["check", "--spool"]);
        assert!(report.contains("2 held"), "{report}");
        engine.launch();
        engine.send("s@from.test", &["r@to.test"]);
        engine.wait("new mail goes on", || peer.messages().len() == 2);
        assert_eq!(engine.metric("ringpost_recipients_total{outcome=\"damaged\"}"), 2.0);
    }
}
