//! What the session asks of the engine, and what it tells it.
//!
//! Owns: [`Gate`], [`Refusal`], [`Abort`]. Never: a decision of its own.

use std::borrow::Cow;

use crate::mail::{Enhanced, Mailbox, Mid, Rid};

/// A negative reply: 4yz or 5yz with an enhanced code of the same class (RFC 2034 4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The reply code, 400..=599. 421 ends the connection.
    pub code: u16,
    /// The enhanced code.
    pub enhanced: Enhanced,
    /// The words; a control character in them is sent as a space.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with the enhanced code `subject.detail` of the class of `code`.
    ///
    /// # Panics
    /// When `code` is not 400..=599.
    #[must_use]
    pub fn new(code: u16, subject: u16, detail: u16, text: impl Into<Cow<'static, str>>) -> Self {
        let class = match code {
            400..=499 => 4,
            500..=599 => 5,
            _ => panic!("{code} does not refuse"),
        };
        Self { code, enhanced: Enhanced::new(class, subject, detail), text: text.into() }
    }
}

/// Why a transaction ended without a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// The client said RSET, EHLO or HELO.
    Reset,
    /// The client said QUIT.
    Quit,
    /// The message was refused at its end.
    Refused,
    /// The session was ended from here: errors, octets that cannot be trusted, 421 of the engine.
    SentAway,
    /// A deadline passed.
    Timeout,
    /// The engine stops.
    Shutdown,
    /// The connection was lost.
    Lost,
}

/// The engine, as one session sees it. Every MID that [`Gate::begin`] gives out comes back exactly
/// once: in [`Gate::aborted`] or in the transaction of [`super::Next::Message`].
pub trait Gate {
    /// MAIL is in order: gives the message its id. Log `Start` and `From`.
    ///
    /// # Errors
    /// The refusal that MAIL is answered with, such as 452 4.3.1 when the queue is full.
    fn begin(&mut self, sender: Option<&Mailbox>, octets: Option<u64>) -> Result<Mid, Refusal>;

    /// RCPT is in order and the client may relay: may this recipient be taken? Log `To`.
    ///
    /// # Errors
    /// The refusal that RCPT is answered with, such as 451 4.4.4 without a route.
    fn recipient(&mut self, mid: Mid, rid: Rid, address: &Mailbox) -> Result<(), Refusal>;

    /// RCPT with a well-formed address was refused, by [`Gate::recipient`] or by the session.
    fn recipient_refused(&mut self, mid: Mid, address: &Mailbox, refusal: &Refusal);

    /// The transaction is over and nothing of it is left.
    fn aborted(&mut self, mid: Mid, cause: Abort);
}
