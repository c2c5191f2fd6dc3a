//! One shard's buffer of finished log lines, and the line that is being written at its end.
//!
//! Owns: the header of a line (time and level), its length, its end, and the bound of the buffer.
//! Never: what an event says (`mail_log`), or files.
//!
//! Everything is written in place: a line costs no allocation, no `fmt` machinery, and the time
//! is formatted once a second.
//!
//! Limits: [`BUFFER_OCTETS_MAX`] of lines that wait for the writer,
//! [`LOG_LINE_OCTETS_MAX`] of one line with its end.
//!
//! Diagnostics: a line for which there is no room is dropped and counted; the count is logged as
//! a Warning as soon as the buffer was taken.

use std::io::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::limits::LOG_LINE_OCTETS_MAX;
use crate::mail::text::escape_into;
use crate::mail::{ReplyLines, Rid, Wall};

/// Octets of lines that may wait for the writer, per shard.
/// A disk that stalls is waited out with them: half a second of the fullest log of a core.
pub const BUFFER_OCTETS_MAX: usize = 32 * 1024 * 1024;

/// Octets of a written buffer that are kept for reuse, per shard.
pub const SPARE_OCTETS_MAX: usize = 2 * 1024 * 1024;

/// Octets of a line kept free behind foreign text, so that a long reply never hides what stands
/// after it.
const TAIL_OCTETS: usize = 512;

const _: () = assert!(TAIL_OCTETS < LOG_LINE_OCTETS_MAX / 2);
const _: () = assert!(LOG_LINE_OCTETS_MAX < BUFFER_OCTETS_MAX);

/// How grave a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// What happens all day.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Somebody must look at it now.
    Critical,
}

impl Level {
    fn label(self) -> &'static str {
        match self {
            Level::Info => "Info: ",
            Level::Warning => "Warning: ",
            Level::Critical => "Critical: ",
        }
    }
}

/// The lines of one shard that wait for the writer.
#[derive(Debug)]
pub struct LineBuffer {
    /// UTF-8, in whole lines.
    lines: Vec<u8>,
    /// A written buffer that waits to be used again.
    spare: Vec<u8>,
    zone: TimeZone,
    /// The second that `time` shows; `None` before the first line.
    second: Option<u64>,
    time: Vec<u8>,
    /// What nearly every line begins with: that time, and [`Level::Info`].
    head: Vec<u8>,
    dropped_unsaid: u64,
    dropped_total: u64,
}

impl LineBuffer {
    /// An empty buffer whose lines show the time of `zone`.
    #[must_use]
    pub fn new(zone: TimeZone) -> Self {
        Self {
            lines: Vec::new(),
            spare: Vec::new(),
            zone,
            second: None,
            time: Vec::new(),
            head: Vec::new(),
            dropped_unsaid: 0,
            dropped_total: 0,
        }
    }

    /// Starts a line. `None` when there is no room: the line is dropped and counted.
    pub fn begin(&mut self, wall: Wall, level: Level) -> Option<Line<'_>> {
        self.set_time(wall);
        if self.lines.len() + LOG_LINE_OCTETS_MAX > BUFFER_OCTETS_MAX {
            self.dropped_unsaid += 1;
            self.dropped_total += 1;
            return None;
        }
        Some(self.open(level))
    }

    /// Is there nothing to write?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Octets that wait for the writer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Hands all whole lines out. If lines were dropped before, the buffer then holds the one
    /// that says how many.
    pub fn take(&mut self) -> Vec<u8> {
        let fresh = std::mem::take(&mut self.spare);
        let taken = std::mem::replace(&mut self.lines, fresh);
        let dropped = std::mem::take(&mut self.dropped_unsaid);
        if dropped > 0 {
            self.open(Level::Warning)
                .number(dropped)
                .text(" lines of the mail log were dropped")
                .end();
        }
        taken
    }

    /// Gives a written buffer back, so that its memory is used again; one that a burst blew up
    /// is freed.
    pub fn recycle(&mut self, mut written: Vec<u8>) {
        if written.capacity() <= SPARE_OCTETS_MAX {
            written.clear();
            self.spare = written;
        }
    }

    /// Counts lines that the writer could not write: they are told of like those that were
    /// dropped here.
    pub fn lost(&mut self, lines: u64) {
        self.dropped_unsaid += lines;
        self.dropped_total += lines;
    }

    /// Lines that never reached the log, since start.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    /// Seconds that the zone is ahead of UTC at `wall`.
    #[must_use]
    pub fn offset_seconds(&self, wall: Wall) -> i32 {
        self.zone.to_offset(timestamp(wall)).seconds()
    }

    /// The zone of the lines.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    fn open(&mut self, level: Level) -> Line<'_> {
        let start = self.lines.len();
        if level == Level::Info {
            self.lines.extend_from_slice(&self.head);
        } else {
            begin_with(&mut self.lines, &self.time, level);
        }
        Line { out: &mut self.lines, start }
    }

    fn set_time(&mut self, wall: Wall) {
        let second = wall.0 / 1000;
        if self.second != Some(second) {
            self.second = Some(second);
            self.time.clear();
            push_ctime(&mut self.time, &self.zone, wall);
            self.head.clear();
            begin_with(&mut self.head, &self.time, Level::Info);
        }
    }
}

