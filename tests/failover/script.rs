//! Next hops that misbehave at one step of the dialogue and are sound otherwise.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::Conversation;
use crate::common::peer::Message;

/// What a peer does at a step.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// What a sound host says.
    Good,
    /// This line; after 421 the connection is closed.
    Say(&'static str),
    /// Closes the connection.
    Drop,
    /// Says nothing until the client leaves.
    Hang,
}

/// Decides by step: `GREETING`, `BODY` after the first line of the message, `.` for the final
/// dot, or the command line.
pub(crate) type Script = Box<dyn Fn(&str) -> Act + Send + Sync>;

/// Takes everything.
pub(crate) fn good() -> Script {
    Box::new(|_| Act::Good)
}

/// Does `act` at every step that begins with `step`.
pub(crate) fn always(step: &'static str, act: Act) -> Script {
    Box::new(move |line| if line.starts_with(step) { act.clone() } else { Act::Good })
}

/// Does `act` the first `times` times.
pub(crate) fn first(times: usize, step: &'static str, act: Act) -> Script {
    let seen = AtomicUsize::new(0);
    Box::new(move |line| {
        let hit = line.starts_with(step) && seen.fetch_add(1, Ordering::SeqCst) < times;
        if hit { act.clone() } else { Act::Good }
    })
}

/// Does `act` once.
pub(crate) fn once(step: &'static str, act: Act) -> Script {
    first(1, step, act)
}

/// Says to each step that contains a text what belongs to it.
pub(crate) fn each(replies: &'static [(&'static str, &'static str)]) -> Script {
    Box::new(|line| {
        let found = replies.iter().find(|(text, _)| line.contains(text));
        found.map_or(Act::Good, |(_, reply)| Act::Say(reply))
    })
}

/// Takes `most` recipients in one transaction and answers `reply` to the others.
pub(crate) fn at_most(most: usize, reply: &'static str) -> Script {
    let taken = AtomicUsize::new(0);
    Box::new(move |line| {
        if line.starts_with("MAIL") {
            taken.store(0, Ordering::SeqCst);
        }
        let is_one_more = line.starts_with("RCPT") && taken.fetch_add(1, Ordering::SeqCst) >= most;
        if is_one_more { Act::Say(reply) } else { Act::Good }
    })
}

/// How the client spoke to a host.
#[derive(Default)]
pub(crate) struct Seen {
    /// It began a transaction after EHLO.
    pub(crate) mail: AtomicBool,
    /// A command stood behind one that had not been answered yet.
    pub(crate) pipelined: AtomicBool,
}

/// Where a transaction stands: a host answers out of order commands by 503.
#[derive(Default)]
struct Progress {
    extended: bool,
    mail: Option<String>,
    recipients: Vec<String>,
}

impl Progress {
    /// Ends the transaction; gives what it had.
    fn forget(&mut self) -> (Option<String>, Vec<String>) {
        (self.mail.take(), std::mem::take(&mut self.recipients))
    }
}

/// Plays one connection by `script`.
pub(crate) fn play(peer: &mut Conversation, script: &Script, seen: &Seen) {
    if !say(peer, script("GREETING"), "220 peer.test ESMTP") {
        return;
    }
    let mut progress = Progress::default();
    loop {
        let line = peer.line();
        if line.starts_with("MAIL") {
            seen.mail.fetch_or(progress.extended, Ordering::SeqCst);
        }
        if line.starts_with("MAIL") || line.starts_with("RCPT") {
            seen.pipelined.fetch_or(peer.has_more(), Ordering::SeqCst);
        }
        if line.is_empty() || !command(peer, script, &line, &mut progress) {
            return;
        }
    }
}

/// False when the connection is over.
fn command(peer: &mut Conversation, script: &Script, line: &str, progress: &mut Progress) -> bool {
    match line.split([' ', ':']).next().unwrap_or("") {
        "EHLO" => {
            let act = script(line);
            progress.extended = is_good(&act);
            let offers: Vec<String> =
                peer.extensions.iter().map(|e| format!("250-{e}\r\n")).collect();
            say(peer, act, &format!("250-peer.test\r\n{}250 HELP", offers.concat()))
        }
        "MAIL" => {
            let act = script(line);
            progress.forget();
            if is_good(&act) {
                progress.mail = Some(line.to_owned());
            }
            say(peer, act, "250 2.1.0 ok")
        }
        "RCPT" if progress.mail.is_none() => say(peer, Act::Say("503 5.5.1 MAIL first"), ""),
        "RCPT" => {
            let act = script(line);
            if is_good(&act) {
                progress.recipients.push(line.to_owned());
            }
            say(peer, act, "250 2.1.5 ok")
        }
        "DATA" if progress.recipients.is_empty() => say(peer, Act::Say("503 5.5.1 RCPT first"), ""),
        "DATA" => {
            let act = script(line);
            let go_on = is_good(&act);
            say(peer, act, "354 go on") && (!go_on || body(peer, script, progress))
        }
        "RSET" => {
            progress.forget();
            say(peer, script(line), "250 2.0.0 ok")
        }
        "QUIT" => {
            say(peer, script(line), "221 2.0.0 bye");
            false
        }
        _ => say(peer, script(line), "250 2.0.0 ok"),
    }
}

fn body(peer: &mut Conversation, script: &Script, progress: &mut Progress) -> bool {
    let act = script("BODY");
    if !is_good(&act) {
        peer.line();
        if let Act::Say(garbage) = act {
            peer.say(garbage);
        } else if matches!(act, Act::Drop) {
            return false;
        }
        // It reads no more of the message: the write stands still.
        peer.pause(Duration::from_secs(4));
        return false;
    }
    let Some(data) = peer.body() else { return false };
    let act = script(".");
    let (mail, recipients) = progress.forget();
    if is_good(&act) {
        peer.keep(Message { mail: mail.unwrap_or_default(), recipients, data });
    }
    say(peer, act, "250 2.0.0 queued")
}

fn is_good(act: &Act) -> bool {
    match act {
        Act::Good => true,
        Act::Say(reply) => reply.starts_with('2'),
        Act::Drop | Act::Hang => false,
    }
}

fn say(peer: &mut Conversation, act: Act, good: &str) -> bool {
    match act {
        Act::Good => peer.say(good),
        Act::Say(reply) => {
            peer.say(reply);
            return !reply.starts_with("421");
        }
        Act::Drop => return false,
        Act::Hang => {
            peer.hang();
            return false;
        }
    }
    true
}
