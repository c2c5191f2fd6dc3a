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
//! both count. A damaged copy counts when there is no other, and one in a segment whose sync fails
//! when there is none elsewhere.
//!
//! A copy that cannot be read does not count before a start that can, for it may be the torn rest
//! of a commit. Until then the others are kept as they are: that start will ask them.

use hashbrown::{HashMap, HashSet};

use super::super::format::{SegmentKind, Slot, State};
use super::super::report::RecoveryCase;
use super::super::segment::Medium;
use super::Opening;
use crate::mail::{Handle, Mid, Rid};

/// Recipients that have copies.
#[derive(Default)]
struct Copies {
    /// All of them.
    all: HashSet<(Mid, Rid)>,
    /// Those of which a copy is settled, and in which segment.
    settled: HashMap<(Mid, Rid), usize>,
}

/// What decides which copy counts: the highest one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Rank {
    is_whole: bool,
    /// Its segment takes syncs.
    is_durable: bool,
    in_flight: bool,
    number: u16,
}

/// An unsettled copy of a recipient.
struct Copy {
    recipient: (Mid, Rid),
    segment: usize,
    rank: Rank,
}

impl<M: Medium> Opening<'_, M> {
    /// Of several copies of a recipient one counts; the others are marked as moved.
    pub(super) fn supersede(&mut self) {
        let copies = self.copies();
        if copies.all.is_empty() {
            return;
        }
        self.sync_tables();
        let mut handles = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.queue.walk(at, 1 << 16, &mut handles);
        }
        let mut highest: HashMap<(Mid, Rid), Rank> = HashMap::new();
        for copy in handles.iter().flat_map(|handle| self.copies_of(*handle)) {
            if copies.all.contains(&copy.recipient) {
                let highest = highest.entry(copy.recipient).or_default();
                *highest = copy.rank.max(*highest);
            }
        }
        let mut counted = HashMap::new();
        let mut come_back = Vec::new();
        for handle in handles {
            for Copy { recipient, segment, rank } in self.copies_of(handle) {
                let Some(highest) = highest.get(&recipient) else { continue };
                let is_over =
                    copies.settled.contains_key(&recipient) || counted.contains_key(&recipient);
                if *highest <= rank && !is_over {
                    counted.insert(recipient, segment);
                } else if self.queue.superseded(handle, recipient.1) {
                    let ((mid, rid), number) = (recipient, rank.number);
                    let text = format!("MID {mid} RID {rid}: copy {number} does not count");
                    self.recovered.note(RecoveryCase::Superseded, text);
                    if !rank.is_durable {
                        come_back.push(recipient);
                    }
                }
            }
        }
        // Their marks do not become durable: who can tell what became of them is kept.
        for recipient in come_back {
            let tells = counted.get(&recipient).or(copies.settled.get(&recipient));
            if let Some(segment) = tells {
                self.queue.segments[*segment].has_damage = true;
            }
        }
    }

    /// The copy that counts may stand in the page cache only, as after kill -9 in the middle of its
    /// commit. It is on disk before another one is marked as moved, or it does not count.
    fn sync_tables(&mut self) {
        for (segment, file) in self.queue.segments.iter_mut().zip(&self.files) {
            let has_table = segment.header.kind == SegmentKind::Messages;
            if has_table && !segment.poisoned && self.medium.sync(file).is_err() {
                segment.poisoned = true;
            }
        }
    }

    fn copies_of(&self, handle: Handle) -> Vec<Copy> {
        let Some(record) = self.queue.index.get(handle) else { return Vec::new() };
        let segment = usize::from(record.segment);
        let live = &self.queue.segments[segment];
        let slots = record.first_slot..record.first_slot + u32::from(record.entries);
        let copy = |slot| {
            let word = live.state(slot);
            let Ok(Slot::Entry(entry)) = live.slot(slot) else { return None };
            let rank = Rank {
                is_whole: word.state != State::Damaged,
                is_durable: !live.poisoned,
                in_flight: word.in_flight,
                number: entry.copy,
            };
            let recipient = (entry.mid, entry.rid);
            (!word.state.is_settled()).then_some(Copy { recipient, segment, rank })
        };
        slots.filter_map(copy).collect()
    }

    fn copies(&mut self) -> Copies {
        let mut copies = Copies::default();
        let mut mids = HashSet::new();
        for (segment, first, entries) in std::mem::take(&mut self.copies) {
            let live = &mut self.queue.segments[segment];
            for slot in first..first + entries {
                let Ok(Slot::Entry(entry)) = live.slot(slot) else { continue };
                mids.insert(entry.mid);
                copies.all.insert((entry.mid, entry.rid));
                // What it was made of may stand, unmarked, where nothing can be read now.
                let is_settled = live.state(slot).state.is_settled();
                live.has_damage |= !is_settled && !self.unread.is_empty();
            }
        }
        if mids.is_empty() {
            return copies;
        }
        let slots_read = &self.slots_read;
        for (position, live) in self.queue.segments.iter_mut().enumerate() {
            for slot in 0..slots_read.get(&position).copied().unwrap_or(0) {
                if !mids.contains(&live.mid(slot)) {
                    continue;
                }
                let Ok(Slot::Entry(entry)) = live.slot(slot) else { continue };
                live.has_damage |= self.left.contains(&entry.mid);
                match live.state(slot).state {
                    State::Delivered | State::Bounced | State::Discarded | State::Deleted => {
                        copies.settled.insert((entry.mid, entry.rid), position);
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
