//! Mail programs of other people on both sides of the engine: what they send must arrive, and what
//! they take must be what was sent.
//!
//! Owns: the tests with Postfix, its test programs smtp-source and smtp-sink, and swaks. Never:
//! our own peers' misbehaviour. A program that is not installed makes its test say `skipped:` and
//! pass; with `RINGPOST_INTEROP=1` it makes it fail, and more messages are sent.
//!
//! Everything runs on 127.0.0.1 with free ports and is ended by its pid.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

#[path = "interop/load.rs"]
mod load;
#[path = "interop/postfix.rs"]
mod postfix;
#[path = "interop/swaks.rs"]
mod swaks;
#[path = "interop/tools.rs"]
mod tools;
