//! Turns, waiting and waking, in virtual time.

use std::time::Duration;

use proptest::prelude::*;

use super::super::gate::Gates;
use super::*;

impl DestinationId {
    pub(in crate::schedule) fn for_test(n: u32) -> Self {
        Self(n)
    }
}

struct Rig {
    gates: Gates,
    all: Destinations,
}

impl Rig {
    fn new() -> Self {
        Self { gates: Gates::default(), all: Destinations::new() }
    }

    fn enter(&mut self, name: &str) -> DestinationId {
        let domain = Domain::parse(name.as_bytes()).unwrap();
        self.all.enter(&domain, || self.gates.gate(&domain, Duration::from_secs(60)))
    }

    fn wake(&mut self, now: Mono) -> Vec<Handle> {
        self.all.wake(now, self.gates.wakes(), usize::MAX);
        self.pop_all()
    }

    fn pop_all(&mut self) -> Vec<Handle> {
        std::iter::from_fn(|| {
            let (id, handle) = self.all.next_ready()?;
            self.all.done(id);
            Some(handle)
        })
        .collect()
    }
}

const HOUR: Mono = Mono(3_600_000);

#[test]
fn ten_thousand_for_one_delay_nobody() {
    let mut rig = Rig::new();
    let big = rig.enter("big.example");
    for n in 0..10_000 {
        rig.all.push_ready(big, Handle(n));
    }
    let others = 100;
    for n in 0..others {
        let id = rig.enter(&format!("d{n}.example"));
        rig.all.push_ready(id, Handle(20_000 + n));
    }
    let first: Vec<_> = (0..=others).map(|_| rig.all.next_ready().unwrap()).collect();
    assert_eq!(first.iter().filter(|(id, _)| *id == big).count(), 1);
    // A newcomer waits for one turn of each, not for the ten thousand.
    let late = rig.enter("late.example");
    rig.all.push_ready(late, Handle(30_000));
    let place = (0..).find(|_| rig.all.next_ready().unwrap().0 == late);
    assert!(place <= Some(1));
}

#[test]
fn a_destination_set_aside_waits_for_its_poke() {
    let mut rig = Rig::new();
    let (a, b) = (rig.enter("a.example"), rig.enter("b.example"));
    for n in 0..3 {
        rig.all.push_ready(a, Handle(n));
        rig.all.push_ready(b, Handle(10 + n));
    }
    let (id, handle) = rig.all.next_ready().unwrap();
    assert_eq!((id, handle), (a, Handle(0)));
    rig.all.set_aside(id, handle);
    rig.all.push_ready(a, Handle(3));
    assert_eq!(rig.pop_all(), [Handle(10), Handle(11), Handle(12)]);
    assert_eq!(rig.all.next_ready(), None, "nothing spins");
    assert_eq!(rig.all.find(&Domain::parse(b"b.example").unwrap()), None, "b is forgotten");
    rig.all.poke(a);
    rig.all.poke(b);
    rig.all.poke(a);
    assert_eq!(rig.pop_all(), [Handle(0), Handle(1), Handle(2), Handle(3)]);
    assert_eq!(rig.all.iter().count(), 0);
}

#[test]
fn mail_deferred_while_down_is_woken_and_mailbox_trouble_is_not() {
    let mut rig = Rig::new();
    let id = rig.enter("a.example");
    // Deferred while up: not woken, whatever the reason.
    rig.all.defer(id, Handle(1), HOUR, Sign::HostRefusal);
    rig.all.gate(id).refusal(0, 1);
    rig.all.defer(id, Handle(2), HOUR, Sign::HostRefusal);
    rig.all.defer(id, Handle(3), HOUR, Sign::Mailbox);
    rig.all.defer(id, Handle(4), HOUR, Sign::Trouble);
    rig.all.wait(id, Handle(5), Mono(2 * HOUR.0));
    assert!(rig.wake(Mono(1_000)).is_empty(), "still down");
    rig.all.gate(id).success(Mono(2_000));
    assert_eq!(rig.wake(Mono(2_000)), [Handle(2), Handle(4), Handle(5)]);
    assert!(!rig.all.is_waking());
    assert_eq!(rig.all.counts(id).deferred, 2);
    let mut due = rig.all.expire(Mono(HOUR.0 + 100), 10);
    due.sort();
    assert_eq!(due, [Handle(1), Handle(3)]);
}

#[test]
fn mailbox_full_never_brings_a_destination_down() {
    let mut rig = Rig::new();
    let id = rig.enter("a.example");
    for n in 0..100 {
        rig.all.defer(id, Handle(n), HOUR, Sign::Mailbox);
    }
    assert!(!rig.all.gate(id).is_down());
    rig.all.gate(id).success(Mono(5));
    assert!(rig.wake(Mono(5)).is_empty());
    assert_eq!(rig.all.counts(id).deferred, 100);
}

#[test]
fn a_thousand_are_woken_oldest_first_in_growing_steps() {
    let mut rig = Rig::new();
    let id = rig.enter("a.example");
    for n in 0..1_000 {
        rig.all.wait(id, Handle(n), HOUR);
    }
    assert_eq!(rig.all.listed, [id.0]);
    rig.all.gate(id).host_up(Mono(10_000));
    let mut next = 0;
    for (second, expected) in [(10, 10), (11, 20), (12, 40), (13, 80)] {
        for ms in [0, 100, 500, 900] {
            let woken = rig.wake(Mono(second * 1_000 + ms));
            assert_eq!(woken.len(), if ms == 0 { expected } else { 0 }, "{second}.{ms}");
            for handle in woken {
                assert_eq!(handle, Handle(next));
                next += 1;
            }
        }
        rig.all.gate(id).success(Mono(second * 1_000 + 950));
    }
    // Down again in the middle: the rest stays listed and comes with the next step up.
    rig.all.gate(id).hosts_down();
    assert!(rig.wake(Mono(14_000)).is_empty());
    assert!(!rig.all.is_waking());
    rig.all.gate(id).host_up(Mono(80_000));
    assert_eq!(rig.wake(Mono(80_000)).first(), Some(&Handle(next)));
}

