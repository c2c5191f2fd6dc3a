//! The SMTP protocol without I/O: bytes in, bytes and events out.
//!
//! Owns: commands, replies, message data, and the two dialogues ([`server`], [`client`]). Never:
//! sockets, clocks, policy. `now` is an argument where time matters.

pub mod client;
pub mod command;
pub mod data;
pub mod reply;
pub mod server;
pub mod settings;
