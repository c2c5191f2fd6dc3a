//! What the engine reads of a message's header, and the one field it adds.
//!
//! Owns: the extent of the header, the fields that the mail log shows, the count of Received
//! fields, and our own Received field (RFC 5321 4.4). Never: a change to the message.
//!
//! Limits: a field is shown up to [`limits::LOGGED_FIELD_OCTETS_MAX`] octets; the header is read
//! once, up to its end.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::ops::Range;

use crate::limits;
use crate::mail::{Domain, Mid, Wall};

/// Where things stand in the header of a message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeaderFields {
    /// Octets of the header, without the empty line after it.
    pub octets: usize,
    /// Received fields.
    pub received_fields: usize,
    /// An octet above 127 stands in it.
    pub eight_bit: bool,
    message_id: Option<Range<usize>>,
    subject: Option<Range<usize>>,
}

impl HeaderFields {
    /// The value of the first Message-ID field of `message`, the bytes this was made from.
    #[must_use]
    pub fn message_id<'a>(&self, message: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        self.message_id.clone().map(|range| unfold(&message[range]))
    }

    /// The value of the first Subject field of `message`, the bytes this was made from. Foreign
    /// bytes: escape before use.
    #[must_use]
    pub fn subject<'a>(&self, message: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        self.subject.clone().map(|range| unfold(&message[range]))
    }
}

/// Reads the header of a message whose lines end with CRLF. It ends at the first empty line, or
/// at the first line that is neither a field nor its continuation: a message without a header has
/// one of 0 octets.
#[must_use]
pub fn header_fields(message: &[u8]) -> HeaderFields {
    let mut fields = HeaderFields::default();
    // The field whose value grows by continuation lines.
    let mut open = Open::Other;
    let mut at = 0;
    while at < message.len() {
        let end = memchr::memchr(b'\n', &message[at..]).map_or(message.len(), |n| at + n + 1);
        let line = &message[at..end];
        let is_continuation = at > 0 && matches!(line[0], b' ' | b'\t');
        if is_continuation {
            match open {
                Open::MessageId => fields.message_id = extended(fields.message_id, end),
                Open::Subject => fields.subject = extended(fields.subject, end),
                Open::Other => {}
            }
        } else {
            let Some(value) = value_start(line) else { break };
            let range = at + value..end;
            let name = line[..value - 1].trim_ascii_end();
            open = Open::Other;
            if name.eq_ignore_ascii_case(b"Received") {
                fields.received_fields += 1;
            } else if name.eq_ignore_ascii_case(b"Subject") && fields.subject.is_none() {
                fields.subject = Some(range);
                open = Open::Subject;
            } else if name.eq_ignore_ascii_case(b"Message-ID") && fields.message_id.is_none() {
                fields.message_id = Some(range);
                open = Open::MessageId;
            }
        }
        at = end;
    }
    fields.octets = at;
    fields.eight_bit = !message[..at].is_ascii();
    fields
}

enum Open {
    MessageId,
    Subject,
    Other,
}

fn extended(range: Option<Range<usize>>, end: usize) -> Option<Range<usize>> {
    range.map(|range| range.start..end)
}

/// Where the value of a field begins, behind its colon; `None` for a line that is no field.
fn value_start(line: &[u8]) -> Option<usize> {
    let colon = memchr::memchr(b':', line)?;
    let name = line[..colon].trim_ascii_end();
    let in_form = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    in_form.then_some(colon + 1)
}

/// The value on one line, without the white space around it.
fn unfold(value: &[u8]) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    if memchr::memchr2(b'\r', b'\n', value).is_none() {
        return Cow::Borrowed(&value[..value.len().min(limits::LOGGED_FIELD_OCTETS_MAX)]);
    }
    let kept = value.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n'));
    Cow::Owned(kept.take(limits::LOGGED_FIELD_OCTETS_MAX).collect())
}

/// The part of our Received field that is the same for all messages of a client: from whom, and
/// by whom.
pub(super) fn trace_of(helo: &str, ip: IpAddr, hostname: &str) -> String {
    let literal = Domain::from_ip(ip.to_canonical());
    format!("Received: from {helo} ({literal})\r\n\tby {hostname} with ")
}

/// Our Received field with its CRLF. It has no FOR clause: it could tell one recipient of another
/// (RFC 5321 4.4, 7.6).
pub(super) fn received_field(trace: &str, protocol: &str, mid: Mid, date: &str) -> Vec<u8> {
    let mut digits = itoa::Buffer::new();
    let parts = [trace, protocol, " id ", digits.format(mid.0), "; ", date, "\r\n"];
    let octets: usize = parts.iter().map(|part| part.len()).sum();
    let mut field = Vec::with_capacity(octets);
    parts.iter().for_each(|part| field.extend_from_slice(part.as_bytes()));
    field
}

