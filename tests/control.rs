//! The control plane from outside: health, metrics, status, explain, the token, reload.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    unused_imports,
    reason = "a test may fail and reads time; it uses a part of what tests share"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use common::{Engine, Peer, Setup, http_get, ringpost};
use serde_json::Value;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// One request, as it stands; status, headers and body.
fn http(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn request(engine: &Engine, method: &str, path: &str, more: &str) -> (u16, String, String) {
    let admin = engine.admin;
    http(admin, &format!("{method} {path} HTTP/1.1\r\nHost: {admin}\r\n{more}\r\n"))
}

/// A request with the token; status and JSON.
fn api(engine: &Engine, method: &str, path: &str) -> (u16, Value) {
    let token = fs::read_to_string(engine.path("spool/admin.token")).unwrap();
    let more = format!("Authorization: Bearer {}\r\n", token.trim());
    let (status, _, body) = request(engine, method, path, &more);
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

#[test]
fn metrics_that_the_tuning_pages_name_exist() {
    let engine = Engine::start(&Setup::new("epoll", "ALL 192.0.2.1\n".to_owned()));
    let metrics = http_get(engine.admin, "/metrics");
    let pages = ringpost::config::tuning::names();
    let pages = pages.iter().map(|name| ringpost::config::tuning::embedded(name).unwrap());
    for page in pages.chain([include_str!("../README.md").to_owned()]) {
        let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("ringpost_")) {
            assert!(metrics.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }
}

#[test]
fn health_metrics_and_status_tell_the_same() {
    let peer = Peer::good();
    // Else a message that is delivered first is never committed, and never timed.
    let setup = Setup::new("epoll", format!("ALL {}\n", peer.address)).top("commit = \"sync\"");
    let engine = Engine::start(&setup);
    assert_eq!(http_get(engine.admin, "/healthz"), "ok\n");
    engine.send("a@client.test", &["b@one.test", "c@one.test"]);
    engine.wait_empty();
    engine.assert_conservation();
    let metrics = engine.metrics();
    for (name, value) in [
        ("ringpost_recipients_accepted_total{source=\"clients\"}", 2.0),
        ("ringpost_recipients_total{outcome=\"delivered\"}", 2.0),
        ("ringpost_recipients_total{outcome=\"damaged\"}", 0.0),
        ("ringpost_recipients_pending", 0.0),
        ("ringpost_conservation_balance", 0.0),
        ("ringpost_io_info{backend=\"epoll\"}", 1.0),
        ("ringpost_shard_takes_mail{shard=\"0\"}", 1.0),
        ("ringpost_shard_takes_mail{shard=\"1\"}", 1.0),
        ("ringpost_delivery_seconds_count", 1.0),
        ("ringpost_commit_seconds_count", 1.0),
    ] {
        engine.wait(name, || engine.metric(name) == value);
    }
    let of_host = format!("ringpost_host_delivered_total{{host=\"{}\"}}", peer.address);
    assert_eq!(metrics.get(&of_host), Some(&2.0));
    let octets = |metrics: &str| engine.metric(&format!("ringpost_{metrics}_bytes_total"));
    assert!(octets("accepted") > 0.0);
    assert_eq!(octets("delivered"), octets("accepted"));

    let (code, status) = api(&engine, "GET", "/api/v1/status");
    assert_eq!(code, 200);
    assert_eq!(status["state"], "running");
    assert_eq!(status["io"], "epoll");
    assert_eq!(status["totals"]["delivered"], 2);
    assert_eq!(status["conservation"]["holds"], true);
    assert_eq!(status["conservation"]["accepted"], 2);
    assert_eq!(status["shards"].as_array().unwrap().len(), 2);
    assert!(status["shards"][0]["queue_octets"].as_u64().unwrap() > 0);
    assert_eq!(status["hosts"][0]["address"], peer.address.to_string());
    assert_eq!(status["hosts"][0]["state"], "up");
    assert_eq!(status["hosts"][0]["delivered"], 2);

    let (code, json, stderr) = engine.verb(&["status", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(told["totals"]["delivered"], 2);
    let (code, text, _) = engine.verb(&["status"]);
    assert_eq!(code, 0);
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    for piece in [
        "Recipients delivered 2",
        "Conservation: 2 accepted = 2 settled + 0 pending: holds",
        "takes mail",
        &format!("{} up", peer.address),
    ] {
        assert!(text.contains(piece), "{piece} is missing in\n{text}");
    }
}

#[test]
fn the_api_wants_the_token_and_tells_problems() {
    let engine = Engine::start(&Setup::new("epoll", "ALL 127.0.0.9:9\n"));
    let mode = fs::metadata(engine.path("spool/admin.token")).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let wrong = format!("Authorization: Bearer {TOKEN}\r\n");
    for more in ["", "Authorization: Basic eDp5\r\n", "Authorization: Bearer\r\n", &wrong] {
        for path in ["/api/v1/status", "/api/v1/route/explain?recipient=a@b.test"] {
            let (code, head, body) = request(&engine, "GET", path, more);
            assert_eq!(code, 401, "{more} {body}");
            assert!(head.contains("www-authenticate: bearer"), "{head}");
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            let problem: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (&problem["status"], &problem["title"]),
                (&401.into(), &"Unauthorized".into())
            );
        }
    }
    assert_eq!(request(&engine, "POST", "/api/v1/reload", "").0, 401);
    let (code, problem) = api(&engine, "GET", "/api/v1/route/explain");
    assert_eq!((code, &problem["errors"][0]["pointer"]), (400, &"recipient".into()));
    let (code, _) = api(&engine, "GET", "/api/v1/route/explain?recipient=nobody");
    assert_eq!(code, 400);
    assert_eq!(api(&engine, "GET", "/api/v1/reload").0, 405);
    assert_eq!(api(&engine, "GET", "/api/v1/nothing").0, 404);
    assert_eq!(request(&engine, "GET", "/nothing", "").0, 404);
    assert_eq!(request(&engine, "GET", "/healthz", "Origin: http://evil.test\r\n").0, 403);
    let rebound = "GET /metrics HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    assert_eq!(http(engine.admin, rebound).0, 403);
    // Garbage and a request that never ends do no harm to others.
    assert_eq!(http(engine.admin, "EHLO x\r\n\r\n").0, 400);
    let mut slow = TcpStream::connect(engine.admin).unwrap();
    slow.write_all(b"GET /healthz HT").unwrap();
    let huge = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(600_000));
    let mut flood = TcpStream::connect(engine.admin).unwrap();
    let _reset = flood.write_all(huge.as_bytes());
    assert_eq!(http_get(engine.admin, "/healthz"), "ok\n");
}

#[test]
fn explain_asks_the_engine_and_else_the_files() {
    let peer = Peer::good();
    let dead = "127.0.0.7:9";
    let routes = format!(
        "# first line\none.test {dead}/pri=0, {}/pri=5\n.two.test /dev/null\n",
        peer.address
    );
    let mut engine = Engine::start(&Setup::new("epoll", routes));
    let explain = |engine: &Engine, who: &str| {
        let (code, json, stderr) = engine.verb(&["route", "explain", who, "--json"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Value>(&json).unwrap()
    };
    let before = explain(&engine, "a@ONE.test");
    assert_eq!((&before["engine"], &before["domain"]), (&true.into(), &"one.test".into()));
    assert_eq!(before["hosts"][0]["state"], "unknown");
    assert_eq!(before["hosts"][0]["address"], dead);
    let known = |engine: &Engine| api(engine, "GET", "/api/v1/status").1["hosts_total"].clone();
    assert_eq!(known(&engine), 0, "a question makes no host known");

    engine.send("a@client.test", &["b@one.test"]);
    engine.wait_empty();
    let after = explain(&engine, "a@one.test");
    let hosts = after["hosts"].as_array().unwrap();
    assert_eq!(
        (&hosts[0]["address"], &hosts[0]["state"]),
        (&peer.address.to_string().into(), &"up".into())
    );
    assert_eq!((&hosts[1]["address"], &hosts[1]["priority"]), (&dead.into(), &0.into()));
    let state = hosts[1]["state"].as_str().unwrap();
    assert!(["down", "probe due", "probing"].contains(&state), "{state}");
    let turns = api(&engine, "GET", "/api/v1/status").1["hosts"].clone();
    let _again = explain(&engine, "a@one.test");
    let sum = |hosts: &Value| -> u64 {
        hosts.as_array().unwrap().iter().map(|h| h["turns"].as_u64().unwrap()).sum()
    };
    assert_eq!(sum(&turns), sum(&api(&engine, "GET", "/api/v1/status").1["hosts"]));

    let (_, text, _) = engine.verb(&["route", "explain", "a@one.test"]);
    assert!(text.contains("smtproutes:2: one.test"), "{text}");
    assert!(text.contains(&format!("    1. {} priority 5, up", peer.address)), "{text}");
    let (_, text, _) = engine.verb(&["route", "explain", "a@x.two.test"]);
    assert!(text.contains("/dev/null") && text.contains("smtproutes:3:"), "{text}");
    let (_, text, _) = engine.verb(&["route", "explain", "a@three.test"]);
    assert!(text.contains("none matches") && text.contains("451 4.4.4"), "{text}");

    engine.stop();
    let alone = explain(&engine, "a@one.test");
    assert_eq!((&alone["engine"], &alone["hosts"][0]["state"]), (&false.into(), &"unknown".into()));
    let (code, text, _) = engine.verb(&["route", "explain", "a@one.test"]);
    assert!(code == 0 && text.contains("health unknown"), "{text}");
    let (code, _, stderr) = engine.verb(&["status"]);
    assert_eq!(code, 69);
    assert!(stderr.starts_with("ringpost: no engine answers on 127.0.0.1:"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_reload_moves_mail_and_drops_no_connection() {
    for io in common::io_modes() {
        let (first, second) = (Peer::good(), Peer::good());
        let dead = "127.0.0.7:9";
        let silent = Peer::start(|peer, _| peer.hang());
        let routes =
            format!("ALL {}\nwaits.test {dead}\nhangs.test {}\n", first.address, silent.address);
        let engine = Engine::start(&Setup::new(io, routes));
        let mut client = engine.client();
        client.message("a@client.test", &["b@one.test"], b"Subject: 1\r\n\r\n1\r\n");
        client.message("a@client.test", &["b@waits.test"], b"Subject: w\r\n\r\nw\r\n");
        client.message("a@client.test", &["b@hangs.test"], b"Subject: h\r\n\r\nh\r\n");
        engine.wait("a connection to the silent host", || silent.connections() == 1);
        engine.wait("the first host has one", || first.messages().len() == 1);
        engine.wait_log("Connection Error");

        fs::write(engine.path("smtproutes"), format!("ALL {}\n", second.address)).unwrap();
        engine.signal("HUP");
        engine.wait_log("configuration 2 is in force");
        engine.wait("what waited goes to the new host", || second.messages().len() == 2);
        client.message("a@client.test", &["b@one.test"], b"Subject: 2\r\n\r\n2\r\n");
        engine.wait("new mail goes to the new host", || second.messages().len() == 3);
        client.quit();
        assert_eq!(first.messages().len(), 1);
        engine.wait_empty();
        assert!(engine.stderr().contains("ringpost: configuration 2 is in force"));
    }
}

#[test]
fn mail_whose_route_is_gone_waits_for_another() {
    let (silent, peer) = (Peer::start(|peer, _| peer.hang()), Peer::good());
    let engine = Engine::start(&Setup::new("epoll", format!("ALL {}\n", silent.address)));
    engine.send("a@client.test", &["b@one.test"]);
    engine.wait("a connection to the silent host", || silent.connections() == 1);
    fs::write(engine.path("smtproutes"), "other.test 192.0.2.1\n").unwrap();
    let (code, _) = api(&engine, "POST", "/api/v1/reload");
    assert_eq!(code, 200);
    engine.wait_log("no route covers this domain");
    let mut client = engine.client();
    assert!(client.command("MAIL FROM:<a@client.test>").starts_with("250"));
    assert!(client.command("RCPT TO:<b@one.test>").starts_with("451 4.4.4"));
    fs::write(engine.path("smtproutes"), format!("ALL {}\n", peer.address)).unwrap();
    engine.signal("HUP");
    engine.wait("the new route takes it", || peer.messages().len() == 1);
    engine.wait_empty();
}

#[test]
fn a_bad_file_leaves_the_old_configuration_in_force() {
    let peer = Peer::good();
    let engine = Engine::start(&Setup::new("epoll", format!("ALL {}\n", peer.address)));
    fs::write(engine.path("smtproutes"), "ALL nonsense:99999\nALL\n").unwrap();
    let (code, problem) = api(&engine, "POST", "/api/v1/reload");
    assert_eq!(code, 422);
    assert_eq!(problem["errors"].as_array().unwrap().len(), 2, "{problem}");
    assert!(problem["errors"][0]["pointer"].as_str().unwrap().contains("smtproutes:1:"));
    engine.wait_log("Warning: configuration: ");
    engine.wait_log("reload failed with 2 errors; the old configuration stays in force");
    engine.signal("HUP");
    engine.wait_log_count("reload failed with 2 errors", 2);
    assert!(engine.stderr().lines().all(|line| line.starts_with("ringpost: ")));
    engine.send("a@client.test", &["b@one.test"]);
    engine.wait("mail goes on", || peer.messages().len() == 1);

    fs::write(engine.path("smtproutes"), "ALL /dev/null\n").unwrap();
    let (code, told) = api(&engine, "POST", "/api/v1/reload");
    assert_eq!((code, &told["configuration"]), (200, &2.into()));
    engine.send("a@client.test", &["b@one.test"]);
    engine.wait("the new route is in force", || {
        engine.metric("ringpost_recipients_total{outcome=\"discarded\"}") == 1.0
    });
    engine.wait_empty();
}

#[test]
fn a_second_engine_says_why_it_does_not_start() {
    let engine = Engine::start(&Setup::new("epoll", "ALL /dev/null\n"));
    let start = Instant::now();
    let serve = |name: &str, text: String| {
        fs::write(engine.path(name), text).unwrap();
        let (code, _, stderr) = ringpost(&["serve", "--config", name], &engine.path(""));
        assert!(stderr.lines().all(|line| line.starts_with("ringpost: ")), "{stderr}");
        (code, stderr.lines().last().unwrap_or_default().to_owned())
    };
    let own = fs::read_to_string(engine.path("ringpost.toml")).unwrap();
    let (code, line) = serve("spool.toml", own.clone());
    assert_eq!(code, 75, "{line}");
    assert!(
        line.contains("in use by process") && line.contains(&engine.pid().to_string()),
        "{line}"
    );

    let taken = own.replace("spool = \"spool\"", "spool = \"spool2\"");
    let smtp = taken.replacen("127.0.0.1:0", &engine.smtp.to_string(), 1);
    let (code, line) = serve("smtp.toml", smtp);
    assert_eq!(code, 69, "{line}");
    assert!(line.contains(&format!("cannot listen on {}", engine.smtp)), "{line}");
    let (before, after) = taken.split_at(taken.find("[admin]").unwrap());
    let admin = format!("{before}{}", after.replacen("127.0.0.1:0", &engine.admin.to_string(), 1));
    let (code, line) = serve("admin.toml", admin);
    assert_eq!(code, 69, "{line}");
    assert!(line.contains("admin.address"), "{line}");

    fs::write(engine.path("open.token"), TOKEN).unwrap();
    fs::set_permissions(engine.path("open.token"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = taken.replace("[admin]", "[admin]\ntoken_file = \"open.token\"");
    let (code, line) = serve("open.toml", open);
    assert_eq!(code, 77, "{line}");
    assert!(line.contains("chmod 600"), "{line}");
    assert!(start.elapsed() < common::PATIENCE);
}
