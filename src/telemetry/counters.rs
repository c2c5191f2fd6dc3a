//! Counters of one shard, and the law of conservation that they must obey.
//!
//! Owns: what is counted, its name and its meaning. Never: locks, or text (`prometheus`).
//!
//! A counter has one writer, its shard, and any number of readers. So a step is a load and a
//! store, both relaxed: no reader needs an order between two counters, and no other writer can
//! come between. Readers sum the shards; while mail flows such a sum is true within the steps
//! that were under way, and exact as soon as the shards are at rest.
//!
//! Diagnostics: [`Conservation::balance`] other than 0 at rest means that a recipient was lost or
//! counted twice: our mistake, an alarm.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Only its shard may call [`Counter::add`].
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more; wraps after 2^64.
    pub fn add(&self, n: u64) {
        // Relaxed: one writer, and nothing is published by a count.
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(n), Ordering::Relaxed);
    }

    /// Counts one more.
    pub fn one(&self) {
        self.add(1);
    }

    /// Shows a total that is kept elsewhere, such as the lines that a log dropped.
    pub fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that grows and shrinks. Only its shard may change it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// `n` more.
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// `n` less.
    ///
    /// # Panics
    /// When fewer than `n` are there: something ended that never began.
    pub fn sub(&self, n: u64) {
        let before = self.get();
        assert!(before >= n, "gauge holds {before}, {n} cannot leave it");
        self.set(before - n);
    }

    /// What it is now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident,)+) => {
        /// The counters of one shard; its maker pads it to its own cache lines.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: $kind,)+
        }

        /// The sums over all shards; each field as in [`Counters`].
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub struct Totals {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Totals {
            /// Sums the counters of all shards.
            #[must_use]
            pub fn of<'a>(shards: impl IntoIterator<Item = &'a Counters>) -> Self {
                let mut totals = Self::default();
                for shard in shards {
                    $(totals.$name = totals.$name.wrapping_add(shard.$name.get());)+
                }
                totals
            }
        }
    };
}

counters! {
    /// Recipients taken from clients: their message became safe or their next hop took them.
    accepted_from_clients: Counter,
    /// Recipients of messages made here: failure reports and delay warnings.
    generated_here: Counter,
    /// Recipients found in the spool at start.
    found_at_start: Counter,
    /// Recipients that a next hop took.
    delivered: Counter,
    /// Recipients given up with a permanent failure.
    bounced: Counter,
    /// Recipients discarded because their route is /dev/null.
    discarded_by_route: Counter,
    /// Recipients deleted by the operator.
    deleted: Counter,
    /// Recipients held because of damage on disk or because they are poison.
    damaged: Counter,
    /// Recipients accepted and not yet settled.
    pending: Gauge,
    /// Recipients whose reply to the final dot was lost; a part of delivered or pending.
    uncertain: Counter,
    /// Temporary failures of recipients that were deferred.
    soft_bounces: Counter,
    /// Messages taken from clients.
    messages_in: Counter,
    /// Transactions that a next hop took.
    messages_out: Counter,
    /// Octets of messages taken from clients.
    octets_in: Counter,
    /// Octets of messages that next hops took.
    octets_out: Counter,
    /// Messages refused because there was no memory to receive them.
    receive_refused: Counter,
    /// Connections from clients.
    connections_in: Counter,
    /// Connections to next hops that stood.
    connections_out: Counter,
    /// Connections to next hops that brought no session.
    connection_errors: Counter,
    /// Connections that our own machine had no room for.
    shortages: Counter,
    /// Connections from clients that are open.
    sessions_in: Gauge,
    /// Connections to next hops that are open.
    sessions_out: Gauge,
    /// Deliveries that went on to a further host within the same attempt.
    failovers: Counter,
    /// Deliveries deferred to a later time.
    deferrals: Counter,
    /// Batches made durable.
    commits: Counter,
    /// Syncs of queue files, commits among them.
    queue_syncs: Counter,
    /// Octets written to queue files.
    queue_octets_written: Counter,
    /// Messages that every next hop took before they were written.
    unwritten_messages: Counter,
    /// Lines of the mail log that were dropped.
    log_lines_dropped: Counter,
}

/// The law of conservation, in recipients: what came in is what went out and what is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conservation {
    /// Taken from clients, made here, and found at start.
    pub came: u64,
    /// Delivered, bounced, discarded by route, deleted and damaged.
    pub went: u64,
    /// Still here.
    pub pending: u64,
}

impl Conservation {
    /// The terms of `totals`.
    #[must_use]
    pub fn of(totals: &Totals) -> Self {
        let came = totals.accepted_from_clients + totals.generated_here + totals.found_at_start;
        let went = totals.delivered
            + totals.bounced
            + totals.discarded_by_route
            + totals.deleted
            + totals.damaged;
        Self { came, went, pending: totals.pending }
    }

    /// Recipients that came and are nowhere; negative when some are counted twice.
    #[must_use]
    pub fn balance(&self) -> i64 {
        let balance = i128::from(self.came) - i128::from(self.went) - i128::from(self.pending);
        i64::try_from(balance).unwrap_or(if balance < 0 { i64::MIN } else { i64::MAX })
    }

    /// Is every recipient accounted for?
    #[must_use]
    pub fn holds(&self) -> bool {
        self.balance() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_stands_on_its_side() {
        type Pick = fn(&Counters) -> &Counter;
        let came: [Pick; 3] =
            [|c| &c.accepted_from_clients, |c| &c.generated_here, |c| &c.found_at_start];
        let went: [Pick; 5] = [
            |c| &c.delivered,
            |c| &c.bounced,
            |c| &c.discarded_by_route,
            |c| &c.deleted,
            |c| &c.damaged,
        ];
        let no_term: [Pick; 3] = [|c| &c.uncertain, |c| &c.soft_bounces, |c| &c.messages_in];
        for (picks, expected) in [(&came[..], 7), (&went[..], -7), (&no_term[..], 0)] {
            for pick in picks {
                let counters = Counters::default();
                pick(&counters).add(7);
                let law = Conservation::of(&Totals::of([&counters]));
                assert_eq!(law.balance(), expected);
                assert_eq!(law.holds(), expected == 0);
            }
        }
    }

    #[test]
    fn the_law_holds_over_shards_not_in_each() {
        let (taker, sender) = (Counters::default(), Counters::default());
        taker.accepted_from_clients.add(10);
        taker.pending.add(10);
        taker.pending.sub(4);
        sender.delivered.add(3);
        sender.bounced.one();
        assert!(!Conservation::of(&Totals::of([&taker])).holds());
        assert!(Conservation::of(&Totals::of([&taker, &sender])).holds());
    }

    #[test]
    fn far_from_balance_saturates() {
        let law = Conservation { came: 0, went: u64::MAX, pending: u64::MAX };
        assert_eq!(law.balance(), i64::MIN);
    }

    #[test]
    #[should_panic(expected = "cannot leave")]
    fn what_never_came_cannot_leave() {
        Gauge::default().sub(1);
    }
}
