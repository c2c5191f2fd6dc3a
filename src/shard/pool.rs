//! Lanes and the connections that serve them.
//!
//! Owns: one lane per pool key, its sessions, and the permits they hold. Never: the dialogue
//! (`session`), the turn (`route`).
//!
//! A connection holds three permits: one of the process, one of the host, and one of the
//! destination whose mail it carries; it takes another destination's mail only after swapping
//! that one. They come back when the peer's end of file was read. While a shard waits for a
//! permit, idle sessions end at once and busy ones after their transaction.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::Shard;
use super::connection::Bell;
use super::delivery::{Delivery, Step};
use super::destination::Destination;
use super::shortage::Pause;
use crate::mail::{Mono, Now};
use crate::route::{Host, LaneFill, Permit, Permits, Pick, Probe, Status};
use crate::schedule::lane::{Growth, Lane};

/// A lane that gave a permit back does not ask again for this long: permits are not handed over,
/// and it would win its own one back.
const HOLD_OFF_MS: u64 = 200;

/// One that is left without a connection asks sooner, for its mail has nothing else to wait for:
/// after so many usual reply times of its host, but not before [`HOLD_OFF_MS_MIN`]. To end one
/// connection and begin another costs half of them, so that it should not be done for each message.
const HOLD_OFF_REPLIES: u64 = 10;

/// Long enough for the shard that was rung to take the permit.
const HOLD_OFF_MS_MIN: u64 = 20;

/// Everything that changes what may be sent over a connection. The receiving domain is not in
/// it: sessions are shared by destinations.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct PoolKey {
    pub(super) address: SocketAddr,
    pub(super) source: Option<IpAddr>,
    pub(super) tls: TlsPolicy,
    pub(super) auth: Option<Arc<str>>,
    pub(super) ehlo_name: Arc<str>,
    /// Several transactions may be in flight.
    pub(super) trains: bool,
}

/// How a connection is secured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum TlsPolicy {
    /// Clear text.
    None,
}

/// A lane with its sessions.
pub(super) struct Served {
    pub(super) key: PoolKey,
    pub(super) host: Arc<Host>,
    pub(super) lane: RefCell<Lane<Delivery>>,
    /// Sessions that have room, those with nothing under way last.
    pub(super) idle: RefCell<Vec<Idle>>,
    /// Connections on their way to ready: those that it had not before, and those that take the
    /// place of a spent one.
    pub(super) growing: Cell<usize>,
    pub(super) replacing: Cell<usize>,
    pub(super) ready: Cell<usize>,
    /// Sessions that have taken all that one may and have yet to end, and how many of them
    /// nothing has replaced.
    pub(super) spent: Cell<usize>,
    pub(super) vacant: Cell<usize>,
    /// The host has answered a transaction.
    pub(super) answers: Cell<bool>,
    /// What the ready sessions together take in one round trip.
    pub(super) windows: Cell<usize>,
    /// Sessions with a transaction under way, and when one of them last asked for something.
    pub(super) outstanding: Cell<usize>,
    pub(super) asked: Cell<Mono>,
    /// No new connections before this: a permit was given back for another shard.
    pub(super) hold_off: Cell<Mono>,
    /// No new connections for want of a port.
    pub(super) pause: Pause,
    /// The latest good reply of a session here.
    pub(super) heard: Cell<Option<Mono>>,
}

/// A session that is ready and has room.
pub(super) struct Idle {
    pub(super) bell: Rc<Bell>,
    /// Those of the destination whose permit it holds.
    pub(super) permits: Option<Arc<Permits>>,
}

impl Served {
    /// Deliveries waiting.
    pub(super) fn backlog(&self) -> usize {
        self.lane.borrow().len()
    }

    /// Connections, ready or on their way.
    fn connections(&self) -> usize {
        self.growing.get() + self.replacing.get() + self.ready.get()
    }

