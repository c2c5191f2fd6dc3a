//! The disk format, version 1: where every byte of a segment stands. The one place that knows.
//!
//! Owns: offsets, encoding, decoding and checksums. Never: files, mappings, policy. All numbers
//! are little-endian.
//!
//! # Segment file of messages
//!
//! | part | offset | octets |
//! |---|---|---|
//! | header copy 0, header copy 1 | 0, 4096 | 512 used of 4096 each |
//! | names (domains, profiles, listeners) | 8192 | 1/32 of the file |
//! | hosts (of last outcomes) | behind the names | 1/128 of the file |
//! | table of 128-octet slots | behind the hosts | 1/8 of the file |
//! | envelopes and bodies | behind the table | the rest |
//!
//! Everything before the bodies is mapped. An extent segment has the two header copies and then
//! extents of [`limits::EXTENT_OCTETS`] each.
//!
//! # Header copy
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic `RPQUEUE\0` |
//! | 8 | u32 version |
//! | 12 | u32 kind: 1 messages, 2 extents |
//! | 16 | 16 octets spool id |
//! | 32 | u32 segment id (shard directory in the top 8 bits) |
//! | 36 | u32 generation, from 1; each reuse of the segment adds 1 |
//! | 40 | u64 sequence: each header write adds 1; an even one goes to copy 0, an odd one to copy 1 |
//! | 48 | u64 octets of the file |
//! | 56 | u32 slots of the table |
//! | 60 | u32 durable point: slots before this one were synced |
//! | 64 | u64 durable point: body octets before this offset were synced |
//! | 72 | u64 largest id block that this shard had reserved |
//! | 508 | u32 checksum of 0..508 |
//!
//! # Slot of an entry (one recipient)
//!
//! | offset | field |
//! |---|---|
//! | 0 | u32 checksum of 4..112 |
//! | 4 | u8 kind = 1 |
//! | 5 | u8 NOTIFY |
//! | 6 | u16 copy number |
//! | 8 | u32 generation |
//! | 12 | u32 RID |
//! | 16 | u64 MID |
//! | 24 | u16 domain, index into the names |
//! | 28 | u32 distance to the message slot, in slots |
//! | 32 | u64 hash of the recipient |
//! | 40 | u64 hash of the sender |
//! | 48 | u64 offset of the recipient's record, 56 u32 its octets, 60 u32 its checksum |
//! | 112 | u64 last outcome word |
//! | 120 | u64 state word |
//!
//! # Slot of extents (behind the entries, when the body is in extents)
//!
//! | offset | field |
//! |---|---|
//! | 0 | u32 checksum of 4..128 |
//! | 4 | u8 kind = 3, 5 u8 extents in this slot, 6 u16 copy number, 8 u32 generation |
//! | 12 | u32 number of the first one within the message |
//! | 16 | 7 times: u32 segment, u32 its generation, u32 index, u32 checksum of the extent |
//!
//! # Slot of a message (behind its entries and extents; stored last)
//!
//! | offset | field |
//! |---|---|
//! | 0 | u32 checksum of 4..128 |
//! | 4 | u8 kind = 2, 5 u8 flags, 6 u16 copy number, 8 u32 generation |
//! | 12 | u32 number of entries |
//! | 16 | u64 MID, 24 u64 MID of the cause (0: not a report) |
//! | 32 | u64 arrival, ms since 1970 |
//! | 40 | u64 hash of the sender |
//! | 48 | u64 octets of the body |
//! | 56 | u64 offset of the envelope head, 64 u32 its octets, 68 u32 its checksum |
//! | 72 | u32 octets of the whole envelope (head and recipients) |
//! | 76 | u32 checksum of the body (0 when in extents) |
//! | 80 | u64 offset of the body (0 when in extents) |
//! | 88 | u32 extents, 92 u32 slots they are listed in |
//! | 96 | u16 bounce profile, 98 u16 listener: indexes into the names |
//!
//! # Envelope
//!
//! Head: u16 sender octets (65535: the null sender), u16 ENVID octets (65535: none), u16 redirect
//! host octets (65535: none), u16 zero, then the three texts. Each recipient: u16 address octets,
//! u16 ORCPT octets (65535: none), then the two texts; in the order of the entries.
//!
//! # Name record
//!
//! u16 octets, u8 kind (1 domain, 2 profile or listener, 3 host), u8 zero, u32 checksum, then the
//! text, padded with zeros to a multiple of 8. A name's index is its number from 0.
//!
//! # Words
//!
//! State word, from bit 0: 8 check, 4 state, 1 in flight, 3 crashes in flight, 12 attempts, 36
//! next attempt in units of 125 ms since 1970. Last outcome word: 8 check, 10 reply code, 3 class,
//! 10 subject, 10 detail, 16 host index (65535: none), 4 warnings sent, 1 "given". The check
//! covers the word and the place where it stands.
//!
//! # Assumptions about the medium
//!
//! * An aligned 8-byte store reaches the disk whole or not at all.
//! * What is not synced may be lost, kept or reordered, page by page and torn within a page.
//! * After a sync returned success, all that was stored before is kept; after one error nothing
//!   that the file holds since its last good sync is believed, and it is never synced again.
//! * Bits may flip, and a page may come back from another place: every record has a checksum over
//!   the spool id, segment id, generation and place, and is verified before it is used.
//!
//! # On-disk states of a recipient, and the moves
//!
//! | state | moves to |
//! |---|---|
//! | absent | ready, by a commit |
//! | ready, deferred | in flight (mark), deleted, damaged |
//! | in flight | delivered, bounced, discarded, deferred, ready (released, or found at start) |
//! | poison, damaged | deleted |
//! | delivered, bounced, discarded, deleted, moved | absent, when the segment is used again |

