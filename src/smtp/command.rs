//! One command line of SMTP, parsed (RFC 5321 4.1, 1870, 3030, 3461, 6152, 6531).
//!
//! Owns: the grammar of commands and of their parameters. Never: the order of commands, limits of
//! a listener, replies on the wire ([`super::server`]).
//!
//! The grammar is taken strictly wherever two programs could read one line differently: control
//! characters, bare CR or LF, a path without brackets, an unknown or repeated parameter and text
//! that is not xtext are refused. Two liberties are taken because every server takes them: spaces
//! between the colon and the path, and white space at the end of the line.
//!
//! Diagnostics: [`CommandError`] knows its reply code, its enhanced code and its words.
//!
//! Limits: the line itself is bounded by the caller ([`limits::COMMAND_LINE_OCTETS_MAX`]);
//! ENVID has at most 100 octets and ORCPT at most 500 (RFC 3461 4.4, 4.2).

use std::fmt;

use crate::limits;
use crate::mail::{AddressError, BodyKind, Domain, Enhanced, Mailbox, Notify, Ret};

/// A command with its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// EHLO with the client's name: printable ASCII of names and address literals only.
    Ehlo(&'a str),
    /// HELO with the client's name, as for EHLO.
    Helo(&'a str),
    /// MAIL.
    Mail(Mail),
    /// RCPT.
    Rcpt(Rcpt),
    /// DATA.
    Data,
    /// BDAT (RFC 3030): this many octets follow the line at once.
    Bdat {
        /// Octets of the chunk.
        octets: u64,
        /// The chunk ends the message.
        last: bool,
    },
    /// RSET.
    Rset,
    /// NOOP, whatever its argument.
    Noop,
    /// VRFY with some argument.
    Vrfy,
    /// HELP, whatever its argument.
    Help,
    /// QUIT.
    Quit,
}

/// The arguments of MAIL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mail {
    /// The reverse path; `None` is `<>`.
    pub sender: Option<Mailbox>,
    /// SIZE in octets (RFC 1870); a number beyond 64 bits is [`u64::MAX`].
    pub size_octets: Option<u64>,
    /// BODY (RFC 6152).
    pub body: BodyKind,
    /// SMTPUTF8 was given (RFC 6531 3.4).
    pub smtputf8: bool,
    /// RET (RFC 3461 4.3).
    pub ret: Option<Ret>,
    /// ENVID: valid xtext, as received.
    pub envid: Option<Box<str>>,
}

/// The arguments of RCPT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rcpt {
    /// The forward path.
    pub path: ForwardPath,
    /// NOTIFY (RFC 3461 4.1).
    pub notify: Notify,
    /// ORCPT: `type;xtext`, valid, as received. Text above 127 is possible in type `utf-8` only
    /// (RFC 6533 3) and needs SMTPUTF8.
    pub orcpt: Option<Box<str>>,
}

/// Where RCPT points to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForwardPath {
    /// A mailbox, its source route dropped.
    Mailbox(Mailbox),
    /// `<postmaster>` without a domain, in any case: the postmaster of the server itself
    /// (RFC 5321 4.5.1).
    Postmaster,
}

/// Why a line is not a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// No verb that we know.
    Unknown,
    /// A verb of SMTP that is not offered: EXPN, TURN, ETRN and the like.
    NotImplemented,
    /// CR or LF that is not the CRLF at the end.
    LineEnd,
    /// NUL or another control character.
    Control,
    /// An argument is missing, malformed or too many; says which.
    Argument(&'static str),
    /// The reverse path is no address.
    Sender(AddressError),
    /// The forward path is no address.
    Recipient(AddressError),
    /// A parameter that was not offered.
    Parameter,
    /// The chunk size of BDAT is not a number: where the next command starts is unknown.
    ChunkSize,
    /// A sender above ASCII without SMTPUTF8 (RFC 6531 3.5).
    NeedsUtf8,
}

impl CommandError {
    /// The reply code and the enhanced code (RFC 5321 4.2.2, RFC 3463, RFC 6531 3.5).
    #[must_use]
    pub fn codes(self) -> (u16, Enhanced) {
        let (code, subject, detail) = match self {
            Self::Unknown => (500, 5, 1),
            Self::NotImplemented => (502, 5, 1),
            Self::LineEnd | Self::Control => (500, 5, 2),
            Self::Argument(_) | Self::ChunkSize => (501, 5, 4),
            Self::Sender(_) => (501, 1, 7),
            Self::Recipient(_) => (501, 1, 3),
            Self::Parameter => (555, 5, 4),
            Self::NeedsUtf8 => (553, 6, 7),
        };
        (code, Enhanced::new(5, subject, detail))
    }

