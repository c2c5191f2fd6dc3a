//! One write in the making: commands gathered in one buffer, bodies as they stand.
//!
//! Owns: the buffer, which is used again once the write before is done and its chunks are gone.
//! Never: what is written. Between two bodies stands one chunk, whatever it is made of: the final
//! dot of a message and the commands of the next one.
//!
//! Limits: commands end the write beyond [`limits::COMMAND_GROUP_OCTETS`].

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::Chunk;
use crate::limits;
use crate::mail::Body;

/// A part of a message of so few octets, as our own header field is, goes with the commands.
const PART_OCTETS_COPIED: usize = 512;

/// Commands of a transaction with one recipient, with its own header field, seldom take more.
const COMMAND_OCTETS_USUAL: usize = 512;

/// What one write is made of.
#[derive(Default, Debug)]
pub(super) struct Outgoing {
    /// The bytes of the last write; our own again once nobody else holds them.
    buffer: Arc<Vec<u8>>,
    /// Stands for `buffer` in chunks that are not handed out yet.
    none: Arc<Vec<u8>>,
    bytes: Vec<u8>,
    from: usize,
    chunks: Vec<Chunk>,
    ended: bool,
}

impl Outgoing {
    /// Begins a write, in which so many transactions may begin.
    pub(super) fn begin(&mut self, transactions: usize) {
        self.bytes = match Arc::get_mut(&mut self.buffer) {
            Some(bytes) => mem::take(bytes),
            None => Vec::new(),
        };
        self.bytes.clear();
        self.bytes.reserve(transactions * COMMAND_OCTETS_USUAL);
        self.chunks.reserve(2 * transactions);
        (self.from, self.ended) = (0, false);
    }

    /// Where commands are appended.
    pub(super) fn commands(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends a part of a message.
    pub(super) fn body(&mut self, body: &Arc<Body>, range: Range<usize>) {
        let octets = range.len();
        for range in body.bytes.cut(range) {
            let part = body.bytes.slice(range.clone());
            if part.len() <= PART_OCTETS_COPIED && part.len() < octets {
                self.bytes.extend_from_slice(part);
            } else {
                self.cut();
                self.chunks.push(Chunk::Body { body: Arc::clone(body), range });
            }
        }
    }

    /// Appends bytes that were made for this write alone.
    pub(super) fn bytes(&mut self, bytes: Vec<u8>) {
        self.cut();
        self.chunks.push(Chunk::Bytes(bytes));
    }

    /// Nothing more goes into this write.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// True when nothing more goes into this write.
    pub(super) fn is_full(&self) -> bool {
        self.ended || self.bytes.len() >= limits::COMMAND_GROUP_OCTETS
    }

    /// The whole write; `None` when nothing was appended.
    pub(super) fn finish(&mut self) -> Option<Vec<Chunk>> {
        self.cut();
        let mut chunks = mem::take(&mut self.chunks);
        match Arc::get_mut(&mut self.buffer) {
            Some(bytes) => *bytes = mem::take(&mut self.bytes),
            None => self.buffer = Arc::new(mem::take(&mut self.bytes)),
        }
        for chunk in &mut chunks {
            if let Chunk::Commands { buffer, .. } = chunk {
                *buffer = Arc::clone(&self.buffer);
            }
        }
        (!chunks.is_empty()).then_some(chunks)
    }

    fn cut(&mut self) {
        let range = self.from..self.bytes.len();
        if !range.is_empty() {
            self.from = range.end;
            self.chunks.push(Chunk::Commands { buffer: Arc::clone(&self.none), range });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_used_again_once_its_chunks_are_gone() {
        let body = Arc::new(Body { bytes: b"body".to_vec().into(), ..Body::default() });
        let mut out = Outgoing::default();
        let mut write = |held: &[Chunk]| {
            out.begin(1);
            out.commands().extend_from_slice(b"one");
            out.commands().extend_from_slice(b"two");
            out.body(&body, 0..4);
            out.body(&body, 4..4);
            out.commands().extend_from_slice(b"three");
            let chunks = out.finish().unwrap();
            let wire: Vec<&[u8]> = chunks.iter().map(Chunk::as_slice).collect();
            assert_eq!(wire, [&b"onetwo"[..], b"body", b"three"]);
            held.iter().for_each(|chunk| assert!(!chunk.as_slice().is_empty()));
            chunks
        };
        let first = write(&[]);
        let at = first[0].as_slice().as_ptr();
        let second = write(&first);
        assert_ne!(second[0].as_slice().as_ptr(), at);
        let at = second[0].as_slice().as_ptr();
        drop((first, second));
        assert_eq!(write(&[])[0].as_slice().as_ptr(), at);
        out.begin(0);
        assert_eq!(out.finish(), None);
    }
}
