//! Counters of one interface, named from the guest's point of view.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::EventFd;

/// Monotonic since start.
#[derive(Default)]
pub struct NetMetrics {
    /// Frames given to the guest.
    pub rx_frames: AtomicU64,
    /// Their bytes, without virtio header.
    pub rx_bytes: AtomicU64,
    /// Frames lost because a buffer was too small.
    pub rx_short_buffers: AtomicU64,
    /// Frames taken from the guest.
    pub tx_frames: AtomicU64,
    /// Their bytes, without virtio header.
    pub tx_bytes: AtomicU64,
    /// Frames dropped for a length that is no Ethernet frame of this MTU.
    pub tx_bad_length: AtomicU64,
    /// Frames dropped for a header that asks for what was not agreed, or for harm.
    pub tx_bad_header: AtomicU64,
    /// Frames that the tap refused.
    pub tx_errors: AtomicU64,
    /// Times the guest waited because of a limit.
    pub tx_shaped: AtomicU64,
    /// System calls that moved frames.
    pub batches: AtomicU64,
    /// Interrupts of the receive queue.
    pub rx_interrupts: AtomicU64,
    /// Interrupts of the transmit queue.
    pub tx_interrupts: AtomicU64,
    /// The eventfds of receive and transmit queue, which count the driver's kicks.
    kicks: OnceLock<Vec<Arc<EventFd>>>,
}

impl NetMetrics {
    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Counts the kicks of receive and transmit queue, which nobody else reads.
    pub(super) fn watch(&self, kicks: &[Arc<EventFd>]) {
        // An interface is watched once.
        let _ = self.kicks.set(kicks.to_vec());
    }
}

/// How often `event` was signalled, all in all: it is put back at once, for the price of one
/// wake-up without work.
fn signals(event: &EventFd) -> u64 {
    let count = event.read().unwrap_or(0);
    if count > 0 {
        // It held the same a moment ago.
        let _ = event.write(count);
    }
    count
}

impl Metrics for NetMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("rx_frames", &self.rx_frames),
            ("rx_bytes", &self.rx_bytes),
            ("rx_short_buffers", &self.rx_short_buffers),
            ("tx_frames", &self.tx_frames),
            ("tx_bytes", &self.tx_bytes),
            ("tx_bad_length", &self.tx_bad_length),
            ("tx_bad_header", &self.tx_bad_header),
            ("tx_errors", &self.tx_errors),
            ("tx_shaped", &self.tx_shaped),
            ("batches", &self.batches),
            ("rx_interrupts", &self.rx_interrupts),
            ("tx_interrupts", &self.tx_interrupts),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
        let kicks = self.kicks.get().map_or(&[][..], Vec::as_slice);
        for (name, kick) in ["rx_kicks", "tx_kicks"].into_iter().zip(kicks) {
            out.insert(format!("{prefix}.{name}"), signals(kick));
        }
    }
}