    /// True when nothing that follows can be trusted to be a command: the connection must end.
    #[must_use]
    pub fn ends_session(self) -> bool {
        matches!(self, Self::LineEnd | Self::ChunkSize)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("Command unknown"),
            Self::NotImplemented => f.write_str("Command not implemented"),
            Self::LineEnd => f.write_str("Lines end with CRLF and with nothing else"),
            Self::Control => f.write_str("Control character in command"),
            Self::Argument(what) => f.write_str(what),
            Self::Sender(error) => write!(f, "Sender: {error}"),
            Self::Recipient(error) => write!(f, "Recipient: {error}"),
            Self::Parameter => f.write_str("Parameter not offered"),
            Self::ChunkSize => f.write_str("Bad chunk size"),
            Self::NeedsUtf8 => f.write_str("This address needs SMTPUTF8"),
        }
    }
}

/// The domains that a session named last, shared by the addresses that name them again.
#[derive(Clone, Debug, Default)]
pub struct LastDomains {
    sender: Option<Domain>,
    recipient: Option<Domain>,
}

/// Parses one line of a session, given without its CRLF.
///
/// # Errors
/// See [`CommandError`].
pub fn parse<'a>(line: &'a [u8], last: &mut LastDomains) -> Result<Command<'a>, CommandError> {
    let line = match has_control(line) {
        false => trim_end(line),
        true if memchr::memchr2(b'\r', b'\n', line).is_some() => {
            return Err(CommandError::LineEnd);
        }
        // A tab is white space at the end of the line, and nowhere else.
        true => {
            let line = trim_end(line);
            if has_control(line) {
                return Err(CommandError::Control);
            }
            line
        }
    };
    let verb_end = memchr::memchr(b' ', line).unwrap_or(line.len());
    let (verb, rest) = line.split_at(verb_end);
    let rest = trim_start(rest);
    let mut upper = [0_u8; 8];
    let Some(upper) = upper.get_mut(..verb.len()) else { return Err(CommandError::Unknown) };
    upper.copy_from_slice(verb);
    upper.make_ascii_uppercase();
    match &*upper {
        b"MAIL" => parse_mail(rest, &mut last.sender).map(Command::Mail),
        b"RCPT" => parse_rcpt(rest, &mut last.recipient).map(Command::Rcpt),
        b"BDAT" => parse_bdat(rest),
        b"DATA" => no_argument(rest, Command::Data),
        b"EHLO" => parse_name(rest).map(Command::Ehlo),
        b"HELO" => parse_name(rest).map(Command::Helo),
        b"RSET" => no_argument(rest, Command::Rset),
        b"QUIT" => no_argument(rest, Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"HELP" => Ok(Command::Help),
        b"VRFY" if rest.is_empty() => Err(CommandError::Argument("VRFY needs an argument")),
        b"VRFY" => Ok(Command::Vrfy),
        b"EXPN" | b"TURN" | b"ETRN" | b"ATRN" | b"SEND" | b"SOML" | b"SAML" | b"AUTH" | b"BURL"
        | b"STARTTLS" | b"XCLIENT" | b"XFORWARD" => Err(CommandError::NotImplemented),
        _ => Err(CommandError::Unknown),
    }
}

/// A control character? The loop has no way out, so that many octets are looked at in one step.
fn has_control(line: &[u8]) -> bool {
    line.iter().fold(false, |found, b| found | (*b < 0x20) | (*b == 0x7f))
}

fn no_argument<'a>(rest: &[u8], command: Command<'a>) -> Result<Command<'a>, CommandError> {
    if rest.is_empty() { Ok(command) } else { Err(CommandError::Argument("No argument allowed")) }
}

/// The name stands in our Received field and in the log, so only what a name or a literal is made
/// of passes. It is never compared with the client's address (RFC 5321 4.1.4).
fn parse_name(rest: &[u8]) -> Result<&str, CommandError> {
    let in_form = (1..=limits::HELO_OCTETS_MAX).contains(&rest.len())
        && rest.iter().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(b));
    let name = std::str::from_utf8(rest).ok().filter(|_| in_form);
    name.ok_or(CommandError::Argument("A domain name or an address literal is needed"))
}

