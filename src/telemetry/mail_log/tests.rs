//! Each line as exact text, and what a peer may try with it.

use super::*;
use crate::limits::LOG_LINE_OCTETS_MAX;
use crate::mail::{Mono, Stage};
use proptest::prelude::*;

/// Wed Jul  2 09:15:07 2014 UTC.
const NOW: Now = Now { mono: Mono(0), wall: Wall(1_404_292_507_000) };
const HEAD: &str = "Wed Jul  2 09:15:07 2014 Info: ";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text.as_bytes()).unwrap()
}

fn domain(text: &str) -> Domain {
    Domain::parse(text.as_bytes()).unwrap()
}

fn reply(code: u16, lines: &[&str]) -> Reply {
    let enhanced = lines.first().and_then(|line| Enhanced::parse_prefix(line.as_bytes()));
    Reply { code, enhanced, lines: lines.iter().collect() }
}

fn rids(numbers: &[u32]) -> Vec<Rid> {
    numbers.iter().map(|number| Rid(*number)).collect()
}

fn written(detail: LogDetail, event: impl FnOnce(&mut MailLog)) -> String {
    let mut log = MailLog::new(TimeZone::UTC, detail);
    event(&mut log);
    String::from_utf8(log.take()).unwrap()
}

type Event = Box<dyn Fn(&mut MailLog)>;

