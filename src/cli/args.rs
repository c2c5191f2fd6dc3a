//! Values that several verbs take.
//!
//! Owns: parsers for clap. Never: defaults.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// `50ms`, `10s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a duration is a number with ms, s, m, h behind it: 50ms".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a duration begins with a number".to_owned())?;
    let ms = number.checked_mul(unit_ms).ok_or_else(|| "the duration is too long".to_owned())?;
    Ok(Duration::from_millis(ms))
}

/// `4096`, `4KiB`, `25MiB`.
pub(super) fn octets(text: &str) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        _ => return Err("a size is a number of octets, or one with KiB or MiB: 4KiB".to_owned()),
    };
    let number: usize = number.parse().map_err(|_| "a size begins with a number".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|octets| *octets <= 1 << 30)
        .ok_or_else(|| "the size is above 1 GiB".to_owned())
}

/// `HOST:PORT`; a name is looked up and its first address taken.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| format!("{error}; write HOST:PORT"))?;
    found.into_iter().next().ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_carry_units() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "-1s", "1 s", "99999999999999999999s", "9999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(octets("4096"), Ok(4096));
        assert_eq!(octets("4KiB"), Ok(4096));
        for wrong in ["", "KiB", "4kb", "2000MiB", "99999999999999999999"] {
            assert!(octets(wrong).is_err(), "{wrong}");
        }
    }
}