fn parse_bdat(rest: &[u8]) -> Result<Command<'static>, CommandError> {
    let size_end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
    let (size, last) = rest.split_at(size_end);
    let octets = match decimal(size) {
        Some(u64::MAX) | None => return Err(CommandError::ChunkSize),
        Some(octets) => octets,
    };
    let last = trim_start(last);
    match last.eq_ignore_ascii_case(b"LAST") {
        true => Ok(Command::Bdat { octets, last: true }),
        false if last.is_empty() => Ok(Command::Bdat { octets, last: false }),
        // The size stands, but whether the message ends here does not.
        false => Err(CommandError::ChunkSize),
    }
}

fn parse_mail(rest: &[u8], before: &mut Option<Domain>) -> Result<Mail, CommandError> {
    let (path, parameters) = split_path(rest, b"FROM:", "Syntax: MAIL FROM:<address>")?;
    let mut mail = Mail::default();
    if !path.is_empty() {
        mail.sender = Some(Mailbox::parse_behind(path, before).map_err(CommandError::Sender)?);
    }
    let mut seen = Seen::default();
    for parameter in parameters.split(|b| *b == b' ').filter(|p| !p.is_empty()) {
        mail_parameter(&mut mail, &mut seen, parameter)?;
    }
    if !mail.smtputf8 && mail.sender.as_ref().is_some_and(Mailbox::needs_utf8) {
        return Err(CommandError::NeedsUtf8);
    }
    Ok(mail)
}

fn mail_parameter(mail: &mut Mail, seen: &mut Seen, text: &[u8]) -> Result<(), CommandError> {
    let bad = CommandError::Argument;
    let (key, value) = split_parameter(text);
    if is(key, b"SIZE") {
        seen.once(1)?;
        let size = value.filter(|v| v.len() <= 20).and_then(decimal).ok_or(bad("Bad SIZE"))?;
        mail.size_octets = Some(size);
    } else if is(key, b"BODY") {
        seen.once(2)?;
        mail.body = match value {
            Some(v) if is(v, b"7BIT") => BodyKind::SevenBit,
            Some(v) if is(v, b"8BITMIME") => BodyKind::EightBitMime,
            _ => return Err(bad("BODY is 7BIT or 8BITMIME")),
        };
    } else if is(key, b"SMTPUTF8") {
        seen.once(4)?;
        mail.smtputf8 = value.is_none();
        value.map_or(Ok(()), |_| Err(bad("SMTPUTF8 has no value")))?;
    } else if is(key, b"RET") {
        seen.once(8)?;
        mail.ret = match value {
            Some(v) if is(v, b"FULL") => Some(Ret::Full),
            Some(v) if is(v, b"HDRS") => Some(Ret::Headers),
            _ => return Err(bad("RET is FULL or HDRS")),
        };
    } else if is(key, b"ENVID") {
        seen.once(16)?;
        mail.envid = Some(value.and_then(envid).ok_or(bad("ENVID is not xtext"))?);
    } else {
        return Err(CommandError::Parameter);
    }
    Ok(())
}

fn parse_rcpt(rest: &[u8], before: &mut Option<Domain>) -> Result<Rcpt, CommandError> {
    let (path, parameters) = split_path(rest, b"TO:", "Syntax: RCPT TO:<address>")?;
    let path = if is(path, b"POSTMASTER") {
        ForwardPath::Postmaster
    } else {
        let mailbox = Mailbox::parse_behind(path, before);
        ForwardPath::Mailbox(mailbox.map_err(CommandError::Recipient)?)
    };
    let mut rcpt = Rcpt { path, notify: Notify::default(), orcpt: None };
    let mut seen = Seen::default();
    for parameter in parameters.split(|b| *b == b' ').filter(|p| !p.is_empty()) {
        let (key, value) = split_parameter(parameter);
        if is(key, b"NOTIFY") {
            seen.once(1)?;
            rcpt.notify = value.and_then(notify).ok_or(CommandError::Argument("Bad NOTIFY"))?;
        } else if is(key, b"ORCPT") {
            seen.once(2)?;
            let orcpt = value.and_then(orcpt);
            rcpt.orcpt = Some(orcpt.ok_or(CommandError::Argument("ORCPT is not type;xtext"))?);
        } else {
            return Err(CommandError::Parameter);
        }
    }
    Ok(rcpt)
}

