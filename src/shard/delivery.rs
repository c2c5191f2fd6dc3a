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

use super::destination::{Destination, Way, no_route};
use super::hot::Message;
use super::pool::Served;
use super::{Shard, Stopping};
use crate::mail::{Dcid, Failure, Handle, Mid, Mono, Recipient, RecipientOutcome, Rid, Wall};
use crate::queue::{LastOutcome, State, Summary};
use crate::route::{Choice, HostSet};
use crate::schedule::settings::BounceProfile;
use crate::schedule::{DestinationId, Retry, Sign, retry};
use crate::settle::recipient::{Context, Verdict};
use crate::settle::{self, HostEffect, recipient};

/// Timers of deferred mail reach this far at most, in milliseconds: what a wrong wall clock can
/// delay.
const DUE_AHEAD_MS_MAX: u64 = 24 * 3600 * 1000;

/// Deliveries fed in one go before the sockets have their turn.
const FEED_MAX: usize = 256;

/// One message with those of its recipients in one receiving domain that travel together.
pub(super) struct Delivery {
    pub(super) handle: Handle,
    pub(super) mid: Mid,
    pub(super) rids: Vec<Rid>,
    pub(super) destination: Rc<Destination>,
    pub(super) profile: Arc<BounceProfile>,
    arrival: Wall,
    /// Attempts before this one.
    attempts: u32,
    /// Hosts tried in this attempt.
    tried: HostSet,
    /// The host whose turn it took.
    host: usize,
    /// The failure on the last host tried.
    last: Option<(Failure, Dcid)>,
    /// Every command waits for its reply: the repeat after a reply that spoke of our dialogue.
    pub(super) strict: bool,
}

