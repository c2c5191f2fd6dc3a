//! One TCP connection under one task: a posted read, at most one write, a deadline and a bell.
//!
//! Owns: [`Connection`], which waits for whatever happens next, and [`Bell`], by which the rest
//! of the shard wakes the task. Never: a protocol. A read is always posted, also while a write is
//! under way, so that an early reply or the peer's end is seen at once; and it is never dropped:
//! to end, the socket is shut down and the read comes back.
//!
//! Limits: one receive buffer of [`RECEIVE_OCTETS`] a connection, of [`RECEIVE_OCTETS_MAX`] while
//! its peer sends more than fits into the small one. A buffer that a message holds on to is
//! replaced.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::io::{Gather, Recv, Send, Socket};
use crate::mail::{Mono, ReadBuffer};

/// Room of the receive buffer, in octets.
pub(super) const RECEIVE_OCTETS: usize = 16 * 1024;

/// Room of it while a peer sends trains of messages, or large ones: each read costs a wake-up of
/// this task and a write of replies, whatever it brings.
pub(super) const RECEIVE_OCTETS_MAX: usize = 64 * 1024;

/// Wakes the task of one connection: rung by the shard when there is work for it, and by the
/// shard's sweep when its deadline has passed.
#[derive(Default)]
pub(super) struct Bell {
    rung: Cell<bool>,
    expired: Cell<bool>,
    deadline: Cell<Option<Mono>>,
    waker: RefCell<Option<Waker>>,
}

impl Bell {
    /// Something other than the socket wants the task's attention.
    pub(super) fn ring(&self) {
        self.rung.set(true);
        self.wake();
    }

    /// Sets the time at which [`Happened::Deadline`] comes; `None`: never.
    pub(super) fn set_deadline(&self, deadline: Option<Mono>) {
        self.deadline.set(deadline);
        self.expired.set(false);
    }

    /// Called by the shard's sweep.
    pub(super) fn sweep(&self, now: Mono) {
        if self.deadline.get().is_some_and(|deadline| deadline <= now) {
            self.deadline.set(None);
            self.expired.set(true);
            self.wake();
        }
    }

