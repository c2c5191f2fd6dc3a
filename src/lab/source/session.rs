//! One connection of a source: its dialogue, and its repeats when it breaks.
//!
//! Owns: the socket, the order of commands and replies. Never: what a message looks like.
//!
//! Limits: a reply line of [`REPLY_OCTETS_MAX`], [`WRITE_OCTETS_MAX`] in one write.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use memchr::memchr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{Take, Work};

/// Longest reply line.
const REPLY_OCTETS_MAX: usize = 64 * 1024;

/// A train is written out before it grows beyond this.
const WRITE_OCTETS_MAX: usize = 1 << 20;

/// Room for replies at each read.
const READ_OCTETS: usize = 16 * 1024;

/// With `retry`: a peer that was gone for so long is given up.
const RECONNECT_MAX: Duration = Duration::from_secs(60);

/// With `retry`: the wait before connecting again, doubling up to the second.
const RECONNECT_WAIT: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(500));

/// Why a connection ended early.
#[derive(Debug)]
enum Broken {
    Io(io::Error),
    Closed,
    Silent,
    Garbage,
    /// A reply that leaves no way on: a refused greeting or EHLO, or 421.
    Refused(u16),
    /// 354 to DATA without a recipient that was accepted.
    NoRecipient,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Io(error) => write!(f, "{error}"),
            Broken::Closed => write!(f, "closed by the peer"),
            Broken::Silent => write!(f, "no answer in time"),
            Broken::Garbage => write!(f, "not an SMTP reply"),
            Broken::Refused(code) => write!(f, "refused with {code}"),
            Broken::NoRecipient => write!(f, "354 without an accepted recipient"),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Io(error)
    }
}

/// Sends until there is nothing left, or until its connection breaks for good.
pub(super) async fn run(work: Rc<Work>) {
    let mut last_good = Instant::now();
    let mut wait = RECONNECT_WAIT.0;
    while !work.is_done() {
        match Link::open(&work).await {
            Ok(mut link) => {
                work.note(|report| report.connections += 1);
                let ended = link.send().await;
                work.write_ledger(&mut link.ledger_lines);
                let Err(broken) = ended else { return };
                work.note(|report| {
                    report.connections_lost += 1;
                    report.last_error = Some(broken.to_string());
                });
                link.give_up(&broken);
                last_good = Instant::now();
                wait = RECONNECT_WAIT.0;
            }
            Err(broken) => work.note(|report| {
                report.connects_failed += 1;
                report.last_error = Some(broken.to_string());
            }),
        }
        if !work.options.retry || last_good.elapsed() > RECONNECT_MAX {
            return;
        }
        sleep(wait).await;
        wait = (wait * 2).min(RECONNECT_WAIT.1);
    }
}

/// A message whose replies are awaited.
struct Flight {
    n: u64,
    sent: Instant,
    /// RSET went before it.
    after_reset: bool,
}

/// What was answered to MAIL and the RCPTs of a message.
#[derive(Default)]
struct Opening {
    mail: u16,
    accepted: u64,
    refused: Vec<u16>,
}

impl Opening {
    /// The code that refused it all, if one did.
    fn refusal(&self) -> Option<u16> {
        if !is_positive(self.mail) {
            return Some(self.mail);
        }
        if self.accepted == 0 { self.refused.last().copied() } else { None }
    }
}

fn is_positive(code: u16) -> bool {
    code / 100 == 2
}

struct Link {
    work: Rc<Work>,
    stream: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    /// Where in `input` the next reply begins.
    at: usize,
    pipelining: bool,
    chunking: bool,
    flights: VecDeque<Flight>,
    /// A refusal may have left a transaction open.
    needs_reset: bool,
    ledger_lines: Vec<u8>,
}

impl Link {
    async fn open(work: &Rc<Work>) -> Result<Link, Broken> {
        let options = &work.options;
        let connected = timeout(options.patience, TcpStream::connect(options.to)).await;
        let stream = connected.map_err(|_| Broken::Silent)??;
        stream.set_nodelay(true)?;
        let mut link = Link {
            work: Rc::clone(work),
            stream,
            out: Vec::new(),
            input: Vec::new(),
            at: 0,
            pipelining: false,
            chunking: false,
            flights: VecDeque::new(),
            needs_reset: false,
            ledger_lines: Vec::new(),
        };
        let greeting = link.reply().await?;
        if !is_positive(greeting) {
            return Err(Broken::Refused(greeting));
        }
        link.hello().await?;
        Ok(link)
    }

    async fn hello(&mut self) -> Result<(), Broken> {
        let work = Rc::clone(&self.work);
        let name = work.options.helo.as_bytes();
        self.out.extend_from_slice(&[b"EHLO ", name, b"\r\n"].concat());
        self.flush().await?;
        let mut offers = Vec::new();
        if is_positive(self.reply_with(|line| offers.push(line.to_ascii_uppercase())).await?) {
            let offered = |word: &[u8]| offers.iter().any(|line| line.get(4..) == Some(word));
            self.pipelining = offered(b"PIPELINING");
            self.chunking = offered(b"CHUNKING");
            return Ok(());
        }
        self.out.extend_from_slice(&[b"HELO ", name, b"\r\n"].concat());
        match self.exchange().await? {
            code if is_positive(code) => Ok(()),
            code => Err(Broken::Refused(code)),
        }
    }

