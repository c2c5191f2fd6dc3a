//! The spool directory: one process, one identity, one size of segments.
//!
//! Owns: the lock, the spool file (id, segment size, shards) and which shard reads which
//! directory. Never: segments' contents (of their headers only the id blocks).
//!
//! Spool file, little-endian, 64 octets: 0 magic `RPSPOOL\0`, 8 u32 version, 12 u32 shards, 16
//! spool id, 32 u64 segment octets, 40 u64 inode of the spool directory (0: not noted), 48 u64
//! first id block, 60 u32 checksum of 0..60. Replaced by rename when the number of shards or the
//! inode changes; id and segment octets never change.
//!
//! Another inode tells that the spool was moved, copied or restored from a backup. The original
//! may run on, or may have run on since: so that no id is used twice, the blocks go on at a random
//! distance from here.
//!
//! Diagnostics: [`SpoolError`], each with what to do.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::format::{HEADERS_END, Header, SegmentId, SpoolId, VERSION, checksum};
use super::medium::FileMedium;
use super::report::Options;
use super::segment::Medium;
use super::settings::QueueSettings;
use crate::limits;
use crate::mail::ShardId;

const MAGIC: &[u8; 8] = b"RPSPOOL\0";
const FILE_OCTETS: usize = 64;
const CHECKSUM_OFFSET: usize = 60;
/// Segments that a shard should have room for.
const SEGMENTS_PER_SHARD: u64 = 64;
/// Tuning that nobody has changed.
const SEGMENTS_AHEAD: usize = 2;
const COMMIT_MESSAGES_MAX: usize = 1024;
const DIRECT_OCTETS_MIN: u64 = 64 << 10;
/// A pid and a line end.
const PID_OCTETS_MAX: u64 = 32;

/// Why a spool cannot be used.
#[derive(Debug)]
pub enum SpoolError {
    /// Another process has it.
    Locked {
        /// The spool.
        path: PathBuf,
        /// Its pid, when it could be read.
        pid: Option<u32>,
    },
    /// The spool file was written by a newer program.
    FutureVersion(u32),
    /// The spool file is not what was written.
    Damaged(PathBuf),
    /// The system said no.
    Io(PathBuf, io::Error),
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { path, pid: Some(pid) } => {
                write!(f, "spool {} is in use by process {pid}: stop it first", path.display())
            }
            Self::Locked { path, pid: None } => {
                write!(f, "spool {} is in use by another process: stop it first", path.display())
            }
            Self::FutureVersion(version) => {
                write!(f, "the spool has format version {version}: start the newer program")
            }
            Self::Damaged(path) => {
                write!(f, "{} is damaged: restore this file from a backup", path.display())
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for SpoolError {}

/// An open spool; the lock is held while it lives.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    id: SpoolId,
    segment_octets: u64,
    shards: u8,
    octets_max: u64,
    free_octets_min: u64,
    is_copy: bool,
    directories: Vec<u8>,
    next_block: Arc<AtomicU64>,
    _lock: File,
}

impl Spool {
    /// Opens or makes the spool for `shards` shards (1 to [`limits::SHARDS_MAX`]).
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn open(settings: &QueueSettings, shards: u8) -> Result<Self, SpoolError> {
        assert!((1..=limits::SHARDS_MAX).contains(&usize::from(shards)), "shards out of bounds");
        let path = settings.spool.clone();
        let io = |error| SpoolError::Io(path.clone(), error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io)?;
        let lock = lock(&path)?;
        let space = rustix::fs::statvfs(&path).map_err(|error| io(error.into()))?;
        let total = space.f_blocks.saturating_mul(space.f_frsize);
        let free_octets_min = settings.free_octets_min.unwrap_or(total / 50);
        let octets_max = settings.octets_max.min(total.saturating_sub(free_octets_min));
        let directories = directories(&path).map_err(io)?;
        let largest = largest_block(&path, &directories).map_err(io)?;
        let fresh = SpoolFile {
            id: SpoolId([0; 16]),
            shards,
            segment_octets: segment_octets(octets_max, shards),
            inode: std::fs::metadata(&path).map_err(io)?.ino(),
            first_block: largest + 1,
        };
        let (file, is_copy) = spool_file(&path, fresh)?;
        Ok(Self {
            id: file.id,
            segment_octets: file.segment_octets,
            shards,
            octets_max,
            free_octets_min,
            is_copy,
            directories,
            next_block: Arc::new(AtomicU64::new(file.first_block.max(largest + 1))),
            path,
            _lock: lock,
        })
    }

    /// The medium of all shards.
    #[must_use]
    pub fn medium(&self) -> FileMedium {
        FileMedium::new(&self.path, self.free_octets_min)
    }

