//! The dialogue with a client, by tables and cut at every octet.

use proptest::prelude::*;

use super::*;
use crate::mail::{Mailbox, ReadBuffer, Rid};
use crate::smtp::settings::LongLines;

struct TestProof;
impl ProofOfSafety for TestProof {}

/// The engine: counts MIDs, writes down what it hears, refuses what it is told to.
#[derive(Default)]
struct TestGate {
    mids: u64,
    open: Vec<Mid>,
    events: Vec<String>,
    refuse_mail: Option<Refusal>,
    refuse_rcpt: Option<Refusal>,
}

impl Gate for TestGate {
    fn begin(&mut self, sender: Option<&Mailbox>, octets: Option<u64>) -> Result<Mid, Refusal> {
        if let Some(refusal) = &self.refuse_mail {
            return Err(refusal.clone());
        }
        self.mids += 1;
        self.open.push(Mid(self.mids));
        let sender = sender.map_or("", Mailbox::as_str);
        self.events.push(format!("begin {} <{sender}> {octets:?}", self.mids));
        Ok(Mid(self.mids))
    }

    fn recipient(&mut self, mid: Mid, rid: Rid, address: &Mailbox) -> Result<(), Refusal> {
        if let Some(refusal) = &self.refuse_rcpt {
            return Err(refusal.clone());
        }
        self.events.push(format!("to {mid} {rid} {address:?}"));
        Ok(())
    }

    fn recipient_refused(&mut self, mid: Mid, address: &Mailbox, refusal: &Refusal) {
        self.events.push(format!("refused {mid} {address:?} {}", refusal.code));
    }

    fn aborted(&mut self, mid: Mid, cause: Abort) {
        self.events.push(format!("aborted {mid} {cause:?}"));
        self.close(mid);
    }
}

impl TestGate {
    fn close(&mut self, mid: Mid) {
        let at = self.open.iter().position(|m| *m == mid).expect("closed once");
        self.open.remove(at);
    }
}

/// A session and its caller, in virtual time.
struct Rig {
    session: Session,
    gate: TestGate,
    now: Now,
    buffer: Vec<u8>,
    /// Messages may hold on to what is read.
    shares: bool,
    replies: String,
    messages: Vec<Transaction>,
    output_octets_max: usize,
}

fn settings() -> ServerSettings {
    ServerSettings {
        hostname: "out.example.net".into(),
        message_octets_max: 10_000,
        recipients_max: 3,
        long_lines: LongLines::Accept,
    }
}

const RELAY: Peer = Peer { ip: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), relay: true };

impl Rig {
    fn with(settings: ServerSettings, peer: Peer) -> Self {
        let now = Now { mono: Mono(1_000), wall: crate::mail::Wall(1_795_371_155_000) };
        Self {
            session: Session::new(Arc::new(settings), peer, now),
            gate: TestGate::default(),
            now,
            buffer: Vec::new(),
            shares: false,
            replies: String::new(),
            messages: Vec::new(),
            output_octets_max: 0,
        }
    }

    fn new() -> Self {
        Self::with(settings(), RELAY)
    }

    /// As [`Rig::new`], behind EHLO.
    fn ready() -> Self {
        let mut rig = Self::new();
        rig.send(b"EHLO client.example\r\n");
        rig.replies.clear();
        rig
    }

    fn flush(&mut self) {
        let output = self.session.take_output();
        self.output_octets_max = self.output_octets_max.max(output.len());
        self.replies.push_str(std::str::from_utf8(&output).unwrap());
    }

    /// What a caller does; every message is accepted at once.
    fn send(&mut self, input: &[u8]) {
        self.buffer.extend_from_slice(input);
        loop {
            let (received, pins) =
                (Arc::new(ReadBuffer::from(self.buffer.clone())), Arc::default());
            let input = match self.shares {
                true => Input::shared(&received, 0, &pins),
                false => Input::from(&self.buffer),
            };
            let step = self.session.handle_input(input, &mut self.gate, self.now);
            self.buffer.drain(..step.consumed);
            self.flush();
            match step.next {
                Next::Read => {
                    assert!(self.buffer.len() < limits::COMMAND_LINE_OCTETS_MAX);
                    return;
                }
                Next::Write => {}
                Next::Message(transaction) => {
                    self.gate.close(transaction.mid);
                    self.session.answer_accepted(TestProof, transaction.mid, self.now);
                    self.messages.push(*transaction);
                }
                Next::Verdict => unreachable!("answered at once"),
                Next::Close => {
                    assert!(self.session.should_close());
                    return;
                }
            }
        }
    }

    /// The replies to `input`, `|` between their lines.
    fn ask(&mut self, input: &[u8]) -> String {
        self.replies.clear();
        self.send(input);
        self.replies.trim_end().replace("\r\n", "|")
    }

    /// The code and enhanced code of each reply line.
    fn codes(&mut self, input: &[u8]) -> String {
        let replies = self.ask(input);
        let code = |line: &str| {
            let enhanced = line.get(4..).and_then(|text| text.split(' ').next()).unwrap_or("");
            let dotted = crate::mail::Enhanced::parse_prefix(enhanced.as_bytes()).is_some();
            if dotted { format!("{} {enhanced}", &line[..3]) } else { line[..3].to_owned() }
        };
        replies.split('|').filter(|l| !l.is_empty()).map(code).collect::<Vec<_>>().join("|")
    }

