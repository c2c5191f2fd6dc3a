//! What verbs that run for long need of the process: its signals and its descriptors.
//!
//! Owns: the thread that waits for SIGINT and SIGTERM, and the soft limit of descriptors. Never:
//! what ending means.

use std::io;
use std::sync::mpsc;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::Exit;

/// Calls `stop` at the first SIGINT or SIGTERM; a second one ends the process at once. When this
/// returns, the signals are caught.
///
/// # Errors
/// The system gives no thread or no signal handler.
pub(super) fn on_stop(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let (caught, ready) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let watch = async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            // Who waits for this is gone only when the process ends.
            caught.send(Ok(())).unwrap_or_default();
            let mut stop = Some(stop);
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                match stop.take() {
                    Some(stop) => stop(),
                    None => std::process::exit(Exit::TempFail as i32),
                }
            }
        };
        let ended: io::Result<()> = runtime.and_then(|runtime| runtime.block_on(watch));
        caught.send(ended).unwrap_or_default();
    })?;
    ready.recv().map_err(io::Error::other)?
}

/// Raises the soft limit of open descriptors to the hard one. Where the system refuses, the limit
/// stays, and is met as an error of the socket that passes it.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).unwrap_or_default();
}
