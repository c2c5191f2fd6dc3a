//! SMTP routes: which hosts a receiving domain's mail goes to, and whose turn it is.
//!
//! Owns: the table and its match ([`table`]), the text of one row ([`row`]), the round robin
//! ([`cursor`]), host health ([`host`]), permits for connections ([`permits`]), the run-time state
//! that outlives a configuration ([`registry`]), and the choice of the next host ([`plan`]).
//! Never: files, sockets, clocks, DNS questions. Atomics are shared between shards; time is an
//! argument.
//!
//! The way of a delivery: [`Table::find`] gives the row of its domain; the row's addresses become
//! a [`Plan`] once per destination and configuration; [`Plan::choose`] takes a turn, and again
//! with the host added to [`HostSet`] after each host that failed.
//!
//! Diagnostics: [`RowError`] and [`Duplicate`] for the operator; a violated pairing (a session
//! closed twice, a permit returned twice) panics, for it is our own mistake.

mod atomic;
pub mod cursor;
pub mod host;
pub mod permits;
pub mod plan;
pub mod registry;
pub mod row;
pub mod table;
#[cfg(test)]
mod tests;

pub use cursor::Cursor;
pub use host::{Host, Probe, Status, Verdict};
pub use permits::{Grant, Permit, Permits, Waiters};
pub use plan::{Choice, Forecast, HostSet, LaneFill, Pick, Plan, Turns};
pub use registry::{Group, GroupKey, Registry};
pub use row::{RowError, parse_row};
pub use table::{Duplicate, HostAddress, HostSpec, Pattern, Row, Table, Target};
