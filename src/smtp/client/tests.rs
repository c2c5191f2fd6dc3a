//! The session against a scripted peer in memory, with virtual time.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits;
use crate::mail::{
    ConnectionCause, Enhanced, Failure, MessageFacts, Mono, Notify, Now, Reply, Stage, time::millis,
};

const EVERYTHING: &str = "250-host\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250-8BITMIME\r\n\
    250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250 DSN\r\n";
const NOTHING: &str = "250 host\r\n";

/// A session and what came out of it.
struct Pair {
    session: Session,
    now: Now,
    sent: Vec<u8>,
    writes: usize,
    events: Vec<Event>,
    closed: bool,
    /// Writes complete at once.
    writable: bool,
}

impl Pair {
    fn new(messages_max: u32) -> Self {
        let now = Now::default().plus_ms(1_000);
        let settings = ClientSettings {
            ehlo_name: "me.example".into(),
            timeouts: Timeouts::default(),
            messages_max,
            train: TrainPolicy::Off,
            plain: false,
        };
        let session = Session::new(settings, now);
        let (sent, events) = (Vec::new(), Vec::new());
        Self { session, now, sent, writes: 0, events, closed: false, writable: true }
    }

    /// A session whose host gave this reply to EHLO.
    fn ready(ehlo: &str) -> Self {
        let mut pair = Self::new(0);
        pair.say("220 host\r\n");
        assert_eq!(pair.take_sent(), "EHLO me.example\r\n");
        pair.say(ehlo);
        assert!(matches!(pair.events.pop(), Some(Event::Ready { .. })));
        pair
    }

    fn pump(&mut self) {
        loop {
            match self.session.poll_output(self.now) {
                Output::Send(chunks) => {
                    assert!(!self.closed);
                    chunks.iter().for_each(|chunk| self.sent.extend_from_slice(chunk.as_slice()));
                    self.writes += 1;
                    if self.writable {
                        self.session.handle_sent(self.now);
                    }
                }
                Output::Event(event) => self.events.push(event),
                Output::Close => {
                    assert!(!self.closed, "closed twice");
                    self.closed = true;
                }
                Output::Idle => return,
            }
        }
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.session.handle_input(text.as_ref(), self.now);
        self.pump();
    }

    fn submit(&mut self, transaction: Transaction) {
        self.session.submit(transaction);
        self.pump();
    }

    fn written(&mut self) {
        self.session.handle_sent(self.now);
        self.pump();
    }

    fn hang_up(&mut self) {
        self.session.handle_closed(None);
        self.pump();
    }

    /// Lets `ms` pass; the deadline fires when it is due.
    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.session.handle_deadline(self.now);
        self.pump();
    }

    fn take_sent(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.sent)).unwrap()
    }

    fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The outcomes of the one transaction that is over.
    fn outcomes(&mut self) -> Vec<RecipientOutcome> {
        let is_done = |event: &Event| matches!(event, Event::Done { .. });
        let at = self.events.iter().position(is_done).expect("no transaction is over");
        let Event::Done { outcomes, .. } = self.events.remove(at) else { unreachable!() };
        assert!(!self.events.iter().any(is_done), "two results");
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn short_outcomes(&mut self) -> Vec<String> {
        self.outcomes().iter().map(short).collect()
    }

    /// How the session ended: `Stage cause idle`, in short.
    fn end(&mut self) -> String {
        assert!(self.closed, "still open");
        assert_eq!(self.session.deadline(), None);
        assert_eq!(self.session.capacity(), 0);
        let events = self.take_events();
        assert_eq!(events.len(), 1, "{events:?}");
        match &events[0] {
            Event::Failed(failure) => format!("failed {}", short_failure(failure)),
            Event::Ended { failure, idle } => {
                format!("{} {}", if *idle { "idle" } else { "ended" }, short_failure(failure))
            }
            Event::Retired => "retired".into(),
            Event::Ready { .. } | Event::Done { .. } => panic!("{events:?}"),
        }
    }
}

fn short_failure(failure: &ConnectionFailure) -> String {
    let cause = match &failure.cause {
        ConnectionCause::Reply(reply) => reply.code.to_string(),
        ConnectionCause::Garbage(_) => "garbage".into(),
        ConnectionCause::Network(_) => "network".into(),
        ConnectionCause::Timeout => "timeout".into(),
    };
    format!("{:?} {cause}", failure.stage)
}

fn short(outcome: &RecipientOutcome) -> String {
    match outcome {
        RecipientOutcome::Accepted(accepted) => format!("accepted {}", accepted.reply().code),
        RecipientOutcome::Refused { stage, failure } => format!("{stage:?} {}", failure.code()),
        RecipientOutcome::TooMany { taken, failure } => format!("full {taken} {}", failure.code()),
        RecipientOutcome::Unanswered { stage, .. } => format!("broken {stage:?}"),
        RecipientOutcome::Uncertain { .. } => "uncertain".into(),
        RecipientOutcome::Unfit { failure } => format!("unfit {}", failure.status),
        RecipientOutcome::Untried => "untried".into(),
    }
}

fn recipient(rid: u32, address: &str) -> Recipient {
    let address = Mailbox::parse(address.as_bytes()).unwrap();
    Recipient { rid: Rid(rid), address, notify: Notify::default(), orcpt: None }
}

fn mail(recipients: usize) -> Transaction {
    mail_with(recipients, b"Subject: x\r\n\r\nhello\r\n", MessageFacts::default())
}

