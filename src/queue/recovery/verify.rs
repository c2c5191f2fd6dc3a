//! Octets behind the durable point: are they what was written?
//!
//! Owns: the reading of whole groups at a start. Never: what follows from the answer.

use std::io;

use super::super::format::{self, Entry, ExtentPlace, MessageSlot, SegmentKind};
use super::super::read;
use super::super::segment::Medium;
use super::Opening;
use crate::limits;

impl<M: Medium> Opening<'_, M> {
    /// Are the octets of a group what was written?
    ///
    /// # Errors
    /// Those of the medium: some of them cannot be read, and may be right.
    pub(super) fn verify(
        &self,
        segment: usize,
        message: &MessageSlot,
        entries: &[Entry],
        extents: &[ExtentPlace],
    ) -> io::Result<bool> {
        let seed = self.queue.segments[segment].place.seed;
        let is_right = |offset, octets, checksum| {
            self.is_right(segment, offset, octets, |read| {
                format::checksum_at(seed, offset, read) == checksum
            })
        };
        if !is_right(message.head_offset, message.head_octets.into(), message.head_checksum)? {
            return Ok(false);
        }
        for entry in entries {
            if !is_right(entry.record_offset, entry.record_octets.into(), entry.record_checksum)? {
                return Ok(false);
            }
        }
        if message.extents == 0 {
            return is_right(message.body_offset, message.body_octets, message.body_checksum);
        }
        let mut left = message.body_octets;
        for place in extents {
            let octets = left.min(limits::EXTENT_OCTETS);
            left -= octets;
            let Some(at) = self.extent_segment(place) else {
                return if self.may_be_unread(place) { Err(unread()) } else { Ok(false) };
            };
            let offset = self.queue.segments[at].geometry.extent_offset(place.index);
            let spool = self.queue.options.spool;
            let is_right = self.is_right(at, offset, octets, |part| {
                read::extent_checksum(spool, place, part) == place.checksum
            })?;
            if !is_right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Is an extent that is not there perhaps in a segment that could not be read?
    pub(super) fn may_be_unread(&self, place: &ExtentPlace) -> bool {
        self.extent_segment(place).is_none() && self.unread.contains(&place.segment.directory())
    }

    /// The segment that holds an extent, as it was when the extent was written.
    pub(super) fn extent_segment(&self, place: &ExtentPlace) -> Option<usize> {
        self.queue.segments.iter().position(|s| {
            s.header.segment == place.segment
                && s.header.kind == SegmentKind::Extents
                && s.header.generation == place.generation
        })
    }

    fn is_right(
        &self,
        segment: usize,
        offset: u64,
        octets: u64,
        is_right: impl FnOnce(&[u8]) -> bool,
    ) -> io::Result<bool> {
        let segment_octets = self.queue.segments[segment].geometry.octets;
        if offset.checked_add(octets).is_none_or(|end| end > segment_octets) {
            return Ok(false);
        }
        let mut buffer = vec![0; usize::try_from(octets).map_err(io::Error::other)?];
        self.medium.read_at(&self.files[segment], offset, &mut buffer)?;
        Ok(is_right(&buffer))
    }
}

pub(super) fn unread() -> io::Error {
    io::Error::other("its segment could not be read")
}
