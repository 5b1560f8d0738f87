//! virtio-net (virtio 1.3 §5.1) on a tap.
//!
//! ```text
//!  device.rs   what the driver sees: features, MAC, MTU; activate and reset
//!  worker.rs   what moves frames, on the event thread:  tap ⇄ queues
//!  tap.rs      the descriptor      metrics.rs   counters      persist.rs   snapshots
//! ```
//! No offload is offered: the XDP programs on the tap would silently lose checksum
//! and segmentation metadata. Each frame is whole, in one buffer chain, and crosses
//! without a copy in this process (`readv`, `writev`).

mod device;
mod metrics;
mod persist;
pub mod tap;
mod worker;

pub use device::NetDevice;
pub use metrics::NetMetrics;
pub use worker::NetWorker;
pub(crate) use worker::tap_error;

use super::Fault;
use super::queue::{Buffers, VirtQueue};
use std::sync::{Arc, Mutex};

/// `struct virtio_net_hdr_v1` (§5.1.6), equal to the tap's `vnet_hdr` of this size.
pub(crate) const HEADER_BYTES: usize = 12;
/// Largest queue.
const QUEUE_SIZE: u16 = 256;
/// Receive queue.
const RX: usize = 0;
/// Transmit queue.
const TX: usize = 1;

/// Both queues of a driver that is ready; the lock is held for one burst at most.
struct Active {
    rx: VirtQueue,
    tx: VirtQueue,
    fault: Fault,
    buffers: Buffers,
}

/// What the transport (vCPU threads) and the worker share.
#[derive(Default)]
struct Inner {
    active: Option<Active>,
    /// Nothing moves.
    paused: bool,
}

/// Handed over between them.
type Shared = Arc<Mutex<Inner>>;
