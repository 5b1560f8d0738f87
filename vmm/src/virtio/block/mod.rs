//! virtio-blk (virtio 1.3 §5.2) served by another process over vhost-user.
//!
//! ```text
//!  guest ─ kick (ioeventfd) ─────────────▶ backend ─ call (irqfd) ─▶ guest    no VMM between
//!  device.rs   what the driver sees: the backend's features and configuration
//!  worker.rs   a thread a device: accepts the backend, starts and stops its ring
//!  session.rs  one connection: handshake, ring set-up      inflight.rs  what outlives it
//!  nursery.rs  starts those threads, before and after the guest runs
//!  persist.rs  snapshots
//!  bounce.rs   requests of a guest whose memory is private   plan.rs  which ring a backend gets
//!  look.rs     reads the disk before the guest runs
//! ```
//! The backend connects to our listener, again after each of its restarts. In between
//! requests wait in the ring; the backend finds those it had begun in the inflight
//! region, which this process keeps.

mod bounce;
mod device;
mod inflight;
mod look;
mod metrics;
mod nursery;
mod persist;
mod plan;
mod session;
mod worker;

pub use device::BlockDevice;
pub use look::Look;
pub use metrics::BlockMetrics;
pub use nursery::Nursery;
pub use worker::{BlockWorker, DiskKind, WorkerThread};

use super::queue::VirtQueue;
use super::{Fault, Position};
use crate::memory::dirty::BackendLog;
use inflight::Inflight;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use vhost::vhost_user::message::VhostUserInflight;
use vmm_sys_util::eventfd::EventFd;

/// Size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Bytes of `struct virtio_blk_config` up to and with `write_zeroes_may_unmap`, padded.
const CONFIG_BYTES: usize = 60;

/// A driver that is ready.
struct Active {
    /// Those in use, by number.
    queues: Vec<(u16, VirtQueue)>,
    /// How many there are, used or not.
    places: usize,
    features: u64,
    ram: crate::memory::GuestRam,
    fault: Fault,
}

impl Active {
    /// The queues in use, by number.
    fn queues(&self) -> impl Iterator<Item = (u16, &VirtQueue)> {
        self.queues.iter().map(|(index, queue)| (*index, queue))
    }

    /// Where they stand, as far as this process knows.
    fn positions(&self) -> Positions {
        let mut positions = vec![None; self.places];
        for (index, queue) in self.queues() {
            if let Some(place) = positions.get_mut(usize::from(index)) {
                *place = Some(queue.position());
            }
        }
        positions
    }
}

/// Where queues stand, by number.
type Positions = Vec<Option<Position>>;

/// What the vCPU threads ask of the worker.
#[derive(Default)]
struct Wishes {
    /// The driver became ready.
    activate: Option<Active>,
    /// The driver asked for a reset.
    reset: bool,
    /// The ring shall rest, or go on.
    rest: Option<Rest>,
    /// What an earlier process kept for the backend.
    region: Option<Inflight>,
    /// Backends note what they write here, from the ring's next start on, or nowhere.
    log: Option<Option<Arc<BackendLog>>>,
    /// The machine ends.
    stop: bool,
}

/// A word of the lifecycle to the worker.
enum Rest {
    /// Stop the ring and answer once nothing of it is in flight.
    Begin(SyncSender<Result<Option<Positions>, String>>),
    /// Start it again where it stood.
    End,
}

/// What the backend said at its first connection.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Offer {
    features: u64,
    config: [u8; CONFIG_BYTES],
}

/// `num_queues` in the configuration (§5.2.4).
const NUM_QUEUES: std::ops::Range<usize> = 34..36;

impl Offer {
    /// What a driver with `VIRTIO_BLK_F_MQ` may use.
    fn queues(&self) -> u16 {
        let mut queues = [0; 2];
        queues.copy_from_slice(&self.config[NUM_QUEUES]);
        u16::from_le_bytes(queues).max(1)
    }

    /// Lets it be `most` at most.
    fn limit_queues(&mut self, most: u16) {
        let queues = self.queues().min(most);
        self.config[NUM_QUEUES].copy_from_slice(&queues.to_le_bytes());
    }

    /// How large the disk is.
    fn bytes(&self) -> u64 {
        self.sectors().saturating_mul(512)
    }

    /// `capacity`, the configuration's first member, in 512-byte sectors.
    fn sectors(&self) -> u64 {
        let mut capacity = [0; 8];
        capacity.copy_from_slice(&self.config[..8]);
        u64::from_le_bytes(capacity)
    }

    /// Takes `later`'s size, which is not below this one; is it another?
    fn grow(&mut self, later: &Self) -> bool {
        let grows = later.sectors() > self.sectors();
        self.config[..8].copy_from_slice(&later.config[..8]);
        grows
    }
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            features: 0,
            config: [0; CONFIG_BYTES],
        }
    }
}

/// Between the device (vCPU threads) and its worker.
struct Shared {
    wishes: Mutex<Wishes>,
    wake: EventFd,
    offer: Mutex<Offer>,
    is_reset: AtomicBool,
    connected: AtomicBool,
    ever_connected: AtomicBool,
    /// A second handle of the in-flight region, for whoever takes the disk over.
    region: Mutex<Option<(VhostUserInflight, OwnedFd)>>,
    /// The backend can note what it writes.
    can_log: AtomicBool,
    /// `offer` is known: from a backend, or from a snapshot.
    offered: AtomicBool,
    /// A backend said that the disk is larger now, and the driver is to be told.
    grown: AtomicBool,
    /// The connection, to hang up on a backend that does not answer.
    line: Mutex<Weak<UnixStream>>,
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self) -> MutexGuard<'_, Offer> {
        self.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Weak<UnixStream>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A view of the connection, for the control socket and the start of the machine.
#[derive(Clone)]
pub struct BlockStatus(Arc<Shared>);

impl BlockStatus {
    /// Is a backend connected now?
    pub fn connected(&self) -> bool {
        self.0.connected.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Is the disk larger than the driver was last told?
    pub fn take_grown(&self) -> bool {
        self.0
            .grown
            .swap(false, std::sync::atomic::Ordering::SeqCst)
    }

    /// Was one ever, so that the device has a size and features?
    pub fn ever_connected(&self) -> bool {
        self.0
            .ever_connected
            .load(std::sync::atomic::Ordering::SeqCst)
    }
}
