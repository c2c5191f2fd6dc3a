//! The failure report to the sender: a delivery status notification (RFC 3464).
//!
//! Owns: the bytes of the report, whom it goes to, and who is not told: never the null sender
//! (RFC 5321 4.5.5), nobody of whom the sender said NOTIFY without FAILURE (RFC 3461 4.1). Never:
//! the queueing. The envelope sender of a report is the null one.
//!
//! A report is 7-bit with lines of at most 998 octets, whatever the peer or the original holds,
//! so that it fits any next hop: reply texts are escaped and folded, header text that is not
//! plain is returned as quoted-printable, a body that is not plain is not returned. Only an
//! address of the sender beyond ASCII (RFC 6531) makes it need SMTPUTF8; [`Report::facts`] says.
//!
//! Limits: reply texts in one report take about [`DIAGNOSTICS_OCTETS_MAX`], the text part names
//! [`TEXT_RECIPIENTS_MAX`] recipients, the original is bounded by the bounce profile.

use std::fmt::Write;

use crate::limits::TEXT_LINE_OCTETS_RFC;
use crate::mail::text::escape;
use crate::mail::{Envelope, Failure, Mailbox, MessageFacts, Mid, Recipient, Ret};
use crate::schedule::settings::BounceProfile;

/// Octets of reply texts in one report; a single one gets 2,000 at most and 120 at least.
pub const DIAGNOSTICS_OCTETS_MAX: usize = 1_000_000;

/// Recipients that the text for people names one by one; the rest is in the second part.
pub const TEXT_RECIPIENTS_MAX: usize = 100;

/// Where header lines are folded when there is a space to fold at.
const FOLD_OCTETS: usize = 76;
/// A word longer than this is cut.
const WORD_OCTETS_MAX: usize = 900;

/// One recipient that failed for good.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// The recipient.
    pub recipient: &'a Recipient,
    /// Why it failed.
    pub failure: &'a Failure,
    /// For an expired one: the failure of its last attempt, which tells the sender more.
    pub last: Option<&'a Failure>,
    /// Name or address of the host that said so, when a host did.
    pub remote: Option<&'a str>,
}

/// Everything a report is made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Our name; ASCII, as the configuration ensures.
    pub hostname: &'a str,
    /// MID of the report.
    pub mid: Mid,
    /// MID of the message that failed.
    pub original_mid: Mid,
    /// Now, as a header date (RFC 5322 3.3).
    pub date: &'a str,
    /// When the message arrived, likewise.
    pub arrival_date: &'a str,
    /// The envelope of the message; of its recipients only `failed` are looked at.
    pub envelope: &'a Envelope,
    /// The bounce profile.
    pub profile: &'a BounceProfile,
    /// The message, or as much of its beginning as the header and the profile's limit ask for.
    pub original: &'a [u8],
    /// Size of the whole message, in octets.
    pub original_octets: u64,
    /// The recipients that failed together.
    pub failed: &'a [Failed<'a>],
}

/// A report, to be queued as a message from the null sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Its one recipient.
    pub to: Mailbox,
    /// The message, with CRLF line ends, not dot-stuffed.
    pub bytes: Vec<u8>,
    /// How it may be sent. `utf8_header`: it needs SMTPUTF8.
    pub facts: MessageFacts,
}

