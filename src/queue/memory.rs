//! A medium in memory: for tests and simulation.
//!
//! Owns: files with a live image (what a process sees, and what is left after kill -9) and a
//! durable one (what is left after a power cut). Never: real files, or a clock: a call that
//! stalls says how long it took.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::format::{HEADERS_END, Header, SegmentId};
use super::segment::{Mapping, Medium};

/// Words of a sector: what is lost, kept or torn at a power cut.
const SECTOR_WORDS: usize = 64;

/// One file: both images.
#[derive(Debug)]
pub struct MemFile {
    live: Arc<[AtomicU64]>,
    durable: Mutex<Durable>,
}

#[derive(Debug)]
struct Durable {
    words: Vec<u64>,
    /// Sectors written since the last sync; those that are mapped may have changed too.
    written: BTreeSet<usize>,
    mapped_words: usize,
}

impl Durable {
    fn unsynced(&self) -> impl Iterator<Item = usize> {
        let mapped = self.mapped_words.div_ceil(SECTOR_WORDS);
        (0..mapped).chain(self.written.range(mapped..).copied())
    }
}

impl MemFile {
    fn zeros(octets: u64) -> Self {
        let words = usize::try_from(octets / 8).unwrap_or(0);
        let live: Arc<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let durable = Durable { words: vec![0; words], written: BTreeSet::new(), mapped_words: 0 };
        Self { live, durable: Mutex::new(durable) }
    }

    fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a power cut would leave.
    #[cfg(test)]
    pub(super) fn durable_words(&self) -> Vec<u64> {
        self.durable().words.clone()
    }

    fn sync(&self) {
        let mut durable = self.durable();
        let sectors: Vec<usize> = durable.unsynced().collect();
        for sector in sectors {
            self.keep(&mut durable.words, sector);
        }
        durable.written.clear();
    }

    /// A sector of the live image reaches the disk.
    fn keep(&self, words: &mut [u64], sector: usize) {
        self.keep_words(words, sector, SECTOR_WORDS);
    }

    /// The first `count` words of it do.
    fn keep_words(&self, words: &mut [u64], sector: usize, count: usize) {
        let start = sector * SECTOR_WORDS;
        let end = (start + count.min(SECTOR_WORDS)).min(words.len());
        for (kept, live) in words[start..end].iter_mut().zip(&self.live[start..end]) {
            *kept = live.load(Ordering::Relaxed);
        }
    }

    fn note_written(&self, offset: u64, octets: usize) {
        let first = usize::try_from(offset / 8).unwrap_or(usize::MAX) / SECTOR_WORDS;
        let end = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(octets);
        self.durable().written.extend(first..end.div_ceil(8 * SECTOR_WORDS));
    }

    /// Changes one octet of the live image: a flipped bit, a torn write.
    pub fn change(&self, offset: u64, change: impl Fn(u8) -> u8) {
        let word = &self.live[usize::try_from(offset / 8).unwrap_or(usize::MAX)];
        let mut octets = u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes();
        let octet = &mut octets[usize::try_from(offset % 8).unwrap_or(0)];
        *octet = change(*octet);
        word.store(u64::from_le_bytes(octets).to_le(), Ordering::Relaxed);
        self.note_written(offset, 1);
    }

    /// The words that hold `octets` octets from `offset`, and where in the first one they begin.
    fn range(&self, offset: u64, octets: usize) -> Option<(&[AtomicU64], usize)> {
        let first = usize::try_from(offset / 8).ok()?;
        let skip = usize::try_from(offset % 8).ok()?;
        let words = (skip + octets).div_ceil(8);
        Some((self.live.get(first..first.checked_add(words)?)?, skip))
    }
}

/// What a power cut does to a sector that was written or stored into since the last sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sector {
    /// It never reached the disk.
    Lost,
    /// It did.
    Kept,
    /// This many of its 64 words did. A word is never torn.
    Torn(usize),
}

