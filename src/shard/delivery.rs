//! The story of one delivery: schedule, route, connect, transact, settle.
//!
//! Owns: [`Delivery`], one message with those of its recipients in one receiving domain that
//! travel together, and [`Shard::go_on`], the one function that moves it from its place in a
//! ready list to its end. Never: the decisions: whose turn it is (`schedule`), which host
//! (`route`), what was said (`smtp`), what that means (`settle`), what is remembered (`queue`).
//!
//! A delivery splits when its recipients get different outcomes; the pieces of one handle are
//! counted, and when the last one has ended the handle goes back to the timers, or is gone.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::destination::{Destination, Way, no_route};
use super::early::Parked;
use super::hot::{Lent, Message};
use super::pool::Served;
use super::{Shard, Stopping};
use crate::mail::{Dcid, Failure, Handle, Mid, Recipient, RecipientOutcome, Rid, Wall};
use crate::queue::{Brief, Queue, State, Summary};
use crate::route::{Choice, Host, HostSet, Pick};
use crate::schedule::settings::BounceProfile;
use crate::schedule::{DestinationId, Sign, retry};

/// Timers of deferred mail reach this far at most, in milliseconds: what a wrong wall clock can
/// delay.
const DUE_AHEAD_MS_MAX: u64 = 24 * 3600 * 1000;

/// Deliveries fed in one go before the sockets have their turn.
const FEED_MAX: usize = 256;

/// No host of the plan: it has not taken a turn under the routes in force.
const NO_HOST: usize = usize::MAX;

/// Recipients of a delivery, few nearly always.
pub(super) type Rids = SmallVec<[Rid; 4]>;

/// One message with those of its recipients in one receiving domain that travel together.
pub(super) struct Delivery {
    pub(super) handle: Handle,
    pub(super) mid: Mid,
    pub(super) rids: Rids,
    pub(super) destination: Rc<Destination>,
    pub(super) profile: Arc<BounceProfile>,
    pub(super) arrival: Wall,
    /// Attempts before this one.
    pub(super) attempts: u32,
    /// Hosts tried in this attempt.
    pub(super) tried: HostSet,
    /// The host whose turn it took.
    pub(super) host: usize,
    /// The failure on the last host tried.
    pub(super) last: Option<Box<(Failure, Dcid)>>,
    /// A host of this attempt failed for the moment: it may take later what another one cannot.
    pub(super) failed_for_now: bool,
    /// Every command waits for its reply: the repeat after a reply that spoke of our dialogue.
    pub(super) strict: bool,
}

/// What is under way for one handle.
pub(super) struct UnderWay {
    id: DestinationId,
    pieces: u32,
    /// What its last failure said of the destination.
    pub(super) sign: Sign,
    /// It found all hosts down and was not attempted.
    waits: bool,
}

/// Where a delivery stands in its story.
pub(super) enum Step {
    /// It has its turn in the ready list.
    Ready(DestinationId, Handle),
    /// It needs a host it has not tried.
    Route(Delivery),
    /// A session is done with it on a host.
    Answered { delivery: Delivery, outcomes: Vec<(Rid, RecipientOutcome)>, at: At },
    /// Its attempt has come to an end without a host left.
    NoHostLeft(Delivery),
}

/// The connection on which something was said.
#[derive(Clone)]
pub(super) struct At {
    pub(super) served: Rc<Served>,
    pub(super) dcid: Dcid,
}

