//! Replies of a next hop, parsed strictly and within bounds (RFC 5321 4.2).
//!
//! Owns: the step from bytes, split anywhere, to a [`Reply`]. Never: what a reply means for the
//! dialogue (`client`).
//!
//! A peer that sends something else than a reply is not talked to any further: a guess at what it
//! meant could take the answer to one command for the answer to another and lose a message. So a
//! line is three digits, 200..=599, then a space, a hyphen or nothing, then text, then CRLF; all
//! lines of a reply carry one code. Octets above 127 and controls other than NUL, CR and LF may
//! stand in the text, which is escaped wherever it is shown.
//!
//! Diagnostics: [`Garbage`] says what was wrong; the parser must not be used afterwards.
//!
//! Limits: [`limits::REPLY_LINE_OCTETS_KEPT`], [`limits::REPLY_LINE_OCTETS_MAX`],
//! [`limits::REPLY_LINES_MAX`], [`limits::REPLY_OCTETS_MAX`].

use std::fmt;

use crate::limits;
use crate::mail::{Enhanced, Reply, ReplyLines};

/// Why bytes are no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Garbage {
    /// A line does not begin with a code 200..=599 and a space, a hyphen or its end.
    NoCode,
    /// A line feed without a carriage return before it.
    BareLf,
    /// A carriage return without a line feed after it.
    BareCr,
    /// A NUL.
    Nul,
    /// The lines of one reply carry different codes.
    MixedCodes,
    /// A line or the whole reply is longer than its limit.
    TooLong,
    /// More lines than the limit.
    TooManyLines,
}

impl Garbage {
    /// What it was, in words for log and report.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCode => "reply without a code",
            Self::BareLf => "bare line feed in a reply",
            Self::BareCr => "bare carriage return in a reply",
            Self::Nul => "NUL in a reply",
            Self::MixedCodes => "different codes in one reply",
            Self::TooLong => "reply too long",
            Self::TooManyLines => "reply with too many lines",
        }
    }
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Room that is kept from one reply to the next; usual ones fit.
const TEXT_OCTETS_KEPT: usize = 1024;

/// The parser: holds the part of a reply that has come in so far. The same bytes give the same
/// replies, however they are split.
#[derive(Default, Debug)]
pub struct ReplyParser {
    /// The begun line as far as it is kept; empty while whole lines come in.
    line: Vec<u8>,
    /// Octets of the begun line, kept or not.
    line_octets: usize,
    /// Octets of the begun reply.
    reply_octets: usize,
    /// The last octet was a carriage return.
    after_cr: bool,
    /// The code and enhanced code of the first line.
    head: Option<(u16, Option<Enhanced>)>,
    /// Its lines so far, with a line feed between each two of them.
    text: Vec<u8>,
    lines: usize,
}

impl ReplyParser {
    /// Takes octets from the front of `input` up to the end of one reply. `None`: the input is
    /// used up and the reply is not complete.
    ///
    /// # Errors
    /// [`Garbage`] as soon as the bytes cannot be a reply.
    pub fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, Garbage> {
        while !input.is_empty() {
            let line_end = memchr::memchr(b'\n', input);
            let (part, rest) = input.split_at(line_end.map_or(input.len(), |at| at + 1));
            *input = rest;
            self.check(part)?;
            if line_end.is_none() {
                self.keep(part);
                continue;
            }
            let last = if self.line.is_empty() && self.line_octets == part.len() {
                self.take_line(&part[..part.len() - 2])?
            } else {
                self.keep(part);
                let line = std::mem::take(&mut self.line);
                // The end is cut off unless the line was cut off before it.
                let kept = line.len().min(self.line_octets - 2);
                self.take_line(&line[..kept])?
            };
            self.line_octets = 0;
            if last {
                return Ok(Some(self.finish()));
            }
        }
        Ok(None)
    }

