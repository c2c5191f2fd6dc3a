//! The seam to the medium: what recovery and opening do with files, and the mapping of a
//! segment's header and table.
//!
//! Owns: [`Medium`], [`Mapping`] and the only unsafe code of the queue. Never: the format, or a
//! decision.
//!
//! A mapping is read as memory and stored into through its file. After each sync its pages are
//! write-protected, so that the next store into one takes a fault. On a file system that has shut
//! itself down that fault is SIGBUS, the end of the process, where a write comes back with an
//! error; and where the page cache holds the page in a large folio, ext4 commits its journal with
//! the fdatasync after it, which then takes several times as long as after a write.
//!
//! A write costs a system call: single words that go to one place are held back until another one
//! has its turn or [`Mapping::write_held`] asks for them. What was stored is seen at once.
//!
//! Diagnostics: errors of the medium are handed up unchanged. An access outside of a mapping is
//! our own mistake and panics.
#![allow(unsafe_code, reason = "a shared file mapping cannot be made or viewed without it")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use super::format::SegmentId;

/// What one write of held words reaches over: eight pages. While a batch is written the file is
/// locked to others, and each of them waits its turn: better a few writes than many.
const HELD_WORDS_MAX: usize = 8 * PAGE_WORDS;
const PAGE_WORDS: usize = 512;

/// The disk as opening and recovery use it: blocking, never called by a running shard thread.
pub trait Medium {
    /// An open segment.
    type File;

    /// The segments of a shard directory, and the names of files there that are no segments.
    ///
    /// # Errors
    /// Those of the medium. A directory that does not exist is empty.
    fn list(&self, directory: u8) -> io::Result<(Vec<SegmentId>, Vec<String>)>;

    /// Makes a segment file of `octets` zeros (written, not preallocated) that begins with
    /// `header`, syncs it and its directory, and only then gives it its name. A file that has the
    /// name already is made anew if the header is of a later generation than the first; it must
    /// hold nothing.
    ///
    /// # Errors
    /// Those of the medium; `StorageFull` also when too little would stay free.
    fn make(&self, segment: SegmentId, octets: u64, header: &[u8]) -> io::Result<Self::File>;

    /// Gives a segment that holds nothing another name and the header of a new one. On the way it
    /// is a file that is being made.
    ///
    /// # Errors
    /// Those of the medium; it is then no segment any more, or what it was.
    fn take_over(&self, from: SegmentId, to: SegmentId, header: &[u8]) -> io::Result<Self::File>;

    /// Moves a segment that cannot be used out of the way, keeping it.
    ///
    /// # Errors
    /// Those of the medium; it then stays where it was.
    fn set_aside(&self, segment: SegmentId) -> io::Result<()>;

    /// The segments of a shard directory that were set aside: their numbers are not given again.
    ///
    /// # Errors
    /// Those of the medium.
    fn list_aside(&self, directory: u8) -> io::Result<Vec<SegmentId>>;

    /// Opens a segment for reading and writing.
    ///
    /// # Errors
    /// Those of the medium.
    fn open(&self, segment: SegmentId) -> io::Result<Self::File>;

    /// The size of a segment.
    ///
    /// # Errors
    /// Those of the medium.
    fn octets(&self, file: &Self::File) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Those of the medium; `UnexpectedEof` behind the end.
    fn read_at(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `octets` at `offset`.
    ///
    /// # Errors
    /// Those of the medium.
    fn write_at(&self, file: &Self::File, offset: u64, octets: &[u8]) -> io::Result<()>;

    /// Makes all that was written or stored durable.
    ///
    /// # Errors
    /// Those of the medium: after one, the file must never be synced again.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Maps the first `octets` octets.
    ///
    /// # Errors
    /// Those of the medium.
    fn map(&self, file: &Self::File, octets: u64) -> io::Result<Mapping>;
}

/// The mapped header and table of a segment, seen as little-endian words. All access is atomic,
/// so that nothing the kernel or another mapping does is undefined behaviour here.
pub struct Mapping {
    backing: Backing,
    held: Held,
    is_locked: bool,
    /// Why its file takes no more stores.
    failure: Option<io::Error>,
}

enum Backing {
    File { map: MmapRaw, file: File },
    Memory(Arc<[AtomicU64]>),
}

/// Stored words that the file does not have yet, all of one window of [`HELD_WORDS_MAX`], and what
/// stands between them.
struct Held {
    /// Which words of the mapping.
    range: Range<usize>,
    /// As they stand in the file, by their place in the window; nothing before the first one.
    words: Vec<[u8; 8]>,
}

impl Held {
    const fn new() -> Self {
        Self { range: 0..0, words: Vec::new() }
    }

    fn word(&self, index: usize) -> Option<u64> {
        let is_held = self.range.contains(&index);
        is_held.then(|| u64::from_le_bytes(self.words[index % HELD_WORDS_MAX]))
    }

