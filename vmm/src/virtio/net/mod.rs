//! virtio-net (virtio 1.3 §5.1) on a tap.
//!
//! ```text
//!  device.rs   what the driver sees: features, MAC, MTU; activate and reset
//!  worker.rs   what moves frames, on the event thread:  tap ⇄ queues
//!  buffers.rs  chains of one batch
//!  offloads.rs what a driver may leave to us, if anything
//!  ring.rs     32 of them by one system call (io_uring)
//!  shaper.rs   transmit limits     line.rs  those of all interfaces together
//!  tap.rs      the descriptor      metrics.rs   counters      persist.rs  snapshots
//! ```
//! Offloads are offered only where the spec says that the packet path keeps them: XDP programs on
//! the tap would silently lose checksum and segmentation metadata. Each frame is whole, in one
//! buffer chain, and crosses without a copy in this process but for its Ethernet header.
//!
//! Not offered, because they would cost more than they give here: `MRG_RXBUF` (a frame without
//! segmentation fits one buffer; with it, as many buffers would have to be set aside for each
//! frame that may come as the longest one takes, so that a queue holds 5 frames and no longer 32
//! a system call), `MQ` (one thread moves the frames of all interfaces, so a second pair would
//! add interrupts and no throughput).

mod buffers;
mod device;
mod line;
mod metrics;
mod offloads;
mod persist;
mod ring;
pub(crate) mod shaper;
pub mod tap;
mod worker;

pub use device::NetDevice;
pub use line::SharedLine;
pub use metrics::NetMetrics;
pub(crate) use ring::REGISTER_FILES_UPDATE;
pub use ring::{SharedRing, TapRing};
pub(crate) use worker::tap_error;
pub use worker::{NetControl, NetWorker};

use super::Fault;
use super::queue::{Buffers, VirtQueue};
use offloads::Offloads;
use std::sync::{Arc, Mutex};

/// `struct virtio_net_hdr_v1` (§5.1.6), equal to the tap's `vnet_hdr` of this size.
pub(crate) const HEADER_BYTES: usize = 12;
/// Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// What is read of a frame that the guest sends, once: its header may not say one thing of a
/// frame that then is another.
const FRONT_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES;
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
    /// Room for one batch.
    chains: Vec<Chain>,
    offloads: Offloads,
    /// The tap does not know them yet.
    is_new: bool,
    /// Buffers to offer the tap next: by how many frames came last.
    ahead: usize,
}

/// One chain of a batch.
#[derive(Default)]
struct Chain {
    head: u16,
    buffers: Buffers,
    /// What the tap is told of a frame, and the frame's Ethernet header.
    front: [u8; FRONT_BYTES],
    /// Received with the header; sent without, 0 if it is not to be sent.
    bytes: usize,
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

#[cfg(test)]
pub(in crate::virtio) mod tests;
