//! Outcomes of a delivery as data: what happened to a connection and to each recipient.
//!
//! Owns: [`Stage`], the two proofs that stand for "delivered", and the outcomes that the SMTP
//! client reports and `settle` judges. Never: what follows from them.

use super::status::{Enhanced, Failure, Reply};

/// How far a connection or a transaction had come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// The TCP connection.
    Connect,
    /// The greeting.
    Greeting,
    /// EHLO or HELO.
    Ehlo,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, up to its 354.
    Data,
    /// The message bytes, before the final dot (or the end of BDAT LAST) was sent.
    Body,
    /// The final dot was sent; its reply is awaited.
    Dot,
}

/// Proof that a next hop took the message: a 2yz reply to the end of data. Together with
/// [`PossiblyAccepted`] the only key to "delivered".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    reply: Reply,
}

impl Accepted {
    /// Made from the reply to the end of data, and from no other.
    ///
    /// # Errors
    /// Gives a reply that is not 2yz back.
    pub fn from_end_of_data(reply: Reply) -> Result<Self, Reply> {
        if reply.is_positive() { Ok(Self { reply }) } else { Err(reply) }
    }

    /// What the next hop said, for the log.
    #[must_use]
    pub fn reply(&self) -> &Reply {
        &self.reply
    }
}

/// Stands for "delivered" under `possible_delivery = "delivered"`: the final dot was sent and no
/// reply came. Never enough for a 250 to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PossiblyAccepted(());

impl PossiblyAccepted {
    /// Made from an outcome past the final dot only.
    #[must_use]
    pub fn from_outcome(outcome: &RecipientOutcome) -> Option<Self> {
        matches!(outcome, RecipientOutcome::Uncertain { .. }).then_some(Self(()))
    }
}

/// Proof that a message is safe to answer with 250. Implemented by the queue's proof and by
/// nothing else.
pub trait ProofOfSafety {}

/// What a transaction brought for one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecipientOutcome {
    /// The next hop took it.
    Accepted(Accepted),
    /// A 4yz or 5yz reply to this recipient's MAIL, RCPT, DATA or end of data.
    Refused {
        /// The command that was refused.
        stage: Stage,
        /// The refusal.
        failure: Failure,
    },
    /// 452 or 552 to RCPT after at least one 250 in the transaction: too many recipients for one
    /// transaction (RFC 5321 4.5.3.1.10). The next transaction of the same session may take it.
    TooMany {
        /// How many recipients the transaction had before.
        taken: u32,
        /// The reply.
        failure: Failure,
    },
    /// Begun, but the connection broke (drop, silence, garbage) before the final dot was sent.
    Unanswered {
        /// Where it broke.
        stage: Stage,
        /// How it broke.
        failure: Failure,
    },
    /// The final dot was sent and its reply was lost: the next hop may have the message.
    Uncertain {
        /// How the reply was lost.
        failure: Failure,
    },
    /// The host does not offer what the message needs (8BITMIME, SMTPUTF8, SIZE): nothing was
    /// sent; another host may.
    Unfit {
        /// The permanent failure if no host takes it: 5.6.3, 5.6.7 or 5.3.4.
        failure: Failure,
    },
    /// Nothing of it was sent: goes back as if it had not been handed out.
    Untried,
}

impl RecipientOutcome {
    /// True when a positive reply must have come before it, within its transaction: the host was
    /// alive a moment ago.
    #[must_use]
    pub fn shows_life(&self) -> bool {
        match self {
            Self::Accepted(_) | Self::TooMany { .. } => true,
            Self::Refused { stage, .. } => *stage > Stage::Mail,
            Self::Unanswered { .. }
            | Self::Uncertain { .. }
            | Self::Unfit { .. }
            | Self::Untried => false,
        }
    }
}

/// Why a connection brought no session, or why a session ended before its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionFailure {
    /// Where.
    pub stage: Stage,
    /// How.
    pub cause: ConnectionCause,
}

/// What our own machine lacked for a connection: it says nothing of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// This process has as many open files as it may have.
    ProcessFiles,
    /// The machine has as many open files as it may have.
    SystemFiles,
    /// The kernel has no memory for a socket.
    Memory,
    /// No port is free for the source address, or that address is not ours.
    Ports,
}

impl Shortage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ProcessFiles, Self::SystemFiles, Self::Memory, Self::Ports];

    /// What is lacking and what to change, for the log.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::ProcessFiles => {
                "this process may open no more files: raise LimitNOFILE= of its unit (ulimit -n), \
                 or lower max_connections_out and max_connections"
            }
            Self::SystemFiles => "the machine may open no more files: raise sysctl fs.file-max",
            Self::Memory => {
                "the kernel has no memory for sockets: raise sysctl net.ipv4.tcp_mem, or lower \
                 max_connections_out"
            }
            Self::Ports => {
                "no source port is free, or the source address is not ours: widen sysctl \
                 net.ipv4.ip_local_port_range, or see to interface of [destination]"
            }
        }
    }
}

/// How a connection failed: the three reasons of the mail log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConnectionCause {
    /// A reply that is well-formed but negative where only a positive one helps.
    Reply(Reply),
    /// Bytes that are no reply, or a reply that nobody asked for: what it was, in our words.
    Garbage(Box<str>),
    /// The system's error text: refused, unreachable, reset, end of file.
    Network(Box<str>),
    /// No answer within the deadline.
    Timeout,
}

impl ConnectionFailure {
    /// The failure that recipients get when this was the last host: always temporary, for it
    /// speaks of a host and not of a mailbox (RFC 5321 4.2.1).
    #[must_use]
    pub fn as_failure(&self) -> Failure {
        match &self.cause {
            ConnectionCause::Reply(reply) => {
                let given = reply.enhanced.filter(|e| e.class == 4);
                let status = match (given, reply.is_transient()) {
                    (Some(enhanced), _) => enhanced,
                    (None, true) => Failure::from_reply(reply.clone()).status,
                    (None, false) => Enhanced::new(4, 3, 2),
                };
                Failure { status, reply: Some(reply.clone()), detail: Box::default() }
            }
            ConnectionCause::Garbage(what) => Failure::local(Enhanced::new(4, 5, 0), what.clone()),
            ConnectionCause::Network(text) => Failure::local(Enhanced::new(4, 4, 0), text.clone()),
            ConnectionCause::Timeout => Failure::local(Enhanced::new(4, 4, 1), "timeout"),
        }
    }
}