    fn is_in_window_of(&self, index: usize) -> bool {
        self.range.is_empty() || self.range.start / HELD_WORDS_MAX == index / HELD_WORDS_MAX
    }

    /// Their octets in the file.
    fn octets(&self, range: &Range<usize>) -> &[u8] {
        self.words[range.start % HELD_WORDS_MAX..][..range.len()].as_flattened()
    }
}

impl Mapping {
    /// Maps the first `octets` octets of a file that is at least that long.
    ///
    /// # Errors
    /// Those of mmap(2); `UnexpectedEof` when the file is shorter.
    pub fn of_file(file: &File, octets: u64) -> io::Result<Self> {
        if file.metadata()?.len() < octets {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let octets = usize::try_from(octets).map_err(|_| io::ErrorKind::InvalidInput)?;
        let map = memmap2::MmapOptions::new().len(octets).map_raw(file)?;
        // Locked, a table is never read from the disk under a running shard. Without the right
        // to lock it is read in once, here, and may be dropped when memory is short.
        let is_locked = map.lock().is_ok();
        if !is_locked {
            // A kernel before 5.14 refuses: pages then come in when they are first used.
            drop(map.advise(memmap2::Advice::PopulateRead));
        }
        Ok(Self {
            backing: Backing::File { map, file: file.try_clone()? },
            held: Held::new(),
            is_locked,
            failure: None,
        })
    }

    /// A mapping of memory: what a simulated medium hands out.
    #[must_use]
    pub fn of_memory(words: Arc<[AtomicU64]>, is_locked: bool) -> Self {
        Self { backing: Backing::Memory(words), held: Held::new(), is_locked, failure: None }
    }

    /// Is it kept in memory whatever happens?
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// The word at octet `offset`, a multiple of 8.
    #[must_use]
    pub fn load(&self, offset: u64) -> u64 {
        self.word(word_index(offset))
    }

    /// Stores one word. It may be held back: see [`Mapping::write_held`]. What is stored later
    /// comes into the file with it or after it, never before.
    pub fn store(&mut self, offset: u64, word: u64) {
        let index = word_index(offset);
        assert!(index < self.words().len(), "a store outside of its mapping");
        if !self.held.is_in_window_of(index) {
            self.write_held();
        }
        let Self { held, backing, .. } = self;
        if held.words.is_empty() {
            held.words = vec![[0; 8]; HELD_WORDS_MAX];
        }
        let range = held.range.clone();
        let range = if range.is_empty() { index..index } else { range };
        let all = range.start.min(index)..range.end.max(index + 1);
        for between in [all.start..range.start, range.end..all.end] {
            let first = between.start % HELD_WORDS_MAX;
            let words = backing.words()[between].iter();
            for (held, word) in held.words[first..].iter_mut().zip(words) {
                *held = u64::from_le(word.load(Ordering::Acquire)).to_le_bytes();
            }
        }
        held.words[index % HELD_WORDS_MAX] = word.to_le_bytes();
        held.range = all;
    }

    /// Writes the words that are held back: whoever sees the file (after kill -9 the kernel) sees
    /// all that was stored.
    pub fn write_held(&mut self) {
        let range = std::mem::take(&mut self.held.range);
        if range.is_empty() {
            return;
        }
        let held = std::mem::replace(&mut self.held, Held::new());
        self.write(range.start as u64 * 8, held.octets(&range));
        self.held.words = held.words;
    }

    /// Stores `octets`, whose length is a multiple of 8, in order.
    pub fn store_octets(&mut self, offset: u64, octets: &[u8]) {
        self.write_held();
        self.write(offset, octets);
    }

    /// What the file refuses is kept in memory from then on, so that this process still sees what
    /// it has stored; [`Mapping::failure`] tells of it.
    fn write(&mut self, offset: u64, octets: &[u8]) {
        let words = words_of(offset, octets.len());
        let written = match &self.backing {
            Backing::File { file, .. } => {
                assert!(words.end <= self.words().len(), "a store outside of its mapping");
                file.write_all_at(octets, offset)
            }
            Backing::Memory(_) => Ok(()),
        };
        if let Err(error) = written {
            self.leave_file(error);
        }
        if let Backing::Memory(memory) = &self.backing {
            let (chunks, _) = octets.as_chunks::<8>();
            for (word, chunk) in memory[words].iter().zip(chunks) {
                word.store(u64::from_le_bytes(*chunk).to_le(), Ordering::Release);
            }
        }
    }

    /// Goes on in memory, with what the file holds now: it has refused a store.
    pub(super) fn leave_file(&mut self, error: io::Error) {
        let copied = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Acquire));
        self.backing = Backing::Memory(self.words().iter().map(copied).collect());
        self.failure = Some(error);
    }

