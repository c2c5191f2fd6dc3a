//! Planted violations: what each rule must report, and what looks like one and is none.

use super::source::Source;
use super::{FILE_RULES, TREE_RULES};

/// A rule, a file, its text, and the lines that the rule must report.
type Planted = (&'static str, &'static str, &'static str, &'static [usize]);

const IMPORTS: &[Planted] = &[
    ("imports", "src/mail/x.rs", "use crate::smtp::command::Command;\n", &[1]),
    ("imports", "src/smtp/x.rs", "\nuse crate::{mail::Mid, queue::{Queue, Safe}};\n", &[2, 2]),
    ("imports", "src/smtp/client/x.rs", "fn f(x: super::super::super::queue::Safe) {}\n", &[1]),
    (
        "imports",
        "src/route/x.rs",
        "#[cfg(test)]\nmod tests {\n use super::super::super::lab::A;\n}\n",
        &[3],
    ),
    ("imports", "src/shard/x.rs", "use crate::control::Api;\nuse crate::lab;\n", &[1, 2]),
    ("imports", "src/control/x.rs", "use crate::cli::run;\n", &[1]),
    ("imports", "src/settle/x.rs", "use crate::route::Host;\n", &[1]),
    ("imports", "src/limits.rs", "use crate::mail::Mid;\n", &[1]),
    ("imports", "src/main.rs", "fn main() { ringpost::shard::run() }\n", &[1]),
    ("imports", "src/mail/x.rs", "use crate::limits::A;\nuse super::ids::Mid;\n", &[]),
    ("imports", "src/settle/x.rs", "use crate::{mail, queue::Safe, schedule::Lane};\n", &[]),
    ("imports", "src/cli/x.rs", "use crate::{control, lab, shard, telemetry};\n", &[]),
    ("imports", "src/smtp/x.rs", "// crate::queue\nconst A: &str = \"crate::queue::B\";\n", &[]),
    ("imports", "src/smtp/client/x.rs", "use super::super::command;\nuse crate::smtp::x;\n", &[]),
    ("imports", "src/shard/x.rs", "#[cfg(test)]\nmod tests { use crate::lab::Sink; }\n", &[]),
];

const PURITY: &[Planted] = &[
    ("purity", "src/mail/x.rs", "use std::net::{IpAddr, TcpStream};\n", &[1]),
    ("purity", "src/route/x.rs", "use std::{fs, time::Instant};\n", &[1, 1]),
    ("purity", "src/settle/x.rs", "fn f() { std::thread::yield_now(); }\n", &[1]),
    (
        "purity",
        "src/smtp/x.rs",
        "fn f() { let t = SystemTime::now(); tokio::spawn(g); }\n",
        &[1, 1],
    ),
    ("purity", "src/schedule/x.rs", "fn f() { unsafe { g() } }\n", &[1]),
    (
        "purity",
        "src/mail/x.rs",
        "#[cfg(test)]\nmod tests {\n fn f() { std::fs::read(\"x\"); }\n}\n",
        &[3],
    ),
    ("purity", "src/mail/x.rs", "#[cfg(test)]\nmod tests {\n use std::thread;\n}\n", &[]),
    ("purity", "src/mail/x.rs", "use std::net::{IpAddr, SocketAddr};\n// Instant\n", &[]),
    ("purity", "src/shard/x.rs", "use std::fs;\n", &[]),
];

