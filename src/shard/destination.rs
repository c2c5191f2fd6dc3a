//! A receiving domain as one shard uses it: its route resolved to hosts, its limits, its gate.
//!
//! Owns: [`Destination`], made when the first mail for a domain is fed and made anew when the
//! configuration has changed. Never: run-time state of its own: plan, permits and gate point to
//! what all shards share, lanes to those of the shard's pool.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::Shard;
use super::pool::Served;
use crate::config::Snapshot;
use crate::mail::{Domain, Enhanced, Failure, Mono, Now};
use crate::route::{Host, Permits, Plan, Target};
use crate::schedule::Gate;
use crate::schedule::settings::DestinationControls;

/// Where the mail of a receiving domain goes.
pub(super) enum Way {
    /// To these hosts.
    Hosts(Plan),
    /// Accepted and discarded: its route is /dev/null.
    Discard,
    /// No route: the configuration changed while mail for it was queued.
    Nowhere,
}

/// A receiving domain, resolved under one configuration.
pub(super) struct Destination {
    pub(super) domain: Domain,
    pub(super) epoch: u64,
    pub(super) way: Way,
    pub(super) controls: Arc<DestinationControls>,
    pub(super) ehlo_name: Arc<str>,
    pub(super) gate: Arc<Gate>,
    pub(super) permits: Arc<Permits>,
    /// Lanes of its hosts by their index in the plan, as far as they were looked for: what a lane
    /// is found by takes longer to put together and to hash than all that is then asked of it.
    pub(super) lanes: RefCell<Vec<Weak<Served>>>,
}

impl Destination {
    /// The plan, when there are hosts.
    pub(super) fn plan(&self) -> Option<&Plan> {
        match &self.way {
            Way::Hosts(plan) => Some(plan),
            Way::Discard | Way::Nowhere => None,
        }
    }

    /// True when both have the same hosts, in the same order.
    fn has_hosts_of(&self, other: &Self) -> bool {
        let hosts = |of: &Self| -> Vec<_> {
            let hosts = of.plan().map_or(&[][..], Plan::hosts);
            hosts.iter().map(|host| host.address()).collect()
        };
        hosts(self) == hosts(other)
    }

    /// True when each of its hosts is down or has refused since the last success: the gate is
    /// down then. A host that refuses greeting or EHLO is down, and comes up by its probe.
    pub(super) fn has_no_host(&self, now: Mono) -> bool {
        self.plan().is_some_and(|plan| {
            let lost =
                |(i, host): (usize, &Arc<Host>)| self.gate.has_refused(i) || host.is_down(now);
            plan.hosts().iter().enumerate().all(lost)
        })
    }

    /// What hosts said before they went down holds nothing up when they come back: from the way
    /// down on their health decides. It may be mail of another destination that took them there.
    pub(super) fn forget_refusals_of_down_hosts(&self, now: Mono) {
        let Some(plan) = self.plan() else { return };
        for (index, host) in plan.hosts().iter().enumerate() {
            if self.gate.has_refused(index) && host.is_down(now) {
                self.gate.forget_refusal(index);
            }
        }
    }

    /// The source address of its connections.
    pub(super) fn source(&self) -> Option<IpAddr> {
        self.controls.interface
    }
}

/// What a recipient gets whose domain has no route and whose MX cannot be asked for.
pub(super) fn no_route() -> Failure {
    Failure::local(Enhanced::new(4, 4, 4), "no route covers this domain")
}

impl Shard {
    /// The destination of `domain` under the configuration in force.
    pub(super) fn destination(&self, domain: &Domain) -> Rc<Destination> {
        let config = self.config();
        let known = self.resolved.borrow().get(domain).cloned();
        if let Some(known) = &known
            && known.epoch == config.epoch
        {
            return known.clone();
        }
        let fresh = Rc::new(self.resolve(domain, &config, self.now()));
        if known.is_some_and(|known| !known.has_hosts_of(&fresh)) {
            // What the old hosts said no longer counts.
            fresh.gate.hosts_changed(self.now().mono);
        }
        self.resolved.borrow_mut().insert(domain.clone(), fresh.clone());
        fresh
    }

    fn resolve(&self, domain: &Domain, config: &Snapshot, now: Now) -> Destination {
        let controls = config.destinations.controls(domain).clone();
        let profile = config.bounce_profile_for(crate::config::DEFAULT_PROFILE, domain);
        let way = match config.routes.find(domain) {
            None => Way::Nowhere,
            Some(row) => match &row.target {
                Target::Discard => Way::Discard,
                Target::UseDns | Target::Hosts(_) => match row.addresses() {
                    None => Way::Nowhere,
                    Some(addresses) => {
                        let pattern = row.pattern.to_string();
                        let registry = &self.shared.registry;
                        let tries_max = usize::MAX;
                        let plan = Plan::new(registry, &pattern, &addresses, tries_max, now.mono);
                        Way::Hosts(plan)
                    }
                },
            },
        };
        Destination {
            domain: domain.clone(),
            epoch: config.epoch,
            way,
            ehlo_name: controls.ehlo_name.clone().unwrap_or_else(|| config.hostname.clone()),
            gate: self.shared.gates.gate(domain, profile.initial_retry),
            permits: self.shared.permits_of(domain, controls.connections_max),
            controls,
            lanes: RefCell::default(),
        }
    }

    /// Forgets resolved domains that have no mail here any more.
    pub(super) fn forget_unused_destinations(&self) {
        let destinations = self.destinations.borrow();
        let unused = |domain: &Domain, resolved: &Rc<Destination>| {
            destinations.find(domain).is_none() && Rc::strong_count(resolved) == 1
        };
        self.resolved.borrow_mut().retain(|domain, resolved| !unused(domain, resolved));
    }
}
