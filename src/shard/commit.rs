//! The executor of the queue's effects: writes and syncs through the ring, and what follows.
//!
//! Owns: the segment files, who waits for which commit, and the moment a client gets its 250.
//! Never: the order of effects (`queue`). While one sync is under way, or two, the next batch
//! collects, which is the group commit, and writes go on. Behind a commit that many shared, the
//! next one waits up to [`COMPANY_US`] for them to come back.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use super::bounce::Reported;
use super::connection::{Bell, Beside};
use super::hot::Message;
use super::io::{self, Gather, Piece};
use super::receive_memory::Share;
use crate::mail::{Domain, Handle, Mid};
use crate::queue::{
    Chunk, Damaged, Effect, EffectId, Event, ReadPlan, Safe, SegmentId, StoredMessage,
};

/// A message that the system has no memory to read is tried so often, with this pause.
const READ_TRIES_MAX: u32 = 10;
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Clients that a commit has answered are waited for so long, and only while one of them comes
/// within each [`NAP`]: an idle shard commits what it has.
const COMPANY_US: u64 = 1_000;
const NAP: Duration = Duration::from_micros(100);

/// The same trouble with the disk is told of once in this time.
const TROUBLE_REPEAT_MS: u64 = 60_000;

/// The verdict on a client's message.
pub(super) enum Verdict {
    /// On disk: 250.
    Safe(Safe),
    /// Not on disk: 451.
    Failed,
}

/// The verdicts that have come for one client.
pub(super) type Verdicts = Rc<RefCell<Vec<(Mid, Verdict)>>>;

/// Who waits for a commit.
pub(super) enum Waiter {
    /// A client's dialogue.
    Client {
        mid: Mid,
        message: Arc<Message>,
        /// Its deliveries began before its commit.
        early: bool,
        verdicts: Verdicts,
        bell: Rc<Bell>,
        /// Its receive memory, free at the verdict.
        share: Share,
    },
    /// Recipients that bounce when their report is stored.
    Report { of: Reported, mid: Mid, message: Arc<Message> },
}

impl Shard {
    /// Carries out effects as long as the shard lives.
    pub(super) async fn run_commits(self: Rc<Self>) {
        loop {
            let waits = self.queue.borrow().waiting() > 0;
            if waits && self.queue.borrow().is_expecting() {
                self.wait_for_company().await;
            }
            let effect = self.queue.borrow_mut().next_effect();
            match effect {
                Some(effect) => self.carry_out_effect(effect).await,
                None => self.commit_bell.rung().await,
            }
            self.hear_queue();
        }
    }

    /// Holds the next commit back while those that the last one has answered come back.
    async fn wait_for_company(&self) {
        let end_us = self.answered_us.get() + COMPANY_US;
        let is_over = || io::now_us() >= end_us || !self.queue.borrow().is_expecting();
        let mut before = 0;
        loop {
            let waiting = self.queue.borrow().waiting();
            if waiting == before || is_over() {
                break;
            }
            before = waiting;
            let mut nap = std::pin::pin!(self.files.nap(NAP));
            while let Beside::Rung | Beside::Deadline = self.commit_bell.beside(nap.as_mut()).await
            {
                if is_over() {
                    break;
                }
            }
        }
        self.queue.borrow_mut().expect_no_more();
    }

