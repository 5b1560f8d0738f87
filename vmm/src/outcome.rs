//! How the machine ended: the first cause wins, and wakes the event thread.

use ocs_vmm_spec::exit::{ExitReason, ExitRecord};
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::EventFd;

/// Set once, by whichever thread first knows the end.
pub struct Outcome {
    record: OnceLock<ExitRecord>,
    ended: EventFd,
}

impl Outcome {
    /// `ended` becomes readable at the end.
    pub fn new(ended: EventFd) -> Self {
        Self {
            record: OnceLock::new(),
            ended,
        }
    }

    /// Notes the end; later causes change nothing.
    pub fn end(&self, reason: ExitReason, message: String) {
        let record = ExitRecord {
            reason,
            message,
            transmit_credits: None,
        };
        let first = self.record.set(record).is_ok();
        if first && let Err(error) = self.ended.write(1) {
            tracing::error!(%error, "the event thread cannot be woken");
        }
    }

    /// The cause, once there is one.
    pub fn record(&self) -> Option<&ExitRecord> {
        self.record.get()
    }
}

/// Held by a thread that the machine cannot do without: when it ends, by a panic
/// say, the machine ends, if that was not the cause.
pub struct LastWord {
    outcome: Option<Arc<Outcome>>,
    thread: String,
}

impl LastWord {
    /// For the thread of this name.
    pub fn new(outcome: Arc<Outcome>, thread: String) -> Self {
        Self {
            outcome: Some(outcome),
            thread,
        }
    }

    /// The thread ends as it was asked to.
    pub fn unsaid(mut self) {
        self.outcome = None;
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        let message = format!("{}: its thread ended unexpectedly", self.thread);
        if let Some(outcome) = &self.outcome {
            outcome.end(ExitReason::Error, message);
        }
    }
}
