//! The account of memory for messages on their way in: from their first octet to their verdict.
//!
//! Owns: how many octets may be held, who gets them, and who waits for them in which order.
//! Never: the octets themselves (`smtp::server`), or mail that has had its verdict (`hot`).
//!
//! A quarter of the memory is for messages up to [`limits::INLINE_MESSAGE_OCTETS_MAX`], which
//! grow as they come; the rest is for larger ones, each of which gets room for its whole size
//! before more of it is read, or waits. So small mail flows while large mail waits, and it is
//! bound to go on:
//!
//! * A large message that has its room never waits for memory again. It ends by its end, or by a
//!   deadline: while others wait it has [`LARGE_MS_MAX`].
//! * Who waits stands in a line, and only the first of it is served. The first of the small ones
//!   is let in, with room for all it may become, as soon as the others keep within the limit; so
//!   one at a time may stand above it, and that one does not wait again.
//! * Large messages that wait hold what they were before they were known to be large. Together
//!   that is half of the small ones' part at most; what would be more is refused.
//! * Nobody waits longer than [`WAIT_MS_MAX`]: then the message is refused, and what it holds is
//!   free.
//!
//! While a client waits nothing is read from it, and TCP holds it back. When the first of a line
//! has stood there for [`CLOSE_MS`], new mail of that kind is refused at MAIL.
//!
//! Messages are not copied out of the buffers that they were read into, as long as the buffers
//! that they hold on to take no more than an eighth of the memory, beside it. Half as much at most,
//! and no more than 4 MiB, is kept of buffers for the next reads.
//!
//! Limits: the octets of `ringpost.receive_memory_octets`, an eighth more for such buffers, half of
//! that for those that are kept, and one small message more; a large message that is larger than
//! their part is let in alone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::connection::Bell;
use crate::limits;
use crate::mail::{Mono, Pins};
use crate::smtp::server::Wanted;

/// The part of messages that are not large: one in this many.
const SMALL_PARTS: u64 = 4;

/// The buffers that messages hold on to: as much again as one in this many parts.
const PINNED_PARTS: u64 = 8;

/// What a small message may come to: its buffer may be twice as large as it.
const SMALL_OCTETS_MAX: u64 = 2 * limits::INLINE_MESSAGE_OCTETS_MAX;

/// How long the first of a line waits before new mail is refused.
const CLOSE_MS: u64 = 5_000;

/// How long a message waits for memory before it is refused. A client waits for 3 minutes until
/// it can send on (RFC 5321 4.5.3.2.5).
pub(super) const WAIT_MS_MAX: u64 = 120_000;

/// How long a large message may take while others wait for memory.
const LARGE_MS_MAX: u64 = 300_000;

/// How often it is asked again whether somebody waits.
const LARGE_AGAIN_MS: u64 = 10_000;

/// Which part of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Small,
    Large,
}

/// What a client is told that asks for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Answer {
    /// The octets may be taken.
    Granted,
    /// Not now: its bell will ring.
    Wait,
    /// There is no room to wait in.
    Refused,
}

/// What the account says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiveUsage {
    /// Octets held by messages on their way in.
    pub octets: u64,
    /// Most octets they may hold.
    pub octets_max: u64,
    /// Clients that wait for memory.
    pub waiting: usize,
    /// New mail, or new large mail, is refused for want of memory.
    pub refuses: bool,
}

/// The account of one shard.
#[derive(Clone)]
pub(super) struct ReceiveMemory {
    account: Rc<RefCell<Account>>,
    pins: Arc<Pins>,
}

struct Account {
    small: Pool,
    large: Pool,
    /// Octets of the small part held by those that wait for the large one.
    held_waiting: u64,
    last_number: u64,
}

struct Pool {
    octets_max: u64,
    taken: u64,
    line: VecDeque<Place>,
    refuses: bool,
}

/// A place in a line.
struct Place {
    number: u64,
    since: Mono,
    bell: Rc<Bell>,
}

