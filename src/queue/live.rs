//! One segment in use.
//!
//! Owns: its mapping, its header's next copy, its names and hosts, and what is not synced yet.
//! Never: files.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;

use super::EffectId;
use super::format::{
    self, ExtentPlace, Geometry, Header, NameKind, OutcomeWord, Slot, SlotFault, SlotOctets, State,
    StateWord, TablePlace,
};
use super::segment::Mapping;
use crate::mail::{Mid, Mono, Rid};

/// A name of the segment.
#[derive(Clone, Debug)]
pub(super) enum Name {
    /// A destination's number.
    Domain(u32),
    /// A bounce profile or a listener.
    Label(Arc<str>),
}

/// A sync under way, and what waits for its good end.
pub(super) struct RunningSync {
    pub(super) id: EffectId,
    /// A commit ends with it.
    pub(super) is_of_commit: bool,
    /// It makes a header copy durable.
    pub(super) has_header: bool,
    /// As the newest copy says it, which is durable then.
    pub(super) id_block_max: u64,
    /// Extents of settled messages: free then.
    pub(super) extents: Vec<ExtentPlace>,
    /// Segments that may be used again then.
    pub(super) releases: Vec<usize>,
    /// It counts when those that were begun before it have ended too.
    pub(super) has_ended: bool,
    /// It or one before it failed.
    pub(super) failed: bool,
}

/// See the module.
pub(super) struct Segment {
    /// The newest header: what the next copy is made from.
    pub(super) header: Header,
    pub(super) geometry: Geometry,
    pub(super) place: TablePlace,
    /// When a copy of it was stored last.
    pub(super) header_at: Mono,
    map: Mapping,
    pub(super) next_slot: u32,
    pub(super) next_body: u64,
    next_name: u64,
    next_host: u64,
    pub(super) names: Vec<Name>,
    names_by_destination: HashMap<u32, u16>,
    hosts: Vec<Arc<str>>,
    hosts_by_name: HashMap<Arc<str>, u16>,
    /// Recipients that are not settled.
    pub(super) live: u32,
    /// Since when stored words are not synced.
    pub(super) dirty_since: Option<Mono>,
    /// Its syncs under way, in the order in which they were begun.
    pub(super) syncs: VecDeque<RunningSync>,
    /// A write or a sync of it failed: what it holds since is not believed.
    pub(super) poisoned: bool,
    /// It is being made anew, as another kind: it holds nothing.
    pub(super) is_remade: bool,
    /// Its table is what a running process may append to.
    pub(super) appendable: bool,
    /// Extents of settled messages whose words wait for the next sync.
    pub(super) extents_settled: Vec<ExtentPlace>,
    /// Some of its slots cannot be read: it is kept as it is.
    pub(super) has_damage: bool,
    /// Segments that wait for the next sync of this one before they may be used again.
    pub(super) releases: Vec<usize>,
    /// Syncs of other segments that this one waits for.
    pub(super) holds: u32,
    /// It is not emptied before.
    pub(super) forward_after: Mono,
}

impl Segment {
    pub(super) fn new(header: Header, map: Mapping) -> Self {
        let geometry = Geometry::of(header.kind, header.octets);
        Self {
            header,
            geometry,
            place: TablePlace { seed: header.seed(), generation: header.generation },
            header_at: Mono(0),
            map,
            next_slot: header.durable_slots,
            next_body: header.durable_body_end.max(geometry.body_offset),
            next_name: format::HEADERS_END,
            next_host: geometry.hosts_offset,
            names: Vec::new(),
            names_by_destination: HashMap::new(),
            hosts: Vec::new(),
            hosts_by_name: HashMap::new(),
            live: 0,
            dirty_since: None,
            syncs: VecDeque::new(),
            poisoned: false,
            is_remade: false,
            appendable: false,
            extents_settled: Vec::new(),
            has_damage: false,
            releases: Vec::new(),
            holds: 0,
            forward_after: Mono(0),
        }
    }

