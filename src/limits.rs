//! Every fixed bound of the engine, with its reason and the relations between them.
//!
//! Owns: numbers that no configuration changes. Never: defaults of configuration keys (those
//! stand with the settings they belong to).
//!
//! Diagnostics: a wrong relation between two limits does not compile.

/// Longest path in MAIL or RCPT, in octets without the angle brackets. RFC 5321 4.5.3.1.3 asks
/// for 256 with them; UTF-8 addresses (RFC 6531) may need more room for the same length.
pub const PATH_OCTETS_MAX: usize = 512;

/// Longest local-part, in octets (RFC 5321 4.5.3.1.1 asks for 64; longer ones exist).
pub const LOCAL_PART_OCTETS_MAX: usize = 255;

/// Longest domain, in octets of its A-label form (RFC 1035 2.3.4).
pub const DOMAIN_OCTETS_MAX: usize = 253;

/// Longest command line a client may send, in octets with CRLF. RFC 5321 4.5.3.1.4 asks for 512;
/// SIZE, DSN, 8BITMIME and SMTPUTF8 parameters together add less than 1,100 (RFC 3461 4).
pub const COMMAND_LINE_OCTETS_MAX: usize = 2048;

/// How much of an over-long command line is thrown away before the connection is closed.
pub const COMMAND_DISCARD_OCTETS_MAX: usize = 64 * 1024;

/// Messages of one client that wait for their verdict at a time: it may go on meanwhile.
pub const CLIENT_MESSAGES_IN_HAND_MAX: usize = 64;

/// Octets of those messages above which the client has to wait.
pub const CLIENT_IN_HAND_OCTETS_MAX: usize = 1024 * 1024;

/// Longest line of a message under `long_lines = "accept"`, in octets without CRLF.
pub const TEXT_LINE_OCTETS_MAX: usize = 64 * 1024;

/// Longest line of a message that RFC 5321 4.5.3.1.6 allows, in octets without CRLF.
pub const TEXT_LINE_OCTETS_RFC: usize = 998;

/// Largest header of a message, in octets.
pub const HEADER_OCTETS_MAX: usize = 1024 * 1024;

/// A message with this many Received fields is in a loop (RFC 5321 6.3 asks for at least 100).
pub const RECEIVED_FIELDS_MAX: usize = 100;

/// Negative replies to one client before it is sent away.
pub const CLIENT_ERRORS_MAX: u32 = 100;

/// Longest name in EHLO or HELO, in octets (RFC 5321 4.5.3.1.2).
pub const HELO_OCTETS_MAX: usize = 255;

/// Replies held for one client before its next command is read, in octets: one write.
pub const SERVER_OUTPUT_OCTETS_MAX: usize = 16 * 1024;

/// Longest wait for a client's next command, and for its next octets of a message (RFC 5321
/// 4.5.3.2.7 asks for at least 5 minutes).
pub const CLIENT_WAIT_MS: u64 = 300_000;

/// Time a message may take to come in at any rate; above it [`CLIENT_RATE_OCTETS_PER_S_MIN`]
/// holds.
pub const CLIENT_MESSAGE_GRACE_MS: u64 = 600_000;

/// Lowest mean rate of a message that comes in: a trickle of octets ends, a modem does not.
pub const CLIENT_RATE_OCTETS_PER_S_MIN: u64 = 1024;

/// Octets kept of a header field for the log.
pub const LOGGED_FIELD_OCTETS_MAX: usize = 1024;

/// Reply octets kept of one line from a next hop.
pub const REPLY_LINE_OCTETS_KEPT: usize = 4 * 1024;

/// Reply octets read of one line from a next hop before it counts as garbage.
pub const REPLY_LINE_OCTETS_MAX: usize = 64 * 1024;

/// Lines of one reply from a next hop.
pub const REPLY_LINES_MAX: usize = 128;

/// Octets of one whole reply from a next hop.
pub const REPLY_OCTETS_MAX: usize = 64 * 1024;

/// Command octets of one write to a next hop, above which the next command waits for the next
/// write: bounds what thousands of recipients put into one buffer.
pub const COMMAND_GROUP_OCTETS: usize = 64 * 1024;

