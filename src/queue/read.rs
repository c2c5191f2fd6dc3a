//! Reading: facts from the mapped table, and messages from the disk, verified before use.
//!
//! Owns: which octets are read, and the check that they are what was written. Never: the reading
//! itself (the executor reads through the ring).
//!
//! Diagnostics: [`Damaged`]; what it names is held and counted as damaged from then on.

use std::ops::Range;
use std::sync::Arc;

use super::early::is_early;
use super::format::{
    self, ExtentPlace, HeadTexts, MessageSlot, RecipientTexts, SegmentId, Slot, State, StateWord,
    flags,
};
use super::{LastOutcome, Queue, index};
use crate::limits;
use crate::mail::{
    Body, BodyKind, Domain, Envelope, Handle, Mailbox, MessageFacts, Mid, Notify, Recipient, Ret,
    Rid, Wall,
};

/// One recipient of a handle, as the table shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecipientSummary {
    /// Its id.
    pub rid: Rid,
    /// What has become of it.
    pub state: State,
    /// A delivery is under way.
    pub in_flight: bool,
    /// Attempts made.
    pub attempts: u16,
    /// When it is due next, when deferred.
    pub next_attempt: Wall,
    /// The sender's wishes for reports.
    pub notify: Notify,
    /// What the last attempt came to.
    pub last: Option<LastOutcome>,
}

/// What is known of a handle without reading from the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The message.
    pub mid: Mid,
    /// The receiving domain.
    pub domain: Domain,
    /// When it came.
    pub arrival: Wall,
    /// Recipients that are not settled, in the order of their RIDs.
    pub recipients: Vec<RecipientSummary>,
    /// Octets of the message.
    pub octets: u64,
    /// What was seen in it.
    pub facts: MessageFacts,
    /// BODY.
    pub body: BodyKind,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// Bounce profile of its listener.
    pub bounce_profile: Arc<str>,
    /// Its listener.
    pub listener: Arc<str>,
    /// The message it reports on.
    pub cause: Option<Mid>,
}

/// What an attempt needs to know of the message of a handle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Brief {
    /// The message.
    pub mid: Mid,
    /// The receiving domain.
    pub domain: Domain,
    /// When it came.
    pub arrival: Wall,
    /// Bounce profile of its listener.
    pub bounce_profile: Arc<str>,
}

/// Octets to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// From which segment.
    pub segment: SegmentId,
    /// From which offset.
    pub offset: u64,
    /// How many.
    pub octets: u64,
}

/// What to read, one piece behind the other into one buffer, for [`Queue::parse`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadPlan {
    /// The pieces.
    pub pieces: Vec<Piece>,
    /// Where the message stood when the plan was made.
    pub(super) origin: Origin,
}

/// Where a message stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    pub(super) mid: Mid,
    pub(super) source: usize,
    pub(super) message_slot: u32,
}

impl ReadPlan {
    /// Octets of all pieces.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.octets).sum()
    }
}

/// A message read back.
#[derive(Debug)]
pub struct StoredMessage {
    /// Its id.
    pub mid: Mid,
    /// When it came.
    pub arrival: Wall,
    /// Its envelope, with those recipients of the handle that are pending.
    pub envelope: Envelope,
    /// Where the operator redirected it to.
    pub redirect: Option<Box<str>>,
    /// What was read.
    pub octets: Vec<u8>,
    /// Where in it the message is.
    pub body: Range<usize>,
    /// What was seen in it.
    pub facts: MessageFacts,
    /// Recipients of the handle whose own record was damaged: now held.
    pub held: Vec<Rid>,
}

impl StoredMessage {
    /// The envelope and the message, for a session.
    #[must_use]
    pub fn into_parts(mut self) -> (Envelope, Arc<Body>) {
        self.octets.truncate(self.body.end);
        self.octets.drain(..self.body.start);
        (self.envelope, Arc::new(Body { bytes: self.octets.into(), facts: self.facts }))
    }
}

/// What was read is not what was written: these recipients are held now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damaged {
    /// Which ones; none when the handle was gone.
    pub held: Vec<Rid>,
    /// What is wrong, for the log.
    pub what: &'static str,
    /// Nothing is wrong: the message was copied forward since the plan was made. Plan again.
    pub moved: bool,
}

impl Queue {
    /// Octets of the body of a committed message; 0 when it is gone.
    #[must_use]
    pub fn body_octets(&self, handle: Handle) -> u64 {
        let handle = self.current(handle);
        let record = if is_early(handle) { None } else { self.index.get(handle) };
        let Some(record) = record else { return 0 };
        match self.segments[usize::from(record.segment)].slot(record.message_slot) {
            Ok(Slot::Message(message)) => message.body_octets,
            Ok(Slot::Entry(_) | Slot::Extents(_)) | Err(_) => 0,
        }
    }

