//! A lane: the deliveries of one shard that took a turn for one host, of all destinations.
//!
//! Owns: their order, the bound on their number, who waits for room, and the rule by which
//! connections grow. Never: the turn itself (`route`), the sessions (`shard`).
//!
//! Limits: [`LANE_DELIVERIES_MAX`] deliveries.

use std::collections::VecDeque;

use crate::limits::LANE_DELIVERIES_MAX;

use super::destination::DestinationId;

/// A bounded first-in-first-out list of deliveries `D` for one host.
#[derive(Debug)]
pub struct Lane<D> {
    deliveries: VecDeque<D>,
    blocked: Vec<DestinationId>,
}

impl<D> Default for Lane<D> {
    fn default() -> Self {
        Self { deliveries: VecDeque::new(), blocked: Vec::new() }
    }
}

impl<D> Lane<D> {
    /// Takes a delivery at the end.
    ///
    /// # Errors
    /// Gives the delivery back when the lane is full.
    pub fn push(&mut self, delivery: D) -> Result<(), D> {
        if self.is_full() {
            return Err(delivery);
        }
        self.deliveries.push_back(delivery);
        Ok(())
    }

    /// Takes a delivery that is bound to its turn, also when the lane is full: each destination
    /// passes the bound by one at most, because it is paused until there is room.
    pub fn push_bound(&mut self, delivery: D) {
        self.deliveries.push_back(delivery);
    }

    /// The next delivery, left where it is.
    #[must_use]
    pub fn peek(&self) -> Option<&D> {
        self.deliveries.front()
    }

    /// Puts a delivery back at the front: handed to a session, but nothing of it was sent. May
    /// pass the bound by what sessions hold, for these deliveries have no other place.
    pub fn give_back(&mut self, delivery: D) {
        self.deliveries.push_front(delivery);
    }

    /// The next delivery for a ready session.
    pub fn pop(&mut self) -> Option<D> {
        self.deliveries.pop_front()
    }

    /// All deliveries, oldest first: the host went down, they take new turns.
    #[must_use]
    pub fn drain(&mut self) -> VecDeque<D> {
        std::mem::take(&mut self.deliveries)
    }

    /// Keeps the deliveries for which `keep` is true: for expiry and the operator.
    pub fn retain(&mut self, keep: impl FnMut(&D) -> bool) {
        self.deliveries.retain(keep);
    }

    /// Deliveries in the lane.
    #[must_use]
    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// No deliveries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// No room for another delivery.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.deliveries.len() >= LANE_DELIVERIES_MAX
    }

    /// Remembers a destination that was set aside because this lane is full, once: a message with
    /// many recipients comes here for each of its pieces.
    pub fn block(&mut self, destination: DestinationId) {
        if !self.blocked.contains(&destination) {
            self.blocked.push(destination);
        }
    }

    /// The destinations to poke: all that were blocked, once a quarter of the lane is free, so
    /// that they are not set aside again for every single delivery.
    #[must_use]
    pub fn unblocked(&mut self) -> Vec<DestinationId> {
        if self.deliveries.len() > LANE_DELIVERIES_MAX / 4 * 3 {
            return Vec::new();
        }
        std::mem::take(&mut self.blocked)
    }

    /// Another lane of a group has run empty: the last delivery of a destination that was set
    /// aside for this lane, if `of` names its destination because its turn may go there instead.
    /// The destination is to be poked.
    pub fn relieve(
        &mut self,
        of: impl Fn(&D) -> Option<DestinationId>,
    ) -> Option<(D, DestinationId)> {
        if self.blocked.is_empty() {
            return None;
        }
        let is_blocked = |d: &D| of(d).is_some_and(|id| self.blocked.contains(&id));
        let at = self.deliveries.iter().rposition(is_blocked)?;
        let delivery = self.deliveries.remove(at)?;
        let id = of(&delivery)?;
        self.blocked.retain(|blocked| *blocked != id);
        Some((delivery, id))
    }

    /// True while a destination is set aside because this lane is full.
    #[must_use]
    pub fn holds_up(&self) -> bool {
        !self.blocked.is_empty()
    }
}

/// What decides whether a lane gets one more connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Growth {
    /// Deliveries in the lane.
    pub deliveries: usize,
    /// Deliveries that the ready sessions together take in one round trip: their windows.
    pub window_deliveries: usize,
    /// Connections on their way to ready that this lane had not before.
    pub growing: usize,
    /// Connections on their way to ready that take the place of a spent one.
    pub replacing: usize,
    /// Connections that have been given as many messages as one may carry, have yet to end, and
    /// are not replaced.
    pub vacant: usize,
    /// Connections of this lane, ready or on their way.
    pub connections: usize,
    /// The host has answered a transaction of this lane.
    pub answers: bool,
    /// Most connections this lane may have now.
    pub connections_max: usize,
    /// The host has been silent for too long: no new connections, whatever waits.
    pub host_silent: bool,
}

