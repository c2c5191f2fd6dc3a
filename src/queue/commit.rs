//! The end of a commit: slots, syncs, and what follows from how they ended.
//!
//! Owns: the order on which the promise rests: octets written, then slots stored (message slot
//! last), then synced, then [`Safe`]. Never: a retry of a failed sync.
//!
//! A commit is synced beside the one before it if it is as large: then mail comes faster than the
//! disk takes it. Two are synced at a time at most, of one file; they end in the order in which
//! they were begun.
//!
//! Diagnostics: [`Event::Failed`] for what a failed effect carried.

use super::batch::count;
use super::format::{self, SlotOctets, State};
use super::forward::Moved;
use super::index;
use super::live::Name;
use super::{Event, Handles, Purpose, Queue, Safe, Ticket};
use crate::mail::Handle;

/// A commit under way.
pub(super) struct Commit {
    pub(super) segment: usize,
    pub(super) messages: Vec<Placed>,
    pub(super) first_slot: u32,
    pub(super) slots: Vec<SlotOctets>,
    /// The receiving domain of each entry, by its place among the names.
    pub(super) domains: Vec<u16>,
    pub(super) body_start: u64,
    pub(super) body_end: u64,
    pub(super) extent_segments: Vec<usize>,
    pub(super) extents: Vec<(usize, u32)>,
    pub(super) moves: Vec<Moved>,
    /// Writes, and then syncs, that have not ended.
    pub(super) left: usize,
    pub(super) failed: bool,
}

pub(super) struct Placed {
    pub(super) ticket: Ticket,
    pub(super) first_slot: u32,
    pub(super) entries: u32,
    pub(super) message_slot: u32,
    pub(super) early: Option<u32>,
}

impl Commit {
    pub(super) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// May it be synced beside the commit before it? In the same file alone a sync that has ended
    /// well says that what was there before it is durable too; and copies take over in an order.
    /// A smaller one than that waits for more: two small syncs take more CPU than a large one, and
    /// where clients wait for the disk they would share what one brings.
    fn may_sync_beside(&self, before: &Self) -> bool {
        let is_plain = |commit: &Self| commit.extents.is_empty() && commit.moves.is_empty();
        let octets = |commit: &Self| commit.body_end - commit.body_start;
        self.segment == before.segment
            && octets(self) >= octets(before)
            && is_plain(self)
            && is_plain(before)
    }
}

impl Queue {
    /// One write of a commit has ended.
    pub(super) fn commit_written(&mut self, ok: bool) {
        let Some(commit) = &mut self.writing else {
            unreachable!("a write has ended that belongs to no commit")
        };
        commit.failed |= !ok;
        commit.left -= 1;
        self.start_commit_sync();
    }

    /// One sync of the commit that was begun first has ended.
    pub(super) fn commit_synced(&mut self, ok: bool) {
        let Some(commit) = self.syncing.front_mut() else {
            unreachable!("a sync has ended that belongs to no commit")
        };
        commit.failed |= !ok;
        commit.left -= 1;
        if commit.left == 0 {
            self.enter_synced();
            self.finish_commit();
        }
    }

    /// All octets are written: stores the slots and syncs, beside the sync of the commit before it
    /// where that is possible, or as soon as no other sync of its segments runs.
    pub(super) fn start_commit_sync(&mut self) {
        let Some(commit) = self.writing.as_mut().filter(|commit| commit.left == 0) else { return };
        let is_beside = match self.syncing.len() {
            0 => false,
            1 if self.syncing.iter().all(|before| commit.may_sync_beside(before)) => true,
            _ => return,
        };
        let all = || commit.extent_segments.iter().chain([&commit.segment]);
        if all().any(|segment| self.segments[*segment].poisoned) {
            commit.failed = true;
        }
        if commit.failed {
            let segment = commit.segment;
            self.note_commit(false, segment);
            self.withdraw_unstored();
            return;
        }
        if all().any(|segment| self.segments[*segment].syncs.len() > usize::from(is_beside)) {
            return;
        }
        let segments: Vec<usize> = all().copied().collect();
        commit.left = segments.len();
        self.store_slots();
        self.syncing.extend(self.writing.take());
        for segment in segments {
            self.start_sync(segment, Purpose::CommitSync(segment));
        }
    }

    /// Stores the slots of the commit, each entry in the state it has at this moment, and in the
    /// last one how far the commits before it are on disk.
    fn store_slots(&mut self) {
        let Some(mut commit) = self.writing.take() else { return };
        let place = self.segments[commit.segment].place;
        for i in 0..commit.messages.len() {
            let Placed { first_slot, early: Some(key), .. } = commit.messages[i] else { continue };
            let words = self.early_stored(key, commit.segment, first_slot);
            for (slot, word) in (first_slot..).zip(words) {
                commit.set_words(slot, Some(word), None, place);
            }
        }
        let behind = commit.first_slot + count(commit.slots.len());
        if let Some(last) = commit.slots.last_mut() {
            let durable_slots = self.segments[commit.segment].header.durable_slots;
            format::set_durable_point(last, place, behind - 1, durable_slots);
        }
        self.segments[commit.segment].store_slots(commit.first_slot, &commit.slots);
        self.slots = std::mem::take(&mut commit.slots);
        self.slots.clear();
        self.writing = Some(commit);
    }

