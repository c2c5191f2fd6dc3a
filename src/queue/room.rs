//! Room: which segments there are, which may be made, and which may be used again.
//!
//! Owns: the bound on the octets of all segments, the spare segment, and free extents. Never: a
//! segment that holds anything unsettled or unsynced is given up.
//!
//! Limits: `octets_max` of [`super::Options`].

use super::batch::{Pending, count};
use super::format::{self, ExtentPlace, Header, SegmentId, SegmentKind};
use super::live::Name;
use super::{Effect, Full, Purpose, Queue};
use crate::limits;

/// Extents of one extent segment at most: it is filled with zeros when made.
const EXTENTS_MAX: u64 = 64;

impl Queue {
    /// Body octets that appends may still take, counting segments that could be made.
    pub(super) fn room(&self, body_max: u64) -> u64 {
        let active = self.active.map_or(0, |active| {
            let segment = &self.segments[active];
            let slot_share = body_max / u64::from(segment.geometry.slots);
            segment.body_left().min(u64::from(segment.slots_left()) * slot_share)
        });
        let coming = usize::from(self.spare.is_some())
            + usize::from(self.recycling)
            + self.free.len()
            + self.making.iter().filter(|(kind, _)| *kind == SegmentKind::Messages).count();
        let makeable = if self.now < self.make_after {
            0
        } else {
            self.octets_makeable() / self.options.segment_octets
        };
        active + (coming as u64 + makeable) * body_max
    }

    /// Is there room for a message of about `octets` octets? For the answer to MAIL; what comes
    /// at the same time may still take the room.
    ///
    /// # Errors
    /// See [`Full`].
    pub fn has_room(&self, octets: u64) -> Result<(), Full> {
        let geometry = self.message_geometry();
        let body_max = geometry.octets - geometry.body_offset;
        if octets > self.options.octets_max {
            return Err(Full::TooLarge);
        }
        if self.pending_octets + octets > self.room(body_max) {
            return Err(Full::NoSpace);
        }
        Ok(())
    }

    pub(super) fn extents_wanting(&self, pending: &Pending) -> u64 {
        let free = count(self.extents_free.len());
        u64::from(pending.extents.saturating_sub(free)) * limits::EXTENT_OCTETS
    }

    pub(super) fn octets_makeable(&self) -> u64 {
        let making: u64 = self.making.iter().map(|(kind, _)| self.octets_of(*kind)).sum();
        self.options.octets_max.saturating_sub(self.octets() + making)
    }

    pub(super) fn message_geometry(&self) -> format::Geometry {
        format::Geometry::of(SegmentKind::Messages, self.options.segment_octets)
    }

    pub(super) fn octets_of(&self, kind: SegmentKind) -> u64 {
        match kind {
            SegmentKind::Messages => self.options.segment_octets,
            SegmentKind::Extents => {
                let extents = self.options.segment_octets / limits::EXTENT_OCTETS;
                format::HEADERS_END + extents.clamp(1, EXTENTS_MAX) * limits::EXTENT_OCTETS
            }
        }
    }

    pub(super) fn fresh_header(&self, kind: SegmentKind, segment: SegmentId) -> Header {
        let octets = self.octets_of(kind);
        Header {
            kind,
            spool: self.options.spool,
            segment,
            generation: 1,
            sequence: 0,
            octets,
            durable_slots: 0,
            durable_body_end: format::Geometry::of(kind, octets).body_offset,
            id_block_max: 0,
        }
    }

    pub(super) fn make(&mut self, kind: SegmentKind) {
        let under_way = self.making.iter().any(|(making, _)| *making == kind);
        let octets = self.octets_of(kind);
        if under_way || self.now < self.make_after || self.octets_makeable() < octets {
            return;
        }
        self.last_segment_number += 1;
        let segment = SegmentId::new(self.options.shard.0, self.last_segment_number);
        let header = self.fresh_header(kind, segment);
        self.making.push((kind, segment));
        let id = self.effect_id(Purpose::Make(kind));
        self.effects.push_back(Effect::Make {
            id,
            segment,
            octets,
            map_octets: format::Geometry::of(kind, octets).body_offset,
            header: header.encode().to_vec(),
        });
    }

    /// Sees to it that a segment stands ready behind the active one.
    pub(super) fn prepare_spare(&mut self) {
        if self.spare.is_some() || self.recycling {
            return;
        }
        let Some(free) = self.free.pop() else {
            self.make(SegmentKind::Messages);
            return;
        };
        for name in self.segments[free].reuse() {
            if let Name::Domain(number) = name {
                self.index.unname(number);
            }
        }
        self.recycling = true;
        self.start_sync(free, Purpose::Recycle(free));
    }

    pub(super) fn free_extent(&mut self, place: ExtentPlace) {
        let found = self.segments.iter().position(|s| s.header.segment == place.segment);
        if let Some(segment) = found.filter(|segment| !self.segments[*segment].poisoned) {
            self.extents_free.push((segment, place.index));
        }
    }

    pub(super) fn free_if_empty(&mut self, segment: usize) {
        let live = &self.segments[segment];
        let idle = !live.appendable && !live.syncing && !live.poisoned;
        let empty = live.live == 0 && live.dirty_since.is_none();
        let settled = live.extents_settled.is_empty() && live.extents_syncing.is_empty();
        let messages = live.header.kind == SegmentKind::Messages;
        if idle && empty && settled && messages && !self.free.contains(&segment) {
            self.free.push(segment);
        }
    }
}
