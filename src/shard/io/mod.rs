//! The only doors of the data plane to the kernel: sockets, files, time, randomness.
//!
//! Owns: [`Socket`], [`Listener`], [`File`], the two ways to run them ([`Backend`]), the clock.
//! Never: protocol, policy, deadlines. Everything above this folder is the same code on io_uring
//! and on epoll.
//!
//! An operation in flight is never dropped on a live socket: who loses patience calls
//! [`Socket::shutdown`], awaits the operation, then drops it.
//!
//! Diagnostics: errors of the kernel come back as `io::Error`.

mod clock;
mod epoll;
mod files;
mod gather;
mod rest;
mod ring;
mod sockopt;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Type};

use crate::mail::Shortage;

pub use clock::{now, now_us, random};
pub use files::{File, Files};
pub use gather::{Gather, Piece};

/// A peer that acknowledges nothing for this long is gone (RFC 5482): the backstop under the
/// SMTP deadlines.
const USER_TIMEOUT: Duration = Duration::from_secs(660);

/// How a shard does its I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// io_uring.
    Ring,
    /// epoll, with one helper thread for files.
    Epoll,
}

impl Backend {
    /// The name as the configuration and the status page have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Epoll => "epoll",
        }
    }
}

/// Why io_uring cannot be used here, in one line that says what to change; `Ok` when it can.
///
/// # Errors
/// The line.
pub fn probe_ring() -> Result<(), String> {
    ring::probe().map_err(|error| {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let cure = match (error.raw_os_error(), disabled.as_deref().map(str::trim)) {
            (Some(libc::EPERM), Ok("1" | "2")) => "set sysctl kernel.io_uring_disabled=0",
            (Some(libc::EPERM | libc::EACCES), _) => {
                "a seccomp filter forbids it: allow io_uring_setup, io_uring_enter and \
                 io_uring_register (containers: a seccomp profile with them)"
            }
            (Some(libc::ENOSYS), _) => {
                "the kernel has no io_uring, or a seccomp filter hides it: Linux 6.0 or newer"
            }
            (Some(libc::ENOMEM), _) => "raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the unit file)",
            _ => "use Linux 6.0 or newer",
        };
        format!("io_uring is refused ({error}): {cure}")
    })
}

/// Runs `future` to its end on this thread. File operations of the epoll twin need
/// [`Files::start`] inside it.
///
/// # Errors
/// The ring or the runtime could not be made.
pub fn run<F: Future>(backend: Backend, future: F) -> io::Result<F::Output> {
    match backend {
        Backend::Ring => ring::run(future),
        Backend::Epoll => epoll::run(future),
    }
}

/// The backends that a test can run on here.
#[cfg(test)]
pub(super) fn backends() -> Vec<Backend> {
    match probe_ring() {
        Ok(()) => vec![Backend::Ring, Backend::Epoll],
        Err(why) => {
            eprintln!("skipped on io_uring: {why}");
            vec![Backend::Epoll]
        }
    }
}

/// Starts a task on this thread's runtime; it runs until it ends or the runtime does.
/// [`now`] stands still during each of its polls.
pub fn spawn<F: Future<Output = ()> + 'static>(future: F) {
    // In a box, for the runtime moves a task about when it begins and when it ends.
    let mut future = Box::pin(future);
    drop(tokio::task::spawn_local(std::future::poll_fn(move |cx| {
        rest::note_work();
        clock::standing(|| future.as_mut().poll(cx))
    })));
}

/// From now on this thread leaves its core to others before it sleeps, as long as they take it.
pub fn rest(files: &Files) {
    let files = files.clone();
    drop(tokio::task::spawn_local(rest::run(async move || rest::offer_core(&files).await)));
}

/// Sleeps; for the few timers of a shard, not for one per operation.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The outcome of `future`, if it is there within `duration`. The future is dropped: not for an
/// operation of the kernel.
pub async fn within<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(duration, future).await.ok()
}

/// What our own machine lacked, where `error` of accept, socket, bind or connect says so.
#[must_use]
pub fn shortage(error: &io::Error) -> Option<Shortage> {
    match error.raw_os_error()? {
        libc::EMFILE => Some(Shortage::ProcessFiles),
        libc::ENFILE => Some(Shortage::SystemFiles),
        libc::ENOBUFS | libc::ENOMEM => Some(Shortage::Memory),
        libc::EADDRNOTAVAIL => Some(Shortage::Ports),
        _ => None,
    }
}

/// A TCP connection.
#[derive(Clone)]
pub struct Socket(SocketKind);

#[derive(Clone)]
enum SocketKind {
    Ring(ring::SharedFd),
    Epoll(Rc<epoll::Stream>),
}

