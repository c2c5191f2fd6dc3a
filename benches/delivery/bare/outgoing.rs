//! The relay's side to its host: trains by BDAT over a few connections.
//!
//! Owns: the connections, each of which carries as many messages as it may and is then replaced, as
//! an engine's are. Never: a look at what a reply says, but for the end of the one to EHLO.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};

use memchr::memchr_iter;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::{Message, PIECES_MAX, TO_HOST};

/// Connections that are opened before they are needed: as many as are spent in one round.
const SPARES: usize = 4;

/// Where messages go, and how.
#[derive(Clone, Copy)]
pub struct Route {
    pub to: SocketAddr,
    /// Connections that take messages, at a time. Beside them are those that come to take their
    /// place, and those whose last replies and end are on their way.
    pub connections: usize,
    /// Messages that one carries.
    pub per_connection: u64,
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Ehlo,
    Ready,
    /// It has carried what it may. QUIT goes behind the last reply: before it the reply to QUIT
    /// could pass for that to the last message (RFC 2920, 3.1: replies are told apart by their
    /// place alone).
    Spent,
}

struct Outgoing {
    stream: TcpStream,
    stage: Stage,
    /// What waits for the dialogue's beginning, or for room in the socket.
    pending: Vec<u8>,
    /// Whose messages are not answered yet.
    owed: VecDeque<(usize, bool)>,
    lines: usize,
    /// Messages that it has left to carry.
    left: u64,
    /// Its events tell of room in the socket too.
    watches_room: bool,
}

/// The host, as the relay knows it.
pub(super) struct Host {
    route: Option<Route>,
    /// By the name of their events; those that are gone leave their place to the next.
    all: Vec<Option<Outgoing>>,
    /// Those that take messages.
    turns: VecDeque<usize>,
    /// Those that will, opened before they are needed: nothing is to wait for a greeting, or to be
    /// copied meanwhile.
    spares: VecDeque<usize>,
    replies: Vec<u8>,
    /// Connections that were opened.
    pub opened: u64,
}

impl Host {
    pub fn new(route: Option<Route>, epoll: &OwnedFd) -> Self {
        let mut host = Self {
            route,
            all: Vec::new(),
            turns: VecDeque::new(),
            spares: VecDeque::new(),
            replies: vec![0; 64 * 1024],
            opened: 0,
        };
        let Some(route) = route else { return host };
        for n in 0..route.connections as u64 {
            // They are spent one after the other, and not all at once.
            let left = (route.per_connection * (n + 1)).div_ceil(route.connections as u64);
            let name = host.open(left, epoll);
            host.turns.push_back(name);
        }
        for _ in 0..SPARES {
            let name = host.open(route.per_connection, epoll);
            host.spares.push_back(name);
        }
        host
    }

    /// Is there a host at all?
    pub fn is_there(&self) -> bool {
        self.route.is_some()
    }

    /// Does it owe a reply?
    pub fn owes(&self) -> bool {
        self.all.iter().flatten().any(|one| !one.owed.is_empty())
    }

    fn open(&mut self, left: u64, epoll: &OwnedFd) -> usize {
        self.opened += 1;
        let route = self.route.unwrap();
        let stream = TcpStream::connect(route.to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        let free = self.all.iter().position(Option::is_none);
        let name = free.unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        let data = EventData::new_u64(TO_HOST | name as u64);
        epoll::add(epoll, &stream, data, EventFlags::IN).unwrap();
        self.all[name] = Some(Outgoing {
            stream,
            stage: Stage::Greeting,
            pending: Vec::new(),
            owed: VecDeque::new(),
            lines: 0,
            left,
            watches_room: false,
        });
        name
    }

    /// Sends messages of one buffer over the connection whose turn it is, in the same order, each
    /// by BDAT; those that it may not carry any more go over the next. `owed` is who waits for the
    /// replies.
    pub fn send(&mut self, batch: &[Message], read: &[u8], owed: Option<usize>, epoll: &OwnedFd) {
        let mut rest = batch;
        while !rest.is_empty() {
            let is_ready = |name: &usize| {
                self.all[*name].as_ref().is_some_and(|one| one.stage == Stage::Ready)
            };
            let turn = self.turns.iter().position(is_ready).unwrap_or(0);
            let spare = self.spares.iter().position(is_ready).unwrap_or(0);
            let name = self.turns.remove(turn).unwrap();
            let one = self.all[name].as_mut().unwrap();
            let most = usize::try_from(one.left).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(most));
            rest = later;
            one.owed.extend(now.iter().map(|m| (owed.unwrap_or(usize::MAX), m.by_data)));
            one.left -= now.len() as u64;
            one.send(now, read, epoll, name);
            if one.left > 0 {
                self.turns.push_back(name);
                continue;
            }
            self.turns.push_back(self.spares.remove(spare).unwrap());
            let name = self.open(self.route.unwrap().per_connection, epoll);
            self.spares.push_back(name);
        }
    }

