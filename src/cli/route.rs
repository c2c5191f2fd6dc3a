//! `ringpost route explain`: where mail for an address would go now.
//!
//! Owns: the text on the terminal. Never: the forecast ([`crate::control::explain`]).

use std::fmt::{self, Write};
use std::path::PathBuf;

use super::status::{ask, load};
use super::{CliError, Exit, print};
use crate::control::client::query_value;
use crate::control::explain::{Explanation, HostForecast, explain};
use crate::control::terminal::tell;
use crate::mail::{Mailbox, Mono};

/// Explain SMTP routes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost route explain user@example.com --config /etc/ringpost/ringpost.toml
  ringpost route explain user@example.com --json")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    Explain(Explain),
}

/// Show the route of an address: the line that matches, and its hosts in the order in which they
/// would be tried now, with their health and limits.
///
/// The running engine is asked; without one, the files answer, and health is unknown. No turn is
/// taken, and nothing changes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost route explain user@example.com --config /etc/ringpost/ringpost.toml
  ringpost route explain user@example.com --json")]
struct Explain {
    /// The address
    #[arg(value_name = "USER@DOMAIN", value_parser = mailbox)]
    recipient: Mailbox,
    /// The configuration file of the engine
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print everything as one line of JSON
    #[arg(long)]
    json: bool,
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    Mailbox::parse(text.as_bytes()).map_err(|error| format!("{error}; write USER@DOMAIN"))
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self.what {
            What::Explain(arguments) => arguments.run(),
        }
    }
}

impl Explain {
    fn run(self) -> Result<Exit, CliError> {
        let snapshot = load(self.config.as_deref())?;
        let recipient = query_value(self.recipient.as_str());
        let path = format!("/api/v1/route/explain?recipient={recipient}");
        let told: Explanation = match ask(&snapshot, &path) {
            Ok(told) => told,
            Err(error) => {
                if error.exit() != Exit::Unavailable {
                    tell(error);
                }
                // Without a clock: nothing is known that time could change.
                explain(&snapshot, None, &self.recipient, Mono(0))
            }
        };
        if self.json {
            return print(super::json(&told)?);
        }
        let mut text = String::new();
        page(&mut text, &told).map_err(|error| CliError::new(Exit::Software, error))?;
        print(text.trim_end())
    }
}

fn page(out: &mut String, told: &Explanation) -> fmt::Result {
    writeln!(out, "{}: receiving domain {}", told.recipient, told.domain)?;
    match &told.route {
        Some(route) => writeln!(out, "route  {}:{}: {}", route.file, route.line, route.text)?,
        None => writeln!(out, "route  none matches: RCPT is refused with 451 4.4.4")?,
    }
    if told.way == "discard" {
        return writeln!(out, "way    accepted and discarded (/dev/null)");
    }
    if !told.engine {
        writeln!(out, "health unknown: the engine did not answer, the files were read")?;
    }
    for (number, forecast) in (1..).zip(&told.hosts) {
        host(out, number, forecast)?;
    }
    let limits = &told.limits;
    writeln!(
        out,
        "limits {} connections, {} messages per connection, {} recipients per transaction",
        limits.max_connections,
        limits.max_messages_per_connection,
        limits.max_recipients_per_transaction
    )?;
    let interface = limits.interface.as_deref().unwrap_or("auto");
    writeln!(out, "source {interface}, EHLO {}", limits.ehlo_name)?;
    writeln!(out, "bounce profile {}", limits.bounce_profile)?;
    writeln!(out, "tls    {}", told.tls)?;
    writeln!(out, "auth   {}", told.auth.as_deref().unwrap_or("none"))
}

fn host(out: &mut String, number: usize, forecast: &HostForecast) -> fmt::Result {
    let HostForecast { priority, host } = forecast;
    write!(out, "{number:>5}. {} priority {priority}, {}", host.address, host.state)?;
    if let Some(ms) = host.state_ends_in_ms {
        write!(out, " for {} s", Seconds(ms))?;
    }
    if host.state == "unknown" {
        return writeln!(out);
    }
    writeln!(out, ", {} of {} connections", host.connections, host.connections_max)
}

/// Milliseconds, shown as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 100)
    }
}
