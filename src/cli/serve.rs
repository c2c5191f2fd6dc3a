//! `ringpost serve`: the engine in the foreground.
//!
//! Owns: the order of a start, and what it says on the terminal. Never: the work.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::exit::{CliError, Exit};
use crate::config;
use crate::control::{self, Token, TokenError};
use crate::queue::SpoolError;
use crate::shard::Engine;
use crate::shard::engine::StartError;

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
        let admin = control::bind(snapshot.admin.address).map_err(|error| {
            let exit = match error.kind() {
                ErrorKind::PermissionDenied => Exit::NoPerm,
                _ => Exit::Unavailable,
            };
            let address = snapshot.admin.address;
            let what = format!("cannot listen on {address}: {error}; choose another admin.address");
            CliError::new(exit, what)
        })?;
        let admin_address = admin.local_addr().map_err(|e| CliError::new(Exit::OsErr, e))?;
        let token = Token::load_or_make(&snapshot.admin.token_file).map_err(token_error)?;
        if let Some(note) = super::check::without_default_route(&snapshot) {
            eprintln!("ringpost: {note}");
        }
        let engine = Engine::start(snapshot).map_err(start_error)?;
        if let Some(note) = engine.note() {
            eprintln!("ringpost: {note}");
        }
        let announce = |engine: &Engine| self.announce(engine, admin_address);
        control::run(engine, admin, self.config.clone(), token, announce)
            .map_err(|e| CliError::new(Exit::OsErr, e))?;
        Ok(Exit::Ok)
    }

    fn announce(&self, engine: &Engine, admin: std::net::SocketAddr) {
        let io = engine.backend().name();
        if self.json {
            let listening: Vec<_> = engine.listening().iter().map(ToString::to_string).collect();
            let line = serde_json::json!({
                "listening": listening, "admin": admin.to_string(), "io": io,
                "shards": engine.shared().shards(),
            });
            println!("{line}");
            return;
        }
        for address in engine.listening() {
            println!("listening on {address} (io {io}, {} shards)", engine.shared().shards());
        }
        println!("admin on {admin}");
    }
}

/// What a token that cannot be had means for a verb.
pub(super) fn token_error(error: TokenError) -> CliError {
    let exit = match (&error, error.kind()) {
        (_, ErrorKind::PermissionDenied) => Exit::NoPerm,
        (TokenError::Malformed(_), _) => Exit::Config,
        _ => Exit::IoErr,
    };
    CliError::new(exit, error)
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
    CliError::new(exit, error)
}