    /// Where a connection on its way is counted.
    fn on_their_way(&self, cause: &Cause) -> &Cell<usize> {
        match cause {
            Cause::Replacement { .. } => &self.replacing,
            Cause::Growth | Cause::Probe(_) => &self.growing,
        }
    }

    /// A connection on its way is ready, or has failed.
    pub(super) fn has_come(&self, cause: &Cause) {
        let count = self.on_their_way(cause);
        count.set(count.get() - 1);
    }

    /// A session has taken all that it may.
    pub(super) fn one_is_spent(&self) {
        self.spent.set(self.spent.get() + 1);
        self.vacant.set(self.vacant.get() + 1);
    }

    /// Its connection is closed: what has not replaced it by now was not needed, or not allowed.
    pub(super) fn spent_one_is_gone(&self) {
        self.spent.set(self.spent.get() - 1);
        self.vacant.set(self.vacant.get().min(self.spent.get()));
    }
}

/// All lanes of a shard.
#[derive(Default)]
pub(super) struct Pool {
    lanes: HashMap<PoolKey, Rc<Served>>,
    /// Lanes that hold up a destination, or did a moment ago.
    over_full: Vec<Rc<Served>>,
}

/// A connection that is to be opened.
pub(super) struct New {
    pub(super) held: Held,
    pub(super) cause: Cause,
}

/// Why a connection is opened.
pub(super) enum Cause {
    /// What waits is more than the others take.
    Growth,
    /// To take the place of a spent one, beside so many sessions of this process with the host.
    Replacement { sessions: u32 },
    /// The host is down, and it is time to look again.
    Probe(Probe),
}

/// The permits of one connection.
pub(super) struct Held {
    process: Permit,
    host: Permit,
    pub(super) destination: Option<(Permit, Arc<Permits>)>,
}