/// Writes the report; `None` when nobody is to be told. Give it to the queue with the null
/// sender, BODY=7BIT unless the facts say otherwise, and no NOTIFY.
#[must_use]
pub fn build(input: &Input) -> Option<Report> {
    let sender = input.envelope.sender.as_ref()?;
    if !input.profile.send_bounces {
        return None;
    }
    let told: Vec<_> = input.failed.iter().filter(|f| f.recipient.notify.wants_failure()).collect();
    if told.is_empty() {
        return None;
    }
    let to = input.profile.bounce_address.as_ref().unwrap_or(sender);
    let boundary = boundary(input);
    let mut out = String::new();
    head(&mut out, input, to, &boundary);
    part(&mut out, &boundary, "text/plain; charset=us-ascii", "7bit");
    text_part(&mut out, input, &told);
    part(&mut out, &boundary, "message/delivery-status", "7bit");
    status_part(&mut out, input, &told);
    original_part(&mut out, input, &boundary);
    line(&mut out, &format!("--{boundary}--"));
    let facts = MessageFacts {
        leading_dot: out.starts_with('.') || out.contains("\n."),
        eight_bit: to.needs_utf8(),
        utf8_header: to.needs_utf8(),
    };
    assert!(out.is_ascii() || to.needs_utf8(), "a report is 7-bit but for its address");
    Some(Report { to: to.clone(), bytes: out.into_bytes(), facts })
}

fn head(out: &mut String, input: &Input, to: &Mailbox, boundary: &str) {
    let Input { hostname, mid, original_mid, date, .. } = input;
    field(out, "Date", date);
    field(out, "From", &format!("Mail Delivery System <MAILER-DAEMON@{hostname}>"));
    line(out, &format!("To: <{to}>"));
    field(out, "Subject", "Delivery Status Notification (Failure)");
    field(out, "Message-ID", &format!("<{mid}.{original_mid}.report@{hostname}>"));
    field(out, "Auto-Submitted", "auto-replied");
    field(out, "MIME-Version", "1.0");
    line(out, "Content-Type: multipart/report; report-type=delivery-status;");
    line(out, &format!("\tboundary=\"{boundary}\""));
    line(out, "");
    line(out, "This is a report in several parts for a MIME mail reader.");
    line(out, "");
}

fn part(out: &mut String, boundary: &str, content_type: &str, encoding: &str) {
    line(out, &format!("--{boundary}"));
    field(out, "Content-Type", content_type);
    field(out, "Content-Transfer-Encoding", encoding);
    line(out, "");
}

fn text_part(out: &mut String, input: &Input, told: &[&Failed]) {
    line(out, &format!("This is the mail system at {}.", input.hostname));
    line(out, "");
    line(out, "Your message could not be delivered to the recipients below. It will not be");
    line(out, "tried again.");
    let octets_max = diagnostic_octets_max(told.len());
    for failed in told.iter().take(TEXT_RECIPIENTS_MAX) {
        line(out, "");
        line(out, &format!("<{}>", ascii(failed.recipient.address.as_str(), 2_000)));
        let failure = failed.failure;
        fold(out, "    ", &format!("{} {}", failure.status, failure.status.name()));
        let said = failed.last.unwrap_or(failure);
        let (words, text) = match (&said.reply, failed.remote) {
            (Some(_), Some(host)) => (format!("{} said: ", ascii(host, 300)), said),
            (Some(_), None) => ("The host said: ".to_owned(), said),
            (None, _) => ("Reason: ".to_owned(), said),
        };
        fold(out, "    ", &(words + &diagnostic(text, octets_max)));
    }
    if let Some(more @ 1..) = told.len().checked_sub(TEXT_RECIPIENTS_MAX) {
        line(out, "");
        line(out, &format!("and {more} more, listed in the next part."));
    }
    line(out, "");
}

/// The machine-readable part: RFC 3464 2.2 (per message) and 2.3 (per recipient).
fn status_part(out: &mut String, input: &Input, told: &[&Failed]) {
    field(out, "Reporting-MTA", &format!("dns; {}", input.hostname));
    if let Some(envid) = &input.envelope.envid {
        field(out, "Original-Envelope-Id", &ascii_bytes(&decode_xtext(envid), 500));
    }
    field(out, "Arrival-Date", input.arrival_date);
    let octets_max = diagnostic_octets_max(told.len());
    for failed in told {
        line(out, "");
        if let Some((kind, xtext)) =
            failed.recipient.orcpt.as_ref().and_then(|orcpt| orcpt.split_once(';'))
        {
            let address = ascii_bytes(&decode_xtext(xtext), 500);
            field(out, "Original-Recipient", &format!("{}; {address}", ascii(kind, 50)));
        }
        field(out, "Final-Recipient", &final_recipient(&failed.recipient.address));
        field(out, "Action", "failed");
        field(out, "Status", &failed.failure.status.to_string());
        if let Some(remote) = failed.remote {
            field(out, "Remote-MTA", &format!("dns; {}", ascii(remote, 300)));
        }
        let said = failed.last.unwrap_or(failed.failure);
        let kind = if said.reply.is_some() { "smtp" } else { "X-Ringpost" };
        field(out, "Diagnostic-Code", &format!("{kind}; {}", diagnostic(said, octets_max)));
    }
    line(out, "");
}