const LAWS: &[Planted] = &[
    ("unsafe", "src/shard/x.rs", "unsafe fn f() {}\n", &[1]),
    ("unsafe", "src/queue/index.rs", "fn f() {\n    unsafe { g() }\n}\n", &[2]),
    ("unsafe", "src/queue/segment/map.rs", "fn f() { unsafe { g() } }\n", &[]),
    ("unsafe", "src/shard/io/ring.rs", "#![allow(unsafe_code)]\nunsafe fn f() {}\n", &[]),
    ("unsafe", "src/shard/x.rs", "#![deny(unsafe_code)] // unsafe\n", &[]),
    ("runtime", "src/shard/delivery.rs", "use tokio_uring::net::TcpStream;\n", &[1]),
    ("runtime", "src/shard/io/epoll.rs", "fn f() { io_uring::opcode::Nop::new() }\n", &[1]),
    ("runtime", "src/shard/pool.rs", "use tokio::{net::TcpStream, time};\n", &[1]),
    ("runtime", "src/shard/io/ring.rs", "use tokio_uring::net;\nuse io_uring::types;\n", &[]),
    ("runtime", "src/lab/sink.rs", "use tokio::net::TcpListener;\n", &[]),
    ("runtime", "src/shard/pool.rs", "use tokio::sync::Notify;\n", &[]),
    ("acceptance", "src/settle/x.rs", "fn f() { mail::Accepted::from_end_of_data(r) }\n", &[1]),
    ("acceptance", "src/smtp/client/x.rs", "fn f() { Accepted::from_end_of_data(r) }\n", &[]),
    ("acceptance", "src/mail/outcome.rs", "pub fn from_end_of_data(r: Reply) {}\n", &[]),
    ("acceptance", "src/settle/tests.rs", "fn f() { Accepted::from_end_of_data(r) }\n", &[]),
];

const WORDS: &[Planted] = &[
    ("man-page", "src/mail/x.rs", "use crate::limits;\n", &[1]),
    ("man-page", "src/mail/x.rs", "", &[1]),
    ("man-page", "src/mail/x.rs", "//! What it owns.\n", &[]),
    ("unfinished", "src/mail/x.rs", "fn f() { todo!() }\n", &[1]),
    ("unfinished", "src/mail/x.rs", "fn f() { unimplemented!(); dbg!(1); }\n", &[1, 1]),
    ("unfinished", "tests/x.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}\n", &[2]),
    ("unfinished", "benches/x.rs", "// TODO: later\n/* FIXME */\n", &[1, 2]),
    ("unfinished", "src/mail/x.rs", "const A: &str = \"TODO\"; fn ignore() {} // todo list\n", &[]),
    ("unwrap", "src/mail/x.rs", "fn f() { g().unwrap(); }\n", &[1]),
    ("unwrap", "src/mail/x.rs", "fn f() {\n    g()\n        .unwrap()\n}\n", &[3]),
    ("unwrap", "src/mail/x.rs", "#[cfg(test)]\nmod tests {\n fn f() { g().unwrap() }\n}\n", &[]),
    ("unwrap", "src/mail/x.rs", "#[cfg(test)]\nmod t {}\nfn f() { g().unwrap() }\n", &[3]),
    ("unwrap", "src/mail/x.rs", "fn f() { g().unwrap_or(1); } // .unwrap()\n", &[]),
    ("print-macro", "src/cli/x.rs", "fn f() {\n println!();\n eprintln!(\"a\");\n}\n", &[2, 3]),
    ("print-macro", "src/cli/x.rs", "fn f() { print(1); } // println!\n", &[]),
    ("print-macro", "tests/x.rs", "fn f() { println!() }\n", &[]),
    ("file-table", "src/x/mod.rs", "//! | file |\n//! | `a` |\nmod a;\npub mod b;\n", &[4]),
    ("file-table", "src/x/mod.rs", "//! | file |\n//! | [`a`] |\npub mod a;\n", &[]),
    ("file-table", "src/x/mod.rs", "//! a folder\nmod b;\n", &[]),
    ("ascii", "src/mail/x.rs", "// caf\u{e9}\nconst A: &str = \"\u{e9}\";\n", &[1, 2]),
    ("ascii", "tests/x.rs", "const A: &str = \"\u{e9}\";\n// \u{e9}\n", &[2]),
    ("ascii", "src/mail/x.rs", "const A: &str = \"\\u{e9}\";\n", &[]),
];

#[test]
fn every_file_rule_reports_what_is_planted_and_nothing_else() {
    let tables = [IMPORTS, PURITY, LAWS, WORDS];
    for (name, path, text, expected) in tables.into_iter().flatten() {
        assert_eq!(lines(name, path, text), *expected, "{name} on {path}:\n{text}");
    }
}

fn lines(name: &str, path: &str, text: &str) -> Vec<usize> {
    let (_, rule) = FILE_RULES.iter().find(|(rule, _)| *rule == name).expect("a rule of this name");
    let found = rule(&Source::new(path, text));
    assert!(found.iter().all(|finding| finding.rule == name && finding.path == path));
    found.iter().map(|finding| finding.line).collect()
}

