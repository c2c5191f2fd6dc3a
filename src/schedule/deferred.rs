//! Timers of deferred deliveries: a hierarchical wheel for millions of them.
//!
//! Owns: which [`Handle`] is due when. Never: a clock, or what happens to a delivery that is due.
//! Timers run on the monotonic clock; the caller converts wall-clock times
//! ([`super::retry::due_on`]).
//!
//! Six levels of 64 slots, each level 64 times coarser than the one below; a slot is a doubly
//! linked list through a table indexed by handle. Insert and remove touch a constant number of
//! cells; an item moves down at most five times in its life. A timer never fires early and at
//! most [`TICK_MS`] late, apart from the caller's own delay.
//!
//! Diagnostics: inserting a handle twice is our own mistake and panics.
//!
//! Limits: 12 octets per item, in pages of [`PAGE_ITEMS`] that are freed when empty; handles are
//! expected to be dense, as indices are. Furthest timer: 2^32 ticks, over two years.

use crate::mail::{Handle, Mono};

/// Resolution of the wheel, in milliseconds.
pub const TICK_MS: u64 = 16;

/// Items in one page of the table.
pub const PAGE_ITEMS: usize = 1 << PAGE_BITS;

const PAGE_BITS: u32 = 12;
const LEVELS: usize = 6;
const SLOT_BITS: usize = 6;
const SLOTS: usize = 1 << SLOT_BITS;

/// End of a list; as `prev`, a free cell.
const NIL: u32 = u32::MAX;
/// `prev` of a list's first item: this plus the number of its slot.
const HEAD: u32 = NIL - 512;

const _: () = assert!(LEVELS * SLOTS < 512);

/// When an item is due, in ticks; names one deferral of a handle among all later ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Due(u32);

#[derive(Clone, Copy)]
struct Cell {
    due: Due,
    next: u32,
    prev: u32,
}

const FREE: Cell = Cell { due: Due(0), next: NIL, prev: NIL };

struct Page {
    cells: [Cell; PAGE_ITEMS],
    used: usize,
}

/// The timers of one shard.
pub struct Deferred {
    pages: Vec<Option<Box<Page>>>,
    heads: [[u32; SLOTS]; LEVELS],
    occupied: [u64; LEVELS],
    /// All timers before this tick have fired, except those in `opened`.
    elapsed: u32,
    /// A slot whose time has come and whose items are being fired or moved down.
    opened: Option<(usize, usize)>,
    len: usize,
}

impl Default for Deferred {
    fn default() -> Self {
        Self::new()
    }
}

