//! Counters of one interface, named from the guest's point of view.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic since start.
#[derive(Debug, Default)]
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
    /// Frames that the tap refused.
    pub tx_errors: AtomicU64,
    /// Times the tap was full and the guest waited.
    pub tx_stalls: AtomicU64,
    /// Interrupts sent.
    pub interrupts: AtomicU64,
}

impl NetMetrics {
    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
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
            ("tx_errors", &self.tx_errors),
            ("tx_stalls", &self.tx_stalls),
            ("interrupts", &self.interrupts),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
    }
}
