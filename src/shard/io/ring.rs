//! Sockets and files on io_uring, through tokio-uring's runtime.
//!
//! Owns: the ring's flags, and every raw submission. Never: policy, deadlines (the caller shuts a
//! socket down and awaits its operation). With `ring` gone the engine still runs on
//! [`super::epoll`], with the same code above.
//!
//! All operations are made by one function from an owned value that the ring keeps until the
//! kernel is done with it: an operation is never cancelled by dropping its future, because the
//! buffer of a dropped operation stays with the kernel until the peer acts.
//!
//! Diagnostics: errors of the kernel come back as `io::Error`; a submission outside the runtime,
//! or more operations between two parks than [`ENTRIES`], panics: both are our mistakes.
#![allow(unsafe_code, reason = "submissions carry raw pointers; each block has its proof")]

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode, types};
use socket2::SockAddr;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::gather::{self, Gather};

/// Submission queue entries: more than a shard starts between two parks of its thread.
const ENTRIES: u32 = 4096;

/// Runs `future` to its end on a ring of this thread.
///
/// COOP_TASKRUN and SINGLE_ISSUER take a third of the CPU off a busy shard; SUBMIT_ALL keeps one
/// refused entry from holding up the others. DEFER_TASKRUN and IOPOLL hang under this runtime,
/// which never enters the kernel to reap; SQPOLL costs a core.
pub(super) fn run<F: Future>(future: F) -> io::Result<F::Output> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer().setup_submit_all();
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES).uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&builder)?;
    Ok(runtime.block_on(future))
}

/// Tries to make a ring with our flags and looks for the operations we use.
///
/// # Errors
/// The kernel's refusal: ENOSYS (no io_uring), EPERM (sysctl or seccomp), EINVAL (too old).
pub(super) fn probe() -> io::Result<()> {
    let ring = io_uring::IoUring::<Entry>::builder()
        .setup_coop_taskrun()
        .setup_single_issuer()
        .setup_submit_all()
        .build(8)?;
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let wanted = [
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Connect::CODE,
        opcode::Accept::CODE,
        opcode::Writev::CODE,
        opcode::Read::CODE,
        opcode::Fsync::CODE,
        opcode::Timeout::CODE,
    ];
    if wanted.iter().all(|code| known.is_supported(*code)) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring lacks operations"))
}

/// A file descriptor that operations in flight keep open.
pub(super) type SharedFd = Rc<OwnedFd>;

/// Bytes received into the spare capacity of the buffer, appended to what it held.
pub(super) struct Recv(InFlight<(SharedFd, Vec<u8>)>);

/// Receives into `buffer`; its spare capacity must not be 0 (0 octets would read as end of file).
/// `more`: octets are probably there already.
pub(super) fn recv(fd: &SharedFd, mut buffer: Vec<u8>, more: bool) -> Recv {
    let spare = buffer.spare_capacity_mut();
    assert!(!spare.is_empty(), "a receive needs room");
    let room = u32::try_from(spare.len()).unwrap_or(u32::MAX);
    let entry = opcode::Recv::new(types::Fd(fd.as_raw_fd()), spare.as_mut_ptr().cast(), room);
    let entry = entry.build();
    let entry = if more { entry } else { poll_first(entry) };
    // SAFETY: the pointer is into the heap buffer of the vector that moves into the operation,
    // which neither reads nor frees it before the completion; the fd lives as long.
    Recv(unsafe { submit(entry, (fd.clone(), buffer)) })
}

/// Has a receive wait before its first try (IORING_RECVSEND_POLL_FIRST, Linux 5.19): a dialogue
/// posts its read when it has just answered, so that the first try nearly always fails.
fn poll_first(mut entry: Entry) -> Entry {
    const POLL_FIRST: u16 = 1;
    const _: () = assert!(size_of::<Entry>() == 64);
    // SAFETY: an entry is, as `repr(C)`, the kernel's io_uring_sqe, whose octets 2 and 3 are
    // `ioprio`, which carries this flag of a receive; the crate has no setter for it.
    unsafe { (&raw mut entry).cast::<u16>().add(1).write(POLL_FIRST) };
    entry
}

impl Future for Recv {
    type Output = (io::Result<usize>, Vec<u8>);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|(result, (_, mut buffer))| {
            if let Ok(count) = result {
                // SAFETY: the kernel has written `count` octets behind the vector's length, at
                // most its spare capacity.
                unsafe { buffer.set_len(buffer.len() + count) };
            }
            (result, buffer)
        })
    }
}

