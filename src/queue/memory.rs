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

    fn octet(&self, offset: u64) -> Option<u8> {
        let word = self.live.get(usize::try_from(offset / 8).ok()?)?;
        let octets = u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes();
        octets.get(usize::try_from(offset % 8).ok()?).copied()
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
        for (at, octet) in (offset..).zip(buffer) {
            *octet = file.octet(at).ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        Ok(())
    }

    fn write_at(&self, file: &Self::File, offset: u64, octets: &[u8]) -> io::Result<()> {
        if offset + octets.len() as u64 > file.live.len() as u64 * 8 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        for (at, octet) in (offset..).zip(octets) {
            file.change(at, |_| *octet);
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
