//! The medium of production: segment files in shard directories of the spool.
//!
//! Owns: file names and the order of making a file. Never: what stands in the files.
//!
//! Diagnostics: errors of the system, unchanged.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::direct::{fill_to_block, open_direct};
use super::format::{Geometry, HEADERS_END, Header, SegmentId};
use super::segment::{Mapping, Medium};
use crate::limits;

/// A write of this size decides how large the page cache's folios are, which later stores into
/// a table pay for: in one of 1 MiB, a store of 8 octets costs three times as much.
const ZEROS_OCTETS: usize = 64 << 10;

/// Past the cache as much as this is written at a time.
const DIRECT_ZEROS_OCTETS: usize = 1 << 20;

/// The folder of segments that were set aside.
const ASIDE: &str = "damaged";

/// Segment files below the spool directory.
#[derive(Clone, Debug)]
pub struct FileMedium {
    spool: PathBuf,
    free_octets_min: u64,
}

impl FileMedium {
    /// Files below `spool`; making one leaves `free_octets_min` octets of the file system free.
    #[must_use]
    pub fn new(spool: &Path, free_octets_min: u64) -> Self {
        Self { spool: spool.to_owned(), free_octets_min }
    }

    /// The directory of a shard.
    #[must_use]
    pub fn directory(spool: &Path, directory: u8) -> PathBuf {
        spool.join(format!("shard-{directory:02}"))
    }

    /// The file of a segment.
    #[must_use]
    pub fn path(&self, segment: SegmentId) -> PathBuf {
        Self::directory(&self.spool, segment.directory())
            .join(format!("{:06x}.segment", segment.number()))
    }
}

impl FileMedium {
    /// Makes a segment and maps the first `map_octets` octets of it.
    ///
    /// # Errors
    /// Those of the medium; of a new name no file is left then, for the name is given again.
    pub fn make_mapped(
        &self,
        segment: SegmentId,
        octets: u64,
        map_octets: u64,
        header: &[u8],
    ) -> io::Result<(File, Mapping)> {
        let file = self.make(segment, octets, header)?;
        match self.map(&file, map_octets) {
            Ok(mapping) => Ok((file, mapping)),
            Err(error) => Err(std::fs::remove_file(self.path(segment)).err().unwrap_or(error)),
        }
    }

    /// Opens a segment for reading.
    pub(super) fn open_to_read(&self, segment: SegmentId) -> io::Result<File> {
        File::open(self.path(segment))
    }

