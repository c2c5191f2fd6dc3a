//! The model: what each recipient may look like after a crash, and random lives held against it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ringpost::mail::{Accepted, Enhanced, Handle, Mid, Now, Reply, ReplyLines, Rid, Wall};
use ringpost::queue::format::Header;
use ringpost::queue::memory::{MemMedium, Sector};
use ringpost::queue::{LastOutcome, Medium, SegmentId, Ticket};

use super::rig::{Bug, MIB, Random, Rig, body, checksum, message};

/// A message and one of its recipients.
type Key = (u64, u32);

/// A change is on the disk this long after it was made, if the disk does what it is told.
const DURABLE_AFTER_MS: u64 = 1_000;

/// What has become of a recipient, as far as anybody was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Nobody was told: it may be there after a crash.
    Open,
    /// Answered with 250, or seen after a crash: it must be there.
    Pending { attempts: u16 },
    /// Settled then: a power cut soon after may bring it back.
    Settled(Change),
}

/// When something changed, in time that the disk did not stall, and where it stood; `None`: not
/// on the disk yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Change {
    at_ms: u64,
    segment: Option<SegmentId>,
}

struct Known {
    address: String,
    sum: u32,
    fate: Fate,
    /// Its delivery is under way.
    flight: Option<Change>,
    /// Crashes that may have met it in flight.
    crashes: u32,
}

struct Life {
    rig: Rig,
    random: Random,
    octets_max: u64,
    known: BTreeMap<Key, Known>,
    /// Recipients that were held as poison.
    held: BTreeSet<Key>,
    /// Messages that wait for their answer.
    waiting: HashMap<Ticket, u64>,
    /// Recipients with a name in the queue; an early one until it is forgotten.
    handles: BTreeMap<Key, Handle>,
    next_mid: u64,
    bug: Bug,
    /// Several effects fail before a crash, not one, and the power may go during a start.
    is_harder: bool,
}

/// Lives the life of a seed; panics when the promise is broken.
pub(crate) fn live(seed: u64, bug: Bug) {
    let mut life = Life::new(seed, None, bug);
    let has_found = crate::FOUND.contains(&seed) || crate::FOUND_LATER.contains(&seed);
    life.rig.syncs_beside = seed.is_multiple_of(3) && !has_found;
    life.is_harder = !has_found && !crate::FOUND_SLOW.contains(&seed);
    let faults = bug == Bug::None && life.random.one_in(3);
    let stalls = bug == Bug::None && life.random.one_in(3);
    for _ in 0..4 {
        life.rig.bug = bug;
        if faults {
            life.rig.failing = Some(life.random.below(200));
        }
        if stalls {
            life.rig.medium.stall(Some((7 + life.random.below(9), 100 + life.random.below(2_000))));
        }
        for _ in 0..120 {
            life.act();
        }
        life.crash();
    }
}

/// A life of one crash in which one effect fails, or all from it on; false when it has not that
/// many.
pub(crate) fn live_failing(seed: u64, slow: bool, effect: u64, for_ever: bool) -> bool {
    let mut life = Life::new(seed, Some(6 * MIB), Bug::None);
    life.rig.syncs_beside = slow;
    (life.rig.failing, life.rig.for_ever) = (Some(effect), for_ever);
    for _ in 0..EVENTFUL_ACTS {
        life.act();
    }
    let failed = effect < life.rig.effects;
    life.crash();
    failed
}

/// Acts of an eventful life.
const EVENTFUL_ACTS: usize = 150;

/// The seed of a life in which a segment is used again and messages are copied forward, what it
/// leaves on its disk, and when; `slow`: on a disk that is slow to sync.
pub(crate) fn eventful(slow: bool) -> (u64, MemMedium, Now) {
    for seed in 0..200 {
        let mut life = Life::new(seed, Some(6 * MIB), Bug::None);
        life.rig.syncs_beside = slow;
        for _ in 0..EVENTFUL_ACTS {
            life.act();
        }
        let medium = life.rig.medium.clone();
        let is_recycled = |id: &SegmentId| {
            let mut head = vec![0; 8192];
            medium.read_at(&medium.file(*id).unwrap(), 0, &mut head).unwrap();
            Header::choose(&head[..4096], &head[4096..]).unwrap().generation > 1
        };
        let recycled = medium.list(0).unwrap().0.iter().any(is_recycled);
        if recycled && life.rig.copies > 0 && life.handles.len() > 10 {
            return (seed, medium, life.rig.now);
        }
    }
    panic!("no life is eventful")
}

