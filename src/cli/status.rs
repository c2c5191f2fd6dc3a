//! `ringpost status`: what a running engine is doing. And how verbs reach it.
//!
//! Owns: the page on the terminal. Never: the numbers ([`crate::control::status`]).

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::serve::token_error;
use super::{CliError, Exit, print};
use crate::config::{self, Snapshot};
use crate::control::client::{self, ClientError};
use crate::control::status::{ShardStatus, Status};
use crate::control::{Token, TokenError};

/// Show what the running engine is doing: counters, rates, queue, shards and hosts.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost status --config /etc/ringpost/ringpost.toml
  ringpost status --config /etc/ringpost/ringpost.toml --json")]
pub(super) struct Arguments {
    /// The configuration file of the engine, which says where it is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print everything as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let snapshot = load(self.config.as_deref())?;
        let status: Status = ask(&snapshot, "/api/v1/status")?;
        if self.json {
            return print(super::json(&status)?);
        }
        let mut text = String::new();
        page(&mut text, &status).map_err(|error| CliError::new(Exit::Software, error))?;
        print(text.trim_end())
    }
}

/// The configuration of a verb that needs one, or the first of its errors with the way to all.
pub(super) fn load(file: Option<&Path>) -> Result<Snapshot, CliError> {
    config::load(file).map_err(|problems| {
        let more = match problems.len() {
            1 => String::new(),
            count => format!(" (and {} more: see 'ringpost check')", count - 1),
        };
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        CliError::new(Exit::Config, format!("{first}{more}"))
    })
}

/// Asks the engine of a configuration.
pub(super) fn ask<T: DeserializeOwned>(snapshot: &Snapshot, path: &str) -> Result<T, CliError> {
    let address = client::reachable(snapshot.admin.address);
    let token = Token::load(&snapshot.admin.token_file).map_err(|error| match error {
        TokenError::Io(file, error) if error.kind() == std::io::ErrorKind::NotFound => {
            let file = file.display();
            let what = format!(
                "no engine has run here ({file}: {error}): start it with 'ringpost serve', or \
                 name its configuration with --config"
            );
            CliError::new(Exit::Unavailable, what)
        }
        error => token_error(error),
    })?;
    client::get(address, &token, path).map_err(|error| {
        let exit = match &error {
            ClientError::Refused(problem) if [401, 403].contains(&problem.status) => Exit::NoPerm,
            ClientError::Refused(problem) if problem.status == 400 => Exit::DataErr,
            _ => Exit::Unavailable,
        };
        CliError::new(exit, error)
    })
}

fn page(out: &mut String, status: &Status) -> fmt::Result {
    let Status { version, state, io, uptime_s, configuration, .. } = status;
    writeln!(out, "ringpost {version}: {state}, up {}, io {io}", Uptime(*uptime_s))?;
    writeln!(out, "configuration {configuration}, {} shards", status.shards.len())?;
    counters(out, status)?;
    law(out, status)?;
    shards(out, status)?;
    receive_memory(out, status)?;
    hosts(out, status)
}

fn counters(out: &mut String, status: &Status) -> fmt::Result {
    let t = &status.totals;
    let rows = [
        ("Messages received", t.messages_in),
        ("Recipients received", t.accepted_from_clients),
        ("Recipients delivered", t.delivered),
        ("Soft bounced events", t.soft_bounces),
        ("Hard bounced recipients", t.bounced),
        ("Discarded by route", t.discarded_by_route),
        ("Deleted recipients", t.deleted),
        ("Held as damaged", t.damaged),
        ("Possible duplicates", t.uncertain),
        ("Refused, no memory", t.receive_refused),
        ("Octets received", t.octets_in),
        ("Octets delivered", t.octets_out),
        ("Connections in", t.connections_in),
        ("Connections out", t.connections_out),
        ("Connection errors", t.connection_errors),
        ("No room for connections", t.shortages),
        ("Failovers", t.failovers),
        ("Log lines dropped", t.log_lines_dropped),
    ];
    writeln!(out, "\nCounters since start")?;
    for (name, value) in rows {
        writeln!(out, "  {name:<24} {value:>16}")?;
    }
    let r = &status.rates;
    writeln!(out, "Rates per second, over {:.0} s", r.seconds)?;
    for (name, value) in [
        ("Recipients received", r.accepted),
        ("Recipients delivered", r.delivered),
        ("Soft bounced events", r.soft_bounces),
        ("Hard bounced recipients", r.bounced),
    ] {
        writeln!(out, "  {name:<24} {value:>16.1}")?;
    }
    writeln!(out, "Gauges")?;
    for (name, value) in [
        ("Active recipients", t.pending),
        ("Current inbound conn.", t.sessions_in),
        ("Current outbound conn.", t.sessions_out),
        ("Destinations with mail", status.destinations as u64),
    ] {
        writeln!(out, "  {name:<24} {value:>16}")?;
    }
    Ok(())
}

