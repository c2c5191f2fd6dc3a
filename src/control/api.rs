//! The admin API over HTTP.
//!
//! Owns: `/healthz` and `/metrics`. Never: a lock that a shard waits for.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Control;
use crate::route::{Host, Status};
use crate::shard::Stopping;
use crate::telemetry::prometheus::{self, HostSample, HostState, Page};
use crate::telemetry::{Latencies, Totals};

/// All paths.
pub(super) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(control)
}

async fn healthz(State(control): State<Arc<Control>>) -> impl IntoResponse {
    match control.shared.stopping() {
        Stopping::No => (StatusCode::OK, "ok\n"),
        Stopping::Gently | Stopping::Now => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn metrics(State(control): State<Arc<Control>>) -> impl IntoResponse {
    let now = crate::shard::io::now();
    let shared = &control.shared;
    let mut delivery = Latencies::new();
    for report in shared.reports() {
        delivery.merge(&report.latencies);
    }
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: now.mono.since_ms(control.started.mono) / 1000,
        totals: Totals::of(shared.counters.iter().map(|counters| &**counters)),
        delivery: &delivery,
        commit: &Latencies::new(),
    };
    let hosts = shared.registry.hosts();
    let text = prometheus::render(&page, hosts.iter().map(|host| sample(host, now.mono)));
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text)
}

fn sample(host: &Host, now: crate::mail::Mono) -> HostSample {
    HostSample {
        address: host.address(),
        turns: host.turns(),
        delivered: host.delivered(),
        connections: u64::from(host.permits().taken()),
        state: match host.status(now) {
            Status::Up | Status::SlowConnect | Status::PassedOver { .. } => HostState::Up,
            Status::Down { .. } | Status::ProbeDue => HostState::Down,
            Status::Probing { .. } => HostState::Probing,
        },
    }
}
