//! The text of `/metrics`: Prometheus text format 0.0.4, written by hand because it is a dozen
//! rules, and because the numbers live in the shards and not in a registry.
//!
//! Owns: the names of the metrics. Never: HTTP (`control`), or the numbers.
//!
//! Limits: [`HOST_LABELS_MAX`] hosts by name; the rest are summed as `host="other"`, so that the
//! sums stay true and a route table of a million hosts does not.

use std::fmt::{Display, Write as _};
use std::net::SocketAddr;

use super::counters::{Conservation, Totals};
use super::histogram::{BUCKETS_US, Latencies};

/// What the answer's Content-Type must say.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Hosts with a label of their own.
pub const HOST_LABELS_MAX: usize = 1_000;

/// Where a host stands, for the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostState {
    /// Takes mail.
    Up,
    /// Is left alone until its back-off ends.
    Down,
    /// Is being tried by one connection.
    Probing,
}

/// One host as its owner counts it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSample {
    /// Its address and port.
    pub address: SocketAddr,
    /// Turns it took.
    pub turns: u64,
    /// Messages it took.
    pub delivered: u64,
    /// Connections to it that are open.
    pub connections: u64,
    /// Where it stands.
    pub state: HostState,
}

/// One shard as it reports once a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardSample {
    /// Recipients pending.
    pub pending: u64,
    /// It takes mail.
    pub takes_mail: bool,
    /// Receiving domains with mail.
    pub destinations: usize,
    /// Octets of its queue files.
    pub queue_octets: u64,
    /// Most octets they may have.
    pub queue_octets_max: u64,
    /// Segments.
    pub segments: usize,
    /// Segments that may be used again.
    pub segments_free: usize,
    /// Segments that stand ready to be appended to next.
    pub segments_spare: usize,
    /// Segments given up after a failed write or sync.
    pub segments_poisoned: usize,
    /// Octets of memory of its index.
    pub index_octets: usize,
    /// Messages that wait for their commit.
    pub uncommitted: usize,
    /// Octets of memory held by messages on their way in.
    pub receive_octets: u64,
    /// Most octets that they may hold.
    pub receive_octets_max: u64,
    /// Clients that wait for such memory.
    pub receive_waiting: usize,
}

/// Everything that one page shows.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    /// The engine's version.
    pub version: &'a str,
    /// How it does its I/O.
    pub io: &'a str,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Counts the configurations since start.
    pub configuration: u64,
    /// The sums over all shards.
    pub totals: Totals,
    /// Each shard; there are at most [`crate::limits::SHARDS_MAX`].
    pub shards: &'a [ShardSample],
    /// From the final dot of a client to the acceptance by the next hop.
    pub delivery: &'a Latencies,
    /// From the final dot of a client to the end of its message's commit.
    pub commit: &'a Latencies,
}

/// The page as text. Hosts beyond [`HOST_LABELS_MAX`] are summed.
#[must_use]
pub fn render(page: &Page<'_>, hosts: impl IntoIterator<Item = HostSample>) -> String {
    let mut text = Text(String::with_capacity(16 * 1024));
    text.family("ringpost_build_info", "gauge", "The version that runs.");
    text.sample("ringpost_build_info", &[("version", page.version)], 1);
    text.family("ringpost_io_info", "gauge", "How it does its I/O.");
    text.sample("ringpost_io_info", &[("backend", page.io)], 1);
    text.family("ringpost_uptime_seconds", "gauge", "Seconds since start.");
    text.sample("ringpost_uptime_seconds", &[], page.uptime_s);
    let name = "ringpost_configuration";
    text.family(name, "gauge", "Configurations put in force since start, the first among them.");
    text.sample(name, &[], page.configuration);
    conservation(&mut text, &page.totals);
    totals(&mut text, &page.totals);
    shard_families(&mut text, page.shards);
    text.histogram(
        "ringpost_delivery_seconds",
        "From a client's final dot to the next hop's acceptance.",
        page.delivery,
    );
    let help = "From a client's final dot to the end of its message's commit.";
    text.histogram("ringpost_commit_seconds", help, page.commit);
    host_families(&mut text, hosts);
    text.0
}

