//! The mail log: one method per event, one line per event, in the grammar that people and log
//! parsers know from the mail_logs of Cisco's Email Security Appliance.
//!
//! Owns: the text of each line and which [`LogDetail`] shows it. Never: files, clocks, or what
//! happened (the caller says).
//!
//! ```text
//! Www Mmm dd hh:mm:ss yyyy Level: body
//! ```
//!
//! Foreign text is escaped: a peer can never make a line. The lines of one message keep the
//! order in which its methods are called.
//!
//! Limits: those of [`super::line`]; recipients of one event above [`RIDS_PER_LINE_MAX`] go on in
//! a further line of the same form, so that none is left out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jiff::tz::TimeZone;

use super::line::{Level, Line, LineBuffer};
use super::settings::LogDetail;
use crate::mail::{
    ConnectionCause, ConnectionFailure, Dcid, Domain, Enhanced, Failure, Icid, Mailbox, Mid, Now,
    Reply, Rid, Stage, Wall,
};

/// Recipient ids in one line; the longest take 12 octets each.
pub const RIDS_PER_LINE_MAX: usize = 256;

const _: () = assert!(RIDS_PER_LINE_MAX * 12 < crate::limits::LOG_LINE_OCTETS_MAX - 512);

/// The mail log of one shard.
#[derive(Debug)]
pub struct MailLog {
    buffer: LineBuffer,
    detail: LogDetail,
}

/// What the writer needs.
impl MailLog {
    /// An empty log that shows the time of `zone` and the events of `detail`.
    #[must_use]
    pub fn new(zone: TimeZone, detail: LogDetail) -> Self {
        Self { buffer: LineBuffer::new(zone), detail }
    }

    /// Hands out all lines that wait to be written; whole lines, UTF-8.
    pub fn take(&mut self) -> Vec<u8> {
        self.buffer.take()
    }

    /// Gives a written buffer back for reuse.
    pub fn recycle(&mut self, written: Vec<u8>) {
        self.buffer.recycle(written);
    }

    /// Octets that wait to be written.
    #[must_use]
    pub fn waiting_octets(&self) -> usize {
        self.buffer.len()
    }

    /// Is nothing waiting to be written?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Counts lines that could not be written; their number is logged.
    pub fn lost(&mut self, lines: u64) {
        self.buffer.lost(lines);
    }

    /// Lines that never reached the log, since start.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.buffer.dropped_total()
    }

    /// Another filter, after a reload of the configuration.
    pub fn set_detail(&mut self, detail: LogDetail) {
        self.detail = detail;
    }

    /// The head of a log file, also after it was reopened.
    pub fn begin_logfile(&mut self, now: Now, version: &str) {
        let offset = self.buffer.offset_seconds(now.wall);
        self.own_line(now, Level::Info, |line| line.text("Begin Logfile"));
        self.own_line(now, Level::Info, |line| line.text("Version: ").text(version));
        self.own_line(now, Level::Info, |line| {
            let sign = if offset < 0 { "-" } else { "" };
            let line = line.text("Time offset from UTC: ").text(sign);
            line.number(u64::from(offset.unsigned_abs())).text(" seconds")
        });
    }
}

/// Injection: shown by [`LogDetail::Full`] only, except what went wrong.
impl MailLog {
    /// A client connected: `New SMTP ICID 5 interface NAME (LOCAL) address PEER ...`.
    pub fn new_smtp_icid(
        &mut self,
        now: Now,
        icid: Icid,
        listener: &str,
        local: IpAddr,
        peer: IpAddr,
    ) {
        self.line(now, LogDetail::Full, |line| {
            let line = line.text("New SMTP ICID ").number(icid.0).text(" interface ");
            let line = line.foreign(listener.as_bytes()).text(" (").ip(local).text(") address ");
            line.ip(peer).text(" reverse dns host unknown verified no")
        });
    }

