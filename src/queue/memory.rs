//! A medium in memory: for tests and simulation.
//!
//! Owns: files with a live image (what a process sees, and what is left after kill -9) and a
//! durable one (what is left after a power cut). Never: real files.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::format::SegmentId;
use super::segment::{Mapping, Medium};

/// One file: both images.
#[derive(Debug)]
pub struct MemFile {
    live: Arc<[AtomicU64]>,
    durable: Mutex<Vec<u64>>,
}

impl MemFile {
    fn zeros(octets: u64) -> Self {
        let words = usize::try_from(octets / 8).unwrap_or(0);
        let live: Arc<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { live, durable: Mutex::new(vec![0; words]) }
    }

    fn sync(&self) {
        let words = self.live.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Changes one octet of the live image: a flipped bit, a torn write.
    pub fn change(&self, offset: u64, change: impl Fn(u8) -> u8) {
        let word = &self.live[usize::try_from(offset / 8).unwrap_or(usize::MAX)];
        let mut octets = u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes();
        let octet = &mut octets[usize::try_from(offset % 8).unwrap_or(0)];
        *octet = change(*octet);
        word.store(u64::from_le_bytes(octets).to_le(), Ordering::Relaxed);
    }

    /// The words that hold `octets` octets from `offset`, and where in the first one they begin.
    fn range(&self, offset: u64, octets: usize) -> Option<(&[AtomicU64], usize)> {
        let first = usize::try_from(offset / 8).ok()?;
        let skip = usize::try_from(offset % 8).ok()?;
        let words = (skip + octets).div_ceil(8);
        Some((self.live.get(first..first.checked_add(words)?)?, skip))
    }
}

/// Segments in memory. Clones share them, as processes share a disk.
#[derive(Clone, Default, Debug)]
pub struct MemMedium {
    files: Arc<Mutex<BTreeMap<SegmentId, Arc<MemFile>>>>,
}

impl MemMedium {
    /// What a power cut leaves: of each file the durable image, and of each 4096-octet page that
    /// differs the live one where `keeps` says that it had been written back.
    #[must_use]
    pub fn after_power_cut(&self, mut keeps: impl FnMut() -> bool) -> Self {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = |file: &Arc<MemFile>, keeps: &mut dyn FnMut() -> bool| {
            let mut words = file.durable.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for (page, live) in words.chunks_mut(512).zip(file.live.chunks(512)) {
                let live: Vec<u64> = live.iter().map(|w| w.load(Ordering::Relaxed)).collect();
                if page != &live[..] && keeps() {
                    page.copy_from_slice(&live);
                }
            }
            let live = words.iter().map(|word| AtomicU64::new(*word)).collect();
            Arc::new(MemFile { live, durable: Mutex::new(words) })
        };
        let files = files.iter().map(|(id, file)| (*id, cut(file, &mut keeps))).collect();
        Self { files: Arc::new(Mutex::new(files)) }
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
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let own = files.keys().filter(|id| id.directory() == directory).copied().collect();
        Ok((own, Vec::new()))
    }

    fn make(&self, segment: SegmentId, octets: u64, header: &[u8]) -> io::Result<Self::File> {
        let file = Arc::new(MemFile::zeros(octets));
        self.write_at(&file, 0, header)?;
        file.sync();
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.insert(segment, file.clone()).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(file)
    }

    fn open(&self, segment: SegmentId) -> io::Result<Self::File> {
        self.file(segment).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn octets(&self, file: &Self::File) -> io::Result<u64> {
        Ok(file.live.len() as u64 * 8)
    }

    fn read_at(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let found = file.range(offset, buffer.len());
        let (words, skip) = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut octets = Vec::with_capacity(words.len() * 8);
        for word in words {
            octets.extend(u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes());
        }
        buffer.copy_from_slice(&octets[skip..skip + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, file: &Self::File, offset: u64, octets: &[u8]) -> io::Result<()> {
        let found = file.range(offset, octets.len());
        let (words, skip) = found.ok_or(io::ErrorKind::StorageFull)?;
        let mut image = Vec::with_capacity(words.len() * 8);
        for word in words {
            image.extend(u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes());
        }
        image[skip..skip + octets.len()].copy_from_slice(octets);
        let (chunks, _) = image.as_chunks::<8>();
        for (word, chunk) in words.iter().zip(chunks) {
            word.store(u64::from_le_bytes(*chunk).to_le(), Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync(&self, file: &Self::File) -> io::Result<()> {
        file.sync();
        Ok(())
    }

    fn map(&self, file: &Self::File, _octets: u64) -> io::Result<Mapping> {
        Ok(Mapping::of_memory(file.live.clone()))
    }
}