fn mail_with(recipients: usize, bytes: &[u8], facts: MessageFacts) -> Transaction {
    let recipients = (0..u32::try_from(recipients).unwrap())
        .map(|rid| recipient(rid, &format!("r{rid}@example.com")))
        .collect();
    Transaction {
        key: 7,
        sender: Some(Mailbox::parse(b"s@example.org").unwrap()),
        body_kind: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients,
        body: Arc::new(Body { bytes: bytes.to_vec(), facts }),
        strict: false,
    }
}

#[test]
fn with_pipelining_a_message_takes_two_writes() {
    let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
    let writes = pair.writes;
    pair.submit(mail(2));
    assert_eq!(
        pair.take_sent(),
        "MAIL FROM:<s@example.org>\r\nRCPT TO:<r0@example.com>\r\nRCPT TO:<r1@example.com>\r\n\
         DATA\r\n"
    );
    assert_eq!(pair.session.capacity(), 0);
    pair.say("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(pair.take_sent(), "Subject: x\r\n\r\nhello\r\n.\r\n");
    assert_eq!(pair.writes, writes + 2);
    pair.say("250 2.0.0 queued as 1\r\n");
    assert_eq!(pair.short_outcomes(), ["accepted 250", "accepted 250"]);
    assert_eq!((pair.session.capacity(), pair.take_sent().as_str()), (1, ""));
}

#[test]
fn without_pipelining_or_when_strict_each_command_waits() {
    for (ehlo, strict) in [(NOTHING, false), ("250-host\r\n250 PIPELINING\r\n", true)] {
        let mut pair = Pair::ready(ehlo);
        pair.submit(Transaction { strict, ..mail(2) });
        for (command, reply) in [
            ("MAIL FROM:<s@example.org>\r\n", "250 ok\r\n"),
            ("RCPT TO:<r0@example.com>\r\n", "550 no\r\n"),
            ("RCPT TO:<r1@example.com>\r\n", "251 ok\r\n"),
            ("DATA\r\n", "354 go\r\n"),
            ("Subject: x\r\n\r\nhello\r\n.\r\n", "299 taken\r\n"),
        ] {
            assert_eq!(pair.take_sent(), command);
            pair.say(reply);
        }
        assert_eq!(pair.short_outcomes(), ["Rcpt 550", "accepted 299"]);
        assert_eq!(pair.session.capacity(), 1);
    }
}

#[test]
fn a_strict_transaction_stops_at_the_first_useless_command() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(2));
    pair.say("450 no\r\n");
    assert_eq!(pair.take_sent(), "MAIL FROM:<s@example.org>\r\n");
    assert_eq!(pair.short_outcomes(), ["Mail 450", "Mail 450"]);
    assert_eq!(pair.session.capacity(), 1);
    pair.submit(mail(1));
    pair.say("250 ok\r\n");
    pair.take_sent();
    pair.say("550 no\r\n");
    assert_eq!(pair.short_outcomes(), ["Rcpt 550"]);
    // MAIL was taken, so the transaction must be cleared before the next one.
    assert_eq!((pair.take_sent().as_str(), pair.session.capacity()), ("RSET\r\n", 0));
    pair.say("250 ok\r\n");
    assert_eq!(pair.session.capacity(), 1);
}

#[test]
fn helo_only_where_ehlo_is_not_known() {
    for code in [500, 502, 504, 550] {
        let mut pair = Pair::new(0);
        pair.say("220 host\r\n");
        pair.take_sent();
        pair.say(format!("{code} no\r\n"));
        assert_eq!(pair.take_sent(), "HELO me.example\r\n");
        pair.say("250-host\r\n250 PIPELINING\r\n");
        assert_eq!(pair.take_events(), [Event::Ready { extensions: Extensions::default() }]);
    }
    for (code, quits) in [(421, false), (451, true), (501, true), (554, true)] {
        let mut pair = Pair::new(0);
        pair.say("220 host\r\n");
        pair.take_sent();
        pair.say(format!("{code} no\r\n"));
        assert_eq!(pair.take_sent(), if quits { "QUIT\r\n" } else { "" });
        // The result does not wait for the end of QUIT.
        assert_eq!((pair.events.len(), pair.closed), (1, !quits));
        pair.hang_up();
        assert_eq!(pair.end(), format!("failed Ehlo {code}"));
    }
    let mut pair = Pair::new(0);
    pair.say("220 host\r\n");
    pair.say("502 no\r\n");
    pair.say("502 no\r\n");
    pair.hang_up();
    assert_eq!(pair.end(), "failed Ehlo 502");
}

#[test]
fn a_greeting_that_is_not_welcome_fails_the_connection() {
    for (greeting, sent, end) in [
        ("421 busy\r\n", "", "failed Greeting 421"),
        ("450 busy\r\n", "QUIT\r\n", "failed Greeting 450"),
        ("554 no\r\n", "QUIT\r\n", "failed Greeting 554"),
        ("354 go\r\n", "", "failed Greeting garbage"),
        ("SSH-2.0-x\r\n", "", "failed Greeting garbage"),
        ("220 host\n", "", "failed Greeting garbage"),
        ("220 host\r\n250 early\r\n", "", "failed Ehlo garbage"),
    ] {
        let mut pair = Pair::new(0);
        pair.say(greeting);
        assert_eq!(pair.take_sent(), sent, "{greeting}");
        pair.hang_up();
        assert_eq!(pair.end(), end, "{greeting}");
    }
}

