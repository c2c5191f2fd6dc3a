//! The control plane: one ordinary thread beside the shards.
//!
//! Owns: signals, reload, the admin API with `/healthz` and `/metrics`. Never: mail. It reads
//! what shards share and publish; it waits, they never do.
//!
//! Diagnostics: a reload that fails leaves the old configuration in force and says why on
//! standard error and in the log; errors of the API are RFC 9457 problems.

mod api;
mod signals;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::shard::{Engine, Shared};

use signals::Signals;

/// What the control plane knows of the engine it runs beside.
pub struct Control {
    shared: Arc<Shared>,
    /// The configuration file, for reloads.
    file: Option<PathBuf>,
    started: crate::mail::Now,
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
    announce: impl FnOnce(&Engine),
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = runtime.block_on(async { Signals::catch() })?;
    announce(&engine);
    let control = Arc::new(Control {
        shared: engine.shared().clone(),
        file,
        started: crate::shard::io::now(),
    });
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("joiner".into()).spawn(move || {
        engine.join();
        // The control plane waits for this to the end.
        ended.send(()).unwrap_or_default();
    })?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(admin)?;
        let app = api::router(control.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        tokio::select! {
            () = signals.obey(&control) => {}
            _ = has_ended => {}
        }
        io::Result::Ok(())
    })?;
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(())
}
