//! The envelope: who sends, who receives, and what the sender asked for (RFC 5321, 3461, 6152,
//! 6531).
//!
//! Owns: the values of one mail transaction apart from the message bytes. Never: parsing of
//! commands (`smtp`).

use super::address::Mailbox;
use super::ids::Rid;

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BodyKind {
    /// BODY=7BIT, or no parameter.
    #[default]
    SevenBit,
    /// BODY=8BITMIME.
    EightBitMime,
}

/// The RET parameter of MAIL (RFC 3461 4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ret {
    /// RET=FULL: return the whole message in a failure report.
    Full,
    /// RET=HDRS: return its header only.
    Headers,
}

/// The NOTIFY parameter of RCPT (RFC 3461 4.1): a set of bits; no bit set means "not given".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Notify(pub u8);

impl Notify {
    /// NOTIFY=NEVER; stands alone.
    pub const NEVER: u8 = 1;
    /// NOTIFY=SUCCESS.
    pub const SUCCESS: u8 = 2;
    /// NOTIFY=FAILURE.
    pub const FAILURE: u8 = 4;
    /// NOTIFY=DELAY.
    pub const DELAY: u8 = 8;

    /// May a failure of this recipient be reported to the sender? Yes unless the sender said
    /// NEVER or named other events only (RFC 3461 4.1).
    #[must_use]
    pub fn wants_failure(self) -> bool {
        self.0 == 0 || self.0 & Self::FAILURE != 0
    }
}

/// One recipient of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    /// Its number within the message, from 0, in the order of RCPT.
    pub rid: Rid,
    /// Where it goes.
    pub address: Mailbox,
    /// The sender's wishes for reports.
    pub notify: Notify,
    /// ORCPT as received, `type;xtext`, passed on unchanged (RFC 3461 4.2).
    pub orcpt: Option<Box<str>>,
}

/// The envelope of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The reverse path; `None` is the null sender `<>`.
    pub sender: Option<Mailbox>,
    /// BODY.
    pub body: BodyKind,
    /// SMTPUTF8 was given (RFC 6531).
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// ENVID as received, xtext, passed on unchanged (RFC 3461 4.4).
    pub envid: Option<Box<str>>,
    /// The recipients, at least one when the transaction is complete.
    pub recipients: Vec<Recipient>,
}

/// What was seen in the message bytes while they came in; decides how they may be sent on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MessageFacts {
    /// A line starts with a dot, or may: DATA needs dot-stuffing (RFC 5321 4.5.2).
    pub leading_dot: bool,
    /// An octet above 127 stands in the message: 8BITMIME is needed (RFC 6152).
    pub eight_bit: bool,
    /// An octet above 127 stands in the header: SMTPUTF8 is needed (RFC 6532).
    pub utf8_header: bool,
}
