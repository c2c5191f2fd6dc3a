//! Wake-up gates: one per destination, shared by all shards.
//!
//! Owns: whether a destination is down, and how fast its mail may be woken when it comes up.
//! Never: the mail (each shard wakes its own, see [`super::destination`]), host health (`route`).
//!
//! A destination is down when every host is down, or when every host has refused since the last
//! success in a way that speaks of the host ([`Sign::HostRefusal`]). A reply that speaks of one
//! mailbox never makes it down, and mail deferred by such a reply is never woken. Only the step
//! from down to up wakes: at most once per `initial_retry`, 10 deliveries in the first second of
//! all shards together, twice as many in every further second in which a delivery succeeded.
//!
//! Gates are read often and written seldom: a success of a destination that is up and was not
//! refused costs a few loads. Two threads that change one gate at the same time may leave it
//! down although a success was seen; the next success brings it up. All orderings are acquire
//! and release: what a shard did before it moved the gate is seen by who reads the move.
//!
//! Limits: [`ROUTE_HOSTS_MAX`] hosts; the registry drops gates that no shard holds.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::limits::ROUTE_HOSTS_MAX;
use crate::mail::time::millis;
use crate::mail::{Domain, Mono};

/// Deliveries woken in the first second.
pub const WAKE_FIRST_SECOND: u32 = 10;

const WINDOW_MS: u64 = 1_000;
/// From here on nothing is held back any more.
const QUOTA_FREE: u32 = 1 << 20;
const NEVER: u64 = u64::MAX;

/// What the end of an attempt on one host says about the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// A message was accepted.
    Success,
    /// The host refused for its own sake: greeting, EHLO, MAIL, 421, x.3.x or x.4.x.
    HostRefusal,
    /// The connection failed or broke: host health decides, the gate learns it from there.
    Trouble,
    /// It speaks of the message or the mailbox.
    Mailbox,
}

/// The wake-up gate of one destination.
#[derive(Debug)]
pub struct Gate {
    /// Steps between up (even) and down (odd).
    epoch: AtomicU64,
    /// One bit per host that refused since the last success.
    refused: [AtomicU64; ROUTE_HOSTS_MAX / 64],
    /// Hosts of the destination when one last refused.
    hosts: AtomicU32,
    initial_retry_ms: AtomicU64,
    /// When the last wake-up began or will begin, in milliseconds of [`Mono`].
    wake_start_ms: AtomicU64,
    /// The last wake-up as [`Window`]; 0: none yet.
    window: AtomicU64,
    /// A delivery succeeded in the present window.
    succeeded: AtomicBool,
    /// Wake-ups begun, of all gates.
    wakes: Arc<AtomicU64>,
}

/// One second of a wake-up, in one word: epoch 10 bits, second 12, taken 21, quota 21.
#[derive(Clone, Copy)]
struct Window {
    /// The step up that it belongs to: a window of an earlier one means nothing.
    epoch: u64,
    second: u64,
    taken: u32,
    quota: u32,
}

const SECONDS: u64 = 1 << 12;
const EPOCHS: u64 = 1 << 10;
const COUNT_BITS: u32 = 21;

/// A quota below the free one may be doubled once and still has room.
const _: () = assert!(2 * QUOTA_FREE <= 1 << COUNT_BITS);

impl Window {
    fn pack(self) -> u64 {
        let times = ((self.epoch / 2 % EPOCHS) << 12) | (self.second % SECONDS);
        (times << (2 * COUNT_BITS)) | (u64::from(self.taken) << COUNT_BITS) | u64::from(self.quota)
    }

    /// `None` when the word belongs to another step up than `epoch`.
    fn unpack(word: u64, epoch: u64) -> Option<Self> {
        let count = |shift: u32| u32::try_from((word >> shift) & ((1 << COUNT_BITS) - 1)).ok();
        let times = word >> (2 * COUNT_BITS);
        let quota = count(0).filter(|quota| *quota != 0)?;
        (times >> 12 == epoch / 2 % EPOCHS).then_some(Self {
            epoch,
            second: times % SECONDS,
            taken: count(COUNT_BITS)?,
            quota,
        })
    }
}

