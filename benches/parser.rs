//! What SMTP costs without I/O: replies, commands, message octets, a whole session.
//!
//! Owns: `reply`, `command`, `data`, `session`, `stuff`. Time is per reply, command or message;
//! the throughput lines are octets per second.

#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::mail::{Mailbox, Mid, Now, Rid};
use ringpost::smtp::command::{self, LastDomains};
use ringpost::smtp::data::{Framing, Receiver, stuff_into};
use ringpost::smtp::reply::ReplyParser;
use ringpost::smtp::server::{Abort, Gate, Next, Peer, Refusal, Session};
use ringpost::smtp::settings::{LongLines, ServerSettings};

const MESSAGE_OCTETS: usize = 4096;

/// Octets of a line of the message, its CRLF among them.
const LINE_OCTETS: usize = 76;

/// A message of full lines; each begins with `first`.
fn message(first: u8) -> Vec<u8> {
    let mut line = [b'x'; LINE_OCTETS];
    line[0] = first;
    line[LINE_OCTETS - 2..].copy_from_slice(b"\r\n");
    line.repeat(MESSAGE_OCTETS / LINE_OCTETS)
}

fn octets(bytes: &[u8]) -> Throughput {
    Throughput::Bytes(bytes.len() as u64)
}

fn reply(c: &mut Criterion) {
    let replies: [(&str, &[u8]); 3] = [
        ("single line", b"250 2.0.0 Ok: queued as 3jjSKc6HnKz4GTHJ\r\n"),
        (
            "three lines",
            b"550-5.7.1 The sender of this message\r\n550-5.7.1 is not welcome here, see\r\n\
              550 5.7.1 https://mx.example.com/why\r\n",
        ),
        (
            "EHLO",
            b"250-mx.example.com\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n\
              250-ENHANCEDSTATUSCODES\r\n250-SMTPUTF8\r\n250-DSN\r\n250 CHUNKING\r\n",
        ),
    ];
    let mut group = c.benchmark_group("reply");
    for (name, bytes) in replies {
        group.throughput(octets(bytes));
        let mut parser = ReplyParser::default();
        group.bench_function(name, |b| {
            b.iter(|| parser.parse(&mut black_box(bytes)).unwrap().unwrap());
        });
    }
    group.finish();
}

fn commands(c: &mut Criterion) {
    let lines: [(&str, &[u8]); 4] = [
        ("EHLO", b"EHLO client.example.com"),
        ("MAIL", b"MAIL FROM:<bounces+4711@out.example.net> SIZE=4096 BODY=8BITMIME"),
        ("RCPT", b"RCPT TO:<user@example.com>"),
        ("DATA", b"DATA"),
    ];
    let mut group = c.benchmark_group("command");
    for (name, line) in lines {
        group.throughput(octets(line));
        group.bench_function(name, |b| {
            b.iter(|| {
                black_box(command::parse(black_box(line), &mut LastDomains::default()).unwrap())
            });
        });
    }
    group.finish();
}

fn data(c: &mut Criterion) {
    let mut group = c.benchmark_group("data");
    for (name, first) in [("4 KiB", b'x'), ("4 KiB, each line with a dot", b'.')] {
        let mut wire = Vec::new();
        assert!(stuff_into(&message(first), true, &mut wire));
        wire.extend_from_slice(b".\r\n");
        group.throughput(octets(&wire));
        let mut out = Vec::with_capacity(wire.len());
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                let mut receiver = Receiver::new(Framing::Dots);
                let taken = receiver.receive(black_box(&wire), Some(&mut out));
                assert!(taken.end);
                black_box(out.len())
            });
        });
    }
    group.finish();
}

/// An engine that takes everything.
struct Open(u64);

impl Gate for Open {
    fn begin(&mut self, _sender: Option<&Mailbox>, _octets: Option<u64>) -> Result<Mid, Refusal> {
        self.0 += 1;
        Ok(Mid(self.0))
    }

    fn recipient(&mut self, _mid: Mid, _rid: Rid, _address: &Mailbox) -> Result<(), Refusal> {
        Ok(())
    }

    fn recipient_refused(&mut self, _mid: Mid, _address: &Mailbox, _refusal: &Refusal) {}

    fn aborted(&mut self, _mid: Mid, _cause: Abort) {}
}

/// A message that comes with its whole transaction in two reads, as from a client that
/// pipelines: the commands, then the octets. There is no disk here, so it is refused at the end;
/// only the words of the reply differ.
fn session(c: &mut Criterion) {
    let settings = Arc::new(ServerSettings {
        hostname: "out.example.net".into(),
        message_octets_max: 25 << 20,
        recipients_max: 1000,
        long_lines: LongLines::Accept,
    });
    let peer = Peer { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), relay: true };
    let (now, mut gate) = (Now::default().plus_ms(1), Open(0));
    let mut session = Session::new(settings, peer, now);
    session.greet();
    let step = session.handle_input(b"EHLO client.example.com\r\n", &mut gate, now);
    assert!(matches!(step.next, Next::Read));
    drop(session.take_output());
    let commands = b"MAIL FROM:<bounces+4711@out.example.net> SIZE=4096\r\n\
                     RCPT TO:<user@example.com>\r\nDATA\r\n";
    let header = b"From: <shop@out.example.net>\r\nTo: <user@example.com>\r\nSubject: Order\r\n\
                   Date: Wed, 02 Jul 2014 09:15:07 +0000\r\n\
                   Message-ID: <1@out.example.net>\r\n\r\n";
    let text = [header, &message(b'x')[..], b".\r\n"].concat();
    let refusal = Refusal::new(451, 3, 0, "There is no queue here");
    let mut group = c.benchmark_group("session");
    group.throughput(Throughput::Bytes((commands.len() + text.len()) as u64));
    group.bench_function(BenchmarkId::new("pipelined message", MESSAGE_OCTETS), |b| {
        b.iter(|| {
            let step = session.handle_input(black_box(commands), &mut gate, now);
            assert_eq!(step.consumed, commands.len());
            let replies = session.take_output().len();
            let step = session.handle_input(black_box(&text), &mut gate, now);
            let Next::Message(message) = step.next else { unreachable!("the dot was there") };
            session.answer_refused(&refusal, message.mid, now);
            black_box(replies + session.take_output().len())
        });
    });
    group.finish();
}

fn stuff(c: &mut Criterion) {
    let mut group = c.benchmark_group("stuff");
    for (name, first) in [("4 KiB", b'x'), ("4 KiB, each line with a dot", b'.')] {
        let body = message(first);
        let mut out = Vec::with_capacity(2 * body.len());
        group.throughput(octets(&body));
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                black_box(stuff_into(black_box(&body), true, &mut out))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, reply, commands, data, session, stuff);
criterion_main!(benches);