#[test]
fn what_fired_meanwhile_is_not_woken_twice() {
    let mut rig = Rig::new();
    let id = rig.enter("a.example");
    rig.all.wait(id, Handle(1), Mono(100));
    rig.all.wait(id, Handle(2), HOUR);
    assert_eq!(rig.all.expire(Mono(200), 9), [Handle(1)]);
    rig.all.fired(id);
    // It found the hosts still down, and the same handle waits anew.
    rig.all.wait(id, Handle(1), HOUR);
    rig.all.done(id);
    rig.all.gate(id).host_up(Mono(300));
    assert_eq!(rig.wake(Mono(300)), [Handle(2), Handle(1)]);
    assert_eq!((rig.all.iter().count(), rig.all.listed.len()), (0, 0));
}

#[test]
fn wake_lists_do_not_grow_with_repeated_deferrals() {
    let mut rig = Rig::new();
    let id = rig.enter("a.example");
    rig.all.gate(id).hosts_down();
    for round in 1..1_000 {
        rig.all.defer(id, Handle(7), Mono(round * 100), Sign::Trouble);
        assert_eq!(rig.all.expire(Mono(round * 100 + 32), 9), [Handle(7)]);
        rig.all.fired(id);
        if round < 999 {
            rig.all.get_mut(id).under_way = 0;
        }
        assert!(rig.all.get(id).wake_list.len() <= 70);
    }
    rig.all.done(id);
    assert_eq!((rig.all.iter().count(), rig.all.listed.len()), (0, 0));
}

#[test]
fn sweeps_reach_every_ready_delivery_in_slices() {
    let mut rig = Rig::new();
    for d in 0..10 {
        let id = rig.enter(&format!("d{d}.example"));
        for n in 0..100 {
            rig.all.push_ready(id, Handle(d * 100 + n));
        }
    }
    let mut taken = Vec::new();
    for _ in 0..100 {
        let slice = rig.all.sweep(33, |_, handle| handle.0 % 2 == 0);
        assert!(slice.len() <= 33);
        taken.extend(slice);
    }
    assert_eq!(taken.len(), 500);
    assert_eq!(rig.pop_all().len(), 500);
    assert_eq!(rig.all.sweep(5, |_, _| true), []);
}

#[test]
fn the_operator_takes_mail_out_of_every_place() {
    let mut rig = Rig::new();
    let id = rig.enter("a.example");
    rig.all.push_ready(id, Handle(1));
    rig.all.defer(id, Handle(2), HOUR, Sign::Mailbox);
    rig.all.wait(id, Handle(3), HOUR);
    assert!(rig.all.deliver_now(id, Handle(2)));
    assert!(!rig.all.deliver_now(id, Handle(2)));
    assert!(rig.all.remove(id, Handle(3)));
    assert!(rig.all.remove(id, Handle(1)));
    assert!(!rig.all.remove(id, Handle(1)));
    assert_eq!(rig.pop_all(), [Handle(2)]);
    assert_eq!(rig.all.iter().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn everything_comes_out_once_and_in_turn(
        feeds in proptest::collection::vec((0u32..8, 1u32..20), 1..40),
    ) {
        let mut rig = Rig::new();
        let mut next = 0;
        for (d, n) in feeds {
            let id = rig.enter(&format!("d{d}.example"));
            for _ in 0..n {
                rig.all.push_ready(id, Handle(next));
                next += 1;
            }
        }
        let mut left: HashMap<DestinationId, usize> =
            rig.all.iter().map(|(id, _)| (id, rig.all.counts(id).ready)).collect();
        let mut seen = std::collections::HashSet::new();
        let mut round = Vec::new();
        while let Some((id, handle)) = rig.all.next_ready() {
            prop_assert!(seen.insert(handle));
            // Between two turns of one destination, every other one with mail has had one.
            if round.contains(&id) {
                prop_assert!(left.iter().all(|(d, n)| *n == 0 || round.contains(d)));
                round.clear();
            }
            round.push(id);
            *left.get_mut(&id).unwrap() -= 1;
            rig.all.done(id);
        }
        prop_assert_eq!(seen.len(), next as usize);
        prop_assert_eq!(rig.all.iter().count(), 0);
    }
}

#[test]
fn slices_together_show_every_destination_once_a_round() {
    let mut rig = Rig::new();
    for n in 0..25 {
        let id = rig.enter(&format!("d{n}.example"));
        rig.all.push_ready(id, Handle(n));
    }
    for _ in 0..7 {
        let (id, _) = rig.all.next_ready().unwrap();
        rig.all.done(id);
    }
    let (mut from, mut seen) = (0, Vec::new());
    for _ in 0..3 {
        let (next, slice) = rig.all.slice(from, 10);
        assert!(slice.len() <= 10);
        seen.extend(slice);
        from = next;
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((from, seen.len()), (0, rig.all.iter().count()));
}