    /// The client may relay, because of the sender group `group` and its entry `matched`.
    pub fn icid_relay(&mut self, now: Now, icid: Icid, group: &str, matched: &str) {
        self.line(now, LogDetail::Full, |line| policy(line, icid, " RELAY SG ", group, matched));
    }

    /// The client may not.
    pub fn icid_reject(&mut self, now: Now, icid: Icid, group: &str, matched: &str) {
        self.line(now, LogDetail::Problems, |line| {
            policy(line, icid, " REJECT SG ", group, matched)
        });
    }

    /// The client's connection is encrypted; both names are our own library's.
    pub fn icid_tls_success(&mut self, now: Now, icid: Icid, protocol: &str, cipher: &str) {
        self.line(now, LogDetail::Full, |line| {
            tls_success(line.text("ICID ").number(icid.0), protocol, cipher)
        });
    }

    /// The client's TLS handshake failed.
    pub fn icid_tls_failed(&mut self, now: Now, icid: Icid, why: &str) {
        self.line(now, LogDetail::Problems, |line| {
            line.text("ICID ").number(icid.0).text(" TLS failed: ").foreign(why.as_bytes())
        });
    }

    /// A transaction began; ICID 0 for a message that was generated here.
    pub fn start_mid(&mut self, now: Now, mid: Mid, icid: Icid) {
        self.line(now, LogDetail::Full, |line| {
            line.text("Start MID ").number(mid.0).text(" ICID ").number(icid.0)
        });
    }

    /// The reverse path; `None` is `<>`.
    pub fn from(&mut self, now: Now, mid: Mid, icid: Icid, sender: Option<&Mailbox>) {
        self.line(now, LogDetail::Full, |line| {
            let line = line.text("MID ").number(mid.0).text(" ICID ").number(icid.0);
            path(line.text(" From: "), sender)
        });
    }

    /// A recipient that was taken.
    pub fn to(&mut self, now: Now, mid: Mid, icid: Icid, rid: Rid, recipient: &Mailbox) {
        self.line(now, LogDetail::Full, |line| {
            let line = line.text("MID ").number(mid.0).text(" ICID ").number(icid.0);
            let line = line.text(" RID ").number(u64::from(rid.0)).text(" To: ");
            path(line, Some(recipient))
        });
    }

    /// The Message-ID field as received, with its angle brackets.
    pub fn message_id(&mut self, now: Now, mid: Mid, message_id: &[u8]) {
        self.line(now, LogDetail::Full, |line| {
            line.text("MID ").number(mid.0).text(" Message-ID '").foreign(message_id).text("'")
        });
    }

    /// The Subject field as received.
    pub fn subject(&mut self, now: Now, mid: Mid, subject: &[u8]) {
        self.line(now, LogDetail::Full, |line| {
            line.text("MID ").number(mid.0).text(" Subject \"").foreign(subject).text("\"")
        });
    }

    /// The message is complete.
    pub fn ready(&mut self, now: Now, mid: Mid, octets: u64, sender: Option<&Mailbox>) {
        self.line(now, LogDetail::Full, |line| {
            let line = line.text("MID ").number(mid.0).text(" ready ").number(octets);
            path(line.text(" bytes from "), sender)
        });
    }

    /// Delivery may begin.
    pub fn queued(&mut self, now: Now, mid: Mid) {
        self.line(now, LogDetail::Full, |line| {
            line.text("MID ").number(mid.0).text(" queued for delivery")
        });
    }

    /// No 250 was given, and the message is not kept.
    pub fn aborted(&mut self, now: Now, mid: Mid) {
        self.line(now, LogDetail::Problems, |line| {
            line.text("Message aborted MID ").number(mid.0).text(" Receiving aborted")
        });
    }

    /// The client vanished; [`MailLog::icid_close`] follows.
    pub fn icid_lost(&mut self, now: Now, icid: Icid) {
        self.line(now, LogDetail::Full, |line| line.text("ICID ").number(icid.0).text(" lost"));
    }

    /// The client's connection is closed.
    pub fn icid_close(&mut self, now: Now, icid: Icid) {
        self.line(now, LogDetail::Full, |line| line.text("ICID ").number(icid.0).text(" close"));
    }
}