/// An event, the least detail that shows it, its body.
type Row = (LogDetail, &'static str, Event);

fn row(shown_by: LogDetail, body: &'static str, event: impl Fn(&mut MailLog) + 'static) -> Row {
    (shown_by, body, Box::new(event))
}

fn connection_error(log: &mut MailLog, cause: ConnectionCause, local: Option<IpAddr>) {
    let stage = if local.is_some() { Stage::Greeting } else { Stage::Connect };
    let failure = ConnectionFailure { stage, cause };
    let peer = "192.168.1.10:25".parse().unwrap();
    log.connection_error(NOW, Dcid(299), &domain("example.com"), peer, local, &failure);
}

fn injection_rows() -> Vec<Row> {
    use LogDetail::{Full, Problems};
    vec![
        row(
            Full,
            "New SMTP ICID 5 interface Management (10.1.1.1) address 10.1.1.209 reverse dns host \
             unknown verified no",
            |log| log.new_smtp_icid(NOW, Icid(5), "Management", ip("10.1.1.1"), ip("10.1.1.209")),
        ),
        row(
            Full,
            "ICID 5 RELAY SG RELAYLIST match 10.0.0.0/8 SBRS not enabled country not enabled",
            |log| log.icid_relay(NOW, Icid(5), "RELAYLIST", "10.0.0.0/8"),
        ),
        row(
            Problems,
            "ICID 5 REJECT SG None match ALL SBRS not enabled country not enabled",
            |log| log.icid_reject(NOW, Icid(5), "None", "ALL"),
        ),
        row(Full, "ICID 5 TLS success protocol TLSv1.3 cipher TLS_AES_128_GCM_SHA256", |log| {
            log.icid_tls_success(NOW, Icid(5), "TLSv1.3", "TLS_AES_128_GCM_SHA256");
        }),
        row(Problems, "ICID 5 TLS failed: [Errno 104] Connection reset by peer", |log| {
            log.icid_tls_failed(NOW, Icid(5), "[Errno 104] Connection reset by peer");
        }),
        row(Full, "Start MID 6 ICID 5", |log| log.start_mid(NOW, Mid(6), Icid(5))),
        row(Full, "MID 6 ICID 5 From: <a@example.org>", |log| {
            log.from(NOW, Mid(6), Icid(5), Some(&mailbox("a@example.org")));
        }),
        row(Full, "MID 6 ICID 0 From: <>", |log| log.from(NOW, Mid(6), Icid(0), None)),
        row(Full, "MID 6 ICID 5 RID 0 To: <c@example.net>", |log| {
            log.to(NOW, Mid(6), Icid(5), Rid(0), &mailbox("c@example.net"));
        }),
        row(Full, "MID 6 Message-ID '<1.2@example.org>'", |log| {
            log.message_id(NOW, Mid(6), b"<1.2@example.org>");
        }),
        row(Full, "MID 6 Subject \"Testing\"", |log| log.subject(NOW, Mid(6), b"Testing")),
        row(Full, "MID 6 ready 100 bytes from <a@example.org>", |log| {
            log.ready(NOW, Mid(6), 100, Some(&mailbox("a@example.org")));
        }),
        row(Full, "MID 6 queued for delivery", |log| log.queued(NOW, Mid(6))),
        row(Problems, "Message aborted MID 6 Receiving aborted", |log| log.aborted(NOW, Mid(6))),
        row(Full, "ICID 5 lost", |log| log.icid_lost(NOW, Icid(5))),
        row(Full, "ICID 5 close", |log| log.icid_close(NOW, Icid(5))),
    ]
}

fn delivery_rows() -> Vec<Row> {
    use LogDetail::{Delivery, Problems};
    vec![
        row(
            Delivery,
            "DCID 30 TLS success protocol TLSv1.2 cipher ECDHE-RSA-AES256-SHA384",
            |log| {
                log.dcid_tls_success(NOW, Dcid(30), "TLSv1.2", "ECDHE-RSA-AES256-SHA384");
            },
        ),
        row(
            Problems,
            "DCID 8 IP 204.15.82.140 TLS was required but could not be successfully negotiated",
            |log| log.dcid_tls_required(NOW, Dcid(8), ip("204.15.82.140")),
        ),
        row(Problems, "DCID 8 TLS failed: STARTTLS unexpected response", |log| {
            log.dcid_tls_failed(NOW, Dcid(8), "STARTTLS unexpected response");
        }),
        row(Delivery, "Delivery start DCID 8 MID 6 to RID [0, 1]", |log| {
            log.delivery_start(NOW, Dcid(8), Mid(6), &rids(&[0, 1]));
        }),
        row(Delivery, "Message done DCID 8 MID 6 to RID [0]", |log| {
            log.message_done(NOW, Dcid(8), Mid(6), &rids(&[0]));
        }),
        row(Delivery, "MID 9 RID [0] Response '2.0.0 Ok: queued as 3jjSKc6HnKz4GTHJ'", |log| {
            let reply = reply(250, &["2.0.0 Ok: queued as 3jjSKc6HnKz4GTHJ"]);
            log.response(NOW, Mid(9), &rids(&[0]), &reply);
        }),
        row(Delivery, "MID 9 RID [0, 2] Response '2.0.0 Ok\\n2.0.0 thanks'", |log| {
            let reply = reply(250, &["2.0.0 Ok", "2.0.0 thanks"]);
            log.response(NOW, Mid(9), &rids(&[0, 2]), &reply);
        }),
        row(Delivery, "Message finished MID 6 done", |log| log.message_finished(NOW, Mid(6))),
        row(Delivery, "DCID 8 close", |log| log.dcid_close(NOW, Dcid(8))),
        row(Delivery, "engine started", |log| log.info(NOW, "engine started")),
    ]
}

fn failure_rows() -> Vec<Row> {
    use LogDetail::Problems;
    vec![
        row(
            Problems,
            "Delayed: DCID 299 MID 4 to RID 0 - 4.3.1 - Mail system full ('452', ['4.3.1 \
             Insufficient system resources'])",
            |log| {
                let failure =
                    Failure::from_reply(reply(452, &["4.3.1 Insufficient system resources"]));
                log.delayed(NOW, Dcid(299), Mid(4), Rid(0), &failure);
            },
        ),
        row(
            Problems,
            "Delayed: DCID 0 MID 4 to RID 7 - 4.4.1 - No answer from host ('000', ['timeout'])",
            |log| {
                let failure = Failure::local(Enhanced::new(4, 4, 1), "timeout");
                log.delayed(NOW, Dcid(0), Mid(4), Rid(7), &failure);
            },
        ),
        row(
            Problems,
            "Bounced: DCID 3 MID 4 to RID 0 - 5.1.0 - Unknown address error ('550', \
             ['<g@y>... Relaying denied', \"it's final\", 'both \\' and \"'])",
            |log| {
                let lines = ["<g@y>... Relaying denied", "it's final", "both ' and \""];
                let failure = Failure::from_reply(reply(550, &lines));
                log.bounced(NOW, Dcid(3), Mid(4), Rid(0), &failure);
            },
        ),
        row(
            Problems,
            "Bounced: DCID 0 MID 4 to RID 0 - 5.4.7 - Delivery expired (message too old) ('000', \
             [])",
            |log| {
                let failure = Failure::local(Enhanced::new(5, 4, 7), "");
                log.bounced(NOW, Dcid(0), Mid(4), Rid(0), &failure);
            },
        ),
        row(
            Problems,
            "MID 154 to RID [0, 3] pending till Wed Jul  2 10:15:07 2014 [default]",
            |log| {
                let till = NOW.plus_ms(3_600_000).wall;
                log.pending_till(NOW, Mid(154), &rids(&[0, 3]), till, "default");
            },
        ),
        row(Problems, "MID 515 was generated for bounce of MID 511", |log| {
            log.generated_for_bounce(NOW, Mid(515), Mid(511));
        }),
        row(Problems, "Possible Delivery: DCID 8 MID 6 to RID [0, 1]", |log| {
            log.possible_delivery(NOW, Dcid(8), Mid(6), &rids(&[0, 1]));
        }),
        row(Problems, "Deleted: MID 3 to [0]", |log| log.deleted(NOW, Mid(3), &rids(&[0]))),
        row(Problems, "DNS Temporary Failure structure.com MX - ServFail", |log| {
            log.dns_temporary_failure(NOW, &domain("structure.com"), "MX", "ServFail");
        }),
    ]
}

fn connection_rows() -> Vec<Row> {
    use LogDetail::{Delivery, Problems};
    vec![
        row(
            Delivery,
            "New SMTP DCID 299 interface 192.168.1.1 address 192.168.1.10 port 25",
            |log| {
                let peer = "192.168.1.10:25".parse().unwrap();
                log.new_smtp_dcid(NOW, Dcid(299), ip("192.168.1.1"), peer);
            },
        ),
        row(
            Problems,
            "Connection Error: DCID 299 domain: example.com IP: 192.168.1.10 port: 25 details: \
             431-'example.com ESMTP\\nMail system full' interface: 192.168.1.1 reason: unexpected \
             SMTP response",
            |log| {
                let reply = reply(431, &["example.com ESMTP", "Mail system full"]);
                connection_error(log, ConnectionCause::Reply(reply), Some(ip("192.168.1.1")));
            },
        ),
        row(
            Delivery,
            "New SMTP DCID 300 interface 192.168.1.1 address 192.168.1.20 port 25",
            |log| {
                let peer = "192.168.1.20:25".parse().unwrap();
                log.new_smtp_dcid(NOW, Dcid(300), ip("192.168.1.1"), peer);
            },
        ),
        row(
            Problems,
            "Connection Error: DCID 299 domain: example.com IP: 192.168.1.10 port: 25 details: \
             Connection refused (os error 111) interface: 0.0.0.0 reason: network error",
            |log| {
                let text = "Connection refused (os error 111)".into();
                connection_error(log, ConnectionCause::Network(text), None);
            },
        ),
        row(
            Problems,
            "Connection Error: DCID 299 domain: example.com IP: 192.168.1.10 port: 25 details: \
             timeout interface: 0.0.0.0 reason: connection timed out",
            |log| connection_error(log, ConnectionCause::Timeout, None),
        ),
        row(
            Problems,
            "Connection Error: DCID 299 domain: example.com IP: 192.168.1.10 port: 25 details: \
             timeout interface: 192.168.1.1 reason: unexpected SMTP response",
            |log| connection_error(log, ConnectionCause::Timeout, Some(ip("192.168.1.1"))),
        ),
        row(
            Problems,
            "Connection Error: DCID 299 domain: example.com IP: 192.168.1.10 port: 25 details: \
             not a reply interface: 0.0.0.0 reason: unexpected SMTP response",
            |log| connection_error(log, ConnectionCause::Garbage("not a reply".into()), None),
        ),
    ]
}

#[test]
fn each_event_is_one_line_of_the_grammar_and_shown_by_its_detail() {
    let rows = [injection_rows(), delivery_rows(), failure_rows(), connection_rows()];
    for (shown_by, body, event) in rows.iter().flatten() {
        for detail in [LogDetail::Problems, LogDetail::Delivery, LogDetail::Full] {
            let expected =
                if detail >= *shown_by { format!("{HEAD}{body}\n") } else { String::new() };
            assert_eq!(written(detail, event), expected, "{detail:?}");
        }
    }
}

#[test]
fn the_file_begins_with_its_three_lines() {
    let mut log = MailLog::new(TimeZone::fixed(jiff::tz::offset(-6)), LogDetail::Problems);
    log.begin_logfile(NOW, "ringpost 0.1.0");
    let head = "Wed Jul  2 03:15:07 2014 Info: ";
    let expected = format!(
        "{head}Begin Logfile\n{head}Version: ringpost 0.1.0\n{head}Time offset from UTC: -21600 \
         seconds\n"
    );
    assert_eq!(String::from_utf8(log.take()).unwrap(), expected);
}

#[test]
fn warnings_are_always_shown() {
    let lines = written(LogDetail::Problems, |log| {
        log.warning(NOW, "log disk full\nlooks like a second line");
        log.critical(NOW, "queue stopped");
    });
    assert_eq!(
        lines,
        "Wed Jul  2 09:15:07 2014 Warning: log disk full\\nlooks like a second line\n\
         Wed Jul  2 09:15:07 2014 Critical: queue stopped\n"
    );
}

/// What a peer may send to make a line, to paint on a terminal, or to reverse what is read.
const HOSTILE: &str = "x\r\nWed Jul  2 09:15:07 2014 Info: MID 1 queued\n\x1b[2J\0\u{85}\u{9b}31m\
                       \u{202e}\u{2066}\u{2028}\u{feff}\x7f";

/// Does a line hold nothing but what one may print?
fn is_printable(line: &str) -> bool {
    line.chars().all(|c| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            && !matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
    })
}