impl Life {
    fn new(seed: u64, octets_max: Option<u64>, bug: Bug) -> Self {
        let mut random = Random::new(seed);
        let drawn = [6 * MIB, 8 * MIB, 17 * MIB][usize::try_from(random.below(3)).unwrap()];
        let octets_max = octets_max.unwrap_or(drawn);
        let now = Now::default().plus_ms(1_000_000);
        let mut rig = Rig::open(MemMedium::default(), octets_max, now).unwrap();
        rig.queue.end_flights();
        // Lives that have found something stay what they were then.
        rig.tells_late = seed % 2 == 1 && !crate::FOUND.contains(&seed);
        Self {
            rig,
            random,
            octets_max,
            known: BTreeMap::new(),
            held: BTreeSet::new(),
            waiting: HashMap::new(),
            handles: BTreeMap::new(),
            next_mid: 1 << 20,
            bug,
            is_harder: false,
        }
    }

    fn act(&mut self) {
        match self.random.below(11) {
            0..=1 if self.rig.syncs_beside => {
                for _ in 0..1 + self.random.below(8) {
                    self.append(false);
                    self.rig.write_only();
                }
                // The one that fails, where one does, is among them more often.
                let (effects, any) = (self.rig.effects, self.is_harder);
                let is_due = self.rig.failing.is_some_and(|at| any || at >= effects);
                if is_due && self.random.one_in(4) {
                    self.rig.failing = Some(effects);
                }
                self.hear();
            }
            0..=1 => self.append(false),
            2 => self.append(true),
            3..=5 => {
                for _ in 0..self.random.below(5) {
                    let beside = self.random.one_in(2);
                    let went_on = self.rig.step(beside);
                    self.hear();
                    if !went_on {
                        break;
                    }
                }
            }
            6 | 7 => self.settle_some(),
            8 | 9 => {
                for _ in 0..1 + self.random.below(6) {
                    self.rig.tick();
                    let _due = self.rig.queue.release_held(self.rig.now.mono);
                    if !self.random.one_in(8) {
                        self.rig.run();
                    }
                }
                self.hear();
            }
            _ => self.read_one(),
        }
        if self.bug != Bug::WordsUnwritten {
            self.rig.queue.write_words();
        }
    }

    fn append(&mut self, early: bool) {
        let mid = self.next_mid;
        let many = 1 + self.random.below(3);
        let address = |n| format!("u{n}@d{}.example", (mid + n) % 4);
        let to: Vec<String> = (0..many).map(address).collect();
        let octets = match self.random.below(12) {
            0 => 300_000,
            1..=4 => 200_000,
            5..=9 if self.rig.syncs_beside => 100_000,
            _ => 500 + usize::try_from(self.random.below(60_000)).unwrap(),
        };
        let cause = self.random.one_in(8).then_some(Mid(1));
        let new = message(mid, &to, octets, cause);
        let due = self.rig.now.plus_ms(self.random.below(500)).mono;
        let taken = if early {
            self.rig.queue.take_early(new, due)
        } else {
            self.rig.queue.append(new).map(|ticket| (ticket, ringpost::queue::Handles::new()))
        };
        let Ok((ticket, handles)) = taken else { return };
        self.next_mid += 1;
        self.waiting.insert(ticket, mid);
        let sum = checksum(&body(mid, octets));
        for (rid, address) in (0..).zip(to) {
            for (handle, domain) in &handles {
                if address.ends_with(&format!("@{domain}")) {
                    self.handles.insert((mid, rid), *handle);
                }
            }
            let known = Known { address, sum, fate: Fate::Open, flight: None, crashes: 0 };
            self.known.insert((mid, rid), known);
        }
    }

    /// What the queue has answered.
    fn hear(&mut self) {
        for (ticket, handles) in std::mem::take(&mut self.rig.committed) {
            let mid = self.waiting.remove(&ticket).expect("one answer to each append");
            for ((_, rid), known) in self.known.range_mut((mid, 0)..=(mid, u32::MAX)) {
                if known.fate != Fate::Open {
                    continue;
                }
                known.fate = Fate::Pending { attempts: 0 };
                let of_domain =
                    |(_, domain): &&(Handle, _)| known.address.ends_with(&format!("@{domain}"));
                let (handle, _) = handles.iter().find(of_domain).expect("it is pending");
                // An early name goes on being one.
                self.handles.entry((mid, *rid)).or_insert(*handle);
            }
        }
        for ticket in std::mem::take(&mut self.rig.accepted) {
            let mid = self.waiting.remove(&ticket).expect("one answer to each append");
            let of_message = self.known.range((mid, 0)..=(mid, u32::MAX));
            for (key, known) in of_message {
                assert!(matches!(known.fate, Fate::Settled(_)), "{key:?} was not accepted");
            }
        }
        for ticket in std::mem::take(&mut self.rig.failed) {
            let mid = self.waiting.remove(&ticket).expect("one answer to each append");
            self.refused(mid);
        }
    }

