//! Messages before their commit: deliver-or-sync.
//!
//! Owns: messages whose final dot has come and whose commit has not: the state of each of their
//! recipients, in memory, and [`Safe`] by full acceptance. Never: a deferral or a bounce: those
//! wait until the message is on disk.
//!
//! A message is held back for a short time while its deliveries are under way. If every recipient
//! is accepted by its next hop (or discarded by its route) in that time, the message is answered
//! and never written. Otherwise it goes into a commit, each entry in the state it has at that
//! moment, and from then on lives in the table; what changed while it was being written is stored
//! behind it.
//!
//! An early [`Handle`] has its highest bit set. It stays valid after the commit, as another name
//! of the handle that the index gave, until [`Queue::forget_early`].
//!
//! Diagnostics: a commit that fails withdraws the recipients that were not begun; one that a next
//! hop then accepts after all is counted by its [`super::Change`] as always.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::batch::{Order, Pending};
use super::format::{State, StateWord};
use super::{
    Brief, Change, Event, Handles, NewMessage, Queue, RecipientSummary, Safe, Summary, Ticket,
};
use crate::mail::{Domain, Handle, Mono, Rid, Wall};

/// Set in every early handle.
const EARLY: u32 = 1 << 31;

/// True for a handle that was given out before its message was on disk.
pub(super) fn is_early(handle: Handle) -> bool {
    handle.0 & EARLY != 0
}

/// What has become of one recipient so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Ready,
    InFlight,
    Settled(State),
    /// The commit failed before its delivery began.
    Withdrawn,
}

impl Fate {
    fn word(self) -> StateWord {
        match self {
            Self::Settled(state) => StateWord { state, ..StateWord::READY },
            Self::InFlight => StateWord { in_flight: true, ..StateWord::READY },
            Self::Ready | Self::Withdrawn => StateWord::READY,
        }
    }
}

/// Where the message is on its way to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Held back.
    Held,
    /// In the next commit, or in the one under way.
    Writing,
    /// The commit failed; what was begun may still end.
    Failed,
}

struct EarlyMessage {
    /// Taken out when the message goes into a commit.
    pending: Option<Pending>,
    new: Arc<NewMessage>,
    ticket: Ticket,
    due: Mono,
    phase: Phase,
    /// Positions of the recipients, by domain and RID.
    order: Order,
    /// By place in `order`.
    fates: SmallVec<[Fate; 4]>,
    unsettled: u32,
    slots: SmallVec<[u32; 4]>,
    /// Where its entries stand in the table since they were stored: segment and first slot.
    stored: Option<(usize, u32)>,
}

/// What an early handle stands for.
enum Slot {
    Free,
    /// Places `first..end` in the order of a message that is not committed.
    Waits {
        message: u32,
        first: u32,
        end: u32,
    },
    /// The handle that the index gave at the commit.
    Entered(Handle),
    /// Settled before it was written.
    Gone,
}

/// All messages of a shard that are not committed.
#[derive(Default)]
pub(super) struct Early {
    messages: Vec<Option<EarlyMessage>>,
    messages_free: Vec<u32>,
    slots: Vec<Slot>,
    slots_free: Vec<u32>,
    /// Messages held back, in the order they came.
    held: VecDeque<u32>,
}

impl Queue {
    /// Keeps a complete message in memory until `due`, so that its deliveries may begin before
    /// its commit. Its handles come at once; the answer is [`Event::Accepted`] or
    /// [`Event::Committed`].
    ///
    /// # Errors
    /// As [`Queue::append`].
    pub fn take_early(
        &mut self,
        message: NewMessage,
        due: Mono,
    ) -> Result<(Ticket, Handles), super::Full> {
        let mut pending = self.admit(message)?;
        let key = self.early.messages_free.pop().unwrap_or_else(|| {
            self.early.messages.push(None);
            super::batch::count(self.early.messages.len() - 1)
        });
        pending.early = Some(key);
        let (ticket, new, order) = (pending.ticket, pending.message.clone(), pending.order.clone());
        let recipients = &new.envelope.recipients;
        let domain = |place: &u32| recipients[*place as usize].address.domain();
        let mut handles = Handles::new();
        let mut slots = SmallVec::new();
        let mut first = 0;
        for group in order.chunk_by(|a, b| domain(a) == domain(b)) {
            let end = first + super::batch::count(group.len());
            let slot = self.early.new_slot(Slot::Waits { message: key, first, end });
            slots.push(slot);
            handles.push((Handle(slot | EARLY), domain(&group[0]).clone()));
            first = end;
        }
        let fates = smallvec![Fate::Ready; order.len()];
        let unsettled = super::batch::count(order.len());
        let phase = Phase::Held;
        let pending = Some(pending);
        let message = EarlyMessage {
            pending,
            new,
            ticket,
            due,
            phase,
            order,
            fates,
            unsettled,
            slots,
            stored: None,
        };
        self.early.messages[key as usize] = Some(message);
        self.early.held.push_back(key);
        Ok((ticket, handles))
    }

