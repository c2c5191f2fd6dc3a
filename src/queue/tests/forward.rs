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
        assert_eq!(rig.queue.begin(handles[0].0, &[Rid(0)]).len(), 1);
        assert_eq!(rig.queue.begin(handles[1].0, &[Rid(1)]).len(), 1);
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
