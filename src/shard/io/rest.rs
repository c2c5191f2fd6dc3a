//! How the thread of a shard comes to rest.
//!
//! Owns: what happens between the last thing to be done and sleep. Never: what is to be done.
//!
//! To sleep and to be woken costs more than most of what a shard does in one turn, and so does
//! waking a peer that sleeps. Where clients, hosts or the ring's workers share this core they have
//! something for us as soon as they run: so the core is left to them first, a few times. Where
//! nobody takes it that is soon given up, and tried again now and then.
//!
//! Between two offers the runtime comes to its park: a task that woke itself over and over would
//! keep the ring from being asked.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::clock;
use super::files::Files;

/// The core is left to others so often before this thread sleeps.
const OFFERS_MAX: u32 = 4;

/// An offer that took less time than this was taken by nobody; one that took more, by somebody who
/// has other things to do than to answer us.
const TAKEN_MIN: Duration = Duration::from_micros(2);
const TAKEN_MAX: Duration = Duration::from_millis(1);

/// After offers that nobody took so many turns go by at most without one.
const TURNS_SKIPPED_MAX: u32 = 63;

thread_local! {
    /// A task was polled since the thread came to rest.
    static HAS_WORKED: Cell<bool> = const { Cell::new(false) };
    /// Who is to be woken then.
    static AT_REST: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// A task of this thread has something to do.
pub(super) fn note_work() {
    if !HAS_WORKED.replace(true)
        && let Some(at_rest) = AT_REST.take()
    {
        at_rest.wake();
    }
}

/// Runs as long as its thread: before it sleeps it makes an `offer` of its core to others, which
/// says whether that was worth it.
pub(super) async fn run(mut offer: impl AsyncFnMut() -> bool) {
    let mut pace = Pace::default();
    loop {
        poll_fn(|context| match HAS_WORKED.replace(false) {
            true => Poll::Ready(()),
            false => {
                AT_REST.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await;
        if pace.is_due() {
            pace.note(offer().await);
            // Whatever has come meanwhile is done, or under way.
            HAS_WORKED.set(false);
        }
    }
}

/// Leaves the core to others a few times, as long as they take it. False: it was not taken, or
/// for too long.
pub(super) async fn offer_core(files: &Files) -> bool {
    let mut is_taken = false;
    for _ in 0..OFFERS_MAX {
        // All others have their turn first, and what they send is on its way.
        files.hand_over().await;
        let before = clock::since_start();
        std::thread::yield_now();
        match clock::since_start() - before {
            taken if taken < TAKEN_MIN => break,
            taken if taken > TAKEN_MAX => return false,
            _ => is_taken = true,
        }
    }
    is_taken
}

/// When the core is offered.
#[derive(Default)]
struct Pace {
    /// Turns to go by without an offer.
    skips: u32,
    /// So many went by before the last one.
    skipped: u32,
}

impl Pace {
    fn is_due(&mut self) -> bool {
        let is_due = self.skips == 0;
        self.skips = self.skips.saturating_sub(1);
        is_due
    }

    fn note(&mut self, is_taken: bool) {
        self.skipped = if is_taken { 0 } else { (2 * self.skipped + 1).min(TURNS_SKIPPED_MAX) };
        self.skips = self.skipped;
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::shard::io;

    #[test]
    fn an_offer_that_nobody_takes_is_made_ever_more_rarely() {
        let mut pace = Pace::default();
        let mut skipped = |is_taken: bool| {
            let skipped = (0..1000).take_while(|_| !pace.is_due()).count();
            pace.note(is_taken);
            skipped
        };
        assert_eq!([false; 8].map(&mut skipped), [0, 1, 3, 7, 15, 31, 63, 63]);
        assert_eq!([true, true, false, false].map(&mut skipped), [63, 0, 0, 1]);
    }

    /// A thread at rest sleeps, whatever it did before.
    #[test]
    fn a_thread_with_nothing_to_do_sleeps() {
        for backend in io::backends() {
            let rests = async move {
                io::rest(&Files::start(backend).unwrap());
                for _ in 0..100 {
                    let (done, is_done) = tokio::sync::oneshot::channel();
                    io::spawn(async move { done.send(()).unwrap() });
                    is_done.await.unwrap();
                }
                let used = || {
                    let clock = rustix::time::ClockId::ThreadCPUTime;
                    Duration::try_from(rustix::time::clock_gettime(clock)).unwrap()
                };
                let before = used();
                io::sleep(Duration::from_millis(300)).await;
                assert!(used() - before < Duration::from_millis(60), "it does not sleep");
            };
            io::run(backend, rests).unwrap();
        }
    }

    /// A poll of a task wakes the task that sees to rest, which then makes one offer.
    #[test]
    fn work_is_followed_by_an_offer() {
        for backend in io::backends() {
            let rests = async move {
                let offers = Rc::new(Cell::new(0));
                let counted = offers.clone();
                let offer = async move || {
                    counted.set(counted.get() + 1);
                    true
                };
                drop(tokio::task::spawn_local(run(offer)));
                io::sleep(Duration::from_millis(1)).await;
                let before = offers.get();
                assert!(AT_REST.with_borrow(Option::is_some), "at rest");
                let (seen, is_seen) = tokio::sync::oneshot::channel();
                io::spawn(async move {
                    seen.send(AT_REST.with_borrow(Option::is_none)).unwrap();
                });
                assert!(is_seen.await.unwrap(), "woken by the poll");
                io::sleep(Duration::from_millis(1)).await;
                assert_eq!(offers.get(), before + 1);
                assert!(AT_REST.with_borrow(Option::is_some), "at rest again");
            };
            io::run(backend, rests).unwrap();
        }
    }
}
