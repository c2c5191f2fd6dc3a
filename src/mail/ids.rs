//! Ids: the ESA's numbers that the mail log ties together, and the handle of a queued delivery.
//!
//! Owns: the number types. Never: their allocation (the queue reserves blocks durably).

use std::fmt;

/// Message id: one per message, never used twice in the life of a spool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Mid(pub u64);

/// Recipient id within a message, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Rid(pub u32);

/// Injection connection id; 0 stands for mail that was generated here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Icid(pub u64);

/// Delivery connection id; 0 stands for no connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Dcid(pub u64);

/// A shard's number, 0 .. [`crate::limits::SHARDS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u8);

/// Names, inside one shard, the recipients of one message in one receiving domain that are still
/// queued: what the queue's index hands out and the schedule keeps in its lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Handle(pub u32);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_number!(Mid, Rid, Icid, Dcid, ShardId, Handle);