impl Socket {
    /// Makes a socket to `peer` and binds it to `source`; [`Connecting::stands`] connects it.
    /// `buffer_octets` is the size of its kernel buffers; 0 leaves it to the kernel.
    ///
    /// # Errors
    /// Too many open files, no such source address.
    pub fn to(
        backend: Backend,
        peer: SocketAddr,
        source: Option<IpAddr>,
        buffer_octets: u32,
    ) -> io::Result<Connecting> {
        let socket = socket2::Socket::new(
            Domain::for_address(peer),
            Type::STREAM.cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        set_buffers(&socket, buffer_octets)?;
        if let Some(source) = source {
            // The port is chosen at connect, when the kernel knows the peer: a source address
            // then has 28,000 ports for each peer and not for all of them together.
            sockopt::bind_address_no_port(&socket)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        let socket = Self::begin(backend, socket, peer)?;
        Ok(Connecting { socket, peer: peer.into() })
    }

    fn begin(backend: Backend, socket: socket2::Socket, peer: SocketAddr) -> io::Result<Self> {
        match backend {
            Backend::Ring => Ok(Self(SocketKind::Ring(Rc::new(socket.into())))),
            Backend::Epoll => {
                socket.set_nonblocking(true)?;
                match socket.connect(&peer.into()) {
                    Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
                    Ok(()) | Err(_) => {}
                }
                Ok(Self(SocketKind::Epoll(Rc::new(epoll::stream(socket.into())?))))
            }
        }
    }

    /// Receives into `buffer`, behind what it holds; 0 octets at the end of the stream. `more`:
    /// octets are probably there already; it saves work to be right.
    #[must_use]
    pub fn recv(&self, buffer: Vec<u8>, more: bool) -> Recv {
        match &self.0 {
            SocketKind::Ring(fd) => Recv(RecvKind::Ring(ring::recv(fd, buffer, more))),
            SocketKind::Epoll(stream) => Recv(RecvKind::Epoll(epoll::recv(stream, buffer))),
        }
    }

    /// Sends all of `gather`.
    #[must_use]
    pub fn send(&self, gather: Gather) -> Send {
        match &self.0 {
            SocketKind::Ring(fd) => Send(SendKind::Ring(ring::send(fd, gather))),
            SocketKind::Epoll(stream) => Send(SendKind::Epoll(epoll::send(stream, gather))),
        }
    }

    /// True when octets have come in that nobody has read yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let mut octet = [std::mem::MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        matches!(self.as_socket().recv_with_flags(&mut octet, flags), Ok(1..))
    }

    /// Ends both directions; operations in flight complete at once.
    pub fn shutdown(&self) {
        // A socket that the peer has reset is not connected any more: nothing is left to end.
        drop(self.as_socket().shutdown(std::net::Shutdown::Both));
    }

    /// Ends our direction: the peer reads the end of the stream, we still read what it says.
    pub fn shutdown_write(&self) {
        drop(self.as_socket().shutdown(std::net::Shutdown::Write));
    }

    /// Our end.
    ///
    /// # Errors
    /// The socket is not connected any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address(self.as_socket().local_addr())
    }

    /// The peer's end.
    ///
    /// # Errors
    /// The socket is not connected any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        address(self.as_socket().peer_addr())
    }

    fn as_socket(&self) -> socket2::SockRef<'_> {
        match &self.0 {
            SocketKind::Ring(fd) => socket2::SockRef::from(&**fd),
            SocketKind::Epoll(stream) => socket2::SockRef::from(&**stream),
        }
    }
}

fn address(given: io::Result<SockAddr>) -> io::Result<SocketAddr> {
    given?.as_socket().ok_or_else(|| io::Error::other("not an internet socket"))
}

/// Fixes both kernel buffers of a socket; 0 leaves them to the kernel, which follows the load.
fn set_buffers(socket: &socket2::Socket, octets: u32) -> io::Result<()> {
    if octets > 0 {
        let octets = usize::try_from(octets).map_err(io::Error::other)?;
        socket.set_send_buffer_size(octets)?;
        socket.set_recv_buffer_size(octets)?;
    }
    Ok(())
}

/// A socket whose connection is under way.
pub struct Connecting {
    socket: Socket,
    peer: SockAddr,
}

impl Connecting {
    /// The socket, to shut it down while it connects.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Waits until the connection stands.
    ///
    /// # Errors
    /// Refused, unreachable, reset, timed out, shut down.
    pub async fn stands(self) -> io::Result<Socket> {
        match &self.socket.0 {
            SocketKind::Ring(fd) => ring::connect(fd, self.peer).await?,
            SocketKind::Epoll(stream) => epoll::connected(stream).await?,
        }
        Ok(self.socket)
    }
}

/// A receive under way.
pub struct Recv(RecvKind);

enum RecvKind {
    Ring(ring::Recv),
    Epoll(epoll::Recv),
}

impl Future for Recv {
    type Output = (io::Result<usize>, Vec<u8>);
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            RecvKind::Ring(recv) => Pin::new(recv).poll(cx),
            RecvKind::Epoll(recv) => Pin::new(recv).poll(cx),
        }
    }
}

