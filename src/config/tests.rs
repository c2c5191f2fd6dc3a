//! The configuration as a whole: defaults, refusals, the places of errors, the reference.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits;
use crate::mail::Domain;
use crate::schedule::settings::{BounceProfile, DestinationControls, PossibleDelivery};
use crate::smtp::settings::{LongLines, Timeouts};
use crate::telemetry::settings::{LogDetail, LogTarget, LogTime};

fn load_str(text: &str) -> Result<Snapshot, Vec<Problem>> {
    load_text(Path::new("r.toml"), text.to_owned())
}

fn errors(text: &str) -> Vec<String> {
    load_str(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// The one error of a text.
fn error(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{text}: {errors:#?}");
    errors.into_iter().next().unwrap()
}

#[test]
fn five_errors_come_at_once_each_with_its_place() {
    let text = "\
hostnam = \"out.example.net\"
shards = 65
[[listener]]
address = \"localhost:25\"
max_message_size = \"25MB\"
[bounce_profile.default]
  max_retry = \"1 hour\"
[log]
mail = 5
";
    let expected = [
        "r.toml:1:1: \"hostnam\": unknown key (did you mean hostname?), allowed: hostname, spool",
        "r.toml:2:10: shards: 65 is out of range, allowed: an integer from 0 to 64",
        "r.toml:4:11: listener.address: \"localhost:25\" is no address with a port, allowed: ",
        "r.toml:5:20: listener.max_message_size: \"25MB\" is no size, allowed: a number with B,",
        "r.toml:7:15: bounce_profile.default.max_retry: \"1 hour\" is no duration, allowed: ",
        "r.toml:9:8: log.mail: wrong type: an integer, allowed: a string",
    ];
    let errors = errors(text);
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn unknown_keys_name_the_nearest_of_their_section() {
    for (text, near) in [
        ("spol = \"x\"", "spool"),
        ("[listner]", "listener"),
        ("[[listener]]\nrelay_form = []", "relay_from"),
        ("[bounce_profile.x]\nmax_retrie = 3", "max_retries"),
        ("[destination.\"a.example\"]\nmax_conections = 3", "max_connections"),
        ("[timeouts]\nehlo_ = \"3s\"", "ehlo"),
        ("[admin]\ntokenfile = \"x\"", "token_file"),
        ("[dns]\nserver = []", "servers"),
    ] {
        let error = error(text);
        assert!(error.contains(&format!("unknown key (did you mean {near}?)")), "{error}");
    }
}

#[test]
fn what_does_not_exist_yet_says_so() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:25\"\n";
    for text in [
        "user = \"mail\"",
        "group = \"mail\"",
        "[auth.partner]\nusername = \"u\"",
        &format!("{listener}tls = \"starttls\""),
        &format!("{listener}tls = \"implicit\""),
        &format!("{listener}tls_certificate = \"x\""),
        &format!("{listener}tls_key = \"x\""),
        &format!("{listener}users = \"x\""),
        &format!("{listener}require_auth = true"),
        "[bounce_profile.default]\ndelay_warning = \"4h\"",
        "[destination.default]\ntls = \"preferred\"",
        "[destination.default]\ntls = \"required-verify\"",
        "[destination.default]\nlimit_type = \"host\"",
        "[destination.default]\nip_version = \"require-v4\"",
        "[destination.default]\nrecipient_limit = { recipients = 180, minutes = 1 }",
    ] {
        let error = error(text);
        assert!(error.contains("not supported yet, allowed: "), "{error}");
    }
}

#[test]
fn every_default() {
    let s = load(None).unwrap();
    assert_eq!((s.epoch, s.shards, s.io), (1, 0, IoMode::Auto));
    assert!((1..=limits::SHARDS_MAX).contains(&s.shard_count()));
    assert!(!s.hostname.is_empty());
    assert_eq!(s.queue.spool, PathBuf::from("spool"));
    assert_eq!((s.queue.octets_max, s.queue.free_octets_min), (10 << 30, None));
    assert_eq!(s.possible_delivery, PossibleDelivery::Retry);
    assert_eq!((s.connections_out_max, s.postmaster.as_ref()), (10_000, None));
    assert_eq!(s.shutdown_final_reply, Duration::from_secs(60));
    let [listener] = &s.listeners[..] else { panic!("one listener") };
    assert_eq!(listener.address.to_string(), "127.0.0.1:2525");
    let nets: Vec<String> = listener.relay_from.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["127.0.0.0/8", "::1/128"]);
    assert!(listener.may_relay("127.3.2.1".parse().unwrap()));
    assert!(!listener.may_relay("192.0.2.1".parse().unwrap()));
    assert_eq!((listener.connections_max, listener.connections_per_ip_max), (10_000, 10_000));
    assert_eq!(
        (listener.server.message_octets_max, listener.server.recipients_max),
        (25 << 20, 1000)
    );
    assert_eq!(listener.server.long_lines, LongLines::Accept);
    assert_eq!((&*listener.bounce_profile, &listener.server.hostname), ("default", &s.hostname));
    assert_eq!(s.log.target, LogTarget::File("mail_logs".into()));
    assert_eq!((s.log.detail, s.log.time), (LogDetail::Full, LogTime::Local));
    let dns = DnsSettings { servers: None, mx_port: 25, allow_loopback: false };
    assert_eq!(s.dns, dns);
    assert_eq!(s.admin.address.to_string(), "127.0.0.1:8025");
    assert_eq!(s.admin.token_file, PathBuf::from("spool/admin.token"));
    assert_eq!(**s.bounce_profile("gone"), BounceProfile::default());
    let other = Domain::parse(b"other.example").unwrap();
    assert_eq!(**s.destinations.controls(&other), DestinationControls::default());
    assert_eq!(s.timeouts, Timeouts::default());
    assert!(s.routes.rows().is_empty() && s.routes_file.is_none());
    assert_eq!((&*s.profile, &s.tuning), ("balanced", &Tuning::default()));
}

#[test]
fn the_reference_loads_and_is_the_default() {
    let hostname = format!("hostname = \"{}\"\n", load_str("").unwrap().hostname);
    let reference = load_str(default_toml()).unwrap();
    let mut effective = render(&load_str("").unwrap());
    assert!(effective.starts_with(&hostname));
    // The reference writes the share of the file system; in force are its octets.
    let octets = reference.queue.free_octets_min.map(show_size).unwrap();
    effective = effective.replace("= \"2%\"", &format!("= \"{octets}\""));
    assert_eq!(render(&reference), effective);
}

#[test]
fn the_reference_names_every_key() {
    let reference = default_toml();
    let everywhere =
        ["tls_certificate", "tls_key", "users", "require_auth", "user", "group", "auth"];
    for section in [
        "",
        "[[listener]]\n",
        "[log]\n",
        "[dns]\n",
        "[admin]\n",
        "[bounce_profile.default]\n",
        "[destination.default]\n",
        "[timeouts]\n",
    ] {
        let error = error(&format!("{section}no_such_key = 1\n"));
        let (_, known) = error.split_once(", allowed: ").unwrap();
        for key in known.split(", ").filter(|key| !everywhere.contains(key)) {
            let shown = |line: &str| {
                let line = line.trim_start_matches('#');
                line.starts_with(&format!("{key} = "))
                    || line.starts_with(&format!("[{key}"))
                    || line.starts_with(&format!("[[{key}"))
            };
            assert!(reference.lines().any(shown), "{section}{key}");
        }
    }
}

#[test]
fn what_is_in_force_loads_again_as_the_same() {
    let text = "\
hostname = \"b\u{fc}cher.example\"
spool = \"a \\\"b\\\" \\u007f\"
profile = \"throughput\"
shards = 3
io = \"epoll\"
possible_delivery = \"delivered\"
postmaster = \"p@example.net\"
spool_min_free = \"1GiB\"
shutdown_final_reply = \"1500ms\"
[[listener]]
address = \"[::1]:2526\"
relay_from = [\"2001:db8::/32\"]
max_connections = 7
long_lines = \"reject\"
bounce_profile = \"quick one\"
[[listener]]
address = \"127.0.0.1:2527\"
relay_from = []
[log]
mail = \"-\"
detail = \"problems\"
time = \"utc\"
[dns]
servers = [\"192.0.2.53\", \"[::1]:5353\"]
allow_loopback = true
[bounce_profile.\"quick one\"]
max_retries = 0
initial_retry = \"1s\"
send_bounces = false
bounce_address = \"b@example.net\"
[destination.default]
max_connections = 20
interface = \"192.0.2.1\"
[destination.\"B\u{fc}cher.example\"]
bounce_profile = \"quick one\"
ehlo_name = \"other.example\"
[timeouts]
final = \"30s\"
";
    let first = load_str(text).unwrap();
    let rendered = render(&first);
    let second = load_str(&rendered).unwrap();
    assert_eq!(render(&second), rendered);
    assert_eq!(second.listeners, first.listeners);
    assert_eq!((&second.queue, &second.log, &second.dns), (&first.queue, &first.log, &first.dns));
    assert_eq!(second.bounce_profiles, first.bounce_profiles);
    assert_eq!(second.destinations, first.destinations);
    assert_eq!((&second.timeouts, &second.tuning), (&first.timeouts, &first.tuning));
    assert_eq!(first.listeners[0].connections_per_ip_max, 7);
    let domain = Domain::parse("b\u{fc}cher.example".as_bytes()).unwrap();
    let own = first.destinations.controls(&domain);
    assert_eq!((own.connections_max, own.interface), (20, Some("192.0.2.1".parse().unwrap())));
    assert_eq!(first.bounce_profile_for("default", &domain).retries_max, 0);
    let other = Domain::parse(b"other.example").unwrap();
    assert_eq!(first.bounce_profile_for("quick one", &other).retries_max, 0);
    assert_eq!(first.bounce_profile_for("default", &other).retries_max, 100);
}

#[test]
fn bad_values_of_every_kind() {
    for (text, words) in [
        ("spool_min_free = \"91%\"", "allowed: a size such as \"1GiB\", or \"0%\" to \"90%\""),
        ("spool_max_size = \"1MiB\"", "is out of range, allowed: "),
        ("hostname = \"-x-\"", "is no host name, allowed: "),
        ("spool = \"\"", "allowed: a string with content"),
        ("profile = \"balance\"", "unknown profile \"balance\" (did you mean balanced?)"),
        ("profile = \"no/such.conf\"", "no/such.conf:1:1: cannot read: "),
        ("routes = \"no_such_file\"", "no_such_file:1:1: cannot read: "),
        ("postmaster = \"x\"", "is no address"),
        ("io = \"uring\"", "\"uring\" is unknown, allowed: \"auto\", \"ring\", \"epoll\""),
        ("listener = 1", "wrong type: an integer, allowed: sections [[listener]]"),
        ("[listener]\naddress = \"127.0.0.1:25\"", "wrong type: a table, allowed: sections"),
        ("log = \"x\"", "wrong type: a string, allowed: a section [log]"),
        ("[bounce_profile]\nmax_retries = 1", "allowed: sections [bounce_profile.NAME]"),
        (
            "[[listener]]\nrelay_from = [\"127.0.0.1/8\"]",
            "bits behind its prefix (not 127.0.0.0/8)",
        ),
        ("[[listener]]\nrelay_from = \"x\"", "allowed: an array of nets such as"),
        ("[[listener]]\nbounce_profile = \"defualt\"", "(did you mean default?), allowed: default"),
        ("[[listener]]\n[[listener]]", "127.0.0.1:2525 is taken by a listener above"),
        ("[[listener]]\naddress = \"127.0.0.1:8025\"", "8025 is taken by a listener, allowed: one"),
        ("[destination.\"a b\"]", "\"a b\" is no domain"),
        ("[destination.\"A.x\"]\n[destination.\"a.x\"]", "a.x has two sections"),
        ("[bounce_profile.x]\ninitial_retry = \"2h\"", "longer than max_retry"),
        ("[bounce_profile.x]\ndelay_warning = \"on\"", "\"on\" is unknown, allowed: \"off\""),
        ("[destination.default]\ninterface = \"eth0\"", "\"eth0\" is no address"),
        ("[timeouts]\nconnect = \"0s\"", "is out of range"),
        ("[dns]\nmx_port = 0", "0 is out of range, allowed: an integer from 1 to 65535"),
        ("[dns]\nallow_loopback = \"no\"", "allowed: true or false"),
        ("[dns]\nservers = [\"192.0.2.1\", \"ns.example\"]", "r.toml:2:25: dns.servers: \"ns.ex"),
        ("\"a\\u001bb\" = 1", "\"a\\x1bb\": unknown key"),
    ] {
        let error = error(text);
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn syntax_errors_do_not_hide_the_others() {
    let errors = errors("shards = 99\nspool = \nhostname = \"x y\"\n[log\nmail = 1\n");
    assert!(errors[0].starts_with("r.toml:1:10: shards: "), "{errors:#?}");
    assert!(errors[1].starts_with("r.toml:2:"), "{errors:#?}");
    assert!(errors.iter().any(|e| e.starts_with("r.toml:3:12: hostname: ")), "{errors:#?}");
    assert!(errors.iter().any(|e| e.starts_with("r.toml:4:")), "{errors:#?}");
    assert!(error("shards = 1\nshards = 2\n").starts_with("r.toml:2:1: duplicate key"));
}

#[test]
fn the_files_beside_it_are_found_and_their_errors_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("ringpost.toml");
    let routes = folder.path().join("smtproutes");
    let profile = folder.path().join("own.conf");
    let text = "routes = \"smtproutes\"\nprofile = \"own.conf\"\nspool = \"/tmp/s\"\n\
                [log]\nmail = \"logs/mail\"\n[admin]\ntoken_file = \"t\"\n";
    fs::write(&main, text).unwrap();
    fs::write(&routes, "# all of it\nALL 192.0.2.1:2525\n").unwrap();
    fs::write(&profile, "ringpost.commit_batch_max = 7\n").unwrap();
    let snapshot = load(Some(&main)).unwrap();
    assert_eq!(snapshot.routes_file.as_deref(), Some(&*routes));
    let any = Domain::parse(b"any.example").unwrap();
    assert_eq!(snapshot.routes.find(&any).unwrap().line, 2);
    assert_eq!(snapshot.tuning.commit_batch_max, 7);
    assert_eq!(snapshot.queue.spool, PathBuf::from("/tmp/s"));
    assert_eq!(snapshot.log.target, LogTarget::File(folder.path().join("logs/mail")));
    assert_eq!(snapshot.admin.token_file, folder.path().join("t"));

    fs::write(&routes, "ALL 192.0.2.1:0\nALL 192.0.2.2:99999\n").unwrap();
    fs::write(&profile, "ringpost.commit_batch = 7\n").unwrap();
    fs::write(&main, format!("{text}no = 1\n")).unwrap();
    let problems = load(Some(&main)).err().unwrap();
    let files: Vec<&Path> = problems.iter().map(|p| &*p.file).collect();
    assert_eq!(files, [&*profile, &*main, &*routes, &*routes], "{problems:#?}");

    fs::write(&main, b"hostname = \"a\"\nspool = \"\xff\"\n").unwrap();
    let problems = load(Some(&main)).err().unwrap();
    assert_eq!((problems[0].line, problems[0].column), (2, 10));
    let problems = load(Some(&folder.path().join("missing.toml"))).err().unwrap();
    assert!(
        problems[0]
            .to_string()
            .ends_with("missing.toml:1:1: cannot read: No such file or directory (os error 2)")
    );
}

#[test]
fn a_configuration_as_a_rig_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("ringpost.toml");
    fs::write(folder.path().join("smtproutes"), "ALL 127.0.0.1:2626\n").unwrap();
    let text = format!(
        "hostname = \"rig.example\"\nspool = \"{0}/spool\"\nroutes = \"smtproutes\"\n\
         [[listener]]\naddress = \"127.0.0.1:2525\"\nrelay_from = [\"127.0.0.0/8\"]\n\
         [log]\nmail = \"{0}/mail_logs\"\n[admin]\naddress = \"127.0.0.1:8026\"\n\
         token_file = \"{0}/admin.token\"\n[destination.default]\nmax_connections = 100\n\
         max_messages_per_connection = 100000\ntls = \"none\"\n",
        folder.path().display()
    );
    fs::write(&main, text).unwrap();
    let snapshot = load(Some(&main)).unwrap();
    assert_eq!(snapshot.destinations.default.messages_per_connection_max, 100_000);
}

#[test]
fn a_reload_takes_what_it_may_and_names_the_rest() {
    let store = Store::new(load_str("shards = 1").unwrap());
    assert_eq!(store.load().epoch, 1);
    let new = load_str("shards = 2\n[destination.default]\nmax_connections = 3").unwrap();
    let (next, waiting) = store.load().reloaded(new);
    assert_eq!((next.shards, waiting), (1, vec!["shards"]));
    assert_eq!(next.destinations.default.connections_max, 3);
    let before = store.load_full();
    assert_eq!(store.replace(next), 2);
    assert_eq!((before.epoch, store.load().epoch), (1, 2));
    assert_eq!(before.destinations.default.connections_max, 500);
}

#[test]
fn nesting_without_end_is_an_error_not_a_crash() {
    for piece in ["[", "{a=", "a.", "[["] {
        let deep = format!("spool = {}", piece.repeat(20_000));
        assert!(load_str(&deep).is_err());
        assert!(load_str(&piece.repeat(20_000)).is_err());
    }
    assert!(load_str(&format!("{}a = 1", "a.".repeat(20_000))).is_err());
}

proptest! {
    /// Lines of the reference, cut, repeated, mixed and mistyped, never panic, and every problem
    /// stands within the file.
    #[test]
    fn any_text_loads_or_tells_why(
        picks in prop::collection::vec((0_usize..200, 0_usize..60, ".{0,6}"), 0..12)
    ) {
        let lines: Vec<&str> = default_toml().lines().collect();
        let mut text = String::new();
        for (line, at, foreign) in &picks {
            let line = lines[line % lines.len()];
            let at = (0..=*at.min(&line.len())).rev().find(|at| line.is_char_boundary(*at));
            let (before, after) = line.split_at(at.unwrap_or(0));
            text.push_str(&format!("{before}{foreign}{after}\n"));
        }
        let count = text.split('\n').count();
        if let Err(problems) = load_str(&text) {
            prop_assert!(!problems.is_empty());
            for problem in problems.iter().filter(|p| p.file == Path::new("r.toml")) {
                prop_assert!((1..=count).contains(&problem.line) && problem.column >= 1);
                prop_assert!(!problem.what.contains('\n'), "{}", problem.what);
            }
        }
    }

    #[test]
    fn any_profile_parses_or_tells_why(text in "([-#; ]?[a-z./=]{0,12}[ =]{0,3}.{0,8}\n?){0,6}") {
        if let Err(problems) = tuning::parse(Path::new("t.conf"), text) {
            prop_assert!(problems.iter().all(|p| p.line >= 1 && p.column >= 1));
        }
    }
}
