//! The message bytes on their way out: pieces, dot-stuffing and the final dot (RFC 5321 4.5.2).
//!
//! Owns: the cursor over one body. Never: when a piece is sent. A body goes out as it stands
//! unless a line of it starts with a dot; then each piece is copied with the dots doubled. A body
//! that does not end with CRLF is completed, for the final dot must stand alone in its line.
//!
//! Limits: [`limits::BODY_PIECE_OCTETS`] per piece.

use std::sync::Arc;

use super::Chunk;
use crate::limits;
use crate::mail::Body;

/// The final dot in a line of its own.
const DOT: &[u8] = b".\r\n";

/// The cursor over one body.
#[derive(Debug)]
pub(super) struct BodyWriter {
    body: Arc<Body>,
    at: usize,
    at_line_start: bool,
    ended: bool,
}

impl BodyWriter {
    /// Sends the whole of `body`.
    pub(super) fn new(body: Arc<Body>) -> Self {
        Self { body, at: 0, at_line_start: true, ended: false }
    }

    /// Sends the final dot alone: nobody takes the message, but the 354 has come.
    pub(super) fn lone_dot(body: Arc<Body>) -> Self {
        let at = body.bytes.len();
        Self { body, at, at_line_start: true, ended: false }
    }

    /// True once the piece with the final dot was handed out: from then on the peer may have it.
    pub(super) fn is_past_dot(&self) -> bool {
        self.ended
    }

    /// The next piece; `None` after the final dot.
    pub(super) fn next_piece(&mut self) -> Option<Vec<Chunk>> {
        if self.ended {
            return None;
        }
        let mut chunks = Vec::with_capacity(2);
        if self.at < self.body.bytes.len() {
            chunks.push(self.cut());
        }
        if self.at == self.body.bytes.len() {
            let alone = chunks.is_empty();
            chunks.push(Chunk::Static(if alone { DOT } else { end_of_data(&self.body.bytes) }));
            self.ended = true;
        }
        Some(chunks)
    }

    fn cut(&mut self) -> Chunk {
        let left = self.body.bytes.len() - self.at;
        if !self.body.facts.leading_dot {
            let range = self.at..self.at + left.min(limits::BODY_PIECE_OCTETS);
            self.at = range.end;
            return Chunk::Body { body: Arc::clone(&self.body), range };
        }
        // Doubled dots at worst double the piece.
        let end = self.at + left.min(limits::BODY_PIECE_OCTETS / 2);
        let mut out = Vec::with_capacity(end - self.at + 64);
        stuff_into(&self.body.bytes[self.at..end], &mut self.at_line_start, &mut out);
        self.at = end;
        Chunk::Bytes(out)
    }
}

/// What completes the last line and ends the data. A body that ends in the midst of CRLF gets the
/// missing half: a carriage return never goes out alone (RFC 5321 2.3.8).
fn end_of_data(body: &[u8]) -> &'static [u8] {
    if body.is_empty() || body.ends_with(b"\r\n") {
        DOT
    } else if body.ends_with(b"\r") {
        b"\n.\r\n"
    } else {
        b"\r\n.\r\n"
    }
}

/// Octets of the message as the peer counts them (RFC 1870 3): lines completed, dots not doubled.
pub(super) fn octets_sent(body: &[u8]) -> u64 {
    let completion = end_of_data(body).len() - DOT.len();
    u64::try_from(body.len() + completion).unwrap_or(u64::MAX)
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
        let mut writer = BodyWriter::new(Arc::new(Body { bytes: bytes.to_vec(), facts }));
        let (mut out, mut pieces) = (Vec::new(), 0);
        while let Some(chunks) = writer.next_piece() {
            let octets: usize = chunks.iter().map(|chunk| chunk.as_slice().len()).sum();
            assert!(octets <= limits::BODY_PIECE_OCTETS + 5);
            chunks.iter().for_each(|chunk| out.extend_from_slice(chunk.as_slice()));
            pieces += 1;
        }
        assert!(writer.is_past_dot());
        (out, pieces)
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
            prop_assert_eq!(octets_sent(body.as_bytes()), expected.len() as u64);
            prop_assert_eq!(received(&wire), expected.into_bytes());
        }
    }
}
