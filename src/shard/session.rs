//! One connection to a host: connect, greeting, EHLO, transactions, QUIT.
//!
//! Owns: the task that carries a [`client::Session`]'s words to the socket and back, and takes
//! deliveries from its lane. Never: what an outcome means (`delivery` asks `settle`).
//!
//! Diagnostics: a connection that brings no session is one `Connection Error` line; a session
//! that breaks under a transaction too.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use super::connect::{NoConnection, connect};
use super::connection::{Bell, Connection, Happened};
use super::delivery::Delivery;
use super::destination::Destination;
use super::hot::Lent;
use super::io::{Gather, Piece};
use super::pool::{Cause, Held, Idle, New, Served};
use super::{Shard, Stopping};
use crate::limits;
use crate::mail::{Dcid, Mono, RecipientOutcome};
use crate::smtp::client::{self, Chunk, ClientSettings, Event, Output, TrainPolicy, Transaction};

/// A busy session keeps a permit that another shard waits for this long at most.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// A session holds a delivery too long when its outcome comes after this many usual reply times of
/// its host, in milliseconds at least [`SLOW_MS_MIN`]: more connections would help.
const SLOW_TIMES: u64 = 4;
const SLOW_MS_MIN: u64 = 100;

/// Deliveries of a lane that a session looks at for one whose destination has a permit.
const LOOK_AHEAD_MAX: usize = 64;

/// Runs one connection from its permits to their return.
pub(super) async fn run(
    shard: Rc<Shard>,
    served: Rc<Served>,
    destination: Rc<Destination>,
    new: New,
) {
    let dcid = shard.next_dcid();
    let bell = shard.new_bell();
    let is_spent = match connect(&shard, &served, &destination, &bell).await {
        Ok(socket) => {
            shard.end_pauses(&served);
            shard.counters().connections_out.one();
            shard.counters().sessions_out.add(1);
            let local = socket.local_addr().map(|a| a.ip()).ok();
            let peer = served.key.address;
            let from = local.unwrap_or(IpAddr::from([0, 0, 0, 0]));
            shard.log(|log, now| log.new_smtp_dcid(now, dcid, from, peer));
            let (from, of) = (bell.clone(), &destination);
            let dialogue = Dialogue::new(&shard, &served, of, dcid, local, new, from);
            let is_spent = dialogue.run(Connection::new(socket, bell)).await;
            // Its descriptor and its port are free for the next one.
            shard.end_pauses(&served);
            shard.log(|log, now| log.dcid_close(now, dcid));
            shard.counters().sessions_out.sub(1);
            is_spent
        }
        Err(failure) => {
            let New { held, cause } = new;
            let local = destination.source();
            served.has_come(&cause);
            shard.release_permits(held, &served.host);
            match failure {
                NoConnection::Host(failure) => {
                    shard.connection_failed(&served, &destination, dcid, local, &failure, cause);
                }
                NoConnection::Machine(shortage) => shard.fell_short(&served, shortage, cause),
            }
            false
        }
    };
    shard.sessions.set(shard.sessions.get() - 1);
    if shard.stopping() == Stopping::No {
        shard.replace_ended(&served);
    }
    if is_spent {
        served.spent_one_is_gone();
    }
    shard.feed_bell.ring();
}

/// The system's words without its number.
pub(super) fn error_text(error: &std::io::Error) -> Box<str> {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text);
    plain.into()
}

/// A delivery whose transaction was handed to the session.
struct UnderWay {
    key: u64,
    /// When it was handed over.
    since: Mono,
    delivery: Delivery,
    body_octets: u64,
    /// Room for its body, while it is under way.
    _lent: Lent,
}

/// The dialogue over a connection that stands.
struct Dialogue<'a> {
    shard: &'a Rc<Shard>,
    served: &'a Rc<Served>,
    destination: &'a Rc<Destination>,
    dcid: Dcid,
    local: Option<IpAddr>,
    held: Held,
    cause: Cause,
    session: client::Session,
    /// The deliveries whose transactions are under way, in the order of their keys.
    under_way: VecDeque<UnderWay>,
    is_ready: bool,
    /// Ready since this round: the lane has not been looked at again.
    is_fresh: bool,
    transactions: u64,
    key: u64,
    /// Set while the reply to a final dot is awaited.
    past_dot: Cell<bool>,
    /// What the session takes in one round trip, as counted in the lane.
    window: usize,
    /// It has taken all that it may, and is counted so in the lane.
    is_spent: bool,
    /// Its host works off a train message by message: what it holds waits in vain.
    is_slow: bool,
    /// The train window that the host remembers from us.
    learned: Option<u32>,
    bell: Rc<Bell>,
    since: Mono,
    /// When the last write was handed out, until the next reply.
    asked: Option<Mono>,
}

