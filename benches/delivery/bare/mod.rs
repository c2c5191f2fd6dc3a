//! The bare loops: what the kernel and the bytes take, with nothing of an engine around them.
//!
//! Owns: a minimal client and a minimal server, one thread each over epoll, and the server's ways
//! to be a relay: forwarding each message, appending each round's messages by one write and one
//! sync. Never: an error a peer could make; what is not expected ends the bench.
//!
//! Same framing as source and sink (one message per round trip by DATA, or a train by BDAT), as
//! many messages per connection as the engine's, same batch: what one round of epoll brings is
//! forwarded, appended and answered together.

mod client;
mod outgoing;

use std::fs::File;
use std::io::{IoSlice, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use memchr::{memchr, memmem};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::pwritev;

use super::common;
pub use client::send;
use outgoing::Host;
pub use outgoing::Route;

/// One read takes at most this many octets.
const READ_OCTETS: usize = 256 * 1024;

/// Octets of the file that is written over and over.
const FILE_OCTETS: u64 = 256 << 20;

/// The kernel takes this many pieces in one gathered write.
const PIECES_MAX: usize = 1024;

/// Clients that connect at once.
const BACKLOG: i32 = 4096;

const LISTENER: u64 = u64::MAX;
const TO_HOST: u64 = 1 << 32;

/// What becomes of a message that has come in.
#[derive(Default)]
pub struct Way<'a> {
    /// Forwarded.
    pub route: Option<Route>,
    /// Appended to a file in this folder, and synced, before it is answered.
    pub append_in: Option<&'a Path>,
}

/// A server that runs until its clients are gone.
pub struct Server {
    address: SocketAddr,
    thread: JoinHandle<Served>,
}

/// What a server took.
pub struct Served {
    pub cpu: Duration,
    pub syncs: u64,
    /// Connections to the host.
    pub connections: u64,
}

