//! The text of one route: `RECEIVING-DOMAIN  DESTINATION[, DESTINATION]...  [auth=PROFILE]`.
//!
//! Owns: the syntax, both ways: [`parse_row`] and `Display` of [`Row`], which prints the one
//! canonical form. Never: the file around it (`config`), or what a route means (`table`).
//!
//! ```text
//! receiving domain   example.com | .example.com | ALL | [192.0.2.1] | [IPv6:2001:db8::1]
//! destination        HOST[:PORT][/pri=N] , at least one; or one of these alone:
//!                    USEDNS | /dev/null
//! HOST               192.0.2.1 | 2001:db8::1 (no port) | [2001:db8::1] | name | [name]
//! PORT, N            1..65535, else 25; 0..65535, else 0
//! PROFILE            letters, digits, `-`, `_`, `.`
//! ```
//! `#` at the start of a word begins a comment. Blank lines hold no row.
//!
//! Diagnostics: [`RowError`] with the column and what is allowed there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::table::{HostAddress, HostSpec, Pattern, Row, Target};
use crate::limits;
use crate::mail::{Domain, text};

/// The port of a destination that names none.
pub const DEFAULT_PORT: u16 = 25;

const HOST_FORMS: &str =
    "an IPv4 address, an IPv6 address, [IPv6], a host name, [host name], USEDNS or /dev/null";

/// Why a line is not a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong, and what is allowed.
    pub what: String,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.what)
    }
}

impl std::error::Error for RowError {}

/// Parses one line, without its line end. `Ok(None)`: a blank line or a comment. The row's `line`
/// is 0; the reader of the file sets it.
///
/// # Errors
/// The first thing that is wrong with the line.
pub fn parse_row(line: &str) -> Result<Option<Row>, RowError> {
    let mut words = Words { line, at: 0 };
    let Some((start, word)) = words.next_word() else { return Ok(None) };
    let pattern = Pattern::parse(word).map_err(|what| words.error(start, what))?;
    let targets_at = words.skip_blanks();
    let mut targets = Vec::new();
    let mut auth = None;
    let mut comma_at = None;
    while let Some((start, word)) = words.next_word() {
        let at = |what| words.error(start, what);
        if auth.is_some() {
            return Err(at("nothing may follow auth=PROFILE".into()));
        }
        if let Some(profile) = strip_prefix_no_case(word, "auth=") {
            auth = Some(parse_profile(profile).map_err(at)?);
            continue;
        }
        if !targets.is_empty() && comma_at.is_none() {
            return Err(at("expected `,` before a further destination, or auth=PROFILE".into()));
        }
        let target = parse_target(word).map_err(at)?;
        check_company(&targets, &target).map_err(at)?;
        targets.push(target);
        comma_at = words.take_comma();
    }
    if let Some(at) = comma_at {
        return Err(words.error(at, "a destination must follow the `,`".into()));
    }
    let target = collect(targets)
        .ok_or_else(|| words.error(targets_at, format!("no destination; allowed: {HOST_FORMS}")))?;
    if target == Target::Discard && auth.is_some() {
        return Err(words.error(targets_at, "/dev/null takes no auth=PROFILE".into()));
    }
    Ok(Some(Row { pattern, target, auth, line: 0 }))
}

impl Pattern {
    /// Parses a receiving domain as it stands at the start of a row.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn parse(word: &str) -> Result<Self, String> {
        if word.eq_ignore_ascii_case("ALL") {
            return Ok(Self::Default);
        }
        let refused = || {
            format!(
                "bad receiving domain {}; allowed: example.com, .example.com, ALL, [192.0.2.1]",
                quoted(word)
            )
        };
        if let Some(inner) = word.strip_prefix('[') {
            let ip = inner.strip_suffix(']').and_then(|ip| ip.parse::<IpAddr>().ok());
            let literal = ip.map(Domain::from_ip).or_else(|| Domain::parse(word.as_bytes()).ok());
            return literal.map(Self::Literal).ok_or_else(refused);
        }
        let (below, name) = match word.strip_prefix('.') {
            Some(name) => (true, name),
            None => (false, word),
        };
        let domain = parse_name(name).ok_or_else(refused)?;
        Ok(if below { Self::Below(domain) } else { Self::Exact(domain) })
    }
}

