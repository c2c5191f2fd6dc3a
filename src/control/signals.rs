//! Signals: SIGTERM and SIGINT end the engine, SIGHUP reloads it and reopens its log.
//!
//! Owns: what each signal means. Never: the end itself (each shard ends in its own order).

use std::io;

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
    pub(super) async fn obey(mut self, control: &Control) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => stop(control),
                _ = self.interrupt.recv() => stop(control),
                _ = self.hangup.recv() => {
                    control.shared.reopen_log();
                    if let Err(problems) = control.reload() {
                        for problem in problems {
                            eprintln!("{problem}");
                        }
                        eprintln!("ringpost: reload failed; the old configuration stays in force");
                    }
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

impl Control {
    /// Puts routes, destinations, profiles and deadlines of the file in force.
    pub(super) fn reload(&self) -> Result<(), Vec<crate::config::Problem>> {
        let new = crate::config::load(self.file.as_deref())?;
        let (next, waiting) = self.shared.config.load_full().reloaded(new);
        self.shared.config.replace(next);
        self.shared.ring_all();
        if !waiting.is_empty() {
            eprintln!("ringpost: takes effect at the next start: {}", waiting.join(", "));
        }
        Ok(())
    }
}
