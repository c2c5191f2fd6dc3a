//! The keys of the configuration: which ones exist, what each takes, and its default.
//!
//! Owns: the way from the parsed file to a [`Snapshot`], key by key. Never: parsing of single
//! values (`value`), reading of other files' content (`smtproutes`, `tuning`).
//!
//! A value whose part does not exist yet is refused here with "not supported yet", so that
//! nobody believes a setting is in force that is not.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use toml::de::DeValue;

use super::net::IpNet;
use super::problem::{Report, Source, nearest, quote};
use super::section::Section;
use super::snapshot::{
    AdminSettings, CommitMode, DEFAULT_PROFILE, Destinations, DnsSettings, IoMode,
    ListenerSettings, Snapshot,
};
use super::tuning::{self, Tuning};
use super::value::{
    Parsed, boolean, choice, duration, host_name, integer, net, optional_mailbox, refuse,
    server_address, size, size_in, socket_address, source_address, string, text, wrong_type,
};
use super::{FILE_OCTETS_MAX, smtproutes};
use crate::limits;
use crate::mail::Domain;
use crate::queue::settings::QueueSettings;
use crate::schedule::settings::{BounceProfile, DestinationControls, PossibleDelivery};
use crate::smtp::settings::{LongLines, ServerSettings, Timeouts};
use crate::telemetry::settings::{LogDetail, LogSettings, LogTarget, LogTime};

/// Smallest queue: the reserve for reports and copies needs room beside new mail.
const SPOOL_OCTETS_MIN: u64 = 16 << 20;

/// Largest size that any key takes.
const OCTETS_MAX: u64 = 1 << 50;

/// Smallest largest message: RFC 5321 4.5.3.1.7 asks every server for 64 KiB.
const MESSAGE_OCTETS_MIN: u64 = 64 * 1024;

/// Connections at the same time that any key takes; file descriptors end before.
const CONNECTIONS_MAX: u32 = 1_000_000;

/// Default of connections at the same time, in and out.
const CONNECTIONS_DEFAULT: u32 = 10_000;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The longest time in queue, retry interval or the like.
const AGE_MAX: Duration = seconds(365 * 24 * 3600);

/// Where the parts of a configuration stand.
pub(super) struct Place<'p> {
    /// The folder that relative paths start from.
    pub(super) base: &'p Path,
    /// Collects what is wrong.
    pub(super) report: &'p Report,
}

/// Reads every key of the file into a snapshot. Where something is wrong, a default stands in:
/// such a snapshot must not be used.
pub(super) fn snapshot(place: &Place<'_>, mut top: Section<'_>) -> Snapshot {
    let hostname = hostname(&mut top);
    let queue = queue(place, &mut top);
    let bounce_profiles = bounce_profiles(&mut top);
    let tuning = tuning_profile(place, &mut top);
    let routes = smtproutes::configured(place, &mut top);
    let listeners = listeners(&mut top, &hostname, &bounce_profiles);
    let admin = admin(place, top.section("admin"), &queue.spool, &listeners);
    top.later("user");
    top.later("group");
    top.later("auth");
    let shards_max = u32::try_from(limits::SHARDS_MAX).expect("a small limit");
    let shards = top.get("shards", integer(0..=shards_max)).unwrap_or(0);
    Snapshot {
        epoch: 1,
        shards: usize::try_from(shards).expect("a small limit"),
        io: top.get("io", choice(&IO_MODES, &[])).unwrap_or_default(),
        commit: top.get("commit", choice(&COMMIT_MODES, &[])).unwrap_or_default(),
        possible_delivery: top
            .get("possible_delivery", choice(&POSSIBLE_DELIVERY, &[]))
            .unwrap_or_default(),
        connections_out_max: top
            .get("max_connections_out", integer(1..=CONNECTIONS_MAX))
            .unwrap_or(CONNECTIONS_DEFAULT),
        shutdown_final_reply: top
            .get("shutdown_final_reply", duration(Duration::ZERO..=seconds(3600)))
            .unwrap_or(seconds(60)),
        postmaster: top.get("postmaster", optional_mailbox).flatten(),
        listeners,
        log: log(place, top.section("log")),
        dns: dns(top.section("dns")),
        admin,
        destinations: destinations(&mut top, &bounce_profiles),
        timeouts: timeouts(top.section("timeouts")),
        routes_file: routes.0,
        routes: Arc::new(routes.1),
        hostname,
        queue,
        bounce_profiles,
        profile: tuning.0,
        tuning: tuning.1,
    }
}

