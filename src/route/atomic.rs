//! The atomics of this folder, named once.
//!
//! Owns: nothing; passes std's types on. Cursor, permits and host take their atomics from here,
//! so that `tests/loom.rs` can compile the very same files over a model of the memory order.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