fn hostile_events(log: &mut MailLog, text: &[u8]) -> usize {
    let lines = [text, text].iter().collect();
    let reply = Reply { code: 452, enhanced: None, lines };
    let words = String::from_utf8_lossy(text);
    let failure = Failure::from_reply(reply.clone());
    log.message_id(NOW, Mid(1), text);
    log.subject(NOW, Mid(1), text);
    log.response(NOW, Mid(1), &rids(&[0]), &reply);
    log.delayed(NOW, Dcid(1), Mid(1), Rid(0), &failure);
    log.bounced(NOW, Dcid(1), Mid(1), Rid(0), &failure);
    connection_error(log, ConnectionCause::Reply(reply), None);
    connection_error(log, ConnectionCause::Garbage(words.as_ref().into()), None);
    connection_error(log, ConnectionCause::Network(words.as_ref().into()), None);
    log.icid_tls_failed(NOW, Icid(1), &words);
    log.dns_temporary_failure(NOW, &domain("example.com"), "MX", &words);
    log.warning(NOW, &words);
    11
}

fn assert_harmless(text: &[u8]) {
    let mut log = MailLog::new(TimeZone::UTC, LogDetail::Full);
    let events = hostile_events(&mut log, text);
    let lines = String::from_utf8(log.take()).unwrap();
    assert_eq!(lines.matches('\n').count(), events);
    for line in lines.lines() {
        assert!(line.starts_with("Wed Jul  2 09:15:07 2014 "), "{line:?}");
        assert!(is_printable(line), "{line:?}");
        assert!(line.len() < LOG_LINE_OCTETS_MAX);
    }
}

