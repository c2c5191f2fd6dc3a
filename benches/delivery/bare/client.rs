//! The minimal client: trains by BDAT, or one message per round trip by DATA.
//!
//! Owns: its connections and what they send. Never: a look at what a reply says.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use memchr::memchr_iter;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::super::common;

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