/// All pieces sent, or an error.
pub(super) struct Send {
    fd: SharedFd,
    flight: Sending,
}

enum Sending {
    /// One piece, as replies are: the kernel has no header and no vectors to copy in.
    One(InFlight<(SharedFd, Gather)>),
    Many(InFlight<(SharedFd, Box<RawMessage>)>),
}

/// Sends all of `gather`: MSG_WAITALL lets the kernel finish short sends itself.
pub(super) fn send(fd: &SharedFd, gather: Gather) -> Send {
    Send { fd: fd.clone(), flight: Sending::begin(fd, gather) }
}

impl Sending {
    fn begin(fd: &SharedFd, gather: Gather) -> Self {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        if let Some(piece) = gather.only_slice()
            && let Ok(octets) = u32::try_from(piece.len())
        {
            let entry = opcode::Send::new(types::Fd(fd.as_raw_fd()), piece.as_ptr(), octets);
            // SAFETY: the piece is on the heap or static; what owns it moves into the operation.
            return Self::One(unsafe { submit(entry.flags(flags).build(), (fd.clone(), gather)) });
        }
        let mut raw = Box::new(RawMessage::new(gather));
        let entry = opcode::SendMsg::new(types::Fd(fd.as_raw_fd()), raw.header());
        let entry = entry.flags(flags.cast_unsigned()).build();
        // SAFETY: header, vectors and pieces live in the box that moves into the operation; a
        // box and the heap buffers of the pieces do not move with it.
        Self::Many(unsafe { submit(entry, (fd.clone(), raw)) })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(io::Result<usize>, Gather)> {
        match self {
            Self::One(flight) => {
                Pin::new(flight).poll(cx).map(|(result, (_, gather))| (result, gather))
            }
            Self::Many(flight) => {
                Pin::new(flight).poll(cx).map(|(result, (_, raw))| (result, raw.gather))
            }
        }
    }
}

impl Future for Send {
    type Output = io::Result<()>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let (result, mut gather) = match self.flight.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(done) => done,
            };
            match result {
                Ok(0) if !gather.is_empty() => return Poll::Ready(Err(gather::write_zero())),
                Ok(count) => gather.advance(count),
                Err(error) => return Poll::Ready(Err(error)),
            }
            if gather.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.flight = Sending::begin(&self.fd, gather);
        }
    }
}

/// Connects a socket that we made and bound.
pub(super) async fn connect(fd: &SharedFd, peer: SockAddr) -> io::Result<()> {
    let peer = Box::new(peer);
    let entry = opcode::Connect::new(types::Fd(fd.as_raw_fd()), peer.as_ptr().cast(), peer.len());
    // SAFETY: the address is boxed and moves into the operation with its box.
    unsafe { submit(entry.build(), (fd.clone(), peer)) }.await.0.map(|_| ())
}

