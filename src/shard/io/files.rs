//! Files of a shard: opened, appended to, written, read and synced.
//!
//! Owns: [`Files`], [`File`]. Never: what is written where (`queue`, the log's writer).
//!
//! Diagnostics: errors of the kernel come back as `io::Error`.

use std::cell::{OnceCell, RefCell};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::gather::Gather;
use super::{Backend, epoll, ring};
use crate::limits::BLOCK_OCTETS;
use crate::queue::open_direct;

/// Opens and makes files for one shard.
#[derive(Clone)]
pub struct Files(Option<epoll::Helper>);

impl Files {
    /// Starts the helper thread where one is needed.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(backend: Backend) -> io::Result<Self> {
        Ok(Self(match backend {
            Backend::Ring => None,
            Backend::Epoll => Some(epoll::Helper::start()?),
        }))
    }

    /// Waits until what was begun before is under way. A ring hands it over when its thread has
    /// nothing else to do; tasks that were woken before have begun what they have to by then.
    ///
    /// A worker that writes or syncs may have been woken on this core, where it would wait for as
    /// long as this thread has work, with a sync of 1 ms for 2 ms more: the core is left to it,
    /// once.
    pub async fn are_under_way(&self) {
        self.hand_over().await;
        std::thread::yield_now();
    }

    /// Waits until all tasks that were woken have had their turn, and what they began is with the
    /// kernel.
    pub(super) async fn hand_over(&self) {
        match &self.0 {
            None => ring::hand_over().await,
            Some(_) => tokio::task::yield_now().await,
        }
    }

    /// Waits a part of a millisecond. Where there is no ring it lets others have their turn: the
    /// runtime's timers only know whole ones.
    pub async fn nap(&self, duration: Duration) {
        match &self.0 {
            None => ring::nap(duration).await,
            Some(_) => tokio::task::yield_now().await,
        }
    }

    /// Takes over a file that is already open.
    #[must_use]
    pub fn adopt(&self, file: std::fs::File) -> File {
        File::new(match &self.0 {
            None => FileKind::Ring(Rc::new(file.into()), Rc::new(Syncs::new())),
            Some(helper) => FileKind::Helped(helper.clone(), Arc::new(file)),
        })
    }

    /// Opens a file for appending and makes it if it is not there. This blocks for the time of
    /// one open(2): for logs at start and at SIGHUP.
    ///
    /// # Errors
    /// As open(2); ENXIO for a pipe that nobody reads, which otherwise is waited for in open(2).
    pub fn open_append(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND)?;
        self.adopt_log(file)
    }

    /// Standard output.
    ///
    /// # Errors
    /// Too many open files.
    pub fn stdout(&self) -> io::Result<File> {
        let fd = io::stdout().as_fd().try_clone_to_owned()?;
        self.adopt_log(fd.into())
    }

    /// A write to a pipe or a terminal takes as long as its reader likes. What is no regular file
    /// has a helper thread of its own, also beside a ring: nothing waits behind it, and the ring
    /// can come to its end.
    fn adopt_log(&self, file: std::fs::File) -> io::Result<File> {
        if file.metadata()?.is_file() {
            return Ok(self.adopt(file));
        }
        Ok(File::new(FileKind::Helped(epoll::Helper::start()?, Arc::new(file))))
    }
}

/// An open file.
#[derive(Clone)]
pub struct File {
    kind: FileKind,
    /// Another description of it, whose writes go past the page cache, from the first such write
    /// on; `None`: the file system takes none, or the system has no description to give.
    direct: Rc<OnceCell<Option<ring::SharedFd>>>,
}

#[derive(Clone)]
enum FileKind {
    Ring(ring::SharedFd, Rc<Syncs>),
    Helped(epoll::Helper, Arc<std::fs::File>),
}

/// The syncs of a file in a ring, two at a time at most.
struct Syncs {
    /// Held while one runs through the file's own description; those that wait get it in turn.
    one: Mutex<()>,
    /// Another description of it, from the first sync beside another on.
    second: RefCell<Option<ring::SharedFd>>,
    /// Makes it; `None`: the system has none to give now.
    open_again: fn(&ring::SharedFd) -> Option<ring::SharedFd>,
}

impl Syncs {
    fn new() -> Self {
        Self { one: Mutex::new(()), second: RefCell::new(None), open_again: opened_again }
    }

    /// The kernel tells each description of an error once: were there one for two syncs, it
    /// would be told to the one, and the other would look good. Where the system has no second
    /// one to give they go in their order, so that it is the first which hears of it.
    async fn sync_data(&self, fd: &ring::SharedFd) -> io::Result<()> {
        let one = match self.one.try_lock() {
            Ok(one) => one,
            Err(_) => match self.second(fd) {
                Some(second) => return ring::sync_data(&second).await,
                None => self.one.lock().await,
            },
        };
        let result = ring::sync_data(fd).await;
        drop(one);
        result
    }

