//! One host, `address:port`: its health and what was learned about it, shared by all shards.
//!
//! Owns: up, down until T, probing; the brief pass-over; the ceiling of connections; the usual
//! reply time; recipients per transaction; how it takes trains. Never: connecting, or judging what
//! a reply means (`settle`): it is told that a connection failed or that a reply was good.
//!
//! States: *up* takes turns; *passed over* and *slow connect* take none for a moment; *down* takes
//! none until its time is over; then *probe due*, and exactly one shard gets the *probing* lease.
//! A host goes down when a connection to it fails and no living session to it had a good reply
//! within [`limits::ALIVE_REPLY_MS`]. While such a session lives, a failure lowers the ceiling of
//! connections instead: "too many connections" must not look like "dead".
//!
//! Every atomic here stands alone: no other memory is read on the strength of its value, so
//! all of them are `Relaxed`, and what needs to be one step (health, ceiling) is one word changed
//! by compare-exchange. The order between shards comes from [`Permits`] and from the doorbells.
//!
//! Limits: back-off 1 s doubling to 5 min; times to 2^56 ms.

use std::cmp::Ordering;
use std::net::SocketAddr;

use crossbeam_utils::CachePadded;

use super::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use super::permits::{Permits, Waiters};
use crate::limits;
use crate::mail::{Mono, ShardId};

/// First wait of a host that went down, in milliseconds; it doubles with each failed probe.
pub const BACK_OFF_MS_MIN: u64 = 1_000;
/// Longest wait between two probes, in milliseconds.
pub const BACK_OFF_MS_MAX: u64 = 300_000;
/// Pass-over after 421, in milliseconds.
pub const PASS_OVER_421_MS: u64 = 1_000;
/// Pass-over after a drop, silence or garbage, in milliseconds.
pub const PASS_OVER_BROKEN_MS: u64 = 5_000;
/// A connect without an answer for this long is slow, in milliseconds.
pub const SLOW_CONNECT_MS: u64 = 2_000;
/// The ceiling of connections rises by one in this time, in milliseconds.
pub const CEILING_STEP_MS: u64 = 60_000;
/// A host is silent after this many times its usual reply time.
pub const SILENT_TIMES: u64 = 10;
/// No host is silent before this, in milliseconds: ten times a usual time of 1 ms is a hiccup. Of
/// ten equal hosts one that hangs holds up a tenth of the mail for this long.
pub const SILENT_MS_MIN: u64 = 300;
/// The state of a host that nobody used for this long is forgotten, in milliseconds.
pub const FORGET_MS: u64 = 3_600_000;
/// A destination's claim on connections lasts for two of these, in milliseconds.
const CLAIM_PERIOD_MS: u64 = 60_000;

/// What a host may be used for at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Takes turns.
    Up,
    /// A connect to it has run for over [`SLOW_CONNECT_MS`], and no session shows it alive: takes
    /// no turns while another host of the route is up.
    SlowConnect,
    /// Takes no turns until then; the first to end is used when all are passed over.
    PassedOver {
        /// The end.
        until: Mono,
    },
    /// Takes no turns.
    Down {
        /// When a probe is due.
        until: Mono,
    },
    /// Down, and its time is over: one shard may probe it now.
    ProbeDue,
    /// Down, and a shard is probing it.
    Probing {
        /// When anybody may take the probe over.
        until: Mono,
    },
}

impl Status {
    /// The word for it on status pages and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::SlowConnect => "slow connect",
            Self::PassedOver { .. } => "passed over",
            Self::Down { .. } => "down",
            Self::ProbeDue => "probe due",
            Self::Probing { .. } => "probing",
        }
    }
}

/// What a failed connection did to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is down until then: its lanes give their deliveries new turns.
    WentDown {
        /// When a probe is due.
        until: Mono,
    },
    /// It is alive and takes no more connections than this; the failure counts against no
    /// message.
    CeilingLowered(u32),
    /// It was down before; nothing changed.
    AlreadyDown,
}

