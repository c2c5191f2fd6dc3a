//! The bare loops: what the kernel and the bytes take, with nothing of an engine around them.
//!
//! Owns: a minimal client and a minimal server, one thread each over epoll, and the server's ways
//! to be a relay: forwarding each message, appending each round's messages by one write and one
//! sync. Never: an error a peer could make; what is not expected ends the bench.
//!
//! Same framing as source and sink (one message per round trip by DATA, or a train by BDAT), same
//! batch: what one round of epoll brings is forwarded, appended and answered together.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memchr::{memchr, memchr_iter, memmem};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::pwritev;

use super::common;

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
    /// Forwarded to this address, over so many connections.
    pub to: Option<(SocketAddr, usize)>,
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
            Served { cpu: common::thread_cpu() - before, syncs: relay.syncs }
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

/// A connection to the host.
struct Outgoing {
    stream: TcpStream,
    pending: Vec<u8>,
    /// Whose messages are not answered yet.
    owed: VecDeque<(usize, bool)>,
    lines: usize,
}

struct Relay {
    epoll: rustix::fd::OwnedFd,
    listener: TcpListener,
    incoming: Vec<Option<Incoming>>,
    outgoing: Vec<Outgoing>,
    next: usize,
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
        let (to, connections) = way.to.map_or((None, 0), |(to, n)| (Some(to), n));
        let outgoing = (0..connections).map(|n| {
            let stream = greeted(to.unwrap());
            stream.set_nonblocking(true).unwrap();
            let name = EventData::new_u64(TO_HOST | n as u64);
            epoll::add(&epoll, &stream, name, EventFlags::IN).unwrap();
            Outgoing { stream, pending: Vec::new(), owed: VecDeque::new(), lines: 0 }
        });
        let outgoing = outgoing.collect();
        let file = way.append_in.map(|folder| (written_before(folder), 0));
        Self { epoll, listener, incoming: Vec::new(), outgoing, next: 0, file, syncs: 0, open: 0 }
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
        let waits = self.file.is_none();
        let mut rest = messages;
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|m| m.from == first.from).count();
            let (batch, others) = rest.split_at(same);
            rest = others;
            let client = self.incoming[first.from].as_mut().unwrap();
            if waits && !self.outgoing.is_empty() {
                let to = self.next % self.outgoing.len();
                self.outgoing[to].owed.extend(batch.iter().map(|m| (m.from, m.by_data)));
            } else {
                batch.iter().for_each(|message| client.reply(message.by_data));
            }
            if self.outgoing.is_empty() {
                continue;
            }
            let to = self.next % self.outgoing.len();
            self.next += 1;
            if !waits {
                self.outgoing[to].owed.extend(batch.iter().map(|m| (usize::MAX, m.by_data)));
            }
            let client = self.incoming[first.from].as_ref().unwrap();
            self.outgoing[to].send(batch, &client.read, &self.epoll, to);
        }
    }

    /// Replies of the host, or room for what is to be sent to it.
    fn hear(&mut self, from: usize, flags: EventFlags) {
        let host = &mut self.outgoing[from];
        if flags.contains(EventFlags::OUT) {
            host.flush(&self.epoll, from);
        }
        let mut replies = [0; 64 * 1024];
        let count = match host.stream.read(&mut replies) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        };
        host.lines += memchr_iter(b'\n', &replies[..count]).count();
        while host.lines >= 3 {
            host.lines -= 3;
            let (to, by_data) = host.owed.pop_front().unwrap();
            if let Some(Some(client)) = self.incoming.get_mut(to) {
                client.reply(by_data);
            }
        }
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
        let owed = self.outgoing.iter().any(|host| !host.owed.is_empty());
        self.open == 0 && !self.incoming.is_empty() && !owed
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

impl Outgoing {
    /// Sends messages of one buffer, in the same order, each by BDAT.
    fn send(&mut self, batch: &[Message], read: &[u8], epoll: &rustix::fd::OwnedFd, name: usize) {
        let heads: Vec<String> =
            batch.iter().map(|m| format!("BDAT {} LAST\r\n", m.body.1 - m.body.0)).collect();
        let mut slices = Vec::with_capacity(3 * batch.len());
        for (message, head) in batch.iter().zip(&heads) {
            let (envelope, body) = (message.envelope, message.body);
            slices.push(IoSlice::new(&read[envelope.0..envelope.1]));
            if message.by_data {
                slices.push(IoSlice::new(head.as_bytes()));
            }
            slices.push(IoSlice::new(&read[body.0..body.1]));
        }
        if self.pending.is_empty() {
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
            if !self.pending.is_empty() {
                self.watch(epoll, name, EventFlags::IN | EventFlags::OUT);
            }
        } else {
            slices.iter().for_each(|slice| self.pending.extend_from_slice(slice));
        }
    }

