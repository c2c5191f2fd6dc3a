//! Mail addresses and domains: one parser for SMTP, configuration, reports and log.
//!
//! Owns: [`Domain`] (canonical: A-labels, lower case) and [`Mailbox`] (the text as it came, with
//! its canonical domain). Never: routing. Two programs that read one address differently let an
//! attacker choose which of them is right, so everything here is strict: what the parser takes is
//! printed and sent exactly as it stands, and what it does not take is refused.
//!
//! Diagnostics: [`AddressError`] says which part is wrong, in words for an SMTP reply.
//!
//! Limits: [`limits::PATH_OCTETS_MAX`], [`limits::LOCAL_PART_OCTETS_MAX`],
//! [`limits::DOMAIN_OCTETS_MAX`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::limits;

/// Why an address was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressError {
    /// No `@`, or more text than the form allows.
    Syntax,
    /// The local-part is empty, too long or holds a character that is not allowed.
    LocalPart,
    /// The domain is empty, too long or not a domain name.
    Domain,
    /// An address literal that is not `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Literal,
    /// The whole is longer than [`limits::PATH_OCTETS_MAX`].
    TooLong,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "not an address of the form local-part@domain",
            Self::LocalPart => "bad local-part",
            Self::Domain => "bad domain name",
            Self::Literal => "bad address literal",
            Self::TooLong => "address too long",
        })
    }
}

/// A domain in canonical form: A-labels, ASCII lower case, no trailing dot; or an address literal
/// in brackets, canonical too: `[192.0.2.1]`, `[IPv6:2001:db8::1]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Parses a domain name or an address literal.
    ///
    /// # Errors
    /// [`AddressError::Domain`], [`AddressError::Literal`].
    pub fn parse(text: &[u8]) -> Result<Self, AddressError> {
        if text.first() == Some(&b'[') {
            return Self::literal_from(text).map(Self::from_ip);
        }
        let text = std::str::from_utf8(text).map_err(|_| AddressError::Domain)?;
        let has_a_label = || text.as_bytes().windows(4).any(|w| w.eq_ignore_ascii_case(b"xn--"));
        let has_hyphens = memchr::memchr(b'-', text.as_bytes()).is_some() && text.contains("--");
        if !text.is_ascii() || has_hyphens && has_a_label() {
            // UTS #46 maps some characters to ASCII ones; deny list and hyphen rules stay on.
            let ascii = idna::domain_to_ascii_strict(text).map_err(|_| AddressError::Domain)?;
            return Self::check(&ascii);
        }
        // No way out of this loop, so that many octets are looked at in one step.
        let has_upper = text.bytes().fold(false, |found, b| found | b.is_ascii_uppercase());
        if has_upper {
            return Self::check(&text.to_ascii_lowercase());
        }
        Self::check(text)
    }

    /// The literal of an IP address (RFC 5321 4.1.3).
    #[must_use]
    pub fn from_ip(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(v4) => format!("[{v4}]").into(),
            IpAddr::V6(v6) => format!("[IPv6:{v6}]").into(),
        })
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, when the domain is a literal.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        self.0.starts_with('[').then(|| Self::literal_from(self.0.as_bytes()).ok())?
    }

    fn literal_from(text: &[u8]) -> Result<IpAddr, AddressError> {
        let text = std::str::from_utf8(text).map_err(|_| AddressError::Literal)?;
        let inner = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or(AddressError::Literal)?;
        let v6 = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:"));
        if v6.is_some() {
            let v6 = inner[5..].parse::<Ipv6Addr>().map_err(|_| AddressError::Literal)?;
            return Ok(IpAddr::V6(v6));
        }
        inner.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| AddressError::Literal)
    }

    fn check(name: &str) -> Result<Self, AddressError> {
        if name.len() > limits::DOMAIN_OCTETS_MAX {
            return Err(AddressError::Domain);
        }
        let ends_label = |octets, last| last != b'-' && (1..=63).contains(&octets);
        let (mut label_octets, mut before) = (0, b'.');
        for byte in name.bytes() {
            let in_form = match byte {
                b'.' => ends_label(label_octets, before),
                b'-' => before != b'.',
                _ => IN_LABEL[usize::from(byte)],
            };
            if !in_form {
                return Err(AddressError::Domain);
            }
            label_octets = if byte == b'.' { 0 } else { label_octets + 1 };
            before = byte;
        }
        ends_label(label_octets, before).then(|| Self(name.into())).ok_or(AddressError::Domain)
    }
}