const BODY: &str = "Subject: x\r\n\r\nhello\r\n.\r\n";

/// What is said to MAIL, RCPT, RCPT, DATA in one segment; what is said to the body; the outcomes
/// of the two recipients; what was sent behind DATA; how the session stands then.
const VERDICTS: &str = "
    250 250 250 354     | 250      | accepted 250, accepted 250 | body     | open
    250 250 250 354     | 554      | Dot 554, Dot 554           | body     | open
    250 250 550 354     | 451      | Dot 451, Rcpt 550          | body     | open
    299 299 599 354     | 458      | Dot 458, Rcpt 599          | body     | open
    250 550 450 354     | 250      | Rcpt 550, Rcpt 450         | dot RSET | open
    250 550 450 354     | 554      | Rcpt 550, Rcpt 450         | dot RSET | open
    250 550 450 503     |          | Rcpt 550, Rcpt 450         | RSET     | open
    250 250 450 554     |          | Data 554, Rcpt 450         | RSET     | open
    450 503 503 503     |          | Mail 450, Mail 450         |          | open
    550 250 250 354     | 250      | Mail 550, Mail 550         | dot RSET | open
    250 250 452 354     | 250      | accepted 250, full 1 452   | body     | open
    250 250 552 354     | 250      | accepted 250, full 1 552   | body     | open
    250 452 250 354     | 250      | Rcpt 452, accepted 250     | body     | open
    250 552 450 503     |          | Rcpt 552, Rcpt 450         | RSET     | open
    421                 |          | Mail 421, Mail 421         |          | ended Mail 421
    250 550 421         |          | Rcpt 550, Rcpt 421         |          | ended Rcpt 421
    250 250 421         |          | Rcpt 421, Rcpt 421         |          | ended Rcpt 421
    250 550 250 421     |          | Rcpt 550, Data 421         |          | ended Data 421
    250 250 550 354     | 421      | Dot 421, Rcpt 550          | body     | ended Dot 421
    250 250 550 354 421 |          | Body 421, Rcpt 550         |          | ended Body 421
    354                 |          | broken Mail, broken Mail   |          | ended Mail garbage
    250 550 354         |          | Rcpt 550, broken Rcpt      |          | ended Rcpt garbage
    250 250 250 250     |          | broken Data, broken Data   |          | ended Data garbage
    250 250 250 350     |          | broken Data, broken Data   |          | ended Data garbage
    250 250 550 354     | 354      | uncertain, Rcpt 550        | body     | ended Dot garbage
    250 250 hello       |          | broken Rcpt, broken Rcpt   |          | ended Rcpt garbage
    250 250 250- 550    |          | broken Rcpt, broken Rcpt   |          | ended Rcpt garbage
    250 250 250 354     | ok       | uncertain, uncertain       | body     | ended Dot garbage
    250 250 250 354     | 250- 550 | uncertain, uncertain       | body     | ended Dot garbage
    250 250 250 354     | 199      | uncertain, uncertain       | body     | ended Dot garbage
    250 250 250 250 354 |          | broken Data, broken Data   |          | ended Data garbage
    250 250 250 354 250 |          | broken Body, broken Body   |          | ended Body garbage
    250 250 250 354 552 |          | Body 552, Body 552         |          | retired
    250 250 250 354     | 250 250  | accepted 250, accepted 250 | body     | idle Mail garbage
    250 250 250 354     | 554 250  | Dot 554, Dot 554           | body     | idle Mail garbage
    250 250 250 554 250 |          | Data 554, Data 554         |          | idle Mail garbage
";

/// The lines that a cell of replies stands for.
fn lines(cell: &str) -> String {
    cell.split_whitespace()
        .map(
            |word| {
                if word.ends_with('-') { format!("{word}x\r\n") } else { format!("{word} x\r\n") }
            },
        )
        .collect()
}

#[test]
fn every_reply_to_a_pipelined_transaction_has_its_verdict() {
    for row in VERDICTS.trim().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
        pair.submit(mail(2));
        pair.take_sent();
        pair.say(lines(cells[0]));
        pair.say(lines(cells[1]));
        assert_eq!(pair.short_outcomes().join(", "), cells[2], "{row}");
        let sent = cells[3].replace("body", BODY).replace("dot ", ".\r\n");
        assert_eq!(pair.take_sent(), sent.replace("RSET", "RSET\r\n"), "{row}");
        if cells[4] == "open" {
            if cells[3].ends_with("RSET") {
                assert_eq!(pair.session.capacity(), 0, "{row}");
                pair.say("250 ok\r\n");
            }
            assert_eq!((pair.session.capacity(), pair.closed), (1, false), "{row}");
            assert_eq!(pair.take_events(), [], "{row}");
        } else {
            assert_eq!(pair.end(), cells[4], "{row}");
        }
    }
}

#[test]
fn strict_transactions_get_the_same_verdicts() {
    // The host is full after one: the rest is not asked for.
    for (last, first) in [("250 e\r\n", "accepted 250"), ("?\r\n", "uncertain")] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(4));
        for reply in ["250 a\r\n", "250 b\r\n", "452 c\r\n", "354 d\r\n", last] {
            pair.say(reply);
        }
        assert_eq!(pair.short_outcomes(), [first, "full 1 452", "untried", "untried"]);
        assert_eq!(pair.session.capacity(), usize::from(last.starts_with("250")));
    }
}

