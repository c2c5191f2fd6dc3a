//! Files of a shard: opened, appended to, written, read and synced.
//!
//! Owns: [`Files`], [`File`]. Never: what is written where (`queue`, the log's writer).
//!
//! Diagnostics: errors of the kernel come back as `io::Error`.

use std::cell::RefCell;
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
        match &self.0 {
            None => ring::hand_over().await,
            Some(_) => tokio::task::yield_now().await,
        }
        std::thread::yield_now();
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
        match &self.0 {
            None => File(FileKind::Ring(Rc::new(file.into()), Rc::new(Syncs::new()))),
            Some(helper) => File(FileKind::Helped(helper.clone(), Arc::new(file))),
        }
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
        Ok(File(FileKind::Helped(epoll::Helper::start()?, Arc::new(file))))
    }
}

/// An open file.
#[derive(Clone)]
pub struct File(FileKind);

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

impl File {
    /// Writes all of `gather` at `offset`.
    ///
    /// # Errors
    /// As pwritev(2); a part may be written then.
    pub async fn write_at(&self, gather: Gather, offset: u64) -> io::Result<()> {
        match &self.0 {
            FileKind::Ring(fd, _) => ring::write_at(fd, gather, Some(offset)).await,
            FileKind::Helped(helper, file) => helper.write_at(file, gather, Some(offset)).await,
        }
    }

    /// Writes all of `gather` where the file stands (at its end, if opened for appending).
    ///
    /// # Errors
    /// As writev(2); a part may be written then.
    pub async fn append(&self, gather: Gather) -> io::Result<()> {
        match &self.0 {
            FileKind::Ring(fd, _) => ring::write_at(fd, gather, None).await,
            FileKind::Helped(helper, file) => helper.write_at(file, gather, None).await,
        }
    }

    /// Reads `octets` from `offset`.
    ///
    /// # Errors
    /// As pread(2); `UnexpectedEof` when the file ends before.
    pub async fn read_exact_at(&self, octets: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(octets);
        while buffer.len() < octets {
            let place = offset + buffer.len() as u64;
            let count = match &self.0 {
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
        match &self.0 {
            FileKind::Ring(fd, syncs) => syncs.sync_data(fd).await,
            FileKind::Helped(helper, file) => helper.sync_data(file).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::io;

    /// Two syncs at a time, each with a description of its own.
    #[test]
    fn a_file_is_synced_twice_at_a_time() {
        for backend in io::backends() {
            let synced = async move {
                let file = Files::start(backend).unwrap().adopt(tempfile::tempfile().unwrap());
                let (first, second) = tokio::join!(file.sync_data(), file.sync_data());
                first.and(second).unwrap();
                let FileKind::Ring(fd, syncs) = &file.0 else { return };
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
                if let FileKind::Ring(_, syncs) = &mut file.0 {
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