impl Gate {
    /// A gate that is up. `wakes` counts the wake-ups of all gates that share it.
    #[must_use]
    pub fn new(initial_retry: Duration, wakes: Arc<AtomicU64>) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            hosts: AtomicU32::new(0),
            initial_retry_ms: AtomicU64::new(millis(initial_retry)),
            wake_start_ms: AtomicU64::new(NEVER),
            window: AtomicU64::new(0),
            succeeded: AtomicBool::new(false),
            wakes,
        }
    }

    /// Steps between up and down so far; odd while down.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Acquire)
    }

    /// Is the destination down?
    #[must_use]
    pub fn is_down(&self) -> bool {
        !is_up(self.epoch())
    }

    /// Is mail being woken, or about to be?
    #[must_use]
    pub fn is_waking(&self) -> bool {
        self.present_window().is_some()
    }

    /// A host accepted a message of this destination.
    pub fn success(&self, now: Mono) {
        if self.is_down() || self.refusals() != 0 {
            for word in &self.refused {
                word.store(0, Release);
            }
            self.step_up(now);
        }
        if !self.succeeded.load(Acquire) && self.is_waking() {
            self.succeeded.store(true, Release);
        }
    }

    /// Host number `host` of the destination's `hosts` refused ([`Sign::HostRefusal`]). Numbers
    /// are those of the route; [`Gate::hosts_changed`] when they get a new meaning.
    ///
    /// # Panics
    /// When the host is none of the hosts, or they are more than [`ROUTE_HOSTS_MAX`].
    pub fn refusal(&self, host: usize, hosts: usize) {
        assert!(host < hosts && hosts <= ROUTE_HOSTS_MAX, "host {host} of {hosts}");
        self.hosts.store(u32::try_from(hosts).unwrap_or(u32::MAX), Release);
        self.refused[host / 64].fetch_or(1 << (host % 64), AcqRel);
        if self.refused_by_all() {
            self.step_down();
        }
    }

    /// Has host number `host` refused since the last success?
    #[must_use]
    pub fn has_refused(&self, host: usize) -> bool {
        self.refused.get(host / 64).is_some_and(|word| word.load(Acquire) >> (host % 64) & 1 == 1)
    }

    /// Host number `host` went down: what it said before is forgotten, for its health decides now.
    pub fn forget_refusal(&self, host: usize) {
        if let Some(word) = self.refused.get(host / 64) {
            word.fetch_and(!(1 << (host % 64)), AcqRel);
        }
    }

    /// Every host of the destination is down, or refuses.
    pub fn hosts_down(&self) {
        self.step_down();
    }

    /// A host of the destination is up (again). Brings the destination up, unless every host
    /// refuses.
    pub fn host_up(&self, now: Mono) {
        if self.is_down() && !self.refused_by_all() {
            self.step_up(now);
        }
    }

    /// The destination has other hosts than before: what the old ones said is forgotten.
    pub fn hosts_changed(&self, now: Mono) {
        for word in &self.refused {
            word.store(0, Release);
        }
        self.host_up(now);
    }

    /// How many of `want` deliveries the caller may wake now; they count as woken.
    pub fn take(&self, now: Mono, want: u32) -> u32 {
        while let Some((word, mut window)) = self.present_window() {
            let start_ms = self.wake_start_ms.load(Acquire);
            if now.0 < start_ms {
                return 0;
            }
            if window.quota >= QUOTA_FREE {
                return want;
            }
            let second = (now.0 - start_ms) / WINDOW_MS % SECONDS;
            let is_new = second != window.second;
            if is_new {
                let doubled = u32::from(self.succeeded.load(Acquire));
                window = Window { second, taken: 0, quota: window.quota << doubled, ..window };
            }
            let granted = want.min(window.quota.saturating_sub(window.taken));
            window.taken += granted;
            if self.window.compare_exchange(word, window.pack(), AcqRel, Acquire).is_ok() {
                if is_new {
                    self.succeeded.store(false, Release);
                }
                return granted;
            }
        }
        0
    }

    /// The running wake-up, unless the destination is down.
    fn present_window(&self) -> Option<(u64, Window)> {
        let word = self.window.load(Acquire);
        let epoch = self.epoch();
        let window = Window::unpack(word, epoch)?;
        is_up(epoch).then_some((word, window))
    }

    fn refusals(&self) -> u32 {
        self.refused.iter().map(|word| word.load(Acquire).count_ones()).sum()
    }

    fn refused_by_all(&self) -> bool {
        let hosts = self.hosts.load(Acquire);
        hosts != 0 && self.refusals() >= hosts
    }

    /// Who loses the exchange saw another thread make the same step.
    fn step(&self, from_up: bool) -> Option<u64> {
        let epoch = self.epoch();
        let is_mine = is_up(epoch) == from_up
            && self.epoch.compare_exchange(epoch, epoch + 1, AcqRel, Acquire).is_ok();
        is_mine.then_some(epoch + 1)
    }

    fn step_down(&self) {
        self.step(true);
    }

    fn step_up(&self, now: Mono) {
        if let Some(epoch) = self.step(false) {
            self.begin_wake(epoch, now);
        }
    }

    /// Too soon after the last wake-up, the next one waits for its time; it does not begin if
    /// the destination goes down before.
    fn begin_wake(&self, epoch: u64, now: Mono) {
        let last_ms = self.wake_start_ms.load(Acquire);
        let start_ms = match last_ms {
            NEVER => now.0,
            not_begun if not_begun > now.0 => not_begun,
            begun => now.0.max(begun.saturating_add(self.initial_retry_ms.load(Acquire))),
        };
        self.wake_start_ms.store(start_ms, Release);
        self.succeeded.store(false, Release);
        let first = Window { epoch, second: 0, taken: 0, quota: WAKE_FIRST_SECOND };
        self.window.store(first.pack(), Release);
        self.wakes.fetch_add(1, AcqRel);
    }
}