/// Words of `io`.
pub(super) const IO_MODES: [(&str, IoMode); 3] =
    [("auto", IoMode::Auto), ("ring", IoMode::Ring), ("epoll", IoMode::Epoll)];

/// Words of `commit`.
pub(super) const COMMIT_MODES: [(&str, CommitMode); 2] =
    [("deliver-or-sync", CommitMode::DeliverOrSync), ("sync", CommitMode::Sync)];

/// Words of `possible_delivery`.
pub(super) const POSSIBLE_DELIVERY: [(&str, PossibleDelivery); 2] =
    [("retry", PossibleDelivery::Retry), ("delivered", PossibleDelivery::Delivered)];

/// Words of `long_lines`.
pub(super) const LONG_LINES: [(&str, LongLines); 2] =
    [("accept", LongLines::Accept), ("reject", LongLines::Reject)];

/// Words of `log.detail`.
pub(super) const LOG_DETAILS: [(&str, LogDetail); 3] = [
    ("full", LogDetail::Full),
    ("delivery", LogDetail::Delivery),
    ("problems", LogDetail::Problems),
];

/// Words of `log.time`.
pub(super) const LOG_TIMES: [(&str, LogTime); 2] =
    [("local", LogTime::Local), ("utc", LogTime::Utc)];

fn hostname(top: &mut Section<'_>) -> Arc<str> {
    let own = || {
        let name = rustix::system::uname().nodename().to_bytes().to_owned();
        Domain::parse(&name).ok().filter(|domain| domain.literal().is_none())
    };
    match top.get("hostname", host_name).or_else(own) {
        Some(name) => name.as_str().into(),
        None => "localhost".into(),
    }
}

fn queue(place: &Place<'_>, top: &mut Section<'_>) -> QueueSettings {
    let default = QueueSettings::default();
    let spool = top.get("spool", text).map_or(default.spool, PathBuf::from);
    let spool = place.base.join(spool);
    let octets_max = top.get("spool_max_size", size(SPOOL_OCTETS_MIN..=OCTETS_MAX));
    let free_octets_min = top.get("spool_min_free", |value| free_octets(value, &spool));
    QueueSettings { octets_max: octets_max.unwrap_or(default.octets_max), free_octets_min, spool }
}

/// A size, or a share of the file system that holds the spool.
fn free_octets(value: &DeValue<'_>, spool: &Path) -> Parsed<u64> {
    let allowed = "a size such as \"1GiB\", or \"0%\" to \"90%\"";
    let text = string(value, allowed)?;
    let Some(percent) = text.strip_suffix('%') else {
        return size_in(text, &(0..=OCTETS_MAX)).map_err(|_| refuse(quote(text), allowed));
    };
    let percent: u64 = percent
        .parse()
        .ok()
        .filter(|percent| *percent <= 90)
        .ok_or_else(|| refuse(quote(text), allowed))?;
    let absolute = std::path::absolute(spool).map_err(|e| refuse(e, allowed))?;
    let exists = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let system = rustix::fs::statvfs(exists)
        .map_err(|e| refuse(format_args!("{}: {e}", exists.display()), "a size instead"))?;
    Ok(system.f_blocks.saturating_mul(system.f_frsize) / 100 * percent)
}

fn tuning_profile(place: &Place<'_>, top: &mut Section<'_>) -> (Arc<str>, Tuning) {
    let read = |value: &DeValue<'_>| profile_source(place, &text(value)?);
    let source = top.get("profile", |value| Ok((text(value)?, read(value)?)));
    let (name, source) = source.unwrap_or_else(|| {
        let name = tuning::DEFAULT_PROFILE.to_owned();
        let source = profile_source(place, &name).expect("the default profile is in the binary");
        (name, source)
    });
    (name.into(), tuning::parse_into(place.report, &source).tuning)
}

