//! Replies on the wire.
//!
//! Owns: their form, and the count of negative ones. Never: which reply a command gets.

use super::{Refusal, Session, State};
use crate::limits;

impl Session {
    /// A reply of one line, given with its code.
    pub(super) fn push_line(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    /// A refusal that does not count against the client.
    pub(super) fn push_refusal(&mut self, refusal: &Refusal) {
        let Refusal { code, enhanced, text } = refusal;
        let reply = format!("{code} {enhanced} {text}").replace(char::is_control, " ");
        self.push_line(&reply);
        if *code == 421 {
            self.state = State::Closing;
        }
    }

    /// A refusal. A 5yz speaks of the client's doing and counts; with too many of them since its
    /// last good message the client is sent away. A 4yz speaks of ours.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        self.push_refusal(refusal);
        if refusal.code < 500 || self.state == State::Closing {
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
