//! One transaction under way: MAIL, RCPT, DATA, body, final dot (RFC 5321 3.3).
//!
//! Owns: the order of its commands, and the verdict on each recipient. Never: the connection. A
//! recipient's verdict is made once and stays; what breaks later touches only those without one.
//!
//! With PIPELINING, MAIL, all RCPT and DATA go out together (RFC 2920 3.1) and every reply counts:
//! when no recipient was taken and DATA still gets its 354, a lone final dot is sent and nothing
//! that is said to it counts as acceptance. By BDAT the message goes along with its commands; what
//! is said to it then counts only for recipients that were taken.
//!
//! A refusal is held until the session has made sure of its place: until then it can be taken back
//! for a plain repeat, or be lost in doubt.

use std::sync::Arc;

use super::binder::{Binder, Mark};
use super::body::{BodyWriter, octets_sent};
use super::commands::{unfit, unfit_recipient, write_mail, write_rcpt};
use super::outgoing::Outgoing;
use super::pace::{Sign, Way};
use super::{Event, Extensions, Transaction};
use crate::mail::{
    Accepted, ConnectionCause, ConnectionFailure, Failure, RecipientOutcome, Reply, Stage,
};

/// A transaction under way.
#[derive(Debug)]
pub(super) struct Flight {
    transaction: Transaction,
    recipients: Vec<Progress>,
    step: Step,
    /// Counts the transactions of a session from 1; 0 before it is begun.
    number: u64,
    way: Way,
    mail: MailVerdict,
    /// Recipients with a 2yz to RCPT.
    taken: u32,
    /// The host takes no more recipients in this transaction.
    full: bool,
    /// The peer may still hold a transaction that the next MAIL must not fall into.
    open_at_peer: bool,
    /// All positive replies so far carried their marks.
    marked: bool,
    /// The 354 has come: the replies before it were in their places.
    has_354: bool,
    /// The reply to the end of data, and where it came.
    last: Option<(Stage, Result<Accepted, Reply>)>,
    /// Goes plainly, for the second time.
    repeated: bool,
}

/// What is next to be handed out.
#[derive(Debug)]
enum Step {
    Mail,
    /// RCPT of the recipient with this index or of one behind it.
    Rcpt(usize),
    /// DATA or BDAT.
    Data,
    /// Nothing until the reply to DATA.
    Await354,
    /// The next piece of the body; nothing once its end is out.
    Body(BodyWriter),
    /// Nothing any more.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MailVerdict {
    Unanswered,
    Taken,
    Refused,
}

#[derive(Debug)]
enum Progress {
    Unsent,
    Sent,
    Taken,
    /// By a reply, if that was in its place.
    Refused(RecipientOutcome),
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
    pub(super) fn new(transaction: Transaction) -> Self {
        let recipients = transaction.recipients.iter().map(|_| Progress::Unsent).collect();
        Self {
            transaction,
            recipients,
            step: Step::Mail,
            number: 0,
            way: Way::Plain,
            mail: MailVerdict::Unanswered,
            taken: 0,
            full: false,
            open_at_peer: false,
            marked: true,
            has_354: false,
            last: None,
            repeated: false,
        }
    }

    /// Settles every recipient that the host is unfit for, before anything is sent.
    pub(super) fn check_fit(&mut self, offered: &Extensions) {
        let whole = unfit(&self.transaction, offered);
        for (progress, recipient) in self.recipients.iter_mut().zip(&self.transaction.recipients) {
            let failure = || whole.clone().or_else(|| unfit_recipient(recipient, offered));
            if let Progress::Unsent = progress
                && let Some(failure) = failure()
            {
                *progress = Progress::Settled(RecipientOutcome::Unfit { failure });
            }
        }
        if !self.recipients.iter().any(|progress| matches!(progress, Progress::Unsent)) {
            self.step = Step::Over;
        }
    }

    /// Lets it go: its commands come with the next [`Self::write`].
    pub(super) fn begin(&mut self, number: u64, way: Way) {
        (self.number, self.way) = (number, way);
    }

    /// The order of its commands among those of the session.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// It must go alone: every command waits for its reply, or it is a plain repeat.
    pub(super) fn goes_alone(&self) -> bool {
        self.transaction.strict || self.repeated
    }

    pub(super) fn is_repeated(&self) -> bool {
        self.repeated
    }

