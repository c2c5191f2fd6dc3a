//! The session: the states of one connection that delivers mail (RFC 5321 3.1 to 3.3, 3.8).
//!
//! Owns: the order greeting, EHLO or HELO, transactions, QUIT; the one running deadline. Never: a
//! verdict on a recipient (`flight`).
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
use super::flight::{Flight, Verdict};
use super::{Chunk, ClientSettings, Event, Output, TRANSACTIONS_IN_FLIGHT_MAX, Transaction};
use crate::limits;
use crate::mail::{ConnectionCause, ConnectionFailure, Failure, Mono, Now, Reply, Stage};
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
enum State {
    Greeting(ExpectGreeting),
    Ehlo(ExpectEhlo),
    Helo(ExpectHelo),
    Ready(Ready),
    EndOfFile(ExpectEndOfFile),
    Closed,
}

/// Waits for the greeting.
#[derive(Debug)]
struct ExpectGreeting;

/// Waits for the reply to EHLO.
#[derive(Debug)]
struct ExpectEhlo;

/// Waits for the reply to HELO: EHLO was not understood.
#[derive(Debug)]
struct ExpectHelo;

/// Waits for transactions and for the replies to their commands.
#[derive(Debug)]
struct Ready {
    extensions: Extensions,
    /// The first one may be begun; with a window of one it is the only one.
    flights: VecDeque<Flight>,
    /// Transactions begun so far.
    begun: u32,
    /// RSET is not answered yet.
    resetting: bool,
    /// QUIT follows as soon as nothing is under way.
    leaving: bool,
}

/// QUIT is sent or about to be: waits for the peer to close. What it says meanwhile is ignored.
#[derive(Debug)]
struct ExpectEndOfFile;

