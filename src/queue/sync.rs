//! Syncs: results of effects, state words made durable, and what a failure poisons.
//!
//! Owns: when a segment is synced, what a good sync makes durable, and the end of trust after a
//! bad one. Never: a sync that is begun on a segment that failed one.
//!
//! Diagnostics: a poisoned segment is counted in [`super::Usage`].

use std::io;

use super::format::{SegmentKind, Slot};
use super::live::{RunningSync, Segment};
use super::{Effect, EffectId, Event, Purpose, Queue, STATE_SYNC_MS};
use crate::mail::Now;

impl Queue {
    /// Reports that an [`Effect::Write`] (of all its octets) or an [`Effect::Sync`] was done. It
    /// may enter a commit: hear of it by [`Queue::poll_event`] before anything else is done, or a
    /// recipient is settled that nobody has counted yet.
    pub fn handle_done(&mut self, id: EffectId, result: io::Result<()>) {
        let Some(purpose) = self.purposes.remove(&id) else {
            unreachable!("an effect was reported that is not under way")
        };
        let ok = result.is_ok() && self.took_stores(purpose);
        match purpose {
            Purpose::Make(_) | Purpose::Read => {
                unreachable!("the results of makings and readings have their own ways in")
            }
            Purpose::CommitWrite(segment) => {
                if !ok {
                    self.poison(segment);
                }
                self.commit_written(ok);
            }
            Purpose::CommitSync(segment) | Purpose::StateSync(segment) => {
                self.sync_ended(segment, id, ok);
            }
            Purpose::Recycle(segment) => {
                self.recycling = false;
                self.sync_ended(segment, id, ok);
                if ok {
                    // First in turn: its dead octets may not have been written back yet.
                    self.spares.push_front(segment);
                }
            }
        }
    }

    /// Of two syncs of a segment the later one counts when the one before it has ended, and it has
    /// failed when that one has: the kernel may have told it alone of octets that both wrote.
    fn sync_ended(&mut self, segment: usize, id: EffectId, ok: bool) {
        let syncs = &mut self.segments[segment].syncs;
        let Some(place) = syncs.iter().position(|sync| sync.id == id) else {
            unreachable!("a sync has ended that was not begun")
        };
        syncs[place].has_ended = true;
        if !ok {
            syncs.range_mut(place..).for_each(|sync| sync.failed = true);
            self.poison(segment);
        }
        while self.segments[segment].syncs.front().is_some_and(|sync| sync.has_ended) {
            let Some(first) = self.segments[segment].syncs.pop_front() else { return };
            let (is_of_commit, ok) = (first.is_of_commit, !first.failed);
            self.synced(segment, first);
            if is_of_commit {
                self.commit_synced(ok);
            }
        }
    }

    /// Was all that was stored into the segment that was synced taken by its file?
    fn took_stores(&mut self, purpose: Purpose) -> bool {
        let (Purpose::CommitSync(synced) | Purpose::StateSync(synced) | Purpose::Recycle(synced)) =
            purpose
        else {
            return true;
        };
        let live = &self.segments[synced];
        let Some(error) = live.store_failure() else { return true };
        if !live.poisoned {
            let (segment, error) = (live.header.segment, error.to_string());
            self.events.push_back(Event::Unstorable { segment, error });
            // Now: another sync of it may end before this one counts.
            self.poison(synced);
        }
        false
    }

    /// Tells the queue the time: words that changed long enough ago are synced.
    pub fn tick(&mut self, now: Now) {
        self.now = now.mono;
        self.forward_tick(now);
        if self.ids.wants_blocks()
            && let Some(active) = self.active
        {
            self.ids.take_blocks(3);
            self.segments[active].dirty_since.get_or_insert(now.mono);
        }
        for segment in 0..self.segments.len() {
            let due = self.segments[segment]
                .dirty_since
                .is_some_and(|since| now.mono.since_ms(since) >= STATE_SYNC_MS);
            if due {
                self.start_sync(segment, Purpose::StateSync(segment));
            }
        }
    }

    /// Syncs every changed segment now: for a clean end.
    pub fn flush(&mut self) {
        for segment in 0..self.segments.len() {
            if self.segments[segment].dirty_since.is_some() {
                self.start_sync(segment, Purpose::StateSync(segment));
            }
        }
    }