    /// Octets of its message.
    pub(super) fn octets(&self) -> usize {
        self.transaction.body.bytes.len()
    }

    /// True once nothing is left to be sent; over as soon as no reply is owed either.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// What was said to MAIL.
    pub(super) fn mail(&self) -> MailVerdict {
        self.mail
    }

    /// The reply to DATA was 354.
    pub(super) fn has_354(&self) -> bool {
        self.has_354
    }

    /// RSET must come before the next MAIL.
    pub(super) fn needs_reset(&self) -> bool {
        self.open_at_peer
    }

    /// True once the end of its message was handed out: the peer may have it.
    pub(super) fn is_past_end(&self) -> bool {
        match &self.step {
            Step::Body(writer) => writer.is_past_end(),
            Step::Over => self.last.is_some(),
            Step::Mail | Step::Rcpt(_) | Step::Data | Step::Await354 => false,
        }
    }

    /// True once the first piece of its message was handed out.
    pub(super) fn is_body_begun(&self) -> bool {
        match &self.step {
            Step::Body(writer) => writer.is_begun(),
            Step::Over => self.last.is_some(),
            Step::Mail | Step::Rcpt(_) | Step::Data | Step::Await354 => false,
        }
    }

    /// The next transaction may follow in the same write: the end of this one is out, and takes
    /// the transaction at the peer with it.
    pub(super) fn may_be_followed(&self) -> bool {
        self.is_past_end() && (self.way == Way::Bdat || self.has_takers())
    }

    /// The message was taken, for somebody.
    pub(super) fn is_accepted(&self) -> bool {
        self.has_takers() && matches!(self.last, Some((_, Ok(_))))
    }

    /// A recipient was refused, or the message was.
    pub(super) fn has_refusals(&self) -> bool {
        !self.is_accepted()
            || self.recipients.iter().any(|progress| matches!(progress, Progress::Refused(_)))
    }

    /// What it says about the pace, once it is over.
    pub(super) fn sign(&self) -> Sign {
        let strained = |progress: &Progress| match progress {
            Progress::Refused(RecipientOutcome::Refused { stage, failure }) => {
                *stage != Stage::Rcpt && failure.reply.as_ref().is_some_and(Reply::is_transient)
            }
            _ => false,
        };
        if self.is_accepted() {
            Sign::Taken { marked: self.marked }
        } else if matches!(&self.last, Some((_, Err(reply))) if reply.is_transient())
            || self.mail == MailVerdict::Refused && self.recipients.iter().any(strained)
        {
            Sign::Strained
        } else {
            Sign::Other
        }
    }

    /// Where a break or a reply to `mark` would hit the transaction now.
    pub(super) fn stage(&self, mark: Option<Mark>) -> Stage {
        match (mark, &self.step) {
            (Some(Mark::Rcpt(_)), _) => Stage::Rcpt,
            (Some(Mark::Data), _) => Stage::Data,
            (Some(Mark::EndOfData), Step::Body(writer)) if writer.is_past_end() => Stage::Dot,
            (Some(Mark::EndOfData), _) => Stage::Body,
            (Some(Mark::Mail), _) | (_, Step::Mail | Step::Over) => Stage::Mail,
            (_, Step::Rcpt(_)) => Stage::Rcpt,
            (_, Step::Data | Step::Await354) => Stage::Data,
            (_, Step::Body(_)) => Stage::Body,
        }
    }

    /// Appends everything that may be written now.
    pub(super) fn write(&mut self, offered: &Extensions, binder: &mut Binder, out: &mut Outgoing) {
        let together = offered.pipelining && !self.transaction.strict;
        while !out.is_full() {
            if let Step::Body(writer) = &mut self.step {
                if !writer.next_piece(out) {
                    return;
                }
            } else if !(together || binder.is_empty())
                || !self.write_command(offered, binder, out.commands())
            {
                return;
            }
        }
    }

