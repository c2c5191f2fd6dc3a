//! Appending: group commit, and the segments it needs.
//!
//! Owns: what goes into the next commit, and when it is written. Never: a retry of a failed write.
//!
//! While one commit is synced the next one collects. From [`AHEAD_OCTETS`] on its octets are
//! written meanwhile, so that a busy disk goes from one sync to the next. Below that it may be
//! worth a moment to wait for company: see [`Queue::is_expecting`].
//!
//! Diagnostics: [`Event::Failed`] for what a failed effect carried.

use std::sync::Arc;

use smallvec::SmallVec;

use super::commit::Commit;
use super::format::{self, SegmentKind};
use super::forward::Move;
use super::place::{chunks_of, head_texts, recipient_texts};
use super::room::Claim;
use super::{Chunk, Effect, Event, Full, NewMessage, Purpose, Queue, Ticket};
use crate::limits;
use crate::mail::{Body, Domain, MessageFacts};

/// A commit begins no further message above this, to keep its latency bounded.
pub(super) const COMMIT_OCTETS_MAX: u64 = 16 << 20;

/// As much as this is written while the commit before is synced; less is not worth a write.
const AHEAD_OCTETS: u64 = 256 << 10;

/// After a commit of fewer messages nobody is expected.
const COMPANY_MIN: usize = 8;

/// Positions of recipients in their envelope, few nearly always.
pub(super) type Order = SmallVec<[u32; 4]>;

/// An append that waits for its commit.
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    pub(super) message: Arc<NewMessage>,
    /// Its deliveries began before its commit.
    pub(super) early: Option<u32>,
    /// Positions of the recipients, by domain and RID: entries of a domain are adjacent.
    pub(super) order: Order,
    pub(super) head_octets: usize,
    pub(super) envelope_octets: u64,
    pub(super) extents: u32,
    /// Octets of body room that it takes, by whichever of the two, table or bodies, is used up
    /// first.
    need: u64,
}

impl Pending {
    fn body_octets(&self) -> u64 {
        if self.extents > 0 { 0 } else { self.message.body.bytes.len() as u64 }
    }

    pub(super) fn octets(&self) -> u64 {
        self.envelope_octets + self.body_octets()
    }

    pub(super) fn extent_slots(&self) -> u32 {
        self.extents.div_ceil(count(format::EXTENTS_PER_SLOT))
    }

    fn slots(&self) -> u32 {
        count(self.order.len()) + self.extent_slots() + 1
    }

    /// The receiving domains, each once.
    fn domains(&self) -> impl Iterator<Item = &Domain> {
        let recipients = &self.message.envelope.recipients;
        let at = |i: usize| recipients[self.order[i] as usize].address.domain();
        (0..self.order.len()).filter(move |i| *i == 0 || at(*i) != at(i - 1)).map(at)
    }
}

/// What a commit gathers while messages take their places.
pub(super) struct Gather {
    pub(super) commit: Commit,
    /// Envelopes, small messages and small parts of others.
    pub(super) buffer: Vec<u8>,
    /// Messages that are written from where they lie, each part behind so much of the buffer.
    pub(super) bodies: Vec<(usize, Chunk)>,
    /// Where this write begins, behind which octets and which slots.
    pub(super) start: u64,
    pub(super) octets_before: u64,
    pub(super) slots_before: usize,
    /// It goes past the page cache, in whole blocks, and all of it by way of the buffer.
    pub(super) direct: bool,
    /// Octets of the buffer before the first one that is written.
    pub(super) lead: usize,
    /// Where its next octet goes.
    pub(super) at: u64,
    pub(super) extent_writes: Vec<(usize, u64, Vec<Chunk>)>,
}

impl Queue {
    /// Takes a message into the next commit.
    ///
    /// # Errors
    /// See [`Full`]; the message is then not in the queue.
    pub fn append(&mut self, message: NewMessage) -> Result<Ticket, Full> {
        let pending = self.admit(message)?;
        let ticket = pending.ticket;
        self.enqueue(pending);
        Ok(ticket)
    }

