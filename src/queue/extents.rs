//! Free extents, and segments that change their kind.
//!
//! Owns: which extents no message uses, and the remaking of a free segment as one of the other
//! kind, so that the space of large mail serves small mail when it is gone, and the other way
//! round. Never: a segment that anything still needs.
//!
//! A segment that is remade keeps its name and gets the next generation: what was written in it
//! before is never taken for anything. It is the medium that makes the file anew; until then it
//! is no segment, and a crash leaves a file that is being made.
//!
//! Limits: new extents leave the message segments their reserve and one more.

use hashbrown::{HashMap, HashSet};

use super::format::{ExtentPlace, Header, SegmentId, SegmentKind};
use super::live::Name;
use super::{Full, Queue};
use crate::limits;

/// Extents that no message uses.
#[derive(Default)]
pub(super) struct FreeExtents {
    free: Vec<(usize, u32)>,
    /// How many of them each segment has.
    of_segment: Vec<u32>,
    /// Extents that several copies of a message hold, and how many: a power cut can take back the
    /// settling of a recipient that had been left out of the copy.
    shared: HashMap<(SegmentId, u32), u32>,
    /// Extents of messages in poisoned segments: what was settled there may come back.
    kept: HashSet<(SegmentId, u32)>,
}

impl FreeExtents {
    pub(super) fn len(&self) -> usize {
        self.free.len()
    }

    pub(super) fn pop(&mut self) -> Option<(usize, u32)> {
        let (segment, index) = self.free.pop()?;
        self.of_segment[segment] -= 1;
        Some((segment, index))
    }

    pub(super) fn give(&mut self, segment: usize, index: u32) {
        if self.of_segment.len() <= segment {
            self.of_segment.resize(segment + 1, 0);
        }
        self.of_segment[segment] += 1;
        self.free.push((segment, index));
    }

    /// One more copy of a message holds this extent: said of all that a start has found.
    pub(super) fn hold(&mut self, segment: SegmentId, index: u32) {
        *self.shared.entry((segment, index)).or_default() += 1;
    }

    /// All copies have been found: those that hold their extents alone need no count.
    pub(super) fn keep_shared(&mut self) {
        self.shared.retain(|_, copies| *copies > 1);
    }

    /// Is one of `places` held by other copies too, or was until they let it go?
    pub(super) fn are_shared(&self, places: &[ExtentPlace]) -> bool {
        places.iter().any(|place| self.shared.contains_key(&(place.segment, place.index)))
    }

    /// This extent is not given out again before the next start.
    pub(super) fn keep(&mut self, segment: SegmentId, index: u32) {
        self.kept.insert((segment, index));
    }

    /// A copy holds this extent no more; true when no other does.
    pub(super) fn let_go(&mut self, segment: SegmentId, index: u32) -> bool {
        if self.kept.contains(&(segment, index)) {
            return false;
        }
        let Some(copies) = self.shared.get_mut(&(segment, index)) else { return true };
        *copies -= 1;
        let is_free = *copies == 0;
        if is_free {
            self.shared.remove(&(segment, index));
        }
        is_free
    }

    /// Nothing of this segment is given out any more.
    pub(super) fn forget(&mut self, segment: usize) {
        self.free.retain(|(free, _)| *free != segment);
        if let Some(count) = self.of_segment.get_mut(segment) {
            *count = 0;
        }
    }

    fn of(&self, segment: usize) -> u32 {
        self.of_segment.get(segment).copied().unwrap_or(0)
    }
}

impl Queue {
    /// Are there extents for a body of `octets` octets, or can they be made?
    pub(super) fn has_extents_for(&self, octets: u64) -> Result<(), Full> {
        if octets <= limits::INLINE_MESSAGE_OCTETS_MAX {
            return Ok(());
        }
        let wanted = octets.div_ceil(limits::EXTENT_OCTETS);
        let each = self.octets_of(SegmentKind::Extents) / limits::EXTENT_OCTETS;
        let making = self.making.iter().any(|(kind, _)| *kind == SegmentKind::Extents);
        let there = self.extents_free.len() as u64 + if making { each } else { 0 };
        if wanted <= there + self.segments_to_spare() * each { Ok(()) } else { Err(Full::NoSpace) }
    }

    /// Message segments, made or not, that extents may have.
    pub(super) fn segments_to_spare(&self) -> u64 {
        let fresh = self.octets_makeable() / self.options.segment_octets;
        let fresh = if self.make_failing.is_some() { 0 } else { fresh };
        let whole = (self.segments_coming() + self.free.len()) as u64 + fresh;
        whole.saturating_sub(self.segments_reserved() + 1)
    }

    /// Extent segments of which nothing is used: each may become a message segment.
    pub(super) fn extent_segments_free(&self) -> u64 {
        (0..self.segments.len()).filter(|segment| self.is_free_extents(*segment)).count() as u64
    }

    fn is_free_extents(&self, segment: usize) -> bool {
        let live = &self.segments[segment];
        live.header.kind == SegmentKind::Extents
            && live.header.segment.directory() == self.options.shard.0
            && live.geometry.octets >= self.options.segment_octets
            && live.syncs.is_empty()
            && !live.poisoned
            && live.dirty_since.is_none()
            && live.geometry.extents() == self.extents_free.of(segment)
    }

    /// A free segment of the other kind, taken out of use; the header of what it becomes.
    pub(super) fn remake_as(&mut self, kind: SegmentKind) -> Option<Header> {
        let segment = match kind {
            SegmentKind::Messages => {
                (0..self.segments.len()).find(|segment| self.is_free_extents(*segment))?
            }
            // The one that was freed first: its octets are on disk anyway.
            SegmentKind::Extents => {
                let growth = self.octets_of(kind).saturating_sub(self.options.segment_octets);
                if self.octets_makeable() < growth || self.free.is_empty() {
                    return None;
                }
                self.free.remove(0)
            }
        };
        self.extents_free.forget(segment);
        let live = &mut self.segments[segment];
        let old = live.header;
        live.is_remade = true;
        for name in std::mem::take(&mut live.names) {
            if let Name::Domain(number) = name {
                self.index.unname(number);
            }
        }
        let fresh = self.fresh_header(kind, old.segment);
        let (generation, id_block_max) = (old.generation + 1, old.id_block_max);
        Some(Header { generation, id_block_max, ..fresh })
    }
}
