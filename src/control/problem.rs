//! Errors of the admin API: problem details of RFC 9457.
//!
//! Owns: their form. Never: what is wrong (each handler knows that).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// One error, as RFC 9457 section 3 has it; `type` is `about:blank`, so `title` is that of the
/// status.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Problem {
    /// The status of the answer.
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What is wrong here, and what to do.
    pub detail: String,
    /// What is wrong in detail, when it is several things.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One of several things that are wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong, and what is allowed.
    pub detail: String,
    /// Where: a parameter, or `file:line:column`.
    pub pointer: String,
}

impl Problem {
    /// An error of one thing.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error").to_owned();
        Self { status: status.as_u16(), title, detail: detail.into(), errors: Vec::new() }
    }

    /// With the place of what is wrong.
    pub(super) fn at(mut self, pointer: impl Into<String>) -> Self {
        let detail = self.detail.clone();
        self.errors.push(Fault { detail, pointer: pointer.into() });
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status);
        let mut response = axum::Json(self).into_response();
        *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