    /// Stores the next header copy. Only right before a sync, and never while one runs that shall
    /// make the other copy durable: one of the two must be so while this one may tear.
    pub(super) fn store_header(&mut self, id_block_max: u64, now: Mono) {
        let is_open = self.syncs.iter().any(|sync| sync.has_header);
        assert!(!is_open && !self.poisoned, "a header copy would be written out of turn");
        self.header.sequence += 1;
        self.header_at = now;
        self.header.id_block_max = id_block_max;
        self.map.store_octets(self.header.copy_offset(), &self.header.encode());
    }

    /// Begins the next use of a free segment; in force when synced. Slots of the use before
    /// carry its generation and count no more, so nothing needs to be cleared: a cut between
    /// two pages of a cleared table would look like damage.
    pub(super) fn reuse(&mut self) -> Vec<Name> {
        assert!(self.live == 0 && self.holds == 0, "a segment with queued mail was given up");
        self.header.generation += 1;
        self.header.durable_slots = 0;
        self.header.durable_body_end = self.geometry.body_offset;
        self.place = TablePlace { seed: self.header.seed(), generation: self.header.generation };
        self.next_slot = 0;
        self.next_body = self.geometry.body_offset;
        self.next_name = format::HEADERS_END;
        self.next_host = self.geometry.hosts_offset;
        self.names_by_destination.clear();
        self.forward_after = Mono(0);
        self.hosts.clear();
        self.hosts_by_name.clear();
        self.appendable = true;
        std::mem::take(&mut self.names)
    }

    /// No more appends: what only appending needs is given back.
    pub(super) fn seal(&mut self) {
        self.appendable = false;
        self.names_by_destination = HashMap::new();
        self.names.shrink_to_fit();
    }

    /// Is its table kept in memory whatever happens?
    pub(super) fn is_locked(&self) -> bool {
        self.map.is_locked()
    }

    pub(super) fn slots_left(&self) -> u32 {
        self.geometry.slots - self.next_slot
    }

    pub(super) fn body_left(&self) -> u64 {
        self.geometry.octets - self.next_body
    }

    /// Room for `count` more names of `octets` octets of records together.
    pub(super) fn names_fit(&self, count: usize, octets: u64) -> bool {
        self.names.len() + count < usize::from(u16::MAX)
            && self.geometry.hosts_offset - self.next_name >= octets
    }

    pub(super) fn destination_index(&self, destination: u32) -> Option<u16> {
        self.names_by_destination.get(&destination).copied()
    }

    pub(super) fn label_index(&self, label: &str) -> Option<u16> {
        // Labels are the first names of nearly every segment, and few.
        let found = self.names.iter().position(|name| match name {
            Name::Label(text) => **text == *label,
            Name::Domain(_) => false,
        });
        found.and_then(|index| u16::try_from(index).ok())
    }

    /// Stores a name record; the caller has asked [`Self::names_fit`].
    pub(super) fn add_name(&mut self, name: Name, text: &str) -> u16 {
        let kind = match name {
            Name::Domain(_) => NameKind::Domain,
            Name::Label(_) => NameKind::Label,
        };
        let record = format::encode_name(self.place.seed, self.next_name, kind, text.as_bytes());
        self.map.store_octets(self.next_name, &record);
        self.note_name(name, record.len() as u64)
    }

    /// A name that stands in the table already, or now does.
    pub(super) fn note_name(&mut self, name: Name, record_octets: u64) -> u16 {
        let index = u16::try_from(self.names.len()).unwrap_or(u16::MAX);
        assert!(index != u16::MAX, "more names than a segment can count");
        self.next_name += record_octets;
        if let Name::Domain(number) = name {
            self.names_by_destination.insert(number, index);
        }
        self.names.push(name);
        index
    }

    /// The index of a host; `None` when the table of hosts is full.
    pub(super) fn host_index(&mut self, host: &Arc<str>) -> Option<u16> {
        if let Some(index) = self.hosts_by_name.get(host) {
            return Some(*index);
        }
        let octets = format::name_record_octets(host.len());
        let index = u16::try_from(self.hosts.len()).ok().filter(|index| *index != u16::MAX)?;
        if self.geometry.table_offset - self.next_host < octets || host.len() > 1024 {
            return None;
        }
        let seed = self.place.seed;
        let record = format::encode_name(seed, self.next_host, NameKind::Host, host.as_bytes());
        self.map.store_octets(self.next_host, &record);
        self.note_host(host.clone(), octets);
        Some(index)
    }

