//! The command line: one file per group of verbs.
//!
//! Owns: the list of verbs, and how every verb ends: an exit code of sysexits(3), and in case of
//! an error one line on stderr that says what to do. Never: what a verb does; that stands in its
//! file, and a new verb is three lines here: its module, its variant, its arm in `Verb::run`.
//!
//! Each verb is a struct of clap arguments with `run(self) -> Result<Exit, CliError>`, an example
//! in its help, and `--json`. Results go to stdout, everything else to stderr.

mod args;
mod check;
mod config;
mod demo;
mod exit;
mod process;
mod route;
mod serve;
mod sink;
mod source;
mod status;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use exit::{CliError, Exit};

/// Outbound mail delivery engine: SMTP in, a memory-mapped queue, SMTP routes out.
#[derive(Parser, Debug)]
#[command(name = "ringpost", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Demo(demo::Arguments),
    Serve(Box<serve::Arguments>),
    Check(Box<check::Arguments>),
    Config(Box<config::Arguments>),
    Status(Box<status::Arguments>),
    Route(Box<route::Arguments>),
    Sink(Box<sink::Arguments>),
    Source(Box<source::Arguments>),
}

impl Verb {
    fn run(self) -> Result<Exit, CliError> {
        match self {
            Verb::Demo(arguments) => arguments.run(),
            Verb::Serve(arguments) => arguments.run(),
            Verb::Check(arguments) => arguments.run(),
            Verb::Config(arguments) => arguments.run(),
            Verb::Status(arguments) => arguments.run(),
            Verb::Route(arguments) => arguments.run(),
            Verb::Sink(arguments) => arguments.run(),
            Verb::Source(arguments) => arguments.run(),
        }
    }
}

/// Runs the verb that `arguments` (the program's name first) ask for.
///
/// # Errors
/// What the verb could not do, or a usage error; [`CliError::report`] turns it into one line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, CliError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match Arguments::try_parse_from(&arguments) {
        Ok(arguments) => Ok(arguments.verb.run()?.into()),
        Err(error) if !error.use_stderr() => {
            // Help or version. A reader that went away has seen enough of it.
            error.print().unwrap_or_default();
            Ok(Exit::Ok.into())
        }
        Err(error) => Err(CliError::usage(&error, &named_verb(&arguments))),
    }
}

/// Prints a result. A reader that went away has seen enough of it.
fn print(result: impl std::fmt::Display) -> Result<Exit, CliError> {
    match writeln!(io::stdout(), "{result}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::new(Exit::IoErr, format!("cannot write the result: {error}")))
        }
        _ => Ok(Exit::Ok),
    }
}

/// A result as one line of JSON.
fn json(result: &impl serde::Serialize) -> Result<String, CliError> {
    serde_json::to_string(result).map_err(|error| CliError::new(Exit::Software, error))
}

/// `ringpost`, with the verb behind it if the arguments name one.
fn named_verb(arguments: &[OsString]) -> String {
    let first = arguments.get(1).and_then(|word| word.to_str());
    let command = Arguments::command();
    let verb = first.and_then(|word| command.find_subcommand(word));
    verb.map_or("ringpost".to_owned(), |verb| format!("ringpost {}", verb.get_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_an_example_and_json() {
        Arguments::command().debug_assert();
        for verb in Arguments::command().get_subcommands() {
            let help = verb.clone().render_long_help().to_string();
            let example = format!("ringpost {}", verb.get_name());
            assert!(help.contains("Example") && help.contains(&example), "{help}");
            assert!(help.contains("--json"), "{help}");
        }
    }

    #[test]
    fn usage_errors_are_one_line_and_exit_64() {
        let table: &[(&[&str], &str)] = &[
            (&[], "requires a subcommand"),
            (&["sin"], "unrecognized subcommand 'sin'"),
            (&["sink"], "see 'ringpost sink --help'"),
            (&["sink", "--listen", "127.0.0.1:0", "--drop-at", "never"], "connect greeting"),
            (&["sink", "--listen", "127.0.0.1:0", "--reply", "RCPT"], "COMMAND=REPLY"),
            (&["sink", "--listen", "127.0.0.1:0", "--delay", "5x"], "ms, s, m, h"),
            (&["source", "--to", "127.0.0.1:1"], "--messages"),
        ];
        for (words, expected) in table {
            let words = ["ringpost"].iter().chain(*words).map(OsString::from);
            let error = run(words).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage);
            let line = error.to_string();
            assert!(line.contains(expected) && line.contains("--help"), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