    /// Waits until the bell rings or the deadline passes, beside `future`; for the time before a
    /// connection stands.
    pub(super) async fn beside<F: Future>(&self, future: F) -> Beside<F::Output> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Beside::Done(output));
            }
            self.poll(cx).map(|happened| match happened {
                Happened::Deadline => Beside::Deadline,
                Happened::Received(_) | Happened::Sent(_) | Happened::Rung => Beside::Rung,
            })
        })
        .await
    }

    /// Waits until the bell rings.
    pub(super) async fn rung(&self) {
        poll_fn(|cx| self.poll(cx).map(drop)).await;
    }

    /// Waits until the bell rings, `duration` at most.
    pub(super) async fn rung_within(&self, duration: Duration) {
        match self.beside(super::io::sleep(duration)).await {
            Beside::Done(()) | Beside::Deadline | Beside::Rung => {}
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Happened> {
        if self.expired.replace(false) {
            return Poll::Ready(Happened::Deadline);
        }
        if self.rung.replace(false) {
            return Poll::Ready(Happened::Rung);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Has it rung since it was last asked?
    #[cfg(test)]
    pub(super) fn has_rung(&self) -> bool {
        self.rung.replace(false)
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What [`Bell::beside`] saw first.
pub(super) enum Beside<T> {
    /// The future is done.
    Done(T),
    /// The deadline passed.
    Deadline,
    /// The bell rang.
    Rung,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Happened {
    /// Octets came in (read them with [`Connection::received`]); `Ok(0)`: the peer ended its
    /// direction.
    Received(io::Result<usize>),
    /// The write is done, or failed.
    Sent(io::Result<()>),
    /// The bell rang.
    Rung,
    /// The deadline passed.
    Deadline,
}

/// A connection with its read posted.
pub(super) struct Connection {
    socket: Socket,
    bell: Rc<Bell>,
    read: Option<Recv>,
    write: Option<Send>,
    received: Arc<ReadBuffer>,
    /// Octets of it that are done with.
    done: usize,
    /// The last read filled the buffer: more octets wait.
    more: bool,
    ended: bool,
}

impl Connection {
    /// Takes over a socket and posts its first read.
    #[must_use]
    pub(super) fn new(socket: Socket, bell: Rc<Bell>) -> Self {
        let read = Some(socket.recv(Vec::with_capacity(RECEIVE_OCTETS), false));
        let received = Arc::default();
        Self { socket, bell, read, write: None, received, done: 0, more: false, ended: false }
    }

    /// Waits for the next thing to happen.
    pub(super) async fn next(&mut self) -> Happened {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What the last [`Happened::Received`] brought. The read is posted again by
    /// [`Connection::done_with`].
    #[must_use]
    pub(super) fn received(&self) -> &[u8] {
        self.received.octets().get(self.done..).unwrap_or_default()
    }

    /// The same for messages to hold on to: the buffer, and how much at its front is none of it.
    #[must_use]
    pub(super) fn shared(&self) -> (&Arc<ReadBuffer>, usize) {
        (&self.received, self.done)
    }

    /// Forgets the first `count` octets received and posts the next read behind what is left.
    pub(super) fn done_with(&mut self, count: usize) {
        if self.ended || self.read.is_some() {
            return;
        }
        self.done += count;
        let read = self.received.octets().len();
        let room = match self.received.capacity() {
            _ if self.more => RECEIVE_OCTETS_MAX,
            _ if read <= RECEIVE_OCTETS => RECEIVE_OCTETS,
            room => room,
        };
        let left = self.received();
        let room = room.max(left.len() + RECEIVE_OCTETS / 4);
        let buffer = match Arc::get_mut(&mut self.received) {
            Some(received) if received.capacity() == room => {
                let mut buffer = received.take();
                buffer.drain(..self.done);
                buffer
            }
            Some(_) | None => {
                let mut buffer = self.received.another(room);
                buffer.extend_from_slice(self.received());
                self.received = Arc::default();
                buffer
            }
        };
        self.done = 0;
        self.read = Some(self.socket.recv(buffer, self.more));
    }

    /// Forgets the first `count` octets received and keeps the rest without reading on: the
    /// dialogue is not ready for more.
    pub(super) fn keep(&mut self, count: usize) {
        if self.read.is_none() {
            self.done += count;
        }
    }

    /// True when no write is under way.
    #[must_use]
    pub(super) fn can_send(&self) -> bool {
        self.write.is_none()
    }

    /// Starts a write; [`Happened::Sent`] tells of its end. One at a time.
    pub(super) fn send(&mut self, gather: Gather) {
        assert!(self.write.is_none(), "two writes at once would interleave");
        self.write = Some(self.socket.send(gather));
    }

    /// The socket, for its addresses and to shut it down.
    #[must_use]
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The bell.
    #[must_use]
    pub(super) fn bell(&self) -> &Rc<Bell> {
        &self.bell
    }

    /// Closes the socket; if operations are in flight, shuts it down before and waits until they
    /// have come back.
    pub(super) async fn close(mut self) {
        if self.write.is_some() || self.read.is_some() {
            self.socket.shutdown();
        }
        if let Some(write) = self.write.take() {
            drop(write.await);
        }
        if let Some(read) = self.read.take() {
            drop(read.await);
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        if let Some(write) = &mut self.write
            && let Poll::Ready(result) = Pin::new(write).poll(cx)
        {
            self.write = None;
            return Poll::Ready(Happened::Sent(result));
        }
        if let Some(read) = &mut self.read
            && let Poll::Ready((result, buffer)) = Pin::new(read).poll(cx)
        {
            self.read = None;
            self.more = buffer.len() == buffer.capacity();
            match Arc::get_mut(&mut self.received) {
                Some(received) => received.put(buffer),
                None => self.received = Arc::new(ReadBuffer::from(buffer)),
            }
            self.done = 0;
            self.ended = !matches!(result, Ok(1..));
            return Poll::Ready(Happened::Received(result));
        }
        self.bell.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::io::{self, Backend, BoundListener, Files};
    use super::*;
    use crate::mail::{Octets, Pins};

    async fn pair(backend: Backend) -> (Connection, Connection) {
        let bound = BoundListener::bind("127.0.0.1:0".parse().unwrap(), 16, 0).unwrap();
        let peer = bound.local_addr().unwrap();
        let listener = bound.open(backend).unwrap();
        let source = Some("127.0.0.7".parse().unwrap());
        let connecting = Socket::to(backend, peer, source, 64 * 1024).unwrap();
        let (ours, theirs) = tokio::join!(connecting.stands(), listener.accept());
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap().open(backend).unwrap());
        assert_eq!(theirs.peer_addr().unwrap().ip().to_string(), "127.0.0.7");
        (Connection::new(ours, Rc::default()), Connection::new(theirs, Rc::default()))
    }

    #[test]
    fn a_big_write_arrives_while_the_other_side_writes_too() {
        for backend in io::backends() {
            io::run(backend, async {
                let (mut ours, mut theirs) = pair(backend).await;
                let big: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[0]).collect();
                ours.send(Gather::from(big.clone()));
                theirs.send(Gather::from(b"early reply".to_vec()));
                let mut got = Vec::new();
                let (mut sent, mut early) = (false, Vec::new());
                while got.len() < big.len() || !sent || early.len() < 11 {
                    tokio::select! { biased;
                        happened = theirs.next() => if let Happened::Received(Ok(_)) = happened {
                            got.extend_from_slice(theirs.received());
                            let count = theirs.received().len();
                            theirs.done_with(count);
                        },
                        happened = ours.next() => match happened {
                            Happened::Sent(result) => { result.unwrap(); sent = true; }
                            Happened::Received(Ok(_)) => {
                                early.extend_from_slice(ours.received());
                                let count = ours.received().len();
                                ours.done_with(count);
                            }
                            other => panic!("{other:?}"),
                        },
                    }
                }
                assert!(got == big);
                assert_eq!(early, b"early reply");
                ours.close().await;
                assert!(matches!(theirs.next().await, Happened::Received(Ok(0))));
                theirs.close().await;
            })
            .unwrap();
        }
    }

    /// Passes octets on: how many each read brought, and the room it had.
    async fn pass(
        ours: &mut Connection,
        theirs: &mut Connection,
        octets: usize,
    ) -> Vec<[usize; 2]> {
        ours.send(Gather::from(vec![b'x'; octets]));
        assert!(matches!(ours.next().await, Happened::Sent(Ok(()))));
        let (mut left, mut reads) = (octets, Vec::new());
        while left > 0 {
            assert!(matches!(theirs.next().await, Happened::Received(Ok(1..))));
            let count = theirs.received().len();
            left -= count;
            reads.push([count, theirs.received.capacity()]);
            theirs.done_with(count);
        }
        reads
    }

    #[test]
    fn a_buffer_that_a_message_holds_on_to_is_replaced() {
        for backend in io::backends() {
            io::run(backend, async {
                let (mut ours, mut theirs) = pair(backend).await;
                let pins = Arc::<Pins>::default();
                ours.send(Gather::from(b"onetwo".to_vec()));
                assert!(matches!(ours.next().await, Happened::Sent(Ok(()))));
                assert!(matches!(theirs.next().await, Happened::Received(Ok(6))));
                let (buffer, _) = theirs.shared();
                let mut one = Octets::default();
                one.push_run(buffer.run(&theirs.received()[..3], &pins).unwrap());
                theirs.keep(3);
                assert_eq!((theirs.received(), theirs.shared().1), (&b"two"[..], 3));
                theirs.done_with(2);
                assert_eq!(pins.octets(), RECEIVE_OCTETS as u64);
                ours.send(Gather::from(b"three".to_vec()));
                assert!(matches!(ours.next().await, Happened::Sent(Ok(()))));
                assert!(matches!(theirs.next().await, Happened::Received(Ok(5))));
                assert_eq!((theirs.received(), &*one.behind(0)), (&b"othree"[..], &b"one"[..]));
                drop(one);
                assert_eq!(pins.octets(), 0);
                ours.close().await;
                theirs.close().await;
            })
            .unwrap();
        }
    }

    #[test]
    fn the_receive_buffer_is_large_while_much_comes() {
        for backend in io::backends() {
            io::run(backend, async {
                let (mut ours, mut theirs) = pair(backend).await;
                let few = pass(&mut ours, &mut theirs, 100).await;
                assert_eq!(few, [[100, RECEIVE_OCTETS]]);
                let mut reads = Vec::new();
                for _ in 0..20 {
                    reads.extend(pass(&mut ours, &mut theirs, 60_000).await);
                }
                assert!(reads.iter().any(|[count, _]| *count > RECEIVE_OCTETS), "{reads:?}");
                let most = reads.iter().map(|[_, room]| *room).max();
                assert_eq!(most, Some(RECEIVE_OCTETS_MAX), "{reads:?}");
                pass(&mut ours, &mut theirs, 100).await;
                let few = pass(&mut ours, &mut theirs, 100).await;
                assert_eq!(few, [[100, RECEIVE_OCTETS]]);
                ours.close().await;
                assert!(matches!(theirs.next().await, Happened::Received(Ok(0))));
                theirs.close().await;
            })
            .unwrap();
        }
    }

    #[test]
    fn bell_and_deadline_wake_a_silent_connection() {
        for backend in io::backends() {
            io::run(backend, async {
                let (mut ours, theirs) = pair(backend).await;
                let bell = ours.bell().clone();
                bell.ring();
                assert!(matches!(ours.next().await, Happened::Rung));
                bell.set_deadline(Some(Mono(5)));
                let sweep = async {
                    io::sleep(std::time::Duration::from_millis(1)).await;
                    bell.sweep(Mono(4));
                    bell.sweep(Mono(5));
                };
                let (happened, ()) = tokio::join!(ours.next(), sweep);
                assert!(matches!(happened, Happened::Deadline));
                ours.close().await;
                theirs.close().await;
            })
            .unwrap();
        }
    }

    #[test]
    fn a_refused_connection_and_a_shut_down_one_are_errors() {
        for backend in io::backends() {
            io::run(backend, async {
                // Bound and not listening: nobody else gets the port meanwhile.
                let bound =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                        .unwrap();
                let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
                bound.bind(&any.into()).unwrap();
                let deaf = bound.local_addr().unwrap().as_socket().unwrap();
                let refused = match Socket::to(backend, deaf, None, 0) {
                    Ok(connecting) => connecting.stands().await.err(),
                    Err(error) => Some(error),
                };
                let refused = refused.expect("nobody listens there");
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            })
            .unwrap();
        }
    }

    #[test]
    fn files_are_written_where_they_were_told_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for backend in io::backends() {
            let path = folder.path().join(backend.name());
            io::run(backend, async {
                let files = Files::start(backend).unwrap();
                let plain = std::fs::File::options();
                let file = plain.clone().write(true).read(true).create_new(true).open(&path);
                let file = files.adopt(file.unwrap());
                file.write_at(Gather::from(b"world".to_vec()), 6).await.unwrap();
                file.write_at(Gather::from(b"hello ".to_vec()), 0).await.unwrap();
                file.sync_data().await.unwrap();
                let log = files.open_append(&path).unwrap();
                log.append(Gather::from(b"!".to_vec())).await.unwrap();
                log.append(Gather::from(b"?".to_vec())).await.unwrap();
                assert_eq!(file.read_exact_at(13, 0).await.unwrap(), b"hello world!?");
                let error = file.read_exact_at(14, 0).await.unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
            })
            .unwrap();
        }
    }
}
