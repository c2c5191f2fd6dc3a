//! The seam to the medium: what recovery and opening do with files, and the mapping of a
//! segment's header and table.
//!
//! Owns: [`Medium`], [`Mapping`] and the only unsafe code of the queue. Never: the format, or a
//! decision.
//!
//! Diagnostics: errors of the medium are handed up unchanged. An access outside of a mapping is
//! our own mistake and panics.
#![allow(unsafe_code, reason = "a shared file mapping cannot be made or viewed without it")]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use super::format::SegmentId;

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
    is_locked: bool,
}

enum Backing {
    File(MmapRaw),
    Memory(Arc<[AtomicU64]>),
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
        Ok(Self { backing: Backing::File(map), is_locked })
    }

    /// A mapping of memory: what a simulated medium hands out.
    #[must_use]
    pub fn of_memory(words: Arc<[AtomicU64]>, is_locked: bool) -> Self {
        Self { backing: Backing::Memory(words), is_locked }
    }

    /// Is it kept in memory whatever happens?
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// The word at octet `offset`, a multiple of 8.
    #[must_use]
    pub fn load(&self, offset: u64) -> u64 {
        u64::from_le(self.words()[word_index(offset)].load(Ordering::Acquire))
    }

    /// Stores one word. Release: whoever sees it (after kill -9 the kernel) sees all earlier
    /// stores too.
    pub fn store(&self, offset: u64, word: u64) {
        self.words()[word_index(offset)].store(word.to_le(), Ordering::Release);
    }

    /// Stores `octets`, whose length is a multiple of 8, word by word in order.
    pub fn store_octets(&self, offset: u64, octets: &[u8]) {
        assert!(octets.len().is_multiple_of(8), "a mapping is stored into in whole words");
        let first = word_index(offset);
        let (chunks, _) = octets.as_chunks::<8>();
        for (word, chunk) in self.words()[first..first + chunks.len()].iter().zip(chunks) {
            word.store(u64::from_le_bytes(*chunk).to_le(), Ordering::Release);
        }
    }

    /// Copies octets out; `out` is a multiple of 8 long.
    pub fn load_octets(&self, offset: u64, out: &mut [u8]) {
        assert!(out.len().is_multiple_of(8), "a mapping is read in whole words");
        let first = word_index(offset);
        let (chunks, _) = out.as_chunks_mut::<8>();
        for (word, chunk) in self.words()[first..first + chunks.len()].iter().zip(chunks) {
            *chunk = u64::from_le(word.load(Ordering::Acquire)).to_le_bytes();
        }
    }

    fn words(&self) -> &[AtomicU64] {
        match &self.backing {
            // SAFETY: the mapping is page-aligned, readable and writable for `len` octets and
            // lives as long as `self`; AtomicU64 has the layout of u64 and allows shared writes;
            // all access in this process goes through this view, hence is atomic.
            Backing::File(map) => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), map.len() / 8)
            },
            Backing::Memory(words) => words,
        }
    }
}

fn word_index(offset: u64) -> usize {
    assert!(offset.is_multiple_of(8), "words are aligned");
    usize::try_from(offset / 8).unwrap_or(usize::MAX)
}
