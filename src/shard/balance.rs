//! Clients spread evenly over the shards.
//!
//! Owns: how many clients each shard serves, which shard takes the next one, and the sockets on
//! their way from the shard that accepted them. Never: the dialogue.
//!
//! The kernel spreads connections over the listening sockets of an address by a hash: of twenty
//! clients one shard may get fourteen. So the shard that accepts one hands it over when it has
//! more than its share: as long as shards serve fewer than 32 clients each they may differ by one,
//! above that none may have more than 1.25 times the mean.
//!
//! Limits: [`HANDED_MAX`] sockets wait for one shard; beyond them the acceptor keeps its own.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use super::io::Accepted;
use super::shared::lock;
use crate::mail::ShardId;

/// Clients of a shard from which on the looser rule holds.
const MANY: usize = 32;

/// Sockets that wait for one shard at most.
const HANDED_MAX: usize = 1024;

/// A client that was accepted: the number of its listener, and its socket.
pub(super) type NewClient = (usize, Accepted);

/// One shard's side of it.
#[derive(Default)]
struct Side {
    /// Clients it serves, or will serve. Relaxed: a number of its own; a look that is a moment old
    /// costs evenness for one client at most.
    clients: AtomicUsize,
    handed: Mutex<VecDeque<NewClient>>,
}

/// All shards' clients.
pub(super) struct Balance(Vec<CachePadded<Side>>);

impl Balance {
    /// For `shards` shards.
    pub(super) fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| CachePadded::default()).collect())
    }

    /// Which shard serves the next client that `acceptor` accepted; it counts as served there.
    pub(super) fn place(&self, acceptor: ShardId) -> ShardId {
        let counts: Vec<usize> =
            self.0.iter().map(|side| side.clients.load(Ordering::Relaxed)).collect();
        let chosen = choose(usize::from(acceptor.0), &counts);
        self.0[chosen].clients.fetch_add(1, Ordering::Relaxed);
        ShardId(u8::try_from(chosen).unwrap_or(acceptor.0))
    }

    /// Gives a client to its shard, which must be rung then.
    ///
    /// # Errors
    /// Too many wait for it already: the client comes back.
    pub(super) fn hand_over(&self, to: ShardId, client: NewClient) -> Result<(), NewClient> {
        let mut handed = lock(&self.0[usize::from(to.0)].handed);
        if handed.len() >= HANDED_MAX {
            return Err(client);
        }
        handed.push_back(client);
        Ok(())
    }

    /// The next client that another shard has handed over.
    pub(super) fn take(&self, shard: ShardId) -> Option<NewClient> {
        lock(&self.0[usize::from(shard.0)].handed).pop_front()
    }

    /// The client that was placed on `from` is served by `to` after all.
    pub(super) fn moved(&self, from: ShardId, to: ShardId) {
        self.left(from);
        self.0[usize::from(to.0)].clients.fetch_add(1, Ordering::Relaxed);
    }

    /// A client of `shard` is gone.
    pub(super) fn left(&self, shard: ShardId) {
        let before = self.0[usize::from(shard.0)].clients.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a client left shard {shard} twice");
    }
}

/// The acceptor, unless it would have more than its share; then the shard with the fewest.
fn choose(acceptor: usize, counts: &[usize]) -> usize {
    let fewest = (0..counts.len()).min_by_key(|shard| counts[*shard]).unwrap_or(acceptor);
    let with_it = counts[acceptor] + 1;
    let all = counts.iter().sum::<usize>() + 1;
    let within_share = if with_it < MANY {
        with_it <= counts[fewest] + 1
    } else {
        // with_it <= 1.25 x mean, in whole numbers.
        4 * with_it * counts.len() <= 5 * all
    };
    if within_share { acceptor } else { fewest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_accepts_the_clients_are_spread() {
        for shards in 1..=16usize {
            let balance = Balance::new(shards);
            let counts = || -> Vec<usize> {
                balance.0.iter().map(|side| side.clients.load(Ordering::Relaxed)).collect()
            };
            // The worst hash: one shard accepts all of them.
            for _ in 0..shards * 200 {
                let placed = balance.place(ShardId(0));
                let counts = counts();
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                let mean = counts.iter().sum::<usize>() as f64 / shards as f64;
                let even =
                    if *most < MANY { most - least <= 1 } else { *most as f64 <= 1.25 * mean };
                assert!(even, "{counts:?} after {placed}");
            }
        }
    }

    #[test]
    fn an_even_hash_hands_nothing_over() {
        let balance = Balance::new(4);
        for n in 0..200 {
            assert_eq!(balance.place(ShardId(n % 4)), ShardId(n % 4));
        }
    }
}
