//! How a command ends.
//!
//! Owns: the exit codes of sysexits(3) and the error that carries one. Never: the decision which.

use std::fmt;
use std::process::ExitCode;

use crate::control::terminal::tell;

/// Exit codes, as sysexits(3) means them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// `EX_OK`: done.
    Ok = 0,
    /// `EX_USAGE`: wrong arguments.
    Usage = 64,
    /// `EX_DATAERR`: what the user gave as data is wrong.
    DataErr = 65,
    /// `EX_NOINPUT`: a file to read is missing or cannot be read.
    NoInput = 66,
    /// `EX_UNAVAILABLE`: a service or peer is not there, or refuses.
    Unavailable = 69,
    /// `EX_SOFTWARE`: a fault of this program.
    Software = 70,
    /// `EX_OSERR`: the system gives no thread, descriptor or memory.
    OsErr = 71,
    /// `EX_CANTCREAT`: an output file cannot be made.
    CantCreate = 73,
    /// `EX_IOERR`: reading or writing failed.
    IoErr = 74,
    /// `EX_TEMPFAIL`: not now; the same command may succeed later.
    TempFail = 75,
    /// `EX_NOPERM`: not allowed.
    NoPerm = 77,
    /// `EX_CONFIG`: the configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed, and what to do, in one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CliError {
    exit: Exit,
    line: String,
}

impl CliError {
    /// An error; line ends in `what` become blanks.
    pub fn new(exit: Exit, what: impl fmt::Display) -> CliError {
        let text = what.to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        CliError { exit, line: words.join(" ") }
    }

    /// What clap found wrong, without its further paragraphs; `verb` is whose help explains it.
    pub(super) fn usage(error: &clap::Error, verb: &str) -> CliError {
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let what = "'ringpost' requires a subcommand; see 'ringpost --help'";
            return CliError::new(Exit::Usage, what);
        }
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let first = text.split("\n\n").next().unwrap_or(text);
        CliError::new(Exit::Usage, format!("{first}; see '{verb} --help'"))
    }

    /// The code to exit with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the line to stderr and gives the code to exit with.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        tell(self);
        self.exit.into()
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for CliError {}