    /// The part of [`Self::summary`] that attempts need; `None` as there.
    #[must_use]
    pub fn brief(&self, handle: Handle) -> Option<Brief> {
        let handle = self.current(handle);
        if is_early(handle) {
            return self.early_brief(handle);
        }
        let record = self.index.get(handle)?;
        let segment = &self.segments[usize::from(record.segment)];
        let Ok(Slot::Message(message)) = segment.slot(record.message_slot) else { return None };
        Some(Brief {
            mid: message.mid,
            domain: self.index.domain(record.destination).clone(),
            arrival: message.arrival,
            bounce_profile: segment.label(message.profile).unwrap_or_else(default_label),
        })
    }

    /// Shows the recipients of a handle that are not settled, in the order of their RIDs, each with
    /// its state. One whose slot is damaged in memory is passed over.
    pub fn see_recipients(&self, handle: Handle, mut see: impl FnMut(Rid, StateWord)) {
        let handle = self.current(handle);
        if is_early(handle) {
            return self.see_early(handle, see);
        }
        let Some(record) = self.index.get(handle) else { return };
        let segment = &self.segments[usize::from(record.segment)];
        for slot in self.slots(record) {
            let word = segment.state(slot);
            if word.state.is_settled() {
                continue;
            }
            if let Ok(Slot::Entry(entry)) = segment.slot(slot) {
                see(entry.rid, word);
            }
        }
    }

    /// What is known of a handle; `None` when it is gone or its slots are damaged in memory.
    #[must_use]
    pub fn summary(&self, handle: Handle) -> Option<Summary> {
        let handle = self.current(handle);
        if is_early(handle) {
            return self.early_summary(handle);
        }
        let record = self.index.get(handle)?;
        let segment = &self.segments[usize::from(record.segment)];
        let Ok(Slot::Message(message)) = segment.slot(record.message_slot) else { return None };
        let recipients = self
            .slots(record)
            .filter_map(|slot| match segment.slot(slot) {
                Ok(Slot::Entry(entry)) => Some((slot, entry)),
                Ok(Slot::Message(_) | Slot::Extents(_)) | Err(_) => None,
            })
            .filter_map(|(slot, entry)| {
                let word = segment.state(slot);
                let last = segment.outcome(slot).map(|last| LastOutcome {
                    code: last.code,
                    status: last.status,
                    host: last.host.and_then(|host| segment.host(host)),
                    warnings: last.warnings,
                });
                (!word.state.is_settled()).then_some(RecipientSummary {
                    rid: entry.rid,
                    state: word.state,
                    in_flight: word.in_flight,
                    attempts: word.attempts,
                    next_attempt: word.next_attempt,
                    notify: Notify(entry.notify),
                    last,
                })
            })
            .collect();
        Some(Summary {
            mid: message.mid,
            domain: self.index.domain(record.destination).clone(),
            arrival: message.arrival,
            recipients,
            octets: message.body_octets,
            facts: facts(message.flags),
            body: body_kind(message.flags),
            smtputf8: message.flags & flags::SMTPUTF8 != 0,
            ret: ret(message.flags),
            bounce_profile: segment.label(message.profile).unwrap_or_else(default_label),
            listener: segment.label(message.listener).unwrap_or_else(default_label),
            cause: message.cause,
        })
    }

    /// What to read for a handle; `None` when it is gone or its slots are damaged in memory.
    #[must_use]
    pub fn read_plan(&self, handle: Handle) -> Option<ReadPlan> {
        let handle = self.current(handle);
        let record = self.index.get(handle)?;
        let (message, records) = self.layout(record)?;
        let segment = &self.segments[usize::from(record.segment)];
        let name = segment.header.segment;
        let mut pieces = Vec::with_capacity(2);
        let mut add = |segment, offset, octets| match pieces.last_mut() {
            Some(Piece { segment: before, offset: at, octets: length })
                if *before == segment && *at + *length == offset =>
            {
                *length += octets;
            }
            _ => pieces.push(Piece { segment, offset, octets }),
        };
        add(name, message.head_offset, u64::from(message.head_octets));
        add(name, records.start, records.end - records.start);
        if message.extents == 0 {
            add(name, message.body_offset, message.body_octets);
        } else {
            let mut left = message.body_octets;
            for place in self.extents(record, &message)? {
                let octets = left.min(limits::EXTENT_OCTETS);
                let geometry = format::Geometry::of(
                    format::SegmentKind::Extents,
                    self.octets_of(format::SegmentKind::Extents),
                );
                add(place.segment, geometry.extent_offset(place.index), octets);
                left -= octets;
            }
        }
        let source = usize::from(record.segment);
        let origin = Origin { mid: message.mid, source, message_slot: record.message_slot };
        Some(ReadPlan { pieces, origin })
    }

