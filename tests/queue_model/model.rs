//! The model: what each recipient may look like after a crash, and random lives held against it.

use std::collections::{BTreeMap, HashMap};

use ringpost::mail::{Accepted, Enhanced, Handle, Now, Reply, Rid, Wall};
use ringpost::queue::memory::MemMedium;
use ringpost::queue::{LastOutcome, Ticket};

use super::rig::{Bug, MIB, Random, Rig, body, checksum, message};

/// What has become of a recipient, as far as anybody was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Nobody was told: it may be there after a crash.
    Open,
    /// Answered with 250, or seen after a crash: it must be there.
    Pending { attempts: u16 },
    /// Settled at that time: a power cut within a second may bring it back.
    Settled { at_ms: u64 },
}

struct Known {
    address: String,
    sum: u32,
    fate: Fate,
}

struct Life {
    rig: Rig,
    random: Random,
    octets_max: u64,
    known: BTreeMap<(u64, u32), Known>,
    /// Messages that wait for their commit.
    waiting: HashMap<Ticket, u64>,
    handles: BTreeMap<(u64, u32), Handle>,
    next_mid: u64,
    /// Some effect failed: state words of a poisoned segment are not synced any more.
    poisoned: bool,
}

/// Lives the life of a seed; panics when the promise is broken.
pub(crate) fn live(seed: u64, bug: Bug) {
    let mut life = Life::new(seed, None);
    let faults = bug == Bug::None && life.random.one_in(3);
    for _ in 0..3 {
        life.rig.bug = bug;
        if faults {
            life.rig.failing = Some(life.random.below(200));
        }
        for _ in 0..120 {
            life.act();
        }
        life.crash();
    }
}

/// A life of one crash in which one effect fails; false when it has not that many.
pub(crate) fn live_failing(effect: u64) -> bool {
    let mut life = Life::new(5, Some(6 * MIB));
    life.rig.failing = Some(effect);
    for _ in 0..150 {
        life.act();
    }
    let failed = life.rig.any_failed;
    life.crash();
    failed
}

/// What a life leaves on its disk, and when.
pub(crate) fn image() -> (MemMedium, Now) {
    let mut life = Life::new(5, Some(6 * MIB));
    for _ in 0..110 {
        life.act();
    }
    (life.rig.medium.clone(), life.rig.now)
}

impl Life {
    fn new(seed: u64, octets_max: Option<u64>) -> Self {
        let mut random = Random::new(seed);
        let drawn = [6 * MIB, 8 * MIB, 17 * MIB][usize::try_from(random.below(3)).unwrap()];
        let octets_max = octets_max.unwrap_or(drawn);
        let now = Now::default().plus_ms(1_000_000);
        Self {
            rig: Rig::open(MemMedium::default(), octets_max, now).unwrap(),
            random,
            octets_max,
            known: BTreeMap::new(),
            waiting: HashMap::new(),
            handles: BTreeMap::new(),
            next_mid: 1 << 20,
            poisoned: false,
        }
    }

    fn act(&mut self) {
        match self.random.below(10) {
            0..=2 => self.append(),
            3..=5 => {
                for _ in 0..self.random.below(5) {
                    let beside = self.random.one_in(2);
                    if !self.rig.step(beside) {
                        break;
                    }
                    self.hear();
                }
            }
            6 | 7 => self.settle_some(),
            8 => {
                let ms = [50, 200, 900][usize::try_from(self.random.below(3)).unwrap()];
                self.rig.tick(ms);
                if self.random.one_in(2) {
                    self.rig.run();
                }
                self.hear();
            }
            _ => self.read_one(),
        }
    }

    fn append(&mut self) {
        let mid = self.next_mid;
        let many = 1 + self.random.below(3);
        let address = |n| format!("u{n}@d{}.example", (mid + n) % 4);
        let to: Vec<String> = (0..many).map(address).collect();
        let octets = match self.random.below(12) {
            0 => 300_000,
            1..=4 => 200_000,
            _ => 500 + usize::try_from(self.random.below(60_000)).unwrap(),
        };
        let Ok(ticket) = self.rig.queue.append(message(mid, &to, octets, None)) else { return };
        self.next_mid += 1;
        self.waiting.insert(ticket, mid);
        let sum = checksum(&body(mid, octets));
        for (rid, address) in (0..).zip(to) {
            self.known.insert((mid, rid), Known { address, sum, fate: Fate::Open });
        }
    }

    /// What the queue has answered.
    fn hear(&mut self) {
        for (ticket, handles) in std::mem::take(&mut self.rig.committed) {
            let mid = self.waiting.remove(&ticket).expect("one answer to each append");
            for (handle, domain) in handles {
                for ((_, rid), known) in self.known.range_mut((mid, 0)..=(mid, u32::MAX)) {
                    if known.address.ends_with(&format!("@{domain}")) {
                        known.fate = Fate::Pending { attempts: 0 };
                        self.handles.insert((mid, *rid), handle);
                    }
                }
            }
        }
        for ticket in std::mem::take(&mut self.rig.failed) {
            self.waiting.remove(&ticket).expect("one answer to each append");
        }
    }