    async fn send(&mut self) -> Result<(), Broken> {
        if self.work.options.bdat && self.chunking && self.pipelining {
            self.send_trains().await?;
        } else if self.pipelining {
            self.send_pipelined().await?;
        } else {
            self.send_stepwise().await?;
        }
        self.work.write_ledger(&mut self.ledger_lines);
        self.out.extend_from_slice(b"QUIT\r\n");
        // Everything was answered: how the goodbye goes changes nothing.
        drop(self.exchange().await);
        Ok(())
    }

    /// What was in flight goes back to be sent again, or is refused, or lost.
    fn give_up(&mut self, broken: &Broken) {
        for flight in self.flights.drain(..) {
            match broken {
                _ if self.work.options.retry => self.work.give_back(flight.n),
                Broken::Refused(code) => self.work.refuse(*code),
                Broken::Io(_)
                | Broken::Closed
                | Broken::Silent
                | Broken::Garbage
                | Broken::NoRecipient => {}
            }
        }
    }

    /// Whole transactions by BDAT, up to a window of them without an answer.
    async fn send_trains(&mut self) -> Result<(), Broken> {
        let work = Rc::clone(&self.work);
        let window = work.options.window.max(1);
        loop {
            let mut later = None;
            while self.flights.len() < window && self.out.len() < WRITE_OCTETS_MAX {
                if self.needs_reset && !self.flights.is_empty() {
                    break;
                }
                match work.take() {
                    Take::Message(n) => {
                        self.begin(n);
                        work.mint.envelope(n, &mut self.out);
                        work.mint.chunk(n, &mut self.out);
                        work.note(|report| report.sent += 1);
                    }
                    Take::Later(due) => {
                        later = Some(due);
                        break;
                    }
                    Take::Nothing => break,
                }
            }
            self.flush().await?;
            match (self.flights.is_empty(), later) {
                (true, None) => return Ok(()),
                (true, Some(due)) => sleep_until(due).await,
                (false, Some(due)) if self.at == self.input.len() => {
                    if let Ok(ready) = timeout_at(due, self.stream.readable()).await {
                        ready?;
                        self.settle_trains().await?;
                    }
                }
                (false, _) => self.settle_trains().await?,
            }
        }
    }

    /// Settles the first message in flight, and those whose replies came with its own.
    async fn settle_trains(&mut self) -> Result<(), Broken> {
        let work = Rc::clone(&self.work);
        while let Some(flight) = self.flights.front() {
            let (n, sent) = (flight.n, flight.sent);
            let had_refusal = self.needs_reset;
            let opening = self.opening().await?;
            let end = self.reply().await?;
            self.check_closing(end)?;
            self.flights.pop_front();
            if had_refusal && opening.mail == 503 {
                // It met the transaction that a refusal before it had left open.
                work.note(|report| report.sent -= 1);
                work.give_back(n);
            } else {
                self.settle(n, sent, &opening, end);
            }
            if self.at == self.input.len() {
                break;
            }
        }
        work.write_ledger(&mut self.ledger_lines);
        Ok(())
    }

    /// One message per round trip; its body goes with MAIL, RCPT and DATA of the next.
    async fn send_pipelined(&mut self) -> Result<(), Broken> {
        let work = Rc::clone(&self.work);
        loop {
            if self.flights.is_empty() {
                let Some(n) = self.next_message().await else { return Ok(()) };
                self.begin_data(n);
                self.flush().await?;
            }
            let n = self.flights.front().map_or(0, |flight| flight.n);
            let opening = self.opening().await?;
            let go_ahead = self.reply().await?;
            self.check_closing(go_ahead)?;
            if go_ahead != 354 {
                self.flights.pop_front();
                self.refuse(opening.refusal().unwrap_or(go_ahead));
                continue;
            }
            if opening.refusal().is_some() {
                return Err(Broken::NoRecipient);
            }
            work.mint.text(n, &mut self.out);
            work.note(|report| report.sent += 1);
            if let Take::Message(next) = work.take() {
                self.begin_data(next);
            }
            let sent = Instant::now();
            self.flush().await?;
            let end = self.reply().await?;
            self.check_closing(end)?;
            self.flights.pop_front();
            self.settle(n, sent, &opening, end);
            work.write_ledger(&mut self.ledger_lines);
        }
    }

