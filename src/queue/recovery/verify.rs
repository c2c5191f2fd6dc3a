//! Octets behind the durable point: are they what was written?
//!
//! Owns: the reading of whole groups at a start. Never: what follows from the answer.

use super::super::format::{self, Entry, ExtentPlace, MessageSlot, SegmentKind};
use super::super::read;
use super::super::segment::Medium;
use super::Opening;
use crate::limits;

impl<M: Medium> Opening<'_, M> {
    /// Are the octets of a group what was written?
    pub(super) fn verify(
        &self,
        segment: usize,
        message: &MessageSlot,
        entries: &[Entry],
        extents: &[ExtentPlace],
    ) -> bool {
        let live = &self.queue.segments[segment];
        let seed = live.place.seed;
        let read = |offset, octets| self.read(segment, offset, octets);
        let head = read(message.head_offset, u64::from(message.head_octets));
        let head_right = head.is_some_and(|head| {
            format::checksum_at(seed, message.head_offset, &head) == message.head_checksum
        });
        let entry_right = |entry: &Entry| {
            read(entry.record_offset, u64::from(entry.record_octets)).is_some_and(|record| {
                format::checksum_at(seed, entry.record_offset, &record) == entry.record_checksum
            })
        };
        if !head_right || !entries.iter().all(entry_right) {
            return false;
        }
        if message.extents == 0 {
            return read(message.body_offset, message.body_octets).is_some_and(|body| {
                format::checksum_at(seed, message.body_offset, &body) == message.body_checksum
            });
        }
        let mut left = message.body_octets;
        extents.iter().all(|place| {
            let octets = left.min(limits::EXTENT_OCTETS);
            left -= octets;
            let found = self.extent_segment(place);
            found.is_some_and(|at| {
                let offset = self.queue.segments[at].geometry.extent_offset(place.index);
                self.read(at, offset, octets).is_some_and(|part| {
                    let spool = self.queue.options.spool;
                    read::extent_checksum(spool, place, &part) == place.checksum
                })
            })
        })
    }

    /// The segment that holds an extent, as it was when the extent was written.
    pub(super) fn extent_segment(&self, place: &ExtentPlace) -> Option<usize> {
        self.queue.segments.iter().position(|s| {
            s.header.segment == place.segment
                && s.header.kind == SegmentKind::Extents
                && s.header.generation == place.generation
        })
    }

    fn read(&self, segment: usize, offset: u64, octets: u64) -> Option<Vec<u8>> {
        let end = offset.checked_add(octets)?;
        if end > self.queue.segments[segment].geometry.octets {
            return None;
        }
        let mut buffer = vec![0; usize::try_from(octets).ok()?];
        self.medium.read_at(&self.files[segment], offset, &mut buffer).ok()?;
        Some(buffer)
    }
}