#[test]
fn a_break_is_uncertain_from_the_final_dot_on_and_not_before() {
    type Step = fn(&mut Pair);
    let drop_it: Step = Pair::hang_up;
    let silence: Step = |pair| {
        for _ in 0..20 {
            pair.pass(60_000);
        }
    };
    for (broken, cause) in [(drop_it, "network"), (silence, "timeout")] {
        let replies = ["250 a\r\n", "550 b\r\n", "250 c\r\n", "354 d\r\n"];
        for (answered, (outcomes, stage)) in [
            (["broken Mail", "broken Mail"], "Mail"),
            (["broken Rcpt", "broken Rcpt"], "Rcpt"),
            (["Rcpt 550", "broken Rcpt"], "Rcpt"),
            (["Rcpt 550", "broken Data"], "Data"),
            (["Rcpt 550", "uncertain"], "Dot"),
        ]
        .into_iter()
        .enumerate()
        {
            for (ehlo, last) in [("250-host\r\n250 PIPELINING\r\n", ""), (NOTHING, "25")] {
                let mut pair = Pair::ready(ehlo);
                pair.submit(mail(2));
                replies[..answered].iter().for_each(|reply| pair.say(reply));
                pair.say(last); // Half a reply is none.
                broken(&mut pair);
                assert_eq!(pair.short_outcomes(), outcomes, "{cause} after {answered}");
                assert_eq!(pair.end(), format!("ended {stage} {cause}"));
            }
        }
    }
    // A reply that is whole counts, whatever follows it.
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    ["250 a\r\n", "250 b\r\n", "354 c\r\n"].iter().for_each(|reply| pair.say(reply));
    pair.session.handle_input(b"250 d\r\n", pair.now);
    pair.session.handle_closed(Some("reset".into()));
    pair.pump();
    assert_eq!(pair.short_outcomes(), ["accepted 250"]);
    assert_eq!(pair.end(), "idle Mail network");
}

#[test]
fn the_dot_counts_from_the_moment_it_is_handed_out() {
    let body = vec![b'x'; 2 * limits::BODY_PIECE_OCTETS];
    for (pieces, outcome) in [(1, "broken Body"), (2, "uncertain")] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail_with(1, &body, MessageFacts::default()));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.writable = false;
        pair.say("354 c\r\n");
        (1..pieces).for_each(|_| pair.written());
        pair.hang_up(); // The write was not complete.
        assert_eq!(pair.short_outcomes(), [outcome]);
    }
}

#[test]
fn an_early_refusal_stops_the_body_at_the_next_piece() {
    let body = vec![b'x'; 5 * limits::BODY_PIECE_OCTETS];
    for (reply, outcome, end) in [
        ("552 too big\r\n", "Body 552", "retired"),
        ("452 full\r\n", "Body 452", "retired"),
        ("421 away\r\n", "Body 421", "ended Body 421"),
        ("250 ok\r\n", "broken Body", "ended Body garbage"),
        ("354 go\r\n", "broken Body", "ended Body garbage"),
        ("x\r\n", "broken Body", "ended Body garbage"),
    ] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail_with(1, &body, MessageFacts::default()));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.take_sent();
        pair.writable = false;
        pair.say("354 c\r\n");
        pair.written();
        pair.say(reply);
        pair.written();
        assert_eq!(pair.sent.len(), 2 * limits::BODY_PIECE_OCTETS, "{reply}");
        assert_eq!(pair.short_outcomes(), [outcome], "{reply}");
        assert_eq!(pair.end(), end, "{reply}");
    }
    // The first octet of a reply decides whether it came before the dot.
    for (rest, outcome, end) in [
        ("0 ok\r\n", "uncertain", "ended Dot garbage"),
        ("1 ok\r\n", "uncertain", "ended Dot garbage"),
    ] {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.say("354 c\r\n25");
        assert!(pair.take_sent().ends_with(BODY));
        pair.say(rest);
        assert_eq!((pair.short_outcomes(), pair.end().as_str()), (vec![outcome.to_owned()], end));
    }
    // While the write with the dot is still out, a refusal is early too, and a 2yz is not.
    for (reply, outcome, open) in
        [("552 no\r\n", "Dot 552", false), ("250 ok\r\n", "accepted 250", true)]
    {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        pair.say("250 a\r\n");
        pair.say("250 b\r\n");
        pair.writable = false;
        pair.say("354 c\r\n");
        pair.say(reply);
        assert_eq!((pair.short_outcomes(), pair.closed), (vec![outcome.to_owned()], !open));
    }
}

#[test]
fn each_deadline_is_for_the_whole_reply() {
    let timeouts = Timeouts::default();
    // What is said before the silence, and the deadline that then runs.
    let transaction = ["250 a\r\n", "250 b\r\n", "354 c\r\n"];
    let stages: [(usize, Duration); 4] =
        [(0, timeouts.mail), (1, timeouts.rcpt), (2, timeouts.data), (3, timeouts.final_reply)];
    for (answered, timeout) in stages {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        transaction[..answered].iter().for_each(|reply| pair.say(reply));
        check_deadline(&mut pair, timeout);
        pair.outcomes();
    }
    check_deadline(&mut Pair::new(0), timeouts.greeting);
    let mut pair = Pair::new(0);
    pair.say("220 host\r\n");
    check_deadline(&mut pair, timeouts.ehlo);
    let mut pair = Pair::new(0);
    pair.say("220 host\r\n");
    pair.say("502 no\r\n");
    check_deadline(&mut pair, timeouts.ehlo);
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    pair.say("250 a\r\n");
    pair.say("550 b\r\n");
    pair.outcomes();
    check_deadline(&mut pair, timeouts.mail); // RSET
}