/// A destination as it stands in the line.
enum Destination {
    Host(HostSpec),
    UseDns,
    Discard,
}

/// The words of a line, and where they stand.
struct Words<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    fn skip_blanks(&mut self) -> usize {
        let rest = &self.line[self.at..];
        self.at += rest.len() - rest.trim_start_matches(is_blank).len();
        self.at
    }

    /// The next word up to a blank or a comma; `None` at the end and at a comment.
    fn next_word(&mut self) -> Option<(usize, &'a str)> {
        let start = self.skip_blanks();
        let rest = &self.line[start..];
        if rest.is_empty() || rest.starts_with('#') {
            return None;
        }
        let len = rest.find(|c| is_blank(c) || c == ',').unwrap_or(rest.len());
        self.at = start + len;
        Some((start, &rest[..len]))
    }

    fn take_comma(&mut self) -> Option<usize> {
        let at = self.skip_blanks();
        let comma = self.line[at..].starts_with(',');
        self.at += usize::from(comma);
        comma.then_some(at)
    }

    fn error(&self, octet: usize, what: String) -> RowError {
        RowError { column: self.line[..octet].chars().count() + 1, what }
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn parse_profile(name: &str) -> Result<Arc<str>, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err("bad auth profile name; allowed: letters, digits, `-`, `_`, `.`".into());
    }
    Ok(name.into())
}

fn parse_target(word: &str) -> Result<Destination, String> {
    if word.eq_ignore_ascii_case("USEDNS") {
        return Ok(Destination::UseDns);
    }
    if word == "/dev/null" {
        return Ok(Destination::Discard);
    }
    let usedns = strip_prefix_no_case(word, "USEDNS");
    if usedns.is_some_and(|rest| rest.starts_with([':', '/'])) {
        return Err("USEDNS takes neither port nor priority".into());
    }
    let (host, option) = match word.split_once('/') {
        Some((host, option)) => (host, Some(option)),
        None => (word, None),
    };
    let priority = option.map_or(Ok(0), parse_priority)?;
    let (address, port) = parse_host(host)?;
    let port = match port {
        None => DEFAULT_PORT,
        Some(digits) => parse_number(digits)
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("bad port {}; allowed: 1..65535", quoted(digits)))?,
    };
    Ok(Destination::Host(HostSpec { address, port, priority }))
}

fn parse_priority(option: &str) -> Result<u16, String> {
    strip_prefix_no_case(option, "pri=")
        .and_then(parse_number)
        .ok_or_else(|| format!("bad option {}; allowed: /pri=0..65535", quoted(option)))
}

/// The address, and what stands behind its colon.
fn parse_host(host: &str) -> Result<(HostAddress, Option<&str>), String> {
    if let Some(inner) = host.strip_prefix('[') {
        let closed = inner.split_once(']').and_then(|(inner, rest)| {
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
            Some((inner, port))
        });
        let (inner, port) = closed.ok_or_else(|| {
            format!("bad destination {}; allowed: [host] or [host]:port", quoted(host))
        })?;
        return match inner.parse::<IpAddr>() {
            Ok(ip) => Ok((usable(ip)?, port)),
            Err(_) => Ok((HostAddress::Bracketed(host_name(inner)?), port)),
        };
    }
    if let Ok(ip) = host.parse::<Ipv6Addr>() {
        return Ok((usable(ip.into())?, None));
    }
    let (name, port) = match host.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            return Err(format!(
                "bad IPv6 address {}; with a port it is written [2001:db8::1]:25",
                quoted(host)
            ));
        }
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let address = match name.parse::<Ipv4Addr>() {
        Ok(ip) => usable(ip.into())?,
        Err(_) => HostAddress::Name(host_name(name)?),
    };
    Ok((address, port))
}

fn usable(ip: IpAddr) -> Result<HostAddress, String> {
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(format!("no mail host has the address {ip}"));
    }
    Ok(HostAddress::Ip(ip))
}

fn host_name(name: &str) -> Result<Domain, String> {
    parse_name(name)
        .ok_or_else(|| format!("bad destination {}; allowed: {HOST_FORMS}", quoted(name)))
}