fn conservation(text: &mut Text, totals: &Totals) {
    let name = "ringpost_recipients_accepted_total";
    text.family(name, "counter", "Recipients that came, by where they came from.");
    for (source, value) in [
        ("clients", totals.accepted_from_clients),
        ("generated", totals.generated_here),
        ("found_at_start", totals.found_at_start),
    ] {
        text.sample(name, &[("source", source)], value);
    }
    let name = "ringpost_recipients_total";
    text.family(name, "counter", "Recipients that were settled, by what became of them.");
    for (outcome, value) in [
        ("delivered", totals.delivered),
        ("bounced", totals.bounced),
        ("discarded", totals.discarded_by_route),
        ("deleted", totals.deleted),
        ("damaged", totals.damaged),
    ] {
        text.sample(name, &[("outcome", outcome)], value);
    }
    text.family("ringpost_recipients_pending", "gauge", "Recipients not yet settled.");
    text.sample("ringpost_recipients_pending", &[], totals.pending);
    let name = "ringpost_recipients_uncertain_total";
    text.family(name, "counter", "Recipients whose reply to the final dot was lost.");
    text.sample(name, &[], totals.uncertain);
    let name = "ringpost_conservation_balance";
    text.family(name, "gauge", "Accepted less settled less pending: 0 when at rest.");
    text.sample(name, &[], Conservation::of(totals).balance());
}

fn totals(text: &mut Text, totals: &Totals) {
    let counters = [
        ("soft_bounces", "Temporary failures of recipients.", totals.soft_bounces),
        ("messages_accepted", "Messages taken from clients.", totals.messages_in),
        ("messages_delivered", "Transactions that a next hop took.", totals.messages_out),
        ("accepted_bytes", "Octets of messages taken from clients.", totals.octets_in),
        ("delivered_bytes", "Octets of messages that next hops took.", totals.octets_out),
        ("receive_refused", "Messages refused for want of receive memory.", totals.receive_refused),
        ("connections_in", "Connections from clients.", totals.connections_in),
        ("connections_out", "Connections to next hops that stood.", totals.connections_out),
        ("connection_errors", "Connections that brought no session.", totals.connection_errors),
        ("shortages", "Connections that this machine had no room for.", totals.shortages),
        ("failovers", "Deliveries that went on to a further host at once.", totals.failovers),
        ("deferrals", "Deliveries deferred to a later time.", totals.deferrals),
        ("commits", "Batches made durable.", totals.commits),
        ("queue_syncs", "Syncs of queue files, commits among them.", totals.queue_syncs),
        ("queue_written_bytes", "Octets written to the queue.", totals.queue_octets_written),
        ("unwritten_messages", "Delivered before they were written.", totals.unwritten_messages),
        ("log_lines_dropped", "Lines of the mail log dropped.", totals.log_lines_dropped),
    ];
    for (short, help, value) in counters {
        let name = format!("ringpost_{short}_total");
        text.family(&name, "counter", help);
        text.sample(&name, &[], value);
    }
    text.family("ringpost_sessions", "gauge", "Connections that are open.");
    text.sample("ringpost_sessions", &[("direction", "in")], totals.sessions_in);
    text.sample("ringpost_sessions", &[("direction", "out")], totals.sessions_out);
}

fn shard_families(text: &mut Text, shards: &[ShardSample]) {
    type Value = fn(&ShardSample) -> u64;
    let families: [(&str, &str, Value); 14] = [
        ("pending", "Recipients not yet settled.", |s| s.pending),
        ("takes_mail", "1, or 0 when its disk or queue takes no mail.", |s| s.takes_mail.into()),
        ("destinations", "Receiving domains with mail.", |s| s.destinations as u64),
        ("queue_bytes", "Octets of its queue files.", |s| s.queue_octets),
        ("queue_max_bytes", "Most octets of its queue files.", |s| s.queue_octets_max),
        ("queue_segments", "Segments.", |s| s.segments as u64),
        ("queue_segments_free", "Segments that may be reused.", |s| s.segments_free as u64),
        ("queue_segments_spare", "Segments that stand ready.", |s| s.segments_spare as u64),
        ("queue_segments_poisoned", "Segments given up.", |s| s.segments_poisoned as u64),
        ("queue_index_bytes", "Octets of memory of its index.", |s| s.index_octets as u64),
        ("queue_uncommitted", "Messages that wait for a commit.", |s| s.uncommitted as u64),
        ("receive_bytes", "Octets of messages on their way in.", |s| s.receive_octets),
        ("receive_max_bytes", "Most octets of messages on their way in.", |s| s.receive_octets_max),
        ("receive_waiting", "Clients that wait for memory.", |s| s.receive_waiting as u64),
    ];
    for (short, help, value) in families {
        let name = format!("ringpost_shard_{short}");
        text.family(&name, "gauge", help);
        for (number, shard) in shards.iter().enumerate() {
            text.sample(&name, &[("shard", &number.to_string())], value(shard));
        }
    }
}