    /// Puts messages whose hold-back is over into the next commit; when the next one is due.
    pub fn release_held(&mut self, now: Mono) -> Option<Mono> {
        while let Some(key) = self.early.held.front().copied() {
            match &self.early.messages[key as usize] {
                Some(message) if message.phase == Phase::Held && message.due > now => {
                    return Some(message.due);
                }
                Some(_) | None => {}
            }
            self.early.held.pop_front();
            self.write_early(key);
        }
        None
    }

    /// Puts the message of an early handle into the next commit: one of its recipients needs the
    /// disk.
    pub fn write_now(&mut self, handle: Handle) {
        if let Some(Slot::Waits { message, .. }) = self.early.slot(handle) {
            let key = *message;
            self.write_early(key);
        }
    }

    /// True while the message of a handle is neither committed nor given up.
    #[must_use]
    pub fn is_uncommitted(&self, handle: Handle) -> bool {
        is_early(handle) && matches!(self.early.slot(handle), Some(Slot::Waits { .. }))
    }

    /// True when the commit of a handle's message failed, while some of its recipients had been
    /// begun: what their hosts say still counts, and nothing else will come.
    #[must_use]
    pub fn is_refused(&self, handle: Handle) -> bool {
        let Some(Slot::Waits { message, .. }) = self.early.slot(handle) else { return false };
        let message = self.early.messages[*message as usize].as_ref();
        message.is_some_and(|message| message.phase == Phase::Failed)
    }

    /// The handle in the index, for an early handle whose message is on disk; else itself.
    #[must_use]
    pub fn current(&self, handle: Handle) -> Handle {
        match self.early.slot(handle) {
            Some(Slot::Entered(entered)) => *entered,
            Some(Slot::Waits { .. } | Slot::Gone | Slot::Free) | None => handle,
        }
    }

    /// Nobody will use this early handle any more: it may be given to another message. What its
    /// recipients came to is still written with their message.
    pub fn forget_early(&mut self, handle: Handle) {
        if !is_early(handle) {
            return;
        }
        let slot = handle.0 & !EARLY;
        if let Some((message, _)) = self.early.message_of(handle) {
            message.slots.retain(|known| *known != slot);
        }
        let was = std::mem::replace(&mut self.early.slots[slot as usize], Slot::Free);
        assert!(!matches!(was, Slot::Free), "an early handle was given back twice");
        self.early.slots_free.push(slot);
    }

    fn write_early(&mut self, key: u32) {
        let Some(message) = &mut self.early.messages[key as usize] else { return };
        if message.phase != Phase::Held {
            return;
        }
        message.phase = Phase::Writing;
        if let Some(pending) = message.pending.take() {
            self.enqueue(pending);
        }
    }

    /// Takes a recipient out of a message whose commit failed: it was begun, and not accepted.
    pub fn withdraw(&mut self, handle: Handle, rid: Rid) {
        let Some((message, mut places)) = self.early.message_of(handle) else { return };
        if message.phase != Phase::Failed {
            return;
        }
        let Some(place) = places.find(|place| message.rid(*place) == rid) else { return };
        if matches!(message.fates[place], Fate::Ready | Fate::InFlight) {
            message.fates[place] = Fate::Withdrawn;
            message.unsettled -= 1;
            if message.unsettled == 0 {
                self.early_accepted(handle);
            }
        }
    }

    pub(super) fn early_begin(&mut self, handle: Handle, rids: &[Rid]) -> usize {
        let Some((message, places)) = self.early.message_of(handle) else { return 0 };
        let mut begun = 0;
        for place in places {
            if message.fates[place] == Fate::Ready && rids.contains(&message.rid(place)) {
                message.fates[place] = Fate::InFlight;
                begun += 1;
            }
        }
        self.store_fates(handle);
        begun
    }

    pub(super) fn early_release(&mut self, handle: Handle, rid: Rid) -> Change {
        let applied = self.early.message_of(handle).is_some_and(|(message, mut places)| {
            let found = places.find(|place| message.rid(*place) == rid);
            let found = found.filter(|place| message.fates[*place] == Fate::InFlight);
            found.is_some_and(|place| {
                message.fates[place] = Fate::Ready;
                true
            })
        });
        self.store_fates(handle);
        Change { applied, handle_gone: false, message_gone: false }
    }