#[test]
fn sizes_are_reported_from_the_first_too_many() {
    let x = "src/mail/x.rs";
    assert_eq!(lines("line-length", x, &format!("{}\n", "x".repeat(100))), []);
    assert_eq!(lines("line-length", x, &format!("\n{}\n", "x".repeat(101))), [2]);
    assert_eq!(lines("line-length", x, &format!("//! | {} |\n", "x".repeat(101))), []);
    let function = |n: usize| {
        format!("impl A {{\n    fn f(a: [u8; 2]) {{\n{}// no\n\n}}\n}}\n", "g();\n".repeat(n))
    };
    assert_eq!(lines("function-length", x, &function(70)), []);
    assert_eq!(lines("function-length", x, &function(71)), [2]);
    let traits =
        format!("trait T {{ fn f(); fn g(a: fn(u8) -> u8) {{\n{}}} }}\n", "h();\n".repeat(71));
    assert_eq!(lines("function-length", x, &traits), [1]);
    let file = |n: usize| format!("{}#[cfg(test)]\nmod tests {{\n\n}}\n", "//!\n".repeat(n));
    assert_eq!(lines("file-length", x, &file(600)), []);
    assert_eq!(lines("file-length", x, &file(601)), [1]);
    assert_eq!(lines("file-length", "tests/x.rs", &"\n".repeat(900)), []);
}

fn tree_lines(name: &str, files: &[(&str, &str)]) -> Vec<String> {
    let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    let (_, rule) = TREE_RULES.iter().find(|(rule, _)| *rule == name).expect("a rule of this name");
    rule(&sources).iter().map(|finding| format!("{}:{}", finding.path, finding.line)).collect()
}

#[test]
fn a_file_that_nothing_declares_is_dead() {
    let files = [
        ("src/lib.rs", "pub mod a;\npub mod b;\n// mod dead;\n"),
        ("src/main.rs", "fn main() {}\n"),
        ("src/a.rs", "mod under;\n#[cfg(test)]\nmod tests;\n#[path = \"c/odd.rs\"]\nmod odd;\n"),
        ("src/a/under.rs", ""),
        ("src/a/tests.rs", ""),
        ("src/c/odd.rs", ""),
        ("src/b/mod.rs", "pub mod deep;\n"),
        ("src/b/deep.rs", ""),
        ("src/dead.rs", "mod friend;\n"),
        ("src/dead/friend.rs", ""),
        ("tests/free.rs", ""),
    ];
    assert_eq!(tree_lines("dead-file", &files), ["src/dead.rs:1", "src/dead/friend.rs:1"]);
}

#[test]
fn a_second_proof_is_one_too_many() {
    let proof = ("src/queue/a.rs", "impl ProofOfSafety for Safe {}\n");
    let in_test = ("src/smtp/tests.rs", "impl ProofOfSafety for Fake {}\n");
    assert!(tree_lines("one-proof", &[proof, in_test]).is_empty());
    let second = ("src/shard/b.rs", "\nimpl crate::mail::ProofOfSafety for Hope {}\n");
    assert_eq!(tree_lines("one-proof", &[proof, in_test, second]), ["src/shard/b.rs:2"]);
}

#[test]
fn every_rule_has_a_plant() {
    let sized = ["line-length", "function-length", "file-length"];
    for (name, _) in FILE_RULES {
        let mut tables = [IMPORTS, PURITY, LAWS, WORDS].into_iter().flatten();
        let planted = tables.any(|(rule, _, _, expected)| rule == name && !expected.is_empty());
        assert!(planted || sized.contains(name), "{name} has no planted violation");
    }
}

#[test]
fn strings_characters_and_comments_are_no_code() {
    let text = "a \"x\\\" y\" b 'c' '\\'' 'life r#\"q \" q\"# /* z /* z */ z */ d b\"e\" // f\ng\n";
    let source = Source::new("src/mail/x.rs", text);
    let code: Vec<String> = super::source::tokens(&source.code).into_iter().map(|t| t.1).collect();
    assert_eq!(code, ["a", "b", "'", "life", "d", "g"]);
    assert!(source.prose[0].contains("// f") && !source.prose[0].contains("\"x"));
}
