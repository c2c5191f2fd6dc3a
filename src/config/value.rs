//! One value of the configuration at a time: what is taken, and the words for what is not.
//!
//! Owns: the parsers of numbers, durations, sizes, choices, addresses and nets. Each is a
//! function from a TOML value to a value or to the words "what it is, allowed: what is taken".
//! Never: defaults, keys, places in the file.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::net::IpNet;
use super::problem::quote;
use crate::mail::{Domain, Mailbox, time};

/// A parsed value, or what is wrong with it and what is allowed.
pub(super) type Parsed<T> = Result<T, String>;

/// One second, minute, hour and day in milliseconds.
const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Units of a duration, the largest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", DAY_MS), ("h", HOUR_MS), ("m", MINUTE_MS), ("s", SECOND_MS), ("ms", 1)];

/// Units of a size, the largest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// The words of a refusal.
pub(super) fn refuse(what: impl Display, allowed: impl Display) -> String {
    format!("{what}, allowed: {allowed}")
}

/// The text of a string value.
pub(super) fn string<'v>(value: &'v DeValue<'_>, allowed: &str) -> Parsed<&'v str> {
    value.as_str().ok_or_else(|| wrong_type(value, allowed))
}

/// The words for a value of another type.
pub(super) fn wrong_type(value: &DeValue<'_>, allowed: impl Display) -> String {
    let article = if matches!(value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
    refuse(format_args!("wrong type: {article} {}", value.type_str()), allowed)
}

/// An integer within `range`.
pub(super) fn integer(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Parsed<u32> {
    move |value| {
        let allowed = format!("an integer from {} to {}", range.start(), range.end());
        let number = value.as_integer().ok_or_else(|| wrong_type(value, &allowed))?;
        u32::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|n| range.contains(n))
            .ok_or_else(|| refuse(format_args!("{number} is out of range"), &allowed))
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Parsed<bool> {
    value.as_bool().ok_or_else(|| wrong_type(value, "true or false"))
}

/// A string of any content but the empty one.
pub(super) fn text(value: &DeValue<'_>) -> Parsed<String> {
    let text = string(value, "a string")?;
    let in_form = !text.is_empty() && !text.contains('\0');
    in_form.then(|| text.to_owned()).ok_or_else(|| refuse(quote(text), "a string with content"))
}

/// A duration within `range`.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Parsed<Duration> {
    move |value| {
        let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
        let allowed = format!("a number with ms, s, m, h or d, from \"{least}\" to \"{most}\"");
        let text = string(value, &allowed)?;
        let ms = with_unit(text, &DURATION_UNITS)
            .ok_or_else(|| refuse(format_args!("{} is no duration", quote(text)), &allowed))?;
        Some(Duration::from_millis(ms))
            .filter(|duration| range.contains(duration))
            .ok_or_else(|| refuse(format_args!("{} is out of range", quote(text)), &allowed))
    }
}

/// A size in octets within `range`.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Parsed<u64> {
    move |value| {
        let allowed = allowed_sizes(&range);
        size_in(string(value, &allowed)?, &range)
    }
}

/// A size in octets within `range`, as text.
pub(super) fn size_in(text: &str, range: &RangeInclusive<u64>) -> Parsed<u64> {
    let allowed = allowed_sizes(range);
    let octets = with_unit(text, &SIZE_UNITS)
        .ok_or_else(|| refuse(format_args!("{} is no size", quote(text)), &allowed))?;
    Some(octets)
        .filter(|octets| range.contains(octets))
        .ok_or_else(|| refuse(format_args!("{} is out of range", quote(text)), &allowed))
}

fn allowed_sizes(range: &RangeInclusive<u64>) -> String {
    let (least, most) = (show_size(*range.start()), show_size(*range.end()));
    format!("a number with B, KiB, MiB, GiB or TiB, from \"{least}\" to \"{most}\"")
}

/// One of `choices`; a word of `later` belongs to a part that does not exist yet.
pub(super) fn choice<T: Copy>(
    choices: &[(&str, T)],
    later: &[&str],
) -> impl Fn(&DeValue<'_>) -> Parsed<T> {
    move |value| {
        let words: Vec<String> = choices.iter().map(|(word, _)| quote(word)).collect();
        let allowed = words.join(", ");
        let word = string(value, &allowed)?;
        if let Some((_, chosen)) = choices.iter().find(|(known, _)| *known == word) {
            return Ok(*chosen);
        }
        let why = if later.contains(&word) { "is not supported yet" } else { "is unknown" };
        Err(refuse(format_args!("{} {why}", quote(word)), &allowed))
    }
}

/// A host name, in canonical form.
pub(super) fn host_name(value: &DeValue<'_>) -> Parsed<Domain> {
    let allowed = "a host name such as \"out.example.net\"";
    let text = string(value, allowed)?;
    Domain::parse(text.as_bytes())
        .ok()
        .filter(|domain| domain.literal().is_none())
        .ok_or_else(|| refuse(format_args!("{} is no host name", quote(text)), allowed))
}

/// A mailbox; the empty string is none.
pub(super) fn optional_mailbox(value: &DeValue<'_>) -> Parsed<Option<Mailbox>> {
    let allowed = "an address such as \"postmaster@example.net\", or \"\" for none";
    let text = string(value, allowed)?;
    if text.is_empty() {
        return Ok(None);
    }
    let refused = |e| refuse(format_args!("{} is no address: {e}", quote(text)), allowed);
    Mailbox::parse(text.as_bytes()).map(Some).map_err(refused)
}

/// An address with a port.
pub(super) fn socket_address(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    let allowed = "an address with a port (0: a free one, told at start) such as \
                   \"127.0.0.1:2525\" or \"[::1]:2525\"";
    let text = string(value, allowed)?;
    let refused = |_| refuse(format_args!("{} is no address with a port", quote(text)), allowed);
    text.parse::<SocketAddr>().map_err(refused)
}

/// The address of a DNS server; without a port, port 53.
pub(super) fn server_address(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    let text = value.as_str().unwrap_or_default();
    text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| socket_address(value))
}