impl<'a> Dialogue<'a> {
    fn new(
        shard: &'a Rc<Shard>,
        served: &'a Rc<Served>,
        destination: &'a Rc<Destination>,
        dcid: Dcid,
        local: Option<IpAddr>,
        New { held, cause }: New,
        bell: Rc<Bell>,
    ) -> Self {
        let settings = ClientSettings {
            ehlo_name: destination.ehlo_name.clone(),
            timeouts: shard.config().timeouts,
            messages_max: destination.controls.messages_per_connection_max,
            train: match served.key.trains {
                true => TrainPolicy::Auto { window: served.host.train_window() },
                false => TrainPolicy::Off,
            },
            plain: served.host.is_spoken_to_plainly(shard.now().mono),
        };
        let session = client::Session::new(settings, shard.now());
        Self {
            shard,
            served,
            destination,
            dcid,
            local,
            held,
            cause,
            session,
            under_way: VecDeque::new(),
            is_ready: false,
            is_fresh: false,
            transactions: 0,
            key: 0,
            past_dot: Cell::new(false),
            window: 0,
            is_spent: false,
            is_slow: false,
            learned: None,
            bell,
            since: shard.now().mono,
            asked: None,
        }
    }

    /// Gives whether it was spent.
    async fn run(mut self, mut connection: Connection) -> bool {
        let bell = connection.bell().clone();
        loop {
            // First what is over, then what comes next, so that one write carries all of it.
            while let Some(event) = self.session.poll_event() {
                self.hear(event);
            }
            self.take_work().await;
            if std::mem::take(&mut self.is_fresh) && self.shard.stopping() == Stopping::No {
                // What this session did not take may want one more.
                self.shard.grow(self.served);
            }
            if !self.obey(&mut connection) {
                break;
            }
            // What came back just now, or was refused before it went out, makes room.
            if self.has_room() {
                self.take_work().await;
                if !self.obey(&mut connection) {
                    break;
                }
            }
            bell.set_deadline(self.session.deadline());
            self.shard.write_words();
            let happened = connection.next().await;
            let now = self.shard.now();
            match happened {
                Happened::Received(Ok(1..)) => {
                    self.note_reply(now.mono);
                    self.session.handle_input(connection.received(), now);
                    connection.done_with(connection.received().len());
                }
                Happened::Received(Ok(_)) => self.session.handle_closed(None),
                Happened::Received(Err(error)) | Happened::Sent(Err(error)) => {
                    self.session.handle_closed(Some(error_text(&error)));
                }
                Happened::Sent(Ok(())) => self.session.handle_sent(now),
                Happened::Deadline => self.session.handle_deadline(now),
                Happened::Rung => self.look_up(&connection),
            }
        }
        self.leave_ready();
        connection.close().await;
        self.shard.release_permits(self.held, &self.served.host);
        self.is_spent
    }

    /// Does what the session wants; false when it is over.
    fn obey(&mut self, connection: &mut Connection) -> bool {
        loop {
            match self.session.poll_output(self.shard.now()) {
                Output::Send(chunks) => {
                    self.past_dot.set(self.session.is_past_final_dot());
                    let now = self.shard.now().mono;
                    self.asked = Some(now);
                    self.served.asked.set(now);
                    self.shard.write_words();
                    connection.send(Gather::new(chunks.into_iter().map(piece).collect()));
                }
                Output::Event(event) => self.hear(event),
                Output::Close => {
                    self.learn();
                    return false;
                }
                Output::Idle => {
                    self.learn();
                    return true;
                }
            }
        }
    }

    /// Keeps what the session has learned of the host, and counts its window.
    fn learn(&mut self) {
        let host = &self.served.host;
        let learned = self.session.learned_window();
        if let Some(window) = learned.filter(|_| learned != self.learned) {
            host.remember_train_window(window);
            self.learned = learned;
            if self.session.wants_plain() {
                host.speak_plainly(self.shard.now().mono, limits::TRAIN_PLAIN_MS);
            }
        }
        let window = match (self.is_ready, self.is_slow) {
            (true, false) => self.session.window(),
            (true, true) => self.session.window().min(1),
            (false, _) => 0,
        };
        let windows = &self.served.windows;
        windows.set(windows.get() + window - self.window);
        let takes_no_more = self.is_ready && window == 0 && self.window > 0;
        self.window = window;
        if takes_no_more && !std::mem::replace(&mut self.is_spent, true) {
            self.served.one_is_spent();
        }
        if takes_no_more && self.shard.stopping() == Stopping::No {
            // The next connection is opened while the replies to the last train are on their way.
            self.shard.grow(self.served);
        }
    }