    fn flush(&mut self, epoll: &rustix::fd::OwnedFd, name: usize) {
        match self.stream.write(&self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
        if self.pending.is_empty() {
            self.watch(epoll, name, EventFlags::IN);
        }
    }

    fn watch(&self, epoll: &rustix::fd::OwnedFd, name: usize, flags: EventFlags) {
        let name = EventData::new_u64(TO_HOST | name as u64);
        epoll::modify(epoll, &self.stream, name, flags).unwrap();
    }
}

/// A connection past EHLO.
fn greeted(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut line = String::new();
    let mut reader = io::BufReader::new(stream.try_clone().unwrap());
    io::BufRead::read_line(&mut reader, &mut line).unwrap();
    stream.write_all(b"EHLO bare\r\n").unwrap();
    while line.as_bytes().get(3) != Some(&b' ') || !line.starts_with("250") {
        line.clear();
        io::BufRead::read_line(&mut reader, &mut line).unwrap();
    }
    stream
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

/// What a minimal client did.
pub struct Sent {
    pub seconds: f64,
    pub cpu: Duration,
}

/// Sends `messages` of `octets` each over `sessions`, trains of `window` by BDAT, or by DATA one
/// per round trip with a window of 1.
pub fn send(to: SocketAddr, messages: u64, octets: usize, sessions: usize, window: usize) -> Sent {
    let run = move || {
        let (before, start) = (common::thread_cpu(), Instant::now());
        Client::new(to, octets, sessions, window).run(messages);
        Sent { seconds: start.elapsed().as_secs_f64(), cpu: common::thread_cpu() - before }
    };
    let thread = std::thread::Builder::new().name("bare-client".to_owned()).spawn(run);
    thread.unwrap().join().unwrap()
}

struct Client {
    epoll: rustix::fd::OwnedFd,
    sessions: Vec<(TcpStream, usize)>,
    /// What one round trip sends, and the lines that it brings back.
    batch: Vec<u8>,
    lines: usize,
    window: u64,
}

impl Client {
    fn new(to: SocketAddr, octets: usize, sessions: usize, window: usize) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let envelope = "MAIL FROM:<sender@source.test>\r\nRCPT TO:<recipient@sink.test>\r\n";
        let text = format!("Subject: bare\r\n\r\n{}\r\n", "x".repeat(octets - 19));
        let (batch, lines) = if window > 1 {
            let one = format!("{envelope}BDAT {} LAST\r\n{text}", text.len());
            (one.repeat(window), 3 * window)
        } else {
            (format!("{text}.\r\n{envelope}DATA\r\n"), 4)
        };
        let sessions: Vec<_> = (0..sessions)
            .map(|n| {
                let stream = greeted(to);
                let name = EventData::new_u64(n as u64);
                epoll::add(&epoll, &stream, name, EventFlags::IN).unwrap();
                (stream, 0)
            })
            .collect();
        for (stream, lines) in sessions.iter().filter(|_| window == 1) {
            (&*stream).write_all(format!("{envelope}DATA\r\n").as_bytes()).unwrap();
            assert_eq!(*lines, 0);
        }
        Self { epoll, sessions, batch: batch.into_bytes(), lines, window: window as u64 }
    }

    /// A write may block: the server reads whatever comes, and the replies to one batch fit.
    fn run(&mut self, messages: u64) {
        let (mut left, mut owed) = (messages, 0);
        if self.window > 1 {
            for at in 0..self.sessions.len() {
                owed += self.next(at, &mut left);
            }
        } else {
            // The replies to the first envelope come first.
            self.sessions.iter_mut().for_each(|(_, lines)| *lines = 1);
            owed = self.sessions.len();
        }
        let mut events = Vec::with_capacity(1024);
        let mut replies = vec![0; 64 * 1024];
        while owed > 0 {
            epoll::wait(&self.epoll, spare_capacity(&mut events), None).unwrap();
            for event in events.drain(..) {
                let at = event.data.u64() as usize;
                let (stream, lines) = &mut self.sessions[at];
                let count = stream.read(&mut replies).unwrap();
                assert!(count > 0, "the server left");
                *lines += memchr_iter(b'\n', &replies[..count]).count();
                if *lines >= self.lines {
                    *lines -= self.lines;
                    owed -= 1;
                    owed += self.next(at, &mut left);
                }
            }
        }
    }

    /// Sends one more batch, if any is left: how many that were.
    fn next(&mut self, at: usize, left: &mut u64) -> usize {
        if *left == 0 {
            return 0;
        }
        *left = left.saturating_sub(self.window);
        self.sessions[at].0.write_all(&self.batch).unwrap();
        1
    }
}
