//! The binder: which command the next reply answers.
//!
//! Owns: the queue of replies that are owed to us. Never: what a reply means. A reply says by
//! nothing but its place which command it answers, so a command's mark goes in at the moment its
//! bytes are handed out for writing, never before: a reply that comes while no mark is waiting
//! answers nothing (RFC 2920 3.1), and the dialogue cannot be trusted any more. Enhanced codes that
//! differ by command are a second witness, where a host gives them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::mail::Reply;
use crate::smtp::settings::Timeouts;

/// A reply that is owed to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// The greeting, owed from the start.
    Greeting,
    /// EHLO.
    Ehlo,
    /// HELO.
    Helo,
    /// MAIL.
    Mail,
    /// RCPT of the transaction's recipient with this index.
    Rcpt(usize),
    /// DATA.
    Data,
    /// The end of data; owed from the 354 or from BDAT on, for a refusal may come early.
    EndOfData,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
}

impl Mark {
    /// True unless a positive reply lacks the enhanced code that shows whom it answers: x.1.0
    /// for MAIL, x.1.5 for RCPT, neither of the two for the end of data. A refusal needs none.
    pub(super) fn fits(self, reply: &Reply) -> bool {
        if !reply.is_positive() {
            return true;
        }
        let code = reply.enhanced.map(|enhanced| (enhanced.subject, enhanced.detail));
        match self {
            Self::Mail => code == Some((1, 0)),
            Self::Rcpt(_) => code == Some((1, 5)),
            Self::EndOfData => code.is_some_and(|code| !matches!(code, (1, 0 | 5))),
            Self::Rset => !matches!(code, Some((1, 0 | 5))),
            Self::Greeting | Self::Ehlo | Self::Helo | Self::Data | Self::Quit => true,
        }
    }

    /// How long the whole reply may take.
    pub(super) fn timeout(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Greeting => timeouts.greeting,
            Self::Ehlo | Self::Helo => timeouts.ehlo,
            Self::Mail | Self::Rset | Self::Quit => timeouts.mail,
            Self::Rcpt(_) => timeouts.rcpt,
            Self::Data => timeouts.data,
            Self::EndOfData => timeouts.final_reply,
        }
    }
}

/// A reply that is owed, and to which transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owed {
    pub(super) mark: Mark,
    /// The number of the transaction; 0: to none.
    pub(super) number: u64,
}

/// The replies owed to us, in the order of their commands.
#[derive(Default, Debug)]
pub(super) struct Binder {
    owed: VecDeque<Owed>,
}

impl Binder {
    /// Notes that a reply is owed to a transaction.
    pub(super) fn expect(&mut self, mark: Mark, number: u64) {
        self.owed.push_back(Owed { mark, number });
    }

    /// Makes room for the replies to so many more transactions of one recipient each.
    pub(super) fn reserve(&mut self, transactions: usize) {
        self.owed.reserve(3 * transactions);
    }

    /// The command that a reply which has just come answers.
    pub(super) fn bind(&mut self) -> Option<Owed> {
        self.owed.pop_front()
    }

    /// The next reply that is owed.
    pub(super) fn next(&self) -> Option<Owed> {
        self.owed.front().copied()
    }

    /// A reply is owed to the oldest transaction, whose number this is.
    pub(super) fn owes(&self, number: u64) -> bool {
        self.next().is_some_and(|owed| owed.number == number)
    }

    /// No reply is owed.
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Forgets what is owed: the connection is given up.
    pub(super) fn clear(&mut self) {
        self.owed.clear();
    }
}