use crate::limits;
use crate::mail::{Enhanced, Mid, Rid, Wall};

/// The version this program writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// Octets of a header copy that are used and checked.
pub const HEADER_OCTETS: usize = 512;
/// Where the second header copy stands: another page, so that one torn page spares the other.
pub const HEADER_COPY_OFFSET: u64 = 4096;
/// Where the names of a message segment and the extents of an extent segment begin.
pub const HEADERS_END: u64 = 8192;
/// Octets of a slot.
pub const SLOT_OCTETS: usize = 128;
/// Extents listed in one slot.
pub const EXTENTS_PER_SLOT: usize = 7;
/// Offset of the last outcome word in an entry.
pub const OUTCOME_OFFSET: u64 = 112;
/// Offset of the state word in an entry.
pub const STATE_OFFSET: u64 = 120;

const MAGIC: &[u8; 8] = b"RPQUEUE\0";
const HEADER_CHECKSUM: usize = 508;
const ENTRY_CHECKED_END: usize = 112;
const KIND_ENTRY: u8 = 1;
const KIND_MESSAGE: u8 = 2;
const KIND_EXTENTS: u8 = 3;
const ABSENT: u16 = u16::MAX;
const HEAD_FIXED_OCTETS: usize = 8;
const RECIPIENT_FIXED_OCTETS: usize = 4;
const NAME_FIXED_OCTETS: usize = 8;
const TIME_UNIT_MS: u64 = 125;
const TIME_BITS: u64 = (1 << 36) - 1;
/// Attempts that a state word can count; more stay at this number.
pub const ATTEMPTS_MAX: u16 = (1 << 12) - 1;
/// Warnings that an outcome word can count; more stay at this number.
pub const WARNINGS_MAX: u8 = 15;

const _: () = assert!(limits::CRASHES_IN_FLIGHT_MAX < 8);
const _: () = assert!(limits::RECIPIENTS_MAX < u16::MAX as usize);
const _: () = assert!(limits::PATH_OCTETS_MAX < ABSENT as usize);
const _: () = assert!(limits::COMMAND_LINE_OCTETS_MAX < ABSENT as usize);

/// Names a spool: made once from random bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpoolId(pub [u8; 16]);

