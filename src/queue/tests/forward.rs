//! Copying forward: space comes back, the promise holds at every step.

use super::*;

/// Fills `rounds` segments; one message in twenty is deferred for long, the others delivered.
fn survivors(rig: &mut Rig<MemMedium>, messages: u64, one_in: u64) -> usize {
    let mut taken = 0;
    for mid in 1..=messages {
        let to = ["a@one.example", "b@two.example"];
        let Ok(ticket) =
            rig.queue.append(NewMessage { cause: None, ..message(mid, &to, &body(30_000)) })
        else {
            assert!(rig.tick(100));
            continue;
        };
        assert!(rig.run());
        taken += 1;
        let handles = rig.committed[&ticket].clone();
        assert_eq!(rig.queue.begin(handles[0].0, &[Rid(0)]), 1);
        assert_eq!(rig.queue.begin(handles[1].0, &[Rid(1)]), 1);
        if mid % one_in == 0 {
            let next = Wall(rig.now.wall.0 + 3_000_000);
            assert!(rig.queue.defer(handles[0].0, Rid(0), &last(), 3, next).applied);
        } else {
            assert!(rig.queue.delivered(handles[0].0, Rid(0), &accepted()).applied);
        }
        assert!(rig.queue.delivered(handles[1].0, Rid(1), &accepted()).applied);
        assert!(rig.tick(100));
    }
    taken
}

#[test]
fn a_few_that_stay_do_not_keep_the_space_of_many_that_went() {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), options(24 * MIB));
    let taken = survivors(&mut rig, 1_500, 15);
    assert_eq!(taken, 1_500, "new mail is never refused");
    assert_eq!(rig.intake, []);
    assert!(rig.queue.usage().segments <= 24);
    assert!(rig.tick(1_000) && rig.tick(1_000), "the last second too");
    let found = rig.contents();
    assert_eq!(found.len(), 100);
    let sum = format::checksum(&body(30_000));
    assert!(found.values().all(|value| *value == ("a@one.example".to_owned(), sum)));
    for handle in rig.handles() {
        let summary = rig.queue.summary(handle).unwrap();
        let recipient = &summary.recipients[0];
        assert_eq!((recipient.state, recipient.attempts), (State::Deferred, 3));
        assert_eq!(recipient.last, Some(last()), "the host is known in the new segment too");
        assert_eq!((&*summary.listener, &*summary.bounce_profile), ("in", "default"));
    }
    for image in [medium.after_power_cut(|| false), medium.clone()] {
        let mut again = Rig::open(image, options(24 * MIB));
        assert_eq!(again.contents(), found);
        assert_eq!(again.recovered.damaged, []);
    }
}

/// A queue in which message 1 is about to be copied from segment to segment; messages of 200,000
/// octets come behind it.
struct Travel {
    rig: Rig<MemMedium>,
    next_mid: u64,
}

impl Travel {
    /// Message 1 is the only one left in its segment.
    fn begun(medium: &MemMedium) -> (Self, usize) {
        let mut travel = Self { rig: Rig::open(medium.clone(), options(8 * MIB)), next_mid: 1 };
        (0..18).for_each(|_| travel.append());
        assert!(travel.rig.tick(1_000));
        let first = travel.segment_of(1).unwrap();
        travel.deliver_others(first);
        (travel, first)
    }

    fn append(&mut self) {
        self.rig.append(self.next_mid, &["a@one.example"], &body(200_000));
        self.next_mid += 1;
        assert!(self.rig.run());
    }

    /// Appends until the segment takes no more.
    fn fill(&mut self, segment: usize) {
        while self.rig.queue.active == Some(segment) {
            self.append();
        }
    }

    fn handle_of(&self, mid: u64) -> Option<Handle> {
        let is_it = |h: &Handle| self.rig.queue.summary(*h).is_some_and(|s| s.mid == Mid(mid));
        self.rig.handles().into_iter().find(is_it)
    }

