//! The verb `demo`: the first thing a newcomer runs.
//!
//! Owns: how the play looks on a terminal, in a file, and as JSON. Never: the play
//! ([`crate::lab::demo`]).
//!
//! Lines are at most [`COLUMNS`] wide. Colours only on a terminal, and not with NO_COLOR set.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, Exit, process};
use crate::config::IoMode;
use crate::lab::demo::{self, Audience, DemoError, DemoOptions, DemoReport, SceneReport, Sum};
use crate::shard::engine::StartError;

/// Width of everything that is printed.
const COLUMNS: usize = 80;

/// See the engine at work: three scenes with its own receivers, in about ten seconds.
///
/// Needs no set-up and no rights; everything is on loopback and in a temporary folder, and gone
/// at the end.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost demo
  ringpost demo --messages 100000 --io epoll
  ringpost demo --json

Exits with 0 only when every message arrived, the sum of conservation balances, and each scene
happened as it should.")]
pub(super) struct Arguments {
    /// Print the outcome as one line of JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// Messages of the second scene
    #[arg(long, value_name = "N", default_value_t = 6_000,
          value_parser = clap::value_parser!(u64).range(demo::MESSAGES_MIN..=1_000_000))]
    messages: u64,
    /// How the engine does its I/O
    #[arg(long, value_enum, default_value_t = Io::Auto)]
    io: Io,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Io {
    /// io_uring, else epoll
    Auto,
    /// io_uring
    Ring,
    /// epoll
    Epoll,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        process::raise_descriptor_limit();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        process::on_stop(move || asked.store(true, Ordering::Relaxed)).map_err(|error| {
            CliError::new(Exit::OsErr, format!("cannot catch signals: {error}"))
        })?;
        let io = match self.io {
            Io::Auto => IoMode::Auto,
            Io::Ring => IoMode::Ring,
            Io::Epoll => IoMode::Epoll,
        };
        let mut page = Page::new(self.json, stop.clone());
        let options = DemoOptions { messages: self.messages, io };
        let played = demo::run(options, &mut page, &stop);
        if let Some(error) = page.error {
            return Err(CliError::new(Exit::IoErr, format!("cannot print: {error}")));
        }
        let report = played.map_err(failed)?;
        if self.json {
            let line = serde_json::to_string(&report)
                .map_err(|error| CliError::new(Exit::Software, error))?;
            page.quiet = false;
            page.print(&line);
        } else {
            page.outcome(&report);
        }
        if let Some(error) = page.error {
            return Err(CliError::new(Exit::IoErr, format!("cannot print: {error}")));
        }
        if report.problems.is_empty() {
            return Ok(Exit::Ok);
        }
        Err(CliError::new(Exit::Software, report.problems.join("; ")))
    }
}

fn failed(error: DemoError) -> CliError {
    let exit = match &error {
        DemoError::Start(StartError::Ring(_)) => {
            let what = format!("{error}, here as --io");
            return CliError::new(Exit::Unavailable, what);
        }
        DemoError::Start(_) | DemoError::Io(..) => Exit::OsErr,
        DemoError::Stopped => Exit::TempFail,
        DemoError::Config(_) => Exit::Software,
    };
    CliError::new(exit, error)
}

/// What is printed, and a progress bar below it on a terminal.
struct Page {
    quiet: bool,
    colours: bool,
    bar: Option<ProgressBar>,
    /// Ends the play when nobody reads it any more.
    stop: Arc<AtomicBool>,
    /// The first error of standard output.
    error: Option<io::Error>,
}

/// SGR codes of ECMA-48.
#[derive(Clone, Copy)]
enum Ink {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
        }
    }
}

impl Page {
    fn new(quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = io::stdout().is_terminal() && !no_colour;
        Self { quiet, colours, bar: None, stop, error: None }
    }

