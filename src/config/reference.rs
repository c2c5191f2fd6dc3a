//! The configuration as text: the commented reference, and what is in force.
//!
//! Owns: [`default_toml`] and [`render`]; what both print loads again. Never: values of its own.

use std::fmt::Write;

use super::read::{COMMIT_MODES, IO_MODES, LOG_DETAILS, LOG_TIMES, LONG_LINES, POSSIBLE_DELIVERY};
use super::snapshot::{ListenerSettings, Snapshot};
use super::value::{show_duration, show_size};
use crate::schedule::settings::{BounceProfile, DestinationControls};
use crate::telemetry::settings::LogTarget;

/// The reference configuration: every key with its default and its reason. It loads as it is.
#[must_use]
pub fn default_toml() -> &'static str {
    include_str!("reference.toml")
}

/// The values in force, as a configuration that says all of them.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut out = Out::default();
    top(&mut out, snapshot);
    for listener in &snapshot.listeners {
        out.section("[listener]");
        self::listener(&mut out, listener);
    }
    log_dns_admin(&mut out, snapshot);
    let mut profiles: Vec<_> = snapshot.bounce_profiles.values().collect();
    profiles.sort_by(|a, b| a.name.cmp(&b.name));
    for profile in profiles {
        out.section(&format!("bounce_profile.{}", quoted(&profile.name)));
        bounce_profile(&mut out, profile);
    }
    out.section("destination.default");
    controls(&mut out, &snapshot.destinations.default);
    let mut exact: Vec<_> = snapshot.destinations.exact.iter().collect();
    exact.sort_by_key(|(domain, _)| *domain);
    for (domain, own) in exact {
        out.section(&format!("destination.{}", quoted(domain.as_str())));
        controls(&mut out, own);
    }
    timeouts(&mut out, snapshot);
    out.0
}

/// TOML text, line by line.
#[derive(Default)]
struct Out(String);

impl Out {
    fn section(&mut self, name: &str) {
        self.line(format_args!("\n[{name}]"));
    }

    fn raw(&mut self, key: &str, value: impl std::fmt::Display) {
        self.line(format_args!("{key} = {value}"));
    }

    fn text(&mut self, key: &str, value: impl std::fmt::Display) {
        self.raw(key, quoted(&value.to_string()));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes every line");
    }
}

/// A basic string of TOML. JSON's strings are a part of TOML's, but for the control character
/// DEL, which TOML wants escaped.
fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.replace('\u{7f}', "\\u007F")
}

/// The word of `value` among the choices of its key.
fn word<T: Copy + PartialEq>(choices: &[(&'static str, T)], value: T) -> &'static str {
    let found = choices.iter().find(|(_, known)| *known == value);
    found.expect("every value has its word").0
}

fn top(out: &mut Out, snapshot: &Snapshot) {
    out.text("hostname", &snapshot.hostname);
    out.text("spool", snapshot.queue.spool.display());
    out.text("profile", &snapshot.profile);
    out.raw("shards", snapshot.shards);
    if let Some(file) = &snapshot.routes_file {
        out.text("routes", file.display());
    }
    out.text("io", word(&IO_MODES, snapshot.io));
    out.text("commit", word(&COMMIT_MODES, snapshot.commit));
    out.text("possible_delivery", word(&POSSIBLE_DELIVERY, snapshot.possible_delivery));
    out.raw("max_connections_out", snapshot.connections_out_max);
    out.text("spool_max_size", show_size(snapshot.queue.octets_max));
    match snapshot.queue.free_octets_min {
        Some(octets) => out.text("spool_min_free", show_size(octets)),
        None => out.text("spool_min_free", "2%"),
    }
    out.text("shutdown_final_reply", show_duration(snapshot.shutdown_final_reply));
    out.text("postmaster", snapshot.postmaster.as_ref().map_or("", |m| m.as_str()));
}

fn listener(out: &mut Out, listener: &ListenerSettings) {
    out.text("address", listener.address);
    let nets: Vec<String> = listener.relay_from.iter().map(|net| format!("\"{net}\"")).collect();
    out.raw("relay_from", format_args!("[{}]", nets.join(", ")));
    out.text("max_message_size", show_size(listener.server.message_octets_max));
    out.raw("max_recipients", listener.server.recipients_max);
    out.raw("max_connections", listener.connections_max);
    out.raw("max_connections_per_ip", listener.connections_per_ip_max);
    out.text("long_lines", word(&LONG_LINES, listener.server.long_lines));
    out.text("bounce_profile", &listener.bounce_profile);
    out.text("tls", "none");
}

fn log_dns_admin(out: &mut Out, snapshot: &Snapshot) {
    out.section("log");
    match &snapshot.log.target {
        LogTarget::File(file) => out.text("mail", file.display()),
        LogTarget::Stdout => out.text("mail", "-"),
        LogTarget::Off => out.text("mail", "off"),
    }
    out.text("detail", word(&LOG_DETAILS, snapshot.log.detail));
    out.text("time", word(&LOG_TIMES, snapshot.log.time));
    out.section("dns");
    if let Some(servers) = &snapshot.dns.servers {
        let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
        out.raw("servers", format_args!("[{}]", servers.join(", ")));
    }
    out.raw("mx_port", snapshot.dns.mx_port);
    out.raw("allow_loopback", snapshot.dns.allow_loopback);
    out.section("admin");
    out.text("address", snapshot.admin.address);
    out.text("token_file", snapshot.admin.token_file.display());
}

fn bounce_profile(out: &mut Out, profile: &BounceProfile) {
    out.raw("max_retries", profile.retries_max);
    out.text("max_time_in_queue", show_duration(profile.time_in_queue_max));
    out.text("initial_retry", show_duration(profile.initial_retry));
    out.text("max_retry", show_duration(profile.retry_max));
    out.raw("send_bounces", profile.send_bounces);
    out.text("bounce_address", profile.bounce_address.as_ref().map_or("", |m| m.as_str()));
    out.text("report_original_max", show_size(profile.report_original_octets_max));
    out.text("delay_warning", "off");
}

fn controls(out: &mut Out, controls: &DestinationControls) {
    out.raw("max_connections", controls.connections_max);
    out.raw("max_messages_per_connection", controls.messages_per_connection_max);
    out.raw("max_recipients_per_transaction", controls.recipients_per_transaction_max);
    out.text("recipient_limit", "none");
    out.text("limit_type", "domain");
    out.text("tls", "none");
    out.text("bounce_profile", controls.bounce_profile.as_deref().unwrap_or("default"));
    match controls.interface {
        Some(ip) => out.text("interface", ip),
        None => out.text("interface", "auto"),
    }
    out.text("ip_version", "prefer-v6");
    if let Some(name) = &controls.ehlo_name {
        out.text("ehlo_name", name);
    }
    out.text("trains", if controls.trains { "auto" } else { "off" });
}

fn timeouts(out: &mut Out, snapshot: &Snapshot) {
    let t = &snapshot.timeouts;
    out.section("timeouts");
    for (key, value) in [
        ("connect", t.connect),
        ("greeting", t.greeting),
        ("ehlo", t.ehlo),
        ("mail", t.mail),
        ("rcpt", t.rcpt),
        ("data", t.data),
        ("block", t.block),
        ("final", t.final_reply),
        ("idle", t.idle),
    ] {
        out.text(key, show_duration(value));
    }
}