/// A domain name. A last label of digits only is an address somebody did not finish, such as
/// `192.168.10` (RFC 3696 2: no top-level domain is all-numeric).
fn parse_name(name: &str) -> Option<Domain> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let numeric = last.bytes().all(|b| b.is_ascii_digit());
    let literal = name.starts_with('[');
    if numeric || literal { None } else { Domain::parse(name.as_bytes()).ok() }
}

fn parse_number(digits: &str) -> Option<u16> {
    let in_form = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    in_form.then(|| digits.parse().ok())?
}

fn check_company(before: &[Destination], new: &Destination) -> Result<(), String> {
    let alone = |d: &Destination| !matches!(d, Destination::Host(_));
    if !before.is_empty() && (alone(new) || before.iter().any(alone)) {
        return Err("USEDNS and /dev/null stand alone".into());
    }
    if before.len() >= limits::ROUTE_HOSTS_MAX {
        return Err(format!("more than {} hosts", limits::ROUTE_HOSTS_MAX));
    }
    let Destination::Host(new) = new else { return Ok(()) };
    let same = |d: &Destination| match d {
        Destination::Host(host) => host.address == new.address && host.port == new.port,
        Destination::UseDns | Destination::Discard => false,
    };
    if before.iter().any(same) { Err("the same host twice".into()) } else { Ok(()) }
}

fn collect(destinations: Vec<Destination>) -> Option<Target> {
    let mut hosts = Vec::with_capacity(destinations.len());
    for destination in destinations {
        match destination {
            Destination::Host(host) => hosts.push(host),
            Destination::UseDns => return Some(Target::UseDns),
            Destination::Discard => return Some(Target::Discard),
        }
    }
    (!hosts.is_empty()).then_some(Target::Hosts(hosts))
}

fn strip_prefix_no_case<'a>(word: &'a str, prefix: &str) -> Option<&'a str> {
    let head = word.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &word[prefix.len()..])
}

fn quoted(word: &str) -> String {
    format!("`{}`", text::escape(word.as_bytes(), 80))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(domain) | Self::Literal(domain) => domain.fmt(f),
            Self::Below(suffix) => write!(f, ".{suffix}"),
            Self::Default => f.write_str("ALL"),
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => name.fmt(f),
            Self::Bracketed(name) => write!(f, "[{name}]"),
        }
    }
}