    /// What an event of the connection with this name brings: each message that was answered is
    /// told of, with who waits for it.
    pub fn hear(
        &mut self,
        name: usize,
        flags: EventFlags,
        epoll: &OwnedFd,
        mut answered: impl FnMut(usize, bool),
    ) {
        let Some(one) = &mut self.all[name] else { return };
        if flags.contains(EventFlags::OUT) {
            one.flush(epoll, name);
        }
        match one.stream.read(&mut self.replies) {
            Ok(0) => {
                assert!(one.stage == Stage::Spent && one.owed.is_empty(), "the host left");
                self.all[name] = None;
            }
            Ok(count) => {
                let behind = one.begin(&self.replies[..count], epoll, name);
                one.lines += memchr_iter(b'\n', behind).count();
                while one.lines >= 3
                    && let Some((to, by_data)) = one.owed.pop_front()
                {
                    one.lines -= 3;
                    answered(to, by_data);
                    one.leave_when_answered();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

impl Outgoing {
    /// Greeting and EHLO, whose lines come in one read; gives what is behind them.
    fn begin<'a>(&mut self, replies: &'a [u8], epoll: &OwnedFd, name: usize) -> &'a [u8] {
        match self.stage {
            Stage::Greeting => {
                assert!(replies.ends_with(b"\r\n"), "a greeting in parts");
                self.stream.write_all(b"EHLO bare\r\n").unwrap();
                self.stage = Stage::Ehlo;
                &[]
            }
            Stage::Ehlo => {
                assert!(replies.ends_with(b"\r\n"), "a reply to EHLO in parts");
                self.stage = if self.left > 0 { Stage::Ready } else { Stage::Spent };
                if !self.pending.is_empty() {
                    self.flush(epoll, name);
                }
                &[]
            }
            Stage::Ready | Stage::Spent => replies,
        }
    }

    fn send(&mut self, batch: &[Message], read: &[u8], epoll: &OwnedFd, name: usize) {
        let heads: Vec<String> =
            batch.iter().map(|m| format!("BDAT {} LAST\r\n", m.body.1 - m.body.0)).collect();
        let mut slices = Vec::with_capacity(3 * batch.len() + 1);
        for (message, head) in batch.iter().zip(&heads) {
            let (envelope, body) = (message.envelope, message.body);
            slices.push(IoSlice::new(&read[envelope.0..envelope.1]));
            if message.by_data {
                slices.push(IoSlice::new(head.as_bytes()));
            }
            slices.push(IoSlice::new(&read[body.0..body.1]));
        }
        let is_ready = self.stage == Stage::Ready;
        if self.left == 0 && is_ready {
            self.stage = Stage::Spent;
        }
        if !is_ready || !self.pending.is_empty() {
            slices.iter().for_each(|slice| self.pending.extend_from_slice(slice));
            return;
        }
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let most = slices.len().min(PIECES_MAX);
            match self.stream.write_vectored(&slices[..most]) {
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        slices.iter().for_each(|slice| self.pending.extend_from_slice(slice));
        self.watch(epoll, name);
    }

    fn leave_when_answered(&mut self) {
        if self.stage == Stage::Spent && self.owed.is_empty() {
            self.stream.write_all(b"QUIT\r\n").unwrap();
        }
    }

    fn flush(&mut self, epoll: &OwnedFd, name: usize) {
        match self.stream.write(&self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        self.watch(epoll, name);
    }

    /// Room in the socket is told of while something waits for it.
    fn watch(&mut self, epoll: &OwnedFd, name: usize) {
        let wants_room = !self.pending.is_empty();
        if std::mem::replace(&mut self.watches_room, wants_room) != wants_room {
            let room = if wants_room { EventFlags::OUT } else { EventFlags::empty() };
            let name = EventData::new_u64(TO_HOST | name as u64);
            epoll::modify(epoll, &self.stream, name, EventFlags::IN | room).unwrap();
        }
    }
}
