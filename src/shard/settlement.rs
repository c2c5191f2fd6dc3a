//! Settling: what becomes of each recipient of a transaction, carried out.
//!
//! Owns: the steps behind each verdict: state words, counters, log lines, and the pieces into
//! which a delivery falls. Never: the verdict (`settle`), a hard bounce's report (`bounce`).

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Shard;
use super::delivery::{At, Delivery, Rids, Step};
use super::early::Parked;
use super::io;
use super::pool::Served;
use crate::mail::{Accepted, Dcid, Failure, Mid, PossiblyAccepted, RecipientOutcome, Rid};
use crate::queue::LastOutcome;
use crate::schedule::{Retry, Sign, retry};
use crate::settle::recipient::{Context, Verdict};
use crate::settle::{self, HostEffect, recipient};

impl Shard {
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
                Sign::HostRefusal => {
                    gate.refusal(delivery.host, hosts);
                    if delivery.destination.has_no_host(now) {
                        gate.hosts_down();
                    }
                }
                Sign::Trouble | Sign::Mailbox => {}
            }
            if let Some(under_way) = self.under_way.borrow_mut().get_mut(&delivery.handle) {
                under_way.sign = sign;
            }
        }
    }

    pub(super) fn judge(
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
            failed_elsewhere: delivery.failed_for_now,
            strict_done: delivery.strict,
            possible_delivery: self.config().possible_delivery,
        };
        let mut sorted = Sorted::default();
        for (rid, outcome) in outcomes {
            sorted.add(rid, recipient::verdict(outcome, context));
        }
        sorted.join_untried();
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
            piece.failed_for_now |= failure.status.class == 4;
            piece.last = Some(Box::new((failure, dcid)));
            self.go_on(Step::Route(piece));
        }
        if !sorted.same_session.is_empty() {
            self.release(delivery.handle, &sorted.same_session);
            let piece = delivery.part(sorted.same_session);
            let mut pieces = Vec::new();
            self.split(piece, at.served.host.recipients_max(u32::MAX), |part| pieces.push(part));
            self.again(pieces, at);
        }
        if !sorted.strictly.is_empty() {
            self.release(delivery.handle, &sorted.strictly);
            let mut piece = delivery.part(sorted.strictly);
            piece.strict = true;
            self.again(vec![piece], at);
        }
        if !sorted.untried.is_empty() {
            self.release(delivery.handle, &sorted.untried);
            let mut piece = delivery.part(sorted.untried);
            piece.tried.remove(piece.host);
            self.go_on(Step::Route(piece));
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

    fn delivered(self: &Rc<Self>, delivery: &Delivery, accepted: &[(Rid, Accepted)], at: &At) {
        let rids: Rids = accepted.iter().map(|(rid, _)| *rid).collect();
        let mut queue = self.queue.borrow_mut();
        let early = queue.is_uncommitted(delivery.handle);
        let refused = queue.is_refused(delivery.handle);
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
        self.count_settled(early, settled);
        if refused {
            // Its client was told 451 meanwhile, and will send it again.
            counters.uncertain.add(settled);
            self.log(|log, now| log.possible_delivery(now, at.dcid, delivery.mid, &rids));
        }
        counters.messages_out.one();
        at.served.host.count_delivered(self.id, settled);
        self.log(|log, now| {
            log.message_done(now, at.dcid, delivery.mid, &rids);
            log.response(now, delivery.mid, &rids, accepted[0].1.reply());
        });
        self.record_latency(delivery.mid);
        self.finish_message(delivery.mid, finished);
        self.end_piece(delivery.handle);
        if early {
            self.hear_queue();
        }
    }

    /// Settled recipients leave the pending ones; those of a message that is not on disk yet were
    /// never among them: their next hop's acceptance is when they came.
    fn count_settled(&self, early: bool, settled: u64) {
        if early {
            self.counters().accepted_from_clients.add(settled);
        } else {
            self.counters().pending.sub(settled);
        }
    }

    pub(super) fn possibly_delivered(
        self: &Rc<Self>,
        delivery: &Delivery,
        possibly: &[(Rid, PossiblyAccepted)],
        dcid: Dcid,
    ) {
        if self.must_park(delivery.handle) {
            let rids: Rids = possibly.iter().map(|(rid, _)| *rid).collect();
            let piece = Parked::Possibly(delivery.part(rids), possibly.to_vec(), dcid);
            return self.park(delivery.mid, piece);
        }
        let rids: Rids = possibly.iter().map(|(rid, _)| *rid).collect();
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
    pub(super) fn uncertain(&self, piece: &Delivery, dcid: Dcid) {
        self.counters().uncertain.add(piece.rids.len() as u64);
        self.log(|log, now| log.possible_delivery(now, dcid, piece.mid, &piece.rids));
    }

    /// Accepted and discarded: its route is /dev/null.
    pub(super) fn discard(self: &Rc<Self>, delivery: Delivery) {
        let mut queue = self.queue.borrow_mut();
        let early = queue.is_uncommitted(delivery.handle);
        let mut settled = 0;
        let mut finished = false;
        for rid in &delivery.rids {
            let change = queue.discarded(delivery.handle, *rid);
            settled += u64::from(change.applied);
            finished |= change.message_gone;
        }
        drop(queue);
        self.counters().discarded_by_route.add(settled);
        self.count_settled(early, settled);
        self.log(|log, now| log.discarded(now, delivery.mid, &delivery.rids));
        self.finish_message(delivery.mid, finished);
        self.end_piece(delivery.handle);
        if early {
            self.hear_queue();
        }
    }

    /// Soft bounce: deferred by the bounce profile, or expired by count.
    pub(super) fn defer(self: &Rc<Self>, delivery: Delivery, failure: Failure, dcid: Dcid) {
        if self.must_park(delivery.handle) {
            return self.park(delivery.mid, Parked::Defer(delivery, failure, dcid));
        }
        let now = self.queue_now();
        let came = self.clock.came(delivery.arrival, now.mono);
        let attempts = delivery.attempts + 1;
        for rid in &delivery.rids {
            self.log(|log, now| log.delayed(now, dcid, delivery.mid, *rid, &failure));
        }
        self.counters().soft_bounces.add(delivery.rids.len() as u64);
        let till = match retry::verdict(&delivery.profile, attempts, came, now.wall) {
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
        let till = self.clock.shown(till, self.now());
        self.log(|log, now| log.pending_till(now, delivery.mid, &delivery.rids, till, profile));
        self.end_piece(delivery.handle);
    }

    fn host_name(&self, delivery: &Delivery) -> Option<Arc<str>> {
        let plan = delivery.destination.plan()?;
        plan.hosts().get(delivery.host).map(|host| host.address().to_string().into())
    }

    /// Logs the end of a message and lets its bytes go.
    pub(super) fn finish_message(&self, mid: Mid, finished: bool) {
        if finished {
            self.log(|log, now| log.message_finished(now, mid));
            self.hot.borrow_mut().remove(mid);
        }
    }

    fn record_latency(&self, mid: Mid) {
        let hot = self.hot.borrow().get(mid);
        let known = hot.or_else(|| self.uncommitted.borrow().get(&mid).cloned());
        if let Some(received_us) = known.and_then(|message| message.received_us) {
            let latency_us = io::now_us().saturating_sub(received_us);
            self.latencies.borrow_mut().record_us(latency_us);
            self.note_delivery_time(latency_us);
        }
    }
}

/// The recipients of one transaction, by what happens to them.
#[derive(Default)]
struct Sorted {
    delivered: SmallVec<[(Rid, Accepted); 1]>,
    possibly: Vec<(Rid, PossiblyAccepted)>,
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

    /// Recipients behind the one that was too many were not offered: they go with it.
    fn join_untried(&mut self) {
        if !self.same_session.is_empty() {
            self.same_session.append(&mut self.untried);
            self.same_session.sort_unstable();
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
