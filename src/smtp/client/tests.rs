//! The session against a scripted peer in memory, with virtual time.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::limits;
use crate::mail::{
    ConnectionCause, Enhanced, Failure, MessageFacts, Mono, Notify, Now, Reply, Stage, time::millis,
};

mod breaks;
mod fit;
mod life;
mod property;
mod replies;
mod trains;

const EVERYTHING: &str = "250-host\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250-8BITMIME\r\n\
    250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250 DSN\r\n";
const NOTHING: &str = "250 host\r\n";
const BODY: &str = "Subject: x\r\n\r\nhello\r\n.\r\n";

/// A session and what came out of it.
struct Pair {
    session: Session,
    now: Now,
    sent: Vec<u8>,
    writes: usize,
    events: Vec<Event>,
    closed: bool,
    /// Writes complete at once.
    writable: bool,
}

impl Pair {
    fn new(messages_max: u32) -> Self {
        let now = Now::default().plus_ms(1_000);
        let settings = ClientSettings {
            ehlo_name: "me.example".into(),
            timeouts: Timeouts::default(),
            messages_max,
            train: TrainPolicy::Off,
            plain: false,
        };
        let session = Session::new(settings, now);
        let (sent, events) = (Vec::new(), Vec::new());
        Self { session, now, sent, writes: 0, events, closed: false, writable: true }
    }

    /// A session whose host gave this reply to EHLO.
    fn ready(ehlo: &str) -> Self {
        let mut pair = Self::new(0);
        pair.say("220 host\r\n");
        assert_eq!(pair.take_sent(), "EHLO me.example\r\n");
        pair.say(ehlo);
        assert!(matches!(pair.events.pop(), Some(Event::Ready { .. })));
        pair
    }

    fn pump(&mut self) {
        loop {
            match self.session.poll_output(self.now) {
                Output::Send(chunks) => {
                    assert!(!self.closed);
                    chunks.iter().for_each(|chunk| self.sent.extend_from_slice(chunk.as_slice()));
                    self.writes += 1;
                    if self.writable {
                        self.session.handle_sent(self.now);
                    }
                }
                Output::Event(event) => self.events.push(event),
                Output::Close => {
                    assert!(!self.closed, "closed twice");
                    self.closed = true;
                }
                Output::Idle => return,
            }
        }
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.session.handle_input(text.as_ref(), self.now);
        self.pump();
    }

    fn submit(&mut self, transaction: Transaction) {
        self.session.submit(transaction);
        self.pump();
    }

    fn written(&mut self) {
        self.session.handle_sent(self.now);
        self.pump();
    }

    fn hang_up(&mut self) {
        self.session.handle_closed(None);
        self.pump();
    }

    /// Lets `ms` pass; the deadline fires when it is due.
    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.session.handle_deadline(self.now);
        self.pump();
    }

    fn take_sent(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.sent)).unwrap()
    }

    fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The outcomes of the one transaction that is over.
    fn outcomes(&mut self) -> Vec<RecipientOutcome> {
        let is_done = |event: &Event| matches!(event, Event::Done { .. });
        let at = self.events.iter().position(is_done).expect("no transaction is over");
        let Event::Done { outcomes, .. } = self.events.remove(at) else { unreachable!() };
        assert!(!self.events.iter().any(is_done), "two results");
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn short_outcomes(&mut self) -> Vec<String> {
        self.outcomes().iter().map(short).collect()
    }

    /// How the session ended: `Stage cause idle`, in short.
    fn end(&mut self) -> String {
        assert!(self.closed, "still open");
        assert_eq!(self.session.deadline(), None);
        assert_eq!(self.session.capacity(), 0);
        let events = self.take_events();
        assert_eq!(events.len(), 1, "{events:?}");
        match &events[0] {
            Event::Failed(failure) => format!("failed {}", short_failure(failure)),
            Event::Ended { failure, idle } => {
                format!("{} {}", if *idle { "idle" } else { "ended" }, short_failure(failure))
            }
            Event::Retired => "retired".into(),
            Event::Ready { .. } | Event::Done { .. } => panic!("{events:?}"),
        }
    }
}

fn short_failure(failure: &ConnectionFailure) -> String {
    let cause = match &failure.cause {
        ConnectionCause::Reply(reply) => reply.code.to_string(),
        ConnectionCause::Garbage(_) => "garbage".into(),
        ConnectionCause::Network(_) => "network".into(),
        ConnectionCause::Timeout => "timeout".into(),
    };
    format!("{:?} {cause}", failure.stage)
}

fn short(outcome: &RecipientOutcome) -> String {
    match outcome {
        RecipientOutcome::Accepted(accepted) => format!("accepted {}", accepted.reply().code),
        RecipientOutcome::Refused { stage, failure } => format!("{stage:?} {}", failure.code()),
        RecipientOutcome::TooMany { taken, failure } => format!("full {taken} {}", failure.code()),
        RecipientOutcome::Unanswered { stage, .. } => format!("broken {stage:?}"),
        RecipientOutcome::Uncertain { .. } => "uncertain".into(),
        RecipientOutcome::Unfit { failure } => format!("unfit {}", failure.status),
        RecipientOutcome::Untried => "untried".into(),
    }
}

fn recipient(rid: u32, address: &str) -> Recipient {
    let address = Mailbox::parse(address.as_bytes()).unwrap();
    Recipient { rid: Rid(rid), address, notify: Notify::default(), orcpt: None }
}

fn mail(recipients: usize) -> Transaction {
    mail_with(recipients, b"Subject: x\r\n\r\nhello\r\n", MessageFacts::default())
}

fn mail_with(recipients: usize, bytes: &[u8], facts: MessageFacts) -> Transaction {
    let recipients = (0..u32::try_from(recipients).unwrap())
        .map(|rid| recipient(rid, &format!("r{rid}@example.com")))
        .collect();
    Transaction {
        key: 7,
        sender: Some(Mailbox::parse(b"s@example.org").unwrap()),
        body_kind: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients,
        body: Arc::new(Body { bytes: bytes.to_vec().into(), facts }),
        strict: false,
    }
}