impl Server {
    pub fn start(way: Way<'_>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // A second call only changes the backlog: with the usual 128 some of 1,000 clients that
        // connect at once stand for themselves alone, and wait for a greeting for ever.
        rustix::net::listen(&listener, BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let mut relay = Relay::new(listener, way);
        let run = move || {
            let before = common::thread_cpu();
            relay.run();
            let cpu = common::thread_cpu() - before;
            Served { cpu, syncs: relay.syncs, connections: relay.host.opened }
        };
        let thread = std::thread::Builder::new().name("bare".to_owned()).spawn(run).unwrap();
        Self { address, thread }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it took, once its clients are gone.
    pub fn end(self) -> Served {
        self.thread.join().unwrap()
    }
}

/// What one connection has brought.
#[derive(Clone, Copy)]
enum Expect {
    Command,
    /// Octets of BDAT.
    Chunk(usize),
    /// A text, searched up to here.
    Text(usize),
}

/// A connection of a client.
struct Incoming {
    stream: TcpStream,
    read: Vec<u8>,
    /// Where what is not looked at begins.
    at: usize,
    /// Where the transaction under way begins.
    envelope_at: usize,
    expect: Expect,
    out: Vec<u8>,
    /// Its messages that are not answered yet, and what is to be said behind the answer: by DATA
    /// the next transaction begins in the write that ends this one.
    owed: usize,
    behind: Vec<u8>,
}

/// A message that has come in whole, in the buffer of its connection.
struct Message {
    from: usize,
    /// MAIL and RCPT.
    envelope: (usize, usize),
    /// BDAT with the octets; by DATA the text alone.
    body: (usize, usize),
    by_data: bool,
}

struct Relay {
    epoll: rustix::fd::OwnedFd,
    listener: TcpListener,
    incoming: Vec<Option<Incoming>>,
    host: Host,
    file: Option<(File, u64)>,
    syncs: u64,
    open: usize,
}

impl Relay {
    fn new(listener: TcpListener, way: Way<'_>) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let watch = |fd: &TcpListener| {
            epoll::add(&epoll, fd, EventData::new_u64(LISTENER), EventFlags::IN).unwrap();
        };
        listener.set_nonblocking(true).unwrap();
        watch(&listener);
        let host = Host::new(way.route, &epoll);
        let file = way.append_in.map(|folder| (written_before(folder), 0));
        Self { epoll, listener, incoming: Vec::new(), host, file, syncs: 0, open: 0 }
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(1024);
        let mut messages = Vec::new();
        loop {
            epoll::wait(&self.epoll, spare_capacity(&mut events), None).unwrap();
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    name if name & TO_HOST != 0 => {
                        self.hear((name & !TO_HOST) as usize, event.flags);
                    }
                    name => self.read(name as usize, &mut messages),
                }
            }
            if !messages.is_empty() {
                self.append(&messages);
                self.forward(&messages);
                messages.clear();
            }
            if self.answer() {
                return;
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            stream.set_nodelay(true).unwrap();
            stream.write_all(b"220 bare\r\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            let name = EventData::new_u64(self.incoming.len() as u64);
            epoll::add(&self.epoll, &stream, name, EventFlags::IN).unwrap();
            self.open += 1;
            self.incoming.push(Some(Incoming {
                stream,
                read: Vec::with_capacity(2 * READ_OCTETS),
                at: 0,
                envelope_at: 0,
                expect: Expect::Command,
                out: Vec::new(),
                owed: 0,
                behind: Vec::new(),
            }));
        }
    }

    fn read(&mut self, from: usize, messages: &mut Vec<Message>) {
        let Some(client) = &mut self.incoming[from] else { return };
        let keep = client.envelope_at.min(client.at);
        client.read.drain(..keep);
        client.at -= keep;
        client.envelope_at = 0;
        if let Expect::Text(searched) = &mut client.expect {
            *searched -= keep;
        }
        client.read.reserve(READ_OCTETS);
        match rustix::io::read(&client.stream, spare_capacity(&mut client.read)) {
            Ok(1..) => client.take(from, messages),
            Err(rustix::io::Errno::AGAIN) => {}
            Ok(_) | Err(_) => {
                self.incoming[from] = None;
                self.open -= 1;
            }
        }
    }

    /// One write and one sync for the round.
    fn append(&mut self, messages: &[Message]) {
        let Some((file, at)) = &mut self.file else { return };
        let slices: Vec<IoSlice<'_>> = messages
            .iter()
            .map(|message| {
                let client = self.incoming[message.from].as_ref().unwrap();
                IoSlice::new(&client.read[message.body.0..message.body.1])
            })
            .collect();
        let octets: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        if *at + octets > FILE_OCTETS {
            *at = 0;
        }
        for pieces in slices.chunks(PIECES_MAX) {
            let octets: usize = pieces.iter().map(|piece| piece.len()).sum();
            assert_eq!(pwritev(&*file, pieces, *at).unwrap(), octets);
            *at += octets as u64;
        }
        file.sync_data().unwrap();
        self.syncs += 1;
    }

    fn forward(&mut self, messages: &[Message]) {
        let waits = self.file.is_none() && self.host.is_there();
        for batch in messages.chunk_by(|one, other| one.from == other.from) {
            let from = batch[0].from;
            let client = self.incoming[from].as_mut().unwrap();
            if !waits {
                batch.iter().for_each(|message| client.reply(message.by_data));
            }
            if self.host.is_there() {
                self.host.send(batch, &client.read, waits.then_some(from), &self.epoll);
            }
        }
    }

    fn hear(&mut self, name: usize, flags: EventFlags) {
        let incoming = &mut self.incoming;
        self.host.hear(name, flags, &self.epoll, |to, by_data| {
            if let Some(Some(client)) = incoming.get_mut(to) {
                client.reply(by_data);
            }
        });
    }

    /// Sends what is to be said to clients; true when the last one is gone.
    fn answer(&mut self) -> bool {
        for client in self.incoming.iter_mut().flatten() {
            if !client.out.is_empty() {
                // Replies are small and the client reads them all: the socket has room.
                client.stream.write_all(&client.out).unwrap();
                client.out.clear();
            }
        }
        self.open == 0 && !self.incoming.is_empty() && !self.host.owes()
    }
}

impl Incoming {
    /// Looks at what was read.
    fn take(&mut self, from: usize, messages: &mut Vec<Message>) {
        loop {
            match self.expect {
                Expect::Command => {
                    let Some(end) = memchr(b'\n', &self.read[self.at..]) else { return };
                    let line = self.at..self.at + end + 1;
                    self.command(line);
                }
                Expect::Chunk(octets) => {
                    if self.read.len() - self.at < octets {
                        return;
                    }
                    self.at += octets;
                    self.complete(from, self.at, false, messages);
                }
                Expect::Text(searched) => {
                    let found = memmem::find(&self.read[searched..], b"\r\n.\r\n");
                    let Some(end) = found.map(|end| searched + end + 2) else {
                        let tail = self.read.len().saturating_sub(4).max(searched);
                        self.expect = Expect::Text(tail);
                        return;
                    };
                    self.at = end + 3;
                    self.complete(from, end, true, messages);
                }
            }
        }
    }

