//! The thread of a sink: its listeners, its connections, and the orders that it gets.
//!
//! Owns: sockets and tasks. Never: the dialogue itself (`dialogue`).
//!
//! While a sink is down, a bound socket that does not listen holds each port: a connection is
//! refused, and nobody else can take the port. Linux allows a second socket with SO_REUSEADDR on
//! it as long as only one of them listens (socket(7)).

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc as orders;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::MissedTickBehavior;

use super::dialogue::{Dialogue, Next};
use super::script::{Script, Stage};
use super::{Shared, SinkOptions, ledger};

/// How often the count file is brought up to date: half of what is promised.
const COUNT_FILE_PERIOD: Duration = Duration::from_millis(50);

/// Connections that may wait to be taken.
const BACKLOG: i32 = 4096;

/// One read takes at most this many octets; all connections share the buffer.
const READ_OCTETS: usize = 256 * 1024;

/// Orders that may wait; each sender waits for its own to be done.
const ORDERS_MAX: usize = 64;

/// What the handle can order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Up,
    Down,
    Reset,
    Stop,
}

type Answer = mpsc::SyncSender<io::Result<()>>;

/// The sending end of the orders.
#[derive(Clone, Debug)]
pub(super) struct Control(orders::Sender<(Order, Answer)>);

impl Control {
    /// Gives an order and waits until it is done.
    pub(super) fn order(&self, order: Order) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::NotConnected, "the sink has ended");
        let (answer, done) = mpsc::sync_channel(1);
        self.0.try_send((order, answer)).map_err(|_| ended())?;
        done.recv().map_err(|_| ended())?
    }
}

/// A sink that is bound and not yet running.
pub(super) struct Server {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    /// Hold the ports while the sink is down.
    _guards: Vec<Socket>,
    count_file: Option<PathBuf>,
    orders: orders::Receiver<(Order, Answer)>,
}

impl Server {
    pub(super) fn bind(
        options: &SinkOptions,
        shared: Arc<Shared>,
    ) -> io::Result<(Server, Control)> {
        let mut guards = Vec::new();
        let mut addresses = Vec::new();
        for wanted in &options.listen {
            let guard = bound(*wanted).map_err(|error| super::named(wanted, &error))?;
            let address = guard.local_addr()?.as_socket();
            addresses.push(address.unwrap_or(*wanted));
            guards.push(guard);
        }
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
        }
        let (sender, orders) = orders::channel(ORDERS_MAX);
        let count_file = options.count_file.clone();
        Ok((Server { shared, addresses, _guards: guards, count_file, orders }, Control(sender)))
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until it is stopped.
    pub(super) fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Without a runtime the first order finds its channel closed, and starting fails.
        if let Ok(runtime) = runtime {
            LocalSet::new().block_on(&runtime, self.serve());
        }
    }

    async fn serve(mut self) {
        let mut listeners: Vec<TcpListener> = Vec::new();
        let mut sessions = JoinSet::new();
        let scratch = Rc::new(RefCell::new(vec![0; READ_OCTETS]));
        let mut counted = 0;
        let mut tick = tokio::time::interval(COUNT_FILE_PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                accepted = accept(&listeners) => match accepted {
                    Ok(stream) => {
                        let peer = Peer::new(stream, Arc::clone(&self.shared));
                        sessions.spawn_local(session(peer, Rc::clone(&scratch)));
                    }
                    // Out of descriptors, most likely: some will be closed soon.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
                _ = tick.tick(), if self.count_file.is_some() => self.write_count(&mut counted),
                () = self.shared.enough.notified() => break,
                order = self.orders.recv() => {
                    let Some((order, answer)) = order else { break };
                    let done = self.obey(order, &mut listeners, &mut sessions).await;
                    // Who gave the order may have gone; the order is carried out all the same.
                    answer.try_send(done).unwrap_or_default();
                    if order == Order::Stop {
                        break;
                    }
                }
            }
        }
        // Replies that are on their way to the socket get there before it closes.
        tokio::task::yield_now().await;
        sessions.shutdown().await;
        self.write_count(&mut counted);
    }

    async fn obey(
        &self,
        order: Order,
        listeners: &mut Vec<TcpListener>,
        sessions: &mut JoinSet<()>,
    ) -> io::Result<()> {
        match order {
            Order::Stop => Ok(()),
            Order::Up if listeners.is_empty() => {
                *listeners = self.addresses.iter().map(listen).collect::<io::Result<_>>()?;
                Ok(())
            }
            Order::Up => Ok(()),
            Order::Down => {
                listeners.clear();
                self.reset(sessions).await;
                Ok(())
            }
            Order::Reset => {
                self.reset(sessions).await;
                Ok(())
            }
        }
    }

    async fn reset(&self, sessions: &mut JoinSet<()>) {
        self.shared.reset.store(true, Ordering::Relaxed);
        sessions.shutdown().await;
        self.shared.reset.store(false, Ordering::Relaxed);
    }

    /// A count file that cannot be written now is tried again at the next tick.
    fn write_count(&self, counted: &mut u64) {
        let count = self.shared.counts().messages;
        if let Some(file) = &self.count_file
            && count != *counted
            && ledger::write_count(file, count).is_ok()
        {
            *counted = count;
        }
    }
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(address: &SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(*address)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The next connection of any listener; never ends while there is none.
async fn accept(listeners: &[TcpListener]) -> io::Result<TcpStream> {
    std::future::poll_fn(|context| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(context) {
                return Poll::Ready(accepted.map(|(stream, _)| stream));
            }
        }
        Poll::Pending
    })
    .await
}

