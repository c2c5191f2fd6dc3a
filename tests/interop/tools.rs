//! Other people's programs: found, started, and ended by pid.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::PATIENCE;

/// Whether a missing program is an error, and the large number of messages is wanted.
pub fn thorough() -> bool {
    std::env::var_os("RINGPOST_INTEROP").is_some_and(|value| value == "1")
}

/// Whether all of `programs` are installed; says which one is missing.
pub fn installed(programs: &[&str]) -> bool {
    let Some(missing) = programs.iter().find(|program| find(program).is_none()) else {
        return true;
    };
    assert!(!thorough(), "{missing} is not installed");
    eprintln!("skipped: {missing} is not installed");
    false
}

/// Whether this is root; says what is skipped if not.
pub fn root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {what} needs root");
    }
    root
}

/// Where a program is; administrators' programs are not in everybody's PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A command of an installed program.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap());
    command.stdin(Stdio::null());
    command
}

/// Runs to the end; fails with its output when its exit code is not 0.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Waits up to `limit` for `condition`.
pub fn wait(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port on which nobody listens now.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Whether somebody takes connections there.
pub fn listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

/// Postfix's sink.
pub struct SmtpSink {
    child: Child,
    counters: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl SmtpSink {
    /// Starts one on a free port; its counters go to a file in `folder`.
    pub fn start(folder: &Path) -> Self {
        let address = free_port();
        let counters = folder.join(format!("smtp-sink.{}", address.port()));
        let mut sink = command("smtp-sink");
        if rustix::process::geteuid().is_root() {
            sink.args(["-u", "nobody"]);
        }
        sink.args(["-c", "-m", "1000", &address.to_string(), "1024"]);
        sink.stdout(fs::File::create(&counters).unwrap()).stderr(Stdio::null());
        let sink = Self { child: sink.spawn().unwrap(), counters, address };
        wait("smtp-sink", PATIENCE, || listens(address));
        sink
    }

    /// Messages taken so far: the last `mesg=` of its running counters.
    pub fn messages(&self) -> usize {
        let text = fs::read_to_string(&self.counters).unwrap_or_default();
        let Some((_, tail)) = text.rsplit_once("mesg=") else { return 0 };
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        tail[..digits].parse().unwrap_or(0)
    }
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
