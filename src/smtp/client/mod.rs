//! The client side of SMTP without I/O (RFC 5321): one session per connection.
//!
//! Owns: the dialogue of a connection that delivers mail, and what it brought for each recipient.
//! Never: sockets, clocks, the choice of host, or what follows from an outcome (`settle`).
//!
//! The caller reports what happens to the socket by [`Session::handle_input`],
//! [`Session::handle_sent`], [`Session::handle_closed`] and [`Session::handle_deadline`], hands
//! mail in by [`Session::submit`], and after each of them calls [`Session::poll_output`] until it
//! says [`Output::Idle`]. Every transaction submitted is answered by exactly one [`Event::Done`],
//! whatever happens.
//!
//! * `session`: the states of a connection, named for the reply they wait for
//! * `ready`: the transactions in flight, and when each of them is settled
//! * `pace`: how many may be in flight, and in which way they go
//! * `flight`: one transaction under way, and its verdict on each recipient
//! * `binder`: which command the next reply answers
//! * `outgoing`: one write in the making
//! * `body`: pieces, dot-stuffing, the final dot
//! * `commands`: MAIL and RCPT with the parameters that the host offers
//! * `extensions`: what the host offers
//!
//! The critical window: from the moment the bytes with the final dot are handed out for writing
//! until their reply, a lost connection leaves [`RecipientOutcome::Uncertain`], for the peer may
//! have taken the message (RFC 1047).
//!
//! Diagnostics: bytes that are no reply, replies that nobody asked for and broken deadlines end
//! the session; nothing a peer sends panics.
//!
//! Limits: `limits::TRAIN_MESSAGES_MAX`, `limits::TRAIN_OCTETS_MAX`,
//! `limits::COMMAND_GROUP_OCTETS`, `limits::BODY_PIECE_OCTETS`, and those of
//! [`crate::smtp::reply`].

mod binder;
mod body;
mod commands;
mod extensions;
mod flight;
mod outgoing;
mod pace;
mod ready;
mod session;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use super::settings::Timeouts;
use crate::mail::{
    Body, BodyKind, ConnectionFailure, Mailbox, Recipient, RecipientOutcome, Ret, Rid,
};

pub use extensions::Extensions;
pub use session::Session;

/// May several transactions be in flight on a session?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrainPolicy {
    /// One at a time.
    Off,
    /// As many as the host answers well.
    Auto {
        /// The window that an earlier session to the host learned; 0: none, so the first
        /// transactions go plainly until the host has shown marks.
        window: u32,
    },
}

/// What a session is made with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientSettings {
    /// Our name in EHLO and HELO: a host name or an address literal (RFC 5321 4.1.4).
    pub ehlo_name: Arc<str>,
    /// The deadlines; `connect` is the caller's.
    pub timeouts: Timeouts,
    /// Transactions after which the session ends with QUIT; 0 for no such number.
    pub messages_max: u32,
    /// Whether several transactions may be in flight.
    pub train: TrainPolicy,
    /// The host must be spoken to plainly: one transaction at a time, whatever `train` says.
    pub plain: bool,
}

/// One mail transaction to be carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Names the transaction in its [`Event::Done`]; the session does not look at it.
    pub key: u64,
    /// The reverse path; `None` is `<>`.
    pub sender: Option<Mailbox>,
    /// BODY as the message came.
    pub body_kind: BodyKind,
    /// The message came with SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// ENVID, xtext.
    pub envid: Option<Box<str>>,
    /// At least one.
    pub recipients: Vec<Recipient>,
    /// The message.
    pub body: Arc<Body>,
    /// Every command waits for the reply to the one before it, whatever the host offers.
    pub strict: bool,
}

/// What the caller is to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Write all of it, in one gathered write where possible, then call [`Session::handle_sent`].
    Send(Vec<Chunk>),
    /// Take note.
    Event(Event),
    /// Shut the socket down. Comes once, and nothing but [`Output::Idle`] after it.
    Close,
    /// Nothing until something happens.
    Idle,
}

/// A part of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// Fixed bytes.
    Static(&'static [u8]),
    /// Bytes made for this write.
    Bytes(Vec<u8>),
    /// Commands, in a buffer that the session uses again once all its chunks are dropped.
    Commands {
        /// The buffer.
        buffer: Arc<Vec<u8>>,
        /// Which octets of it.
        range: Range<usize>,
    },
    /// Bytes of the message as they stand.
    Body {
        /// The message.
        body: Arc<Body>,
        /// Which octets of it; they lie together.
        range: Range<usize>,
    },
}

impl Chunk {
    /// The bytes to be written.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Bytes(bytes) => bytes,
            Self::Commands { buffer, range } => &buffer[range.clone()],
            Self::Body { body, range } => body.bytes.slice(range.clone()),
        }
    }
}

/// What a session has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Greeting and EHLO are done: transactions may be submitted. Comes at most once.
    Ready {
        /// What the host offers.
        extensions: Extensions,
    },
    /// A transaction is over.
    Done {
        /// Its key.
        key: u64,
        /// One outcome per recipient, in their order.
        outcomes: Vec<(Rid, RecipientOutcome)>,
    },
    /// The connection never became ready.
    Failed(ConnectionFailure),
    /// A ready session broke.
    Ended {
        /// Where and how.
        failure: ConnectionFailure,
        /// No transaction was under way: neither a delivery attempt nor the fault of a message.
        /// Peers close idle connections at will (RFC 5321 3.8).
        idle: bool,
    },
    /// The session takes no more transactions, by nobody's fault: idle too long, enough messages,
    /// [`Session::quit`], or out of step after an early refusal.
    Retired,
}
