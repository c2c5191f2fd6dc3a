//! The control plane: one ordinary thread beside the shards.
//!
//! Owns: signals, reload, the admin API with `/healthz` and `/metrics`, its token, and the client
//! that the verbs ask it with. Never: mail. It reads what shards share and publish; it waits, they
//! never do.
//!
//! Diagnostics: a reload that fails leaves the old configuration in force and says why on
//! standard error and in the mail log; errors of the API are RFC 9457 problems.
//!
//! Limits: `door` bounds connections; a request has no body.

mod api;
pub mod client;
mod door;
pub mod explain;
pub mod problem;
mod reload;
mod signals;
pub mod status;
pub mod terminal;
pub mod token;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::shard::io::Backend;
use crate::shard::{Engine, Shared};

use door::Door;
use signals::Signals;
use status::Samples;
pub use token::{Token, TokenError};

/// What the control plane knows of the engine it runs beside.
struct Control {
    shared: Arc<Shared>,
    backend: Backend,
    /// The configuration file, for reloads.
    file: Option<PathBuf>,
    token: Token,
    /// The admin address is one of this machine alone.
    loopback: bool,
    started: crate::mail::Now,
    samples: Mutex<Samples>,
    reloading: tokio::sync::Mutex<()>,
}

/// Binds the admin address before anything else starts, so that a wrong one is an error at start.
///
/// # Errors
/// As bind(2).
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Runs the control plane on this thread until the engine has ended. `announce` is called when
/// signals are caught: whoever has heard that the engine runs may end it in good order.
///
/// # Errors
/// The system gives no runtime or no signal handler.
pub fn run(
    engine: Engine,
    admin: TcpListener,
    file: Option<PathBuf>,
    token: Token,
    announce: impl FnOnce(&Engine),
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = runtime.block_on(async { Signals::catch() })?;
    announce(&engine);
    let control = Arc::new(Control {
        shared: engine.shared().clone(),
        backend: engine.backend(),
        file,
        token,
        loopback: admin.local_addr()?.ip().is_loopback(),
        started: crate::shard::io::now(),
        samples: Mutex::default(),
        reloading: tokio::sync::Mutex::default(),
    });
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("joiner".into()).spawn(move || {
        engine.join();
        // The control plane waits for this to the end.
        ended.send(()).unwrap_or_default();
    })?;
    runtime.block_on(async {
        let door = Door::new(tokio::net::TcpListener::from_std(admin)?);
        let app = api::router(control.clone());
        tokio::spawn(async move { axum::serve(door, app).await });
        tokio::spawn(sample(control.clone()));
        tokio::select! {
            () = signals.obey(&control) => {}
            _ = has_ended => {}
        }
        io::Result::Ok(())
    })?;
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(())
}

/// Looks at the counters every few seconds, for the rates.
async fn sample(control: Arc<Control>) {
    let mut interval = tokio::time::interval(Duration::from_millis(status::SAMPLE_MS));
    loop {
        interval.tick().await;
        control.sample();
    }
}

/// A lock whose holders never leave its value half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
