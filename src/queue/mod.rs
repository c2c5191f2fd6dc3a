//! The durable memory-mapped queue.

pub mod settings;
