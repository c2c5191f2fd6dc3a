//! A real full disk under the real engine: a small tmpfs, and ext4 on a device that runs full
//! below it. Skipped where mounting is not permitted.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Client, Engine, Peer, Setup};

/// A mount that ends with the test.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: the engine may still have files open there.
        let _status = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Mounts, or says why not.
fn mount(arguments: &[&str], at: &Path) -> Option<Mount> {
    std::fs::create_dir_all(at).unwrap();
    let output = Command::new("mount").args(arguments).arg(at).output();
    match output {
        Ok(output) if output.status.success() => Some(Mount(at.to_owned())),
        Ok(output) => {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            None
        }
        Err(error) => {
            eprintln!("skipped: mount: {error}");
            None
        }
    }
}

/// A host that answers 450 to RCPT while `busy` is set.
fn moody(busy: &Arc<AtomicBool>) -> Peer {
    let busy = busy.clone();
    Peer::start(move |peer, _| {
        if peer.hello() {
            let busy = busy.clone();
            peer.serve_with(move |line| {
                let later = "450 4.2.1 mailbox is busy".to_owned();
                (line.starts_with("RCPT") && busy.load(Ordering::SeqCst)).then_some(later)
            });
        }
    })
}

/// Sends until MAIL is refused; how many messages were taken. None may fail in between with
/// anything but a clear temporary refusal.
fn fill(client: &mut Client, first: usize) -> (usize, String) {
    let line = format!("{}\r\n", "x".repeat(70)).repeat(1_300);
    let mut taken = 0;
    for n in first..first + 2_000 {
        let reply = client.command("MAIL FROM:<s@from.test>");
        if !reply.starts_with("250") {
            return (taken, reply);
        }
        assert!(client.command("RCPT TO:<r@to.test>").starts_with("250"));
        let reply = client.data(format!("Subject: {n}\r\n\r\n{line}").as_bytes());
        taken += usize::from(reply.starts_with("250"));
        let refused = reply.starts_with("452 4.3.1") || reply.starts_with("451 4.3.0");
        assert!(reply.starts_with("250") || refused, "{reply}");
    }
    panic!("the disk never got full");
}

/// Fills the disk of an engine; how many messages it answered with 250.
fn get_full(engine: &Engine) -> usize {
    let mut client = engine.client();
    assert!(client.command("EHLO c.test").starts_with("250"));
    let (taken, reply) = fill(&mut client, 0);
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(taken > 50, "{taken}");
    engine.wait_log("new mail is refused with 452");
    taken
}

/// Every message that was answered has come to the host.
fn all_came(engine: &Engine, peer: &Peer, taken: usize) {
    let subjects = || {
        let messages = peer.messages();
        let of = |data: &[u8]| {
            let text = String::from_utf8_lossy(data).into_owned();
            text.lines().find(|line| line.starts_with("Subject: ")).unwrap().to_owned()
        };
        messages.iter().map(|message| of(&message.data)).collect::<BTreeSet<_>>()
    };
    engine.wait("all deliveries", || subjects().len() >= taken);
    engine.wait_empty();
}

fn engine_on(
    mount_spool: impl Fn(&Path) -> Option<Vec<Mount>>,
    story: impl Fn(&mut Engine, &AtomicBool, &Peer),
) {
    let busy = Arc::new(AtomicBool::new(true));
    let peer = moody(&busy);
    let setup = Setup::new("auto", format!("to.test {}\n", peer.host(0)));
    let mut engine = Engine::start(&setup);
    // The first start has made a spool on the real disk: the mount hides it.
    engine.stop();
    let Some(mounts) = mount_spool(&engine.path("spool")) else { return };
    engine.launch();
    story(&mut engine, &busy, &peer);
    drop(mounts);
}

/// Somebody else's file takes all the space: each shard looks every second whether a segment can
/// be made again, and says once a minute that it cannot.
#[test]
fn a_disk_that_others_fill() {
    let some =
        |spool: &Path| Some(vec![mount(&["-t", "tmpfs", "-o", "size=128m", "tmpfs"], spool)?]);
    engine_on(some, |engine, busy, peer| {
        let others = engine.path("spool").join("others");
        let mut file = std::fs::File::create(&others).unwrap();
        while file.write_all(&[1; 1 << 16]).is_ok() {}
        let mut client = engine.client();
        assert!(client.command("EHLO c.test").starts_with("250"));
        let (taken, reply) = fill(&mut client, 0);
        assert!(taken > 0 && reply.starts_with("452 4.3.1"), "{taken}: {reply}");
        std::thread::sleep(Duration::from_secs(3));
        let log = engine.log();
        let told = log.lines().filter(|line| line.contains("Critical: queue: cannot make"));
        assert!((1..=2).contains(&told.count()), "{log}");
        std::fs::remove_file(&others).unwrap();
        engine.wait_log("new mail is taken again");
        busy.store(false, Ordering::SeqCst);
        all_came(engine, peer, taken);
    });
}

