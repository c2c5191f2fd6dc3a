//! What a client sees and gets through a real socket: offers, refusals, limits, and messages that
//! leave as they came.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{Client, Engine, Peer, Setup};

fn engine(io: &str, peer: &Peer) -> Engine {
    Engine::start(&setup(io, peer))
}

fn setup(io: &str, peer: &Peer) -> Setup {
    Setup::new(io, format!("ALL {}", peer.host(0)))
}

/// A connection to `to` from an address of our choice.
fn connect_from(ip: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// The message without the Received field that was put before it.
fn without_received(data: &[u8]) -> Vec<u8> {
    assert!(data.starts_with(b"Received: from "), "{}", String::from_utf8_lossy(data));
    let mut at = 0;
    loop {
        let line = data[at..].windows(2).position(|pair| pair == b"\r\n").unwrap();
        at += line + 2;
        if !matches!(data.get(at), Some(b' ' | b'\t')) {
            return data[at..].to_vec();
        }
    }
}

each_io!(ehlo_offers_what_is_kept);
fn ehlo_offers_what_is_kept(io: &str) {
    let peer = Peer::good();
    let engine = Engine::start(&setup(io, &peer).listener("max_message_size = \"1MiB\""));
    let mut client = Client::greeted(engine.smtp);
    let reply = client.command("EHLO client.test");
    let offers: Vec<&str> = reply.lines().collect();
    let expected = [
        "250-out.test",
        "250-PIPELINING",
        "250-SIZE 1048576",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-CHUNKING",
        "250-ENHANCEDSTATUSCODES",
        "250 DSN",
    ];
    assert_eq!(offers, expected);
    assert_eq!(client.command("HELO client.test"), "250 out.test");
    client.quit();
}

each_io!(only_addresses_in_relay_from_may_relay);
fn only_addresses_in_relay_from_may_relay(io: &str) {
    let peer = Peer::good();
    let engine = Engine::start(&setup(io, &peer).listener("relay_from = [\"127.0.0.2/32\"]"));
    let mut stranger = engine.client();
    assert!(stranger.command("MAIL FROM:<a@a.test>").starts_with("250"));
    let refused = stranger.command("RCPT TO:<b@b.test>");
    assert!(refused.starts_with("550 5.7.1"), "{refused}");
    let refused = stranger.command("DATA");
    assert!(refused.starts_with("554 5.5.1"), "{refused}");
    stranger.quit();
    let mut friend = Client::over(connect_from([127, 0, 0, 2], engine.smtp));
    assert!(friend.reply().starts_with("220 out.test"));
    assert!(friend.command("EHLO friend.test").starts_with("250"));
    friend.message("a@a.test", &["b@b.test"], b"Subject: x\r\n\r\nhello\r\n");
    friend.quit();
    engine.wait_empty();
    assert_eq!(peer.messages().len(), 1);
    engine.wait_log(" REJECT SG ");
    engine.wait_log(" RELAY SG ");
}

each_io!(a_domain_without_a_route_gets_451_4_4_4);
fn a_domain_without_a_route_gets_451_4_4_4(io: &str) {
    let peer = Peer::good();
    let engine = Engine::start(&Setup::new(io, format!("known.test {}", peer.host(0))));
    let mut client = engine.client();
    assert!(client.command("MAIL FROM:<a@known.test>").starts_with("250"));
    let refused = client.command("RCPT TO:<b@unknown.test>");
    assert!(refused.starts_with("451 4.4.4"), "{refused}");
    assert!(client.command("RCPT TO:<b@known.test>").starts_with("250"));
    assert!(client.data(b"Subject: x\r\n\r\nx\r\n").starts_with("250"));
    engine.wait_empty();
    assert_eq!(peer.messages().len(), 1);
}

each_io!(a_message_over_the_size_is_refused_at_mail_and_at_its_end);
fn a_message_over_the_size_is_refused_at_mail_and_at_its_end(io: &str) {
    let peer = Peer::good();
    let engine = Engine::start(&setup(io, &peer).listener("max_message_size = \"64KiB\""));
    let mut client = engine.client();
    let refused = client.command("MAIL FROM:<a@a.test> SIZE=65537");
    assert!(refused.starts_with("552 5.3.4"), "{refused}");
    assert!(client.command("MAIL FROM:<a@a.test> SIZE=65536").starts_with("250"));
    assert!(client.command("RCPT TO:<b@b.test>").starts_with("250"));
    let mut large = b"Subject: large\r\n\r\n".to_vec();
    large.extend(b"x23456789 123456789 123456789 12345678\r\n".repeat(2_000));
    let refused = client.data(&large);
    assert!(refused.starts_with("552 5.3.4"), "{refused}");
    let mut client = engine.client();
    client.message("a@a.test", &["b@b.test"], b"Subject: small\r\n\r\nx\r\n");
    engine.wait_empty();
    assert_eq!(peer.messages().len(), 1);
}

each_io!(recipients_over_the_limit_get_452_and_the_others_go);
fn recipients_over_the_limit_get_452_and_the_others_go(io: &str) {
    let peer = Peer::good();
    let engine = Engine::start(&setup(io, &peer).listener("max_recipients = 3"));
    let mut client = engine.client();
    client.envelope("a@a.test", &["1@b.test", "2@b.test", "3@b.test"]);
    for _ in 0..2 {
        let refused = client.command("RCPT TO:<4@b.test>");
        assert!(refused.starts_with("452 4.5.3"), "{refused}");
    }
    assert!(client.data(b"Subject: x\r\n\r\nx\r\n").starts_with("250"));
    engine.wait_empty();
    let messages = peer.messages();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].recipients.len(), 3);
}

