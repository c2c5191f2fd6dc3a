//! Inject: connections are accepted, clients speak SMTP, their messages go to the queue.
//!
//! Owns: one task per listener and one per client. Never: the dialogue (`smtp::server`), or a
//! 250 without the proof that a commit gave.
//!
//! Diagnostics: a client over a limit gets 421 4.7.0; without receive memory it waits, then 452
//! 4.3.1; when the process has no file descriptor
//! left, accepting pauses instead of spinning.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::balance::NewClient;
use super::commit::{Verdict, Verdicts, Waiter};
use super::connection::{Bell, Connection, Happened};
use super::hot::Message;
use super::io::{self, Accepted, Gather, Listener, Socket};
use super::receive_memory::{Answer, Share, WAIT_MS_MAX};
use super::{Shard, Stopping};
use crate::config::{CommitMode, ListenerSettings};
use crate::mail::{Body, Icid, Mailbox, Mid, Mono, Now, Rid};
use crate::queue::{Full, NewMessage};
use crate::smtp::server::{Abort, Gate, Input, Next, Peer, Refusal, Session, Transaction};

/// How long accepting pauses when the system has no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client that was sent away may take to read why.
const LINGER: Duration = Duration::from_secs(2);

impl Shard {
    /// Accepts clients until the engine stops.
    pub(super) async fn run_listener(self: Rc<Self>, number: usize, listener: Listener) {
        loop {
            let accepted = listener.accept().await;
            if self.stopping() != Stopping::No {
                return;
            }
            match accepted {
                Ok(accepted) => self.place_client((number, accepted)),
                Err(error) => {
                    match io::shortage(&error) {
                        Some(shortage) => self.warn_of(shortage),
                        None => {
                            let text = format!("cannot accept a connection: {error}");
                            self.log(|log, now| log.warning(now, &text));
                        }
                    }
                    io::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a client that was accepted here, or hands it to the shard whose turn it is.
    fn place_client(self: &Rc<Self>, client: NewClient) {
        let balance = &self.shared.balance;
        let place = balance.place(self.id);
        if place == self.id {
            return self.serve_client(client);
        }
        match balance.hand_over(place, client) {
            Ok(()) => self.shared.ring(place),
            Err(client) => {
                balance.moved(place, self.id);
                self.serve_client(client);
            }
        }
    }

    /// Serves the clients that other shards have handed over.
    pub(super) fn take_clients(self: &Rc<Self>) {
        while let Some(client) = self.shared.balance.take(self.id) {
            self.serve_client(client);
        }
    }

    fn serve_client(self: &Rc<Self>, (number, accepted): NewClient) {
        self.clients.set(self.clients.get() + 1);
        io::spawn(self.clone().run_client(number, accepted));
    }

    async fn run_client(self: Rc<Self>, number: usize, accepted: Accepted) {
        match accepted.open(self.backend) {
            Ok(socket) => self.clone().talk(number, socket).await,
            Err(error) => {
                let text = format!("cannot serve a connection: {error}");
                self.log(|log, now| log.warning(now, &text));
            }
        }
        self.clients.set(self.clients.get() - 1);
        self.shared.balance.left(self.id);
    }

    async fn talk(self: Rc<Self>, number: usize, socket: Socket) {
        let config = self.config();
        let addresses = (socket.peer_addr(), socket.local_addr());
        if let ((Ok(peer), Ok(local)), Some(settings)) = (addresses, config.listeners.get(number)) {
            let counted = self.shared.client_came(number, peer.ip(), &config);
            let icid = self.queue.borrow_mut().ids().next_icid();
            let client = Client::new(&self, settings, peer, icid.unwrap_or(Icid(0)));
            client.run(socket, local.ip(), counted).await;
            if counted {
                self.shared.client_left(number, peer.ip());
            }
        }
    }
}

/// One client's connection.
struct Client<'a> {
    shard: &'a Rc<Shard>,
    settings: &'a ListenerSettings,
    peer: IpAddr,
    icid: Icid,
    /// The listener's name in the queue.
    listener: Arc<str>,
    session: Session,
    /// Where the verdicts on the messages that were handed in will stand.
    verdicts: Verdicts,
    /// The receive memory of the message that comes in.
    share: Share,
}

impl<'a> Client<'a> {
    fn new(
        shard: &'a Rc<Shard>,
        settings: &'a ListenerSettings,
        peer: SocketAddr,
        icid: Icid,
    ) -> Self {
        let who = Peer { ip: peer.ip(), relay: settings.may_relay(peer.ip()) };
        let session = Session::new(settings.server.clone(), who, shard.now());
        let listener = settings.address.to_string().into();
        let (verdicts, share) = (Verdicts::default(), shard.receive_memory.share());
        Self { shard, settings, peer: peer.ip(), icid, listener, session, verdicts, share }
    }

    async fn run(mut self, socket: Socket, local: IpAddr, counted: bool) {
        self.open(local, counted, socket.has_input());
        let bell = self.shard.new_bell();
        let mut connection = Connection::new(socket, bell.clone());
        // The client has said all it had to say, and still waits for a verdict.
        let mut ended = false;
        let lost = loop {
            if connection.can_send() {
                if self.session.has_output() {
                    connection.send(Gather::from(self.session.take_output()));
                } else if self.session.should_close() {
                    break false;
                } else if ended && !self.session.has_message_in_hand() {
                    self.session.handle_closed(&mut self.gate());
                    break true;
                }
            }
            bell.set_deadline(Some(self.deadline()));
            match connection.next().await {
                Happened::Received(Ok(1..)) | Happened::Sent(Ok(())) => self.go_on(&mut connection),
                Happened::Received(Ok(_)) if self.session.has_message_in_hand() => ended = true,
                Happened::Received(_) | Happened::Sent(Err(_)) => {
                    // What was received before the end is complete lines at most; a message
                    // that waits for its verdict is kept.
                    self.session.handle_closed(&mut self.gate());
                    break true;
                }
                Happened::Rung => {
                    self.answer(self.shard.now());
                    if self.shard.stopping() != Stopping::No && !self.stop() {
                        break true;
                    }
                    self.go_on(&mut connection);
                }
                // It does not even read its last replies.
                Happened::Deadline if self.session.should_close() => break true,
                Happened::Deadline => {
                    self.handle_deadline(self.shard.now());
                    self.go_on(&mut connection);
                }
            }
        };
        self.close(connection, lost).await;
    }

    /// The engine stops. False when this client has had its time, and 421 does not leave either.
    fn stop(&mut self) -> bool {
        if !self.shard.grace_is_over() {
            self.session.begin_shutdown(&mut self.gate());
            return true;
        }
        if self.session.should_close() {
            return false;
        }
        self.session.end_shutdown(&mut self.gate());
        true
    }

    fn open(&mut self, local: IpAddr, counted: bool, early: bool) {
        let (counters, icid, peer) = (self.shard.counters(), self.icid, self.peer);
        counters.connections_in.one();
        counters.sessions_in.add(1);
        let name = self.listener.clone();
        let relay = self.settings.may_relay(peer);
        self.shard.log(|log, now| {
            log.new_smtp_icid(now, icid, &name, local, peer);
            if relay {
                log.icid_relay(now, icid, "RELAYLIST", "relay_from");
            } else {
                log.icid_reject(now, icid, "UNKNOWNLIST", "ALL");
            }
        });
        if icid == Icid(0) {
            self.session.turn_away(&Refusal::new(421, 3, 0, "No ids left: the disk is in trouble"));
        } else if !counted {
            self.session.turn_away(&Refusal::new(421, 7, 0, "Too many connections"));
        } else if early {
            self.session.handle_early_talk();
        } else {
            self.session.greet();
        }
    }

    /// Hands what was received to the session, message by message.
    fn go_on(&mut self, connection: &mut Connection) {
        let mut done = 0;
        loop {
            let now = self.shard.now();
            let (shard, icid) = (self.shard, self.icid);
            let mut gate = ClientGate { shard, icid };
            let rest = connection.received().get(done..).unwrap_or_default();
            if !self.has_memory(rest.len(), connection.bell(), now) {
                return connection.keep(done);
            }
            let input = match self.shard.receive_memory.pins() {
                Some(pins) => {
                    let (buffer, before) = connection.shared();
                    Input::shared(buffer, before + done, pins)
                }
                None => Input::from(rest),
            };
            let step = self.session.handle_input(input, &mut gate, now);
            done += step.consumed;
            if !matches!(step.next, Next::Message(_)) {
                self.share.settle(self.session.held_octets() as u64);
            }
            match step.next {
                Next::Message(transaction) => self.hand_in(*transaction, connection, now),
                Next::Read | Next::Close => return connection.done_with(done),
                Next::Write | Next::Verdict => return connection.keep(done),
            }
        }
    }

    /// May `input` more octets be taken? If not, the bell rings when to ask again.
    fn has_memory(&mut self, input: usize, bell: &Rc<Bell>, now: Now) -> bool {
        let Some(wanted) = self.session.memory_wanted(input).filter(|_| input > 0) else {
            return true;
        };
        let waited_since = self.share.waits_since();
        match self.share.ask(&wanted, bell, now.mono) {
            Answer::Granted => {
                if let Some(since) = waited_since {
                    self.session.handle_pause(since, now.mono);
                }
                if self.share.large() > 0 {
                    self.session.make_room(self.share.large());
                }
            }
            Answer::Wait => return false,
            Answer::Refused => self.refuse_for_memory(now),
        }
        true
    }

    /// There is no memory for the rest of the message: 452 at its end.
    fn refuse_for_memory(&mut self, now: Now) {
        if let Some(since) = self.share.waits_since() {
            self.session.handle_pause(since, now.mono);
        }
        self.share.give_up();
        self.session.drop_message(no_memory());
        self.shard.counters().receive_refused.one();
    }

    fn deadline(&self) -> Mono {
        match self.share.waits_since() {
            Some(since) => Mono(since.0 + WAIT_MS_MAX),
            None => self.session.deadline().min(self.share.slow_at().unwrap_or(Mono(u64::MAX))),
        }
    }

    fn handle_deadline(&mut self, now: Now) {
        let has_waited = self.share.waits_since().is_some_and(|s| now.mono.0 >= s.0 + WAIT_MS_MAX);
        if has_waited || self.share.is_slow(now.mono) {
            return self.refuse_for_memory(now);
        }
        if self.share.waits_since().is_none() {
            self.session.handle_deadline(&mut self.gate(), now);
        }
    }

    /// Gives a complete message to the queue; the verdict comes with its commit.
    fn hand_in(&mut self, transaction: Transaction, connection: &Connection, now: Now) {
        let mid = transaction.mid;
        let share = self.share.hand_over(transaction.octets());
        self.shard.log(|log, now| {
            if let Some(id) = transaction.message_id() {
                log.message_id(now, mid, &id);
            }
            if let Some(subject) = transaction.subject() {
                log.subject(now, mid, &subject);
            }
            let octets = transaction.data.len() as u64;
            log.ready(now, mid, octets, transaction.envelope.sender.as_ref());
        });
        let body = Arc::new(Body { bytes: transaction.data, facts: transaction.facts });
        let envelope = Arc::new(transaction.envelope);
        let new = NewMessage {
            mid,
            envelope: envelope.clone(),
            arrival: self.shard.queue_now().wall,
            bounce_profile: self.settings.bounce_profile.clone(),
            listener: self.listener.clone(),
            cause: None,
            body: body.clone(),
        };
        let received_us = Some(io::now_us());
        let message = Arc::new(Message { envelope, body, received_us });
        let early = self.shard.config().commit == CommitMode::DeliverOrSync;
        let appended = if early {
            self.shard.take_early(new, &message, now)
        } else {
            self.shard.queue.borrow_mut().append(new)
        };
        match appended {
            Ok(ticket) => {
                let (verdicts, bell) = (self.verdicts.clone(), connection.bell().clone());
                let waiter = Waiter::Client { mid, message, early, verdicts, bell, share };
                self.shard.waiters.borrow_mut().insert(ticket, waiter);
                if !early {
                    self.shard.commit_bell.ring();
                }
            }
            Err(full) => {
                self.shard.log(|log, now| log.aborted(now, mid));
                self.session.answer_refused(&refusal(full), mid, now);
            }
        }
    }

    /// Says 250 or 451 for the verdicts that have come.
    fn answer(&mut self, now: Now) {
        for (mid, verdict) in self.verdicts.take() {
            match verdict {
                Verdict::Safe(safe) => self.session.answer_accepted(safe, mid, now),
                Verdict::Failed => {
                    self.shard.log(|log, now| log.aborted(now, mid));
                    let failed = Refusal::new(451, 3, 0, "The disk did not take the message");
                    self.session.answer_refused(&failed, mid, now);
                }
            }
        }
    }

    async fn close(mut self, mut connection: Connection, lost: bool) {
        let icid = self.icid;
        self.share.give_up();
        if !lost {
            // Data that was not read would turn our last reply into a reset.
            connection.socket().shutdown_write();
            connection.bell().set_deadline(Some(self.shard.now().mono + LINGER));
            loop {
                match connection.next().await {
                    Happened::Received(Ok(count @ 1..)) => connection.done_with(count),
                    Happened::Rung if self.shard.stopping() != Stopping::Now => {}
                    _ => break,
                }
            }
        }
        connection.close().await;
        self.shard.counters().sessions_in.sub(1);
        self.shard.log(|log, now| {
            if lost {
                log.icid_lost(now, icid);
            }
            log.icid_close(now, icid);
        });
    }

    fn gate(&self) -> ClientGate<'a> {
        ClientGate { shard: self.shard, icid: self.icid }
    }
}

fn no_memory() -> Refusal {
    Refusal::new(452, 3, 1, "Out of memory for messages, try again later")
}

fn refusal(full: Full) -> Refusal {
    match full {
        Full::NoSpace => Refusal::new(452, 3, 1, "The queue is full"),
        Full::TooLarge => Refusal::new(552, 3, 4, "The message is too large for the queue"),
    }
}

/// What the dialogue asks and tells the shard.
struct ClientGate<'a> {
    shard: &'a Shard,
    icid: Icid,
}

impl Gate for ClientGate<'_> {
    fn begin(&mut self, sender: Option<&Mailbox>, octets: Option<u64>) -> Result<Mid, Refusal> {
        if !self.shard.takes_mail.get() {
            return Err(refusal(Full::NoSpace));
        }
        if self.shard.receive_memory.refuses(octets) {
            self.shard.counters().receive_refused.one();
            return Err(no_memory());
        }
        let mut queue = self.shard.queue.borrow_mut();
        queue.has_room(octets.unwrap_or(0)).map_err(refusal)?;
        let mid = queue.ids().next_mid().ok_or_else(|| refusal(Full::NoSpace))?;
        drop(queue);
        let icid = self.icid;
        self.shard.log(|log, now| {
            log.start_mid(now, mid, icid);
            log.from(now, mid, icid, sender);
        });
        Ok(mid)
    }

    fn recipient(&mut self, mid: Mid, rid: Rid, address: &Mailbox) -> Result<(), Refusal> {
        if self.shard.config().routes.find(address.domain()).is_none() {
            return Err(Refusal::new(451, 4, 4, "No route covers this domain"));
        }
        if self.shard.receive_memory.is_overdrawn() {
            return Err(no_memory());
        }
        let icid = self.icid;
        self.shard.log(|log, now| log.to(now, mid, icid, rid, address));
        Ok(())
    }

    fn recipient_refused(&mut self, mid: Mid, address: &Mailbox, refusal: &Refusal) {
        let icid = self.icid;
        let text = format!(
            "MID {mid} ICID {icid} To: <{address}> refused: {} {}",
            refusal.code, refusal.enhanced
        );
        self.shard.log(|log, now| log.info(now, &text));
    }

    fn aborted(&mut self, mid: Mid, _cause: Abort) {
        self.shard.log(|log, now| log.aborted(now, mid));
    }
}
