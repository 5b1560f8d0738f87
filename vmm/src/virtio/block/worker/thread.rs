//! A disk's thread, as the machine holds it.

use super::super::Shared;
use std::convert::Infallible;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::Instant;

/// A running worker.
pub struct WorkerThread {
    pub(super) handle: JoinHandle<()>,
    /// Disconnected when the thread ends.
    pub(super) ended: Receiver<Infallible>,
    pub(super) shared: Arc<Shared>,
}

impl WorkerThread {
    /// Asks for the ring's stop and the thread's end.
    pub fn ask_to_stop(&self) {
        self.shared.wishes().stop = true;
        if let Err(error) = self.shared.wake.write(1) {
            tracing::error!(%error, "a disk's thread cannot be woken");
        }
    }

    /// Has the thread let go of everything?
    pub fn has_ended(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Waits for the end that was asked for. A backend that has not let go by `deadline` is
    /// hung up on: it may be stopped or stuck, and the machine's end cannot wait for that.
    pub fn join(self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(left) {
            tracing::warn!("hanging up on a block backend that does not answer");
            if let Some(line) = self.shared.line().upgrade()
                && let Err(error) = line.shutdown(Shutdown::Both)
            {
                tracing::error!(%error, "a block backend cannot be hung up on");
            }
        }
        if self.handle.join().is_err() {
            tracing::error!("a disk's thread panicked");
        }
    }
}