    fn start(&mut self) {
        let codes = self.codes(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n");
        assert_eq!(codes, "250 2.1.0|250 2.1.5");
    }

    fn deadline_ms(&self) -> u64 {
        self.session.deadline().0
    }
}

#[test]
fn a_message_goes_from_mail_to_250() {
    let mut rig = Rig::new();
    rig.session.greet();
    assert_eq!(rig.ask(b""), "220 out.example.net ESMTP Ringpost");
    assert_eq!(
        rig.ask(b"EHLO client.example\r\n"),
        "250-out.example.net|250-PIPELINING|250-SIZE 10000|250-8BITMIME|250-SMTPUTF8|\
         250-CHUNKING|250-ENHANCEDSTATUSCODES|250 DSN"
    );
    assert_eq!(
        rig.ask(
            b"MAIL FROM:<a@b.example> SIZE=20 RET=FULL ENVID=e1\r\n\
              RCPT TO:<c@d.example> NOTIFY=DELAY ORCPT=rfc822;o@d.example\r\nDATA\r\n"
        ),
        "250 2.1.0 Ok|250 2.1.5 Ok|354 End data with <CR><LF>.<CR><LF>"
    );
    let reply = rig.ask(b"Subject: hi\r\nMessage-ID: <1@x>\r\n\r\n..dot \xc3\r\n.\r\nQUIT\r\n");
    assert_eq!(reply, "250 2.0.0 Ok: queued as 1|221 2.0.0 out.example.net closing connection");
    let message = &rig.messages[0];
    assert_eq!(text(message), b"Subject: hi\r\nMessage-ID: <1@x>\r\n\r\n.dot \xc3\r\n");
    assert_eq!(
        String::from_utf8_lossy(message.data.slice(0..message.received_octets)),
        "Received: from client.example ([192.0.2.1])\r\n\tby out.example.net with ESMTP id 1; \
         Sun, 22 Nov 2026 18:12:35 +0000\r\n"
    );
    assert_eq!(*message.subject().unwrap(), *b"hi");
    assert_eq!(*message.message_id().unwrap(), *b"<1@x>");
    assert!(message.facts.leading_dot && message.facts.eight_bit && !message.facts.utf8_header);
    assert_eq!(message.size_declared, Some(20));
    assert_eq!(message.envelope.recipients[0].orcpt.as_deref(), Some("rfc822;o@d.example"));
    assert_eq!(&*message.helo, "client.example");
    assert!(rig.session.should_close());
    assert_eq!(rig.gate.events, ["begin 1 <a@b.example> Some(20)", "to 1 0 <c@d.example>"]);
}

#[test]
fn every_command_in_and_out_of_order() {
    let table: &[(&str, &str)] = &[
        ("MAIL FROM:<a@b.example>", "503 5.5.1"),
        ("RCPT TO:<a@b.example>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("NOOP", "250 2.0.0"),
        ("RSET", "250 2.0.0"),
        ("HELP", "214 2.0.0"),
        ("VRFY a", "252 2.0.0"),
        ("EXPN a", "502 5.5.1"),
        ("TURN", "502 5.5.1"),
        ("ETRN x", "502 5.5.1"),
        ("NONSENSE", "500 5.5.1"),
        ("EHLO", "501 5.5.4"),
        ("HELO client.example", "250"),
        ("RCPT TO:<a@b.example>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("MAIL FROM:<a@b> SIZE=10001", "552 5.3.4"),
        ("MAIL FROM:<a@b> FOO=1", "555 5.5.4"),
        ("MAIL FROM:<a@b> ENVID=+", "501 5.5.4"),
        ("MAIL FROM:<\u{f6}@b>", "553 5.6.7"),
        ("MAIL FROM:<a@@b>", "501 5.1.7"),
        ("MAIL FROM:<> SIZE=10000", "250 2.1.0"),
        ("MAIL FROM:<a@b>", "503 5.5.1"),
        ("DATA", "554 5.5.1"),
        ("RCPT TO:<>", "501 5.1.3"),
        ("RCPT TO:<\u{f6}@b>", "553 5.6.7"),
        ("RCPT TO:<@r.example:a@b.example>", "250 2.1.5"),
        ("RCPT TO:<a@b.example> ORCPT=rfc822;+", "501 5.5.4"),
        ("RCPT TO:<Postmaster>", "250 2.1.5"),
        ("NOOP", "250 2.0.0"),
        ("RCPT TO:<\"a@b\"@c.example>", "250 2.1.5"),
        ("RCPT TO:<x@c.example>", "452 4.5.3"),
        ("DATA now", "501 5.5.4"),
        ("DATA", "354"),
    ];
    let mut rig = Rig::new();
    for (line, codes) in table {
        assert_eq!(rig.codes(format!("{line}\r\n").as_bytes()), *codes, "{line}");
    }
    assert_eq!(rig.codes(b".\r\nQUIT\r\n"), "250 2.0.0|221 2.0.0");
    let recipients: Vec<_> =
        rig.messages[0].envelope.recipients.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(recipients, ["a@b.example", "postmaster@out.example.net", "\"a@b\"@c.example"]);
    assert!(String::from_utf8_lossy(&rig.messages[0].data.behind(0)).contains(" with SMTP id 1;"));
    assert!(text(&rig.messages[0]).is_empty());
    assert!(rig.gate.events.contains(&"refused 1 <x@c.example> 452".to_owned()));
}

#[test]
fn whoever_may_not_relay_gets_nothing_through() {
    let mut rig = Rig::with(settings(), Peer { relay: false, ..RELAY });
    assert_eq!(rig.codes(b"HELO x\r\n"), "250");
    assert_eq!(rig.codes(b"MAIL FROM:<a@b.example>\r\n"), "250 2.1.0");
    for path in [
        "a@b.example",
        "a%b@us.example",
        "\"a@b\"@us.example",
        "@x.example:a@b.example",
        "postmaster",
        "a@[192.0.2.1]",
    ] {
        assert_eq!(rig.codes(format!("RCPT TO:<{path}>\r\n").as_bytes()), "550 5.7.1", "{path}");
    }
    assert_eq!(rig.codes(b"DATA\r\n"), "554 5.5.1");
    assert_eq!(rig.codes(b"DATA\r\nSubject: x\r\n"), "554 5.5.0");
    assert!(rig.session.should_close() && rig.messages.is_empty() && rig.gate.open.is_empty());
    let mut rig = Rig::with(settings(), Peer { relay: false, ..RELAY });
    assert_eq!(rig.codes(b"EHLO x\r\nMAIL FROM:<a@b>\r\n"), "554 5.5.0");
    assert!(rig.session.should_close());
}

#[test]
fn talk_before_the_greeting_ends_the_session() {
    let mut rig = Rig::new();
    rig.session.handle_early_talk();
    assert_eq!(rig.codes(b"EHLO x\r\n"), "554 5.5.0");
    assert!(rig.session.should_close());
}

#[test]
fn the_engine_refuses_at_mail_at_rcpt_and_at_the_end() {
    let mut rig = Rig::ready();
    rig.gate.refuse_mail = Some(Refusal::new(452, 3, 1, "Queue full"));
    assert_eq!(rig.ask(b"MAIL FROM:<a@b>\r\n"), "452 4.3.1 Queue full");
    rig.gate.refuse_mail = None;
    rig.gate.refuse_rcpt = Some(Refusal::new(451, 4, 4, "No\r\nroute"));
    assert_eq!(
        rig.ask(b"MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\n"),
        "250 2.1.0 Ok|451 4.4.4 No  route"
    );
    rig.gate.refuse_rcpt = Some(Refusal::new(421, 3, 2, "Stopping"));
    assert_eq!(rig.ask(b"RCPT TO:<a@b>\r\nNOOP\r\n"), "421 4.3.2 Stopping");
    assert_eq!(rig.gate.events.last().unwrap(), "aborted 1 SentAway");

    let mut rig = Rig::ready();
    rig.start();
    let input = b"DATA\r\nx\r\n.\r\nNOOP\r\n";
    let step = rig.session.handle_input(input, &mut rig.gate, rig.now);
    let Next::Message(message) = step.next else { panic!("{step:?}") };
    assert_eq!(&input[step.consumed..], b"NOOP\r\n");
    assert_eq!(rig.session.deadline(), Mono(u64::MAX));
    assert!(rig.session.take_output().starts_with(b"354 "));
    let held = rig.session.handle_input(b"NOOP\r\n", &mut rig.gate, rig.now);
    assert!(matches!(held, Step { consumed: 6, next: Next::Read }));
    assert!(!rig.session.has_output(), "the reply waits behind the verdict");
    rig.session.handle_closed(&mut TestGate::default());
    let mut other = Rig::ready();
    other.start();
    let step = other.session.handle_input(input, &mut other.gate, other.now);
    assert!(matches!(step.next, Next::Message(_)));
    let refusal = Refusal::new(451, 3, 0, "Disk failed");
    other.session.answer_refused(&refusal, message.mid, other.now);
    assert_eq!(other.codes(b"NOOP\r\n"), "354|451 4.3.0|250 2.0.0");
}

#[test]
fn a_client_goes_on_while_verdicts_are_due_and_replies_keep_their_order() {
    let mut rig = Rig::ready();
    let one = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 3 LAST\r\nx\r\n";
    let input = [&one[..], one, one, b"NOOP\r\n"].concat();
    let (mut at, mut mids) = (0, Vec::new());
    loop {
        let step = rig.session.handle_input(&input[at..], &mut rig.gate, rig.now);
        at += step.consumed;
        match step.next {
            Next::Message(message) => mids.push(message.mid),
            Next::Read => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((at, mids.len()), (input.len(), 3));
    assert!(!rig.session.has_output(), "nobody waits for what stands before a verdict");
    let mut said = |mid: Mid| {
        rig.session.answer_accepted(TestProof, mid, rig.now);
        rig.session.has_output().then(|| String::from_utf8(rig.session.take_output()).unwrap())
    };
    let envelope = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n";
    let queued = |mid: Mid| format!("250 2.0.0 Ok: queued as {mid}\r\n");
    assert_eq!(said(mids[2]), None);
    let first = format!("{envelope}{}{envelope}", queued(mids[0]));
    assert_eq!(said(mids[0]), Some(first));
    let rest = format!("{}{envelope}{}250 2.0.0 Ok\r\n", queued(mids[1]), queued(mids[2]));
    assert_eq!(said(mids[1]), Some(rest));
    assert!(!rig.session.has_message_in_hand());
}

#[test]
fn a_client_has_to_wait_when_its_hands_are_full() {
    let mut rig = Rig::ready();
    let one = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 3 LAST\r\nx\r\n";
    let mut mids = Vec::new();
    while mids.len() < limits::CLIENT_MESSAGES_IN_HAND_MAX {
        let step = rig.session.handle_input(one, &mut rig.gate, rig.now);
        let Next::Message(message) = step.next else { panic!("{step:?}") };
        assert_eq!(step.consumed, one.len());
        mids.push(message.mid);
    }
    let step = rig.session.handle_input(one, &mut rig.gate, rig.now);
    assert!(matches!(step, Step { consumed: 0, next: Next::Verdict }), "{step:?}");
    rig.session.answer_accepted(TestProof, mids[0], rig.now);
    let step = rig.session.handle_input(one, &mut rig.gate, rig.now);
    assert!(matches!(step.next, Next::Message(_)), "{step:?}");
}

#[test]
#[should_panic(expected = "a verdict that nobody waits for")]
fn nothing_is_accepted_twice() {
    let mut rig = Rig::ready();
    rig.session.answer_accepted(TestProof, Mid(1), rig.now);
}

#[test]
fn smuggled_ends_are_refused_at_the_true_end() {
    let vectors: &[&[u8]] = &[
        b"\n.\n",
        b"\n.\r",
        b"\r.\n",
        b"\r.\r",
        b"\n.\r\n",
        b"\r.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\r\n",
    ];
    for vector in vectors {
        let mut rig = Rig::ready();
        rig.start();
        let text = vector.escape_ascii();
        let mut data = b"Subject: x\r\n\r\nbody".to_vec();
        data.extend_from_slice(vector);
        data.extend_from_slice(b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<c@d.example>\r\n");
        let bdat = format!("BDAT {} LAST\r\n", data.len());
        let chunk = [bdat.as_bytes(), &data, b"NOOP\r\n"];
        let dots = [b"DATA\r\n", &data[..], b".\r\nNOOP\r\n"].concat();
        let end = if vector.contains(&0) { "250 2.0.0" } else { "550 5.5.2" };
        assert_eq!(rig.codes(&dots), format!("354|{end}|250 2.0.0"), "{text}");
        rig.start();
        assert_eq!(rig.codes(&chunk.concat()), format!("{end}|250 2.0.0"), "{text}");
        assert_eq!(rig.gate.mids, 2, "{text}");
    }
}

#[test]
fn only_crlf_ends_a_command() {
    for line in [&b"NOOP\nRSET\r\n"[..], b"NOOP\n", b"NO\rOP\r\nNOOP\r\n", b"NOOP\r\r\n"] {
        let mut rig = Rig::ready();
        assert_eq!(rig.codes(line), "500 5.5.2", "{}", line.escape_ascii());
        assert!(rig.session.should_close());
    }
    let mut rig = Rig::ready();
    assert_eq!(
        rig.codes(b"NOOP\0\r\n\xff\xfe\r\n\r\nNOOP\r\n"),
        "500 5.5.2|500 5.5.1|500 5.5.1|250 2.0.0"
    );
}

#[test]
fn a_line_without_end_is_thrown_away_up_to_a_bound() {
    let mut rig = Rig::ready();
    let line = [&[b'a'; 5000][..], b"\n\rb\r\nNOOP\r\n"].concat();
    assert_eq!(rig.codes(&line), "500 5.5.2|250 2.0.0");
    let fits = [b"NOOP ".to_vec(), vec![b'a'; 2041], b"\r\n".to_vec()].concat();
    assert_eq!((fits.len(), &*rig.codes(&fits)), (2048, "250 2.0.0"));
    let over = [b"NOOP ".to_vec(), vec![b'a'; 2042], b"\r\n".to_vec()].concat();
    assert_eq!(rig.codes(&over), "500 5.5.2");
    let mut replies = String::new();
    for _ in 0..200 {
        replies.push_str(&rig.codes(&[b'a'; 1000]));
    }
    assert_eq!(replies, "500 5.5.2421 4.7.0");
    assert!(rig.session.should_close());
}

#[test]
fn chunks() {
    /// Input behind a transaction with one recipient, replies, messages.
    type Row<'a> = (&'a [u8], &'a str, &'a [&'a [u8]]);
    let table: &[Row<'_>] = &[
        (b"BDAT 3 LAST\r\na\r\n", "250 2.0.0", &[b"a\r\n"]),
        (b"BDAT 0 LAST\r\n", "250 2.0.0", &[b""]),
        (b"BDAT 2\r\na\rBDAT 3 LAST\r\n\nb.", "250 2.0.0|250 2.0.0", &[b"a\r\nb.\r\n"]),
        (b"BDAT 2\r\na\rBDAT 0 LAST\r\n", "250 2.0.0|550 5.5.2", &[]),
        (b"BDAT 5\r\n.\r\n..BDAT 0 LAST\r\n", "250 2.0.0|250 2.0.0", &[b".\r\n..\r\n"]),
        (b"BDAT 3\r\na\r\nRSET\r\nNOOP\r\n", "250 2.0.0|250 2.0.0|250 2.0.0", &[]),
        (b"BDAT 3\r\na\r\nDATA\r\nBDAT 0 LAST\r\n", "250 2.0.0|503 5.5.1|250 2.0.0", &[b"a\r\n"]),
        (b"BDAT 3\r\na\r\nRCPT TO:<a@b>\r\n", "250 2.0.0|503 5.5.1", &[]),
        // A failed chunk fails the transaction; those behind it find none.
        (b"BDAT 3\r\na\nbBDAT 3 LAST\r\na\r\n", "550 5.5.2|503 5.5.1", &[]),
        (b"RSET\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", "250 2.0.0|503 5.5.1|250 2.0.0", &[]),
        (b"BDAT 1073741825 LAST\r\n", "552 5.3.4", &[]),
        (b"BDAT -1\r\nNOOP\r\n", "501 5.5.4", &[]),
        (b"BDAT 99999999999999999999\r\nNOOP\r\n", "501 5.5.4", &[]),
        (
            b"BDAT 3 LAST\r\na\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 3 LAST\r\nb\r\n",
            "250 2.0.0|250 2.1.0|250 2.1.5|250 2.0.0",
            &[b"a\r\n", b"b\r\n"],
        ),
    ];
    for (input, codes, messages) in table {
        let mut rig = Rig::ready();
        rig.start();
        assert_eq!(rig.codes(input), *codes, "{}", input.escape_ascii());
        let taken: Vec<_> = rig.messages.iter().map(text).collect();
        assert_eq!(taken, *messages, "{}", input.escape_ascii());
    }
}

#[test]
fn a_chunk_after_a_failed_mail_is_thrown_away_without_memory() {
    let mut rig = Rig::ready();
    assert_eq!(rig.codes(b"MAIL FROM:<a@@b>\r\nBDAT 1000000 LAST\r\n"), "501 5.1.7");
    for _ in 0..1000 {
        assert_eq!(rig.session.held_octets(), 0);
        assert!(rig.ask(&[b'\n'; 999]).is_empty());
    }
    assert_eq!(rig.codes(&[b'x'; 1000]), "503 5.5.1");
    assert_eq!(
        rig.codes(b"MAIL FROM:<>\r\nBDAT 1 LAST\r\nxNOOP\r\n"),
        "250 2.1.0|554 5.5.1|250 2.0.0"
    );
}

#[test]
fn a_message_over_the_limit_is_not_stored_and_refused_at_its_end() {
    let line = [&[b'x'; 98][..], b"\r\n"].concat();
    for (lines, codes) in [(100, "354|250 2.0.0"), (101, "354|552 5.3.4")] {
        let mut rig = Rig::ready();
        rig.start();
        let input = [b"DATA\r\n".to_vec(), line.repeat(lines), b".\r\n".to_vec()].concat();
        assert_eq!(rig.codes(&input), codes);
    }
    let mut rig = Rig::ready();
    rig.start();
    rig.send(b"DATA\r\n");
    for _ in 0..10_000 {
        rig.send(&line);
        assert!(rig.session.held_octets() <= 2 * 10_200);
    }
    assert!(rig.session.held_octets() < 100, "its envelope");
    assert_eq!(rig.codes(b".\r\nNOOP\r\n"), "552 5.3.4|250 2.0.0");
    rig.start();
    assert_eq!(
        rig.codes(&[b"BDAT 10001\r\n", &[b'x'; 10_001][..], b"BDAT 0 LAST\r\n"].concat()),
        "552 5.3.4|503 5.5.1"
    );
}

#[test]
fn long_lines_headers_and_loops() {
    let data = |body: &[u8]| [b"DATA\r\n", body, b"\r\n.\r\n"].concat();
    let big = ServerSettings { message_octets_max: 3 << 20, ..settings() };
    let strict = ServerSettings { long_lines: LongLines::Reject, ..big.clone() };
    let hops = |n: usize| b"Received: x\r\n".repeat(n);
    let header = |octets: usize| [b"A: ".to_vec(), b"xxx\r\n ".repeat(octets / 6)].concat();
    let table: &[(&ServerSettings, Vec<u8>, &str)] = &[
        (&big, vec![b'x'; 64 * 1024], "250 2.0.0"),
        (&big, vec![b'x'; 64 * 1024 + 1], "554 5.6.0"),
        (&strict, vec![b'x'; 998], "250 2.0.0"),
        (&strict, vec![b'x'; 999], "554 5.6.0"),
        (&big, hops(99), "250 2.0.0"),
        (&big, hops(100), "554 5.4.6"),
        (&big, [b"\r\n".to_vec(), hops(100)].concat(), "250 2.0.0"),
        (&big, header((1 << 20) - 100), "250 2.0.0"),
        (&big, header((1 << 20) + 100), "554 5.6.0"),
    ];
    for (settings, body, code) in table {
        let mut rig = Rig::with((*settings).clone(), RELAY);
        rig.send(b"EHLO x\r\n");
        rig.start();
        assert_eq!(rig.codes(&data(body)), format!("354|{code}"), "{}", body.len());
    }
}

#[test]
fn too_many_errors_but_not_too_many_recipients_end_the_session() {
    let mut rig = Rig::ready();
    rig.start();
    assert_eq!(rig.codes(&b"RCPT TO:<a@b>\r\n".repeat(2)), "250 2.1.5|250 2.1.5");
    assert_eq!(rig.codes(&b"RCPT TO:<a@b>\r\n".repeat(500)).matches("452 4.5.3").count(), 500);
    assert_eq!(rig.codes(b"DATA\r\nx\r\n.\r\n"), "354|250 2.0.0");
    assert_eq!(rig.messages[0].envelope.recipients.len(), 3);
    rig.send(&b"BAD\r\n".repeat(99));
    assert!(!rig.session.should_close());
    assert_eq!(rig.codes(b"BAD\r\nNOOP\r\n"), "500 5.5.1|421 4.7.0");
    assert!(rig.session.should_close());
}

#[test]
fn whatever_ends_a_transaction_the_engine_hears_it_once() {
    let table: &[(&[u8], &str)] = &[
        (b"RSET\r\n", "aborted 1 Reset"),
        (b"EHLO again\r\n", "aborted 1 Reset"),
        (b"QUIT\r\n", "aborted 1 Quit"),
        (b"NOOP\n", "aborted 1 SentAway"),
        (b"DATA\r\na\nb\r\n.\r\n", "aborted 1 Refused"),
        (b"DATA\r\na", "aborted 1 Lost"),
        (b"BDAT 10\r\na", "aborted 1 Lost"),
        (b"BDAT 1\r\na", "aborted 1 Lost"),
        (b"", "aborted 1 Lost"),
    ];
    for (input, event) in table {
        let mut rig = Rig::ready();
        rig.start();
        rig.send(input);
        rig.session.handle_closed(&mut rig.gate);
        rig.session.handle_closed(&mut rig.gate);
        assert_eq!(rig.gate.events.last().unwrap(), event, "{}", input.escape_ascii());
        assert!(rig.gate.open.is_empty() && rig.session.held_octets() == 0);
    }
}

#[test]
fn deadlines() {
    let mut rig = Rig::ready();
    assert_eq!(rig.deadline_ms(), 301_000);
    rig.now = rig.now.plus_ms(100_000);
    rig.send(b"NOO");
    assert_eq!(rig.deadline_ms(), 301_000, "a part of a command is no command");
    rig.send(b"P\r\n");
    assert_eq!(rig.deadline_ms(), 401_000);
    rig.start();
    rig.send(b"DATA\r\n");
    for _ in 0..5 {
        rig.now = rig.now.plus_ms(120_000);
        rig.send(b"x");
    }
    assert_eq!(rig.now.mono, Mono(701_000));
    assert_eq!(rig.deadline_ms(), 701_004, "the grace is over, the rate too low");
    rig.session.handle_deadline(&mut rig.gate, rig.now);
    assert!(!rig.session.should_close());
    rig.now = rig.now.plus_ms(4);
    rig.session.handle_deadline(&mut rig.gate, rig.now);
    assert_eq!(rig.codes(b"more"), "421 4.4.2");
    assert_eq!(rig.gate.events.last().unwrap(), "aborted 1 Timeout");
}

#[test]
fn chunks_of_one_octet_do_not_prolong_a_message() {
    let mut rig = Rig::ready();
    rig.start();
    for _ in 0..3 {
        rig.now = rig.now.plus_ms(250_000);
        assert_eq!(rig.codes(b"BDAT 1\r\nx"), "250 2.0.0");
    }
    assert_eq!(rig.deadline_ms(), 851_002);
}

/// A client that sends `drip` every `every_ms` behind `start`. `ends_ms`: when it hears 421,
/// counted from `start`; `None`: it may go on.
struct Slow {
    start: &'static [u8],
    drip: &'static [u8],
    every_ms: u64,
    ends_ms: Option<u64>,
}

/// Every way to be slow has its end, and none of them ends who is merely slow.
#[test]
fn a_slow_client_is_sent_away_when_its_time_is_over() {
    let slow = |start, drip, every_ms, ends_ms| Slow { start, drip, every_ms, ends_ms };
    const MAIL: &[u8] = b"MAIL FROM:<>\r\n";
    const DATA: &[u8] = b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n";
    const CHUNK: &[u8] = b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 9000000\r\n";
    const LINE: &[u8; 2048] = &{
        let mut line = [b'x'; 2048];
        [line[2046], line[2047]] = *b"\r\n";
        line
    };
    let table = [
        // Silence, before and within a transaction, and within a message.
        slow(b"", b"", 1_000, Some(300_000)),
        slow(MAIL, b"", 1_000, Some(300_000)),
        slow(DATA, b"", 1_000, Some(300_000)),
        slow(CHUNK, b"", 1_000, Some(300_000)),
        slow(b"BDAT 9000000\r\n", b"", 1_000, Some(300_000)),
        // A command that comes octet by octet, too long in the end.
        slow(b"", b"N", 1_000, Some(300_000)),
        slow(MAIL, b"N", 20, Some(300_000)),
        // Whole commands, each in its time.
        slow(b"", b"NOOP\r\n", 299_000, None),
        slow(MAIL, b"RCPT TO:<a@b>\r\n", 299_000, None),
        // A message octet by octet: ten minutes, and a second for each kilobyte in them.
        slow(DATA, b"x", 1_000, Some(601_000)),
        slow(CHUNK, b"x", 1_000, Some(601_000)),
        slow(DATA, b"x", 299_000, Some(897_000)),
        slow(DATA, LINE.split_at(512).1, 3_000, Some(1_197_000)),
        // Above the lowest rate it may take for ever.
        slow(DATA, LINE, 1_900, None),
        slow(CHUNK, LINE, 1_900, None),
    ];
    let big = ServerSettings { message_octets_max: 30 << 20, ..settings() };
    for Slow { start, drip, every_ms, ends_ms } in table {
        let shown = format!("{}, {} every {every_ms} ms", start.escape_ascii(), drip.len());
        let mut rig = Rig::with(big.clone(), RELAY);
        rig.send(b"EHLO client.example\r\n");
        rig.send(start);
        rig.replies.clear();
        let begun = rig.now.mono;
        while !rig.session.should_close() && rig.now.mono.since_ms(begun) < 7_200_000 {
            rig.now = rig.now.plus_ms(every_ms);
            rig.session.handle_deadline(&mut rig.gate, rig.now);
            rig.send(drip);
        }
        rig.flush();
        let took = rig.session.should_close().then(|| rig.now.mono.since_ms(begun));
        assert_eq!(took, ends_ms, "{shown}");
        assert_eq!(rig.replies.contains("421 4.4.2 Timeout\r\n"), ends_ms.is_some(), "{shown}");
        if took.is_some() {
            assert!(rig.gate.open.is_empty(), "{shown}");
            assert_eq!((rig.session.held_octets(), rig.messages.len()), (0, 0), "{shown}");
            // Some time to read that.
            let late = rig.session.deadline().since_ms(rig.now.mono);
            assert!((290_000..=600_000).contains(&late), "{shown}: {late}");
        }
    }
}

#[test]
fn a_client_has_time_to_read_its_last_reply_but_not_for_ever() {
    let mut rig = Rig::ready();
    rig.now = rig.now.plus_ms(10_000);
    assert_eq!(rig.codes(b"QUIT\r\n"), "221 2.0.0");
    assert_eq!(rig.deadline_ms(), 11_000 + 600_000);
    // A message that is with the engine has its verdict first.
    let mut rig = Rig::ready();
    rig.start();
    let step = rig.session.handle_input(b"DATA\r\n.\r\nQUIT\r\n", &mut rig.gate, rig.now);
    let Next::Message(message) = step.next else { panic!("{step:?}") };
    let step = rig.session.handle_input(b"QUIT\r\n", &mut rig.gate, rig.now);
    assert!(matches!(step.next, Next::Read | Next::Close), "{step:?}");
    assert_eq!(rig.session.deadline(), Mono(u64::MAX));
    rig.now = rig.now.plus_ms(50_000);
    rig.session.answer_accepted(TestProof, message.mid, rig.now);
    assert_eq!(rig.deadline_ms(), rig.now.mono.0 + 600_000);
}

#[test]
fn a_stop_waits_for_the_message_that_comes_in() {
    let mut rig = Rig::ready();
    rig.start();
    rig.session.begin_shutdown(&mut rig.gate);
    assert_eq!(rig.gate.events.last().unwrap(), "aborted 1 Shutdown");
    assert_eq!(rig.codes(b"DATA\r\n"), "421 4.3.2");

    let mut rig = Rig::ready();
    rig.start();
    rig.send(b"DATA\r\nx");
    rig.session.begin_shutdown(&mut rig.gate);
    assert_eq!(rig.codes(b"y\r\n.\r\nMAIL FROM:<>\r\n"), "250 2.0.0|421 4.3.2");
    assert_eq!((rig.messages.len(), rig.gate.mids), (1, 1));
}

#[test]
fn a_stop_comes_between_two_chunks_but_not_within_one() {
    let mut rig = Rig::ready();
    rig.start();
    rig.send(b"BDAT 3\r\nx");
    rig.session.begin_shutdown(&mut rig.gate);
    assert!(!rig.session.should_close());
    assert_eq!(rig.codes(b"\r\nBDAT 0 LAST\r\n"), "250 2.0.0|421 4.3.2");
    assert_eq!(rig.gate.events.last().unwrap(), "aborted 1 Shutdown");
}

#[test]
fn the_trace_names_the_protocol() {
    for (hello, parameter, protocol) in [
        ("HELO", "", " with SMTP id "),
        ("EHLO", "", " with ESMTP id "),
        ("EHLO", " SMTPUTF8", " with UTF8SMTP id "),
    ] {
        let mut rig = Rig::new();
        rig.send(format!("{hello} x\r\nMAIL FROM:<>{parameter}\r\n").as_bytes());
        rig.send(b"RCPT TO:<a@b.example>\r\nDATA\r\nSubject: \xc3\xb6\r\n.\r\n");
        let message = &rig.messages[0];
        assert!(String::from_utf8_lossy(&message.data.behind(0)).contains(protocol));
        assert!(message.facts.utf8_header);
    }
}

#[test]
fn a_message_dropped_by_the_engine_is_refused_at_its_end() {
    let mut rig = Rig::ready();
    rig.start();
    rig.send(b"DATA\r\nx");
    rig.session.drop_message(Refusal::new(452, 3, 1, "Out of memory"));
    assert!(rig.session.held_octets() < 100, "its envelope");
    assert_eq!(rig.ask(b"y\r\n.\r\n"), "452 4.3.1 Out of memory");
    rig.session.drop_message(Refusal::new(452, 3, 1, "Out of memory"));
    assert_eq!(rig.codes(b"NOOP\r\n"), "250 2.0.0");
}

#[test]
fn output_is_bounded_while_input_is_left() {
    let mut rig = Rig::ready();
    rig.send(&b"EHLO x\r\n".repeat(4000));
    assert!(rig.output_octets_max <= limits::SERVER_OUTPUT_OCTETS_MAX + 1024);
    assert_eq!(rig.replies.matches("250 DSN").count(), 4000);
}

/// A message as the client sent it.
fn text(message: &Transaction) -> Vec<u8> {
    message.data.behind(message.received_octets).into_owned()
}

/// Replies, messages with their envelopes, events.
type Outcome = (String, Vec<(Vec<u8>, String)>, Vec<String>);

/// All that a client can see of a session, and all that comes out of it.
fn outcome(input: &[u8], piece: usize, shares: bool) -> Outcome {
    let mut rig = Rig::ready();
    rig.shares = shares;
    for piece in input.chunks(piece) {
        if !rig.session.should_close() {
            rig.send(piece);
        }
    }
    let envelope = |t: &Transaction| format!("{:?} {:?} {:?}", t.mid, t.envelope, t.facts);
    let of = |t: &Transaction| (t.data.behind(0).into_owned(), envelope(t));
    let messages = rig.messages.iter().map(of).collect();
    rig.session.handle_closed(&mut rig.gate);
    assert!(rig.gate.open.is_empty(), "every MID came back");
    (rig.replies, messages, rig.gate.events)
}

#[test]
fn the_cut_of_the_reads_changes_nothing() {
    let long = [&[b'z'; 3000][..], b"\r\n"].concat();
    let input = [
        b"MAIL FROM:<a@b.example> SIZE=5\r\nRCPT TO:<c@d.example>\r\nDATA\r\n".as_slice(),
        b"Subject: x\r\n..y\r\n\r\n.\r\nNOOP\r\nBAD\r\n",
        &long,
        b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nSubject: ",
        &long,
        b"..y\r\n",
        &long,
        b".\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 3002\r\n",
        &long,
        b"BDAT 3001 LAST\r\n",
        &long[1..],
        b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 5\r\na\r\n.\rBDAT 3 LAST\r\n\n.\nRSET\r\n",
        b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<a@@b>\r\nBDAT 4 LAST\r\n.\r\n.",
        b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nx\r.\r\n.\r\nBDAT 0\r\nQUIT\r\nNOOP\r\n",
    ]
    .concat();
    let whole = outcome(&input, input.len(), false);
    assert_eq!(whole.1.len(), 4);
    assert!(whole.0.ends_with("221 2.0.0 out.example.net closing connection\r\n"));
    for piece in [1, 2, 3, 5, 7, 64, 1000, 2047, 2048, 2049] {
        assert_eq!(outcome(&input, piece, false), whole, "{piece}");
        assert_eq!(outcome(&input, piece, true), whole, "{piece}");
    }
}

/// Pieces of a dialogue, whole and broken.
/// The header is read as a whole, wherever it is cut in two.
#[test]
fn a_header_may_lie_in_two_reads() {
    let fields: String = (0..60)
        .map(|n| format!("Received: from host-{n}\r\n by other; {n}\r\nX-{n}: y\r\n"))
        .collect();
    let header = format!("{fields}Subject: gr\u{fc}n\r\n\r\n");
    let message = format!("{header}{}", "z\r\n".repeat(1500)).into_bytes();
    let start = format!(
        "MAIL FROM:<a@b.example> SMTPUTF8\r\nRCPT TO:<c@d.example>\r\nBDAT {} LAST\r\n",
        message.len()
    );
    for cut in 1000..header.len() + 10 {
        let mut rig = Rig::ready();
        rig.shares = true;
        rig.send(start.as_bytes());
        rig.send(&message[..cut]);
        rig.send(&message[cut..]);
        let [taken] = &rig.messages[..] else { panic!("{}", rig.replies) };
        assert_eq!(taken.header.octets, header.len() - 2, "cut at {cut}");
        assert_eq!((taken.header.received_fields, taken.facts.utf8_header), (60, true));
        assert_eq!(taken.subject().unwrap(), "gr\u{fc}n".as_bytes());
        assert_eq!(text(taken), message);
    }
}

fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&[u8]> = vec![
        b"EHLO x\r\n",
        b"MAIL FROM:<a@b.example>\r\n",
        b"MAIL FROM:<> SIZE=9999 BODY=8BITMIME SMTPUTF8\r\n",
        b"RCPT TO:<c@d.example>\r\n",
        b"RCPT TO:<c@d.example> NOTIFY=NEVER\r\n",
        b"DATA\r\n",
        b".\r\n",
        b"..\r\n",
        b"BDAT 5\r\nab\r\nc",
        b"BDAT 7 LAST\r\n.\r\nxy\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 300\r\n",
        b"RSET\r\n",
        b"QUIT\r\n",
        b"Subject: x\r\n\r\n",
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff\xc3\xb6\r\n",
    ];
    prop_oneof![
        12 => proptest::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..50),
        1 => proptest::collection::vec(Just(b'x'), 2000..2100),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_dialogue_is_the_same_however_it_is_cut(
        fragments in proptest::collection::vec(fragment(), 0..30),
        piece in 1..3000_usize,
    ) {
        let input = fragments.concat();
        let whole = outcome(&input, input.len().max(1), false);
        prop_assert_eq!(&outcome(&input, piece, true), &whole);
        for line in whole.0.split("\r\n").filter(|line| !line.is_empty()) {
            prop_assert!(line.len() > 3 && !line.contains(char::is_control));
        }
        for (data, _) in &whole.1 {
            prop_assert!(data.len() <= 10_000 + 1_000 && data.ends_with(b"\r\n"));
            let text = data.split(|b| *b == b'\n');
            let lines = text.clone().count() - 1;
            let is_clean = |line: &[u8]| {
                line.ends_with(b"\r") && memchr::memchr_iter(b'\r', line).count() == 1
            };
            prop_assert!(text.take(lines).all(is_clean));
        }
    }

    #[test]
    fn random_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let whole = outcome(&input, 3000, true);
        prop_assert!(whole.0.len() < 100_000);
    }
}

#[test]
fn what_is_wanted_of_memory() {
    let big = ServerSettings { message_octets_max: 3 << 20, ..settings() };
    let mut rig = Rig::with(big, RELAY);
    let wanted = |rig: &Rig, input| rig.session.memory_wanted(input);
    let between = wanted(&rig, 100).unwrap();
    assert_eq!((between.octets, between.whole, between.in_message), (100, None, false));
    rig.send(b"EHLO c.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\n");
    assert_eq!(wanted(&rig, 100), None, "commands are small");
    rig.send(b"DATA\r\n");
    let small = wanted(&rig, 100).unwrap();
    assert!(small.in_message && small.whole.is_none() && small.octets < 2000, "{small:?}");
    let grows = wanted(&rig, 256 * 1024).unwrap();
    assert_eq!(grows.whole.map(|whole| whole >> 20), Some(3), "it may become as large as any");
    rig.session.make_room(1 << 20);
    assert_eq!(rig.session.held_octets(), 1 << 20);
    rig.send(b".\r\nMAIL FROM:<> SIZE=300000\r\nRCPT TO:<a@b.example>\r\nDATA\r\n");
    let declared = wanted(&rig, 1).unwrap();
    assert!((300_000..400_000).contains(&declared.whole.unwrap()), "{declared:?}");
    let false_size = wanted(&rig, 400_000).unwrap();
    assert_eq!(false_size.whole.map(|whole| whole >> 20), Some(3));
    rig.session.drop_message(Refusal::new(452, 3, 1, "Out of memory"));
    assert_eq!(wanted(&rig, 1), None, "nothing of it is kept");
}

#[test]
fn the_time_of_a_client_stands_still_while_nothing_is_read() {
    let mut rig = Rig::ready();
    rig.start();
    rig.send(b"DATA\r\n");
    let (since, before) = (rig.now.mono, rig.deadline_ms());
    rig.now = rig.now.plus_ms(100_000);
    rig.session.handle_pause(since, rig.now.mono);
    assert_eq!(rig.deadline_ms(), before + 100_000);
}