/// What one message has of the memory. Dropping it gives everything back.
pub(super) struct Share {
    account: Rc<RefCell<Account>>,
    small: u64,
    large: u64,
    /// It got room for all that a small message may become.
    is_whole: bool,
    waits: Option<(Part, u64, Mono)>,
    /// When a large message is looked at for its slowness.
    slow_at: Mono,
}

impl ReceiveMemory {
    /// An account of `octets_max` octets.
    #[must_use]
    pub(super) fn new(octets_max: u64) -> Self {
        let pool =
            |octets_max| Pool { octets_max, taken: 0, line: VecDeque::new(), refuses: false };
        let (small, large) = parts(octets_max);
        let account =
            Account { small: pool(small), large: pool(large), held_waiting: 0, last_number: 0 };
        let memory = Self { account: Rc::new(RefCell::new(account)), pins: Arc::default() };
        memory.limit_spares(octets_max);
        memory
    }

    fn limit_spares(&self, octets_max: u64) {
        let octets = octets_max / (2 * PINNED_PARTS);
        self.pins.keep_at_most(usize::try_from(octets).unwrap_or(usize::MAX));
    }

    /// Changes the limit. What is held above it is not touched.
    pub(super) fn set_octets_max(&self, octets_max: u64) {
        let account = &mut *self.account.borrow_mut();
        (account.small.octets_max, account.large.octets_max) = parts(octets_max);
        account.small.ring_first();
        account.large.ring_first();
        self.limit_spares(octets_max);
    }

    /// A share of nothing.
    #[must_use]
    pub(super) fn share(&self) -> Share {
        Share::none(self.account.clone())
    }

    /// Where the buffers count that messages hold on to; `None`: there are enough of them.
    #[must_use]
    pub(super) fn pins(&self) -> Option<&Arc<Pins>> {
        let account = self.account.borrow();
        let octets_max = account.small.octets_max + account.large.octets_max;
        (self.pins.octets() < octets_max / PINNED_PARTS).then_some(&self.pins)
    }

    /// Is a new message of `declared` octets refused? One that declares nothing counts as small.
    #[must_use]
    pub(super) fn refuses(&self, declared: Option<u64>) -> bool {
        let account = self.account.borrow();
        let is_large = declared.is_some_and(|size| size > limits::INLINE_MESSAGE_OCTETS_MAX);
        account.small.refuses || is_large && account.large.refuses
    }

    /// True while small messages hold more than their part: envelopes must not grow.
    #[must_use]
    pub(super) fn is_overdrawn(&self) -> bool {
        let small = &self.account.borrow().small;
        small.taken > small.octets_max + SMALL_OCTETS_MAX
    }

    /// Looks at the lines; whether new mail is refused from now on, when that has changed.
    pub(super) fn tick(&self, now: Mono) -> Option<bool> {
        let account = &mut *self.account.borrow_mut();
        let before = account.refuses();
        account.small.tick(now);
        account.large.tick(now);
        (account.refuses() != before).then_some(!before)
    }

    /// What there is to say of it.
    #[must_use]
    pub(super) fn usage(&self) -> ReceiveUsage {
        let account = self.account.borrow();
        let (small, large) = (&account.small, &account.large);
        ReceiveUsage {
            octets: small.taken + large.taken,
            octets_max: small.octets_max + large.octets_max,
            waiting: small.line.len() + large.line.len(),
            refuses: account.refuses(),
        }
    }
}

/// The small part and the large part of `octets_max`.
fn parts(octets_max: u64) -> (u64, u64) {
    (octets_max / SMALL_PARTS, octets_max - octets_max / SMALL_PARTS)
}

impl Account {
    fn pool(&mut self, part: Part) -> &mut Pool {
        match part {
            Part::Small => &mut self.small,
            Part::Large => &mut self.large,
        }
    }

    fn refuses(&self) -> bool {
        self.small.refuses || self.large.refuses
    }

    /// Lets a message wait for the large part with `octets` of the small one, if there is room
    /// for that.
    fn let_wait(&mut self, octets: u64) -> bool {
        let fits = self.held_waiting + octets <= self.small.octets_max / 2;
        if fits {
            self.held_waiting += octets;
        }
        fits
    }
}

