//! Settings of the queue, as the configuration fills them.
//!
//! Owns: the type and its defaults. Never: parsing (`config`).

use std::path::PathBuf;

/// Where the queue lives and how large it may become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueSettings {
    /// The spool directory.
    pub spool: PathBuf,
    /// Most octets of all segments together.
    pub octets_max: u64,
    /// Octets of the file system that stay free; `None`: 2 % of it.
    pub free_octets_min: Option<u64>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { spool: PathBuf::from("spool"), octets_max: 10 << 30, free_octets_min: None }
    }
}
