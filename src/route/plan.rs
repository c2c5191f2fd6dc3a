//! The next host of a delivery: round robin in a priority, failover to the next.
//!
//! Owns: the hosts of one destination in priority order, and the choice among them. Never:
//! lanes (the shard says how full they are), connections, retry times.
//!
//! The order of choice, each time among the hosts that the delivery has not tried:
//!
//! 1. The lowest priority number with a host that is up: a turn among the up ones. A host is
//!    passed over for a turn only while its lane is full and another lane of them is empty;
//!    otherwise the delivery waits for that lane. Fullness never moves mail to the next priority.
//! 2. No host is up: those whose only fault is a slow connect take turns, lowest priority first.
//! 3. Else the first whose brief pass-over ends is used at once.
//! 4. Else a down host whose time is over is offered for a probe.
//! 5. Else nothing: [`Choice::AllDown`] if nothing was tried, [`Choice::Exhausted`] if something
//!    was.
//!
//! Limits: [`limits::ROUTE_HOSTS_MAX`] hosts; further ones are left out, highest priority number
//! first.

use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashSet;

use super::host::{Host, Status};
use super::registry::{Group, GroupKey, Registry};
use crate::limits;
use crate::mail::Mono;

const WORDS: usize = limits::ROUTE_HOSTS_MAX / 64;

/// A set of the hosts of one plan, by index: those that a delivery has tried in this attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostSet([u64; WORDS]);

impl HostSet {
    /// Adds host `index`, below [`limits::ROUTE_HOSTS_MAX`].
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Takes host `index` out.
    pub fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    /// True when host `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// How many hosts are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True when no host is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// The hosts in the set, in rising order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(i, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(i * 64 + bit)
            })
        })
    }
}

/// How full the lane of a host is, in the shard that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneFill {
    /// No delivery waits in it.
    Empty,
    /// It takes another delivery.
    Room,
    /// It holds [`limits::LANE_DELIVERIES_MAX`].
    Full,
}

/// A host, and its index for [`HostSet`].
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// Index in the plan.
    pub index: usize,
    /// The host.
    pub host: &'a Arc<Host>,
}