impl Pool {
    /// Nobody stands before `number` in the line.
    fn is_first(&self, number: Option<u64>) -> bool {
        self.line.front().is_none_or(|place| Some(place.number) == number)
    }

    /// Gives `whole` octets in place of `has` to `number`, if it is its turn and they fit.
    fn take_whole(&mut self, number: Option<u64>, has: u64, whole: u64) -> bool {
        let others = self.taken - has;
        let fits = others + whole <= self.octets_max || others == 0;
        let taken = fits && self.is_first(number);
        if taken {
            self.taken = others + whole;
        }
        taken
    }

    fn ring_first(&self) {
        if let Some(first) = self.line.front() {
            first.bell.ring();
        }
    }

    fn give_back(&mut self, octets: u64) {
        self.taken -= octets;
        if octets > 0 {
            self.ring_first();
        }
    }

    fn tick(&mut self, now: Mono) {
        let waited = self.line.front().is_some_and(|first| now.since_ms(first.since) >= CLOSE_MS);
        if waited && !self.refuses {
            self.refuses = true;
            // Clients between two messages go on: they hear it at MAIL.
            self.line.iter().for_each(|place| place.bell.ring());
        } else if self.line.is_empty() && self.taken <= self.octets_max / 4 * 3 {
            self.refuses = false;
        }
    }
}

impl Share {
    fn none(account: Rc<RefCell<Account>>) -> Self {
        Self { account, small: 0, large: 0, is_whole: false, waits: None, slow_at: Mono(0) }
    }

    /// Asks for what `wanted` says; `bell` rings when to ask again.
    pub(super) fn ask(&mut self, wanted: &Wanted, bell: &Rc<Bell>, now: Mono) -> Answer {
        if !wanted.in_message && self.account.borrow().small.refuses {
            self.leave_line();
            return Answer::Granted;
        }
        match wanted.whole {
            Some(whole) => self.ask_large(wanted.octets, whole, bell, now),
            None => self.ask_small(wanted.octets, bell, now),
        }
    }

    fn ask_small(&mut self, octets: u64, bell: &Rc<Bell>, now: Mono) -> Answer {
        if octets <= self.small {
            self.leave_line();
            return Answer::Granted;
        }
        let number = self.place_in(Part::Small);
        let mut account = self.account.borrow_mut();
        let pool = &mut account.small;
        let others = pool.taken - self.small;
        let is_first = pool.is_first(number);
        let fits = others + octets <= pool.octets_max;
        if !is_first || !fits && others > pool.octets_max {
            drop(account);
            return self.stand_in(Part::Small, bell, now);
        }
        self.is_whole |= !fits;
        let granted = if fits { octets } else { octets.max(SMALL_OCTETS_MAX) };
        pool.taken += granted - self.small;
        self.small = granted;
        drop(account);
        self.leave_line();
        Answer::Granted
    }

    fn ask_large(&mut self, octets: u64, whole: u64, bell: &Rc<Bell>, now: Mono) -> Answer {
        if octets <= self.large {
            self.leave_line();
            return Answer::Granted;
        }
        let number = self.place_in(Part::Large);
        if self.account.borrow_mut().large.take_whole(number, self.large, whole) {
            if self.large == 0 {
                self.slow_at = Mono(now.0 + LARGE_MS_MAX);
            }
            self.large = whole;
            self.leave_line();
            self.give_back_small();
            return Answer::Granted;
        }
        // Larger than it said: who has room must not wait for more.
        let may_wait =
            self.large == 0 && (number.is_some() || self.account.borrow_mut().let_wait(self.small));
        if may_wait { self.stand_in(Part::Large, bell, now) } else { Answer::Refused }
    }

    /// The number of its place in the line of `part`; one in the other line is given up.
    fn place_in(&mut self, part: Part) -> Option<u64> {
        if self.waits.is_some_and(|(waits_for, ..)| waits_for != part) {
            self.leave_line();
        }
        self.waits.map(|(_, number, _)| number)
    }

