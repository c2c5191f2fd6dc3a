//! A session that is ready: the transactions in flight, and when each of them is settled.
//!
//! Owns: the order of transactions on the wire, and the moment from which what was said about one
//! of them counts. Never: a verdict on a recipient (`flight`), how many may be in flight (`pace`).
//!
//! A reply names no command; it answers one by its place alone. With several transactions in
//! flight a reply too few or too many would let the acceptance of one message pass for that of
//! another, so nothing is settled before its place is sure:
//!
//! * A transaction that goes alone is settled by its last reply.
//! * In a train of BDAT every positive reply must carry the mark of its command (`Mark::fits`). A
//!   message is taken when its own marked final reply has come and is in its place: the next
//!   MAIL's reply carries its mark, or nothing is owed any more and the read is empty. An
//!   acceptance that came too much, before the refusal that was the true answer, shows by the
//!   refusal that follows in the place of MAIL's reply: then only a later mark proves the place.
//!   A refusal carries no mark: it is final when the next MAIL's reply carries its own, or when
//!   nothing follows. If the next MAIL is refused too, the peer may still be in the transaction
//!   before: from there on every refusal is in doubt, nothing new begins, and after RSET whoever
//!   was refused goes once more, alone.
//! * With DATA the 354 is the mark: a message is settled when the next transaction's 354 has
//!   come, or when nothing is owed any more and the read is empty; with marks, as in a train of
//!   BDAT.
//!
//! Diagnostics: a reply out of place ends the session, and the host is to be spoken to plainly.
//! Messages that were settled stay so, and so do those whose marked final reply was not followed
//! by a refusal; of the others, those whose body was begun are uncertain, the rest untried. After
//! 421 or the peer's end, what was said stands.
//!
//! Limits: those of `pace`; [`limits::TRAIN_OCTETS_MAX`].

use std::collections::VecDeque;

use super::binder::{Mark, Owed};
use super::extensions::Extensions;
use super::flight::{Flight, MailVerdict, Verdict};
use super::outgoing::Outgoing;
use super::pace::{Learned, Pace, Way};
use super::session::{ExpectEndOfFile, Link, State};
use super::{Chunk, Event, Transaction};
use crate::limits;
use crate::mail::{ConnectionCause, ConnectionFailure, Failure, Now, Reply, Stage};

/// Waits for transactions and for the replies to their commands.
#[derive(Debug)]
pub(super) struct Ready {
    extensions: Extensions,
    pace: Pace,
    /// Those in flight, in the order of their commands, and then those not begun.
    flights: VecDeque<Flight>,
    /// How many of them are in flight.
    in_flight: usize,
    /// Octets of all of them.
    octets: usize,
    /// Answered, but in doubt: they go once more, plainly, after RSET.
    doubtful: Vec<Flight>,
    /// Number of the last transaction begun.
    number: u64,
    /// Transactions begun so far, repeats not counted.
    begun: u32,
    /// RSET is not answered yet.
    resetting: bool,
    /// QUIT follows as soon as nothing is under way.
    leaving: bool,
    /// A refusal came behind the last reply that was owed.
    contradicted: bool,
    /// Something else came there: what was bound before may be bound to the wrong commands.
    shifted: bool,
    out: Outgoing,
}

/// What the replies so far mean for the oldest transaction in flight.
enum Fate {
    /// Its place is not sure yet.
    Open,
    Final,
    Doubtful,
}

impl Ready {
    pub(super) fn enter(extensions: Extensions, link: &mut Link) -> State {
        link.events.push_back(Event::Ready { extensions });
        State::Ready(Box::new(Self {
            extensions,
            pace: Pace::new(&link.settings, &extensions),
            flights: VecDeque::new(),
            in_flight: 0,
            octets: 0,
            doubtful: Vec::new(),
            number: 0,
            begun: 0,
            resetting: false,
            leaving: false,
            contradicted: false,
            shifted: false,
            out: Outgoing::default(),
        }))
    }

    pub(super) fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// What it takes in one round trip: the window, or what is left until `messages_max`.
    pub(super) fn window(&self, messages_max: u32) -> u32 {
        self.pace.window().min(self.left(messages_max))
    }

    /// Transactions that may still be begun.
    fn left(&self, messages_max: u32) -> u32 {
        match messages_max {
            0 => u32::MAX,
            _ => messages_max.saturating_sub(self.begun),
        }
    }

