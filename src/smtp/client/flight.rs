//! One transaction under way: MAIL, RCPT, DATA, body, final dot (RFC 5321 3.3).
//!
//! Owns: the order of its commands, and the verdict on each recipient. Never: the connection. A
//! recipient's verdict is made once and stays; what breaks later touches only those without one.
//!
//! With PIPELINING, MAIL, all RCPT and DATA go out together (RFC 2920 3.1) and every reply counts:
//! when no recipient was taken and DATA still gets its 354, a lone final dot is sent and nothing
//! that is said to it counts as acceptance.

use std::sync::Arc;

use super::binder::{Binder, Mark};
use super::body::BodyWriter;
use super::commands::{unfit, unfit_recipient, write_mail, write_rcpt};
use super::{Chunk, Event, Extensions, Transaction};
use crate::limits;
use crate::mail::{Accepted, ConnectionFailure, Failure, RecipientOutcome, Reply, Stage};

/// A transaction under way.
#[derive(Debug)]
pub(super) struct Flight {
    transaction: Transaction,
    recipients: Vec<Progress>,
    step: Step,
    mail: MailVerdict,
    /// Recipients with a 2yz to RCPT.
    taken: u32,
    /// The host takes no more recipients in this transaction.
    full: bool,
    /// The peer may still hold a transaction that the next MAIL must not fall into.
    open_at_peer: bool,
}

/// What is next to be handed out.
#[derive(Debug)]
enum Step {
    Mail,
    /// RCPT of the recipient with this index or of one behind it.
    Rcpt(usize),
    Data,
    /// Nothing until the reply to DATA.
    Await354,
    /// The next piece of the body; nothing once the final dot is out.
    Body(BodyWriter),
    /// Nothing any more.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MailVerdict {
    Unanswered,
    Taken,
    Refused,
}

#[derive(Debug)]
enum Progress {
    Unsent,
    Sent,
    Taken,
    Settled(RecipientOutcome),
}

/// What a reply means for the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The dialogue goes on.
    Sound,
    /// The peer refused the message while it was being sent: it may take the rest of it for
    /// commands, so the session must end.
    OutOfStep,
    /// A reply that cannot answer its command: what it was.
    Garbage(&'static str),
}

impl Flight {
    /// True once its final dot was handed out and its reply has not come.
    pub(super) fn is_past_dot(&self) -> bool {
        match &self.step {
            Step::Body(writer) => writer.is_past_dot(),
            Step::Mail | Step::Rcpt(_) | Step::Data | Step::Await354 | Step::Over => false,
        }
    }

    pub(super) fn new(transaction: Transaction) -> Self {
        let recipients = transaction.recipients.iter().map(|_| Progress::Unsent).collect();
        let (step, mail) = (Step::Mail, MailVerdict::Unanswered);
        let (taken, full, open_at_peer) = (0, false, false);
        Self { transaction, recipients, step, mail, taken, full, open_at_peer }
    }

    /// Settles every recipient that the host is unfit for, before anything is sent.
    pub(super) fn check_fit(&mut self, offered: &Extensions) {
        let whole = unfit(&self.transaction, offered);
        for (progress, recipient) in self.recipients.iter_mut().zip(&self.transaction.recipients) {
            if let Some(failure) = whole.clone().or_else(|| unfit_recipient(recipient, offered)) {
                *progress = Progress::Settled(RecipientOutcome::Unfit { failure });
            }
        }
        if !self.recipients.iter().any(|progress| matches!(progress, Progress::Unsent)) {
            self.step = Step::Over;
        }
    }

    /// True once MAIL was handed out.
    pub(super) fn is_begun(&self) -> bool {
        match self.step {
            Step::Mail => false,
            Step::Rcpt(_) | Step::Data | Step::Await354 | Step::Body(_) | Step::Over => true,
        }
    }

    /// True once nothing is left to be sent; over as soon as no reply is owed either.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// MAIL was answered.
    pub(super) fn is_answered(&self) -> bool {
        self.mail != MailVerdict::Unanswered
    }

    /// RSET must come before the next MAIL.
    pub(super) fn needs_reset(&self) -> bool {
        self.open_at_peer
    }

    /// Where a break or a reply to `mark` would hit the transaction now.
    pub(super) fn stage(&self, mark: Option<Mark>) -> Stage {
        match (mark, &self.step) {
            (Some(Mark::Rcpt(_)), _) => Stage::Rcpt,
            (Some(Mark::Data), _) => Stage::Data,
            (Some(Mark::EndOfData), Step::Body(writer)) if writer.is_past_dot() => Stage::Dot,
            (Some(Mark::EndOfData), _) => Stage::Body,
            (Some(Mark::Mail), _) | (_, Step::Mail | Step::Over) => Stage::Mail,
            (_, Step::Rcpt(_)) => Stage::Rcpt,
            (_, Step::Data | Step::Await354) => Stage::Data,
            (_, Step::Body(_)) => Stage::Body,
        }
    }