/// An octet a minute does not help.
fn check_deadline(pair: &mut Pair, timeout: Duration) {
    let start = pair.now;
    assert_eq!(pair.session.deadline(), Some(start.mono + timeout));
    for octet in
        b"250-abcdefghi".iter().cycle().take(usize::try_from(timeout.as_secs() / 60).unwrap())
    {
        pair.pass(59_000);
        assert!(!pair.closed);
        pair.say([*octet]);
    }
    pair.pass(millis(timeout) - pair.now.mono.since_ms(start.mono) - 1);
    assert!(!pair.closed);
    pair.pass(1);
    assert!(pair.closed);
}

#[test]
fn pipelined_replies_have_a_deadline_each() {
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(mail(3));
    for reply in ["250 a\r\n", "250 b\r\n", "250 c\r\n", "250 d\r\n"] {
        pair.pass(299_000);
        pair.say(reply);
    }
    assert!(!pair.closed);
    pair.pass(119_999);
    assert!(!pair.closed);
    pair.pass(1);
    assert_eq!(pair.short_outcomes(), ["broken Data"; 3]);
    assert_eq!(pair.end(), "ended Data timeout");
}

#[test]
fn a_peer_that_stops_reading_is_given_up_but_may_go_on_talking() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail_with(1, &vec![b'x'; 3 * limits::BODY_PIECE_OCTETS], MessageFacts::default()));
    pair.say("250 a\r\n");
    pair.say("250 b\r\n");
    pair.writable = false;
    pair.say("354 c\r\n");
    pair.pass(179_000);
    pair.written();
    pair.pass(179_000);
    assert!(!pair.closed);
    pair.pass(1_000);
    assert_eq!(pair.short_outcomes(), ["broken Body"]);
    assert_eq!(pair.end(), "ended Body timeout");
    // Replies are taken while a write is out, but give it no more time.
    let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
    pair.writable = false;
    pair.submit(mail(1));
    pair.take_sent();
    let deadline = pair.session.deadline();
    pair.now = pair.now.plus_ms(1_000);
    pair.say("250 a\r\n250 b\r\n354 c\r\n");
    assert_eq!((pair.take_sent().as_str(), pair.session.deadline()), ("", deadline));
    pair.written();
    assert_eq!(pair.take_sent(), BODY);
}

#[test]
fn parameters_go_only_where_they_are_offered() {
    let transaction = || Transaction {
        body_kind: BodyKind::EightBitMime,
        smtputf8: true,
        ret: Some(Ret::Headers),
        envid: Some("id+2B1".into()),
        recipients: vec![
            Recipient {
                notify: Notify(Notify::SUCCESS | Notify::DELAY),
                orcpt: Some("rfc822;a+2Bb@x".into()),
                ..recipient(0, "\"A b\"@Example.COM")
            },
            Recipient { notify: Notify(Notify::NEVER), ..recipient(1, "b@example.com") },
        ],
        ..mail(0)
    };
    for (offer, expected) in [
        ("SIZE 0", "MAIL FROM:<s@example.org> SIZE=21\r\n"),
        ("size", "MAIL FROM:<s@example.org> SIZE=21\r\n"),
        ("8BITMIME", "MAIL FROM:<s@example.org> BODY=8BITMIME\r\n"),
        ("SMTPUTF8", "MAIL FROM:<s@example.org> SMTPUTF8\r\n"),
        ("DSN", "MAIL FROM:<s@example.org> RET=HDRS ENVID=id+2B1\r\n"),
        ("CHUNKING", "MAIL FROM:<s@example.org>\r\n"),
    ] {
        let mut pair = Pair::ready(&format!("250-host\r\n250 {offer}\r\n"));
        pair.submit(transaction());
        assert_eq!(pair.take_sent(), expected);
    }
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(transaction());
    assert_eq!(
        pair.take_sent(),
        "MAIL FROM:<s@example.org> SIZE=21 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+2B1\r\n\
         RCPT TO:<\"A b\"@Example.COM> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x\r\n\
         RCPT TO:<b@example.com> NOTIFY=NEVER\r\nDATA\r\n"
    );
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(Transaction { sender: None, envid: Some("a\r\nQUIT".into()), ..mail(1) });
    assert_eq!(pair.take_sent(), "MAIL FROM:<> SIZE=21\r\nRCPT TO:<r0@example.com>\r\nDATA\r\n");
}

