//! What a next hop offers in its reply to EHLO (RFC 5321 4.1.1.1).
//!
//! Owns: [`Extensions`]. Never: their use. Every reply to EHLO makes a new value: nothing of an
//! earlier one stays (RFC 3207 4.2).

use crate::mail::Reply;

/// The extensions of one host, as of its last EHLO reply; none after HELO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// SIZE (RFC 1870): the largest message the host takes, in octets; 0 when it names no limit.
    pub size_octets_max: Option<u64>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461). Without it, whoever asked for NOTIFY=SUCCESS is owed a "relayed" report.
    pub dsn: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
}

impl Extensions {
    /// Reads the lines behind the first one, which names the host. Keywords count in any case;
    /// unknown ones and bad parameters are passed over.
    #[must_use]
    pub fn from_ehlo(reply: &Reply) -> Self {
        let mut offered = Self::default();
        for line in reply.lines.iter().skip(1) {
            let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
            let Some(keyword) = words.next() else { continue };
            match keyword.to_ascii_uppercase().as_slice() {
                b"PIPELINING" => offered.pipelining = true,
                b"SIZE" => offered.size_octets_max = Some(words.next().map_or(0, octets)),
                b"8BITMIME" => offered.eight_bit_mime = true,
                b"SMTPUTF8" => offered.smtputf8 = true,
                b"DSN" => offered.dsn = true,
                b"ENHANCEDSTATUSCODES" => offered.enhanced_status_codes = true,
                b"CHUNKING" => offered.chunking = true,
                _ => {}
            }
        }
        offered
    }

    /// True when the host says that it takes messages of `octets`, or does not say.
    #[must_use]
    pub fn takes_octets(&self, octets: u64) -> bool {
        match self.size_octets_max {
            None | Some(0) => true,
            Some(octets_max) => octets <= octets_max,
        }
    }
}

/// A SIZE value: 0, no limit, when it is not a number; a number too large for us limits nothing.
fn octets(word: &[u8]) -> u64 {
    if !word.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    word.iter().fold(0, |n: u64, digit| n.saturating_mul(10).saturating_add((digit - b'0').into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Extensions {
        let lines = lines.iter().collect();
        Extensions::from_ehlo(&Reply { code: 250, enhanced: None, lines })
    }

    #[test]
    fn keywords_count_in_any_case_and_behind_the_first_line_only() {
        let offered = parse(&["PIPELINING", "8bitmime", "Size 1000", "dsn", "XFOO bar", "", " "]);
        let expected = Extensions {
            eight_bit_mime: true,
            size_octets_max: Some(1000),
            dsn: true,
            ..Extensions::default()
        };
        assert_eq!(offered, expected);
    }

    #[test]
    fn a_size_of_nothing_limits_nothing() {
        for (line, expected) in [
            ("SIZE", Some(0)),
            ("SIZE 0", Some(0)),
            ("SIZE x", Some(0)),
            ("SIZE -1", Some(0)),
            ("SIZE 10", Some(10)),
            ("SIZE 99999999999999999999999", Some(u64::MAX)),
            ("SIZEX 10", None),
        ] {
            let offered = parse(&["host", line]);
            assert_eq!(offered.size_octets_max, expected, "{line}");
            assert!(offered.takes_octets(10), "{line}");
            assert_eq!(offered.takes_octets(11), expected != Some(10), "{line}");
        }
    }
}