    fn command(&mut self, line: std::ops::Range<usize>) {
        let at = line.start;
        self.at = line.end;
        match &self.read[at..at + 4] {
            b"MAIL" => self.envelope_at = at,
            b"RCPT" => {}
            b"BDAT" => {
                let words = std::str::from_utf8(&self.read[line]).unwrap();
                let octets = words.split(' ').nth(1).unwrap().parse().unwrap();
                self.expect = Expect::Chunk(octets);
                return;
            }
            b"DATA" => {
                self.say(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n");
                self.expect = Expect::Text(self.at);
                return;
            }
            b"EHLO" => {
                let offers = b"250-bare\r\n250-PIPELINING\r\n250 CHUNKING\r\n";
                self.say(offers);
            }
            _ => self.say(b"221 2.0.0 bye\r\n"),
        }
        if !self.read[at..].starts_with(b"MAIL") && !self.read[at..].starts_with(b"RCPT") {
            self.envelope_at = self.at;
        }
    }

    fn complete(&mut self, from: usize, end: usize, by_data: bool, all: &mut Vec<Message>) {
        let envelope_at = self.envelope_at;
        let lines = &self.read[envelope_at..end];
        let rcpt = memchr(b'\n', lines).unwrap() + 1;
        let behind = rcpt + memchr(b'\n', &lines[rcpt..]).unwrap() + 1;
        // DATA has a line of its own, which is not sent on.
        let skipped = if by_data { b"DATA\r\n".len() } else { 0 };
        let body = envelope_at + behind + skipped;
        let envelope = (envelope_at, envelope_at + behind);
        all.push(Message { from, envelope, body: (body, end), by_data });
        (self.expect, self.envelope_at) = (Expect::Command, self.at);
        self.owed += 1;
    }

    /// In the order of what it answers.
    fn say(&mut self, reply: &[u8]) {
        let out = if self.owed == 0 { &mut self.out } else { &mut self.behind };
        out.extend_from_slice(reply);
    }

    /// What was not said yet about a message.
    fn reply(&mut self, by_data: bool) {
        if !by_data {
            self.out.extend_from_slice(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n");
        }
        self.out.extend_from_slice(b"250 2.0.0 ok\r\n");
        self.owed -= 1;
        if self.owed == 0 {
            self.out.append(&mut self.behind);
        }
    }
}

/// A file whose blocks are all there, so that a sync has nothing to enter into a journal.
fn written_before(folder: &Path) -> File {
    let mut options = File::options();
    options.create(true).write(true).truncate(false);
    let file = options.open(folder.join("appended")).unwrap();
    let zeros = vec![0; 1 << 20];
    for at in (0..FILE_OCTETS).step_by(zeros.len()) {
        file.write_all_at(&zeros, at).unwrap();
    }
    file.sync_all().unwrap();
    file
}
