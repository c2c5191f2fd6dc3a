//! What the engine tells about itself: the mail log, counters, latencies, and their text.
//!
//! Owns: formats and numbers, one of each per shard, never locked. Never: files, sockets or
//! clocks (`shard/io` writes what is formatted here), and no decision that mail depends on.
//!
//! Diagnostics: nothing here fails. A line for which there is no room is dropped and counted.

pub mod counters;
pub mod histogram;
pub mod line;
pub mod mail_log;
pub mod prometheus;
pub mod settings;

pub use counters::{Conservation, Counters, Totals};
pub use histogram::Latencies;
pub use mail_log::MailLog;
