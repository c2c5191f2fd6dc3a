//! Destinations of one shard: what is ready, what waits, and whose turn it is.
//!
//! Owns: the ready list of each receiving domain, the turn among them, the list of what a
//! wake-up would wake, and the timers. Never: routes, lanes, the messages.
//!
//! Ready lists feed lanes one delivery at a time, in turn by destination: ten thousand messages
//! for one domain delay a single one for another by one delivery. A destination that cannot feed
//! (its lane is full, it is suspended, its rate is used up) is set aside until it is poked, and
//! costs nothing meanwhile.
//!
//! A [`Handle`] stands in one place only: ready, deferred (timer), or under way. Waiting for
//! hosts is a timer too, due at the end of the time in queue, so that expiry holds there. The
//! wake list names deferrals by handle and due time; one that fired or was removed meanwhile is
//! passed over. A handle must not be used for another delivery while it stands in a ready list;
//! [`Destinations::remove`] takes it out.
//!
//! Diagnostics: an id that names no destination, and an end that had no begin, are our own
//! mistakes and panic; poking a forgotten destination is harmless.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::mail::{Domain, Handle, Mono};

use super::deferred::{Deferred, Due};
use super::gate::{Gate, Sign};

/// Names a destination inside one shard, for as long as it has mail there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DestinationId(u32);

/// What one destination holds, for status pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Deliveries in the ready list.
    pub ready: usize,
    /// Deliveries with a timer: deferred, or waiting for hosts.
    pub deferred: usize,
    /// Deliveries in lanes and sessions.
    pub under_way: usize,
}

#[derive(Debug)]
struct Destination {
    domain: Domain,
    gate: Arc<Gate>,
    settings_epoch: u64,
    ready: VecDeque<Handle>,
    deferred: usize,
    under_way: usize,
    /// Deferrals that a wake-up wakes, oldest first; some of them gone meanwhile.
    wake_list: VecDeque<(Handle, Due)>,
    /// Place in `Destinations::listed`, while the wake list is not empty.
    listed_at: Option<usize>,
    is_waking: bool,
    is_aside: bool,
    is_in_ring: bool,
}

impl Destination {
    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.deferred == 0 && self.under_way == 0
    }
}

/// All destinations of one shard that have mail.
#[derive(Default)]
pub struct Destinations {
    by_domain: HashMap<Domain, u32>,
    slots: Vec<Option<Destination>>,
    free: Vec<u32>,
    /// Whose turn it is: destinations with ready mail that are not set aside, each once.
    ring: VecDeque<u32>,
    timers: Deferred,
    /// Destinations with a wake list.
    listed: Vec<u32>,
    /// Those of them whose mail is being woken.
    waking: Vec<u32>,
    /// [`super::gate::Gates::wakes`] when it was last looked at.
    wakes_seen: u64,
    /// Where the next sweep goes on.
    sweep_at: (usize, usize),
}

impl Destinations {
    /// No destinations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The destination of a domain, if it has mail here.
    #[must_use]
    pub fn find(&self, domain: &Domain) -> Option<DestinationId> {
        self.by_domain.get(domain).copied().map(DestinationId)
    }

