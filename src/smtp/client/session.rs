//! The session: the states of one connection that delivers mail (RFC 5321 3.1 to 3.3, 3.8).
//!
//! Owns: the order greeting, EHLO or HELO, transactions, QUIT; the one running deadline. Never:
//! the order of transactions (`ready`), a verdict on a recipient (`flight`).
//!
//! A state is a type named for what it waits for; it takes a reply and gives the next state. One
//! deadline runs at a time: while a write is out, until the peer has taken it; while a reply is
//! owed, until the whole of it is there, so that a peer that sends an octet a minute gains
//! nothing; while nothing is under way, until QUIT.
//!
//! Diagnostics: what is no reply, or answers nothing, ends the session: `Failed` or `Ended` with
//! the reason. A refused or lost RSET ends it as idle: it is no delivery attempt.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use super::binder::{Binder, Mark};
use super::extensions::Extensions;
use super::flight::Flight;
use super::pace::Learned;
use super::ready::Ready;
use super::{Chunk, ClientSettings, Event, Output, Transaction};
use crate::limits;
use crate::mail::{ConnectionCause, ConnectionFailure, Mono, Now, Reply, Stage};
use crate::smtp::reply::ReplyParser;

/// The dialogue of one connection. See the page of this folder for how it is driven.
#[derive(Debug)]
pub struct Session {
    state: State,
    link: Link,
    parser: ReplyParser,
}

/// What the session waits for.
#[derive(Debug)]
pub(super) enum State {
    Greeting(ExpectGreeting),
    Ehlo(ExpectEhlo),
    Helo(ExpectHelo),
    Ready(Box<Ready>),
    EndOfFile(ExpectEndOfFile),
    Closed,
}

/// Waits for the greeting.
#[derive(Debug)]
pub(super) struct ExpectGreeting;

/// Waits for the reply to EHLO.
#[derive(Debug)]
pub(super) struct ExpectEhlo;

/// Waits for the reply to HELO: EHLO was not understood.
#[derive(Debug)]
pub(super) struct ExpectHelo;

/// QUIT is sent or about to be: waits for the peer to close. What it says meanwhile is ignored.
#[derive(Debug)]
pub(super) struct ExpectEndOfFile;

/// What all states share: the way out, and the deadline.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) settings: ClientSettings,
    pub(super) binder: Binder,
    pub(super) events: VecDeque<Event>,
    /// A command that stands alone and is to be handed out next.
    pub(super) command: Option<(Vec<u8>, Mark)>,
    /// A write is out.
    pub(super) writing: bool,
    /// The reply that is coming in began before the end of its message was handed out. Its first
    /// octet decides: the rest of it may come later, and must not pass for an answer to the end.
    pub(super) before_end: bool,
    /// What the session had learned when it was over.
    pub(super) learned: Learned,
    deadline: Option<Mono>,
    closing: Closing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    No,
    Due,
    Said,
}

impl Session {
    /// A session over a connection that stands since `now`; it waits for the greeting.
    #[must_use]
    pub fn new(settings: ClientSettings, now: Now) -> Self {
        let mut link = Link {
            settings,
            binder: Binder::default(),
            events: VecDeque::new(),
            command: None,
            writing: false,
            before_end: false,
            learned: Learned::default(),
            deadline: None,
            closing: Closing::No,
        };
        link.binder.expect(Mark::Greeting, 0);
        link.arm(now);
        Self { state: State::Greeting(ExpectGreeting), link, parser: ReplyParser::default() }
    }

    /// Octets came from the peer, in any split.
    pub fn handle_input(&mut self, bytes: &[u8], now: Now) {
        let mut input = bytes;
        while !input.is_empty() {
            match &self.state {
                State::EndOfFile(_) | State::Closed => return,
                State::Greeting(_) | State::Ehlo(_) | State::Helo(_) | State::Ready(_) => {}
            }
            if self.link.binder.is_empty() {
                return self.be_told_unasked(input, now);
            }
            if self.parser.is_empty() {
                self.link.before_end = self.is_before_end();
            }
            match self.parser.parse(&mut input) {
                Ok(Some(reply)) => self.handle_reply(reply, now),
                Ok(None) => {}
                Err(garbage) => {
                    return self.fail(ConnectionCause::Garbage(garbage.as_str().into()));
                }
            }
        }
        self.settle_answered(now);
    }

