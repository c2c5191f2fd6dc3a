//! Replies and failures as data: what a next hop said, and what it means for a recipient.
//!
//! Owns: [`Enhanced`] (RFC 3463), [`Reply`] and [`Failure`], born where a failure is seen and
//! carried unchanged to log, schedule and report. Never: policy (`settle` decides what follows).
//! A `Result::Err` elsewhere means that we or our machine failed; a remote failure is a value.

use std::fmt;
use std::sync::Arc;

/// An enhanced status code (RFC 3463): class 2, 4 or 5, subject and detail 0..999.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Enhanced {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// 0 other, 1 address, 2 mailbox, 3 mail system, 4 network, 5 protocol, 6 content, 7 policy.
    pub subject: u16,
    /// The detail within the subject.
    pub detail: u16,
}

impl Enhanced {
    /// The code `class.subject.detail`.
    #[must_use]
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// Parses the code that a reply text begins with, up to a space or the end of the line.
    /// `None` for anything else, so that text which only looks like a code stays text.
    #[must_use]
    pub fn parse_prefix(text: &[u8]) -> Option<Self> {
        let end = text.iter().position(|b| *b == b' ').unwrap_or(text.len());
        let mut parts = text[..end].split(|b| *b == b'.');
        let class = match parts.next()? {
            b"2" => 2,
            b"4" => 4,
            b"5" => 5,
            _ => return None,
        };
        let subject = number(parts.next()?)?;
        let detail = number(parts.next()?)?;
        parts.next().is_none().then_some(Self { class, subject, detail })
    }

    /// The name of the code for people: RFC 3463 section 3, as mail logs print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.subject, self.detail) {
            (1, 0) => "Unknown address error",
            (1, 1) => "Bad destination email address",
            (1, 2) => "Bad destination host",
            (1, 3) => "Bad destination email address syntax",
            (1, 4) => "Ambiguous destination email address",
            (1, 5) => "Destination address valid",
            (1, 6) => "Destination email address moved",
            (1, 7) => "Bad sender's email address syntax",
            (1, 8) => "Bad sender's system address",
            (1, 10) => "Recipient address has null MX",
            (1, _) => "Other address status",
            (2, 1) => "Mailbox disabled, not accepting messages",
            (2, 2) => "Mailbox full",
            (2, 3) => "Message length exceeds administrative limit",
            (2, 4) => "Mailing list expansion problem",
            (2, _) => "Other mailbox problem",
            (3, 1) => "Mail system full",
            (3, 2) => "Not accepting messages at this time",
            (3, 3) => "System not capable of selected features",
            (3, 4) => "Message too big for system",
            (3, 5) => "System incorrectly configured",
            (3, _) => "Other mail system problem",
            (4, 1) => "No answer from host",
            (4, 2) => "Bad connection",
            (4, 3) => "Directory server failure",
            (4, 4) => "Unable to route",
            (4, 5) => "Mail system congestion",
            (4, 6) => "Routing loop detected",
            (4, 7) => "Delivery expired (message too old)",
            (4, _) => "Other network problem",
            (5, 1) => "Invalid command",
            (5, 2) => "Syntax error",
            (5, 3) => "Too many recipients",
            (5, 4) => "Invalid command arguments",
            (5, 5) => "Wrong protocol version",
            (5, _) => "Other protocol problem",
            (6, 1) => "Media not supported",
            (6, 2) => "Conversion required and prohibited",
            (6, 3) => "Conversion required but not supported",
            (6, 4) => "Conversion with loss performed",
            (6, 5) => "Conversion failed",
            (6, 7) => "Non-ASCII addresses not permitted for that sender or recipient",
            (6, _) => "Other content problem",
            (7, 1) => "Delivery not authorized, message refused",
            (7, 2) => "Mailing list expansion prohibited",
            (7, 3) => "Security conversion required but not possible",
            (7, 4) => "Security features not supported",
            (7, 5) => "Cryptographic failure",
            (7, 6) => "Cryptographic algorithm not supported",
            (7, 7) => "Message integrity failure",
            (7, _) => "Other security problem",
            _ => "Other undefined status",
        }
    }
}

fn number(digits: &[u8]) -> Option<u16> {
    let in_form = (1..=3).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    in_form.then(|| digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0')))
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One well-formed reply of a next hop (RFC 5321 4.2): 200..=599.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The three-digit code.
    pub code: u16,
    /// The enhanced code at the start of the text, when its class fits the code (RFC 2034).
    pub enhanced: Option<Enhanced>,
    /// The text of each line without code, separator and CRLF. Foreign bytes: escape before use.
    pub lines: ReplyLines,
}

/// The text of a reply, line by line. A short one takes no memory of its own: a message brings
/// three, and most are thrown away at once. The clones of a long one share it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyLines {
    /// A line feed stands between two lines, for it cannot stand in one.
    text: Text,
}