/// `auto` (`None`), or an address of this host.
pub(super) fn source_address(value: &DeValue<'_>) -> Parsed<Option<IpAddr>> {
    let allowed = "\"auto\" or an address such as \"192.0.2.1\" or \"2001:db8::1\"";
    let text = string(value, allowed)?;
    if text == "auto" {
        return Ok(None);
    }
    let refused = |_| refuse(format_args!("{} is no address", quote(text)), allowed);
    text.parse::<IpAddr>().map(Some).map_err(refused)
}

/// A net.
pub(super) fn net(value: &DeValue<'_>) -> Parsed<IpNet> {
    let allowed = "a net such as \"192.0.2.0/24\", \"2001:db8::/32\" or one address";
    let text = string(value, allowed)?;
    IpNet::parse(text).map_err(|why| refuse(format_args!("{} {why}", quote(text)), allowed))
}

/// Digits and one unit of `units`, multiplied; `None` also when it is more than fits.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits_end].parse().ok()?;
    let (_, factor) = units.iter().find(|(unit, _)| *unit == &text[digits_end..])?;
    number.checked_mul(*factor)
}

/// A duration as the configuration writes it: `72h`, `1500ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    show_with_unit(time::millis(duration), &DURATION_UNITS[1..])
}

/// A size as the configuration writes it: `25MiB`, `1000B`.
#[must_use]
pub fn show_size(octets: u64) -> String {
    show_with_unit(octets, &SIZE_UNITS)
}