/// Names a segment in its spool: the shard directory in the top 8 bits, a number below.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// Number `number` (below 2^24) of directory `directory`.
    #[must_use]
    pub fn new(directory: u8, number: u32) -> Self {
        assert!(number < 1 << 24, "segment numbers of a directory are used up");
        Self(u32::from(directory) << 24 | number)
    }

    /// The shard directory that holds it.
    #[must_use]
    pub fn directory(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// The number within the directory.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0 & 0x00ff_ffff
    }
}

/// What a segment holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentKind {
    /// Table, envelopes and bodies.
    Messages,
    /// Extents of large bodies.
    Extents,
}

/// Where the parts of a message segment stand, derived from its size alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Octets of the file.
    pub octets: u64,
    /// Where the hosts begin; the names end here.
    pub hosts_offset: u64,
    /// Where the table begins; the hosts end here.
    pub table_offset: u64,
    /// Slots of the table.
    pub slots: u32,
    /// Where the bodies begin; the mapping ends here.
    pub body_offset: u64,
}

impl Geometry {
    /// The geometry of a file of `octets` octets.
    #[must_use]
    pub fn of(kind: SegmentKind, octets: u64) -> Self {
        let page = |n: u64| n.next_multiple_of(4096);
        match kind {
            SegmentKind::Messages => {
                let hosts_offset = HEADERS_END + page(octets / 32);
                let table_offset = hosts_offset + page(octets / 128);
                let body_offset = table_offset + page(octets / 8);
                let slots = (body_offset - table_offset) / SLOT_OCTETS as u64;
                let slots = u32::try_from(slots).unwrap_or(u32::MAX);
                Self { octets, hosts_offset, table_offset, slots, body_offset }
            }
            SegmentKind::Extents => Self {
                octets,
                hosts_offset: HEADERS_END,
                table_offset: HEADERS_END,
                slots: 0,
                body_offset: HEADERS_END,
            },
        }
    }

    /// Where slot `slot` begins.
    #[must_use]
    pub fn slot_offset(&self, slot: u32) -> u64 {
        self.table_offset + u64::from(slot) * SLOT_OCTETS as u64
    }

    /// Where extent `index` begins.
    #[must_use]
    pub fn extent_offset(&self, index: u32) -> u64 {
        self.body_offset + u64::from(index) * limits::EXTENT_OCTETS
    }

    /// Extents that an extent segment of this size holds.
    #[must_use]
    pub fn extents(&self) -> u32 {
        u32::try_from((self.octets - self.body_offset) / limits::EXTENT_OCTETS).unwrap_or(0)
    }
}

/// One header copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the segment holds.
    pub kind: SegmentKind,
    /// Its spool.
    pub spool: SpoolId,
    /// Its id.
    pub segment: SegmentId,
    /// Which use of the file this is.
    pub generation: u32,
    /// Which header write this is.
    pub sequence: u64,
    /// Octets of the file.
    pub octets: u64,
    /// Slots before this one were synced.
    pub durable_slots: u32,
    /// Body octets before this offset were synced.
    pub durable_body_end: u64,
    /// Largest id block reserved by the shard.
    pub id_block_max: u64,
}

/// Why octets are no header of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderFault {
    /// Not our magic, or a wrong checksum.
    Unreadable,
    /// Written by a newer program.
    FutureVersion(u32),
}

impl Header {
    /// The octets of a header copy.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_OCTETS] {
        let mut out = [0; HEADER_OCTETS];
        let kind: u32 = match self.kind {
            SegmentKind::Messages => 1,
            SegmentKind::Extents => 2,
        };
        put(&mut out, 0, MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        put(&mut out, 12, &kind.to_le_bytes());
        put(&mut out, 16, &self.spool.0);
        put(&mut out, 32, &self.segment.0.to_le_bytes());
        put(&mut out, 36, &self.generation.to_le_bytes());
        put(&mut out, 40, &self.sequence.to_le_bytes());
        put(&mut out, 48, &self.octets.to_le_bytes());
        put(&mut out, 56, &Geometry::of(self.kind, self.octets).slots.to_le_bytes());
        put(&mut out, 60, &self.durable_slots.to_le_bytes());
        put(&mut out, 64, &self.durable_body_end.to_le_bytes());
        put(&mut out, 72, &self.id_block_max.to_le_bytes());
        let checksum = crc32c::crc32c(&out[..HEADER_CHECKSUM]);
        put(&mut out, HEADER_CHECKSUM, &checksum.to_le_bytes());
        out
    }

