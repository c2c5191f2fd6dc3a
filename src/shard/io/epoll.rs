//! Sockets and files where io_uring is refused: tokio's epoll for sockets, one helper thread per
//! shard for files.
//!
//! Owns: the same operations as the ring, with the same results. Never: more than one file
//! operation at a time per shard; the queue in front of the helper is bounded, and who finds it
//! full waits.
//!
//! Diagnostics: errors of the kernel come back as `io::Error`.

use std::fs::File;
use std::future::Future;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpListener;
pub(super) use tokio::net::TcpStream as Stream;
use tokio::sync::{mpsc, oneshot};

use super::gather::{self, Gather};

/// File operations that wait for the helper at most.
const JOBS_MAX: usize = 1024;

/// Runs `future` to its end on a current-thread runtime of this thread.
pub(super) fn run<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let output = runtime.block_on(local.run_until(future));
    Ok(output)
}

/// Bytes received into the spare capacity of the buffer.
pub(super) struct Recv {
    stream: Rc<Stream>,
    buffer: Vec<u8>,
}

/// Receives into `buffer`, behind what it holds.
pub(super) fn recv(stream: &Rc<Stream>, buffer: Vec<u8>) -> Recv {
    assert!(buffer.capacity() > buffer.len(), "a receive needs room");
    Recv { stream: stream.clone(), buffer }
}

impl Future for Recv {
    type Output = (io::Result<usize>, Vec<u8>);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stream = self.stream.clone();
        loop {
            let result = match stream.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) => stream.try_read_buf(&mut self.buffer),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready((result, std::mem::take(&mut self.buffer))),
            }
        }
    }
}

/// All pieces sent, or an error.
pub(super) struct Send {
    stream: Rc<Stream>,
    gather: Gather,
}

/// Sends all of `gather`.
pub(super) fn send(stream: &Rc<Stream>, gather: Gather) -> Send {
    Send { stream: stream.clone(), gather }
}

impl Future for Send {
    type Output = io::Result<()>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stream = self.stream.clone();
        while !self.gather.is_empty() {
            match stream.poll_write_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let slices: Vec<IoSlice<'_>> = self.gather.slices().map(IoSlice::new).collect();
            match stream.try_write_vectored(&slices) {
                Ok(0) => return Poll::Ready(Err(gather::write_zero())),
                Ok(count) => self.gather.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Turns a socket whose non-blocking connect has begun into a stream, when it stands.
pub(super) async fn connected(stream: &Stream) -> io::Result<()> {
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    // A socket that was shut down while it connected is writable too.
    stream.peer_addr().map(|_| ())
}

/// A listening socket.
pub(super) struct Accepting(TcpListener);

impl Accepting {
    /// Accepts one connection.
    pub(super) async fn accept(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.0.accept().await?;
        stream.into_std().map(OwnedFd::from)
    }

    /// The socket, for its options.
    pub(super) fn as_socket(&self) -> socket2::SockRef<'_> {
        socket2::SockRef::from(&self.0)
    }
}

/// What the helper thread is asked to do.
enum Job {
    Write(Arc<File>, Gather, Option<u64>, oneshot::Sender<io::Result<()>>),
    Read(Arc<File>, usize, u64, oneshot::Sender<io::Result<Vec<u8>>>),
    Sync(Arc<File>, oneshot::Sender<io::Result<()>>),
}

/// The helper thread of one shard. It ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Helper(mpsc::Sender<Job>);

impl Helper {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, mut jobs) = mpsc::channel(JOBS_MAX);
        std::thread::Builder::new().name("ringpost-files".into()).spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                work(job);
            }
        })?;
        Ok(Self(sender))
    }

    /// Writes all of `gather` at `offset`, or where the file stands when it is `None`.
    pub(super) async fn write_at(
        &self,
        file: &Arc<File>,
        gather: Gather,
        offset: Option<u64>,
    ) -> io::Result<()> {
        self.ask(|answer| Job::Write(file.clone(), gather, offset, answer)).await
    }

    /// Reads at most `octets` from `offset`.
    pub(super) async fn read_at(
        &self,
        file: &Arc<File>,
        octets: usize,
        offset: u64,
    ) -> io::Result<Vec<u8>> {
        self.ask(|answer| Job::Read(file.clone(), octets, offset, answer)).await
    }

    /// fdatasync(2).
    pub(super) async fn sync_data(&self, file: &Arc<File>) -> io::Result<()> {
        self.ask(|answer| Job::Sync(file.clone(), answer)).await
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Job,
    ) -> io::Result<T> {
        let (sender, answer) = oneshot::channel();
        let gone = |_| io::Error::other("the file helper thread is gone");
        self.0.send(job(sender)).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

fn work(job: Job) {
    // A receiver that is gone has lost interest in the result; the work is done all the same.
    match job {
        Job::Write(file, gather, offset, answer) => drop(answer.send(write(&file, gather, offset))),
        Job::Read(file, octets, offset, answer) => drop(answer.send(read(&file, octets, offset))),
        Job::Sync(file, answer) => drop(answer.send(file.sync_data())),
    }
}

fn write(file: &File, mut gather: Gather, offset: Option<u64>) -> io::Result<()> {
    let Some(mut offset) = offset else {
        for slice in std::mem::take(&mut gather).slices() {
            (&*file).write_all(slice)?;
        }
        return Ok(());
    };
    while !gather.is_empty() {
        let slices: Vec<IoSlice<'_>> = gather.slices().map(IoSlice::new).collect();
        let count = rustix::io::pwritev(file, &slices, offset)?;
        if count == 0 {
            return Err(gather::write_zero());
        }
        gather.advance(count);
        offset += count as u64;
    }
    Ok(())
}

fn read(file: &File, octets: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; octets];
    let count = file.read_at(&mut buffer, offset)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// The descriptor of a socket as tokio's stream.
pub(super) fn stream(fd: OwnedFd) -> io::Result<Stream> {
    let socket = std::net::TcpStream::from(fd);
    socket.set_nonblocking(true)?;
    Stream::from_std(socket)
}

/// The descriptor of a listening socket as tokio's listener.
pub(super) fn listener(fd: OwnedFd) -> io::Result<Accepting> {
    let socket = std::net::TcpListener::from(fd);
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket).map(Accepting)
}
