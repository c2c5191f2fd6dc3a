//! The admin API over HTTP.
//!
//! Owns: its paths, and who may use them: `/healthz` and `/metrics` are open, `/api/v1/...` wants
//! `Authorization: Bearer TOKEN` (RFC 6750 2.1). Never: a lock that a shard waits for.
//!
//! On a loopback address the Host and Origin of a request must name this machine: else a web page
//! whose name was made to resolve to it could read what it likes through its reader's browser.
//!
//! Diagnostics: RFC 9457 problems. Limits: requests have no body; one request a connection.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::Control;
use super::explain::{Explanation, explain};
use super::problem::{Fault, Problem};
use super::status::Status;
use crate::mail::{Mailbox, Mono};
use crate::route::{Host, Status as Health};
use crate::shard::Stopping;
use crate::telemetry::Latencies;
use crate::telemetry::prometheus::{self, HostSample, HostState, Page, ShardSample};

type Shared = State<Arc<Control>>;

/// All paths.
pub(super) fn router(control: Arc<Control>) -> Router {
    let api = Router::new()
        .route("/status", get(status))
        .route("/route/explain", get(explain_route))
        .route("/reload", post(reload))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .route_layer(middleware::from_fn_with_state(control.clone(), with_token));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .nest("/api/v1", api)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(control.clone(), every_request))
        .with_state(control)
}

async fn healthz(State(control): Shared) -> impl IntoResponse {
    match control.shared.stopping() {
        Stopping::No => (StatusCode::OK, "ok\n"),
        Stopping::Gently | Stopping::Now => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn metrics(State(control): Shared) -> impl IntoResponse {
    let now = crate::shard::io::now();
    let shared = &control.shared;
    let (mut delivery, mut commit) = (Latencies::new(), Latencies::new());
    let reports = shared.reports();
    for report in &reports {
        delivery.merge(&report.latencies);
        commit.merge(&report.commit_latencies);
    }
    let shards = reports.iter().zip(&shared.counters).map(|(report, counters)| ShardSample {
        pending: counters.pending.get(),
        takes_mail: report.takes_mail,
        destinations: report.destinations,
        queue_octets: report.usage.octets,
        queue_octets_max: report.usage.octets_max,
        segments: report.usage.segments,
        segments_free: report.usage.segments_free,
        segments_spare: report.usage.segments_spare,
        segments_poisoned: report.usage.segments_poisoned,
        index_octets: report.usage.index_octets,
        uncommitted: report.usage.uncommitted,
        receive_octets: report.receive.octets,
        receive_octets_max: report.receive.octets_max,
        receive_waiting: report.receive.waiting,
    });
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        io: control.backend.name(),
        uptime_s: control.uptime_s(now),
        configuration: shared.config.load().epoch,
        totals: control.totals(),
        shards: &shards.collect::<Vec<_>>(),
        delivery: &delivery,
        commit: &commit,
    };
    let hosts = shared.registry.hosts();
    let text = prometheus::render(&page, hosts.iter().map(|host| sample(host, now.mono)));
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text)
}

fn sample(host: &Host, now: Mono) -> HostSample {
    HostSample {
        address: host.address(),
        turns: host.turns(),
        delivered: host.delivered(),
        connections: u64::from(host.permits().taken()),
        state: match host.status(now) {
            Health::Up | Health::SlowConnect | Health::PassedOver { .. } => HostState::Up,
            Health::Down { .. } | Health::ProbeDue => HostState::Down,
            Health::Probing { .. } => HostState::Probing,
        },
    }
}

async fn status(State(control): Shared) -> Json<Status> {
    Json(control.status())
}

/// The question of `route explain`.
#[derive(Deserialize)]
struct Who {
    recipient: Option<String>,
}

async fn explain_route(
    State(control): Shared,
    Query(who): Query<Who>,
) -> Result<Json<Explanation>, Problem> {
    let wrong = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail).at("recipient");
    let who = who.recipient.ok_or_else(|| wrong("say whose: ?recipient=USER@DOMAIN"))?;
    let recipient = Mailbox::parse(who.as_bytes()).map_err(|error| wrong(&error.to_string()))?;
    let config = control.shared.config.load_full();
    let now = crate::shard::io::now().mono;
    Ok(Json(explain(&config, Some(&control.shared.registry), &recipient, now)))
}

async fn reload(State(control): Shared) -> Result<Json<serde_json::Value>, Problem> {
    match control.reload().await {
        Ok(reloaded) => Ok(Json(serde_json::json!({
            "configuration": reloaded.epoch,
            "at_next_start": reloaded.waiting,
        }))),
        Err(problems) => {
            let detail = "the old configuration stays in force; mend the file and try again";
            let mut answer = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
            answer.errors.extend(problems.into_iter().map(|problem| Fault {
                pointer: format!("{}:{}:{}", problem.file.display(), problem.line, problem.column),
                detail: problem.what,
            }));
            Err(answer)
        }
    }
}

async fn no_such_path() -> Problem {
    let paths = "/healthz, /metrics, /api/v1/status, /api/v1/route/explain, /api/v1/reload";
    Problem::new(StatusCode::NOT_FOUND, format!("there are {paths}"))
}

async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "GET reads, POST /api/v1/reload reloads")
}

/// Lets a request to the API in if it has the token.
async fn with_token(State(control): Shared, request: Request, next: Next) -> Response {
    let offered = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let offered = offered.and_then(|value| value.split_once(' '));
    match offered {
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case("bearer") && control.token.is(token.trim()) =>
        {
            next.run(request).await
        }
        _ => {
            let detail = "send 'Authorization: Bearer TOKEN' with the content of admin.token_file";
            let mut refusal = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
            let scheme = HeaderValue::from_static("Bearer");
            refusal.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            refusal
        }
    }
}

/// What holds for every request.
async fn every_request(State(control): Shared, request: Request, next: Next) -> Response {
    let mut response = if control.loopback && !is_for_this_machine(request.headers()) {
        let detail = "Host and Origin must be an address or localhost";
        Problem::new(StatusCode::FORBIDDEN, detail).into_response()
    } else {
        next.run(request).await
    };
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Do Host and Origin, where they stand, name this machine and not some domain?
fn is_for_this_machine(headers: &HeaderMap) -> bool {
    let hosts = headers.get_all(header::HOST).iter().map(HeaderValue::to_str);
    let origins = headers.get_all(header::ORIGIN).iter().map(HeaderValue::to_str);
    let after_scheme =
        |origin: &str| is_local(origin.split_once("://").map_or("", |(_, rest)| rest));
    hosts.into_iter().all(|host| host.is_ok_and(is_local))
        && origins.into_iter().all(|origin| origin.is_ok_and(after_scheme))
}

/// Is `authority` (`host` or `host:port`) an address or `localhost`? No name can be made to
/// resolve to it then.
fn is_local(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_made_to_resolve_here_are_refused() {
        for host in ["127.0.0.1", "127.0.0.1:8025", "[::1]:8025", "[::1]", "localhost:8025"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["example.com", "example.com:8025", "localhost.example.com", "", "null", "x:1:2"]
        {
            assert!(!is_local(host), "{host}");
        }
        let headers = |name, value| HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
        assert!(is_for_this_machine(&HeaderMap::new()));
        assert!(is_for_this_machine(&headers(header::ORIGIN, "http://127.0.0.1:8025")));
        assert!(!is_for_this_machine(&headers(header::ORIGIN, "http://example.com")));
        assert!(!is_for_this_machine(&headers(header::HOST, "example.com")));
    }
}
