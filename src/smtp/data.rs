//! Message bytes on the wire: where a message ends, and the dots that hide that end.
//!
//! Owns: the end of data and dot-stuffing (RFC 5321 4.5.2), the chunks of BDAT (RFC 3030), and
//! what is noticed while the bytes pass. Never: what follows from it.
//!
//! A line ends with CRLF and with nothing else, and only CRLF.CRLF ends DATA: servers that took
//! `LF.LF` or `CRLF.CR` for an end let one message carry another past its checks
//! (CVE-2023-51764, -51765, -51766). A bare CR or LF is an octet of its line that spoils the
//! message; the caller refuses it at its true end. NUL is an octet like any other.
//!
//! Limits: a [`Receiver`] holds no bytes; what it gives to its [`Store`] is never more than it is
//! given (plus the CRLF of [`Receiver::finish`]).

use memchr::{memchr2, memmem, memrchr};

use crate::limits;

/// How the end of a message is marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// DATA: a line with a dot alone; lines that start with a dot carry one more.
    Dots,
    /// BDAT: the sizes of the chunks; octets as they are.
    Chunks,
}

/// Where the octets of a message go.
pub trait Store {
    /// Takes the next octets: as long a part of the input as belongs to the message, or a CR or
    /// CRLF that is no part of it.
    fn store(&mut self, octets: &[u8]);
}

impl Store for Vec<u8> {
    fn store(&mut self, octets: &[u8]) {
        self.extend_from_slice(octets);
    }
}

/// What was noticed in a message so far. Each value depends on the bytes alone, never on how they
/// were cut into reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Octets of the message, un-dot-stuffed, with CRLF.
    pub octets: u64,
    /// The longest complete line above [`limits::TEXT_LINE_OCTETS_RFC`], in octets without CRLF;
    /// 0 when there is none.
    pub long_line_octets_max: usize,
    /// A CR without LF or an LF without CR.
    pub bare_line_end: bool,
    /// A line starts with a dot. With [`Framing::Chunks`] that is not looked for, but taken for
    /// granted: most such messages go on in chunks, where dots mean nothing.
    pub leading_dot: bool,
    /// An octet above 127.
    pub eight_bit: bool,
}

/// What one call took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Taken {
    /// Octets of the input that belong to the message (or to its end mark).
    pub consumed: usize,
    /// The final dot was among them. Never true for chunks.
    pub end: bool,
}

/// Takes a message in, in pieces of any size.
#[derive(Clone, Debug)]
pub struct Receiver {
    framing: Framing,
    place: Place,
    line_octets: usize,
    findings: Findings,
}

/// Where in a line the next octet stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// First octet of a line.
    Start,
    /// Behind a dot that opened a line of [`Framing::Dots`]; the dot is held back.
    Dot,
    /// Behind such a dot and a CR; both are held back.
    DotCr,
    /// Anywhere else in a line.
    Inside,
    /// Behind a CR in a line.
    Cr,
}

