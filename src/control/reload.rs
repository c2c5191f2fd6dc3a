//! Reload: routes, destinations, bounce profiles, deadlines and the tuning profile of the
//! configuration file come in force without a dropped connection.
//!
//! Owns: the order of a reload, and who is told of it. Never: half of a configuration: a file
//! with one error leaves everything as it was.
//!
//! Diagnostics: one line on standard error and in the mail log, whoever asked.

use std::sync::Arc;

use super::Control;
use super::terminal::tell;
use crate::config::{self, Problem};
use crate::telemetry::line::Level;

/// How often, and how long, a reload waits for its shards.
const IN_FORCE_LOOKS: u32 = 200;
const IN_FORCE_LOOK: std::time::Duration = std::time::Duration::from_millis(5);

/// Problems that are told one by one: a wrong file of routes has one in each line.
const TOLD_MAX: usize = 10;

/// What a reload did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reloaded {
    /// The number of the configuration now in force.
    pub(super) epoch: u64,
    /// Keys that differ and wait for the next start.
    pub(super) waiting: Vec<&'static str>,
}

impl Control {
    /// Loads the file and puts it in force. Two at once go one after the other.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<Reloaded, Vec<Problem>> {
        let _alone = self.reloading.lock().await;
        let control = self.clone();
        // A table of a million routes takes its time, in which the API goes on to answer.
        let load = tokio::task::spawn_blocking(move || config::load(control.file.as_deref()));
        let loaded =
            load.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let result = loaded.map(|new| {
            let (next, waiting) = self.shared.config.load_full().reloaded(new);
            let epoch = self.shared.config.replace(next);
            self.shared.ring_all();
            Reloaded { epoch, waiting }
        });
        if let Ok(reloaded) = &result {
            self.until_in_force(reloaded.epoch).await;
        }
        match &result {
            Ok(reloaded) => self.tell_reloaded(reloaded),
            Err(problems) => self.tell_refused(problems),
        }
        result
    }

    /// Shards look for a new configuration when they are rung: who hears that it is in force may
    /// count on it for the next message. A shard that hangs is not waited for.
    async fn until_in_force(&self, epoch: u64) {
        for _ in 0..IN_FORCE_LOOKS {
            if self.shared.all_work_under(epoch) {
                return;
            }
            tokio::time::sleep(IN_FORCE_LOOK).await;
        }
    }

    fn tell_reloaded(&self, reloaded: &Reloaded) {
        let mut text = format!("configuration {} is in force", reloaded.epoch);
        if !reloaded.waiting.is_empty() {
            text.push_str("; takes effect at the next start: ");
            text.push_str(&reloaded.waiting.join(", "));
        }
        self.tell(Level::Info, &text);
    }

    fn tell_refused(&self, problems: &[Problem]) {
        for problem in problems.iter().take(TOLD_MAX) {
            tell(problem);
            self.shared.note(Level::Warning, format!("configuration: {problem}"));
        }
        let errors = match problems.len() {
            1 => "1 error".to_owned(),
            count if count <= TOLD_MAX => format!("{count} errors"),
            count => format!("{count} errors (all: 'ringpost check')"),
        };
        let text = format!("reload failed with {errors}; the old configuration stays in force");
        self.tell(Level::Warning, &text);
    }

    fn tell(&self, level: Level, text: &str) {
        tell(text);
        self.shared.note(level, text.to_owned());
    }
}
