//! One SMTP dialogue of a sink, without its socket: octets in, replies out.
//!
//! Owns: the parser and the state of one connection. Never: I/O. The replies to everything that
//! one read brought are gathered into one buffer, so that they leave in one write.
//!
//! Limits: a command line of [`LINE_OCTETS_MAX`]; a longer one ends the connection with 500. Of a
//! message that is kept, [`MESSAGE_OCTETS_MAX`]; a longer one is answered with 552.

use memchr::{memchr, memmem};

use super::Shared;
use super::ledger::Envelope;
use super::script::{Reply, Script, Stage};

/// Longest command line, in octets without its line end.
pub(super) const LINE_OCTETS_MAX: usize = 64 * 1024;

/// Largest message, in octets; also what EHLO offers as SIZE.
pub(super) const MESSAGE_OCTETS_MAX: u64 = 1 << 30;

/// What ends a message sent by DATA (RFC 5321 4.1.1.4).
const END_OF_DATA: &[u8] = b"\r\n.\r\n";

/// What the connection does after the replies are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// It reads on.
    Read,
    /// It says nothing any more, and reads on.
    Mute,
    /// It reads no more, and stays open.
    Stall,
    /// It closes.
    Close,
}

/// Where octets go that come next.
#[derive(Clone, Copy)]
enum Expect {
    Command,
    /// A message by DATA, up to its final dot.
    Text,
    /// A chunk by BDAT.
    Chunk {
        left: u64,
        last: bool,
        /// Whether there is a transaction to which it belongs.
        valid: bool,
    },
    /// Anything, and no answer.
    Anything,
}

/// The state of one connection.
pub(super) struct Dialogue {
    expect: Expect,
    /// The beginning of a command line whose end has not come.
    held: Vec<u8>,
    /// The greeting was a refusal: all but QUIT is answered with 503 (RFC 5321 3.1).
    refused: bool,
    /// MAIL was accepted.
    in_transaction: bool,
    /// Recipients accepted in this transaction.
    recipients: u64,
    envelope: Envelope,
    /// Octets of the message so far, as sent.
    octets: u64,
    /// The message so far, when messages are kept.
    kept: Vec<u8>,
    /// The last octets before those that come next, where a final dot may have begun.
    tail: Vec<u8>,
}

/// What one step needs beside the state.
struct Turn<'a> {
    shared: &'a Shared,
    script: &'a Script,
    out: &'a mut Vec<u8>,
}

impl Turn<'_> {
    fn reply(&mut self, reply: &Reply) -> Next {
        self.out.extend_from_slice(&reply.octets);
        reply.next()
    }

    fn text(&mut self, text: &str) -> Next {
        self.out.extend_from_slice(text.as_bytes());
        self.out.extend_from_slice(b"\r\n");
        Next::Read
    }

    fn breaks_at(&self, stage: Stage) -> Option<Next> {
        self.script.breaks_at(stage)
    }
}

impl Reply {
    /// How the connection goes on behind this reply; 421 closes it (RFC 5321 3.8).
    pub(super) fn next(&self) -> Next {
        match self.code {
            Some(421) => Next::Close,
            None if self.octets.is_empty() => Next::Mute,
            _ => Next::Read,
        }
    }
}

impl Dialogue {
    /// The state after a greeting.
    pub(super) fn new(greeting: &Reply) -> Dialogue {
        let mute = greeting.next() == Next::Mute;
        Dialogue {
            expect: if mute { Expect::Anything } else { Expect::Command },
            held: Vec::new(),
            refused: greeting.code.is_some() && !greeting.is_positive(),
            in_transaction: false,
            recipients: 0,
            envelope: Envelope::default(),
            octets: 0,
            kept: Vec::new(),
            tail: Vec::with_capacity(END_OF_DATA.len() * 2),
        }
    }

