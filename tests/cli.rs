//! The command line: help, exit codes of sysexits(3), one-line errors, JSON.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Engine, Peer, Setup, ringpost};
use serde_json::Value;

const VERBS: [&[&str]; 8] = [
    &["serve"],
    &["check"],
    &["config"],
    &["status"],
    &["route"],
    &["route", "explain"],
    &["sink"],
    &["source"],
];

#[test]
fn every_verb_has_help_with_an_example() {
    let folder = tempfile::tempdir().unwrap();
    for verb in VERBS {
        let words: Vec<&str> = verb.iter().copied().chain(["--help"]).collect();
        let (code, help, stderr) = ringpost(&words, folder.path());
        assert_eq!((code, stderr.as_str()), (0, ""), "{verb:?}");
        assert!(help.contains("Example") && help.contains("--json"), "{help}");
        assert!(help.contains(&format!("ringpost {}", verb.join(" "))), "{help}");
    }
    let (code, version, _) = ringpost(&["--version"], folder.path());
    assert_eq!((code, version.trim()), (0, concat!("ringpost ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn wrong_arguments_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let table: [(&[&str], i32, &str); 9] = [
        (&[], 64, "requires a subcommand"),
        (&["serv"], 64, "unrecognized subcommand"),
        (&["check", "file.toml"], 64, "unexpected argument"),
        (&["config", "--effectiv"], 64, "ringpost config --help"),
        (&["route"], 64, "subcommand"),
        (&["route", "explain", "nobody"], 64, "USER@DOMAIN"),
        (&["status", "--config", "missing.toml"], 78, "missing.toml:1:1: cannot read"),
        (&["serve", "--config", "missing.toml"], 78, "missing.toml:1:1: cannot read"),
        (&["status"], 69, "ringpost serve"),
    ];
    for (words, expected, piece) in table {
        let (code, stdout, stderr) = ringpost(words, folder.path());
        assert_eq!((code, stdout.as_str()), (expected, ""), "{words:?}: {stderr}");
        assert!(stderr.starts_with("ringpost: ") && stderr.contains(piece), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// Five errors in three files, with the place of each.
const WRONG: &str = "\
hostnam = \"out.test\"
shards = 9999
routes = \"smtproutes\"
[[listener]]
address = \"nowhere\"
  tls = \"starttls\"
";

#[test]
fn check_tells_every_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.toml"), WRONG).unwrap();
    fs::write(folder.path().join("smtproutes"), "# routes\nALL 192.0.2.1/pri=x\n").unwrap();
    let (code, stdout, stderr) = ringpost(&["check", "--config", "r.toml"], folder.path());
    assert_eq!((code, stdout.as_str()), (78, ""));
    let places =
        ["r.toml:1:1: ", "r.toml:2:10: ", "r.toml:5:11: ", "r.toml:6:9: ", "smtproutes:2:"];
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), places.len(), "{stderr}");
    for (line, place) in lines.iter().zip(places) {
        assert!(line.starts_with(place), "{line} should begin with {place}");
        assert!(line.contains("allowed: "), "{line}");
    }
    assert!(lines[0].contains("did you mean hostname?"), "{stderr}");
    assert!(lines[3].contains("not supported yet"), "{stderr}");

    let (code, json, _) = ringpost(&["check", "--config", "r.toml", "--json"], folder.path());
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &told["good"]), (78, &false.into()));
    assert_eq!(told["problems"].as_array().unwrap().len(), 5);
    assert_eq!(
        (&told["problems"][1]["line"], &told["problems"][1]["column"]),
        (&2.into(), &10.into())
    );
    for words in [&["serve", "--config", "r.toml"][..], &["config", "--config", "r.toml"]] {
        let (code, stdout, stderr) = ringpost(words, folder.path());
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (78, "", 5));
        assert!(stderr.lines().all(|line| line.starts_with("ringpost: ")), "{stderr}");
    }
    assert!(!folder.path().join("spool").exists(), "a refused start leaves nothing behind");
}

