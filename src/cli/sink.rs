//! The verb `sink`: an SMTP server that accepts everything, or fails as told.
//!
//! Owns: its arguments and its summary. Never: the dialogue ([`crate::lab::sink`]).

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::control::terminal::tell_plainly;
use crate::lab::sink::{Answered, Behaviour, Sink, SinkOptions, Stage};

use super::{CliError, Exit, args, process};

/// Accept mail and throw it away, as fast as it comes; or fail at any step of the dialogue.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost sink --listen 127.0.0.1:2600 --count-file accepted
  ringpost sink --listen 127.0.0.1:2600 --reply 'RCPT=450 4.2.0 busy' --delay 50ms
  ringpost sink --listen 127.0.0.1:2600 --greeting '431 4.3.1 full\\ntry later'
  ringpost sink --listen 127.0.0.1:2600 --drop-at dot --json

Each address is printed to stderr as 'listening on ADDRESS:PORT' once it takes connections.
SIGINT or SIGTERM ends it with a summary on stdout.")]
pub(super) struct Arguments {
    /// Address to listen on, port 0 for a free one; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT", required = true, value_parser = args::address)]
    listen: Vec<SocketAddr>,
    /// Greeting in place of '220 sink.test ESMTP'; \n makes it multi-line, empty means silence
    #[arg(long, value_name = "REPLY")]
    greeting: Option<String>,
    /// Reply to a command: GREETING EHLO HELO MAIL RCPT DATA BDAT DOT RSET QUIT; repeatable
    #[arg(long, value_name = "COMMAND=REPLY", value_parser = reply)]
    reply: Vec<(Answered, String)>,
    /// Close in place of a reply: connect greeting ehlo mail rcpt data body dot rset quit
    #[arg(long, value_name = "STAGE")]
    drop_at: Option<Stage>,
    /// Hold each group of replies back for this long
    #[arg(long, value_name = "DURATION", value_parser = args::duration, default_value = "0ms")]
    delay: Duration,
    /// Do not offer PIPELINING
    #[arg(long)]
    no_pipelining: bool,
    /// Do not offer CHUNKING
    #[arg(long)]
    no_chunking: bool,
    /// Greet connections beyond this number with 421
    #[arg(long, value_name = "N")]
    max_connections: Option<u64>,
    /// File that holds the number of accepted messages, at most 100 ms late
    #[arg(long, value_name = "FILE")]
    count_file: Option<PathBuf>,
    /// Folder that gets one file per accepted message
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    /// End after this many accepted messages
    #[arg(long, value_name = "N")]
    exit_after: Option<u64>,
    /// Print the summary as one line of JSON
    #[arg(long)]
    json: bool,
}

fn reply(text: &str) -> Result<(Answered, String), String> {
    let (command, reply) =
        text.split_once('=').ok_or_else(|| "write COMMAND=REPLY: 'RCPT=450 busy'".to_owned())?;
    Ok((command.parse()?, reply.to_owned()))
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let json = self.json;
        process::raise_descriptor_limit();
        let sink = Sink::start(self.into_options()).map_err(|error| {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::NoPerm,
                io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Exit::Unavailable,
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Exit::IoErr,
                _ => Exit::OsErr,
            };
            let what = "cannot start the sink";
            CliError::new(exit, format!("{what}: {error}; check --listen, --dump, --count-file"))
        })?;
        let stopper = sink.stopper();
        process::on_stop(move || stopper.stop()).map_err(|error| {
            CliError::new(Exit::OsErr, format!("cannot catch signals: {error}"))
        })?;
        for address in sink.addresses() {
            tell_plainly(format_args!("listening on {address}"));
        }
        let report = sink.wait();
        let line = if json {
            serde_json::to_string(&report).map_err(|error| CliError::new(Exit::Software, error))?
        } else {
            format!(
                "{} messages, {} recipients, {} connections, {} octets in {:.3} s: \
                 {:.0} messages/s",
                report.messages,
                report.recipients,
                report.connections,
                report.octets,
                report.seconds,
                report.rate
            )
        };
        writeln!(io::stdout(), "{line}").map_err(|error| CliError::new(Exit::IoErr, error))?;
        Ok(Exit::Ok)
    }

    fn into_options(self) -> SinkOptions {
        let greeting = self.greeting.map(|text| (Answered::Greeting, text));
        SinkOptions {
            listen: self.listen,
            behaviour: Behaviour {
                replies: self.reply.into_iter().chain(greeting).collect(),
                drop_at: self.drop_at,
                delay: self.delay,
                pipelining: !self.no_pipelining,
                chunking: !self.no_chunking,
                connections_max: self.max_connections,
                ..Behaviour::default()
            },
            count_file: self.count_file,
            dump: self.dump,
            keep_ids: false,
            exit_after: self.exit_after,
        }
    }
}
