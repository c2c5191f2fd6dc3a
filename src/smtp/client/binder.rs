//! The binder: which command the next reply answers.
//!
//! Owns: the queue of replies that are owed to us. Never: what a reply means. A reply says by
//! nothing but its place which command it answers, so a command's mark goes in at the moment its
//! bytes are handed out for writing, never before: a reply that comes while no mark is waiting
//! answers nothing (RFC 2920 3.1), and the dialogue cannot be trusted any more.

use std::collections::VecDeque;
use std::time::Duration;

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
    /// MAIL of the oldest unfinished transaction.
    Mail,
    /// RCPT of its recipient with this index.
    Rcpt(usize),
    /// Its DATA.
    Data,
    /// Its end of data; owed from the 354 on, for a refusal may come before the final dot.
    EndOfData,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
}

impl Mark {
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

/// The replies owed to us, in the order of their commands.
#[derive(Default, Debug)]
pub(super) struct Binder {
    marks: VecDeque<Mark>,
}

impl Binder {
    /// Notes that a reply is owed.
    pub(super) fn expect(&mut self, mark: Mark) {
        self.marks.push_back(mark);
    }

    /// The command that a reply which has just come answers.
    pub(super) fn bind(&mut self) -> Option<Mark> {
        self.marks.pop_front()
    }

    /// The next reply that is owed.
    pub(super) fn next(&self) -> Option<Mark> {
        self.marks.front().copied()
    }

    /// No reply is owed.
    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Forgets what is owed: the connection is given up.
    pub(super) fn clear(&mut self) {
        self.marks.clear();
    }
}