/// The date of Received fields, made anew once a second.
#[derive(Debug, Default)]
pub(super) struct Date {
    second: Option<u64>,
    text: String,
}

impl Date {
    /// The date-time of `at`.
    pub(super) fn of(&mut self, at: Wall) -> &str {
        let second = at.0 / 1000;
        if self.second != Some(second) {
            self.second = Some(second);
            self.text.clear();
            push_date(&mut self.text, at);
        }
        &self.text
    }
}

/// Appends the date-time of RFC 5322 3.3 in UTC: `Sun, 22 Nov 2026 18:12:35 +0000`.
fn push_date(out: &mut String, at: Wall) {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // The year has four digits whatever the clock says: 9999-12-31 is the last day.
    let seconds = (at.0 / 1000).min(253_402_300_799);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let mut day = days;
    // Whole spans of 400 years have 146,097 days; what is left is walked year by year.
    year += day / 146_097 * 400;
    day %= 146_097;
    while day >= year_days(year) {
        day -= year_days(year);
        year += 1;
    }
    let february = year_days(year) - 337;
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut name = MONTHS[11];
    for (month, length) in MONTHS.iter().zip(lengths) {
        if day < length {
            name = month;
            break;
        }
        day -= length;
    }
    let weekday = WEEKDAYS[usize::try_from(days % 7).unwrap_or(0)];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    push(
        out,
        format_args!(
            "{weekday}, {} {name} {year} {hour:02}:{minute:02}:{second:02} +0000",
            day + 1
        ),
    );
}

fn year_days(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

/// Writing to a `String` cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes all text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_the_log_are_found_and_unfolded() {
        let message = b"Received: x\r\nRECEIVED : y\r\nSubject: a\r\n long\r\n\tone \r\n\
            message-id: <1@x>\r\nSubject: second\r\nX-Received: no\r\n\r\nSubject: body\r\n";
        let fields = header_fields(message);
        assert_eq!(fields.received_fields, 2);
        assert_eq!(*fields.subject(message).unwrap(), *b"a long\tone");
        assert_eq!(*fields.message_id(message).unwrap(), *b"<1@x>");
        assert!(message[fields.octets..].starts_with(b"\r\nSubject: body"));
        assert!(!fields.eight_bit);
    }

    #[test]
    fn a_header_ends_where_the_fields_end() {
        for (message, octets) in [
            (&b""[..], 0),
            (b"\r\nbody\r\n", 0),
            (b"no header\r\nSubject: x\r\n", 0),
            (b" leading\r\nSubject: x\r\n", 0),
            (b"A: b\r\nno field\r\n", 6),
            (b"A: b\r\n", 6),
            (b"A: b", 4),
            (b": x\r\n", 0),
        ] {
            assert_eq!(header_fields(message).octets, octets, "{}", message.escape_ascii());
        }
        assert!(header_fields(b"A: \xc3\xb6\r\n\r\nb\r\n").eight_bit);
        assert!(!header_fields(b"A: o\r\n\r\n\xc3\xb6\r\n").eight_bit);
        let long = [b"Subject: ".as_slice(), &[b'x'; 5000]].concat();
        assert_eq!(header_fields(&long).subject(&long).unwrap().len(), 1024);
    }

    #[test]
    fn dates_have_four_digits_and_a_zone() {
        for (seconds, text) in [
            (0, "Thu, 1 Jan 1970 00:00:00 +0000"),
            (951_827_696, "Tue, 29 Feb 2000 12:34:56 +0000"),
            (1_795_371_155, "Sun, 22 Nov 2026 18:12:35 +0000"),
            (4_107_542_400, "Mon, 1 Mar 2100 00:00:00 +0000"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59 +0000"),
            (u64::MAX / 1000, "Fri, 31 Dec 9999 23:59:59 +0000"),
        ] {
            let mut out = String::new();
            push_date(&mut out, Wall(seconds * 1000));
            assert_eq!(out, text);
        }
    }

    #[test]
    fn the_trace_names_who_sent_and_who_took() {
        let mut date = Date::default();
        let ip = "::ffff:192.0.2.1".parse().unwrap();
        let trace = trace_of("client.example", ip, "out.example.net");
        for (seconds, day) in [(0, "1 Jan"), (0, "1 Jan"), (86_400, "2 Jan")] {
            let date = date.of(Wall(seconds * 1000 + 999));
            let field = received_field(&trace, "ESMTP", Mid(7), date);
            let field = String::from_utf8(field).unwrap();
            assert!(field.starts_with("Received: from client.example ([192.0.2.1])\r\n"));
            let by = format!(" {day} 1970 00:00:00 +0000\r\n");
            assert!(field.contains("\tby out.example.net with ESMTP id 7; "), "{field}");
            assert!(field.ends_with(&by), "{field}");
        }
    }
}