/// One bit per parameter: each may stand once.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    fn once(&mut self, bit: u8) -> Result<(), CommandError> {
        let again = self.0 & bit != 0;
        self.0 |= bit;
        if again { Err(CommandError::Argument("Parameter given twice")) } else { Ok(()) }
    }
}

/// `<path>` after `word`, and what follows it. A quoted local-part may hold `>`.
fn split_path<'a>(
    rest: &'a [u8],
    word: &[u8],
    syntax: &'static str,
) -> Result<(&'a [u8], &'a [u8]), CommandError> {
    let bad = CommandError::Argument(syntax);
    let start = rest.get(..word.len()).filter(|w| is(w, word)).ok_or(bad)?;
    let path = trim_start(&rest[start.len()..]).strip_prefix(b"<").ok_or(bad)?;
    let end = match memchr::memchr2(b'>', b'"', path).ok_or(bad)? {
        end if path[end] == b'>' => end,
        quote => path_end(path, quote).ok_or(bad)?,
    };
    let after = &path[end + 1..];
    let in_form = after.is_empty() || after[0] == b' ';
    in_form.then_some((&path[..end], after)).ok_or(bad)
}

/// Where a path with quotes ends; the first of them stands at `at`.
fn path_end(path: &[u8], mut at: usize) -> Option<usize> {
    let mut quoted = false;
    loop {
        match path.get(at)? {
            b'"' => quoted = !quoted,
            b'\\' if quoted => at += 1,
            b'>' if !quoted => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

fn split_parameter(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'=', text) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn is(text: &[u8], word: &[u8]) -> bool {
    text.eq_ignore_ascii_case(word)
}

/// A number of digits only; more than 64 bits of it are `u64::MAX`.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |n: u64, d: &u8| n.saturating_mul(10).saturating_add(u64::from(d - b'0'));
    Some(digits.iter().fold(0, digit))
}

fn notify(value: &[u8]) -> Option<Notify> {
    if is(value, b"NEVER") {
        return Some(Notify(Notify::NEVER));
    }
    let mut bits = 0;
    for word in value.split(|b| *b == b',') {
        let bit = match word {
            w if is(w, b"SUCCESS") => Notify::SUCCESS,
            w if is(w, b"FAILURE") => Notify::FAILURE,
            w if is(w, b"DELAY") => Notify::DELAY,
            _ => return None,
        };
        if bits & bit != 0 {
            return None;
        }
        bits |= bit;
    }
    Some(Notify(bits))
}

fn envid(value: &[u8]) -> Option<Box<str>> {
    let in_form = (1..=100).contains(&value.len()) && is_xtext(value);
    in_form.then(|| std::str::from_utf8(value).ok().map(Into::into))?
}

fn orcpt(value: &[u8]) -> Option<Box<str>> {
    let semicolon = memchr::memchr(b';', value).filter(|_| value.len() <= 500)?;
    let (kind, address) = (&value[..semicolon], &value[semicolon + 1..]);
    let atom = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*-/?^_`{|}~.".contains(b);
    let kind_ok = !kind.is_empty() && kind.iter().all(atom);
    let text = std::str::from_utf8(value).ok()?;
    let address_ok = if address.is_ascii() {
        is_xtext(address)
    } else {
        // utf-8-addr-unitext of RFC 6533 3: UTF-8 stands for itself.
        let ascii: Vec<u8> = address.iter().copied().filter(u8::is_ascii).collect();
        is(kind, b"utf-8") && is_xtext(&ascii) && !text.chars().any(char::is_control)
    };
    (kind_ok && !address.is_empty() && address_ok).then(|| text.into())
}

/// xtext (RFC 3461 4) whose meaning is printable ASCII: `+0D+0A` would otherwise come to life as
/// a new line in a report.
fn is_xtext(text: &[u8]) -> bool {
    let hex = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    };
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => {
                let pair = (bytes.next().and_then(hex), bytes.next().and_then(hex));
                let (Some(high), Some(low)) = pair else { return false };
                if !(0x20..0x7f).contains(&(high << 4 | low)) {
                    return false;
                }
            }
            b'=' => return false,
            b'!'..=b'~' => {}
            _ => return false,
        }
    }
    true
}

fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [head @ .., b' ' | b'\t'] = text {
        text = head;
    }
    text
}

fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [b' ', tail @ ..] = text {
        text = tail;
    }
    text
}

#[cfg(test)]
mod tests;