    /// A reply came that answers nothing. 421 is how hosts end a connection, at any time (RFC 5321
    /// 3.8): all else was answered before.
    fn be_told_unasked(&mut self, octets: &[u8], now: Now) {
        let sent_away = octets.starts_with(b"421") || b"421".starts_with(octets);
        let refusal = matches!(octets.first(), Some(b'4' | b'5'));
        let stands = matches!(&self.state, State::Ready(ready) if ready.is_plain()) && !refusal;
        if sent_away || stands {
            self.settle_answered(now);
        }
        if let State::Ready(ready) = &mut self.state {
            ready.note_surplus(refusal);
        }
        self.fail(ConnectionCause::Garbage("reply that answers nothing".into()));
    }

    /// No more replies have come: what was answered is in its place.
    fn settle_answered(&mut self, now: Now) {
        self.state = match mem::replace(&mut self.state, State::Closed) {
            State::Ready(ready) => ready.go_on(true, &mut self.link, now),
            state @ (State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed) => state,
        };
    }

    /// The connection is gone: end of file (`None`) or the system's error text, on reading or
    /// writing.
    pub fn handle_closed(&mut self, error: Option<Box<str>>) {
        let text = error.unwrap_or_else(|| "connection closed by the host".into());
        self.fail(ConnectionCause::Network(text));
    }

    /// The last [`Output::Send`] was written completely.
    pub fn handle_sent(&mut self, now: Now) {
        self.link.writing = false;
        self.rearm(now);
    }

    /// The time of [`Self::deadline`] has come. Too early a call does nothing.
    pub fn handle_deadline(&mut self, now: Now) {
        if self.link.deadline.is_none_or(|deadline| now.mono < deadline) {
            return;
        }
        let waiting = self.link.writing || !self.link.binder.is_empty();
        match &self.state {
            State::Ready(ready) if !waiting => {
                // Otherwise something was submitted and goes out with the next poll.
                if ready.is_quiet() {
                    self.quit(now);
                }
            }
            State::EndOfFile(_) | State::Closed => self.close(),
            State::Greeting(_) | State::Ehlo(_) | State::Helo(_) | State::Ready(_) => {
                self.fail(ConnectionCause::Timeout);
            }
        }
    }

    /// Takes a transaction; its first bytes come with the next [`Self::poll_output`]. Beyond
    /// [`Self::capacity`] it comes back untried.
    pub fn submit(&mut self, transaction: Transaction) {
        let room = self.capacity() > 0;
        match &mut self.state {
            State::Ready(ready) if room => ready.submit(transaction),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::Ready(_)
            | State::EndOfFile(_)
            | State::Closed => self.link.events.push_back(Flight::new(transaction).finish()),
        }
    }

    /// Makes room for so many more transactions at once, where lists would grow step by step.
    pub fn reserve(&mut self, transactions: usize) {
        if let State::Ready(ready) = &mut self.state {
            ready.reserve(transactions);
            self.link.binder.reserve(transactions);
            self.link.events.reserve(transactions);
        }
    }