    fn settle_some(&mut self) {
        let keys: Vec<_> = self.handles.keys().copied().collect();
        for key in keys {
            if !self.random.one_in(3) {
                continue;
            }
            let (handle, rid) = (self.handles[&key], Rid(key.1));
            assert_eq!(self.rig.queue.begin(handle, &[rid]), [rid], "{key:?} is pending");
            let known = self.known.get_mut(&key).unwrap();
            let Fate::Pending { attempts } = known.fate else { panic!("{key:?} has a handle") };
            let at_ms = self.rig.now.mono.0;
            match self.random.below(8) {
                0 => {
                    assert!(self.rig.queue.release(handle, rid).applied);
                    continue;
                }
                1 | 2 => {
                    let next = Wall(self.rig.now.wall.0 + 600_000);
                    let count = attempts + 1;
                    let change =
                        self.rig.queue.defer(handle, rid, &outcome(), u32::from(count), next);
                    assert!(change.applied);
                    known.fate = Fate::Pending { attempts: count };
                    continue;
                }
                3 => assert!(self.rig.queue.bounced(handle, rid, &outcome()).applied),
                4 => assert!(self.rig.queue.deleted(handle, rid).applied),
                _ => assert!(self.rig.queue.delivered(handle, rid, &accepted()).applied),
            }
            known.fate = Fate::Settled { at_ms };
            self.handles.remove(&key);
        }
    }

    /// Reads a message while other things go on.
    fn read_one(&mut self) {
        let many = self.handles.len() as u64;
        if many == 0 {
            return;
        }
        let at = usize::try_from(self.random.below(many)).unwrap();
        let (key, handle) = self.handles.iter().nth(at).map(|(k, h)| (*k, *h)).unwrap();
        let (plan, octets) = self.rig.begin_read(handle).expect("a pending message has a plan");
        for _ in 0..self.random.below(12) {
            self.rig.step(true);
        }
        self.hear();
        match self.rig.queue.parse(handle, &plan, octets) {
            Ok(stored) => {
                let known = &self.known[&key];
                assert_eq!(stored.mid.0, key.0);
                assert_eq!(checksum(&stored.octets[stored.body.clone()]), known.sum);
                assert!(stored.envelope.recipients.iter().any(|r| r.rid.0 == key.1));
            }
            Err(damaged) => assert!(damaged.moved, "{key:?}: {}", damaged.what),
        }
    }

    /// The process dies, or the power; what is there afterwards is held against the model.
    fn crash(&mut self) {
        self.hear();
        let power = self.random.one_in(2);
        self.poisoned |= self.rig.any_failed;
        let medium = if power {
            let keeps = self.random.below(4);
            let random = &mut self.random;
            self.rig.medium.after_power_cut(|| random.below(4) < keeps)
        } else {
            self.rig.medium.clone()
        };
        let now = self.rig.now;
        // A crash during recovery, twice.
        for _ in 0..2 {
            if self.random.one_in(2) {
                medium.fail(Some(self.random.below(60)), true);
                drop(Rig::open(medium.clone(), self.octets_max, now));
                medium.fail(None, false);
            }
        }
        self.rig = Rig::open(medium, self.octets_max, now).unwrap();
        assert_eq!(self.rig.recovered.damaged, [], "no crash looks like damage");
        let notes = &self.rig.recovered.notes;
        assert_eq!(self.rig.recovered.damaged_slots, 0, "no crash looks like damage: {notes:?}");
        self.compare(power);
    }

    fn compare(&mut self, power: bool) {
        let found = self.rig.contents();
        let now_ms = self.rig.now.mono.0;
        for (key, (address, sum, attempts)) in &found {
            let known = self.known.get(key).unwrap_or_else(|| panic!("{key:?} was never sent"));
            assert_eq!((address, *sum), (&known.address, known.sum), "{key:?}");
            match known.fate {
                Fate::Open => {}
                Fate::Pending { attempts: last } => {
                    assert!(*attempts <= last && (power || *attempts == last), "{key:?}");
                }
                Fate::Settled { at_ms } => {
                    let may_return = self.poisoned || now_ms - at_ms < 2_000;
                    assert!(power && may_return, "{key:?} is sent again, settled at {at_ms}");
                }
            }
        }
        for (key, known) in &self.known {
            let must = matches!(known.fate, Fate::Pending { .. });
            assert!(!must || found.contains_key(key), "{key:?} is lost");
        }
        self.known.retain(|key, _| found.contains_key(key));
        for (key, (_, _, attempts)) in &found {
            self.known.get_mut(key).unwrap().fate = Fate::Pending { attempts: *attempts };
        }
        self.waiting.clear();
        self.handles.clear();
        for handle in self.rig.handles() {
            let summary = self.rig.queue.summary(handle).unwrap();
            for recipient in summary.recipients {
                self.handles.insert((summary.mid.0, recipient.rid.0), handle);
            }
        }
    }
}

fn accepted() -> Accepted {
    Accepted::from_end_of_data(Reply { code: 250, enhanced: None, lines: vec![] }).unwrap()
}

fn outcome() -> LastOutcome {
    let status = Enhanced::new(4, 2, 1);
    LastOutcome { code: 450, status, host: Some("mx.example".into()), warnings: 0 }
}
