//! The server side of SMTP without I/O: a client's bytes in, replies and messages out.
//!
//! Owns: the dialogue with one client, its limits and its deadlines. Never: sockets, the queue, or
//! the decision to say 250 to a message: that needs a proof ([`Session::answer_accepted`]).
//!
//! The caller keeps what it read in a buffer of at least [`limits::COMMAND_LINE_OCTETS_MAX`]
//! octets, gives all of it to [`Session::handle_input`], removes [`Step::consumed`] octets from
//! its front, and does what [`Step::next`] says. An incomplete command line is not consumed: it
//! is parsed in place once its end is there. The octets of a message are always consumed at once.
//!
//! Only CRLF ends a command, and only CRLF.CRLF ends DATA. A bare CR or LF in a command ends the
//! connection; in a message it has the message refused at its true end. A message sent by BDAT
//! that does not end with CRLF gets one; nothing else in a message is changed, and our Received
//! field is put before it.
//!
//! Diagnostics: every negative reply has an enhanced code (RFC 2034); the greeting, the replies
//! to EHLO and HELO and 354 have none. Wrong calls (a verdict without a message) panic.
//!
//! Limits: memory is one message of at most [`ServerSettings::message_octets_max`] octets and one
//! read, in a buffer of at most twice that ([`Session::memory_wanted`] is asked before each read,
//! by a caller that keeps account of it); its envelope ([`ServerSettings::recipients_max`]
//! recipients); replies of [`limits::SERVER_OUTPUT_OCTETS_MAX`] octets and one more. Nothing else
//! grows.

mod answer;
mod commands;
mod gate;
mod header;
mod input;
mod intake;
mod memory;
mod transaction;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

pub use gate::{Abort, Gate, Refusal};
pub use header::{HeaderFields, header_fields};
pub use input::Input;
pub use memory::Wanted;
pub use transaction::Transaction;

use header::Date;

use answer::{Behind, InHand, VerdictLine, line_of};

use crate::limits;
use crate::mail::time::Now;
use crate::mail::{Mid, Mono, ProofOfSafety};
use crate::smtp::command::LastDomains;
use crate::smtp::settings::ServerSettings;

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The client's address.
    pub ip: IpAddr,
    /// The listener relays for this client; others get 550 5.7.1 to RCPT.
    pub relay: bool,
}

/// What one call of [`Session::handle_input`] did.
#[derive(Debug)]
#[must_use]
pub struct Step {
    /// Octets at the front of the input that are done with.
    pub consumed: usize,
    /// What the caller does next.
    pub next: Next,
}

/// What the session needs to go on. In every case [`Session::take_output`] is written first.
#[derive(Debug)]
pub enum Next {
    /// More input.
    Read,
    /// The output written, then another call with what is left of the input.
    Write,
    /// A verdict on this complete message: [`Session::answer_accepted`] or
    /// [`Session::answer_refused`], then another call with what is left of the input.
    Message(Box<Transaction>),
    /// A verdict, before anything else: the client has as many messages in hand as it may.
    Verdict,
    /// The connection closed, after the output was written.
    Close,
}

/// The dialogue with one client. See the [module page](self) for how to drive it.
#[derive(Debug)]
pub struct Session {
    settings: Arc<ServerSettings>,
    peer: Peer,
    state: State,
    client: Option<Client>,
    last_domains: LastDomains,
    /// The date of Received fields.
    date: Date,
    transaction: Option<Box<Transaction>>,
    output: Vec<u8>,
    /// There is a verdict in the output.
    has_verdict: bool,
    /// Messages that are with the engine for their verdict, in their order.
    in_hand: VecDeque<InHand>,
    behind: Behind,
    /// The connection is gone: verdicts have nobody to go to.
    lost: bool,
    /// Negative replies (5yz) since the last message.
    errors: u32,
    /// The clock that runs now was started here.
    heard: Mono,
    shutdown: bool,
}

/// Who the client says it is.
#[derive(Clone, Debug)]
struct Client {
    helo: Arc<str>,
    /// EHLO, not HELO.
    extended: bool,
    /// The beginning of the Received field of its messages.
    trace: String,
}

/// What the next octet is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// Part of a command line.
    Command,
    /// Part of a command line that was refused for its length.
    Overlong {
        /// Octets of it thrown away.
        discarded: usize,
        /// The last of them was a CR.
        after_cr: bool,
    },
    /// Part of a message under DATA.
    Data,
    /// Part of a chunk.
    Chunk {
        /// Octets of the chunk that are still to come.
        remaining: u64,
        /// Octets of the chunk.
        octets: u64,
        /// The chunk ends the message.
        last: bool,
        /// The chunk belongs to no transaction; said when it is over.
        refusal: Option<Refusal>,
    },
    /// Nothing: the connection is over.
    Closing,
}

/// What became of the front of the input.
enum Progress {
    /// It is not enough for a step.
    Starved,
    /// This many octets were taken.
    Taken(usize),
    /// So many octets were taken, and a message is complete.
    Finished(usize, Box<Transaction>),
}

