//! What an outcome means for one recipient.
//!
//! Owns: [`Verdict`] and the rules that lead to it. Never: retry times
//! ([`crate::schedule::retry`]), or which host is next (`route`).

use crate::mail::{Accepted, Enhanced, Failure, PossiblyAccepted, RecipientOutcome, Reply, Stage};
use crate::schedule::settings::PossibleDelivery;

/// What a verdict depends on besides the outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Context {
    /// This attempt has another host to try, now.
    pub more_hosts: bool,
    /// A host of the route failed for the moment in this attempt, or is down: it may still take
    /// what this one cannot.
    pub failed_elsewhere: bool,
    /// This outcome is that of the strict repeat.
    pub strict_done: bool,
    /// The setting.
    pub possible_delivery: PossibleDelivery,
}

/// What happens to a recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Settled: delivered.
    Delivered(Accepted),
    /// Settled: counts as delivered, and as uncertain.
    PossiblyDelivered(PossiblyAccepted),
    /// Takes a turn on another host in this attempt. The failure is kept: the last one is what
    /// [`no_host_left`] records.
    NextHost {
        /// Why this host did not do.
        failure: Failure,
    },
    /// Goes into the next transaction of the same session, at once.
    SameSession {
        /// Recipients that one transaction with this host takes.
        recipients_max: u32,
    },
    /// Once more with this host, on a new connection, every command waiting for its reply; the
    /// outcome comes back with `strict_done`.
    RepeatStrictly {
        /// The reply that speaks of our dialogue.
        failure: Failure,
    },
    /// Settled: hard bounce.
    Bounce(Failure),
    /// Soft bounce: the bounce profile decides when it is tried again, or that it has expired.
    Defer {
        /// The failure that is recorded, of class 4.
        failure: Failure,
        /// The next hop may have the message: logged and counted.
        uncertain: bool,
        /// The operator has to do something (credentials, policy).
        alarm: bool,
    },
    /// Was not attempted: goes back as it was, no attempt is counted.
    Untried,
}

/// Judges one outcome of one recipient.
#[must_use]
pub fn verdict(outcome: RecipientOutcome, context: Context) -> Verdict {
    if let (Some(possibly), PossibleDelivery::Delivered) =
        (PossiblyAccepted::from_outcome(&outcome), context.possible_delivery)
    {
        return Verdict::PossiblyDelivered(possibly);
    }
    match outcome {
        RecipientOutcome::Accepted(accepted) => Verdict::Delivered(accepted),
        RecipientOutcome::Refused { stage, failure } => refused(stage, failure, context),
        RecipientOutcome::TooMany { taken, failure } => too_many(taken, failure, context),
        RecipientOutcome::Unanswered { failure, .. } => next_host_or_defer(failure, context),
        // Another host at once would make a duplicate at once (RFC 1047).
        RecipientOutcome::Uncertain { failure } => {
            Verdict::Defer { failure: for_now(failure), uncertain: true, alarm: false }
        }
        RecipientOutcome::Unfit { failure } => match context {
            Context { more_hosts: true, .. } => Verdict::NextHost { failure },
            Context { failed_elsewhere: true, .. } => next_host_or_defer(failure, context),
            _ => Verdict::Bounce(failure),
        },
        RecipientOutcome::Untried => Verdict::Untried,
    }
}

/// The attempt has no host left to try. `last` is the failure on the last host tried; without
/// one, nothing was attempted.
#[must_use]
pub fn no_host_left(last: Option<Failure>) -> Verdict {
    last.map_or(Verdict::Untried, |failure| Verdict::Defer {
        failure: for_now(failure),
        uncertain: false,
        alarm: false,
    })
}

/// The attempt found no hosts: a permanent answer of the DNS bounces, anything else waits (RFC
/// 5321 5.1).
#[must_use]
pub fn unresolved(failure: Failure) -> Verdict {
    if failure.status.class == 5 {
        return Verdict::Bounce(failure);
    }
    Verdict::Defer { failure, uncertain: false, alarm: false }
}