/// What is under way for one handle.
pub(super) struct UnderWay {
    id: DestinationId,
    pieces: u32,
    /// What its last failure said of the destination.
    sign: Sign,
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
                for delivery in self.take_up(id, handle) {
                    self.go_on(Step::Route(delivery));
                }
            }
            // route: a turn among the hosts that are up and not tried yet.
            Step::Route(mut delivery) => {
                let destination = delivery.destination.clone();
                let plan = match &destination.way {
                    Way::Hosts(plan) => plan,
                    Way::Discard => return self.discard(delivery),
                    Way::Nowhere => return self.defer(delivery, no_route(), Dcid(0)),
                };
                let now = self.now().mono;
                let fill = |pick: crate::route::Pick<'_>| self.lane_fill(&destination, pick);
                match plan.choose(now, &delivery.tried, fill) {
                    // connect: into the lane of that host, where a session takes it.
                    Choice::Turn(pick) => {
                        pick.host.count_turn(self.id);
                        delivery.host = pick.index;
                        self.enter_lane(delivery, pick.host, false);
                    }
                    Choice::Wait(pick) => {
                        pick.host.count_turn(self.id);
                        delivery.host = pick.index;
                        self.enter_lane(delivery, pick.host, true);
                    }
                    Choice::Probe(pick) => {
                        self.probe(&destination, pick.host);
                        self.no_host_is_up(delivery);
                    }
                    Choice::AllDown { until: _ } => self.no_host_is_up(delivery),
                    Choice::Exhausted { all_down: _ } => self.go_on(Step::NoHostLeft(delivery)),
                }
            }
            // transact happened in `session`; settle: each recipient by its own outcome.
            Step::Answered { delivery, outcomes, at } => self.judge(delivery, outcomes, &at),
            Step::NoHostLeft(mut delivery) => match delivery.last.take() {
                Some((failure, dcid)) => self.defer(delivery, failure, dcid),
                None => self.no_host_is_up(delivery),
            },
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

    /// The recipients of a handle that are due, as deliveries of at most as many recipients as
    /// one transaction takes. Those whose time in queue is over bounce here, before the attempt.
    fn take_up(self: &Rc<Self>, id: DestinationId, handle: Handle) -> Vec<Delivery> {
        let summary = self.queue.borrow().summary(handle);
        let Some(summary) = summary else {
            self.destinations.borrow_mut().done(id);
            return Vec::new();
        };
        let now = self.now().wall;
        let due = |r: &&crate::queue::RecipientSummary| match r.state {
            State::Ready => true,
            State::Deferred => r.next_attempt <= now,
            _ => false,
        };
        let due: Vec<_> = summary.recipients.iter().filter(due).collect();
        let rids: Vec<Rid> = due.iter().map(|r| r.rid).collect();
        let attempts = due.iter().map(|r| u32::from(r.attempts)).max().unwrap_or(0);
        let all = self.delivery_of(handle, &summary, rids, attempts);
        let under_way = UnderWay { id, pieces: 1, sign: Sign::Mailbox, waits: false };
        self.under_way.borrow_mut().insert(handle, under_way);
        if all.rids.is_empty() {
            self.end_piece(handle);
            return Vec::new();
        }
        if retry::is_expired(&all.profile, all.arrival, now) {
            self.bounce(all, retry::expiry_failure(), Dcid(0), None);
            return Vec::new();
        }
        let most = all.destination.controls.recipients_per_transaction_max;
        self.split(all, most)
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
        let now = self.now();
        if due <= now.wall {
            return self.make_ready(handle, &summary.domain);
        }
        let destination = self.destination(&summary.domain);
        let mut destinations = self.destinations.borrow_mut();
        let id = destinations.enter(&summary.domain, || destination.gate.clone());
        let due = retry::due_on(now, due, DUE_AHEAD_MS_MAX);
        destinations.defer(id, handle, due, Sign::Mailbox);
    }

    fn delivery_of(
        &self,
        handle: Handle,
        summary: &Summary,
        rids: Vec<Rid>,
        attempts: u32,
    ) -> Delivery {
        let profile = &summary.bounce_profile;
        Delivery {
            handle,
            mid: summary.mid,
            rids,
            destination: self.destination(&summary.domain),
            profile: self.config().bounce_profile_for(profile, &summary.domain).clone(),
            arrival: summary.arrival,
            attempts,
            tried: HostSet::default(),
            host: 0,
            last: None,
            strict: false,
        }
    }

    /// Pieces of at most `most` recipients.
    fn split(&self, delivery: Delivery, most: u32) -> Vec<Delivery> {
        let most = usize::try_from(most.max(1)).unwrap_or(usize::MAX);
        if delivery.rids.len() <= most {
            return vec![delivery];
        }
        let pieces: Vec<_> =
            delivery.rids.chunks(most).map(|rids| delivery.part(rids.to_vec())).collect();
        self.count_pieces(delivery.handle, pieces.len() - 1);
        pieces
    }

    fn count_pieces(&self, handle: Handle, more: usize) {
        if let Some(under_way) = self.under_way.borrow_mut().get_mut(&handle) {
            under_way.pieces += u32::try_from(more).unwrap_or(u32::MAX);
        }
    }

    /// Puts a delivery into the lane of the host whose turn it took. `bound`: the lane is full
    /// and the turn must not be lost; the destination then feeds no more until there is room.
    fn enter_lane(
        self: &Rc<Self>,
        delivery: Delivery,
        host: &Arc<crate::route::Host>,
        bound: bool,
    ) {
        let served = self.lane(&delivery.destination, host);
        let id = self.under_way.borrow().get(&delivery.handle).map(|under_way| under_way.id);
        let mut lane = served.lane.borrow_mut();
        lane.push_bound(delivery);
        if let (true, Some(id)) = (bound, id) {
            lane.block(id);
            self.destinations.borrow_mut().pause(id);
        }
        drop(lane);
        self.serve(&served);
    }

    /// The recipients as the session needs them.
    pub(super) async fn load(
        self: &Rc<Self>,
        delivery: Delivery,
    ) -> Option<(Delivery, Arc<Message>)> {
        let hot = self.hot.borrow().get(delivery.mid);
        if let Some(message) = hot {
            return Some((delivery, message));
        }
        match self.read_back(delivery.handle).await {
            Some(message) => {
                let held = |rid: &Rid| !message.envelope.recipients.iter().any(|r| r.rid == *rid);
                let mut delivery = delivery;
                delivery.rids.retain(|rid| !held(rid));
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

    /// A session begins a transaction: from here on a crash leaves these recipients `uncertain`.
    pub(super) fn begin(&self, delivery: &Delivery, dcid: Dcid) {
        // Recipients that the operator settled meanwhile are not in the list any more; a mark
        // that could not be set belongs to one that goes out all the same, at least once.
        drop(self.queue.borrow_mut().begin(delivery.handle, &delivery.rids));
        self.log(|log, now| log.delivery_start(now, dcid, delivery.mid, &delivery.rids));
    }

    /// Sorts the outcomes of one transaction: what host and destination learn from them, and
    /// what happens to each recipient. True when the session is to end for a strict repeat.
    pub(super) fn settle(
        self: &Rc<Self>,
        delivery: Delivery,
        outcomes: Vec<(Rid, RecipientOutcome)>,
        served: &Rc<Served>,
        dcid: Dcid,
    ) -> bool {
        let repeats = |(_, outcome): &(Rid, RecipientOutcome)| match outcome {
            RecipientOutcome::Refused { failure, .. } => {
                !delivery.strict && recipient::speaks_of_dialogue(failure.code())
            }
            _ => false,
        };
        let strict = outcomes.iter().any(repeats);
        let at = At { served: served.clone(), dcid };
        self.go_on(Step::Answered { delivery, outcomes, at });
        strict
    }

    fn learn(&self, delivery: &Delivery, outcomes: &[(Rid, RecipientOutcome)], at: &At) {
        let now = self.now().mono;
        let hosts = delivery.destination.plan().map_or(0, |plan| plan.hosts().len());
        let gate = &delivery.destination.gate;
        for (_, outcome) in outcomes {
            match settle::host::effect_of(outcome) {
                HostEffect::PassOver { ms } => at.served.host.pass_over(now, ms),
                HostEffect::RememberRecipients(taken) => {
                    at.served.host.remember_recipients_max(taken);
                }
                HostEffect::Failed | HostEffect::None => {}
            }
            let Some(sign) = settle::host::sign_of(outcome) else { continue };
            match sign {
                Sign::Success => gate.success(now),
                Sign::HostRefusal => gate.refusal(delivery.host, hosts),
                Sign::Trouble | Sign::Mailbox => {}
            }
            if let Some(under_way) = self.under_way.borrow_mut().get_mut(&delivery.handle) {
                under_way.sign = sign;
            }
        }
    }

    fn judge(
        self: &Rc<Self>,
        mut delivery: Delivery,
        outcomes: Vec<(Rid, RecipientOutcome)>,
        at: &At,
    ) {
        self.learn(&delivery, &outcomes, at);
        let untried = outcomes.iter().all(|(_, o)| matches!(o, RecipientOutcome::Untried));
        if !untried {
            delivery.tried.insert(delivery.host);
        }
        let context = Context {
            more_hosts: self.has_more_hosts(&delivery),
            failed_elsewhere: delivery.last.is_some(),
            strict_done: delivery.strict,
            possible_delivery: self.config().possible_delivery,
        };
        let mut sorted = Sorted::default();
        for (rid, outcome) in outcomes {
            sorted.add(rid, recipient::verdict(outcome, context));
        }
        self.count_pieces(delivery.handle, sorted.pieces().saturating_sub(1));
        self.carry_out(&delivery, sorted, at);
    }

    /// Each group of recipients goes its way; every group is one piece of the handle.
    fn carry_out(self: &Rc<Self>, delivery: &Delivery, sorted: Sorted, at: &At) {
        let dcid = at.dcid;
        if !sorted.delivered.is_empty() {
            self.delivered(delivery, &sorted.delivered, at);
        }
        if !sorted.possibly.is_empty() {
            self.possibly_delivered(delivery, &sorted.possibly, dcid);
        }
        for (failure, rids) in sorted.next_host {
            self.counters().failovers.one();
            self.release(delivery.handle, &rids);
            let mut piece = delivery.part(rids);
            piece.last = Some((failure, dcid));
            self.go_on(Step::Route(piece));
        }
        if !sorted.same_session.is_empty() {
            self.release(delivery.handle, &sorted.same_session);
            let piece = delivery.part(sorted.same_session);
            let most = at.served.host.recipients_max(u32::MAX);
            self.again(self.split(piece, most), at);
        }
        if !sorted.strictly.is_empty() {
            self.release(delivery.handle, &sorted.strictly);
            let mut piece = delivery.part(sorted.strictly);
            piece.strict = true;
            self.again(vec![piece], at);
        }
        if !sorted.untried.is_empty() {
            self.release(delivery.handle, &sorted.untried);
            self.go_on(Step::Route(delivery.part(sorted.untried)));
        }
        let host = Some(at.served.host.address());
        for (failure, rids) in sorted.bounce {
            self.bounce(delivery.part(rids), failure, dcid, host);
        }
        for (failure, uncertain, alarm, rids) in sorted.defer {
            let piece = delivery.part(rids);
            if uncertain {
                self.uncertain(&piece, dcid);
            }
            if alarm {
                let domain = &delivery.destination.domain;
                let text = format!("{domain} refuses our authentication or policy; mail waits");
                self.log(|log, now| log.warning(now, &text));
            }
            self.defer(piece, failure, dcid);
        }
    }

    /// Back to the same host: at the front of its lane.
    fn again(self: &Rc<Self>, pieces: Vec<Delivery>, at: &At) {
        let mut lane = at.served.lane.borrow_mut();
        pieces.into_iter().rev().for_each(|piece| lane.give_back(piece));
        drop(lane);
        self.serve(&at.served);
    }

    fn has_more_hosts(&self, delivery: &Delivery) -> bool {
        let now = self.now().mono;
        delivery.destination.plan().is_some_and(|plan| plan.has_untried(now, &delivery.tried))
    }

    fn delivered(
        self: &Rc<Self>,
        delivery: &Delivery,
        accepted: &[(Rid, crate::mail::Accepted)],
        at: &At,
    ) {
        let rids: Vec<Rid> = accepted.iter().map(|(rid, _)| *rid).collect();
        let mut queue = self.queue.borrow_mut();
        let mut settled = 0;
        let mut finished = false;
        for (rid, proof) in accepted {
            let change = queue.delivered(delivery.handle, *rid, proof);
            settled += u64::from(change.applied);
            finished |= change.message_gone;
        }
        drop(queue);
        let counters = self.counters();
        counters.delivered.add(settled);
        counters.pending.sub(settled);
        counters.messages_out.one();
        at.served.host.count_delivered(self.id, settled);
        self.log(|log, now| {
            log.message_done(now, at.dcid, delivery.mid, &rids);
            log.response(now, delivery.mid, &rids, accepted[0].1.reply());
        });
        self.record_latency(delivery.mid);
        self.finish_message(delivery.mid, finished);
        self.end_piece(delivery.handle);
    }

    fn possibly_delivered(
        self: &Rc<Self>,
        delivery: &Delivery,
        possibly: &[(Rid, crate::mail::PossiblyAccepted)],
        dcid: Dcid,
    ) {
        let rids: Vec<Rid> = possibly.iter().map(|(rid, _)| *rid).collect();
        let mut queue = self.queue.borrow_mut();
        let mut settled = 0;
        let mut finished = false;
        for (rid, proof) in possibly {
            let change = queue.possibly_delivered(delivery.handle, *rid, proof);
            settled += u64::from(change.applied);
            finished |= change.message_gone;
        }
        drop(queue);
        self.counters().delivered.add(settled);
        self.counters().pending.sub(settled);
        self.counters().uncertain.add(settled);
        self.log(|log, now| {
            log.possible_delivery(now, dcid, delivery.mid, &rids);
            log.message_done(now, dcid, delivery.mid, &rids);
        });
        self.finish_message(delivery.mid, finished);
        self.end_piece(delivery.handle);
    }

    /// The reply to the final dot was lost: seen, logged, counted.
    fn uncertain(&self, piece: &Delivery, dcid: Dcid) {
        self.counters().uncertain.add(piece.rids.len() as u64);
        self.log(|log, now| log.possible_delivery(now, dcid, piece.mid, &piece.rids));
    }

    /// Accepted and discarded: its route is /dev/null.
    fn discard(self: &Rc<Self>, delivery: Delivery) {
        let mut queue = self.queue.borrow_mut();
        let mut settled = 0;
        let mut finished = false;
        for rid in &delivery.rids {
            let change = queue.discarded(delivery.handle, *rid);
            settled += u64::from(change.applied);
            finished |= change.message_gone;
        }
        drop(queue);
        self.counters().discarded_by_route.add(settled);
        self.counters().pending.sub(settled);
        self.log(|log, now| log.discarded(now, delivery.mid, &delivery.rids));
        self.finish_message(delivery.mid, finished);
        self.end_piece(delivery.handle);
    }

    /// Soft bounce: deferred by the bounce profile, or expired by count.
    pub(super) fn defer(self: &Rc<Self>, delivery: Delivery, failure: Failure, dcid: Dcid) {
        let now = self.now().wall;
        let attempts = delivery.attempts + 1;
        for rid in &delivery.rids {
            self.log(|log, now| log.delayed(now, dcid, delivery.mid, *rid, &failure));
        }
        self.counters().soft_bounces.add(delivery.rids.len() as u64);
        let till = match retry::verdict(&delivery.profile, attempts, delivery.arrival, now) {
            Retry::At(till) => till,
            Retry::Expired(expired) => {
                self.release(delivery.handle, &delivery.rids);
                return self.bounce_after(delivery, expired, Some(failure), dcid, None);
            }
        };
        let host = failure.reply.is_some().then(|| self.host_name(&delivery)).flatten();
        let last = LastOutcome { code: failure.code(), status: failure.status, host, warnings: 0 };
        let mut queue = self.queue.borrow_mut();
        for rid in &delivery.rids {
            if !queue.defer(delivery.handle, *rid, &last, attempts, till).applied {
                continue;
            }
        }
        drop(queue);
        self.counters().deferrals.one();
        let profile = &delivery.profile.name;
        self.log(|log, now| log.pending_till(now, delivery.mid, &delivery.rids, till, profile));
        self.end_piece(delivery.handle);
    }

    fn host_name(&self, delivery: &Delivery) -> Option<Arc<str>> {
        let plan = delivery.destination.plan()?;
        plan.hosts().get(delivery.host).map(|host| host.address().to_string().into())
    }

    /// All hosts are down and none was tried: not an attempt. It waits for one to come up, until
    /// its time in queue ends.
    fn no_host_is_up(self: &Rc<Self>, delivery: Delivery) {
        if let Some((failure, dcid)) = delivery.last.clone() {
            return self.defer(delivery, failure, dcid);
        }
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
        let summary = self.queue.borrow().summary(handle);
        let mut destinations = self.destinations.borrow_mut();
        if let Some(summary) = summary {
            let now = self.now();
            let profile = self.config();
            let profile = profile.bounce_profile_for(&summary.bounce_profile, &summary.domain);
            let ends = retry::expires_at(profile, summary.arrival);
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

    /// Logs the end of a message and lets its bytes go.
    pub(super) fn finish_message(&self, mid: Mid, finished: bool) {
        if finished {
            self.log(|log, now| log.message_finished(now, mid));
            self.hot.borrow_mut().remove(mid);
        }
    }

    fn record_latency(&self, mid: Mid) {
        let received = self.hot.borrow().get(mid).and_then(|message| message.received);
        if let Some(Mono(received)) = received {
            let us = self.now().mono.0.saturating_sub(received) * 1000;
            self.latencies.borrow_mut().record_us(us);
        }
    }
}

impl Delivery {
    /// Some of its recipients, with the same past.
    pub(super) fn part(&self, rids: Vec<Rid>) -> Delivery {
        Delivery {
            handle: self.handle,
            mid: self.mid,
            rids,
            destination: self.destination.clone(),
            profile: self.profile.clone(),
            arrival: self.arrival,
            attempts: self.attempts,
            tried: self.tried,
            host: self.host,
            last: self.last.clone(),
            strict: self.strict,
        }
    }

    /// When its message came.
    pub(super) fn arrival(&self) -> Wall {
        self.arrival
    }

    /// The host whose turn it took, as its index in the plan.
    pub(super) fn host(&self) -> usize {
        self.host
    }

    /// Hosts tried in this attempt.
    pub(super) fn tried(&self) -> &HostSet {
        &self.tried
    }

    /// The connection to the host whose turn this delivery took failed: it was tried.
    pub(super) fn host_failed(&mut self, failure: Failure, dcid: Dcid) {
        self.tried.insert(self.host);
        self.last = Some((failure, dcid));
    }

    /// Its recipients out of the message's envelope.
    pub(super) fn recipients_of(&self, message: &Message) -> Vec<Recipient> {
        let wanted = |r: &&Recipient| self.rids.contains(&r.rid);
        message.envelope.recipients.iter().filter(wanted).cloned().collect()
    }
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

/// The recipients of one transaction, by what happens to them.
#[derive(Default)]
struct Sorted {
    delivered: Vec<(Rid, crate::mail::Accepted)>,
    possibly: Vec<(Rid, crate::mail::PossiblyAccepted)>,
    next_host: Vec<(Failure, Vec<Rid>)>,
    same_session: Vec<Rid>,
    strictly: Vec<Rid>,
    untried: Vec<Rid>,
    bounce: Vec<(Failure, Vec<Rid>)>,
    defer: Vec<(Failure, bool, bool, Vec<Rid>)>,
}

impl Sorted {
    fn add(&mut self, rid: Rid, verdict: Verdict) {
        match verdict {
            Verdict::Delivered(accepted) => self.delivered.push((rid, accepted)),
            Verdict::PossiblyDelivered(possibly) => self.possibly.push((rid, possibly)),
            Verdict::NextHost { failure } => group(&mut self.next_host, failure, rid),
            Verdict::SameSession { recipients_max: _ } => self.same_session.push(rid),
            Verdict::RepeatStrictly { failure: _ } => self.strictly.push(rid),
            Verdict::Untried => self.untried.push(rid),
            Verdict::Bounce(failure) => group(&mut self.bounce, failure, rid),
            Verdict::Defer { failure, uncertain, alarm } => {
                let same = self
                    .defer
                    .iter_mut()
                    .find(|(f, u, a, _)| (f, *u, *a) == (&failure, uncertain, alarm));
                match same {
                    Some((.., rids)) => rids.push(rid),
                    None => self.defer.push((failure, uncertain, alarm, vec![rid])),
                }
            }
        }
    }

    /// Pieces into which the delivery falls.
    fn pieces(&self) -> usize {
        let lists = [&self.same_session, &self.strictly, &self.untried];
        usize::from(!self.delivered.is_empty())
            + usize::from(!self.possibly.is_empty())
            + self.next_host.len()
            + lists.iter().filter(|list| !list.is_empty()).count()
            + self.bounce.len()
            + self.defer.len()
    }
}

fn group(groups: &mut Vec<(Failure, Vec<Rid>)>, failure: Failure, rid: Rid) {
    match groups.iter_mut().find(|(known, _)| *known == failure) {
        Some((_, rids)) => rids.push(rid),
        None => groups.push((failure, vec![rid])),
    }
}