    async fn carry_out_effect(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::Make { id, segment, octets, map_octets, header } => {
                // Filling a segment with zeros takes its time: commits go on meanwhile.
                let shard = self.clone();
                io::spawn(async move {
                    shard.make(id, segment, octets, map_octets, header).await;
                });
            }
            Effect::Write { id, segment, offset, chunks, direct } => {
                let octets: usize = chunks.iter().map(|c| c.as_ref().len()).sum();
                self.counters().queue_octets_written.add(octets as u64);
                let gather = Gather::new(chunks.into_iter().map(piece).collect());
                let result = match self.segment_file(segment) {
                    Some(file) if direct => file.write_direct_at(gather, offset).await,
                    Some(file) => file.write_at(gather, offset).await,
                    None => Err(std::io::ErrorKind::NotFound.into()),
                };
                self.tell_disk_trouble("write", segment, &result);
                self.queue.borrow_mut().handle_done(id, result);
            }
            Effect::Read { id, plan } => {
                let shard = self.clone();
                io::spawn(async move {
                    let result = shard.read_plan(&plan).await;
                    shard.queue.borrow_mut().handle_read(id, result);
                    shard.commit_bell.ring();
                });
            }
            Effect::Sync { id, segment } => {
                let shard = self.clone();
                io::spawn(async move { shard.sync(id, segment).await });
                // The disk works while the next write is put together.
                self.files.are_under_way().await;
            }
        }
    }

    async fn sync(self: Rc<Self>, id: EffectId, segment: SegmentId) {
        self.counters().queue_syncs.one();
        let result = match self.segment_file(segment) {
            Some(file) => file.sync_data().await,
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        self.tell_disk_trouble("sync", segment, &result);
        self.queue.borrow_mut().handle_done(id, result);
        // A commit that this one has overtaken is entered now: nothing of it may be settled before
        // it is heard of, and counted.
        self.hear_queue();
        if !self.queue.borrow().is_expecting() {
            // The next sync comes first, and the disk works while clients are answered.
            self.commit_bell.ring();
            self.files.are_under_way().await;
        }
        self.queue.borrow_mut().enter_synced();
        self.hear_queue();
        self.commit_bell.ring();
    }

    async fn make(
        self: Rc<Self>,
        id: EffectId,
        segment: SegmentId,
        octets: u64,
        map_octets: u64,
        header: Vec<u8>,
    ) {
        let medium = self.medium.clone();
        let made = io::on_helper(move || medium.make_mapped(segment, octets, map_octets, &header));
        let result = match made.await {
            Ok((file, mapping)) => {
                let file = self.files.adopt(file);
                self.segment_files.borrow_mut().insert(segment, file);
                Ok(mapping)
            }
            Err(error) => Err(error),
        };
        self.tell_disk_trouble("make", segment, &result);
        self.queue.borrow_mut().handle_made(id, result);
        self.commit_bell.ring();
    }

    fn segment_file(&self, segment: SegmentId) -> Option<io::File> {
        self.segment_files.borrow().get(&segment).cloned()
    }

    /// A segment that cannot be made is tried again each second, and told of each minute.
    fn tell_disk_trouble<T>(&self, what: &str, segment: SegmentId, result: &std::io::Result<T>) {
        let Err(error) = result else { return };
        let text = format!("queue: cannot {what} {segment}: {error}");
        let now = self.now().mono;
        let mut told = self.disk_trouble.borrow_mut();
        if told.0 == text && now.since_ms(told.1) < TROUBLE_REPEAT_MS {
            return;
        }
        self.log(|log, now| log.critical(now, &text));
        *told = (text, now);
    }

    /// What the queue says of appends.
    pub(super) fn hear_queue(self: &Rc<Self>) {
        loop {
            let event = self.queue.borrow_mut().poll_event();
            match event {
                None => return,
                Some(Event::Accepted { ticket, safe }) => {
                    let waiter = self.waiters.borrow_mut().remove(&ticket);
                    self.accepted(waiter.expect("every ticket has one waiter"), safe);
                }
                Some(Event::Committed { ticket, safe, handles, pending }) => {
                    let waiter = self.waiters.borrow_mut().remove(&ticket);
                    let waiter = waiter.expect("every ticket has one waiter");
                    self.committed(waiter, safe, &handles, pending);
                }
                Some(Event::Failed { ticket }) => {
                    let waiter = self.waiters.borrow_mut().remove(&ticket);
                    self.not_committed(waiter.expect("every ticket has one waiter"));
                }
                Some(Event::Held { mid, rids, what }) => self.hold_damaged(mid, &rids, what),
                Some(Event::Unstorable { segment, error }) => {
                    let text = format!("queue: cannot store into {segment}: {error}");
                    self.log(|log, now| log.critical(now, &text));
                }
                Some(Event::Intake(Some(why))) => {
                    let text = format!("queue: new mail is refused with 452 from now on: {why}");
                    self.log(|log, now| log.warning(now, &text));
                }
                Some(Event::Intake(None)) => {
                    self.log(|log, now| log.info(now, "queue: new mail is taken again"));
                }
            }
        }
    }

    /// Every recipient was accepted before the commit: the client is answered, and nothing is
    /// left to be done.
    fn accepted(self: &Rc<Self>, waiter: Waiter, safe: Safe) {
        let Waiter::Client { mid, message, verdicts, bell, share, .. } = waiter else {
            unreachable!("reports are not delivered before their commit")
        };
        self.uncommitted.borrow_mut().remove(&mid);
        let counters = self.counters();
        drop(share);
        counters.unwritten_messages.one();
        counters.messages_in.one();
        counters.octets_in.add(message.body.bytes.len() as u64);
        verdicts.borrow_mut().push((mid, Verdict::Safe(safe)));
        bell.ring();
    }

    fn committed(
        self: &Rc<Self>,
        waiter: Waiter,
        safe: Safe,
        handles: &[(Handle, Domain)],
        pending: u64,
    ) {
        let counters = self.counters();
        counters.commits.one();
        let (mid, message) = match &waiter {
            Waiter::Client { mid, message, .. } | Waiter::Report { mid, message, .. } => {
                (*mid, message.clone())
            }
        };
        counters.pending.add(pending);
        self.hot.borrow_mut().insert(mid, message.clone());
        match waiter {
            Waiter::Client { verdicts, bell, early, share, .. } => {
                drop(share);
                counters.accepted_from_clients.add(pending);
                counters.messages_in.one();
                let now_us = io::now_us();
                self.answered_us.set(now_us);
                if let Some(received_us) = message.received_us {
                    let latency_us = now_us.saturating_sub(received_us);
                    self.commit_latencies.borrow_mut().record_us(latency_us);
                }
                counters.octets_in.add(message.body.bytes.len() as u64);
                verdicts.borrow_mut().push((mid, Verdict::Safe(safe)));
                bell.ring();
                if early {
                    self.uncommitted.borrow_mut().remove(&mid);
                    return self.unpark(mid);
                }
                self.log(|log, now| log.queued(now, mid));
            }
            Waiter::Report { of, .. } => {
                self.log(|log, now| log.queued(now, mid));
                counters.generated_here.add(pending);
                self.report_stored(&of);
            }
        }
        for (handle, domain) in handles {
            self.make_ready(*handle, domain);
        }
    }

    fn not_committed(self: &Rc<Self>, waiter: Waiter) {
        match waiter {
            Waiter::Client { mid, verdicts, bell, share, .. } => {
                drop(share);
                self.uncommitted.borrow_mut().remove(&mid);
                self.withdraw(mid);
                verdicts.borrow_mut().push((mid, Verdict::Failed));
                bell.ring();
            }
            Waiter::Report { of, mid, .. } => {
                self.log(|log, now| log.aborted(now, mid));
                self.report_failed(&of);
            }
        }
    }

    /// Reads a message back from its segment; `None` when it is gone, or damaged and now held.
    pub(super) async fn read_back(self: &Rc<Self>, handle: Handle) -> Option<Arc<Message>> {
        loop {
            match self.read_once(handle).await {
                // It was copied forward while it was read.
                Err(damaged) if damaged.moved => {}
                Err(damaged) => {
                    let mid = self.queue.borrow().summary(handle).map_or(Mid(0), |s| s.mid);
                    self.hold_damaged(mid, &damaged.held, damaged.what);
                    return None;
                }
                Ok(stored) => {
                    let what = "its record does not fit its checksum";
                    self.hold_damaged(stored.mid, &stored.held, what);
                    let (envelope, body) = stored.into_parts();
                    let envelope = Arc::new(envelope);
                    return Some(Arc::new(Message { envelope, body, received_us: None }));
                }
            }
        }
    }

    async fn read_once(&self, handle: Handle) -> Result<StoredMessage, Damaged> {
        let plan = self.queue.borrow().read_plan(handle);
        let gone = Damaged { held: Vec::new(), what: "no longer queued", moved: false };
        let plan = plan.ok_or(gone)?;
        let octets = self.read_plan(&plan).await;
        self.queue.borrow_mut().parse(handle, &plan, octets.unwrap_or_default())
    }

    fn hold_damaged(&self, mid: Mid, held: &[crate::mail::Rid], what: &str) {
        if held.is_empty() {
            return;
        }
        self.counters().damaged.add(held.len() as u64);
        self.counters().pending.sub(held.len() as u64);
        let text = format!("MID {mid}: {} recipients held as damaged: {what}", held.len());
        self.log(|log, now| log.critical(now, &text));
    }

    /// Reads what is planned. What the system lacks for a moment is waited for: the disk has not
    /// said that the octets are damaged.
    async fn read_plan(&self, plan: &ReadPlan) -> std::io::Result<Vec<u8>> {
        let mut tries_left = READ_TRIES_MAX;
        loop {
            let result = self.read_pieces(plan).await;
            let Err(error) = &result else { return result };
            let text = format!("queue: cannot read a message: {error}");
            self.log(|log, now| log.critical(now, &text));
            tries_left -= 1;
            if !is_passing(error.kind()) || tries_left == 0 {
                return result;
            }
            io::sleep(READ_PAUSE).await;
        }
    }

    async fn read_pieces(&self, plan: &ReadPlan) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for piece in &plan.pieces {
            let file = self.segment_file(piece.segment).ok_or(std::io::ErrorKind::NotFound)?;
            let octets = usize::try_from(piece.octets).map_err(std::io::Error::other)?;
            let read = file.read_exact_at(octets, piece.offset).await?;
            if all.is_empty() { all = read } else { all.extend_from_slice(&read) }
        }
        Ok(all)
    }
}

/// Does an error of a read speak of the system's state, and not of the disk?
fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::OutOfMemory | ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn piece(Chunk { body, range }: Chunk) -> Piece {
    Piece::Body(body, range)
}