/// Delivery that goes well: shown by [`LogDetail::Delivery`] and above.
impl MailLog {
    /// The TCP connection to a host stands.
    pub fn new_smtp_dcid(&mut self, now: Now, dcid: Dcid, local: IpAddr, peer: SocketAddr) {
        self.line(now, LogDetail::Delivery, |line| {
            let line = line.text("New SMTP DCID ").number(dcid.0).text(" interface ").ip(local);
            let line = line.text(" address ").ip(peer.ip());
            line.text(" port ").number(u64::from(peer.port()))
        });
    }

    /// The connection to the host is encrypted; both names are our own library's.
    pub fn dcid_tls_success(&mut self, now: Now, dcid: Dcid, protocol: &str, cipher: &str) {
        self.line(now, LogDetail::Delivery, |line| {
            tls_success(line.text("DCID ").number(dcid.0), protocol, cipher)
        });
    }

    /// A transaction with these recipients begins.
    pub fn delivery_start(&mut self, now: Now, dcid: Dcid, mid: Mid, rids: &[Rid]) {
        self.lines(now, LogDetail::Delivery, rids, |line, rids| {
            attempt(line.text("Delivery start DCID "), dcid, mid, rids)
        });
    }

    /// The next hop took the message for these recipients.
    pub fn message_done(&mut self, now: Now, dcid: Dcid, mid: Mid, rids: &[Rid]) {
        self.lines(now, LogDetail::Delivery, rids, |line, rids| {
            attempt(line.text("Message done DCID "), dcid, mid, rids)
        });
    }

    /// What the next hop said when it took the message: the text without the code.
    pub fn response(&mut self, now: Now, mid: Mid, rids: &[Rid], reply: &Reply) {
        self.lines(now, LogDetail::Delivery, rids, |line, rids| {
            let line = line.text("MID ").number(mid.0).text(" RID ").rids(rids);
            line.text(" Response '").joined(&reply.lines).text("'")
        });
    }

    /// Nothing of the message is left: the last line of a MID.
    pub fn message_finished(&mut self, now: Now, mid: Mid) {
        self.line(now, LogDetail::Delivery, |line| {
            line.text("Message finished MID ").number(mid.0).text(" done")
        });
    }

    /// The connection to the host is closed.
    pub fn dcid_close(&mut self, now: Now, dcid: Dcid) {
        self.line(now, LogDetail::Delivery, |line| {
            line.text("DCID ").number(dcid.0).text(" close")
        });
    }
}

/// Delivery that does not go well, and what an operator did: always shown.
impl MailLog {
    /// A connection brought no session. `local` is our own address, `None` when none was bound.
    pub fn connection_error(
        &mut self,
        now: Now,
        dcid: Dcid,
        domain: &Domain,
        peer: SocketAddr,
        local: Option<IpAddr>,
        failure: &ConnectionFailure,
    ) {
        self.line(now, LogDetail::Problems, |line| {
            let line = line.text("Connection Error: DCID ").number(dcid.0);
            let line = line.text(" domain: ").foreign(domain.as_str().as_bytes());
            let line = line.text(" IP: ").ip(peer.ip()).text(" port: ");
            let line = line.number(u64::from(peer.port())).text(" details: ");
            let line = details(line, &failure.cause).text(" interface: ");
            let local = local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            line.ip(local).text(" reason: ").text(reason(failure))
        });
    }

    /// STARTTLS or the handshake with the host failed.
    pub fn dcid_tls_failed(&mut self, now: Now, dcid: Dcid, why: &str) {
        self.line(now, LogDetail::Problems, |line| {
            line.text("DCID ").number(dcid.0).text(" TLS failed: ").foreign(why.as_bytes())
        });
    }

    /// The destination asks for TLS and the host cannot do it: nothing was sent to it.
    pub fn dcid_tls_required(&mut self, now: Now, dcid: Dcid, peer: IpAddr) {
        self.line(now, LogDetail::Problems, |line| {
            let line = line.text("DCID ").number(dcid.0).text(" IP ").ip(peer);
            line.text(" TLS was required but could not be successfully negotiated")
        });
    }

