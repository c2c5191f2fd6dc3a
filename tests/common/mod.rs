//! What every end-to-end test needs: an engine in a process of its own, a client that speaks SMTP
//! by hand, and next hops that follow a script.
//!
//! Tests run on io_uring and on epoll; `RINGPOST_IO` chooses among `ring`, `epoll` and `refused`
//! (io_uring is refused by a system call filter, and the engine is free to choose), separated by
//! commas.
//!
//! Everything is on 127.0.0.0/8 with free ports. An engine is stopped by its own pid; when a test
//! ends, the conservation sum is read from `/metrics` and must balance.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses a part")]
#![allow(clippy::let_underscore_must_use, reason = "a peer or process may be gone already")]

pub mod client;
pub mod peer;
pub mod seccomp;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use client::Client;
pub use peer::{Conversation, Peer};

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The ways of I/O to be tested on this machine; says which one is skipped, and why.
pub fn io_modes() -> Vec<&'static str> {
    let wanted = std::env::var("RINGPOST_IO").unwrap_or_else(|_| "ring,epoll".to_owned());
    let known = ["ring", "epoll", "refused"];
    let is_known = |io: &str| known.contains(&io);
    assert!(wanted.split(',').all(is_known), "RINGPOST_IO={wanted:?}: {known:?} are known");
    let mut modes = known.to_vec();
    modes.retain(|io| wanted.split(',').any(|named| named == *io));
    if let Err(why) = ringpost::shard::io::probe_ring() {
        eprintln!("skipped with io = \"ring\": {why}");
        modes.retain(|io| *io != "ring");
    }
    modes
}

/// Runs `test` on each way of I/O, on all of them at the same time.
pub fn on_each_io(test: fn(&str)) {
    std::thread::scope(|scope| {
        for io in io_modes() {
            let named = std::thread::Builder::new().name(format!("io = {io}"));
            named.spawn_scoped(scope, move || test(io)).unwrap();
        }
    });
}

/// Makes a test out of a function that is given `io`.
#[macro_export]
macro_rules! each_io {
    ($name:ident) => {
        mod $name {
            #[test]
            fn on_each_io() {
                $crate::common::on_each_io(super::$name);
            }
        }
    };
}

/// The engine's program: the one built with the tests, or `RINGPOST_BIN` (a release build).
pub fn program() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_ringpost").into();
    std::env::var_os("RINGPOST_BIN").map_or_else(built, PathBuf::from)
}

/// The configuration of one engine under test.
#[derive(Clone)]
pub struct Setup {
    /// io_uring is refused to it.
    pub refused: bool,
    /// Lines of smtproutes.
    pub routes: String,
    /// Keys of the top level.
    pub top: String,
    /// Keys of the listener.
    pub listener: String,
    /// Whole tables that follow.
    pub tables: String,
}

impl Setup {
    /// An engine with these routes, retries after 1 s, and `io` (see [`io_modes`]).
    pub fn new(io: &str, routes: impl Into<String>) -> Self {
        let refused = io == "refused";
        let io = if refused { "auto" } else { io };
        Self {
            refused,
            routes: routes.into(),
            top: format!("io = \"{io}\"\nshards = 2\n"),
            listener: String::new(),
            tables: "[bounce_profile.default]\ninitial_retry = \"1s\"\nmax_retry = \"2s\"\n".into(),
        }
    }

    /// More tables, in place of the default ones.
    pub fn tables(mut self, tables: &str) -> Self {
        self.tables = tables.into();
        self
    }

    /// More keys of the top level.
    pub fn top(mut self, top: &str) -> Self {
        self.top.push_str(top);
        self.top.push('\n');
        self
    }

    /// More keys of the listener.
    pub fn listener(mut self, keys: &str) -> Self {
        self.listener = keys.into();
        self
    }

    fn toml(&self) -> String {
        format!(
            "hostname = \"out.test\"\nspool = \"spool\"\nroutes = \"smtproutes\"\n{}\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n{}\n[admin]\naddress = \"127.0.0.1:0\"\n\
             [log]\nmail = \"mail_logs\"\n{}",
            self.top, self.listener, self.tables
        )
    }
}

/// An engine in a process of its own.
pub struct Engine {
    folder: tempfile::TempDir,
    child: Option<Child>,
    refused: bool,
    /// Where it takes mail.
    pub smtp: SocketAddr,
    /// Where it answers the control plane.
    pub admin: SocketAddr,
}