    /// Verifies what was read by [`Self::read_plan`] and takes it apart. `octets` from a read
    /// that failed may be given as an empty buffer: the recipients are then held.
    ///
    /// # Errors
    /// See [`Damaged`].
    pub fn parse(
        &mut self,
        handle: Handle,
        plan: &ReadPlan,
        octets: Vec<u8>,
    ) -> Result<StoredMessage, Damaged> {
        let nothing = |what, moved| Damaged { held: Vec::new(), what, moved };
        let gone = || nothing("no longer queued", false);
        let handle = self.current(handle);
        let record = self.index.get(handle).ok_or_else(gone)?;
        let source = usize::from(record.segment);
        let first = self.segments[source].slot(record.first_slot);
        if matches!(first, Ok(Slot::Entry(entry)) if entry.mid != plan.origin.mid) {
            // The handle was given to another message meanwhile.
            return Err(gone());
        }
        if (source, record.message_slot) != (plan.origin.source, plan.origin.message_slot) {
            return Err(nothing("moved", true));
        }
        match self.parse_record(record, octets) {
            Ok((mut message, bad)) => {
                message.held =
                    bad.into_iter().filter(|rid| self.hold_damaged(handle, *rid)).collect();
                if message.envelope.recipients.is_empty() {
                    let what = "no recipient left";
                    return Err(Damaged { held: message.held, what, moved: false });
                }
                Ok(message)
            }
            Err(what) => Err(Damaged { held: self.hold_all(handle), what, moved: false }),
        }
    }

    /// Holds all pending recipients of a handle as damaged: for a message that could not be read.
    pub fn hold_all(&mut self, handle: Handle) -> Vec<Rid> {
        let Some(record) = self.index.get(handle) else { return Vec::new() };
        let segment = &self.segments[usize::from(record.segment)];
        let rids: Vec<Rid> = self.slots(record).map(|slot| segment.rid(slot)).collect();
        rids.into_iter().filter(|rid| self.hold_damaged(handle, *rid)).collect()
    }

    fn slots(&self, record: index::Record) -> Range<u32> {
        record.first_slot..record.first_slot + u32::from(record.entries)
    }

    /// The message slot, and where the records of the handle's recipients stand.
    fn layout(&self, record: index::Record) -> Option<(MessageSlot, Range<u64>)> {
        let segment = &self.segments[usize::from(record.segment)];
        let Ok(Slot::Message(message)) = segment.slot(record.message_slot) else { return None };
        let slots = self.slots(record);
        let Ok(Slot::Entry(first)) = segment.slot(slots.start) else { return None };
        let Ok(Slot::Entry(last)) = segment.slot(slots.end - 1) else { return None };
        let records = first.record_offset..last.record_offset + u64::from(last.record_octets);
        let sound = records.start < records.end && records.end <= segment.geometry.octets;
        sound.then_some((message, records))
    }

    pub(super) fn extents(
        &self,
        record: index::Record,
        message: &MessageSlot,
    ) -> Option<Vec<ExtentPlace>> {
        let segment = &self.segments[usize::from(record.segment)];
        let mut places = Vec::with_capacity(message.extents as usize);
        for slot in record.message_slot - message.extent_slots..record.message_slot {
            let Ok(Slot::Extents(part)) = segment.slot(slot) else { return None };
            places.extend(part.places);
        }
        Some(places)
    }