    /// Takes what was read and appends the replies to `out`.
    pub(super) fn feed(
        &mut self,
        shared: &Shared,
        script: &Script,
        octets: &[u8],
        out: &mut Vec<u8>,
    ) -> Next {
        let mut turn = Turn { shared, script, out };
        if self.held.is_empty() {
            return self.run(&mut turn, octets);
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(octets);
        self.run(&mut turn, &held)
    }

    fn run(&mut self, turn: &mut Turn<'_>, mut rest: &[u8]) -> Next {
        while !rest.is_empty() {
            let next = match self.expect {
                Expect::Command => {
                    let Some(end) = memchr(b'\n', rest) else {
                        if rest.len() > LINE_OCTETS_MAX {
                            turn.text("500 5.5.2 Line too long");
                            return Next::Close;
                        }
                        self.held = rest.to_vec();
                        return Next::Read;
                    };
                    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
                    rest = &rest[end + 1..];
                    self.command(turn, line)
                }
                Expect::Text => {
                    if let Some(next) = turn.breaks_at(Stage::Body) {
                        return next;
                    }
                    let (taken, ended) = self.take_text(turn, rest);
                    rest = &rest[taken..];
                    if ended { self.end_text(turn) } else { Next::Read }
                }
                Expect::Chunk { left, last, valid } => {
                    if let Some(next) = turn.breaks_at(Stage::Body) {
                        return next;
                    }
                    let (piece, after) = split_at_most(rest, left);
                    rest = after;
                    if valid {
                        self.keep(turn, piece);
                    }
                    let left = left - piece.len() as u64;
                    self.expect = Expect::Chunk { left, last, valid };
                    if left == 0 { self.end_chunk(turn, last, valid) } else { Next::Read }
                }
                Expect::Anything => return Next::Mute,
            };
            match next {
                Next::Read => {}
                Next::Mute => self.expect = Expect::Anything,
                Next::Stall | Next::Close => return next,
            }
        }
        Next::Read
    }

    fn command(&mut self, turn: &mut Turn<'_>, line: &[u8]) -> Next {
        let script = turn.script;
        let verb: [u8; 4] = match line.first_chunk::<4>() {
            Some(verb) => verb.map(|octet| octet.to_ascii_uppercase()),
            None => [0; 4],
        };
        let stage = match &verb {
            b"EHLO" | b"HELO" => Some(Stage::Ehlo),
            b"MAIL" => Some(Stage::Mail),
            b"RCPT" => Some(Stage::Rcpt),
            b"DATA" | b"BDAT" => Some(Stage::Data),
            b"RSET" => Some(Stage::Rset),
            b"QUIT" => Some(Stage::Quit),
            _ => None,
        };
        if let Some(next) = stage.and_then(|stage| turn.breaks_at(stage)) {
            return next;
        }
        if self.refused && &verb != b"QUIT" {
            return turn.text("503 5.5.1 Not now");
        }
        match &verb {
            b"MAIL" => self.mail(turn, &line[4..]),
            b"RCPT" => self.rcpt(turn, &line[4..]),
            b"DATA" => self.data(turn),
            b"BDAT" => self.bdat(turn, &line[4..]),
            b"EHLO" => self.hello(turn, &script.ehlo),
            b"HELO" => self.hello(turn, &script.helo),
            b"RSET" => {
                self.end_transaction();
                turn.reply(&script.rset)
            }
            b"NOOP" => turn.text("250 2.0.0 Ok"),
            b"QUIT" => {
                turn.reply(&script.quit);
                Next::Close
            }
            _ => turn.text("502 5.5.1 Command not implemented"),
        }
    }

    fn hello(&mut self, turn: &mut Turn<'_>, reply: &Reply) -> Next {
        self.end_transaction();
        turn.reply(reply)
    }

    fn mail(&mut self, turn: &mut Turn<'_>, arguments: &[u8]) -> Next {
        let script = turn.script;
        let Some(sender) = path(arguments, b" FROM:") else {
            return turn.text("501 5.5.4 Say MAIL FROM:<address>");
        };
        if self.in_transaction {
            return turn.text("503 5.5.1 Nested MAIL");
        }
        if script.mail.is_positive() {
            self.in_transaction = true;
            if turn.shared.keeps_envelope() {
                self.envelope.sender = String::from_utf8_lossy(sender).into_owned();
            }
        }
        turn.reply(&script.mail)
    }

    fn rcpt(&mut self, turn: &mut Turn<'_>, arguments: &[u8]) -> Next {
        let script = turn.script;
        let Some(address) = path(arguments, b" TO:") else {
            return turn.text("501 5.5.4 Say RCPT TO:<address>");
        };
        if !self.in_transaction {
            return turn.text("503 5.5.1 MAIL first");
        }
        let own = script.recipients.iter().find(|(part, _)| memmem::find(address, part).is_some());
        let reply = own.map_or(&script.rcpt, |(_, reply)| reply);
        if reply.is_positive() {
            self.recipients += 1;
            if turn.shared.keeps_envelope() {
                self.envelope.recipients.push(String::from_utf8_lossy(address).into_owned());
            }
        }
        turn.reply(reply)
    }

    fn data(&mut self, turn: &mut Turn<'_>) -> Next {
        let script = turn.script;
        if !self.in_transaction {
            return turn.text("503 5.5.1 MAIL first");
        }
        if self.recipients == 0 {
            return turn.text("554 5.5.1 No valid recipients");
        }
        if script.data.code == Some(354) {
            self.expect = Expect::Text;
            self.tail.clear();
            self.tail.extend_from_slice(b"\r\n");
        }
        turn.reply(&script.data)
    }

    fn bdat(&mut self, turn: &mut Turn<'_>, arguments: &[u8]) -> Next {
        let text = std::str::from_utf8(arguments).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let Some(left) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
            // Where the chunk ends is unknown, so nothing behind it can be understood.
            turn.text("501 5.5.4 Say BDAT octets");
            return Next::Close;
        };
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        let valid = self.in_transaction && self.recipients > 0;
        self.expect = Expect::Chunk { left, last, valid };
        if left == 0 { self.end_chunk(turn, last, valid) } else { Next::Read }
    }

