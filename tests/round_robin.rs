//! Hosts of equal priority take turns, one message each, over all shards of a real engine.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Engine, Peer, Setup, io_modes};
use ringpost::limits::LANE_DELIVERIES_MAX;

/// Sends `count` messages over `clients` connections.
fn send_many(engine: &Engine, clients: usize, count: usize) {
    std::thread::scope(|scope| {
        for n in 0..clients {
            scope.spawn(move || {
                let mut client = engine.client();
                for _ in 0..count / clients + usize::from(n < count % clients) {
                    client.message("s@turns.test", &["a@turns.test"], b"Subject: x\r\n\r\nx\r\n");
                }
                client.quit();
            });
        }
    });
}

#[test]
fn equal_hosts_take_equal_turns_and_the_next_priority_none() {
    for io in io_modes() {
        for hosts in [2, 3] {
            let peers: Vec<Peer> = (0..hosts).map(|_| Peer::good()).collect();
            let spare = Peer::good();
            let mut places: Vec<String> = peers.iter().map(|peer| peer.host(0)).collect();
            places.push(spare.host(10));
            let engine =
                Engine::start(&Setup::new(io, format!("turns.test {}\n", places.join(", "))));
            send_many(&engine, 8, 200);
            engine.wait_empty();
            let counts: Vec<usize> = peers.iter().map(|peer| peer.messages().len()).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert_eq!(counts.iter().sum::<usize>(), 200, "{counts:?}");
            assert!(most - least <= 1, "io = {io}: {counts:?}");
            assert_eq!(spare.connections(), 0, "priority 10 while 0 is up");
        }
    }
}

/// Fullness moves no mail to the next priority, and a slow host delays nobody else's.
#[test]
fn a_slow_host_takes_fewer_and_delays_none() {
    const MESSAGES: usize = 2_600;
    for io in io_modes() {
        let slow = Peer::start(|peer, _| {
            if peer.hello() {
                peer.serve_with(|line| {
                    if line == "." {
                        std::thread::sleep(Duration::from_millis(300));
                    }
                    None
                });
            }
        });
        let (fast, spare) = (Peer::good(), Peer::good());
        let places = [slow.host(0), fast.host(0), spare.host(10)].join(", ");
        let tables = "[destination.default]\nmax_connections = 4\n";
        let mut setup = Setup::new(io, format!("turns.test {places}\n")).tables(tables);
        setup.top = setup.top.replace("shards = 2", "shards = 1");
        let engine = Engine::start(&setup);
        send_many(&engine, 4, MESSAGES);
        let begun = Instant::now();
        // What the lane of the slow host cannot hold goes to its equal, as fast as that takes it:
        // it does not win a permit back from the slow one for every handful.
        engine.wait("the fast host's share", || {
            fast.messages().len() + slow.messages().len() + LANE_DELIVERIES_MAX + 8 >= MESSAGES
        });
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(spare.connections(), 0, "priority 10 while 0 is up");
        assert!(slow.messages().len() < fast.messages().len() / 4, "the slow host took as many");
        assert_eq!(engine.metric("ringpost_soft_bounces_total"), 0.0);
    }
}

#[test]
fn mail_for_dev_null_is_discarded_and_counted() {
    for io in io_modes() {
        let engine = Engine::start(&Setup::new(io, "old.test /dev/null\n"));
        engine.send("s@x.test", &["a@old.test", "b@old.test"]);
        engine.wait_empty();
        assert_eq!(engine.metric("ringpost_recipients_total{outcome=\"discarded\"}"), 2.0);
        engine.wait_log("Message finished MID");
        let lines = engine.log_lines();
        let at = lines.iter().position(|line| line.starts_with("Discarded: MID ")).unwrap();
        assert!(lines[at].ends_with(" to RID [0, 1]"), "{lines:?}");
        assert!(lines[at + 1].starts_with("Message finished MID "), "{lines:?}");
    }
}

#[test]
fn an_address_literal_is_a_receiving_domain() {
    for io in io_modes() {
        let (four, six, other) = (Peer::good(), Peer::good(), Peer::good());
        let routes = format!(
            "[192.0.2.1] {}\n[IPv6:2001:db8::1] {}\nALL {}\n",
            four.host(0),
            six.host(0),
            other.host(0)
        );
        let engine = Engine::start(&Setup::new(io, routes));
        engine.send("s@x.test", &["a@[192.0.2.1]", "a@[IPv6:2001:db8::1]", "a@[192.0.2.2]"]);
        engine.wait_empty();
        for (peer, to) in [(&four, "192.0.2.1"), (&six, "2001:db8::1"), (&other, "192.0.2.2")] {
            let messages = peer.messages();
            assert_eq!(messages.len(), 1, "{to}");
            assert_eq!(messages[0].recipients.len(), 1);
            assert!(messages[0].recipients[0].contains(to), "{messages:?}");
        }
    }
}
