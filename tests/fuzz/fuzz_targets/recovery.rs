//! Arbitrary octets as a segment: `cargo +nightly fuzz run --fuzz-dir tests/fuzz recovery`.
#![no_main]
#![allow(dead_code, clippy::unwrap_used, reason = "a target stops where it fails")]

#[path = "../../queue_model/arbitrary.rs"]
mod arbitrary;
#[path = "../../queue_model/rig.rs"]
mod rig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| arbitrary::recover(data));