/// One host's line in each family.
struct HostRow {
    host: String,
    turns: u64,
    delivered: u64,
    connections: u64,
    /// `None` for the sum of the rest, which has no state.
    state: Option<HostState>,
}

fn host_families(text: &mut Text, hosts: impl IntoIterator<Item = HostSample>) {
    let mut rows: Vec<HostRow> = Vec::new();
    let mut rest: Option<HostRow> = None;
    for sample in hosts {
        let HostSample { address, turns, delivered, connections, state } = sample;
        if rows.len() < HOST_LABELS_MAX {
            let host = address.to_string();
            rows.push(HostRow { host, turns, delivered, connections, state: Some(state) });
        } else {
            let rest = rest.get_or_insert_with(HostRow::other);
            rest.turns += turns;
            rest.delivered += delivered;
            rest.connections += connections;
        }
    }
    rows.extend(rest);
    let name = "ringpost_host_turns_total";
    text.family(name, "counter", "Turns that a host took.");
    rows.iter().for_each(|row| text.sample(name, &[("host", &row.host)], row.turns));
    let name = "ringpost_host_delivered_total";
    text.family(name, "counter", "Messages that a host took.");
    rows.iter().for_each(|row| text.sample(name, &[("host", &row.host)], row.delivered));
    let name = "ringpost_host_connections";
    text.family(name, "gauge", "Connections to a host that are open.");
    rows.iter().for_each(|row| text.sample(name, &[("host", &row.host)], row.connections));
    let name = "ringpost_host_state";
    text.family(name, "gauge", "1 for the state that a host is in.");
    for row in &rows {
        let Some(state) = row.state else { continue };
        for (label, one) in
            [("up", HostState::Up), ("down", HostState::Down), ("probing", HostState::Probing)]
        {
            let labels = [("host", row.host.as_str()), ("state", label)];
            text.sample(name, &labels, u64::from(state == one));
        }
    }
}

impl HostRow {
    fn other() -> Self {
        let host = "other".to_owned();
        Self { host, turns: 0, delivered: 0, connections: 0, state: None }
    }
}

/// The exposition under way.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        for piece in ["# HELP ", name, " "] {
            self.0.push_str(piece);
        }
        escape(&mut self.0, help, false);
        for piece in ["\n# TYPE ", name, " ", kind, "\n"] {
            self.0.push_str(piece);
        }
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            self.0.push(if place == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            escape(&mut self.0, text, true);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let written = writeln!(self.0, " {value}");
        debug_assert!(written.is_ok(), "a String takes everything");
    }

    fn histogram(&mut self, name: &str, help: &str, latencies: &Latencies) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound_us, count) in BUCKETS_US.into_iter().zip(latencies.cumulative()) {
            self.sample(&bucket, &[("le", &seconds(bound_us))], count);
        }
        self.sample(&bucket, &[("le", "+Inf")], latencies.count());
        self.sample(&format!("{name}_sum"), &[], seconds(latencies.sum_us()));
        self.sample(&format!("{name}_count"), &[], latencies.count());
    }
}