    pub(super) fn early_settle(&mut self, handle: Handle, rid: Rid, state: State) -> Change {
        let nothing = Change { applied: false, handle_gone: false, message_gone: false };
        let Some((message, places)) = self.early.message_of(handle) else { return nothing };
        let mut all = places.clone();
        let Some(place) = all.find(|place| message.rid(*place) == rid) else { return nothing };
        match message.fates[place] {
            Fate::Settled(_) | Fate::Withdrawn => return nothing,
            Fate::Ready | Fate::InFlight => {}
        }
        message.fates[place] = Fate::Settled(state);
        message.unsettled -= 1;
        let is_over = |fate: &Fate| matches!(fate, Fate::Settled(_) | Fate::Withdrawn);
        let handle_gone = message.fates[places].iter().all(is_over);
        let message_gone = message.unsettled == 0;
        self.store_fates(handle);
        if message_gone {
            self.early_accepted(handle);
        }
        Change { applied: true, handle_gone, message_gone }
    }

    /// The entries of a message are in the table, and its sync has not ended: a crash now must
    /// find what has happened since. Above all the mark in flight: without it the next start
    /// would repeat a delivery and not call it uncertain.
    fn store_fates(&mut self, handle: Handle) {
        let Some((message, places)) = self.early.message_of(handle) else { return };
        let Some((segment, first)) = message.stored else { return };
        let word = |place: usize| (first + super::batch::count(place), message.fates[place].word());
        let words: Vec<_> = places.map(word).collect();
        for (slot, word) in words {
            self.store_state(segment, slot, word);
        }
    }

    /// The entries of a message are about to be stored from slot `first` on: their words, as they
    /// are now.
    pub(super) fn early_stored(&mut self, key: u32, segment: usize, first: u32) -> Vec<StateWord> {
        let Some(message) = &mut self.early.messages[key as usize] else { return Vec::new() };
        message.stored = Some((segment, first));
        message.fates.iter().map(|fate| fate.word()).collect()
    }

    /// Every recipient is settled before the commit: the message is safe without the disk.
    fn early_accepted(&mut self, handle: Handle) {
        let Some(Slot::Waits { message: key, .. }) = self.early.slot(handle) else { return };
        let key = *key;
        let Some(message) = &mut self.early.messages[key as usize] else { return };
        let ticket = message.ticket;
        let phase = message.phase;
        for slot in std::mem::take(&mut message.slots) {
            self.early.slots[slot as usize] = Slot::Gone;
        }
        if phase != Phase::Failed {
            self.events.push_back(Event::Accepted { ticket, safe: Safe(()) });
        }
        match phase {
            // Never written.
            Phase::Held | Phase::Failed => self.early.drop_message(key),
            Phase::Writing => {}
        }
    }

    /// A commit comes to this message: false when it needs none any more.
    pub(super) fn early_needs_write(&mut self, key: u32) -> bool {
        let needs = self.early.messages[key as usize].as_ref().is_some_and(|m| m.unsettled > 0);
        if !needs {
            self.early.drop_message(key);
        }
        needs
    }

    /// The message is on disk, and `entered` are its handles in the index: what changed while it
    /// was written is stored, early handles become names of the new ones. False when it was
    /// answered before.
    pub(super) fn early_committed(&mut self, key: u32, entered: &[(Handle, Domain)]) -> bool {
        let Some(message) = self.early.messages[key as usize].take() else { return false };
        self.early.messages_free.push(key);
        let domain = |place: usize| {
            message.new.envelope.recipients[message.order[place] as usize].address.domain()
        };
        for slot in &message.slots {
            let Slot::Waits { first, .. } = self.early.slots[*slot as usize] else { continue };
            let of_domain = entered.iter().find(|(_, d)| d == domain(first as usize));
            self.early.slots[*slot as usize] =
                of_domain.map_or(Slot::Gone, |(handle, _)| Slot::Entered(*handle));
        }
        for (place, fate) in message.fates.iter().enumerate() {
            let Some((handle, _)) = entered.iter().find(|(_, d)| d == domain(place)) else {
                continue;
            };
            let rid = message.rid(place);
            match fate {
                // Not applied where the table says so already; counted when it was accepted.
                Fate::Settled(state) => drop_change(self.settle(*handle, rid, *state)),
                Fate::InFlight => {
                    self.begin(*handle, &[rid]);
                }
                Fate::Ready | Fate::Withdrawn => drop_change(self.release(*handle, rid)),
            }
        }
        message.unsettled > 0
    }

