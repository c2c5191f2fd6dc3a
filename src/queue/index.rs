//! The index of what is queued: one small record per message and receiving domain.
//!
//! Owns: records, their handles, and the list of each destination in the order they came. Never:
//! states, times or addresses (they are read from the mapped table, or from the disk).
//!
//! Limits: 32 octets a record; a destination's name is kept while a segment names it.

use hashbrown::HashMap;

use crate::mail::{Domain, Handle};

const NONE: u32 = u32::MAX;

/// The recipients of one message in one receiving domain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Slot of the first entry.
    pub(super) first_slot: u32,
    /// Slot of the message.
    pub(super) message_slot: u32,
    /// Number of the destination.
    pub(super) destination: u32,
    previous: u32,
    next: u32,
    /// Entries that are not settled; 0: the record is free.
    pub(super) live: u16,
    /// Entries.
    pub(super) entries: u16,
    /// Position of the segment.
    pub(super) segment: u16,
}

const _: () = assert!(size_of::<Record>() <= 32);

/// What [`Index::insert`] needs to know of a record.
pub(super) struct NewRecord {
    /// Slot of the first entry.
    pub(super) first_slot: u32,
    /// Slot of the message.
    pub(super) message_slot: u32,
    /// Number of the destination.
    pub(super) destination: u32,
    /// Position of the segment.
    pub(super) segment: u16,
    /// Entries.
    pub(super) entries: u16,
    /// Entries that are not settled, at least one.
    pub(super) live: u16,
}

struct Destination {
    domain: Domain,
    head: u32,
    tail: u32,
    handles: u32,
    references: u32,
}

/// All records of a shard.
#[derive(Default)]
pub(super) struct Index {
    records: Vec<Record>,
    free: Vec<u32>,
    destinations: Vec<Option<Destination>>,
    destinations_free: Vec<u32>,
    by_domain: HashMap<Domain, u32>,
}

impl Index {
    /// The number of a destination, with one reference more, taken by a segment that names it.
    pub(super) fn name(&mut self, domain: &Domain) -> u32 {
        if let Some(number) = self.by_domain.get(domain) {
            if let Some(destination) = &mut self.destinations[*number as usize] {
                destination.references += 1;
            }
            return *number;
        }
        let fresh = Destination {
            domain: domain.clone(),
            head: NONE,
            tail: NONE,
            handles: 0,
            references: 1,
        };
        let number = self.destinations_free.pop().unwrap_or_else(|| {
            self.destinations.push(None);
            u32::try_from(self.destinations.len() - 1).unwrap_or(NONE)
        });
        self.destinations[number as usize] = Some(fresh);
        self.by_domain.insert(domain.clone(), number);
        number
    }

    /// The number of a destination that some segment names.
    pub(super) fn known(&self, domain: &Domain) -> Option<u32> {
        self.by_domain.get(domain).copied()
    }

    /// Gives one reference back.
    pub(super) fn unname(&mut self, number: u32) {
        let slot = &mut self.destinations[number as usize];
        let Some(destination) = slot else { return };
        destination.references -= 1;
        if destination.references == 0 {
            assert!(destination.handles == 0, "a segment with queued mail was given up");
            self.by_domain.remove(&destination.domain);
            *slot = None;
            self.destinations_free.push(number);
        }
    }

    /// The domain of a destination.
    pub(super) fn domain(&self, number: u32) -> &Domain {
        match &self.destinations[number as usize] {
            Some(destination) => &destination.domain,
            None => unreachable!("a record names a destination that no segment names"),
        }
    }

