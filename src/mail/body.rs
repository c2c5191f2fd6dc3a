//! The bytes of one message and what was seen in them.
//!
//! Owns: [`Body`], shared by queue, client session and socket without a copy. Never: the
//! envelope.

use super::envelope::MessageFacts;
use super::octets::Octets;

/// A message as it is stored and sent: header and body with CRLF line ends, not dot-stuffed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Body {
    /// The octets.
    pub bytes: Octets,
    /// How they may be sent.
    pub facts: MessageFacts,
}