    /// The commit failed: recipients that were not begun are withdrawn. False when the message
    /// was answered before.
    pub(super) fn early_failed(&mut self, key: u32) -> bool {
        let Some(message) = &mut self.early.messages[key as usize] else { return false };
        message.phase = Phase::Failed;
        message.stored = None;
        let was_open = message.unsettled > 0;
        for fate in &mut message.fates {
            if *fate == Fate::Ready {
                *fate = Fate::Withdrawn;
                message.unsettled -= 1;
            }
        }
        if message.unsettled == 0 {
            for slot in std::mem::take(&mut message.slots) {
                self.early.slots[slot as usize] = Slot::Gone;
            }
            self.early.drop_message(key);
        }
        was_open
    }

    pub(super) fn early_summary(&self, handle: Handle) -> Option<Summary> {
        let Some(Slot::Waits { message, first, end }) = self.early.slot(handle) else {
            return None;
        };
        let message = self.early.messages[*message as usize].as_ref()?;
        let new = &message.new;
        let places = *first as usize..*end as usize;
        let open = |place: &usize| matches!(message.fates[*place], Fate::Ready | Fate::InFlight);
        let recipients = places.clone().filter(open).map(|place| {
            let recipient = &new.envelope.recipients[message.order[place] as usize];
            RecipientSummary {
                rid: recipient.rid,
                state: State::Ready,
                in_flight: message.fates[place] == Fate::InFlight,
                attempts: 0,
                next_attempt: Wall(0),
                notify: recipient.notify,
                last: None,
            }
        });
        let recipient = &new.envelope.recipients[message.order[places.start] as usize];
        Some(Summary {
            mid: new.mid,
            domain: recipient.address.domain().clone(),
            arrival: new.arrival,
            recipients: recipients.collect(),
            octets: new.body.bytes.len() as u64,
            facts: new.body.facts,
            body: new.envelope.body,
            smtputf8: new.envelope.smtputf8,
            ret: new.envelope.ret,
            bounce_profile: new.bounce_profile.clone(),
            listener: new.listener.clone(),
            cause: new.cause,
        })
    }

    pub(super) fn early_brief(&self, handle: Handle) -> Option<Brief> {
        let Some(Slot::Waits { message, .. }) = self.early.slot(handle) else { return None };
        let new = &self.early.messages[*message as usize].as_ref()?.new;
        Some(Brief {
            mid: new.mid,
            domain: self.early_domain(handle)?.clone(),
            arrival: new.arrival,
            bounce_profile: new.bounce_profile.clone(),
        })
    }

    pub(super) fn see_early(&self, handle: Handle, mut see: impl FnMut(Rid, StateWord)) {
        let Some(Slot::Waits { message, first, end }) = self.early.slot(handle) else { return };
        let Some(message) = &self.early.messages[*message as usize] else { return };
        let places = *first as usize..*end as usize;
        for (place, fate) in message.order[places.clone()].iter().zip(&message.fates[places]) {
            if matches!(fate, Fate::Ready | Fate::InFlight) {
                see(message.new.envelope.recipients[*place as usize].rid, fate.word());
            }
        }
    }

    pub(super) fn early_domain(&self, handle: Handle) -> Option<&Domain> {
        let Some(Slot::Waits { message, first, .. }) = self.early.slot(handle) else {
            return None;
        };
        let message = self.early.messages[*message as usize].as_ref()?;
        let place = message.order[*first as usize] as usize;
        Some(message.new.envelope.recipients[place].address.domain())
    }
}

/// The change was counted when the next hop accepted; the table only follows.
fn drop_change(change: Change) {
    let Change { applied: _, handle_gone: _, message_gone: _ } = change;
}

impl EarlyMessage {
    fn rid(&self, place: usize) -> Rid {
        self.new.envelope.recipients[self.order[place] as usize].rid
    }
}

impl Early {
    /// Messages that are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    fn new_slot(&mut self, slot: Slot) -> u32 {
        if let Some(free) = self.slots_free.pop() {
            self.slots[free as usize] = slot;
            return free;
        }
        self.slots.push(slot);
        super::batch::count(self.slots.len() - 1)
    }

    fn slot(&self, handle: Handle) -> Option<&Slot> {
        if is_early(handle) { self.slots.get((handle.0 & !EARLY) as usize) } else { None }
    }

    fn message_of(
        &mut self,
        handle: Handle,
    ) -> Option<(&mut EarlyMessage, std::ops::Range<usize>)> {
        let Some(Slot::Waits { message, first, end }) = self.slot(handle) else { return None };
        let (key, places) = (*message, *first as usize..*end as usize);
        self.messages[key as usize].as_mut().map(|message| (message, places))
    }

    fn drop_message(&mut self, key: u32) {
        if self.messages[key as usize].take().is_some() {
            self.messages_free.push(key);
        }
    }
}