    /// Takes octets of a message sent by DATA: how many, and whether its final dot was among them.
    fn take_text(&mut self, turn: &Turn<'_>, octets: &[u8]) -> (usize, bool) {
        let before = self.tail.len();
        let joint = &octets[..octets.len().min(END_OF_DATA.len() - 1)];
        self.tail.extend_from_slice(joint);
        let straddling = memmem::find(&self.tail, END_OF_DATA)
            .filter(|start| *start < before)
            .map(|start| start + END_OF_DATA.len() - before);
        self.tail.truncate(before);
        let end = straddling
            .or_else(|| turn.shared.end_of_data.find(octets).map(|at| at + END_OF_DATA.len()));
        let taken = end.unwrap_or(octets.len());
        self.keep(turn, &octets[..taken]);
        if end.is_none() {
            let new = &octets[octets.len().saturating_sub(END_OF_DATA.len() - 1)..];
            self.tail.extend_from_slice(new);
            let surplus = self.tail.len().saturating_sub(END_OF_DATA.len() - 1);
            self.tail.drain(..surplus);
        }
        (taken, end.is_some())
    }

    fn keep(&mut self, turn: &Turn<'_>, octets: &[u8]) {
        self.octets += octets.len() as u64;
        if turn.shared.keeps_messages() && self.octets <= MESSAGE_OCTETS_MAX {
            self.kept.extend_from_slice(octets);
        }
    }

    fn end_text(&mut self, turn: &mut Turn<'_>) -> Next {
        // The line end before the dot belongs to the message.
        let dot_octets = END_OF_DATA.len() - 2;
        self.octets -= dot_octets as u64;
        self.kept.truncate(self.kept.len().saturating_sub(dot_octets));
        if !self.kept.is_empty() {
            remove_dot_stuffing(&mut self.kept);
        }
        let script = turn.script;
        self.end_message(turn, &script.dot)
    }

    fn end_chunk(&mut self, turn: &mut Turn<'_>, last: bool, valid: bool) -> Next {
        self.expect = Expect::Command;
        let script = turn.script;
        match (valid, last) {
            (true, true) => self.end_message(turn, &script.chunk_last),
            (true, false) => turn.reply(&script.chunk),
            (false, _) => {
                if last {
                    self.end_transaction();
                }
                turn.text("503 5.5.1 No valid recipients")
            }
        }
    }

    fn end_message(&mut self, turn: &mut Turn<'_>, reply: &Reply) -> Next {
        self.expect = Expect::Command;
        if let Some(next) = turn.breaks_at(Stage::Dot) {
            return next;
        }
        let kept = |envelope: &Envelope| {
            turn.shared.accept(envelope, self.recipients, self.octets, &self.kept)
        };
        let next = if self.octets > MESSAGE_OCTETS_MAX {
            turn.text("552 5.3.4 Message too large")
        } else if reply.is_positive() && !kept(&self.envelope) {
            turn.text("452 4.3.1 The message could not be written")
        } else {
            turn.reply(reply)
        };
        self.end_transaction();
        next
    }