impl From<bool> for Sector {
    /// Kept, or lost.
    fn from(kept: bool) -> Self {
        if kept { Self::Kept } else { Self::Lost }
    }
}

/// Segments in memory. Clones share them, as processes share a disk.
#[derive(Clone, Default, Debug)]
pub struct MemMedium {
    files: Arc<Mutex<BTreeMap<SegmentId, Arc<MemFile>>>>,
    aside: Arc<Mutex<BTreeSet<SegmentId>>>,
    trouble: Arc<Mutex<Trouble>>,
    refuses_locks: Arc<AtomicBool>,
}

/// Which calls fail.
#[derive(Default, Debug)]
struct Trouble {
    calls: u64,
    /// The call that fails, from 0.
    at: Option<u64>,
    /// And all calls after it.
    for_ever: bool,
    /// Every one in this many takes that long, in milliseconds.
    stall: Option<(u64, u64)>,
    /// What the calls have taken that nobody has asked for yet.
    taken_ms: u64,
}

impl MemMedium {
    /// The `nth` call from now on fails (0: the next one), and with `for_ever` all after it;
    /// `None`: none does. Gives how many calls there were since the last time.
    pub fn fail(&self, nth: Option<u64>, for_ever: bool) -> u64 {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        (trouble.at, trouble.for_ever) = (nth, for_ever);
        std::mem::take(&mut trouble.calls)
    }

    /// Every call whose number is a multiple of `one_in` takes `ms` from now on; `None`: none.
    pub fn stall(&self, stall: Option<(u64, u64)>) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).stall = stall;
    }

    /// How long the calls since the last time this was asked took, in milliseconds.
    #[must_use]
    pub fn taken_ms(&self) -> u64 {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut trouble.taken_ms)
    }

    fn call(&self) -> io::Result<()> {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let call = trouble.calls;
        trouble.calls += 1;
        if let Some((one_in, ms)) = trouble.stall
            && call.is_multiple_of(one_in)
        {
            trouble.taken_ms += ms;
        }
        let fails = trouble.at.is_some_and(|at| call == at || (trouble.for_ever && call > at));
        if fails { Err(io::Error::other("the medium fails")) } else { Ok(()) }
    }

    /// What a power cut leaves: of each file the durable image, and of each 512-octet sector
    /// written or stored into since what `fate` says. It is asked for sectors that differ.
    #[must_use]
    pub fn after_power_cut<S: Into<Sector>>(&self, mut fate: impl FnMut() -> S) -> Self {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cut = |file: &Arc<MemFile>| {
            let durable = file.durable();
            let mut words = durable.words.clone();
            for sector in durable.unsynced() {
                let start = sector * SECTOR_WORDS;
                let kept = words[start..].iter().zip(&file.live[start..]).take(SECTOR_WORDS);
                let differs = kept.into_iter().any(|(a, b)| *a != b.load(Ordering::Relaxed));
                if differs {
                    match fate().into() {
                        Sector::Lost => {}
                        Sector::Kept => file.keep(&mut words, sector),
                        Sector::Torn(count) => file.keep_words(&mut words, sector, count),
                    }
                }
            }
            let live = words.iter().map(|word| AtomicU64::new(*word)).collect();
            let durable = Durable { words, written: BTreeSet::new(), mapped_words: 0 };
            Arc::new(MemFile { live, durable: Mutex::new(durable) })
        };
        let files = files.iter().map(|(id, file)| (*id, cut(file))).collect();
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self {
            files: Arc::new(Mutex::new(files)),
            aside: Arc::new(Mutex::new(aside)),
            trouble: Arc::default(),
            refuses_locks: self.refuses_locks.clone(),
        }
    }

    /// Mappings from now on are such as the system could not lock in memory.
    pub fn refuse_locks(&self) {
        // Relaxed: nothing else is published with it.
        self.refuses_locks.store(true, Ordering::Relaxed);
    }

    /// Takes a segment away, as an operator's mistake would.
    pub fn remove(&self, segment: SegmentId) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
    }

    /// The open file of a segment.
    #[must_use]
    pub fn file(&self, segment: SegmentId) -> Option<Arc<MemFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&segment).cloned()
    }
}

