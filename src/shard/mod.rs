//! Shards: the only data-plane I/O.

pub mod connection;
pub mod io;
