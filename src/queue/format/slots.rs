//! Slots of the table: entries, extents, messages.
//!
//! Owns: their encoding and checksums; the layout is drawn in the parent's table. Never: where
//! they come from.

use super::{
    EXTENTS_PER_SLOT, SLOT_OCTETS, SegmentId, placed_checksum, put, u16_at, u32_at, u64_at,
};
use crate::mail::{Mid, Rid, Wall};

const ENTRY_CHECKED_END: usize = 112;
/// Offset of the durable point in a message slot.
const DURABLE_SLOTS: usize = 100;
const KIND_ENTRY: u8 = 1;
const KIND_MESSAGE: u8 = 2;
const KIND_EXTENTS: u8 = 3;

/// One slot of the table.
pub type SlotOctets = [u8; SLOT_OCTETS];

/// The immutable part of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// NOTIFY bits.
    pub notify: u8,
    /// Copy number: the highest one is valid.
    pub copy: u16,
    /// Recipient id.
    pub rid: Rid,
    /// Message id.
    pub mid: Mid,
    /// Domain, as an index into the segment's names.
    pub domain: u16,
    /// Slots to the message slot.
    pub distance: u32,
    /// Hash of the recipient's address.
    pub recipient_hash: u64,
    /// Hash of the sender's address.
    pub sender_hash: u64,
    /// Where the recipient's record stands.
    pub record_offset: u64,
    /// Its octets.
    pub record_octets: u32,
    /// Its checksum.
    pub record_checksum: u32,
}

/// A message slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageSlot {
    /// See the constants in [`flags`].
    pub flags: u8,
    /// Copy number.
    pub copy: u16,
    /// Entries that belong to it.
    pub entries: u32,
    /// Message id.
    pub mid: Mid,
    /// The message that a report is about.
    pub cause: Option<Mid>,
    /// When it came.
    pub arrival: Wall,
    /// Hash of the sender's address.
    pub sender_hash: u64,
    /// Octets of the body.
    pub body_octets: u64,
    /// Where the envelope begins.
    pub head_offset: u64,
    /// Octets of its head.
    pub head_octets: u32,
    /// Checksum of its head.
    pub head_checksum: u32,
    /// Octets of the whole envelope.
    pub envelope_octets: u32,
    /// Checksum of the body when it stands in the segment.
    pub body_checksum: u32,
    /// Where the body begins when it stands in the segment.
    pub body_offset: u64,
    /// Extents of the body; 0: it stands in the segment.
    pub extents: u32,
    /// Slots before this one that list them.
    pub extent_slots: u32,
    /// Bounce profile, as an index into the names.
    pub profile: u16,
    /// Listener, as an index into the names.
    pub listener: u16,
    /// Slots before this one were synced when the commit was stored of which this is the last
    /// slot; 0 in the others. See [`set_durable_point`].
    pub durable_slots: u32,
}

impl MessageSlot {
    /// Slots from the first entry to the message slot inclusive.
    #[must_use]
    pub fn group_slots(&self) -> u32 {
        self.entries.saturating_add(self.extent_slots).saturating_add(1)
    }
}

/// Bits of [`MessageSlot::flags`].
pub mod flags {
    /// A line starts with a dot.
    pub const LEADING_DOT: u8 = 1;
    /// An octet above 127 stands in the message.
    pub const EIGHT_BIT: u8 = 2;
    /// An octet above 127 stands in the header.
    pub const UTF8_HEADER: u8 = 4;
    /// BODY=8BITMIME.
    pub const BODY_8BITMIME: u8 = 8;
    /// SMTPUTF8.
    pub const SMTPUTF8: u8 = 16;
    /// RET=FULL.
    pub const RET_FULL: u8 = 32;
    /// RET=HDRS.
    pub const RET_HEADERS: u8 = 64;
}

/// Where one extent of a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentPlace {
    /// The extent segment.
    pub segment: SegmentId,
    /// Its generation.
    pub generation: u32,
    /// Which extent of it.
    pub index: u32,
    /// Checksum of the octets in use.
    pub checksum: u32,
}

/// Up to [`EXTENTS_PER_SLOT`] extents of a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentSlot {
    /// Copy number.
    pub copy: u16,
    /// Number of the first one within the message.
    pub first: u32,
    /// The places.
    pub places: Vec<ExtentPlace>,
}

