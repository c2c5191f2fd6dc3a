//! A long link and a host that stalls: what a session keeps in flight, and what one bad host of
//! ten costs the others.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail and reads time"
)]

mod common;

use std::time::Duration;

use common::{Engine, Setup, io_modes};
use ringpost::lab::link::Link;
use ringpost::lab::sink::{Behaviour, Sink, SinkHandle, SinkOptions, Stage};
use ringpost::lab::source::{self, SourceOptions};

/// One way of the link.
const DELAY: Duration = Duration::from_millis(25);

fn sink(behaviour: Behaviour) -> SinkHandle {
    Sink::start(SinkOptions { behaviour, keep_ids: true, ..SinkOptions::default() }).unwrap()
}

fn send(engine: &Engine, messages: u64) {
    let options = SourceOptions {
        to: engine.smtp,
        messages,
        sessions: 8,
        bdat: true,
        window: 8,
        ..SourceOptions::default()
    };
    let report = source::run(options).unwrap();
    assert!(report.is_complete(), "{report:?}");
}

/// One connection at a time. On a link like this the number of writes decides how long the mail
/// takes, for each waits for the replies to the one before; it does not depend on how busy the
/// machine is.
#[test]
fn one_connection_over_a_long_link_is_kept_full() {
    for io in io_modes() {
        for (chunking, per_connection, messages, writes_max) in [
            // EHLO, three plain messages of two writes, windows of 1, 2, 4 .. 64; a window of 64
            // comes in five pieces.
            (true, 10_000, 600, 120),
            // EHLO, QUIT, and a train or a few for each of the connections.
            (true, 50, 300, 100),
            // The end of each message goes with the commands of the next.
            (false, 10_000, 20, 26),
        ] {
            let sink = sink(Behaviour { chunking, ..Behaviour::default() });
            let link = Link::start(sink.address(), DELAY).unwrap();
            let mut setup = Setup::new(io, format!("ALL {}\n", link.address())).tables(&format!(
                "[destination.default]\nmax_connections = 1\n\
                 max_messages_per_connection = {per_connection}\n"
            ));
            setup.top = setup.top.replace("shards = 2", "shards = 1");
            let engine = Engine::start(&setup);
            send(&engine, messages);
            engine.wait("all mail", || sink.counts().messages == messages);
            engine.wait_empty();
            engine.assert_conservation();
            let what = format!("io = {io}, chunking {chunking}, {per_connection} per connection");
            assert!(link.pieces() <= writes_max, "{what}: {} writes", link.pieces());
            assert_eq!(sink.counts().connections_peak, 1, "{what}");
            // Each connection carries as many as it may, unless the mail came to a stop.
            let most = 2 * messages.div_ceil(per_connection);
            assert!(link.connections() <= most, "{what}: {}", link.connections());
            println!("{what}: {} writes, {} connections", link.pieces(), link.connections());
        }
    }
}

/// Where a connection carries few messages, the next ones are opened in place of those that are
/// spent, as many at a time as there are: one at a time would be all that the host ever has, for
/// on this link a connection takes longer to open than to be spent.
#[test]
fn spent_connections_are_replaced_side_by_side() {
    const MESSAGES: u64 = 300;
    for io in io_modes() {
        let sink = sink(Behaviour::default());
        let link = Link::start(sink.address(), DELAY).unwrap();
        let mut setup = Setup::new(io, format!("ALL {}\n", link.address())).tables(
            "[destination.default]\nmax_connections = 80\nmax_messages_per_connection = 1\n",
        );
        setup.top = setup.top.replace("shards = 2", "shards = 1");
        let engine = Engine::start(&setup);
        send(&engine, MESSAGES);
        engine.wait("all mail", || sink.counts().messages == MESSAGES);
        engine.wait_empty();
        engine.assert_conservation();
        let peak = sink.counts().connections_peak;
        println!("io = {io}: {peak} connections at once, {} in all", link.connections());
        assert!((12..=80).contains(&peak), "io = {io}: {peak}");
        assert!(link.connections() <= MESSAGES + 5, "{} are opened", link.connections());
    }
}

/// It stalls after DATA for ever: it keeps one message for each of its connections, and the nine
/// others get all the rest while it is silent.
#[test]
fn a_host_that_stalls_keeps_one_message_a_shard_and_no_more() {
    const MESSAGES: u64 = 3_000;
    const PERMITS: u64 = 30;
    for io in io_modes() {
        let stalled = sink(Behaviour { stall_at: Some(Stage::Data), ..Behaviour::default() });
        let nine: Vec<SinkHandle> = (0..9).map(|_| sink(Behaviour::default())).collect();
        let hosts: Vec<String> =
            [&stalled].into_iter().chain(&nine).map(|sink| sink.address().to_string()).collect();
        let setup = Setup::new(io, format!("ALL {}\n", hosts.join(", ")))
            .tables(&format!("[destination.default]\nmax_connections = {PERMITS}\n"));
        let engine = Engine::start(&setup);
        send(&engine, MESSAGES);
        let taken = || nine.iter().map(|sink| sink.counts().messages).sum::<u64>();
        engine.wait("the others' mail", || taken() + 2 >= MESSAGES);
        engine
            .wait("what else is under way", || engine.metric("ringpost_recipients_pending") <= 2.0);
        let counts = stalled.counts();
        println!("io = {io}: {counts:?}");
        assert_eq!(counts.messages, 0);
        // One for each shard: it never answered a transaction, so it got no more.
        assert!(counts.connections_peak <= 2, "{counts:?}");
        // Nobody got a message twice, and the nine took equal turns.
        for sink in &nine {
            assert!(sink.received().values().all(|received| received.times == 1));
        }
        let counts = nine.iter().map(|sink| sink.counts().messages);
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(least * 10 >= MESSAGES * 8 / 10, "from {least} to {most}");
        engine.assert_conservation();
    }
}