impl Engine {
    /// Starts an engine and waits until it listens.
    pub fn start(setup: &Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("smtproutes"), &setup.routes).unwrap();
        fs::write(folder.path().join("ringpost.toml"), setup.toml()).unwrap();
        let nowhere = "127.0.0.1:0".parse().unwrap();
        let mut engine =
            Self { folder, child: None, refused: setup.refused, smtp: nowhere, admin: nowhere };
        engine.launch();
        engine
    }

    /// Starts the process again on the same spool.
    pub fn launch(&mut self) {
        self.launch_through(Command::new(program()));
    }

    fn spawn(&self, mut command: Command) -> Child {
        assert!(self.child.is_none(), "the engine already runs");
        if self.refused {
            seccomp::refuse_io_uring(&mut command);
        }
        let stderr = fs::File::create(self.path("stderr")).unwrap();
        command
            .args(["serve", "--config"])
            .arg(self.path("ringpost.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap()
    }

    /// Starts the process on the same spool and kills it after that long, wherever it is then.
    pub fn launch_and_kill(&mut self, after: Duration) {
        let mut child = self.spawn(Command::new(program()));
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts the process by `command`, which is given the arguments of `serve`.
    pub fn launch_through(&mut self, command: Command) {
        let mut child = self.spawn(command);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.child = Some(child);
        let (mut smtp, mut admin) = (None, None);
        while smtp.is_none() || admin.is_none() {
            let Some(Ok(line)) = lines.next() else {
                panic!("the engine did not start: {}", self.stderr());
            };
            if let Some(address) = line.strip_prefix("listening on ") {
                smtp = Some(address.split(' ').next().unwrap().parse().unwrap());
            } else if let Some(address) = line.strip_prefix("admin on ") {
                admin = Some(address.split(' ').next().unwrap().parse().unwrap());
            }
        }
        (self.smtp, self.admin) = (smtp.unwrap(), admin.unwrap());
    }

    /// A file in the engine's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the engine wrote to its standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// The mail log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("mail_logs")).unwrap_or_default()
    }

    /// Octets of the log so far.
    pub fn log_octets(&self) -> u64 {
        fs::metadata(self.path("mail_logs")).map_or(0, |metadata| metadata.len())
    }

    /// Waits until `text` stands in the log behind its first `octets` octets: after a long life
    /// the whole of it takes seconds to read.
    pub fn wait_log_behind(&self, octets: u64, text: &str) {
        self.wait(&format!("{text:?} in the log behind {octets} octets"), || {
            let mut file = fs::File::open(self.path("mail_logs")).unwrap();
            file.seek(SeekFrom::Start(octets)).unwrap();
            let mut added = Vec::new();
            file.read_to_end(&mut added).unwrap();
            String::from_utf8_lossy(&added).contains(text)
        });
    }

    /// The bodies of the log's lines, without date and level.
    pub fn log_lines(&self) -> Vec<String> {
        let body = |line: &str| line.split_once(": ").map_or(line, |(_, body)| body).to_owned();
        self.log().lines().map(body).collect()
    }

    /// Waits until the log holds `count` lines with `text`.
    pub fn wait_log_count(&self, text: &str, count: usize) {
        self.wait(&format!("{count} x {text:?} in the log"), || {
            self.log().lines().filter(|line| line.contains(text)).count() >= count
        });
    }

    /// Waits until the log holds a line with `text`.
    pub fn wait_log(&self, text: &str) {
        self.wait_log_count(text, 1);
    }

    /// Waits for `condition`; fails with the log when it does not come.
    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain for {what}\n{}\n{}",
                self.stderr(),
                tail(&self.log())
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The samples of `/metrics`, by name with labels.
    pub fn metrics(&self) -> HashMap<String, f64> {
        let text = http_get(self.admin, "/metrics");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let split = samples.filter_map(|line| line.rsplit_once(' '));
        split.map(|(name, value)| (name.to_owned(), value.parse().unwrap_or(f64::NAN))).collect()
    }

    /// One sample, 0 when it is absent.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics().get(name).copied().unwrap_or(0.0)
    }

    /// A configuration for verbs: that of the engine with the admin address it got.
    pub fn config_for_verbs(&self) -> String {
        let text = fs::read_to_string(self.path("ringpost.toml")).unwrap();
        let at = text.find("[admin]").unwrap();
        let (before, after) = text.split_at(at);
        let after = after.replacen("127.0.0.1:0", &self.admin.to_string(), 1);
        fs::write(self.path("verbs.toml"), format!("{before}{after}")).unwrap();
        "verbs.toml".to_owned()
    }

    /// Runs a verb of `ringpost` that needs this engine or its configuration.
    pub fn verb(&self, words: &[&str]) -> (i32, String, String) {
        let config = self.config_for_verbs();
        let words: Vec<&str> = words.iter().copied().chain(["--config", &config]).collect();
        ringpost(&words, &self.path(""))
    }

    /// Waits until nothing is queued.
    pub fn wait_empty(&self) {
        self.wait("an empty queue", || self.metric("ringpost_recipients_pending") == 0.0);
    }

    /// The conservation sum must balance.
    pub fn assert_conservation(&self) {
        let start = Instant::now();
        loop {
            let metrics = self.metrics();
            let balance = metrics.get("ringpost_conservation_balance").copied();
            match balance {
                Some(0.0) => return,
                // The shards' counters are read one after the other while mail moves.
                Some(_) if start.elapsed() < Duration::from_secs(2) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                balance => panic!("the conservation sum is off: {balance:?}\n{metrics:#?}"),
            }
        }
    }

    /// The pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for the end; gives the exit code.
    pub fn wait_exit(&mut self) -> Option<i32> {
        let start = Instant::now();
        let mut child = self.child.take().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "the engine does not end: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and its exit code must be 0.
    pub fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.wait_exit(), Some(0), "{}", self.stderr());
    }

    /// A client connection.
    pub fn client(&self) -> Client {
        Client::connect(self.smtp)
    }

    /// Sends one small message and expects a 250 to its end of data.
    pub fn send(&self, from: &str, to: &[&str]) {
        let mut client = self.client();
        client.message(from, to, b"Subject: test\r\n\r\nhello\r\n");
        client.quit();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if !std::thread::panicking() {
            self.child = Some(child);
            self.assert_conservation();
            child = self.child.take().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// GET from the control plane; the body.
pub fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or(("", ""));
    body.to_owned()
}

/// Runs the `ringpost` command; its exit code, standard output and standard error.
pub fn ringpost(args: &[&str], folder: &Path) -> (i32, String, String) {
    let output = Command::new(program())
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
