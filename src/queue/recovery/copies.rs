//! Several copies of one recipient: which one counts.
//!
//! Owns: the choice, and the extents that are free after it. Never: the reading of tables.
//!
//! The highest copy counts, for changes are made in it first. A copy that is marked as moved
//! does not: another one stands elsewhere, or its commit failed. Where any copy says that the
//! recipient is settled, it is: the copy may be older on disk than that. Where one says that it
//! is in flight, that one counts, whatever its number, so that the recipient is called uncertain:
//! the commit of a higher copy may have failed and the disk kept it all the same, as it stood
//! before the flight began. For the same reason two copies may have the same number; never do
//! both count.
//!
//! A copy that cannot be read does not count before a start that can, for it may be the torn rest
//! of a commit. Until then the others are kept as they are: that start will ask them.

use hashbrown::{HashMap, HashSet};

use super::super::format::{SegmentKind, Slot, State};
use super::super::report::RecoveryCase;
use super::super::segment::Medium;
use super::Opening;
use crate::mail::{Mid, Rid};

/// Recipients that have copies.
#[derive(Default)]
struct Copies {
    /// All of them.
    all: HashSet<(Mid, Rid)>,
    /// Those of which a copy is settled.
    settled: HashSet<(Mid, Rid)>,
}

/// Whether a copy was in flight, and its number.
type Rank = (bool, u16);

impl<M: Medium> Opening<'_, M> {
    /// Of several copies of a recipient one counts; the others are marked as moved.
    pub(super) fn supersede(&mut self) {
        let copies = self.copies();
        if copies.all.is_empty() {
            return;
        }
        let mut handles = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.queue.walk(at, 1 << 16, &mut handles);
        }
        let mut highest: HashMap<(Mid, Rid), Rank> = HashMap::new();
        for (rid, mid, rank) in handles.iter().flat_map(|handle| self.queue.copies_of(*handle)) {
            if copies.all.contains(&(mid, rid)) {
                let highest = highest.entry((mid, rid)).or_default();
                *highest = rank.max(*highest);
            }
        }
        let mut counted = HashSet::new();
        for handle in handles {
            for (rid, mid, rank) in self.queue.copies_of(handle) {
                let recipient = (mid, rid);
                let Some(highest) = highest.get(&recipient) else { continue };
                let counts = *highest <= rank
                    && !copies.settled.contains(&recipient)
                    && counted.insert(recipient);
                let (_, copy) = rank;
                if !counts && self.queue.superseded(handle, rid) {
                    let text = format!("MID {mid} RID {rid}: copy {copy} does not count");
                    self.recovered.note(RecoveryCase::Superseded, text);
                }
            }
        }
    }

    fn copies(&mut self) -> Copies {
        let mut copies = Copies::default();
        let mut mids = HashSet::new();
        for (segment, first, entries) in std::mem::take(&mut self.copies) {
            let live = &self.queue.segments[segment];
            for slot in first..first + entries {
                let Ok(Slot::Entry(entry)) = live.slot(slot) else { continue };
                mids.insert(entry.mid);
                copies.all.insert((entry.mid, entry.rid));
            }
        }
        if mids.is_empty() {
            return copies;
        }
        for live in &mut self.queue.segments {
            if live.header.kind != SegmentKind::Messages {
                continue;
            }
            for slot in 0..live.geometry.slots {
                if !mids.contains(&live.mid(slot)) {
                    continue;
                }
                let Ok(Slot::Entry(entry)) = live.slot(slot) else { continue };
                live.has_damage |= !self.unread.is_empty();
                match live.state(slot).state {
                    State::Delivered | State::Bounced | State::Discarded | State::Deleted => {
                        copies.settled.insert((entry.mid, entry.rid));
                    }
                    State::Ready | State::Deferred => {}
                    State::Poison | State::Damaged | State::Moved => {}
                }
            }
        }
        copies
    }

    /// Extents that no message uses.
    pub(super) fn derive_extents(&mut self) {
        let mut used = HashSet::new();
        for (segment, first, entries, places) in std::mem::take(&mut self.large) {
            let live = &self.queue.segments[segment];
            if (first..first + entries).any(|slot| !live.state(slot).state.is_settled()) {
                for place in &places {
                    used.insert((place.segment, place.index));
                    self.queue.extents_free.hold(place.segment, place.index);
                }
            }
        }
        self.queue.extents_free.keep_shared();
        self.take_over(&used);
        let own = self.queue.options.shard.0;
        for (position, segment) in self.queue.segments.iter().enumerate() {
            let name = segment.header.segment;
            // An adopted directory goes back to its shard one day: what a message of another
            // directory kept there, nobody would find then. And what a table says that could not
            // be read is not known.
            let known = name.directory() == own && !self.unread.contains(&own);
            let usable = known && !segment.poisoned;
            if segment.header.kind == SegmentKind::Extents && usable {
                let all = (0..segment.geometry.extents()).rev();
                let free = all.filter(|index| !used.contains(&(name, *index)));
                free.for_each(|index| self.queue.extents_free.give(position, index));
            }
        }
    }
}
