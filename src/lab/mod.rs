//! The lab: our own SMTP test peers, shipped with the program, and a play of them.
//!
//! Owns: [`sink`], a receiver that takes mail fast and misbehaves on demand, [`source`], a sender
//! that measures, and [`link`], a long way between two hosts. Tests, benches and the verbs use
//! them. Never: any part of the delivery engine; the peers speak SMTP with code of their own, so
//! that a fault in the engine's protocol code cannot hide in the peer that tests it.
//!
//! All run on a thread of their own with their own runtime, and may be used from anywhere.
//! [`demo`] puts an engine between the two and plays what it is for.

pub mod demo;
pub mod link;
pub mod sink;
pub mod source;
