//! The octets of a message, left where they were received.
//!
//! Owns: [`ReadBuffer`], the buffer of one read, shared by the messages that lie in it; [`Octets`],
//! a message as runs of octets, most of them in such buffers; [`Pins`], the account of what that
//! keeps in memory, and the buffers that messages have let go. Never: which octets belong to a
//! message.
//!
//! Limits: a message holds on to the whole buffers that it lies in, sixteen times its own size at
//! worst. [`Pins`] tells how much that is in all; who receives stops sharing above a bound of its
//! own. Of buffers that were let go [`Pins::keep_at_most`] says how many octets are kept.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use smallvec::SmallVec;

/// No more octets of buffers that were let go are worth keeping: a processor's cache holds no more.
pub const SPARE_OCTETS_MAX: usize = 4 << 20;

/// The buffers that messages hold on to, and those that they have let go.
#[derive(Debug, Default)]
pub struct Pins {
    /// Relaxed: a sum that nothing else is ordered by.
    octets: AtomicU64,
    spare: Mutex<Spare>,
}

/// Buffers without a reader. The one that was let go last is used first, for its octets are still
/// in the processor's cache; an allocator hands blocks of this size out in turn, each of them
/// colder than the one before, and to receive into cold memory is what receiving costs.
#[derive(Debug)]
struct Spare {
    /// The one that was let go last is the last.
    buffers: VecDeque<Vec<u8>>,
    octets: usize,
    octets_max: usize,
}

impl Default for Spare {
    fn default() -> Self {
        Self { buffers: VecDeque::new(), octets: 0, octets_max: SPARE_OCTETS_MAX }
    }
}

impl Spare {
    fn make_room(&mut self, octets: usize) {
        while self.octets + octets > self.octets_max
            && let Some(oldest) = self.buffers.pop_front()
        {
            self.octets -= oldest.capacity();
        }
    }
}

impl Pins {
    /// Octets of the buffers that messages hold on to.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.octets.load(Ordering::Relaxed)
    }

    /// Keeps at most `octets` of buffers that are let go, and never more than
    /// [`SPARE_OCTETS_MAX`].
    pub fn keep_at_most(&self, octets: usize) {
        let mut spare = self.spares();
        spare.octets_max = octets.min(SPARE_OCTETS_MAX);
        spare.make_room(0);
    }

    fn let_go(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut spare = self.spares();
        // The oldest make room: no size of buffer keeps the others out.
        spare.make_room(buffer.capacity());
        if spare.octets + buffer.capacity() <= spare.octets_max {
            spare.octets += buffer.capacity();
            spare.buffers.push_back(buffer);
        }
    }

    fn spare(&self, capacity: usize) -> Option<Vec<u8>> {
        let mut spare = self.spares();
        let fits = |buffer: &Vec<u8>| buffer.capacity() == capacity;
        let at = spare.buffers.iter().rposition(fits)?;
        spare.octets -= capacity;
        spare.buffers.remove(at)
    }

    fn spares(&self) -> MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one read brought, and room for the next one.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    octets: Vec<u8>,
    pinned: OnceLock<Arc<Pins>>,
}

impl ReadBuffer {
    /// What was read.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Room of the buffer, in octets.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.octets.capacity()
    }

    /// Takes in what was read.
    pub fn put(&mut self, octets: Vec<u8>) {
        self.unpin();
        self.octets = octets;
    }

    /// Gives the buffer away, with what was read in it.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        self.unpin();
        std::mem::take(&mut self.octets)
    }

    /// The part of the buffer that `octets` are, to be held on to; `None` when they are none.
    /// From the first run on the buffer counts in `pins`, until it is used again or dropped.
    #[must_use]
    pub fn run(self: &Arc<Self>, octets: &[u8], pins: &Arc<Pins>) -> Option<Run> {
        let start = octets.as_ptr().addr().checked_sub(self.octets.as_ptr().addr())?;
        let range = start..start.checked_add(octets.len())?;
        self.octets.get(range.clone())?;
        self.pinned.get_or_init(|| {
            pins.octets.fetch_add(self.octets.capacity() as u64, Ordering::Relaxed);
            pins.clone()
        });
        Some(Run { buffer: self.clone(), range })
    }

    /// An empty buffer beside this one that messages hold on to.
    #[must_use]
    pub fn another(&self, capacity: usize) -> Vec<u8> {
        let spare = self.pinned.get().and_then(|pins| pins.spare(capacity));
        spare.unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    fn unpin(&mut self) -> Option<Arc<Pins>> {
        let pins = self.pinned.take()?;
        pins.octets.fetch_sub(self.octets.capacity() as u64, Ordering::Relaxed);
        Some(pins)
    }
}

