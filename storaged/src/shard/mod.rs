//! The data path: one thread, one io_uring, the queues of many devices.
//!
//! ```text
//!        kick (multishot poll)          completions
//!  guest ────────▶ ready queues ──▶ turns ──▶ slots ──▶ ring ──▶ used ring ──▶ call
//!                                   limits   pop, cut   file     push, publish
//! ```
//! Message threads reach a shard by [`Shard`]'s methods; each is one [`Command`]
//! over a channel, answered by the shard's thread. Nothing else is shared.
//! [`worker`] is the loop, [`flow`] a request's way in and [`done`] its way out, [`device`]
//! a device's state, [`slot`] a request's; [`sleep`] holds those that wait for their limits,
//! [`share`] says what each may hold of the disk.
//! [`layers`] runs the detours of volumes with layers.

pub mod bounce;
pub mod device;
pub mod done;
pub mod flow;
pub mod idle;
mod layers;
pub mod op;
pub mod pieces;
pub mod share;
pub mod sleep;
pub mod slot;
pub mod token;
pub mod window;
pub mod worker;

use crate::dirty::QueueLog;
use crate::disk::Disk;
use crate::inflight::QueueInflight;
use crate::memory::Memory;
use crate::queue::{Addresses, QueueError};
use rustix::event::{EventfdFlags, eventfd};
use share::{Share, Watch};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// A device in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceId {
    pub(super) index: usize,
    pub(super) generation: u32,
}

/// What a queue starts with.
pub struct QueueStart {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// Entries of each ring.
    pub size: u32,
    /// Where the rings are.
    pub addresses: Addresses,
    /// Where the available ring goes on, unless `inflight` knows better.
    pub base: u16,
    /// `VIRTIO_RING_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_BLK_F_FLUSH` was negotiated; without it writes are durable at once.
    pub flush: bool,
    /// Discard and write-zeroes were negotiated.
    pub zeroes: bool,
    /// The queue's in-flight part.
    pub inflight: Option<QueueInflight>,
    /// Where writes into guest memory are noted.
    pub log: Option<QueueLog>,
    /// An eventfd that the driver's notifications signal.
    pub kick: File,
    /// An eventfd that interrupts the driver.
    pub call: Option<Call>,
    /// An eventfd that tells the frontend that the driver broke the queue.
    pub err: Option<Call>,
}

/// An eventfd that the shard signals.
pub struct Call {
    /// The eventfd.
    pub file: File,
    /// Written by a plain system call: for eventfds of a trusted frontend that
    /// must stay blocking. Others are written by the ring, where a hostile peer
    /// that fills the counter can block a worker of the kernel, never the shard.
    pub plain: bool,
}

/// What a message thread may tell a shard.
pub enum Command {
    /// [`Shard::add`].
    Add(Arc<Disk>, Sender<std::io::Result<DeviceId>>),
    /// [`Shard::start`].
    Start(
        DeviceId,
        u16,
        Box<QueueStart>,
        Sender<Result<(), QueueError>>,
    ),
    /// [`Shard::stop`].
    Stop(DeviceId, u16, Sender<Option<u16>>),
    /// [`Shard::set_call`].
    SetCall(DeviceId, u16, Option<Call>),
    /// [`Shard::remove`].
    Remove(DeviceId, Sender<()>),
    /// [`Shard::limits_changed`].
    LimitsChanged,
}

/// Why a shard cannot do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Its thread has ended.
    #[error("the shard has ended")]
    Gone,
    /// No io_uring, or no memory.
    #[error("the shard cannot be set up: {0}")]
    Os(#[from] std::io::Error),
    /// The queue's parameters are wrong.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A handle of a shard.
#[derive(Clone)]
pub struct Shard {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    watch: Watch,
}

impl Shard {
    /// Starts a shard's thread, with a disk of its own.
    pub fn spawn(name: &str) -> Result<Self, ShardError> {
        let share = Share::new(1).remove(0);
        Self::spawn_beside(name, share)
    }

    /// Starts so many shards' threads, which share the disk.
    pub fn spawn_all(shards: usize) -> Result<Vec<Self>, ShardError> {
        let shares = Share::new(shards).into_iter().enumerate();
        shares
            .map(|(n, share)| Self::spawn_beside(&format!("shard-{n}"), share))
            .collect()
    }

    fn spawn_beside(name: &str, share: Share) -> Result<Self, ShardError> {
        let (commands, receiver) = channel();
        let wake: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        let wake = Arc::new(wake);
        let (ready, outcome) = channel();
        let watch = share.watch();
        let woken = Arc::clone(&wake);
        std::thread::Builder::new().name(name.to_owned()).spawn(
            move || match worker::Worker::new(receiver, woken, share) {
                Ok(worker) => {
                    let _ = ready.send(Ok(()));
                    worker.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            },
        )?;
        outcome.recv().map_err(|_| ShardError::Gone)??;
        Ok(Self {
            commands,
            wake,
            watch,
        })
    }

    /// Adds a device without running queues.
    pub fn add(&self, disk: Arc<Disk>) -> Result<DeviceId, ShardError> {
        let (reply, answer) = channel();
        self.tell(Command::Add(disk, reply))?;
        Ok(wait(&answer)??)
    }

    /// Starts a queue that does not run; in-flight requests are served again first.
    pub fn start(&self, device: DeviceId, queue: u16, start: QueueStart) -> Result<(), ShardError> {
        let (reply, answer) = channel();
        self.tell(Command::Start(device, queue, Box::new(start), reply))?;
        Ok(wait(&answer)??)
    }

    /// Stops a queue once none of its requests is in flight: where it would go on,
    /// or `None` if it did not run.
    pub fn stop(&self, device: DeviceId, queue: u16) -> Result<Option<u16>, ShardError> {
        let (reply, answer) = channel();
        self.tell(Command::Stop(device, queue, reply))?;
        wait(&answer)
    }

    /// Changes the interrupt of a running queue.
    pub fn set_call(
        &self,
        device: DeviceId,
        queue: u16,
        call: Option<Call>,
    ) -> Result<(), ShardError> {
        self.tell(Command::SetCall(device, queue, call))
    }

    /// Removes a device once none of its requests is in flight.
    pub fn remove(&self, device: DeviceId) -> Result<(), ShardError> {
        let (reply, answer) = channel();
        self.tell(Command::Remove(device, reply))?;
        wait(&answer)
    }

    /// Limits of some device have changed: who waits for them asks anew.
    pub fn limits_changed(&self) -> Result<(), ShardError> {
        self.tell(Command::LimitsChanged)
    }

    /// Sees whether guests use the disk.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    fn tell(&self, command: Command) -> Result<(), ShardError> {
        self.commands.send(command).map_err(|_| ShardError::Gone)?;
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).map_err(std::io::Error::from)?;
        Ok(())
    }
}

fn wait<T>(answer: &Receiver<T>) -> Result<T, ShardError> {
    answer.recv().map_err(|_| ShardError::Gone)
}
