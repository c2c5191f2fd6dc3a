//! Nets of addresses: who may relay.
//!
//! Owns: [`IpNet`]. Never: sockets.

use std::fmt;
use std::net::IpAddr;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IpNet {
    first: IpAddr,
    prefix_bits: u8,
}

impl IpNet {
    /// Parses `192.0.2.0/24`, `2001:db8::/32` or one address.
    ///
    /// # Errors
    /// In words that continue "`text` ...": no net, or bits set behind the prefix.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let ip: IpAddr = address.parse().map_err(|_| "is no net".to_owned())?;
        let bits_max: u8 = if ip.is_ipv4() { 32 } else { 128 };
        let digits_only = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix_bits = match prefix {
            "" if !text.contains('/') => bits_max,
            _ if digits_only => prefix.parse().map_err(|_| "is no net".to_owned())?,
            _ => return Err("is no net".to_owned()),
        };
        if prefix_bits > bits_max {
            return Err(format!("has a prefix over {bits_max}"));
        }
        // `contains` turns such addresses into IPv4 first: the net would never match.
        if prefix_bits >= 96 && matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err("is an IPv4 net in IPv6 form (write it as IPv4)".to_owned());
        }
        let net = Self { first: masked(ip, prefix_bits), prefix_bits };
        // A net written with the bits of one host is a slip of the pen: which of the two was
        // meant decides who may relay.
        if net.first == ip {
            Ok(net)
        } else {
            Err(format!("has bits behind its prefix (not {net})"))
        }
    }

    /// Is `ip` one of them? An IPv4 address in its IPv6 form (RFC 4291 2.5.5.2) is the IPv4 one.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.first.is_ipv4() && masked(ip, self.prefix_bits) == self.first
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

/// The address with every bit behind the prefix cleared.
fn masked(ip: IpAddr, prefix_bits: u8) -> IpAddr {
    let prefix_bits = u32::from(prefix_bits);
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix_bits).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix_bits).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members() {
        let table = [
            ("127.0.0.0/8", "127.255.0.1", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("127.0.0.0/8", "::1", false),
            ("::1/128", "::1", true),
            ("::1", "::2", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("::/0", "203.0.113.9", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
        ];
        for (net, ip, inside) in table {
            let net = IpNet::parse(net).unwrap();
            assert_eq!(net.contains(ip.parse().unwrap()), inside, "{net} {ip}");
            assert_eq!(IpNet::parse(&net.to_string()), Ok(net));
        }
    }

    #[test]
    fn what_is_no_net() {
        for text in [
            "::ffff:127.0.0.0/104",
            "::ffff:192.0.2.1",
            "",
            "/8",
            "127.0.0.0/",
            "127.0.0.0/33",
            "::/129",
            "127.1/8",
            "1.2.3.4/+8",
            "x",
        ] {
            assert!(IpNet::parse(text).is_err(), "{text}");
        }
        let error = IpNet::parse("192.0.2.1/24").unwrap_err();
        assert_eq!(error, "has bits behind its prefix (not 192.0.2.0/24)");
    }
}