impl Receiver {
    /// Ready for the first octet of a message.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let leading_dot = framing == Framing::Chunks;
        let findings = Findings { leading_dot, ..Findings::default() };
        Self { framing, place: Place::Start, line_octets: 0, findings }
    }

    /// What was noticed so far.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Takes octets up to the end of data or of the input, and stores the message's own octets in
    /// `out`; without `out` they are checked and thrown away.
    pub fn receive<S: Store>(&mut self, input: &[u8], mut out: Option<&mut S>) -> Taken {
        // input[kept..at] belongs to the message and is not yet stored: nearly always all of it.
        let mut kept = 0;
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.place {
                Place::Inside => at = self.inside(input, at),
                Place::Cr if byte == b'\n' => {
                    self.end_line();
                    at += 1;
                }
                Place::Cr => self.bare(Place::Inside),
                Place::Start if byte == b'.' && self.framing == Framing::Dots => {
                    self.keep(&input[kept..at], &mut out);
                    at += 1;
                    kept = at;
                    self.place = Place::Dot;
                }
                Place::Start => {
                    self.findings.leading_dot |= byte == b'.';
                    self.place = Place::Inside;
                }
                Place::Dot if byte == b'\r' => {
                    at += 1;
                    kept = at;
                    self.place = Place::DotCr;
                }
                Place::Dot => {
                    self.findings.leading_dot |= byte == b'.';
                    self.place = Place::Inside;
                }
                Place::DotCr if byte == b'\n' => return Taken { consumed: at + 1, end: true },
                Place::DotCr => {
                    self.keep(b"\r", &mut out);
                    self.bare(Place::Inside);
                }
            }
        }
        self.keep(&input[kept..at], &mut out);
        Taken { consumed: at, end: false }
    }

    /// The last chunk was taken. A message that does not end with CRLF gets one, because DATA,
    /// over which it may have to travel on, cannot carry it otherwise; nothing else is changed.
    ///
    /// # Panics
    /// Under [`Framing::Dots`].
    pub fn finish<S: Store>(&mut self, mut out: Option<&mut S>) {
        assert_eq!(self.framing, Framing::Chunks, "DATA ends with its dot");
        match self.place {
            Place::Start => {}
            Place::Inside => {
                self.keep(b"\r\n", &mut out);
                self.end_line();
            }
            Place::Cr | Place::Dot | Place::DotCr => self.bare(Place::Inside),
        }
    }

    /// From inside a line to where the state changes, or to the end of the input. All octets but
    /// CR, LF and dots pass here, so that those above 127 are noticed here.
    fn inside(&mut self, input: &[u8], mut at: usize) -> usize {
        // A spoilt message is only searched for its end. To look ahead from each of its bare line
        // ends would take time that grows with the square of their number.
        if !self.findings.bare_line_end {
            let octets = self.whole_lines(&input[at..]);
            if octets > 0 {
                return at + octets;
            }
        }
        loop {
            let line_end = memchr2(b'\r', b'\n', &input[at..]);
            let octets = line_end.unwrap_or(input.len() - at);
            self.findings.eight_bit |= !input[at..at + octets].is_ascii();
            self.line_octets += octets;
            at += octets;
            if line_end.is_none() {
                return at;
            }
            match input[at..] {
                [b'\r', b'\n', next, ..] if next != b'.' => {
                    self.end_line();
                    self.place = Place::Inside;
                    at += 2;
                }
                [b'\r', ..] => {
                    self.place = Place::Cr;
                    return at + 1;
                }
                _ => {
                    self.bare(Place::Inside);
                    return at + 1;
                }
            }
        }
    }

    /// Runs over whole lines, up to one before a dot if dots hide the end: the way of nearly all
    /// octets. Gives their octets, 0 when one of them is not plain. Three passes that look at many
    /// octets in one step take a third of the time of a search line by line.
    fn whole_lines(&mut self, input: &[u8]) -> usize {
        let before_dot = match self.framing {
            Framing::Dots => memmem::find(input, b"\n."),
            Framing::Chunks => None,
        };
        let last = before_dot.or_else(|| memrchr(b'\n', input));
        let end = last.map_or(0, |last| last + 1);
        let lines = &input[..end];
        if lines.first().is_none_or(|first| *first == b'\n') || !are_short(lines, self.line_octets)
        {
            return 0;
        }
        let Scan { bare_line_end, eight_bit } = scan(lines);
        if bare_line_end {
            return 0;
        }
        self.findings.eight_bit |= eight_bit;
        self.line_octets = 0;
        self.place = Place::Start;
        end
    }

    fn end_line(&mut self) {
        if self.line_octets > limits::TEXT_LINE_OCTETS_RFC {
            let longest = &mut self.findings.long_line_octets_max;
            *longest = self.line_octets.max(*longest);
        }
        self.line_octets = 0;
        self.place = Place::Start;
    }

    fn bare(&mut self, next: Place) {
        self.findings.bare_line_end = true;
        self.line_octets += 1;
        self.place = next;
    }

    fn keep<S: Store>(&mut self, octets: &[u8], out: &mut Option<&mut S>) {
        if octets.is_empty() {
            return;
        }
        self.findings.octets += octets.len() as u64;
        if let Some(out) = out {
            out.store(octets);
        }
    }
}

/// What stands in whole lines.
struct Scan {
    /// A CR without LF or an LF without CR.
    bare_line_end: bool,
    /// An octet above 127.
    eight_bit: bool,
}

/// Looks through `lines`, which begin with no LF and end with an LF. The loop has no way out, so
/// that many octets are looked at in one step.
fn scan(lines: &[u8]) -> Scan {
    let pairs = lines.iter().zip(&lines[1..]);
    let (bare, bits) = pairs.fold((0, 0), |(bare, bits), (first, second)| {
        (bare | u8::from(*first == b'\r') ^ u8::from(*second == b'\n'), bits | first)
    });
    Scan { bare_line_end: bare != 0, eight_bit: bits > 127 }
}

/// Is none of `lines` long? They end with CRLF; `begun` octets of the first one came before.
fn are_short(lines: &[u8], begun: usize) -> bool {
    const WITH_CRLF_MAX: usize = limits::TEXT_LINE_OCTETS_RFC + 2;
    let (mut rest, mut room) = (lines, WITH_CRLF_MAX.saturating_sub(begun));
    while !rest.is_empty() {
        // The last line end within the room of one line: all before it are short too.
        let Some(last) = memrchr(b'\n', &rest[..room.min(rest.len())]) else { return false };
        (rest, room) = (&rest[last + 1..], WITH_CRLF_MAX);
    }
    true
}

/// Appends `body` to `out` with a dot before each line that starts with one (RFC 5321 4.5.2).
/// `body` may be a piece of a message: `at_line_start` says whether it begins a line, and the
/// result is the same for the piece that follows. Every LF in it is the end of a CRLF, as in all
/// messages that were taken in; the final `.` CRLF is the caller's.
#[must_use = "the next piece needs to know whether it begins a line"]
pub fn stuff_into(body: &[u8], at_line_start: bool, out: &mut Vec<u8>) -> bool {
    let Some(last) = body.last() else { return at_line_start };
    if at_line_start && body[0] == b'.' {
        out.push(b'.');
    }
    let mut copied = 0;
    for line_end in memmem::find_iter(body, b"\n.") {
        out.extend_from_slice(&body[copied..=line_end]);
        out.push(b'.');
        copied = line_end + 1;
    }
    out.extend_from_slice(&body[copied..]);
    *last == b'\n'
}

#[cfg(test)]
mod tests;
