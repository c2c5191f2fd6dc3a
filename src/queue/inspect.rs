//! A look at a spool: what stands in it, and what is wrong with it. For `ringpost check --spool`.
//!
//! Owns: [`Inspection`]. Never: a change to any file, or the lock: on the spool of a running
//! engine the numbers are of no one moment.
//!
//! Diagnostics: one finding per file that cannot be used, and per kind of damage in one that can.
//!
//! Limits: one table in memory at a time.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::format::{
    self, Geometry, Header, HeaderFault, SegmentId, SegmentKind, Slot, SlotFault, SpoolId, State,
    StateWord, TablePlace,
};
use super::medium::FileMedium;
use super::scan;
use super::segment::Medium;
use super::spool::{self, SpoolError};

/// What stands in a spool.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Inspection {
    /// Segments that can be used.
    pub segments: usize,
    /// Octets of all segment files.
    pub octets: u64,
    /// Recipients to be delivered.
    pub pending: u64,
    /// Recipients held, as poison or as damaged.
    pub held: u64,
    /// Recipients whose delivery is marked as under way.
    pub in_flight: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Files that a start has set aside.
    pub set_aside: Vec<PathBuf>,
}

impl Inspection {
    /// True when nothing has to be looked at.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.set_aside.is_empty()
    }
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// Looks at a spool without changing it.
///
/// # Errors
/// See [`SpoolError`]: the spool file or a directory cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection, SpoolError> {
    let id = spool::id_of(path)?;
    let io = |error| SpoolError::Io(path.to_owned(), error);
    let medium = FileMedium::new(path, 0);
    let mut seen = Inspection::default();
    for directory in spool::directories(path).map_err(io)? {
        let (segments, others) = medium.list(directory).map_err(io)?;
        for name in others {
            let path = FileMedium::directory(path, directory).join(name);
            seen.findings.push(Finding { path, what: "not a segment".to_owned() });
        }
        for segment in segments {
            if let Err(what) = seen.segment(&medium, segment, id) {
                seen.findings.push(Finding { path: medium.path(segment), what });
            }
        }
    }
    seen.set_aside = medium.set_aside_files().map_err(io)?;
    Ok(seen)
}

impl Inspection {
    fn segment(
        &mut self,
        medium: &FileMedium,
        segment: SegmentId,
        id: SpoolId,
    ) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let file = medium.open_to_read(segment).map_err(text)?;
        let octets = medium.octets(&file).map_err(text)?;
        self.octets += octets;
        if octets < format::HEADERS_END {
            return Err(format!("only {octets} octets"));
        }
        let mut head = vec![0; usize::try_from(format::HEADERS_END).unwrap_or(0)];
        medium.read_at(&file, 0, &mut head).map_err(text)?;
        let (first, second) = head.split_at(head.len() / 2);
        let header = Header::choose(first, second).map_err(|fault| match fault {
            HeaderFault::Unreadable => "no good header".to_owned(),
            HeaderFault::FutureVersion(version) => format!("format version {version}"),
        })?;
        if header.spool != id {
            return Err("belongs to another spool".to_owned());
        }
        if header.segment != segment {
            return Err(format!("is a copy of {}", header.segment));
        }
        if octets < header.octets {
            return Err(format!("{octets} of {} octets", header.octets));
        }
        self.segments += 1;
        match header.kind {
            SegmentKind::Messages => {
                let geometry = Geometry::of(header.kind, header.octets);
                let table = geometry.body_offset - geometry.table_offset;
                let mut octets = vec![0; usize::try_from(table).unwrap_or(0)];
                medium.read_at(&file, geometry.table_offset, &mut octets).map_err(text)?;
                self.table(&header, &octets)
            }
            SegmentKind::Extents => Ok(()),
        }
    }

    fn table(&mut self, header: &Header, octets: &[u8]) -> Result<(), String> {
        let place = TablePlace { seed: header.seed(), generation: header.generation };
        let (slots, _) = octets.as_chunks::<{ format::SLOT_OCTETS }>();
        let durable = scan::newest_durable_point(slots, 0, place).unwrap_or(0);
        let durable = durable.max(header.durable_slots);
        let mut bad = 0u64;
        for (index, octets) in (0..).zip(slots) {
            match Slot::decode(octets, place, index) {
                Ok(Slot::Entry(_)) => {
                    let at = usize::try_from(format::STATE_OFFSET).unwrap_or(0);
                    let mut word = [0; 8];
                    word.copy_from_slice(&octets[at..at + 8]);
                    let word = StateWord::decode(u64::from_le_bytes(word), place, index);
                    bad += u64::from(word.is_none());
                    self.count(word);
                }
                Ok(Slot::Message(_) | Slot::Extents(_)) => {}
                Err(SlotFault::Empty | SlotFault::OlderGeneration | SlotFault::Bad) => {
                    bad += u64::from(index < durable);
                }
            }
        }
        if bad > 0 {
            return Err(format!("{bad} of its slots are damaged"));
        }
        Ok(())
    }

    fn count(&mut self, word: Option<StateWord>) {
        let Some(word) = word else {
            self.held += 1;
            return;
        };
        match word.state {
            State::Ready | State::Deferred => {
                self.pending += 1;
                self.in_flight += u64::from(word.in_flight);
            }
            State::Poison | State::Damaged => self.held += 1,
            State::Delivered
            | State::Bounced
            | State::Discarded
            | State::Deleted
            | State::Moved => {}
        }
    }
}
