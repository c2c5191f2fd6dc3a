//! The stage of the play: a temporary folder, the sinks of all scenes, and an engine.
//!
//! Owns: their lives, and waiting in company of the audience. Never: what a scene is about.
//!
//! When a stage is dropped, by an error or a stop too, the engine ends, then the sinks, then the
//! folder goes. A process that is killed leaves its folder in the system's temporary folder.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use super::log::{Choice, LogTail};
use super::{Audience, DemoError, HostReport};
use crate::config::{self, IoMode};
use crate::lab::sink::{Behaviour, Sink, SinkHandle, SinkOptions};
use crate::lab::source::{self, Progress, SourceError, SourceOptions, SourceReport};
use crate::shard::{Engine, Shared, Stopping, io as shard_io};
use crate::telemetry::{Latencies, Totals};

/// How often the stage is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Octets of a message.
const MESSAGE_OCTETS: usize = 2048;

/// Connections that messages are sent over.
const SOURCE_SESSIONS: u32 = 10;

/// One route of the play.
pub(super) struct Cast {
    /// The receiving domain.
    pub(super) domain: &'static str,
    /// Each host: last octet of its address, its priority, how it behaves.
    hosts: Vec<(u8, u16, Behaviour)>,
}

/// What the audience is told of a scene.
pub(super) struct Playbill {
    pub(super) title: &'static str,
    /// What is to be seen.
    pub(super) seen: &'static str,
    /// The lines of the log that are shown.
    pub(super) choice: Choice,
}

/// Everything that the scenes play on.
pub(super) struct Stage<'a> {
    engine: Option<Engine>,
    shared: Arc<Shared>,
    smtp: SocketAddr,
    io: &'static str,
    /// By route and host.
    sinks: Vec<Vec<SinkHandle>>,
    /// The route of the scene, and its messages.
    route: usize,
    messages: u64,
    log: LogTail,
    audience: &'a mut dyn Audience,
    stop: &'a AtomicBool,
    problems: Vec<String>,
    /// Goes last.
    _folder: Folder,
}

impl<'a> Stage<'a> {
    /// Starts the sinks of all routes, then the engine.
    pub(super) fn open(
        io: IoMode,
        audience: &'a mut dyn Audience,
        stop: &'a AtomicBool,
    ) -> Result<Self, DemoError> {
        let folder = Folder::new()
            .map_err(|e| DemoError::Io("cannot make a temporary folder, set TMPDIR", e))?;
        let mut sinks = Vec::new();
        let mut routes = String::new();
        for (number, cast) in (1..).zip(super::scenes::casts()) {
            let hosts = start_sinks(number, &cast)
                .map_err(|error| DemoError::Io("cannot start a receiver", error))?;
            let targets = hosts
                .iter()
                .zip(&cast.hosts)
                .map(|(sink, (_, priority, _))| format!("{}/pri={priority}", sink.address()));
            let targets: Vec<String> = targets.collect();
            routes.push_str(&format!("{} {}\n", cast.domain, targets.join(", ")));
            sinks.push(hosts);
        }
        fs::write(folder.0.join("smtproutes"), routes)
            .map_err(|error| DemoError::Io("cannot write the routes", error))?;
        let file = folder.0.join("ringpost.toml");
        let snapshot = config::load_text(&file, configuration(io)).map_err(|problems| {
            DemoError::Config(problems.first().map(ToString::to_string).unwrap_or_default())
        })?;
        let engine = Engine::start(snapshot).map_err(DemoError::Start)?;
        let shared = engine.shared().clone();
        audience.opens(engine.backend().name(), shared.shards(), engine.note());
        Ok(Self {
            smtp: engine.listening()[0],
            io: engine.backend().name(),
            engine: Some(engine),
            shared,
            sinks,
            route: 0,
            messages: 0,
            log: LogTail::new(&folder.0.join("mail_logs")),
            audience,
            stop,
            problems: Vec::new(),
            _folder: folder,
        })
    }