    fn segment_of(&self, mid: u64) -> Option<usize> {
        let record = self.rig.queue.index.get(self.handle_of(mid)?)?;
        Some(usize::from(record.segment))
    }

    fn deliver(&mut self, mid: u64) {
        let handle = self.handle_of(mid).unwrap();
        assert!(self.rig.queue.delivered(handle, Rid(0), &accepted()).applied);
    }

    /// Delivers all of a segment but message 1.
    fn deliver_others(&mut self, segment: usize) {
        for mid in 2..self.next_mid {
            if self.segment_of(mid) == Some(segment) {
                self.deliver(mid);
            }
        }
    }

    /// Waits until message 1 was copied out of `segment`: where to.
    fn until_moved(&mut self, segment: usize) -> usize {
        for _ in 0..1_000 {
            match self.segment_of(1) {
                Some(here) if here != segment => return here,
                _ => assert!(self.rig.tick(100)),
            }
        }
        panic!("it does not move");
    }
}

/// The mark "moved" in the first segment never becomes durable, for the sync that should do it
/// fails: with a power cut the message is ready there again. Whoever can tell that it was
/// delivered since is not used again.
#[test]
fn what_a_failed_sync_holds_is_held_for_ever() {
    let medium = MemMedium::default();
    let (mut travel, first) = Travel::begun(&medium);
    let second = travel.until_moved(first);
    let name = travel.rig.queue.segments[first].header.segment;
    while !travel.rig.queue.segments[first].poisoned {
        travel.rig.now = travel.rig.now.plus_ms(100);
        travel.rig.queue.tick(travel.rig.now);
        while let Some(effect) = travel.rig.queue.next_effect() {
            let fails = matches!(&effect, Effect::Sync { segment, .. } if *segment == name);
            travel.rig.perform(effect, fails);
            travel.rig.poll();
        }
    }
    travel.fill(second);
    travel.deliver_others(second);
    let third = travel.until_moved(second);
    assert!(travel.rig.tick(1_000) && travel.rig.tick(1_000));
    travel.deliver(1);
    travel.fill(third);
    travel.deliver_others(third);
    for _ in 0..40 {
        let new = message(travel.next_mid, &["a@one.example"], &body(200_000));
        if travel.rig.queue.append(new).is_ok() {
            assert!(travel.rig.run());
            travel.deliver(travel.next_mid);
            travel.next_mid += 1;
        }
        assert!(travel.rig.tick(1_000));
    }
    let mut again = Rig::open(medium.after_power_cut(|| false), options(8 * MIB));
    assert!(!again.contents().contains_key(&(1, 0)), "message 1 comes back to life");
}

/// A copy that cannot be read may be the torn rest of a commit, or the one that counts: the message
/// that it was made of stays, whatever becomes of it, for the start that knows.
#[test]
fn a_copy_that_cannot_be_read_does_not_count_yet() {
    for (is_torn, is_delivered) in [(false, false), (true, false), (false, true), (true, true)] {
        let medium = MemMedium::default();
        let (mut travel, first) = Travel::begun(&medium);
        travel.until_moved(first);
        let plan = travel.rig.queue.read_plan(travel.handle_of(1).unwrap()).unwrap();
        let cut = medium.after_power_cut(|| false);
        if is_torn {
            let body = plan.pieces.last().unwrap();
            let file = cut.open(body.segment).unwrap();
            cut.write_at(&file, body.offset + body.octets - 1, b"?").unwrap();
        }
        let mut waited = 0;
        for call in 0.. {
            let image = cut.after_power_cut(|| true);
            image.fail(Some(call), false);
            let opened = Queue::open(&image, options(8 * MIB), travel.rig.now);
            if image.fail(None, false) <= call {
                break;
            }
            let mut delivered = false;
            if let Ok(Opened { queue, files, recovered }) = opened {
                let waits = |note: &&RecoveryNote| note.text.contains("MID 1: ");
                waited += recovered.notes.iter().filter(waits).count();
                let is_whole = recovered.notes.iter().all(|n| n.case != RecoveryCase::Unreadable);
                if is_whole {
                    continue;
                }
                let rig = Rig::with(image.clone(), queue, files, recovered);
                let mut going_on = Travel { rig, next_mid: 1 };
                if is_delivered && going_on.handle_of(1).is_some() {
                    going_on.deliver(1);
                    delivered = true;
                    churn(&mut going_on.rig, &[]);
                }
            }
            let mut again = Rig::open(image, options(8 * MIB));
            let found = again.contents().contains_key(&(1, 0));
            assert_eq!(found, !delivered, "call {call}, {is_torn}, {is_delivered}");
        }
        assert!(waited > 0, "no start was without the copy");
    }
}

