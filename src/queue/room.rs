//! Room: which segments there are, which may be made, and which may be used again.
//!
//! Owns: the bound on the octets of all segments, the reserve, the spare segments, free extents,
//! and whether new mail is taken. Never: a segment that holds anything unsettled or unsynced is
//! given up.
//!
//! Spares are recycled or made ahead of need, so that no append waits for an allocation. The
//! last segments are a reserve: copying mail forward may use all of it, for that gives space
//! back; reports all but one; new mail none.
//!
//! Diagnostics: [`Event::Intake`] when new mail is no longer taken, or taken again.
//!
//! Limits: `octets_max` of [`super::Options`].

use std::io;

use super::format::{self, ExtentPlace, Header, SegmentId, SegmentKind};
use super::live::{Name, Segment};
use super::segment::Mapping;
use super::{
    COMMITS_FAILED_MAX, Closed, Effect, EffectId, Event, Full, MAKE_PAUSE_MS, NewMessage, Purpose,
    Queue, TROUBLE_PAUSE_MS,
};
use crate::limits;
use crate::mail::Mono;

/// A spool of at least this many segments keeps at least [`RESERVE_MIN`] in reserve; a smaller
/// one a quarter.
const RESERVE_FULL_FROM: u64 = 16;
const RESERVE_MIN: u64 = 4;

/// The reserve is one part in this many: 5 %.
const RESERVE_PARTS: u64 = 20;

/// Room for new mail below which it is not taken, if a segment is large enough for that.
const INTAKE_OCTETS_MIN: u64 = 1 << 20;

/// Who asks for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// A client's message.
    New,
    /// A report on a message.
    Report,
    /// A message that is copied forward.
    Forward,
}

impl Claim {
    pub(super) fn of(message: &NewMessage) -> Self {
        if message.cause.is_some() { Self::Report } else { Self::New }
    }
}

impl Queue {
    /// Reports that an [`Effect::Make`] was done: the mapping of the new segment.
    pub fn handle_made(&mut self, id: EffectId, result: io::Result<Mapping>) {
        let Some(Purpose::Make(kind)) = self.purposes.remove(&id) else {
            unreachable!("an effect was reported that is no making under way")
        };
        let position = self.making.iter().position(|(made, _)| *made == kind);
        let Some(position) = position else { unreachable!("nothing of this kind is being made") };
        let (kind, segment) = self.making.swap_remove(position);
        let again = self.segments.iter().position(|s| s.header.segment == segment);
        let map = match result {
            Ok(map) => map,
            Err(error) if again.is_none() && error.kind() == io::ErrorKind::AlreadyExists => {
                // Not our file, or one whose making failed when it stood there already: what it
                // is, the next start tells. The next number is as good.
                return;
            }
            Err(_) => {
                self.make_failing = Some(Mono(self.now.0 + MAKE_PAUSE_MS));
                if let Some(again) = again {
                    // Nobody knows what it is now; it holds nothing.
                    self.poison(again);
                } else if self.last_segment_number == segment.number() {
                    // No file has this name: a gap would look like a segment that was lost.
                    self.last_segment_number -= 1;
                }
                return;
            }
        };
        self.make_failing = None;
        let before = again.map_or(self.fresh_header(kind, segment), |again| {
            let Header { generation, id_block_max, .. } = self.segments[again].header;
            let fresh = self.fresh_header(kind, segment);
            Header { generation: generation + 1, id_block_max, ..fresh }
        });
        let mut made = Segment::new(before, map);
        let new = again.unwrap_or(self.segments.len());
        match kind {
            SegmentKind::Messages => {
                made.appendable = true;
                self.spares.push_back(new);
            }
            SegmentKind::Extents => {
                let extents = made.geometry.extents();
                (0..extents).rev().for_each(|index| self.extents_free.give(new, index));
            }
        }
        match again {
            Some(again) => self.segments[again] = made,
            None => self.segments.push(made),
        }
    }