    pub(super) fn io(&self) -> &'static str {
        self.io
    }

    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Says that something did not happen as it should.
    pub(super) fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    /// Ends the engine in good order; the counters as they are then.
    pub(super) fn close(mut self) -> (Totals, Vec<String>) {
        self.audience.progress(0, 0);
        self.shared.stop(Stopping::Gently);
        if let Some(engine) = self.engine.take() {
            engine.join();
        }
        (self.totals(), std::mem::take(&mut self.problems))
    }

    /// A scene begins: so many `messages` along route number `route`.
    pub(super) fn begin(&mut self, route: usize, messages: u64, playbill: &Playbill) {
        (self.route, self.messages) = (route, messages);
        self.log.begin(playbill.choice);
        self.audience.progress(0, 0);
        self.audience.scene(route + 1, playbill.title, playbill.seen);
    }

    pub(super) fn note(&mut self, text: &str) {
        self.audience.note(text);
    }

    /// The sinks of the scene.
    pub(super) fn sinks(&self) -> &[SinkHandle] {
        &self.sinks[self.route]
    }

    /// Messages that the sinks of the scene have accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.sinks().iter().map(|sink| sink.counts().messages).sum()
    }

    /// The counters of all shards.
    pub(super) fn totals(&self) -> Totals {
        Totals::of(self.shared.counters.iter().map(|counters| &**counters))
    }

    /// Latencies as the shards published them last, at most a second ago.
    pub(super) fn latencies(&self) -> Latencies {
        let mut all = Latencies::new();
        self.shared.reports().iter().for_each(|report| all.merge(&report.latencies));
        all
    }

    /// The scene's log so far, without dates and levels.
    pub(super) fn log(&self) -> Vec<&str> {
        self.log.kept().collect()
    }

    /// The hosts of the scene; `parts` says what each one's part was.
    pub(super) fn hosts(&self, parts: &[&'static str]) -> Vec<HostReport> {
        let now = shard_io::now().mono;
        let report = |(sink, part): (&SinkHandle, &&'static str)| {
            let address = sink.address();
            let turns = self.shared.registry.host(address, now).turns();
            HostReport { address, part, turns, messages: sink.counts().messages }
        };
        self.sinks().iter().zip(parts).map(report).collect()
    }

    /// Sends `messages` to `domain` beside what follows. Their ids are `<run>-<n>`.
    pub(super) fn send(
        &self,
        run: &str,
        domain: &str,
        messages: u64,
    ) -> Result<Sending, DemoError> {
        let options = SourceOptions {
            to: self.smtp,
            messages,
            sessions: SOURCE_SESSIONS.min(u32::try_from(messages).unwrap_or(u32::MAX)),
            size: MESSAGE_OCTETS,
            from: "newsletter@ringpost.test".to_owned(),
            rcpt: format!("reader%n@{domain}"),
            subject: "A demonstration".to_owned(),
            run: run.to_owned(),
            ..SourceOptions::default()
        };
        let progress = Arc::new(Progress::default());
        let watched = progress.clone();
        let thread = std::thread::Builder::new()
            .name("sending".to_owned())
            .spawn(move || source::run_watched(options, watched))
            .map_err(|error| DemoError::Io("cannot start a thread", error))?;
        Ok(Sending { progress, thread: Some(thread) })
    }

    /// Waits for the end of `sending`; all of its messages must have been taken.
    pub(super) fn wait_sent(&mut self, mut sending: Sending) -> Result<(), DemoError> {
        let limit = Duration::from_secs(60);
        let ended = self.wait(limit, |_| sending.is_finished())?;
        if !ended {
            self.problem("the engine did not take all messages within a minute".to_owned());
        }
        let report = sending.end().map_err(|error| match error {
            SourceError::Io(error) | SourceError::Ledger(_, error) => {
                DemoError::Io("cannot send", error)
            }
            other => DemoError::Config(other.to_string()),
        })?;
        if !report.is_complete() {
            let SourceReport { acknowledged, messages, .. } = report;
            let last = report.last_error.unwrap_or_default();
            self.problem(format!(
                "the engine took {acknowledged} of {messages} messages {:?} {last}",
                report.refused
            ));
        }
        Ok(())
    }

    /// Waits until `done`, showing the log and how many messages the sinks have; false when
    /// `limit` is over before.
    pub(super) fn wait(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<bool, DemoError> {
        let start = Instant::now();
        loop {
            let is_done = done(self);
            self.show_log()?;
            self.audience.progress(self.accepted().min(self.messages), self.messages);
            if is_done || start.elapsed() > limit {
                return Ok(is_done);
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(DemoError::Stopped);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for `time`.
    pub(super) fn pause(&mut self, time: Duration) -> Result<(), DemoError> {
        self.wait(time, |_| false).map(drop)
    }

    fn show_log(&mut self) -> Result<(), DemoError> {
        let lines = self.log.read().map_err(|e| DemoError::Io("cannot read the mail log", e))?;
        lines.iter().for_each(|line| self.audience.line(line));
        Ok(())
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.audience.progress(0, 0);
        if let Some(engine) = self.engine.take() {
            self.shared.stop(Stopping::Now);
            engine.join();
        }
    }
}

/// Messages on their way into the engine; stopped when dropped.
pub(super) struct Sending {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<SourceReport, SourceError>>>,
}

impl Sending {
    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn end(&mut self) -> Result<SourceReport, SourceError> {
        if !self.is_finished() {
            self.progress.stop();
        }
        let joined = self.thread.take().map(JoinHandle::join);
        let panicked = || SourceError::Io(io::Error::other("the sender has panicked"));
        joined.and_then(Result::ok).ok_or_else(panicked)?
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // What was sent no longer matters to anyone.
            self.end().map(drop).unwrap_or_default();
        }
    }
}

impl Cast {
    /// A route of `domain` to `hosts`: last octet of the address, priority, behaviour.
    pub(super) fn new(domain: &'static str, hosts: Vec<(u8, u16, Behaviour)>) -> Self {
        Self { domain, hosts }
    }
}

fn start_sinks(scene: u8, cast: &Cast) -> io::Result<Vec<SinkHandle>> {
    let start = |(last, _, behaviour): &(u8, u16, Behaviour)| {
        Sink::start(SinkOptions {
            listen: vec![SocketAddr::from((Ipv4Addr::new(127, 0, scene, *last), 0))],
            behaviour: behaviour.clone(),
            keep_ids: true,
            ..SinkOptions::default()
        })
    };
    cast.hosts.iter().map(start).collect()
}

/// Small in every respect, with retries after a second so that nobody waits long.
fn configuration(io: IoMode) -> String {
    let io = match io {
        IoMode::Auto => "auto",
        IoMode::Ring => "ring",
        IoMode::Epoll => "epoll",
    };
    format!(
        "hostname = \"out.ringpost.test\"\nspool = \"spool\"\nroutes = \"smtproutes\"\n\
         io = \"{io}\"\nshards = 2\nspool_max_size = \"1GiB\"\nspool_min_free = \"0%\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [log]\nmail = \"mail_logs\"\n\
         [bounce_profile.default]\ninitial_retry = \"1s\"\nmax_retry = \"2s\"\n"
    )
}

/// A folder of our own in the system's temporary one; it goes when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let name = format!("ringpost-demo-{}-{:016x}", std::process::id(), shard_io::random());
        let path: &Path = &std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            let folder = self.0.display();
            writeln!(io::stderr(), "ringpost: cannot remove {folder}: {error}").unwrap_or_default();
        }
    }
}
