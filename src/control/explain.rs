//! Where mail for an address would go now, and why: the forecast of `route explain`.
//!
//! Owns: [`Explanation`]. Never: an effect: no turn is taken and no host becomes known by it.

use serde::{Deserialize, Serialize};

use super::status::HostStatus;
use crate::config::{DEFAULT_PROFILE, Snapshot};
use crate::mail::{Domain, Mailbox, Mono};
use crate::route::{Plan, Registry, Row, Target};

/// Hosts of a route are all tried in one attempt.
const TRIES_MAX: usize = usize::MAX;

/// Where mail for an address would go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The address.
    pub recipient: String,
    /// Its receiving domain, as it is matched.
    pub domain: String,
    /// True: a running engine answered, and health is what it knows now. False: the files
    /// answered, and nothing is known of any host.
    pub engine: bool,
    /// The route that matches; none: no route does.
    pub route: Option<Route>,
    /// `hosts`, `discard` (/dev/null), or `none`: RCPT is answered with 451 4.4.4.
    pub way: String,
    /// The hosts in the order in which one delivery would try them now.
    pub hosts: Vec<HostForecast>,
    /// What the destination may take.
    pub limits: Limits,
    /// How connections are secured.
    pub tls: String,
    /// The profile of outgoing SMTP authentication.
    pub auth: Option<String>,
}

/// A row of the routes table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Which receiving domains it is for.
    pub pattern: String,
    /// The row.
    pub text: String,
    /// The file it stands in.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

/// One host of the route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostForecast {
    /// Its priority; 0 is tried first.
    pub priority: u16,
    /// Its state.
    #[serde(flatten)]
    pub host: HostStatus,
}

/// What a destination may take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Connections.
    pub max_connections: u32,
    /// Messages of one connection.
    pub max_messages_per_connection: u32,
    /// Recipients of one transaction.
    pub max_recipients_per_transaction: u32,
    /// The bounce profile, where the listener's is not overridden.
    pub bounce_profile: String,
    /// Source address of its connections.
    pub interface: Option<String>,
    /// Name given in EHLO.
    pub ehlo_name: String,
}

/// The forecast for `recipient` under `config`. `registry` is that of a running engine.
#[must_use]
pub fn explain(
    config: &Snapshot,
    registry: Option<&Registry>,
    recipient: &Mailbox,
    now: Mono,
) -> Explanation {
    let domain = recipient.domain();
    let row = config.routes.find(domain);
    let way = match row.map(|row| &row.target) {
        None => "none",
        Some(Target::Discard) => "discard",
        Some(Target::UseDns) => "dns",
        Some(Target::Hosts(_)) => "hosts",
    };
    Explanation {
        recipient: recipient.as_str().to_owned(),
        domain: domain.as_str().to_owned(),
        engine: registry.is_some(),
        route: row.map(|row| route(config, row)),
        way: way.to_owned(),
        hosts: row.map_or_else(Vec::new, |row| hosts(row, registry, now)),
        limits: limits(config, domain),
        tls: "none".to_owned(),
        auth: row.and_then(|row| row.auth.as_deref()).map(str::to_owned),
    }
}

fn route(config: &Snapshot, row: &Row) -> Route {
    let file = config.routes_file.as_ref().map(|file| file.display().to_string());
    Route {
        pattern: row.pattern.to_string(),
        text: row.to_string(),
        file: file.unwrap_or_default(),
        line: row.line,
    }
}

fn hosts(row: &Row, registry: Option<&Registry>, now: Mono) -> Vec<HostForecast> {
    let Some(addresses) = row.addresses() else { return Vec::new() };
    let nobody = Registry::new(1);
    let known = registry.unwrap_or(&nobody);
    let plan = Plan::preview(known, &row.pattern.to_string(), &addresses, TRIES_MAX, now);
    let forecast = |forecast: crate::route::Forecast| {
        let mut host = HostStatus::of(&forecast.host, now);
        if registry.is_none_or(|registry| registry.known_host(forecast.host.address()).is_none()) {
            host.state = "unknown".to_owned();
        }
        HostForecast { priority: forecast.priority, host }
    };
    plan.explain(now).into_iter().map(forecast).collect()
}

fn limits(config: &Snapshot, domain: &Domain) -> Limits {
    let controls = config.destinations.controls(domain);
    Limits {
        max_connections: controls.connections_max,
        max_messages_per_connection: controls.messages_per_connection_max,
        max_recipients_per_transaction: controls.recipients_per_transaction_max,
        bounce_profile: config.bounce_profile_for(DEFAULT_PROFILE, domain).name.to_string(),
        interface: controls.interface.map(|ip| ip.to_string()),
        ehlo_name: controls.ehlo_name.as_ref().unwrap_or(&config.hostname).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(routes: &str) -> (tempfile::TempDir, Snapshot) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("smtproutes"), routes).unwrap();
        let file = folder.path().join("r.toml");
        let text = "routes = \"smtproutes\"\n[destination.\"a.test\"]\nmax_connections = 7\n";
        let config = crate::config::load_text(&file, text.to_owned()).unwrap();
        (folder, config)
    }

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_forecast_changes_nothing() {
        let (folder, config) =
            config("# routes\na.test 192.0.2.1, 192.0.2.2, 192.0.2.3/pri=5\nb.test /dev/null\n");
        let registry = Registry::new(2);
        let to = mailbox("x@A.test");
        let first = explain(&config, Some(&registry), &to, Mono(5));
        assert_eq!(first, explain(&config, Some(&registry), &to, Mono(5)));
        assert!(registry.hosts().is_empty() && registry.groups().is_empty());
        let order: Vec<_> = first.hosts.iter().map(|h| (&*h.host.address, h.priority)).collect();
        assert_eq!(order, [("192.0.2.1:25", 0), ("192.0.2.2:25", 0), ("192.0.2.3:25", 5)]);
        assert!(first.hosts.iter().all(|h| h.host.state == "unknown"));
        let route = first.route.unwrap();
        assert_eq!((route.line, &*route.pattern), (2, "a.test"));
        assert_eq!(Path::new(&route.file), folder.path().join("smtproutes"));
        assert_eq!(first.limits.max_connections, 7);

        // The real plan's turns and health are what the forecast sees.
        let addresses = config.routes.rows()[0].addresses().unwrap();
        let plan = Plan::new(&registry, "a.test", &addresses, TRIES_MAX, Mono(5));
        let _taken = plan.take_turns(1, Mono(5), &crate::route::HostSet::default());
        let _down = plan.hosts()[2].connection_failed(Mono(5));
        let next = explain(&config, Some(&registry), &to, Mono(6));
        let order: Vec<_> = next.hosts.iter().map(|h| (&*h.host.address, &*h.host.state)).collect();
        let expected = [("192.0.2.2:25", "up"), ("192.0.2.1:25", "up"), ("192.0.2.3:25", "down")];
        assert_eq!(order, expected);
        let ends = next.hosts[2].host.state_ends_in_ms;
        assert!(ends.is_some_and(|ms| ms > 0 && ms <= 1000), "{ends:?}");
    }

    #[test]
    fn what_is_not_sent_to_hosts_is_told_too() {
        let (_folder, config) = config("b.test /dev/null\n");
        for (to, way) in [("x@b.test", "discard"), ("x@c.test", "none")] {
            let told = explain(&config, None, &mailbox(to), Mono(0));
            assert_eq!((&*told.way, told.engine, told.hosts.len()), (way, false, 0));
        }
    }
}
