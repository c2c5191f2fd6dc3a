//! The queue manager.

pub mod settings;