/// What a label is made of, but for its hyphens.
const IN_LABEL: [bool; 256] = octets_of(b"_", false);

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A mailbox, `local-part@domain`: the text as the client gave it, byte for byte (the local-part
/// belongs to its own host alone, RFC 5321 2.3.11), and its canonical domain.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    text: Arc<str>,
    domain: Domain,
}

impl Mailbox {
    /// Parses what stands between `<` and `>`. A source route (`@a,@b:`) is dropped, as RFC 5321
    /// appendix C asks; octets above 127 must be UTF-8 (RFC 6531 3.3).
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(path: &[u8]) -> Result<Self, AddressError> {
        Self::parse_behind(path, &mut None)
    }

    /// The same with the domain of the address before, which this one becomes: addresses come in
    /// runs of one domain, which all of a run share then.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse_behind(path: &[u8], before: &mut Option<Domain>) -> Result<Self, AddressError> {
        if path.len() > limits::PATH_OCTETS_MAX {
            return Err(AddressError::TooLong);
        }
        let path = strip_source_route(path)?;
        let text = std::str::from_utf8(path).map_err(|_| AddressError::Syntax)?;
        let at = local_part_end(text.as_bytes())?;
        let name = &text[at + 1..];
        // Canonical text is the canonical text of itself.
        let domain = match before {
            Some(known) if known.as_str() == name => known.clone(),
            _ => before.insert(Domain::parse(name.as_bytes())?).clone(),
        };
        Ok(Self { text: text.into(), domain })
    }

    /// The mailbox as it came, without angle brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The canonical receiving domain.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// True when sending this address needs SMTPUTF8.
    #[must_use]
    pub fn needs_utf8(&self) -> bool {
        !self.text.is_ascii()
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

fn strip_source_route(path: &[u8]) -> Result<&[u8], AddressError> {
    if path.first() != Some(&b'@') {
        return Ok(path);
    }
    let colon = path.iter().position(|b| *b == b':').ok_or(AddressError::Syntax)?;
    for hop in path[..colon].split(|b| *b == b',') {
        let name = hop.strip_prefix(b"@").ok_or(AddressError::Syntax)?;
        Domain::parse(name)?;
    }
    Ok(&path[colon + 1..])
}

/// Where the `@` stands that ends the local-part.
fn local_part_end(text: &[u8]) -> Result<usize, AddressError> {
    let end = if text.first() == Some(&b'"') { quoted_end(text)? } else { dot_string_end(text)? };
    if end > limits::LOCAL_PART_OCTETS_MAX {
        return Err(AddressError::LocalPart);
    }
    match text.get(end) {
        Some(b'@') => Ok(end),
        Some(_) => Err(AddressError::LocalPart),
        None => Err(AddressError::Syntax),
    }
}

fn quoted_end(text: &[u8]) -> Result<usize, AddressError> {
    let mut i = 1;
    while let Some(byte) = text.get(i) {
        match byte {
            b'"' => return Ok(i + 1),
            b'\\' if text.get(i + 1).is_some_and(|b| (0x20..0x7f).contains(b)) => i += 2,
            0x20..=0x7e if *byte != b'\\' => i += 1,
            0x80.. => i += 1,
            _ => return Err(AddressError::LocalPart),
        }
    }
    Err(AddressError::LocalPart)
}

fn dot_string_end(text: &[u8]) -> Result<usize, AddressError> {
    let end = memchr::memchr(b'@', text).ok_or(AddressError::Syntax)?;
    let mut before = b'.';
    for byte in text[..end].iter().chain(b".") {
        // Addresses with dots at odd places exist and are delivered every day; RFC 5321 4.1.2 has
        // no room for them, and only quoting would make them legal.
        let in_form = if *byte == b'.' { before != b'.' } else { IN_ATOM[usize::from(*byte)] };
        if !in_form {
            return Err(AddressError::LocalPart);
        }
        before = *byte;
    }
    Ok(end)
}

/// What an atom is made of (RFC 5321 4.1.2, RFC 6531 3.3).
const IN_ATOM: [bool; 256] = octets_of(b"!#$%&'*+-/=?^_`{|}~", true);

/// Letters, digits and `others`, and with `beyond_ascii` all above 127.
const fn octets_of(others: &[u8], beyond_ascii: bool) -> [bool; 256] {
    let mut set = [false; 256];
    let mut octet = 0_u8;
    loop {
        set[octet as usize] = octet.is_ascii_alphanumeric() || beyond_ascii && octet >= 0x80;
        if octet == u8::MAX {
            break;
        }
        octet += 1;
    }
    let mut i = 0;
    while i < others.len() {
        set[others[i] as usize] = true;
        i += 1;
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailboxes_that_stand_and_their_domains() {
        let table = [
            ("a@b.example", "a@b.example", "b.example"),
            ("A.B+c@EXAMPLE.Org", "A.B+c@EXAMPLE.Org", "example.org"),
            ("\"x@y z\"@ok.example", "\"x@y z\"@ok.example", "ok.example"),
            ("@relay.example,@b.example:joe@c.example", "joe@c.example", "c.example"),
            ("joe@[192.0.2.1]", "joe@[192.0.2.1]", "[192.0.2.1]"),
            ("joe@[ipv6:2001:DB8::1]", "joe@[ipv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
            (
                "j\u{f6}rg@b\u{fc}cher.example",
                "j\u{f6}rg@b\u{fc}cher.example",
                "xn--bcher-kva.example",
            ),
            ("a%b@us.example", "a%b@us.example", "us.example"),
        ];
        for (input, text, domain) in table {
            let mailbox = Mailbox::parse(input.as_bytes()).unwrap();
            assert_eq!((mailbox.as_str(), mailbox.domain().as_str()), (text, domain));
            assert_eq!(Mailbox::parse(mailbox.as_str().as_bytes()).unwrap(), mailbox);
        }
    }

    #[test]
    fn a_run_of_one_domain_shares_it() {
        let mut before = None;
        let mut parse = |path: &str| Mailbox::parse_behind(path.as_bytes(), &mut before);
        let (first, second) = (parse("a@x.example").unwrap(), parse("b@x.example").unwrap());
        assert!(Arc::ptr_eq(&first.domain.0, &second.domain.0));
        assert_eq!(parse("a@x..example"), Err(AddressError::Domain));
        let third = parse("c@x.example").unwrap();
        assert!(Arc::ptr_eq(&first.domain.0, &third.domain.0), "a wrong one ends no run");
        // Not canonical: it is looked at, and is the same in the end.
        assert_eq!(parse("d@X.example").unwrap().domain, first.domain);
        for path in ["e@y.example", "f@[192.0.2.1]", "g@x.example", "h@b\u{fc}cher.example"] {
            let mailbox = parse(path).unwrap();
            assert_eq!(mailbox, Mailbox::parse(path.as_bytes()).unwrap());
            assert_eq!(parse(path).unwrap(), mailbox);
        }
    }

    #[test]
    fn mailboxes_that_two_programs_could_read_differently_are_refused() {
        let table: &[&[u8]] = &[
            b"",
            b"a",
            b"a@",
            b"@b",
            b"a@b@c",
            b"a b@c",
            b"a@b..c",
            b"a@-b",
            b"a@b c",
            b".a@b",
            b"a..b@c",
            b"\"a@b",
            b"\"a\"b@c",
            b"a@[1.2.3]",
            b"a@[1.2.3.4",
            b"a@[IPv6:zz]",
            b"a@b\r\nRCPT",
            b"a\0@b",
            b"a@b\0",
            b"(c)a@b",
            b"a@b.",
            b"<a@b>",
            b"@x:y",
            b"\xff@b",
            b"a@xn--\x80",
            b"a,b@c",
            b"a@b,c",
            b"a@[1.2.3.4].example",
            b"\"a\\\n\"@b",
        ];
        for input in table {
            assert!(Mailbox::parse(input).is_err(), "{}", input.escape_ascii());
        }
        assert!(Mailbox::parse(&[b'a'; 600]).is_err());
    }

    #[test]
    fn labels_have_their_form() {
        let (longest, too_long) = ("a".repeat(63), "a".repeat(64));
        for name in ["a", "a-b.c", "a--b.c", "_a._b.c_", "1.2", "A.b", &longest] {
            let domain = Domain::parse(name.as_bytes()).unwrap();
            assert_eq!(domain.as_str(), name.to_ascii_lowercase());
        }
        let bad = ["", ".", ".a", "a.", "a..b", "-a", "a-", "a-.b", "a.-b", "a b", "a/b", "-"];
        for name in bad.into_iter().chain([too_long.as_str()]) {
            assert_eq!(Domain::parse(name.as_bytes()), Err(AddressError::Domain), "{name:?}");
        }
        assert!(Domain::parse("a.".repeat(127).as_bytes().split_last().unwrap().1).is_ok());
        assert!(Domain::parse("a.".repeat(129).as_bytes().split_last().unwrap().1).is_err());
    }

    #[test]
    fn literals_give_their_address_back() {
        for ip in ["192.0.2.1", "2001:db8::25", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Domain::from_ip(ip).literal(), Some(ip));
        }
        assert_eq!(Domain::parse(b"example.com").unwrap().literal(), None);
    }
}
