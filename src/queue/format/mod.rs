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
//! | 60 | u32 durable point: slots before this one were synced; message slots may know of more |
//! | 64 | u64 body octets before this offset were synced, at least |
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
//! | 100 | u32 durable point when a commit was stored whose last slot this is: as in the header (0: not the last) |
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
//!   that the file holds since its last good sync is believed, and no other sync is begun.
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

mod checksum;
mod slots;
mod texts;
mod words;

use checksum::checksum_append_in_place;
pub use checksum::{checksum, checksum_append};
pub use slots::{
    Entry, ExtentPlace, ExtentSlot, MessageSlot, Slot, SlotFault, SlotOctets, TablePlace, flags,
    set_durable_point,
};
pub use texts::{
    HeadTexts, NameKind, RecipientTexts, decode_name, encode_name, name_record_octets,
};
pub use words::{OutcomeWord, State, StateWord};

use std::fmt;

use crate::limits;

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

/// Stands for a text or a host that is not there.
const ABSENT: u16 = u16::MAX;

const MAGIC: &[u8; 8] = b"RPQUEUE\0";
const HEADER_CHECKSUM: usize = 508;
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

/// The path of its file in the spool.
impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard-{:02}/{:06x}.segment", self.directory(), self.number())
    }
}

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
    /// Slots before this one were synced; [`MessageSlot::durable_slots`] may tell of more.
    pub durable_slots: u32,
    /// Body octets before this offset were synced, at least.
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
    /// The header of a segment of `octets` octets that was never used.
    #[must_use]
    pub fn first(kind: SegmentKind, spool: SpoolId, segment: SegmentId, octets: u64) -> Self {
        Self {
            kind,
            spool,
            segment,
            generation: 1,
            sequence: 0,
            octets,
            durable_slots: 0,
            durable_body_end: Geometry::of(kind, octets).body_offset,
            id_block_max: 0,
        }
    }

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
        let checksum = checksum(&out[..HEADER_CHECKSUM]);
        put(&mut out, HEADER_CHECKSUM, &checksum.to_le_bytes());
        out
    }

    /// Reads one header copy.
    ///
    /// # Errors
    /// See [`HeaderFault`].
    pub fn decode(octets: &[u8]) -> Result<Self, HeaderFault> {
        let octets = octets.get(..HEADER_OCTETS).ok_or(HeaderFault::Unreadable)?;
        let checksum = checksum(&octets[..HEADER_CHECKSUM]);
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
    let sum = checksum(&spool.0);
    let sum = checksum_append(sum, &segment.0.to_le_bytes());
    checksum_append(sum, &generation.to_le_bytes())
}

/// The checksum of octets that stand at `offset` of the segment with this seed.
#[must_use]
pub fn checksum_at(seed: u32, offset: u64, octets: &[u8]) -> u32 {
    placed_checksum(seed, offset.to_le_bytes(), octets)
}

/// The checksum of `place` and `octets`. Few octets are brought together first: two calls take
/// longer than the copy.
fn placed_checksum<const N: usize>(seed: u32, place: [u8; N], octets: &[u8]) -> u32 {
    let mut all = [0; SLOT_OCTETS];
    match all.get_mut(..N + octets.len()) {
        Some(all) => {
            all[..N].copy_from_slice(&place);
            all[N..].copy_from_slice(octets);
            checksum_append_in_place(seed, all)
        }
        None => checksum_append(checksum_append(seed, &place), octets),
    }
}

/// The hash of an address that entries carry: finds candidates without reading envelopes.
#[must_use]
pub fn address_hash(address: &[u8]) -> u64 {
    let low = checksum(address);
    u64::from(checksum_append(low ^ 0x5bd1_e995, address)) << 32 | u64::from(low)
}

pub(super) fn put(out: &mut [u8], at: usize, octets: &[u8]) {
    out[at..at + octets.len()].copy_from_slice(octets);
}

pub(super) fn u16_at(octets: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([octets[at], octets[at + 1]])
}

pub(super) fn u32_at(octets: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&octets[at..at + 4]);
    u32::from_le_bytes(four)
}

pub(super) fn u64_at(octets: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&octets[at..at + 8]);
    u64::from_le_bytes(eight)
}
