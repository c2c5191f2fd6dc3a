//! Lines for whoever started the program.
//!
//! Owns: writing them, whatever becomes of the terminal. Never: results (standard output), the
//! mail log.
//!
//! Diagnostics: none. The macros of the standard library panic when the reader of a pipe is gone
//! or a disk is full, and a panic ends the engine: `ringpost serve 2>&1 | head` must not.

use std::fmt;
use std::io::{self, Write};

/// Writes `ringpost: ` and the line to standard error. What cannot be written is lost: nobody
/// reads it.
pub fn tell(line: impl fmt::Display) {
    tell_plainly(format_args!("ringpost: {line}"));
}

/// As [`tell`], without the name in front.
pub fn tell_plainly(line: impl fmt::Display) {
    // In one write, so that lines of two threads do not mix.
    io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap_or_default();
}
