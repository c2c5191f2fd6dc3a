//! swaks, a client whose every option is a way to be different.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::peer::Message;
use crate::common::{Engine, Peer, Setup, io_modes};
use crate::tools;

fn swaks(engine: &Engine) -> Command {
    let mut swaks = tools::command("swaks");
    let smtp = engine.smtp;
    swaks.args(["--server", &smtp.ip().to_string(), "--port", &smtp.port().to_string()]);
    swaks.args(["--ehlo", "client.test", "--from", "from@source.test"]);
    swaks
}

fn route_to(peer: &Peer) -> String {
    format!("ALL {}\n", peer.host(0))
}

/// Waits for `count` messages, and for the queue to be empty behind them.
fn messages(engine: &Engine, peer: &Peer, count: usize) -> Vec<Message> {
    engine.wait("the messages at the peer", || peer.messages().len() >= count);
    engine.wait_empty();
    let messages = peer.messages();
    assert_eq!(messages.len(), count);
    messages
}

/// The message without the header lines that the engine put before it.
fn as_sent<'a>(message: &'a Message, sent: &[u8]) -> &'a [u8] {
    let from = message.data.len().checked_sub(sent.len()).expect("less came than was sent");
    let ours = &message.data[..from];
    assert!(ours.starts_with(b"Received: ") && ours.ends_with(b"\r\n"), "{}", escaped(ours));
    &message.data[from..]
}

fn escaped(octets: &[u8]) -> String {
    octets.escape_ascii().to_string()
}

fn write(folder: &Path, data: &[u8]) -> String {
    let path = folder.join("message");
    // swaks itself ends the last line.
    fs::write(&path, data.strip_suffix(b"\r\n").unwrap()).unwrap();
    format!("@{}", path.display())
}

/// One transaction with three recipients in two domains leaves as one transaction per domain.
#[test]
fn three_recipients_in_two_domains_pipelined() {
    if !tools::installed(&["swaks"]) {
        return;
    }
    for io in io_modes() {
        let peer = Peer::good();
        let engine = Engine::start(&Setup::new(io, route_to(&peer)));
        let to = "a@one.test,b@one.test,c@two.test";
        let output = tools::succeed(swaks(&engine).args(["--pipeline", "--to", to]));
        let dialogue = String::from_utf8_lossy(&output.stdout);
        assert!(dialogue.contains("PIPELINING"), "{dialogue}");
        let mut got: Vec<_> = messages(&engine, &peer, 2).into_iter().map(recipients).collect();
        got.sort();
        assert_eq!(got, [vec!["a@one.test", "b@one.test"], vec!["c@two.test"]], "io = {io}");
    }
}

fn recipients(message: Message) -> Vec<String> {
    let address = |line: String| line.split(['<', '>']).nth(1).unwrap().to_owned();
    let mut recipients: Vec<_> = message.recipients.into_iter().map(address).collect();
    recipients.sort();
    recipients
}

/// HELO as well as EHLO.
#[test]
fn old_and_new_protocol() {
    if !tools::installed(&["swaks"]) {
        return;
    }
    let peer = Peer::good();
    let engine = Engine::start(&Setup::new("auto", route_to(&peer)));
    for protocol in ["SMTP", "ESMTP"] {
        tools::succeed(swaks(&engine).args(["--protocol", protocol, "--to", "to@sink.test"]));
    }
    messages(&engine, &peer, 2);
}

/// Lines that begin with dots, eight-bit octets and header lines arrive as they were sent.
#[test]
fn dots_and_eight_bits_arrive_unchanged() {
    if !tools::installed(&["swaks"]) {
        return;
    }
    let mut data = b"Subject: eight bits\r\nX-Latin: \xe9\xff\r\n\r\n".to_vec();
    data.extend_from_slice(
        b".\r\n..\r\n.one\r\n..two\r\ntext.\r\n \r\n\t.\r\n\xc3\xa9\xf0\x9f\xff\r\n",
    );
    same_octets(&data, &["--pipeline"]);
}

/// Twenty megabytes, every tenth line with a dot in front.
#[test]
fn twenty_megabytes_arrive_unchanged() {
    if !tools::installed(&["swaks"]) {
        return;
    }
    let mut data = b"Subject: large\r\n\r\n".to_vec();
    let mut line = 0_u32;
    while data.len() < 20 << 20 {
        let dots = if line.is_multiple_of(10) { "." } else { "" };
        data.extend_from_slice(format!("{dots}{line:08} \u{e9} {}\r\n", "x".repeat(60)).as_bytes());
        line += 1;
    }
    same_octets(&data, &[]);
}

fn same_octets(data: &[u8], options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), data);
    for io in io_modes() {
        let peer = Peer::good();
        let engine = Engine::start(&Setup::new(io, route_to(&peer)));
        let mut swaks = swaks(&engine);
        swaks.args(["--suppress-data", "--to", "to@sink.test", "--data", &file]);
        tools::succeed(swaks.args(options));
        let messages = messages(&engine, &peer, 1);
        // Not assert_eq: nobody reads two dumps of twenty megabytes.
        let got = as_sent(&messages[0], data);
        let first_difference = got.iter().zip(data).position(|(got, sent)| got != sent);
        assert_eq!(first_difference, None, "io = {io}");
    }
}