/// What a slot with a right checksum holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Slot {
    /// A recipient.
    Entry(Entry),
    /// Extents of a body.
    Extents(ExtentSlot),
    /// A message.
    Message(MessageSlot),
}

/// Why a slot holds nothing that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotFault {
    /// Never written since the segment was made.
    Empty,
    /// Written in an earlier use of the segment.
    OlderGeneration,
    /// Anything else.
    Bad,
}

/// Identity of the table a slot stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablePlace {
    /// Start value of every checksum: see [`super::seed`].
    pub seed: u32,
    /// Generation of the segment.
    pub generation: u32,
}

impl Slot {
    /// The octets of the slot at index `index`; the words of an entry are zero.
    #[must_use]
    pub fn encode(&self, place: TablePlace, index: u32) -> SlotOctets {
        let mut out = [0; SLOT_OCTETS];
        let checked_end = match self {
            Self::Entry(entry) => entry.put(&mut out),
            Self::Extents(extents) => extents.put(&mut out),
            Self::Message(message) => message.put(&mut out),
        };
        put(&mut out, 8, &place.generation.to_le_bytes());
        let checksum = slot_checksum(place.seed, index, &out[4..checked_end]);
        put(&mut out, 0, &checksum.to_le_bytes());
        out
    }

    /// Reads the slot at index `index`.
    ///
    /// # Errors
    /// See [`SlotFault`].
    pub fn decode(octets: &SlotOctets, place: TablePlace, index: u32) -> Result<Self, SlotFault> {
        let generation = u32_at(octets, 8);
        if generation < place.generation {
            let empty = octets.iter().all(|b| *b == 0);
            return Err(if empty { SlotFault::Empty } else { SlotFault::OlderGeneration });
        }
        let kind = octets[4];
        let checked_end = if kind == KIND_ENTRY { ENTRY_CHECKED_END } else { SLOT_OCTETS };
        let checksum = slot_checksum(place.seed, index, &octets[4..checked_end]);
        if generation != place.generation || u32_at(octets, 0) != checksum {
            return Err(SlotFault::Bad);
        }
        match kind {
            KIND_ENTRY => Ok(Self::Entry(Entry::get(octets))),
            KIND_EXTENTS => ExtentSlot::get(octets).map(Self::Extents).ok_or(SlotFault::Bad),
            KIND_MESSAGE => Ok(Self::Message(MessageSlot::get(octets))),
            _ => Err(SlotFault::Bad),
        }
    }
}

/// Puts the durable point into the slot of a message, the last one of a commit: it goes to the
/// disk with the slot. A header copy with each commit would say the same, and be one place more
/// that each sync has to write.
pub fn set_durable_point(
    octets: &mut SlotOctets,
    place: TablePlace,
    index: u32,
    durable_slots: u32,
) {
    assert_eq!(octets[4], KIND_MESSAGE, "only a message slot ends a commit");
    put(octets, DURABLE_SLOTS, &durable_slots.to_le_bytes());
    let checksum = slot_checksum(place.seed, index, &octets[4..]);
    put(octets, 0, &checksum.to_le_bytes());
}

fn slot_checksum(seed: u32, index: u32, octets: &[u8]) -> u32 {
    placed_checksum(seed, index.to_le_bytes(), octets)
}

impl Entry {
    fn put(&self, out: &mut SlotOctets) -> usize {
        out[4] = KIND_ENTRY;
        out[5] = self.notify;
        put(out, 6, &self.copy.to_le_bytes());
        put(out, 12, &self.rid.0.to_le_bytes());
        put(out, 16, &self.mid.0.to_le_bytes());
        put(out, 24, &self.domain.to_le_bytes());
        put(out, 28, &self.distance.to_le_bytes());
        put(out, 32, &self.recipient_hash.to_le_bytes());
        put(out, 40, &self.sender_hash.to_le_bytes());
        put(out, 48, &self.record_offset.to_le_bytes());
        put(out, 56, &self.record_octets.to_le_bytes());
        put(out, 60, &self.record_checksum.to_le_bytes());
        ENTRY_CHECKED_END
    }

