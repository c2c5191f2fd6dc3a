//! The writer of the mail log: batches of whole lines, appended by the ring.
//!
//! Owns: the open file, and reopening it. Never: the lines (`telemetry`). A log disk that is full
//! or fails never stops mail: what could not be written is counted, and the count is logged.
//!
//! Each shard has its own descriptor, and appends whole lines to a file in its turn ([`LogFile`]),
//! so that lines of two shards do not mix; all lines of one message come from one shard.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use super::io;
use super::log_file::LogFile;
use crate::telemetry::settings::LogTarget;

/// Lines wait for the writer at most this long.
const FLUSH: Duration = Duration::from_millis(50);

/// A file that could not be opened is tried again after this long.
const REOPEN: Duration = Duration::from_secs(1);

/// The last lines are waited for at most this long, and looked for this often.
const LAST_LINES: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// The log's file, if it could be opened.
pub(super) struct OpenLog {
    file: Option<LogFile>,
    /// The order to open it that this follows.
    generation: u64,
}

impl Shard {
    /// Opens the log and writes what the start had to say.
    pub(super) async fn begin_log(&self) -> OpenLog {
        let log = self.begin_log_file();
        self.flush_log(log.file.as_ref()).await;
        log
    }

    /// Writes the log until the shard ends.
    pub(super) async fn run_log(self: Rc<Self>, mut log: OpenLog) {
        loop {
            if self.shared.log_generation() != log.generation {
                self.flush_log(log.file.as_ref()).await;
                log = self.begin_log_file();
            }
            self.flush_log(log.file.as_ref()).await;
            if log.file.is_none() && !self.log_is_off() {
                io::sleep(REOPEN).await;
                log.file = self.open_log();
            }
            self.log_bell.rung_within(FLUSH).await;
        }
    }

    /// Writes what has collected.
    pub(super) async fn flush_log(&self, file: Option<&LogFile>) {
        let lines = self.mail_log.borrow_mut().take();
        if lines.is_empty() {
            return;
        }
        self.log_under_way.set(true);
        let (lines, lost) = match file {
            Some(file) => file.append(lines, &self.shared.log_turn).await,
            None if self.log_is_off() => (lines, 0),
            None => {
                let lost = memchr::memchr_iter(b'\n', &lines).count() as u64;
                (lines, lost)
            }
        };
        self.log_under_way.set(false);
        let mut log = self.mail_log.borrow_mut();
        log.lost(lost);
        log.recycle(lines);
        self.counters().log_lines_dropped.set(log.dropped_total());
    }

    /// The last lines, at the end of the shard. Those that are on their way come first: the thread
    /// ends behind this, and what it has not written by then is written by nobody.
    pub(super) async fn finish_log(self: &Rc<Self>) {
        let is_finished = Rc::new(Cell::new(false));
        let (shard, finished) = (self.clone(), is_finished.clone());
        io::spawn(async move {
            shard.log_is_written().await;
            let file = shard.open_log();
            shard.flush_log(file.as_ref()).await;
            // The log's own task may have taken lines while this one waited for its turn.
            shard.log_is_written().await;
            finished.set(true);
        });
        // Of a pipe that nobody reads it would be for ever.
        let mut left = LAST_LINES;
        while !is_finished.get() && !left.is_zero() {
            io::sleep(POLL).await;
            left = left.saturating_sub(POLL);
        }
    }

    async fn log_is_written(&self) {
        while self.log_under_way.get() {
            io::sleep(POLL).await;
        }
    }

    fn begin_log_file(&self) -> OpenLog {
        // Read first: an order that comes meanwhile is carried out by the next look.
        let generation = self.shared.log_generation();
        let file = self.open_log();
        if self.id.0 == 0 {
            let version = concat!("Ringpost ", env!("CARGO_PKG_VERSION"));
            self.log(|log, now| log.begin_logfile(now, version));
        }
        OpenLog { file, generation }
    }

    fn open_log(&self) -> Option<LogFile> {
        let config = self.config();
        let past_cache = config.tuning.direct_write_octets > 0;
        match &config.log.target {
            LogTarget::Off => None,
            LogTarget::Stdout => Some(LogFile::new(self.files.stdout().ok()?, false)),
            LogTarget::File(path) => {
                Some(LogFile::new(self.files.open_append(path).ok()?, past_cache))
            }
        }
    }

    fn log_is_off(&self) -> bool {
        self.config().log.target == LogTarget::Off
    }
}