fn is_up(epoch: u64) -> bool {
    epoch.is_multiple_of(2)
}

/// All gates, by receiving domain. A lock is taken only when a shard meets a destination that it
/// does not know yet.
#[derive(Debug, Default)]
pub struct Gates {
    registry: Mutex<Registry>,
    wakes: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Registry {
    gates: HashMap<Domain, Arc<Gate>>,
    prune_at: usize,
}

impl Gates {
    /// The gate of a destination. `initial_retry` of the profile that holds now replaces the one
    /// given before.
    #[must_use]
    pub fn gate(&self, domain: &Domain, initial_retry: Duration) -> Arc<Gate> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = registry.gates.get(domain) {
            gate.initial_retry_ms.store(millis(initial_retry), Release);
            return Arc::clone(gate);
        }
        if registry.gates.len() >= registry.prune_at {
            registry.gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            registry.prune_at = (2 * registry.gates.len()).max(1024);
        }
        let gate = Arc::new(Gate::new(initial_retry, Arc::clone(&self.wakes)));
        registry.gates.insert(domain.clone(), Arc::clone(&gate));
        gate
    }

    /// Wake-ups begun, of all gates: while this number stands still, no shard has to look.
    #[must_use]
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(Duration::from_secs(60), Arc::default())
    }

    #[test]
    fn every_host_must_refuse_and_one_success_forgives() {
        let gate = gate();
        gate.refusal(0, 2);
        gate.refusal(0, 2);
        assert!(!gate.is_down());
        gate.success(Mono(1));
        gate.refusal(1, 2);
        assert!(!gate.is_down(), "the success stands between the refusals");
        gate.refusal(0, 2);
        assert!(gate.is_down());
        gate.host_up(Mono(2));
        assert!(gate.is_down(), "hosts that connect and refuse are no way in");
        gate.success(Mono(3));
        assert!(!gate.is_down());
        assert_eq!(gate.epoch(), 2);
    }

    #[test]
    fn all_hosts_down_until_one_is_up() {
        let gate = gate();
        gate.hosts_down();
        gate.hosts_down();
        assert_eq!((gate.is_down(), gate.epoch()), (true, 1));
        assert_eq!(gate.take(Mono(5), 100), 0);
        gate.host_up(Mono(10));
        gate.host_up(Mono(11));
        assert_eq!((gate.is_down(), gate.epoch()), (false, 2));
        assert_eq!(gate.wakes.load(Acquire), 1);
    }

    #[test]
    fn only_the_step_up_wakes() {
        let gate = gate();
        for n in 0..100 {
            gate.success(Mono(n));
            assert_eq!(gate.take(Mono(n), 1), 0);
        }
        gate.host_up(Mono(200));
        assert_eq!(gate.take(Mono(200), 1), 0);
        assert!(!gate.is_waking());
    }

    #[test]
    fn ten_in_the_first_second_then_doubling_while_it_succeeds() {
        let gate = gate();
        gate.hosts_down();
        gate.host_up(Mono(1_000));
        assert_eq!(gate.take(Mono(1_000), 4), 4);
        assert_eq!(gate.take(Mono(1_500), 100), 6);
        assert_eq!(gate.take(Mono(1_999), 100), 0);
        assert_eq!(gate.take(Mono(2_000), 100), 10, "no success yet: no doubling");
        gate.success(Mono(2_100));
        assert_eq!(gate.take(Mono(3_000), 100), 20);
        gate.success(Mono(3_100));
        assert_eq!(gate.take(Mono(9_000), 100), 40, "one doubling for a second with success");
        for second in 10..40 {
            gate.success(Mono(second * 1_000 - 1));
            gate.take(Mono(second * 1_000), 1);
        }
        assert_eq!(gate.take(Mono(41_000), u32::MAX), u32::MAX);
        gate.hosts_down();
        assert_eq!(gate.take(Mono(42_000), 1), 0);
    }

    #[test]
    fn at_most_one_wake_per_initial_retry() {
        let gate = gate();
        gate.hosts_down();
        gate.host_up(Mono(1_000));
        gate.hosts_down();
        gate.host_up(Mono(5_000));
        assert_eq!(gate.take(Mono(5_000), 1), 0);
        gate.hosts_down();
        gate.host_up(Mono(50_000));
        assert_eq!(gate.take(Mono(60_999), 1), 0);
        assert_eq!(gate.take(Mono(61_000), 99), 10);
    }

    #[test]
    fn gates_are_shared_by_name_and_dropped_when_unheld() {
        let gates = Gates::default();
        let retry = Duration::from_secs(60);
        let domain = |n: usize| Domain::parse(format!("d{n}.example").as_bytes()).unwrap();
        let held = gates.gate(&domain(0), retry);
        assert!(Arc::ptr_eq(&held, &gates.gate(&domain(0), retry)));
        for n in 1..5_000 {
            drop(gates.gate(&domain(n), retry));
        }
        assert!(gates.registry.lock().unwrap().gates.len() <= 1025);
        assert!(Arc::ptr_eq(&held, &gates.gate(&domain(0), retry)));
    }

    #[test]
    fn shards_together_never_take_more_than_the_quota() {
        let gate = Arc::new(gate());
        gate.hosts_down();
        gate.host_up(Mono(0));
        let shards: Vec<_> = (0..4)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || (0..100).map(|_| gate.take(Mono(1), 1)).sum::<u32>())
            })
            .collect();
        let total: u32 = shards.into_iter().map(|shard| shard.join().unwrap()).sum();
        assert_eq!(total, WAKE_FIRST_SECOND);
    }
}
