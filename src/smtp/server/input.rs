//! What was read of a client.
//!
//! Owns: [`Input`], octets that the messages in them may hold on to. Never: what they mean.

use std::ops::Deref;
use std::sync::Arc;

use crate::mail::{Pins, ReadBuffer, Run};

/// A message holds on to no fewer octets in one place than these: to copy them costs as little.
const RUN_OCTETS_MIN: usize = 1024;

/// Octets of a client that were not taken yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input<'a> {
    octets: &'a [u8],
    shared: Option<(&'a Arc<ReadBuffer>, &'a Arc<Pins>)>,
}

impl<'a> Input<'a> {
    /// What was read into `buffer`, behind its first `from` octets. Messages hold on to their
    /// part of the buffer, which then counts in `pins`.
    #[must_use]
    pub fn shared(buffer: &'a Arc<ReadBuffer>, from: usize, pins: &'a Arc<Pins>) -> Self {
        let octets = buffer.octets().get(from..).unwrap_or_default();
        Self { octets, shared: Some((buffer, pins)) }
    }

    /// All but the first `octets`.
    pub(super) fn behind(self, octets: usize) -> Self {
        Self { octets: &self.octets[octets..], ..self }
    }

    /// At most the first `octets`.
    pub(super) fn first(self, octets: usize) -> Self {
        Self { octets: &self.octets[..octets.min(self.octets.len())], ..self }
    }

    /// The part of the buffer that `octets` are, if a message may hold on to it.
    pub(super) fn run(&self, octets: &[u8]) -> Option<Run> {
        let (buffer, pins) = self.shared.filter(|_| octets.len() >= RUN_OCTETS_MIN)?;
        buffer.run(octets, pins)
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Input<'a> {
    /// Octets that are gone after the call: messages copy their part.
    fn from(octets: &'a T) -> Self {
        Self { octets: octets.as_ref(), shared: None }
    }
}

impl Deref for Input<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.octets
    }
}