    /// True between two replies: nothing of the next one has come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reply_octets == 0
    }

    /// Checks a part of a line, which holds a line feed at most as its last octet, in the order
    /// of its octets: the first wrong one decides, however the line is split.
    fn check(&mut self, part: &[u8]) -> Result<(), Garbage> {
        let room = (limits::REPLY_LINE_OCTETS_MAX - self.line_octets)
            .min(limits::REPLY_OCTETS_MAX - self.reply_octets);
        let is_plain = |text| memchr::memchr2(b'\r', 0, text).is_none();
        let whole_line = part.strip_suffix(b"\r\n").is_some_and(is_plain);
        if !(whole_line && !self.after_cr && part.len() <= room) {
            self.after_cr = check_octets(part, room, self.after_cr)?;
        }
        self.line_octets += part.len();
        self.reply_octets += part.len();
        Ok(())
    }

    fn keep(&mut self, part: &[u8]) {
        let room = limits::REPLY_LINE_OCTETS_KEPT - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    /// Takes one whole line without CRLF; true when it is the last one of its reply.
    fn take_line(&mut self, line: &[u8]) -> Result<bool, Garbage> {
        let (code, last) = code_of(line).ok_or(Garbage::NoCode)?;
        let text = &line[line.len().min(4)..line.len().min(limits::REPLY_LINE_OCTETS_KEPT)];
        match self.head {
            None => {
                let enhanced = Enhanced::parse_prefix(text)
                    .filter(|enhanced| u16::from(enhanced.class) == code / 100);
                self.head = Some((code, enhanced));
            }
            Some((first, _)) if first != code => return Err(Garbage::MixedCodes),
            Some(_) => {}
        }
        if !last && self.lines + 1 >= limits::REPLY_LINES_MAX {
            return Err(Garbage::TooManyLines);
        }
        if self.lines > 0 {
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(text);
        self.lines += 1;
        Ok(last)
    }

    fn finish(&mut self) -> Reply {
        let (code, enhanced) = self.head.take().expect("a line was taken");
        let lines = ReplyLines::separated(&self.text);
        self.text.clear();
        self.text.shrink_to(TEXT_OCTETS_KEPT);
        (self.reply_octets, self.lines) = (0, 0);
        Reply { code, enhanced, lines }
    }
}

/// Looks at the first `room` octets of a part one by one; gives whether the last is a CR.
fn check_octets(part: &[u8], room: usize, mut after_cr: bool) -> Result<bool, Garbage> {
    for byte in part.iter().take(room) {
        match (byte, after_cr) {
            (b'\n', false) => return Err(Garbage::BareLf),
            (b'\n', true) => after_cr = false,
            (_, true) => return Err(Garbage::BareCr),
            (b'\r', false) => after_cr = true,
            (0, false) => return Err(Garbage::Nul),
            (_, false) => {}
        }
    }
    if part.len() > room { Err(Garbage::TooLong) } else { Ok(after_cr) }
}

/// The code of a line and whether no other line follows it. A bare code counts as a last line
/// (RFC 5321 4.2: clients should take it).
fn code_of(line: &[u8]) -> Option<(u16, bool)> {
    let digits = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let code = digits.iter().fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
    let last = match line.get(3) {
        None | Some(b' ') => true,
        Some(b'-') => false,
        Some(_) => return None,
    };
    (200..=599).contains(&code).then_some((code, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_in(pieces: &[&[u8]]) -> Result<Vec<Reply>, Garbage> {
        let mut parser = ReplyParser::default();
        let mut replies = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(reply) = parser.parse(&mut input)? {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    fn reply(code: u16, enhanced: Option<Enhanced>, lines: &[&[u8]]) -> Reply {
        Reply { code, enhanced, lines: lines.iter().collect() }
    }

    #[test]
    fn well_formed_replies_come_out_whole() {
        let table: &[(&[u8], Reply)] = &[
            (b"250 ok\r\n", reply(250, None, &[b"ok"])),
            (b"250\r\n", reply(250, None, &[b""])),
            (b"250 \r\n", reply(250, None, &[b""])),
            (b"299 odd\r\n", reply(299, None, &[b"odd"])),
            (b"458 odd\r\n", reply(458, None, &[b"odd"])),
            (b"599 odd\r\n", reply(599, None, &[b"odd"])),
            (b"250-a\r\n250-\r\n250 c\r\n", reply(250, None, &[b"a", b"", b"c"])),
            (b"250 2.1.5 ok\r\n", reply(250, Some(Enhanced::new(2, 1, 5)), &[b"2.1.5 ok"])),
            (b"450 5.1.5 no\r\n", reply(450, None, &[b"5.1.5 no"])),
            (b"550 caf\xe9 \x1b[1m\x7f\r\n", reply(550, None, &[b"caf\xe9 \x1b[1m\x7f"])),
        ];
        for (input, expected) in table {
            assert_eq!(parse_in(&[input]), Ok(vec![expected.clone()]), "{}", input.escape_ascii());
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(parse_in(&bytes), Ok(vec![expected.clone()]), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn anything_else_is_garbage() {
        use Garbage::{BareCr, BareLf, MixedCodes, NoCode, Nul};
        let table: &[(&[u8], Garbage)] = &[
            (b"hello\r\n", NoCode),
            (b"25 \r\n", NoCode),
            (b"25\r\n", NoCode),
            (b"2500\r\n", NoCode),
            (b"250x ok\r\n", NoCode),
            (b"099 ok\r\n", NoCode),
            (b"699 ok\r\n", NoCode),
            (b"150 ok\r\n", NoCode),
            (b" 250 ok\r\n", NoCode),
            (b"\r\n", NoCode),
            (b"\n", BareLf),
            (b"250 ok\n", BareLf),
            (b"250 o\nk\r\n", BareLf),
            (b"\r", NoCode),
            (b"250 o\rk\r\n", BareCr),
            (b"250 ok\r\r\n", BareCr),
            (b"250 o\0k\r\n", Nul),
            (b"250-ok\r\n550 no\r\n", MixedCodes),
            (b"250-ok\r\n251 no\r\n", MixedCodes),
        ];
        for (input, expected) in table {
            // A lone carriage return is nothing yet: the next octet shows what it is.
            let end: &[u8] = if *input == b"\r" { b"\n" } else { b"" };
            assert_eq!(parse_in(&[input, end]), Err(*expected), "{}", input.escape_ascii());
            let bytes: Vec<&[u8]> = input.chunks(1).chain([end]).collect();
            assert_eq!(parse_in(&bytes), Err(*expected), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn every_limit_holds_and_is_reached() {
        let line = |octets: usize| [b"250 ", &vec![b'x'; octets - 6][..], b"\r\n"].concat();
        let most = parse_in(&[&line(limits::REPLY_LINE_OCTETS_MAX)]).unwrap();
        assert_eq!(most[0].lines.iter().next().unwrap().len(), limits::REPLY_LINE_OCTETS_KEPT - 4);
        let over = line(limits::REPLY_LINE_OCTETS_MAX + 1);
        assert_eq!(parse_in(&[&over]), Err(Garbage::TooLong));
        assert_eq!(parse_in(&over.chunks(1000).collect::<Vec<_>>()), Err(Garbage::TooLong));
        let near = line(limits::REPLY_LINE_OCTETS_KEPT + 1);
        assert_eq!(parse_in(&[&near]), parse_in(&near.chunks(7).collect::<Vec<_>>()));
        let lines = |n: usize| [b"250-x\r\n".repeat(n - 1), b"250 x\r\n".to_vec()].concat();
        let most = parse_in(&[&lines(limits::REPLY_LINES_MAX)]).unwrap();
        assert_eq!(most[0].lines.iter().count(), limits::REPLY_LINES_MAX);
        let over = lines(limits::REPLY_LINES_MAX + 1);
        assert_eq!(parse_in(&[&over]), Err(Garbage::TooManyLines));
        let wide = [b"250-", &vec![b'x'; 2000][..], b"\r\n"].concat().repeat(40);
        assert_eq!(parse_in(&[&wide]), Err(Garbage::TooLong));
        // The limits are of one reply, not of a session.
        assert_eq!(parse_in(&[&line(40_000).repeat(3)]).unwrap().len(), 3);
    }

    proptest! {
        #[test]
        fn a_split_changes_nothing(
            parts in prop::collection::vec(
                prop_oneof![
                    6 => prop::sample::select(vec![
                        &b"250 2.0.0 ok\r\n"[..], b"250-more\r\n", b"550 no\r\n", b"354\r\n",
                        b"x", b"\r", b"\n", b"\0", b"25",
                    ]).prop_map(<[u8]>::to_vec),
                    1 => prop::collection::vec(any::<u8>(), 0..20),
                ],
                0..8,
            ),
            cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let stream = parts.concat();
            let mut pieces = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            prop_assert_eq!(parse_in(&pieces), parse_in(&[&stream]));
        }
    }
}
