//! What a sink answers, and where it breaks off.
//!
//! Owns: [`Behaviour`] (what a test or an operator asks for) and its compiled form, the script
//! that sessions read. Never: a connection.

use std::str::FromStr;
use std::time::Duration;

use super::dialogue::Next;

/// A place in the dialogue where a sink can close the connection in place of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Right after the connection was taken, with a reset.
    Connect,
    /// In place of the greeting.
    Greeting,
    /// In place of the reply to EHLO or HELO.
    Ehlo,
    /// In place of the reply to MAIL.
    Mail,
    /// In place of the reply to RCPT.
    Rcpt,
    /// In place of the reply to DATA, or at a BDAT command.
    Data,
    /// At the first octets of the message.
    Body,
    /// When the whole message is there, in place of its reply.
    Dot,
    /// In place of the reply to RSET.
    Rset,
    /// In place of the reply to QUIT.
    Quit,
}

/// The names of the stages, as `--drop-at` takes them.
const STAGES: [(&str, Stage); 10] = [
    ("connect", Stage::Connect),
    ("greeting", Stage::Greeting),
    ("ehlo", Stage::Ehlo),
    ("mail", Stage::Mail),
    ("rcpt", Stage::Rcpt),
    ("data", Stage::Data),
    ("body", Stage::Body),
    ("dot", Stage::Dot),
    ("rset", Stage::Rset),
    ("quit", Stage::Quit),
];

impl Stage {
    /// Every stage, in the order of the dialogue.
    pub fn all() -> impl Iterator<Item = Stage> {
        STAGES.iter().map(|(_, stage)| *stage)
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        by_name(&STAGES, text, "stage")
    }
}

/// What a reply answers: the key of `--reply KEY="REPLY"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// The connection itself.
    Greeting,
    /// EHLO (RFC 5321 4.1.1.1); the reply also decides which extensions are offered.
    Ehlo,
    /// HELO.
    Helo,
    /// MAIL.
    Mail,
    /// Each RCPT.
    Rcpt,
    /// DATA; only 354 lets the message begin.
    Data,
    /// Each BDAT chunk, the last one included (RFC 3030 2).
    Bdat,
    /// The final dot, and the last BDAT chunk unless [`Answered::Bdat`] has a reply too.
    Dot,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
}

/// The names of what can be answered, as `--reply` takes them.
const ANSWERED: [(&str, Answered); 10] = [
    ("greeting", Answered::Greeting),
    ("ehlo", Answered::Ehlo),
    ("helo", Answered::Helo),
    ("mail", Answered::Mail),
    ("rcpt", Answered::Rcpt),
    ("data", Answered::Data),
    ("bdat", Answered::Bdat),
    ("dot", Answered::Dot),
    ("rset", Answered::Rset),
    ("quit", Answered::Quit),
];

impl FromStr for Answered {
    type Err = String;

    fn from_str(text: &str) -> Result<Answered, String> {
        by_name(&ANSWERED, text, "command")
    }
}

fn by_name<T: Copy>(names: &[(&str, T)], text: &str, what: &str) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let allowed: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        format!("unknown {what} '{text}', allowed: {}", allowed.join(" "))
    })
}

/// How a sink behaves; may be replaced while it runs, with effect on each session's next command.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Name in the greeting and in the reply to EHLO.
    pub hostname: String,
    /// Replies other than the usual ones; of two for the same thing the later wins. A reply is
    /// `CODE text`; `\n` (or a line feed) in it starts a further line with the same code. A text
    /// without a code is sent as it is; after an empty one the connection stays open and says
    /// nothing any more. 421 closes it.
    pub replies: Vec<(Answered, String)>,
    /// Replies to RCPT for recipients whose address contains a text; the first that fits wins,
    /// and wins over `replies`.
    pub recipients: Vec<(String, String)>,
    /// Where to break off.
    pub drop_at: Option<Stage>,
    /// Where to stop reading and answering, with the connection left open until the sink ends or
    /// resets it.
    pub stall_at: Option<Stage>,
    /// How long each group of replies is held back; also the greeting.
    pub delay: Duration,
    /// Offer PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// Offer CHUNKING (RFC 3030).
    pub chunking: bool,
    /// Connections beyond this number are greeted with 421 and closed.
    pub connections_max: Option<u64>,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            hostname: "sink.test".to_owned(),
            replies: Vec::new(),
            recipients: Vec::new(),
            drop_at: None,
            stall_at: None,
            delay: Duration::ZERO,
            pipelining: true,
            chunking: true,
            connections_max: None,
        }
    }
}