    /// Messages that wait for a commit.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Is what waits for its write about to get company? Clients that send as fast as they are
    /// answered have their next messages here soon after the end of a commit. A sync costs as much
    /// CPU time as many messages, whatever it brings; without a moment's patience those clients
    /// would share two syncs for ever, half of them in each. True until as many wait as did at that
    /// end and were in that commit, or until [`Self::expect_no_more`].
    #[must_use]
    pub fn is_expecting(&self) -> bool {
        let is_at_rest =
            self.effects.is_empty() && self.writing.is_none() && self.syncing.is_empty();
        is_at_rest
            && self.moves.is_empty()
            && self.pending.len() < self.expected
            && self.pending_octets < AHEAD_OCTETS
    }

    /// Whoever has not come by now is not waited for.
    pub fn expect_no_more(&mut self) {
        self.expected = 0;
    }

    /// A commit has ended well: the clients of so many messages are answered by it. Those of early
    /// ones are not expected, for what they send next is held back first.
    pub(super) fn expect_again(&mut self, messages: usize) {
        let all = (self.pending.len() + messages).min(self.options.commit_messages_max);
        self.expected = if messages >= COMPANY_MIN { all } else { 0 };
    }

    /// Puts a message that was admitted into the next commit.
    pub(super) fn enqueue(&mut self, pending: Pending) {
        self.pending_octets += pending.need;
        self.pending.push_back(pending);
    }

    fn take_pending(&mut self) -> Option<Pending> {
        let pending = self.pending.pop_front()?;
        self.pending_octets -= pending.need;
        Some(pending)
    }

    fn put_back(&mut self, pending: Pending) {
        self.pending_octets += pending.need;
        self.pending.push_front(pending);
    }

    fn need(&self, pending: &Pending) -> u64 {
        let geometry = self.message_geometry();
        let slot_share = (geometry.octets - geometry.body_offset) / u64::from(geometry.slots);
        pending.octets().max(u64::from(pending.slots()) * slot_share)
    }

    /// Is there room for this message?
    pub(super) fn admit(&mut self, message: NewMessage) -> Result<Pending, Full> {
        assert!(!message.envelope.recipients.is_empty(), "a message without recipients");
        assert!(message.envelope.recipients.len() <= limits::RECIPIENTS_MAX);
        let pending = self.measure(message)?;
        let geometry = self.message_geometry();
        let body_max = geometry.octets - geometry.body_offset;
        let need = pending.need;
        let names: u64 =
            pending.domains().map(|d| format::name_record_octets(d.as_str().len())).sum();
        let labels = pending.message.bounce_profile.len() + pending.message.listener.len() + 32;
        let names_max = geometry.hosts_offset - format::HEADERS_END;
        if need > body_max
            || pending.slots() > geometry.slots
            || names + labels as u64 > names_max
            || u64::from(pending.extents) * limits::EXTENT_OCTETS > self.options.octets_max
        {
            return Err(Full::TooLarge);
        }
        if pending.extents > 0 {
            self.has_extents_for(pending.message.body.bytes.len() as u64)?;
        }
        if self.pending_octets + need > self.room(Claim::of(&pending.message)) {
            return Err(Full::NoSpace);
        }
        Ok(pending)
    }

    /// Issues what can be issued now: a sync alone, so that the disk works while the next write
    /// is put together.
    pub(super) fn advance(&mut self) {
        self.start_commit_sync();
        if !self.effects.is_empty() {
            return;
        }
        if self.is_write_due() {
            self.begin_write();
        }
        self.prepare_spares();
        self.watch_intake();
    }