    /// A commit failed, and the client was told. What was begun ends somehow; nothing of it is in
    /// the queue any more.
    fn refused(&mut self, mid: u64) {
        let open: Vec<Key> =
            self.handles.range((mid, 0)..=(mid, u32::MAX)).map(|(key, _)| *key).collect();
        for key in open {
            let handle = self.handles[&key];
            let begun = self.known[&key].flight.is_some();
            if begun && self.random.one_in(2) {
                assert!(self.rig.queue.delivered(handle, Rid(key.1), &accepted()).applied);
                self.settled(key, None);
            } else {
                self.rig.queue.withdraw(handle, Rid(key.1));
                self.known.get_mut(&key).unwrap().flight = None;
                self.drop_name(key);
            }
        }
    }

    /// Where a recipient stands on the disk.
    fn place(&self, key: Key) -> Option<SegmentId> {
        let plan = self.rig.queue.read_plan(self.handles[&key])?;
        plan.pieces.first().map(|piece| piece.segment)
    }

    fn change(&self, key: Key) -> Change {
        Change { at_ms: self.rig.unstalled_ms(), segment: self.place(key) }
    }

    fn settled(&mut self, key: Key, segment: Option<SegmentId>) {
        let change = Change { at_ms: self.rig.unstalled_ms(), segment };
        let known = self.known.get_mut(&key).unwrap();
        known.fate = Fate::Settled(change);
        known.flight = None;
        self.drop_name(key);
    }

    /// An early handle that no recipient goes by any more is given back.
    fn drop_name(&mut self, key: Key) {
        let handle = self.handles.remove(&key).unwrap();
        let mut of_message = self.handles.range((key.0, 0)..=(key.0, u32::MAX));
        if !of_message.any(|(_, other)| *other == handle) {
            self.rig.queue.forget_early(handle);
        }
    }

    fn settle_some(&mut self) {
        let keys: Vec<Key> = self.handles.keys().copied().collect();
        for key in keys {
            // What was heard meanwhile may have taken a name away.
            if self.random.one_in(3) && self.handles.contains_key(&key) {
                self.settle_one(key);
            }
        }
    }

    fn settle_one(&mut self, key: Key) {
        let (handle, rid) = (self.handles[&key], Rid(key.1));
        let change = self.change(key);
        if self.known[&key].flight.is_none() {
            if self.rig.queue.begin(handle, &[rid]) == 0 {
                // Its commit has failed, and nobody has heard of it yet.
                self.rig.take_up();
                self.hear();
                assert!(!self.handles.contains_key(&key), "{key:?} is pending");
                return;
            }
            self.known.get_mut(&key).unwrap().flight = Some(change);
            if self.random.one_in(3) {
                return;
            }
        }
        let uncommitted = self.rig.queue.is_uncommitted(handle);
        let queue = &mut self.rig.queue;
        let known = self.known.get_mut(&key).unwrap();
        match self.random.below(9) {
            0 => {
                assert!(queue.release(handle, rid).applied);
                known.flight = None;
                return;
            }
            1..=4 if uncommitted => return queue.write_now(handle),
            1 | 2 => {
                let Fate::Pending { attempts } = known.fate else { panic!("{key:?} is queued") };
                let next = Wall(self.rig.now.wall.0 + 600_000);
                let count = attempts + 1;
                assert!(queue.defer(handle, rid, &outcome(), u32::from(count), next).applied);
                known.fate = Fate::Pending { attempts: count };
                known.flight = None;
                return;
            }
            3 => assert!(queue.bounced(handle, rid, &outcome()).applied),
            4 => assert!(queue.deleted(handle, rid).applied),
            5 => assert!(queue.discarded(handle, rid).applied),
            _ => assert!(queue.delivered(handle, rid, &accepted()).applied),
        }
        self.settled(key, change.segment);
        self.rig.take_up();
        self.hear();
    }

