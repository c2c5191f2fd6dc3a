//! Directories of shards that are gone: what has become of them.
//!
//! Owns: taking over their free segments. Never: a segment that holds anything unsettled, or is
//! damaged.
//!
//! A message, its extents and its copies stand in one directory, so that whoever reads a directory
//! finds all of it: shards may come back. Therefore nothing new is put into the directory of
//! another shard, and nothing is copied out of it. What becomes free there is taken over at the
//! next start, as a segment of the shard's own: with a new name, a new header and the next use of
//! its space.
//!
//! The last segment of a directory goes first: a gap below it would look like a loss. A crash
//! leaves a file that is being made, which holds nothing.

use std::io;

use hashbrown::HashSet;

use super::super::format::{SegmentId, SegmentKind};
use super::super::live::{Name, Segment};
use super::super::segment::Medium;
use super::Opening;

impl<M: Medium> Opening<'_, M> {
    /// Takes over what is free at the end of each adopted directory. `used`: extents of live
    /// messages.
    pub(super) fn take_over(&mut self, used: &HashSet<(SegmentId, u32)>) {
        let own = self.queue.options.shard.0;
        for directory in self.queue.options.directories.clone() {
            // What a table says that could not be read is not known.
            if directory != own && !self.unread.contains(&directory) {
                while self.take_over_last(directory, used).unwrap_or(false) {}
            }
        }
    }

    /// False: the last segment of the directory stays as it is.
    fn take_over_last(
        &mut self,
        directory: u8,
        used: &HashSet<(SegmentId, u32)>,
    ) -> io::Result<bool> {
        let here = self.medium.list(directory)?.0.into_iter();
        let last = here.chain(self.medium.list_aside(directory)?).max_by_key(|id| id.number());
        let found = last.and_then(|last| {
            self.queue.segments.iter().position(|segment| segment.header.segment == last)
        });
        let Some(position) = found.filter(|position| self.is_free(*position, used)) else {
            return Ok(false);
        };
        let old = self.queue.segments[position].header;
        let number = self.queue.last_segment_number + 1;
        let segment = SegmentId::new(self.queue.options.shard.0, number);
        let mut header = self.queue.fresh_header(old.kind, segment);
        // Where ids go on must not be forgotten with it.
        header.id_block_max = old.id_block_max;
        let file = self.medium.take_over(old.segment, segment, &header.encode())?;
        let map_octets = self.queue.segments[position].geometry.body_offset;
        let mut taken = Segment::new(header, self.medium.map(&file, map_octets)?);
        taken.appendable = old.kind == SegmentKind::Messages;
        let before = std::mem::replace(&mut self.queue.segments[position], taken);
        for name in before.names {
            if let Name::Domain(number) = name {
                self.queue.index.unname(number);
            }
        }
        self.files[position] = file;
        self.queue.last_segment_number = number;
        Ok(true)
    }

    fn is_free(&self, position: usize, used: &HashSet<(SegmentId, u32)>) -> bool {
        let segment = &self.queue.segments[position];
        let header = &segment.header;
        let holds = segment.live > 0 || segment.has_damage || segment.poisoned;
        let fits = header.octets == self.queue.octets_of(header.kind);
        fits && !holds && !used.iter().any(|(name, _)| *name == header.segment)
    }
}