    /// Takes a place in the line, or keeps it.
    fn stand_in(&mut self, part: Part, bell: &Rc<Bell>, now: Mono) -> Answer {
        if self.waits.is_none() {
            let mut account = self.account.borrow_mut();
            account.last_number += 1;
            let number = account.last_number;
            let place = Place { number, since: now, bell: bell.clone() };
            account.pool(part).line.push_back(place);
            drop(account);
            self.waits = Some((part, number, now));
        }
        Answer::Wait
    }

    fn leave_line(&mut self) {
        let Some((part, number, _)) = self.waits.take() else { return };
        let mut account = self.account.borrow_mut();
        if part == Part::Large {
            account.held_waiting -= self.small;
        }
        let pool = account.pool(part);
        pool.line.retain(|place| place.number != number);
        pool.ring_first();
    }

    /// Since when it waits.
    #[must_use]
    pub(super) fn waits_since(&self) -> Option<Mono> {
        self.waits.map(|(_, _, since)| since)
    }

    /// When [`Share::is_slow`] is to be asked.
    #[must_use]
    pub(super) fn slow_at(&self) -> Option<Mono> {
        (self.large > 0).then_some(self.slow_at)
    }

    /// A large message has had its time, and others wait for its memory.
    #[must_use]
    pub(super) fn is_slow(&mut self, now: Mono) -> bool {
        if self.large == 0 || now < self.slow_at {
            return false;
        }
        self.slow_at = Mono(now.0 + LARGE_AGAIN_MS);
        !self.account.borrow().large.line.is_empty()
    }

    /// The octets it has for a large message.
    #[must_use]
    pub(super) fn large(&self) -> u64 {
        self.large
    }

    /// The message now holds `octets` octets: what it has beyond is given back, but for room that
    /// was given for all of it.
    pub(super) fn settle(&mut self, octets: u64) {
        if octets >= self.large && self.large > 0 {
            return;
        }
        self.give_back_large();
        if octets == 0 {
            self.leave_line();
            self.is_whole = false;
        }
        let keeps = if self.is_whole { self.small.max(octets) } else { octets };
        if self.waits.is_none() && keeps != self.small {
            self.set_small(keeps);
        }
    }

    /// The share of a message of `octets` octets that is complete; this one is empty then.
    #[must_use]
    pub(super) fn hand_over(&mut self, octets: u64) -> Share {
        let empty = Self::none(self.account.clone());
        let mut share = std::mem::replace(self, empty);
        share.leave_line();
        share.is_whole = false;
        if share.large > 0 {
            let account = &mut *share.account.borrow_mut();
            account.large.taken += octets;
            account.large.give_back(share.large);
            share.large = octets;
        } else {
            share.set_small(octets);
        }
        share
    }

    /// The message is refused: nothing of it is kept.
    pub(super) fn give_up(&mut self) {
        self.leave_line();
        self.is_whole = false;
        self.give_back_large();
        self.give_back_small();
    }

    fn set_small(&mut self, octets: u64) {
        let pool = &mut self.account.borrow_mut().small;
        pool.taken += octets;
        pool.give_back(self.small);
        self.small = octets;
    }

    fn give_back_small(&mut self) {
        let octets = std::mem::take(&mut self.small);
        self.account.borrow_mut().small.give_back(octets);
    }