    fn hear(&mut self, event: Event) {
        let shard = self.shard;
        match event {
            Event::Ready { extensions: _ } => self.become_ready(),
            Event::Done { key, outcomes } => {
                self.past_dot.set(self.session.is_past_final_dot());
                let at = self.under_way.iter().position(|under_way| under_way.key == key);
                let at = at.expect("one answer per transaction");
                let done = self.under_way.remove(at).expect("it was just found");
                self.served.outstanding.set(self.served.outstanding.get() - 1);
                let usual_ms = self.served.host.usual_reply_ms();
                let took_ms = shard.now().mono.since_ms(done.since);
                self.is_slow = took_ms > SLOW_MS_MIN.max(SLOW_TIMES * usual_ms);
                let mut is_first = false;
                if outcomes.iter().any(|(_, outcome)| outcome.shows_life()) {
                    self.heard();
                    is_first = !self.served.answers.replace(true);
                }
                let accepted = |o: &RecipientOutcome| matches!(o, RecipientOutcome::Accepted(_));
                if outcomes.iter().any(|(_, outcome)| accepted(outcome)) {
                    shard.counters().octets_out.add(done.body_octets);
                }
                let strict = shard.settle(done.delivery, outcomes, self.served, self.dcid);
                if strict {
                    self.session.quit(shard.now());
                }
                if is_first && shard.stopping() == Stopping::No {
                    // From its first answer on, connections grow by need.
                    shard.grow(self.served);
                }
            }
            Event::Failed(failure) => {
                let (served, destination) = (self.served, self.destination);
                served.has_come(&self.cause);
                let cause = std::mem::replace(&mut self.cause, Cause::Growth);
                shard.connection_failed(
                    served,
                    destination,
                    self.dcid,
                    self.local,
                    &failure,
                    cause,
                );
            }
            Event::Ended { failure, idle } => {
                let at_once = std::mem::take(&mut self.is_fresh);
                self.leave_ready();
                let (served, destination) = (self.served, self.destination);
                let (dcid, local) = (self.dcid, self.local);
                if at_once {
                    // Let in and sent away before the first word: as if it had not let us in, or
                    // its lane would connect for ever.
                    let cause = Cause::Growth;
                    shard.connection_failed(served, destination, dcid, local, &failure, cause);
                } else {
                    shard.session_broke(served, destination, dcid, local, &failure, idle);
                }
                self.retire();
            }
            Event::Retired => self.retire(),
        }
    }

    fn become_ready(&mut self) {
        let served = self.served;
        self.is_ready = true;
        served.has_come(&self.cause);
        // The lease of a probe ends with its success.
        self.cause = Cause::Growth;
        served.ready.set(served.ready.get() + 1);
        self.learn();
        let now = self.shard.now().mono;
        served.heard.set(Some(now));
        if served.host.session_opened(self.shard.id, now) {
            self.shard.shared.ring_all();
        }
        self.is_fresh = true;
    }

    fn heard(&self) {
        let now = self.shard.now().mono;
        self.served.heard.set(Some(now));
        if self.served.host.good_reply(self.shard.id, now) {
            self.shard.shared.ring_all();
        }
    }

    /// The session takes no more transactions: what waits in the lane must not wait for its end.
    fn retire(&mut self) {
        self.leave_ready();
        if self.shard.stopping() == Stopping::No {
            self.shard.grow(self.served);
        }
    }

    fn leave_ready(&mut self) {
        self.forget_idle();
        if !std::mem::take(&mut self.is_ready) {
            return;
        }
        let served = self.served;
        served.ready.set(served.ready.get() - 1);
        served.windows.set(served.windows.get() - std::mem::take(&mut self.window));
        let rest = if served.ready.get() > 0 { served.heard.get() } else { None };
        served.host.session_closed(self.shard.id, rest);
    }

    /// The session would take more, and there is more.
    fn has_room(&self) -> bool {
        self.session.capacity() > 0 && self.served.backlog() > 0
    }