/// One connection; counted while it lives, and reset when it ends by order.
struct Peer {
    stream: TcpStream,
    shared: Arc<Shared>,
    open: u64,
}

impl Peer {
    fn new(stream: TcpStream, shared: Arc<Shared>) -> Peer {
        let open = shared.connection_begins();
        Peer { stream, shared, open }
    }

    /// Makes the close that follows a reset. A failure leaves an ordinary close.
    fn reset_on_close(&self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap_or_default();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.shared.reset.load(Ordering::Relaxed) {
            self.reset_on_close();
        }
        self.shared.connection_ends();
    }
}

async fn session(mut peer: Peer, scratch: Rc<RefCell<Vec<u8>>>) {
    // The client sees every way in which this ends; there is nobody else to tell.
    drop(converse(&mut peer, &scratch).await);
}

async fn converse(peer: &mut Peer, scratch: &RefCell<Vec<u8>>) -> io::Result<()> {
    let shared = Arc::clone(&peer.shared);
    peer.stream.set_nodelay(true)?;
    let mut out = Vec::new();
    let script = shared.script.load_full();
    let next = greet(peer, &script, &mut out);
    flush(peer, &script, &mut out).await?;
    match next {
        Next::Read | Next::Mute => {}
        Next::Stall => return std::future::pending().await,
        Next::Close => return Ok(()),
    }
    let mut dialogue = Dialogue::new(&script.greeting);
    drop(script);
    loop {
        peer.stream.readable().await?;
        let script = shared.script.load_full();
        let next = {
            let mut scratch = scratch.borrow_mut();
            let count = match peer.stream.try_read(&mut scratch) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let before = shared.messages.load(Ordering::Relaxed);
            let next = dialogue.feed(&shared, &script, &scratch[..count], &mut out);
            if shared.messages.load(Ordering::Relaxed) != before {
                shared.mark_time();
            }
            next
        };
        flush(peer, &script, &mut out).await?;
        shared.notice_enough();
        match next {
            Next::Read | Next::Mute => {}
            Next::Stall => return std::future::pending().await,
            Next::Close => return Ok(()),
        }
    }
}

fn greet(peer: &Peer, script: &Script, out: &mut Vec<u8>) -> Next {
    if let Some(next) = script.breaks_at(Stage::Connect) {
        if next == Next::Close {
            peer.reset_on_close();
        }
        return next;
    }
    if let Some(next) = script.breaks_at(Stage::Greeting) {
        return next;
    }
    if script.connections_max.is_some_and(|most| peer.open > most) {
        out.extend_from_slice(b"421 4.7.0 Too many connections\r\n");
        return Next::Close;
    }
    out.extend_from_slice(&script.greeting.octets);
    script.greeting.next()
}

async fn flush(peer: &mut Peer, script: &Script, out: &mut Vec<u8>) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    if !script.delay.is_zero() {
        tokio::time::sleep(script.delay).await;
    }
    peer.stream.write_all(out).await?;
    out.clear();
    Ok(())
}