    /// The destination of a domain; a new one gets its gate from `gate`. It lasts until it has
    /// no mail any more: give it some.
    pub fn enter(&mut self, domain: &Domain, gate: impl FnOnce() -> Arc<Gate>) -> DestinationId {
        if let Some(known) = self.find(domain) {
            return known;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer destinations than handles")
        });
        self.by_domain.insert(domain.clone(), slot);
        self.slots[slot as usize] = Some(Destination {
            domain: domain.clone(),
            gate: gate(),
            settings_epoch: 0,
            ready: VecDeque::new(),
            deferred: 0,
            under_way: 0,
            wake_list: VecDeque::new(),
            listed_at: None,
            is_waking: false,
            is_aside: false,
            is_in_ring: false,
        });
        DestinationId(slot)
    }

    /// Its receiving domain.
    #[must_use]
    pub fn domain(&self, id: DestinationId) -> &Domain {
        &self.get(id).domain
    }

    /// Its wake-up gate.
    #[must_use]
    pub fn gate(&self, id: DestinationId) -> &Arc<Gate> {
        &self.get(id).gate
    }

    /// What it holds.
    #[must_use]
    pub fn counts(&self, id: DestinationId) -> Counts {
        let destination = self.get(id);
        Counts {
            ready: destination.ready.len(),
            deferred: destination.deferred,
            under_way: destination.under_way,
        }
    }

    /// All destinations.
    pub fn iter(&self) -> impl Iterator<Item = (DestinationId, &Domain)> {
        self.by_domain.iter().map(|(domain, slot)| (DestinationId(*slot), domain))
    }

    /// The domains of up to `items_max` places from place `from` on, and the place to go on from;
    /// at the end it begins anew. Work on all destinations is done in such slices.
    #[must_use]
    pub fn slice(&self, from: usize, items_max: usize) -> (usize, Vec<Domain>) {
        let places = self.slots.iter().skip(from).take(items_max);
        let domains = places.flatten().map(|destination| destination.domain.clone()).collect();
        let next = from + items_max;
        (if next < self.slots.len() { next } else { 0 }, domains)
    }

    /// Remembers which settings it uses; true when they were others before.
    pub fn use_settings(&mut self, id: DestinationId, epoch: u64) -> bool {
        std::mem::replace(&mut self.get_mut(id).settings_epoch, epoch) != epoch
    }

    /// A delivery may be attempted: at the end of the ready list.
    pub fn push_ready(&mut self, id: DestinationId, handle: Handle) {
        self.get_mut(id).ready.push_back(handle);
        self.join_ring(id);
    }

    /// The next delivery, by turn of the destinations; it is under way until
    /// [`Destinations::done`] or [`Destinations::set_aside`].
    pub fn next_ready(&mut self) -> Option<(DestinationId, Handle)> {
        while let Some(slot) = self.ring.pop_front() {
            let id = DestinationId(slot);
            let destination = self.get_mut(id);
            destination.is_in_ring = false;
            if destination.is_aside {
                continue;
            }
            if let Some(handle) = destination.ready.pop_front() {
                destination.under_way += 1;
                self.join_ring(id);
                return Some((id, handle));
            }
            self.forget_if_empty(id);
        }
        None
    }

    /// A delivery that stands in no list is under way until [`Destinations::done`]: one that
    /// [`Destinations::sweep`] took out.
    pub fn begin(&mut self, id: DestinationId) {
        self.get_mut(id).under_way += 1;
    }

    /// The delivery that [`Destinations::next_ready`] gave cannot go on now: it returns to the
    /// front, and its destination is passed over until it is poked.
    pub fn set_aside(&mut self, id: DestinationId, handle: Handle) {
        let destination = self.get_mut(id);
        destination.under_way = less_one(destination.under_way);
        destination.ready.push_front(handle);
        destination.is_aside = true;
    }

    /// The delivery that [`Destinations::next_ready`] gave went on, but no other can: the
    /// destination is passed over until it is poked.
    pub fn pause(&mut self, id: DestinationId) {
        self.get_mut(id).is_aside = true;
    }

    /// The destination may feed again.
    pub fn poke(&mut self, id: DestinationId) {
        if let Some(Some(destination)) = self.slots.get_mut(id.0 as usize) {
            destination.is_aside = false;
            self.join_ring(id);
        }
    }

    /// Every destination may feed again: routes or settings changed.
    pub fn poke_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.poke(DestinationId(u32::try_from(slot).unwrap_or(u32::MAX)));
        }
    }

    /// A delivery that was under way has ended here: settled, deferred, or given back by
    /// [`Destinations::push_ready`]. Call this last; the destination may be forgotten.
    pub fn done(&mut self, id: DestinationId) {
        let destination = self.get_mut(id);
        destination.under_way = less_one(destination.under_way);
        self.forget_if_empty(id);
    }

    /// A delivery waits until `due`. `sign` is what its last attempt said of the destination:
    /// deferred while the destination is down, and not for its mailbox's sake, it will be woken.
    pub fn defer(&mut self, id: DestinationId, handle: Handle, due: Mono, sign: Sign) {
        let due = self.timers.insert(due, handle);
        let destination = self.get_mut(id);
        destination.deferred += 1;
        let speaks_of_host = matches!(sign, Sign::HostRefusal | Sign::Trouble);
        if speaks_of_host && destination.gate.is_down() {
            self.list(id, handle, due);
        }
    }

    /// A delivery found all hosts down and was not attempted: it waits for one to come up, until
    /// its time in queue ends at `expires`. Tells the gate.
    pub fn wait(&mut self, id: DestinationId, handle: Handle, expires: Mono) {
        let due = self.timers.insert(expires, handle);
        let destination = self.get_mut(id);
        destination.deferred += 1;
        destination.gate.hosts_down();
        self.list(id, handle, due);
    }

    /// Deliveries whose time has come, `items_max` at most. Their owner calls
    /// [`Destinations::fired`] for each and then decides: ready or expired.
    pub fn expire(&mut self, now: Mono, items_max: usize) -> Vec<Handle> {
        self.timers.expire(now, items_max)
    }

    /// Takes note that a timer of this destination fired: the delivery is under way until
    /// [`Destinations::done`].
    pub fn fired(&mut self, id: DestinationId) {
        let destination = self.get_mut(id);
        destination.deferred = less_one(destination.deferred);
        destination.under_way += 1;
    }

    /// When [`Destinations::expire`] next has work.
    #[must_use]
    pub fn next_due(&self) -> Option<Mono> {
        self.timers.next_due()
    }

    /// When a delivery is due; `None` when it has no timer.
    #[must_use]
    pub fn due(&self, handle: Handle) -> Option<Due> {
        self.timers.due(handle)
    }

    /// Makes up to `items_max` deliveries ready that the gates let through, oldest first. To be
    /// called a few times a second with [`super::gate::Gates::wakes`]: nothing but a comparison
    /// while no destination came up.
    pub fn wake(&mut self, now: Mono, wakes: u64, items_max: usize) -> usize {
        if wakes != self.wakes_seen {
            self.wakes_seen = wakes;
            self.find_waking();
        }
        let mut woken = 0;
        for slot in std::mem::take(&mut self.waking) {
            let id = DestinationId(slot);
            while woken < items_max && self.wake_one(id, now) {
                woken += 1;
            }
            let destination = self.get_mut(id);
            destination.is_waking =
                destination.gate.is_waking() && !destination.wake_list.is_empty();
            if destination.is_waking {
                self.waking.push(slot);
            } else if destination.wake_list.is_empty() {
                self.unlist(id);
            }
        }
        woken
    }

    /// True while [`Destinations::wake`] must be called again although no gate moved.
    #[must_use]
    pub fn is_waking(&self) -> bool {
        !self.waking.is_empty()
    }

    /// Makes a deferred delivery ready now (`delivernow`); false when it has no timer.
    pub fn deliver_now(&mut self, id: DestinationId, handle: Handle) -> bool {
        let had_timer = self.timers.remove(handle);
        if had_timer {
            let destination = self.get_mut(id);
            destination.deferred = less_one(destination.deferred);
            self.push_ready(id, handle);
        }
        had_timer
    }

    /// Takes a delivery out of timers or ready list, for the operator. Searches the ready list;
    /// false when it is under way (or not here).
    pub fn remove(&mut self, id: DestinationId, handle: Handle) -> bool {
        let had_timer = self.timers.remove(handle);
        let destination = self.get_mut(id);
        if had_timer {
            destination.deferred = less_one(destination.deferred);
        } else {
            let Some(place) = destination.ready.iter().position(|h| *h == handle) else {
                return false;
            };
            destination.ready.remove(place);
        }
        self.forget_if_empty(id);
        true
    }

    /// Looks at the next `items_max` ready deliveries, going round, and takes those out for which
    /// `keep` is false: expiry of mail that is ready but gets no turn. The order of a list from
    /// which something was taken changes a little. Returns what was taken.
    pub fn sweep(
        &mut self,
        items_max: usize,
        mut keep: impl FnMut(DestinationId, Handle) -> bool,
    ) -> Vec<(DestinationId, Handle)> {
        let mut taken = Vec::new();
        let mut slots_left = self.slots.len();
        let mut items_left = items_max;
        while items_left > 0 && slots_left > 0 {
            let (slot, place) = self.sweep_at;
            let ready = self.slots.get_mut(slot).and_then(Option::as_mut).map(|d| &mut d.ready);
            let id = DestinationId(u32::try_from(slot).unwrap_or(u32::MAX));
            let Some((ready, handle)) = ready.and_then(|r| r.get(place).copied().map(|h| (r, h)))
            else {
                self.sweep_at = ((slot + 1) % self.slots.len(), 0);
                slots_left -= 1;
                continue;
            };
            items_left -= 1;
            if keep(id, handle) {
                self.sweep_at.1 += 1;
            } else {
                ready.swap_remove_back(place);
                taken.push((id, handle));
                self.forget_if_empty(id);
            }
        }
        taken
    }

    fn join_ring(&mut self, id: DestinationId) {
        let destination = self.get_mut(id);
        let belongs = !destination.is_aside && !destination.ready.is_empty();
        if belongs && !destination.is_in_ring {
            destination.is_in_ring = true;
            self.ring.push_back(id.0);
        }
    }

    fn list(&mut self, id: DestinationId, handle: Handle, due: Due) {
        let at = self.listed.len();
        let Some(Some(destination)) = self.slots.get_mut(id.0 as usize) else { return };
        destination.wake_list.push_back((handle, due));
        if destination.wake_list.len() > 2 * destination.deferred + 64 {
            destination.wake_list.retain(|(handle, due)| self.timers.due(*handle) == Some(*due));
        }
        if destination.listed_at.is_none() {
            destination.listed_at = Some(at);
            self.listed.push(id.0);
        }
    }

    fn unlist(&mut self, id: DestinationId) {
        let Some(at) = self.get_mut(id).listed_at.take() else { return };
        self.listed.swap_remove(at);
        if let Some(moved) = self.listed.get(at).copied() {
            self.get_mut(DestinationId(moved)).listed_at = Some(at);
        }
    }

    fn find_waking(&mut self) {
        for slot in &self.listed {
            let Some(Some(destination)) = self.slots.get_mut(*slot as usize) else { continue };
            if !destination.is_waking && destination.gate.is_waking() {
                destination.is_waking = true;
                self.waking.push(*slot);
            }
        }
    }

    fn wake_one(&mut self, id: DestinationId, now: Mono) -> bool {
        let Some(Some(destination)) = self.slots.get_mut(id.0 as usize) else { return false };
        while let Some((handle, due)) = destination.wake_list.front().copied() {
            if self.timers.due(handle) != Some(due) {
                destination.wake_list.pop_front();
            } else if destination.gate.take(now, 1) == 1 {
                destination.wake_list.pop_front();
                return self.deliver_now(id, handle);
            } else {
                return false;
            }
        }
        false
    }

    /// A destination in the ring is forgotten when its turn comes.
    fn forget_if_empty(&mut self, id: DestinationId) {
        let destination = self.get(id);
        if !destination.is_empty() || destination.is_in_ring {
            return;
        }
        if destination.is_waking {
            self.waking.retain(|slot| *slot != id.0);
        }
        self.unlist(id);
        if let Some(destination) = self.slots[id.0 as usize].take() {
            self.by_domain.remove(&destination.domain);
            self.free.push(id.0);
        }
    }

    fn get(&self, id: DestinationId) -> &Destination {
        self.slots[id.0 as usize].as_ref().expect("the id of a destination with mail")
    }

    fn get_mut(&mut self, id: DestinationId) -> &mut Destination {
        self.slots[id.0 as usize].as_mut().expect("the id of a destination with mail")
    }
}

fn less_one(count: usize) -> usize {
    count.checked_sub(1).expect("every end has a begin")
}

#[cfg(test)]
mod tests;
