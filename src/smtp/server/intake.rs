//! Message bytes: DATA, BDAT, and the end of a message.
//!
//! Owns: which octets belong to the message, and the answer at its end when it is not the
//! engine's. Never: the search for the end (`smtp/data`), what a good message is (`transaction`).

use super::header::received_field;
use super::input::Input;
use super::transaction::Intake;
use super::{Abort, Gate, Progress, Refusal, Session, State};
use crate::limits;
use crate::mail::time::Now;
use crate::smtp::data::Framing;

impl Session {
    pub(super) fn data(&mut self, now: Now) {
        match self.message_refusal(Framing::Dots) {
            Some(refusal) => self.refuse(&refusal),
            None => {
                self.begin_message(Framing::Dots, 0, now);
                self.push_line("354 End data with <CR><LF>.<CR><LF>");
                self.state = State::Data;
            }
        }
    }

    /// BDAT gets its reply when its octets are read (RFC 3030 2), whatever it is.
    pub(super) fn bdat(&mut self, octets: u64, last: bool, now: Now) {
        let refusal = self.message_refusal(Framing::Chunks);
        if octets > limits::MESSAGE_OCTETS_MAX {
            self.turn_away(&Refusal::new(552, 3, 4, "Chunk too big"));
            return;
        }
        if refusal.is_none() {
            self.begin_message(Framing::Chunks, octets, now);
        }
        self.state = State::Chunk { remaining: octets, octets, last, refusal };
    }

    /// Why no message may begin here, or go on.
    fn message_refusal(&self, framing: Framing) -> Option<Refusal> {
        let Some(transaction) = &self.transaction else {
            return Some(Refusal::new(503, 5, 1, "Send MAIL first"));
        };
        if transaction.envelope.recipients.is_empty() {
            return Some(Refusal::new(554, 5, 1, "No valid recipients"));
        }
        let begun = transaction.intake.as_ref().map(|intake| intake.framing);
        let mixed = begun.is_some_and(|begun| begun != framing);
        mixed.then(|| Refusal::new(503, 5, 1, "The message has begun with BDAT"))
    }

    fn begin_message(&mut self, framing: Framing, announced: u64, now: Now) {
        let (Some(transaction), Some(client)) = (&mut self.transaction, &self.client) else {
            return;
        };
        if transaction.intake.is_some() {
            return;
        }
        let protocol = match (transaction.envelope.smtputf8, client.extended) {
            (true, _) => "UTF8SMTP",
            (false, true) => "ESMTP",
            (false, false) => "SMTP",
        };
        // A large message gets its room from the caller.
        let known = transaction.size_declared.unwrap_or(0).max(announced);
        let expected = if known > limits::INLINE_MESSAGE_OCTETS_MAX { 0 } else { known };
        let expected = usize::try_from(expected).unwrap_or(0);
        let (trace, date) = (&client.trace, self.date.of(now.wall));
        let field = received_field(trace, protocol, transaction.mid, date);
        transaction.received_octets = field.len();
        transaction.intake = Some(Intake::new(framing, now.mono, field.len() + expected));
        transaction.data = field.into();
    }

    pub(super) fn take_data(&mut self, rest: Input<'_>, gate: &mut dyn Gate, now: Now) -> Progress {
        if rest.is_empty() {
            return Progress::Starved;
        }
        self.heard = now.mono;
        let Some(transaction) = &mut self.transaction else {
            unreachable!("octets of DATA without a transaction");
        };
        let (consumed, end) = transaction.receive(rest, &self.settings);
        if end {
            self.state = State::Command;
            return self.end_message(consumed, gate);
        }
        self.stop_if_endless();
        Progress::Taken(consumed)
    }

    pub(super) fn take_chunk(
        &mut self,
        rest: Input<'_>,
        remaining_before: u64,
        gate: &mut dyn Gate,
        now: Now,
    ) -> Progress {
        let wanted = usize::try_from(remaining_before).unwrap_or(usize::MAX);
        let piece = rest.first(wanted);
        if piece.is_empty() && wanted > 0 {
            return Progress::Starved;
        }
        self.heard = now.mono;
        let State::Chunk { remaining, octets, last, refusal } = &mut self.state else {
            unreachable!("a chunk outside of its state");
        };
        *remaining -= piece.len() as u64;
        let (over, octets, last) = (*remaining == 0, *octets, *last);
        let refusal = if over { refusal.take() } else { None };
        let is_stray = self.transaction.as_ref().is_none_or(|t| t.intake.is_none());
        if let Some(transaction) = self.transaction.as_mut().filter(|_| !is_stray) {
            let (consumed, _) = transaction.receive(piece, &self.settings);
            assert_eq!(consumed, piece.len(), "a chunk has no end mark");
        }
        if !over {
            self.stop_if_endless();
            return Progress::Taken(piece.len());
        }
        self.state = State::Command;
        if let Some(refusal) = refusal {
            self.refuse(&refusal);
            return Progress::Taken(piece.len());
        }
        if last {
            return self.end_message(piece.len(), gate);
        }
        self.end_chunk(octets, gate);
        Progress::Taken(piece.len())
    }

    /// A chunk that is not the last: a failed one ends the transaction, and the chunks that the
    /// client has already sent behind it find none (RFC 3030 2).
    fn end_chunk(&mut self, octets: u64, gate: &mut dyn Gate) {
        match self.transaction.as_ref().and_then(|t| t.fault(&self.settings)) {
            None => {
                let reply = format!("250 2.0.0 {octets} octets received");
                self.push_line(&reply);
            }
            Some(refusal) => {
                self.abort(gate, Abort::Refused);
                self.refuse(&refusal);
            }
        }
    }

    fn end_message(&mut self, consumed: usize, gate: &mut dyn Gate) -> Progress {
        let Some(mut transaction) = self.transaction.take() else {
            unreachable!("the end of a message without a transaction");
        };
        let Err(refusal) = transaction.complete(&self.settings) else {
            return Progress::Finished(consumed, transaction);
        };
        self.transaction = Some(transaction);
        self.abort(gate, Abort::Refused);
        self.refuse(&refusal);
        Progress::Taken(consumed)
    }

    fn stop_if_endless(&mut self) {
        if self.transaction.as_ref().is_some_and(|t| t.is_endless()) {
            self.turn_away(&Refusal::new(552, 3, 4, "Message too big"));
        }
    }
}
