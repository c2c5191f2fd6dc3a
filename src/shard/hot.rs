//! Messages whose bytes are still in memory: received a moment ago, not yet delivered; and how
//! many octets of large ones are on their way out.
//!
//! Owns: [`Message`], the bounded store of them, and [`Lent`]. Never: the truth: what is not here
//! is read from the queue's files.
//!
//! Limits: the octets given to [`Hot::new`], envelopes among them; beyond them the oldest go. As
//! many again may be lent for large messages that are being sent or reported on, or one message;
//! of small ones a session has no more than a train.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::limits;
use crate::mail::{Body, Envelope, Mid, Recipient};

/// A message as a session needs it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Its envelope; of a message that was read back, only the recipients asked for.
    pub(super) envelope: Arc<Envelope>,
    /// Its bytes.
    pub(super) body: Arc<Body>,
    /// When its final dot came, in microseconds of `io::now_us`; `None` when it was read back.
    pub(super) received_us: Option<u64>,
}

impl Message {
    /// Octets of memory that it takes, about.
    fn octets(&self) -> usize {
        let recipient = |r: &Recipient| {
            let texts = r.address.as_str().len() + r.orcpt.as_ref().map_or(0, |orcpt| orcpt.len());
            size_of::<Recipient>() + texts
        };
        self.body.bytes.len() + self.envelope.recipients.iter().map(recipient).sum::<usize>()
    }
}

/// The store of one shard.
#[derive(Debug)]
pub(super) struct Hot {
    messages: HashMap<Mid, Arc<Message>>,
    order: VecDeque<(Mid, usize)>,
    octets: usize,
    octets_max: usize,
    lent: Rc<Cell<u64>>,
}

/// The right to have the octets of a large message in memory, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lent {
    octets: u64,
    all: Rc<Cell<u64>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.octets);
    }
}

impl Hot {
    /// An empty store of at most `octets_max` octets of message bytes.
    #[must_use]
    pub(super) fn new(octets_max: usize) -> Self {
        let (messages, order, lent) = (HashMap::new(), VecDeque::new(), Rc::default());
        Self { messages, order, octets: 0, octets_max, lent }
    }

    /// Keeps a message, if it fits at all.
    pub(super) fn insert(&mut self, mid: Mid, message: Arc<Message>) {
        let octets = message.octets();
        if octets > self.octets_max {
            return;
        }
        self.octets += octets;
        self.order.push_back((mid, octets));
        self.messages.insert(mid, message);
        while self.octets > self.octets_max {
            self.drop_oldest();
        }
    }

    /// The message, if it is still here.
    #[must_use]
    pub(super) fn get(&self, mid: Mid) -> Option<Arc<Message>> {
        self.peek(mid).cloned()
    }

    /// The same, to look at.
    #[must_use]
    pub(super) fn peek(&self, mid: Mid) -> Option<&Arc<Message>> {
        self.messages.get(&mid)
    }

    /// Lends room for a message of `octets` octets that is to be sent or reported on; `None`: not
    /// now. A small one takes none, and a large one is let in alone whatever its size.
    #[must_use]
    pub(super) fn lend(&self, octets: u64) -> Option<Lent> {
        let octets = if octets > limits::INLINE_MESSAGE_OCTETS_MAX { octets } else { 0 };
        let (lent, all) = (self.lent.get(), self.lent.clone());
        let fits = octets == 0 || lent == 0 || lent + octets <= self.octets_max as u64;
        fits.then(|| {
            self.lent.set(lent + octets);
            Lent { octets, all }
        })
    }

    /// The message is settled, or waits for so long that its bytes may go.
    pub(super) fn remove(&mut self, mid: Mid) {
        self.messages.remove(&mid);
        // Settled messages leave mostly in the order they came.
        while self.order.front().is_some_and(|(mid, _)| !self.messages.contains_key(mid)) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((mid, octets)) = self.order.pop_front() {
            self.octets -= octets;
            self.messages.remove(&mid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{BodyKind, Mailbox, Notify, Rid};

    fn envelope(recipients: Vec<Recipient>) -> Envelope {
        Envelope {
            sender: None,
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients,
        }
    }

    fn message(octets: usize) -> Arc<Message> {
        let envelope = Arc::new(envelope(vec![]));
        let body = Arc::new(Body { bytes: vec![0; octets].into(), facts: Default::default() });
        Arc::new(Message { envelope, body, received_us: None })
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let mut hot = Hot::new(100);
        for n in 0..5 {
            hot.insert(Mid(n), message(40));
        }
        assert_eq!((0..5).filter(|n| hot.get(Mid(*n)).is_some()).collect::<Vec<_>>(), [3, 4]);
        hot.insert(Mid(9), message(101));
        assert!(hot.get(Mid(9)).is_none() && hot.get(Mid(4)).is_some());
        hot.remove(Mid(4));
        hot.remove(Mid(3));
        assert_eq!((hot.octets, hot.order.len(), hot.messages.len()), (0, 0, 0));
    }

    #[test]
    fn envelopes_count_too() {
        let mut hot = Hot::new(10_000);
        let address = Mailbox::parse(b"somebody@to.test").unwrap();
        for n in 0..3 {
            let mut many = Message::clone(&message(10));
            let of = |rid| Recipient {
                rid: Rid(rid),
                address: address.clone(),
                notify: Notify::default(),
                orcpt: None,
            };
            many.envelope = Arc::new(envelope((0..100).map(of).collect()));
            hot.insert(Mid(n), Arc::new(many));
        }
        assert_eq!((0..3).filter(|n| hot.get(Mid(*n)).is_some()).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn large_messages_on_their_way_out_are_bounded() {
        let hot = Hot::new(1 << 20);
        let small: Vec<_> = (0..100).map(|_| hot.lend(200_000)).collect();
        assert!(small.iter().all(Option::is_some), "small ones are not held up");
        let alone = hot.lend(25 << 20).expect("one is always let in");
        assert!(hot.lend(300_000).is_none() && hot.lend(1).is_some());
        drop(alone);
        let three: Vec<_> = (0..3).map(|_| hot.lend(300_000)).collect();
        assert!(three.iter().all(Option::is_some) && hot.lend(300_000).is_none());
        drop(three);
        assert_eq!(hot.lent.get(), 0);
    }
}