    fn second(&self, fd: &ring::SharedFd) -> Option<ring::SharedFd> {
        let mut second = self.second.borrow_mut();
        if second.is_none() {
            *second = (self.open_again)(fd);
        }
        second.clone()
    }
}

/// By its number: the file may have lost its name. Nothing is read from the disk for that.
fn opened_again(fd: &ring::SharedFd) -> Option<ring::SharedFd> {
    let file = std::fs::File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    Some(Rc::new(file.into()))
}

impl FileKind {
    /// Another description, for writes past the page cache; through a ring only: a helper that
    /// writes so locks the file until the disk is done, also for a shard that stores a word.
    fn opened_direct(&self) -> Option<ring::SharedFd> {
        match self {
            Self::Ring(fd, _) => Some(Rc::new(open_direct(&**fd)?.into())),
            Self::Helped(..) => None,
        }
    }

    async fn write(&self, gather: Gather, offset: Option<u64>) -> io::Result<()> {
        match self {
            Self::Ring(fd, _) => ring::write_at(fd, gather, offset).await,
            Self::Helped(helper, file) => helper.write_at(file, gather, offset).await,
        }
    }
}

impl File {
    fn new(kind: FileKind) -> Self {
        Self { kind, direct: Rc::default() }
    }

    /// Writes all of `gather` at `offset`.
    ///
    /// # Errors
    /// As pwritev(2); a part may be written then.
    pub async fn write_at(&self, gather: Gather, offset: u64) -> io::Result<()> {
        self.kind.write(gather, Some(offset)).await
    }

    /// Writes all of `gather` at `offset`: past the page cache, if it is one piece of whole blocks
    /// in whole blocks and the file system takes it so. The caller sees to it that nothing else
    /// writes near it meanwhile.
    ///
    /// # Errors
    /// As pwritev(2); a part may be written then.
    pub async fn write_direct_at(&self, gather: Gather, offset: u64) -> io::Result<()> {
        if gather.is_whole_blocks()
            && offset.is_multiple_of(BLOCK_OCTETS)
            && let Some(direct) = self.direct()
        {
            return ring::write_at(direct, gather, Some(offset)).await;
        }
        self.write_at(gather, offset).await
    }

    /// Writes all of `gather` where the file stands (at its end, if opened for appending).
    ///
    /// # Errors
    /// As writev(2); a part may be written then.
    pub async fn append(&self, gather: Gather) -> io::Result<()> {
        self.kind.write(gather, None).await
    }

    /// Writes all of `gather` at the end of a file opened for appending, past the page cache.
    ///
    /// # Errors
    /// As writev(2); a part may be written then. `InvalidInput` where the file is not appended to
    /// or takes no such writes, where `gather` is not one piece of whole blocks, and, from the
    /// kernel, where the file does not end with a whole block: nothing is written then.
    pub async fn append_direct(&self, gather: Gather) -> io::Result<()> {
        if let Some(direct) = self.direct()
            && gather.is_whole_blocks()
            && rustix::fs::fcntl_getfl(&**direct)?.contains(rustix::fs::OFlags::APPEND)
        {
            return ring::write_at(direct, gather, None).await;
        }
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// Does the ring write it? Otherwise a helper thread does.
    #[must_use]
    pub fn is_in_ring(&self) -> bool {
        matches!(self.kind, FileKind::Ring(..))
    }

    /// How many octets it has now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn octets(&self) -> io::Result<u64> {
        let stat = match &self.kind {
            FileKind::Ring(fd, _) => rustix::fs::fstat(&**fd),
            FileKind::Helped(_, file) => rustix::fs::fstat(&**file),
        };
        Ok(u64::try_from(stat?.st_size).unwrap_or(0))
    }

    fn direct(&self) -> Option<&ring::SharedFd> {
        self.direct.get_or_init(|| self.kind.opened_direct()).as_ref()
    }