/// Mail is refused clearly, deliveries go on and make room, and mail is taken again; a crash in
/// between loses nothing.
#[test]
fn a_full_tmpfs() {
    let small =
        |spool: &Path| Some(vec![mount(&["-t", "tmpfs", "-o", "size=32m", "tmpfs"], spool)?]);
    engine_on(small, |engine, busy, peer| {
        let taken = get_full(engine);
        engine.kill();
        engine.launch();
        busy.store(false, Ordering::SeqCst);
        all_came(engine, peer, taken);
        // Each shard says so for itself; clients cannot tell, for the kernel may send a dozen of
        // them in a row to the shard that was never full.
        engine.wait("mail to be taken again", || {
            let log = engine.log();
            let life = log.rsplit("Begin Logfile").next().unwrap();
            let count = |text: &str| life.matches(text).count();
            count("queue: new mail is refused") == count("queue: new mail is taken again")
        });
        engine.send("s@from.test", &["r@to.test"]);
        engine.wait_empty();
        engine.stop();
    });
}

/// The file system believes in space that is not there, and goes read-only when a write of its
/// own fails. The engine lives on, refuses mail, and delivers all that it has answered.
#[test]
fn ext4_on_a_device_that_is_full_below_it() {
    let backing = tempfile::tempdir().unwrap();
    let lying = |spool: &Path| {
        let below = mount(&["-t", "tmpfs", "-o", "size=36m", "tmpfs"], backing.path())?;
        let image = backing.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: mkfs.ext4 cannot be run");
            return None;
        }
        let above = mount(&["-o", "loop", image.to_str().unwrap()], spool)?;
        Some(vec![above, below])
    };
    engine_on(lying, |engine, busy, peer| {
        let taken = get_full(engine);
        busy.store(false, Ordering::SeqCst);
        all_came(engine, peer, taken);
        engine.stop();
    });
}

/// No disk is full, but the queue has what the configuration allows: the same as a full disk.
#[test]
fn at_the_configured_limit() {
    let busy = Arc::new(AtomicBool::new(true));
    let peer = moody(&busy);
    let setup = Setup::new("auto", format!("to.test {}\n", peer.host(0)));
    let engine = Engine::start(&setup.top("spool_max_size = \"24MiB\""));
    let taken = get_full(&engine);
    assert!(engine.metric("ringpost_shard_queue_bytes{shard=\"0\"}") <= f64::from(12 << 20));
    busy.store(false, Ordering::SeqCst);
    all_came(&engine, &peer, taken);
    engine.wait_log("new mail is taken again");
    engine.wait("mail to be taken again", || {
        engine.metric("ringpost_shard_takes_mail{shard=\"0\"}") == 1.0
            && engine.metric("ringpost_shard_takes_mail{shard=\"1\"}") == 1.0
    });
    engine.send("s@from.test", &["r@to.test"]);
    engine.wait_empty();
}

/// All mail fails for good while the queue is full: reports use the reserve, and what finds no
/// room there leaves its cause queued, with a Warning. Nobody is forgotten.
#[test]
fn reports_without_room_leave_their_cause_queued() {
    let refuses = Arc::new(AtomicBool::new(false));
    let knows = refuses.clone();
    let peer = Peer::start(move |peer, _| {
        if peer.hello() {
            let knows = knows.clone();
            peer.serve_with(move |line| {
                let reply = match line {
                    line if !line.starts_with("RCPT") => return None,
                    line if line.contains("from.test") => "450 4.2.1 no reports now",
                    _ if knows.load(Ordering::SeqCst) => "550 5.1.1 unknown",
                    _ => "450 4.2.1 busy",
                };
                Some(reply.to_owned())
            });
        }
    });
    let setup = Setup::new("auto", format!("ALL {}\n", peer.host(0)));
    let setup = setup.top("spool_max_size = \"16MiB\"");
    let setup = Setup { top: setup.top.replace("shards = 2", "shards = 1"), ..setup };
    let engine = Engine::start(&setup);
    let mut client = engine.client();
    let line = format!("{}\r\n", "x".repeat(70)).repeat(140);
    let mut taken = 0.0;
    while client.command("MAIL FROM:<s@from.test>").starts_with("250") {
        assert!(client.command("RCPT TO:<r@to.test>").starts_with("250"));
        let reply = client.data(line.as_bytes());
        taken += f64::from(u8::from(reply.starts_with("250")));
    }
    refuses.store(true, Ordering::SeqCst);
    engine.wait_log("Warning: MID ");
    engine.wait_log("its failure report cannot be stored; it stays queued");
    engine.assert_conservation();
    let of = |outcome: &str| {
        engine.metric(&format!("ringpost_recipients_total{{outcome=\"{outcome}\"}}"))
    };
    let reports = engine.metric("ringpost_recipients_accepted_total{source=\"generated\"}");
    assert!(reports > 0.0, "the reserve is for reports");
    assert_eq!(of("damaged"), 0.0);
    engine.wait("every cause either told or queued", || {
        let reports = engine.metric("ringpost_recipients_accepted_total{source=\"generated\"}");
        let pending = engine.metric("ringpost_recipients_pending");
        of("bounced") == reports && pending == taken
    });
}
