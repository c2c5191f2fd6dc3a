//! A link with a delay: a proxy that holds back what passes, in either direction.
//!
//! Owns: [`Link`], through which a test or a bench reaches a receiver as if it were far away.
//! Never: SMTP, or a loss. What comes in leaves whole and in order, one delay later; so does the
//! end of a direction. A new connection waits for three delays before it reaches the receiver,
//! which is when a far host would see the last packet of the handshake.
//!
//! Diagnostics: only starting can fail. A receiver that is gone ends the connection.
//!
//! Limits: [`PIECES_MAX`] pieces of at most [`PIECE_OCTETS`] on their way in each direction of a
//! connection; beyond them the sender waits, as with a full socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Pieces on their way in one direction of one connection.
pub const PIECES_MAX: usize = 64;

/// Octets of one piece.
pub const PIECE_OCTETS: usize = 64 * 1024;

/// A running link; dropping it cuts its connections.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: Notify,
    connections: AtomicU64,
    connections_open: AtomicU64,
    connections_peak: AtomicU64,
    pieces: AtomicU64,
}

impl Link {
    /// Takes connections on a free port of 127.0.0.1 and leads them to `to`, each octet `delay`
    /// late: a round trip takes twice as long.
    ///
    /// # Errors
    /// No port or no thread is to be had.
    pub fn start(to: SocketAddr, delay: Duration) -> io::Result<Link> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("link".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = accept(listener, to, delay, &own) => {}
                    () = own.stop.notified() => {}
                }
            });
        })?;
        Ok(Link { address, shared, thread: Some(thread) })
    }

    /// Where it takes connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections taken so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Most connections that were open at once, as the near side sees it: from its connect to the
    /// end of its direction.
    #[must_use]
    pub fn connections_peak(&self) -> u64 {
        self.shared.connections_peak.load(Ordering::Relaxed)
    }

    /// Pieces that the near sides have sent: one for each of their writes, unless it is larger
    /// than [`PIECE_OCTETS`] or comes right behind another one.
    #[must_use]
    pub fn pieces(&self) -> u64 {
        self.shared.pieces.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the thread of the link has panicked");
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    to: SocketAddr,
    delay: Duration,
    shared: &Arc<Shared>,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((near, _)) => {
                let open = Open::new(Arc::clone(shared));
                tokio::task::spawn_local(lead(near, to, delay, open));
            }
            // Out of descriptors, most likely: some will be closed soon.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A connection of the near side, counted while it lives.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Open {
        // Relaxed: figures for people and tests; no other memory hangs on them.
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let open = shared.connections_open.fetch_add(1, Ordering::Relaxed) + 1;
        shared.connections_peak.fetch_max(open, Ordering::Relaxed);
        Open(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn lead(near: TcpStream, to: SocketAddr, delay: Duration, open: Open) {
    sleep(3 * delay).await;
    let Ok(far) = TcpStream::connect(to).await else { return };
    if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
        return;
    }
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    tokio::join!(pass(from_near, to_far, delay, Some(open)), pass(from_far, to_near, delay, None));
}

/// One direction, until its end has passed too. `open` is over when the end comes in: it is on its
/// way for a delay more, while the near side may open its next connection.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut open: Option<Open>,
) {
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let take = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE_OCTETS);
            let ended = !matches!(from.read_buf(&mut piece).await, Ok(1..));
            if let Some(open) = &open {
                open.0.pieces.fetch_add(1, Ordering::Relaxed);
            }
            if ended {
                drop(open.take());
            }
            // The end travels as an empty piece.
            if sender.send((Instant::now() + delay, piece)).await.is_err() || ended {
                return;
            }
        }
    };
    let give = async move {
        while let Some((due, piece)) = on_the_way.recv().await {
            sleep_until(due).await;
            if piece.is_empty() || to.write_all(&piece).await.is_err() {
                break;
            }
        }
        // A side that is gone needs no end.
        drop(to.shutdown().await);
    };
    tokio::join!(take, give);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const DELAY: Duration = Duration::from_millis(20);

    #[test]
    fn octets_and_ends_pass_whole_in_order_and_late() {
        let far = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Link::start(far.local_addr().unwrap(), DELAY).unwrap();
        let sent: Vec<u8> =
            (0..3 * PIECES_MAX * PIECE_OCTETS).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let begun = Instant::now();
        let mut near = std::net::TcpStream::connect(link.address()).unwrap();
        let (mut peer, _) = far.accept().unwrap();
        assert!(begun.elapsed() >= 3 * DELAY, "{:?}", begun.elapsed());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                near.write_all(&sent).unwrap();
                near.shutdown(std::net::Shutdown::Write).unwrap();
                let mut back = Vec::new();
                near.read_to_end(&mut back).unwrap();
                assert_eq!(back, b"thanks");
            });
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            assert!(got == sent, "{} of {} octets", got.len(), sent.len());
            peer.write_all(b"thanks").unwrap();
            drop(peer);
        });
        // The handshake's three, one there, one back.
        assert!(begun.elapsed() >= 5 * DELAY, "{:?}", begun.elapsed());
        assert_eq!((link.connections(), link.connections_peak()), (1, 1));
    }

    #[test]
    fn a_receiver_that_is_gone_ends_the_connection() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let link = Link::start(gone, Duration::ZERO).unwrap();
        let mut near = std::net::TcpStream::connect(link.address()).unwrap();
        let mut back = Vec::new();
        assert_eq!(near.read_to_end(&mut back).unwrap_or(0), 0);
    }
}
