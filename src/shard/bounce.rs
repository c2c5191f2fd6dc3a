//! Hard bounces: the log line, the report to the sender, and only then the settlement.
//!
//! Owns: the order of the steps. Never: the wording of a report (`settle::report`).
//!
//! The failed recipients are settled when their report is on disk. A crash in between repeats
//! the last attempt and with it the report; no failure goes untold (RFC 5321 6.1). A report that
//! the queue has no room for leaves its cause queued.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use super::commit::Waiter;
use super::delivery::{Delivery, Rids};
use super::early::Parked;
use super::hot::Message;
use crate::mail::{
    BodyKind, Dcid, Envelope, Failure, Handle, Mid, Notify, Now, Recipient, Rid, Wall,
};
use crate::queue::{LastOutcome, NewMessage};
use crate::schedule::settings::BounceProfile;
use crate::settle::report;

/// When a recipient whose report could not be stored is looked at again.
const REPORT_RETRY: Duration = Duration::from_secs(60);

/// How soon a report asks again for room for the message it speaks of.
const LENT_AGAIN: Duration = Duration::from_millis(50);

/// Recipients whose report is on its way to the disk.
pub(super) struct Reported {
    handle: Handle,
    mid: Mid,
    rids: Rids,
    last: LastOutcome,
}

impl Shard {
    /// These recipients have failed for good.
    pub(super) fn bounce(
        self: &Rc<Self>,
        delivery: Delivery,
        failure: Failure,
        dcid: Dcid,
        host: Option<SocketAddr>,
    ) {
        self.bounce_after(delivery, failure, None, dcid, host);
    }

    /// As [`Shard::bounce`]; `last` is what the last attempt of an expired recipient came to.
    pub(super) fn bounce_after(
        self: &Rc<Self>,
        delivery: Delivery,
        failure: Failure,
        last: Option<Failure>,
        dcid: Dcid,
        host: Option<SocketAddr>,
    ) {
        if self.must_park(delivery.handle) {
            let (mid, piece) = (delivery.mid, Parked::Bounce(delivery, failure, last, dcid, host));
            return self.park(mid, piece);
        }
        for rid in &delivery.rids {
            self.log(|log, now| log.bounced(now, dcid, delivery.mid, *rid, &failure));
        }
        self.release(delivery.handle, &delivery.rids);
        if !delivery.profile.send_bounces {
            let last = outcome(&failure, host);
            return self.settle_bounced(delivery.handle, delivery.mid, &delivery.rids, &last);
        }
        let shard = self.clone();
        super::io::spawn(async move { shard.report(delivery, failure, last, host).await });
    }

    async fn report(
        self: Rc<Self>,
        delivery: Delivery,
        failure: Failure,
        last: Option<Failure>,
        host: Option<SocketAddr>,
    ) {
        // Many large messages may fail at once.
        let _lent = loop {
            match self.lend(&delivery) {
                Some(lent) => break lent,
                None => super::io::sleep(LENT_AGAIN).await,
            }
        };
        let Some((delivery, message)) = self.load(delivery).await else { return };
        let mid = self.queue.borrow_mut().ids().next_mid();
        let Some(mid) = mid else {
            let last = outcome(&failure, host);
            return self.report_not_stored(delivery.handle, delivery.mid, &delivery.rids, &last);
        };
        let made = self.compose(&delivery, &message, mid, &failure, last.as_ref(), host);
        let last = outcome(&failure, host);
        let Some(new) = made else {
            // Nobody to tell: the null sender (RFC 5321 4.5.5), or NOTIFY without FAILURE.
            return self.settle_bounced(delivery.handle, delivery.mid, &delivery.rids, &last);
        };
        let envelope = new.envelope.clone();
        let body = new.body.clone();
        let stored = self.queue.borrow_mut().append(new);
        match stored {
            Ok(ticket) => {
                self.log(|log, now| {
                    log.generated_for_bounce(now, mid, delivery.mid);
                    log.start_mid(now, mid, crate::mail::Icid(0));
                    log.from(now, mid, crate::mail::Icid(0), None);
                    for r in &envelope.recipients {
                        log.to(now, mid, crate::mail::Icid(0), r.rid, &r.address);
                    }
                    log.ready(now, mid, body.bytes.len() as u64, None);
                });
                let message = Arc::new(Message { envelope, body, received_us: None });
                let of = Reported {
                    handle: delivery.handle,
                    mid: delivery.mid,
                    rids: delivery.rids,
                    last,
                };
                self.waiters.borrow_mut().insert(ticket, Waiter::Report { of, mid, message });
                self.commit_bell.ring();
            }
            Err(_) => self.report_not_stored(delivery.handle, delivery.mid, &delivery.rids, &last),
        }
    }