fn law(out: &mut String, status: &Status) -> fmt::Result {
    let law = &status.conservation;
    let verdict = if law.holds { "holds" } else { "does not hold at this moment" };
    writeln!(
        out,
        "\nConservation: {} accepted = {} settled + {} pending: {verdict} (off by {})",
        law.accepted, law.settled, law.pending, law.balance
    )
}

fn shards(out: &mut String, status: &Status) -> fmt::Result {
    writeln!(
        out,
        "\n{:<6} {:>10} {:>14} {:>14} {:>8} {:>6} {:>8} {:<10}",
        "Shard", "pending", "queue octets", "at most", "segments", "free", "poisoned", "takes mail"
    )?;
    for s in &status.shards {
        let takes = if s.takes_mail { "yes" } else { "no" };
        writeln!(
            out,
            "{:<6} {:>10} {:>14} {:>14} {:>8} {:>6} {:>8} {takes:<10}",
            s.shard,
            s.pending,
            s.queue_octets,
            s.queue_octets_max,
            s.segments,
            s.segments_free,
            s.segments_poisoned
        )?;
    }
    Ok(())
}

/// One line for each shard on which clients wait or are refused, or one that says that none do.
fn receive_memory(out: &mut String, status: &Status) -> fmt::Result {
    let (held, at_most) = status.shards.iter().fold((0, 0), |(held, at_most), s| {
        (held + s.receive_octets, at_most + s.receive_octets_max)
    });
    writeln!(out, "\nReceive memory: {held} of {at_most} octets")?;
    for s in status.shards.iter().filter(|s| s.receive_waiting > 0 || s.receive_refuses) {
        let refuses = if s.receive_refuses { ", new mail is refused with 452" } else { "" };
        let ShardStatus { shard, receive_octets, receive_octets_max, receive_waiting, .. } = s;
        writeln!(
            out,
            "  shard {shard}: {receive_octets} of {receive_octets_max}, {receive_waiting} clients \
             wait{refuses}"
        )?;
    }
    Ok(())
}

fn hosts(out: &mut String, status: &Status) -> fmt::Result {
    if status.hosts.is_empty() {
        return writeln!(out, "\nNo host was used yet.");
    }
    writeln!(
        out,
        "\n{:<28} {:<13} {:>11} {:>7} {:>12} {:>12}",
        "Host", "state", "connections", "ceiling", "turns", "delivered"
    )?;
    for h in &status.hosts {
        let ceiling = h.ceiling.map_or("-".to_owned(), |ceiling| ceiling.to_string());
        writeln!(
            out,
            "{:<28} {:<13} {:>11} {ceiling:>7} {:>12} {:>12}",
            h.address, h.state, h.connections, h.turns, h.delivered
        )?;
    }
    match status.hosts_total - status.hosts.len().min(status.hosts_total) {
        0 => Ok(()),
        more => writeln!(out, "and {more} more"),
    }
}

/// Seconds as `1d 02:03:04`.
struct Uptime(u64);

impl fmt::Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400, self.0 % 86_400);
        if days > 0 {
            write!(f, "{days}d ")?;
        }
        write!(f, "{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes() {
        let shown = [0, 61, 3_600, 200_000].map(|seconds| Uptime(seconds).to_string());
        assert_eq!(shown, ["00:00:00", "00:01:01", "01:00:00", "2d 07:33:20"]);
    }
}