    /// Reads `octets` from `offset`.
    ///
    /// # Errors
    /// As pread(2); `UnexpectedEof` when the file ends before.
    pub async fn read_exact_at(&self, octets: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(octets);
        while buffer.len() < octets {
            let place = offset + buffer.len() as u64;
            let count = match &self.kind {
                FileKind::Ring(fd, _) => {
                    let (result, given_back) = ring::read_at(fd, buffer, place).await;
                    buffer = given_back;
                    result?
                }
                FileKind::Helped(helper, file) => {
                    let piece = helper.read_at(file, octets - buffer.len(), place).await?;
                    buffer.extend_from_slice(&piece);
                    piece.len()
                }
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        buffer.truncate(octets);
        Ok(buffer)
    }

    /// fdatasync(2), also while another one runs, but not a third. An error is never to be
    /// retried: the kernel tells of it once.
    ///
    /// # Errors
    /// As fdatasync(2).
    pub async fn sync_data(&self) -> io::Result<()> {
        match &self.kind {
            FileKind::Ring(fd, syncs) => syncs.sync_data(fd).await,
            FileKind::Helped(helper, file) => helper.sync_data(file).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gather::Piece;
    use super::*;
    use crate::limits::BLOCK;
    use crate::shard::io;

    /// What went past the page cache and what did not stand beside each other, whatever of it was
    /// read before.
    #[test]
    fn whole_blocks_go_past_the_page_cache() {
        // Where temporary files are there may be no disk below.
        let program = std::env::current_exe().unwrap();
        let folder = program.parent().unwrap();
        for backend in io::backends() {
            let written = async move {
                let std_file = tempfile::tempfile_in(folder).unwrap();
                let cached = std_file.try_clone().unwrap();
                let file = Files::start(backend).unwrap().adopt(std_file);
                file.write_at(vec![1; 5 * BLOCK].into(), 0).await.unwrap();
                let whole = |fill: u8, blocks: usize| {
                    let mut octets: Vec<u8> = Vec::with_capacity((blocks + 1) * BLOCK);
                    let lead = octets.as_ptr().align_offset(BLOCK);
                    octets.resize(lead + blocks * BLOCK, fill);
                    let octets = Arc::new(octets);
                    Gather::new(vec![Piece::Commands(octets, lead..lead + blocks * BLOCK)])
                };
                file.write_at(whole(4, 1), 4 * BLOCK_OCTETS).await.unwrap();
                assert!(file.direct.get().is_none(), "only what is meant to go so does");
                let is_cached = |block: u64| {
                    let (mut octet, flags) = ([0], rustix::io::ReadWriteFlags::NOWAIT);
                    let mut slices = [std::io::IoSliceMut::new(&mut octet)];
                    let offset = block * BLOCK_OCTETS;
                    rustix::io::preadv2(&cached, &mut slices, offset, flags).is_ok()
                };
                let cached_before = [1, 2].map(is_cached);
                file.write_direct_at(whole(2, 2), BLOCK_OCTETS).await.unwrap();
                if file.direct.get().unwrap().is_some() {
                    // Whole pieces of the cache are dropped: the blocks beside may go with them.
                    assert_eq!(cached_before, [true; 2]);
                    assert_eq!([1, 2].map(is_cached), [false; 2]);
                } else {
                    eprintln!("skipped in part: no direct writes in {}", folder.display());
                }
                file.write_direct_at(vec![3; 100].into(), 3 * BLOCK_OCTETS).await.unwrap();
                file.write_direct_at(whole(5, 1), 4 * BLOCK_OCTETS + 100).await.unwrap();
                let read = file.read_exact_at(5 * BLOCK + 100, 0).await.unwrap();
                let runs = read.chunk_by(|a, b| a == b).map(|run| (run[0], run.len()));
                let expected =
                    [(1, BLOCK), (2, 2 * BLOCK), (3, 100), (1, BLOCK - 100), (4, 100), (5, BLOCK)];
                assert_eq!(runs.collect::<Vec<_>>(), expected);
            };
            io::run(backend, written).unwrap();
        }
    }

    /// Where a file system does not know of such writes they go through the cache.
    #[test]
    fn memory_has_no_page_cache_to_go_past() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = rustix::fs::memfd_create("segment", flags).unwrap();
        assert!(open_direct(&memory).is_none());
    }

    /// Two syncs at a time, each with a description of its own.
    #[test]
    fn a_file_is_synced_twice_at_a_time() {
        for backend in io::backends() {
            let synced = async move {
                let file = Files::start(backend).unwrap().adopt(tempfile::tempfile().unwrap());
                let (first, second) = tokio::join!(file.sync_data(), file.sync_data());
                first.and(second).unwrap();
                let FileKind::Ring(fd, syncs) = &file.kind else { return };
                let second = syncs.second.borrow();
                assert_ne!(second.as_ref().unwrap().as_raw_fd(), fd.as_raw_fd());
            };
            io::run(backend, synced).unwrap();
        }
    }

    /// Without a second description one waits for the other, and none overtakes it.
    #[test]
    fn syncs_of_one_description_go_in_their_order() {
        for backend in io::backends() {
            let synced = async move {
                let mut file = Files::start(backend).unwrap().adopt(tempfile::tempfile().unwrap());
                if let FileKind::Ring(_, syncs) = &mut file.kind {
                    Rc::get_mut(syncs).unwrap().open_again = |_| None;
                }
                let ended = RefCell::new(Vec::new());
                let sync = async |name| {
                    file.sync_data().await.unwrap();
                    ended.borrow_mut().push(name);
                };
                let one_after_the_other = async {
                    sync("first").await;
                    sync("third").await;
                };
                tokio::join!(biased; one_after_the_other, sync("second"));
                assert_eq!(*ended.borrow(), ["first", "second", "third"]);
            };
            io::run(backend, synced).unwrap();
        }
    }
}