#[test]
fn a_good_configuration_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.toml"), "routes = \"smtproutes\"\n").unwrap();
    fs::write(folder.path().join("smtproutes"), "a.test 192.0.2.1\n").unwrap();
    let (code, stdout, stderr) = ringpost(&["check", "--config", "r.toml"], folder.path());
    assert_eq!((code, stdout.as_str()), (0, "r.toml: good (1 listener, 1 route)\n"));
    assert!(stderr.starts_with("ringpost: note: ") && stderr.contains("451 4.4.4"), "{stderr}");
    fs::write(folder.path().join("smtproutes"), "a.test 192.0.2.1\nALL 192.0.2.2\n").unwrap();
    let (code, stdout, stderr) = ringpost(&["check", "--config", "r.toml"], folder.path());
    assert_eq!((code, stdout.lines().count(), stderr.as_str()), (0, 1, ""));
    let (code, json, _) = ringpost(&["check", "--json"], folder.path());
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &told["good"]), (0, &true.into()));
    assert!(told["notes"][0].as_str().unwrap().contains("all mail is refused"));
}

#[test]
fn what_config_prints_is_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.toml"), "shards = 3\n[admin]\naddress = \"127.0.0.1:8026\"\n")
        .unwrap();
    for (words, name) in [
        (&["config"][..], "reference.toml"),
        (&["config", "--effective"], "defaults.toml"),
        (&["config", "--effective", "--config", "r.toml"], "effective.toml"),
    ] {
        let (code, text, stderr) = ringpost(words, folder.path());
        assert_eq!((code, stderr.as_str()), (0, ""));
        fs::write(folder.path().join(name), &text).unwrap();
        let (code, _, stderr) = ringpost(&["check", "--config", name], folder.path());
        assert_eq!(code, 0, "{stderr}");
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let (code, json, _) = ringpost(&words, folder.path());
        assert_eq!(code, 0);
        let _valid: Value = serde_json::from_str(&json).unwrap();
    }
    let effective = fs::read_to_string(folder.path().join("effective.toml")).unwrap();
    assert!(
        effective.contains("shards = 3") && effective.contains("127.0.0.1:8026"),
        "{effective}"
    );
}

