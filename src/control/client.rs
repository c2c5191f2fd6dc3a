//! The client that verbs ask a running engine with.
//!
//! Owns: one request over HTTP, and its bounds. Never: what is asked.
//!
//! Limits: [`ANSWER_OCTETS_MAX`]; [`CONNECT_TIMEOUT`] and [`ANSWER_TIMEOUT`].

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::token::Token;

/// Longest answer, in octets.
pub const ANSWER_OCTETS_MAX: u64 = 64 << 20;

/// How long a connection may take to stand.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the engine may be silent.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens at the admin address.
    NotRunning(SocketAddr, io::Error),
    /// The connection broke, or what came is no answer of ours.
    Broken(SocketAddr, String),
    /// The engine refuses.
    Refused(Problem),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning(address, error) => write!(
                f,
                "no engine answers on {address} ({error}): start it with 'ringpost serve', or \
                 name its configuration with --config"
            ),
            Self::Broken(address, what) => {
                write!(f, "what listens on {address} does not answer as the engine: {what}")
            }
            Self::Refused(problem) => {
                write!(f, "the engine refuses: {}: {}", problem.title, problem.detail)
            }
        }
    }
}

impl std::error::Error for ClientError {}

/// Where to reach the engine whose admin API listens on `address`.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// GET of `path` with its query, already escaped; the answer as JSON.
///
/// # Errors
/// See [`ClientError`].
pub fn get<T: DeserializeOwned>(
    address: SocketAddr,
    token: &Token,
    path: &str,
) -> Result<T, ClientError> {
    let address = reachable(address);
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .map_err(|error| ClientError::NotRunning(address, error))?;
    let broken = |what: String| ClientError::Broken(address, what);
    let answer = exchange(stream, address, token, path).map_err(|e| broken(e.to_string()))?;
    let (status, body) = parse(&answer).ok_or_else(|| broken("no HTTP".to_owned()))?;
    if status == 200 {
        return serde_json::from_slice(body).map_err(|error| broken(error.to_string()));
    }
    match serde_json::from_slice(body) {
        Ok(problem) => Err(ClientError::Refused(problem)),
        Err(_) => Err(broken(format!("HTTP status {status}"))),
    }
}

/// HTTP/1.0, so that the answer comes in one piece and ends with the connection (RFC 1945).
fn exchange(
    mut stream: TcpStream,
    address: SocketAddr,
    token: &Token,
    path: &str,
) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let token = token.as_str();
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_OCTETS_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status and body of an HTTP answer.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

/// `text` as a value in a query (RFC 3986 2.1).
#[must_use]
pub fn query_value(text: &str) -> String {
    let keep = |octet: u8| octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
    let escape = |octet: u8| match keep(octet) {
        true => char::from(octet).to_string(),
        false => format!("%{octet:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_queries() {
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}"), Some((200, &b"{}"[..])));
        for wrong in ["", "HTTP/1.1 200 OK\r\n", "220 mail ESMTP\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(query_value("a+b&c@ex ample.com"), "a%2Bb%26c%40ex%20ample.com");
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
    }
}
