//! Corners in which mail could be held up although nothing stands in its way any more: lanes that
//! were full, permits of idle sessions, refusals that nobody takes back, commits that failed.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Engine, Peer, Setup, io_modes};

/// A number that a script reads and the test sets.
fn dial() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let dial = Arc::new(AtomicUsize::new(0));
    (dial.clone(), dial)
}

/// Its destination was set aside because the lane was full; the lane empties when the host goes
/// down, and it may be another shard whose probe brings the host back.
#[test]
fn a_destination_feeds_again_after_its_full_lane_went_down() {
    for io in io_modes() {
        let (set, state) = dial();
        let peer = Peer::start(move |peer, _| match state.load(Ordering::SeqCst) {
            // Silent, until the lanes are full; then nobody is let in.
            0 => {
                while state.load(Ordering::SeqCst) == 0 {
                    peer.pause(Duration::from_millis(10));
                }
            }
            1 => {}
            _ => peer.serve(),
        });
        let tables = "[bounce_profile.default]\ninitial_retry = \"3s\"\n\
                      [destination.default]\nmax_recipients_per_transaction = 1\n";
        let routes = format!("full.test {}\n", peer.host(0));
        let engine = Engine::start(&Setup::new(io, routes).tables(tables));
        let to: Vec<String> = (0..700).map(|n| format!("r{n}@full.test")).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        for _ in 0..10 {
            engine.send("s@full.test", &to);
        }
        set.store(1, Ordering::SeqCst);
        engine.wait_log("Connection Error");
        set.store(2, Ordering::SeqCst);
        engine.wait_empty();
        assert_eq!(peer.messages().len(), 7000);
    }
}

/// A destination whose only host refused it, and then went down for the sake of another one.
#[test]
fn a_refusal_before_the_host_went_down_holds_no_mail_when_it_comes_up() {
    for io in io_modes() {
        let (set, state) = dial();
        let peer = Peer::start(move |peer, _| match state.load(Ordering::SeqCst) {
            0 => {
                if peer.hello() && peer.expect("MAIL") {
                    peer.say("450 4.3.2 not now");
                }
            }
            1 => {}
            _ => peer.serve(),
        });
        let routes = format!("e.test {0}\nd.test {0}\n", peer.host(0));
        let tables = "[bounce_profile.default]\ninitial_retry = \"3s\"\n";
        let engine = Engine::start(&Setup::new(io, routes).tables(tables));
        engine.send("s@e.test", &["a@e.test"]);
        engine.wait_log("pending till");
        set.store(1, Ordering::SeqCst);
        engine.send("s@d.test", &["a@d.test"]);
        // Its retry finds the host down and is no attempt.
        engine.wait_log_count("Connection Error", 3);
        set.store(2, Ordering::SeqCst);
        engine.wait_empty();
        assert_eq!(peer.messages().len(), 2);
    }
}