    /// Writes the next command; false when there is none for now.
    fn write_command(
        &mut self,
        offered: &Extensions,
        binder: &mut Binder,
        out: &mut Vec<u8>,
    ) -> bool {
        self.skip_unneeded();
        match (&self.step, self.way) {
            (Step::Mail, _) => {
                write_mail(&self.transaction, offered, out);
                binder.expect(Mark::Mail, self.number);
                self.step = Step::Rcpt(0);
            }
            (Step::Rcpt(index), _) => {
                let index = *index;
                write_rcpt(&self.transaction.recipients[index], offered, out);
                binder.expect(Mark::Rcpt(index), self.number);
                self.recipients[index] = Progress::Sent;
                self.step = Step::Rcpt(index + 1);
            }
            (Step::Data, Way::Plain | Way::Data) => {
                out.extend_from_slice(b"DATA\r\n");
                binder.expect(Mark::Data, self.number);
                self.step = Step::Await354;
            }
            (Step::Data, Way::Bdat) => {
                let body = &self.transaction.body;
                out.extend_from_slice(b"BDAT ");
                write_number(octets_sent(&body.bytes), out);
                out.extend_from_slice(b" LAST\r\n");
                binder.expect(Mark::EndOfData, self.number);
                self.step = Step::Body(BodyWriter::counted(Arc::clone(body)));
            }
            (Step::Await354 | Step::Body(_) | Step::Over, _) => return false,
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
        self.marked &= mark.fits(&reply);
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
        if matches!(self.recipients[index], Progress::Settled(_) | Progress::Refused(_)) {
            return Verdict::Sound; // MAIL was refused: so is this, whatever it says.
        }
        self.recipients[index] = if reply.is_positive() {
            self.taken += 1;
            Progress::Taken
        } else if matches!(reply.code, 452 | 552) && self.taken > 0 {
            self.full = true;
            let failure = Failure::from_reply(reply);
            Progress::Refused(RecipientOutcome::TooMany { taken: self.taken, failure })
        } else {
            let failure = Failure::from_reply(reply);
            Progress::Refused(RecipientOutcome::Refused { stage: Stage::Rcpt, failure })
        };
        Verdict::Sound
    }

    fn handle_data_reply(&mut self, reply: Reply, binder: &mut Binder) -> Verdict {
        if reply.is_transient() || reply.is_permanent() {
            self.step = Step::Over;
            self.refuse_taken(Stage::Data, &Failure::from_reply(reply));
            return Verdict::Sound;
        }
        if reply.code != 354 {
            return Verdict::Garbage("neither 354 nor a refusal in reply to DATA");
        }
        let body = Arc::clone(&self.transaction.body);
        let writer =
            if self.has_takers() { BodyWriter::new(body) } else { BodyWriter::lone_dot(body) };
        self.step = Step::Body(writer);
        self.has_354 = true;
        binder.expect(Mark::EndOfData, self.number);
        Verdict::Sound
    }

    fn handle_final_reply(&mut self, reply: Reply, early: bool) -> Verdict {
        let stage = self.stage(Some(Mark::EndOfData));
        if is_intermediate(&reply) {
            return Verdict::Garbage("3yz reply to the end of data");
        }
        let said = Accepted::from_end_of_data(reply);
        if early && said.is_ok() {
            return Verdict::Garbage("2yz reply before the end of data");
        }
        // The end of data consumes the transaction (RFC 5321 4.1.1.4); after a lone dot, who knows,
        // and after a refused BDAT neither (RFC 3030 2).
        self.open_at_peer = !self.has_takers() || self.way == Way::Bdat && said.is_err();
        self.step = Step::Over;
        self.last = Some((stage, said));
        if early { Verdict::OutOfStep } else { Verdict::Sound }
    }

    /// The reply to the end of data counts: whoever was taken before shares it.
    pub(super) fn conclude(&mut self) {
        match self.last.clone() {
            None => {}
            Some((stage, Err(reply))) => self.refuse_taken(stage, &Failure::from_reply(reply)),
            Some((_, Ok(accepted))) => {
                for progress in &mut self.recipients {
                    if let Progress::Taken = progress {
                        *progress = Progress::Settled(RecipientOutcome::Accepted(accepted.clone()));
                    }
                }
            }
        }
    }

    fn refuse_taken(&mut self, stage: Stage, failure: &Failure) {
        for progress in &mut self.recipients {
            if let Progress::Taken = progress {
                let failure = failure.clone();
                *progress = Progress::Refused(RecipientOutcome::Refused { stage, failure });
            }
        }
    }

    /// Puts an outcome in place of everything that is not settled.
    fn settle_open(&mut self, outcome: impl Fn() -> RecipientOutcome) {
        for progress in &mut self.recipients {
            if !matches!(progress, Progress::Settled(_)) {
                *progress = Progress::Settled(outcome());
            }
        }
    }

    /// Gives every recipient without a verdict this refusal: of MAIL, or a 421 to any command.
    pub(super) fn refuse_open(&mut self, stage: Stage, failure: &Failure) {
        for progress in &mut self.recipients {
            if !matches!(progress, Progress::Settled(_) | Progress::Refused(_)) {
                let failure = failure.clone();
                *progress = Progress::Refused(RecipientOutcome::Refused { stage, failure });
            }
        }
    }

    /// The connection broke while nothing else was in flight: whoever has no verdict gets none
    /// from this host.
    pub(super) fn break_off(&mut self, broken: &ConnectionFailure) {
        let past_dot = broken.stage == Stage::Dot;
        for progress in &mut self.recipients {
            let outcome = match progress {
                Progress::Settled(_) | Progress::Refused(_) => continue,
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

    /// The connection broke while this was in a train. After replies that cannot be told apart
    /// not even a refusal is believed; after a plain end, what was said stands.
    pub(super) fn break_in_train(&mut self, broken: &ConnectionFailure, believed: bool) {
        let failure = || broken.as_failure();
        let garbled = matches!(broken.cause, ConnectionCause::Garbage(_));
        if believed && self.is_over() {
            self.conclude();
        } else if self.is_past_end() || garbled && self.is_body_begun() {
            if believed || self.has_354 {
                // A refusal of some recipients was in its place.
                self.lose_open(&RecipientOutcome::Uncertain { failure: failure() });
            } else {
                self.settle_open(|| RecipientOutcome::Uncertain { failure: failure() });
            }
        } else if self.is_body_begun() {
            let stage = Stage::Body;
            self.lose_open(&RecipientOutcome::Unanswered { stage, failure: failure() });
        } else {
            self.settle_open(|| RecipientOutcome::Untried);
        }
    }

    fn lose_open(&mut self, outcome: &RecipientOutcome) {
        for progress in &mut self.recipients {
            match progress {
                Progress::Settled(_) | Progress::Refused(_) => {}
                Progress::Unsent | Progress::Sent | Progress::Taken => {
                    *progress = Progress::Settled(outcome.clone());
                }
            }
        }
    }

    /// What was said stands, if it is not in doubt: the host leaves.
    pub(super) fn stand(&mut self, in_doubt: bool) {
        if in_doubt {
            self.doubt();
            self.hand_back();
        } else {
            self.conclude();
        }
    }

    /// Its refusals may belong to others: only an acceptance with its mark counts.
    pub(super) fn doubt(&mut self) {
        if self.is_accepted() {
            self.conclude();
        }
    }

    /// Makes it ready to go once more, plainly.
    pub(super) fn repeat(&mut self) {
        for progress in &mut self.recipients {
            if !matches!(progress, Progress::Settled(_)) {
                *progress = Progress::Unsent;
            }
        }
        (self.step, self.way, self.mail) = (Step::Mail, Way::Plain, MailVerdict::Unanswered);
        (self.taken, self.full, self.open_at_peer, self.last) = (0, false, false, None);
        (self.has_354, self.repeated) = (false, true);
    }

    /// Gives what is not settled back as if it had not been handed in.
    pub(super) fn hand_back(&mut self) {
        self.settle_open(|| RecipientOutcome::Untried);
    }

    /// The end: one outcome per recipient.
    pub(super) fn finish(mut self) -> Event {
        self.conclude();
        let outcome = |progress| match progress {
            Progress::Settled(outcome) | Progress::Refused(outcome) => outcome,
            Progress::Unsent => RecipientOutcome::Untried,
            Progress::Sent | Progress::Taken => panic!("a recipient ends without an outcome"),
        };
        let rids = self.transaction.recipients.iter().map(|recipient| recipient.rid);
        let outcomes = rids.zip(self.recipients.into_iter().map(outcome)).collect();
        Event::Done { key: self.transaction.key, outcomes }
    }
}

fn is_intermediate(reply: &Reply) -> bool {
    reply.code / 100 == 3
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    let from = out.len();
    let mut left = number;
    loop {
        let digit = u8::try_from(left % 10).expect("a digit");
        out.push(b'0' + digit);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out[from..].reverse();
}
