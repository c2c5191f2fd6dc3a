//! The file of the mail log: whole lines appended, many at a time past the page cache.
//!
//! Owns: [`LogFile`], and where a batch of lines is cut into writes. Never: when a batch is
//! written, or what becomes of lines that could not be (`log`).
//!
//! A busy shard logs tens of megabytes per second. Through the page cache each of them is copied,
//! into pages that have to be found first: the dearest part of a line by far where a hypervisor
//! takes free memory back. And the cache is filled with what nobody reads for now. So a large
//! batch goes in three parts: what is missing to a whole block of the file, and what is left
//! behind the last one, through the cache; the whole blocks between, past it. For that a shard
//! waits its turn: no other one may append between the parts.
//!
//! Everything is appended (O_APPEND), never written to a place that was looked up before: whatever
//! else is done to the file meanwhile, as by logrotate's `copytruncate` or by a second engine, no
//! line is written over, but one may be cut in two. Blocks that the kernel refuses behind that end
//! go through the cache, and so does all that follows until the file is opened again.
//!
//! A write past the cache takes as long as the disk does, and lines collect in memory meanwhile.
//! After one that took long, and with more lines than a disk that keeps up leaves behind, it is the
//! cache that takes them, which has more room.
//!
//! Limits: [`TURN_MAX`]; who waits longer appends all lines in one write through the cache, and may
//! cut a line of the one whose turn it is.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use memchr::memchr_iter;
use tokio::sync::Mutex;

use super::io::{self as shard_io, File, Gather, Piece};
use crate::limits::{BLOCK, BLOCK_OCTETS};
use crate::mail::Mono;
use crate::telemetry::line::SPARE_OCTETS_MAX;

/// The log's writer is woken when so many octets of lines have collected. One write of so many
/// costs half the CPU time of two of half as many.
pub(super) const BATCH_OCTETS: usize = 512 * 1024;

// A list that grows has room for twice what is in it at most; a batch may be late.
const _: () = assert!(4 * BATCH_OCTETS <= SPARE_OCTETS_MAX);

/// So many octets of whole blocks are worth the way past the page cache. A write of 16 takes half
/// the CPU time of one through it, a write of 64 a seventh.
const PAST_CACHE_OCTETS_MIN: usize = 16 * BLOCK;

/// With more the disk does not keep up.
const PAST_CACHE_OCTETS_MAX: usize = 4 * BATCH_OCTETS;

/// After a write past the cache that took so long the cache takes all for a while.
const SLOW_MS: u64 = 100;
const CACHED_MS: u64 = 10_000;

/// The turn is waited for at most this long: whoever has it may wait for a disk, or its thread may.
const TURN_MAX: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct LogFile {
    file: File,
    /// It takes whole blocks past the page cache, for all we know.
    takes_blocks: Cell<bool>,
    /// The disk was slow: until then all goes through the cache.
    cached_until: Cell<Mono>,
}

impl LogFile {
    /// `past_cache`: blocks may go past the page cache. Not where others append too, as to a file
    /// that is standard output.
    pub(super) fn new(file: File, past_cache: bool) -> Self {
        let takes_blocks = Cell::new(past_cache && file.is_in_ring());
        Self { file, takes_blocks, cached_until: Cell::new(Mono(0)) }
    }

    /// Appends `lines`, whole ones. Gives their buffer back, for other lines, and how many of them
    /// could not be written.
    pub(super) async fn append(&self, lines: Vec<u8>, turn: &Mutex<()>) -> (Vec<u8>, u64) {
        // A helper's write may wait for the reader of a pipe, and others in vain for their turn.
        let turn = match self.file.is_in_ring() {
            true => shard_io::within(TURN_MAX, turn.lock()).await,
            false => None,
        };
        let parts = turn.as_ref().and_then(|_| self.parts_of(lines.len()));
        let Some(parts) = parts else {
            let all = 0..lines.len();
            return self.append_parts(lines, [all, 0..0, 0..0]).await;
        };
        let (lines, moved) = with_blocks_at(lines, parts[0].end);
        let parts = parts.map(|part| part.start + moved..part.end + moved);
        self.append_parts(lines, parts).await
    }