impl Shard {
    /// Moves a delivery on: the whole story, from its place in the ready list to its end.
    pub(super) fn go_on(self: &Rc<Self>, step: Step) {
        match step {
            // schedule: out of the queue comes an object, or several with few recipients each.
            Step::Ready(id, handle) => {
                let Some(all) = self.take_up(id, handle) else { return };
                let most = all.destination.controls.recipients_per_transaction_max;
                self.split(all, most, |delivery| self.go_on(Step::Route(delivery)));
            }
            // route: a turn among the hosts that are up and not tried yet.
            Step::Route(mut delivery) => {
                self.follow_route(&mut delivery);
                let destination = delivery.destination.clone();
                let plan = match &destination.way {
                    Way::Hosts(plan) => plan,
                    Way::Discard => return self.discard(delivery),
                    Way::Nowhere => return self.defer(delivery, no_route(), Dcid(0)),
                };
                let now = self.now().mono;
                let fill = |pick: Pick<'_>| self.lane_fill(&destination, pick);
                match plan.choose(now, &delivery.tried, fill) {
                    // connect: into the lane of that host, where a session takes it.
                    Choice::Turn(pick) => {
                        pick.host.count_turn(self.id);
                        delivery.host = pick.index;
                        self.enter_lane(delivery, pick, false);
                    }
                    Choice::Wait(pick) => {
                        pick.host.count_turn(self.id);
                        delivery.host = pick.index;
                        self.enter_lane(delivery, pick, true);
                    }
                    Choice::Probe(pick) => {
                        self.probe(&destination, pick);
                        self.no_host_is_up(delivery);
                    }
                    Choice::AllDown { until: _ } => self.no_host_is_up(delivery),
                    Choice::Exhausted { all_down: _ } => self.go_on(Step::NoHostLeft(delivery)),
                }
            }
            // transact happened in `session`; settle: each recipient by its own outcome.
            Step::Answered { delivery, outcomes, at } => self.judge(delivery, outcomes, &at),
            Step::NoHostLeft(mut delivery) => match delivery.last.take().map(|last| *last) {
                Some((failure, dcid)) => self.defer(delivery, failure, dcid),
                None => self.no_host_is_up(delivery),
            },
        }
    }

    /// Under a new configuration the destination may have other hosts, none of them tried.
    fn follow_route(&self, delivery: &mut Delivery) {
        if delivery.destination.epoch != self.config().epoch {
            delivery.destination = self.destination(&delivery.destination.domain);
            delivery.tried = HostSet::default();
            delivery.host = NO_HOST;
        }
    }

    /// Feeds lanes from the ready lists; false when there is more than one go may take.
    pub(super) fn feed(self: &Rc<Self>) -> bool {
        for _ in 0..FEED_MAX {
            if self.stopping() != Stopping::No {
                return true;
            }
            let next = self.destinations.borrow_mut().next_ready();
            let Some((id, handle)) = next else { return true };
            self.go_on(Step::Ready(id, handle));
        }
        false
    }

    /// A queued handle may be attempted now.
    pub(super) fn make_ready(&self, handle: Handle, domain: &crate::mail::Domain) {
        let gate = || self.destination(domain).gate.clone();
        let mut destinations = self.destinations.borrow_mut();
        let id = destinations.enter(domain, gate);
        destinations.push_ready(id, handle);
        drop(destinations);
        self.feed_bell.ring();
    }

    /// Destinations that were set aside may feed again.
    pub(super) fn poke(&self, ids: Vec<DestinationId>) {
        if !ids.is_empty() {
            let mut destinations = self.destinations.borrow_mut();
            ids.into_iter().for_each(|id| destinations.poke(id));
            self.feed_bell.ring();
        }
    }

    /// The recipients of a handle that are due. Those whose time in queue is over bounce here,
    /// before the attempt.
    fn take_up(self: &Rc<Self>, id: DestinationId, handle: Handle) -> Option<Delivery> {
        let brief = self.queue.borrow().brief(handle);
        let Some(brief) = brief else {
            self.queue.borrow_mut().forget_early(handle);
            self.destinations.borrow_mut().done(id);
            return None;
        };
        let now = self.queue_now();
        let (rids, attempts) = due_at(&self.queue.borrow(), handle, now.wall);
        let all = self.delivery_of(handle, &brief, rids, attempts);
        let under_way = UnderWay { id, pieces: 1, sign: Sign::Mailbox, waits: false };
        self.under_way.borrow_mut().insert(handle, under_way);
        if all.rids.is_empty() {
            self.end_piece(handle);
            return None;
        }
        if self.clock.is_expired(&all.profile, all.arrival, now.mono) {
            self.bounce(all, retry::expiry_failure(), Dcid(0), None);
            return None;
        }
        Some(all)
    }