each_io!(rset_forgets_the_transaction);
fn rset_forgets_the_transaction(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    let mut client = engine.client();
    client.envelope("wrong@a.test", &["wrong@b.test"]);
    assert!(client.command("RSET").starts_with("250"));
    assert!(client.command("DATA").starts_with("503"));
    client.message("right@a.test", &["right@b.test"], b"Subject: x\r\n\r\nx\r\n");
    engine.wait_empty();
    let messages = peer.messages();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].mail.contains("right@a.test") && messages[0].recipients.len() == 1);
    engine.wait_log("Message aborted MID");
}

each_io!(whole_transactions_come_in_one_write);
fn whole_transactions_come_in_one_write(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    let mut client = engine.client();
    let mut all = String::new();
    for n in 0..3 {
        all.push_str(&format!(
            "MAIL FROM:<a@a.test>\r\nRCPT TO:<{n}@b.test>\r\nDATA\r\n\
             Subject: number {n}\r\n\r\nbody {n}\r\n.\r\n"
        ));
    }
    all.push_str("QUIT\r\n");
    client.raw(all.as_bytes());
    for _ in 0..3 {
        for code in ["250", "250", "354", "250"] {
            let reply = client.reply();
            assert!(reply.starts_with(code), "{reply} instead of {code}");
        }
    }
    assert!(client.reply().starts_with("221"));
    assert_eq!(client.reply(), "");
    engine.wait_empty();
    let mut bodies: Vec<_> = peer.messages().iter().map(|m| without_received(&m.data)).collect();
    bodies.sort();
    for (n, body) in bodies.iter().enumerate() {
        assert_eq!(*body, format!("Subject: number {n}\r\n\r\nbody {n}\r\n").into_bytes());
    }
}

each_io!(bdat_carries_any_bytes);
fn bdat_carries_any_bytes(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    let mut client = engine.client();
    let (first, second) = (b"Subject: chunks\r\n\r\n.leading dot\r\n", b"..\r\n.\r\nlast\r\n");
    client.envelope("a@a.test", &["b@b.test"]);
    client.raw(format!("BDAT {}\r\n", first.len()).as_bytes());
    client.raw(first);
    assert!(client.reply().starts_with("250"));
    client.raw(format!("BDAT {} LAST\r\n", second.len()).as_bytes());
    client.raw(second);
    let reply = client.reply();
    assert!(reply.starts_with("250"), "{reply}");
    client.quit();
    engine.wait_empty();
    let expected: Vec<u8> = [first.as_slice(), second.as_slice()].concat();
    assert_eq!(without_received(&peer.messages()[0].data), expected);
}

