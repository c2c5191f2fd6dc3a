//! Settings of the schedule: bounce profiles and Destination Controls, as the configuration fills
//! them.
//!
//! Owns: the types and their defaults (the ESA's). Never: parsing (`config`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::mail::Mailbox;

/// What a lost reply to the final dot means for the recipients of the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PossibleDelivery {
    /// They are tried again: a duplicate is possible, a loss is not.
    #[default]
    Retry,
    /// They count as delivered: a loss is possible, a duplicate is not.
    Delivered,
}

/// How long mail is retried, and who is told when it fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BounceProfile {
    /// The name, as it stands in the log.
    pub name: Arc<str>,
    /// Retries after the first attempt; the next failure bounces.
    pub retries_max: u32,
    /// Age at which a message bounces.
    pub time_in_queue_max: Duration,
    /// Wait before the first retry.
    pub initial_retry: Duration,
    /// Ceiling of the wait, which doubles from retry to retry.
    pub retry_max: Duration,
    /// Send a report of hard bounces to the sender.
    pub send_bounces: bool,
    /// Send reports here instead of to the sender.
    pub bounce_address: Option<Mailbox>,
    /// Octets of the original message that a report returns; above it, its header only.
    pub report_original_octets_max: u64,
}

impl Default for BounceProfile {
    fn default() -> Self {
        Self {
            name: "default".into(),
            retries_max: 100,
            time_in_queue_max: Duration::from_secs(72 * 3600),
            initial_retry: Duration::from_secs(60),
            retry_max: Duration::from_secs(3600),
            send_bounces: true,
            bounce_address: None,
            report_original_octets_max: 10 * 1024,
        }
    }
}

/// Destination Controls: what one destination may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DestinationControls {
    /// Connections for this destination, all shards together.
    pub connections_max: u32,
    /// Messages after which a connection is closed.
    pub messages_per_connection_max: u32,
    /// Recipients of one transaction.
    pub recipients_per_transaction_max: u32,
    /// Several transactions may be in flight on one connection, where the host answers well.
    pub trains: bool,
    /// Name of the bounce profile; `None`: the listener's.
    pub bounce_profile: Option<Arc<str>>,
    /// Source address; `None`: the system chooses.
    pub interface: Option<IpAddr>,
    /// Name given in EHLO; `None`: the host name.
    pub ehlo_name: Option<Arc<str>>,
}

impl Default for DestinationControls {
    fn default() -> Self {
        Self {
            connections_max: 500,
            messages_per_connection_max: 50,
            recipients_per_transaction_max: 100,
            trains: true,
            bounce_profile: None,
            interface: None,
            ehlo_name: None,
        }
    }
}