    /// A ready delivery whose time in queue is over before it got its turn.
    pub(super) fn expire_one(self: &Rc<Self>, handle: Handle) {
        let Some(domain) = self.queue.borrow().domain(handle).cloned() else { return };
        let destination = self.destination(&domain);
        let mut destinations = self.destinations.borrow_mut();
        let id = destinations.enter(&domain, || destination.gate.clone());
        destinations.begin(id);
        drop(destinations);
        self.go_on(Step::Ready(id, handle));
    }

    /// Schedules what recovery found: ready mail now, deferred mail at its stored time.
    pub(super) fn schedule_found(self: &Rc<Self>, handle: Handle) {
        let Some(summary) = self.queue.borrow().summary(handle) else { return };
        let Some(due) = earliest(&summary) else { return };
        let now = self.queue_now();
        if due <= now.wall {
            return self.make_ready(handle, &summary.domain);
        }
        let destination = self.destination(&summary.domain);
        let mut destinations = self.destinations.borrow_mut();
        let id = destinations.enter(&summary.domain, || destination.gate.clone());
        let due = retry::due_on(now, due, DUE_AHEAD_MS_MAX);
        destinations.defer(id, handle, due, Sign::Mailbox);
    }

    fn delivery_of(&self, handle: Handle, brief: &Brief, rids: Rids, attempts: u32) -> Delivery {
        let profile = &brief.bounce_profile;
        Delivery {
            handle,
            mid: brief.mid,
            rids,
            destination: self.destination(&brief.domain),
            profile: self.config().bounce_profile_for(profile, &brief.domain).clone(),
            arrival: brief.arrival,
            attempts,
            tried: HostSet::default(),
            host: NO_HOST,
            last: None,
            failed_for_now: false,
            strict: false,
        }
    }

    /// Gives `each` the pieces of at most `most` recipients, nearly always one.
    pub(super) fn split(&self, delivery: Delivery, most: u32, mut each: impl FnMut(Delivery)) {
        let most = usize::try_from(most.max(1)).unwrap_or(usize::MAX);
        if delivery.rids.len() <= most {
            return each(delivery);
        }
        let pieces = delivery.rids.chunks(most);
        self.count_pieces(delivery.handle, pieces.len() - 1);
        pieces.for_each(|rids| each(delivery.part(rids)));
    }

    pub(super) fn count_pieces(&self, handle: Handle, more: usize) {
        if let Some(under_way) = self.under_way.borrow_mut().get_mut(&handle) {
            under_way.pieces += u32::try_from(more).unwrap_or(u32::MAX);
        }
    }

    /// Puts a delivery into the lane of the host whose turn it took. `bound`: the lane is full
    /// and the turn must not be lost; the destination then feeds no more until there is room.
    pub(super) fn enter_lane(self: &Rc<Self>, delivery: Delivery, pick: Pick<'_>, bound: bool) {
        let served = self.lane(&delivery.destination, pick);
        let id = self.id_of(delivery.handle);
        self.hold_back_no_more(delivery.handle, &served);
        let mut lane = served.lane.borrow_mut();
        self.split(delivery, served.host.recipients_max(u32::MAX), |piece| lane.push_bound(piece));
        if let (true, Some(id)) = (bound, id) {
            lane.block(id);
            self.holds_up(&served);
            self.destinations.borrow_mut().pause(id);
        }
        drop(lane);
        self.serve(&served);
    }

