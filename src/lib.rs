//! # Ringpost: the map
//!
//! An outbound mail delivery engine for dedicated Linux hosts: mail comes in over SMTP, is kept
//! in a memory-mapped queue, and is delivered along SMTP routes. This file holds no code; it is
//! where a newcomer starts.
//!
//! ## The flow, and the folders that show it
//!
//! ```text
//! inject -> queue -> schedule -> route -> connect -> transact -> settle
//! ```
//!
//! | step | what happens | where |
//! |---|---|---|
//! | inject | a client speaks SMTP to a listener; one transaction becomes one owned value | [`smtp::server`], `shard/listener` |
//! | queue | the message is kept: committed, or accepted before; then 250 | [`queue`], `shard/early` |
//! | schedule | recipients become ready, wait for a time, take their place in a lane | [`schedule`] |
//! | route | receiving domain -> hosts by priority; equal hosts take turns | [`route`] |
//! | connect | a session to the host: from the pool, or a new one if the limits allow | `shard/pool` |
//! | transact | MAIL, RCPT, DATA, body, final dot | [`smtp::client`], `shard/session` |
//! | settle | what the outcome means: delivered, next host, deferred, bounced | [`settle`], `shard/settlement` |
//!
//! ## Words
//!
//! *MID* message id; *RID* recipient id within a message; *ICID* injection connection id; *DCID*
//! delivery connection id. *Receiving domain*: the domain of a recipient. *Route*: a row of the
//! SMTP routes table. *Host*: one address:port of a route. *Destination*: the state kept per
//! receiving domain (limits, retry, wake-up). *Delivery*: one message with those of its
//! recipients in one receiving domain that travel together. *Lane*: per shard and host, the
//! deliveries that took a turn for this host. *Session*: one SMTP connection's dialogue.
//! *Transaction*: MAIL to end of data. *Deferred*: waiting for a time. *Soft bounce*: a temporary
//! failure of a recipient; *hard bounce*: a permanent one. *Shard*: one core with its thread, its
//! ring, its queue files, its lanes and its pools.
//!
//! *Commit*: one write and one sync for a batch of messages. *Hold-back*: the short time that a
//! message may wait for its commit while its deliveries are under way; accepted by all its next
//! hops in that time, it is never written. *Early handle*: the name of a delivery whose message is
//! not committed yet; it stays valid afterwards. *Segment*: one file of the queue. *Survivor*:
//! long-deferred mail in an otherwise settled segment; *copying forward* moves it out.
//! *Permit*: the right to one connection under a limit that all shards share. *Gate*: per
//! destination, what wakes its deferred mail when its hosts are back. *Train*: several transactions
//! in flight on one session; *mark*: what in a reply shows which command it answers. *Uncertain*:
//! the final dot was sent and its reply is not known. *Shortage*: what our own machine lacks for a
//! connection; no host is blamed for it.
//!
//! ## The law of imports (`tests/tidy.rs` enforces it)
//!
//! `a -> b` reads: a may import b. There are no cycles.
//!
//! * mail -> limits
//! * smtp, queue, route, schedule, telemetry -> mail, limits, and not each other
//! * config -> those five
//! * settle -> mail, limits, and the types of queue and schedule
//! * shard -> all of these
//! * control, lab -> shard
//! * cli -> control, lab, config, queue, route
//!
//! mail, smtp, route, schedule and settle are pure: no sockets, files, threads, clocks or unsafe
//! code; the time and the random seed are arguments.
//!
//! ## Read first
//!
//! `README.md`, this page, [`mail`] (the vocabulary), [`shard`] (the table of its files),
//! `shard/delivery.rs` (the story of one delivery in one function), [`queue`], [`smtp::client`],
//! [`settle`]. Then, as needed: [`schedule`] and [`route`] for who goes where and when,
//! `shard/early.rs` with `queue/early.rs` for the way past the disk, [`lab`] for the peers of the
//! tests.

pub mod cli;
pub mod config;
pub mod control;
pub mod lab;
pub mod limits;
pub mod mail;
pub mod queue;
pub mod route;
pub mod schedule;
pub mod settle;
pub mod shard;
pub mod smtp;
pub mod telemetry;