impl Deferred {
    /// No timers; time starts at 0.
    #[must_use]
    pub fn new() -> Self {
        Self {
            pages: Vec::new(),
            heads: [[NIL; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            elapsed: 0,
            opened: None,
            len: 0,
        }
    }

    /// Items in the wheel.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the timer of `handle`. A time that is past fires with the next [`Deferred::expire`].
    ///
    /// # Panics
    /// When the handle has a timer already, or is one of the 512 highest numbers.
    pub fn insert(&mut self, due: Mono, handle: Handle) -> Due {
        assert!(handle.0 < HEAD, "handle {handle} is out of range");
        let ticks = due.0.div_ceil(TICK_MS).min(u64::from(u32::MAX));
        let due = Due(u32::try_from(ticks).unwrap_or(u32::MAX).max(self.elapsed));
        let page = (handle.0 >> PAGE_BITS) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page]
            .get_or_insert_with(|| Box::new(Page { cells: [FREE; PAGE_ITEMS], used: 0 }));
        assert!(page.cells[cell_of(handle.0)].prev == NIL, "handle {handle} is deferred twice");
        page.used += 1;
        self.len += 1;
        self.link(handle.0, due);
        due
    }

    /// When `handle` is due; `None` when it has no timer.
    #[must_use]
    pub fn due(&self, handle: Handle) -> Option<Due> {
        let page = self.pages.get((handle.0 >> PAGE_BITS) as usize)?.as_ref()?;
        let cell = page.cells[cell_of(handle.0)];
        (cell.prev != NIL).then_some(cell.due)
    }

    /// Takes the timer of `handle` back; false when it has none.
    pub fn remove(&mut self, handle: Handle) -> bool {
        let found = self.due(handle).is_some();
        if found {
            self.unlink(handle.0);
            self.free(handle.0);
        }
        found
    }

    /// Takes at most `items_max` items that are due at `now`, earliest slot first. Moves at most
    /// four times as many down from coarser levels, so that one call stays short; call again
    /// while [`Deferred::next_due`] says that there is work at `now`.
    pub fn expire(&mut self, now: Mono, items_max: usize) -> Vec<Handle> {
        let now = u32::try_from(now.0 / TICK_MS).unwrap_or(u32::MAX);
        let mut fired = Vec::new();
        let mut moves_left = items_max.saturating_mul(4);
        while fired.len() < items_max && moves_left > 0 {
            let Some((level, slot)) = self.open(now) else { break };
            let item = self.heads[level][slot];
            if item == NIL {
                self.opened = None;
                continue;
            }
            let due = self.cell(item).due;
            self.unlink(item);
            if due.0 <= self.elapsed {
                self.free(item);
                fired.push(Handle(item));
            } else {
                assert!(level > 0, "an item of the finest level fires in its tick");
                self.link(item, due);
                moves_left -= 1;
            }
        }
        fired
    }

    /// No item fires before this time; `None` when there are none. The wheel itself may have work
    /// then without an item being due, so the caller sleeps until it, expires, and asks again.
    #[must_use]
    pub fn next_due(&self) -> Option<Mono> {
        let tick = match self.opened {
            Some((level, slot)) if self.heads[level][slot] != NIL => Some(self.elapsed),
            _ => self.next_slot().map(|(_, _, start)| start),
        };
        tick.map(|tick| Mono(u64::from(tick) * TICK_MS))
    }

    /// The slot being worked on, or the next one whose time has come. Without one, time moves on.
    fn open(&mut self, now: u32) -> Option<(usize, usize)> {
        if self.opened.is_none() {
            match self.next_slot() {
                Some((level, slot, start)) if start <= now => {
                    self.elapsed = start;
                    self.opened = Some((level, slot));
                }
                _ => self.elapsed = self.elapsed.max(now),
            }
        }
        self.opened
    }

    /// The first slot in time that holds items: level, slot, first tick. A finer level always
    /// comes first, because an item stands on the level of the highest digit in which its time
    /// differs from `elapsed`.
    fn next_slot(&self) -> Option<(usize, usize, u32)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let shift = level * SLOT_BITS;
        let here = (self.elapsed >> shift) as usize & (SLOTS - 1);
        let ahead = self.occupied[level] >> here;
        assert!(ahead != 0, "the wheel has items behind its time");
        let slot = here + ahead.trailing_zeros() as usize;
        let above = u64::from(self.elapsed) >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        let start = above | (slot as u64) << shift;
        Some((level, slot, u32::try_from(start).unwrap_or(u32::MAX).max(self.elapsed)))
    }