/// Without `/pri=`, which only a row with several priorities shows.
impl fmt::Display for HostSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.port == DEFAULT_PORT { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = match self {
            Self::UseDns => return f.write_str("USEDNS"),
            Self::Discard => return f.write_str("/dev/null"),
            Self::Hosts(hosts) => hosts,
        };
        let with_priority = hosts.iter().any(|host| host.priority != 0);
        for (i, host) in hosts.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            host.fmt(f)?;
            if with_priority {
                write!(f, "/pri={}", host.priority)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pattern, self.target)?;
        match &self.auth {
            Some(profile) => write!(f, " auth={profile}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_and_their_canonical_form() {
        let table = [
            (
                "example.com     192.168.1.10:25/pri=0, 192.168.1.20:25/pri=10",
                "example.com 192.168.1.10/pri=0, 192.168.1.20/pri=10",
            ),
            (".example.com\tUSEDNS", ".example.com USEDNS"),
            (
                "partner.example mx.partner.example/pri=5, [2001:db8::25]:2525/pri=5  auth=p",
                "partner.example mx.partner.example/pri=5, [2001:db8::25]:2525/pri=5 auth=p",
            ),
            ("old.example /dev/null # gone", "old.example /dev/null"),
            ("ALL             [relay.example.net]:587", "ALL [relay.example.net]:587"),
            ("all usedns\r", "ALL USEDNS"),
            (
                "a.example a.example,b.example ,c.example:26",
                "a.example a.example, b.example, c.example:26",
            ),
            ("[192.0.2.1] 2001:DB8::1", "[192.0.2.1] [2001:db8::1]"),
            ("[2001:db8::1] ::ffff:192.0.2.7", "[IPv6:2001:db8::1] 192.0.2.7"),
            (
                "B\u{fc}cher.example [M\u{fc}ller.example]",
                "xn--bcher-kva.example [xn--mller-kva.example]",
            ),
            ("x.example 192.0.2.1:65535/pri=65535", "x.example 192.0.2.1:65535/pri=65535"),
            ("x.example localhost:1", "x.example localhost:1"),
        ];
        for (input, canonical) in table {
            let row = parse_row(input).unwrap().unwrap();
            assert_eq!(row.to_string(), canonical);
            assert_eq!(parse_row(canonical).unwrap().unwrap(), row);
        }
        for nothing in ["", "   ", "# example.com USEDNS", "\t# x", "\r"] {
            assert_eq!(parse_row(nothing), Ok(None));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_column() {
        let table = [
            ("example.com", 12, "no destination"),
            ("example.com # x", 13, "no destination"),
            ("exa mple.com USEDNS", 14, "expected `,`"),
            ("example..com USEDNS", 1, "bad receiving domain"),
            ("192.0.2.1 USEDNS", 1, "[192.0.2.1]"),
            ("*.example.com USEDNS", 1, ".example.com"),
            ("[192.0.2] USEDNS", 1, "bad receiving domain"),
            (". USEDNS", 1, "bad receiving domain"),
            ("a.example 192.168.10", 11, "IPv4"),
            ("a.example 192.0.2.1:0", 11, "1..65535"),
            ("a.example 192.0.2.1:65536", 11, "1..65535"),
            ("a.example 192.0.2.1:", 11, "1..65535"),
            ("a.example 192.0.2.1:+5", 11, "1..65535"),
            ("a.example 192.0.2.1/pri=65536", 11, "/pri=0..65535"),
            ("a.example 192.0.2.1/24", 11, "/pri=0..65535"),
            ("a.example 2001:db8::1:2:3:4:5:6:7:25", 11, "[2001:db8::1]:25"),
            ("a.example [2001:db8::1]25", 11, "[host]:port"),
            ("a.example [mx.example", 11, "[host]:port"),
            ("a.example 0.0.0.0", 11, "no mail host"),
            ("a.example [ff02::1]", 11, "no mail host"),
            ("a.example USEDNS, mx.example", 19, "stand alone"),
            ("a.example mx.example, /dev/null", 23, "stand alone"),
            ("a.example USEDNS:25", 11, "neither port"),
            ("a.example /dev/null auth=p", 11, "no auth"),
            ("a.example mx.example,", 21, "must follow"),
            ("a.example ,mx.example", 11, ""),
            ("a.example mx.example, auth=p", 21, "must follow"),
            ("a.example mx.example auth=", 22, "profile name"),
            ("a.example mx.example auth=p x", 29, "nothing may follow"),
            ("a.example mx.example MX.example/pri=4", 22, "expected `,`"),
            ("a.example mx.example, MX.example:25/pri=4", 23, "twice"),
            ("\u{fc}.example mx..example", 11, "bad destination"),
        ];
        for (line, column, what) in table {
            let error = parse_row(line).unwrap_err();
            assert_eq!(error.column, column, "{line}: {error}");
            assert!(error.what.contains(what), "{line}: {error}");
        }
    }

    #[test]
    fn the_number_of_hosts_is_bounded() {
        let hosts = |n: usize| {
            let list: Vec<_> = (0..n).map(|i| format!("h{i}.example")).collect();
            parse_row(&format!("a.example {}", list.join(",")))
        };
        assert!(hosts(limits::ROUTE_HOSTS_MAX).is_ok());
        assert!(hosts(limits::ROUTE_HOSTS_MAX + 1).unwrap_err().what.contains("256"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn no_line_panics_and_what_parses_prints_and_parses_again(
            noise in "[a-c.:/\\[\\]0-9, #=\u{fc}\u{202e}]{0,12}",
            destination in "( (192.0.2.1|::1|USEDNS|m.x)(:2)?(/pri=3)?)?",
        ) {
            match parse_row(&format!("{noise}{destination}")) {
                Ok(Some(row)) => prop_assert_eq!(parse_row(&row.to_string()), Ok(Some(row))),
                Ok(None) => {}
                Err(error) => {
                    let escaped = !error.what.contains('\u{202e}');
                    prop_assert!(escaped);
                }
            }
        }
    }
}