/// Accepts one connection; its file descriptor is close-on-exec.
pub(super) async fn accept(fd: &SharedFd) -> io::Result<OwnedFd> {
    let nowhere = std::ptr::null_mut();
    let entry = opcode::Accept::new(types::Fd(fd.as_raw_fd()), nowhere, std::ptr::null_mut());
    // SAFETY: no pointer is handed over but nulls, which accept4(2) allows.
    let flight = unsafe { submit(entry.flags(libc::SOCK_CLOEXEC).build(), fd.clone()) };
    let accepted = i32::try_from(flight.await.0?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// Writes all of `gather` at `offset`, or where the file stands when `offset` is `None`.
pub(super) async fn write_at(fd: &SharedFd, gather: Gather, offset: Option<u64>) -> io::Result<()> {
    let (mut gather, mut offset) = (gather, offset);
    let mut is_begun = false;
    while !gather.is_empty() {
        let mut raw = Box::new(RawMessage::new(gather));
        let (vectors, count) = raw.vectors();
        let entry = opcode::Writev::new(types::Fd(fd.as_raw_fd()), vectors, count)
            .offset(offset.unwrap_or(u64::MAX))
            .build();
        // SAFETY: as in `send`: vectors and pieces live in the box that moves along.
        let (result, (_, raw)) = unsafe { submit(entry, (fd.clone(), raw)) }.await;
        gather = raw.gather;
        let count = match result {
            Ok(0) => return Err(gather::write_zero()),
            Ok(count) => count,
            // Nothing was written where it says so.
            Err(error) if is_begun && error.kind() == io::ErrorKind::InvalidInput => {
                return Err(io::Error::other(error));
            }
            Err(error) => return Err(error),
        };
        is_begun = true;
        gather.advance(count);
        offset = offset.map(|o| o + count as u64);
    }
    Ok(())
}

/// Reads into the spare capacity of `buffer` from `offset`; 0 at the end of the file.
pub(super) async fn read_at(
    fd: &SharedFd,
    mut buffer: Vec<u8>,
    offset: u64,
) -> (io::Result<usize>, Vec<u8>) {
    let spare = buffer.spare_capacity_mut();
    let room = u32::try_from(spare.len()).unwrap_or(u32::MAX);
    let entry = opcode::Read::new(types::Fd(fd.as_raw_fd()), spare.as_mut_ptr().cast(), room);
    // SAFETY: as in `recv`.
    let flight = unsafe { submit(entry.offset(offset).build(), (fd.clone(), buffer)) };
    let (result, (_, mut buffer)) = flight.await;
    if let Ok(count) = result {
        // SAFETY: the kernel has written `count` octets behind the length.
        unsafe { buffer.set_len(buffer.len() + count) };
    }
    (result, buffer)
}

/// fdatasync(2).
pub(super) async fn sync_data(fd: &SharedFd) -> io::Result<()> {
    let entry =
        opcode::Fsync::new(types::Fd(fd.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
    // SAFETY: no pointer is handed over.
    unsafe { submit(entry, fd.clone()) }.await.0.map(|_| ())
}

/// Waits for `duration`, to the microsecond and not to the millisecond of the runtime's timers. It
/// may be dropped: what it keeps stays with the ring until the time is over.
pub(super) async fn nap(duration: Duration) {
    let time = Box::new(types::Timespec::from(duration));
    let entry = opcode::Timeout::new(&raw const *time).build();
    // SAFETY: the time is boxed and moves into the operation with its box.
    let flight = unsafe { submit(entry, time) };
    // It always ends with ETIME: another error would be the ring's, and the next operation meets
    // it too.
    drop(flight.await);
}

/// An operation that does nothing, and is done when those before it have been handed over.
pub(super) async fn hand_over() {
    // It has no result: an error would be the ring's, and the next operation meets it too.
    drop(tokio_uring::no_op().await);
}

/// A msghdr with its vectors and the pieces that they point into.
struct RawMessage {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    gather: Gather,
}

impl RawMessage {
    fn new(gather: Gather) -> Self {
        let vectors = gather
            .slices()
            .map(|s| libc::iovec { iov_base: s.as_ptr().cast_mut().cast(), iov_len: s.len() })
            .collect();
        // SAFETY: a msghdr of zeros is a valid empty message.
        Self { header: unsafe { std::mem::zeroed() }, vectors, gather }
    }

    fn header(&mut self) -> *const libc::msghdr {
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
        &raw const self.header
    }

    fn vectors(&mut self) -> (*const libc::iovec, u32) {
        let count = u32::try_from(self.vectors.len()).unwrap_or(u32::MAX);
        (self.vectors.as_ptr(), count)
    }
}

/// One operation under way, with what it must keep.
struct InFlight<D: Unpin + 'static>(InFlightOneshot<D, GiveBack<D>>);

/// Hands `entry` to the ring together with `kept`, which lives until the completion.
///
/// # Safety
/// Every pointer in `entry` must point to memory that `kept` owns and that does not move when
/// `kept` does, and every descriptor must stay open as long as `kept` lives.
unsafe fn submit<D: Unpin + 'static>(entry: Entry, kept: D) -> InFlight<D> {
    InFlight(UnsubmittedOneshot::new(kept, GiveBack(PhantomData), entry).submit())
}

impl<D: Unpin + 'static> Future for InFlight<D> {
    type Output = (io::Result<usize>, D);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

struct GiveBack<D>(PhantomData<D>);

impl<D: 'static> OneshotOutputTransform for GiveBack<D> {
    type Output = (io::Result<usize>, D);
    type StoredData = D;
    fn transform_oneshot_output(self, kept: D, completion: cqueue::Entry) -> Self::Output {
        let result = completion.result();
        let result = usize::try_from(result)
            .map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()));
        (result, kept)
    }
}