#[test]
fn a_peer_cannot_make_a_line() {
    assert_harmless(HOSTILE.as_bytes());
    assert_harmless(b"\xff\xfe\xc3");
    let lines = written(LogDetail::Full, |log| log.subject(NOW, Mid(1), b"a\r\nb\x1b\xff"));
    assert_eq!(lines, format!("{HEAD}MID 1 Subject \"a\\r\\nb\\x1b\\xff\"\n"));
}

#[test]
fn a_long_reply_leaves_room_for_what_stands_behind_it() {
    for filler in ["x", "'", "\"'", "\n", "\u{e9}", "\u{202e}"] {
        assert_harmless(filler.repeat(70_000).as_bytes());
    }
    let many = Reply { code: 431, enhanced: None, lines: vec![[b'y'; 500]; 128].iter().collect() };
    let lines = written(LogDetail::Full, |log| {
        connection_error(log, ConnectionCause::Reply(many.clone()), None);
        log.delayed(NOW, Dcid(1), Mid(1), Rid(0), &Failure::from_reply(many.clone()));
    });
    let mut lines = lines.lines();
    assert!(
        lines.next().unwrap().ends_with("' interface: 0.0.0.0 reason: unexpected SMTP response")
    );
    assert!(lines.next().unwrap().ends_with("'])"));
    let empty = Reply { code: 431, enhanced: None, lines: [""; 5000].iter().collect() };
    let lines = written(LogDetail::Full, |log| {
        log.delayed(NOW, Dcid(1), Mid(1), Rid(0), &Failure::from_reply(empty.clone()));
    });
    assert!(lines.len() <= LOG_LINE_OCTETS_MAX && lines.ends_with("])\n"));
}

#[test]
fn many_recipients_go_on_in_further_lines() {
    let all: Vec<Rid> = (0..50_000).map(|n| Rid(u32::MAX - n)).collect();
    let reply = reply(250, &["2.0.0 ok"]);
    let lines = written(LogDetail::Full, |log| log.response(NOW, Mid(u64::MAX), &all, &reply));
    assert!(lines.lines().all(|line| line.len() < LOG_LINE_OCTETS_MAX));
    assert!(lines.lines().all(|line| line.ends_with("] Response '2.0.0 ok'")));
    let listed: usize = lines.lines().map(|line| line.split(", ").count()).sum();
    assert_eq!(listed, all.len());
    assert_eq!(written(LogDetail::Full, |log| log.deleted(NOW, Mid(1), &[])), "");
}

proptest! {
    #[test]
    fn no_bytes_make_a_line(text in proptest::collection::vec(any::<u8>(), 0..600)) {
        assert_harmless(&text);
    }
}