    /// How many transactions the session takes now; 0 unless it is ready.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.state {
            State::Ready(ready) => ready.capacity(self.link.settings.messages_max),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => 0,
        }
    }

    /// What the host offers, once the session is ready.
    #[must_use]
    pub fn extensions(&self) -> Option<&Extensions> {
        match &self.state {
            State::Ready(ready) => Some(ready.extensions()),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => None,
        }
    }

    /// What the session takes in one round trip: most transactions in flight at present, or what
    /// is left until `messages_max`; 0 unless it is ready.
    #[must_use]
    pub fn window(&self) -> usize {
        match &self.state {
            State::Ready(ready) => ready.window(self.link.settings.messages_max) as usize,
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => 0,
        }
    }

    /// The train window with which the next session to this host may begin; `None`: nothing was
    /// learned. Ask again after each event.
    #[must_use]
    pub fn learned_window(&self) -> Option<u32> {
        self.learned().window
    }

    /// True when replies in a train could not be told apart: for
    /// [`limits::TRAIN_PLAIN_MS`] sessions to this host are to be made with `plain`.
    #[must_use]
    pub fn wants_plain(&self) -> bool {
        self.learned().plainly
    }

    fn learned(&self) -> Learned {
        match &self.state {
            State::Ready(ready) => ready.learned(),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => self.link.learned,
        }
    }

    /// Ends the session in good order: what is under way is finished first, then QUIT, then
    /// [`Output::Close`] once the peer has closed or did not in time. Before the session is ready
    /// there is no event: nothing failed.
    pub fn quit(&mut self, now: Now) {
        self.state = match mem::replace(&mut self.state, State::Closed) {
            State::Ready(ready) => ready.leave(&mut self.link, now),
            State::Greeting(_) => {
                self.link.close();
                State::Closed
            }
            State::Ehlo(_) | State::Helo(_) => ExpectEndOfFile::enter(&mut self.link, now),
            state @ (State::EndOfFile(_) | State::Closed) => state,
        };
    }

    /// True while a message whose end (final dot, or last octet of BDAT) was handed out is not
    /// settled: the peer may have it.
    #[must_use]
    pub fn is_past_final_dot(&self) -> bool {
        match &self.state {
            State::Ready(ready) => ready.is_past_end(),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => false,
        }
    }

    /// When [`Self::handle_deadline`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        self.link.deadline
    }

    /// The next event alone: what [`Self::poll_output`] would say before it hands out a write.
    /// A caller that answers events with [`Self::submit`] gets more into that write.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.link.events.pop_front()
    }

    /// What is to be done next.
    pub fn poll_output(&mut self, now: Now) -> Output {
        loop {
            if let Some(event) = self.link.events.pop_front() {
                return Output::Event(event);
            }
            match self.link.closing {
                Closing::No => {}
                Closing::Due => {
                    self.link.closing = Closing::Said;
                    return Output::Close;
                }
                Closing::Said => return Output::Idle,
            }
            if self.link.writing {
                return Output::Idle;
            }
            if let Some((bytes, mark)) = self.link.command.take() {
                self.link.binder.expect(mark, 0);
                return self.send(vec![Chunk::Bytes(bytes)], now);
            }
            if let State::Ready(ready) = &mut self.state {
                if let Some(chunks) = ready.next_chunks(&mut self.link) {
                    return self.send(chunks, now);
                }
                if !self.link.events.is_empty() {
                    self.rearm(now);
                    continue;
                }
            }
            return Output::Idle;
        }
    }

    fn send(&mut self, chunks: Vec<Chunk>, now: Now) -> Output {
        self.link.writing = true;
        // One piece after the other, each with its time.
        let octets: usize = chunks.iter().map(|chunk| chunk.as_slice().len()).sum();
        let pieces = u32::try_from(octets / limits::BODY_PIECE_OCTETS).unwrap_or(u32::MAX).max(1);
        match self.state {
            // The time for QUIT runs since it was decided.
            State::EndOfFile(_) | State::Closed => {}
            State::Greeting(_) | State::Ehlo(_) | State::Helo(_) | State::Ready(_) => {
                let block = self.link.settings.timeouts.block * pieces;
                self.link.deadline = Some(now.mono + block);
            }
        }
        Output::Send(chunks)
    }

    fn handle_reply(&mut self, reply: Reply, now: Now) {
        let owed = self.link.binder.bind().expect("a reply is parsed only while one is owed");
        let link = &mut self.link;
        self.state = match mem::replace(&mut self.state, State::Closed) {
            State::Greeting(state) => state.handle_reply(reply, link, now),
            State::Ehlo(state) => state.handle_reply(reply, link, now),
            State::Helo(state) => state.handle_reply(reply, link, now),
            State::Ready(state) => state.handle_reply(owed, reply, link, now),
            state @ (State::EndOfFile(_) | State::Closed) => state,
        };
        if !self.link.writing {
            self.rearm(now);
        }
    }

    fn is_before_end(&self) -> bool {
        match &self.state {
            State::Ready(ready) => ready.is_before_end(self.link.binder.next()),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => false,
        }
    }

    fn rearm(&mut self, now: Now) {
        match self.state {
            State::EndOfFile(_) | State::Closed => {}
            State::Greeting(_) | State::Ehlo(_) | State::Helo(_) | State::Ready(_) => {
                self.link.arm(now);
            }
        }
    }

    fn fail(&mut self, cause: ConnectionCause) {
        match mem::replace(&mut self.state, State::Closed) {
            State::Greeting(_) => self.link.failed(Stage::Greeting, cause),
            State::Ehlo(_) | State::Helo(_) => self.link.failed(Stage::Ehlo, cause),
            State::Ready(ready) => self.state = ready.break_off(cause, &mut self.link),
            State::EndOfFile(_) | State::Closed => {}
        }
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.link.close();
    }
}

