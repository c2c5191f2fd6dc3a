//! The SMTP routes table: receiving domain -> row, the most specific match first.
//!
//! Owns: rows and their index. Never: their text (`row`), their file (`config`), DNS. A result is
//! never looked up here again, so routes cannot form a loop.
//!
//! Match order, whatever the order of the rows: the exact name; the longest `.suffix` that the
//! name ends in; `ALL`. An address literal matches its own row or `ALL`.
//!
//! Diagnostics: two rows with one receiving domain are a [`Duplicate`].
//!
//! Limits: memory; about 200 octets a row, so 1,000,000 rows fit in 200 MB. A lookup hashes the
//! name once, and a suffix of it once for each suffix length in use; it allocates nothing.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::mail::Domain;

/// The receiving domains of a row.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Pattern {
    /// `example.com`: this name.
    Exact(Domain),
    /// `.example.com`: every name below it, not the name itself.
    Below(Domain),
    /// `ALL`: every name and literal that no other row matches.
    Default,
    /// `[192.0.2.1]`: this address literal.
    Literal(Domain),
}

/// How a host is named in a row.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HostAddress {
    /// An address.
    Ip(IpAddr),
    /// A name: its MX, then their addresses, as for any domain.
    Name(Domain),
    /// `[name]`: its addresses only.
    Bracketed(Domain),
}

/// One host of a row.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HostSpec {
    /// Where.
    pub address: HostAddress,
    /// TCP port, 1..=65535.
    pub port: u16,
    /// 0 is tried first.
    pub priority: u16,
}

/// Where a row sends its mail.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// These hosts; at least one, at most [`crate::limits::ROUTE_HOSTS_MAX`].
    Hosts(Vec<HostSpec>),
    /// `USEDNS`: the MX of the receiving domain.
    UseDns,
    /// `/dev/null`: accepted and discarded.
    Discard,
}

/// One row of the table.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Row {
    /// Which receiving domains.
    pub pattern: Pattern,
    /// Where to.
    pub target: Target,
    /// The name of an outgoing SMTP authentication profile.
    pub auth: Option<Arc<str>>,
    /// The line of the routes file it stands in, from 1; 0: none.
    pub line: u32,
}

impl Row {
    /// Addresses and priorities of the hosts; `None` when a name must be resolved first, or when
    /// the row has no hosts of its own.
    #[must_use]
    pub fn addresses(&self) -> Option<Vec<(SocketAddr, u16)>> {
        let Target::Hosts(hosts) = &self.target else { return None };
        let address = |host: &HostSpec| match host.address {
            HostAddress::Ip(ip) => Some((SocketAddr::new(ip, host.port), host.priority)),
            HostAddress::Name(_) | HostAddress::Bracketed(_) => None,
        };
        hosts.iter().map(address).collect()
    }
}

/// Two rows for one receiving domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Duplicate {
    /// Index of the later row in what [`Table::build`] was given.
    pub row: usize,
    /// Index of the row that has the receiving domain already.
    pub first: usize,
}

/// All routes, immutable.
#[derive(Default)]
pub struct Table {
    rows: Box<[Row]>,
    exact: HashTable<u32>,
    below: HashTable<u32>,
    default: Option<u32>,
    /// Bit n: there is a `.suffix` of n labels. A domain of 253 octets has at most 127.
    below_labels: u128,
    hasher: DefaultHashBuilder,
}

impl Table {
    /// Builds the index.
    ///
    /// # Errors
    /// Every row whose receiving domain an earlier row has.
    pub fn build(rows: Vec<Row>) -> Result<Self, Vec<Duplicate>> {
        let mut table = Self { rows: rows.into_boxed_slice(), ..Self::default() };
        let mut duplicates = Vec::new();
        for index in 0..table.rows.len() {
            if let Some(first) = table.insert(index) {
                duplicates.push(Duplicate { row: index, first });
            }
        }
        table.exact.shrink_to_fit(|i| hash_of(&table.hasher, &table.rows, *i));
        table.below.shrink_to_fit(|i| hash_of(&table.hasher, &table.rows, *i));
        if duplicates.is_empty() { Ok(table) } else { Err(duplicates) }
    }

    /// The row for mail to `domain`; `None`: its MX in DNS.
    #[must_use]
    pub fn find(&self, domain: &Domain) -> Option<&Row> {
        let name = domain.as_str();
        let index = self
            .probe(&self.exact, name)
            .or_else(|| if name.starts_with('[') { None } else { self.find_below(name) })
            .or(self.default)?;
        Some(self.row(index))
    }