    /// Which of `octets` octets go up to the first whole block of the file, in whole blocks, and
    /// behind them; `None`: it is not worth it.
    fn parts_of(&self, octets: usize) -> Option<[Range<usize>; 3]> {
        let is_fit = (PAST_CACHE_OCTETS_MIN..=PAST_CACHE_OCTETS_MAX).contains(&octets);
        if !is_fit || !self.takes_blocks.get() || shard_io::now().mono < self.cached_until.get() {
            return None;
        }
        let end = self.file.octets().ok()?;
        let head = usize::try_from(end.next_multiple_of(BLOCK_OCTETS) - end).ok()?;
        let blocks = octets.checked_sub(head)? / BLOCK * BLOCK;
        let tail = head + blocks;
        (blocks >= PAST_CACHE_OCTETS_MIN).then_some([0..head, head..tail, tail..octets])
    }

    /// The second part goes past the page cache.
    async fn append_parts(&self, lines: Vec<u8>, parts: [Range<usize>; 3]) -> (Vec<u8>, u64) {
        let lines = Arc::new(lines);
        let [head, blocks, tail] = parts;
        let mut written = head.start;
        for (part, is_of_blocks) in [(head, false), (blocks, true), (tail, false)] {
            if part.is_empty() {
                continue;
            }
            if self.append_part(&lines, part.clone(), is_of_blocks).await.is_err() {
                break;
            }
            written = part.end;
        }
        let lost = memchr_iter(b'\n', &lines[written..]).count() as u64;
        (Arc::try_unwrap(lines).unwrap_or_default(), lost)
    }

    async fn append_part(
        &self,
        lines: &Arc<Vec<u8>>,
        part: Range<usize>,
        is_of_blocks: bool,
    ) -> io::Result<()> {
        let gather = || Gather::new(vec![Piece::Commands(lines.clone(), part.clone())]);
        if is_of_blocks {
            let begun = shard_io::now().mono;
            let done = self.file.append_direct(gather()).await;
            let now = shard_io::now().mono;
            if now.since_ms(begun) >= SLOW_MS {
                self.cached_until.set(now + Duration::from_millis(CACHED_MS));
            }
            match done {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.takes_blocks.set(false);
                }
                done => return done,
            }
        }
        self.file.append(gather()).await
    }
}