/// Does this reply code speak of our dialogue, and not of mail or recipient?
#[must_use]
pub fn speaks_of_dialogue(code: u16) -> bool {
    matches!(code, 500..=504 | 530 | 534 | 535 | 538 | 555)
}

fn refused(stage: Stage, failure: Failure, context: Context) -> Verdict {
    let code = failure.code();
    let is_permanent =
        failure.reply.as_ref().map_or(failure.status.class == 5, Reply::is_permanent);
    // No message is refused before MAIL, whatever the code (RFC 5321 4.2.1).
    if !is_permanent || stage < Stage::Mail {
        return next_host_or_defer(failure, context);
    }
    if speaks_of_dialogue(code) && !context.strict_done {
        return Verdict::RepeatStrictly { failure };
    }
    if matches!(code, 530 | 534 | 535 | 538) {
        // Credentials are the operator's, and mail does not pay for a wrong password.
        return Verdict::Defer { failure: for_now(failure), uncertain: false, alarm: true };
    }
    Verdict::Bounce(failure)
}

/// A transaction that took nobody proves no limit: the reply is an ordinary one then.
fn too_many(taken: u32, failure: Failure, context: Context) -> Verdict {
    if taken == 0 {
        return refused(Stage::Rcpt, failure, context);
    }
    Verdict::SameSession { recipients_max: taken }
}

fn next_host_or_defer(failure: Failure, context: Context) -> Verdict {
    if context.more_hosts {
        return Verdict::NextHost { failure };
    }
    Verdict::Defer { failure: for_now(failure), uncertain: false, alarm: false }
}