    fn get(octets: &SlotOctets) -> Self {
        Self {
            notify: octets[5],
            copy: u16_at(octets, 6),
            rid: Rid(u32_at(octets, 12)),
            mid: Mid(u64_at(octets, 16)),
            domain: u16_at(octets, 24),
            distance: u32_at(octets, 28),
            recipient_hash: u64_at(octets, 32),
            sender_hash: u64_at(octets, 40),
            record_offset: u64_at(octets, 48),
            record_octets: u32_at(octets, 56),
            record_checksum: u32_at(octets, 60),
        }
    }
}

impl ExtentSlot {
    fn put(&self, out: &mut SlotOctets) -> usize {
        assert!(self.places.len() <= EXTENTS_PER_SLOT, "more extents than a slot holds");
        out[4] = KIND_EXTENTS;
        out[5] = u8::try_from(self.places.len()).unwrap_or(u8::MAX);
        put(out, 6, &self.copy.to_le_bytes());
        put(out, 12, &self.first.to_le_bytes());
        for (i, place) in self.places.iter().enumerate() {
            let at = 16 + 16 * i;
            put(out, at, &place.segment.0.to_le_bytes());
            put(out, at + 4, &place.generation.to_le_bytes());
            put(out, at + 8, &place.index.to_le_bytes());
            put(out, at + 12, &place.checksum.to_le_bytes());
        }
        SLOT_OCTETS
    }

    fn get(octets: &SlotOctets) -> Option<Self> {
        let count = usize::from(octets[5]);
        let place = |i: usize| ExtentPlace {
            segment: SegmentId(u32_at(octets, 16 + 16 * i)),
            generation: u32_at(octets, 20 + 16 * i),
            index: u32_at(octets, 24 + 16 * i),
            checksum: u32_at(octets, 28 + 16 * i),
        };
        (count <= EXTENTS_PER_SLOT).then(|| Self {
            copy: u16_at(octets, 6),
            first: u32_at(octets, 12),
            places: (0..count).map(place).collect(),
        })
    }
}

impl MessageSlot {
    fn put(&self, out: &mut SlotOctets) -> usize {
        out[4] = KIND_MESSAGE;
        out[5] = self.flags;
        put(out, 6, &self.copy.to_le_bytes());
        put(out, 12, &self.entries.to_le_bytes());
        put(out, 16, &self.mid.0.to_le_bytes());
        put(out, 24, &self.cause.map_or(0, |mid| mid.0).to_le_bytes());
        put(out, 32, &self.arrival.0.to_le_bytes());
        put(out, 40, &self.sender_hash.to_le_bytes());
        put(out, 48, &self.body_octets.to_le_bytes());
        put(out, 56, &self.head_offset.to_le_bytes());
        put(out, 64, &self.head_octets.to_le_bytes());
        put(out, 68, &self.head_checksum.to_le_bytes());
        put(out, 72, &self.envelope_octets.to_le_bytes());
        put(out, 76, &self.body_checksum.to_le_bytes());
        put(out, 80, &self.body_offset.to_le_bytes());
        put(out, 88, &self.extents.to_le_bytes());
        put(out, 92, &self.extent_slots.to_le_bytes());
        put(out, 96, &self.profile.to_le_bytes());
        put(out, 98, &self.listener.to_le_bytes());
        put(out, DURABLE_SLOTS, &self.durable_slots.to_le_bytes());
        SLOT_OCTETS
    }

    fn get(octets: &SlotOctets) -> Self {
        let cause = u64_at(octets, 24);
        Self {
            flags: octets[5],
            copy: u16_at(octets, 6),
            entries: u32_at(octets, 12),
            mid: Mid(u64_at(octets, 16)),
            cause: (cause != 0).then_some(Mid(cause)),
            arrival: Wall(u64_at(octets, 32)),
            sender_hash: u64_at(octets, 40),
            body_octets: u64_at(octets, 48),
            head_offset: u64_at(octets, 56),
            head_octets: u32_at(octets, 64),
            head_checksum: u32_at(octets, 68),
            envelope_octets: u32_at(octets, 72),
            body_checksum: u32_at(octets, 76),
            body_offset: u64_at(octets, 80),
            extents: u32_at(octets, 88),
            extent_slots: u32_at(octets, 92),
            profile: u16_at(octets, 96),
            listener: u16_at(octets, 98),
            durable_slots: u32_at(octets, DURABLE_SLOTS),
        }
    }
}
