//! `ringpost serve`: the engine in the foreground.
//!
//! Owns: the order of a start, and what it says on the terminal. Never: the work.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::exit::{CliError, Exit};
use crate::config;
use crate::control::terminal::tell;
use crate::control::{self, Token, TokenError};
use crate::queue::SpoolError;
use crate::shard::Engine;
use crate::shard::engine::StartError;
use crate::telemetry::settings::LogTarget;

/// Behind a port that is refused.
const PRIVILEGED: &str = ", or allow ports below 1024 (CAP_NET_BIND_SERVICE)";

/// Run the engine in the foreground until SIGTERM.
///
/// Without --config: takes mail on 127.0.0.1:2525 from this machine, spool in ./spool, admin API
/// on 127.0.0.1:8025. SIGHUP reloads routes, destinations and profiles, and reopens the log.
/// SIGTERM ends in good order, a second one at once.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ringpost serve --config /etc/ringpost/ringpost.toml")]
pub(super) struct Arguments {
    /// The configuration file; see `ringpost config` for all keys.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the start as one JSON line.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let snapshot = match config::load(self.config.as_deref()) {
            Ok(snapshot) => snapshot,
            Err(problems) => return Ok(super::check::refuse(&problems)),
        };
        super::process::raise_descriptor_limit();
        let admin = bind_admin(snapshot.admin.address)?;
        let admin_address = admin.local_addr().map_err(|e| CliError::new(Exit::OsErr, e))?;
        try_log(&snapshot.log.target)?;
        try_spool(&snapshot.queue.spool)?;
        let token = Token::load_or_make(&snapshot.admin.token_file).map_err(token_error)?;
        if let Some(note) = super::check::without_default_route(&snapshot) {
            tell(note);
        }
        let engine = Engine::start(snapshot).map_err(start_error)?;
        if let Some(note) = engine.note() {
            tell(note);
        }
        let announce = |engine: &Engine| self.announce(engine, admin_address);
        control::run(engine, admin, self.config.clone(), token, announce)
            .map_err(|e| CliError::new(Exit::OsErr, e))?;
        Ok(Exit::Ok)
    }

    fn announce(&self, engine: &Engine, admin: SocketAddr) {
        let io = engine.backend().name();
        if self.json {
            let listening: Vec<_> = engine.listening().iter().map(ToString::to_string).collect();
            let line = serde_json::json!({
                "listening": listening, "admin": admin.to_string(), "io": io,
                "shards": engine.shared().shards(),
            });
            return show(line);
        }
        for address in engine.listening() {
            show(format_args!(
                "listening on {address} (io {io}, {} shards)",
                engine.shared().shards()
            ));
        }
        show(format_args!("admin on {admin}"));
    }
}

/// Prints a line of the announcement. Mail is taken already: nobody to read it is no reason to
/// end.
fn show(line: impl std::fmt::Display) {
    if let Err(error) = super::print(line) {
        tell(error);
    }
}

/// A log that cannot be opened now would lose every line in silence; later, while mail flows, a
/// lost log stops nothing.
fn try_log(target: &LogTarget) -> Result<(), CliError> {
    let LogTarget::File(file) = target else { return Ok(()) };
    let opened = OpenOptions::new().append(true).create(true).open(file);
    let refused = |error: std::io::Error| {
        let (exit, hint) = match error.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPerm, "let this user write there"),
            ErrorKind::NotFound => (Exit::CantCreate, "make its folder"),
            _ => (Exit::CantCreate, "see that it can be a file"),
        };
        let what = format!("{hint}, or choose another [log] mail (\"-\": standard output)");
        let file = file.display();
        CliError::new(exit, format!("cannot write the mail log {file}: {error}; {what}"))
    };
    opened.map(drop).map_err(refused)
}

/// The token may lie in the spool, and a file in its place would be told of as the token's fault.
fn try_spool(spool: &Path) -> Result<(), CliError> {
    if spool.exists() && !spool.is_dir() {
        let what = "is no folder: choose another spool";
        return Err(CliError::new(Exit::CantCreate, format!("spool {} {what}", spool.display())));
    }
    Ok(())
}

fn bind_admin(address: SocketAddr) -> Result<TcpListener, CliError> {
    control::bind(address).map_err(|error| {
        let (exit, hint) = match error.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPerm, PRIVILEGED),
            _ => (Exit::Unavailable, ""),
        };
        let what = format!("cannot listen on {address}: {error}; choose another admin.address");
        CliError::new(exit, format!("{what}{hint}"))
    })
}

/// What a token that cannot be had means for a verb.
pub(super) fn token_error(error: TokenError) -> CliError {
    let exit = match (&error, error.kind()) {
        (_, ErrorKind::PermissionDenied) => Exit::NoPerm,
        (TokenError::Malformed(_), _) => Exit::Config,
        _ => Exit::IoErr,
    };
    let hint = match (&error, exit) {
        (TokenError::Io(..), Exit::NoPerm) => "; run as the owner of the spool",
        (TokenError::Io(..), _) => "; make its folder writable, or set admin.token_file",
        _ => "",
    };
    CliError::new(exit, format!("{error}{hint}"))
}

fn start_error(error: StartError) -> CliError {
    let denied = |error: &std::io::Error| error.kind() == ErrorKind::PermissionDenied;
    let exit = match &error {
        StartError::Listen(_, e) | StartError::Spool(SpoolError::Io(_, e)) if denied(e) => {
            Exit::NoPerm
        }
        StartError::Ring(_) | StartError::Listen(..) => Exit::Unavailable,
        StartError::Spool(SpoolError::Locked { .. }) => Exit::TempFail,
        StartError::Spool(SpoolError::FutureVersion(_)) => Exit::Unavailable,
        StartError::Spool(SpoolError::Damaged(_)) => Exit::DataErr,
        StartError::Spool(SpoolError::Io(..)) => Exit::IoErr,
        StartError::Shard(_) => Exit::OsErr,
    };
    let hint = match &error {
        StartError::Listen(_, e) if denied(e) => PRIVILEGED,
        _ => "",
    };
    CliError::new(exit, format!("{error}{hint}"))
}
