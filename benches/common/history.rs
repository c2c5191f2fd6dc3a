//! What was measured at which commit: `benches/history.ndjson`, one line of JSON per commit.
//!
//! Owns: the file. Never: names of hosts or paths; a machine is told by its class.

#![allow(unreachable_pub, reason = "a module that several benches include as their own")]

use std::fs;
use std::process::Command;

use serde_json::{Map, Value, json};

/// The file, beside the benches.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/history.ndjson");

/// Puts `figures` under `bench` into the line of this commit, in place of what stood there.
pub fn record(bench: &str, figures: Value) {
    let commit = commit();
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let mut lines: Vec<Map<String, Value>> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).expect("a line of history.ndjson is JSON"))
        .collect();
    let own = lines.iter_mut().find(|line| line.get("commit") == Some(&json!(commit)));
    let line = match own {
        Some(line) => line,
        None => {
            lines.push(Map::new());
            lines.last_mut().expect("one was pushed just now")
        }
    };
    line.insert("commit".to_owned(), json!(commit));
    line.insert("date".to_owned(), json!(jiff::Zoned::now().date().to_string()));
    line.insert("machine".to_owned(), json!(machine()));
    let known = line.entry(bench).or_insert_with(|| json!({}));
    match (known, figures) {
        (Value::Object(known), Value::Object(figures)) => known.extend(figures),
        (known, figures) => *known = figures,
    }
    let text: String =
        lines.into_iter().map(|line| Value::Object(line).to_string() + "\n").collect();
    fs::write(FILE, text).expect("benches/history.ndjson can be written");
}

/// The commit, with `+` behind it when files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output();
        output
            .ok()
            .filter(|o| o.status.success())
            .map(|o| String::from_utf8_lossy(&o.stdout).into())
    };
    let Some(commit): Option<String> = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed: String =
        git(&["status", "--porcelain", "--", "src", "Cargo.lock"]).unwrap_or_default();
    let mark = if changed.is_empty() { "" } else { "+" };
    format!("{}{mark}", commit.trim())
}

/// Processors, kind of processor, kernel.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: Vec<&str> = kernel.trim().split(['.', '-']).take(2).collect();
    format!("{processors} x {}, Linux {}", std::env::consts::ARCH, kernel.join("."))
}
