//! What an outcome means for session, host and destination.
//!
//! Owns: [`HostEffect`], the reason in the log, and the sign for the destination's gate. Never:
//! host health itself (`route`): whether a failed host goes down is decided there, for a session
//! that works may stand against it.

use crate::mail::{ConnectionCause, ConnectionFailure, Failure, RecipientOutcome, Shortage, Stage};
use crate::schedule::Sign;

/// How long a host is passed over after 421, in milliseconds.
pub const PASS_OVER_REPLY_MS: u64 = 1_000;

/// How long a host is passed over after a drop, silence or garbage, in milliseconds.
pub const PASS_OVER_BROKEN_MS: u64 = 5_000;

/// What host health is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostEffect {
    /// The connection brought no session: the host goes down, or lowers its ceiling while
    /// another session to it works.
    Failed,
    /// Skipped like a down host for so long, without probe or back-off.
    PassOver {
        /// For how long, in milliseconds.
        ms: u64,
    },
    /// Nothing.
    None,
    /// It takes so many recipients in one transaction.
    RememberRecipients(u32),
}

/// The `reason:` of a `Connection Error` line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogReason {
    /// The host answered, but not as SMTP asks, or kept silent after the TCP connection stood.
    UnexpectedResponse,
    /// The network failed.
    NetworkError,
    /// The TCP connection did not come about in time.
    TimedOut,
}

impl LogReason {
    /// The words of the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnexpectedResponse => "unexpected SMTP response",
            Self::NetworkError => "network error",
            Self::TimedOut => "connection timed out",
        }
    }
}

/// What a failed connection, or a session that ended before its time, means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionVerdict {
    /// For the host.
    pub effect: HostEffect,
    /// For the log.
    pub reason: LogReason,
    /// For the gate of the destination whose delivery was to use it.
    pub sign: Sign,
}

/// Judges a connection. `was_idle`: the session had no transaction open when it broke, after at
/// least one that was done; peers close idle sessions, and that is no failure of anything.
#[must_use]
pub fn connection_verdict(failure: &ConnectionFailure, was_idle: bool) -> ConnectionVerdict {
    let reason = match (&failure.cause, failure.stage) {
        (ConnectionCause::Reply(_) | ConnectionCause::Garbage(_), _) => {
            LogReason::UnexpectedResponse
        }
        (ConnectionCause::Network(_), _) => LogReason::NetworkError,
        (ConnectionCause::Timeout, Stage::Greeting | Stage::Ehlo) => LogReason::UnexpectedResponse,
        (ConnectionCause::Timeout, _) => LogReason::TimedOut,
    };
    let (effect, sign) = match failure.stage {
        Stage::Connect => (HostEffect::Failed, Sign::Trouble),
        Stage::Greeting | Stage::Ehlo => (HostEffect::Failed, Sign::HostRefusal),
        Stage::Mail | Stage::Rcpt | Stage::Data | Stage::Body | Stage::Dot => {
            (in_session(&failure.cause, was_idle), sign_in_session(&failure.cause))
        }
    };
    ConnectionVerdict { effect, reason, sign }
}

/// Whom a shortage of our own machine keeps from a connection. The host stays up and nothing
/// counts as an attempt: its deliveries wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Every host: no new connections at all for a moment.
    EveryHost,
    /// This host from this source address: others may be reached, and take its turns meanwhile
    /// unless sessions to it work.
    ThisHost,
}

/// Judges a shortage. Ports are counted for each peer apart (ip(7), IP_BIND_ADDRESS_NO_PORT).
#[must_use]
pub fn reach_of(shortage: Shortage) -> Reach {
    match shortage {
        Shortage::ProcessFiles | Shortage::SystemFiles | Shortage::Memory => Reach::EveryHost,
        Shortage::Ports => Reach::ThisHost,
    }
}

