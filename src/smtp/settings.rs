//! Settings of the two SMTP dialogues, as the configuration fills them.
//!
//! Owns: the types and their defaults. Never: parsing (`config`).

use std::sync::Arc;
use std::time::Duration;

/// What a listener does with lines longer than [`crate::limits::TEXT_LINE_OCTETS_RFC`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LongLines {
    /// Takes them up to [`crate::limits::TEXT_LINE_OCTETS_MAX`] and sends them on unchanged.
    #[default]
    Accept,
    /// Refuses the message with 554 5.6.0.
    Reject,
}

/// The server side of one listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSettings {
    /// Our name in greeting, EHLO reply and Received.
    pub hostname: Arc<str>,
    /// Largest message, in octets; offered as SIZE (RFC 1870).
    pub message_octets_max: u64,
    /// Most recipients per message; further ones get 452 4.5.3.
    pub recipients_max: usize,
    /// Lines over 998 octets.
    pub long_lines: LongLines,
}

/// Deadlines of the client side: each one for the whole reply, not for one byte of it
/// (RFC 5321 4.5.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// The TCP connection.
    pub connect: Duration,
    /// The 220 greeting.
    pub greeting: Duration,
    /// The reply to EHLO or HELO.
    pub ehlo: Duration,
    /// The reply to MAIL, and to RSET and NOOP.
    pub mail: Duration,
    /// The reply to each RCPT.
    pub rcpt: Duration,
    /// The 354 after DATA.
    pub data: Duration,
    /// The peer taking one piece of the body.
    pub block: Duration,
    /// The reply to the final dot (or to BDAT LAST).
    pub final_reply: Duration,
    /// An idle connection is closed after this long.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connect: seconds(30),
            greeting: seconds(300),
            ehlo: seconds(300),
            mail: seconds(300),
            rcpt: seconds(300),
            data: seconds(120),
            block: seconds(180),
            final_reply: seconds(600),
            idle: seconds(5),
        }
    }
}