    /// Why the file takes no more stores: what was stored since is not in it.
    #[must_use]
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Copies octets out; `out` is a multiple of 8 long.
    pub fn load_octets(&self, offset: u64, out: &mut [u8]) {
        let words = words_of(offset, out.len());
        let (chunks, _) = out.as_chunks_mut::<8>();
        let is_held = self.held.range.start < words.end && words.start < self.held.range.end;
        for ((index, word), chunk) in words.clone().zip(&self.words()[words]).zip(chunks) {
            let held = if is_held { self.held.word(index) } else { None };
            let word = held.unwrap_or_else(|| u64::from_le(word.load(Ordering::Acquire)));
            *chunk = word.to_le_bytes();
        }
    }

    fn word(&self, index: usize) -> u64 {
        let held = self.held.word(index);
        held.unwrap_or_else(|| u64::from_le(self.words()[index].load(Ordering::Acquire)))
    }

    fn words(&self) -> &[AtomicU64] {
        self.backing.words()
    }
}

impl Backing {
    fn words(&self) -> &[AtomicU64] {
        match self {
            // SAFETY: the mapping is page-aligned, readable and writable for `len` octets and
            // lives as long as `self`; AtomicU64 has the layout of u64 and allows shared writes;
            // this process reads through this view only, hence atomically, and writes by the
            // kernel, as if another process did.
            Self::File { map, .. } => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), map.len() / 8)
            },
            Self::Memory(words) => words,
        }
    }
}

/// The words that `octets` octets from `offset` on are.
fn words_of(offset: u64, octets: usize) -> std::ops::Range<usize> {
    assert!(octets.is_multiple_of(8), "a mapping is read and stored into in whole words");
    let first = word_index(offset);
    first..first + octets / 8
}

fn word_index(offset: u64) -> usize {
    assert!(offset.is_multiple_of(8), "words are aligned");
    usize::try_from(offset / 8).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    #[test]
    fn what_is_stored_is_in_the_file_and_seen_at_once() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut mapping = Mapping::of_file(&file, 4096).unwrap();
        mapping.store(8, 7);
        assert_eq!(mapping.load(8), 7, "it is seen before the file has it");
        mapping.store_octets(4080, &[1; 16]);
        let mut octets = [0; 4096];
        file.read_exact_at(&mut octets, 0).unwrap();
        assert_eq!((octets[8], octets[4080], octets[4095], mapping.load(8)), (7, 1, 1, 7));
        assert!(mapping.failure().is_none());
    }

    #[test]
    #[should_panic(expected = "outside of its mapping")]
    fn a_store_behind_the_mapping_is_our_mistake() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        Mapping::of_file(&file, 4096).unwrap().store(4096, 7);
    }

    #[test]
    fn words_of_a_window_are_written_together_and_before_those_of_another() {
        const WINDOW: u64 = 8 * HELD_WORDS_MAX as u64;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 3 * 8 * HELD_WORDS_MAX], 0).unwrap();
        let mut mapping = Mapping::of_file(&file, 3 * WINDOW).unwrap();
        let in_file = |offset| {
            let mut octets = [0; 8];
            file.read_exact_at(&mut octets, offset).unwrap();
            u64::from_le_bytes(octets)
        };
        let nines = u64::from_le_bytes([9; 8]);
        let last = 2 * WINDOW - 8;
        for (offset, word) in [(WINDOW + 16, 1), (last, 2), (WINDOW, 3), (WINDOW + 16, 4)] {
            mapping.store(offset, word);
            assert_eq!((mapping.load(offset), in_file(offset)), (word, nines));
        }
        let mut octets = [0; 32];
        mapping.load_octets(WINDOW - 8, &mut octets);
        assert_eq!(octets.as_chunks().0[3], 4u64.to_le_bytes());
        mapping.store(0, 5);
        let words = [WINDOW - 8, WINDOW, WINDOW + 8, WINDOW + 16, WINDOW + 24, last - 8, last];
        assert_eq!(words.map(in_file), [nines, 3, nines, 4, nines, nines, 2]);
        assert_eq!(in_file(2 * WINDOW), nines);
        assert_eq!((mapping.load(0), in_file(0)), (5, nines));
        mapping.write_held();
        assert_eq!((mapping.load(0), in_file(0), in_file(8)), (5, 5, nines));
    }

    /// A file that takes no writes any more, as on a file system that has shut itself down.
    #[test]
    fn what_the_file_refuses_is_kept_in_memory() {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let file = File::from(memfd_create("segment", flags).unwrap());
        file.set_len(4096).unwrap();
        let mut mapping = Mapping::of_file(&file, 4096).unwrap();
        mapping.store(0, 1);
        mapping.write_held();
        fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).unwrap();
        mapping.store(8, 2);
        mapping.write_held();
        let failure = mapping.failure().map(io::Error::kind);
        assert_eq!(failure, Some(io::ErrorKind::PermissionDenied));
        assert_eq!((mapping.load(0), mapping.load(8)), (1, 2));
        let mut octets = [0; 16];
        file.read_exact_at(&mut octets, 0).unwrap();
        assert_eq!((octets[0], octets[8]), (1, 0));
    }
}
