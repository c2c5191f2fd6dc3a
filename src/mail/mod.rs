//! The vocabulary: what a message, an address, an id, a reply and a failure are.
//!
//! Owns: the values that every other folder passes on. Never: I/O, clocks, policy. This is a
//! leaf: it imports nothing but [`crate::limits`].
//!
//! Diagnostics: foreign bytes that do not parse come back as an [`address::AddressError`];
//! nothing here panics on input.

pub mod address;
pub mod body;
pub mod envelope;
pub mod ids;
pub mod octets;
pub mod outcome;
pub mod status;
pub mod text;
pub mod time;

pub use address::{AddressError, Domain, Mailbox};
pub use body::Body;
pub use envelope::{BodyKind, Envelope, MessageFacts, Notify, Recipient, Ret};
pub use ids::{Dcid, Handle, Icid, Mid, Rid, ShardId};
pub use octets::{Octets, Pins, ReadBuffer, Run};
pub use outcome::{
    Accepted, ConnectionCause, ConnectionFailure, PossiblyAccepted, ProofOfSafety,
    RecipientOutcome, Shortage, Stage,
};
pub use status::{Enhanced, Failure, Reply, ReplyLines};
pub use time::{Mono, Now, Wall};