impl Session {
    /// A session with a client that was accepted just now. Nothing is sent yet: see
    /// [`Session::greet`].
    #[must_use]
    pub fn new(settings: Arc<ServerSettings>, peer: Peer, now: Now) -> Self {
        Self {
            settings,
            peer,
            state: State::Command,
            client: None,
            last_domains: LastDomains::default(),
            date: Date::default(),
            transaction: None,
            output: Vec::new(),
            has_verdict: false,
            in_hand: VecDeque::new(),
            behind: Behind::default(),
            lost: false,
            errors: 0,
            heard: now.mono,
            shutdown: false,
        }
    }

    /// Puts the greeting into the output.
    pub fn greet(&mut self) {
        let greeting = format!("220 {} ESMTP Ringpost", self.settings.hostname);
        self.push_line(&greeting);
    }

    /// Instead of [`Session::greet`]: the client spoke before it was greeted, so it sends
    /// commands without reading replies (RFC 5321 4.3.1). 554 5.5.0, and the end.
    pub fn handle_early_talk(&mut self) {
        self.turn_away(&Refusal::new(554, 5, 0, "SMTP protocol synchronization error"));
    }

    /// Instead of [`Session::greet`]: this connection is not wanted, as with 421 4.7.0 above a
    /// limit of the listener.
    pub fn turn_away(&mut self, refusal: &Refusal) {
        self.push_refusal(refusal);
        self.state = State::Closing;
    }