impl Growth {
    /// One more connection? Yes when the lane holds more than the ready sessions take in one
    /// round trip and one for each that is on its way, the last new one is ready, and the host has
    /// shown that it moves mail: one that greets and then answers no transaction gets one, and no
    /// more of the permits that others need. One that takes the place of another is no new one:
    /// where connections are short, one of them at a time would be all that the lane ever has.
    #[must_use]
    pub fn wants_connection(self) -> bool {
        !self.host_silent
            && (self.growing == 0 || self.replaces())
            && self.connections < self.connections_max
            && (self.answers || self.connections == 0)
            && self.deliveries > self.window_deliveries + self.growing + self.replacing
    }

    /// Would it take the place of a spent one?
    #[must_use]
    pub fn replaces(self) -> bool {
        self.vacant > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_bounded_and_keeps_its_order() {
        let mut lane = Lane::default();
        for n in 0..LANE_DELIVERIES_MAX {
            assert_eq!(lane.push(n), Ok(()));
        }
        assert_eq!(lane.push(77), Err(77));
        assert_eq!(lane.pop(), Some(0));
        lane.give_back(0);
        lane.retain(|n| n % 2 == 0);
        assert_eq!(lane.pop(), Some(0));
        assert_eq!(lane.drain().into_iter().next(), Some(2));
        assert!(lane.is_empty());
    }

    #[test]
    fn a_lane_gives_up_what_holds_up_a_destination() {
        let id = DestinationId::for_test(3);
        let mut lane = Lane::default();
        while lane.push(1).is_ok() {}
        let of = |delivery: &u32| (*delivery == 2).then_some(id);
        assert_eq!(lane.relieve(of), None, "nobody is set aside");
        lane.push_bound(2);
        lane.block(id);
        assert!(lane.holds_up());
        assert_eq!(lane.relieve(|_| None), None, "its turn may not go elsewhere");
        assert_eq!(lane.relieve(of), Some((2, id)));
        assert!(!lane.holds_up());
        assert_eq!(lane.relieve(of), None);
    }

    #[test]
    fn blocked_destinations_come_back_once_there_is_room_for_many() {
        let mut lane = Lane::default();
        while lane.push(()).is_ok() {}
        lane.block(DestinationId::for_test(3));
        lane.block(DestinationId::for_test(3));
        lane.pop();
        assert!(lane.unblocked().is_empty());
        for _ in 0..LANE_DELIVERIES_MAX / 4 {
            lane.pop();
        }
        assert_eq!(lane.unblocked(), [DestinationId::for_test(3)]);
        assert!(lane.unblocked().is_empty());
    }

    #[test]
    fn connections_grow_by_need_one_by_one_beside_those_that_are_replaced() {
        let idle = Growth {
            deliveries: 0,
            window_deliveries: 0,
            growing: 0,
            replacing: 0,
            vacant: 0,
            connections: 0,
            answers: true,
            connections_max: 2,
            host_silent: false,
        };
        let table = [
            (idle, false),
            (Growth { deliveries: 1, ..idle }, true),
            (Growth { deliveries: 1, growing: 1, connections: 1, ..idle }, false),
            (Growth { deliveries: 9, growing: 1, connections: 1, ..idle }, false),
            (Growth { deliveries: 2, growing: 1, vacant: 1, connections: 1, ..idle }, true),
            (Growth { deliveries: 1, growing: 1, vacant: 1, connections: 1, ..idle }, false),
            (Growth { deliveries: 2, replacing: 1, connections: 1, ..idle }, true),
            (Growth { deliveries: 1, replacing: 1, vacant: 1, connections: 1, ..idle }, false),
            (Growth { vacant: 1, ..idle }, false),
            (Growth { deliveries: 9, vacant: 1, connections: 2, ..idle }, false),
            (Growth { deliveries: 8, connections: 1, window_deliveries: 8, ..idle }, false),
            (Growth { deliveries: 9, connections: 1, window_deliveries: 8, ..idle }, true),
            (Growth { deliveries: 9, connections: 2, window_deliveries: 8, ..idle }, false),
            (Growth { deliveries: 9, host_silent: true, ..idle }, false),
            (Growth { deliveries: 9, answers: false, ..idle }, true),
            (Growth { deliveries: 9, answers: false, connections: 1, ..idle }, false),
            (Growth { deliveries: 9, connections: 1, ..idle }, true),
            (Growth { deliveries: 9, connections_max: 0, ..idle }, false),
        ];
        for (growth, wants) in table {
            assert_eq!(growth.wants_connection(), wants, "{growth:?}");
        }
    }
}