    /// Body octets that may still be taken for `claim`, counting segments that could be made.
    pub(super) fn room(&self, claim: Claim) -> u64 {
        if self.now < self.trouble_until {
            return 0;
        }
        let geometry = self.message_geometry();
        let body_max = geometry.octets - geometry.body_offset;
        let active = self.active.map_or(0, |active| {
            let segment = &self.segments[active];
            let slot_share = body_max / u64::from(segment.geometry.slots);
            segment.body_left().min(u64::from(segment.slots_left()) * slot_share)
        });
        let whole = (self.segments_coming() + self.free.len()) as u64 + self.makeable();
        let kept = match claim {
            Claim::New => self.segments_reserved(),
            Claim::Report => self.segments_reserved().min(1),
            Claim::Forward => 0,
        };
        (active + whole * body_max).saturating_sub(kept * body_max)
    }

    /// Is there room for a message of about `octets` octets? For the answer to MAIL; what comes
    /// at the same time may still take the room.
    ///
    /// # Errors
    /// See [`Full`].
    pub fn has_room(&self, octets: u64) -> Result<(), Full> {
        if octets > self.options.octets_max {
            return Err(Full::TooLarge);
        }
        self.has_extents_for(octets)?;
        let inline = if octets > limits::INLINE_MESSAGE_OCTETS_MAX { 0 } else { octets };
        if self.closed.is_some() || self.pending_octets + inline > self.room(Claim::New) {
            return Err(Full::NoSpace);
        }
        Ok(())
    }

    /// Segments that new mail never gets. While none can be made, those that there are count:
    /// the others are not there to be kept.
    pub(super) fn segments_reserved(&self) -> u64 {
        let all = if self.make_failing.is_some() {
            self.segments.len() as u64
        } else {
            self.options.octets_max / self.options.segment_octets
        };
        if all < RESERVE_FULL_FROM { all / 4 } else { (all / RESERVE_PARTS).max(RESERVE_MIN) }
    }

    /// Tells when new mail is no longer taken, and when it is again.
    pub(super) fn watch_intake(&mut self) {
        let geometry = self.message_geometry();
        let least = INTAKE_OCTETS_MIN.min((geometry.octets - geometry.body_offset) / 8);
        // Opening takes twice as much as staying open: no flutter at the edge.
        let least = if self.closed.is_some() { 2 * least } else { least };
        let room = self.room(Claim::New).saturating_sub(self.pending_octets);
        let closed = if room >= least {
            None
        } else if self.now < self.trouble_until {
            Some(Closed::Failing)
        } else if self.make_failing.is_some() {
            Some(Closed::NoSegment)
        } else {
            Some(Closed::Limit)
        };
        if closed.is_some() != self.closed.is_some() {
            self.events.push_back(Event::Intake(closed));
        }
        self.closed = closed;
    }

    /// Counts segments in which commits failed in a row: a disk that takes nothing must not be
    /// given one after the other.
    pub(super) fn note_commit(&mut self, good: bool, segment: usize) {
        if good {
            self.commits_failed = 0;
            return;
        }
        // What stands behind a commit that poisoned its segment fails with it.
        let is_known = self.failed_last.replace(segment) == Some(segment);
        if !(is_known && self.segments[segment].poisoned) {
            self.commits_failed += 1;
        }
        if self.commits_failed >= COMMITS_FAILED_MAX {
            self.trouble_until = Mono(self.now.0 + TROUBLE_PAUSE_MS);
        }
    }

    /// Message segments that will take appends without more being asked for.
    pub(super) fn segments_coming(&self) -> usize {
        let making = self.making.iter().filter(|(kind, _)| *kind == SegmentKind::Messages).count();
        self.spares.len() + usize::from(self.recycling) + making
    }