    /// Reads one header copy.
    ///
    /// # Errors
    /// See [`HeaderFault`].
    pub fn decode(octets: &[u8]) -> Result<Self, HeaderFault> {
        let octets = octets.get(..HEADER_OCTETS).ok_or(HeaderFault::Unreadable)?;
        let checksum = crc32c::crc32c(&octets[..HEADER_CHECKSUM]);
        if &octets[..8] != MAGIC || u32_at(octets, HEADER_CHECKSUM) != checksum {
            return Err(HeaderFault::Unreadable);
        }
        let version = u32_at(octets, 8);
        if version > VERSION {
            return Err(HeaderFault::FutureVersion(version));
        }
        let kind = match u32_at(octets, 12) {
            1 => SegmentKind::Messages,
            2 => SegmentKind::Extents,
            _ => return Err(HeaderFault::Unreadable),
        };
        let mut spool = [0; 16];
        spool.copy_from_slice(&octets[16..32]);
        let header = Self {
            kind,
            spool: SpoolId(spool),
            segment: SegmentId(u32_at(octets, 32)),
            generation: u32_at(octets, 36),
            sequence: u64_at(octets, 40),
            octets: u64_at(octets, 48),
            durable_slots: u32_at(octets, 60),
            durable_body_end: u64_at(octets, 64),
            id_block_max: u64_at(octets, 72),
        };
        let slots = u32_at(octets, 56);
        let sound = header.octets <= limits::SEGMENT_OCTETS_MAX + (1 << 20)
            && header.octets >= limits::SEGMENT_OCTETS_MIN
            && Geometry::of(kind, header.octets).slots == slots
            && header.durable_slots <= slots;
        sound.then_some(header).ok_or(HeaderFault::Unreadable)
    }

    /// The newer of two copies. A copy of a future version beats an old readable one: it may
    /// speak of mail that we cannot see.
    ///
    /// # Errors
    /// See [`HeaderFault`]; of two unreadable copies.
    pub fn choose(first: &[u8], second: &[u8]) -> Result<Self, HeaderFault> {
        match (Self::decode(first), Self::decode(second)) {
            (Ok(a), Ok(b)) => Ok(if a.sequence >= b.sequence { a } else { b }),
            (Err(future @ HeaderFault::FutureVersion(_)), _)
            | (_, Err(future @ HeaderFault::FutureVersion(_))) => Err(future),
            (Ok(one), Err(HeaderFault::Unreadable)) | (Err(HeaderFault::Unreadable), Ok(one)) => {
                Ok(one)
            }
            (Err(HeaderFault::Unreadable), Err(HeaderFault::Unreadable)) => {
                Err(HeaderFault::Unreadable)
            }
        }
    }

    /// Where this copy is written.
    #[must_use]
    pub fn copy_offset(&self) -> u64 {
        if self.sequence.is_multiple_of(2) { 0 } else { HEADER_COPY_OFFSET }
    }

    /// The checksum of the place: every record's checksum goes on from it.
    #[must_use]
    pub fn seed(&self) -> u32 {
        seed(self.spool, self.segment, self.generation)
    }
}

/// The checksum that stands for a spool, a segment and a generation.
#[must_use]
pub fn seed(spool: SpoolId, segment: SegmentId, generation: u32) -> u32 {
    let sum = crc32c::crc32c(&spool.0);
    let sum = crc32c::crc32c_append(sum, &segment.0.to_le_bytes());
    crc32c::crc32c_append(sum, &generation.to_le_bytes())
}