    /// A soft bounce: this recipient waits for a later time. DCID 0 without a connection.
    pub fn delayed(&mut self, now: Now, dcid: Dcid, mid: Mid, rid: Rid, failure: &Failure) {
        self.line(now, LogDetail::Problems, |line| {
            failed(line.text("Delayed: DCID "), dcid, mid, rid, failure)
        });
    }

    /// A hard bounce: this recipient is given up. DCID 0 without a connection.
    pub fn bounced(&mut self, now: Now, dcid: Dcid, mid: Mid, rid: Rid, failure: &Failure) {
        self.line(now, LogDetail::Problems, |line| {
            failed(line.text("Bounced: DCID "), dcid, mid, rid, failure)
        });
    }

    /// When these recipients are tried again, by which bounce profile.
    pub fn pending_till(&mut self, now: Now, mid: Mid, rids: &[Rid], till: Wall, profile: &str) {
        let zone = self.buffer.zone().clone();
        self.lines(now, LogDetail::Problems, rids, |line, rids| {
            let line = line.text("MID ").number(mid.0).text(" to RID ").rids(rids);
            let line = line.text(" pending till ").time(&zone, till).text(" [");
            line.foreign(profile.as_bytes()).text("]")
        });
    }

    /// A report on a failure was made; [`MailLog::start_mid`] with ICID 0 follows.
    pub fn generated_for_bounce(&mut self, now: Now, mid: Mid, of_mid: Mid) {
        self.line(now, LogDetail::Problems, |line| {
            let line = line.text("MID ").number(mid.0);
            line.text(" was generated for bounce of MID ").number(of_mid.0)
        });
    }

    /// The reply to the final dot was lost: these recipients may have the message.
    pub fn possible_delivery(&mut self, now: Now, dcid: Dcid, mid: Mid, rids: &[Rid]) {
        self.lines(now, LogDetail::Problems, rids, |line, rids| {
            attempt(line.text("Possible Delivery: DCID "), dcid, mid, rids)
        });
    }

    /// The route of these recipients is /dev/null.
    pub fn discarded(&mut self, now: Now, mid: Mid, rids: &[Rid]) {
        self.lines(now, LogDetail::Delivery, rids, |line, rids| {
            line.text("Discarded: MID ").number(mid.0).text(" to RID ").rids(rids)
        });
    }

    /// The operator deleted these recipients.
    pub fn deleted(&mut self, now: Now, mid: Mid, rids: &[Rid]) {
        self.lines(now, LogDetail::Problems, rids, |line, rids| {
            line.text("Deleted: MID ").number(mid.0).text(" to ").rids(rids)
        });
    }

    /// DNS gave no answer for `name`, such as `ServFail` or `timeout`.
    pub fn dns_temporary_failure(&mut self, now: Now, name: &Domain, kind: &str, why: &str) {
        self.line(now, LogDetail::Problems, |line| {
            let line = line.text("DNS Temporary Failure ").foreign(name.as_str().as_bytes());
            let line = line.text(" ").foreign(kind.as_bytes());
            line.text(" - ").foreign(why.as_bytes())
        });
    }

    /// Something about the engine itself, which [`LogDetail::Problems`] leaves out.
    pub fn info(&mut self, now: Now, text: &str) {
        self.line(now, LogDetail::Delivery, |line| line.foreign(text.as_bytes()));
    }

    /// Something that somebody should look at.
    pub fn warning(&mut self, now: Now, text: &str) {
        self.own_line(now, Level::Warning, |line| line.foreign(text.as_bytes()));
    }

    /// Something that somebody must look at now.
    pub fn critical(&mut self, now: Now, text: &str) {
        self.own_line(now, Level::Critical, |line| line.foreign(text.as_bytes()));
    }