/// Waits until `file` holds `text`.
fn wait_for(file: &Path, text: &str) {
    let begun = Instant::now();
    while !fs::read_to_string(file).unwrap_or_default().contains(text) {
        assert!(begun.elapsed() < Duration::from_secs(20), "no '{text}' in {}", file.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_engine_that_nobody_listens_to_goes_on() {
    for deaf in ["stdout", "stderr"] {
        let folder = tempfile::tempdir().unwrap();
        let address = "address = \"127.0.0.1:0\"\n";
        let text = format!(
            "shards = 1\nspool_max_size = \"64MiB\"\n[log]\nmail = \"mail_logs\"\n\
             [[listener]]\n{address}[admin]\n{address}"
        );
        fs::write(folder.path().join("r.toml"), text).unwrap();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let (out, err) = match deaf {
            "stdout" => (Stdio::from(full()), Stdio::piped()),
            _ => (Stdio::piped(), Stdio::from(full())),
        };
        let mut engine = Command::new(env!("CARGO_BIN_EXE_ringpost"))
            .args(["serve", "--config", "r.toml"])
            .current_dir(folder.path())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        // What is printed last at the start is printed when signals are caught.
        let (heard, last): (Box<dyn Read>, _) = match deaf {
            "stdout" => (Box::new(engine.stderr.take().unwrap()), "cannot write the result"),
            _ => (Box::new(engine.stdout.take().unwrap()), "admin on "),
        };
        let mut heard = BufReader::new(heard);
        let mut line = String::new();
        while !line.contains(last) {
            line.clear();
            assert!(heard.read_line(&mut line).unwrap() > 0, "the engine has ended ({deaf})");
        }
        let signal = |name: &str| {
            Command::new("kill").args(["-s", name, &engine.id().to_string()]).status().unwrap()
        };
        assert!(signal("HUP").success());
        wait_for(&folder.path().join("mail_logs"), "configuration 2 is in force");
        fs::write(folder.path().join("r.toml"), "nonsense = 1").unwrap();
        assert!(signal("HUP").success());
        wait_for(&folder.path().join("mail_logs"), "reload failed with 1 error;");
        assert!(signal("TERM").success());
        drop(heard);
        assert_eq!(engine.wait().unwrap().code(), Some(0), "{deaf}");
    }
}

#[test]
fn a_start_that_cannot_work_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let table = [
        ("[log]\nmail = \"none/mail_logs\"\n", 73, "cannot write the mail log none/mail_logs"),
        ("[log]\nmail = \".\"\n", 73, "[log] mail"),
        ("spool = \"r.toml/spool\"\n[log]\nmail = \"off\"\n", 74, "r.toml/spool"),
    ];
    for (text, expected, piece) in table {
        let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
        fs::write(folder.path().join("r.toml"), format!("{text}{admin}")).unwrap();
        let (code, stdout, stderr) = ringpost(&["serve", "--config", "r.toml"], folder.path());
        assert_eq!((code, stdout.as_str()), (expected, ""), "{stderr}");
        let told: Vec<&str> = stderr.lines().filter(|line| !line.contains(" note: ")).collect();
        assert!(told.len() == 1 && told[0].contains(piece), "{stderr}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
    }
}

/// The block of `README.md` that begins with ``` and `kind`, and holds `text`.
fn readme_block(kind: &str, text: &str) -> String {
    let readme = include_str!("../README.md");
    let blocks = readme.split("\n```").skip(1).step_by(2);
    let found = blocks
        .filter_map(|block| block.split_once('\n'))
        .find(|(head, block)| *head == kind && block.contains(text));
    found.unwrap_or_else(|| panic!("no block with {text}")).1.to_owned() + "\n"
}

#[test]
fn the_configuration_of_the_readme_is_good() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ringpost.toml"), readme_block("toml", "[[listener]]")).unwrap();
    for routes in ["ALL    127.0.0.1:2601", "ALL             10.0.0.1"] {
        fs::write(folder.path().join("smtproutes"), readme_block("", routes)).unwrap();
        let words = ["check", "--config", "ringpost.toml"];
        let (code, _, stderr) = ringpost(&words, folder.path());
        assert_eq!((code, stderr.as_str()), (0, ""));
    }
}

#[test]
fn check_looks_at_the_spool_and_changes_nothing() {
    let busy = Peer::start(|peer, _| peer.say("431 4.3.1 full"));
    let mut engine = Engine::start(&Setup::new("epoll", format!("ALL {}\n", busy.address)));
    engine.send("a@client.test", &["b@one.test", "c@two.test"]);
    engine.wait_log_count("queued for delivery", 1);
    engine.stop();
    let folder = engine.path("");
    let words = ["check", "--config", "ringpost.toml", "--spool"];
    let (code, stdout, stderr) = ringpost(&words, &folder);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains(" 2 pending, 0 held, "), "{stdout}");

    let shard = engine.path("spool/shard-00");
    fs::write(shard.join("notes.txt"), "who put this here?").unwrap();
    let (code, stdout, _) = ringpost(&words, &folder);
    assert_eq!(code, 65, "{stdout}");
    assert!(stdout.contains("notes.txt: not a segment"), "{stdout}");
    let (code, stdout, _) = ringpost(&[&words[..], &["--json"]].concat(), &folder);
    let seen: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &seen["spool"]["pending"]), (65, &2.into()), "{stdout}");
    assert!(shard.join("notes.txt").exists());

    let file = engine.path("spool/spool");
    let sound = fs::read(&file).unwrap();
    fs::write(&file, "junk").unwrap();
    for words in [&words[..], &["serve", "--config", "ringpost.toml"]] {
        let (code, _, stderr) = ringpost(words, &folder);
        assert_eq!(code, 65, "{stderr}");
        assert!(stderr.contains("damaged") && stderr.lines().count() == 1, "{stderr}");
    }
    fs::write(&file, sound).unwrap();

    fs::rename(engine.path("spool"), engine.path("elsewhere")).unwrap();
    let (code, _, stderr) = ringpost(&words, &folder);
    assert_eq!(code, 66, "{stderr}");
    assert!(stderr.contains("spool"), "{stderr}");

    fs::write(engine.path("spool"), "a file").unwrap();
    let (code, _, stderr) = ringpost(&["serve", "--config", "ringpost.toml"], &folder);
    assert_eq!(code, 73, "{stderr}");
    assert!(stderr.contains("spool is no folder"), "{stderr}");
}