/// The right to probe a host until the lease ends. End it with [`Host::probe_failed`], or with
/// [`Host::session_opened`], which is the success.
#[must_use = "a probe that is dropped blocks others until its lease ends"]
#[derive(Debug)]
pub struct Probe {
    word: u64,
}

/// One `address:port`, shared by all shards.
#[derive(Debug)]
pub struct Host {
    address: SocketAddr,
    permits: Permits,
    health: AtomicU64,
    /// Per shard: the time of the latest good reply among its living sessions, plus 1; 0: none.
    /// Each shard writes its own, so that a busy host is no meeting point.
    good_replies: Box<[AtomicU64]>,
    sessions: AtomicU32,
    passed_over_until_ms: AtomicU64,
    silent_until_ms: AtomicU64,
    slow_connects: AtomicU32,
    /// `ceiling << 32 | second it was set`; 0: none.
    ceiling: AtomicU64,
    /// `period << 32 | largest claim in it`, for this period and the one before.
    claims: [AtomicU64; 2],
    /// Moving average, in 1/256 ms; 0: unknown.
    usual_reply: AtomicU64,
    /// 0: unknown.
    recipients_max: AtomicU32,
    /// 0: unknown.
    train_window: AtomicU32,
    plain_until_ms: AtomicU64,
    used_ms: AtomicU64,
    /// One per shard, each written by its shard alone.
    tallies: Box<[CachePadded<Tally>]>,
}

/// What one shard did with a host.
#[derive(Debug, Default)]
struct Tally {
    turns: AtomicU64,
    delivered: AtomicU64,
}

impl Host {
    /// A host nobody has spoken to: up. `shards` in 1..=[`limits::SHARDS_MAX`].
    #[must_use]
    pub fn new(address: SocketAddr, shards: usize, now: Mono) -> Self {
        assert!((1..=limits::SHARDS_MAX).contains(&shards), "{shards} shards");
        Self {
            address,
            permits: Permits::new(1),
            health: AtomicU64::new(Health::UP.pack()),
            good_replies: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            sessions: AtomicU32::new(0),
            passed_over_until_ms: AtomicU64::new(0),
            silent_until_ms: AtomicU64::new(0),
            slow_connects: AtomicU32::new(0),
            ceiling: AtomicU64::new(0),
            claims: [AtomicU64::new(0), AtomicU64::new(0)],
            usual_reply: AtomicU64::new(0),
            recipients_max: AtomicU32::new(0),
            train_window: AtomicU32::new(0),
            plain_until_ms: AtomicU64::new(0),
            used_ms: AtomicU64::new(now.0),
            tallies: (0..shards).map(|_| CachePadded::default()).collect(),
        }
    }

    /// A delivery of `shard` took a turn for it.
    pub fn count_turn(&self, shard: ShardId) {
        self.tallies[usize::from(shard.0)].turns.fetch_add(1, Relaxed);
    }

    /// It took `recipients` recipients from `shard`.
    pub fn count_delivered(&self, shard: ShardId, recipients: u64) {
        self.tallies[usize::from(shard.0)].delivered.fetch_add(recipients, Relaxed);
    }

