//! The shared atomics of `route` under every interleaving that loom can make.
//!
//! Owns: the models. The very files of `src/route` are compiled here over loom's atomics, which
//! they take from `super::atomic`. Loom explores all schedules of a model with at most
//! [`PREEMPTIONS_MAX`] forced switches, and all values that a weak load may see.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "the included files are parts of the library; each model uses some of them"
)]
#![allow(clippy::unwrap_used, reason = "a thread of a model that panicked has failed the test")]

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use ringpost::{limits, mail};

/// Two forced switches find nearly all bugs of two or three threads, in seconds; three take half
/// a minute.
const PREEMPTIONS_MAX: usize = 2;

#[path = "../src/route"]
mod route {
    //! The files under test, over loom's atomics.
    pub(crate) mod atomic {
        //! What `src/route/atomic.rs` is to the library.
        pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    }
    pub(crate) mod cursor;
    pub(crate) mod host;
    pub(crate) mod permits;
}

use mail::{Mono, ShardId};
use route::cursor::Cursor;
use route::host::{Host, Status};
use route::permits::{Permit, Permits};

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(check);
}

#[test]
fn no_turn_is_taken_twice_and_counts_differ_by_at_most_one() {
    const HOSTS: u64 = 2;
    model(|| {
        let cursor = Arc::new(Cursor::new());
        let take = |blocks: &'static [u64]| {
            let cursor = Arc::clone(&cursor);
            thread::spawn(move || {
                let block = |k: &u64| {
                    let first = cursor.take(*k);
                    first..first + k
                };
                blocks.iter().flat_map(block).collect::<Vec<u64>>()
            })
        };
        let threads = [take(&[1, 2]), take(&[3]), take(&[1])];
        let mut turns: Vec<u64> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        turns.sort_unstable();
        assert_eq!(turns, (0..7).collect::<Vec<_>>());
        let first = turns.iter().filter(|turn| *turn % HOSTS == 0).count();
        assert!(first.abs_diff(turns.len() - first) <= 1);
    });
}

/// A shard's doorbell: it sleeps until it is rung.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.ring.notify_one();
    }

    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.ring.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Shared {
    permits: Permits,
    bells: Vec<Bell>,
    /// Permits held now, by the holders' own count.
    held: loom::sync::atomic::AtomicU32,
}

impl Shared {
    fn new(limit: u32, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Permits::new(limit),
            bells: (0..shards).map(|_| Bell::default()).collect(),
            held: loom::sync::atomic::AtomicU32::new(0),
        })
    }

    fn ring(&self, shards: impl IntoIterator<Item = ShardId>) {
        shards.into_iter().for_each(|shard| self.bells[usize::from(shard.0)].ring());
    }

    /// A shard that needs one connection: waits for its permit, uses it, gives it back.
    fn connect_once(&self, shard: ShardId, limit: u32) {
        use loom::sync::atomic::Ordering::Relaxed;
        let permit = self.wait_for_permit(shard);
        assert!(self.held.fetch_add(1, Relaxed) < limit, "more permits held than there are");
        self.held.fetch_sub(1, Relaxed);
        self.ring(self.permits.release(permit));
    }

    fn wait_for_permit(&self, shard: ShardId) -> Permit {
        loop {
            if let Some(grant) = self.permits.acquire(shard) {
                self.ring(grant.ring);
                return grant.permit;
            }
            self.bells[usize::from(shard.0)].sleep();
        }
    }
}

/// A lost wake-up leaves a thread asleep for ever, which loom reports as a deadlock.
fn connect_on_each_shard(limit: u32, shards: u8) {
    model(move || {
        let shared = Shared::new(limit, usize::from(shards));
        let start = |shard| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.connect_once(ShardId(shard), limit))
        };
        let threads: Vec<_> = (1..shards).map(start).collect();
        shared.connect_once(ShardId(0), limit);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(shared.permits.taken(), 0);
        assert!(!shared.permits.waiting());
    });
}

#[test]
fn two_shards_and_one_permit_lose_no_wake_up() {
    connect_on_each_shard(1, 2);
}

#[test]
fn three_shards_and_one_permit_lose_no_wake_up() {
    connect_on_each_shard(1, 3);
}

#[test]
fn three_shards_and_two_permits_lose_no_wake_up() {
    connect_on_each_shard(2, 3);
}

#[test]
fn a_shard_that_is_rung_and_needs_nothing_passes_the_ring_on() {
    model(|| {
        let shared = Shared::new(1, 3);
        let holder = shared.permits.acquire(ShardId(0)).unwrap();
        let wants = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.connect_once(ShardId(1), 1))
        };
        let gives_up = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || match shared.permits.acquire(ShardId(2)) {
                Some(grant) => {
                    shared.ring(grant.ring);
                    shared.ring(shared.permits.release(grant.permit));
                }
                None => shared.ring(shared.permits.stop_waiting(ShardId(2))),
            })
        };
        shared.ring(shared.permits.release(holder.permit));
        wants.join().unwrap();
        gives_up.join().unwrap();
        assert_eq!(shared.permits.taken(), 0);
    });
}

/// Each of two shards holds its permit until the other has one too: no ring may be spent on a
/// shard that no longer needs it.
#[test]
fn two_releases_serve_two_shards_at_once() {
    model(|| {
        let shared = Shared::new(2, 2);
        let first = shared.permits.acquire(ShardId(0)).unwrap();
        let second = shared.permits.acquire(ShardId(0)).unwrap();
        let served = Arc::new([Bell::default(), Bell::default()]);
        let start = |shard: u8| {
            let (shared, served) = (Arc::clone(&shared), Arc::clone(&served));
            thread::spawn(move || {
                let grant = shared.wait_for_permit(ShardId(shard));
                served[usize::from(shard)].ring();
                served[usize::from(1 - shard)].sleep();
                shared.ring(shared.permits.release(grant));
            })
        };
        let threads = [start(0), start(1)];
        shared.ring(shared.permits.release(first.permit));
        shared.ring(shared.permits.release(second.permit));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_raised_limit_wakes_those_who_wait() {
    model(|| {
        let shared = Shared::new(0, 2);
        let wants = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.connect_once(ShardId(1), 1))
        };
        shared.ring(shared.permits.set_limit(1));
        wants.join().unwrap();
    });
}

#[test]
fn one_shard_gets_the_probe_and_a_late_failure_does_not_undo_a_success() {
    model(|| {
        let host = Host::new(([192, 0, 2, 1], 25).into(), 2, Mono(0));
        host.connection_failed(Mono(0));
        let host = Arc::new(host);
        let probe = |shard| {
            let host = Arc::clone(&host);
            move || {
                let probe = host.try_probe(Mono(1000), 500);
                let woke = probe.is_some() && host.session_opened(ShardId(shard), Mono(1001));
                (probe.is_some(), woke)
            }
        };
        let other = thread::spawn(probe(1));
        let (own, woke) = probe(0)();
        let (others, other_woke) = other.join().unwrap();
        assert!(own ^ others, "one lease");
        assert!(woke ^ other_woke, "one wake-up");
        assert_eq!(host.status(Mono(1001)), Status::Up);
    });
}