    /// Everything that may be written now, in one write.
    pub(super) fn next_chunks(
        &mut self,
        offered: &Extensions,
        binder: &mut Binder,
    ) -> Option<Vec<Chunk>> {
        if let Step::Body(writer) = &mut self.step {
            return writer.next_piece();
        }
        let mut out = Vec::new();
        let together = offered.pipelining && !self.transaction.strict;
        while (together || binder.is_empty())
            && out.len() < limits::COMMAND_GROUP_OCTETS
            && self.write_command(offered, binder, &mut out)
        {}
        (!out.is_empty()).then(|| vec![Chunk::Bytes(out)])
    }

    /// Writes the next command; false when there is none for now.
    fn write_command(
        &mut self,
        offered: &Extensions,
        binder: &mut Binder,
        out: &mut Vec<u8>,
    ) -> bool {
        self.skip_unneeded();
        match self.step {
            Step::Mail => {
                write_mail(&self.transaction, offered, out);
                binder.expect(Mark::Mail);
                self.step = Step::Rcpt(0);
            }
            Step::Rcpt(index) => {
                write_rcpt(&self.transaction.recipients[index], offered, out);
                binder.expect(Mark::Rcpt(index));
                self.recipients[index] = Progress::Sent;
                self.step = Step::Rcpt(index + 1);
            }
            Step::Data => {
                out.extend_from_slice(b"DATA\r\n");
                binder.expect(Mark::Data);
                self.step = Step::Await354;
            }
            Step::Await354 | Step::Body(_) | Step::Over => return false,
        }
        true
    }

    /// Steps over commands that the replies so far have made useless.
    pub(super) fn skip_unneeded(&mut self) {
        while let Step::Rcpt(index) = self.step {
            if index == self.recipients.len() || self.is_closed() {
                self.step = Step::Data;
            } else if matches!(self.recipients[index], Progress::Unsent) {
                return;
            } else {
                self.step = Step::Rcpt(index + 1);
            }
        }
        if matches!(self.step, Step::Data) && self.is_hopeless() {
            self.step = Step::Over;
        }
    }

    /// A recipient waits for the message.
    fn has_takers(&self) -> bool {
        self.taken > 0 && self.mail == MailVerdict::Taken
    }

    /// No further RCPT makes sense.
    fn is_closed(&self) -> bool {
        self.full || self.mail == MailVerdict::Refused
    }

    /// No recipient was taken and none can be any more.
    fn is_hopeless(&self) -> bool {
        let may_come = |progress: &Progress| matches!(progress, Progress::Sent | Progress::Taken);
        self.mail == MailVerdict::Refused || !self.recipients.iter().any(may_come)
    }

    /// Takes the reply to one of the transaction's commands; 421 goes to [`Self::refuse_open`].
    /// `early`: a reply to the end of data that came before its time.
    pub(super) fn handle_reply(
        &mut self,
        mark: Mark,
        reply: Reply,
        early: bool,
        binder: &mut Binder,
    ) -> Verdict {
        match mark {
            Mark::Mail => self.handle_mail_reply(reply),
            Mark::Rcpt(index) => self.handle_rcpt_reply(index, reply),
            Mark::Data => self.handle_data_reply(reply, binder),
            Mark::EndOfData => self.handle_final_reply(reply, early),
            Mark::Greeting | Mark::Ehlo | Mark::Helo | Mark::Rset | Mark::Quit => {
                unreachable!("{mark:?} is no command of a transaction")
            }
        }
    }

    fn handle_mail_reply(&mut self, reply: Reply) -> Verdict {
        if is_intermediate(&reply) {
            return Verdict::Garbage("3yz reply to MAIL");
        }
        if reply.is_positive() {
            self.mail = MailVerdict::Taken;
            self.open_at_peer = true;
        } else {
            self.mail = MailVerdict::Refused;
            self.refuse_open(Stage::Mail, &Failure::from_reply(reply));
        }
        Verdict::Sound
    }