    fn measure(&mut self, message: NewMessage) -> Result<Pending, Full> {
        let recipients = &message.envelope.recipients;
        let mut order: Order = (0..count(recipients.len())).collect();
        if order.len() > 1 {
            let key = |i: &u32| {
                let recipient = &recipients[*i as usize];
                (recipient.address.domain(), recipient.rid)
            };
            order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
            let twice = order.windows(2).any(|pair| key(&pair[0]) == key(&pair[1]));
            assert!(!twice, "a RID stands twice in one message");
        }
        let head_octets = head_texts(&message.envelope).octets();
        let recipient_octets: usize =
            recipients.iter().map(|recipient| recipient_texts(recipient).octets()).sum();
        let body_octets = message.body.bytes.len() as u64;
        if body_octets > limits::MESSAGE_OCTETS_MAX {
            return Err(Full::TooLarge);
        }
        let in_extents = body_octets > limits::INLINE_MESSAGE_OCTETS_MAX;
        let extents = if in_extents { body_octets.div_ceil(limits::EXTENT_OCTETS) } else { 0 };
        self.last_id += 1;
        let mut pending = Pending {
            ticket: Ticket(self.last_id),
            message: Arc::new(message),
            early: None,
            order,
            head_octets,
            envelope_octets: (head_octets + recipient_octets) as u64,
            extents: u32::try_from(extents).map_err(|_| Full::TooLarge)?,
            need: 0,
        };
        pending.need = self.need(&pending);
        Ok(pending)
    }

    /// Is something to be written now? Behind a running sync only what is worth it; before one
    /// that only waits for its writes, nothing. Never beside another write: it would begin in the
    /// block that the other one ends.
    fn is_write_due(&self) -> bool {
        if !self.syncing.is_empty() {
            let rests = |commit: &Commit| commit.left == 0 && !commit.failed;
            return self.pending_octets >= AHEAD_OCTETS && self.writing.as_ref().is_none_or(rests);
        }
        self.writing.is_none() && !(self.pending.is_empty() && self.moves.is_empty())
    }

    /// Messages that were accepted by all next hops meanwhile are not written.
    fn drop_settled(&mut self) {
        while let Some(key) = self.pending.front().and_then(|pending| pending.early)
            && !self.early_needs_write(key)
        {
            self.take_pending();
        }
    }

    /// Writes what waits, as a new commit or as more of the one that is being written.
    fn begin_write(&mut self) {
        self.drop_settled();
        let fits = |active| match (self.pending.front(), self.moves.front()) {
            (Some(first), _) => self.fits(active, first, 0, 0),
            (None, Some(first)) => self.move_fits(active, first, 0, 0),
            (None, None) => true,
        };
        if let Some(commit) = &self.writing
            && (self.active != Some(commit.segment) || !fits(commit.segment))
        {
            return;
        }
        if let Some(active) = self.active.filter(|active| !fits(*active)) {
            self.active = None;
            self.segments[active].seal();
            self.free_if_empty(active);
            self.busy = true;
        }
        if self.active.is_none() {
            self.active = self.spares.pop_front();
        }
        let Some(active) = self.active else {
            self.prepare_spares();
            if self.segments_coming() == 0 {
                self.fail_pending();
                self.moves.clear();
            }
            return;
        };
        let mut gather = self.gather(active);
        let mut without_extents = Vec::new();
        while let Some(pending) = self.take_pending() {
            if pending.early.is_some_and(|key| !self.early_needs_write(key)) {
                continue;
            }
            let (slots, octets) = gather.taken();
            if gather.commit.messages.len() >= self.options.commit_messages_max
                || gather.is_full()
                || !self.fits(active, &pending, slots, octets)
            {
                self.put_back(pending);
                break;
            }
            if count(self.extents_free.len()) < pending.extents {
                without_extents.push(pending);
                continue;
            }
            self.place(&pending, &mut gather);
        }
        if !without_extents.is_empty() {
            self.make(SegmentKind::Extents);
            let coming = self.making.iter().any(|(kind, _)| *kind == SegmentKind::Extents);
            for pending in without_extents.into_iter().rev() {
                if coming {
                    self.put_back(pending);
                } else {
                    self.fail(pending.ticket, pending.early);
                }
            }
        }
        self.place_moves(&mut gather);
        self.write(gather);
    }