    /// All rows, in the order they were given.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn find_below(&self, name: &str) -> Option<u32> {
        if self.below.is_empty() {
            return None;
        }
        let mut labels = name.bytes().filter(|b| *b == b'.').count();
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            rest = suffix;
            let in_use = self.below_labels >> labels.min(127) & 1 == 1;
            labels -= 1;
            if let Some(index) = in_use.then(|| self.probe(&self.below, suffix)).flatten() {
                return Some(index);
            }
        }
        None
    }

    fn probe(&self, index: &HashTable<u32>, name: &str) -> Option<u32> {
        let same = |i: &u32| self.row(*i).pattern.name() == name;
        index.find(self.hasher.hash_one(name), same).copied()
    }

    fn row(&self, index: u32) -> &Row {
        &self.rows[position(index)]
    }

    /// Adds row `index`; gives the index of the row that is there already.
    fn insert(&mut self, index: usize) -> Option<usize> {
        let number = u32::try_from(index).expect("fewer than 2^32 rows fit in memory");
        let pattern = &self.rows[index].pattern;
        let map = match pattern {
            Pattern::Default => {
                let first = *self.default.get_or_insert(number);
                return (first != number).then(|| position(first));
            }
            Pattern::Below(suffix) => {
                let labels = suffix.as_str().split('.').count();
                self.below_labels |= 1 << labels.min(127);
                &mut self.below
            }
            Pattern::Exact(_) | Pattern::Literal(_) => &mut self.exact,
        };
        let name = pattern.name();
        let hash = self.hasher.hash_one(name);
        let same = |i: &u32| self.rows[position(*i)].pattern.name() == name;
        if let Some(first) = map.find(hash, same) {
            return Some(position(*first));
        }
        map.insert_unique(hash, number, |i| hash_of(&self.hasher, &self.rows, *i));
        None
    }
}

impl Pattern {
    /// The canonical name without the leading dot; empty for `ALL`.
    fn name(&self) -> &str {
        match self {
            Self::Exact(domain) | Self::Below(domain) | Self::Literal(domain) => domain.as_str(),
            Self::Default => "",
        }
    }
}

fn hash_of(hasher: &DefaultHashBuilder, rows: &[Row], index: u32) -> u64 {
    hasher.hash_one(rows[position(index)].pattern.name())
}

fn position(index: u32) -> usize {
    usize::try_from(index).expect("usize holds 32 bits on every supported target")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::parse_row;
    use proptest::prelude::*;

    fn row(text: &str) -> Row {
        parse_row(text).unwrap().unwrap()
    }

    fn table(patterns: &[&str]) -> Table {
        Table::build(patterns.iter().map(|p| row(&format!("{p} 192.0.2.1"))).collect()).unwrap()
    }

    fn found(table: &Table, name: &str) -> Option<String> {
        let domain = Domain::parse(name.as_bytes()).unwrap();
        table.find(&domain).map(|row| row.pattern.to_string())
    }

    #[test]
    fn the_most_specific_match_wins_whatever_the_order() {
        let rows = [
            ".example.com",
            "ALL",
            "host1.example.com",
            ".a.b.example.com",
            "[192.0.2.9]",
            "example.org",
            ".com",
            "[IPv6:2001:db8::1]",
        ];
        let expected = [
            ("host1.example.com", Some("host1.example.com")),
            ("HOST1.Example.COM", Some("host1.example.com")),
            ("host2.example.com", Some(".example.com")),
            ("x.host1.example.com", Some(".example.com")),
            ("b.example.com", Some(".example.com")),
            ("a.b.example.com", Some(".example.com")),
            ("x.a.b.example.com", Some(".a.b.example.com")),
            ("x.y.a.b.example.com", Some(".a.b.example.com")),
            ("example.com", Some(".com")),
            ("notexample.com", Some(".com")),
            ("com", Some("ALL")),
            ("example.org", Some("example.org")),
            ("sub.example.org", Some("ALL")),
            ("[192.0.2.9]", Some("[192.0.2.9]")),
            ("[192.0.2.8]", Some("ALL")),
            ("[ipv6:2001:DB8:0::1]", Some("[IPv6:2001:db8::1]")),
        ];
        let mut backwards = rows;
        backwards.reverse();
        for table in [table(&rows), table(&backwards)] {
            for (name, pattern) in expected {
                assert_eq!(found(&table, name).as_deref(), pattern, "{name}");
            }
        }
    }

    #[test]
    fn without_all_nothing_matches() {
        let table = table(&[".example.com", "example.org"]);
        assert_eq!(found(&table, "example.com"), None);
        assert_eq!(found(&table, "[192.0.2.1]"), None);
        assert_eq!(found(&Table::default(), "example.com"), None);
    }

    #[test]
    fn duplicates_are_named() {
        let rows =
            ["a.example", ".a.example", "ALL", "A.Example", "all", "b.example", ".A.example"];
        let rows = rows.iter().map(|p| row(&format!("{p} USEDNS"))).collect();
        let duplicates: Vec<_> =
            Table::build(rows).err().unwrap().iter().map(|d| (d.row, d.first)).collect();
        assert_eq!(duplicates, [(3, 0), (4, 2), (6, 1)]);
    }

    #[test]
    fn international_names_meet_their_a_labels() {
        let table = table(&["b\u{fc}cher.example"]);
        assert!(found(&table, "xn--bcher-kva.example").is_some());
        assert!(found(&table, "B\u{dc}CHER.example").is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn find_agrees_with_a_walk_over_all_rows(
            patterns in proptest::collection::btree_set("\\.?[ab](\\.[ab]){0,4}", 0..12),
            with_all: bool,
            name in "[ab](\\.[ab]){0,5}",
        ) {
            let mut patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            patterns.extend(with_all.then_some("ALL"));
            let naive = patterns
                .iter()
                .filter(|p| **p == name || p.starts_with('.') && name.ends_with(**p))
                .max_by_key(|p| p.len() + usize::from(**p == name) * 1000)
                .or(patterns.iter().find(|p| **p == "ALL"))
                .map(|p| (*p).to_owned());
            prop_assert_eq!(found(&table(&patterns), &name), naive);
        }
    }
}