    /// Takes what was read, in order: all that the caller holds and has not been told is
    /// consumed. Messages hold on to parts of it where the [`Input`] lets them. It returns at the
    /// first of the reasons of [`Next`]. Replies collect in the output, so that a pipelined group
    /// is answered with one write (RFC 2920 3.2).
    pub fn handle_input<'a>(
        &mut self,
        input: impl Into<Input<'a>>,
        gate: &mut dyn Gate,
        now: Now,
    ) -> Step {
        let (input, mut consumed) = (input.into(), 0);
        loop {
            let rest = input.behind(consumed);
            if self.shutdown && self.state == State::Command {
                self.stop(gate);
            }
            if self.state == State::Command && self.has_hands_full() {
                return Step { consumed, next: Next::Verdict };
            }
            if self.reply_octets() >= limits::SERVER_OUTPUT_OCTETS_MAX
                && self.state != State::Closing
            {
                return Step { consumed, next: Next::Write };
            }
            let progress = match self.state {
                State::Command => self.take_line(&rest, gate, now),
                State::Overlong { discarded, after_cr } => {
                    self.discard_line(&rest, discarded, after_cr)
                }
                State::Data => self.take_data(rest, gate, now),
                State::Chunk { remaining, .. } => self.take_chunk(rest, remaining, gate, now),
                State::Closing => {
                    self.abort(gate, Abort::SentAway);
                    return Step { consumed: input.len(), next: Next::Close };
                }
            };
            match progress {
                Progress::Starved => return Step { consumed, next: Next::Read },
                Progress::Taken(octets) => consumed += octets,
                Progress::Finished(octets, transaction) => {
                    consumed += octets;
                    self.state = State::Command;
                    let octets = transaction.data.len();
                    self.in_hand.push_back(InHand::new(transaction.mid, octets));
                    return Step { consumed, next: Next::Message(transaction) };
                }
            }
        }
    }

    /// The message `mid` is safe: 250 to its end of data. The proof is used up.
    ///
    /// # Panics
    /// When no verdict on `mid` is due.
    pub fn answer_accepted<P: ProofOfSafety>(&mut self, proof: P, mid: Mid, now: Now) {
        drop(proof);
        self.errors = 0;
        self.take_verdict(mid, VerdictLine::Accepted, now);
    }

    /// The message `mid` is refused, as with 451 4.3.0 when the disk failed.
    ///
    /// # Panics
    /// When no verdict on `mid` is due.
    pub fn answer_refused(&mut self, refusal: &Refusal, mid: Mid, now: Now) {
        self.take_verdict(mid, VerdictLine::Refused(line_of(refusal)), now);
        self.count_refusal(refusal.code);
    }

    fn take_verdict(&mut self, mid: Mid, line: VerdictLine, now: Now) {
        if !self.lost {
            self.heard = now.mono;
            self.push_verdict(mid, line);
        }
    }

    /// As many messages wait for their verdict as one client may have.
    fn has_hands_full(&self) -> bool {
        let octets: usize = self.in_hand.iter().map(|message| message.octets).sum();
        self.in_hand.len() >= limits::CLIENT_MESSAGES_IN_HAND_MAX
            || octets > limits::CLIENT_IN_HAND_OCTETS_MAX
    }

    /// True while a message is with the engine for its verdict.
    #[must_use]
    pub fn has_message_in_hand(&self) -> bool {
        !self.in_hand.is_empty()
    }

    /// The replies to be written now, in one write. Empty when there is nothing to say.
    #[must_use = "replies that were taken are gone"]
    pub fn take_output(&mut self) -> Vec<u8> {
        self.has_verdict = false;
        std::mem::take(&mut self.output)
    }

    /// True when there is output to write. What stands before the verdict on a message in hand
    /// goes with it, for the client has sent that message without waiting for more: a train of
    /// messages wakes its client once, not twice.
    #[must_use]
    pub fn has_output(&self) -> bool {
        let may_wait = !self.in_hand.is_empty() && !self.has_verdict;
        !self.output.is_empty()
            && (!may_wait || self.output.len() >= limits::SERVER_OUTPUT_OCTETS_MAX)
    }

    /// True when the connection is to be closed once the output is written.
    #[must_use]
    pub fn should_close(&self) -> bool {
        self.state == State::Closing && self.in_hand.is_empty()
    }

    /// When [`Session::handle_deadline`] is due. There is none (`Mono(u64::MAX)`) while a verdict
    /// is awaited, for the wait is ours. Once the session is over it is the time by which the peer
    /// has read its last replies, or the caller gives the connection up.
    ///
    /// The wait for a command, and for the next octets of a message, is
    /// [`limits::CLIENT_WAIT_MS`]; a part of a command line does not prolong it. The message as a
    /// whole has [`limits::CLIENT_MESSAGE_GRACE_MS`] and then a lowest rate.
    #[must_use]
    pub fn deadline(&self) -> Mono {
        match self.state {
            State::Closing | State::Command if !self.in_hand.is_empty() => Mono(u64::MAX),
            State::Closing => Mono(self.heard.0.saturating_add(2 * limits::CLIENT_WAIT_MS)),
            State::Command | State::Overlong { .. } | State::Data | State::Chunk { .. } => {
                let wait = self.heard.0.saturating_add(limits::CLIENT_WAIT_MS);
                Mono(wait.min(self.message_deadline_ms()))
            }
        }
    }

    fn message_deadline_ms(&self) -> u64 {
        let Some(intake) = self.transaction.as_ref().and_then(|t| t.intake.as_ref()) else {
            return u64::MAX;
        };
        let octets = intake.receiver.findings().octets;
        let at_rate_ms = octets.saturating_mul(1000) / limits::CLIENT_RATE_OCTETS_PER_S_MIN;
        (intake.began.0 + limits::CLIENT_MESSAGE_GRACE_MS).saturating_add(at_rate_ms)
    }

    /// Ends the session with 421 4.4.2 when its deadline has passed; else nothing happens.
    pub fn handle_deadline(&mut self, gate: &mut dyn Gate, now: Now) {
        if self.state == State::Closing || now.mono < self.deadline() {
            return;
        }
        self.abort(gate, Abort::Timeout);
        self.turn_away(&Refusal::new(421, 4, 2, "Timeout"));
    }

    /// The connection is gone: end of file, reset, or the caller gave it up. A message that is
    /// with the engine for its verdict is not touched.
    pub fn handle_closed(&mut self, gate: &mut dyn Gate) {
        self.abort(gate, Abort::Lost);
        self.output = Vec::new();
        self.in_hand.clear();
        self.behind = Behind::default();
        self.lost = true;
        self.state = State::Closing;
    }

    /// The engine stops: 421 4.3.2 at the next command boundary, which may be now. A message
    /// whose bytes come in, or whose verdict is due, is finished first; between two chunks of BDAT
    /// there is such a boundary.
    pub fn begin_shutdown(&mut self, gate: &mut dyn Gate) {
        self.shutdown = true;
        match self.state {
            State::Command | State::Overlong { .. } => self.stop(gate),
            State::Data | State::Chunk { .. } | State::Closing => {}
        }
    }

    /// The time that a stopping engine gives its clients is over: as
    /// [`Session::begin_shutdown`], also in the middle of a message, of which nothing is kept. A
    /// message that is with the engine for its verdict is finished first all the same.
    pub fn end_shutdown(&mut self, gate: &mut dyn Gate) {
        self.shutdown = true;
        match self.state {
            State::Command | State::Overlong { .. } | State::Data | State::Chunk { .. } => {
                self.stop(gate);
            }
            State::Closing => {}
        }
    }

    fn stop(&mut self, gate: &mut dyn Gate) {
        self.abort(gate, Abort::Shutdown);
        self.turn_away(&Refusal::new(421, 3, 2, "Service shutting down"));
    }

    /// The engine wants no more of the message that is coming in, as when receive memory is full:
    /// what was stored is freed, the rest is thrown away, and `refusal` is said at its end.
    /// Nothing happens when no message is coming in.
    pub fn drop_message(&mut self, refusal: Refusal) {
        let Some(transaction) = &mut self.transaction else { return };
        transaction.stop_storing();
        if let Some(intake) = &mut transaction.intake {
            intake.refusal.get_or_insert(refusal);
        }
    }

    /// The one place where a transaction ends without a message.
    fn abort(&mut self, gate: &mut dyn Gate, cause: Abort) {
        if let Some(transaction) = self.transaction.take() {
            gate.aborted(transaction.mid, cause);
        }
    }
}

#[cfg(test)]
mod tests;