/// The number with the largest unit that leaves no rest.
fn show_with_unit(number: u64, units: &[(&str, u64)]) -> String {
    let fits = |factor: u64| number >= factor && number.is_multiple_of(factor);
    let smallest = units[units.len() - 1];
    let (unit, factor) = units.iter().find(|(_, factor)| fits(*factor)).unwrap_or(&smallest);
    format!("{}{unit}", number / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T>(toml: &str, parser: impl Fn(&DeValue<'_>) -> Parsed<T>) -> Parsed<T> {
        parser(DeValue::parse(toml).unwrap().get_ref())
    }

    #[test]
    fn durations_have_one_number_and_one_unit() {
        let any = || duration(Duration::ZERO..=Duration::from_secs(100 * 3600));
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("72h", 259_200_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            let parsed = parse(&format!("\"{text}\""), any());
            assert_eq!(parsed, Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "30", "s", "1.5s", "-1s", " 1s", "1 s", "1S", "1h30m", "1x"] {
            let error = parse(&format!("\"{text}\""), any()).unwrap_err();
            assert!(error.contains("is no duration, allowed: "), "{error}");
        }
        let huge = parse("\"99999999999999999999s\"", any()).unwrap_err();
        assert!(huge.contains("is no duration"), "{huge}");
        assert_eq!(
            parse("\"101h\"", any()).unwrap_err(),
            "\"101h\" is out of range, allowed: a number with ms, s, m, h or d, from \"0ms\" to \
             \"100h\""
        );
        assert!(parse("30", any()).unwrap_err().starts_with("wrong type: an integer, allowed: "));
    }

    #[test]
    fn sizes_have_binary_units() {
        let any = || size(0..=u64::MAX);
        for (text, octets) in
            [("10GiB", 10 << 30), ("25MiB", 25 << 20), ("10KiB", 10 << 10), ("7B", 7)]
        {
            assert_eq!(parse(&format!("\"{text}\""), any()), Ok(octets), "{text}");
            assert_eq!(show_size(octets), text);
        }
        for text in ["", "10", "10GB", "10 GiB", "1.5GiB", "-1B", "99999999999TiB"] {
            let error = parse(&format!("\"{text}\""), any()).unwrap_err();
            assert!(error.contains("is no size, allowed: "), "{error}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 259_200_000] {
            let duration_before = Duration::from_millis(ms);
            let toml = format!("\"{}\"", show_duration(duration_before));
            let any = duration(Duration::ZERO..=Duration::from_secs(1_000_000));
            assert_eq!(parse(&toml, any), Ok(duration_before));
        }
        assert_eq!(show_duration(Duration::from_secs(72 * 3600)), "72h");
    }

    #[test]
    fn integers_stay_in_range() {
        let parser = || integer(1..=10);
        assert_eq!(parse("10", parser()), Ok(10));
        assert_eq!(parse("0x0a", parser()), Ok(10));
        for toml in ["0", "11", "-1", "99999999999999999999"] {
            let error = parse(toml, parser()).unwrap_err();
            let expected = format!("{toml} is out of range, allowed: an integer from 1 to 10");
            assert_eq!(error, expected);
        }
        assert!(parse("1.5", parser()).unwrap_err().starts_with("wrong type: a float"));
    }

    #[test]
    fn choices_name_what_is_allowed_and_what_comes_later() {
        let parser = || choice(&[("none", 1), ("some", 2)], &["later"]);
        assert_eq!(parse("\"some\"", parser()), Ok(2));
        assert_eq!(
            parse("\"later\"", parser()).unwrap_err(),
            "\"later\" is not supported yet, allowed: \"none\", \"some\""
        );
        assert_eq!(
            parse("\"x\"", parser()).unwrap_err(),
            "\"x\" is unknown, allowed: \"none\", \"some\""
        );
    }

    #[test]
    fn addresses() {
        assert!(parse("\"127.0.0.1:25\"", socket_address).is_ok());
        assert!(parse("\"[::1]:25\"", socket_address).is_ok());
        for bad in ["127.0.0.1", "localhost:25", "::1:25x", ""] {
            assert!(parse(&format!("\"{bad}\""), socket_address).is_err(), "{bad}");
        }
        assert!(parse("\"127.0.0.1:0\"", socket_address).is_ok(), "a free port");
        let server = parse("\"192.0.2.53\"", server_address).unwrap();
        assert_eq!(server.to_string(), "192.0.2.53:53");
        assert_eq!(parse("\"auto\"", source_address), Ok(None));
        assert!(parse("\"eth0\"", source_address).is_err());
        assert_eq!(parse("\"\"", optional_mailbox), Ok(None));
        assert!(parse("\"nobody\"", optional_mailbox).is_err());
        assert!(parse("\"[192.0.2.1]\"", host_name).is_err());
    }
}