#[test]
fn a_host_that_cannot_take_the_message_sees_nothing_of_it() {
    let eight_bit = MessageFacts { eight_bit: true, ..MessageFacts::default() };
    let utf8 = MessageFacts { utf8_header: true, ..eight_bit };
    let utf8_mail = || Transaction { smtputf8: true, ..mail_with(1, b"x\r\n", utf8) };
    let table = [
        ("SMTPUTF8", mail_with(1, b"x\r\n", eight_bit), "unfit 5.6.3"),
        ("8BITMIME", utf8_mail(), "unfit 5.6.7"),
        ("SIZE 2", mail_with(1, b"x\r\n", MessageFacts::default()), "unfit 5.3.4"),
        ("SIZE 2", mail_with(1, b"x", MessageFacts::default()), "unfit 5.3.4"),
        (
            "8BITMIME",
            Transaction {
                sender: Some(Mailbox::parse("é@x.example".as_bytes()).unwrap()),
                ..mail(1)
            },
            "unfit 5.6.7",
        ),
        (
            "8BITMIME",
            Transaction { recipients: vec![recipient(0, "é@x.example")], ..mail(0) },
            "unfit 5.6.7",
        ),
    ];
    for (offer, transaction, outcome) in table {
        let mut pair = Pair::ready(&format!("250-host\r\n250 {offer}\r\n"));
        pair.submit(transaction);
        assert_eq!(pair.take_sent(), "");
        assert_eq!(pair.short_outcomes(), [outcome]);
        assert_eq!(pair.session.capacity(), 1);
        assert_eq!(pair.session.deadline(), Some(pair.now.mono + Timeouts::default().idle));
    }
    for (offer, transaction) in [
        ("SIZE 3", mail_with(1, b"x\r\n", MessageFacts::default())),
        // What needs nothing is sent without.
        ("DSN", Transaction { smtputf8: true, body_kind: BodyKind::EightBitMime, ..mail(1) }),
    ] {
        let mut pair = Pair::ready(&format!("250-host\r\n250 {offer}\r\n"));
        pair.submit(transaction);
        assert!(pair.take_sent().starts_with("MAIL FROM:<s@example.org>"));
    }
}

#[test]
fn only_the_local_part_makes_a_recipient_unfit() {
    let mut pair = Pair::ready("250-host\r\n250-PIPELINING\r\n250 8BITMIME\r\n");
    let recipients = ["é@x.example", "a@bücher.example", "b@x.example"];
    let recipients = (0..).zip(recipients).map(|(rid, address)| recipient(rid, address)).collect();
    pair.submit(Transaction { smtputf8: true, recipients, ..mail(0) });
    assert_eq!(
        pair.take_sent(),
        "MAIL FROM:<s@example.org>\r\nRCPT TO:<a@xn--bcher-kva.example>\r\n\
         RCPT TO:<b@x.example>\r\nDATA\r\n"
    );
    pair.say("250 a\r\n250 b\r\n250 c\r\n354 d\r\n");
    pair.say("250 e\r\n");
    assert_eq!(pair.short_outcomes(), ["unfit 5.6.7", "accepted 250", "accepted 250"]);
}

#[test]
fn dots_are_doubled_where_there_are_any() {
    let facts = MessageFacts { leading_dot: true, ..MessageFacts::default() };
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail_with(1, b".a\r\n..\r\nb.\r\n.", facts));
    pair.say("250 a\r\n");
    pair.say("250 b\r\n");
    pair.take_sent();
    pair.say("354 c\r\n");
    assert_eq!(pair.take_sent(), "..a\r\n...\r\nb.\r\n..\r\n.\r\n");
}

#[test]
fn thousands_of_recipients_go_in_bounded_writes() {
    let mut pair = Pair::ready(EVERYTHING);
    pair.writable = false;
    pair.submit(mail(5_000));
    let mut writes = 0;
    while !pair.sent.is_empty() {
        let sent = pair.take_sent();
        assert!(sent.len() <= limits::COMMAND_GROUP_OCTETS + limits::COMMAND_LINE_OCTETS_MAX);
        writes += 1;
        pair.written();
    }
    assert!(writes > 1);
    pair.say([b"250 a\r\n".repeat(5_001), b"354 b\r\n".to_vec()].concat());
    pair.written();
    pair.say("250 c\r\n");
    assert!(pair.outcomes().iter().all(|outcome| short(outcome) == "accepted 250"));
    // A refusal of MAIL stops the next write, and what was written is still answered first.
    let mut pair = Pair::ready(EVERYTHING);
    pair.writable = false;
    pair.submit(mail(5_000));
    let commands = pair.take_sent().lines().count();
    pair.say("550 a\r\n");
    pair.written();
    assert_eq!((pair.take_sent().as_str(), pair.events.len()), ("", 0));
    pair.say(b"503 b\r\n".repeat(commands - 1));
    assert!(pair.outcomes().iter().all(|outcome| short(outcome) == "Mail 550"));
    assert_eq!(pair.session.capacity(), 1);
}

#[test]
fn an_idle_session_quits_and_a_quit_never_waits_for_long() {
    let mut pair = Pair::ready(NOTHING);
    pair.pass(4_999);
    assert_eq!(pair.take_sent(), "");
    pair.pass(1);
    assert_eq!(pair.take_sent(), "QUIT\r\n");
    assert_eq!(pair.take_events(), [Event::Retired]);
    assert_eq!(pair.session.capacity(), 0);
    pair.submit(mail(1));
    assert_eq!(pair.short_outcomes(), ["untried"]);
    pair.say("221 bye\r\nwhatever comes\n\0 now");
    assert!(!pair.closed);
    pair.pass(4_999);
    assert!(!pair.closed);
    pair.pass(1);
    assert!(pair.closed && pair.take_events().is_empty());
    // With the peer's end of file it is over at once; even when QUIT could not be written.
    for writable in [true, false] {
        let mut pair = Pair::ready(NOTHING);
        pair.writable = writable;
        pair.session.quit(pair.now);
        pair.pump();
        pair.hang_up();
        assert!(pair.closed);
        assert_eq!(pair.take_events(), [Event::Retired]);
    }
    let mut pair = Pair::ready(NOTHING);
    pair.writable = false;
    pair.session.quit(pair.now);
    pair.pump();
    pair.pass(5_000);
    assert!(pair.closed);
}

