//! The queue against a simple model: random lives with crashes, and every call failing once.
//!
//! A life appends, commits, settles, defers, reads, and takes messages early, while segments are
//! used again, copied forward, fail and stall; four times it ends in kill -9 or a power cut, and
//! some of the starts that follow die too. What is there afterwards is held against what was told.
//!
//! A life is named by its seed, which is printed when it breaks the promise:
//! `RINGPOST_MODEL_SEED=n cargo test --test queue_model` repeats one, `RINGPOST_MODEL_SEEDS=n` runs
//! the first n instead of a few. `RINGPOST_MODEL_FROM=m` begins with seed m.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "queue_model/arbitrary.rs"]
mod arbitrary;
#[path = "queue_model/faults.rs"]
mod faults;
#[path = "queue_model/model.rs"]
mod model;
#[path = "queue_model/rig.rs"]
mod rig;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use rig::Bug;

/// Seeds that have found something once, when every commit was told of at once, as in their lives
/// it still is.
const FOUND: [u64; 11] = [38, 346, 452, 566, 1431, 1723, 2927, 5089, 6790, 7119, 8009];

/// Seeds that have found something since then.
const FOUND_LATER: [u64; 4] = [607, 771, 5188, 8391];

/// Seeds that have found something since some of the lives have a disk that is slow to sync.
const FOUND_SLOW: [u64; 2] = [4785, 7432];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_lives_keep_the_promise() {
    if let Some(seed) = number("RINGPOST_MODEL_SEED") {
        return model::live(seed, Bug::None);
    }
    let first = number("RINGPOST_MODEL_FROM").unwrap_or(0);
    let few = first..first + number("RINGPOST_MODEL_SEEDS").unwrap_or(25);
    let seeds: Vec<u64> = few.chain(FOUND).chain(FOUND_LATER).chain(FOUND_SLOW).collect();
    let next = AtomicUsize::new(0);
    let live = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let life = catch_unwind(AssertUnwindSafe(|| model::live(*seed, Bug::None)));
            if let Err(panic) = life {
                eprintln!("the life with RINGPOST_MODEL_SEED={seed} breaks the promise");
                std::panic::resume_unwind(panic);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(live))));
    let copies = rig::COPIES.load(Ordering::Relaxed);
    assert!(copies > 50, "only {copies} messages were copied forward");
    let beside = rig::SYNCS_BESIDE.load(Ordering::Relaxed);
    let deceived = rig::SYNCS_DECEIVED.load(Ordering::Relaxed);
    println!("{copies} copies, {beside} syncs beside another, {deceived} of them deceived");
    assert!(beside > 5, "only {beside} syncs were begun beside another");
}

/// A model that finds nothing proves nothing: each planted bug must be found soon.
#[test]
fn planted_bugs_are_found() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for bug in [
        Bug::CommitWithoutSync,
        Bug::LostWrite,
        Bug::StateWithoutSync,
        Bug::WordsUnwritten,
        Bug::FlightsEndedUntold,
    ] {
        let found =
            (0..60).any(|seed| catch_unwind(AssertUnwindSafe(|| model::live(seed, bug))).is_err());
        if !found {
            missed.push(bug);
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// A short run of what the fuzz target `recovery` does for hours.
#[test]
fn arbitrary_octets_as_a_segment() {
    for seed in 0..number("RINGPOST_MODEL_SEEDS").unwrap_or(60) {
        let mut random = rig::Random::new(seed);
        let octets = 1 + random.below(if seed % 4 == 3 { 60 } else { 40_000 });
        let mut data = vec![u8::try_from(seed % 4).unwrap()];
        data.extend((0..octets).map(|_| random.below(256).to_le_bytes()[0]));
        arbitrary::recover(&data);
    }
}