/// Microseconds as seconds, exactly and without trailing zeros.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(out: &mut String, text: &str, quoted: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quoted => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::counters::Counters;
    use super::*;
    use std::collections::HashSet;

    fn page(counters: &Counters, hosts: Vec<HostSample>) -> String {
        let mut delivery = Latencies::new();
        delivery.record_us(700);
        delivery.record_us(2_000_000);
        let commit = Latencies::new();
        let totals = Totals::of([counters]);
        let (delivery, commit) = (&delivery, &commit);
        let shard = ShardSample { takes_mail: true, queue_octets: 77, ..ShardSample::default() };
        let page = Page {
            version: "0.1.0 \"x\"\n\\",
            io: "ring",
            uptime_s: 5,
            configuration: 3,
            totals,
            shards: &[shard; 2],
            delivery,
            commit,
        };
        render(&page, hosts)
    }

    fn host(n: u32, state: HostState) -> HostSample {
        let address = SocketAddr::from((std::net::Ipv4Addr::from(0xc000_0200 + n), 25));
        HostSample { address, turns: 10, delivered: 9, connections: 2, state }
    }

    #[test]
    fn the_terms_of_the_law_are_there() {
        let counters = Counters::default();
        counters.accepted_from_clients.add(9);
        counters.found_at_start.add(1);
        counters.delivered.add(4);
        counters.bounced.add(3);
        counters.pending.set(2);
        counters.uncertain.one();
        let text = page(&counters, vec![host(1, HostState::Down)]);
        for line in [
            "ringpost_build_info{version=\"0.1.0 \\\"x\\\"\\n\\\\\"} 1",
            "ringpost_recipients_accepted_total{source=\"clients\"} 9",
            "ringpost_recipients_accepted_total{source=\"generated\"} 0",
            "ringpost_recipients_accepted_total{source=\"found_at_start\"} 1",
            "ringpost_recipients_total{outcome=\"delivered\"} 4",
            "ringpost_recipients_total{outcome=\"bounced\"} 3",
            "ringpost_recipients_total{outcome=\"discarded\"} 0",
            "ringpost_recipients_total{outcome=\"deleted\"} 0",
            "ringpost_recipients_total{outcome=\"damaged\"} 0",
            "ringpost_recipients_pending 2",
            "ringpost_recipients_uncertain_total 1",
            "ringpost_conservation_balance 1",
            "ringpost_io_info{backend=\"ring\"} 1",
            "ringpost_configuration 3",
            "ringpost_shard_takes_mail{shard=\"1\"} 1",
            "ringpost_shard_queue_bytes{shard=\"0\"} 77",
            "ringpost_host_turns_total{host=\"192.0.2.1:25\"} 10",
            "ringpost_host_delivered_total{host=\"192.0.2.1:25\"} 9",
            "ringpost_host_state{host=\"192.0.2.1:25\",state=\"down\"} 1",
            "ringpost_host_state{host=\"192.0.2.1:25\",state=\"up\"} 0",
            "ringpost_delivery_seconds_bucket{le=\"0.0005\"} 0",
            "ringpost_delivery_seconds_bucket{le=\"0.001\"} 1",
            "ringpost_delivery_seconds_bucket{le=\"+Inf\"} 2",
            "ringpost_delivery_seconds_sum 2.0007",
            "ringpost_delivery_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_sample_belongs_to_the_family_above_it() {
        let text = page(&Counters::default(), vec![host(1, HostState::Up)]);
        assert!(text.ends_with('\n'));
        let (mut family, mut families, mut samples) = ("", HashSet::new(), HashSet::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} twice");
                let counter = rest.ends_with(" counter");
                assert_eq!(counter, family.ends_with("_total"), "{family}");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert!(series.starts_with(family), "{series} under {family}");
                assert!(samples.insert(series), "{series} twice");
                assert!(value.parse::<f64>().is_ok(), "{value}");
            }
        }
    }

    #[test]
    fn hosts_beyond_the_bound_are_summed() {
        let hosts = (0..1_005).map(|n| host(n, HostState::Up)).collect();
        let text = page(&Counters::default(), hosts);
        assert_eq!(text.matches("ringpost_host_turns_total{").count(), HOST_LABELS_MAX + 1);
        assert!(text.contains("ringpost_host_turns_total{host=\"other\"} 50\n"));
        assert!(!text.contains("ringpost_host_state{host=\"other\""));
    }
}
