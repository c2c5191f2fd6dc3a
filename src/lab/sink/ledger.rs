//! What a sink remembers of the messages that it accepted.
//!
//! Owns: the ids of accepted messages with their recipients, for tests of at-least-once, and the
//! dump folder. Never: the decision what is accepted.
//!
//! Limits: [`IDS_MAX`] different ids; further ones are counted only.

use std::io;
use std::path::Path;

use hashbrown::HashMap;
use memchr::memchr_iter;

/// Different ids that are remembered.
pub const IDS_MAX: usize = 1 << 22;

/// One accepted transaction's sender and recipients.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Envelope {
    /// Reverse-path, without brackets.
    pub sender: String,
    /// Forward-paths, without brackets.
    pub recipients: Vec<String>,
}

/// What was accepted under one id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Received {
    /// Transactions that brought it.
    pub times: u64,
    /// Recipients of all of them, repeated ones too.
    pub recipients: Vec<String>,
    /// The reverse-path of the last of them.
    pub sender: String,
}

/// Ids and what was accepted under each.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    ids: HashMap<String, Received>,
    forgotten: u64,
}

impl Ledger {
    pub(super) fn record(&mut self, message: &[u8], envelope: &Envelope) {
        let id = message_id(message);
        if self.ids.len() >= IDS_MAX && !self.ids.contains_key(&id) {
            self.forgotten += 1;
            return;
        }
        let received = self.ids.entry(id).or_default();
        received.times += 1;
        received.sender.clone_from(&envelope.sender);
        received.recipients.extend(envelope.recipients.iter().cloned());
    }

    pub(super) fn ids(&self) -> HashMap<String, Received> {
        assert_eq!(self.forgotten, 0, "more than {IDS_MAX} ids: the ledger is not complete");
        self.ids.clone()
    }
}

/// The X-Ledger field of a message, else its Message-ID, else nothing.
fn message_id(message: &[u8]) -> String {
    let mut id = None;
    let mut start = 0;
    for end in memchr_iter(b'\n', message) {
        let line = &message[start..end];
        start = end + 1;
        if line.is_empty() || line == b"\r" {
            break;
        }
        if let Some(value) = field(line, b"x-ledger:") {
            return value;
        }
        id = id.or_else(|| field(line, b"message-id:"));
    }
    id.unwrap_or_default()
}

fn field(line: &[u8], name: &[u8]) -> Option<String> {
    let (head, value) = line.split_at_checked(name.len())?;
    head.eq_ignore_ascii_case(name)
        .then(|| String::from_utf8_lossy(value.trim_ascii()).into_owned())
}

/// Writes one message into `folder`; `number` names the file.
pub(super) fn dump(folder: &Path, number: u64, message: &[u8]) -> io::Result<()> {
    std::fs::write(folder.join(format!("{number:08}.eml")), message)
}

/// Replaces the number in `file` at once: a reader sees the old one or the new one.
pub(super) fn write_count(file: &Path, count: u64) -> io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, format!("{count}\n"))?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_in_the_header_only() {
        let table: &[(&[u8], &str)] = &[
            (b"Message-ID: <a@b>\r\nx-ledger:  run-1 \r\n\r\nX-Ledger: no\r\n", "run-1"),
            (b"Received: x\r\nmessage-id:<a@b>\r\n\r\nX-Ledger: no\r\n", "<a@b>"),
            (b"Subject: x\r\n\r\nX-Ledger: no\r\n", ""),
            (b"", ""),
        ];
        for (message, id) in table {
            assert_eq!(message_id(message), *id);
        }
    }

    #[test]
    fn a_second_copy_is_counted_with_its_recipients() {
        let mut ledger = Ledger::default();
        let to = |name: &str| Envelope { sender: "s".into(), recipients: vec![name.into()] };
        ledger.record(b"X-Ledger: 1\r\n\r\n", &to("a"));
        ledger.record(b"X-Ledger: 1\r\n\r\n", &to("b"));
        let ids = ledger.ids();
        assert_eq!(ids["1"].times, 2);
        assert_eq!(ids["1"].recipients, ["a", "b"]);
    }
}