    /// The writing failed: nothing of the commit is in the table.
    fn withdraw_unstored(&mut self) {
        let Some(commit) = self.writing.take() else { return };
        let segment = &mut self.segments[commit.segment];
        if !segment.poisoned {
            segment.next_slot = commit.first_slot;
            segment.next_body = commit.body_start;
        }
        let segments = &self.segments;
        let usable = commit.extents.iter().filter(|(segment, _)| !segments[*segment].poisoned);
        usable.for_each(|(segment, index)| self.extents_free.give(*segment, *index));
        self.release_sources(&commit.moves);
        for message in &commit.messages {
            self.fail(message.ticket, message.early);
        }
    }

    fn finish_commit(&mut self) {
        let Some(commit) = self.syncing.pop_front() else { return };
        self.note_commit(!commit.failed, commit.segment);
        if commit.failed {
            self.expect_no_more();
            self.withdraw_stored(&commit);
            return;
        }
        self.note_durable_point(commit.segment);
        self.expect_again(commit.messages.iter().filter(|placed| placed.early.is_none()).count());
        // Copies take over at once: what holds their sources depends on the syncs until now.
        let moves = !commit.moves.is_empty();
        self.untold = Some(commit);
        if moves {
            self.enter_synced();
        }
    }

    /// Enters what the last good commit has brought, and tells of it. To be called after a good
    /// sync, when the effects that followed from it are begun: the disk goes from one sync to the
    /// next meanwhile. Otherwise the end of the next commit does it.
    pub fn enter_synced(&mut self) {
        // Until its end the commit keeps its segment from being free.
        let Some(commit) = self.untold.take() else { return };
        // It may have been given up during the sync, for a smaller message than would have
        // fitted: it is not free while only some of its messages are entered.
        self.segments[commit.segment].holds += 1;
        let mut domains = commit.domains.as_slice();
        let mut entered = Vec::new();
        for message in &commit.messages {
            let (own, behind) = domains.split_at(message.entries as usize);
            domains = behind;
            let (segment, message_slot) = (commit.segment, message.message_slot);
            let live_before = self.segments[segment].live;
            self.enter_at(segment, message.first_slot, message_slot, own, &mut entered);
            self.counts.pending += u64::from(self.segments[segment].live - live_before);
            let with_domain = |handle: Handle| match self.domain(handle) {
                Some(domain) => (handle, domain.clone()),
                None => unreachable!("a handle was just entered"),
            };
            let mut handles: Handles = entered.drain(..).map(with_domain).collect();
            if handles.is_empty() {
                // Accepted by its next hops after it was written: its extents are free, unless
                // its slot cannot be read any more.
                self.settle_message(segment, message_slot, State::Delivered, None);
            }
            if let Some(key) = message.early {
                if !self.early_committed(key, &handles) {
                    continue;
                }
                handles.retain(|(handle, _)| self.index.get(*handle).is_some());
            }
            let pending = u64::from(self.segments[segment].live - live_before);
            let (ticket, safe) = (message.ticket, Safe(()));
            self.events.push_back(Event::Committed { ticket, safe, handles, pending });
        }
        for moved in &commit.moves {
            self.switch(commit.segment, moved);
        }
        self.release_sources(&commit.moves);
        self.segments[commit.segment].holds -= 1;
        self.free_if_empty(commit.segment);
    }

    /// A sync failed: the slots are in the table, and must not be found there at the next start
    /// if that can be helped, for the clients are told to send again.
    fn withdraw_stored(&mut self, commit: &Commit) {
        self.withdraw_copies(commit.segment, &commit.moves);
        self.release_sources(&commit.moves);
        let deleted = format::StateWord { state: State::Deleted, ..format::StateWord::READY };
        for message in &commit.messages {
            for slot in message.first_slot..message.first_slot + message.entries {
                self.store_state(commit.segment, slot, deleted);
            }
            let gone =
                self.settle_message(commit.segment, message.message_slot, State::Deleted, None);
            assert!(gone, "all of it was just marked as deleted");
            self.fail(message.ticket, message.early);
        }
    }

    /// Enters entries that begin at slot `first`, with these receiving domains, into the index:
    /// one record per domain with unsettled ones.
    pub(super) fn enter_at(
        &mut self,
        segment: usize,
        mut first: u32,
        message_slot: u32,
        domains: &[u16],
        handles: &mut Vec<Handle>,
    ) {
        for group in domains.chunk_by(|a, b| a == b) {
            let live_segment = &mut self.segments[segment];
            let entries = count(group.len());
            let unsettled = |slot: &u32| !live_segment.state(*slot).state.is_settled();
            let live = count((first..first + entries).filter(unsettled).count());
            let Some(Name::Domain(destination)) =
                live_segment.names.get(usize::from(group[0])).cloned()
            else {
                unreachable!("names of entries are checked before they are entered")
            };
            if live > 0 {
                live_segment.live += live;
                handles.push(self.index.insert(index::NewRecord {
                    segment: u16::try_from(segment).unwrap_or(u16::MAX),
                    first_slot: first,
                    message_slot,
                    destination,
                    entries: u16::try_from(entries).unwrap_or(u16::MAX),
                    live: u16::try_from(live).unwrap_or(u16::MAX),
                }));
            }
            first += entries;
        }
    }
}