    fn handle_rcpt_reply(&mut self, index: usize, reply: Reply) -> Verdict {
        if is_intermediate(&reply) {
            return Verdict::Garbage("3yz reply to RCPT");
        }
        if matches!(self.recipients[index], Progress::Settled(_)) {
            return Verdict::Sound; // MAIL was refused: so is this, whatever it says.
        }
        self.recipients[index] = if reply.is_positive() {
            self.taken += 1;
            Progress::Taken
        } else if matches!(reply.code, 452 | 552) && self.taken > 0 {
            self.full = true;
            let failure = Failure::from_reply(reply);
            Progress::Settled(RecipientOutcome::TooMany { taken: self.taken, failure })
        } else {
            let failure = Failure::from_reply(reply);
            Progress::Settled(RecipientOutcome::Refused { stage: Stage::Rcpt, failure })
        };
        Verdict::Sound
    }

    fn handle_data_reply(&mut self, reply: Reply, binder: &mut Binder) -> Verdict {
        if reply.is_transient() || reply.is_permanent() {
            self.step = Step::Over;
            self.settle_taken(|| RecipientOutcome::Refused {
                stage: Stage::Data,
                failure: Failure::from_reply(reply.clone()),
            });
            return Verdict::Sound;
        }
        if reply.code != 354 {
            return Verdict::Garbage("neither 354 nor a refusal in reply to DATA");
        }
        let body = Arc::clone(&self.transaction.body);
        let writer =
            if self.has_takers() { BodyWriter::new(body) } else { BodyWriter::lone_dot(body) };
        self.step = Step::Body(writer);
        binder.expect(Mark::EndOfData);
        Verdict::Sound
    }

    fn handle_final_reply(&mut self, reply: Reply, early: bool) -> Verdict {
        let stage = self.stage(Some(Mark::EndOfData));
        if is_intermediate(&reply) {
            return Verdict::Garbage("3yz reply to the end of data");
        }
        match Accepted::from_end_of_data(reply) {
            Ok(_) if early => return Verdict::Garbage("2yz reply before the end of data"),
            Ok(accepted) => self.settle_taken(|| RecipientOutcome::Accepted(accepted.clone())),
            Err(reply) => {
                let failure = Failure::from_reply(reply);
                self.settle_taken(|| RecipientOutcome::Refused { stage, failure: failure.clone() });
            }
        }
        self.step = Step::Over;
        // The end of data consumes the transaction (RFC 5321 4.1.1.4); after a lone dot, who knows.
        self.open_at_peer = !self.has_takers();
        if early { Verdict::OutOfStep } else { Verdict::Sound }
    }

    /// Gives every recipient without a verdict this refusal: of MAIL, or a 421 to any command.
    pub(super) fn refuse_open(&mut self, stage: Stage, failure: &Failure) {
        for progress in &mut self.recipients {
            if !matches!(progress, Progress::Settled(_)) {
                let failure = failure.clone();
                *progress = Progress::Settled(RecipientOutcome::Refused { stage, failure });
            }
        }
    }

    /// The connection broke: whoever has no verdict gets none from this host.
    pub(super) fn break_off(&mut self, broken: &ConnectionFailure) {
        let past_dot = broken.stage == Stage::Dot;
        for progress in &mut self.recipients {
            let outcome = match progress {
                Progress::Settled(_) => continue,
                Progress::Unsent if past_dot => RecipientOutcome::Untried,
                Progress::Taken if past_dot => {
                    RecipientOutcome::Uncertain { failure: broken.as_failure() }
                }
                Progress::Unsent | Progress::Sent | Progress::Taken => {
                    RecipientOutcome::Unanswered {
                        stage: broken.stage,
                        failure: broken.as_failure(),
                    }
                }
            };
            *progress = Progress::Settled(outcome);
        }
    }

    /// Hands the transaction back as if it had not been handed in.
    pub(super) fn give_back(mut self) -> Event {
        for progress in &mut self.recipients {
            *progress = Progress::Settled(RecipientOutcome::Untried);
        }
        self.finish()
    }

    /// The end: one outcome per recipient.
    pub(super) fn finish(self) -> Event {
        let outcome = |progress| match progress {
            Progress::Settled(outcome) => outcome,
            Progress::Unsent => RecipientOutcome::Untried,
            Progress::Sent | Progress::Taken => panic!("a recipient ends without an outcome"),
        };
        let rids = self.transaction.recipients.iter().map(|recipient| recipient.rid);
        let outcomes = rids.zip(self.recipients.into_iter().map(outcome)).collect();
        Event::Done { key: self.transaction.key, outcomes }
    }

    fn settle_taken(&mut self, outcome: impl Fn() -> RecipientOutcome) {
        for progress in &mut self.recipients {
            if matches!(progress, Progress::Taken) {
                *progress = Progress::Settled(outcome());
            }
        }
    }
}

fn is_intermediate(reply: &Reply) -> bool {
    reply.code / 100 == 3
}