    fn print(&mut self, text: &str) {
        if self.quiet {
            return;
        }
        let write = || writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        if let Err(error) = written {
            self.error.get_or_insert(error);
            self.quiet = true;
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// A paragraph: broken at blanks, each line behind `indent`, the first one behind `first`.
    fn paragraph(&mut self, first: &str, indent: &str, ink: Ink, text: &str) {
        let mut lines = Vec::new();
        for (number, line) in wrapped(text, COLUMNS - indent.len()).into_iter().enumerate() {
            let start = if number == 0 { first } else { indent };
            lines.push(format!("{start}{}", self.inked(ink, &line)));
        }
        self.print(&lines.join("\n"));
    }

    fn inked(&self, ink: Ink, text: &str) -> String {
        match ink.code() {
            code if self.colours && !code.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }

    fn outcome(&mut self, report: &DemoReport) {
        self.print("");
        let head = self.inked(Ink::Bold, "What happened");
        self.print(&head);
        self.hosts(&report.scenes);
        self.figures(&report.scenes);
        self.sum(&report.sum);
        self.print("");
        if report.problems.is_empty() {
            self.paragraph("", "", Ink::Plain, WHERE_NEXT);
        }
        for problem in &report.problems {
            self.paragraph("  ", "  ", Ink::Red, problem);
        }
    }

    fn hosts(&mut self, scenes: &[SceneReport]) {
        let head = format!(
            "  {:<30}{:<21}{:>8}{:>10}",
            "scene, part of each host", "host", "turns", "messages"
        );
        self.print("");
        self.row(Ink::Dim, &head);
        for (number, scene) in (1..).zip(scenes) {
            self.row(Ink::Plain, &format!("  {number}. {}", scene.title));
            for host in &scene.hosts {
                let address = host.address.to_string();
                self.row(
                    Ink::Plain,
                    &format!(
                        "     {:<27}{address:<21}{:>8}{:>10}",
                        host.part, host.turns, host.messages
                    ),
                );
            }
        }
    }

    fn figures(&mut self, scenes: &[SceneReport]) {
        self.print("");
        let head = format!(
            "  {:<7}{:>9}{:>11}{:>11}{:>9}{:>9}{:>9}{:>9}",
            "scene", "arrived", "failovers", "deferrals", "rate/s", "p50", "p99", "p99.9"
        );
        self.row(Ink::Dim, &head);
        for (number, scene) in (1..).zip(scenes) {
            // Of a few messages that wait for something it would say nothing.
            let rate = match scene.messages {
                0..100 => "-".to_owned(),
                _ => format!("{:.0}", scene.rate),
            };
            let row = format!(
                "  {number:<7}{:>9}{:>11}{:>11}{rate:>9}{:>9}{:>9}{:>9}",
                scene.arrived,
                scene.failovers,
                scene.deferrals,
                span(scene.p50_us),
                span(scene.p99_us),
                span(scene.p99_9_us)
            );
            self.row(Ink::Plain, &row);
        }
        let note = "p50 to p99.9: time from a message's final dot here to its acceptance there";
        self.paragraph("  ", "  ", Ink::Dim, note);
    }

    fn sum(&mut self, sum: &Sum) {
        let came = sum.accepted_from_clients + sum.generated_here + sum.found_at_start;
        let went = sum.delivered + sum.bounced + sum.discarded_by_route + sum.deleted + sum.damaged;
        self.print("");
        let lines = [
            (
                "  came  ",
                format!(
                    "{came} = {} from clients + {} made here + {} found at start",
                    sum.accepted_from_clients, sum.generated_here, sum.found_at_start
                ),
            ),
            (
                "  went  ",
                format!(
                    "{went} = {} delivered + {} bounced + {} discarded + {} deleted + {} damaged",
                    sum.delivered, sum.bounced, sum.discarded_by_route, sum.deleted, sum.damaged
                ),
            ),
            ("  left  ", format!("{} still in the queue", sum.pending)),
        ];
        for (first, line) in &lines {
            self.paragraph(first, "        ", Ink::Plain, line);
        }
        let balance = format!("  sum   {came} - {went} - {} = {}", sum.pending, sum.balance);
        let (ink, verdict) = match sum.balance {
            0 => (Ink::Green, "every recipient is accounted for"),
            _ => (Ink::Red, "it must be 0"),
        };
        let verdict = self.inked(ink, verdict);
        self.print(&format!("{balance}: {verdict}"));
    }

    fn row(&mut self, ink: Ink, row: &str) {
        let row = self.inked(ink, row);
        self.print(&row);
    }
}

const WHERE_NEXT: &str = "\
Where to go next: 'ringpost serve' takes mail on 127.0.0.1:2525 from this machine; write your \
routes into a file smtproutes and name it in ringpost.toml. 'ringpost check' says what is wrong \
with a configuration before it runs. 'ringpost sink' and 'ringpost source' are the receiver and \
the sender of this demo, for tests of your own. README.md tells the rest.";

impl Audience for Page {
    fn opens(&mut self, io: &str, shards: usize, note: Option<&str>) {
        let head = self.inked(Ink::Bold, "Ringpost");
        let io = if io == "ring" { "io_uring" } else { io };
        let what = "outbound mail delivery engine";
        self.print(&format!("{head}, {what}: {shards} shards on {io}, temporary spool"));
        if let Some(note) = note {
            self.paragraph("  ", "  ", Ink::Dim, note);
        }
    }

    fn scene(&mut self, number: usize, title: &str, seen: &str) {
        let title = self.inked(Ink::Bold, &format!("{number}. {title}"));
        self.print(&format!("\n{title}"));
        self.paragraph("   ", "   ", Ink::Plain, seen);
        self.print("");
    }

    fn line(&mut self, line: &str) {
        // The date says nothing here: "Mon Mar  8 09:15:07 2027 Info: body".
        let clock = line.get(11..19).unwrap_or_default();
        let body = line.split_once("Info: ").map_or(line, |(_, body)| body);
        let troubles = ["Connection Error", "Delayed", "Possible Delivery", "Bounced"];
        let ink = if troubles.iter().any(|start| body.starts_with(start)) {
            Ink::Yellow
        } else if body.starts_with("Message done") {
            Ink::Green
        } else {
            Ink::Dim
        };
        let clock = self.inked(Ink::Dim, clock);
        self.paragraph(&format!("   {clock} "), "            ", ink, body);
    }

    fn note(&mut self, text: &str) {
        self.paragraph("   > ", "     ", Ink::Plain, text);
    }

    fn progress(&mut self, done: u64, of: u64) {
        if of == 0 {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            return;
        }
        if self.quiet || !io::stderr().is_terminal() || !io::stdout().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(of);
            let form = "   {bar:40.dim} {human_pos} of {human_len} messages arrived";
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        bar.set_position(done);
    }
}

/// Lines of at most `columns`; a word that is longer stands alone.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A time in three or four characters and its unit.
fn span(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_break_at_blanks() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("abcdef g", 4), ["abcdef", "g"]);
        assert_eq!(wrapped("", 4), [""]);
    }

    #[test]
    fn times_keep_their_width() {
        let shown: Vec<String> = [0, 999, 1_500, 15_999, 2_340_000].map(span).to_vec();
        assert_eq!(shown, ["0 us", "999 us", "1.5 ms", "15 ms", "2.3 s"]);
    }
}