    fn end_transaction(&mut self) {
        self.in_transaction = false;
        self.recipients = 0;
        self.octets = 0;
        self.kept.clear();
        self.envelope.recipients.clear();
    }
}

/// The address between angle brackets behind `keyword`.
fn path<'a>(arguments: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = arguments.split_at_checked(keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let rest = rest.trim_ascii_start().strip_prefix(b"<")?;
    memchr(b'>', rest).map(|end| &rest[..end])
}

/// Cuts `octets` after at most `most` of them.
fn split_at_most(octets: &[u8], most: u64) -> (&[u8], &[u8]) {
    octets.split_at(usize::try_from(most).map_or(octets.len(), |most| most.min(octets.len())))
}

/// Takes the dot away that a sender put before a line that began with one (RFC 5321 4.5.2).
fn remove_dot_stuffing(message: &mut Vec<u8>) {
    if message.first() != Some(&b'.') && memmem::find(message, b"\r\n.").is_none() {
        return;
    }
    let mut clean = Vec::with_capacity(message.len());
    let mut rest = message.strip_prefix(b".").unwrap_or(message);
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        clean.extend_from_slice(&rest[..at + 2]);
        rest = &rest[at + 3..];
    }
    clean.extend_from_slice(rest);
    *message = clean;
}

#[cfg(test)]
mod tests {
    use super::super::SinkOptions;
    use super::super::script::{Answered, Behaviour};
    use super::*;

    fn talk(behaviour: &Behaviour, pieces: &[&[u8]]) -> (String, Next, Shared) {
        let shared = Shared::new(&SinkOptions { keep_ids: true, ..SinkOptions::default() });
        let script = Script::new(behaviour);
        let mut dialogue = Dialogue::new(&script.greeting);
        let mut out = Vec::new();
        let mut next = Next::Read;
        for piece in pieces {
            next = dialogue.feed(&shared, &script, piece, &mut out);
            if next == Next::Close {
                break;
            }
        }
        (String::from_utf8(out).unwrap(), next, shared)
    }

    fn codes(replies: &str) -> String {
        let last = replies.lines().filter(|line| line.as_bytes().get(3) == Some(&b' '));
        last.map(|line| &line[..3]).collect::<Vec<_>>().join(" ")
    }

    const DIALOGUE: &[u8] = b"EHLO a\r\nMAIL FROM:<s@x>\r\nRCPT TO:<r@y>\r\nDATA\r\n\
        X-Ledger: one\r\n\r\n..dot\r\n.\r\nmail from:<>\r\nrcpt to:<r@y>\r\nrcpt to:<q@y>\r\n\
        BDAT 6\r\nX-Ledg\
        BDAT 12 last\r\ner: two\r\n.\r\n\
        MAIL FROM:<>\r\nRCPT TO:<r@y>\r\nBDAT 4\r\n\r\n.\nBDAT 0 LAST\r\nQUIT\r\n";

    #[test]
    fn any_cut_of_the_octets_gives_the_same_replies() {
        let behaviour = Behaviour::default();
        let (whole, next, shared) = talk(&behaviour, &[DIALOGUE]);
        assert_eq!(next, Next::Close);
        let expected = "250 250 250 354 250 250 250 250 250 250 250 250 250 250 221";
        assert_eq!(codes(&whole), expected);
        assert_eq!(shared.counts().messages, 3);
        assert_eq!(shared.counts().recipients, 4);
        for cut in 1..DIALOGUE.len() {
            let (head, tail) = DIALOGUE.split_at(cut);
            let (replies, ..) = talk(&behaviour, &[head, tail]);
            assert_eq!(replies, whole, "cut at {cut}");
        }
        let octets: Vec<&[u8]> = DIALOGUE.chunks(1).collect();
        assert_eq!(talk(&behaviour, &octets).0, whole);
    }