impl Medium for MemMedium {
    type File = Arc<MemFile>;

    fn list(&self, directory: u8) -> io::Result<(Vec<SegmentId>, Vec<String>)> {
        self.call()?;
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let own = files.keys().filter(|id| id.directory() == directory).copied().collect();
        Ok((own, Vec::new()))
    }

    fn make(&self, segment: SegmentId, octets: u64, header: &[u8]) -> io::Result<Self::File> {
        self.call()?;
        let is_first = Header::decode(header).is_ok_and(|header| header.generation == 1);
        if is_first && self.file(segment).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(MemFile::zeros(octets));
        self.write_at(&file, 0, header)?;
        file.sync();
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(segment, file.clone());
        Ok(file)
    }

    fn take_over(&self, from: SegmentId, to: SegmentId, header: &[u8]) -> io::Result<Self::File> {
        self.call()?;
        let file = self.file(from).ok_or(io::ErrorKind::NotFound)?;
        self.remove(from);
        self.write_at(&file, 0, &vec![0; usize::try_from(HEADERS_END).unwrap_or(0)])?;
        self.write_at(&file, 0, header)?;
        self.sync(&file)?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(to, file.clone());
        Ok(file)
    }

    fn set_aside(&self, segment: SegmentId) -> io::Result<()> {
        self.call()?;
        self.remove(segment);
        self.aside.lock().unwrap_or_else(PoisonError::into_inner).insert(segment);
        Ok(())
    }

    fn list_aside(&self, directory: u8) -> io::Result<Vec<SegmentId>> {
        self.call()?;
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(aside.iter().filter(|id| id.directory() == directory).copied().collect())
    }

    fn open(&self, segment: SegmentId) -> io::Result<Self::File> {
        self.call()?;
        self.file(segment).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn octets(&self, file: &Self::File) -> io::Result<u64> {
        Ok(file.live.len() as u64 * 8)
    }

    fn read_at(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.call()?;
        let found = file.range(offset, buffer.len());
        let (words, skip) = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(&octets_of(words)[skip..skip + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, file: &Self::File, offset: u64, octets: &[u8]) -> io::Result<()> {
        self.call()?;
        let found = file.range(offset, octets.len());
        let (words, skip) = found.ok_or(io::ErrorKind::StorageFull)?;
        // Only the words at the ends keep some of their octets.
        let mut image = vec![0; words.len() * 8];
        for at in [0, words.len().saturating_sub(1)].into_iter().filter(|at| *at < words.len()) {
            image[at * 8..at * 8 + 8].copy_from_slice(&octets_of(&words[at..=at]));
        }
        image[skip..skip + octets.len()].copy_from_slice(octets);
        let (chunks, _) = image.as_chunks::<8>();
        for (word, chunk) in words.iter().zip(chunks) {
            word.store(u64::from_le_bytes(*chunk).to_le(), Ordering::Relaxed);
        }
        file.note_written(offset, octets.len());
        Ok(())
    }

    fn sync(&self, file: &Self::File) -> io::Result<()> {
        self.call()?;
        file.sync();
        Ok(())
    }

    fn map(&self, file: &Self::File, octets: u64) -> io::Result<Mapping> {
        self.call()?;
        file.durable().mapped_words = usize::try_from(octets / 8).unwrap_or(usize::MAX);
        let is_locked = !self.refuses_locks.load(Ordering::Relaxed);
        Ok(Mapping::of_memory(file.live.clone(), is_locked))
    }
}

/// The octets of words of a live image.
fn octets_of(words: &[AtomicU64]) -> Vec<u8> {
    let mut octets = vec![0; words.len() * 8];
    let (chunks, _) = octets.as_chunks_mut::<8>();
    for (chunk, word) in chunks.iter_mut().zip(words) {
        *chunk = u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes();
    }
    octets
}