/// Moves all octets of a buffer so that the one at `at` stands at a whole block of memory. Gives
/// by how many.
fn with_blocks_at(mut octets: Vec<u8>, at: usize) -> (Vec<u8>, usize) {
    let count = octets.len();
    octets.reserve(BLOCK);
    let moved = octets[at..].as_ptr().align_offset(BLOCK).min(BLOCK);
    octets.resize(count + moved, 0);
    octets.copy_within(..count, moved);
    (octets, moved)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::io::{self, Files};
    use super::*;

    /// Where temporary files are there may be no disk below; a new file each time.
    fn path_of(name: &str) -> PathBuf {
        let program = std::env::current_exe().unwrap();
        let path = program.with_file_name(format!("{}-{name}.log", std::process::id()));
        drop(std::fs::remove_file(&path));
        path
    }

    /// Whole lines, `octets` or a few more, that say who wrote them.
    fn lines_of(writer: usize, octets: usize) -> Vec<u8> {
        let mut lines = Vec::new();
        while lines.len() < octets {
            let number = lines.len();
            lines
                .extend_from_slice(format!("writer {writer} at {number}, to the end\n").as_bytes());
        }
        lines
    }

    #[test]
    fn batches_of_any_size_stand_one_behind_the_other() {
        for backend in io::backends() {
            let path = path_of("sizes");
            let file =
                LogFile::new(Files::start(backend).unwrap().open_append(&path).unwrap(), true);
            let turn = Mutex::default();
            let sizes = [100, 500_000, 70_000, 1, 65_536, 200_000, 4_096, 1_000_000];
            let written = path.clone();
            io::run(backend, async move {
                let (mut expected, mut went_past) = (Vec::new(), false);
                for octets in sizes {
                    let lines = lines_of(0, octets);
                    expected.extend_from_slice(&lines);
                    went_past |= file.parts_of(lines.len()).is_some();
                    let (_, lost) = file.append(lines, &turn).await;
                    assert_eq!(lost, 0);
                }
                assert!(std::fs::read(&written).unwrap() == expected);
                assert_eq!(went_past, file.file.is_in_ring());
                if file.file.is_in_ring() && !file.takes_blocks.get() {
                    eprintln!("skipped in part: no direct writes to {}", written.display());
                }
            })
            .unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Blocks do not fit the end of the file, as when another program appended to it.
    #[test]
    fn blocks_that_do_not_fit_any_more_go_through_the_cache() {
        for backend in io::backends() {
            let path = path_of("refused");
            let file =
                LogFile::new(Files::start(backend).unwrap().open_append(&path).unwrap(), true);
            let written = path.clone();
            io::run(backend, async move {
                std::fs::write(&written, "somebody else\n").unwrap();
                let lines = lines_of(0, 100_000);
                let expected = [&b"somebody else\n"[..], &lines].concat();
                let (lines, moved) = with_blocks_at(lines, 0);
                let tail = moved + PAST_CACHE_OCTETS_MIN;
                let parts = [moved..moved, moved..tail, tail..lines.len()];
                let (_, lost) = file.append_parts(lines, parts).await;
                assert_eq!(lost, 0);
                assert!(std::fs::read(&written).unwrap() == expected);
                // Some file systems send such a write through the cache by themselves.
                if !file.takes_blocks.get() {
                    assert!(file.parts_of(1_000_000).is_none());
                }
            })
            .unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Two shards append to one file, each what the other one may not cut.
    #[test]
    fn lines_of_two_shards_do_not_mix() {
        for backend in io::backends() {
            let path = path_of("two");
            let turn = Arc::<Mutex<()>>::default();
            let shards = [0, 1].map(|shard| {
                let (path, turn) = (path.clone(), turn.clone());
                std::thread::spawn(move || {
                    let file = Files::start(backend).unwrap().open_append(&path).unwrap();
                    let file = LogFile::new(file, true);
                    io::run(backend, async move {
                        for round in 0..20 {
                            let lines = lines_of(shard, 50_000 + 20_000 * (round % 3));
                            assert_eq!(file.append(lines, &turn).await.1, 0);
                        }
                    })
                    .unwrap();
                })
            });
            shards.into_iter().for_each(|shard| shard.join().unwrap());
            let text = std::fs::read_to_string(&path).unwrap();
            let mut next = [0, 0];
            for line in text.lines() {
                let at = [0, 1].map(|writer| {
                    let from = line.strip_prefix(&format!("writer {writer} at "))?;
                    from.strip_suffix(", to the end")?.parse::<usize>().ok()
                });
                let writer = at.iter().position(Option::is_some).expect(line);
                assert!(at[writer] == Some(0) || at[writer] == Some(next[writer]), "{line}");
                next[writer] = at[writer].unwrap_or(0) + line.len() + 1;
            }
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Only as much as a disk that keeps up leaves behind, not after it was slow, and only what the
    /// ring writes.
    #[test]
    fn a_slow_disk_has_the_cache_take_the_lines() {
        for backend in io::backends() {
            let path = path_of("slow");
            let files = Files::start(backend).unwrap();
            let file = LogFile::new(files.open_append(&path).unwrap(), true);
            let is_cut = |octets| file.parts_of(octets).is_some();
            let fits = [1, PAST_CACHE_OCTETS_MIN, PAST_CACHE_OCTETS_MAX, PAST_CACHE_OCTETS_MAX + 1];
            let in_ring = backend == io::Backend::Ring;
            assert_eq!(fits.map(is_cut), [false, in_ring, in_ring, false]);
            file.cached_until.set(io::now().mono + Duration::from_secs(60));
            assert!(!is_cut(PAST_CACHE_OCTETS_MIN));
            let shared = LogFile::new(files.open_append(&path).unwrap(), false);
            assert!(shared.parts_of(PAST_CACHE_OCTETS_MIN).is_none());
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Somebody has the turn and does not end.
    #[test]
    fn the_turn_is_not_waited_for_for_ever() {
        for backend in io::backends() {
            let path = path_of("turn");
            let file = Files::start(backend).unwrap().open_append(&path).unwrap();
            let (file, written) = (LogFile::new(file, true), path.clone());
            io::run(backend, async move {
                let turn = Mutex::default();
                let held = turn.lock().await;
                let lines = lines_of(0, 100_000);
                assert_eq!(file.append(lines.clone(), &turn).await.1, 0);
                assert!(std::fs::read(&written).unwrap() == lines);
                drop(held);
            })
            .unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        for backend in io::backends() {
            let full = std::path::Path::new("/dev/full");
            let file =
                LogFile::new(Files::start(backend).unwrap().open_append(full).unwrap(), true);
            io::run(backend, async move {
                assert_eq!(file.append(b"one\ntwo\n".to_vec(), &Mutex::default()).await.1, 2);
            })
            .unwrap();
        }
    }
}