    /// The files that were set aside.
    pub(super) fn set_aside_files(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        match std::fs::read_dir(self.spool.join(ASIDE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => {
                for entry in entries? {
                    found.push(entry?.path());
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

impl Medium for FileMedium {
    type File = File;

    fn list(&self, directory: u8) -> io::Result<(Vec<SegmentId>, Vec<String>)> {
        let (mut segments, mut others) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(Self::directory(&self.spool, directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((segments, others)),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match segment_number(&name) {
                Some(number) => segments.push(SegmentId::new(directory, number)),
                None => others.push(name),
            }
        }
        segments.sort_unstable();
        others.sort_unstable();
        Ok((segments, others))
    }

    fn make(&self, segment: SegmentId, octets: u64, header: &[u8]) -> io::Result<File> {
        let directory = Self::directory(&self.spool, segment.directory());
        // A file in the place of the directory is not a segment that has our name.
        std::fs::create_dir_all(&directory).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
            _ => error,
        })?;
        // Opened now: with the file in its place nothing may be missing any more.
        let folders = [File::open(&directory)?, File::open(&self.spool)?];
        let space = rustix::fs::statvfs(&directory)?;
        let path = self.path(segment);
        let there = path.metadata().map_or(0, |metadata| metadata.len());
        let free = space.f_bavail.saturating_mul(space.f_frsize).saturating_add(there);
        if free.saturating_sub(octets) < self.free_octets_min {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let unfinished = path.with_extension("new");
        let is_first = Header::decode(header).is_ok_and(|header| header.generation == 1);
        match (path.exists(), is_first) {
            (true, true) => return Err(io::ErrorKind::AlreadyExists.into()),
            // Its space first: there may be no more.
            (true, false) => {
                std::fs::rename(&path, &unfinished)?;
                folders[0].sync_all()?;
            }
            (false, _) => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&unfinished)?;
        if let Err(error) = fill(&file, octets, header) {
            // It never held mail; left there, it would keep the space that is missing.
            return Err(std::fs::remove_file(&unfinished).err().unwrap_or(error));
        }
        std::fs::rename(&unfinished, &path)?;
        if let Err(error) = folders.iter().try_for_each(File::sync_all) {
            return Err(std::fs::remove_file(&path).err().unwrap_or(error));
        }
        Ok(file)
    }

    fn take_over(&self, from: SegmentId, to: SegmentId, header: &[u8]) -> io::Result<File> {
        let directory = |id: SegmentId| Self::directory(&self.spool, id.directory());
        let sync = |id: SegmentId| File::open(directory(id))?.sync_all();
        std::fs::create_dir_all(directory(to))?;
        let path = self.path(to);
        let unfinished = path.with_extension("new");
        std::fs::rename(self.path(from), &unfinished)?;
        sync(to)?;
        sync(from)?;
        let file = OpenOptions::new().read(true).write(true).open(&unfinished)?;
        // Of the header before, no copy is left.
        let zeros = vec![0; usize::try_from(HEADERS_END).unwrap_or(0)];
        file.write_all_at(&zeros, 0)?;
        file.write_all_at(header, 0)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)?;
        sync(to)?;
        Ok(file)
    }

    fn set_aside(&self, segment: SegmentId) -> io::Result<()> {
        let folder = self.spool.join(ASIDE);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let name = format!("shard-{:02}-{:06x}", segment.directory(), segment.number());
        let mut target = folder.join(format!("{name}.segment"));
        for copy in 1.. {
            if !target.exists() {
                break;
            }
            target = folder.join(format!("{name}.{copy}.segment"));
        }
        std::fs::rename(self.path(segment), &target)?;
        File::open(&folder)?.sync_all()?;
        File::open(Self::directory(&self.spool, segment.directory()))?.sync_all()
    }

    fn list_aside(&self, directory: u8) -> io::Result<Vec<SegmentId>> {
        let prefix = format!("shard-{directory:02}-");
        let number = |path: &PathBuf| {
            let digits = path.file_name()?.to_str()?.strip_prefix(&prefix)?.get(..6)?.to_owned();
            u32::from_str_radix(&digits, 16).ok().map(|n| SegmentId::new(directory, n))
        };
        Ok(self.set_aside_files()?.iter().filter_map(number).collect())
    }

    fn open(&self, segment: SegmentId) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(segment))
    }

    fn octets(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, file: &File, offset: u64, octets: &[u8]) -> io::Result<()> {
        file.write_all_at(octets, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn map(&self, file: &File, octets: u64) -> io::Result<Mapping> {
        Mapping::of_file(file, octets)
    }
}

/// The number in a segment's file name; `None` for any other file.
fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".segment")?;
    let number = u32::from_str_radix(digits, 16).ok()?;
    (number < 1 << 24 && digits == format!("{number:06x}")).then_some(number)
}

/// The table goes through the page cache, which it stays in. What stands behind it does not: it
/// would push out what others need, and take many times the CPU time.
fn fill(file: &File, octets: u64, header: &[u8]) -> io::Result<()> {
    let table_end = Header::decode(header).map_or(octets, |header| {
        let geometry = Geometry::of(header.kind, octets);
        geometry.body_offset.next_multiple_of(limits::FOLIO_OCTETS_MAX)
    });
    let direct = open_direct(file).filter(|_| octets.is_multiple_of(limits::BLOCK_OCTETS));
    let cached_end = if direct.is_some() { table_end.min(octets) } else { octets };
    write_zeros(file, 0..cached_end, &vec![0; ZEROS_OCTETS])?;
    if let Some(direct) = direct {
        let mut zeros = Vec::with_capacity(DIRECT_ZEROS_OCTETS + limits::BLOCK);
        let lead = fill_to_block(&mut zeros);
        zeros.resize(lead + DIRECT_ZEROS_OCTETS, 0);
        write_zeros(&direct, cached_end..octets, &zeros[lead..])?;
    }
    file.write_all_at(header, 0)?;
    file.sync_all()
}

fn write_zeros(file: &File, range: Range<u64>, zeros: &[u8]) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let piece = usize::try_from(range.end - at).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
