//! Deliver-or-sync: what a shard does between a message's final dot and its commit.
//!
//! Owns: how long a message is held back from the disk, and the pieces of deliveries that wait
//! for its commit, because a deferral or a bounce may only follow it. Never: the 250 (`commit`),
//! the states (`queue`).
//!
//! While a message is not on disk its client owns it: full acceptance by the next hops answers
//! it, anything else waits for the sync. The hold-back follows the time that deliveries take: a
//! multiple of it while that is below the bound of the tuning profile, nothing when it is above.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use super::delivery::{Delivery, UnderWay};
use super::hot::Message;
use super::pool::Served;
use crate::mail::{Dcid, Failure, Handle, Mid, Mono, Now, PossiblyAccepted, Rid};
use crate::queue::{Full, NewMessage, Ticket};

/// A message is held back for this many times the usual time of a delivery.
const USUAL_TIMES: u64 = 4;

/// No hold-back is shorter, in milliseconds: the clock has this grain.
const HOLD_BACK_MS_MIN: u64 = 4;

/// A piece of a delivery that waits until its message is on disk.
pub(super) enum Parked {
    /// To be deferred.
    Defer(Delivery, Failure, Dcid),
    /// To be bounced; the failure of the last attempt, and the host, as for `bounce_after`.
    Bounce(Delivery, Failure, Option<Failure>, Dcid, Option<std::net::SocketAddr>),
    /// Counts as delivered without a reply, which is no proof for a 250.
    Possibly(Delivery, Vec<(Rid, PossiblyAccepted)>, Dcid),
    /// All pieces have ended, and something is left of the handle.
    Rest(Handle, UnderWay),
}

impl Shard {
    /// Takes a message whose deliveries begin now, before its commit.
    pub(super) fn take_early(
        self: &Rc<Self>,
        new: NewMessage,
        message: &Arc<Message>,
        now: Now,
    ) -> Result<Ticket, Full> {
        let mid = new.mid;
        let hold_back = Duration::from_millis(self.hold_back_ms());
        let taken = self.queue.borrow_mut().take_early(new, now.mono + hold_back);
        let (ticket, handles) = taken?;
        self.log(|log, now| log.queued(now, mid));
        self.uncommitted.borrow_mut().insert(mid, message.clone());
        for (handle, domain) in handles {
            self.make_ready(handle, &domain);
        }
        self.hold_bell.ring();
        Ok(ticket)
    }

    /// How long the next message is held back, in milliseconds.
    pub(super) fn hold_back_ms(&self) -> u64 {
        let most = u64::from(self.config().tuning.hold_back_ms);
        let wanted = (self.usual_delivery_us.get() * USUAL_TIMES).div_ceil(1000);
        // Deliveries that take longer than we are ready to wait: waiting gains nothing.
        if wanted > most { 0 } else { wanted.max(HOLD_BACK_MS_MIN).min(most) }
    }

    /// A host that owes a reply for longer than any message is held back will not accept this one
    /// in time: its client would only wait, and with it all that it has sent behind it.
    pub(super) fn hold_back_no_more(&self, handle: Handle, served: &Served) {
        let most = u64::from(self.config().tuning.hold_back_ms);
        let (asked, now) = (served.asked.get(), self.now().mono);
        // What other shards have heard is asked for last: it lies in their caches.
        let owes = served.outstanding.get() > 0
            && now.since_ms(asked) > most
            && served.host.quiet_ms(asked, now) > most;
        if owes {
            self.queue.borrow_mut().write_now(handle);
            self.commit_bell.ring();
        }
    }

    /// A delivery took `us` microseconds from the final dot on; an eighth of it counts.
    pub(super) fn note_delivery_time(&self, us: u64) {
        let usual = self.usual_delivery_us.get();
        self.usual_delivery_us.set(usual - usual / 8 + us / 8);
    }

    /// Moves messages into the next commit when their hold-back is over.
    pub(super) async fn run_hold_back(self: Rc<Self>) {
        loop {
            let now = self.now().mono;
            let next = self.queue.borrow_mut().release_held(now);
            self.commit_bell.ring();
            match next {
                Some(Mono(due)) => {
                    let wait = Duration::from_millis(due.saturating_sub(now.0).max(1));
                    super::io::sleep(wait).await;
                }
                None => self.hold_bell.rung().await,
            }
        }
    }

    /// True, and the piece is kept until the commit, when its message is not on disk yet.
    pub(super) fn must_park(&self, handle: Handle) -> bool {
        let mut queue = self.queue.borrow_mut();
        let uncommitted = queue.is_uncommitted(handle);
        if uncommitted {
            queue.write_now(handle);
            self.commit_bell.ring();
        }
        uncommitted
    }

    /// Keeps a piece until the commit of `mid`; one whose commit has failed is withdrawn.
    pub(super) fn park(&self, mid: Mid, piece: Parked) {
        if self.queue.borrow().is_refused(piece.handle()) {
            return self.withdraw_piece(piece);
        }
        self.parked.borrow_mut().entry(mid).or_default().push(piece);
    }

    /// The message is on disk: what waited for that goes on.
    pub(super) fn unpark(self: &Rc<Self>, mid: Mid) {
        let pieces = self.parked.borrow_mut().remove(&mid);
        for piece in pieces.unwrap_or_default() {
            match piece {
                Parked::Defer(delivery, failure, dcid) => self.defer(delivery, failure, dcid),
                Parked::Bounce(delivery, failure, last, dcid, host) => {
                    self.bounce_after(delivery, failure, last, dcid, host);
                }
                Parked::Possibly(delivery, rids, dcid) => {
                    self.possibly_delivered(&delivery, &rids, dcid);
                }
                Parked::Rest(handle, under_way) => self.end_handle(handle, under_way),
            }
        }
    }

    /// The commit failed and the client hears 451: what waited for it is withdrawn. What is under
    /// way finishes; it is withdrawn too when it is not accepted.
    pub(super) fn withdraw(&self, mid: Mid) {
        let pieces = self.parked.borrow_mut().remove(&mid);
        pieces.unwrap_or_default().into_iter().for_each(|piece| self.withdraw_piece(piece));
    }

    fn withdraw_piece(&self, piece: Parked) {
        let handle = piece.handle();
        match piece {
            Parked::Defer(delivery, ..) | Parked::Bounce(delivery, ..) => {
                self.withdraw_recipients(handle, &delivery.rids);
                self.end_piece(handle);
            }
            Parked::Possibly(delivery, _, dcid) => {
                self.uncertain(&delivery, dcid);
                self.withdraw_recipients(handle, &delivery.rids);
                self.end_piece(handle);
            }
            Parked::Rest(_, under_way) => {
                let summary = self.queue.borrow().summary(handle);
                let rest = summary.map(|s| s.recipients).unwrap_or_default();
                let rids: Vec<Rid> = rest.iter().map(|recipient| recipient.rid).collect();
                self.withdraw_recipients(handle, &rids);
                self.end_handle(handle, under_way);
            }
        }
    }

    fn withdraw_recipients(&self, handle: Handle, rids: &[Rid]) {
        let mut queue = self.queue.borrow_mut();
        rids.iter().for_each(|rid| queue.withdraw(handle, *rid));
    }
}

impl Parked {
    fn handle(&self) -> Handle {
        match self {
            Self::Defer(delivery, ..)
            | Self::Bounce(delivery, ..)
            | Self::Possibly(delivery, ..) => delivery.handle,
            Self::Rest(handle, _) => *handle,
        }
    }
}