impl Behaviour {
    /// This behaviour with one more reply.
    #[must_use]
    pub fn reply(mut self, to: Answered, text: &str) -> Behaviour {
        self.replies.push((to, text.to_owned()));
        self
    }

    /// This behaviour with its own reply to recipients whose address contains `part`.
    #[must_use]
    pub fn reply_to_recipient(mut self, part: &str, text: &str) -> Behaviour {
        self.recipients.push((part.to_owned(), text.to_owned()));
        self
    }

    /// This behaviour, breaking off at `stage`.
    #[must_use]
    pub fn drop_at(mut self, stage: Stage) -> Behaviour {
        self.drop_at = Some(stage);
        self
    }
}

/// One reply, ready to be sent.
#[derive(Debug)]
pub(super) struct Reply {
    /// With its line ends; empty: nothing is answered.
    pub(super) octets: Vec<u8>,
    /// `None` when the text is not a reply.
    pub(super) code: Option<u16>,
}

impl Reply {
    /// Whether the code is 2yz.
    pub(super) fn is_positive(&self) -> bool {
        self.code.is_some_and(|code| code / 100 == 2)
    }

    fn new(text: &str) -> Reply {
        let text = text.replace("\\n", "\n");
        let Some((code, _)) = split_code(&text) else {
            let octets = if text.is_empty() { text } else { text.replace('\n', "\r\n") + "\r\n" };
            return Reply { octets: octets.into_bytes(), code: None };
        };
        let lines: Vec<&str> = text
            .split('\n')
            .map(|line| split_code(line).filter(|(own, _)| *own == code).map_or(line, |(_, t)| t))
            .collect();
        let mut octets = Vec::with_capacity(text.len() + 8);
        for (index, line) in lines.iter().enumerate() {
            let separator = if index + 1 == lines.len() { ' ' } else { '-' };
            octets.extend_from_slice(format!("{code}{separator}{line}\r\n").as_bytes());
        }
        Reply { octets, code: Some(code) }
    }
}

/// `250-text` and `250 text` as code and text.
fn split_code(line: &str) -> Option<(u16, &str)> {
    let code = line.get(..3).filter(|code| code.bytes().all(|b| b.is_ascii_digit()))?;
    let rest = &line[3..];
    let text = if rest.is_empty() { rest } else { rest.strip_prefix([' ', '-'])? };
    Some((code.parse().ok()?, text))
}

/// The compiled form of a [`Behaviour`].
#[derive(Debug)]
pub(super) struct Script {
    pub(super) greeting: Reply,
    pub(super) ehlo: Reply,
    pub(super) helo: Reply,
    pub(super) mail: Reply,
    pub(super) rcpt: Reply,
    pub(super) data: Reply,
    /// Reply to a chunk that is not the last.
    pub(super) chunk: Reply,
    /// Reply to the last chunk.
    pub(super) chunk_last: Reply,
    pub(super) dot: Reply,
    pub(super) rset: Reply,
    pub(super) quit: Reply,
    pub(super) recipients: Vec<(Vec<u8>, Reply)>,
    drop_at: Option<Stage>,
    stall_at: Option<Stage>,
    pub(super) delay: Duration,
    pub(super) connections_max: Option<u64>,
}

