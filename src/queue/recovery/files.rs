//! The files of a start: which of them are segments that can be used.
//!
//! Owns: the cases that concern a whole file or directory. Never: the tables.

use std::collections::BTreeSet;
use std::io;

use super::super::format::{self, Geometry, Header, HeaderFault, SegmentId};
use super::super::live::Segment;
use super::super::report::RecoveryCase;
use super::super::segment::Medium;
use super::Opening;

/// Why a segment is not used.
pub(super) struct Refused {
    case: RecoveryCase,
    what: String,
    /// It never can be.
    is_damaged: bool,
}

impl Refused {
    /// It never can be used: kept elsewhere.
    pub(super) fn damaged(case: RecoveryCase, what: String) -> Self {
        Self { case, what, is_damaged: true }
    }

    /// It may be used one day: left where it is.
    fn for_now(case: RecoveryCase, what: String) -> Self {
        Self { case, what, is_damaged: false }
    }
}

impl<M: Medium> Opening<'_, M> {
    pub(super) fn open_segments(&mut self) -> io::Result<()> {
        let own = self.queue.options.shard.0;
        if self.queue.options.is_copy && own == 0 {
            let text = "the spool was moved, copied or restored: if the original still runs, or \
                        ran since, mail is delivered twice";
            self.recovered.note(RecoveryCase::Copied, text.to_owned());
        }
        for directory in self.queue.options.directories.clone() {
            let (segments, others) = self.medium.list(directory)?;
            if directory != own && !segments.is_empty() {
                let count = segments.len();
                let text = format!("shard-{directory:02}: {count} segments, now of shard {own}");
                self.recovered.note(RecoveryCase::Adopted, text);
            }
            let mut present: BTreeSet<u32> = segments.iter().map(|s| s.number()).collect();
            let aside = self.medium.list_aside(directory)?;
            present.extend(aside.iter().map(|s| s.number()));
            if directory == own {
                self.queue.last_segment_number = present.last().copied().unwrap_or(0);
            }
            for name in others {
                // What a making left that did not come to its end; it holds no mail.
                if let Some(unfinished) = name.strip_suffix(".new") {
                    present.extend(u32::from_str_radix(unfinished, 16));
                } else {
                    let text = format!("shard-{directory:02}/{name}: not a segment, left alone");
                    self.recovered.note(RecoveryCase::Foreign, text);
                }
            }
            for segment in segments {
                if let Err(refused) = self.open_segment(segment) {
                    self.refuse(segment, &refused);
                }
            }
            let last = present.last().copied().unwrap_or(0);
            for number in (1..last).filter(|number| !present.contains(number)) {
                let segment = SegmentId::new(directory, number);
                let text = format!("{segment}: it is not there");
                self.recovered.note(RecoveryCase::Missing, text);
            }
        }
        Ok(())
    }

    /// Says why a segment is not used, and sets it aside when it never can be.
    pub(super) fn refuse(&mut self, segment: SegmentId, refused: &Refused) {
        let (case, what) = (refused.case, &refused.what);
        let aside = refused.is_damaged && self.medium.set_aside(segment).is_ok();
        let done = if aside { "moved to the folder damaged" } else { "left alone" };
        if !aside {
            // Its messages come back one day, and want to find their extents then.
            self.unread.insert(segment.directory());
        }
        self.recovered.note(case, format!("{segment}: {what}, {done}"));
    }

    fn open_segment(&mut self, segment: SegmentId) -> Result<(), Refused> {
        let unreadable =
            |error: io::Error| Refused::for_now(RecoveryCase::Unreadable, error.to_string());
        let file = self.medium.open(segment).map_err(unreadable)?;
        let octets = self.medium.octets(&file).map_err(unreadable)?;
        if octets < format::HEADERS_END {
            let what = format!("only {octets} octets");
            return Err(Refused::damaged(RecoveryCase::Truncated, what));
        }
        let mut head = vec![0; usize::try_from(format::HEADERS_END).unwrap_or(0)];
        self.medium.read_at(&file, 0, &mut head).map_err(unreadable)?;
        let (first, second) = head.split_at(head.len() / 2);
        let header = Header::choose(first, second).map_err(|fault| match fault {
            HeaderFault::Unreadable => {
                Refused::damaged(RecoveryCase::Unreadable, "no good header".to_owned())
            }
            HeaderFault::FutureVersion(version) => {
                let what = format!("format version {version}");
                Refused::for_now(RecoveryCase::FutureVersion, what)
            }
        })?;
        if header.spool != self.queue.options.spool {
            let what = "belongs to another spool".to_owned();
            return Err(Refused::for_now(RecoveryCase::Foreign, what));
        }
        if header.segment != segment {
            let what = format!("is a copy of {}", header.segment);
            return Err(Refused::damaged(RecoveryCase::Duplicate, what));
        }
        if octets < header.octets {
            let what = format!("{octets} of {} octets", header.octets);
            return Err(Refused::damaged(RecoveryCase::Truncated, what));
        }
        let map_octets = Geometry::of(header.kind, header.octets).body_offset;
        let map = self.medium.map(&file, map_octets).map_err(unreadable)?;
        self.queue.segments.push(Segment::new(header, map));
        self.files.push(file);
        Ok(())
    }
}