/// A copy of message 1 is written, and not synced.
fn half_copied() -> (MemMedium, Now) {
    let medium = MemMedium::default();
    let (Travel { mut rig, .. }, _) = Travel::begun(&medium);
    let (mut is_read, mut is_written) = (false, false);
    while !is_written {
        rig.now = rig.now.plus_ms(100);
        rig.queue.tick(rig.now);
        while !is_written && let Some(effect) = rig.queue.next_effect() {
            is_read |= matches!(effect, Effect::Read { .. });
            is_written = is_read && matches!(effect, Effect::Write { .. });
            rig.perform(effect, false);
        }
    }
    (medium, rig.now)
}

/// kill -9 then, and the power goes during the start after it, which believed the copy: it stood in
/// the page cache alone.
#[test]
fn a_copy_is_on_disk_before_its_original_is_given_up() {
    for call in 0.. {
        let (medium, now) = half_copied();
        medium.fail(Some(call), true);
        let opened = Queue::open(&medium, options(8 * MIB), now);
        let is_whole = medium.fail(None, false) <= call;
        let mut again = Rig::open(medium.after_power_cut(|| false), options(8 * MIB));
        assert!(again.contents().contains_key(&(1, 0)), "call {call}: message 1 is lost");
        if is_whole {
            let notes = opened.unwrap().recovered.notes;
            assert!(notes.iter().any(|note| note.case == RecoveryCase::Superseded), "{notes:?}");
            break;
        }
    }
}

/// A recipient of a large message is settled, the rest is copied forward and settled there. Before
/// the extents are used again the first settlement is durable: or a power cut would bring that
/// recipient back without a body.
#[test]
fn extents_are_free_when_all_that_was_left_out_is_settled_for_good() {
    let medium = MemMedium::default();
    let mut travel = Travel { rig: Rig::open(medium.clone(), options(10 * MIB)), next_mid: 2 };
    travel.rig.append(1, &["a@one.example", "b@two.example"], &body(600_000));
    assert!(travel.rig.run());
    (0..17).for_each(|_| travel.append());
    assert!(travel.rig.tick(1_000));
    let first = travel.segment_of(1).unwrap();
    travel.deliver_others(first);
    // Once before the copy, once in it.
    for is_moved in [false, true] {
        if is_moved {
            travel.until_moved(first);
        }
        let handle = travel.handle_of(1).unwrap();
        let rid = travel.rig.queue.summary(handle).unwrap().recipients[0].rid;
        assert!(travel.rig.queue.delivered(handle, rid, &accepted()).applied);
    }
    travel.append();
    assert_eq!(travel.rig.queue.extents_free.len(), 1);
    travel.rig.append(travel.next_mid, &["c@one.example"], &[b'z'; 500_000]);
    assert!(travel.rig.run());
    let mut again = Rig::open(medium.after_power_cut(|| false), options(10 * MIB));
    for handle in again.handles() {
        assert!(again.read(handle).is_ok(), "{:?}", again.queue.summary(handle));
    }
}