fn begin_with(out: &mut Vec<u8>, time: &[u8], level: Level) {
    out.extend_from_slice(time);
    push_str(out, " ");
    push_str(out, level.label());
}

/// A line under way. Only [`Line::end`] ends it, and nothing written to it can.
#[derive(Debug)]
#[must_use = "a line stands in the log only after end()"]
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl Line<'_> {
    /// Our own words: no control characters.
    pub fn text(self, text: &str) -> Self {
        debug_assert!(!text.contains('\n'), "our own text holds a line end");
        push_str(self.out, text);
        self
    }

    /// A number in decimal.
    pub fn number(self, number: u64) -> Self {
        push_number(self.out, number);
        self
    }

    /// An address without a port.
    pub fn ip(self, ip: IpAddr) -> Self {
        push_ip(self.out, ip);
        self
    }

    /// Foreign text, escaped, cut where the line would grow too long.
    pub fn foreign(self, bytes: &[u8]) -> Self {
        escape_into(self.out, bytes, self.start + LOG_LINE_OCTETS_MAX - TAIL_OCTETS);
        self
    }

    /// Recipient ids as `[0, 1]`.
    pub fn rids(self, rids: &[Rid]) -> Self {
        self.out.push(b'[');
        for (place, rid) in rids.iter().enumerate() {
            if place > 0 {
                push_str(self.out, ", ");
            }
            push_number(self.out, u64::from(rid.0));
        }
        self.out.push(b']');
        self
    }

    /// A moment as `Www Mmm dd hh:mm:ss yyyy`.
    pub fn time(self, zone: &TimeZone, wall: Wall) -> Self {
        push_ctime(self.out, zone, wall);
        self
    }

    /// The lines of a reply with the two characters `\n` between them.
    pub fn joined(mut self, lines: &ReplyLines) -> Self {
        for (place, line) in lines.iter().enumerate() {
            if self.is_full() {
                break;
            }
            if place > 0 {
                push_str(self.out, "\\n");
            }
            self = self.foreign(line);
        }
        self
    }

    /// The lines of a reply as a list of quoted strings, `['a', 'b']`. As in Python, a text with
    /// an apostrophe stands in double quotes; one with both has `\'` for the apostrophe.
    pub fn listed<'b>(mut self, lines: impl Iterator<Item = &'b [u8]>) -> Self {
        self.out.push(b'[');
        for (place, line) in lines.enumerate() {
            if self.is_full() {
                break;
            }
            if place > 0 {
                push_str(self.out, ", ");
            }
            self = self.quoted(line);
        }
        self.out.push(b']');
        self
    }

    /// Ends the line.
    pub fn end(self) {
        let mut end = self.out.len().min(self.start + LOG_LINE_OCTETS_MAX - 1);
        // Never within a character: the octets behind its first one begin with the bits 10.
        while self.out.get(end).is_some_and(|octet| octet & 0xc0 == 0x80) {
            end -= 1;
        }
        self.out.truncate(end);
        self.out.push(b'\n');
    }

    fn quoted(mut self, text: &[u8]) -> Self {
        let apostrophe = text.contains(&b'\'');
        if apostrophe && !text.contains(&b'"') {
            return self.text("\"").foreign(text).text("\"");
        }
        self = self.text("'");
        for (place, piece) in text.split(|b| *b == b'\'').enumerate() {
            if self.is_full() {
                break;
            }
            if place > 0 {
                push_str(self.out, "\\'");
            }
            self = self.foreign(piece);
        }
        self.text("'")
    }

    fn is_full(&self) -> bool {
        self.out.len() >= self.start + LOG_LINE_OCTETS_MAX - TAIL_OCTETS
    }
}

fn push_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    push_str(out, itoa::Buffer::new().format(number));
}

fn digit(value: u64) -> u8 {
    u8::try_from(value).map_or(b'?', |value| b'0' + value)
}

fn push_two(out: &mut Vec<u8>, number: i8, fill: u8) {
    let number = u64::from(number.unsigned_abs());
    out.push(if number < 10 { fill } else { digit(number / 10 % 10) });
    out.push(digit(number % 10));
}

fn push_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (place, octet) in ip.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push(b'.');
                }
                push_number(out, u64::from(octet));
            }
        }
        IpAddr::V6(ip) => {
            let written = write!(out, "{ip}");
            debug_assert!(written.is_ok(), "a Vec takes everything");
        }
    }
}

