//! The scan of a table at a start: slots to groups.
//!
//! Owns: which slots belong together. Never: what follows from it (`recovery`).

use super::batch::count;
use super::format::{Entry, ExtentPlace, MessageSlot, Slot, SlotFault, SlotOctets, TablePlace};
use crate::limits;

/// What the scan of a table finds.
pub(super) enum Found {
    /// A whole group.
    Group {
        message_slot: u32,
        message: MessageSlot,
        entries: Vec<Entry>,
        extents: Vec<ExtentPlace>,
    },
    /// Entries without a message slot that fits.
    Broken { first: u32, entries: Vec<Entry>, behind: bool },
    /// A slot before the durable point that cannot be read.
    BadSlot,
}

/// The durable point as the last of `slots`, from index `first` on, that tells of it knows it.
pub(super) fn newest_durable_point(
    slots: &[SlotOctets],
    first: u32,
    place: TablePlace,
) -> Option<u32> {
    let indexed = slots.iter().enumerate().rev();
    indexed.map(|(i, octets)| (first + count(i), octets)).find_map(|(index, octets)| {
        match Slot::decode(octets, place, index) {
            Ok(Slot::Message(message)) if message.durable_slots > 0 => {
                Some(message.durable_slots.min(index))
            }
            Ok(Slot::Message(_) | Slot::Entry(_) | Slot::Extents(_)) | Err(_) => None,
        }
    })
}

/// The scan of one table, slot by slot.
pub(super) struct Scan {
    pub(super) durable: u32,
    first: u32,
    entries: Vec<Entry>,
    extents: Vec<ExtentPlace>,
    extent_slots: u32,
    /// Behind the last slot of the last whole group.
    end: u32,
    /// Behind the last octet that a whole group uses.
    pub(super) body_end: u64,
    /// First slot of what does not hold together.
    spoiled: Option<u32>,
    /// Something stands behind the clean part: no more appends.
    pub(super) unclean: bool,
    /// Groups behind the durable point that do not hold together, and such with wrong octets.
    pub(super) torn_groups: u64,
    pub(super) torn_bodies: u64,
    /// Slots before it that cannot be read.
    pub(super) bad_slots: u64,
}

impl Scan {
    pub(super) fn new(durable: u32) -> Self {
        Self {
            durable,
            first: 0,
            entries: Vec::new(),
            extents: Vec::new(),
            extent_slots: 0,
            end: 0,
            body_end: 0,
            spoiled: None,
            unclean: false,
            torn_groups: 0,
            torn_bodies: 0,
            bad_slots: 0,
        }
    }

    pub(super) fn take(&mut self, index: u32, slot: Result<Slot, SlotFault>) -> Vec<Found> {
        let open = !self.entries.is_empty() || self.extent_slots > 0;
        match slot {
            Ok(Slot::Entry(entry)) => {
                let joins = self.extent_slots == 0
                    && self.entries.last().is_none_or(|last| {
                        last.mid == entry.mid
                            && last.copy == entry.copy
                            && last.distance == entry.distance + 1
                    });
                let before = if open && !joins { self.close() } else { Vec::new() };
                if self.entries.is_empty() {
                    self.first = index;
                }
                self.entries.push(entry);
                before
            }
            Ok(Slot::Extents(part)) => {
                if !open {
                    self.first = index;
                }
                self.extent_slots += 1;
                self.extents.extend(part.places);
                Vec::new()
            }
            Ok(Slot::Message(message)) => self.message(index, message),
            Err(fault) => {
                let mut found = if open { self.close() } else { Vec::new() };
                if index < self.durable {
                    self.spoil(index);
                    found.push(Found::BadSlot);
                } else if fault == SlotFault::Bad {
                    self.spoil(index);
                }
                found
            }
        }
    }

    fn message(&mut self, index: u32, message: MessageSlot) -> Vec<Found> {
        let octets = message.body_octets.div_ceil(limits::EXTENT_OCTETS);
        let extents_right = self.extents.len() as u64 == u64::from(message.extents)
            && self.extent_slots == message.extent_slots
            && (message.extents == 0 || octets == u64::from(message.extents));
        let fits = extents_right
            && self.entries.len() as u64 == u64::from(message.entries)
            && message.entries > 0
            && self.first + message.group_slots() == index + 1
            && self.entries.iter().all(|e| e.mid == message.mid && e.copy == message.copy)
            && self.entries.first().is_some_and(|e| self.first + e.distance == index);
        if !fits {
            if self.entries.is_empty() {
                self.first = index;
            }
            self.extent_slots += 1;
            return self.close();
        }
        if self.end != self.first {
            // Slots were skipped: what stands here was stored by a commit that came only in part.
            // The durable point must stay before the gap, or it would look like damage.
            self.spoil(self.end);
        }
        self.end = index + 1;
        self.extent_slots = 0;
        vec![Found::Group {
            message_slot: index,
            message,
            entries: std::mem::take(&mut self.entries),
            extents: std::mem::take(&mut self.extents),
        }]
    }

    fn close(&mut self) -> Vec<Found> {
        self.extents.clear();
        self.extent_slots = 0;
        self.spoil(self.first);
        let entries = std::mem::take(&mut self.entries);
        vec![Found::Broken { first: self.first, entries, behind: self.first >= self.durable }]
    }

    pub(super) fn end(&mut self) -> Vec<Found> {
        let open = !self.entries.is_empty() || self.extent_slots > 0;
        if open { self.close() } else { Vec::new() }
    }

    pub(super) fn spoil(&mut self, slot: u32) {
        self.unclean = true;
        self.spoiled = Some(self.spoiled.map_or(slot, |before| before.min(slot)));
    }

    pub(super) fn reach(&mut self, message: &MessageSlot) {
        let envelope_end = message.head_offset + u64::from(message.envelope_octets);
        let body_end = if message.extents == 0 {
            message.body_offset.saturating_add(message.body_octets)
        } else {
            0
        };
        self.body_end = self.body_end.max(envelope_end).max(body_end);
    }

    /// How far the durable point may go: never over what does not hold together behind it, or
    /// the next start would take it for damage.
    pub(super) fn clean_end(&self) -> u32 {
        self.spoiled.map_or(self.end, |spoiled| spoiled.min(self.end)).max(self.durable)
    }
}
