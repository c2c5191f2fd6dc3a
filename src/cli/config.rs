//! `ringpost config`: the reference configuration, and the values in force.
//!
//! Owns: the choice between the two. Never: keys and values.

use std::path::PathBuf;

use super::{CliError, Exit, check, print};
use crate::config;

/// Print the reference configuration: every key with its default and its reason.
///
/// With --effective, print the values that a configuration file leads to, defaults included. What
/// is printed can be used as a configuration file.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  ringpost config > ringpost.toml
  ringpost config --effective --config ringpost.toml
  ringpost config --effective --config ringpost.toml --json")]
pub(super) struct Arguments {
    /// Print the values of the file of --config, or the defaults without one
    #[arg(long)]
    effective: bool,
    /// The configuration file; implies --effective
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let text = if self.effective || self.config.is_some() {
            match config::load(self.config.as_deref()) {
                Ok(snapshot) => config::render(&snapshot),
                Err(problems) => return Ok(check::refuse(&problems)),
            }
        } else {
            config::default_toml().to_owned()
        };
        if !self.json {
            return print(text.trim_end());
        }
        let value: serde_json::Value =
            toml::from_str(&text).map_err(|error| CliError::new(Exit::Software, error))?;
        print(value)
    }
}