each_io!(no_other_end_of_data_makes_a_second_message);
/// SMTP smuggling: line ends that some servers take for the end of data and others do not
/// (CVE-2023-51764 and its kin). Only CR LF . CR LF ends the data.
fn no_other_end_of_data_makes_a_second_message(io: &str) {
    let vectors: [&[u8]; 10] = [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r.\r\n",
        b"\r.\r",
        b"\r\n.\r\r\n",
        b"\r\n.\n\r\n",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
    ];
    let peer = Peer::good();
    let engine = engine(io, &peer);
    for vector in vectors {
        let shown = String::from_utf8_lossy(vector).escape_debug().to_string();
        let mut client = engine.client();
        client.envelope("a@a.test", &["b@b.test"]);
        assert!(client.command("DATA").starts_with("354"));
        let mut data = b"Subject: first\r\n\r\nfirst".to_vec();
        data.extend_from_slice(vector);
        data.extend_from_slice(
            b"MAIL FROM:<smuggled@evil.test>\r\nRCPT TO:<victim@b.test>\r\nDATA\r\n\
              Subject: second\r\n\r\nsmuggled\r\n.\r\n",
        );
        client.raw(&data);
        let reply = client.reply();
        assert!(reply.starts_with("250") || reply.starts_with("550 5.5.2"), "{shown}: {reply}");
        let noop = client.command("NOOP");
        assert_eq!(noop, "250 2.0.0 Ok", "{shown}: a reply too many");
        client.quit();
    }
    engine.wait_empty();
    engine.wait_log_count("Start MID", vectors.len());
    engine.wait_log_count(" close", vectors.len());
    assert!(!engine.log().contains("From: <smuggled"), "{}", engine.log());
    for message in peer.messages() {
        assert!(message.mail.contains("a@a.test"), "{message:?}");
    }
}

each_io!(who_talks_before_the_greeting_is_sent_away);
fn who_talks_before_the_greeting_is_sent_away(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    // The kernel takes the connection and the first bytes while the engine stands still.
    engine.signal("STOP");
    let mut client = Client::over(TcpStream::connect(engine.smtp).unwrap());
    client.raw(b"EHLO early.test\r\n");
    engine.signal("CONT");
    let reply = client.reply();
    assert!(reply.starts_with("554 5.5.0"), "{reply}");
    assert_eq!(client.reply(), "");
}

each_io!(connections_over_a_limit_get_421_4_7_0);
fn connections_over_a_limit_get_421_4_7_0(io: &str) {
    let peer = Peer::good();
    let limits = "max_connections = 3\nmax_connections_per_ip = 2\n\
                  relay_from = [\"127.0.0.0/8\"]";
    let engine = Engine::start(&setup(io, &peer).listener(limits));
    let refused = |ip: [u8; 4]| {
        let mut client = Client::over(connect_from(ip, engine.smtp));
        let greeting = client.reply();
        if greeting.starts_with("220") {
            return Ok(client);
        }
        assert_eq!(client.reply(), "", "closed behind the 421");
        Err(greeting)
    };
    let _first = refused([127, 0, 0, 1]).unwrap_or_else(|said| panic!("{said}"));
    let second = refused([127, 0, 0, 1]).unwrap_or_else(|said| panic!("{said}"));
    let said = refused([127, 0, 0, 1]).err().expect("two of one address");
    assert!(said.starts_with("421 4.7.0"), "{said}");
    let _third = refused([127, 0, 0, 2]).unwrap_or_else(|said| panic!("{said}"));
    let said = refused([127, 0, 0, 3]).err().expect("three altogether");
    assert!(said.starts_with("421 4.7.0"), "{said}");
    second.quit();
    engine.wait("room for one more", || refused([127, 0, 0, 1]).is_ok());
}

each_io!(recipients_of_two_domains_travel_in_two_deliveries);
fn recipients_of_two_domains_travel_in_two_deliveries(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    engine.send("a@a.test", &["x@one.test", "y@two.test", "z@one.test"]);
    engine.wait_log("Message finished");
    let lines = engine.log_lines();
    let starts: Vec<_> = lines.iter().filter(|l| l.starts_with("Delivery start DCID")).collect();
    assert_eq!(starts.len(), 2, "{lines:#?}");
    assert!(starts.iter().any(|line| line.ends_with("to RID [0, 2]")), "{starts:?}");
    assert!(starts.iter().any(|line| line.ends_with("to RID [1]")), "{starts:?}");
    for (rid, to) in ["x@one.test", "y@two.test", "z@one.test"].iter().enumerate() {
        assert!(lines.iter().any(|l| l.ends_with(&format!(" RID {rid} To: <{to}>"))), "{rid}");
    }
    assert_eq!(lines.iter().filter(|l| l.starts_with("Message finished")).count(), 1);
    let mut sizes: Vec<_> = peer.messages().iter().map(|m| m.recipients.len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2]);
}

