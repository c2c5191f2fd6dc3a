//! Signals: SIGTERM and SIGINT end the engine, SIGHUP reloads it and reopens its log.
//!
//! Owns: what each signal means. Never: the end itself (each shard ends in its own order).

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Control;
use crate::shard::Stopping;

/// The signals that are caught from when this was made.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Obeys for ever.
    pub(super) async fn obey(mut self, control: &Arc<Control>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => stop(control),
                _ = self.interrupt.recv() => stop(control),
                _ = self.hangup.recv() => {
                    control.shared.reopen_log();
                    // In a task of its own: a signal to end is not to wait for a large file.
                    let control = control.clone();
                    tokio::spawn(async move { drop(control.reload().await) });
                }
            }
        }
    }
}

fn stop(control: &Control) {
    match control.shared.stopping() {
        Stopping::No => control.shared.stop(Stopping::Gently),
        Stopping::Gently | Stopping::Now => control.shared.stop(Stopping::Now),
    }
}
