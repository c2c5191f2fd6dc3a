//! MAIL and RCPT as they are written (RFC 5321 4.1.1, RFC 1870, 3461, 6152, 6531).
//!
//! Owns: which parameters go out, and whether a host can take a message at all. Never: the order
//! of commands. A parameter is sent only where the host offers it (RFC 5321 4.1.1.11).

use std::borrow::Cow;

use super::body::octets_sent;
use super::{Extensions, Transaction};
use crate::mail::{BodyKind, Enhanced, Failure, Mailbox, Notify, Recipient, Ret};

/// Why a host that offers no more than `offered` cannot take the message, if so. Nothing is
/// converted: 8-bit mail is never sent to a 7-bit host (RFC 6152 3), UTF-8 never to one without
/// SMTPUTF8 (RFC 6531 3.1).
pub(super) fn unfit(transaction: &Transaction, offered: &Extensions) -> Option<Failure> {
    let facts = transaction.body.facts;
    let utf8_header = transaction.smtputf8 && facts.utf8_header;
    let utf8_sender =
        transaction.sender.as_ref().is_some_and(|sender| path(sender, offered).is_none());
    if utf8_sender || utf8_header && !offered.smtputf8 {
        return Some(no_smtputf8());
    }
    if facts.eight_bit && !offered.eight_bit_mime {
        return Some(Failure::local(Enhanced::new(5, 6, 3), "host does not offer 8BITMIME"));
    }
    if !offered.takes_octets(octets_sent(&transaction.body.bytes)) {
        return Some(Failure::local(Enhanced::new(5, 3, 4), "message larger than the host's SIZE"));
    }
    None
}

/// Why such a host cannot take this recipient, if so.
pub(super) fn unfit_recipient(recipient: &Recipient, offered: &Extensions) -> Option<Failure> {
    path(&recipient.address, offered).is_none().then(no_smtputf8)
}

fn no_smtputf8() -> Failure {
    Failure::local(Enhanced::new(5, 6, 7), "host does not offer SMTPUTF8")
}

/// The mailbox as this host may see it. Without SMTPUTF8 a domain goes as its A-labels; a
/// local-part has no other form (RFC 6531 3.7.1).
fn path<'a>(mailbox: &'a Mailbox, offered: &Extensions) -> Option<Cow<'a, str>> {
    if offered.smtputf8 || !mailbox.needs_utf8() {
        return Some(Cow::Borrowed(mailbox.as_str()));
    }
    let (local_part, _) = mailbox.as_str().rsplit_once('@')?;
    local_part.is_ascii().then(|| Cow::Owned(format!("{local_part}@{}", mailbox.domain())))
}

/// Appends the MAIL command.
pub(super) fn write_mail(transaction: &Transaction, offered: &Extensions, out: &mut Vec<u8>) {
    out.extend_from_slice(b"MAIL FROM:<");
    if let Some(path) = transaction.sender.as_ref().and_then(|sender| path(sender, offered)) {
        out.extend_from_slice(path.as_bytes());
    }
    out.push(b'>');
    if offered.size_octets_max.is_some() {
        out.extend_from_slice(b" SIZE=");
        let octets = octets_sent(&transaction.body.bytes);
        out.extend_from_slice(itoa::Buffer::new().format(octets).as_bytes());
    }
    let eight_bit =
        transaction.body.facts.eight_bit || transaction.body_kind == BodyKind::EightBitMime;
    if offered.eight_bit_mime && eight_bit {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if offered.smtputf8 && needs_smtputf8(transaction) {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if offered.dsn {
        match transaction.ret {
            Some(Ret::Full) => out.extend_from_slice(b" RET=FULL"),
            Some(Ret::Headers) => out.extend_from_slice(b" RET=HDRS"),
            None => {}
        }
        write_xtext(b" ENVID=", transaction.envid.as_deref(), out);
    }
    out.extend_from_slice(b"\r\n");
}

fn needs_smtputf8(transaction: &Transaction) -> bool {
    transaction.smtputf8
        || transaction.sender.as_ref().is_some_and(Mailbox::needs_utf8)
        || transaction.recipients.iter().any(|recipient| recipient.address.needs_utf8())
}

/// Appends the RCPT command of a recipient that [`unfit_recipient`] has passed.
pub(super) fn write_rcpt(recipient: &Recipient, offered: &Extensions, out: &mut Vec<u8>) {
    let path = path(&recipient.address, offered).expect("unfit recipients are never sent");
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(path.as_bytes());
    out.push(b'>');
    if offered.dsn {
        write_notify(recipient.notify, out);
        write_xtext(b" ORCPT=", recipient.orcpt.as_deref(), out);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_notify(notify: Notify, out: &mut Vec<u8>) {
    let words: [(u8, &[u8]); 4] = [
        (Notify::NEVER, b"NEVER"),
        (Notify::SUCCESS, b"SUCCESS"),
        (Notify::FAILURE, b"FAILURE"),
        (Notify::DELAY, b"DELAY"),
    ];
    let mut before: &[u8] = b" NOTIFY=";
    for (bit, word) in words {
        if notify.0 & bit != 0 {
            out.extend_from_slice(before);
            out.extend_from_slice(word);
            before = b",";
        }
    }
}

/// Appends a parameter as it was received. One that could end the command or begin another
/// parameter is left out: the parser that let it in would be at fault, and this is the last gate.
fn write_xtext(name: &[u8], value: Option<&str>, out: &mut Vec<u8>) {
    if let Some(value) = value.filter(|value| value.chars().all(|c| c > ' ' && !c.is_control())) {
        out.extend_from_slice(name);
        out.extend_from_slice(value.as_bytes());
    }
}