/// What one recipient's outcome tells about the host. A broken connection is judged once, by
/// [`connection_verdict`], and not again by each of its recipients.
#[must_use]
pub fn effect_of(outcome: &RecipientOutcome) -> HostEffect {
    match outcome {
        RecipientOutcome::Refused { failure, .. } if failure.code() == 421 => {
            HostEffect::PassOver { ms: PASS_OVER_REPLY_MS }
        }
        RecipientOutcome::TooMany { taken, .. } if *taken > 0 => {
            HostEffect::RememberRecipients(*taken)
        }
        RecipientOutcome::Refused { .. }
        | RecipientOutcome::TooMany { .. }
        | RecipientOutcome::Accepted(_)
        | RecipientOutcome::Unanswered { .. }
        | RecipientOutcome::Uncertain { .. }
        | RecipientOutcome::Unfit { .. }
        | RecipientOutcome::Untried => HostEffect::None,
    }
}

/// What one recipient's outcome tells about the destination; `None`: nothing new.
#[must_use]
pub fn sign_of(outcome: &RecipientOutcome) -> Option<Sign> {
    match outcome {
        RecipientOutcome::Accepted(_) => Some(Sign::Success),
        RecipientOutcome::Refused { stage, failure } => Some(sign_of_refusal(*stage, failure)),
        RecipientOutcome::TooMany { taken: 0, failure } => {
            Some(sign_of_refusal(Stage::Rcpt, failure))
        }
        // It took the others: a limit, no refusal.
        RecipientOutcome::TooMany { .. } => None,
        RecipientOutcome::Unanswered { .. } | RecipientOutcome::Uncertain { .. } => {
            Some(Sign::Trouble)
        }
        RecipientOutcome::Unfit { .. } => Some(Sign::Mailbox),
        RecipientOutcome::Untried => None,
    }
}

fn in_session(cause: &ConnectionCause, was_idle: bool) -> HostEffect {
    match cause {
        _ if was_idle => HostEffect::None,
        ConnectionCause::Reply(reply) if reply.code == 421 => {
            HostEffect::PassOver { ms: PASS_OVER_REPLY_MS }
        }
        ConnectionCause::Reply(_) => HostEffect::None,
        ConnectionCause::Garbage(_) | ConnectionCause::Network(_) | ConnectionCause::Timeout => {
            HostEffect::PassOver { ms: PASS_OVER_BROKEN_MS }
        }
    }
}

fn sign_in_session(cause: &ConnectionCause) -> Sign {
    match cause {
        ConnectionCause::Reply(reply) if reply.code == 421 => Sign::HostRefusal,
        _ => Sign::Trouble,
    }
}

