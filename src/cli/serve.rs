//! `ringpost serve`: the engine in the foreground.
//!
//! Owns: the order of a start, and what it says on the terminal. Never: the work.

use std::path::PathBuf;

use super::exit::{CliError, Exit};
use crate::config;
use crate::control;
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
            Err(problems) => {
                for problem in &problems {
                    eprintln!("{problem}");
                }
                return Ok(Exit::Config);
            }
        };
        super::process::raise_descriptor_limit();
        let admin = control::bind(snapshot.admin.address).map_err(|error| {
            let address = snapshot.admin.address;
            CliError::new(Exit::Unavailable, format!("cannot listen on {address} (admin): {error}"))
        })?;
        let admin_address = admin.local_addr().map_err(|e| CliError::new(Exit::OsErr, e))?;
        if snapshot.routes.rows().is_empty() {
            eprintln!(
                "ringpost: no routes: every recipient gets 451 4.4.4 until DNS is supported; \
                 set routes = \"smtproutes\" in the configuration"
            );
        }
        let engine = Engine::start(snapshot).map_err(start_error)?;
        if let Some(note) = engine.note() {
            eprintln!("ringpost: {note}");
        }
        let announce = |engine: &Engine| self.announce(engine, admin_address);
        control::run(engine, admin, self.config.clone(), announce)
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

fn start_error(error: StartError) -> CliError {
    let exit = match &error {
        StartError::Ring(_) => Exit::Unavailable,
        StartError::Listen(_, e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::NoPerm
        }
        StartError::Listen(..) => Exit::Unavailable,
        StartError::Spool(_) => Exit::TempFail,
        StartError::Shard(_) => Exit::OsErr,
    };
    CliError::new(exit, error)
}