    fn line(&mut self, now: Now, shown_by: LogDetail, body: impl FnOnce(Line<'_>) -> Line<'_>) {
        if self.detail >= shown_by {
            self.own_line(now, Level::Info, body);
        }
    }

    /// One line for as many recipients as a line holds; nothing when there are none.
    fn lines(
        &mut self,
        now: Now,
        shown_by: LogDetail,
        rids: &[Rid],
        body: impl for<'a> Fn(Line<'a>, &[Rid]) -> Line<'a>,
    ) {
        for some in rids.chunks(RIDS_PER_LINE_MAX) {
            self.line(now, shown_by, |line| body(line, some));
        }
    }

    fn own_line(&mut self, now: Now, level: Level, body: impl FnOnce(Line<'_>) -> Line<'_>) {
        if let Some(line) = self.buffer.begin(now.wall, level) {
            body(line).end();
        }
    }
}

fn policy<'a>(line: Line<'a>, icid: Icid, verdict: &str, group: &str, matched: &str) -> Line<'a> {
    let line = line.text("ICID ").number(icid.0).text(verdict).foreign(group.as_bytes());
    let line = line.text(" match ").foreign(matched.as_bytes());
    line.text(" SBRS not enabled country not enabled")
}

fn tls_success<'a>(line: Line<'a>, protocol: &str, cipher: &str) -> Line<'a> {
    let line = line.text(" TLS success protocol ").foreign(protocol.as_bytes());
    line.text(" cipher ").foreign(cipher.as_bytes())
}

fn path<'a>(line: Line<'a>, mailbox: Option<&Mailbox>) -> Line<'a> {
    let address = mailbox.map_or("", Mailbox::as_str);
    line.text("<").foreign(address.as_bytes()).text(">")
}

fn attempt<'a>(line: Line<'a>, dcid: Dcid, mid: Mid, rids: &[Rid]) -> Line<'a> {
    line.number(dcid.0).text(" MID ").number(mid.0).text(" to RID ").rids(rids)
}

fn failed<'a>(line: Line<'a>, dcid: Dcid, mid: Mid, rid: Rid, failure: &Failure) -> Line<'a> {
    let line = line.number(dcid.0).text(" MID ").number(mid.0);
    let line = line.text(" to RID ").number(u64::from(rid.0)).text(" - ");
    let line = enhanced(line, failure.status).text(" - ").text(failure.status.name());
    match &failure.reply {
        Some(reply) => {
            let line = line.text(" ('").number(u64::from(reply.code)).text("', ");
            line.listed(reply.lines.iter()).text(")")
        }
        None => {
            let words = (!failure.detail.is_empty()).then_some(failure.detail.as_bytes());
            line.text(" ('000', ").listed(words.into_iter()).text(")")
        }
    }
}

fn enhanced(line: Line<'_>, code: Enhanced) -> Line<'_> {
    let line = line.number(u64::from(code.class)).text(".").number(u64::from(code.subject));
    line.text(".").number(u64::from(code.detail))
}

fn details<'a>(line: Line<'a>, cause: &ConnectionCause) -> Line<'a> {
    match cause {
        ConnectionCause::Reply(reply) => {
            let line = line.number(u64::from(reply.code)).text("-'");
            line.joined(&reply.lines).text("'")
        }
        ConnectionCause::Garbage(text) | ConnectionCause::Network(text) => {
            line.foreign(text.as_bytes())
        }
        ConnectionCause::Timeout => line.text("timeout"),
    }
}

/// Silence of a host whose TCP connection stands is an answer that SMTP does not know.
fn reason(failure: &ConnectionFailure) -> &'static str {
    match (&failure.cause, failure.stage) {
        (ConnectionCause::Reply(_) | ConnectionCause::Garbage(_), _)
        | (ConnectionCause::Timeout, Stage::Greeting | Stage::Ehlo) => "unexpected SMTP response",
        (ConnectionCause::Network(_), _) => "network error",
        (ConnectionCause::Timeout, _) => "connection timed out",
    }
}

#[cfg(test)]
mod tests;