impl ExpectGreeting {
    fn handle_reply(self, reply: Reply, link: &mut Link, now: Now) -> State {
        if reply.is_positive() {
            link.say_hello("EHLO", Mark::Ehlo);
            return State::Ehlo(ExpectEhlo);
        }
        link.refuse_to_open(Stage::Greeting, reply, now)
    }
}

impl ExpectEhlo {
    fn handle_reply(self, reply: Reply, link: &mut Link, now: Now) -> State {
        if reply.is_positive() {
            return Ready::enter(Extensions::from_ehlo(&reply), link);
        }
        // RFC 5321 3.2 and 4.1.4: these say that EHLO is not known, any other that we are unwanted.
        if matches!(reply.code, 500 | 502 | 504 | 550) {
            link.say_hello("HELO", Mark::Helo);
            return State::Helo(ExpectHelo);
        }
        link.refuse_to_open(Stage::Ehlo, reply, now)
    }
}

impl ExpectHelo {
    fn handle_reply(self, reply: Reply, link: &mut Link, now: Now) -> State {
        if reply.is_positive() {
            return Ready::enter(Extensions::default(), link);
        }
        link.refuse_to_open(Stage::Ehlo, reply, now)
    }
}

impl ExpectEndOfFile {
    pub(super) fn enter(link: &mut Link, now: Now) -> State {
        link.binder.clear();
        link.command = Some((b"QUIT\r\n".to_vec(), Mark::Quit));
        link.deadline = Some(now.mono + Duration::from_millis(limits::QUIT_WAIT_MS));
        State::EndOfFile(Self)
    }
}

impl Link {
    /// Starts the time of the next reply that is owed, or of idleness.
    fn arm(&mut self, now: Now) {
        let timeouts = &self.settings.timeouts;
        let time = self.binder.next().map_or(timeouts.idle, |owed| owed.mark.timeout(timeouts));
        self.deadline = Some(now.mono + time);
    }

    fn say_hello(&mut self, verb: &str, mark: Mark) {
        let line = format!("{verb} {}\r\n", self.settings.ehlo_name);
        self.command = Some((line.into_bytes(), mark));
    }

    /// The host does not want us, in good order: so do we leave. After 421 it closes by itself.
    fn refuse_to_open(&mut self, stage: Stage, reply: Reply, now: Now) -> State {
        if reply.code / 100 == 3 {
            let what = "3yz reply to the greeting or to EHLO";
            self.failed(stage, ConnectionCause::Garbage(what.into()));
            self.close();
            return State::Closed;
        }
        let closes = reply.code == 421;
        self.failed(stage, ConnectionCause::Reply(reply));
        if closes {
            self.close();
            return State::Closed;
        }
        ExpectEndOfFile::enter(self, now)
    }

    fn failed(&mut self, stage: Stage, cause: ConnectionCause) {
        self.events.push_back(Event::Failed(ConnectionFailure { stage, cause }));
    }

    pub(super) fn close(&mut self) {
        self.binder.clear();
        self.command = None;
        self.deadline = None;
        if self.closing == Closing::No {
            self.closing = Closing::Due;
        }
    }
}