/// The same failure, temporary: what is tried again is recorded as class 4.
fn for_now(mut failure: Failure) -> Failure {
    failure.status = Enhanced { class: 4, ..failure.status };
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReplyLines;

    fn failure(code: u16) -> Failure {
        Failure::from_reply(Reply { code, enhanced: None, lines: ["text"].iter().collect() })
    }

    fn broken() -> Failure {
        Failure::local(Enhanced::new(4, 4, 2), "Connection reset by peer")
    }

    fn name(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Delivered(_) => "delivered",
            Verdict::PossiblyDelivered(_) => "possibly",
            Verdict::NextHost { .. } => "next",
            Verdict::SameSession { .. } => "same",
            Verdict::RepeatStrictly { .. } => "strict",
            Verdict::Bounce(_) => "bounce",
            Verdict::Defer { uncertain: true, .. } => "uncertain",
            Verdict::Defer { alarm: true, .. } => "alarm",
            Verdict::Defer { .. } => "defer",
            Verdict::Untried => "untried",
        }
    }

    const TALK: [Stage; 4] = [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];

    #[test]
    fn refusals_by_code_at_every_stage() {
        // Code; with more hosts, on the last host; after the strict repeat likewise.
        let table = [
            (421, "next", "defer", "next", "defer"),
            (450, "next", "defer", "next", "defer"),
            (451, "next", "defer", "next", "defer"),
            (452, "next", "defer", "next", "defer"),
            (499, "next", "defer", "next", "defer"),
            (550, "bounce", "bounce", "bounce", "bounce"),
            (551, "bounce", "bounce", "bounce", "bounce"),
            (552, "bounce", "bounce", "bounce", "bounce"),
            (554, "bounce", "bounce", "bounce", "bounce"),
            (599, "bounce", "bounce", "bounce", "bounce"),
            (500, "strict", "strict", "bounce", "bounce"),
            (501, "strict", "strict", "bounce", "bounce"),
            (502, "strict", "strict", "bounce", "bounce"),
            (503, "strict", "strict", "bounce", "bounce"),
            (504, "strict", "strict", "bounce", "bounce"),
            (555, "strict", "strict", "bounce", "bounce"),
            (530, "strict", "strict", "alarm", "alarm"),
            (534, "strict", "strict", "alarm", "alarm"),
            (535, "strict", "strict", "alarm", "alarm"),
            (538, "strict", "strict", "alarm", "alarm"),
        ];
        for (code, more, last, strict_more, strict_last) in table {
            for stage in TALK {
                let judge = |more_hosts, strict_done| {
                    let outcome = RecipientOutcome::Refused { stage, failure: failure(code) };
                    let context = Context { more_hosts, strict_done, ..Context::default() };
                    let verdict = verdict(outcome, context);
                    if let Verdict::Defer { failure, .. } = &verdict {
                        assert_eq!((failure.status.class, failure.code()), (4, code));
                    }
                    name(&verdict)
                };
                assert_eq!(judge(true, false), more, "{code} {stage:?}");
                assert_eq!(judge(false, false), last, "{code} {stage:?}");
                assert_eq!(judge(true, true), strict_more, "{code} {stage:?}");
                assert_eq!(judge(false, true), strict_last, "{code} {stage:?}");
            }
        }
    }

    #[test]
    fn everything_that_is_no_refusal() {
        let accepted = Reply { code: 250, enhanced: None, lines: ReplyLines::default() };
        let accepted = Accepted::from_end_of_data(accepted).unwrap();
        let unfit = Failure::local(Enhanced::new(5, 6, 3), "8BITMIME not offered");
        let table = [
            (RecipientOutcome::Accepted(accepted), "delivered", "delivered"),
            (RecipientOutcome::TooMany { taken: 3, failure: failure(452) }, "same", "same"),
            (RecipientOutcome::TooMany { taken: 3, failure: failure(552) }, "same", "same"),
            (RecipientOutcome::TooMany { taken: 0, failure: failure(452) }, "next", "defer"),
            (
                RecipientOutcome::Unanswered { stage: Stage::Mail, failure: broken() },
                "next",
                "defer",
            ),
            (
                RecipientOutcome::Unanswered { stage: Stage::Body, failure: broken() },
                "next",
                "defer",
            ),
            (RecipientOutcome::Uncertain { failure: broken() }, "uncertain", "uncertain"),
            (RecipientOutcome::Unfit { failure: unfit }, "next", "bounce"),
            (RecipientOutcome::Untried, "untried", "untried"),
        ];
        for (outcome, more, last) in table {
            let judge = |more_hosts| {
                let context = Context { more_hosts, ..Context::default() };
                name(&verdict(outcome.clone(), context))
            };
            assert_eq!((judge(true), judge(false)), (more, last), "{outcome:?}");
        }
    }

    #[test]
    fn only_a_lost_final_reply_is_possibly_delivered() {
        let context =
            Context { possible_delivery: PossibleDelivery::Delivered, ..Context::default() };
        let lost = RecipientOutcome::Uncertain { failure: broken() };
        assert_eq!(name(&verdict(lost, context)), "possibly");
        let body = RecipientOutcome::Unanswered { stage: Stage::Body, failure: broken() };
        assert_eq!(name(&verdict(body, context)), "defer");
    }

    #[test]
    fn unfit_for_this_host_waits_for_one_that_was_not_asked() {
        let unfit = Failure::local(Enhanced::new(5, 3, 4), "SIZE 1000");
        let context = Context { failed_elsewhere: true, ..Context::default() };
        let verdict = verdict(RecipientOutcome::Unfit { failure: unfit }, context);
        let Verdict::Defer { failure, .. } = verdict else { panic!("{verdict:?}") };
        assert_eq!(failure.status, Enhanced::new(4, 3, 4));
    }

    #[test]
    fn the_last_failure_is_recorded_when_all_hosts_failed() {
        let Verdict::Defer { failure, uncertain: false, alarm: false } =
            no_host_left(Some(failure(452)))
        else {
            panic!("a failed attempt is deferred")
        };
        assert_eq!((failure.code(), failure.status), (452, Enhanced::new(4, 3, 1)));
        assert_eq!(no_host_left(None), Verdict::Untried);
        let nxdomain = Failure::local(Enhanced::new(5, 1, 2), "NXDomain");
        assert_eq!(name(&unresolved(nxdomain)), "bounce");
        let servfail = Failure::local(Enhanced::new(4, 4, 3), "ServFail");
        assert_eq!(name(&unresolved(servfail)), "defer");
    }
}
