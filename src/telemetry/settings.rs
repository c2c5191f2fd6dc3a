//! Settings of the mail log, as the configuration fills them.
//!
//! Owns: the type and its defaults. Never: parsing (`config`).

use std::path::PathBuf;

/// Where the mail log goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogTarget {
    /// A file, appended to; SIGHUP reopens it.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Nowhere.
    Off,
}

/// Which events are written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum LogDetail {
    /// Only what went wrong: connection errors, delays, bounces, warnings.
    Problems,
    /// Problems, and what was delivered.
    Delivery,
    /// Everything.
    #[default]
    Full,
}

/// The clock of the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogTime {
    /// The system's time zone.
    #[default]
    Local,
    /// UTC.
    Utc,
}

/// The mail log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// Where lines go.
    pub target: LogTarget,
    /// Which ones.
    pub detail: LogDetail,
    /// Their clock.
    pub time: LogTime,
}
