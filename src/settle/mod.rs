//! What an outcome means: all failure policy of the engine, by blast radius.
//!
//! Owns: the step from an outcome (data from [`crate::mail::outcome`]) to what happens next, for
//!
//! * one recipient: [`recipient`] (delivered, next host, hard bounce, deferred, ..),
//! * a transaction, a session and its host: [`host`] (failed, passed over, log reason),
//! * the destination: [`host::sign_of`] (what its wake-up gate learns),
//!
//! and the failure report to the sender: [`report`]. Never: the doing. Shard, schedule and route
//! carry out what is said here; the bounce profile's arithmetic is [`crate::schedule::retry`].
//!
//! The failover table, as this folder reads it:
//!
//! | where | answer | host | recipients |
//! |---|---|---|---|
//! | connect, greeting, EHLO | anything but success | failed | untried, next host |
//! | MAIL .. final dot | 4yz | stays up (421: passed over for 1 s) | next host; none: deferred |
//! | RCPT | 452, 552 after a 250 | its recipients per transaction are remembered | same session |
//! | MAIL .. final dot | 5yz | stays up | hard bounce |
//! | the same | 500-504, 530, 534, 535, 538, 555 | stays up | once more strictly, then 5yz |
//! | MAIL .. body | drop, silence, garbage | passed over for 5 s | next host; none: deferred |
//! | after the final dot | the same | passed over for 5 s | uncertain: deferred, or delivered |
//!
//! EHLO refused with 500, 502, 504 or 550 is no failure yet: the client falls back to HELO.

pub mod host;
pub mod recipient;
pub mod report;

pub use host::{ConnectionVerdict, HostEffect, LogReason};
pub use recipient::{Context, Verdict};
