//! The thread for what stops the machine or takes long: one job at a time, in the order asked.
//!
//! ```text
//!  event thread ── Job, what to do with the reply ──▶ worker ── stop, save, write, go on
//!       ▲                                               │
//!       └───────────── reply, eventfd ──────────────────┘
//! ```
//! It keeps the dirty logs between a snapshot that asked for them and the differential one that
//! follows.

use super::memory_file::SnapshotId;
use super::take::{self, Pages};
use super::{SnapshotError, hex, migrate, new_id};
use crate::error::{Result, host};
use crate::jail;
use crate::machine::Machine;
use crate::memory;
use crate::memory::dirty::DirtyLogs;
use ocs_vmm_spec::control::Reply;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What the thread is asked to do.
pub enum Job {
    /// Stop vCPUs and devices.
    Pause,
    /// Let them go on.
    Resume,
    /// Move the machine to the VMM at the other end.
    Migrate {
        /// A connected Unix socket.
        socket: UnixStream,
        /// How long the guest may stand still.
        downtime: Duration,
    },
    /// Save the machine into two empty files.
    Snapshot {
        /// For the state.
        state: File,
        /// For the memory.
        memory: File,
        /// Only what changed since the last snapshot.
        differential: bool,
        /// Log what changes from now on, so that a differential one can follow.
        track: bool,
    },
}

/// What becomes of the reply.
pub type Done = Box<dyn FnOnce(Reply) + Send>;

/// Where jobs are handed in.
#[derive(Clone)]
pub struct Jobs(Sender<(Job, Done)>);

impl Jobs {
    /// Starts the thread; it ends with the process.
    pub fn start(
        machine: Arc<Machine>,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("state".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || match prepare() {
                Ok(()) => Worker::new(machine).run(&receiver),
                Err(error) => tracing::error!(%error, "the state thread cannot be confined"),
            })
            .map_err(host("start the state thread"))?;
        Ok(Self(sender))
    }

    /// Hands a job in; `done` gets the reply on the worker's thread.
    pub fn ask(&self, job: Job, done: Done) {
        if let Err(lost) = self.0.send((job, done)) {
            let (_, done) = lost.0;
            done(Reply::Error {
                message: "the state thread has ended".to_owned(),
            });
        }
    }
}

struct Worker {
    /// Never dropped here: what a machine does at its end (KVM lets its interrupts go) is not
    /// this thread's to do, and the process ends with it.
    machine: ManuallyDrop<Arc<Machine>>,
    /// On since the snapshot `last`.
    logs: Option<DirtyLogs>,
    last: Option<SnapshotId>,
}

impl Worker {
    fn new(machine: Arc<Machine>) -> Self {
        Self {
            machine: ManuallyDrop::new(machine),
            logs: None,
            last: None,
        }
    }

    fn run(mut self, jobs: &Receiver<(Job, Done)>) {
        for (job, done) in jobs {
            let reply = match job {
                Job::Pause => self.machine.pause().map(|()| Reply::Ok),
                Job::Resume => {
                    self.machine.resume();
                    Ok(Reply::Ok)
                }
                Job::Migrate { socket, downtime } => self.migrate(socket, downtime),
                Job::Snapshot {
                    mut state,
                    memory,
                    differential,
                    track,
                } => self.snapshot(&mut state, &memory, differential, track),
            };
            done(reply.unwrap_or_else(|error| Reply::Error {
                message: error.to_string(),
            }));
        }
    }

    /// Afterwards the machine is another process's, and this one ends once the reply is out.
    fn migrate(
        &mut self,
        socket: UnixStream,
        downtime: Duration,
    ) -> std::result::Result<Reply, SnapshotError> {
        // A migration has logs of its own; no differential snapshot can follow.
        (self.logs, self.last) = (None, None);
        self.machine.check_savable()?;
        let moved = migrate::send(&self.machine, socket, downtime)?;
        Ok(Reply::Migrated {
            rounds: moved.rounds,
            sent_bytes: moved.sent_bytes,
            paused_us: moved.paused_us,
        })
    }

    fn snapshot(
        &mut self,
        state: &mut File,
        memory: &File,
        differential: bool,
        track: bool,
    ) -> std::result::Result<Reply, SnapshotError> {
        self.machine.check_savable()?;
        let base = match (differential, &self.logs, self.last) {
            (false, _, _) => None,
            (true, Some(_), Some(last)) => Some(last),
            (true, _, _) => {
                return Err(SnapshotError::Dirty(
                    "no snapshot was taken with track, so nobody knows what changed".to_owned(),
                ));
            }
        };
        let was_paused = self.machine.is_paused();
        let began = Instant::now();
        self.machine.pause()?;
        let written = self.save(state, memory, base, track);
        if !was_paused {
            self.machine.resume();
        }
        let (id, written_bytes) = written?;
        Ok(Reply::Snapshot {
            id: hex(&id),
            written_bytes,
            paused_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Saves the paused machine; on failure no differential snapshot can follow.
    fn save(
        &mut self,
        state: &mut File,
        memory: &File,
        base: Option<SnapshotId>,
        track: bool,
    ) -> std::result::Result<(SnapshotId, u64), SnapshotError> {
        let dirty = |source: io::Error| SnapshotError::Dirty(format!("no dirty log: {source}"));
        let last = self.last.take();
        debug_assert!(base.is_none() || base == last);
        let id = new_id().map_err(dirty)?;
        let changed = match &self.logs {
            Some(logs) => Some(logs.take().map_err(dirty)?),
            None => None,
        };
        let pages = match (base, &changed) {
            (Some(parent), Some(pages)) => Pages::Changed { parent, pages },
            _ => Pages::All,
        };
        let most = memory::bytes(self.machine.ram());
        let written = jail::with_files_of(most, || {
            take::write(&self.machine, id, &pages, state, memory)
        })
        .map_err(|source| SnapshotError::File {
            what: "memory file",
            source,
        })??;
        if track && self.logs.is_none() {
            let logs = DirtyLogs::start(self.machine.vm(), self.machine.ram()).map_err(dirty)?;
            self.machine.log_devices(Some(logs.backend()))?;
            self.logs = Some(logs);
        } else if !track && self.logs.take().is_some() {
            self.machine.log_devices(None)?;
        }
        self.last = track.then_some(id);
        Ok((id, written))
    }
}
