//! Messages whose bytes are still in memory: received a moment ago, not yet delivered.
//!
//! Owns: [`Message`] and the bounded store of them. Never: the truth: what is not here is read
//! from the queue's files.
//!
//! Limits: the octets given to [`Hot::new`]; beyond them the oldest go.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::mail::{Body, Envelope, Mid};

/// A message as a session needs it.
#[derive(Debug)]
pub(super) struct Message {
    /// Its envelope; of a message that was read back, only the recipients asked for.
    pub(super) envelope: Envelope,
    /// Its bytes.
    pub(super) body: Arc<Body>,
    /// When its final dot came, in microseconds of `io::now_us`; `None` when it was read back.
    pub(super) received_us: Option<u64>,
}

/// The store of one shard.
#[derive(Debug)]
pub(super) struct Hot {
    messages: HashMap<Mid, Arc<Message>>,
    order: VecDeque<(Mid, usize)>,
    octets: usize,
    octets_max: usize,
}

impl Hot {
    /// An empty store of at most `octets_max` octets of message bytes.
    #[must_use]
    pub(super) fn new(octets_max: usize) -> Self {
        Self { messages: HashMap::new(), order: VecDeque::new(), octets: 0, octets_max }
    }

    /// Keeps a message, if it fits at all.
    pub(super) fn insert(&mut self, mid: Mid, message: Arc<Message>) {
        let octets = message.body.bytes.len();
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
        self.messages.get(&mid).cloned()
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
    use crate::mail::BodyKind;

    fn message(octets: usize) -> Arc<Message> {
        let envelope = Envelope {
            sender: None,
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients: vec![],
        };
        let body = Arc::new(Body { bytes: vec![0; octets], facts: Default::default() });
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
}
