//! Trains against a model of a peer, whose replies are then tampered with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::limits;
use crate::mail::{MessageFacts, Notify, Now};

const MARKED: &str = "250-host\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 CHUNKING\r\n";
const DATA_ONLY: &str = "250-host\r\n250-PIPELINING\r\n250 SIZE 100000000\r\n";

/// A peer that keeps the rules, and knows what it took.
#[derive(Default)]
struct Peer {
    /// Its positive replies carry marks.
    marked: bool,
    /// After a refused BDAT it takes nothing until RSET (RFC 3030 2).
    sticky: bool,
    stuck: bool,
    held: Vec<u8>,
    in_mail: bool,
    takers: Vec<u32>,
    in_text: bool,
    taken: BTreeSet<(u64, u32)>,
    /// It took something twice.
    repeated: bool,
    resets: usize,
}

impl Peer {
    /// Takes what was written and gives one reply line after the other.
    fn hear(&mut self, wire: &[u8]) -> Vec<String> {
        self.held.extend_from_slice(wire);
        let mut replies = Vec::new();
        while let Some(reply) = self.step() {
            replies.push(reply);
        }
        replies
    }

    fn step(&mut self) -> Option<String> {
        if self.in_text {
            let end = find(&self.held, b"\r\n.\r\n").map(|at| at + 5);
            let end = end.or_else(|| self.held.starts_with(b".\r\n").then_some(3))?;
            let text: Vec<u8> = self.held.drain(..end).collect();
            self.in_text = false;
            return Some(self.end_of_data(&text));
        }
        let end = find(&self.held, b"\r\n")? + 2;
        let line = String::from_utf8(self.held[..end - 2].to_vec()).unwrap();
        if let Some(rest) = line.strip_prefix("BDAT ") {
            let octets: usize = rest.strip_suffix(" LAST").unwrap().parse().unwrap();
            if self.held.len() < end + octets {
                return None;
            }
            let text: Vec<u8> = self.held.drain(..end + octets).skip(end).collect();
            let reply = if self.takers.is_empty() || self.stuck {
                self.in_mail = false;
                "503 5.5.1 no recipients".into()
            } else {
                self.end_of_data(&text)
            };
            self.stuck |= self.sticky && !reply.starts_with('2');
            return Some(reply);
        }
        self.held.drain(..end);
        Some(self.command(&line))
    }

    fn command(&mut self, line: &str) -> String {
        let ok = |code: &str| if self.marked { format!("250 {code} ok") } else { "250 ok".into() };
        if self.stuck && line != "RSET" {
            return "503 5.5.1 RSET first".into();
        }
        if line.starts_with("MAIL FROM:<bad") || line.starts_with("MAIL") && self.in_mail {
            return "550 5.7.1 no".into();
        }
        if line.starts_with("MAIL") {
            let reply = ok("2.1.0");
            (self.in_mail, self.takers) = (true, Vec::new());
            return reply;
        }
        if let Some(rest) = line.strip_prefix("RCPT TO:<") {
            if !self.in_mail {
                return "503 5.5.1 MAIL first".into();
            }
            if rest.starts_with("no") {
                return "550 5.1.1 no such user".into();
            }
            let reply = ok("2.1.5");
            self.takers.push(rest[1..].split('@').next().unwrap().parse().unwrap());
            return reply;
        }
        match line {
            "DATA" if self.takers.is_empty() => "503 5.5.1 no recipients".into(),
            "DATA" => {
                self.in_text = true;
                "354 go".into()
            }
            "RSET" => {
                self.stuck = false;
                (self.in_mail, self.takers) = (false, Vec::new());
                self.resets += 1;
                "250 2.0.0 ok".into()
            }
            "QUIT" => "221 2.0.0 bye".into(),
            // Message text after a refusal that was turned into a 354 on its way.
            _ => "500 5.5.2 unknown".into(),
        }
    }