    /// What [`super::Queue::open`] needs for a shard: with the directories of shards that are
    /// gone, each adopted by one that is here. `retry_ms_max` is the longest wait any bounce
    /// profile allows.
    #[must_use]
    pub fn options(&self, shard: ShardId, retry_ms_max: u64) -> Options {
        let gone =
            |directory: &&u8| **directory >= self.shards && **directory % self.shards == shard.0;
        let mut directories = vec![shard.0];
        directories.extend(self.directories.iter().filter(gone));
        Options {
            shard,
            spool: self.id,
            segment_octets: self.segment_octets,
            octets_max: (self.octets_max / u64::from(self.shards)).max(self.segment_octets),
            segments_ahead: SEGMENTS_AHEAD,
            commit_messages_max: COMMIT_MESSAGES_MAX,
            direct_octets_min: DIRECT_OCTETS_MIN,
            folio_octets: limits::FOLIO_OCTETS_MAX,
            directories,
            next_block: self.next_block.clone(),
            retry_ms_max,
            is_copy: self.is_copy,
        }
    }
}

#[derive(Clone, Copy)]
struct SpoolFile {
    id: SpoolId,
    shards: u8,
    segment_octets: u64,
    inode: u64,
    first_block: u64,
}

impl SpoolFile {
    fn encode(self) -> [u8; FILE_OCTETS] {
        let mut out = [0; FILE_OCTETS];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32::from(self.shards).to_le_bytes());
        out[16..32].copy_from_slice(&self.id.0);
        out[32..40].copy_from_slice(&self.segment_octets.to_le_bytes());
        out[40..48].copy_from_slice(&self.inode.to_le_bytes());
        out[48..56].copy_from_slice(&self.first_block.to_le_bytes());
        let checksum = checksum(&out[..CHECKSUM_OFFSET]);
        out[CHECKSUM_OFFSET..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    fn decode(octets: &[u8], path: &Path) -> Result<Self, SpoolError> {
        let damaged = || SpoolError::Damaged(path.to_owned());
        let octets: &[u8; FILE_OCTETS] = octets.try_into().map_err(|_| damaged())?;
        let four = |at: usize| {
            u32::from_le_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
        };
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        if &octets[..8] != MAGIC || four(CHECKSUM_OFFSET) != checksum(&octets[..60]) {
            return Err(damaged());
        }
        if four(8) > VERSION {
            return Err(SpoolError::FutureVersion(four(8)));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&octets[16..32]);
        Ok(Self {
            id: SpoolId(id),
            shards: u8::try_from(four(12)).map_err(|_| damaged())?,
            segment_octets: eight(32),
            inode: eight(40),
            first_block: eight(48),
        })
    }
}

/// The size of segments of a new spool.
fn segment_octets(octets_max: u64, shards: u8) -> u64 {
    let share = octets_max / (SEGMENTS_PER_SHARD * u64::from(shards));
    let share = share.clamp(limits::SEGMENT_OCTETS_MIN, limits::SEGMENT_OCTETS_MAX);
    share / 4096 * 4096
}

fn lock(path: &Path) -> Result<File, SpoolError> {
    let name = path.join("lock");
    let io = |error| SpoolError::Io(name.clone(), error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&name).map_err(io)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = (&file).take(PID_OCTETS_MAX).read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(SpoolError::Locked { path: path.to_owned(), pid });
        }
        Err(error) => return Err(io(error.into())),
    }
    file.set_len(0).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

/// Reads the spool file; writes it when there is none yet, or when shards or inode changed. Also
/// tells whether the spool is a copy.
fn spool_file(path: &Path, fresh: SpoolFile) -> Result<(SpoolFile, bool), SpoolError> {
    let name = path.join("spool");
    let io = |error| SpoolError::Io(name.clone(), error);
    let mut is_copy = false;
    let file = match std::fs::read(&name) {
        Ok(octets) => {
            let found = SpoolFile::decode(&octets, &name)?;
            if (found.shards, found.inode) == (fresh.shards, fresh.inode) {
                return Ok((found, false));
            }
            let SpoolFile { shards, inode, .. } = fresh;
            is_copy = found.inode != 0 && found.inode != inode;
            let mut first_block = found.first_block.max(fresh.first_block);
            if is_copy {
                let [a, b, c] = random().map_err(io)?;
                first_block += u64::from(u32::from_le_bytes([a, b, c, 1]));
            }
            SpoolFile { shards, inode, first_block, ..found }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Segments without a spool file: a new id would make all their mail foreign.
            if !directories(path).map_err(io)?.is_empty() {
                return Err(SpoolError::Damaged(name));
            }
            SpoolFile { id: SpoolId(random().map_err(io)?), ..fresh }
        }
        Err(error) => return Err(io(error)),
    };
    replace(path, &name, &file.encode()).map_err(io)?;
    Ok((file, is_copy))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut octets)?;
    Ok(octets)
}

fn replace(directory: &Path, name: &Path, octets: &[u8]) -> io::Result<()> {
    let unfinished = name.with_extension("new");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all_at(octets, 0)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, name)?;
    File::open(directory)?.sync_all()
}

/// The id of the spool at `path`.
pub(super) fn id_of(path: &Path) -> Result<SpoolId, SpoolError> {
    let name = path.join("spool");
    let octets = std::fs::read(&name).map_err(|error| SpoolError::Io(name.clone(), error))?;
    Ok(SpoolFile::decode(&octets, &name)?.id)
}

/// The shard directories that exist.
pub(super) fn directories(path: &Path) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-"));
        if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The largest id block that any header of the spool names; 0 when none does.
fn largest_block(path: &Path, directories: &[u8]) -> io::Result<u64> {
    let medium = FileMedium::new(path, 0);
    let mut largest = 0;
    for directory in directories {
        for segment in medium.list(*directory)?.0 {
            largest = largest.max(block_of(&medium, segment).unwrap_or(0));
        }
    }
    Ok(largest)
}

fn block_of(medium: &FileMedium, segment: SegmentId) -> Option<u64> {
    let file = File::open(medium.path(segment)).ok()?;
    let mut octets = vec![0; usize::try_from(HEADERS_END).ok()?];
    file.read_exact_at(&mut octets, 0).ok()?;
    let (first, second) = octets.split_at(octets.len() / 2);
    let copies = [Header::decode(first), Header::decode(second)];
    copies.into_iter().flatten().map(|header| header.id_block_max).max()
}
