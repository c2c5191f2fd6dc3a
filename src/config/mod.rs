//! The configuration: TOML to one immutable snapshot with an epoch; the smtproutes file; tuning
//! profiles.
//!
//! Owns: every key with its bounds and default, and the decision whether a configuration may run.
//! All refusals happen at load, none later: a [`Snapshot`] that exists is valid. Never: sockets;
//! what the settings do (each folder owns the type of its own).
//!
//! Diagnostics: [`Problem`]s, all of them at once, each `file:line:column: what, and what is
//! allowed`. An unknown key names the nearest known one; a value whose part does not exist yet
//! says "not supported yet".
//!
//! Limits: the main file and a tuning profile [`FILE_OCTETS_MAX`], the smtproutes file
//! [`smtproutes::FILE_OCTETS_MAX`].

use std::path::Path;

use toml::de::DeTable;

mod net;
mod problem;
mod read;
mod reference;
mod section;
pub mod smtproutes;
mod snapshot;
pub mod tuning;
mod value;

#[cfg(test)]
mod tests;

pub use net::IpNet;
pub use problem::Problem;
pub use reference::{default_toml, render};
pub use snapshot::{
    AdminSettings, CommitMode, DEFAULT_PROFILE, Destinations, DnsSettings, IoMode,
    ListenerSettings, Snapshot, Store,
};
pub use tuning::Tuning;
pub use value::{show_duration, show_size};

use problem::{Report, Source};
use read::Place;
use section::Section;

/// Longest configuration file and tuning profile, in octets.
pub const FILE_OCTETS_MAX: u64 = 16 << 20;

/// Loads the configuration of `path`, or the defaults without one, with its routes and its
/// tuning profile. Relative paths in it start from its own folder, those of the defaults from
/// the current one.
///
/// # Errors
/// Everything that is wrong, in the order of file and line; never an empty list.
pub fn load(path: Option<&Path>) -> Result<Snapshot, Vec<Problem>> {
    let Some(path) = path else {
        return load_text(Path::new("defaults"), String::new());
    };
    let source = Source::read(path, FILE_OCTETS_MAX).map_err(|problem| vec![problem])?;
    load_source(path, &source)
}

/// As [`load`], from `text` that stands for the content of `file`.
///
/// # Errors
/// See [`load`].
pub fn load_text(file: &Path, text: String) -> Result<Snapshot, Vec<Problem>> {
    load_source(file, &Source::new(file, text))
}

fn load_source(file: &Path, source: &Source) -> Result<Snapshot, Vec<Problem>> {
    let (tree, errors) = DeTable::parse_recoverable(source.text());
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        let problem = source.problem(offset, error.message().replace('\n', " "));
        // What follows in the same line is mostly the echo of the first.
        if !problems.iter().any(|earlier| earlier.line == problem.line) {
            problems.push(problem);
        }
    }
    let report = Report::default();
    let base = file.parent().unwrap_or(Path::new(""));
    let place = Place { base, report: &report };
    let snapshot = read::snapshot(&place, Section::top(&report, source, tree.get_ref()));
    let meaning = report.into_problems().into_iter();
    let broken_lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
    problems.extend(meaning.filter(|p| p.file != file || !broken_lines.contains(&p.line)));
    problems.sort();
    if problems.is_empty() { Ok(snapshot) } else { Err(problems) }
}