    /// Turns taken for it since it is known.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.turns.load(Relaxed)).sum()
    }

    /// Recipients it took since it is known.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.delivered.load(Relaxed)).sum()
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it may be used for at `now`.
    #[must_use]
    pub fn status(&self, now: Mono) -> Status {
        let health = Health::unpack(self.health.load(Relaxed));
        let over = health.until_ms <= now.0;
        match health.phase {
            Phase::Down | Phase::Probing if over => return Status::ProbeDue,
            Phase::Down => return Status::Down { until: Mono(health.until_ms) },
            Phase::Probing => return Status::Probing { until: Mono(health.until_ms) },
            Phase::Up => {}
        }
        let until = self.passed_over_until_ms.load(Relaxed).max(self.silent_until_ms.load(Relaxed));
        if until > now.0 {
            return Status::PassedOver { until: Mono(until) };
        }
        if self.slow_connects.load(Relaxed) > 0 && !self.is_alive(now) {
            return Status::SlowConnect;
        }
        Status::Up
    }

    /// True when it may not be used: down, waiting for its probe, or being probed.
    #[must_use]
    pub fn is_down(&self, now: Mono) -> bool {
        match self.status(now) {
            Status::Down { .. } | Status::ProbeDue | Status::Probing { .. } => true,
            Status::Up | Status::SlowConnect | Status::PassedOver { .. } => false,
        }
    }

    /// True when a living session had a good reply within [`limits::ALIVE_REPLY_MS`].
    #[must_use]
    pub fn is_alive(&self, now: Mono) -> bool {
        self.good_replies.iter().any(|reply| {
            let at = reply.load(Relaxed);
            at != 0 && now.since_ms(Mono(at - 1)) <= limits::ALIVE_REPLY_MS
        })
    }

    /// Takes the probe of a host whose time is over. `lease_ms` is the sum of the connect,
    /// greeting and EHLO deadlines; after it anybody may take the probe over.
    #[must_use = "holds the probe"]
    pub fn try_probe(&self, now: Mono, lease_ms: u64) -> Option<Probe> {
        let word = self.health.load(Relaxed);
        let health = Health::unpack(word);
        if health.phase == Phase::Up || health.until_ms > now.0 {
            return None;
        }
        let until_ms = now.0.saturating_add(lease_ms.max(1));
        let probing = Health { phase: Phase::Probing, until_ms, ..health }.pack();
        self.touch(now);
        let taken = self.health.compare_exchange(word, probing, Relaxed, Relaxed).is_ok();
        taken.then_some(Probe { word: probing })
    }

    /// The probe failed: down for twice as long. A probe that was taken over in the meantime
    /// changes nothing.
    pub fn probe_failed(&self, probe: Probe, now: Mono) -> Verdict {
        let next = Health::unpack(probe.word).down_again(now);
        match self.health.compare_exchange(probe.word, next.pack(), Relaxed, Relaxed) {
            Ok(_) => Verdict::WentDown { until: Mono(next.until_ms) },
            Err(word) if Health::unpack(word).phase == Phase::Up => self.connection_failed(now),
            Err(_) => Verdict::AlreadyDown,
        }
    }

    /// The probe could not be made, for a reason that says nothing of the host: due again at
    /// `until`, with the same back-off. A probe that was taken over meanwhile changes nothing.
    pub fn probe_put_off(&self, probe: Probe, until: Mono) {
        let same = Health::unpack(probe.word);
        let due = Health { phase: Phase::Down, until_ms: until.0, ..same }.pack();
        // Lost to whoever took it over, or to a session that proved the host up.
        let _ours = self.health.compare_exchange(probe.word, due, Relaxed, Relaxed).is_ok();
    }

    /// A connection failed at connect, greeting or EHLO.
    pub fn connection_failed(&self, now: Mono) -> Verdict {
        self.touch(now);
        if self.is_alive(now) {
            return Verdict::CeilingLowered(self.lower_ceiling(self.sessions(), now));
        }
        let down = Health::UP.down_again(now);
        let up = Health::UP.pack();
        match self.health.compare_exchange(up, down.pack(), Relaxed, Relaxed) {
            Ok(_) => Verdict::WentDown { until: Mono(down.until_ms) },
            Err(_) => Verdict::AlreadyDown,
        }
    }

    /// A connection that was opened beside `sessions` of ours, to replace one of them, was refused
    /// in words: the host is there, and has enough of us. Some of them may have ended meanwhile;
    /// that many it did take.
    pub fn refused_beside(&self, sessions: u32, now: Mono) -> Verdict {
        self.touch(now);
        Verdict::CeilingLowered(self.lower_ceiling(sessions.max(self.sessions()), now))
    }

    /// A session is ready (greeting and EHLO were good): proof that the host is up, whoever made
    /// it. True when the host was not up before: what waits for it may be woken.
    #[must_use = "true wakes mail"]
    pub fn session_opened(&self, shard: ShardId, now: Mono) -> bool {
        self.sessions.fetch_add(1, Relaxed);
        self.good_reply(shard, now)
    }

    /// A session that [`Self::session_opened`] reported is over. `rest` is the latest good reply
    /// among the sessions of this shard to the host that live on.
    pub fn session_closed(&self, shard: ShardId, rest: Option<Mono>) {
        let before = self.sessions.fetch_sub(1, Relaxed);
        assert!(before > 0, "a session to {} ended twice", self.address);
        self.good_replies[usize::from(shard.0)].store(rest.map_or(0, |at| at.0 + 1), Relaxed);
    }

    /// A 2yz or 3yz reply on a session of `shard`. True when the host was not up before.
    #[must_use = "true wakes mail"]
    pub fn good_reply(&self, shard: ShardId, now: Mono) -> bool {
        let slot = &self.good_replies[usize::from(shard.0)];
        // Looked at first: many replies come in one millisecond, and a line that is only read
        // stays in every core's cache.
        if slot.load(Relaxed) != now.0 + 1 {
            slot.store(now.0 + 1, Relaxed);
            self.touch(now);
        }
        if self.silent_until_ms.load(Relaxed) != 0 {
            self.silent_until_ms.store(0, Relaxed);
        }
        let up = Health::UP.pack();
        self.health.load(Relaxed) != up && self.health.swap(up, Relaxed) != up
    }

    /// Skips the host for `ms` milliseconds ([`PASS_OVER_421_MS`], [`PASS_OVER_BROKEN_MS`]); a
    /// longer pass-over in force stays.
    pub fn pass_over(&self, now: Mono, ms: u64) {
        self.passed_over_until_ms.fetch_max(now.0.saturating_add(ms), Relaxed);
    }

    /// A connect has run for [`SLOW_CONNECT_MS`] without an answer. Pair with
    /// [`Self::slow_connect_ended`], whatever the connect comes to.
    pub fn slow_connect_began(&self) {
        self.slow_connects.fetch_add(1, Relaxed);
    }

    /// See [`Self::slow_connect_began`].
    pub fn slow_connect_ended(&self) {
        let before = self.slow_connects.fetch_sub(1, Relaxed);
        assert!(before > 0, "a slow connect to {} ended twice", self.address);
    }

    /// A reply came `ms` milliseconds after its command: the usual reply time follows by an
    /// eighth. Two shards at once may lose one of the two samples.
    pub fn reply_took(&self, ms: u64) {
        let sample = ms.clamp(1, u64::from(u32::MAX)) << 8;
        let old = self.usual_reply.load(Relaxed);
        let new = if old == 0 { sample } else { old - old / 8 + sample / 8 };
        if new != old {
            self.usual_reply.store(new, Relaxed);
        }
    }

    /// The usual reply time in milliseconds, 0 when none is known.
    #[must_use]
    pub fn usual_reply_ms(&self) -> u64 {
        self.usual_reply.load(Relaxed) >> 8
    }

    /// How long no session has had a good reply, in milliseconds, when one has waited for a reply
    /// since `asked`.
    #[must_use]
    pub fn quiet_ms(&self, asked: Mono, now: Mono) -> u64 {
        let heard = self.good_replies.iter().map(|r| r.load(Relaxed)).max().unwrap_or(0);
        now.since_ms(asked.max(Mono(heard.saturating_sub(1))))
    }

    /// A session has waited for a reply since `asked`. True, and the host is passed over and
    /// should get no new connections, when it has been silent on all sessions for
    /// [`SILENT_TIMES`] its usual reply time. Ask again while the wait lasts; the next good reply
    /// ends it.
    pub fn check_silence(&self, asked: Mono, now: Mono) -> bool {
        let usual = self.usual_reply_ms();
        let silent =
            usual > 0 && self.quiet_ms(asked, now) > (usual * SILENT_TIMES).max(SILENT_MS_MIN);
        if silent {
            self.silent_until_ms.store(now.0.saturating_add(PASS_OVER_BROKEN_MS), Relaxed);
        }
        silent
    }

    /// The host took `taken` recipients in a transaction and refused the next as one too many.
    pub fn remember_recipients_max(&self, taken: u32) {
        self.recipients_max.store(taken.max(1), Relaxed);
    }

    /// Most recipients of one transaction: the smaller of `configured` and what was learned.
    #[must_use]
    pub fn recipients_max(&self, configured: u32) -> u32 {
        match self.recipients_max.load(Relaxed) {
            0 => configured,
            learned => configured.min(learned),
        }
    }

    /// Remembers how many transactions the host answered well in one train.
    pub fn remember_train_window(&self, transactions: u32) {
        self.train_window.store(transactions, Relaxed);
    }

    /// The train window to begin with; 0: none was learned.
    #[must_use]
    pub fn train_window(&self) -> u32 {
        self.train_window.load(Relaxed)
    }

    /// For `ms` milliseconds the host gets one transaction at a time: its replies in a train could
    /// not be told apart.
    pub fn speak_plainly(&self, now: Mono, ms: u64) {
        self.plain_until_ms.fetch_max(now.0.saturating_add(ms), Relaxed);
    }

    /// True while [`Self::speak_plainly`] holds.
    #[must_use]
    pub fn is_spoken_to_plainly(&self, now: Mono) -> bool {
        self.plain_until_ms.load(Relaxed) > now.0
    }

    /// The permits for connections to this host. Their limit is kept by [`Self::claim`] and
    /// [`Self::refresh_limit`].
    #[must_use]
    pub fn permits(&self) -> &Permits {
        &self.permits
    }

    /// A destination that may have `connections_max` connections uses this host: the largest
    /// claim of the last one to two minutes is the limit, under the ceiling. Call it before
    /// [`Permits::acquire`], and ring whom it names.
    pub fn claim(&self, connections_max: u32, now: Mono) -> Waiters {
        self.touch(now);
        let claim = (period(now) << 32) | u64::from(connections_max.max(1));
        // The period stands in the upper half: a later one wins, in one the larger claim.
        let before = self.claims[0].fetch_max(claim, Relaxed);
        if before >> 32 != claim >> 32 {
            self.claims[1].fetch_max(before, Relaxed);
        }
        self.refresh_limit(now)
    }

    /// Lets the limit follow the ceiling as it rises. Call it once a second for hosts with
    /// waiting lanes, and ring whom it names.
    pub fn refresh_limit(&self, now: Mono) -> Waiters {
        let limit = self.connections_max(now);
        match limit.cmp(&self.permits.limit()) {
            Ordering::Greater => return self.permits.set_limit(limit),
            // Nobody finds more room than before: those who wait sleep on.
            Ordering::Less => self.permits.lower_limit(limit),
            Ordering::Equal => {}
        }
        Waiters::default()
    }

    /// Most connections at `now`: the largest claim, or the ceiling where that is lower.
    #[must_use]
    pub fn connections_max(&self, now: Mono) -> u32 {
        let [current, before] = [&self.claims[0], &self.claims[1]].map(|c| c.load(Relaxed));
        let before = if (before >> 32) + 1 >= period(now) { before } else { 0 };
        // The newest claim stays in force while nobody claims.
        let claimed = low_half(current).max(low_half(before)).max(1);
        claimed.min(self.ceiling(now).unwrap_or(u32::MAX))
    }

    /// The ceiling that failures have left, risen by one a minute since; `None`: never lowered.
    #[must_use]
    pub fn ceiling(&self, now: Mono) -> Option<u32> {
        let word = self.ceiling.load(Relaxed);
        let set = Mono((word & u64::from(u32::MAX)) * 1000);
        let risen = u32::try_from(now.since_ms(set) / CEILING_STEP_MS).unwrap_or(u32::MAX);
        (word != 0).then(|| u32::try_from(word >> 32).unwrap_or(u32::MAX).saturating_add(risen))
    }

    /// Sessions alive, all shards together.
    #[must_use]
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Relaxed)
    }

    /// When it was last used.
    #[must_use]
    pub fn last_used(&self) -> Mono {
        Mono(self.used_ms.load(Relaxed))
    }

    /// Notes a use: mail for the host is queued.
    pub fn touch(&self, now: Mono) {
        if now.since_ms(self.last_used()) >= 1000 {
            self.used_ms.fetch_max(now.0, Relaxed);
        }
    }

    /// Forgets what was learned if nobody used the host for [`FORGET_MS`] and it has no session.
    /// True when nothing is left to remember: how plainly it must be spoken to has its own end.
    pub fn forget_if_unused(&self, now: Mono) -> bool {
        let unused = now.since_ms(self.last_used()) >= FORGET_MS && self.sessions() == 0;
        if unused {
            self.health.store(Health::UP.pack(), Relaxed);
            for word in [&self.passed_over_until_ms, &self.silent_until_ms, &self.ceiling] {
                word.store(0, Relaxed);
            }
            self.usual_reply.store(0, Relaxed);
            self.recipients_max.store(0, Relaxed);
            self.train_window.store(0, Relaxed);
        }
        unused && !self.is_spoken_to_plainly(now)
    }

    fn lower_ceiling(&self, sessions: u32, now: Mono) -> u32 {
        let alive = sessions.max(1);
        let lowered = self.ceiling(now).map_or(alive, |ceiling| ceiling.min(alive)).max(1);
        let set_s = u32::try_from(now.0 / 1000).unwrap_or(u32::MAX);
        self.ceiling.store((u64::from(lowered) << 32) | u64::from(set_s), Relaxed);
        self.permits.lower_limit(lowered);
        lowered
    }
}

