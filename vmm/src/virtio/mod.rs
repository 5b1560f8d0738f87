//! Virtio 1.3 devices behind one transport.
//!
//! ```text
//!  guest driver ── registers ──▶ pci/ (transport) ── activate, reset ──▶ VirtioDevice
//!       │                                    net/  block/  hosted.rs: rng/ console/ balloon/ vsock/
//!       ├── kick (ioeventfd) ──▶ event thread (net) or vhost-user backend (block)
//!       └◀─ MSI-X (irqfd) ────── the same
//! ```
//! A device's life, by the calls of its transport (any vCPU thread, one at a time):
//!
//! `new` → { `features`, `read_config` }* → `activate` → … → `reset` → `is_reset`* → `activate` …
//!
//! and, around snapshots ([`crate::lifecycle`]):
//!
//! … running → `pause` → `save`* → `resume` → …   `new` → `pause` → `load` → `activate`? → `resume`
//!
//! `activate` gets the queues that the driver made and may refuse them; `reset` ends
//! all use of them, at once or, where another process must agree, by the time that
//! `is_reset` says so.

pub mod balloon;
pub mod block;
pub mod changes;
pub mod console;
pub mod hosted;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
pub mod vsock;

use crate::memory::GuestRam;
use crate::memory::dirty::BackendLog;
use queue::VirtQueue;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// `VIRTIO_F_VERSION_1` (§6): the only dialect spoken.
pub const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Status bit: the device gave up until reset (§2.1).
pub const STATUS_NEEDS_RESET: u8 = 0x40;

/// What a transport needs of a device.
pub trait VirtioDevice: Send {
    /// Device type (§5): 1 net, 2 block, 3 console, 4 entropy, 5 balloon, 19 socket.
    fn kind(&self) -> u16;
    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// Features offered.
    fn features(&self) -> u64;
    /// Reads the device's own configuration; bytes beyond it are zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// Writes it; false where there is nothing that a driver may write.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) -> bool {
        false
    }
    /// Takes the queues: the driver is ready. An error becomes NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), String>;
    /// Begins to give the queues up.
    fn reset(&mut self);
    /// Has the reset ended?
    fn is_reset(&self) -> bool {
        true
    }
    /// Stops: on return no thread or process touches guest memory for this device, what was
    /// in flight is in the used rings, and a reset that had begun has ended. Until `resume`
    /// nothing moves, though `activate` may be called. Idempotent.
    fn pause(&mut self) -> Result<(), String>;
    /// Goes on, looking at every queue for what came meanwhile. Idempotent.
    fn resume(&mut self);
    /// What the transport does not know, while paused.
    fn save(&mut self) -> Result<Saved, String>;
    /// While paused: see [`crate::lifecycle::Lifecycle::hand_over`].
    fn hand_over(&mut self) -> Option<(Vec<u8>, OwnedFd)> {
        None
    }
    /// Before `load`: see [`crate::lifecycle::Lifecycle::take_over`].
    fn take_over(&mut self, _info: &[u8], _fd: OwnedFd) -> Result<(), String> {
        Err("takes nothing over".to_owned())
    }
    /// While paused: see [`crate::lifecycle::Lifecycle::log_dirty`].
    fn log_dirty(&mut self, _log: Option<&Arc<BackendLog>>) -> Result<(), String> {
        Ok(())
    }
    /// Takes over `own` of a [`Saved`], while paused and before any `activate`. If the driver
    /// was active, `activate` follows, with its queues where they stood.
    fn load(&mut self, own: &[u8]) -> Result<Loaded, String>;
}

/// A device's part of a snapshot.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Saved {
    /// Where each queue stands; `None` if the device holds no queues.
    pub queues: Option<Vec<Option<Position>>>,
    /// The device's own state.
    pub own: Vec<u8>,
}

/// Where a queue stands that has nothing in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The next entry of the available ring.
    pub next_avail: u16,
    /// The next entry of the used ring.
    pub next_used: u16,
}

/// What `load` did to the device's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The driver would read what it read before.
    Same,
    /// Something is new (a clone's MAC address): the driver shall be told.
    ConfigChanged,
}

/// What the driver set up.
pub struct Activation {
    /// Guest memory.
    pub ram: GuestRam,
    /// Features that the driver accepted, a subset of those offered.
    pub features: u64,
    /// Enabled queues, `None` where the driver enabled none.
    pub queues: Vec<Option<VirtQueue>>,
    /// How to give up.
    pub fault: Fault,
}

/// Sets NEEDS_RESET from whatever thread notices that the driver broke the rules.
#[derive(Clone)]
pub struct Fault {
    status: Arc<AtomicU8>,
    config_event: Option<Arc<EventFd>>,
    counters: Arc<TransportMetrics>,
    device: Arc<str>,
}

impl Fault {
    /// For the device of this name, whose `status` register and counters these are.
    pub fn new(
        device: Arc<str>,
        status: Arc<AtomicU8>,
        config_event: Option<Arc<EventFd>>,
        counters: Arc<TransportMetrics>,
    ) -> Self {
        Self {
            status,
            config_event,
            counters,
            device,
        }
    }

    /// Stops the device until the driver resets it; counted, and logged for the
    /// first time in a device's life only, since a guest could do it in a loop.
    pub fn raise(&self, why: &str) {
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        if !self.counters.fault_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(device = %self.device, why, "device needs reset");
        }
        self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst);
        if let Some(event) = &self.config_event
            && let Err(error) = event.write(1)
        {
            tracing::debug!(%error, "configuration interrupt lost");
        }
    }
}

/// Counters that every device has.
#[derive(Debug, Default)]
pub struct TransportMetrics {
    /// Times that the driver made the device give up.
    pub faults: AtomicU64,
    /// Times that a driver became ready.
    pub activations: AtomicU64,
    /// Register accesses that mean nothing.
    pub bad_accesses: AtomicU64,
    fault_logged: AtomicBool,
}

/// A set of counters that the control socket's `metrics` shows.
pub trait Metrics: Send + Sync {
    /// Adds them to `out` under `prefix`.
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>);
}

impl Metrics for TransportMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("faults", &self.faults),
            ("activations", &self.activations),
            ("bad_accesses", &self.bad_accesses),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
    }
}

/// Copies what lies at `offset` of `source`, zeros beyond its end.
pub(crate) fn read_bytes(source: &[u8], offset: usize, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        let at = offset.saturating_add(i);
        *byte = source.get(at).copied().unwrap_or(0);
    }
}