    fn end_of_data(&mut self, text: &[u8]) -> String {
        let takers = std::mem::take(&mut self.takers);
        let text = String::from_utf8(text.to_vec()).unwrap();
        self.in_mail = false;
        if text.contains("spam") {
            return "554 5.6.0 spam".into();
        }
        if text.contains("busy") {
            return "452 4.3.1 busy".into();
        }
        if !text.starts_with("Key") {
            return "250 2.0.0 an empty message".into();
        }
        let key = text.lines().next().unwrap().strip_prefix("Key: ").unwrap().parse().unwrap();
        for rid in takers {
            self.repeated |= !self.taken.insert((key, rid));
        }
        if self.marked { "250 2.0.0 taken".into() } else { "250 taken".into() }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

/// What a message is like: `bad`, `spam` and `busy` are refused, `no` names a refused recipient,
/// `utf8` is unfit.
fn message(key: u64, kinds: &[&str]) -> Transaction {
    let has = |kind: &str| kinds.contains(&kind);
    let words = kinds.iter().filter(|kind| !kind.is_empty()).copied().collect::<Vec<_>>();
    let text = format!("Key: {key}\r\n\r\n{}\r\n", words.join(" "));
    let mut addresses = vec!["r0@example.com".to_owned(), "r1@example.com".to_owned()];
    match (has("no"), has("all")) {
        (true, true) => addresses = vec!["no0@example.com".into(), "no1@example.com".into()],
        (true, false) => addresses[0] = "no0@example.com".into(),
        (false, _) => {}
    }
    let facts = MessageFacts { eight_bit: has("utf8"), ..MessageFacts::default() };
    let sender = if has("bad") { "bad@example.org" } else { "s@example.org" };
    let recipient = |(rid, address): (u32, &String)| Recipient {
        rid: Rid(rid),
        address: Mailbox::parse(address.as_bytes()).unwrap(),
        notify: Notify::default(),
        orcpt: None,
    };
    Transaction {
        key,
        sender: Some(Mailbox::parse(sender.as_bytes()).unwrap()),
        body_kind: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients: (0..).zip(&addresses).map(recipient).collect(),
        body: Arc::new(Body { bytes: text.into_bytes().into(), facts }),
        strict: has("strict"),
    }
}

/// A session and its peer.
struct Line {
    session: Session,
    peer: Peer,
    now: Now,
    /// Every write, whole.
    writes: Vec<String>,
    /// Reply lines that are on their way.
    replies: Vec<String>,
    done: BTreeMap<u64, Vec<RecipientOutcome>>,
    ends: Vec<Event>,
    closed: bool,
}

fn session(ehlo: &str, train: TrainPolicy, plain: bool, messages_max: u32) -> (Session, Now) {
    let now = Now::default().plus_ms(1_000);
    let settings = ClientSettings {
        ehlo_name: "me.example".into(),
        timeouts: Timeouts::default(),
        messages_max,
        train,
        plain,
    };
    let mut session = Session::new(settings, now);
    for said in ["220 host\r\n", ehlo] {
        session.handle_input(said.as_bytes(), now);
        while !matches!(session.poll_output(now), Output::Idle) {}
        session.handle_sent(now);
    }
    (session, now)
}

impl Line {
    fn new(ehlo: &str, train: TrainPolicy) -> Self {
        let (session, now) = session(ehlo, train, false, 0);
        let peer = Peer { marked: ehlo.contains("ENHANCED"), ..Peer::default() };
        let (writes, replies, ends) = (Vec::new(), Vec::new(), Vec::new());
        Self { session, peer, now, writes, replies, done: BTreeMap::new(), ends, closed: false }
    }

    /// Does what the session wants until it waits.
    fn pump(&mut self) {
        loop {
            match self.session.poll_output(self.now) {
                Output::Send(chunks) => {
                    let wire: Vec<u8> =
                        chunks.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect();
                    self.replies.extend(self.peer.hear(&wire));
                    self.writes.push(String::from_utf8(wire).unwrap());
                    drop(chunks);
                    self.session.handle_sent(self.now);
                }
                Output::Event(Event::Done { key, outcomes }) => {
                    let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
                    assert_eq!(self.done.insert(key, outcomes), None, "{key} is done twice");
                }
                Output::Event(event) => self.ends.push(event),
                Output::Close => self.closed = true,
                Output::Idle => return,
            }
        }
    }

    /// Hands in what there is room for; what is left stays in `mail`.
    fn feed(&mut self, mail: &mut Vec<Transaction>) {
        loop {
            while self.session.capacity() > 0 && !mail.is_empty() {
                self.session.submit(mail.remove(0));
            }
            self.pump();
            if self.session.capacity() == 0 || mail.is_empty() {
                return;
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.session.handle_input(text.as_bytes(), self.now);
    }

    /// Everything that the peer has to say, in one read.
    fn answer(&mut self) {
        let said: String = self.replies.drain(..).map(|line| line + "\r\n").collect();
        self.say(&said);
    }

    /// Carries all of `mail` out with an honest peer.
    fn run(&mut self, mut mail: Vec<Transaction>) {
        self.feed(&mut mail);
        while !self.replies.is_empty() {
            self.answer();
            self.feed(&mut mail);
        }
        assert!(mail.is_empty() && !self.closed);
    }

    fn outcomes(&self, key: u64) -> Vec<String> {
        self.done[&key].iter().map(short).collect()
    }
}

fn short(outcome: &RecipientOutcome) -> String {
    match outcome {
        RecipientOutcome::Accepted(_) => "accepted".into(),
        RecipientOutcome::Refused { stage, failure } => format!("{stage:?} {}", failure.code()),
        RecipientOutcome::TooMany { .. } => "too many".into(),
        RecipientOutcome::Unanswered { stage, .. } => format!("broken {stage:?}"),
        RecipientOutcome::Uncertain { .. } => "uncertain".into(),
        RecipientOutcome::Unfit { .. } => "unfit".into(),
        RecipientOutcome::Untried => "untried".into(),
    }
}

fn plain_mail(keys: std::ops::Range<u64>) -> Vec<Transaction> {
    keys.map(|key| message(key, &[])).collect()
}

const KNOWN: TrainPolicy = TrainPolicy::Auto { window: 8 };
const NEW: TrainPolicy = TrainPolicy::Auto { window: 0 };

#[test]
fn a_train_of_bdat_is_one_write_with_one_chunk_between_two_bodies() {
    let mut line = Line::new(MARKED, KNOWN);
    for transaction in plain_mail(0..3) {
        line.session.submit(transaction);
    }
    let Output::Send(chunks) = line.session.poll_output(line.now) else { panic!("no write") };
    let kinds: Vec<bool> = chunks.iter().map(|c| matches!(c, Chunk::Body { .. })).collect();
    assert_eq!(kinds, [false, true, false, true, false, true]);
    let commands = "MAIL FROM:<s@example.org>\r\nRCPT TO:<r0@example.com>\r\n\
        RCPT TO:<r1@example.com>\r\nBDAT 12 LAST\r\n";
    assert_eq!(chunks[2].as_slice(), commands.as_bytes());
    assert!(line.session.is_past_final_dot());
    // Five more fit into the window; nothing is written while the write is out.
    assert_eq!(line.session.capacity(), 5);
    assert_eq!(line.session.poll_output(line.now), Output::Idle);
}

#[test]
fn trains_begin_after_three_marked_transactions_and_double() {
    let mut line = Line::new(MARKED, NEW);
    line.run(plain_mail(0..200));
    assert_eq!(line.peer.taken.len(), 400);
    let sizes: Vec<usize> = line.writes.iter().map(|write| write.matches("BDAT").count()).collect();
    // Three plain ones of two writes each; a full window doubles when half of it has come back.
    assert_eq!(sizes[..8], [0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(sizes.iter().max(), Some(&64));
    assert_eq!((line.session.learned_window(), line.session.window()), (Some(64), 64));
    assert!(!line.session.wants_plain());
    for key in 0..200 {
        assert_eq!(line.outcomes(key), ["accepted"; 2]);
    }
    // Switched off, or for a host that is spoken to plainly, there is one at a time.
    for (train, plain) in [(TrainPolicy::Off, false), (KNOWN, true)] {
        let (session, _) = session(MARKED, train, plain, 0);
        assert_eq!((session.capacity(), session.learned_window()), (1, None));
    }
}

#[test]
fn without_marks_the_next_commands_go_behind_the_final_dot() {
    for (ehlo, marked) in [(DATA_ONLY, false), (MARKED, false)] {
        let mut line = Line::new(ehlo, NEW);
        line.peer.marked = marked;
        let first = if ehlo == MARKED { 1 } else { 0 };
        line.run(plain_mail(0..first));
        line.writes.clear();
        let mut mail = plain_mail(first..first + 3);
        line.feed(&mut mail);
        assert_eq!(mail.len(), 1);
        line.answer();
        line.feed(&mut mail);
        assert!(line.writes[1].starts_with("Key: "), "{:?}", line.writes);
        assert!(line.writes[1].ends_with("\r\nDATA\r\n"), "{:?}", line.writes);
        // All but the 354: not settled yet.
        let last = line.replies.pop().unwrap();
        assert_eq!(last, "354 go");
        line.answer();
        line.feed(&mut mail);
        assert!(line.session.is_past_final_dot() && !line.done.contains_key(&first));
        line.replies.push(last);
        line.answer();
        assert!(line.session.capacity() > 0, "room before the next write");
        line.feed(&mut mail);
        assert_eq!(line.outcomes(first), ["accepted"; 2]);
        while !line.replies.is_empty() {
            line.answer();
            line.feed(&mut mail);
        }
        assert_eq!(line.done.len() as u64, first + 3);
        assert_eq!(
            (line.peer.taken.len() as u64, line.session.learned_window()),
            (2 * (first + 3), None)
        );
    }
}

#[test]
fn without_marks_a_surplus_reply_to_the_final_dot_is_not_believed() {
    for (said, outcome, plain) in [
        ("250 ok\r\n", "accepted", false),
        ("250 ok\r\n250 ok\r\n", "uncertain", true),
        ("250 ok\r\n2", "uncertain", true),
        ("554 no\r\n250 ok\r\n", "uncertain", true),
    ] {
        let mut line = Line::new(DATA_ONLY, NEW);
        line.feed(&mut plain_mail(0..1));
        line.answer();
        line.pump();
        line.say(said);
        line.pump();
        assert_eq!(line.outcomes(0), [outcome; 2], "{said:?}");
        assert_eq!((line.closed, line.session.wants_plain()), (plain, plain));
    }
}

#[test]
fn a_refused_transaction_in_a_train_bounces_only_its_own_recipients() {
    let refused: [(&[&str], [&str; 2]); 6] = [
        (&["spam"], ["Dot 554"; 2]),
        (&["busy"], ["Dot 452"; 2]),
        (&["bad"], ["Mail 550"; 2]),
        (&["no"], ["Rcpt 550", "accepted"]),
        (&["no", "all"], ["Rcpt 550"; 2]),
        (&["utf8"], ["unfit"; 2]),
    ];
    for (kinds, expected) in refused {
        for at in 0..3 {
            let mut mail = plain_mail(0..3);
            mail[at] = message(at as u64, kinds);
            let mut line = Line::new(MARKED, KNOWN);
            line.run(mail);
            assert_eq!(line.writes[0].matches("BDAT").count(), 3 - usize::from(kinds == ["utf8"]));
            for key in 0..3 {
                let expected = if key == at as u64 { expected } else { ["accepted"; 2] };
                assert_eq!(line.outcomes(key), expected, "{kinds:?} at {at}");
            }
            // The end of a train may leave a transaction open, its midst shows that none is.
            let left_open = matches!(kinds, ["spam" | "busy" | "bad"] | ["no", "all"]) && at == 2;
            assert_eq!(line.peer.resets, usize::from(left_open), "{kinds:?} at {at}");
            assert!(line.session.capacity() > 0);
        }
    }
}

#[test]
fn refusals_in_doubt_go_once_more_plainly_after_rset() {
    let mut line = Line::new(MARKED, KNOWN);
    line.peer.sticky = true;
    let mut mail = plain_mail(0..6);
    mail[1] = message(1, &["spam"]);
    mail[4] = message(4, &["no"]);
    line.feed(&mut mail);
    // The peer is in the refused transaction until RSET: it refuses all the rest.
    line.answer();
    assert_eq!((line.session.capacity(), line.session.is_past_final_dot()), (0, true));
    line.pump();
    assert_eq!(line.writes[1..], ["RSET\r\n"]);
    assert_eq!(line.done.keys().copied().collect::<Vec<_>>(), [0]);
    while !line.replies.is_empty() {
        line.answer();
        line.pump();
    }
    assert_eq!(line.outcomes(1), ["Dot 554"; 2]);
    assert_eq!(line.outcomes(4), ["Rcpt 550", "accepted"]);
    for key in [0, 2, 3, 5] {
        assert_eq!(line.outcomes(key), ["accepted"; 2]);
    }
    assert!(line.writes[2..].iter().all(|write| !write.contains("BDAT")));
    assert_eq!((line.session.window(), line.session.learned_window()), (4, Some(4)));
    assert!(!line.session.wants_plain());
}

#[test]
fn after_a_missing_or_unmarked_reply_the_host_is_spoken_to_plainly() {
    for (replies, expected) in [
        // The reply of the next MAIL is not taken for the final one.
        (&["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.1.0"][..], ["uncertain", "uncertain"]),
        (&["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 ok"], ["uncertain", "uncertain"]),
        (&["250 2.1.0", "250 2.0.0"], ["uncertain", "uncertain"]),
        (
            &["250 2.1.0", "550 no", "250 2.1.5", "250 2.0.0", "250 2.0.0"],
            ["Rcpt 550", "uncertain"],
        ),
        (&["550 no", "550 no", "550 no", "550 no", "250 2.1.5"], ["uncertain", "uncertain"]),
        (&["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.0.0", "hello"], ["accepted", "uncertain"]),
    ] {
        let mut line = Line::new(MARKED, KNOWN);
        line.feed(&mut plain_mail(0..2));
        let said: String = replies.iter().map(|reply| format!("{reply} x\r\n")).collect();
        line.say(&said);
        line.pump();
        let first = [line.outcomes(0)[0].clone(), line.outcomes(1)[0].clone()];
        assert_eq!(first, expected, "{replies:?}");
        assert!(line.closed && line.session.wants_plain());
        assert_eq!(line.session.learned_window(), Some(0));
    }
}

#[test]
fn silence_in_a_train_leaves_what_was_written_uncertain() {
    let mut line = Line::new(MARKED, KNOWN);
    line.feed(&mut plain_mail(0..3));
    line.replies.truncate(4);
    line.answer();
    line.now = line.now.plus_ms(299_999);
    line.session.handle_deadline(line.now);
    line.pump();
    // The mark of the next MAIL is still owed, and with it the proof of the place.
    assert_eq!(line.done.len(), 0);
    line.now = line.now.plus_ms(1);
    line.session.handle_deadline(line.now);
    line.pump();
    assert_eq!(line.outcomes(0), ["accepted"; 2]);
    assert_eq!(
        (line.outcomes(1), line.outcomes(2)),
        (vec!["uncertain".into(); 2], vec!["uncertain".into(); 2])
    );
    assert!(line.session.wants_plain());
}

#[test]
fn a_late_refusal_on_an_idle_connection_accuses_nobody() {
    for (said, plain) in [("421 idle\r\n", false), ("250 2.0.0 again\r\n", true)] {
        let mut line = Line::new(MARKED, KNOWN);
        line.run(plain_mail(0..2));
        line.say(said);
        line.pump();
        assert_eq!((line.closed, line.session.wants_plain()), (true, plain));
    }
}

fn large(key: u64, octets: usize) -> Transaction {
    let mut transaction = message(key, &[]);
    let mut bytes = transaction.body.bytes.behind(0).into_owned();
    bytes.resize(octets - 2, b'x');
    bytes.extend_from_slice(b"\r\n");
    transaction.body = Arc::new(Body { bytes: bytes.into(), facts: MessageFacts::default() });
    transaction
}

#[test]
fn octets_in_flight_are_bounded_and_a_large_message_goes_alone() {
    let mut line = Line::new(MARKED, TrainPolicy::Auto { window: 64 });
    let mut mail: Vec<_> = (0..9).map(|key| large(key, limits::TRAIN_OCTETS_MAX / 5)).collect();
    mail.push(large(9, 3 * limits::TRAIN_OCTETS_MAX));
    mail.push(message(10, &[]));
    line.feed(&mut mail);
    assert_eq!(line.writes[0].matches("BDAT").count(), 5);
    while !line.replies.is_empty() {
        line.answer();
        line.feed(&mut mail);
        let most = limits::BODY_PIECE_OCTETS + limits::TRAIN_OCTETS_MAX;
        assert!(line.writes.iter().all(|write| write.len() < most));
    }
    assert_eq!(line.peer.taken.len(), 22);
    let alone = line.writes.iter().position(|write| write.contains("Key: 9")).unwrap();
    assert!(line.writes[alone].starts_with("MAIL"));
}

#[test]
fn an_early_refusal_of_a_large_body_ends_the_session_and_keeps_what_was_said() {
    for (said, outcome, ends) in [
        ("552 5.3.4 too big\r\n", "Body 552", "retired"),
        ("421 4.3.2 bye\r\n", "Body 421", "ended"),
        ("250 2.0.0 ok\r\n", "uncertain", "ended"),
    ] {
        let mut line = Line::new(MARKED, KNOWN);
        line.session.submit(message(0, &[]));
        line.session.submit(large(1, 700_000));
        line.session.submit(message(2, &[]));
        // The write with the first piece is out.
        assert!(matches!(line.session.poll_output(line.now), Output::Send(_)));
        let first = "250 2.1.0 a\r\n250 2.1.5 b\r\n250 2.1.5 c\r\n";
        line.say(&format!("{first}250 2.0.0 d\r\n{first}{said}"));
        line.pump();
        assert_eq!(line.outcomes(0), ["accepted"; 2]);
        assert_eq!(line.outcomes(1), [outcome; 2]);
        assert_eq!(line.outcomes(2), ["untried"; 2]);
        assert_eq!(matches!(line.ends[..], [Event::Retired]), ends == "retired");
    }
}

#[test]
fn strict_transactions_and_quit_wait_for_the_train() {
    let mut line = Line::new(MARKED, KNOWN);
    let mut mail = vec![message(0, &[]), message(1, &["strict"]), message(2, &[])];
    line.feed(&mut mail);
    assert_eq!(line.writes.len(), 1);
    line.answer();
    line.pump();
    assert_eq!(line.writes[1], "MAIL FROM:<s@example.org>\r\n");
    line.session.quit(line.now);
    line.pump();
    while !line.replies.is_empty() {
        line.answer();
        line.pump();
    }
    assert_eq!(line.outcomes(1), ["accepted"; 2]);
    assert_eq!(line.outcomes(2), ["untried"; 2]);
    assert_eq!(line.writes.last().unwrap(), "QUIT\r\n");
}

#[test]
fn enough_messages_end_a_session_with_trains() {
    let (session, now) = session(MARKED, KNOWN, false, 5);
    let mut line = Line { session, now, ..Line::new(MARKED, KNOWN) };
    let mut mail = plain_mail(0..9);
    assert_eq!(line.session.window(), 5);
    line.feed(&mut mail);
    assert_eq!(mail.len(), 4);
    // It takes no more in the next round trip: time for another connection.
    assert_eq!((line.session.window(), line.done.len()), (0, 0));
    line.answer();
    line.pump();
    assert_eq!((line.done.len(), &line.ends[..]), (5, &[Event::Retired][..]));
}

#[test]
fn an_acceptance_that_came_too_much_is_not_believed() {
    let forged = "250 2.0.0 forged\r\n";
    for (kinds, at, outcome) in [
        // Before the true answer: in the midst of a train, before more refusals, and at its end.
        (&["spam", "", ""][..], 0, "uncertain"),
        (&["", "spam", "bad", ""], 1, "uncertain"),
        (&["", "", "busy"], 2, "uncertain"),
        // Before a true acceptance, and behind one: it was taken.
        (&["", "", ""], 1, "accepted"),
        (&["", "bad", ""], 0, "accepted"),
    ] {
        let last = at + 1 == kinds.len();
        for cut in [usize::MAX, 1, 7] {
            let mut line = Line::new(MARKED, KNOWN);
            let mut mail: Vec<_> =
                (0..).zip(kinds).map(|(key, kind)| message(key, &[*kind])).collect();
            line.feed(&mut mail);
            // Each message has four replies.
            let mut replies = std::mem::take(&mut line.replies);
            replies.insert(4 * at + 3, forged.trim_end().into());
            let said: String = replies.iter().map(|reply| format!("{reply}\r\n")).collect();
            // The last one of a train must come with its contradiction.
            let cut = if last { usize::MAX } else { cut };
            for piece in said.as_bytes().chunks(cut.min(said.len())) {
                line.say(std::str::from_utf8(piece).unwrap());
                line.pump();
            }
            let at = u64::try_from(at).unwrap();
            assert_eq!(line.outcomes(at), [outcome; 2], "{kinds:?} {cut}");
            assert!(line.closed && line.session.wants_plain());
        }
    }
}

#[test]
fn what_was_said_stands_when_the_host_then_leaves() {
    for kinds in [&["", ""][..], &["", "bad"]] {
        let mut line = Line::new(MARKED, KNOWN);
        let mut mail: Vec<_> = (0..).zip(kinds).map(|(key, kind)| message(key, &[*kind])).collect();
        line.feed(&mut mail);
        let said: String = line.replies.drain(..).map(|line| line + "\r\n").collect();
        line.say(&(said + "421 4.7.0 that is enough\r\n"));
        line.pump();
        assert_eq!(line.outcomes(0), ["accepted"; 2]);
        let second = if kinds[1] == "bad" { "Mail 550" } else { "accepted" };
        assert_eq!(line.outcomes(1), [second; 2]);
        assert!(!line.session.wants_plain());
    }
}

/// What happens to the reply line with this number.
#[derive(Clone, Debug)]
enum Fault {
    None,
    Drop,
    Repeat,
    /// One octet of it, counted around, becomes this one.
    Garble(usize, char),
    Insert(&'static str),
    Become(&'static str),
    /// The lines from here on never come.
    Close,
    SentAway,
}

const LINES: [&str; 9] = [
    "250 2.1.0 x",
    "250 2.1.5 x",
    "250 2.0.0 x",
    "250 x",
    "354 x",
    "550 5.1.1 x",
    "451 4.3.0 x",
    "hello",
    "250-x\r\n550 x",
];

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::None),
        3 => Just(Fault::Drop),
        3 => Just(Fault::Repeat),
        4 => (0usize..20, prop::char::range('\0', '\x7f')).prop_map(|(i, c)| Fault::Garble(i, c)),
        4 => prop::sample::select(LINES.to_vec()).prop_map(Fault::Insert),
        4 => prop::sample::select(LINES.to_vec()).prop_map(Fault::Become),
        3 => Just(Fault::Close),
        3 => Just(Fault::SentAway),
    ]
}

fn any_kind() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        8 => Just(vec![]),
        1 => Just(vec!["spam"]),
        1 => Just(vec!["busy"]),
        1 => Just(vec!["bad"]),
        2 => Just(vec!["no"]),
        1 => Just(vec!["no", "all"]),
        1 => Just(vec!["utf8"]),
    ]
}

/// How a run went: everything that an onlooker sees.
#[derive(PartialEq, Debug)]
struct Seen {
    done: BTreeMap<u64, Vec<RecipientOutcome>>,
    ends: Vec<Event>,
    taken: BTreeSet<(u64, u32)>,
    repeated: bool,
    plain: bool,
    doubted: bool,
}

/// Carries `kinds` out, one fault at the reply line `at`; `cuts` split what the session reads.
fn tampered(
    line: &mut Line,
    kinds: &[Vec<&'static str>],
    at: usize,
    fault: &Fault,
    cuts: &[usize],
) -> Seen {
    let mut mail: Vec<_> = (0..).zip(kinds).map(|(key, kinds)| message(key, kinds)).collect();
    line.feed(&mut mail);
    let mut told = 0;
    let mut next_cut = cuts.iter().cycle();
    let mut gone = false;
    while !line.replies.is_empty() && !line.closed && !gone {
        let mut said = String::new();
        let replies = std::mem::take(&mut line.replies);
        let positive = |reply: &String| reply.starts_with(['2', '3']);
        for (index, reply) in replies.iter().enumerate() {
            let here = told == at;
            // An acceptance that is made up word for word, in its place, cannot be told; nor one
            // that came too much, when nothing but refusals follows, in a later read.
            let in_place = here && !positive(reply);
            let alone = in_place && !replies[index..].iter().any(positive) && !cuts.is_empty();
            told += 1;
            match fault {
                Fault::Drop if here => {}
                Fault::Become(other) if in_place && other.starts_with("250 ") => {
                    said += "hello\r\n";
                }
                Fault::Insert(other) if alone && other.starts_with("250 ") => {
                    said += "hello\r\n";
                }
                Fault::Garble(octet, other) if here => {
                    let mut octets = reply.clone().into_bytes();
                    let octet = octet % octets.len();
                    octets[octet] = u8::try_from(*other).unwrap();
                    let garbled = String::from_utf8(octets).unwrap();
                    let made_up = in_place && garbled.starts_with('2') && !line.peer.marked;
                    said += if made_up { "hello" } else { &garbled };
                    said += "\r\n";
                }
                Fault::Repeat if here => said += &format!("{reply}\r\n{reply}\r\n"),
                Fault::Insert(other) if here => said += &format!("{other}\r\n{reply}\r\n"),
                Fault::Become(other) if here => said += &format!("{other}\r\n"),
                Fault::Close if here => gone = true,
                Fault::SentAway if here => {
                    said += "421 4.3.2 bye\r\n";
                    gone = true;
                }
                _ if gone => {}
                _ => said += &format!("{reply}\r\n"),
            }
        }
        let mut rest = said.as_str();
        while !rest.is_empty() {
            let cut = next_cut.next().map_or(rest.len(), |cut| (*cut).min(rest.len()));
            line.say(&rest[..cut]);
            rest = &rest[cut..];
        }
        if gone {
            line.session.handle_closed(None);
        }
        line.feed(&mut mail);
    }
    let reset = line.writes.iter().any(|write| write == "RSET\r\n");
    for _ in 0..20 {
        line.now = line.now.plus_ms(100_000);
        line.session.handle_deadline(line.now);
        line.pump();
    }
    line.session.handle_closed(None);
    line.pump();
    Seen {
        done: line.done.clone(),
        ends: std::mem::take(&mut line.ends),
        taken: line.peer.taken.clone(),
        repeated: line.peer.repeated,
        plain: line.session.wants_plain(),
        doubted: reset || line.session.wants_plain(),
    }
}

/// The truth about a message: what an honest session hears.
fn truth(kinds: &[&str]) -> [&'static str; 2] {
    match kinds {
        [] => ["accepted"; 2],
        ["spam"] => ["Dot 554"; 2],
        ["busy"] => ["Dot 452"; 2],
        ["bad"] => ["Mail 550"; 2],
        ["no"] => ["Rcpt 550", "accepted"],
        ["no", "all"] => ["Rcpt 550"; 2],
        ["utf8"] => ["unfit"; 2],
        other => panic!("{other:?}"),
    }
}

/// A transaction of its own, after a doubt: an acceptance that nobody said comes in the same read
/// as the refusal that is the true answer.
#[test]
fn an_acceptance_with_a_refusal_in_the_same_read_is_not_believed() {
    let kinds = [vec!["spam"], vec![], vec!["spam"], vec![]];
    let mut uncertain = 0;
    // Wherever it comes to stand.
    for at in 0..60 {
        let mut line = Line::new(MARKED, TrainPolicy::Auto { window: 7 });
        line.peer.sticky = true;
        let seen = tampered(&mut line, &kinds, at, &Fault::Insert("250 2.0.0 x"), &[]);
        for (key, outcomes) in &seen.done {
            for (rid, outcome) in (0..).zip(outcomes) {
                let accepted = matches!(outcome, RecipientOutcome::Accepted(_));
                assert!(!accepted || seen.taken.contains(&(*key, rid)), "{at}: {key} {seen:?}");
                uncertain += usize::from(matches!(outcome, RecipientOutcome::Uncertain { .. }));
            }
        }
    }
    assert!(uncertain > 0, "it never stood where it could be believed");
}

/// All of a train is in doubt, its last message for a refusal that nobody gave; the acceptance
/// comes too much, behind it.
#[test]
fn what_was_taken_is_not_handed_back_for_a_refusal_that_nobody_gave() {
    let kinds = [vec!["spam"], vec!["bad"], vec![]];
    let mut line = Line::new(MARKED, TrainPolicy::Auto { window: 3 });
    let seen = tampered(&mut line, &kinds, 11, &Fault::Insert("550 5.1.1 x"), &[]);
    assert_eq!(seen.taken, BTreeSet::from([(2, 0), (2, 1)]));
    let heard: Vec<String> = seen.done[&2].iter().map(short).collect();
    assert_eq!(heard, ["uncertain", "uncertain"]);
}

proptest! {
    #[test]
    fn nothing_counts_as_delivered_that_the_peer_did_not_take(
        kinds in prop::collection::vec(any_kind(), 1..12),
        at in 0usize..50,
        fault in any_fault(),
        (chunking, sticky) in any::<(bool, bool)>(),
        window in 1u32..9,
        cuts in prop::collection::vec(1usize..200, 1..6),
    ) {
        let ehlo = if chunking { MARKED } else { DATA_ONLY };
        let run = |cuts: &[usize]| {
            let mut line = Line::new(ehlo, TrainPolicy::Auto { window });
            line.peer.sticky = sticky;
            tampered(&mut line, &kinds, at, &fault, cuts)
        };
        let (seen, split) = (run(&[]), run(&cuts));
        for (key, outcomes) in &split.done {
            for (rid, outcome) in (0..).zip(outcomes) {
                if let RecipientOutcome::Accepted(_) = outcome {
                    prop_assert!(split.taken.contains(&(*key, rid)), "{key} {rid} {split:?}");
                }
            }
        }
        for (key, outcomes) in &seen.done {
            for (rid, outcome) in (0..).zip(outcomes) {
                if let RecipientOutcome::Accepted(_) = outcome {
                    prop_assert!(seen.taken.contains(&(*key, rid)), "{key} {rid} {seen:?}");
                }
                // What was taken is never handed back as if nothing had happened.
                if seen.taken.contains(&(*key, rid)) && !matches!(fault, Fault::SentAway) {
                    prop_assert!(!matches!(outcome, RecipientOutcome::Untried), "{seen:?}");
                }
            }
            if let Fault::None = fault {
                let heard: Vec<String> = outcomes.iter().map(short).collect();
                let kinds = &kinds[usize::try_from(*key).unwrap()];
                prop_assert_eq!(heard, truth(kinds), "{:?}", kinds);
            }
        }
        if let Fault::None = fault {
            prop_assert_eq!(seen.done.len(), kinds.len());
            prop_assert!(!seen.plain);
        }
        // Only a reply that was tampered with can make us send again what was taken.
        if matches!(fault, Fault::None | Fault::Drop | Fault::Close | Fault::SentAway) {
            prop_assert!(!seen.repeated, "{seen:?}");
        }
        // A reply that comes too much while all is answered is late or early by the split alone.
        let surplus = matches!(fault, Fault::Repeat | Fault::Insert(_) | Fault::Garble(..));
        if !surplus {
            prop_assert_eq!(seen, split);
        }
    }

    #[test]
    fn after_the_end_exactly_the_answered_messages_are_settled(
        kinds in prop::collection::vec(any_kind(), 1..12),
        at in 0usize..50,
        sent_away in any::<bool>(),
        chunking in any::<bool>(),
    ) {
        let ehlo = if chunking { MARKED } else { DATA_ONLY };
        let mut line = Line::new(ehlo, KNOWN);
        let fault = if sent_away { Fault::SentAway } else { Fault::Close };
        let seen = tampered(&mut line, &kinds, at, &fault, &[]);
        // Replies per message: MAIL, two RCPT, and by DATA one more, before the final one.
        let mut left = at;
        for (key, kinds) in (0u64..).zip(&kinds) {
            let Some(outcomes) = seen.done.get(&key) else { continue };
            let heard: Vec<String> = outcomes.iter().map(short).collect();
            if kinds == &["utf8"] {
                // Behind the window it was not looked at yet.
                let is_behind = key >= 8 && heard == ["untried"; 2];
                prop_assert!(is_behind || heard == truth(kinds), "{:?}", heard);
                continue;
            }
            let alone = matches!(kinds[..], ["bad"] | ["no", "all"]);
            let replies = if chunking || alone { 4 } else { 5 };
            if !seen.doubted && chunking && left >= replies {
                prop_assert_eq!(&heard, &truth(kinds), "{} of {:?}", key, seen);
            } else if !seen.doubted && chunking {
                prop_assert!(!heard.iter().any(|word| word == "accepted"), "{seen:?}");
            }
            left = left.saturating_sub(replies);
        }
    }
}
