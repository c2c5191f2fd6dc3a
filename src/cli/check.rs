//! `ringpost check`: is this configuration good, and the spool it names?
//!
//! Owns: how what is wrong with them is told, for all verbs. Never: the checks.

use std::path::{Path, PathBuf};

use super::{CliError, Exit, print};
use crate::config::{self, Problem, Snapshot};
use crate::control::terminal::{tell, tell_plainly};
use crate::queue::SpoolError;
use crate::queue::inspect::{Inspection, inspect};
use crate::route::Pattern;

/// Errors that other verbs than `check` print: a wrong file of routes has one in each line.
const TOLD_MAX: usize = 20;

/// Check a configuration with its routes and its tuning profile, without starting anything.
///
/// Every error is printed at once, one a line, as 'file:line:column: what, and what is allowed';
/// the exit code is 78 then. With --spool what is damaged, missing or set aside in the spool is
/// printed too (exit code 65); nothing in it is changed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost check --config /etc/ringpost/ringpost.toml
  ringpost check --config ringpost.toml --spool --json")]
pub(super) struct Arguments {
    /// The configuration file; without it the defaults are checked
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look at the spool of the configuration too
    #[arg(long)]
    spool: bool,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let file = self.config.as_deref();
        let loaded = config::load(file);
        let spool = match &loaded {
            Ok(snapshot) if self.spool => Some(look_at(&snapshot.queue.spool)?),
            Ok(_) | Err(_) => None,
        };
        if self.json {
            return tell_json(&loaded, spool.as_ref());
        }
        match loaded {
            Ok(snapshot) => {
                if let Some(note) = without_default_route(&snapshot) {
                    tell(note);
                }
                let (routes, listeners) = (snapshot.routes.rows().len(), snapshot.listeners.len());
                let name = file.unwrap_or(Path::new("defaults")).display();
                print(format_args!(
                    "{name}: good ({}, {})",
                    count(listeners, "listener"),
                    count(routes, "route")
                ))?;
                spool.as_ref().map_or(Ok(Exit::Ok), tell_spool)
            }
            Err(problems) => {
                problems.iter().for_each(tell_plainly);
                Ok(Exit::Config)
            }
        }
    }
}

fn look_at(spool: &Path) -> Result<Inspection, CliError> {
    inspect(spool).map_err(|error| {
        let exit = match error {
            SpoolError::Damaged(_) => Exit::DataErr,
            SpoolError::FutureVersion(_) => Exit::Unavailable,
            SpoolError::Locked { .. } | SpoolError::Io(..) => Exit::NoInput,
        };
        CliError::new(exit, error)
    })
}

fn tell_spool(seen: &Inspection) -> Result<Exit, CliError> {
    for finding in &seen.findings {
        print(finding)?;
    }
    for file in &seen.set_aside {
        print(format_args!("set aside: {}", file.display()))?;
    }
    print(format_args!(
        "spool: {}, {} octets, {} pending, {} held, {} in flight",
        count(seen.segments, "segment"),
        seen.octets,
        seen.pending,
        seen.held,
        seen.in_flight
    ))?;
    Ok(exit_of(seen))
}

fn exit_of(seen: &Inspection) -> Exit {
    if seen.is_sound() { Exit::Ok } else { Exit::DataErr }
}

fn tell_json(
    loaded: &Result<Snapshot, Vec<Problem>>,
    spool: Option<&Inspection>,
) -> Result<Exit, CliError> {
    let (problems, notes) = match loaded {
        Ok(snapshot) => (&[][..], without_default_route(snapshot)),
        Err(problems) => (&problems[..], None),
    };
    let problem = |p: &Problem| {
        serde_json::json!({
            "file": p.file.to_string_lossy(), "line": p.line, "column": p.column, "what": p.what,
        })
    };
    let line = serde_json::json!({
        "good": loaded.is_ok(),
        "problems": problems.iter().map(problem).collect::<Vec<_>>(),
        "notes": notes.into_iter().collect::<Vec<_>>(),
        "spool": spool.map(|seen| serde_json::json!({
            "findings": seen.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "set_aside": seen.set_aside, "segments": seen.segments, "octets": seen.octets,
            "pending": seen.pending, "held": seen.held, "in_flight": seen.in_flight,
        })),
    });
    print(line)?;
    Ok(match loaded {
        Ok(_) => spool.map_or(Exit::Ok, exit_of),
        Err(_) => Exit::Config,
    })
}

/// `1 route`, `2 routes`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Tells what is wrong on standard error; a verb that needs the configuration ends with this.
pub(super) fn refuse(problems: &[Problem]) -> Exit {
    problems.iter().take(TOLD_MAX).for_each(tell);
    if let Some(more @ 1..) = problems.len().checked_sub(TOLD_MAX) {
        tell(format_args!("and {more} more errors: see 'ringpost check'"));
    }
    Exit::Config
}

/// What happens to mail that no route covers, when there is such mail.
pub(super) fn without_default_route(snapshot: &Snapshot) -> Option<String> {
    let rows = snapshot.routes.rows();
    if rows.iter().any(|row| row.pattern == Pattern::Default) {
        return None;
    }
    let which = if rows.is_empty() { "all mail" } else { "mail that no route matches" };
    let hint = match &snapshot.routes_file {
        Some(file) => format!("add a route for ALL to {}", file.display()),
        None => "set routes = \"smtproutes\" in the configuration".to_owned(),
    };
    Some(format!("note: {which} is refused with 451 4.4.4 until DNS is supported; {hint}"))
}