    fn link(&mut self, item: u32, due: Due) {
        let differs = (self.elapsed ^ due.0) | 1;
        let level = differs.ilog2() as usize / SLOT_BITS;
        let slot = (due.0 >> (level * SLOT_BITS)) as usize & (SLOTS - 1);
        let next = self.heads[level][slot];
        let head = HEAD + u32::try_from(level * SLOTS + slot).unwrap_or(0);
        *self.cell_mut(item) = Cell { due, next, prev: head };
        if next != NIL {
            self.cell_mut(next).prev = item;
        }
        self.heads[level][slot] = item;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, item: u32) {
        let Cell { next, prev, .. } = *self.cell(item);
        if prev >= HEAD {
            let place = (prev - HEAD) as usize;
            let (level, slot) = (place / SLOTS, place % SLOTS);
            self.heads[level][slot] = next;
            if next == NIL {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.cell_mut(prev).next = next;
        }
        if next != NIL {
            self.cell_mut(next).prev = prev;
        }
    }

    fn free(&mut self, item: u32) {
        *self.cell_mut(item) = FREE;
        self.len -= 1;
        let page = &mut self.pages[(item >> PAGE_BITS) as usize];
        if let Some(cells) = page {
            cells.used -= 1;
            if cells.used == 0 {
                *page = None;
            }
        }
    }

    fn cell(&self, item: u32) -> &Cell {
        let page = self.pages[(item >> PAGE_BITS) as usize].as_ref();
        &page.expect("a linked item has a page").cells[cell_of(item)]
    }

    fn cell_mut(&mut self, item: u32) -> &mut Cell {
        let page = self.pages[(item >> PAGE_BITS) as usize].as_mut();
        &mut page.expect("a linked item has a page").cells[cell_of(item)]
    }
}

fn cell_of(item: u32) -> usize {
    item as usize & (PAGE_ITEMS - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn drain(wheel: &mut Deferred, now: Mono) -> Vec<Handle> {
        let mut all = Vec::new();
        while wheel.next_due().is_some_and(|due| due <= now) {
            all.extend(wheel.expire(now, 7));
        }
        all
    }

    #[test]
    fn fires_in_its_tick_and_never_early() {
        let far = u64::from(u32::MAX) * TICK_MS;
        for due in [0, 1, 15, 16, 17, 1_000, 65_536, 3_600_000, 259_200_000, 1 << 35, far] {
            let mut wheel = Deferred::new();
            wheel.insert(Mono(due), Handle(9));
            if due > TICK_MS {
                assert!(drain(&mut wheel, Mono(due - TICK_MS)).is_empty(), "{due}");
            }
            let late = due.div_ceil(TICK_MS) * TICK_MS;
            assert_eq!(drain(&mut wheel, Mono(late)), [Handle(9)], "{due}");
            assert!(wheel.is_empty() && wheel.next_due().is_none());
        }
    }

    #[test]
    fn a_full_slot_comes_out_in_slices() {
        let mut wheel = Deferred::new();
        for n in 0..10_000 {
            wheel.insert(Mono(3_600_000 + u64::from(n % 100)), Handle(n));
        }
        let now = Mono(3_700_000);
        let (mut calls, mut seen) = (0, 0);
        while wheel.next_due().is_some_and(|due| due <= now) {
            let slice = wheel.expire(now, 100);
            assert!(slice.len() <= 100);
            seen += slice.len();
            calls += 1;
        }
        assert_eq!(seen, 10_000);
        assert!((100..1000).contains(&calls), "{calls}");
        assert!(wheel.pages.iter().all(Option::is_none), "empty pages are freed");
    }

    #[test]
    #[should_panic(expected = "deferred twice")]
    fn one_handle_has_one_timer() {
        let mut wheel = Deferred::new();
        wheel.insert(Mono(1), Handle(1));
        wheel.insert(Mono(2), Handle(1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u64),
        Remove(u32),
        Advance(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let ahead = prop_oneof![0u64..200, 0u64..100_000, 0u64..1 << 33];
        let forward = prop_oneof![0u64..100, 0u64..70_000, 0u64..1 << 30];
        prop_oneof![
            4 => (0u32..300, ahead).prop_map(|(h, d)| Step::Insert(h * 77, d)),
            1 => (0u32..300).prop_map(|h| Step::Remove(h * 77)),
            2 => (forward, 1usize..20).prop_map(|(d, n)| Step::Advance(d, n)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn agrees_with_a_sorted_map(steps in proptest::collection::vec(step(), 1..120)) {
            let (mut wheel, mut model) = (Deferred::new(), BTreeMap::<u32, u64>::new());
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Insert(h, ahead) => {
                        model.entry(h).or_insert_with(|| {
                            wheel.insert(Mono(now + ahead), Handle(h));
                            now + ahead
                        });
                    }
                    Step::Remove(h) => {
                        prop_assert_eq!(wheel.remove(Handle(h)), model.remove(&h).is_some());
                    }
                    // A slice may leave items due behind; they come with later slices.
                    Step::Advance(forward, items) => {
                        now += forward;
                        for h in wheel.expire(Mono(now), items) {
                            prop_assert!(model.remove(&h.0).is_some_and(|due| due <= now));
                        }
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                if let Some(first) = model.values().min() {
                    let bound = wheel.next_due().unwrap().0;
                    prop_assert!(bound < (*first).max(now) + 2 * TICK_MS);
                }
            }
            now += 1 << 34;
            for h in drain(&mut wheel, Mono(now)) {
                prop_assert!(model.remove(&h.0).is_some());
            }
            prop_assert!(model.is_empty() && wheel.is_empty());
        }
    }
}