    /// Adds a record at the young end of its destination's list.
    pub(super) fn insert(&mut self, new: NewRecord) -> Handle {
        let NewRecord { first_slot, message_slot, destination, segment, entries, live } = new;
        let number = self.free.pop().unwrap_or_else(|| {
            let number = u32::try_from(self.records.len()).unwrap_or(NONE);
            assert!(number != NONE, "more handles than a shard can count");
            number
        });
        let Some(list) = &mut self.destinations[destination as usize] else {
            unreachable!("a record names a destination that no segment names")
        };
        let previous = std::mem::replace(&mut list.tail, number);
        list.handles += 1;
        if previous == NONE {
            list.head = number;
        } else {
            self.records[previous as usize].next = number;
        }
        let record = Record {
            first_slot,
            message_slot,
            destination,
            previous,
            next: NONE,
            live,
            entries,
            segment,
        };
        match self.records.get_mut(number as usize) {
            Some(free) => *free = record,
            None => self.records.push(record),
        }
        Handle(number)
    }

    /// The record of a handle that is in use.
    pub(super) fn get(&self, handle: Handle) -> Option<Record> {
        self.records.get(handle.0 as usize).copied().filter(|record| record.live > 0)
    }

    /// One entry of the handle was settled; true when it was the last, and the handle is gone.
    pub(super) fn settle(&mut self, handle: Handle) -> bool {
        let record = &mut self.records[handle.0 as usize];
        record.live -= 1;
        if record.live > 0 {
            return false;
        }
        let Record { destination, previous, next, .. } = *record;
        if previous != NONE {
            self.records[previous as usize].next = next;
        }
        if next != NONE {
            self.records[next as usize].previous = previous;
        }
        if let Some(list) = &mut self.destinations[destination as usize] {
            list.handles -= 1;
            if list.head == handle.0 {
                list.head = next;
            }
            if list.tail == handle.0 {
                list.tail = previous;
            }
        }
        self.free.push(handle.0);
        true
    }

    /// Appends up to `items_max` handles in use from record `cursor` on; the next cursor, `None`
    /// at the end.
    pub(super) fn walk(&self, cursor: u32, items_max: usize, out: &mut Vec<Handle>) -> Option<u32> {
        let mut at = cursor;
        for record in self.records.iter().skip(cursor as usize).take(items_max) {
            if record.live > 0 {
                out.push(Handle(at));
            }
            at += 1;
        }
        ((at as usize) < self.records.len()).then_some(at)
    }

    /// Appends message slot and handle of the records of a segment among `items_max` records from
    /// `cursor` on; the next cursor, `None` at the end.
    pub(super) fn of_segment(
        &self,
        cursor: u32,
        items_max: usize,
        segment: usize,
        out: &mut Vec<(u32, Handle)>,
    ) -> Option<u32> {
        let mut at = cursor;
        for record in self.records.iter().skip(cursor as usize).take(items_max) {
            if record.live > 0 && usize::from(record.segment) == segment {
                out.push((record.message_slot, Handle(at)));
            }
            at += 1;
        }
        ((at as usize) < self.records.len()).then_some(at)
    }

    /// The entries of a handle stand elsewhere now.
    pub(super) fn relocate(
        &mut self,
        handle: Handle,
        segment: usize,
        first_slot: u32,
        message_slot: u32,
        entries: u16,
    ) {
        let record = &mut self.records[handle.0 as usize];
        record.segment = u16::try_from(segment).unwrap_or(u16::MAX);
        record.first_slot = first_slot;
        record.message_slot = message_slot;
        record.entries = entries;
    }

    /// The oldest handle of a destination.
    pub(super) fn oldest(&self, destination: u32) -> Option<Handle> {
        let head = self.destinations[destination as usize].as_ref()?.head;
        (head != NONE).then_some(Handle(head))
    }

    /// The next younger handle of the same destination.
    pub(super) fn younger(&self, handle: Handle) -> Option<Handle> {
        let next = self.get(handle)?.next;
        (next != NONE).then_some(Handle(next))
    }

    /// Octets of memory in use for records and destinations.
    pub(super) fn octets(&self) -> usize {
        self.records.capacity() * size_of::<Record>()
            + self.free.capacity() * 4
            + self.destinations.capacity() * size_of::<Option<Destination>>()
            + self.by_domain.capacity() * 32
    }
}