    /// Copies go with what is appended, behind it.
    fn place_moves(&mut self, gather: &mut Gather) {
        while let Some(first) = self.moves.front() {
            let (slots, octets) = gather.taken();
            let fits = self.move_fits(gather.commit.segment, first, slots, octets);
            if gather.is_full() || !fits {
                return;
            }
            if let Some(moving) = self.moves.pop_front() {
                self.place_move(moving, gather);
            }
        }
    }

    fn move_fits(&self, segment: usize, moving: &Move, slots: u32, octets: u64) -> bool {
        let live = &self.segments[segment];
        let (profile, listener) = self.labels_of(moving);
        let mut name_octets =
            format::name_record_octets(profile.len()) + format::name_record_octets(listener.len());
        for handle in &moving.handles {
            let domain = self.domain(*handle).map_or(0, |domain| domain.as_str().len());
            name_octets += format::name_record_octets(domain);
        }
        live.slots_left() >= slots + moving.slots()
            && live.body_left() >= octets + moving.octets()
            && live.names_fit(2 + moving.handles.len(), name_octets)
    }

    fn fail_pending(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            self.fail(pending.ticket, pending.early);
        }
        self.pending_octets = 0;
    }

    /// A message is not on disk and will not be: its client hears 451, unless every recipient
    /// was accepted before.
    pub(super) fn fail(&mut self, ticket: Ticket, early: Option<u32>) {
        if early.is_none_or(|key| self.early_failed(key)) {
            self.events.push_back(Event::Failed { ticket });
        }
    }

    fn fits(&self, segment: usize, pending: &Pending, slots: u32, octets: u64) -> bool {
        let live = &self.segments[segment];
        let (mut names, mut name_octets) = (2, 0);
        for label in [&pending.message.bounce_profile, &pending.message.listener] {
            name_octets += format::name_record_octets(label.len());
        }
        for domain in pending.domains() {
            let known = self.index.known(domain).and_then(|n| live.destination_index(n));
            if known.is_none() {
                names += 1;
                name_octets += format::name_record_octets(domain.as_str().len());
            }
        }
        live.slots_left() >= slots + pending.slots()
            && live.body_left() >= octets + pending.octets()
            && live.names_fit(names, name_octets)
    }

    fn write(&mut self, mut gather: Gather) {
        let (slots, _) = gather.taken();
        gather.fill_block();
        let Gather { mut commit, buffer, bodies, start, at, lead, direct, extent_writes, .. } =
            gather;
        let gathered = Arc::new(Body { bytes: buffer.into(), facts: MessageFacts::default() });
        if slots == 0 {
            // Nothing was taken in; earlier writes of the commit may be under way.
            self.writing = Some(commit).filter(|commit| !commit.slots.is_empty());
            self.gathered = Some(gathered);
            return;
        }
        let chunks = chunks_of(&gathered, lead, bodies);
        self.gathered = Some(gathered);
        commit.left += 1 + extent_writes.len();
        let segment = &mut self.segments[commit.segment];
        segment.next_slot += slots;
        segment.next_body = at;
        commit.body_end = at;
        let (name, segment) = (segment.header.segment, commit.segment);
        self.writing = Some(commit);
        let id = self.effect_id(Purpose::CommitWrite(segment));
        self.effects.push_back(Effect::Write { id, segment: name, offset: start, chunks, direct });
        for (segment, offset, chunks) in extent_writes {
            let name = self.segments[segment].header.segment;
            let id = self.effect_id(Purpose::CommitWrite(segment));
            let direct = false;
            self.effects.push_back(Effect::Write { id, segment: name, offset, chunks, direct });
        }
    }
}

pub(super) fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
