//! Starts the threads of disks, also those that are added while the guest runs.
//!
//! A thread inherits the system-call filter of the one that starts it and can only
//! narrow it. The event thread's filter allows neither to start threads nor what a
//! disk's needs; so this thread, whose filter allows both and which hears nothing but
//! the event thread's requests, waits to do it.

use super::worker::{BlockWorker, WorkerThread};
use crate::error::{Result, host};
use crate::outcome::Outcome;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

struct Birth {
    worker: BlockWorker,
    outcome: Arc<Outcome>,
    reply: SyncSender<Result<WorkerThread>>,
}

/// The thread; it ends with this value.
pub struct Nursery {
    births: Option<SyncSender<Birth>>,
    handle: Option<JoinHandle<()>>,
}

impl Nursery {
    /// Starts it; `prepare` confines it, `prepare_disk` each thread that it starts.
    pub fn spawn(
        prepare: fn() -> io::Result<()>,
        prepare_disk: fn() -> io::Result<()>,
    ) -> Result<Self> {
        let (births, requests) = sync_channel::<Birth>(1);
        let (ready, confined) = sync_channel(1);
        let handle = std::thread::Builder::new()
            .name("nursery".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                let done = prepare();
                let goes_on = done.is_ok();
                if ready.send(done).is_err() || !goes_on {
                    return;
                }
                for birth in requests {
                    let started = birth.worker.spawn(birth.outcome, prepare_disk);
                    // A caller that is gone has no use for the thread: it ends with its value.
                    let _ = birth.reply.send(started);
                }
            })
            .map_err(host("start the disks' nursery"))?;
        let confined = confined.recv().map_err(|e| io::Error::other(e.to_string()));
        confined
            .and_then(|done| done)
            .map_err(host("confine the disks' nursery"))?;
        Ok(Self {
            births: Some(births),
            handle: Some(handle),
        })
    }

    /// Starts the thread of one disk.
    pub fn start(&self, worker: BlockWorker, outcome: Arc<Outcome>) -> Result<WorkerThread> {
        let gone = || host("reach the disks' nursery")(io::Error::other("it has ended"));
        let (reply, started) = sync_channel(1);
        let birth = Birth {
            worker,
            outcome,
            reply,
        };
        let births = self.births.as_ref().ok_or_else(gone)?;
        births.send(birth).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        self.births = None;
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!("the disks' nursery panicked");
        }
    }
}
