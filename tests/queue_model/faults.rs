//! The n-th call fails, for every n until a run has no n-th call.

use super::model;
use super::rig::{MIB, Rig};

/// Appends, commits, recycling and copying forward, one failure or all from it on, with a crash
/// at the end of each life.
#[test]
fn whatever_effect_fails_nothing_answered_is_lost() {
    for (slow, for_ever) in [(false, false), (false, true), (true, false), (true, true)] {
        let (seed, ..) = model::eventful(slow);
        let mut effect = 0;
        while model::live_failing(seed, slow, effect, for_ever) {
            effect += 1;
        }
        let least = if slow { 40 } else { 60 };
        assert!(effect > least, "only {effect} effects: the life is too short");
    }
}

/// A call of the medium that fails at a start, once or for ever, costs nothing at the next one.
#[test]
fn whatever_call_fails_at_a_start_the_next_one_finds_everything() {
    for (slow, for_ever) in [(false, false), (false, true), (true, false), (true, true)] {
        let (_, medium, now) = model::eventful(slow);
        let open = |medium| Rig::open(medium, 6 * MIB, now);
        let expected = open(medium.after_power_cut(|| true)).unwrap().contents();
        assert!(expected.len() > 10);
        let mut call = 0;
        loop {
            let image = medium.after_power_cut(|| true);
            image.fail(Some(call), for_ever);
            drop(open(image.clone()));
            let calls = image.fail(None, false);
            let mut rig = open(image).unwrap();
            assert_eq!(rig.contents(), expected, "call {call}");
            assert_eq!(rig.recovered.damaged, [], "call {call}");
            if calls <= call {
                break;
            }
            call += 1;
        }
        assert!(call > 20, "only {call} calls");
    }
}