impl Shard {
    /// The lane for a host of a destination, as that has to use it.
    pub(super) fn lane(&self, destination: &Destination, pick: Pick<'_>) -> Rc<Served> {
        let known = destination.lanes.borrow().get(pick.index).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let served = self.find_lane(destination, pick.host);
            let mut lanes = destination.lanes.borrow_mut();
            if lanes.len() <= pick.index {
                lanes.resize(pick.index + 1, Weak::new());
            }
            lanes[pick.index] = Rc::downgrade(&served);
            served
        })
    }

    fn find_lane(&self, destination: &Destination, host: &Arc<Host>) -> Rc<Served> {
        let key = PoolKey {
            address: host.address(),
            source: destination.source(),
            tls: TlsPolicy::None,
            auth: None,
            ehlo_name: destination.ehlo_name.clone(),
            trains: destination.controls.trains,
        };
        let mut pool = self.pool.borrow_mut();
        let entry = pool.lanes.entry(key).or_insert_with_key(|key| {
            Rc::new(Served {
                key: key.clone(),
                host: host.clone(),
                lane: RefCell::default(),
                idle: RefCell::default(),
                growing: Cell::new(0),
                replacing: Cell::new(0),
                ready: Cell::new(0),
                spent: Cell::new(0),
                vacant: Cell::new(0),
                answers: Cell::new(false),
                windows: Cell::new(0),
                outstanding: Cell::new(0),
                asked: Cell::default(),
                hold_off: Cell::default(),
                pause: Pause::default(),
                heard: Cell::new(None),
            })
        });
        entry.clone()
    }

    /// How full the lane of a host is.
    pub(super) fn lane_fill(&self, destination: &Destination, pick: Pick<'_>) -> LaneFill {
        let served = self.lane(destination, pick);
        let lane = served.lane.borrow();
        if lane.is_full() {
            LaneFill::Full
        } else if lane.is_empty() {
            LaneFill::Empty
        } else {
            LaneFill::Room
        }
    }

    /// There is work in the lane: an idle session takes it, or a new connection if that is due.
    pub(super) fn serve(self: &Rc<Self>, served: &Rc<Served>) {
        let idle = served.idle.borrow_mut().pop();
        match idle {
            Some(idle) => idle.bell.ring(),
            None => self.grow(served),
        }
    }

    /// Opens one more connection if the lane needs it and the limits allow it.
    pub(super) fn grow(self: &Rc<Self>, served: &Rc<Served>) {
        if self.stopping() != super::Stopping::No {
            return;
        }
        let now = self.now();
        if now.mono < served.hold_off.get() || self.is_paused(served, now.mono) {
            return;
        }
        let head = served.lane.borrow().peek().map(|d| (d.destination.clone(), d.strict));
        let Some((destination, strict)) = head else { return };
        let growth = Growth {
            deliveries: served.backlog(),
            // A strict repeat wants a connection of its own, however much the others take.
            window_deliveries: if strict { 0 } else { served.windows.get() },
            growing: served.growing.get(),
            replacing: served.replacing.get(),
            // A replacement has a permit beside that of the spent connection.
            vacant: if destination.permits.are_plenty() { served.vacant.get() } else { 0 },
            connections: served.connections(),
            answers: served.answers.get(),
            connections_max: destination.controls.connections_max as usize,
            host_silent: matches!(served.host.status(now.mono), Status::PassedOver { .. })
                && served.ready.get() > 0,
        };
        if !growth.wants_connection() {
            return;
        }
        if let Some(held) = self.permits_for(served, &destination, now) {
            let cause = if growth.replaces() {
                served.vacant.set(served.vacant.get() - 1);
                Cause::Replacement { sessions: served.host.sessions() }
            } else {
                Cause::Growth
            };
            self.start_session(served.clone(), destination, New { held, cause });
        }
    }

    /// A session of the lane is about to give its permits back, for a shard waits for one of them.
    pub(super) fn start_return(&self, held: &Held, served: &Served) {
        let now = self.now().mono;
        served.hold_off.set(now + Duration::from_millis(HOLD_OFF_MS));
        served.host.permits().comes_back(now);
        if let Some((_, permits)) = &held.destination {
            permits.comes_back(now);
        }
    }

    /// A session of the lane has ended: what waits wants another.
    pub(super) fn replace_ended(self: &Rc<Self>, served: &Rc<Served>) {
        let now = self.now().mono;
        if served.connections() > 0 || now >= served.hold_off.get() {
            return self.grow(served);
        }
        let usual_ms = served.host.usual_reply_ms();
        let wait = (usual_ms * HOLD_OFF_REPLIES).clamp(HOLD_OFF_MS_MIN, HOLD_OFF_MS);
        let until = served.hold_off.get().min(now + Duration::from_millis(wait));
        served.hold_off.set(until);
        let (shard, served) = (self.clone(), served.clone());
        super::io::spawn(async move {
            super::io::sleep(Duration::from_millis(until.since_ms(now))).await;
            shard.grow(&served);
        });
    }

    /// Probes a host that is down, when its time has come and permits are free.
    pub(super) fn probe(self: &Rc<Self>, destination: &Rc<Destination>, pick: Pick<'_>) {
        let now = self.now();
        let timeouts = self.config().timeouts;
        let lease = timeouts.connect + timeouts.greeting + timeouts.ehlo;
        let served = self.lane(destination, pick);
        if self.is_paused(&served, now.mono) {
            return;
        }
        let Some(held) = self.permits_for(&served, destination, now) else { return };
        match pick.host.try_probe(now.mono, crate::mail::time::millis(lease)) {
            Some(probe) => {
                let cause = Cause::Probe(probe);
                self.start_session(served, destination.clone(), New { held, cause });
            }
            None => self.release_permits(held, &served.host),
        }
    }

    fn start_session(self: &Rc<Self>, served: Rc<Served>, destination: Rc<Destination>, new: New) {
        let count = served.on_their_way(&new.cause);
        count.set(count.get() + 1);
        self.sessions.set(self.sessions.get() + 1);
        super::io::spawn(super::session::run(self.clone(), served, destination, new));
    }

    /// All three permits, or none.
    fn permits_for(&self, served: &Served, destination: &Destination, now: Now) -> Option<Held> {
        let host = &served.host;
        for shard in host.claim(destination.controls.connections_max, now.mono) {
            self.shared.ring(shard);
        }
        let process = self.take(&self.shared.connections_out)?;
        let Some(host_permit) = self.take(host.permits()) else {
            self.give_back(process, &self.shared.connections_out);
            return None;
        };
        let waited = destination.permits.is_waiting(self.id);
        let Some(of_destination) = self.take(&destination.permits) else {
            self.give_back(process, &self.shared.connections_out);
            self.give_back(host_permit, host.permits());
            if !waited {
                self.ask_an_idle_session(destination);
            }
            return None;
        };
        let destination = Some((of_destination, destination.permits.clone()));
        Some(Held { process, host: host_permit, destination })
    }

    /// An idle session of this shard that holds a permit of the destination looks up, and gives it
    /// back: one where there are most. Those of other shards do so with their tick.
    fn ask_an_idle_session(&self, destination: &Destination) {
        let lanes = destination.lanes.borrow();
        let holds = |idle: &Idle| {
            idle.permits.as_ref().is_some_and(|held| Arc::ptr_eq(held, &destination.permits))
        };
        let asked = lanes.iter().filter_map(Weak::upgrade).filter_map(|served| {
            let at = served.idle.borrow().iter().rposition(holds)?;
            (served.backlog() == 0).then_some((served, at))
        });
        if let Some((served, at)) = asked.max_by_key(|(served, _)| served.connections()) {
            let idle = served.idle.borrow_mut().remove(at);
            idle.bell.ring();
        }
    }

    /// Swaps the destination's permit for that of another destination; false when it has none.
    pub(super) fn swap_permit(&self, held: &mut Held, destination: &Destination) -> bool {
        if let Some((_, permits)) = &held.destination
            && Arc::ptr_eq(permits, &destination.permits)
        {
            return true;
        }
        let Some(fresh) = self.take(&destination.permits) else { return false };
        let old = held.destination.replace((fresh, destination.permits.clone()));
        if let Some((permit, permits)) = old {
            self.give_back(permit, &permits);
        }
        true
    }

    /// True while a shard wants a permit that this connection holds. Of those of the process
    /// thousands of lanes may be in want.
    pub(super) fn is_wanted(&self, held: &Held, host: &Host) -> bool {
        let now = self.now().mono;
        let of_destination = held.destination.as_ref();
        self.shared.connections_out.waiting()
            || host.permits().wanted(now)
            || of_destination.is_some_and(|(_, permits)| permits.wanted(now))
    }

    /// Gives all permits of a connection back.
    pub(super) fn release_permits(&self, held: Held, host: &Host) {
        self.give_back(held.process, &self.shared.connections_out);
        self.give_back(held.host, host.permits());
        if let Some((permit, permits)) = held.destination {
            self.give_back(permit, &permits);
        }
    }

    /// Rung: permits may be free. Every lane with a backlog tries again, by its idle sessions too:
    /// what they could not take for want of a permit, they may take now. Bits that were set for
    /// lanes which no longer need a permit are passed on, and idle sessions give back what others
    /// wait for.
    pub(super) fn retry_lanes(self: &Rc<Self>) {
        let mut lanes: Vec<_> = self.pool.borrow().lanes.values().cloned().collect();
        // Those last that gave a permit back last.
        lanes.sort_by_key(|served| served.hold_off.get());
        let now = self.now().mono;
        for served in &lanes {
            let has_backlog = served.backlog() > 0;
            if has_backlog {
                self.grow(served);
            } else {
                self.ring(served.host.permits().stop_waiting(self.id));
            }
            let wanted = served.host.permits().wanted(now) || self.shared.connections_out.waiting();
            served.idle.borrow_mut().retain(|idle| {
                let of_destination = idle.permits.as_ref().is_some_and(|p| p.wanted(now));
                let rings = has_backlog || wanted || of_destination;
                if rings {
                    idle.bell.ring();
                }
                !rings
            });
        }
    }

    /// Every ready session looks at its state again, as at the end of the engine.
    pub(super) fn ring_all_sessions(&self) {
        for bell in self.bells.borrow().iter().filter_map(std::rc::Weak::upgrade) {
            bell.ring();
        }
    }

    /// Lanes whose host has been silent for too long: their deliveries take new turns.
    pub(super) fn look_for_silence(self: &Rc<Self>) {
        let now = self.now().mono;
        let lanes: Vec<_> = self.pool.borrow().lanes.values().cloned().collect();
        for served in lanes {
            let waits = served.outstanding.get() > 0;
            if waits && served.host.check_silence(served.asked.get(), now) {
                self.yield_lane(&served);
            }
        }
    }

    /// A delivery waits for room in this lane, and its destination with it.
    pub(super) fn holds_up(&self, served: &Rc<Served>) {
        let over_full = &mut self.pool.borrow_mut().over_full;
        if !over_full.iter().any(|known| Rc::ptr_eq(known, served)) {
            over_full.push(served.clone());
        }
    }

    /// This lane has run empty: a turn for a full one of the same group is passed over to it, and
    /// the destination feeds at once. Later would be too late: a session that finds its lane empty
    /// gives its permit to the full lane that waits for one, and has to win it back.
    pub(super) fn relieve_full_lanes(self: &Rc<Self>, empty: &Rc<Served>) {
        let mut pool = self.pool.borrow_mut();
        if pool.over_full.is_empty() {
            return;
        }
        pool.over_full.retain(|served| served.lane.borrow().holds_up());
        let full = pool.over_full.clone();
        drop(pool);
        for served in full {
            let of = |d: &Delivery| d.equal_host(&empty.host).and_then(|_| self.id_of(d.handle));
            let Some((mut delivery, id)) = served.lane.borrow_mut().relieve(of) else { continue };
            delivery.host = delivery.equal_host(&empty.host).unwrap_or(delivery.host);
            empty.lane.borrow_mut().push_bound(delivery);
            self.serve(empty);
            self.poke(vec![id]);
            self.feed();
        }
    }

    /// The lane's deliveries, which have to take new turns. Destinations that waited for room here
    /// feed again: it may be that no session comes to this lane any more.
    pub(super) fn drain_lane(&self, served: &Served) -> Vec<Delivery> {
        let mut lane = served.lane.borrow_mut();
        let deliveries = lane.drain().into();
        let unblocked = lane.unblocked();
        drop(lane);
        self.poke(unblocked);
        deliveries
    }

    /// After a reload: the deliveries of all lanes take new turns, under the new routes.
    pub(super) fn turn_lanes_anew(self: &Rc<Self>) {
        let lanes: Vec<_> = self.pool.borrow().lanes.values().cloned().collect();
        let waiting: Vec<_> = lanes.iter().flat_map(|served| self.drain_lane(served)).collect();
        for delivery in waiting {
            self.go_on(Step::Route(delivery));
        }
    }

    /// Lanes that nobody uses are forgotten.
    pub(super) fn forget_unused_lanes(&self) {
        self.pool.borrow_mut().lanes.retain(|_, served| {
            Rc::strong_count(served) > 1 || served.backlog() > 0 || served.connections() > 0
        });
    }

    fn take(&self, permits: &Permits) -> Option<Permit> {
        let grant = permits.acquire(self.id)?;
        self.ring(grant.ring);
        Some(grant.permit)
    }

    fn give_back(&self, permit: Permit, permits: &Permits) {
        self.ring(permits.release(permit));
    }
}