    /// The message and the recipients whose record is bad; an error when all of it is.
    fn parse_record(
        &self,
        record: index::Record,
        octets: Vec<u8>,
    ) -> Result<(StoredMessage, Vec<Rid>), &'static str> {
        let segment = &self.segments[usize::from(record.segment)];
        let seed = segment.place.seed;
        let (message, records) = self.layout(record).ok_or("damaged slot")?;
        let head_end = message.head_octets as usize;
        let records_octets = usize::try_from(records.end - records.start).unwrap_or(usize::MAX);
        let body_start = head_end.saturating_add(records_octets);
        let head = octets.get(..head_end).ok_or("envelope cut off")?;
        if format::checksum_at(seed, message.head_offset, head) != message.head_checksum {
            return Err("damaged envelope");
        }
        let texts = HeadTexts::decode(head).ok_or("damaged envelope")?;
        let sender = texts.sender.map(Mailbox::parse).transpose().map_err(|_| "damaged sender")?;
        let body = octets.get(body_start..).ok_or("message cut off")?;
        if body.len() as u64 != message.body_octets {
            return Err("message cut off");
        }
        self.check_body(record, &message, body)?;
        let mut recipients = Vec::with_capacity(usize::from(record.entries));
        let mut bad = Vec::new();
        for slot in self.slots(record) {
            if !segment.state(slot).state.is_pending() {
                continue;
            }
            let found = self.recipient(record, slot, &octets[head_end..body_start], records.start);
            match found {
                Some(recipient) => recipients.push(recipient),
                None => bad.push(segment.rid(slot)),
            }
        }
        let text = |t: &[u8]| String::from_utf8_lossy(t).into_owned().into_boxed_str();
        let envelope = Envelope {
            sender,
            body: body_kind(message.flags),
            smtputf8: message.flags & flags::SMTPUTF8 != 0,
            ret: ret(message.flags),
            envid: texts.envid.map(text),
            recipients,
        };
        let stored = StoredMessage {
            mid: message.mid,
            arrival: message.arrival,
            envelope,
            redirect: texts.redirect.map(text),
            body: body_start..octets.len(),
            octets,
            facts: facts(message.flags),
            held: Vec::new(),
        };
        Ok((stored, bad))
    }

    fn check_body(
        &self,
        record: index::Record,
        message: &MessageSlot,
        body: &[u8],
    ) -> Result<(), &'static str> {
        if message.extents == 0 {
            let seed = self.segments[usize::from(record.segment)].place.seed;
            let right =
                format::checksum_at(seed, message.body_offset, body) == message.body_checksum;
            return right.then_some(()).ok_or("damaged body");
        }
        let places = self.extents(record, message).ok_or("damaged slot")?;
        let extent_octets = usize::try_from(limits::EXTENT_OCTETS).unwrap_or(usize::MAX);
        let parts = body.chunks(extent_octets);
        if parts.len() != places.len() {
            return Err("damaged slot");
        }
        let right = |(part, place): (&[u8], &ExtentPlace)| {
            extent_checksum(self.options.spool, place, part) == place.checksum
        };
        parts.zip(&places).all(right).then_some(()).ok_or("damaged extent")
    }

    fn recipient(
        &self,
        record: index::Record,
        slot: u32,
        records: &[u8],
        records_offset: u64,
    ) -> Option<Recipient> {
        let segment = &self.segments[usize::from(record.segment)];
        let Ok(Slot::Entry(entry)) = segment.slot(slot) else { return None };
        let start = usize::try_from(entry.record_offset.checked_sub(records_offset)?).ok()?;
        let octets = records.get(start..start.checked_add(entry.record_octets as usize)?)?;
        let sum = format::checksum_at(segment.place.seed, entry.record_offset, octets);
        if sum != entry.record_checksum {
            return None;
        }
        let texts = RecipientTexts::decode(octets)?;
        let address = Mailbox::parse(texts.address).ok()?;
        let orcpt = texts.orcpt.map(|t| String::from_utf8_lossy(t).into_owned().into_boxed_str());
        let right = address.domain() == self.index.domain(record.destination);
        right.then_some(Recipient { rid: entry.rid, address, notify: Notify(entry.notify), orcpt })
    }
}

/// Stands for a label whose record is damaged.
fn default_label() -> Arc<str> {
    Arc::from("default")
}

/// The checksum of the octets in use of an extent.
pub(super) fn extent_checksum(spool: format::SpoolId, place: &ExtentPlace, part: &[u8]) -> u32 {
    let seed = format::seed(spool, place.segment, place.generation);
    let offset = format::HEADERS_END + u64::from(place.index) * limits::EXTENT_OCTETS;
    format::checksum_at(seed, offset, part)
}

fn facts(bits: u8) -> MessageFacts {
    MessageFacts {
        leading_dot: bits & flags::LEADING_DOT != 0,
        eight_bit: bits & flags::EIGHT_BIT != 0,
        utf8_header: bits & flags::UTF8_HEADER != 0,
    }
}

fn body_kind(bits: u8) -> BodyKind {
    if bits & flags::BODY_8BITMIME == 0 { BodyKind::SevenBit } else { BodyKind::EightBitMime }
}

fn ret(bits: u8) -> Option<Ret> {
    if bits & flags::RET_FULL != 0 {
        Some(Ret::Full)
    } else {
        (bits & flags::RET_HEADERS != 0).then_some(Ret::Headers)
    }
}