    proptest::proptest! {
        #[test]
        fn foreign_octets_give_the_same_replies_however_they_are_cut(
            pieces in proptest::collection::vec((0..FRAGMENTS.len(), 1..9_usize), 0..40),
        ) {
            let input: Vec<u8> =
                pieces.iter().flat_map(|(which, _)| FRAGMENTS[*which]).copied().collect();
            let mut rest = input.as_slice();
            let mut cuts = Vec::new();
            for (_, octets) in &pieces {
                let (head, tail) = rest.split_at(rest.len().min(*octets));
                cuts.push(head);
                rest = tail;
            }
            cuts.push(rest);
            let (whole, _, shared) = talk(&Behaviour::default(), &[&input]);
            let (replies, _, shared_cut) = talk(&Behaviour::default(), &cuts);
            proptest::prop_assert_eq!(replies, whole);
            proptest::prop_assert_eq!(shared.counts(), shared_cut.counts());
            proptest::prop_assert_eq!(shared.ledger().ids(), shared_cut.ledger().ids());
        }
    }

    /// Joined at random: whole dialogues, broken ones, and ends of data in all disguises.
    const FRAGMENTS: [&[u8]; 16] = [
        b"MAIL FROM:<a@b>\r\n",
        b"RCPT TO:<c@d>\r\n",
        b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n",
        b"DATA\r\n",
        b"\r\n.\r\n",
        b".\r\n",
        b"..\r\n",
        b"\r",
        b"\n",
        b".",
        b"X-Ledger: a\r\n",
        b"BDAT 5\r\n",
        b"BDAT 7 LAST\r\n",
        b"BDAT 99999999999999999999\r\n",
        b"\x00\xff\x80<>",
        b"RSET\n",
    ];

    #[test]
    fn commands_out_of_order_are_refused() {
        let table: &[(&[u8], &str)] = &[
            (b"RCPT TO:<a@b>\r\n", "503"),
            (b"DATA\r\n", "503"),
            (b"MAIL FROM:a@b\r\n", "501"),
            (b"MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", "250 503"),
            (b"MAIL FROM:<a@b>\r\nDATA\r\n", "250 554"),
            (b"MAIL FROM:<a@b>\r\nBDAT 3 LAST\r\nabcNOOP\r\n", "250 503 250"),
            (b"MAIL FROM:<a@b>\r\nRSET\r\nMAIL FROM:<a@b>\r\n", "250 250 250"),
            (b"STARTTLS\r\nXX\r\n\r\n", "502 502 502"),
            (b"BDAT x\r\n", "501"),
        ];
        for (input, expected) in table {
            let (replies, ..) = talk(&Behaviour::default(), &[input]);
            assert_eq!(codes(&replies), *expected, "{}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn scripted_replies_decide_what_follows() {
        let mail: &[u8] = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<bad@d>\r\nDATA\r\n";
        let table: &[(Behaviour, &str)] = &[
            (Behaviour::default().reply(Answered::Mail, "450 no"), "450 503 503 503"),
            (Behaviour::default().reply(Answered::Rcpt, "450 no"), "250 450 450 554"),
            (Behaviour::default().reply_to_recipient("bad@", "550 no"), "250 250 550 354"),
            (Behaviour::default().reply(Answered::Data, "451 no"), "250 250 250 451"),
            (Behaviour::default().reply(Answered::Rcpt, ""), "250"),
            (Behaviour::default().reply(Answered::Mail, "421 gone"), "421"),
            (Behaviour::default().drop_at(Stage::Rcpt), "250"),
        ];
        for (behaviour, expected) in table {
            let (replies, ..) = talk(behaviour, &[mail]);
            assert_eq!(codes(&replies), *expected);
        }
    }

    #[test]
    fn a_line_without_end_closes_the_connection() {
        let (replies, next, _) = talk(&Behaviour::default(), &[&vec![b'a'; LINE_OCTETS_MAX + 1]]);
        assert_eq!((codes(&replies).as_str(), next), ("500", Next::Close));
    }

    #[test]
    fn dot_stuffing_is_removed_and_nothing_else() {
        let table: &[(&[u8], &[u8])] = &[
            (b"", b""),
            (b"..\r\n", b".\r\n"),
            (b"a\r\n..b\r\n...\r\n", b"a\r\n.b\r\n..\r\n"),
            (b"a..b\n.c\r\n", b"a..b\n.c\r\n"),
        ];
        for (sent, meant) in table {
            let mut message = sent.to_vec();
            remove_dot_stuffing(&mut message);
            assert_eq!(message, *meant);
        }
    }
}