    fn give_back_large(&mut self) {
        let octets = std::mem::take(&mut self.large);
        self.account.borrow_mut().large.give_back(octets);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReadBuffer;

    const MIB: u64 = 1 << 20;

    #[test]
    fn messages_hold_on_to_buffers_up_to_an_eighth_of_it() {
        let memory = ReceiveMemory::new(8 * MIB);
        let buffers: Vec<_> =
            (0..20).map(|_| Arc::new(ReadBuffer::from(Vec::with_capacity(64 << 10)))).collect();
        let hold = |buffer: &Arc<ReadBuffer>| buffer.run(buffer.octets(), memory.pins()?);
        let held: Vec<_> = buffers.iter().map_while(hold).collect();
        assert_eq!(held.len(), 16);
        drop(buffers);
        assert!(memory.pins().is_none());
        drop(held);
        assert!(memory.pins().is_some_and(|pins| pins.octets() == 0));
        memory.set_octets_max(0);
        assert!(memory.pins().is_none());
    }

    /// A client that sends one message, as the shard drives it.
    struct Sender {
        size: u64,
        declares: bool,
        sent: u64,
        share: Share,
        bell: Rc<Bell>,
        end: Option<Answer>,
    }

    impl Sender {
        fn new(memory: &ReceiveMemory, size: u64, declares: bool) -> Self {
            let (share, bell) = (memory.share(), Rc::default());
            Self { size, declares, sent: 0, share, bell, end: None }
        }

        /// One read of `octets`, if there is memory for it.
        fn read(&mut self, octets: u64, now: Mono) {
            let length = (self.sent + octets).min(self.size);
            let large = length.max(if self.declares { self.size } else { 0 })
                > limits::INLINE_MESSAGE_OCTETS_MAX;
            let whole = large.then_some(if self.declares { self.size } else { 25 * MIB });
            let octets = if large { length } else { length.next_power_of_two() };
            let wanted = Wanted { octets, whole, in_message: true };
            match self.share.ask(&wanted, &self.bell, now) {
                Answer::Granted => {
                    self.sent = length;
                    self.share.settle(self.share.large().max(octets));
                    if self.sent == self.size {
                        self.end = Some(Answer::Granted);
                    }
                }
                Answer::Wait => {}
                Answer::Refused => {
                    self.share.give_up();
                    self.end = Some(Answer::Refused);
                }
            }
        }

        fn waits(&self) -> bool {
            self.share.waits_since().is_some()
        }
    }

    /// A generator of numbers that look random: splitmix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }
    }

    /// Drives senders until all have ended; who waits acts only when its bell rings. How many
    /// were refused.
    fn drive(memory: &ReceiveMemory, senders: &mut [Sender], random: &mut Random) -> usize {
        let octets_max = memory.usage().octets_max;
        // Complete messages that wait for their verdict.
        let mut verdicts: VecDeque<Share> = VecDeque::new();
        while senders.iter().any(|sender| sender.end.is_none()) {
            let mut moved = verdicts.pop_front().is_some();
            for sender in senders.iter_mut().filter(|sender| sender.end.is_none()) {
                if sender.waits() && !sender.bell.has_rung() {
                    continue;
                }
                moved = true;
                if !sender.waits() && random.below(3) == 0 {
                    continue;
                }
                sender.read(1 + random.below(40_000), Mono(1));
                if sender.end == Some(Answer::Granted) {
                    verdicts.push_back(sender.share.hand_over(sender.size));
                }
                let octets = memory.usage().octets;
                assert!(octets <= octets_max + SMALL_OCTETS_MAX, "{octets} of {octets_max}");
            }
            assert!(moved, "all wait and nobody is rung");
        }
        drop(verdicts);
        senders.iter().filter(|sender| sender.end == Some(Answer::Refused)).count()
    }