    /// The report; `None`: nobody is to be told.
    fn compose(
        &self,
        delivery: &Delivery,
        message: &Message,
        mid: Mid,
        failure: &Failure,
        last: Option<&Failure>,
        host: Option<SocketAddr>,
    ) -> Option<NewMessage> {
        let profile = &delivery.profile;
        let config = self.config();
        let now = self.now();
        let recipients = delivery.recipients_of(message);
        let remote = host.map(|host| host.ip().to_string());
        let failed: Vec<_> = recipients
            .iter()
            .map(|recipient| report::Failed { recipient, failure, last, remote: remote.as_deref() })
            .collect();
        let report = report::build(&report::Input {
            hostname: &config.hostname,
            mid,
            original_mid: delivery.mid,
            date: &header_date(now.wall),
            arrival_date: &header_date(self.clock.shown(delivery.arrival, now)),
            envelope: &message.envelope,
            profile,
            original: &message.body.bytes.behind(0),
            original_octets: message.body.bytes.len() as u64,
            failed: &failed,
        })?;
        Some(new_report(report, mid, delivery.mid, profile, self.queue_now()))
    }

    /// The report of these recipients is on disk: they are settled.
    pub(super) fn report_stored(self: &Rc<Self>, of: &Reported) {
        self.settle_bounced(of.handle, of.mid, &of.rids, &of.last);
    }

    /// The report of these recipients is not on disk: they stay queued and are looked at again.
    pub(super) fn report_failed(self: &Rc<Self>, of: &Reported) {
        self.report_not_stored(of.handle, of.mid, &of.rids, &of.last);
    }

    fn report_not_stored(
        self: &Rc<Self>,
        handle: Handle,
        mid: Mid,
        rids: &[Rid],
        last: &LastOutcome,
    ) {
        let text = format!("MID {mid}: its failure report cannot be stored; it stays queued");
        self.log(|log, now| log.warning(now, &text));
        let till = self.queue_now().wall + REPORT_RETRY;
        let mut queue = self.queue.borrow_mut();
        for rid in rids {
            let attempts = attempts_of(&queue, handle, *rid);
            let _kept = queue.defer(handle, *rid, last, attempts, till).applied;
        }
        drop(queue);
        self.end_piece(handle);
    }

    fn settle_bounced(self: &Rc<Self>, handle: Handle, mid: Mid, rids: &[Rid], last: &LastOutcome) {
        let mut queue = self.queue.borrow_mut();
        let (mut settled, mut finished) = (0, false);
        for rid in rids {
            let change = queue.bounced(handle, *rid, last);
            settled += u64::from(change.applied);
            finished |= change.message_gone;
        }
        drop(queue);
        self.counters().bounced.add(settled);
        self.counters().pending.sub(settled);
        self.finish_message(mid, finished);
        self.end_piece(handle);
    }
}

fn attempts_of(queue: &crate::queue::Queue, handle: Handle, rid: Rid) -> u32 {
    let summary = queue.summary(handle);
    let found = summary.iter().flat_map(|s| &s.recipients).find(|r| r.rid == rid);
    found.map_or(0, |r| u32::from(r.attempts))
}

fn outcome(failure: &Failure, host: Option<SocketAddr>) -> LastOutcome {
    let host = host.map(|host| host.to_string().into());
    LastOutcome { code: failure.code(), status: failure.status, host, warnings: 0 }
}

fn new_report(
    report: report::Report,
    mid: Mid,
    of: Mid,
    profile: &BounceProfile,
    now: Now,
) -> NewMessage {
    let recipient =
        Recipient { rid: Rid(0), address: report.to, notify: Notify::default(), orcpt: None };
    let body = if report.facts.eight_bit { BodyKind::EightBitMime } else { BodyKind::SevenBit };
    let envelope = Envelope {
        sender: None,
        body,
        smtputf8: report.facts.utf8_header || recipient.address.needs_utf8(),
        ret: None,
        envid: None,
        recipients: vec![recipient],
    };
    NewMessage {
        mid,
        envelope: Arc::new(envelope),
        arrival: now.wall,
        bounce_profile: profile.name.clone(),
        listener: "report".into(),
        cause: Some(of),
        body: Arc::new(crate::mail::Body { bytes: report.bytes.into(), facts: report.facts }),
    }
}

/// A date for a message header (RFC 5322 3.3), in UTC.
fn header_date(wall: Wall) -> String {
    let ms = i64::try_from(wall.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}