#[test]
fn quit_lets_the_transaction_under_way_finish() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    pair.say("250 a\r\n");
    pair.session.quit(pair.now);
    pair.pump();
    assert_eq!(pair.session.capacity(), 0);
    pair.say("250 b\r\n");
    pair.say("354 c\r\n");
    pair.take_sent();
    pair.say("250 d\r\n");
    assert_eq!(pair.short_outcomes(), ["accepted 250"]);
    assert_eq!(pair.take_sent(), "QUIT\r\n");
    // Before the session is ready there is nothing to finish.
    for (said, sent) in [("", ""), ("220 host\r\n", "EHLO me.example\r\nQUIT\r\n")] {
        let mut pair = Pair::new(0);
        pair.say(said);
        pair.session.quit(pair.now);
        pair.pump();
        assert_eq!(pair.take_sent(), sent);
        pair.hang_up();
        assert!(pair.closed && pair.take_events().is_empty());
    }
}

#[test]
fn enough_messages_end_the_session() {
    let mut pair = Pair::new(2);
    pair.say("220 host\r\n");
    pair.say(NOTHING);
    pair.take_events();
    for sent in ["", "QUIT\r\n"] {
        pair.submit(mail(1));
        for reply in ["250 a\r\n", "250 b\r\n", "354 c\r\n"] {
            pair.say(reply);
        }
        pair.take_sent();
        pair.say("450 d\r\n");
        assert_eq!(pair.short_outcomes(), ["Dot 450"]);
        assert_eq!(pair.take_sent(), sent);
    }
    assert_eq!(pair.take_events(), [Event::Retired]);
}

#[test]
fn what_breaks_between_transactions_is_no_delivery_attempt() {
    let first_done = || {
        let mut pair = Pair::ready(NOTHING);
        pair.submit(mail(1));
        pair.say("250 a\r\n");
        pair.say("550 b\r\n");
        pair.outcomes();
        assert!(pair.take_sent().ends_with("RSET\r\n"));
        pair
    };
    for (reply, end) in [
        ("421 no\r\n", "idle Mail 421"),
        ("450 no\r\n", "idle Mail 450"),
        ("502 no\r\n", "idle Mail 502"),
        ("354 no\r\n", "idle Mail 354"),
        ("x\r\n", "idle Mail garbage"),
    ] {
        let mut pair = first_done();
        pair.say(reply);
        assert_eq!(pair.end(), end);
        pair.submit(mail(1));
        assert_eq!(pair.short_outcomes(), ["untried"]);
    }
    let mut pair = Pair::ready(NOTHING);
    pair.say("421 idle too long\r\n");
    assert_eq!(pair.end(), "idle Mail garbage");
    // The host closed while MAIL was on its way: once more elsewhere, but only on a connection
    // that has worked.
    let mut pair = first_done();
    pair.say("250 ok\r\n");
    pair.submit(mail(1));
    assert!(pair.take_sent().starts_with("MAIL"));
    pair.hang_up();
    assert_eq!(pair.short_outcomes(), ["untried"]);
    assert_eq!(pair.end(), "idle Mail network");
}

#[test]
fn a_transaction_without_recipients_is_over_at_once() {
    let mut pair = Pair::ready(EVERYTHING);
    pair.submit(mail(0));
    assert_eq!((pair.outcomes().len(), pair.take_sent().as_str()), (0, ""));
    assert_eq!(pair.session.capacity(), 1);
}

#[test]
fn a_failure_says_what_the_peer_said() {
    let mut pair = Pair::ready(NOTHING);
    pair.submit(mail(1));
    pair.say("250 a\r\n");
    pair.say("550-5.1.1 no such\r\n550 5.1.1 user\r\n");
    let reply = Reply {
        code: 550,
        enhanced: Some(Enhanced::new(5, 1, 1)),
        lines: vec![(*b"5.1.1 no such").into(), (*b"5.1.1 user").into()],
    };
    let failure = Failure { status: Enhanced::new(5, 1, 1), reply: Some(reply), detail: "".into() };
    assert_eq!(pair.outcomes(), [RecipientOutcome::Refused { stage: Stage::Rcpt, failure }]);
}

/// What happens to a session, chosen at random.
#[derive(Clone, Debug)]
enum Op {
    Say(&'static [u8]),
    Noise(Vec<u8>),
    Submit(usize, bool),
    Written,
    Pass(u64),
    HangUp,
    Quit,
}

fn any_op() -> impl Strategy<Value = Op> {
    let good: Vec<&'static [u8]> =
        vec![b"250 ok\r\n", b"354 go\r\n", b"250-a\r\n250-PIPELINING\r\n250 SIZE\r\n"];
    let bad: Vec<&'static [u8]> = vec![
        b"550 no\r\n",
        b"450 no\r\n",
        b"421 bye\r\n",
        b"452 full\r\n",
        b"25",
        b"0 x",
        b"\r\n",
        b"\n",
        b"x\r\n",
        b"250-ok\r\n",
    ];
    prop_oneof![
        12 => prop::sample::select(good).prop_map(Op::Say),
        3 => prop::sample::select(bad).prop_map(Op::Say),
        1 => prop::collection::vec(any::<u8>(), 0..6).prop_map(Op::Noise),
        4 => (0usize..4, any::<bool>()).prop_map(|(n, strict)| Op::Submit(n, strict)),
        6 => Just(Op::Written),
        1 => (0u64..200_000).prop_map(Op::Pass),
        1 => Just(Op::HangUp),
        1 => Just(Op::Quit),
    ]
}