impl Script {
    pub(super) fn new(behaviour: &Behaviour) -> Script {
        let own = |key: Answered| {
            behaviour.replies.iter().rev().find(|(to, _)| *to == key).map(|(_, text)| text.as_str())
        };
        let reply = |key: Answered, usual: &str| Reply::new(own(key).unwrap_or(usual));
        let name = &behaviour.hostname;
        let dot = own(Answered::Dot).unwrap_or("250 2.0.0 Message accepted");
        Script {
            greeting: reply(Answered::Greeting, &format!("220 {name} ESMTP")),
            ehlo: reply(Answered::Ehlo, &ehlo_text(behaviour)),
            helo: reply(Answered::Helo, &format!("250 {name}")),
            mail: reply(Answered::Mail, "250 2.1.0 Sender ok"),
            rcpt: reply(Answered::Rcpt, "250 2.1.5 Recipient ok"),
            data: reply(Answered::Data, "354 End data with <CR><LF>.<CR><LF>"),
            chunk: reply(Answered::Bdat, "250 2.0.0 Chunk accepted"),
            chunk_last: reply(Answered::Bdat, dot),
            dot: Reply::new(dot),
            rset: reply(Answered::Rset, "250 2.0.0 Reset"),
            quit: reply(Answered::Quit, "221 2.0.0 Bye"),
            recipients: behaviour
                .recipients
                .iter()
                .map(|(part, text)| (part.clone().into_bytes(), Reply::new(text)))
                .collect(),
            drop_at: behaviour.drop_at,
            stall_at: behaviour.stall_at,
            delay: behaviour.delay,
            connections_max: behaviour.connections_max,
        }
    }
}

impl Script {
    /// How a connection ends or stops at `stage`, if it does.
    pub(super) fn breaks_at(&self, stage: Stage) -> Option<Next> {
        if self.drop_at == Some(stage) {
            return Some(Next::Close);
        }
        (self.stall_at == Some(stage)).then_some(Next::Stall)
    }
}

fn ehlo_text(behaviour: &Behaviour) -> String {
    let mut text = format!("250 {}", behaviour.hostname);
    let offers = [
        ("PIPELINING", behaviour.pipelining),
        ("CHUNKING", behaviour.chunking),
        ("8BITMIME", true),
        ("SMTPUTF8", true),
        ("SIZE 1073741824", true),
        ("DSN", true),
        ("ENHANCEDSTATUSCODES", true),
    ];
    for (offer, _) in offers.iter().filter(|(_, offered)| *offered) {
        text.push('\n');
        text.push_str(offer);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_take_their_wire_form() {
        let table: &[(&str, &str, Option<u16>)] = &[
            ("450 4.2.0 busy", "450 4.2.0 busy\r\n", Some(450)),
            ("431 a\\nb", "431-a\r\n431 b\r\n", Some(431)),
            ("250-a\\n250-b\\n250 c", "250-a\r\n250-b\r\n250 c\r\n", Some(250)),
            ("250 a\n450 b", "250-a\r\n250 450 b\r\n", Some(250)),
            ("250", "250 \r\n", Some(250)),
            ("garbage", "garbage\r\n", None),
            ("2500 no code", "2500 no code\r\n", None),
            ("é25", "é25\r\n", None),
            ("", "", None),
        ];
        for (text, octets, code) in table {
            let reply = Reply::new(text);
            assert_eq!(String::from_utf8_lossy(&reply.octets), *octets, "{text}");
            assert_eq!(reply.code, *code, "{text}");
        }
    }

    #[test]
    fn the_later_reply_wins_and_dot_covers_the_last_chunk() {
        let script = Script::new(
            &Behaviour::default()
                .reply(Answered::Mail, "450 first")
                .reply(Answered::Mail, "451 second")
                .reply(Answered::Dot, "452 full"),
        );
        assert_eq!(script.mail.code, Some(451));
        assert_eq!(script.dot.code, Some(452));
        assert_eq!(script.chunk_last.code, Some(452));
        assert_eq!(script.chunk.code, Some(250));
    }

    #[test]
    fn names_are_found_in_any_case_and_refused_with_what_is_allowed() {
        assert_eq!("RCPT".parse(), Ok(Answered::Rcpt));
        assert_eq!("dot".parse(), Ok(Stage::Dot));
        let error = "helo".parse::<Stage>().unwrap_err();
        assert!(error.contains("'helo'") && error.contains("connect greeting ehlo"), "{error}");
        assert_eq!(Stage::all().count(), 10);
    }
}