/// The text of a profile: a name in the binary, or a path.
fn profile_source(place: &Place<'_>, name: &str) -> Parsed<Source> {
    if name.contains('/') || name.ends_with(".conf") {
        let file = place.base.join(name);
        return Source::read(&file, FILE_OCTETS_MAX).map_err(|problem| problem.to_string());
    }
    let names = tuning::names();
    let text = tuning::embedded(name).ok_or_else(|| {
        let near = nearest(name, names.iter().map(String::as_str)).unwrap_or_default();
        let unknown = format!("unknown profile {} (did you mean {near}?)", quote(name));
        refuse(unknown, format_args!("{}, or a path with a slash", names.join(", ")))
    })?;
    Ok(Source::new(Path::new(&format!("tuning/{name}.conf")), text))
}

fn listeners(
    top: &mut Section<'_>,
    hostname: &Arc<str>,
    profiles: &BounceProfiles,
) -> Vec<ListenerSettings> {
    let Some(sections) = top.sections("listener") else {
        return vec![default_listener(hostname)];
    };
    let mut listeners: Vec<ListenerSettings> = Vec::new();
    for section in sections {
        let next = listener(section, hostname, profiles, &listeners);
        listeners.push(next);
    }
    listeners
}

fn default_listener(hostname: &Arc<str>) -> ListenerSettings {
    let loopback = ["127.0.0.0/8", "::1/128"];
    let server = ServerSettings {
        hostname: Arc::clone(hostname),
        message_octets_max: 25 << 20,
        recipients_max: 1000,
        long_lines: LongLines::default(),
    };
    ListenerSettings {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 2525)),
        relay_from: loopback.map(|net| IpNet::parse(net).expect("a net")).to_vec(),
        server: Arc::new(server),
        connections_max: CONNECTIONS_DEFAULT,
        connections_per_ip_max: CONNECTIONS_DEFAULT,
        bounce_profile: DEFAULT_PROFILE.into(),
    }
}

fn listener(
    mut section: Section<'_>,
    hostname: &Arc<str>,
    profiles: &BounceProfiles,
    others: &[ListenerSettings],
) -> ListenerSettings {
    let default = default_listener(hostname);
    let address = section.get("address", socket_address).unwrap_or(default.address);
    if address.port() != 0 && others.iter().any(|other| other.address == address) {
        let what = refuse(format_args!("{address} is taken by a listener above"), "each one once");
        section.refuse_key("address", &what);
    }
    let octets = MESSAGE_OCTETS_MIN..=limits::MESSAGE_OCTETS_MAX;
    let recipients_max = u32::try_from(limits::RECIPIENTS_MAX).expect("a small limit");
    // RFC 5321 4.5.3.1.8 asks every server for 100, but a test rig may want fewer.
    let recipients = section.get("max_recipients", integer(1..=recipients_max));
    let connections_max = section
        .get("max_connections", integer(1..=CONNECTIONS_MAX))
        .unwrap_or(default.connections_max);
    let server = ServerSettings {
        hostname: Arc::clone(hostname),
        message_octets_max: section
            .get("max_message_size", size(octets))
            .unwrap_or(default.server.message_octets_max),
        recipients_max: recipients
            .map_or(default.server.recipients_max, |n| usize::try_from(n).expect("bounded")),
        long_lines: section.get("long_lines", choice(&LONG_LINES, &[])).unwrap_or_default(),
    };
    section.get("tls", choice(&[("none", ())], &["starttls", "implicit"]));
    for key in ["tls_certificate", "tls_key", "users", "require_auth"] {
        section.later(key);
    }
    ListenerSettings {
        address,
        relay_from: section
            .list("relay_from", "an array of nets such as [\"127.0.0.0/8\"]", net)
            .unwrap_or(default.relay_from),
        server: Arc::new(server),
        connections_max,
        connections_per_ip_max: section
            .get("max_connections_per_ip", integer(1..=CONNECTIONS_MAX))
            .unwrap_or(connections_max),
        bounce_profile: section
            .get("bounce_profile", |value| profile_name(value, profiles))
            .unwrap_or(default.bounce_profile),
    }
}

fn log(place: &Place<'_>, mut section: Section<'_>) -> LogSettings {
    let target = section.get("mail", text).unwrap_or_else(|| "mail_logs".to_owned());
    LogSettings {
        target: match target.as_str() {
            "-" => LogTarget::Stdout,
            "off" => LogTarget::Off,
            file => LogTarget::File(place.base.join(file)),
        },
        detail: section.get("detail", choice(&LOG_DETAILS, &[])).unwrap_or_default(),
        time: section.get("time", choice(&LOG_TIMES, &[])).unwrap_or_default(),
    }
}