each_io!(bodies_leave_as_they_came);
fn bodies_leave_as_they_came(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    let all_bytes: Vec<u8> = (1..=255u8).filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let bodies: [Vec<u8>; 4] = [
        b"Subject: dots\r\n\r\n.\r\n..\r\n.leading\r\nend.\r\n".to_vec(),
        [b"Subject: bytes\r\n\r\n".as_slice(), &all_bytes, b"\r\n"].concat(),
        b"Subject: empty\r\n\r\n".to_vec(),
        [b"Subject: long\r\n\r\n".as_slice(), &b"x".repeat(5_000), b"\r\n"].concat(),
    ];
    for body in &bodies {
        let mut client = engine.client();
        let reply = client.command("MAIL FROM:<a@a.test> BODY=8BITMIME");
        assert!(reply.starts_with("250"), "{reply}");
        assert!(client.command("RCPT TO:<b@b.test>").starts_with("250"));
        let reply = client.data(body);
        assert!(reply.starts_with("250"), "{reply}");
        client.quit();
    }
    engine.wait_empty();
    let messages = peer.messages();
    let arrived: Vec<_> = messages.iter().map(|m| without_received(&m.data)).collect();
    for body in &bodies {
        let shown = String::from_utf8_lossy(&body[..20.min(body.len())]);
        assert!(arrived.contains(body), "{shown:?} changed");
    }
    assert!(messages.iter().all(|m| m.mail.contains("BODY=8BITMIME")), "{messages:?}");
}

/// A host that does not offer `missing`; without SIZE it takes ten octets.
fn host_without(missing: &'static str) -> Peer {
    Peer::start(move |peer, _| {
        peer.extensions.retain(|offer| !offer.starts_with(missing));
        if missing == "SIZE" {
            peer.extensions.push("SIZE 10".into());
        }
        peer.serve();
    })
}

each_io!(mail_that_a_host_cannot_carry_goes_to_another_or_bounces_with_its_reason);
fn mail_that_a_host_cannot_carry_goes_to_another_or_bounces_with_its_reason(io: &str) {
    let table = [
        ("SMTPUTF8", "MAIL FROM:<a@a.test> SMTPUTF8", "b\u{fc}@b.test", "5.6.7"),
        ("8BITMIME", "MAIL FROM:<a@a.test> BODY=8BITMIME", "b@b.test", "5.6.3"),
        ("SIZE", "MAIL FROM:<a@a.test> BODY=8BITMIME", "b@b.test", "5.3.4"),
    ];
    let with_another = table.iter().map(|row| (row, true));
    for ((missing, mail, recipient, status), another) in
        table.iter().map(|row| (row, false)).chain(with_another)
    {
        let (poor, reports) = (host_without(missing), Peer::good());
        let rich = Peer::start(|peer, _| {
            peer.extensions.push("SMTPUTF8".into());
            peer.serve();
        });
        let spare = if another { format!(", {}", rich.host(10)) } else { String::new() };
        let routes = format!("a.test {}\nALL {}{spare}\n", reports.host(0), poor.host(0));
        let engine = Engine::start(&Setup::new(io, routes));
        let mut client = engine.client();
        assert!(client.command(mail).starts_with("250"));
        let reply = client.command(&format!("RCPT TO:<{recipient}>"));
        assert!(reply.starts_with("250"), "{reply}");
        let reply = client.data("Subject: eight\r\n\r\ngr\u{fc}n\r\n".as_bytes());
        assert!(reply.starts_with("250"), "{reply}");
        if another {
            engine.wait("the other host's turn", || rich.messages().len() == 1);
            engine.wait_empty();
            assert_eq!((poor.messages().len(), reports.messages().len()), (0, 0), "{missing}");
            continue;
        }
        engine.wait_log(&format!("to RID 0 - {status}"));
        engine.wait_empty();
        assert!(engine.log().contains("Bounced: DCID"), "{}", engine.log());
        assert_eq!(poor.messages().len(), 0);
        let report = reports.messages();
        assert_eq!(report.len(), 1);
        let text = String::from_utf8_lossy(&report[0].data).into_owned();
        assert!(text.contains(&format!("Status: {status}")), "{text}");
    }
}

each_io!(a_client_that_vanishes_in_data_leaves_nothing);
fn a_client_that_vanishes_in_data_leaves_nothing(io: &str) {
    let peer = Peer::good();
    let engine = engine(io, &peer);
    let mut client = engine.client();
    client.envelope("a@a.test", &["b@b.test"]);
    assert!(client.command("DATA").starts_with("354"));
    client.raw(b"Subject: half\r\n\r\nhalf of it\r\n");
    drop(client);
    engine.wait_log("Message aborted MID");
    engine.wait_log(" lost");
    assert_eq!(engine.metric("ringpost_recipients_pending"), 0.0);
    assert_eq!(peer.messages().len(), 0);
}
