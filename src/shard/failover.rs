//! What the failure of a connection does: to the host, to its lane, to the destination.
//!
//! Owns: the steps after `settle` has judged a connection. Never: a judgement of its own.
//!
//! A connection is made for the delivery at the head of the lane. When it fails and the host goes
//! down, that delivery has tried the host; all others of the lane take new turns untried: a dead
//! host costs its connect timeout once, not once per message. When the host stays up, because
//! other sessions to it work, the failure counts against nobody.

use std::net::IpAddr;
use std::rc::Rc;

use super::Shard;
use super::delivery::{Delivery, Step};
use super::destination::Destination;
use super::pool::{Cause, Served};
use crate::mail::{ConnectionCause, ConnectionFailure, Dcid};
use crate::route::{Host, Verdict};
use crate::schedule::Sign;
use crate::settle::HostEffect;
use crate::settle::host::connection_verdict;

impl Shard {
    /// A connection brought no session.
    pub(super) fn connection_failed(
        self: &Rc<Self>,
        served: &Rc<Served>,
        destination: &Rc<Destination>,
        dcid: Dcid,
        local: Option<IpAddr>,
        failure: &ConnectionFailure,
        cause: Cause,
    ) {
        let now = self.now().mono;
        self.counters().connection_errors.one();
        self.log_connection_error(served, destination, dcid, local, failure);
        let head = served.lane.borrow().peek().map(|d| d.destination.clone());
        let judged = connection_verdict(failure, false);
        let health = match (cause, &failure.cause) {
            (Cause::Probe(probe), _) => served.host.probe_failed(probe, now),
            // Beside the one that it was to replace: what was there then is what the host takes.
            (Cause::Replacement { sessions }, ConnectionCause::Reply(_)) => {
                served.host.refused_beside(sessions, now)
            }
            (Cause::Replacement { .. } | Cause::Growth, _) => served.host.connection_failed(now),
        };
        match health {
            // "Too many connections" must not look like "dead": the working sessions go on.
            Verdict::CeilingLowered(_) => {}
            Verdict::WentDown { .. } | Verdict::AlreadyDown => {
                self.tell_gate(destination, &served.host, judged.sign);
                if let Some(of_head) = head
                    && !Rc::ptr_eq(&of_head, destination)
                {
                    self.tell_gate(&of_head, &served.host, judged.sign);
                }
                self.host_is_down(served, failure, dcid, judged.sign);
            }
        }
    }

    /// A ready session ended before its time.
    pub(super) fn session_broke(
        self: &Rc<Self>,
        served: &Rc<Served>,
        destination: &Rc<Destination>,
        dcid: Dcid,
        local: Option<IpAddr>,
        failure: &ConnectionFailure,
        idle: bool,
    ) {
        let judged = connection_verdict(failure, idle);
        if let HostEffect::PassOver { ms } = judged.effect {
            served.host.pass_over(self.now().mono, ms);
        }
        if !idle {
            self.counters().connection_errors.one();
            self.log_connection_error(served, destination, dcid, local, failure);
            self.tell_gate(destination, &served.host, judged.sign);
        }
    }

    /// A connect has run for two seconds: if another host of the route is up, the lane's
    /// deliveries take new turns.
    pub(super) fn connect_is_slow(self: &Rc<Self>, served: &Rc<Served>) {
        if served.ready.get() == 0 {
            self.yield_lane(served);
        }
    }

    /// The host of this lane gives no answer: deliveries that have another host that is up take
    /// new turns, the others stay.
    pub(super) fn yield_lane(self: &Rc<Self>, served: &Rc<Served>) {
        let now = self.now().mono;
        let (stay, go): (Vec<_>, Vec<_>) = self.drain_lane(served).into_iter().partition(|d| {
            let mut without = d.tried;
            without.insert(d.host);
            !d.destination.plan().is_some_and(|plan| plan.has_up(now, &without))
        });
        let mut lane = served.lane.borrow_mut();
        stay.into_iter().rev().for_each(|delivery| lane.give_back(delivery));
        drop(lane);
        self.new_turns(go);
    }

    fn host_is_down(
        self: &Rc<Self>,
        served: &Rc<Served>,
        failure: &ConnectionFailure,
        dcid: Dcid,
        sign: Sign,
    ) {
        let mut deliveries = self.drain_lane(served);
        if let Some(first) = deliveries.first_mut() {
            first.host_failed(failure.as_failure(), dcid);
            if let Some(under_way) = self.under_way.borrow_mut().get_mut(&first.handle) {
                under_way.sign = sign;
            }
            self.counters().failovers.one();
        }
        self.new_turns(deliveries);
    }

    fn new_turns(self: &Rc<Self>, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            self.go_on(Step::Route(delivery));
        }
    }

    fn tell_gate(&self, destination: &Destination, host: &Host, sign: Sign) {
        let Some(plan) = destination.plan() else { return };
        let now = self.now().mono;
        let same = |known: &std::sync::Arc<Host>| known.address() == host.address();
        let index = plan.hosts().iter().position(same);
        match (sign, index) {
            // Its health decides as long as it is down, and its probe brings it back.
            (_, Some(index)) if host.is_down(now) => destination.gate.forget_refusal(index),
            (Sign::HostRefusal, Some(index)) => {
                destination.gate.refusal(index, plan.hosts().len());
            }
            (Sign::Success, _) => destination.gate.success(now),
            (Sign::HostRefusal | Sign::Trouble | Sign::Mailbox, _) => {}
        }
        if destination.has_no_host(now) {
            destination.gate.hosts_down();
        }
    }

    fn log_connection_error(
        &self,
        served: &Served,
        destination: &Destination,
        dcid: Dcid,
        local: Option<IpAddr>,
        failure: &ConnectionFailure,
    ) {
        let peer = served.key.address;
        self.log(|log, now| {
            log.connection_error(now, dcid, &destination.domain, peer, local, failure);
        });
    }
}