/// `Www Mmm dd hh:mm:ss yyyy`, the form of ctime(3): the day is padded with a space.
fn push_ctime(out: &mut Vec<u8>, zone: &TimeZone, wall: Wall) {
    const DAYS: [&str; 7] = ["Mon ", "Tue ", "Wed ", "Thu ", "Fri ", "Sat ", "Sun "];
    const MONTHS: [&str; 12] = [
        "Jan ", "Feb ", "Mar ", "Apr ", "May ", "Jun ", "Jul ", "Aug ", "Sep ", "Oct ", "Nov ",
        "Dec ",
    ];
    let civil = zone.to_datetime(timestamp(wall));
    let weekday = usize::from(civil.weekday().to_monday_zero_offset().unsigned_abs());
    let month = usize::from(civil.month().unsigned_abs()) - 1;
    push_str(out, DAYS[weekday]);
    push_str(out, MONTHS[month]);
    push_two(out, civil.day(), b' ');
    out.push(b' ');
    push_two(out, civil.hour(), b'0');
    out.push(b':');
    push_two(out, civil.minute(), b'0');
    out.push(b':');
    push_two(out, civil.second(), b'0');
    out.push(b' ');
    push_number(out, u64::from(civil.year().unsigned_abs()));
}

/// A moment that no calendar holds becomes the last one that it holds.
fn timestamp(wall: Wall) -> Timestamp {
    let second = i64::try_from(wall.0 / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctime(second: u64) -> String {
        let mut out = Vec::new();
        push_ctime(&mut out, &TimeZone::UTC, Wall(second * 1000));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn days_are_padded_with_a_space() {
        assert_eq!(ctime(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(ctime(1_404_292_507), "Wed Jul  2 09:15:07 2014");
        assert_eq!(ctime(1_121_854_541), "Wed Jul 20 10:15:41 2005");
        assert_eq!(ctime(951_827_696), "Tue Feb 29 12:34:56 2000");
        assert_eq!(ctime(u64::MAX / 1000).len(), 24);
    }

    #[test]
    fn a_zone_moves_the_clock_and_the_offset() {
        let zone = TimeZone::fixed(jiff::tz::offset(-6));
        let buffer = LineBuffer::new(zone);
        assert_eq!(buffer.offset_seconds(Wall(0)), -21_600);
        let mut out = Vec::new();
        push_ctime(&mut out, buffer.zone(), Wall(0));
        assert_eq!(out, b"Wed Dec 31 18:00:00 1969");
    }

    #[test]
    fn numbers_and_addresses_are_those_of_display() {
        for number in [0, 1, 9, 10, 11, 99, 100, 4_294_967_296, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
        for ip in ["0.0.0.0", "255.1.20.30", "::", "2001:db8::25", "::ffff:1.2.3.4"] {
            let mut out = Vec::new();
            push_ip(&mut out, ip.parse().unwrap());
            assert_eq!(out, ip.as_bytes());
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told() {
        let mut buffer = LineBuffer::new(TimeZone::UTC);
        let long = vec![b'x'; 3000];
        let mut written = 0_u64;
        while let Some(line) = buffer.begin(Wall(0), Level::Info) {
            line.foreign(&long).end();
            written += 1;
        }
        assert!(buffer.begin(Wall(0), Level::Info).is_none());
        buffer.lost(3);
        let taken = buffer.take();
        assert!(taken.len() <= BUFFER_OCTETS_MAX && taken.len() > BUFFER_OCTETS_MAX - 8192);
        assert_eq!(bytecount(&taken), written);
        let told = String::from_utf8(buffer.take()).unwrap();
        let expected = "Thu Jan  1 00:00:00 1970 Warning: 5 lines of the mail log were dropped\n";
        assert_eq!(told, expected);
        assert!(buffer.is_empty());
        assert_eq!(buffer.dropped_total(), 5);
        assert!(buffer.take().is_empty());
        buffer.recycle(taken);
        assert_eq!(buffer.spare.capacity(), 0, "a burst's memory goes back");
    }

    #[test]
    fn a_written_buffer_is_used_again() {
        let mut buffer = LineBuffer::new(TimeZone::UTC);
        buffer.begin(Wall(0), Level::Info).unwrap().text("one").end();
        let taken = buffer.take();
        let place = taken.as_ptr();
        buffer.begin(Wall(0), Level::Info).unwrap().text("two").end();
        buffer.recycle(taken);
        let second = buffer.take();
        assert!(second.ends_with(b"two\n"));
        buffer.begin(Wall(0), Level::Info).unwrap().text("three").end();
        let third = buffer.take();
        assert_eq!(third.as_ptr(), place);
        assert!(third.ends_with(b"three\n") && bytecount(&third) == 1);
    }

    fn bytecount(lines: &[u8]) -> u64 {
        lines.iter().map(|b| u64::from(*b == b'\n')).sum()
    }

    #[test]
    fn the_second_is_formatted_anew_when_it_changes() {
        let mut buffer = LineBuffer::new(TimeZone::UTC);
        for wall in [0, 999, 1000, 500] {
            buffer.begin(Wall(wall), Level::Info).unwrap().end();
        }
        let lines = String::from_utf8(buffer.take()).unwrap();
        let seconds: Vec<&str> = lines.lines().map(|line| &line[17..19]).collect();
        assert_eq!(seconds, ["00", "00", "01", "00"]);
    }
}
