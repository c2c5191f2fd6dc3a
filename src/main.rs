//! The `ringpost` command: arguments to a command, its result to an exit code.

use std::process::ExitCode;

use ringpost::cli::{self, CliError};

/// Small objects are made on one core and freed on another all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> Result<ExitCode, CliError> {
    cli::run(std::env::args_os())
}