    pub(super) fn learned(&self) -> Learned {
        self.pace.learned()
    }

    /// Nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.flights.is_empty() && self.doubtful.is_empty() && !self.resetting
    }

    /// A peer may have a message that is not settled.
    pub(super) fn is_past_end(&self) -> bool {
        self.flights.iter().take(self.in_flight).any(Flight::is_past_end)
            || !self.doubtful.is_empty()
    }

    /// The message to which the next reply is owed is on its way, and its end was not handed out.
    pub(super) fn is_before_end(&self, owed: Option<Owed>) -> bool {
        let Some(Owed { mark, number }) = owed else { return false };
        self.index_of(number).is_some_and(|at| self.flights[at].stage(Some(mark)) == Stage::Body)
    }

    /// How many more transactions are taken now.
    pub(super) fn capacity(&self, messages_max: u32) -> usize {
        if self.leaving || self.resetting || !self.doubtful.is_empty() {
            return 0;
        }
        if !self.flights.is_empty() && self.octets >= limits::TRAIN_OCTETS_MAX {
            return 0;
        }
        let held = u32::try_from(self.flights.len()).unwrap_or(u32::MAX);
        let waiting = u32::try_from(self.flights.len() - self.in_flight).unwrap_or(u32::MAX);
        let left = self.left(messages_max).saturating_sub(waiting);
        self.pace.window().saturating_sub(held).min(left) as usize
    }

    pub(super) fn reserve(&mut self, transactions: usize) {
        self.flights.reserve(transactions);
    }

    pub(super) fn submit(&mut self, transaction: Transaction) {
        let flight = Flight::new(transaction);
        self.octets += flight.octets();
        self.flights.push_back(flight);
    }

    /// A reply came that nobody asked for. A refusal may be how the host ends an idle connection,
    /// or the true answer to what seemed to be taken; anything else may be what is left of replies
    /// that were taken for others.
    pub(super) fn note_surplus(&mut self, refusal: bool) {
        self.contradicted = refusal;
        self.shifted = !refusal;
        if !refusal {
            self.pace.speak_plainly();
        }
    }

    /// One transaction is in flight, and none follows before it has its verdict.
    pub(super) fn is_plain(&self) -> bool {
        self.in_flight == 1 && self.flights[0].way() == Way::Plain
    }

    fn index_of(&self, number: u64) -> Option<usize> {
        let first = self.flights.front().filter(|_| self.in_flight > 0)?.number();
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        (at < self.in_flight).then_some(at)
    }

    fn take_first(&mut self) -> Option<Flight> {
        let flight = self.flights.pop_front()?;
        self.in_flight -= 1;
        self.octets -= flight.octets();
        Some(flight)
    }

    /// Everything that may be written now, in one write; unfit transactions are settled instead.
    pub(super) fn next_chunks(&mut self, link: &mut Link) -> Option<Vec<Chunk>> {
        if self.resetting {
            return None;
        }
        self.out.begin(self.flights.len() - self.in_flight);
        loop {
            if let Some(at) = self.in_flight.checked_sub(1) {
                let flight = &mut self.flights[at];
                flight.write(&self.extensions, &mut link.binder, &mut self.out);
            }
            if self.out.is_full() || !self.begin_next(link) {
                return self.out.finish();
            }
        }
    }

    /// Lets the next transaction go, if one may.
    fn begin_next(&mut self, link: &mut Link) -> bool {
        loop {
            let at = self.in_flight;
            let Some(flight) = self.flights.get_mut(at) else { return false };
            flight.check_fit(&self.extensions);
            if !flight.is_over() {
                break;
            }
            let flight = self.flights.remove(at).expect("it was just looked at");
            self.octets -= flight.octets();
            link.events.push_back(flight.finish());
        }
        let Some(way) = self.may_begin(link) else { return false };
        let flight = &mut self.flights[self.in_flight];
        self.number += 1;
        self.begun += u32::from(!flight.is_repeated());
        flight.begin(self.number, way);
        self.in_flight += 1;
        true
    }

    /// How the first transaction that is not in flight may go now, if it may.
    fn may_begin(&self, link: &Link) -> Option<Way> {
        let flight = &self.flights[self.in_flight];
        let way = if flight.goes_alone() { Way::Plain } else { self.pace.way() };
        let Some(last) = self.in_flight.checked_sub(1) else {
            return (self.doubtful.is_empty() && link.binder.is_empty()).then_some(way);
        };
        let before = &self.flights[last];
        let room = u32::try_from(self.in_flight).is_ok_and(|n| n < self.pace.window());
        let enough = link.settings.messages_max != 0 && self.begun >= link.settings.messages_max;
        if !room || enough || self.leaving || !self.doubtful.is_empty() {
            return None;
        }
        let octets: usize = self.flights.iter().take(self.in_flight + 1).map(Flight::octets).sum();
        match way {
            Way::Plain => None,
            Way::Data => (before.way() == way && before.may_be_followed()).then_some(way),
            Way::Bdat => {
                let fits = octets <= limits::TRAIN_OCTETS_MAX;
                (fits && before.way() == way && before.may_be_followed()).then_some(way)
            }
        }
    }

    pub(super) fn handle_reply(
        mut self: Box<Self>,
        owed: Owed,
        reply: Reply,
        link: &mut Link,
        now: Now,
    ) -> State {
        let out_of_place = self.pace.asks_for_marks() && !owed.mark.fits(&reply);
        if owed.mark == Mark::Rset {
            return self.handle_reset_reply(reply, out_of_place, link, now);
        }
        let at = self.index_of(owed.number).expect("a reply is owed to those in flight only");
        let stage = self.flights[at].stage(Some(owed.mark));
        if reply.code == 421 {
            return self.be_sent_away(at, stage, reply, link);
        }
        if out_of_place {
            let what = "positive reply without the enhanced code of its command";
            return self.break_at(at, stage, ConnectionCause::Garbage(what.into()), link);
        }
        // A refusal before the last octet was written is early too, although the dot was out; the
        // end of BDAT's octets needs no such care.
        let flight = &mut self.flights[at];
        let writing = link.writing && !reply.is_positive() && flight.way() != Way::Bdat;
        let early = owed.mark == Mark::EndOfData && (link.before_end || writing);
        match flight.handle_reply(owed.mark, reply, early, &mut link.binder) {
            Verdict::Garbage(what) => {
                self.break_at(at, stage, ConnectionCause::Garbage(what.into()), link)
            }
            Verdict::Sound => self.go_on(false, link, now),
            Verdict::OutOfStep => {
                self.finish_all(link);
                link.events.push_back(Event::Retired);
                link.close();
                State::Closed
            }
        }
    }

    /// 421: what was said before stands, this one is refused, the rest was not looked at.
    fn be_sent_away(
        mut self: Box<Self>,
        at: usize,
        stage: Stage,
        reply: Reply,
        link: &mut Link,
    ) -> State {
        let failure = Failure::from_reply(reply.clone());
        let in_doubt = !self.doubtful.is_empty();
        for (index, flight) in self.flights.iter_mut().take(self.in_flight).enumerate() {
            match index.cmp(&at) {
                std::cmp::Ordering::Less => flight.stand(in_doubt),
                std::cmp::Ordering::Equal => flight.refuse_open(stage, &failure),
                std::cmp::Ordering::Greater => flight.hand_back(),
            }
        }
        self.end(stage, ConnectionCause::Reply(reply), false, link)
    }

    fn handle_reset_reply(
        mut self: Box<Self>,
        reply: Reply,
        out_of_place: bool,
        link: &mut Link,
        now: Now,
    ) -> State {
        if out_of_place {
            self.pace.speak_plainly();
            let what = "reply to RSET with the enhanced code of another command";
            return self.end(Stage::Mail, ConnectionCause::Garbage(what.into()), true, link);
        }
        if !reply.is_positive() {
            return self.end(Stage::Mail, ConnectionCause::Reply(reply), true, link);
        }
        self.resetting = false;
        for mut flight in self.doubtful.drain(..).rev() {
            flight.repeat();
            self.octets += flight.octets();
            self.flights.push_front(flight);
        }
        let repeats = self.flights.front().is_some_and(Flight::is_repeated);
        if self.leaving && !repeats { self.retire(link, now) } else { State::Ready(self) }
    }

    /// Lets go of the transactions whose fate is sure. `read_empty`: no more replies have come.
    pub(super) fn go_on(mut self: Box<Self>, read_empty: bool, link: &mut Link, now: Now) -> State {
        let mut reset = None;
        while self.in_flight > 0 {
            let fate = self.fate(read_empty, link);
            if let Fate::Open = fate {
                return State::Ready(self);
            }
            let Some(mut flight) = self.take_first() else { break };
            if let Fate::Final = fate {
                self.pace.note(flight.sign());
                reset = Some(flight.needs_reset());
                link.events.push_back(flight.finish());
            } else {
                self.pace.doubt();
                reset = Some(true);
                flight.doubt();
                self.doubtful.push(flight);
            }
        }
        let Some(reset) = reset else { return State::Ready(self) };
        let messages_max = link.settings.messages_max;
        let enough = self.leaving || messages_max != 0 && self.begun >= messages_max;
        let repeats = self.flights.front().is_some_and(Flight::is_repeated);
        if enough && self.doubtful.is_empty() && !repeats {
            return self.retire(link, now);
        }
        if reset || !self.doubtful.is_empty() {
            link.command = Some((b"RSET\r\n".to_vec(), Mark::Rset));
            self.resetting = true;
        }
        State::Ready(self)
    }

    fn fate(&mut self, read_empty: bool, link: &Link) -> Fate {
        let first = &mut self.flights[0];
        first.skip_unneeded();
        if !first.is_over() || link.binder.owes(first.number()) {
            return Fate::Open;
        }
        let first = &self.flights[0];
        let next = self.flights.get(1).filter(|_| self.in_flight > 1);
        match first.way() {
            // Nothing is owed behind it: a refusal in the same read may be the true answer, and
            // the acceptance one that nobody gave.
            Way::Plain if first.is_accepted() && !read_empty => Fate::Open,
            Way::Plain => Fate::Final,
            Way::Data | Way::Bdat if first.is_accepted() => {
                let drained = link.binder.is_empty() && read_empty;
                let proven = if self.pace.asks_for_marks() {
                    self.is_followed_by_mark(0)
                } else {
                    next.is_some_and(Flight::has_354)
                };
                match (proven || drained, self.doubtful.is_empty() || !first.has_refusals()) {
                    (false, _) => Fate::Open,
                    (true, true) => Fate::Final,
                    (true, false) => Fate::Doubtful,
                }
            }
            Way::Data => {
                let drained = link.binder.is_empty() && read_empty;
                let sure = drained || next.is_some_and(Flight::has_354);
                if sure { Fate::Final } else { Fate::Open }
            }
            Way::Bdat if !self.doubtful.is_empty() => Fate::Doubtful,
            Way::Bdat => match next.map(Flight::mail) {
                None if !read_empty => Fate::Open,
                None | Some(MailVerdict::Taken) => Fate::Final,
                Some(MailVerdict::Unanswered) => Fate::Open,
                Some(MailVerdict::Refused) => Fate::Doubtful,
            },
        }
    }

    /// A MAIL behind the transaction with this index has a reply with its mark: the replies
    /// before it are as many as were owed.
    fn is_followed_by_mark(&self, at: usize) -> bool {
        let behind = self.flights.iter().take(self.in_flight).skip(at + 1);
        behind.map(Flight::mail).any(|mail| mail == MailVerdict::Taken)
    }

    /// The acceptance of the transaction with this index stands although the dialogue broke: it
    /// carried its mark, and no refusal came next that could be the true answer.
    fn is_taken_for_sure(&self, at: usize, cause: &ConnectionCause) -> bool {
        let flight = &self.flights[at];
        if !flight.is_over() || !flight.is_accepted() || !self.pace.asks_for_marks() {
            return false;
        }
        match self.flights.get(at + 1).filter(|_| at + 1 < self.in_flight).map(Flight::mail) {
            None => !self.contradicted,
            Some(MailVerdict::Taken | MailVerdict::Unanswered) => true,
            // Replies that do not come are too few, and never one too much.
            Some(MailVerdict::Refused) => {
                matches!(cause, ConnectionCause::Timeout) || self.is_followed_by_mark(at)
            }
        }
    }

    /// Leaves now, or as soon as nothing is under way.
    pub(super) fn leave(mut self: Box<Self>, link: &mut Link, now: Now) -> State {
        let repeats = self.flights.front().is_some_and(Flight::is_repeated);
        if self.in_flight == 0 && !self.resetting && !repeats {
            return self.retire(link, now);
        }
        self.leaving = true;
        State::Ready(self)
    }

    fn retire(mut self: Box<Self>, link: &mut Link, now: Now) -> State {
        self.finish_all(link);
        link.events.push_back(Event::Retired);
        ExpectEndOfFile::enter(link, now)
    }

    /// Every transaction in flight has its verdicts; the others come back untried.
    fn finish_all(&mut self, link: &mut Link) {
        link.learned = self.pace.learned();
        self.in_flight = 0;
        for mut flight in self.doubtful.drain(..) {
            flight.hand_back();
            link.events.push_back(flight.finish());
        }
        link.events.extend(self.flights.drain(..).map(Flight::finish));
    }

    /// The connection broke, or gave what is no reply.
    pub(super) fn break_off(mut self: Box<Self>, cause: ConnectionCause, link: &mut Link) -> State {
        if self.in_flight == 0 {
            let failure = ConnectionFailure { stage: Stage::Mail, cause };
            // The true answer to the last of those in doubt may have come behind a made-up one.
            for flight in self.doubtful.iter_mut().filter(|_| self.shifted) {
                flight.break_in_train(&failure, false);
            }
            return self.end(failure.stage, failure.cause, true, link);
        }
        let owed = link.binder.next();
        let at = owed.and_then(|owed| self.index_of(owed.number));
        let at = at.unwrap_or(self.in_flight - 1);
        let flight = &mut self.flights[at];
        let stage = flight.stage(owed.map(|owed| owed.mark));
        // A host that closes idle connections may have done so before it saw MAIL. The first
        // transaction of a connection has no such excuse, so nothing is handed back for ever.
        let closed_while_idle = self.in_flight == 1
            && self.begun > 1
            && flight.mail() == MailVerdict::Unanswered
            && !flight.is_body_begun()
            && matches!(cause, ConnectionCause::Network(_));
        if closed_while_idle {
            flight.hand_back();
            return self.end(stage, cause, true, link);
        }
        self.break_at(at, stage, cause, link)
    }

    /// The connection is of no use any more, since the transaction with this index.
    fn break_at(
        mut self: Box<Self>,
        at: usize,
        stage: Stage,
        cause: ConnectionCause,
        link: &mut Link,
    ) -> State {
        let failure = ConnectionFailure { stage, cause };
        let believed = match &failure.cause {
            ConnectionCause::Network(_) | ConnectionCause::Reply(_) => true,
            ConnectionCause::Garbage(_) | ConnectionCause::Timeout => false,
        };
        let way = self.flights[at].way();
        let in_train = self.in_flight > 1 || way == Way::Bdat || self.flights[0].is_over();
        let out_of_place = match &failure.cause {
            ConnectionCause::Garbage(_) => way != Way::Plain || self.pace.asks_for_marks(),
            ConnectionCause::Timeout => in_train && !link.writing,
            ConnectionCause::Network(_) | ConnectionCause::Reply(_) => false,
        };
        if out_of_place {
            self.pace.speak_plainly();
        }
        let in_doubt = !self.doubtful.is_empty();
        let sure: Vec<bool> =
            (0..self.in_flight).map(|at| self.is_taken_for_sure(at, &failure.cause)).collect();
        for (flight, sure) in self.flights.iter_mut().zip(sure) {
            if !in_train {
                flight.break_off(&failure);
            } else if sure && !believed {
                flight.conclude();
            } else if in_doubt && believed && flight.is_over() {
                flight.stand(true);
            } else {
                flight.break_in_train(&failure, believed);
            }
        }
        for flight in self.doubtful.iter_mut().filter(|_| !believed) {
            flight.break_in_train(&failure, false);
        }
        self.end(failure.stage, failure.cause, false, link)
    }

    fn end(
        mut self: Box<Self>,
        stage: Stage,
        cause: ConnectionCause,
        idle: bool,
        link: &mut Link,
    ) -> State {
        if !self.doubtful.is_empty() {
            // The plain repeat is left to another session.
            self.pace.speak_plainly();
        }
        self.finish_all(link);
        link.events.push_back(Event::Ended { failure: ConnectionFailure { stage, cause }, idle });
        link.close();
        State::Closed
    }
}
