//! The verb `source`: sends many messages and says how fast they were taken.
//!
//! Owns: its arguments, its progress bar and its summary. Never: the dialogue
//! ([`crate::lab::source`]).

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::lab::source::{Progress, SourceError, SourceOptions, SourceReport, run_watched};

use super::{CliError, Exit, args, process};

/// How often the progress bar moves.
const BAR_PERIOD: Duration = Duration::from_millis(100);

/// Send test messages to an SMTP server and measure how fast they are acknowledged.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost source --to 127.0.0.1:2525 --messages 100000 --sessions 50 --size 4096
  ringpost source --to 127.0.0.1:2525 --messages 1000000 --sessions 20 --size 4KiB \\
      --bdat --window 8 --rcpt 'user@d%n.example' --domains 1000 --json
  ringpost source --to 127.0.0.1:2525 --messages 1000 --sessions 4 --size 1KiB \\
      --retry --ledger acknowledged

Exits with 0 only when every message was acknowledged for every recipient. SIGINT or SIGTERM
ends it with its summary on stdout.")]
pub(super) struct Arguments {
    /// Server to send to
    #[arg(long, value_name = "HOST:PORT", value_parser = args::address)]
    to: SocketAddr,
    /// Messages to send
    #[arg(long, value_name = "N")]
    messages: u64,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=60_000))]
    sessions: u32,
    /// Octets of each message, header included
    #[arg(long, value_name = "OCTETS", value_parser = args::octets, default_value = "4096")]
    size: usize,
    /// Recipients of each message
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    recipients: u32,
    /// Sender address; empty is the null reverse-path
    #[arg(long, value_name = "ADDRESS", default_value = "sender@source.ringpost.test")]
    from: String,
    /// Recipient address; %n becomes the number of the message
    #[arg(long, value_name = "ADDRESS", default_value = "recipient@sink.ringpost.test")]
    rcpt: String,
    /// %n counts from 0 to K-1 only, again and again
    #[arg(long, value_name = "K")]
    domains: Option<u64>,
    /// Subject of each message
    #[arg(long, default_value = "Test message")]
    subject: String,
    /// First part of every id, in place of one made from time and process
    #[arg(long, value_name = "TEXT", default_value = "")]
    run: String,
    /// Send by BDAT where the server offers CHUNKING and PIPELINING
    #[arg(long)]
    bdat: bool,
    /// Messages in flight per connection with --bdat
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// At most this many messages per second
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Connect again when a connection breaks, and send again what was not answered
    #[arg(long)]
    retry: bool,
    /// File that gets each acknowledged id, one per line
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Print the summary as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let json = self.json;
        process::raise_descriptor_limit();
        let progress = Arc::new(Progress::default());
        let watched = Arc::clone(&progress);
        process::on_stop(move || watched.stop()).map_err(|error| {
            CliError::new(Exit::OsErr, format!("cannot catch signals: {error}"))
        })?;
        let bar = Bar::start(self.messages, Arc::clone(&progress), !json);
        let report = run_watched(self.into_options(), progress);
        bar.end();
        let report = report.map_err(|error| {
            let exit = match &error {
                SourceError::Size { .. } | SourceError::Text(_) => Exit::Usage,
                SourceError::Ledger(..) => Exit::CantCreate,
                SourceError::Io(_) => Exit::OsErr,
            };
            CliError::new(exit, format!("{error}; see 'ringpost source --help'"))
        })?;
        let line = if json {
            serde_json::to_string(&report).map_err(|error| CliError::new(Exit::Software, error))?
        } else {
            summary(&report)
        };
        writeln!(io::stdout(), "{line}").map_err(|error| CliError::new(Exit::IoErr, error))?;
        verdict(&report)
    }

    fn into_options(self) -> SourceOptions {
        SourceOptions {
            to: self.to,
            messages: self.messages,
            sessions: self.sessions,
            size: self.size,
            recipients: self.recipients,
            from: self.from,
            rcpt: self.rcpt,
            domains: self.domains,
            subject: self.subject,
            run: self.run,
            bdat: self.bdat,
            window: usize::from(self.window),
            rate: self.rate,
            retry: self.retry,
            ledger: self.ledger,
            ..SourceOptions::default()
        }
    }
}

fn summary(report: &SourceReport) -> String {
    format!(
        "{} of {} messages acknowledged, {} refused, {} connections lost, in {:.3} s: \
         {:.0} messages/s; final reply after p50 {} us, p99 {} us, p99.9 {} us",
        report.acknowledged,
        report.messages,
        report.refused_total(),
        report.connections_lost,
        report.seconds,
        report.rate,
        report.p50_us,
        report.p99_us,
        report.p99_9_us
    )
}

fn verdict(report: &SourceReport) -> Result<Exit, CliError> {
    if report.is_complete() {
        return Ok(Exit::Ok);
    }
    let last_error = report.last_error.as_deref().unwrap_or("none");
    if report.connections == 0 && report.last_error.is_none() {
        let what = "ended before the server greeted; is it an SMTP server?";
        return Err(CliError::new(Exit::TempFail, what));
    }
    if report.connections == 0 && report.messages > 0 {
        let what = format!("no connection was made: {last_error}; check --to and the server");
        return Err(CliError::new(Exit::Unavailable, what));
    }
    let codes: Vec<String> = report
        .refused
        .iter()
        .chain(&report.recipients_refused)
        .map(|(code, count)| format!("{count} times {code}"))
        .collect();
    let codes = if codes.is_empty() { "none".to_owned() } else { codes.join(", ") };
    let what = format!(
        "{} of {} messages acknowledged (refused: {codes}; last connection error: {last_error}); \
         look into the server's log, or use --retry",
        report.acknowledged, report.messages
    );
    Err(CliError::new(Exit::TempFail, what))
}

/// A progress bar on a terminal, moved by a thread of its own.
struct Bar {
    /// Ends the thread when it is dropped.
    running: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bar {
    fn start(messages: u64, progress: Arc<Progress>, wanted: bool) -> Bar {
        if !wanted || !io::stderr().is_terminal() {
            return Bar { running: None, thread: None };
        }
        let (running, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name("bar".to_owned()).spawn(move || {
            let bar = ProgressBar::new(messages);
            let form = "{bar:40} {human_pos}/{human_len} {per_sec} eta {eta}";
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            while ended.recv_timeout(BAR_PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
                bar.set_position(progress.acknowledged() + progress.refused());
            }
            bar.finish_and_clear();
        });
        Bar { running: Some(running), thread: thread.ok() }
    }

    fn end(mut self) {
        drop(self.running.take());
        if let Some(thread) = self.thread.take() {
            // A bar that panicked has nothing to say about the run.
            drop(thread.join());
        }
    }
}