    pub(super) fn note_host(&mut self, host: Arc<str>, record_octets: u64) {
        let index = u16::try_from(self.hosts.len()).unwrap_or(u16::MAX);
        self.next_host += record_octets;
        self.hosts_by_name.insert(host.clone(), index);
        self.hosts.push(host);
    }

    pub(super) fn host(&self, index: u16) -> Option<Arc<str>> {
        self.hosts.get(usize::from(index)).cloned()
    }

    pub(super) fn label(&self, index: u16) -> Option<Arc<str>> {
        match self.names.get(usize::from(index))? {
            Name::Label(text) => Some(text.clone()),
            Name::Domain(_) => None,
        }
    }

    /// Stores slots that follow each other from `first` on.
    pub(super) fn store_slots(&mut self, first: u32, slots: &[SlotOctets]) {
        if !slots.is_empty() {
            self.map.store_octets(self.geometry.slot_offset(first), slots.as_flattened());
        }
    }

    #[cfg(test)]
    pub(super) fn refuse_stores(&mut self) {
        self.map.leave_file(io::ErrorKind::ReadOnlyFilesystem.into());
    }

    /// Why stores into it are refused.
    pub(super) fn store_failure(&self) -> Option<&io::Error> {
        self.map.failure()
    }

    /// Reads a slot of the table.
    ///
    /// # Errors
    /// The slot holds nothing that counts.
    pub(super) fn slot(&self, slot: u32) -> Result<Slot, SlotFault> {
        if slot >= self.geometry.slots {
            return Err(SlotFault::Bad);
        }
        let mut octets = [0; format::SLOT_OCTETS];
        self.map.load_octets(self.geometry.slot_offset(slot), &mut octets);
        Slot::decode(&octets, self.place, slot)
    }

    /// The RID of an entry, unchecked: for the search among entries that were verified when they
    /// were entered; who uses the slot checks it.
    pub(super) fn rid(&self, slot: u32) -> Rid {
        let word = self.map.load(self.geometry.slot_offset(slot) + 8).to_le_bytes();
        Rid(u32::from_le_bytes([word[4], word[5], word[6], word[7]]))
    }

    /// The MID of an entry, unchecked: for a search whose finds are checked.
    pub(super) fn mid(&self, slot: u32) -> Mid {
        Mid(self.map.load(self.geometry.slot_offset(slot) + 16))
    }

    /// The state of an entry. A word that is not what was stored makes it damaged: it may have
    /// been delivered, and it may not.
    pub(super) fn state(&self, slot: u32) -> StateWord {
        let word = self.map.load(self.geometry.slot_offset(slot) + format::STATE_OFFSET);
        StateWord::decode(word, self.place, slot)
            .unwrap_or(StateWord { state: State::Damaged, ..StateWord::READY })
    }

    /// Is the state word of an entry what was stored?
    pub(super) fn has_word(&self, slot: u32) -> bool {
        let word = self.map.load(self.geometry.slot_offset(slot) + format::STATE_OFFSET);
        StateWord::decode(word, self.place, slot).is_some()
    }

    /// In the file with [`Self::write_words`], or with anything else that is stored into it.
    pub(super) fn store_state(&mut self, slot: u32, word: StateWord, now: Mono) {
        let at = self.geometry.slot_offset(slot) + format::STATE_OFFSET;
        self.map.store(at, word.encode(self.place, slot));
        self.dirty_since.get_or_insert(now);
    }

    pub(super) fn outcome(&self, slot: u32) -> Option<OutcomeWord> {
        let word = self.map.load(self.geometry.slot_offset(slot) + format::OUTCOME_OFFSET);
        OutcomeWord::decode(word, self.place, slot)
    }

    /// As [`Self::store_state`].
    pub(super) fn store_outcome(&mut self, slot: u32, word: OutcomeWord, now: Mono) {
        let at = self.geometry.slot_offset(slot) + format::OUTCOME_OFFSET;
        self.map.store(at, word.encode(self.place, slot));
        self.dirty_since.get_or_insert(now);
    }

    /// Words that changed are in the file from here on.
    pub(super) fn write_words(&mut self) {
        self.map.write_held();
    }
}