    /// Each command waits for its reply, for peers without PIPELINING.
    async fn send_stepwise(&mut self) -> Result<(), Broken> {
        let work = Rc::clone(&self.work);
        while let Some(n) = self.next_message().await {
            self.begin(n);
            if self.flights.front().is_some_and(|flight| flight.after_reset) {
                self.exchange().await?;
            }
            let mut opening = Opening::default();
            work.mint.mail(&mut self.out);
            opening.mail = self.exchange().await?;
            for index in 0..u64::from(work.options.recipients.max(1)) {
                if is_positive(opening.mail) {
                    work.mint.rcpt(n, index, &mut self.out);
                    match self.exchange().await? {
                        code if is_positive(code) => opening.accepted += 1,
                        code => opening.refused.push(code),
                    }
                }
            }
            let mut end = opening.refusal();
            if end.is_none() {
                self.out.extend_from_slice(b"DATA\r\n");
                end = Some(self.exchange().await?).filter(|code| *code != 354);
            }
            if let Some(code) = end {
                self.flights.pop_front();
                self.refuse(code);
                continue;
            }
            work.mint.text(n, &mut self.out);
            work.note(|report| report.sent += 1);
            let sent = Instant::now();
            let end = self.exchange().await?;
            self.flights.pop_front();
            self.settle(n, sent, &opening, end);
            work.write_ledger(&mut self.ledger_lines);
        }
        Ok(())
    }

    /// The next message, after waiting for its time if the rate says so.
    async fn next_message(&self) -> Option<u64> {
        loop {
            match self.work.take() {
                Take::Message(n) => return Some(n),
                Take::Later(due) => sleep_until(due).await,
                Take::Nothing => return None,
            }
        }
    }

    /// Notes that message `n` is in flight, and sends RSET first where one is needed.
    fn begin(&mut self, n: u64) {
        let after_reset = std::mem::take(&mut self.needs_reset);
        if after_reset {
            self.out.extend_from_slice(b"RSET\r\n");
        }
        self.flights.push_back(Flight { n, sent: Instant::now(), after_reset });
    }

    fn begin_data(&mut self, n: u64) {
        self.begin(n);
        self.work.mint.envelope(n, &mut self.out);
        self.out.extend_from_slice(b"DATA\r\n");
    }

    /// The replies to RSET, MAIL and the RCPTs of the first message in flight.
    async fn opening(&mut self) -> Result<Opening, Broken> {
        if self.flights.front().is_some_and(|flight| flight.after_reset) {
            self.reply().await?;
        }
        let mut opening = Opening { mail: self.reply().await?, ..Opening::default() };
        self.check_closing(opening.mail)?;
        for _ in 0..self.work.options.recipients.max(1) {
            let code = self.reply().await?;
            self.check_closing(code)?;
            if is_positive(code) {
                opening.accepted += 1;
            } else {
                opening.refused.push(code);
            }
        }
        Ok(opening)
    }

    /// 421 ends the connection (RFC 5321 3.8).
    fn check_closing(&self, code: u16) -> Result<(), Broken> {
        if code == 421 { Err(Broken::Refused(code)) } else { Ok(()) }
    }

    fn settle(&mut self, n: u64, sent: Instant, opening: &Opening, end: u16) {
        if is_positive(end) {
            self.work.acknowledge(n, sent.elapsed(), &opening.refused, &mut self.ledger_lines);
        } else {
            self.refuse(opening.refusal().unwrap_or(end));
        }
    }

    fn refuse(&mut self, code: u16) {
        self.needs_reset = true;
        self.work.refuse(code);
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        if !self.out.is_empty() {
            let written = timeout(self.work.options.patience, self.stream.write_all(&self.out));
            written.await.map_err(|_| Broken::Silent)??;
            self.out.clear();
        }
        Ok(())
    }

    /// Writes what is there and reads one reply.
    async fn exchange(&mut self) -> Result<u16, Broken> {
        self.flush().await?;
        let code = self.reply().await?;
        self.check_closing(code)?;
        Ok(code)
    }

    async fn reply(&mut self) -> Result<u16, Broken> {
        self.reply_with(|_| {}).await
    }

    /// The code of the next reply; `seen` gets each of its lines (RFC 5321 4.2).
    async fn reply_with(&mut self, mut seen: impl FnMut(&[u8])) -> Result<u16, Broken> {
        loop {
            let rest = &self.input[self.at..];
            let Some(end) = memchr(b'\n', rest) else {
                self.fill().await?;
                continue;
            };
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            self.at += end + 1;
            seen(line);
            let digits = line.first_chunk::<3>().filter(|code| code.iter().all(u8::is_ascii_digit));
            let Some(digits) = digits else { return Err(Broken::Garbage) };
            let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
            if line.get(3) != Some(&b'-') {
                return Ok(code);
            }
        }
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        self.input.drain(..self.at);
        self.at = 0;
        if self.input.len() > REPLY_OCTETS_MAX {
            return Err(Broken::Garbage);
        }
        self.input.reserve(READ_OCTETS);
        let read = timeout(self.work.options.patience, self.stream.read_buf(&mut self.input));
        match read.await.map_err(|_| Broken::Silent)?? {
            0 => Err(Broken::Closed),
            _ => Ok(()),
        }
    }
}