/// 4yz to MAIL, 421 anywhere, and 4yz with x.3.x or x.4.x speak of the host; all else speaks of
/// message or mailbox. To RCPT the subject counts only when the host itself gave it: greylisting
/// and full mailboxes often come as a bare 451 or 452.
fn sign_of_refusal(stage: Stage, failure: &Failure) -> Sign {
    let Some(reply) = failure.reply.as_ref().filter(|reply| reply.is_transient()) else {
        return Sign::Mailbox;
    };
    let subject = match (stage, reply.enhanced) {
        (Stage::Rcpt, None) => None,
        _ => Some(failure.status.subject),
    };
    let of_host = reply.code == 421 || stage <= Stage::Mail || matches!(subject, Some(3 | 4));
    if of_host { Sign::HostRefusal } else { Sign::Mailbox }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Accepted, Enhanced, Reply, ReplyLines};

    fn reply(code: u16, enhanced: Option<(u16, u16)>) -> Reply {
        let class = if code >= 500 { 5 } else { 4 };
        let enhanced = enhanced.map(|(subject, detail)| Enhanced::new(class, subject, detail));
        Reply { code, enhanced, lines: ReplyLines::default() }
    }

    #[test]
    fn connections_by_stage_and_cause() {
        use ConnectionCause::{Garbage, Network, Reply, Timeout};
        let pass = |ms| HostEffect::PassOver { ms };
        let (smtp, net, time) =
            ("unexpected SMTP response", "network error", "connection timed out");
        let table = [
            (Stage::Connect, Timeout, HostEffect::Failed, time, Sign::Trouble),
            (Stage::Connect, Network("refused".into()), HostEffect::Failed, net, Sign::Trouble),
            (Stage::Greeting, Reply(reply(431, None)), HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Greeting, Reply(reply(554, None)), HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Greeting, Garbage("x".into()), HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Greeting, Timeout, HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Greeting, Network("eof".into()), HostEffect::Failed, net, Sign::HostRefusal),
            (Stage::Ehlo, Reply(reply(421, None)), HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Ehlo, Reply(reply(501, None)), HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Ehlo, Timeout, HostEffect::Failed, smtp, Sign::HostRefusal),
            (Stage::Mail, Reply(reply(421, None)), pass(1_000), smtp, Sign::HostRefusal),
            (Stage::Mail, Reply(reply(451, None)), HostEffect::None, smtp, Sign::Trouble),
            (Stage::Mail, Network("reset".into()), pass(5_000), net, Sign::Trouble),
            (Stage::Rcpt, Timeout, pass(5_000), time, Sign::Trouble),
            (Stage::Data, Garbage("x".into()), pass(5_000), smtp, Sign::Trouble),
            (Stage::Body, Network("reset".into()), pass(5_000), net, Sign::Trouble),
            (Stage::Dot, Timeout, pass(5_000), time, Sign::Trouble),
            (Stage::Dot, Network("eof".into()), pass(5_000), net, Sign::Trouble),
        ];
        for (stage, cause, effect, reason, sign) in table {
            let failure = ConnectionFailure { stage, cause };
            let verdict = connection_verdict(&failure, false);
            assert_eq!(
                (verdict.effect, verdict.reason.as_str(), verdict.sign),
                (effect, reason, sign),
                "{failure:?}"
            );
            let idle = connection_verdict(&failure, true).effect;
            let expected = if stage < Stage::Mail { effect } else { HostEffect::None };
            assert_eq!(idle, expected, "{failure:?}");
        }
    }

    #[test]
    fn refusals_and_what_they_speak_of() {
        use Sign::{HostRefusal, Mailbox};
        let table = [
            (Stage::Mail, 450, None, HostRefusal),
            (Stage::Mail, 451, Some((7, 1)), HostRefusal),
            (Stage::Mail, 550, None, Mailbox),
            (Stage::Rcpt, 421, None, HostRefusal),
            (Stage::Rcpt, 421, Some((7, 0)), HostRefusal),
            (Stage::Rcpt, 450, Some((2, 1)), Mailbox),
            (Stage::Rcpt, 452, Some((2, 2)), Mailbox),
            (Stage::Rcpt, 451, Some((7, 1)), Mailbox),
            (Stage::Rcpt, 452, Some((3, 1)), HostRefusal),
            (Stage::Rcpt, 451, Some((4, 3)), HostRefusal),
            (Stage::Rcpt, 451, None, Mailbox),
            (Stage::Rcpt, 452, None, Mailbox),
            (Stage::Rcpt, 550, Some((3, 0)), Mailbox),
            (Stage::Data, 451, None, HostRefusal),
            (Stage::Data, 450, Some((2, 2)), Mailbox),
            (Stage::Dot, 452, None, HostRefusal),
            (Stage::Dot, 451, Some((7, 1)), Mailbox),
            (Stage::Dot, 554, Some((3, 0)), Mailbox),
        ];
        for (stage, code, enhanced, sign) in table {
            let failure = Failure::from_reply(reply(code, enhanced));
            let outcome = RecipientOutcome::Refused { stage, failure };
            assert_eq!(sign_of(&outcome), Some(sign), "{outcome:?}");
            let effect = effect_of(&outcome);
            let expected =
                if code == 421 { HostEffect::PassOver { ms: 1_000 } } else { HostEffect::None };
            assert_eq!(effect, expected, "{outcome:?}");
        }
    }

    #[test]
    fn other_outcomes() {
        let done = Reply { code: 250, enhanced: None, lines: ReplyLines::default() };
        let accepted = RecipientOutcome::Accepted(Accepted::from_end_of_data(done).unwrap());
        assert_eq!(
            (effect_of(&accepted), sign_of(&accepted)),
            (HostEffect::None, Some(Sign::Success))
        );
        let failure = Failure::from_reply(reply(452, Some((5, 3))));
        let too_many = RecipientOutcome::TooMany { taken: 20, failure };
        assert_eq!(effect_of(&too_many), HostEffect::RememberRecipients(20));
        assert_eq!(sign_of(&too_many), None);
        assert_eq!(sign_of(&RecipientOutcome::Untried), None);
    }
}
