//! The start of the real engine on a full spool: `ringpost serve` in a process of its own.
//!
//! Owns: the row `start`. Never: the filling of the spool.
//!
//! Time counts from the exec of the engine: to the greeting of its listener, when it takes mail,
//! and to the first message at the next hop. Memory is what the process has of its own
//! (`RssAnon`), less what the same engine has on an empty spool, by recipient; tables are mapped
//! files and are not counted.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringpost::lab::sink::{Sink, SinkHandle, SinkOptions};

/// How long a start may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(300);

/// What one start came to.
struct Start {
    greeting: Duration,
    first_delivery: Option<Duration>,
    anonymous_octets: u64,
}

/// Starts the engine on the spool `name` in `folder`, with `entries` recipients of one message
/// each, and prints what that took.
pub(crate) fn row(folder: &Path, name: &str, entries: u64, shards: u8, json: bool) {
    let sink = Sink::start(SinkOptions::default()).unwrap();
    let empty = start(folder, "empty", shards, None, &sink);
    let full = start(folder, name, shards, Some(&sink), &sink);
    let anonymous = full.anonymous_octets.saturating_sub(empty.anonymous_octets);
    let each = anonymous as f64 / entries as f64;
    let first = full.first_delivery.expect("a full spool delivers").as_secs_f64();
    let greeting = full.greeting.as_secs_f64();
    if json {
        let line = serde_json::json!({
            "start_entries": entries, "shards": shards, "greeting_s": greeting,
            "first_delivery_s": first, "empty_greeting_s": empty.greeting.as_secs_f64(),
            "anonymous_octets_per_recipient": each,
        });
        println!("{line}");
    } else {
        println!(
            "start of ringpost serve with {entries} recipients on {shards} shards: greeting after \
             {greeting:.3} s (empty: {:.3} s), first delivery after {first:.3} s; {each:.1} octets \
             of anonymous memory per recipient",
            empty.greeting.as_secs_f64(),
        );
    }
}

/// Starts an engine, looks at it, and kills it; with `awaited`, not before that sink has mail.
fn start(
    folder: &Path,
    spool: &str,
    shards: u8,
    awaited: Option<&SinkHandle>,
    sink: &SinkHandle,
) -> Start {
    let listens = free_address();
    let config = folder.join(format!("{spool}.toml"));
    let text = format!(
        "hostname = \"out.example.net\"\nspool = \"{spool}\"\nroutes = \"smtproutes\"\n\
         spool_max_size = \"60GiB\"\nspool_min_free = \"1GiB\"\nshards = {shards}\n\
         [[listener]]\naddress = \"{listens}\"\n[admin]\naddress = \"{}\"\n\
         [log]\nmail = \"mail_logs\"\ndetail = \"problems\"\n",
        free_address(),
    );
    fs::write(folder.join("smtproutes"), format!("ALL {}\n", sink.address())).unwrap();
    fs::write(&config, text).unwrap();
    let begun = Instant::now();
    let mut engine = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    engine.args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
    let mut engine = engine.spawn().unwrap();
    let greeting = until(begun, &mut engine, || greets(listens));
    let first_delivery =
        awaited.map(|sink| until(begun, &mut engine, || sink.counts().messages > 0));
    let anonymous_octets = super::common::anonymous_octets_of(&engine.id().to_string());
    engine.kill().unwrap();
    engine.wait().unwrap();
    Start { greeting, first_delivery, anonymous_octets }
}

/// Time from `begun` until it has happened.
fn until(begun: Instant, engine: &mut Child, mut happened: impl FnMut() -> bool) -> Duration {
    while !happened() {
        assert!(engine.try_wait().unwrap().is_none(), "the engine has ended");
        assert!(begun.elapsed() < PATIENCE, "the engine does not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut greeting = [0; 3];
    let patience = stream.set_read_timeout(Some(PATIENCE));
    patience.is_ok() && stream.read_exact(&mut greeting).is_ok() && greeting == *b"220"
}

/// An address that nobody listened on a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