    /// True when nothing waits for the disk.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let dirty = |s: &Segment| !s.poisoned && (s.dirty_since.is_some() || !s.syncs.is_empty());
        let commits = self.commits().next().is_some();
        self.pending.is_empty() && !commits && !self.segments.iter().any(dirty)
    }

    /// Starts a sync, with a new header copy where one is needed, unless the segment is poisoned.
    /// Beside another one only a commit is synced: what is dirty stays so, and its turn comes with
    /// the next tick.
    pub(super) fn start_sync(&mut self, segment: usize, purpose: Purpose) {
        let (block_max, now) = (self.ids.block_max(), self.now);
        let is_of_commit = matches!(purpose, Purpose::CommitSync(_));
        let live = &mut self.segments[segment];
        if live.poisoned {
            live.dirty_since = None;
            return;
        }
        if !live.syncs.is_empty() && !is_of_commit {
            return;
        }
        // A commit says in its slots how far those came that had ended when it was begun. The
        // header says it too, now and then: if a page of the table is lost to the medium, what it
        // held is missed. The
        // first commit of a use renews the copy that is still of the use before.
        let is_recent = live.header.durable_slots > 0
            && live.header.id_block_max == block_max
            && now.since_ms(live.header_at) < STATE_SYNC_MS;
        // While one copy is on its way, the other is all there is.
        let is_open = live.syncs.iter().any(|sync| sync.has_header);
        let has_header = !(is_open || is_of_commit && is_recent);
        if has_header {
            // Slots of a commit that is being written are not stored yet; the durable point is
            // what the syncs before this one covered.
            live.store_header(block_max, now);
        }
        // New blocks of ids are in no copy yet: the next sync stores one.
        let lacks_blocks = live.header.id_block_max != block_max;
        live.dirty_since = lacks_blocks.then(|| live.dirty_since.unwrap_or(now));
        let (extents, releases) =
            (std::mem::take(&mut live.extents_settled), std::mem::take(&mut live.releases));
        let (name, id_block_max) = (live.header.segment, live.header.id_block_max);
        let id = self.effect_id(purpose);
        self.segments[segment].syncs.push_back(RunningSync {
            id,
            is_of_commit,
            has_header,
            id_block_max,
            extents,
            releases,
            has_ended: false,
            failed: false,
        });
        self.effects.push_back(Effect::Sync { id, segment: name });
    }

    fn synced(&mut self, segment: usize, sync: RunningSync) {
        if sync.failed {
            // What waits for its words waits for ever: they never become durable.
            self.segments[segment].releases.extend(sync.releases);
            return;
        }
        self.ids.reserved(sync.id_block_max);
        self.note_durable_point(segment);
        for extent in sync.extents {
            self.free_extent(extent);
        }
        for released in sync.releases {
            self.segments[released].holds -= 1;
            self.free_if_empty(released);
        }
        self.free_if_empty(segment);
    }

    /// Up to where a segment is synced: not over a commit that has not come to its end, which may
    /// yet fail for its extents.
    pub(super) fn note_durable_point(&mut self, segment: usize) {
        // Those that are synced stand before the one that is written.
        let mut open = self.syncing.iter().chain(&self.writing);
        let first = open.find(|commit| commit.segment == segment);
        let live = &mut self.segments[segment];
        (live.header.durable_slots, live.header.durable_body_end) = match first {
            Some(commit) => (commit.first_slot, commit.body_start),
            None => (live.next_slot, live.next_body),
        };
    }

    pub(super) fn poison(&mut self, segment: usize) {
        if !self.segments[segment].poisoned {
            self.keep_extents_of(segment);
        }
        self.segments[segment].poisoned = true;
        self.segments[segment].dirty_since = None;
        if self.active == Some(segment) {
            self.active = None;
            self.segments[segment].seal();
        }
        self.extents_free.forget(segment);
    }

    /// With a power cut a recipient may come back that was settled here. The rest of its message
    /// may be in a copy elsewhere: its body is not given up with that.
    fn keep_extents_of(&mut self, segment: usize) {
        let live = &self.segments[segment];
        if live.header.kind != SegmentKind::Messages {
            return;
        }
        for slot in 0..live.next_slot {
            if let Ok(Slot::Extents(part)) = live.slot(slot) {
                part.places.iter().for_each(|p| self.extents_free.keep(p.segment, p.index));
            }
        }
    }
}