    #[test]
    fn many_senders_keep_within_the_limit_and_all_come_to_an_end() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let memory = ReceiveMemory::new(40 * MIB);
            let mut senders: Vec<Sender> = (0..150)
                .map(|_| {
                    let size = match random.below(3) {
                        0 => 1 + random.below(20_000),
                        1 => 1 + random.below(300_000),
                        _ => 1 + random.below(2 * MIB),
                    };
                    Sender::new(&memory, size, random.below(2) == 0)
                })
                .collect();
            let declared_refused = drive(&memory, &mut senders, &mut random);
            let refused = senders.iter().filter(|s| s.end == Some(Answer::Refused));
            assert!(refused.clone().all(|s| !s.declares), "one that said its size was refused");
            assert!(declared_refused < 100, "seed {seed}: {declared_refused} refused");
            senders.clear();
            assert_eq!((memory.usage().octets, memory.usage().waiting), (0, 0), "seed {seed}");
        }
    }

    #[test]
    fn small_mail_flows_while_large_mail_waits_in_its_order() {
        let memory = ReceiveMemory::new(64 * MIB);
        let large = |_| Sender::new(&memory, 25 * MIB, true);
        let mut large: Vec<Sender> = (0..100).map(large).collect();
        large.iter_mut().for_each(|sender| sender.read(1000, Mono(1)));
        assert_eq!(large.iter().filter(|sender| sender.waits()).count(), 99);
        let mut small: Vec<Sender> =
            (0..1000).map(|n| Sender::new(&memory, 1 + n, false)).collect();
        assert_eq!(drive(&memory, &mut small, &mut Random(1)), 0);
        let mut order = Vec::new();
        while !large.is_empty() {
            let goes = |s: &Sender| !s.waits() || s.bell.has_rung();
            let first = large.iter().position(goes).expect("somebody goes on");
            large[first].read(25 * MIB, Mono(2));
            if large[first].end.is_some() {
                order.push(first);
                drop(large.remove(first));
            }
        }
        assert_eq!(order, vec![0; 100], "first come, first served");
    }

    #[test]
    fn one_that_is_larger_than_it_said_does_not_wait_with_what_it_has() {
        let memory = ReceiveMemory::new(64 * MIB);
        let bell = Rc::default();
        let ask = |share: &mut Share, octets, whole| {
            let wanted = Wanted { octets, whole: Some(whole), in_message: true };
            share.ask(&wanted, &bell, Mono(1))
        };
        let (mut first, mut second) = (memory.share(), memory.share());
        assert_eq!(ask(&mut first, MIB, MIB), Answer::Granted);
        assert_eq!(ask(&mut second, MIB, 40 * MIB), Answer::Granted);
        assert_eq!(ask(&mut first, 2 * MIB, 25 * MIB), Answer::Refused);
        drop(second);
        assert_eq!(ask(&mut first, 2 * MIB, 25 * MIB), Answer::Granted);
    }

    #[test]
    fn new_mail_is_refused_when_the_first_has_waited_long() {
        let memory = ReceiveMemory::new(4 * MIB);
        let mut senders: Vec<_> = (0..2).map(|_| Sender::new(&memory, 2 * MIB, true)).collect();
        senders.iter_mut().for_each(|sender| sender.read(1, Mono(1)));
        assert_eq!(memory.tick(Mono(CLOSE_MS)), None);
        assert_eq!(memory.tick(Mono(1 + CLOSE_MS)), Some(true));
        assert!(memory.refuses(Some(MIB)) && !memory.refuses(None) && !memory.refuses(Some(1)));
        assert!(memory.usage().refuses);
        senders.remove(0);
        assert!(senders[0].bell.has_rung());
        senders[0].read(1, Mono(2 + CLOSE_MS));
        assert!(!senders[0].waits());
        assert!(!senders[0].share.is_slow(Mono(CLOSE_MS + LARGE_MS_MAX)));
        let mut third = Sender::new(&memory, 3 * MIB, true);
        third.read(1, Mono(10 + CLOSE_MS));
        assert!(third.waits());
        assert!(senders[0].share.is_slow(Mono(2 + CLOSE_MS + LARGE_MS_MAX)), "another one waits");
        senders.clear();
        drop(third);
        assert_eq!(memory.tick(Mono(9_999)), Some(false));
        assert!(!memory.refuses(Some(MIB)));
    }

    #[test]
    fn a_client_between_messages_waits_and_then_hears_the_refusal() {
        let memory = ReceiveMemory::new(4 * MIB);
        let mut full: Vec<_> = (0..40).map(|_| Sender::new(&memory, 60_000, false)).collect();
        full.iter_mut().for_each(|sender| sender.read(59_000, Mono(1)));
        let bell: Rc<Bell> = Rc::default();
        let wanted = Wanted { octets: 4000, whole: None, in_message: false };
        let mut share = memory.share();
        assert_eq!(share.ask(&wanted, &bell, Mono(1)), Answer::Wait);
        assert_eq!(memory.tick(Mono(1 + CLOSE_MS)), Some(true));
        assert!(bell.has_rung() && memory.refuses(None));
        assert_eq!(share.ask(&wanted, &bell, Mono(1)), Answer::Granted);
        assert_eq!(share.waits_since(), None);
    }
}
