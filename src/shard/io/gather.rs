//! Pieces of memory written in one system call.
//!
//! Owns: [`Gather`], what a write to a socket or a file is made of. Never: a copy of a body: a
//! piece shares the message it belongs to.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::limits::BLOCK;
use crate::mail::Body;

/// One piece of a write.
#[derive(Debug)]
pub enum Piece {
    /// Fixed bytes.
    Static(&'static [u8]),
    /// Bytes made for this write.
    Bytes(Vec<u8>),
    /// A part of a buffer that its owner uses again once the write is done.
    Commands(Arc<Vec<u8>>, Range<usize>),
    /// A part of a message that lies together.
    Body(Arc<Body>, Range<usize>),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Bytes(bytes) => bytes,
            Self::Commands(buffer, range) => &buffer[range.clone()],
            Self::Body(body, range) => body.bytes.slice(range.clone()),
        }
    }
}

/// Pieces in the order of writing, and how much of the first one is done.
#[derive(Debug, Default)]
pub struct Gather {
    pieces: Vec<Piece>,
    first: usize,
    done_octets: usize,
}

/// Vectors of one system call at most (IOV_MAX of Linux).
const VECTORS_MAX: usize = 1024;

impl Gather {
    /// All of `pieces`.
    #[must_use]
    pub fn new(pieces: Vec<Piece>) -> Self {
        let mut gather = Self { pieces, first: 0, done_octets: 0 };
        gather.advance(0);
        gather
    }

    /// True when everything is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == self.pieces.len()
    }

    /// What is left, when it is a single piece.
    #[must_use]
    pub fn only_slice(&self) -> Option<&[u8]> {
        let is_last = self.first + 1 == self.pieces.len();
        is_last.then(|| &self.pieces[self.first].as_slice()[self.done_octets..])
    }

    /// Is what is left a single piece of whole blocks, which lie on whole blocks of memory?
    #[must_use]
    pub fn is_whole_blocks(&self) -> bool {
        self.only_slice().is_some_and(|slice| {
            slice.len().is_multiple_of(BLOCK) && slice.as_ptr().addr().is_multiple_of(BLOCK)
        })
    }

    /// What is left, as slices for one system call.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let left = self.pieces[self.first..].iter().take(VECTORS_MAX);
        left.enumerate()
            .map(|(i, p)| if i == 0 { &p.as_slice()[self.done_octets..] } else { p.as_slice() })
    }

    /// Notes that `count` more octets are written.
    pub fn advance(&mut self, count: usize) {
        self.done_octets += count;
        while let Some(piece) = self.pieces.get(self.first) {
            let octets = piece.as_slice().len();
            if self.done_octets < octets {
                return;
            }
            self.done_octets -= octets;
            self.first += 1;
        }
        assert_eq!(self.done_octets, 0, "more written than there was");
    }
}

impl From<Vec<u8>> for Gather {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(vec![Piece::Bytes(bytes)])
    }
}

/// The error of a write that takes nothing.
pub(super) fn write_zero() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "the kernel took no bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gather_written_in_any_steps_is_the_whole() {
        let body =
            Arc::new(Body { bytes: b"0123456789".to_vec().into(), facts: Default::default() });
        for step in 1..14 {
            let pieces = vec![
                Piece::Bytes(b"ab".to_vec()),
                Piece::Bytes(vec![]),
                Piece::Body(body.clone(), 2..7),
                Piece::Bytes(b"cde".to_vec()),
                Piece::Bytes(vec![]),
            ];
            let mut gather = Gather::new(pieces);
            let mut out = Vec::new();
            while !gather.is_empty() {
                let left: Vec<u8> = gather.slices().flatten().copied().collect();
                let count = step.min(left.len());
                out.extend_from_slice(&left[..count]);
                gather.advance(count);
            }
            assert_eq!(out, b"ab23456cde");
        }
    }
}