/// Transactions in flight on one session to a next hop.
pub const TRAIN_MESSAGES_MAX: u32 = 64;

/// Message octets in flight on one session to a next hop; a larger message goes alone.
pub const TRAIN_OCTETS_MAX: usize = 1 << 20;

/// How long a host gets one transaction at a time, after its replies in a train could not be told
/// apart, in milliseconds.
pub const TRAIN_PLAIN_MS: u64 = 24 * 3_600_000;

/// How long the peer's end of file is awaited after QUIT, in milliseconds.
pub const QUIT_WAIT_MS: u64 = 5_000;

/// Largest message that any listener may be configured to take, in octets.
pub const MESSAGE_OCTETS_MAX: u64 = 1 << 30;

/// Most recipients of one message that any listener may be configured to take.
pub const RECIPIENTS_MAX: usize = 50_000;

/// Deliveries one lane holds; more wait in their destination's ready list.
pub const LANE_DELIVERIES_MAX: usize = 1_024;

/// Shards at most: one bit each in the waiting set of a permit.
pub const SHARDS_MAX: usize = 64;

/// Hosts of one route at most.
pub const ROUTE_HOSTS_MAX: usize = 256;

/// Crashes during delivery after which a recipient is held as poison.
pub const CRASHES_IN_FLIGHT_MAX: u8 = 3;

/// Ids of each kind (MID, ICID, DCID) that are reserved durably at a time.
pub const ID_BLOCK: u64 = 1 << 20;

/// A message larger than this lives in extents, in octets.
pub const INLINE_MESSAGE_OCTETS_MAX: u64 = 256 * 1024;

/// Size of one extent, in octets.
pub const EXTENT_OCTETS: u64 = 1 << 20;

/// Smallest and largest queue segment, in octets.
pub const SEGMENT_OCTETS_MIN: u64 = 1 << 20;
/// See [`SEGMENT_OCTETS_MIN`].
pub const SEGMENT_OCTETS_MAX: u64 = 256 << 20;

/// What file systems and disks take whole, in octets: a write past the page cache begins and ends
/// at a multiple of it, in the file and in memory.
pub const BLOCK_OCTETS: u64 = BLOCK as u64;
/// The same, of memory.
pub const BLOCK: usize = 4096;

/// The largest piece of the page cache, in octets: that of a large page, where a page is 4 KiB.
pub const FOLIO_OCTETS_MAX: u64 = 2 << 20;

/// A line of the mail log, in octets.
pub const LOG_LINE_OCTETS_MAX: usize = 4 * 1024;

/// A piece of a body handed to the socket at once, in octets: an early reply stops the next one.
pub const BODY_PIECE_OCTETS: usize = 256 * 1024;

/// A session to a host that had a good reply this recently shows that the host is alive.
pub const ALIVE_REPLY_MS: u64 = 10_000;

const _: () = assert!(TEXT_LINE_OCTETS_RFC < TEXT_LINE_OCTETS_MAX);
const _: () = assert!(TEXT_LINE_OCTETS_MAX < HEADER_OCTETS_MAX);
const _: () = assert!(PATH_OCTETS_MAX < COMMAND_LINE_OCTETS_MAX);
const _: () = assert!(HELO_OCTETS_MAX + DOMAIN_OCTETS_MAX + 128 < TEXT_LINE_OCTETS_RFC);
const _: () = assert!(COMMAND_LINE_OCTETS_MAX < COMMAND_DISCARD_OCTETS_MAX);
const _: () = assert!(REPLY_LINE_OCTETS_KEPT <= REPLY_LINE_OCTETS_MAX);
const _: () = assert!(REPLY_LINE_OCTETS_MAX <= REPLY_OCTETS_MAX);
const _: () = assert!(INLINE_MESSAGE_OCTETS_MAX < SEGMENT_OCTETS_MIN);
const _: () = assert!(SEGMENT_OCTETS_MIN <= SEGMENT_OCTETS_MAX);
const _: () = assert!(SHARDS_MAX <= 64);