/// RFC 6533 3: an address beyond ASCII has the type utf-8, in its 7-bit form.
fn final_recipient(address: &Mailbox) -> String {
    if !address.needs_utf8() {
        return format!("rfc822; {address}");
    }
    let mut text = String::from("utf-8; ");
    for c in address.as_str().chars() {
        match c {
            '!'..='~' if !matches!(c, '\\' | '+' | '=') => text.push(c),
            _ => push_fmt(&mut text, format_args!("\\x{{{:X}}}", u32::from(c))),
        }
    }
    text
}

/// The whole original when it is small, plain and not asked otherwise (RET=HDRS); else its
/// header.
fn original_part(out: &mut String, input: &Input, boundary: &str) {
    let octets_max = input.profile.report_original_octets_max;
    let is_whole = input.original.len() as u64 == input.original_octets;
    let wants_all = input.envelope.ret != Some(Ret::Headers);
    if is_whole && wants_all && input.original_octets <= octets_max && is_plain(input.original) {
        part(out, boundary, "message/rfc822", "7bit");
        push_plain(out, input.original);
        return;
    }
    let header = header_of(input.original, usize::try_from(octets_max).unwrap_or(usize::MAX));
    if is_plain(header) {
        part(out, boundary, "text/rfc822-headers", "7bit");
        push_plain(out, header);
        return;
    }
    let is_utf8 = !header.is_ascii() && std::str::from_utf8(header).is_ok();
    let kind = if is_utf8 { "message/global-headers" } else { "text/rfc822-headers" };
    part(out, boundary, kind, "quoted-printable");
    quoted_printable(out, header);
}

/// Can these octets stand in a 7-bit part as they are?
fn is_plain(octets: &[u8]) -> bool {
    let mut lines = octets.split(|b| *b == b'\n').peekable();
    while let Some(text) = lines.next() {
        let text = match (text.strip_suffix(b"\r"), lines.peek()) {
            (Some(text), Some(_)) => text,
            (None, None) => text,
            _ => return false,
        };
        let in_form = text.iter().all(|b| *b != 0 && *b != b'\r' && b.is_ascii());
        if text.len() > TEXT_LINE_OCTETS_RFC || !in_form {
            return false;
        }
    }
    true
}

/// The header, cut after the last whole line within `octets_max`.
fn header_of(original: &[u8], octets_max: usize) -> &[u8] {
    let end = memchr::memmem::find(original, b"\r\n\r\n").map_or(original.len(), |at| at + 2);
    let end = if original.starts_with(b"\r\n") { 0 } else { end };
    if end <= octets_max {
        return &original[..end];
    }
    let whole_lines = memchr::memrchr(b'\n', &original[..octets_max]).map_or(0, |at| at + 1);
    &original[..whole_lines]
}

fn push_plain(out: &mut String, octets: &[u8]) {
    out.extend(octets.iter().map(|b| char::from(*b)));
    if !octets.is_empty() && !octets.ends_with(b"\r\n") {
        out.push_str("\r\n");
    }
    line(out, "");
}

