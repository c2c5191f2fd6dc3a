//! One mail transaction as one owned value: MAIL to end of data.
//!
//! Owns: everything that belongs to one message while it comes in; dropping it frees all of it.
//! Never: the dialogue.

use std::borrow::Cow;
use std::sync::Arc;

use super::gate::Refusal;
use super::header::{HeaderFields, header_fields};
use super::input::Input;
use crate::limits;
use crate::mail::time::Now;
use crate::mail::{Envelope, MessageFacts, Mid, Mono, Octets};
use crate::smtp::data::{Framing, Receiver, Store};
use crate::smtp::settings::{LongLines, ServerSettings};

/// A message on its way in. Complete once it comes out of the session.
#[derive(Debug)]
pub struct Transaction {
    /// Its id.
    pub mid: Mid,
    /// Sender, recipients and their wishes.
    pub envelope: Envelope,
    /// Our Received field, then the message: un-dot-stuffed, every line ends with CRLF.
    pub data: Octets,
    /// Octets of our Received field at the start of `data`.
    pub received_octets: usize,
    /// What the message bytes need of a next hop.
    pub facts: MessageFacts,
    /// The header's extent and fields; its ranges count from `received_octets`.
    pub header: HeaderFields,
    /// The client's name in EHLO or HELO.
    pub helo: Arc<str>,
    /// SIZE of MAIL, in octets.
    pub size_declared: Option<u64>,
    /// When MAIL was taken.
    pub started: Now,
    pub(super) intake: Option<Intake>,
    /// What the envelope takes of memory, in octets.
    pub(super) envelope_octets: usize,
}

/// The state of a message whose bytes come in.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) framing: Framing,
    pub(super) receiver: Receiver,
    pub(super) began: Mono,
    /// Set when the engine wants no more of it.
    pub(super) refusal: Option<Refusal>,
    /// The bytes are kept; else they are checked and thrown away.
    stored: bool,
    /// Octets that the message may come to, if that is known and worth a reservation; else 0.
    expected_octets: usize,
}

impl Intake {
    pub(super) fn new(framing: Framing, began: Mono, expected_octets: usize) -> Self {
        let receiver = Receiver::new(framing);
        Self { framing, receiver, began, refusal: None, stored: true, expected_octets }
    }
}

impl Transaction {
    /// The value of Message-ID, unfolded and bounded. Foreign bytes.
    #[must_use]
    pub fn message_id(&self) -> Option<Cow<'_, [u8]>> {
        self.header.message_id(self.front())
    }

    /// The value of Subject, unfolded and bounded. Foreign bytes.
    #[must_use]
    pub fn subject(&self) -> Option<Cow<'_, [u8]>> {
        self.header.subject(self.front())
    }

    /// The message as the client sent it, up to where it does not lie together any more.
    fn front(&self) -> &[u8] {
        self.data.together(self.received_octets)
    }

    /// Takes message octets; gives how many, and whether the final dot was among them.
    pub(super) fn receive(&mut self, input: Input<'_>, settings: &ServerSettings) -> (usize, bool) {
        let Some(intake) = &mut self.intake else { return (0, false) };
        let expected_octets = intake.expected_octets;
        let mut kept = Kept { data: &mut self.data, input, expected_octets };
        let taken = intake.receiver.receive(&input, intake.stored.then_some(&mut kept));
        if intake.receiver.findings().octets > settings.message_octets_max {
            self.stop_storing();
        }
        (taken.consumed, taken.end)
    }

    /// True while the bytes that come in are kept.
    pub(super) fn is_stored(&self) -> bool {
        self.intake.as_ref().is_some_and(|intake| intake.stored)
    }

    /// Frees what was stored; the rest of the message is thrown away as it comes.
    pub(super) fn stop_storing(&mut self) {
        if let Some(intake) = &mut self.intake {
            intake.stored = false;
            self.data = Octets::default();
        }
    }

    /// True when more came in than is worth throwing away for the sake of a polite refusal.
    pub(super) fn is_endless(&self) -> bool {
        let octets = self.intake.as_ref().map_or(0, |i| i.receiver.findings().octets);
        octets > limits::MESSAGE_OCTETS_MAX
    }

    /// What is wrong so far. The order is fixed, so that the answer depends on the message alone.
    pub(super) fn fault(&self, settings: &ServerSettings) -> Option<Refusal> {
        let intake = self.intake.as_ref()?;
        let findings = intake.receiver.findings();
        let line_octets_max = match settings.long_lines {
            LongLines::Accept => limits::TEXT_LINE_OCTETS_MAX,
            LongLines::Reject => limits::TEXT_LINE_OCTETS_RFC,
        };
        if let Some(refusal) = &intake.refusal {
            Some(refusal.clone())
        } else if findings.bare_line_end {
            Some(Refusal::new(550, 5, 2, "Bare CR or LF in message"))
        } else if findings.octets > settings.message_octets_max {
            Some(Refusal::new(552, 3, 4, "Message too big"))
        } else if findings.long_line_octets_max > line_octets_max {
            Some(Refusal::new(554, 6, 0, "Line too long in message"))
        } else {
            None
        }
    }

    /// True when the header may go on where the message does not lie together any more: the line
    /// that ended it is cut off there, and may be a field.
    fn is_header_cut(&self) -> bool {
        let front = self.front();
        let is_all = self.received_octets + front.len() == self.data.len();
        !is_all && memchr::memchr(b'\n', &front[self.header.octets..]).is_none()
    }

    /// The last octet came: completes the value, or says why the message is refused.
    pub(super) fn complete(&mut self, settings: &ServerSettings) -> Result<(), Refusal> {
        if let Some(intake) = self.intake.as_mut().filter(|i| i.framing == Framing::Chunks) {
            let (input, expected_octets) = (Input::default(), 0);
            let mut kept = Kept { data: &mut self.data, input, expected_octets };
            intake.receiver.finish(intake.stored.then_some(&mut kept));
        }
        if let Some(refusal) = self.fault(settings) {
            return Err(refusal);
        }
        self.header = header_fields(self.front());
        if self.is_header_cut() {
            self.data.bring_together();
            self.header = header_fields(self.front());
        }
        if self.header.octets > limits::HEADER_OCTETS_MAX {
            return Err(Refusal::new(554, 6, 0, "Header too big"));
        }
        if self.header.received_fields >= limits::RECEIVED_FIELDS_MAX {
            return Err(Refusal::new(554, 4, 6, "Too many hops"));
        }
        if let Some(intake) = self.intake.take() {
            let findings = intake.receiver.findings();
            self.facts = MessageFacts {
                leading_dot: findings.leading_dot,
                eight_bit: findings.eight_bit,
                utf8_header: self.header.eight_bit,
            };
        }
        Ok(())
    }
}

/// Keeps what comes in: where it lies, or as a copy.
struct Kept<'a> {
    data: &'a mut Octets,
    input: Input<'a>,
    expected_octets: usize,
}

impl Store for Kept<'_> {
    fn store(&mut self, octets: &[u8]) {
        // A large message has room for itself.
        let has_room = self.data.spare() >= octets.len();
        if let Some(run) = self.input.run(octets).filter(|_| !has_room) {
            return self.data.push_run(run);
        }
        // A size that is known saves the growth of the buffer; a false one costs no more than
        // this.
        self.data.reserve_exact(self.expected_octets.saturating_sub(self.data.len()));
        self.data.push(octets);
    }
}
