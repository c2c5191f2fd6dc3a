//! Connect: a TCP connection to a host, within its deadline.
//!
//! Owns: [`connect`], and what a slow one means for the lane. Never: permits, or the dialogue over
//! the connection (`session`).

use std::rc::Rc;
use std::time::Duration;

use super::connection::{Bell, Beside};
use super::destination::Destination;
use super::io::{self, Socket};
use super::pool::Served;
use super::session::error_text;
use super::{Shard, Stopping};
use crate::mail::{ConnectionCause, ConnectionFailure, Shortage, Stage};

/// A connect without an answer for this long is slow: other hosts take its deliveries.
const SLOW_CONNECT: Duration = Duration::from_millis(crate::route::host::SLOW_CONNECT_MS);

/// Why a connection does not stand.
pub(super) enum NoConnection {
    /// The host, or the way to it.
    Host(ConnectionFailure),
    /// Our own machine.
    Machine(Shortage),
}

/// Connects within the deadline. After [`SLOW_CONNECT`] the lane's deliveries take new turns,
/// while the connect runs on and decides the host's health.
pub(super) async fn connect(
    shard: &Rc<Shard>,
    served: &Rc<Served>,
    destination: &Destination,
    bell: &Bell,
) -> Result<Socket, NoConnection> {
    let failed = |cause| NoConnection::Host(ConnectionFailure { stage: Stage::Connect, cause });
    let network = |error: std::io::Error| match io::shortage(&error) {
        Some(shortage) => NoConnection::Machine(shortage),
        None => failed(ConnectionCause::Network(error_text(&error))),
    };
    let connecting = shard.socket_to(served.key.address, destination.source());
    let connecting = connecting.map_err(network)?;
    let socket = connecting.socket().clone();
    let mut stands = std::pin::pin!(connecting.stands());
    let begun = shard.now().mono;
    let timeout = shard.config().timeouts.connect;
    let (mut slow, mut late) = (false, false);
    bell.set_deadline(Some(begun + SLOW_CONNECT.min(timeout)));
    let result = loop {
        match bell.beside(stands.as_mut()).await {
            Beside::Done(result) => break result,
            Beside::Deadline if !slow && timeout > SLOW_CONNECT => {
                slow = true;
                served.host.slow_connect_began();
                bell.set_deadline(Some(begun + timeout));
                shard.connect_is_slow(served);
            }
            Beside::Deadline => {
                late = true;
                socket.shutdown();
                bell.set_deadline(None);
            }
            Beside::Rung if shard.stopping() != Stopping::No => socket.shutdown(),
            Beside::Rung => {}
        }
    };
    if slow {
        served.host.slow_connect_ended();
    }
    bell.set_deadline(None);
    match result {
        Ok(socket) => Ok(socket),
        Err(_) if late => Err(failed(ConnectionCause::Timeout)),
        Err(error) => Err(network(error)),
    }
}
