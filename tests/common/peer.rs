//! A next hop that follows a script: each connection is a conversation on a thread of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::PATIENCE;

/// A scripted next hop.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    stopped: AtomicBool,
    messages: Mutex<Vec<Message>>,
}

/// A message that a peer took.
#[derive(Clone, Debug)]
pub struct Message {
    /// MAIL as received.
    pub mail: String,
    /// RCPTs that were answered 250.
    pub recipients: Vec<String>,
    /// The bytes, un-dot-stuffed.
    pub data: Vec<u8>,
}

impl Peer {
    /// Listens on a free port of 127.0.0.1; `script` plays each connection, numbered from 0.
    pub fn start(script: impl Fn(&mut Conversation, usize) + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), script)
    }

    /// Listens on `address`.
    pub fn on(
        address: SocketAddr,
        script: impl Fn(&mut Conversation, usize) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let (shared, script) = (state.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let (shared, script) = (shared.clone(), script.clone());
                std::thread::spawn(move || {
                    let mut conversation = Conversation::new(stream, shared);
                    script(&mut conversation, number);
                });
            }
        });
        Self { address, state }
    }

    /// A next hop that takes everything.
    pub fn good() -> Self {
        Self::start(|peer, _| peer.serve())
    }

    /// A port on which nobody listens: it stays bound to the end of the process, or another test
    /// might get it. [`Peer::on`] may still take it: SO_REUSEADDR on both, and one that listens.
    pub fn nobody() -> SocketAddr {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_reuse_address(true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        std::mem::forget(socket);
        address
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Messages taken so far.
    pub fn messages(&self) -> Vec<Message> {
        self.state.messages.lock().unwrap().clone()
    }

    /// Its place in an smtproutes line.
    pub fn host(&self, priority: u16) -> String {
        format!("{}/pri={priority}", self.address)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

/// One connection as the script sees it. When the client goes away, [`Conversation::line`] gives
/// an empty line.
pub struct Conversation {
    reader: BufReader<TcpStream>,
    state: Arc<State>,
    /// What EHLO offers.
    pub extensions: Vec<String>,
}

impl Conversation {
    fn new(stream: TcpStream, state: Arc<State>) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let extensions = ["PIPELINING", "8BITMIME", "SIZE 50000000", "ENHANCEDSTATUSCODES", "DSN"];
        let extensions = extensions.map(str::to_owned).to_vec();
        Self { reader: BufReader::new(stream), state, extensions }
    }

    /// Sends `text` with CRLF behind it.
    pub fn say(&mut self, text: &str) {
        self.raw(format!("{text}\r\n").as_bytes());
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        // The client may be gone; the script goes on and meets its end at the next read.
        self.reader.get_mut().write_all(bytes).unwrap_or_default();
    }

    /// One line without its end; empty when the client is gone.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).unwrap_or_default();
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// One line, which must begin with `verb`; false when the client is gone.
    pub fn expect(&mut self, verb: &str) -> bool {
        let line = self.line();
        if line.is_empty() {
            return false;
        }
        assert!(line.to_uppercase().starts_with(verb), "{line:?} instead of {verb}");
        true
    }

    /// Greeting and EHLO.
    pub fn hello(&mut self) -> bool {
        self.say("220 peer.test ESMTP");
        self.answer_ehlo()
    }

    /// Reads EHLO and offers the extensions.
    pub fn answer_ehlo(&mut self) -> bool {
        if !self.expect("EHLO") {
            return false;
        }
        let mut reply = "250-peer.test\r\n".to_owned();
        for extension in &self.extensions {
            reply.push_str(&format!("250-{extension}\r\n"));
        }
        reply.push_str("250 HELP");
        self.say(&reply);
        true
    }

    /// MAIL, RCPT and DATA with positive replies, up to the 354; false when the client is gone.
    pub fn up_to_data(&mut self) -> bool {
        loop {
            let line = self.line();
            match verb(&line).as_str() {
                "" => return false,
                "MAIL" => self.say("250 2.1.0 ok"),
                "RCPT" => self.say("250 2.1.5 ok"),
                "DATA" => {
                    self.say("354 go on");
                    return true;
                }
                "QUIT" => {
                    self.say("221 2.0.0 bye");
                    return false;
                }
                _ => self.say("250 2.0.0 ok"),
            }
        }
    }

    /// The message bytes up to the final dot, un-dot-stuffed.
    pub fn body(&mut self) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            let mut line = Vec::new();
            if self.reader.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
                return None;
            }
            match line.as_slice() {
                b".\r\n" => return Some(data),
                [b'.', rest @ ..] => data.extend_from_slice(rest),
                line => data.extend_from_slice(line),
            }
        }
    }

    /// As many octets of a message as BDAT has named; `None` when the client is gone.
    pub fn octets(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut octets = vec![0; count];
        self.reader.read_exact(&mut octets).is_ok().then_some(octets)
    }

    /// A whole session that takes everything.
    pub fn serve(&mut self) {
        if self.hello() {
            self.serve_with(|_| None);
        }
    }

    /// Transactions until the client leaves; `answer` may give a reply other than the good one
    /// for a command line (`.` stands for the final dot).
    pub fn serve_with(&mut self, answer: impl Fn(&str) -> Option<String>) {
        let mut message = Message { mail: String::new(), recipients: vec![], data: vec![] };
        loop {
            let line = self.line();
            if line.is_empty() {
                return;
            }
            let special = answer(&line);
            let good = |text: &str| special.clone().unwrap_or_else(|| text.to_owned());
            let taken = special.as_ref().is_none_or(|reply| reply.starts_with(['2', '3']));
            match verb(&line).as_str() {
                "MAIL" => {
                    let mail = if taken { line } else { String::new() };
                    message = Message { mail, recipients: vec![], data: vec![] };
                    self.say(&good("250 2.1.0 ok"));
                }
                // A client that pipelines has sent them before it knew of the refusal.
                "RCPT" if message.mail.is_empty() => self.say(&good("503 5.5.1 MAIL first")),
                "DATA" if message.recipients.is_empty() => self.say(&good("503 5.5.1 RCPT first")),
                "RCPT" => {
                    if taken {
                        message.recipients.push(line);
                    }
                    self.say(&good("250 2.1.5 ok"));
                }
                "DATA" => {
                    self.say(&good("354 go on"));
                    if !taken {
                        continue;
                    }
                    let Some(data) = self.body() else { return };
                    message.data = data;
                    let reply = answer(".").unwrap_or_else(|| "250 2.0.0 queued".to_owned());
                    if reply.starts_with('2') {
                        self.state.messages.lock().unwrap().push(message.clone());
                    }
                    self.say(&reply);
                }
                "QUIT" => {
                    self.say(&good("221 2.0.0 bye"));
                    return;
                }
                _ => self.say(&good("250 2.0.0 ok")),
            }
        }
    }

    /// Counts `message` as taken.
    pub fn keep(&mut self, message: Message) {
        self.state.messages.lock().unwrap().push(message);
    }

    /// True when the client has sent more than the line read last.
    pub fn has_more(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    /// Stays silent until the client leaves.
    pub fn hang(&mut self) {
        let mut sink = [0; 4096];
        while matches!(self.reader.read(&mut sink), Ok(1..)) {}
    }

    /// Stays silent for a while.
    pub fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    /// Closes with a reset instead of an orderly end.
    pub fn reset(self_: &mut Self) {
        let socket = socket2::SockRef::from(self_.reader.get_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap_or_default();
        self_.reader.get_ref().shutdown(std::net::Shutdown::Both).unwrap_or_default();
    }
}

fn verb(line: &str) -> String {
    line.split([' ', ':']).next().unwrap_or("").to_uppercase()
}