impl From<Vec<u8>> for ReadBuffer {
    fn from(octets: Vec<u8>) -> Self {
        Self { octets, pinned: OnceLock::new() }
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if let Some(pins) = self.unpin() {
            pins.let_go(std::mem::take(&mut self.octets));
        }
    }
}

/// A part of a buffer.
#[derive(Clone, Debug)]
pub struct Run {
    buffer: Arc<ReadBuffer>,
    range: Range<usize>,
}

impl Run {
    fn octets(&self) -> &[u8] {
        &self.buffer.octets[self.range.clone()]
    }
}

/// The octets of a message: some of its own, then runs that lie where they were received.
#[derive(Clone, Debug, Default)]
pub struct Octets {
    own: Vec<u8>,
    /// One nearly always.
    runs: SmallVec<[Run; 1]>,
    run_octets: usize,
}

impl Octets {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.own.len() + self.run_octets
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets of memory that are held for these alone, or that they take of a buffer.
    #[must_use]
    pub fn held(&self) -> usize {
        self.own.capacity() + self.run_octets
    }

    /// Octets that can be copied in without more memory.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.own.capacity() - self.own.len()
    }

    /// Makes room for `additional` more octets that are copied in.
    pub fn reserve_exact(&mut self, additional: usize) {
        self.bring_together();
        self.own.reserve_exact(additional);
    }

    /// Appends a copy of `octets`. All that came before is brought together first.
    pub fn push(&mut self, octets: &[u8]) {
        self.bring_together();
        self.own.extend_from_slice(octets);
    }

    /// Appends a run as it lies.
    pub fn push_run(&mut self, run: Run) {
        self.run_octets += run.range.len();
        self.runs.push(run);
    }

    /// Copies all runs into the message's own octets.
    pub fn bring_together(&mut self) {
        self.own.reserve(self.run_octets);
        self.runs.drain(..).for_each(|run| self.own.extend_from_slice(run.octets()));
        self.run_octets = 0;
    }

    /// The parts that lie together, in their order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.own[..]).chain(self.runs.iter().map(Run::octets))
    }

    /// `range` cut into parts for [`Octets::slice`].
    pub fn cut(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut end = 0;
        self.slices().filter_map(move |slice| {
            let start = end;
            end += slice.len();
            let part = range.start.max(start)..range.end.min(end);
            (!part.is_empty()).then_some(part)
        })
    }

    /// The octets of `range`, which lie together.
    ///
    /// # Panics
    /// When they do not: see [`Octets::cut`].
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        let together = self.together(range.start).get(..range.len());
        together.unwrap_or_else(|| panic!("no octets lie together at {range:?}"))
    }

    /// The octets from `from` on, as far as they lie together.
    #[must_use]
    pub fn together(&self, from: usize) -> &[u8] {
        if from < self.own.len() {
            return &self.own[from..];
        }
        let mut from = from - self.own.len();
        for run in &self.runs {
            if from < run.range.len() {
                return &run.octets()[from..];
            }
            from -= run.range.len();
        }
        &[]
    }

    /// All octets behind the first `from`, copied only if they do not lie together.
    #[must_use]
    pub fn behind(&self, from: usize) -> Cow<'_, [u8]> {
        let together = self.together(from);
        let end = from + together.len();
        if end >= self.len() {
            return Cow::Borrowed(together);
        }
        let rest = self.cut(end..self.len()).flat_map(|part| self.slice(part));
        Cow::Owned(together.iter().chain(rest).copied().collect())
    }

    /// Do they end with `end`?
    #[must_use]
    pub fn ends_with(&self, end: &[u8]) -> bool {
        self.len().checked_sub(end.len()).is_some_and(|from| *self.behind(from) == *end)
    }

    /// As one vector.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        self.bring_together();
        self.own
    }
}

impl From<Vec<u8>> for Octets {
    fn from(own: Vec<u8>) -> Self {
        Self { own, ..Self::default() }
    }
}

impl PartialEq for Octets {
    fn eq(&self, other: &Self) -> bool {
        self.behind(0) == other.behind(0)
    }
}

