//! A play of the engine between its own sinks: three scenes that show what it is for.
//!
//! Owns: the scenes, the checks that they happened as they should, and the [`DemoReport`]. Never:
//! how it looks (an [`Audience`] shows it), or a setup of the user's: everything stands in a
//! temporary folder and on free loopback ports, and is gone when [`run`] returns.
//!
//! Diagnostics: [`DemoError`] when the play cannot go on; what did not happen as it should is in
//! [`DemoReport::problems`].

mod log;
mod scenes;
mod stage;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::config::IoMode;
use crate::shard::engine::StartError;
use crate::telemetry::{Conservation, Totals};

use stage::Stage;

/// What a demo is started with.
#[derive(Clone, Copy, Debug)]
pub struct DemoOptions {
    /// Messages of the largest scene, at least [`MESSAGES_MIN`].
    pub messages: u64,
    /// How the engine does its I/O.
    pub io: IoMode,
}

/// The fewest messages: each of three hosts has some before and after one of them dies.
pub const MESSAGES_MIN: u64 = 24;

/// Who watches the play.
pub trait Audience {
    /// The engine runs.
    fn opens(&mut self, io: &str, shards: usize, note: Option<&str>);
    /// A scene begins; `seen` says what is to be seen.
    fn scene(&mut self, number: usize, title: &str, seen: &str);
    /// A line of the mail log.
    fn line(&mut self, line: &str);
    /// What was just done or has just happened.
    fn note(&mut self, text: &str);
    /// How far the scene has come, in messages; both 0 between scenes.
    fn progress(&mut self, done: u64, of: u64);
}

/// One host of a scene.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct HostReport {
    /// Its address.
    pub address: SocketAddr,
    /// Its part, in a few words.
    pub part: &'static str,
    /// Deliveries that took a turn for it.
    pub turns: u64,
    /// Messages that it accepted.
    pub messages: u64,
}

/// What came of one scene.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct SceneReport {
    /// What it is called.
    pub title: &'static str,
    /// Messages sent.
    pub messages: u64,
    /// Messages that arrived, each counted once.
    pub arrived: u64,
    /// Messages that arrived a second time.
    pub repeated: u64,
    /// The hosts in the order of their route.
    pub hosts: Vec<HostReport>,
    /// Deliveries that went on to a further host within the same attempt.
    pub failovers: u64,
    /// Deliveries deferred to a later time.
    pub deferrals: u64,
    /// From the first message sent to the last settled.
    pub seconds: f64,
    /// Messages per second of these.
    pub rate: f64,
    /// Microseconds from a message's final dot to the next hop's acceptance: median.
    pub p50_us: u64,
    /// The same, 99 of 100.
    pub p99_us: u64,
    /// The same, 999 of 1000.
    pub p99_9_us: u64,
    /// The lines of the log that the scene is about.
    pub log: Vec<String>,
}

/// The sum of conservation with its terms, in recipients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Sum {
    /// Taken from clients.
    pub accepted_from_clients: u64,
    /// Made by the engine: failure reports.
    pub generated_here: u64,
    /// Found in the spool at start.
    pub found_at_start: u64,
    /// Taken by a next hop.
    pub delivered: u64,
    /// Given up.
    pub bounced: u64,
    /// Discarded by their route.
    pub discarded_by_route: u64,
    /// Deleted by the operator.
    pub deleted: u64,
    /// Held because of damage.
    pub damaged: u64,
    /// Still queued.
    pub pending: u64,
    /// What came less what went and what is left: 0.
    pub balance: i64,
}

impl Sum {
    fn of(totals: &Totals) -> Self {
        Self {
            accepted_from_clients: totals.accepted_from_clients,
            generated_here: totals.generated_here,
            found_at_start: totals.found_at_start,
            delivered: totals.delivered,
            bounced: totals.bounced,
            discarded_by_route: totals.discarded_by_route,
            deleted: totals.deleted,
            damaged: totals.damaged,
            pending: totals.pending,
            balance: Conservation::of(totals).balance(),
        }
    }
}

/// What came of the play.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct DemoReport {
    /// How the engine did its I/O.
    pub io: &'static str,
    /// The scenes in their order.
    pub scenes: Vec<SceneReport>,
    /// The sum over all scenes, read when the engine had ended.
    pub sum: Sum,
    /// What did not happen as it should; empty when all is well.
    pub problems: Vec<String>,
}

/// Why the play did not come to its end.
#[derive(Debug)]
pub enum DemoError {
    /// The engine does not start.
    Start(StartError),
    /// The system refused something: what, and its error.
    Io(&'static str, io::Error),
    /// It was asked to stop.
    Stopped,
    /// The engine's configuration was refused: a fault of this program.
    Config(String),
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => error.fmt(f),
            Self::Io(what, error) => write!(f, "{what}: {error}"),
            Self::Stopped => f.write_str("stopped before the end; nothing is left behind"),
            Self::Config(problem) => write!(f, "the demo's own configuration: {problem}"),
        }
    }
}

impl std::error::Error for DemoError {}

/// Plays all scenes for `audience`, until `stop` is set.
///
/// # Errors
/// See [`DemoError`]; nothing is left behind then either.
pub fn run(
    options: DemoOptions,
    audience: &mut dyn Audience,
    stop: &AtomicBool,
) -> Result<DemoReport, DemoError> {
    let messages = options.messages.max(MESSAGES_MIN);
    let mut stage = Stage::open(options.io, audience, stop)?;
    let mut report = DemoReport { io: stage.io(), ..DemoReport::default() };
    for play in [scenes::first_host_is_full, scenes::one_of_three_dies, scenes::all_refuse] {
        let scene = play(&mut stage, messages)?;
        report.scenes.push(scene);
        if !stage.problems().is_empty() {
            // What follows would show only the consequences.
            break;
        }
    }
    let (totals, problems) = stage.close();
    report.sum = Sum::of(&totals);
    report.problems = problems;
    if report.sum.balance != 0 {
        let balance = report.sum.balance;
        report.problems.push(format!("the sum of conservation is off by {balance} recipients"));
    }
    Ok(report)
}
