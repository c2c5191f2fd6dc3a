//! A client that speaks SMTP by hand.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// One connection to a listener, greeted and past EHLO.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects, reads the greeting and says EHLO.
    pub fn connect(address: SocketAddr) -> Self {
        let mut client = Self::greeted(address);
        let reply = client.command("EHLO client.test");
        assert!(reply.starts_with("250"), "{reply}");
        client
    }

    /// Connects and reads the greeting.
    pub fn greeted(address: SocketAddr) -> Self {
        let mut client = Self::over(TcpStream::connect(address).unwrap());
        let greeting = client.reply();
        assert!(greeting.starts_with("220"), "{greeting}");
        client
    }

    /// Over a connection of which nothing was read yet.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Sends a command line and reads its reply.
    pub fn command(&mut self, line: &str) -> String {
        self.raw(format!("{line}\r\n").as_bytes());
        self.reply()
    }

    /// One reply, its lines joined by `\n`; empty at the end of the stream.
    pub fn reply(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).unwrap_or(0) == 0 {
                return lines.join("\n");
            }
            let last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line.trim_end().to_owned());
            if last {
                return lines.join("\n");
            }
        }
    }

    /// As [`Client::reply`], for a reply that may take ten minutes.
    pub fn long_reply(&mut self) -> String {
        let patience = std::time::Duration::from_secs(600);
        self.reader.get_ref().set_read_timeout(Some(patience)).unwrap();
        let reply = self.reply();
        self.reader.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        reply
    }

    /// MAIL and RCPT, each of which must be taken.
    pub fn envelope(&mut self, from: &str, to: &[&str]) {
        let reply = self.command(&format!("MAIL FROM:<{from}>"));
        assert!(reply.starts_with("250"), "{reply}");
        for recipient in to {
            let reply = self.command(&format!("RCPT TO:<{recipient}>"));
            assert!(reply.starts_with("250"), "{reply}");
        }
    }

    /// DATA with `data` (CRLF line ends, not dot-stuffed); the reply to the final dot.
    pub fn data(&mut self, data: &[u8]) -> String {
        let reply = self.command("DATA");
        assert!(reply.starts_with("354"), "{reply}");
        let mut stuffed = Vec::with_capacity(data.len() + 64);
        let mut line_start = true;
        for byte in data {
            if line_start && *byte == b'.' {
                stuffed.push(b'.');
            }
            stuffed.push(*byte);
            line_start = *byte == b'\n';
        }
        stuffed.extend_from_slice(b".\r\n");
        self.raw(&stuffed);
        self.reply()
    }

    /// A whole message that must be taken.
    pub fn message(&mut self, from: &str, to: &[&str], data: &[u8]) {
        self.envelope(from, to);
        let reply = self.data(data);
        assert!(reply.starts_with("250"), "{reply}");
    }

    /// QUIT.
    pub fn quit(mut self) {
        let reply = self.command("QUIT");
        assert!(reply.starts_with("221"), "{reply}");
    }
}
