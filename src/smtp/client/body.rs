//! The message bytes on their way out: pieces, dot-stuffing and the final dot (RFC 5321 4.5.2), or
//! as many octets as BDAT has named (RFC 3030 2).
//!
//! Owns: the cursor over one body. Never: when a piece is sent. A body goes out as it stands
//! unless DATA is used and a line of it starts with a dot; then each piece is copied with the dots
//! doubled. A body that does not end with CRLF is completed, for the final dot must stand alone in
//! its line, and a message is the same whichever way it goes.
//!
//! Limits: [`limits::BODY_PIECE_OCTETS`] per piece.

use std::sync::Arc;

use super::outgoing::Outgoing;
use crate::limits;
use crate::mail::{Body, Octets};

/// The final dot in a line of its own.
const DOT: &[u8] = b".\r\n";

/// The cursor over one body.
#[derive(Debug)]
pub(super) struct BodyWriter {
    body: Arc<Body>,
    at: usize,
    framing: Framing,
    begun: bool,
    ended: bool,
}

/// How the peer knows where the message ends.
#[derive(Debug)]
enum Framing {
    /// By the final dot.
    Dot { at_line_start: bool },
    /// By BDAT, which said how many octets come.
    Counted,
}

impl BodyWriter {
    /// Sends the whole of `body` and the final dot.
    pub(super) fn new(body: Arc<Body>) -> Self {
        Self::with(body, 0, Framing::Dot { at_line_start: true })
    }

    /// Sends the final dot alone: nobody takes the message, but the 354 has come.
    pub(super) fn lone_dot(body: Arc<Body>) -> Self {
        let at = body.bytes.len();
        Self::with(body, at, Framing::Dot { at_line_start: true })
    }

    /// Sends [`octets_sent`] octets behind BDAT.
    pub(super) fn counted(body: Arc<Body>) -> Self {
        Self::with(body, 0, Framing::Counted)
    }

    fn with(body: Arc<Body>, at: usize, framing: Framing) -> Self {
        Self { body, at, framing, begun: false, ended: false }
    }

    /// True once the first piece was handed out.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// True once the end was handed out: from then on the peer may have the message.
    pub(super) fn is_past_end(&self) -> bool {
        self.ended
    }

    /// Appends the next piece; false when the end was handed out before. A piece without the end
    /// ends the write, so that an early reply is heard.
    pub(super) fn next_piece(&mut self, out: &mut Outgoing) -> bool {
        if self.ended {
            return false;
        }
        let alone = self.at == self.body.bytes.len();
        self.begun = true;
        if !alone {
            self.cut(out);
        }
        if self.at < self.body.bytes.len() {
            out.end();
            return true;
        }
        let end = match self.framing {
            Framing::Dot { .. } if alone => DOT,
            Framing::Dot { .. } => end_of_data(&self.body.bytes),
            Framing::Counted => completion(&self.body.bytes),
        };
        out.commands().extend_from_slice(end);
        self.ended = true;
        true
    }

    fn cut(&mut self, out: &mut Outgoing) {
        let left = self.body.bytes.len() - self.at;
        match &mut self.framing {
            Framing::Dot { at_line_start } if self.body.facts.leading_dot => {
                // Doubled dots at worst double the piece.
                let end = self.at + left.min(limits::BODY_PIECE_OCTETS / 2);
                let mut stuffed = Vec::with_capacity(end - self.at + 64);
                for part in self.body.bytes.cut(self.at..end) {
                    stuff_into(self.body.bytes.slice(part), at_line_start, &mut stuffed);
                }
                self.at = end;
                out.bytes(stuffed);
            }
            Framing::Dot { .. } | Framing::Counted => {
                let range = self.at..self.at + left.min(limits::BODY_PIECE_OCTETS);
                self.at = range.end;
                out.body(&self.body, range);
            }
        }
    }
}

/// What completes the last line and ends the data. A body that ends in the midst of CRLF gets the
/// missing half: a carriage return never goes out alone (RFC 5321 2.3.8).
fn end_of_data(body: &Octets) -> &'static [u8] {
    if body.is_empty() || body.ends_with(b"\r\n") {
        DOT
    } else if body.ends_with(b"\r") {
        b"\n.\r\n"
    } else {
        b"\r\n.\r\n"
    }
}

/// What completes the last line alone.
fn completion(body: &Octets) -> &'static [u8] {
    let end = end_of_data(body);
    &end[..end.len() - DOT.len()]
}