/// The checksum of octets that stand at `offset` of the segment with this seed.
#[must_use]
pub fn checksum_at(seed: u32, offset: u64, octets: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &offset.to_le_bytes()), octets)
}

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
    /// See [`seed`].
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

fn slot_checksum(seed: u32, index: u32, octets: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &index.to_le_bytes()), octets)
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
        }
    }
}

/// What has become of a recipient.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// May be tried at once.
    Ready,
    /// Waits for its next attempt.
    Deferred,
    /// A next hop took it.
    Delivered,
    /// Failed for good.
    Bounced,
    /// Discarded by its route.
    Discarded,
    /// Deleted by the operator, or withdrawn because its commit failed.
    Deleted,
    /// Held: it was in flight at too many crashes.
    Poison,
    /// Held: its octets on disk are not what was written.
    Damaged,
    /// A later copy stands elsewhere.
    Moved,
}

impl State {
    /// Still to be delivered.
    #[must_use]
    pub fn is_pending(self) -> bool {
        match self {
            Self::Ready | Self::Deferred => true,
            Self::Delivered | Self::Bounced | Self::Discarded | Self::Deleted => false,
            Self::Poison | Self::Damaged | Self::Moved => false,
        }
    }

    /// Kept, listed, and never sent.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, Self::Poison | Self::Damaged)
    }

    /// Done with: its octets may go.
    #[must_use]
    pub fn is_settled(self) -> bool {
        !self.is_pending() && !self.is_held()
    }

    fn code(self) -> u64 {
        match self {
            Self::Ready => 1,
            Self::Deferred => 2,
            Self::Delivered => 3,
            Self::Bounced => 4,
            Self::Discarded => 5,
            Self::Deleted => 6,
            Self::Poison => 7,
            Self::Damaged => 8,
            Self::Moved => 9,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Ready,
            2 => Self::Deferred,
            3 => Self::Delivered,
            4 => Self::Bounced,
            5 => Self::Discarded,
            6 => Self::Deleted,
            7 => Self::Poison,
            8 => Self::Damaged,
            9 => Self::Moved,
            _ => return None,
        })
    }
}

/// The state word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateWord {
    /// What has become of it.
    pub state: State,
    /// A delivery of it is under way.
    pub in_flight: bool,
    /// Crashes while it was in flight.
    pub crashes: u8,
    /// Attempts made.
    pub attempts: u16,
    /// When it may be tried next; kept in steps of 125 ms, rounded up.
    pub next_attempt: Wall,
}

impl StateWord {
    /// The word of a recipient that was never tried.
    pub const READY: Self = Self {
        state: State::Ready,
        in_flight: false,
        crashes: 0,
        attempts: 0,
        next_attempt: Wall(0),
    };

    /// The word for slot `slot` of the table at `place`.
    #[must_use]
    pub fn encode(self, place: TablePlace, slot: u32) -> u64 {
        let time = self.next_attempt.0.div_ceil(TIME_UNIT_MS).min(TIME_BITS);
        let word = self.state.code() << 8
            | u64::from(self.in_flight) << 12
            | u64::from(self.crashes.min(7)) << 13
            | u64::from(self.attempts.min(ATTEMPTS_MAX)) << 16
            | time << 28;
        word | word_check(word, place, slot)
    }

    /// Reads the word; `None`: it is not what was stored.
    #[must_use]
    pub fn decode(word: u64, place: TablePlace, slot: u32) -> Option<Self> {
        let bare = word & !0xff;
        if word_check(bare, place, slot) != word & 0xff {
            return None;
        }
        Some(Self {
            state: State::from_code(bits(word, 8, 4))?,
            in_flight: bits(word, 12, 1) == 1,
            crashes: u8::try_from(bits(word, 13, 3)).ok()?,
            attempts: u16::try_from(bits(word, 16, 12)).ok()?,
            next_attempt: Wall(bits(word, 28, 36) * TIME_UNIT_MS),
        })
    }
}

/// The last outcome word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutcomeWord {
    /// Reply code, 0 without a reply.
    pub code: u16,
    /// Enhanced status.
    pub status: Enhanced,
    /// Index into the segment's hosts.
    pub host: Option<u16>,
    /// Delay warnings sent.
    pub warnings: u8,
}