/// What a delivery does next.
#[derive(Clone, Copy, Debug)]
#[must_use = "a turn was taken"]
pub enum Choice<'a> {
    /// Enter this host's lane.
    Turn(Pick<'a>),
    /// This host has the turn and its lane is full: stay bound to it and enter when there is room.
    Wait(Pick<'a>),
    /// No host is left but this one, down, whose time is over: one shard may probe it
    /// ([`Host::try_probe`]) with or without this delivery. When another shard has the lease,
    /// treat it as [`Choice::AllDown`], or as [`Choice::Exhausted`] if something was tried.
    Probe(Pick<'a>),
    /// Every host left untried is down. Nothing was tried: this was no attempt.
    AllDown {
        /// When the first of them may be probed.
        until: Mono,
    },
    /// The attempt is over: every host has failed, or is down.
    Exhausted {
        /// True when no host of the plan is up now.
        all_down: bool,
    },
}

/// One line of a forecast.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The host.
    pub host: Arc<Host>,
    /// Its priority.
    pub priority: u16,
    /// Its state.
    pub status: Status,
}

/// The hosts of one destination, in priority order.
#[derive(Debug)]
pub struct Plan {
    groups: Vec<PlanGroup>,
    hosts: Vec<Arc<Host>>,
    tries_max: usize,
}

/// The hosts of one priority.
#[derive(Debug)]
struct PlanGroup {
    priority: u16,
    group: Arc<Group>,
    /// Where its hosts stand in [`Plan::hosts`].
    range: std::ops::Range<usize>,
}

impl Plan {
    /// The plan for the hosts of a row ([`super::Row::addresses`]) or of an MX set. `pattern`
    /// names the cursor: the text of the row's receiving domain, or the domain whose MX they are.
    /// An address that comes twice counts once, with its lower priority number. At most `tries_max`
    /// hosts are tried in one attempt: 5 for MX, `usize::MAX` for a route.
    #[must_use]
    pub fn new(
        registry: &Registry,
        pattern: &str,
        addresses: &[(SocketAddr, u16)],
        tries_max: usize,
        now: Mono,
    ) -> Self {
        let host = |address| registry.host(address, now);
        Self::of(pattern, addresses, tries_max, host, |key| registry.group(key, now))
    }

    /// As [`Plan::new`], for a forecast alone: what is not known stays unknown to `registry`, and
    /// no use of anything is noted. Turns taken from it are nobody's.
    #[must_use]
    pub fn preview(
        registry: &Registry,
        pattern: &str,
        addresses: &[(SocketAddr, u16)],
        tries_max: usize,
        now: Mono,
    ) -> Self {
        let host = |address| registry.known_or_unknown_host(address, now);
        Self::of(pattern, addresses, tries_max, host, |key| registry.known_group(key))
    }

    fn of(
        pattern: &str,
        addresses: &[(SocketAddr, u16)],
        tries_max: usize,
        host: impl Fn(SocketAddr) -> Arc<Host>,
        group: impl Fn(GroupKey) -> Arc<Group>,
    ) -> Self {
        let mut sorted = addresses.to_vec();
        // Stable: hosts of one priority keep the order of the row.
        sorted.sort_by_key(|(_, priority)| *priority);
        // Two names of an MX set may share an address, which is still one host.
        let mut seen = HashSet::with_capacity(sorted.len());
        sorted.retain(|(address, _)| seen.insert(*address));
        sorted.truncate(limits::ROUTE_HOSTS_MAX);
        let hosts = sorted.iter().map(|(address, _)| host(*address)).collect();
        let mut groups = Vec::new();
        let mut start = 0;
        for same in sorted.chunk_by(|a, b| a.1 == b.1) {
            let priority = same[0].1;
            let addresses = same.iter().map(|(address, _)| *address).collect();
            let key = GroupKey { pattern: pattern.into(), priority, hosts: addresses };
            let range = start..start + same.len();
            start = range.end;
            groups.push(PlanGroup { priority, group: group(key), range });
        }
        Self { groups, hosts, tries_max }
    }

    /// All hosts, in priority order: [`HostSet`] counts along it.
    #[must_use]
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// The next host for a delivery that has `tried` these. Takes at most one turn.
    pub fn choose(
        &self,
        now: Mono,
        tried: &HostSet,
        lane: impl FnMut(Pick<'_>) -> LaneFill,
    ) -> Choice<'_> {
        self.take_turns(1, now, tried).next(lane)
    }

    /// Takes a block of turns for `deliveries` deliveries in hand that have all `tried` the same
    /// hosts: call [`Turns::next`] exactly so often, at once.
    #[must_use = "the turns are taken"]
    pub fn take_turns(&self, deliveries: u64, now: Mono, tried: &HostSet) -> Turns<'_> {
        if tried.len() >= self.tries_max {
            return Turns::fixed(self, Choice::Exhausted { all_down: self.all_down(now) });
        }
        for wanted in [Status::Up, Status::SlowConnect] {
            for group in &self.groups {
                let able = self.select(group.range.clone(), tried, |s| s == wanted, now);
                if !able.is_empty() {
                    let first = group.group.cursor().take(deliveries);
                    return Turns { plan: self, able, next: first, fixed: None };
                }
            }
        }
        Turns::fixed(self, self.choose_idle(now, tried))
    }

    /// Down hosts whose time is over: while mail for them is queued, some shard should probe
    /// them, even if other hosts of the plan are up and no delivery is bound to them.
    pub fn probes_due(&self, now: Mono) -> impl Iterator<Item = Pick<'_>> {
        let due = move |pick: &Pick<'_>| pick.host.status(now) == Status::ProbeDue;
        self.picks(0..self.hosts.len()).filter(due)
    }

    /// True when a host that is not in `tried` is up: what tells whether the deliveries in the lane
    /// of a slow or silent host should take new turns.
    #[must_use]
    pub fn has_up(&self, now: Mono, tried: &HostSet) -> bool {
        let up =
            |pick: Pick<'_>| !tried.contains(pick.index) && pick.host.status(now) == Status::Up;
        self.picks(0..self.hosts.len()).any(up)
    }

    /// True while a delivery that has `tried` these hosts may try another one now.
    #[must_use]
    pub fn has_untried(&self, now: Mono, tried: &HostSet) -> bool {
        let usable = |pick: Pick<'_>| !pick.host.is_down(now);
        tried.len() < self.tries_max
            && self.picks(0..self.hosts.len()).any(|p| !tried.contains(p.index) && usable(p))
    }

    /// True when no host may be used: each is down, waits for its probe, or is being probed.
    #[must_use]
    pub fn all_down(&self, now: Mono) -> bool {
        self.hosts.iter().all(|host| host.is_down(now))
    }

    /// The hosts in the order in which one delivery would try them now. Takes no turn.
    #[must_use]
    pub fn explain(&self, now: Mono) -> Vec<Forecast> {
        let mut tried = HostSet::default();
        let mut order = Vec::with_capacity(self.hosts.len());
        for wanted in [Status::Up, Status::SlowConnect] {
            for group in &self.groups {
                let mut able = self.select(group.range.clone(), &tried, |s| s == wanted, now);
                let mut turn = group.group.cursor().peek();
                while let Some(index) = nth(&able, turn) {
                    able.remove(index);
                    tried.insert(index);
                    order.push(index);
                    turn += 1;
                }
            }
        }
        let mut rest: Vec<_> = (0..self.hosts.len()).filter(|i| !tried.contains(*i)).collect();
        rest.sort_by_key(|i| match self.hosts[*i].status(now) {
            Status::Up | Status::SlowConnect => (0, Mono(0)),
            Status::PassedOver { until } => (1, until),
            Status::ProbeDue => (2, Mono(0)),
            Status::Down { until } | Status::Probing { until } => (3, until),
        });
        order.extend(rest);
        let forecast = |index: usize| Forecast {
            host: Arc::clone(&self.hosts[index]),
            priority: self.priority(index),
            status: self.hosts[index].status(now),
        };
        order.into_iter().map(forecast).collect()
    }

    /// The priority of host `index`.
    #[must_use]
    pub fn priority(&self, index: usize) -> u16 {
        let group = self.groups.partition_point(|group| group.range.end <= index);
        self.groups[group].priority
    }

    /// The choice when no host takes turns.
    fn choose_idle(&self, now: Mono, tried: &HostSet) -> Choice<'_> {
        let (mut passed_over, mut probe, mut until) = (None, None, None);
        for pick in self.picks(0..self.hosts.len()).filter(|p| !tried.contains(p.index)) {
            match pick.host.status(now) {
                // Up since we looked: as good as a pass-over that ends now.
                Status::Up | Status::SlowConnect => keep_first(&mut passed_over, now, pick),
                Status::PassedOver { until } => keep_first(&mut passed_over, until, pick),
                Status::ProbeDue => keep_first(&mut probe, now, pick),
                Status::Down { until: at } | Status::Probing { until: at } => {
                    keep_first(&mut until, at, pick);
                }
            }
        }
        match (passed_over, probe, until) {
            (Some((_, pick)), _, _) => Choice::Turn(pick),
            (None, Some((_, pick)), _) => Choice::Probe(pick),
            (None, None, Some((until, _))) if tried.is_empty() => Choice::AllDown { until },
            _ => Choice::Exhausted { all_down: self.all_down(now) },
        }
    }

    fn select(
        &self,
        range: std::ops::Range<usize>,
        tried: &HostSet,
        wanted: impl Fn(Status) -> bool,
        now: Mono,
    ) -> HostSet {
        let mut set = HostSet::default();
        for pick in self.picks(range).filter(|pick| !tried.contains(pick.index)) {
            if wanted(pick.host.status(now)) {
                set.insert(pick.index);
            }
        }
        set
    }

    fn picks(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = Pick<'_>> {
        range.map(|index| self.pick(index))
    }

    fn pick(&self, index: usize) -> Pick<'_> {
        Pick { index, host: &self.hosts[index] }
    }
}