fn dns(mut section: Section<'_>) -> DnsSettings {
    let servers = "an array of addresses such as [\"127.0.0.1:5353\"]";
    let mx_port = section.get("mx_port", integer(1..=u32::from(u16::MAX))).unwrap_or(25);
    DnsSettings {
        servers: section.list("servers", servers, server_address),
        mx_port: u16::try_from(mx_port).expect("bounded"),
        allow_loopback: section.get("allow_loopback", boolean).unwrap_or(false),
    }
}

fn admin(
    place: &Place<'_>,
    mut section: Section<'_>,
    spool: &Path,
    listeners: &[ListenerSettings],
) -> AdminSettings {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8025));
    let address = section.get("address", socket_address).unwrap_or(default);
    let taken = listeners.iter().any(|listener| listener.address == address);
    if taken && address.port() != 0 {
        let what = refuse(format_args!("{address} is taken by a listener"), "one of its own");
        section.refuse_key("address", &what);
    }
    let token_file = section.get("token_file", text).map(|file| place.base.join(file));
    AdminSettings { address, token_file: token_file.unwrap_or_else(|| spool.join("admin.token")) }
}

/// Bounce profiles by name.
type BounceProfiles = HashMap<Arc<str>, Arc<BounceProfile>>;

fn bounce_profiles(top: &mut Section<'_>) -> BounceProfiles {
    let default = (DEFAULT_PROFILE.into(), Arc::new(BounceProfile::default()));
    let mut profiles = BounceProfiles::from([default]);
    for (name, section) in top.named_sections("bounce_profile") {
        let profile = bounce_profile(name, section);
        profiles.insert(Arc::clone(&profile.name), Arc::new(profile));
    }
    profiles
}

fn bounce_profile(name: &str, mut section: Section<'_>) -> BounceProfile {
    let default = BounceProfile::default();
    let age = || duration(seconds(1)..=AGE_MAX);
    section.get("delay_warning", delay_warning);
    section.get("delay_warning_interval", age());
    section.get("max_delay_warnings", integer(0..=1000));
    let profile = BounceProfile {
        name: name.into(),
        retries_max: section
            .get("max_retries", integer(0..=1_000_000))
            .unwrap_or(default.retries_max),
        time_in_queue_max: section
            .get("max_time_in_queue", age())
            .unwrap_or(default.time_in_queue_max),
        initial_retry: section.get("initial_retry", age()).unwrap_or(default.initial_retry),
        retry_max: section.get("max_retry", age()).unwrap_or(default.retry_max),
        send_bounces: section.get("send_bounces", boolean).unwrap_or(default.send_bounces),
        bounce_address: section.get("bounce_address", optional_mailbox).flatten(),
        report_original_octets_max: section
            .get("report_original_max", size(0..=limits::MESSAGE_OCTETS_MAX))
            .unwrap_or(default.report_original_octets_max),
    };
    if profile.initial_retry > profile.retry_max {
        section.refuse_key("initial_retry", "longer than max_retry, allowed: at most max_retry");
    }
    profile
}

/// Delay warnings do not exist yet; what would be wrong with them anyway is said as such.
fn delay_warning(value: &DeValue<'_>) -> Parsed<()> {
    if value.as_str() == Some("off") {
        return Ok(());
    }
    let word = string(value, "\"off\"")?;
    match duration(seconds(1)..=AGE_MAX)(value) {
        Ok(_) => Err(refuse(format_args!("{} is not supported yet", quote(word)), "\"off\"")),
        Err(_) => Err(refuse(format_args!("{} is unknown", quote(word)), "\"off\"")),
    }
}

/// The name of a bounce profile that exists.
fn profile_name(value: &DeValue<'_>, profiles: &BounceProfiles) -> Parsed<Arc<str>> {
    let mut names: Vec<&str> = profiles.keys().map(|name| &**name).collect();
    names.sort_unstable();
    let name = string(value, &names.join(", "))?;
    let known = profiles.get_key_value(name).map(|(known, _)| Arc::clone(known));
    known.ok_or_else(|| {
        let near = nearest(name, names.iter().copied()).unwrap_or_default();
        let unknown = format!("unknown bounce profile {} (did you mean {near}?)", quote(name));
        refuse(unknown, names.join(", "))
    })
}

