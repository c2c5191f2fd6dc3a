//! Telemetry.

pub mod settings;
