//! The lab: our own SMTP test peers, shipped with the program, and a play of them.
//!
//! Owns: [`sink`], a receiver that takes mail fast and misbehaves on demand, and [`source`], a
//! sender that measures. Tests, benches and the verbs of the same names use them. Never: any part
//! of the delivery engine; both peers speak SMTP with code of their own, so that a fault in the
//! engine's protocol code cannot hide in the peer that tests it.
//!
//! Both run on a thread of their own with their own runtime, and may be used from anywhere.
//! [`demo`] puts an engine between the two and plays what it is for.

pub mod demo;
pub mod sink;

pub mod source;