impl Eq for Octets {}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(octets: &[u8]) -> Arc<ReadBuffer> {
        Arc::new(ReadBuffer::from(octets.to_vec()))
    }

    #[test]
    fn runs_read_as_one_message_however_it_is_cut() {
        let (first, second) = (received(b"xx2345yy"), received(b"6789"));
        let pins = Arc::default();
        let mut octets = Octets::from(b"01".to_vec());
        octets.push_run(first.run(&first.octets()[2..6], &pins).unwrap());
        octets.push_run(second.run(second.octets(), &pins).unwrap());
        let whole = b"0123456789";
        for from in 0..=whole.len() {
            assert_eq!(*octets.behind(from), whole[from..]);
            assert!(octets.ends_with(&whole[from..]) && !octets.ends_with(b"90"));
            for to in from..=whole.len() {
                let parts: Vec<_> = octets.cut(from..to).collect();
                assert!(parts.iter().all(|part| !part.is_empty()));
                let read: Vec<u8> =
                    parts.into_iter().flat_map(|p| octets.slice(p).to_vec()).collect();
                assert_eq!(read, whole[from..to]);
            }
        }
        assert_eq!(octets, Octets::from(whole.to_vec()));
        octets.push(b"a");
        assert_eq!((octets.runs.len(), octets.into_vec()), (0, b"0123456789a".to_vec()));
    }

    #[test]
    #[should_panic(expected = "lie together")]
    fn what_does_not_lie_together_is_no_slice() {
        let buffer = received(b"23");
        let mut octets = Octets::from(b"01".to_vec());
        octets.push_run(buffer.run(buffer.octets(), &Arc::default()).unwrap());
        assert!(octets.slice(1..3).is_empty());
    }

    #[test]
    fn only_octets_of_the_buffer_are_a_run_of_it() {
        let (buffer, pins) = (received(b"0123"), Arc::default());
        let other = b"0123".to_vec();
        assert!(buffer.run(&other, &pins).is_none());
        assert!(buffer.run(b"", &pins).is_none_or(|run| run.octets().is_empty()));
        assert_eq!(buffer.run(&buffer.octets()[1..3], &pins).unwrap().octets(), b"12");
    }

    #[test]
    fn a_buffer_counts_once_until_it_is_used_again_or_dropped() {
        let pins = Arc::<Pins>::default();
        let mut buffer = received(b"0123");
        let room = buffer.octets.capacity() as u64;
        let run = buffer.run(&buffer.octets()[..2], &pins).unwrap();
        let other = buffer.run(&buffer.octets()[2..], &pins).unwrap();
        assert_eq!(pins.octets(), room);
        drop((run, other));
        assert_eq!(Arc::get_mut(&mut buffer).unwrap().take(), b"0123");
        assert_eq!(pins.octets(), 0);
        Arc::get_mut(&mut buffer).unwrap().put(b"4567".to_vec());
        let run = buffer.run(buffer.octets(), &pins).unwrap();
        drop(buffer);
        assert_eq!((pins.octets(), run.octets()), (4, &b"4567"[..]));
        drop(run);
        assert_eq!(pins.octets(), 0);
    }

    #[test]
    fn what_was_let_go_last_is_used_first_and_not_too_much_is_kept() {
        let pins = Arc::<Pins>::default();
        let pinned = |octets: usize| {
            let buffer = Arc::new(ReadBuffer::from(vec![0; octets]));
            buffer.run(&buffer.octets()[..1], &pins).unwrap();
            buffer
        };
        let quarter = SPARE_OCTETS_MAX / 4;
        let (first, last, large, reader) =
            (pinned(quarter), pinned(quarter), pinned(2 * quarter), pinned(1));
        let at = [last.octets.as_ptr(), first.octets.as_ptr()];
        let oldest = pinned(2 * quarter);
        drop((oldest, first, last));
        assert_eq!(pins.spares().octets, SPARE_OCTETS_MAX);
        // The oldest makes room.
        drop(large);
        let kept: Vec<_> = pins.spares().buffers.iter().map(Vec::capacity).collect();
        assert_eq!(kept, [quarter, quarter, 2 * quarter]);
        let taken = [reader.another(quarter), reader.another(quarter)];
        assert_eq!(taken.each_ref().map(|buffer| buffer.as_ptr()), at);
        assert!(taken.iter().all(|buffer| buffer.is_empty() && buffer.capacity() == quarter));
        assert_eq!(reader.another(quarter).capacity(), quarter);
        assert_eq!(pins.spares().octets, 2 * quarter);
        pins.keep_at_most(quarter);
        assert_eq!(pins.spares().octets, 0);
        drop((pinned(quarter + 1), pinned(quarter)));
        assert_eq!(pins.spares().octets, quarter);
    }
}
