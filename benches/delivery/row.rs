//! The named loads, and how a source is to send each of them.

use std::net::SocketAddr;

use ringpost::lab::source::SourceOptions;

/// One load.
#[derive(Clone)]
pub struct Row {
    pub name: &'static str,
    pub octets: usize,
    pub sessions: u32,
    pub domains: u64,
    /// Messages of a train; 1: by DATA, one per round trip.
    pub window: usize,
    pub messages: u64,
    pub smoke_messages: u64,
}

const SMALL: Row = Row {
    name: "small",
    octets: 4096,
    sessions: 20,
    domains: 1,
    window: 8,
    messages: 100_000,
    smoke_messages: 500,
};

/// Every load; the long link has its own page.
pub const ROWS: [Row; 5] = [
    SMALL,
    Row { name: "wide", sessions: 1000, messages: 200_000, smoke_messages: 1000, ..SMALL },
    Row { name: "large", octets: 5 << 20, window: 1, messages: 400, smoke_messages: 5, ..SMALL },
    Row { name: "many", domains: 10_000, ..SMALL },
    Row { name: "100k", octets: 100 << 10, messages: 10_000, smoke_messages: 50, ..SMALL },
];

impl Row {
    /// A source of this load.
    pub fn source(&self, messages: u64, to: SocketAddr, rate: Option<f64>) -> SourceOptions {
        let rcpt = if self.domains > 1 { "user@d%n.example" } else { "user@example.com" };
        SourceOptions {
            to,
            messages,
            sessions: self.sessions,
            size: self.octets,
            rcpt: rcpt.to_owned(),
            domains: (self.domains > 1).then_some(self.domains),
            bdat: self.window > 1,
            window: self.window,
            rate,
            ..SourceOptions::default()
        }
    }
}