/// RFC 2045 6.7.
fn quoted_printable(out: &mut String, octets: &[u8]) {
    let mut column = 0;
    let mut rest = octets;
    while let Some((byte, tail)) = rest.split_first() {
        if let Some(next) = rest.strip_prefix(b"\r\n") {
            out.push_str("\r\n");
            (column, rest) = (0, next);
            continue;
        }
        if column > 72 {
            out.push_str("=\r\n");
            column = 0;
        }
        let ends_line = tail.is_empty() || tail.starts_with(b"\r\n");
        let literal = matches!(byte, b'!'..=b'<' | b'>'..=b'~') || (*byte == b' ' && !ends_line);
        if literal {
            out.push(char::from(*byte));
            column += 1;
        } else {
            push_fmt(out, format_args!("={byte:02X}"));
            column += 3;
        }
        rest = tail;
    }
    line(out, "");
    line(out, "");
}

/// A boundary that no line of the original begins with. All else in the report is ours or stands
/// behind a field name or an indent.
fn boundary(input: &Input) -> String {
    (0u32..)
        .map(|n| format!("=_{}.{}.{n}_=", input.mid, input.original_mid))
        .find(|boundary| memchr::memmem::find(input.original, boundary.as_bytes()).is_none())
        .unwrap_or_default()
}

fn diagnostic_octets_max(recipients: usize) -> usize {
    (DIAGNOSTICS_OCTETS_MAX / recipients.max(1)).clamp(120, 2_000)
}

/// What was said, on one line of ASCII: `550 5.1.1 no such user`.
fn diagnostic(failure: &Failure, octets_max: usize) -> String {
    let mut text = match &failure.reply {
        Some(reply) => reply.code.to_string(),
        None => ascii(&failure.detail, octets_max),
    };
    for said in failure.reply.iter().flat_map(|reply| reply.lines.iter()) {
        let room = octets_max.saturating_sub(text.len() + 1);
        if room == 0 {
            break;
        }
        text.push(' ');
        text.push_str(&ascii_bytes(said, room));
    }
    // A line of nothing but blanks could not be folded.
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// RFC 3461 4: `+` and two hexadecimal digits stand for an octet.
fn decode_xtext(xtext: &str) -> Vec<u8> {
    let mut octets = Vec::with_capacity(xtext.len());
    let mut rest = xtext.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let coded = hex.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, coded) {
            (b'+', Some(octet)) => {
                octets.push(octet);
                rest = &tail[2..];
            }
            _ => {
                octets.push(*byte);
                rest = tail;
            }
        }
    }
    octets
}

fn ascii(text: &str, octets_max: usize) -> String {
    ascii_bytes(text.as_bytes(), octets_max)
}

/// Foreign octets as printable ASCII of at most `octets_max`.
fn ascii_bytes(octets: &[u8], octets_max: usize) -> String {
    let mut out = String::new();
    for c in escape(octets, octets_max).chars() {
        let piece = if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
        if out.len() + piece.len() > octets_max {
            break;
        }
        out.push_str(&piece);
    }
    out
}

fn field(out: &mut String, name: &str, value: &str) {
    fold(out, &format!("{name}: "), value);
}

/// One line, folded at spaces; the continuation begins with a space (RFC 5322 2.2.3).
fn fold(out: &mut String, lead: &str, value: &str) {
    assert!(!value.contains(['\r', '\n']), "text in a report is escaped first");
    out.push_str(lead);
    let mut column = lead.len();
    for (n, word) in value.split(' ').enumerate() {
        if n > 0 && !word.is_empty() && column + 1 + word.len() > FOLD_OCTETS {
            out.push_str("\r\n");
            column = 0;
        }
        if n > 0 {
            out.push(' ');
            column += 1;
        }
        for (m, piece) in word.as_bytes().chunks(WORD_OCTETS_MAX).enumerate() {
            if m > 0 {
                out.push_str("\r\n ");
                column = 1;
            }
            out.extend(piece.iter().map(|b| char::from(*b)));
            column += piece.len();
        }
    }
    out.push_str("\r\n");
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push_str("\r\n");
}

fn push_fmt(out: &mut String, args: std::fmt::Arguments<'_>) {
    out.write_fmt(args).expect("a String takes everything");
}

#[cfg(test)]
mod tests;