    /// Reads a message while other things go on.
    fn read_one(&mut self) {
        let many = self.handles.len() as u64;
        if many == 0 {
            return;
        }
        let at = usize::try_from(self.random.below(many)).unwrap();
        let (key, handle) = self.handles.iter().nth(at).map(|(k, h)| (*k, *h)).unwrap();
        if self.rig.queue.is_uncommitted(handle) {
            return;
        }
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

    /// Some of what was not synced is lost, or torn.
    fn after_power_cut(&mut self, medium: &MemMedium) -> MemMedium {
        let kept = self.random.below(4);
        let random = &mut self.random;
        medium.after_power_cut(|| match random.below(5) {
            4 => Sector::Torn(usize::try_from(random.below(64)).unwrap()),
            drawn => Sector::from(drawn < kept),
        })
    }

    /// The process dies, or the power; what is there afterwards is held against the model.
    fn crash(&mut self) {
        self.hear();
        let mut power = self.random.one_in(2);
        self.rig.medium.stall(None);
        let mut medium = self.rig.medium.clone();
        if power {
            medium = self.after_power_cut(&medium);
        }
        let now = self.rig.now;
        let (unstalled_ms, failed) = (self.rig.unstalled_ms(), self.rig.failed_segments.clone());
        // A crash during recovery, twice: an error, or death before the log is written.
        for _ in 0..2 {
            if self.random.one_in(2) {
                medium.fail(Some(self.random.below(60)), true);
                let died = Rig::open(medium.clone(), self.octets_max, now);
                if let (Bug::FlightsEndedUntold, Ok(mut died)) = (self.bug, died) {
                    died.queue.end_flights();
                }
                medium.fail(None, false);
                if self.is_harder && self.random.one_in(3) {
                    power = true;
                    medium = self.after_power_cut(&medium);
                }
            }
        }
        let (tells_late, syncs_beside) = (self.rig.tells_late, self.rig.syncs_beside);
        self.rig = Rig::open(medium, self.octets_max, now).unwrap();
        (self.rig.tells_late, self.rig.syncs_beside) = (tells_late, syncs_beside);
        let notes = &self.rig.recovered.notes;
        assert_eq!(self.rig.recovered.damaged, [], "no crash looks like damage: {notes:?}");
        assert_eq!(self.rig.recovered.damaged_slots, 0, "no crash looks like damage: {notes:?}");
        let may_be_lost = |change: Change| {
            let in_failed = change.segment.map_or(!failed.is_empty(), |s| failed.contains(&s));
            in_failed || unstalled_ms - change.at_ms < DURABLE_AFTER_MS
        };
        self.rig.queue.end_flights();
        self.compare_flights(power, may_be_lost);
        self.compare(power, may_be_lost);
    }

    /// What was in flight is called uncertain, before anything else happens.
    fn compare_flights(&mut self, power: bool, may_be_lost: impl Fn(Change) -> bool) {
        let list = |list: &[(Mid, Vec<Rid>)]| -> BTreeSet<Key> {
            let of_message = |(mid, rids): &(Mid, Vec<Rid>)| {
                let mid = mid.0;
                rids.iter().map(move |rid| (mid, rid.0)).collect::<Vec<_>>()
            };
            list.iter().flat_map(of_message).collect()
        };
        let uncertain = list(&self.rig.recovered.uncertain);
        let poison = list(&self.rig.recovered.poison);
        let found = self.rig.contents();
        for (key, known) in &mut self.known {
            let told = uncertain.contains(key) || poison.contains(key);
            let Some(begun) = known.flight.take() else {
                // The end of the flight is lost with the power: it counts as one more crash.
                assert!(power || !told, "{key:?} is called uncertain, and was not in flight");
                known.crashes += u32::from(told);
                continue;
            };
            known.crashes += 1;
            let silent = found.contains_key(key) && !told;
            assert!(!silent || power && may_be_lost(begun), "{key:?}: in flight, and not told");
        }
        for key in poison {
            let Some(known) = self.known.remove(&key) else {
                // It was held before, and each start says so.
                assert!(self.held.contains(&key), "{key:?} is held, and was never sent");
                continue;
            };
            assert!(known.crashes >= 3, "{key:?} is held after {} crashes", known.crashes);
            self.held.insert(key);
        }
    }

    fn compare(&mut self, power: bool, may_be_lost: impl Fn(Change) -> bool) {
        let found = self.rig.contents();
        for (key, (address, sum, attempts)) in &found {
            let known = self.known.get(key).unwrap_or_else(|| panic!("{key:?} was never sent"));
            assert_eq!((address, *sum), (&known.address, known.sum), "{key:?}");
            match known.fate {
                Fate::Open => {}
                Fate::Pending { attempts: last } => {
                    assert!(*attempts <= last && (power || *attempts == last), "{key:?}");
                }
                Fate::Settled(change) => {
                    let may_return = power && may_be_lost(change);
                    assert!(may_return, "{key:?} is sent again, settled at {change:?}");
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
                let key = (summary.mid.0, recipient.rid.0);
                if self.known.contains_key(&key) {
                    self.handles.insert(key, handle);
                }
            }
        }
    }
}

fn accepted() -> Accepted {
    Accepted::from_end_of_data(Reply { code: 250, enhanced: None, lines: ReplyLines::default() })
        .unwrap()
}

fn outcome() -> LastOutcome {
    let status = Enhanced::new(4, 2, 1);
    LastOutcome { code: 450, status, host: Some("mx.example".into()), warnings: 0 }
}