/// By its length it is the one or the other.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Text {
    /// So many octets of these; the others are 0.
    Short(u8, [u8; SHORT_OCTETS_MAX]),
    Long(Arc<[u8]>),
}

const SHORT_OCTETS_MAX: usize = 38;

impl ReplyLines {
    /// Takes over lines with a line feed between each two of them.
    #[must_use]
    pub fn separated(text: &[u8]) -> Self {
        let mut short = [0; SHORT_OCTETS_MAX];
        let text = match (short.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(octets), Ok(count)) => {
                octets.copy_from_slice(text);
                Text::Short(count, short)
            }
            _ => Text::Long(text.into()),
        };
        Self { text }
    }

    fn octets(&self) -> &[u8] {
        match &self.text {
            Text::Short(count, octets) => &octets[..usize::from(*count)],
            Text::Long(text) => text,
        }
    }

    /// The lines, at least one.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.octets().split(|octet| *octet == b'\n')
    }
}

impl Default for ReplyLines {
    fn default() -> Self {
        Self::separated(b"")
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for ReplyLines {
    fn from_iter<I: IntoIterator<Item = T>>(lines: I) -> Self {
        let mut text = Vec::new();
        for (place, line) in lines.into_iter().enumerate() {
            if place > 0 {
                text.push(b'\n');
            }
            text.extend_from_slice(line.as_ref());
        }
        Self::separated(&text)
    }
}

impl Reply {
    /// 2yz: done.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 4yz: not now.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5yz: never.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }
}

/// Why a recipient was not delivered: the only form in which a remote failure travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What it means: given by the peer, or chosen from its reply code or from the event.
    pub status: Enhanced,
    /// What the peer said; `None` when there was no reply ('000' in the log).
    pub reply: Option<Reply>,
    /// Our own words when there was no reply, such as `timeout` or the system's error text.
    pub detail: Box<str>,
}

impl Failure {
    /// A failure that a reply tells of. Without an enhanced code in it, the code is chosen from
    /// the reply code (RFC 3463 maps none; these are the ones mail systems use).
    #[must_use]
    pub fn from_reply(reply: Reply) -> Self {
        let class = if reply.code / 100 == 5 { 5 } else { 4 };
        let (subject, detail) = match reply.code {
            421 => (3, 2),
            450 => (2, 0),
            451 => (3, 0),
            452 | 431 => (3, 1),
            454 | 530 | 534 | 535 | 538 => (7, 0),
            500 | 502 => (5, 1),
            501 | 504 | 555 => (5, 4),
            503 => (5, 1),
            550 | 553 => (1, 0),
            551 => (1, 6),
            552 => (2, 2),
            554 => (3, 0),
            _ => (0, 0),
        };
        let status = reply
            .enhanced
            .filter(|e| e.class == class)
            .unwrap_or(Enhanced::new(class, subject, detail));
        Self { status, reply: Some(reply), detail: Box::default() }
    }

    /// A failure without a reply.
    #[must_use]
    pub fn local(status: Enhanced, detail: impl Into<Box<str>>) -> Self {
        Self { status, reply: None, detail: detail.into() }
    }

    /// The reply code, 0 when there was no reply.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.reply.as_ref().map_or(0, |r| r.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_code_is_a_code() {
        assert_eq!(Enhanced::parse_prefix(b"4.3.1 full"), Some(Enhanced::new(4, 3, 1)));
        assert_eq!(Enhanced::parse_prefix(b"5.7.509"), Some(Enhanced::new(5, 7, 509)));
        for text in ["4.3", "3.3.1 x", "4.3.1.2 x", "4.3.x y", "4..1", "4.3.1: x", "4.3.1000 x", ""]
        {
            assert_eq!(Enhanced::parse_prefix(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_text_is_the_same_however_long_it_is() {
        for octets in [0, 1, SHORT_OCTETS_MAX - 1, SHORT_OCTETS_MAX, SHORT_OCTETS_MAX + 1, 300] {
            let text = vec![b'x'; octets];
            let lines = ReplyLines::separated(&text);
            assert_eq!(lines.iter().collect::<Vec<_>>(), [&text[..]]);
            assert_eq!(lines, lines.clone());
            assert_ne!(lines, ReplyLines::separated(&vec![b'x'; octets + 1]));
            let is_long = matches!(lines.text, Text::Long(_));
            assert_eq!(is_long, octets > SHORT_OCTETS_MAX);
        }
        let two: ReplyLines = ["first", "second"].iter().collect();
        assert_eq!(two.iter().collect::<Vec<_>>(), [b"first".as_slice(), b"second"]);
    }

    #[test]
    fn a_code_of_another_class_is_not_believed() {
        let reply = Reply {
            code: 451,
            enhanced: Some(Enhanced::new(5, 1, 1)),
            lines: ReplyLines::default(),
        };
        assert_eq!(Failure::from_reply(reply).status, Enhanced::new(4, 3, 0));
    }
}