    /// The destination of a handle that is under way.
    pub(super) fn id_of(&self, handle: Handle) -> Option<DestinationId> {
        self.under_way.borrow().get(&handle).map(|under_way| under_way.id)
    }

    /// Room in memory for the body of a delivery; `None`: not now, its turn comes again.
    pub(super) fn lend(&self, delivery: &Delivery) -> Option<Lent> {
        let (hot, uncommitted) = (self.hot.borrow(), self.uncommitted.borrow());
        let known = hot.peek(delivery.mid).or_else(|| uncommitted.get(&delivery.mid));
        let octets = known.map_or_else(
            || self.queue.borrow().body_octets(delivery.handle),
            |message| message.body.bytes.len() as u64,
        );
        hot.lend(octets)
    }

    /// The recipients as the session needs them.
    pub(super) async fn load(
        self: &Rc<Self>,
        delivery: Delivery,
    ) -> Option<(Delivery, Arc<Message>)> {
        let hot = self.hot.borrow().get(delivery.mid);
        let known = hot.or_else(|| self.uncommitted.borrow().get(&delivery.mid).cloned());
        if let Some(message) = known {
            return Some((delivery, message));
        }
        match self.read_back(delivery.handle).await {
            Some(message) => {
                let held = |rid: &Rid| !message.envelope.recipients.iter().any(|r| r.rid == *rid);
                let mut delivery = delivery;
                delivery.rids.retain(|rid| !held(&*rid));
                if delivery.rids.is_empty() {
                    self.end_piece(delivery.handle);
                    return None;
                }
                Some((delivery, message))
            }
            None => {
                self.end_piece(delivery.handle);
                None
            }
        }
    }

    /// A session begins a transaction: from the next [`Self::write_words`] on, which comes before
    /// anything is sent, a crash leaves these recipients `uncertain`.
    pub(super) fn begin(&self, delivery: &Delivery, dcid: Dcid) {
        // Recipients that the operator settled meanwhile are not in the list any more; a mark
        // that could not be set belongs to one that goes out all the same, at least once.
        self.queue.borrow_mut().begin(delivery.handle, &delivery.rids);
        self.log(|log, now| log.delivery_start(now, dcid, delivery.mid, &delivery.rids));
    }

    /// A round is over: what it changed is in the table from here on, whatever becomes of the
    /// process.
    pub(super) fn write_words(&self) {
        self.queue.borrow_mut().write_words();
    }

    /// All hosts are down and none was tried: not an attempt. It waits for one to come up, until
    /// its time in queue ends.
    fn no_host_is_up(self: &Rc<Self>, delivery: Delivery) {
        if let Some((failure, dcid)) = delivery.last.as_deref().cloned() {
            return self.defer(delivery, failure, dcid);
        }
        delivery.destination.forget_refusals_of_down_hosts(self.now().mono);
        if let Some(under_way) = self.under_way.borrow_mut().get_mut(&delivery.handle) {
            under_way.waits = true;
        }
        self.end_piece(delivery.handle);
    }

    /// Takes recipients out of flight, as they were before.
    pub(super) fn release(&self, handle: Handle, rids: &[Rid]) {
        let mut queue = self.queue.borrow_mut();
        for rid in rids {
            // Not in flight any more: settled by the operator meanwhile.
            let _changed = queue.release(handle, *rid).applied;
        }
    }

    /// A piece of a handle has ended. After the last one, what is left of the handle gets a
    /// timer: the earliest time at which one of its recipients is due.
    pub(super) fn end_piece(&self, handle: Handle) {
        let mut all = self.under_way.borrow_mut();
        let Some(under_way) = all.get_mut(&handle) else { return };
        under_way.pieces -= 1;
        if under_way.pieces > 0 {
            return;
        }
        let Some(under_way) = all.remove(&handle) else { return };
        drop(all);
        self.end_handle(handle, under_way);
    }