impl OutcomeWord {
    /// The word for slot `slot` of the table at `place`.
    #[must_use]
    pub fn encode(self, place: TablePlace, slot: u32) -> u64 {
        let word = u64::from(self.code.min(999)) << 8
            | u64::from(self.status.class.min(7)) << 18
            | u64::from(self.status.subject.min(999)) << 21
            | u64::from(self.status.detail.min(999)) << 31
            | u64::from(self.host.unwrap_or(ABSENT)) << 41
            | u64::from(self.warnings.min(WARNINGS_MAX)) << 57
            | 1 << 61;
        word | word_check(word, place, slot)
    }

    /// Reads the word; `None`: there was no outcome yet, or it is not what was stored.
    #[must_use]
    pub fn decode(word: u64, place: TablePlace, slot: u32) -> Option<Self> {
        let bare = word & !0xff;
        if bits(word, 61, 1) == 0 || word_check(bare, place, slot) != word & 0xff {
            return None;
        }
        let small = |at, width| u16::try_from(bits(word, at, width)).unwrap_or(ABSENT);
        let status =
            Enhanced::new(bits(word, 18, 3).to_le_bytes()[0], small(21, 10), small(31, 10));
        let host = Some(small(41, 16)).filter(|host| *host != ABSENT);
        Some(Self {
            code: small(8, 10),
            status,
            host,
            warnings: bits(word, 57, 4).to_le_bytes()[0],
        })
    }
}

fn bits(word: u64, at: u32, width: u32) -> u64 {
    word >> at & ((1 << width) - 1)
}

fn word_check(word: u64, place: TablePlace, slot: u32) -> u64 {
    let sum = crc32c::crc32c_append(place.seed, &slot.to_le_bytes());
    u64::from(crc32c::crc32c_append(sum, &word.to_le_bytes()) & 0xff)
}

/// The texts of an envelope head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadTexts<'a> {
    /// The sender; `None`: the null sender.
    pub sender: Option<&'a [u8]>,
    /// ENVID.
    pub envid: Option<&'a [u8]>,
    /// Where the operator redirected the message to.
    pub redirect: Option<&'a [u8]>,
}

impl<'a> HeadTexts<'a> {
    /// Octets of the encoded head.
    #[must_use]
    pub fn octets(&self) -> usize {
        let text = |t: Option<&[u8]>| t.map_or(0, <[u8]>::len);
        HEAD_FIXED_OCTETS + text(self.sender) + text(self.envid) + text(self.redirect)
    }

    /// Appends the encoded head.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        for text in [self.sender, self.envid, self.redirect] {
            put_length(out, text);
        }
        out.extend_from_slice(&[0; 2]);
        for text in [self.sender, self.envid, self.redirect].into_iter().flatten() {
            out.extend_from_slice(text);
        }
    }

    /// Reads a head that takes all of `octets`.
    #[must_use]
    pub fn decode(octets: &'a [u8]) -> Option<Self> {
        let lengths = octets.get(..HEAD_FIXED_OCTETS)?;
        let mut rest = &octets[HEAD_FIXED_OCTETS..];
        let sender = take_text(&mut rest, u16_at(lengths, 0))?;
        let envid = take_text(&mut rest, u16_at(lengths, 2))?;
        let redirect = take_text(&mut rest, u16_at(lengths, 4))?;
        rest.is_empty().then_some(Self { sender, envid, redirect })
    }
}

/// The texts of a recipient's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecipientTexts<'a> {
    /// The address.
    pub address: &'a [u8],
    /// ORCPT.
    pub orcpt: Option<&'a [u8]>,
}

impl<'a> RecipientTexts<'a> {
    /// Octets of the encoded record.
    #[must_use]
    pub fn octets(&self) -> usize {
        RECIPIENT_FIXED_OCTETS + self.address.len() + self.orcpt.map_or(0, <[u8]>::len)
    }