/// A send under way.
pub struct Send(SendKind);

enum SendKind {
    Ring(ring::Send),
    Epoll(epoll::Send),
}

impl Future for Send {
    type Output = io::Result<()>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            SendKind::Ring(send) => Pin::new(send).poll(cx),
            SendKind::Epoll(send) => Pin::new(send).poll(cx),
        }
    }
}

/// A listening socket, bound before any shard runs so that a wrong address is an error at start.
pub struct BoundListener(OwnedFd);

impl BoundListener {
    /// Binds and listens. Several sockets on one address (SO_REUSEPORT) share its connections.
    /// `backlog` connections wait to be accepted at most (the kernel lowers it to
    /// net.core.somaxconn); `buffer_octets` as for [`Socket::to`].
    ///
    /// # Errors
    /// In use, not ours, no permission.
    pub fn bind(address: SocketAddr, backlog: u32, buffer_octets: u32) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::STREAM.cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Accepted sockets inherit both.
        socket.set_tcp_nodelay(true)?;
        set_buffers(&socket, buffer_octets)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(Self(socket.into()))
    }

    /// The address, with the port that the system chose when 0 was asked for.
    ///
    /// # Errors
    /// None in practice.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address(socket2::SockRef::from(&self.0).local_addr())
    }

    /// Ready to accept on this thread's runtime.
    ///
    /// # Errors
    /// The runtime refuses the socket.
    pub fn open(self, backend: Backend) -> io::Result<Listener> {
        Ok(Listener(match backend {
            Backend::Ring => ListenerKind::Ring(Rc::new(self.0)),
            Backend::Epoll => ListenerKind::Epoll(Rc::new(epoll::listener(self.0)?)),
        }))
    }
}

/// A listening socket of one shard.
#[derive(Clone)]
pub struct Listener(ListenerKind);

#[derive(Clone)]
enum ListenerKind {
    Ring(ring::SharedFd),
    Epoll(Rc<epoll::Accepting>),
}

impl Listener {
    /// Waits for a connection. Never drop it while it waits: call [`Listener::shutdown`] and
    /// await it, or an accepted connection is lost.
    ///
    /// # Errors
    /// Too many open files; the listener was shut down.
    pub async fn accept(&self) -> io::Result<Accepted> {
        Ok(Accepted(match &self.0 {
            ListenerKind::Ring(fd) => ring::accept(fd).await?,
            ListenerKind::Epoll(listener) => listener.accept().await?,
        }))
    }

    /// Stops accepting: an accept under way ends with an error.
    pub fn shutdown(&self) {
        let socket = match &self.0 {
            ListenerKind::Ring(fd) => socket2::SockRef::from(&**fd),
            ListenerKind::Epoll(listener) => listener.as_socket(),
        };
        drop(socket.shutdown(std::net::Shutdown::Both));
    }
}

/// A connection that was accepted and belongs to no shard yet.
pub struct Accepted(OwnedFd);

impl Accepted {
    /// Makes it a socket of this thread's runtime.
    ///
    /// # Errors
    /// The runtime refuses the socket.
    pub fn open(self, backend: Backend) -> io::Result<Socket> {
        Ok(Socket(match backend {
            Backend::Ring => SocketKind::Ring(Rc::new(self.0)),
            Backend::Epoll => SocketKind::Epoll(Rc::new(epoll::stream(self.0)?)),
        }))
    }
}

/// Runs blocking work on a thread of its own: for the rare steps that no ring operation covers.
///
/// # Errors
/// Those of the work; the thread could not be started.
pub async fn on_helper<T: std::marker::Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + std::marker::Send + 'static,
) -> io::Result<T> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("ringpost-helper".into()).spawn(move || {
        // Nobody waits any more when the shard has ended.
        drop(sender.send(work()));
    })?;
    answer.await.map_err(|_| io::Error::other("the helper thread panicked"))?
}

/// Is nobody listening on `address`? The kernel takes a ring apart after the end of its process:
/// the sockets of one that was killed live on for a moment, for which this waits.
///
/// # Errors
/// As bind(2), AddrInUse above all.
pub fn wait_until_free(address: SocketAddr) -> io::Result<()> {
    const LOOKS_MAX: u32 = 60;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..LOOKS_MAX {
        match is_free(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    is_free(address)
}

/// A look without SO_REUSEPORT, beside which nobody else can be bound.
fn is_free(address: SocketAddr) -> io::Result<()> {
    let kind = Type::STREAM.cloexec();
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

/// Pins this thread to the `index`-th processor it may run on; false when the system refuses.
#[must_use]
pub fn pin_thread(index: usize) -> bool {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return false };
    let processors: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    if processors.is_empty() {
        return false;
    }
    let mut chosen = rustix::thread::CpuSet::new();
    chosen.set(processors[index % processors.len()]);
    rustix::thread::sched_setaffinity(None, &chosen).is_ok()
}