/// Octets of the message as the peer counts them (RFC 1870 3): lines completed, dots not doubled.
pub(super) fn octets_sent(body: &Octets) -> u64 {
    u64::try_from(body.len() + completion(body).len()).unwrap_or(u64::MAX)
}

fn stuff_into(piece: &[u8], at_line_start: &mut bool, out: &mut Vec<u8>) {
    for line in piece.split_inclusive(|byte| *byte == b'\n') {
        if *at_line_start && line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
        *at_line_start = line.ends_with(b"\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::MessageFacts;
    use proptest::prelude::*;

    fn sent(bytes: &[u8], leading_dot: bool) -> (Vec<u8>, usize) {
        let facts = MessageFacts { leading_dot, ..MessageFacts::default() };
        written(BodyWriter::new(Arc::new(Body { bytes: bytes.to_vec().into(), facts })))
    }

    fn written(mut writer: BodyWriter) -> (Vec<u8>, usize) {
        let (mut wire, mut pieces) = (Vec::new(), 0);
        let mut out = Outgoing::default();
        loop {
            assert_eq!(writer.is_begun(), pieces > 0);
            out.begin(1);
            if !writer.next_piece(&mut out) {
                break;
            }
            assert_eq!(out.is_full(), !writer.is_past_end());
            let chunks = out.finish().unwrap_or_default();
            let octets: usize = chunks.iter().map(|chunk| chunk.as_slice().len()).sum();
            assert!(octets <= limits::BODY_PIECE_OCTETS + 5);
            chunks.iter().for_each(|chunk| wire.extend_from_slice(chunk.as_slice()));
            pieces += 1;
        }
        assert!(writer.is_past_end());
        (wire, pieces)
    }

    #[test]
    fn counted_octets_go_as_they_stand() {
        for (body, wire) in [
            (&b""[..], &b""[..]),
            (b".\r\n..\r\n", b".\r\n..\r\n"),
            (b".a", b".a\r\n"),
            (b"a\r", b"a\r\n"),
        ] {
            let facts = MessageFacts { leading_dot: true, ..MessageFacts::default() };
            let writer = BodyWriter::counted(Arc::new(Body { bytes: body.to_vec().into(), facts }));
            assert_eq!(written(writer).0, wire);
            assert_eq!(octets_sent(&body.to_vec().into()), wire.len() as u64);
        }
    }

    /// A receiver after RFC 5321 4.5.2: the lines up to the first lone dot, dots undone.
    fn received(wire: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut lines = wire.split_inclusive(|byte| *byte == b'\n');
        for line in lines.by_ref() {
            if line == DOT {
                break;
            }
            body.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        }
        assert_eq!(lines.next(), None, "bytes behind the final dot");
        body
    }

    #[test]
    fn every_end_is_completed_and_every_dot_doubled() {
        let table: &[(&[u8], &[u8])] = &[
            (b"", b".\r\n"),
            (b"a\r\n", b"a\r\n.\r\n"),
            (b"a", b"a\r\n.\r\n"),
            (b"a\r", b"a\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b".\r\n", b"..\r\n.\r\n"),
            (b"..\r\n.a\r\nb.\r\n", b"...\r\n..a\r\nb.\r\n.\r\n"),
        ];
        for (body, wire) in table {
            assert_eq!(sent(body, true).0, *wire, "{}", body.escape_ascii());
        }
        assert_eq!(sent(b"a\r\n", false).0, b"a\r\n.\r\n");
    }

    #[test]
    fn large_bodies_go_in_pieces() {
        let body = b"0123456789abcd\r\n".repeat(3 * limits::BODY_PIECE_OCTETS / 16);
        assert_eq!(sent(&body, false), ([&body[..], DOT].concat(), 3));
        let dots = b".\r\n".repeat(limits::BODY_PIECE_OCTETS / 3);
        assert_eq!(received(&sent(&dots, true).0), dots);
    }

    proptest! {
        #[test]
        fn what_is_received_is_what_was_sent(
            lines in prop::collection::vec("[.a\u{e9}]{0,5}", 0..20),
            last in "[.a]{0,3}",
        ) {
            let mut body: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            body.push_str(&last);
            let (wire, _) = sent(body.as_bytes(), true);
            let end = if last.is_empty() { "" } else { "\r\n" };
            let expected = format!("{body}{end}");
            prop_assert_eq!(octets_sent(&body.as_bytes().to_vec().into()), expected.len() as u64);
            prop_assert_eq!(received(&wire), expected.into_bytes());
        }
    }
}