fn period(now: Mono) -> u64 {
    // From 1, so that 0 is the period of a host nobody has claimed.
    now.0 / CLAIM_PERIOD_MS + 1
}

fn low_half(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Up,
    Down,
    Probing,
}

/// The health as one word: until (56 bits), back-off step (6 bits), phase (2 bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Health {
    phase: Phase,
    step: u32,
    until_ms: u64,
}

impl Health {
    const UP: Self = Self { phase: Phase::Up, step: 0, until_ms: 0 };
    const UNTIL_MS_MAX: u64 = (1 << 56) - 1;
    const STEP_MAX: u32 = 9;

    fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Up => 0,
            Phase::Down => 1,
            Phase::Probing => 2,
        };
        (self.until_ms.min(Self::UNTIL_MS_MAX) << 8) | (u64::from(self.step) << 2) | phase
    }

    fn unpack(word: u64) -> Self {
        let phase = match word & 3 {
            0 => Phase::Up,
            1 => Phase::Down,
            _ => Phase::Probing,
        };
        let step = u32::try_from((word >> 2) & 63).unwrap_or(0);
        Self { phase, step, until_ms: word >> 8 }
    }

    /// Down for the next back-off: 1 s, then twice as long each time.
    fn down_again(self, now: Mono) -> Self {
        let wait_ms = (BACK_OFF_MS_MIN << self.step).min(BACK_OFF_MS_MAX);
        let step = (self.step + 1).min(Self::STEP_MAX);
        Self { phase: Phase::Down, step, until_ms: now.0.saturating_add(wait_ms) }
    }
}

const _: () = assert!(BACK_OFF_MS_MIN << Health::STEP_MAX >= BACK_OFF_MS_MAX);
