//! Laws on who may name what: imports, purity, unsafe code, runtimes, and the key to "delivered".

use super::Finding;
use super::source::{Named, Source};

/// What the whole crate may use.
const LEAVES: [&str; 2] = ["mail", "limits"];

/// The folders without sockets, files, threads, clocks and unsafe code.
const PURE: [&str; 5] = ["mail", "smtp", "route", "schedule", "settle"];

const FOLDERS: [&str; 13] = [
    "limits",
    "mail",
    "smtp",
    "queue",
    "route",
    "schedule",
    "telemetry",
    "config",
    "settle",
    "shard",
    "control",
    "lab",
    "cli",
];

/// May `folder` import `other`?
fn may_import(folder: &str, other: &str) -> bool {
    let leaf = LEAVES.contains(&other);
    let part = ["smtp", "queue", "route", "schedule", "telemetry"].contains(&other);
    match folder {
        "limits" | "lib" => false,
        "mail" => other == "limits",
        "smtp" | "queue" | "route" | "schedule" | "telemetry" => leaf,
        "config" => leaf || part,
        "settle" => leaf || ["queue", "schedule"].contains(&other),
        "shard" => leaf || part || ["config", "settle"].contains(&other),
        "control" | "lab" => leaf || part || ["config", "settle", "shard"].contains(&other),
        "cli" => true,
        "main" => other == "cli",
        _ => false,
    }
}

/// The law of imports. Tests of the folders that are not pure may use what they need.
pub(crate) fn imports(source: &Source) -> Vec<Finding> {
    let Some(folder) = source.folder() else { return vec![] };
    let depth = source.module().len();
    let mut found = Vec::new();
    for named in source.named() {
        let in_test = source.test[named.line];
        if in_test && !PURE.contains(&folder) {
            continue;
        }
        let whole_file = source.path.ends_with("tests.rs") || source.path.contains("/tests/");
        let inline = usize::from(in_test && !whole_file);
        let Some(other) = top_folder(&named, depth, inline) else { continue };
        if FOLDERS.contains(&other) && other != folder && !may_import(folder, other) {
            let remedy = format!("{folder} may not import {other}; see the law in src/lib.rs");
            found.push(source.finding(named.line, "imports", remedy));
        }
    }
    found
}

/// The folder that a path leads to from the root of the crate.
fn top_folder(named: &Named, depth: usize, inline: usize) -> Option<&str> {
    let first = named.parts.first()?.as_str();
    let supers = named.parts.iter().take_while(|part| *part == "super").count();
    let place = match first {
        "crate" | "ringpost" => 1,
        "super" if supers >= depth + inline => supers,
        _ => return None,
    };
    named.parts.get(place).map(String::as_str)
}

/// No sockets, files, threads, clocks, runtimes or unsafe code in the pure folders.
pub(crate) fn purity(source: &Source) -> Vec<Finding> {
    if !source.folder().is_some_and(|folder| PURE.contains(&folder)) {
        return vec![];
    }
    let mut found = Vec::new();
    for named in source.named() {
        if let Some(what) = impure(&named, source.test[named.line]) {
            let remedy = format!("no {what} here: take it as an argument or do it in shard/io");
            found.push(source.finding(named.line, "purity", remedy));
        }
    }
    found
}

fn impure(named: &Named, in_test: bool) -> Option<String> {
    const WORDS: [&str; 12] = [
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "Instant",
        "SystemTime",
        "tokio",
        "tokio_uring",
        "io_uring",
        "libc",
        "rustix",
        "socket2",
    ];
    const STD: [&str; 5] = ["fs", "thread", "process", "env", "os"];
    let word = named.parts.iter().find(|part| WORDS.contains(&part.as_str()) || *part == "unsafe");
    if let Some(word) = word {
        return Some(word.clone());
    }
    let [first, second, ..] = named.parts.as_slice() else { return None };
    let thread_in_test = in_test && second == "thread";
    let banned = first == "std" && STD.contains(&second.as_str()) && !thread_in_test;
    banned.then(|| format!("std::{second}"))
}

/// Unsafe code stands in the queue's segments and in shard/io, and in the test that starts an
/// engine behind a system call filter; nowhere else.
pub(crate) fn unsafe_code(source: &Source) -> Vec<Finding> {
    let allowed = ["src/queue/segment", "src/shard/io/", "tests/common/seccomp.rs"];
    if allowed.iter().any(|place| source.path.starts_with(place)) {
        return vec![];
    }
    let remedy = "move it behind queue/segment or shard/io, or do without";
    source.where_named("unsafe", remedy, |named| named.parts[0] == "unsafe")
}

/// Each runtime is named by its own files only.
pub(crate) fn runtime(source: &Source) -> Vec<Finding> {
    if !source.is_engine() {
        return vec![];
    }
    let path = source.path.as_str();
    let mut found = Vec::new();
    if !path.starts_with("src/shard/io/ring") {
        let remedy = "only src/shard/io/ring names the ring's runtime: go through shard/io";
        let ring = |named: &Named| ["tokio_uring", "io_uring"].contains(&named.parts[0].as_str());
        found.extend(source.where_named("runtime", remedy, ring));
    }
    let nets = ["src/shard/io/epoll", "src/control/", "src/lab/"];
    if !nets.iter().any(|place| path.starts_with(place)) {
        let remedy = "only src/shard/io/epoll, control and lab name tokio::net: use shard/io";
        let net = |named: &Named| named.parts.starts_with(&["tokio".into(), "net".into()]);
        found.extend(source.where_named("runtime", remedy, net));
    }
    found
}

/// Only the SMTP client, which saw the reply, makes the key to "delivered".
pub(crate) fn acceptance(source: &Source) -> Vec<Finding> {
    if source.path.starts_with("src/smtp/client") {
        return vec![];
    }
    let remedy = "only src/smtp/client sees the reply to end of data: pass its Accepted on";
    let made = |named: &Named| {
        named.parts.len() > 1 && named.parts.last().is_some_and(|part| part == "from_end_of_data")
    };
    let mut found = source.where_named("acceptance", remedy, made);
    found.retain(|finding| !source.test[finding.line - 1]);
    found
}

impl Source {
    /// A finding on a line counted from 0.
    pub(crate) fn finding(
        &self,
        line: usize,
        rule: &'static str,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { path: self.path.clone(), line: line + 1, rule, remedy: remedy.into() }
    }

    fn where_named(
        &self,
        rule: &'static str,
        remedy: &str,
        broken: impl Fn(&Named) -> bool,
    ) -> Vec<Finding> {
        let named = self.named();
        let broken = named.iter().filter(|named| broken(named));
        broken.map(|named| self.finding(named.line, rule, remedy)).collect()
    }
}