/// A block of turns, each to be bound to its delivery at once.
#[derive(Debug)]
#[must_use = "the turns are taken"]
pub struct Turns<'a> {
    plan: &'a Plan,
    able: HostSet,
    next: u64,
    /// What every delivery gets when no host takes turns.
    fixed: Option<Choice<'a>>,
}

impl<'a> Turns<'a> {
    fn fixed(plan: &'a Plan, choice: Choice<'a>) -> Self {
        Self { plan, able: HostSet::default(), next: 0, fixed: Some(choice) }
    }

    /// Binds the next turn. `lane` tells how full a host's lane is, with the deliveries of this
    /// block that entered it before.
    pub fn next(&mut self, mut lane: impl FnMut(Pick<'_>) -> LaneFill) -> Choice<'a> {
        let turn = self.next;
        self.next = self.next.wrapping_add(1);
        let Some(index) = nth(&self.able, turn) else {
            return self.place(lane);
        };
        let pick = self.plan.pick(index);
        if lane(pick) != LaneFill::Full {
            return Choice::Turn(pick);
        }
        let mut empty = |i: &usize| lane(self.plan.pick(*i)) == LaneFill::Empty;
        let behind = self.able.iter().filter(|i| *i > index);
        let before = self.able.iter().filter(|i| *i < index);
        match behind.chain(before).find(&mut empty) {
            Some(other) => Choice::Turn(self.plan.pick(other)),
            None => Choice::Wait(pick),
        }
    }

    /// The choice without turns, with the lane looked at.
    fn place(&self, mut lane: impl FnMut(Pick<'_>) -> LaneFill) -> Choice<'a> {
        match self.fixed.expect("turns without hosts have a fixed choice") {
            Choice::Turn(pick) if lane(pick) == LaneFill::Full => Choice::Wait(pick),
            choice => choice,
        }
    }
}

/// The member number `turn mod len`; `None` for the empty set.
fn nth(set: &HostSet, turn: u64) -> Option<usize> {
    let len = set.len();
    if len == 0 {
        return None;
    }
    let nth = usize::try_from(turn % len as u64).ok()?;
    set.iter().nth(nth)
}

fn keep_first<'a>(first: &mut Option<(Mono, Pick<'a>)>, until: Mono, pick: Pick<'a>) {
    if first.is_none_or(|(earliest, _)| until < earliest) {
        *first = Some((until, pick));
    }
}

const _: () = assert!(WORDS * 64 == limits::ROUTE_HOSTS_MAX);