    /// Appends the encoded record.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        put_length(out, Some(self.address));
        put_length(out, self.orcpt);
        out.extend_from_slice(self.address);
        out.extend_from_slice(self.orcpt.unwrap_or_default());
    }

    /// Reads a record that takes all of `octets`.
    #[must_use]
    pub fn decode(octets: &'a [u8]) -> Option<Self> {
        let lengths = octets.get(..RECIPIENT_FIXED_OCTETS)?;
        let mut rest = &octets[RECIPIENT_FIXED_OCTETS..];
        let address = take_text(&mut rest, u16_at(lengths, 0))??;
        let orcpt = take_text(&mut rest, u16_at(lengths, 2))?;
        rest.is_empty().then_some(Self { address, orcpt })
    }
}

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameKind {
    /// A receiving domain.
    Domain,
    /// A bounce profile or a listener.
    Label,
    /// A host of a last outcome.
    Host,
}

impl NameKind {
    fn code(self) -> u8 {
        match self {
            Self::Domain => 1,
            Self::Label => 2,
            Self::Host => 3,
        }
    }
}

/// Octets of the record of a name of `octets` octets.
#[must_use]
pub fn name_record_octets(octets: usize) -> u64 {
    (NAME_FIXED_OCTETS + octets).next_multiple_of(8) as u64
}

/// The record of a name at file offset `offset`; `text` is shorter than 65,536 octets.
#[must_use]
pub fn encode_name(seed: u32, offset: u64, kind: NameKind, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(NAME_FIXED_OCTETS + text.len() + 8);
    put_length(&mut out, Some(text));
    out.extend_from_slice(&[kind.code(), 0]);
    let sum = crc32c::crc32c_append(checksum_at(seed, offset, text), &out);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(text);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// Reads the name record at the start of `octets`, which stands at file offset `offset`.
#[must_use]
pub fn decode_name(seed: u32, offset: u64, octets: &[u8]) -> Option<(NameKind, &[u8])> {
    let fixed = octets.get(..NAME_FIXED_OCTETS)?;
    let text = octets.get(NAME_FIXED_OCTETS..NAME_FIXED_OCTETS + usize::from(u16_at(fixed, 0)))?;
    let sum = crc32c::crc32c_append(checksum_at(seed, offset, text), &fixed[..4]);
    if sum != u32_at(fixed, 4) {
        return None;
    }
    let kind = match fixed[2] {
        1 => NameKind::Domain,
        2 => NameKind::Label,
        3 => NameKind::Host,
        _ => return None,
    };
    Some((kind, text))
}

/// The hash of an address that entries carry: finds candidates without reading envelopes.
#[must_use]
pub fn address_hash(address: &[u8]) -> u64 {
    let low = crc32c::crc32c(address);
    u64::from(crc32c::crc32c_append(low ^ 0x5bd1_e995, address)) << 32 | u64::from(low)
}

fn put(out: &mut [u8], at: usize, octets: &[u8]) {
    out[at..at + octets.len()].copy_from_slice(octets);
}

fn put_length(out: &mut Vec<u8>, text: Option<&[u8]>) {
    let length = text.map_or(ABSENT, |text| {
        let length = u16::try_from(text.len()).unwrap_or(ABSENT);
        assert!(length != ABSENT, "a text of an envelope or a name is longer than its limit");
        length
    });
    out.extend_from_slice(&length.to_le_bytes());
}

/// Takes a text of `length` octets off `rest`; the outer `None` means that it is not there.
#[expect(clippy::option_option, reason = "absent in the record and cut off are two things")]
fn take_text<'a>(rest: &mut &'a [u8], length: u16) -> Option<Option<&'a [u8]>> {
    if length == ABSENT {
        return Some(None);
    }
    let (text, behind) = rest.split_at_checked(usize::from(length))?;
    *rest = behind;
    Some(Some(text))
}

fn u16_at(octets: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([octets[at], octets[at + 1]])
}

fn u32_at(octets: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&octets[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(octets: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&octets[at..at + 8]);
    u64::from_le_bytes(eight)
}