    /// Message segments that may still be made.
    pub(super) fn makeable(&self) -> u64 {
        if self.make_failing.is_some() {
            return 0;
        }
        self.octets_makeable() / self.options.segment_octets + self.extent_segments_free()
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
                // Never smaller than a message segment, which may take its place.
                let extents = self.options.segment_octets.div_ceil(limits::EXTENT_OCTETS);
                format::HEADERS_END + extents * limits::EXTENT_OCTETS
            }
        }
    }

    pub(super) fn fresh_header(&self, kind: SegmentKind, segment: SegmentId) -> Header {
        Header::first(kind, self.options.spool, segment, self.octets_of(kind))
    }

    /// The shard directory of a segment.
    pub(super) fn directory_of(&self, segment: usize) -> u8 {
        self.segments[segment].header.segment.directory()
    }

    pub(super) fn make(&mut self, kind: SegmentKind) {
        let under_way = self.making.iter().any(|(making, _)| *making == kind);
        let paused = self.make_failing.is_some_and(|until| self.now < until);
        let octets = self.octets_of(kind);
        let may = match kind {
            // A file system that took nothing is asked for something that would fit.
            SegmentKind::Messages => {
                self.make_failing.is_none() || self.octets_makeable() >= octets
            }
            SegmentKind::Extents => self.segments_to_spare() > 0,
        };
        if under_way || paused || !may {
            return;
        }
        let header = if self.octets_makeable() >= octets || self.make_failing.is_some() {
            self.last_segment_number += 1;
            let segment = SegmentId::new(self.options.shard.0, self.last_segment_number);
            self.fresh_header(kind, segment)
        } else {
            let Some(header) = self.remake_as(kind) else { return };
            header
        };
        let segment = header.segment;
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

    /// Sees to it that enough segments stand ready behind the active one.
    pub(super) fn prepare_spares(&mut self) {
        let coming = self.segments_coming();
        let wanted = self.spares_wanted();
        if coming < wanted && !self.recycling && self.reuse_free() {
            return;
        }
        // While none could be made it is tried now and then, wanted or not: otherwise nobody
        // would notice that there is space again.
        if (coming < wanted && self.free.is_empty()) || self.make_failing.is_some() {
            self.make(SegmentKind::Messages);
        }
    }

    fn spares_wanted(&self) -> usize {
        let Some(active) = self.active else { return self.options.segments_ahead.max(1) };
        if self.busy {
            return self.options.segments_ahead;
        }
        // An idle engine makes no segment that it may never need.
        let segment = &self.segments[active];
        let bodies = segment.geometry.octets - segment.geometry.body_offset;
        let used = segment.slots_left() < segment.geometry.slots / 16 * 15
            || segment.body_left() < bodies / 16 * 15;
        usize::from(used)
    }

    /// Begins the next use of the most recently freed segment.
    fn reuse_free(&mut self) -> bool {
        let Some(free) = self.free.pop() else { return false };
        for name in self.segments[free].reuse() {
            if let Name::Domain(number) = name {
                self.index.unname(number);
            }
        }
        self.recycling = true;
        self.start_sync(free, Purpose::Recycle(free));
        true
    }

    pub(super) fn free_extent(&mut self, place: ExtentPlace) {
        let found = self.segments.iter().position(|s| s.header.segment == place.segment);
        let own = place.segment.directory() == self.options.shard.0;
        let found = found.filter(|segment| own && !self.segments[*segment].poisoned);
        if let Some(segment) = found
            && self.extents_free.let_go(place.segment, place.index)
        {
            self.extents_free.give(segment, place.index);
        }
    }

    pub(super) fn free_if_empty(&mut self, segment: usize) {
        let live = &self.segments[segment];
        let idle = !live.appendable && live.syncs.is_empty() && !live.poisoned && !live.has_damage;
        let empty = live.live == 0 && live.holds == 0 && live.dirty_since.is_none();
        let settled = live.extents_settled.is_empty();
        let messages = live.header.kind == SegmentKind::Messages && !live.is_remade;
        // One of a shard that is gone is not used again: it may be back at the next start.
        let own = live.header.segment.directory() == self.options.shard.0;
        // What is committed to it counts when the commit has ended.
        let committing = || self.commits().any(|commit| commit.segment == segment);
        let known = || self.free.contains(&segment) || self.is_being_moved(segment);
        if own && idle && empty && settled && messages && !committing() && !known() {
            self.free.push(segment);
        }
    }
}