    /// Takes deliveries from the lane while the session has room for them.
    async fn take_work(&mut self) {
        let coming = self.session.capacity().min(self.served.backlog());
        self.session.reserve(coming);
        self.under_way.reserve(coming);
        while self.session.capacity() > 0 {
            let now = self.shard.now();
            if self.shard.stopping() != Stopping::No {
                return self.session.quit(now);
            }
            if self.must_give_back(now.mono) {
                self.shard.start_return(&self.held, self.served);
                return self.session.quit(now);
            }
            // Who may soon have to give its permit back does not look ahead for a small gain.
            let looks_ahead = !self.under_way.is_empty() && self.session.window() <= 2;
            if looks_ahead && self.shard.is_wanted(&self.held, &self.served.host) {
                return self.forget_idle();
            }
            let Some((delivery, lent)) = self.next_delivery() else {
                return self.become_idle();
            };
            self.forget_idle();
            let Some((delivery, message)) = self.shard.load(delivery).await else { continue };
            self.shard.begin(&delivery, self.dcid);
            self.key += 1;
            self.transactions += 1;
            let body_octets = message.body.bytes.len() as u64;
            let transaction = Transaction {
                key: self.key,
                sender: message.envelope.sender.clone(),
                body_kind: message.envelope.body,
                smtputf8: message.envelope.smtputf8,
                ret: message.envelope.ret,
                envid: message.envelope.envid.clone(),
                recipients: delivery.recipients_of(&message),
                body: message.body.clone(),
                strict: delivery.strict,
            };
            let (key, since) = (self.key, self.shard.now().mono);
            let under_way = UnderWay { key, since, delivery, body_octets, _lent: lent };
            self.under_way.push_back(under_way);
            self.served.outstanding.set(self.served.outstanding.get() + 1);
            self.session.submit(transaction);
        }
        self.forget_idle();
    }

    /// Another shard waits for a permit that we hold: idle sessions end at once, busy ones after
    /// a second.
    fn must_give_back(&self, now: Mono) -> bool {
        let is_idle = self.under_way.is_empty() && self.served.backlog() == 0;
        // One with work does a transaction first, or permits would go round and no mail move.
        let is_due = is_idle || self.transactions > 0 && now >= self.since + BUSY_MAX;
        is_due && self.shard.is_wanted(&self.held, &self.served.host)
    }

    fn note_reply(&mut self, now: Mono) {
        if let Some(asked) = self.asked.take() {
            self.served.host.reply_took(now.since_ms(asked));
        }
    }

    /// The first delivery of the lane whose destination has a permit for us, and whose body has
    /// room in memory.
    fn next_delivery(&mut self) -> Option<(Delivery, Lent)> {
        let mut skipped = Vec::new();
        let mut found = None;
        while skipped.len() < LOOK_AHEAD_MAX {
            let Some(delivery) = self.served.lane.borrow_mut().pop() else { break };
            // A strict repeat wants a new connection.
            let fits = !(delivery.strict && self.transactions > 0);
            let lent = if fits { self.shard.lend(&delivery) } else { None };
            if let Some(lent) = lent
                && self.shard.swap_permit(&mut self.held, &delivery.destination)
            {
                found = Some((delivery, lent));
                break;
            }
            skipped.push(delivery);
        }
        let mut lane = self.served.lane.borrow_mut();
        skipped.into_iter().rev().for_each(|delivery| lane.give_back(delivery));
        let unblocked = lane.unblocked();
        let has_run_empty = found.is_some() && lane.is_empty();
        drop(lane);
        self.shard.poke(unblocked);
        if has_run_empty {
            self.shard.relieve_full_lanes(self.served);
        }
        found
    }

    fn become_idle(&self) {
        self.forget_idle();
        let permits = self.held.destination.as_ref().map(|(_, permits)| permits.clone());
        let mut idle = self.served.idle.borrow_mut();
        // The last one is rung first: whoever has nothing under way answers soonest.
        let at = if self.under_way.is_empty() { idle.len() } else { 0 };
        idle.insert(at, Idle { bell: self.bell.clone(), permits });
    }

    fn forget_idle(&self) {
        self.served.idle.borrow_mut().retain(|idle| !Rc::ptr_eq(&idle.bell, &self.bell));
    }

    /// The bell rang: work, a wish for our permit, or the end of the engine.
    fn look_up(&mut self, connection: &Connection) {
        match self.shard.stopping() {
            Stopping::No => {}
            Stopping::Gently => {
                let cut = match self.past_dot.get() {
                    true => self.shard.final_reply_is_over(),
                    false => self.shard.grace_is_over(),
                };
                if cut {
                    connection.socket().shutdown();
                } else {
                    self.session.quit(self.shard.now());
                }
            }
            Stopping::Now => connection.socket().shutdown(),
        }
    }
}

fn piece(chunk: Chunk) -> Piece {
    match chunk {
        Chunk::Static(bytes) => Piece::Static(bytes),
        Chunk::Bytes(bytes) => Piece::Bytes(bytes),
        Chunk::Commands { buffer, range } => Piece::Commands(buffer, range),
        Chunk::Body { body, range } => Piece::Body(body, range),
    }
}