/// What all states share: the way out, and the deadline.
#[derive(Debug)]
struct Link {
    settings: ClientSettings,
    binder: Binder,
    events: VecDeque<Event>,
    /// A command that stands alone and is to be handed out next.
    command: Option<(Vec<u8>, Mark)>,
    /// A write is out.
    writing: bool,
    /// The reply that is coming in began before the final dot was handed out. Its first octet
    /// decides: the rest of it may come later, and must not pass for an answer to the dot.
    before_dot: bool,
    deadline: Option<Mono>,
    closing: Closing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
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
            before_dot: false,
            deadline: None,
            closing: Closing::No,
        };
        link.binder.expect(Mark::Greeting);
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
                return self.fail(ConnectionCause::Garbage("reply that answers nothing".into()));
            }
            if self.parser.is_empty() {
                self.link.before_dot = self.is_before_dot();
            }
            match self.parser.parse(&mut input) {
                Ok(Some(reply)) => self.handle_reply(reply, now),
                Ok(None) => {}
                Err(garbage) => {
                    return self.fail(ConnectionCause::Garbage(garbage.as_str().into()));
                }
            }
        }
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
                if ready.flights.is_empty() && !ready.resetting {
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
        let flight = Flight::new(transaction);
        let room = self.capacity() > 0;
        match &mut self.state {
            State::Ready(ready) if room => ready.flights.push_back(flight),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::Ready(_)
            | State::EndOfFile(_)
            | State::Closed => self.link.events.push_back(flight.give_back()),
        }
    }

    /// How many transactions the session takes now; 0 unless it is ready.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.state {
            State::Ready(ready) if !ready.leaving && !ready.resetting => {
                TRANSACTIONS_IN_FLIGHT_MAX - ready.flights.len()
            }
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::Ready(_)
            | State::EndOfFile(_)
            | State::Closed => 0,
        }
    }

    /// What the host offers, once the session is ready.
    #[must_use]
    pub fn extensions(&self) -> Option<&Extensions> {
        match &self.state {
            State::Ready(ready) => Some(&ready.extensions),
            State::Greeting(_)
            | State::Ehlo(_)
            | State::Helo(_)
            | State::EndOfFile(_)
            | State::Closed => None,
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

    /// True while a reply to a final dot is awaited: the peer may have the message.
    #[must_use]
    pub fn is_past_final_dot(&self) -> bool {
        match &self.state {
            State::Ready(ready) => ready.flights.iter().any(Flight::is_past_dot),
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
                self.link.binder.expect(mark);
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
        match self.state {
            // The time for QUIT runs since it was decided.
            State::EndOfFile(_) | State::Closed => {}
            State::Greeting(_) | State::Ehlo(_) | State::Helo(_) | State::Ready(_) => {
                let block = self.link.settings.timeouts.block;
                self.link.deadline = Some(now.mono + block);
            }
        }
        Output::Send(chunks)
    }

    fn handle_reply(&mut self, reply: Reply, now: Now) {
        let mark = self.link.binder.bind().expect("a reply is parsed only while one is owed");
        let link = &mut self.link;
        self.state = match mem::replace(&mut self.state, State::Closed) {
            State::Greeting(state) => state.handle_reply(reply, link, now),
            State::Ehlo(state) => state.handle_reply(reply, link, now),
            State::Helo(state) => state.handle_reply(reply, link, now),
            State::Ready(state) => state.handle_reply(mark, reply, link, now),
            state @ (State::EndOfFile(_) | State::Closed) => state,
        };
        if !self.link.writing {
            self.rearm(now);
        }
    }

    /// The body is on its way, and the final dot was not handed out.
    fn is_before_dot(&self) -> bool {
        match &self.state {
            State::Ready(ready) => {
                let mark = self.link.binder.next();
                ready.flights.front().is_some_and(|flight| flight.stage(mark) == Stage::Body)
            }
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

impl Ready {
    fn enter(extensions: Extensions, link: &mut Link) -> State {
        link.events.push_back(Event::Ready { extensions });
        let flights = VecDeque::with_capacity(TRANSACTIONS_IN_FLIGHT_MAX);
        State::Ready(Self { extensions, flights, begun: 0, resetting: false, leaving: false })
    }

    /// What the first transaction may write now; an unfit one is settled instead.
    fn next_chunks(&mut self, link: &mut Link) -> Option<Vec<Chunk>> {
        if self.resetting {
            return None;
        }
        let flight = self.flights.front_mut()?;
        if !flight.is_begun() {
            flight.check_fit(&self.extensions);
            if flight.is_over() {
                link.events.extend(self.flights.pop_front().map(Flight::finish));
                return None;
            }
            self.begun += 1;
        }
        flight.next_chunks(&self.extensions, &mut link.binder)
    }

    fn handle_reply(mut self, mark: Mark, reply: Reply, link: &mut Link, now: Now) -> State {
        if mark == Mark::Rset {
            return self.handle_reset_reply(reply, link, now);
        }
        let flight = self.flights.front_mut().expect("only a transaction's command is marked");
        let stage = flight.stage(Some(mark));
        if reply.code == 421 {
            flight.refuse_open(stage, &Failure::from_reply(reply.clone()));
            return self.end(stage, ConnectionCause::Reply(reply), false, link);
        }
        // A refusal before the last octet was written is early too, although the dot was out.
        let early =
            mark == Mark::EndOfData && (link.before_dot || link.writing && !reply.is_positive());
        match flight.handle_reply(mark, reply, early, &mut link.binder) {
            Verdict::Garbage(what) => {
                let failure =
                    ConnectionFailure { stage, cause: ConnectionCause::Garbage(what.into()) };
                flight.break_off(&failure);
                self.end(stage, failure.cause, false, link)
            }
            Verdict::Sound => self.go_on(link, now),
            Verdict::OutOfStep => {
                self.finish_all(link);
                link.events.push_back(Event::Retired);
                link.close();
                State::Closed
            }
        }
    }

    fn handle_reset_reply(mut self, reply: Reply, link: &mut Link, now: Now) -> State {
        if !reply.is_positive() {
            return self.end(Stage::Mail, ConnectionCause::Reply(reply), true, link);
        }
        self.resetting = false;
        if self.leaving { self.retire(link, now) } else { State::Ready(self) }
    }

    /// Lets go of the first transaction if it is over.
    fn go_on(mut self, link: &mut Link, now: Now) -> State {
        let Some(flight) = self.flights.front_mut() else { return State::Ready(self) };
        flight.skip_unneeded();
        if !flight.is_over() || !link.binder.is_empty() {
            return State::Ready(self);
        }
        let reset = flight.needs_reset();
        link.events.extend(self.flights.pop_front().map(Flight::finish));
        let messages_max = link.settings.messages_max;
        if self.leaving || messages_max != 0 && self.begun >= messages_max {
            return self.retire(link, now);
        }
        if reset {
            link.command = Some((b"RSET\r\n".to_vec(), Mark::Rset));
            self.resetting = true;
        }
        State::Ready(self)
    }

    /// Leaves now, or as soon as nothing is under way.
    fn leave(mut self, link: &mut Link, now: Now) -> State {
        let under_way = self.flights.front().is_some_and(Flight::is_begun);
        if !under_way && !self.resetting {
            return self.retire(link, now);
        }
        self.leaving = true;
        State::Ready(self)
    }

    fn retire(mut self, link: &mut Link, now: Now) -> State {
        self.finish_all(link);
        link.events.push_back(Event::Retired);
        ExpectEndOfFile::enter(link, now)
    }

    /// Every transaction under way has its verdicts; those not begun come back untried.
    fn finish_all(&mut self, link: &mut Link) {
        link.events.extend(self.flights.drain(..).map(Flight::finish));
    }

    /// The connection broke.
    fn break_off(mut self, cause: ConnectionCause, link: &mut Link) -> State {
        let Some(flight) = self.flights.front_mut().filter(|flight| flight.is_begun()) else {
            return self.end(Stage::Mail, cause, true, link);
        };
        let failure = ConnectionFailure { stage: flight.stage(link.binder.next()), cause };
        // A host that closes idle connections may have done so before it saw MAIL. The first
        // transaction of a connection has no such excuse, so nothing is handed back for ever.
        let closed_while_idle = self.begun > 1
            && !flight.is_answered()
            && matches!(failure.cause, ConnectionCause::Network(_));
        if closed_while_idle {
            link.events.extend(self.flights.pop_front().map(Flight::give_back));
        } else {
            flight.break_off(&failure);
        }
        self.end(failure.stage, failure.cause, closed_while_idle, link)
    }

    fn end(mut self, stage: Stage, cause: ConnectionCause, idle: bool, link: &mut Link) -> State {
        self.finish_all(link);
        link.events.push_back(Event::Ended { failure: ConnectionFailure { stage, cause }, idle });
        link.close();
        State::Closed
    }
}

impl ExpectEndOfFile {
    fn enter(link: &mut Link, now: Now) -> State {
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
        let time = self.binder.next().map_or(timeouts.idle, |mark| mark.timeout(timeouts));
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

    fn close(&mut self) {
        self.binder.clear();
        self.command = None;
        self.deadline = None;
        if self.closing == Closing::No {
            self.closing = Closing::Due;
        }
    }
}