fn destinations(top: &mut Section<'_>, profiles: &BounceProfiles) -> Destinations {
    let (defaults, exact): (Vec<_>, Vec<_>) =
        top.named_sections("destination").into_iter().partition(|(name, _)| *name == "default");
    let esa = DestinationControls::default();
    let mut default = esa.clone();
    for (_, section) in defaults {
        default = controls(section, &esa, profiles);
    }
    let mut destinations = Destinations { default: Arc::new(default), exact: HashMap::new() };
    for (name, section) in exact {
        let Ok(domain) = Domain::parse(name.as_bytes()) else {
            let allowed = "default, or a domain such as \"example.com\"";
            section.refuse(&refuse(format_args!("{} is no domain", quote(name)), allowed));
            controls(section, &destinations.default, profiles);
            continue;
        };
        if destinations.exact.contains_key(&domain) {
            section.refuse(&refuse(format_args!("{domain} has two sections"), "one"));
        }
        let own = controls(section, &destinations.default, profiles);
        destinations.exact.insert(domain, Arc::new(own));
    }
    destinations
}

/// The controls of one section; keys that it leaves out are as in `default`.
fn controls(
    mut section: Section<'_>,
    default: &DestinationControls,
    profiles: &BounceProfiles,
) -> DestinationControls {
    let tls = ["preferred", "required", "preferred-verify", "required-verify"];
    section.get("tls", choice(&[("none", ())], &tls));
    let trains = section.get("trains", choice(&[("auto", true), ("off", false)], &[]));
    section.get("limit_type", choice(&[("domain", ())], &["host"]));
    section.get("ip_version", choice(&[("prefer-v6", ())], &IP_VERSIONS_LATER));
    section.get("recipient_limit", recipient_limit);
    let bounce_profile = section.get("bounce_profile", |value| profile_name(value, profiles));
    let recipients_max = u32::try_from(limits::RECIPIENTS_MAX).expect("a small limit");
    DestinationControls {
        connections_max: section
            .get("max_connections", integer(1..=CONNECTIONS_MAX))
            .unwrap_or(default.connections_max),
        messages_per_connection_max: section
            .get("max_messages_per_connection", integer(1..=u32::MAX))
            .unwrap_or(default.messages_per_connection_max),
        recipients_per_transaction_max: section
            .get("max_recipients_per_transaction", integer(1..=recipients_max))
            .unwrap_or(default.recipients_per_transaction_max),
        trains: trains.unwrap_or(default.trains),
        // The word "default" leaves the choice to the listener, as the ESA's does.
        bounce_profile: match bounce_profile {
            Some(name) => Some(name).filter(|name| &**name != DEFAULT_PROFILE),
            None => default.bounce_profile.clone(),
        },
        interface: section.get("interface", source_address).unwrap_or(default.interface),
        ehlo_name: section
            .get("ehlo_name", host_name)
            .map_or(default.ehlo_name.clone(), |name| Some(name.as_str().into())),
    }
}

/// Words of `ip_version` that are not supported yet.
const IP_VERSIONS_LATER: [&str; 3] = ["prefer-v4", "require-v6", "require-v4"];

/// Only "none" exists yet.
fn recipient_limit(value: &DeValue<'_>) -> Parsed<()> {
    match value {
        DeValue::String(word) if word == "none" => Ok(()),
        DeValue::String(word) => {
            Err(refuse(format_args!("{} is unknown", quote(word)), "\"none\""))
        }
        DeValue::Table(_) => Err(refuse("a limit is not supported yet", "\"none\"")),
        _ => Err(wrong_type(value, "\"none\"")),
    }
}

fn timeouts(mut section: Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let mut get =
        |key, default| section.get(key, duration(seconds(1)..=seconds(3600))).unwrap_or(default);
    Timeouts {
        connect: get("connect", default.connect),
        greeting: get("greeting", default.greeting),
        ehlo: get("ehlo", default.ehlo),
        mail: get("mail", default.mail),
        rcpt: get("rcpt", default.rcpt),
        data: get("data", default.data),
        block: get("block", default.block),
        final_reply: get("final", default.final_reply),
        idle: get("idle", default.idle),
    }
}