/// What an onlooker knows of one transaction.
#[derive(Default)]
struct Seen {
    dot_out: bool,
    positive_since: bool,
    done: u32,
}

struct Onlooker {
    session: Session,
    now: Now,
    current: usize,
    seen: Vec<Seen>,
    writing: bool,
}

impl Onlooker {
    fn drain(&mut self) {
        loop {
            match self.session.poll_output(self.now) {
                Output::Send(chunks) => {
                    assert!(!self.writing, "two writes at a time");
                    self.writing = true;
                    let wire: Vec<u8> =
                        chunks.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect();
                    let seen = &mut self.seen;
                    if wire.ends_with(b".\r\n") && !seen.is_empty() {
                        seen[self.current].dot_out = true;
                    }
                }
                Output::Event(Event::Done { key, outcomes }) => {
                    let seen = &mut self.seen[usize::try_from(key).unwrap()];
                    seen.done += 1;
                    outcomes.iter().for_each(|(_, outcome)| check(seen, outcome));
                }
                Output::Event(Event::Ready { .. } | Event::Failed(_) | Event::Retired)
                | Output::Event(Event::Ended { .. })
                | Output::Close => {}
                Output::Idle => return,
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Say(bytes) => self.say(bytes),
            Op::Noise(bytes) => self.say(&bytes),
            Op::Submit(recipients, strict) => {
                if self.session.capacity() > 0 {
                    self.current = self.seen.len();
                }
                let key = self.seen.len().try_into().unwrap();
                self.seen.push(Seen::default());
                self.session.submit(Transaction { key, strict, ..mail(recipients) });
            }
            Op::Written if self.writing => {
                self.writing = false;
                self.session.handle_sent(self.now);
            }
            Op::Written => {}
            Op::Pass(ms) => {
                self.now = self.now.plus_ms(ms);
                self.session.handle_deadline(self.now);
            }
            Op::HangUp => self.session.handle_closed(None),
            Op::Quit => self.session.quit(self.now),
        }
        self.drain();
    }

    fn say(&mut self, bytes: &[u8]) {
        if let Some(seen) = self.seen.get_mut(self.current) {
            seen.positive_since |= seen.dot_out && bytes.contains(&b'2');
        }
        self.session.handle_input(bytes, self.now);
    }
}

fn check(seen: &Seen, outcome: &RecipientOutcome) {
    match outcome {
        RecipientOutcome::Accepted(_) => assert!(seen.dot_out && seen.positive_since),
        RecipientOutcome::Uncertain { .. } => assert!(seen.dot_out),
        RecipientOutcome::Unanswered { .. } => assert!(!seen.dot_out),
        RecipientOutcome::Refused { .. }
        | RecipientOutcome::TooMany { .. }
        | RecipientOutcome::Unfit { .. }
        | RecipientOutcome::Untried => {}
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_transaction_has_one_result(
        ops in prop::collection::vec(any_op(), 0..60),
        start in 0usize..12,
    ) {
        let settings = ClientSettings {
            ehlo_name: "me.example".into(),
            timeouts: Timeouts::default(),
            messages_max: 5,
            train: TrainPolicy::Off,
            plain: false,
        };
        let now = Now::default();
        let session = Session::new(settings, now);
        let mut onlooker =
            Onlooker { session, now, current: 0, seen: Vec::new(), writing: false };
        // Mostly a start that succeeds, so that the interesting part is reached.
        let good = [Op::Say(b"220 x\r\n"), Op::Written, Op::Say(b"250-a\r\n250 PIPELINING\r\n")];
        for op in good.into_iter().take(start) {
            onlooker.apply(op);
        }
        for op in ops {
            onlooker.apply(op);
        }
        onlooker.apply(Op::HangUp);
        prop_assert!(onlooker.seen.iter().all(|seen| seen.done == 1));
        prop_assert_eq!(onlooker.session.deadline(), None::<Mono>);
    }

    #[test]
    fn a_split_of_the_replies_changes_nothing(
        codes in prop::collection::vec(
            prop_oneof![4 => Just("250"), 1 => Just("550"), 1 => Just("452"), 1 => Just("421")],
            3,
        ),
        data in prop::sample::select(vec!["354", "354", "354", "554", "250"]),
        last in prop::sample::select(vec!["250", "250-x\r\n250", "451", "x", "250-x\r\n251"]),
        cuts in prop::collection::vec(1usize..6, 1..12),
    ) {
        let group: String = codes.iter().copied().chain([data])
            .map(|code| format!("{code} text\r\n")).collect();
        let run = |cuts: &[usize]| {
            let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
            pair.submit(mail(2));
            for said in [group.clone(), format!("{last} text\r\n")] {
                let (mut rest, mut cuts) = (said.as_bytes(), cuts.iter().cycle());
                while !rest.is_empty() {
                    let at = cuts.next().map_or(rest.len(), |cut| (*cut).min(rest.len()));
                    pair.session.handle_input(&rest[..at], pair.now);
                    rest = &rest[at..];
                }
                pair.pump();
            }
            (pair.sent, pair.events, pair.closed)
        };
        prop_assert_eq!(run(&cuts), run(&[]));
    }
}
