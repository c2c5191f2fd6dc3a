//! The queue manager: which delivery may be attempted now, and which one waits for what.
//!
//! Owns: bounce-profile arithmetic ([`retry`]), what stored times are worth ([`clock`]), timers
//! ([`deferred`]), ready lists by destination ([`destination`]), lanes by host ([`lane`]) and the
//! wake-up gates ([`gate`]). Never: the messages (it moves [`crate::mail::Handle`]s), hosts and
//! their health (`route`), what an outcome means (`settle`). Everything is single-threaded and
//! belongs to one shard, except [`gate::Gates`], which all shards share.
//!
//! Where a queued delivery stands, from the view of this folder:
//!
//! ```text
//!            due, woken                 its turn                 a ready session
//! deferred ------------> ready list --------------> lane -----------------------> in flight
//!    ^   ^                   |                        |
//!    |   +-- all hosts down -+                        | host goes down: new turns
//!    +----------------- soft bounce <-----------------+
//! ```
//!
//! A delivery that waits for hosts stands in the timers too, due when its time in queue ends.

pub mod clock;
pub mod deferred;
pub mod destination;
pub mod gate;
pub mod lane;
pub mod retry;
pub mod settings;

pub use clock::QueueClock;
pub use deferred::{Deferred, Due};
pub use destination::{DestinationId, Destinations};
pub use gate::{Gate, Gates, Sign};
pub use lane::{Growth, Lane};
pub use retry::Retry;
