//! Replies on the wire.
//!
//! Owns: their form, and the count of negative ones. Never: which reply a command gets.

use super::{Refusal, Session, State};
use crate::limits;
use crate::mail::Mid;

/// Room that replies begin with, in octets: those to a train of eight messages.
const REPLIES_OCTETS: usize = 768;

const LINE_END: &[u8] = b"\r\n";

/// A message that is with the engine for its verdict, and the replies that come after it: replies
/// keep the order of the commands (RFC 2920 3.2).
#[derive(Debug)]
pub(super) struct InHand {
    pub(super) mid: Mid,
    pub(super) octets: usize,
    verdict: Option<VerdictLine>,
    /// Octets of the replies behind it, up to the next such message.
    behind_octets: usize,
}

/// The replies behind messages in hand, one after the other.
#[derive(Debug, Default)]
pub(super) struct Behind {
    replies: Vec<u8>,
    /// Those before are taken.
    at: usize,
}

impl Behind {
    /// Moves the next `octets` to `out`.
    fn take(&mut self, octets: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.replies[self.at..self.at + octets]);
        self.at += octets;
        // All of it nearly always; otherwise no more than twice what waits is kept.
        if self.at >= self.replies.len().div_ceil(2) {
            self.replies.drain(..self.at);
            self.at = 0;
        }
    }
}

/// The reply to the end of a message.
#[derive(Debug)]
pub(super) enum VerdictLine {
    /// 250 with the message's id.
    Accepted,
    /// The whole line.
    Refused(String),
}

impl InHand {
    pub(super) fn new(mid: Mid, octets: usize) -> Self {
        Self { mid, octets, verdict: None, behind_octets: 0 }
    }
}

impl Session {
    /// A reply of one line, given with its code.
    pub(super) fn push_line(&mut self, line: &str) {
        let out = match self.in_hand.back_mut() {
            None => &mut self.output,
            Some(last) => {
                last.behind_octets += line.len() + LINE_END.len();
                &mut self.behind.replies
            }
        };
        if out.is_empty() {
            out.reserve(REPLIES_OCTETS);
        }
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(LINE_END);
    }

    /// Octets of replies where the next one goes.
    pub(super) fn reply_octets(&self) -> usize {
        self.in_hand.back().map_or(self.output.len(), |last| last.behind_octets)
    }

    /// The reply to the end of message `mid`, and all that waited for it alone.
    pub(super) fn push_verdict(&mut self, mid: Mid, line: VerdictLine) {
        let waiting = self.in_hand.iter_mut().find(|message| message.mid == mid);
        let message = waiting.filter(|message| message.verdict.is_none());
        message.expect("a verdict that nobody waits for").verdict = Some(line);
        if self.output.is_empty() {
            self.output.reserve(REPLIES_OCTETS);
        }
        while let Some(line) = self.in_hand.front_mut().and_then(|first| first.verdict.take()) {
            let Some(first) = self.in_hand.pop_front() else { return };
            match line {
                VerdictLine::Accepted => {
                    self.output.extend_from_slice(b"250 2.0.0 Ok: queued as ");
                    let mut digits = itoa::Buffer::new();
                    self.output.extend_from_slice(digits.format(first.mid.0).as_bytes());
                }
                VerdictLine::Refused(line) => self.output.extend_from_slice(line.as_bytes()),
            }
            self.output.extend_from_slice(LINE_END);
            self.behind.take(first.behind_octets, &mut self.output);
            self.has_verdict = true;
        }
        if self.in_hand.is_empty() {
            // An idle client keeps no room.
            self.behind = Behind::default();
        }
    }

    /// A refusal that does not count against the client.
    pub(super) fn push_refusal(&mut self, refusal: &Refusal) {
        self.push_line(&line_of(refusal));
        if refusal.code == 421 {
            self.state = State::Closing;
        }
    }

    /// A refusal. A 5yz speaks of the client's doing and counts; with too many of them since its
    /// last good message the client is sent away. A 4yz speaks of ours.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        self.push_refusal(refusal);
        self.count_refusal(refusal.code);
    }

    pub(super) fn count_refusal(&mut self, code: u16) {
        if code < 500 || self.state == State::Closing {
            return;
        }
        self.errors += 1;
        if self.errors >= limits::CLIENT_ERRORS_MAX {
            self.turn_away(&Refusal::new(421, 7, 0, "Too many errors"));
        }
    }

    /// The reply to EHLO (RFC 5321 4.1.1.1): what we offer.
    pub(super) fn push_offers(&mut self) {
        let hostname = &self.settings.hostname;
        let size = self.settings.message_octets_max;
        let offers = format!(
            "250-{hostname}\r\n250-PIPELINING\r\n250-SIZE {size}\r\n250-8BITMIME\r\n\
             250-SMTPUTF8\r\n250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n250 DSN"
        );
        self.push_line(&offers);
    }
}

/// A refusal as a reply line; a control character in its words is a space.
pub(super) fn line_of(refusal: &Refusal) -> String {
    let Refusal { code, enhanced, text } = refusal;
    format!("{code} {enhanced} {text}").replace(char::is_control, " ")
}