    /// All pieces of a handle have ended: what is left of it goes to the timers.
    pub(super) fn end_handle(&self, handle: Handle, under_way: UnderWay) {
        let summary = self.queue.borrow().summary(handle);
        if let Some(summary) = &summary
            && !summary.recipients.is_empty()
            && self.must_park(handle)
        {
            return self.park(summary.mid, Parked::Rest(handle, under_way));
        }
        let early = handle;
        let handle = self.queue.borrow().current(early);
        self.queue.borrow_mut().forget_early(early);
        let mut destinations = self.destinations.borrow_mut();
        if let Some(summary) = summary {
            let now = self.queue_now();
            let profile = self.config();
            let profile = profile.bounce_profile_for(&summary.bounce_profile, &summary.domain);
            let ends = self.clock.expires_at(profile, summary.arrival, now.mono);
            if under_way.waits {
                let due = retry::due_on(now, ends, DUE_AHEAD_MS_MAX);
                destinations.wait(under_way.id, handle, due);
            } else if let Some(due) = earliest(&summary) {
                let due = retry::due_on(now, due, DUE_AHEAD_MS_MAX);
                destinations.defer(under_way.id, handle, due, under_way.sign);
            }
        }
        destinations.done(under_way.id);
    }
}

impl Delivery {
    /// Some of its recipients, with the same past.
    pub(super) fn part(&self, rids: impl Into<Rids>) -> Delivery {
        Delivery {
            handle: self.handle,
            mid: self.mid,
            rids: rids.into(),
            destination: self.destination.clone(),
            profile: self.profile.clone(),
            arrival: self.arrival,
            attempts: self.attempts,
            tried: self.tried,
            host: self.host,
            last: self.last.clone(),
            failed_for_now: self.failed_for_now,
            strict: self.strict,
        }
    }

    /// The connection to the host whose turn this delivery took failed: it was tried.
    pub(super) fn host_failed(&mut self, failure: Failure, dcid: Dcid) {
        self.tried.insert(self.host);
        self.failed_for_now |= failure.status.class == 4;
        self.last = Some(Box::new((failure, dcid)));
    }

    /// Its index of `host`, if that is an untried one of the priority of its present host.
    pub(super) fn equal_host(&self, host: &Host) -> Option<usize> {
        let plan = self.destination.plan()?;
        let index = plan.hosts().iter().position(|known| known.address() == host.address())?;
        let is_equal = plan.priority(index) == plan.priority(self.host);
        (is_equal && !self.tried.contains(index)).then_some(index)
    }

    /// Its recipients out of the message's envelope.
    pub(super) fn recipients_of(&self, message: &Message) -> Vec<Recipient> {
        let wanted = |r: &&Recipient| self.rids.contains(&r.rid);
        message.envelope.recipients.iter().filter(wanted).cloned().collect()
    }
}

/// The recipients to be attempted at `now`, and the most attempts that one of them has had. A
/// handle without one that is due was made ready before its time, by a wake-up or by the operator:
/// all that are deferred go then.
fn due_at(queue: &Queue, handle: Handle, now: Wall) -> (Rids, u32) {
    let by = |now: Wall| {
        let (mut rids, mut attempts) = (Rids::new(), 0);
        queue.see_recipients(handle, |rid, word| {
            let is_due = match word.state {
                State::Ready => true,
                State::Deferred => word.next_attempt <= now,
                _ => false,
            };
            if is_due {
                rids.push(rid);
                attempts = attempts.max(u32::from(word.attempts));
            }
        });
        (rids, attempts)
    };
    let due = by(now);
    if due.0.is_empty() { by(Wall(u64::MAX)) } else { due }
}

/// When the first pending recipient is due; ready ones are due at once.
fn earliest(summary: &Summary) -> Option<Wall> {
    let due = summary.recipients.iter().filter_map(|r| match r.state {
        State::Ready => Some(Wall(0)),
        State::Deferred => Some(r.next_attempt),
        _ => None,
    });
    due.min()
}
