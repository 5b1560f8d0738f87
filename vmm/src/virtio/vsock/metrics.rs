//! Counters of the socket device, from the guest's point of view.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic since start, but for `connections`.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// Open now.
    pub connections: AtomicU64,
    /// Opened by either side.
    pub opened: AtomicU64,
    /// Bytes given to the guest.
    pub rx_bytes: AtomicU64,
    /// Bytes taken from the guest.
    pub tx_bytes: AtomicU64,
    /// Packets given to the guest.
    pub rx_packets: AtomicU64,
    /// Packets taken from the guest.
    pub tx_packets: AtomicU64,
    /// Packets that the guest may not send: wrong addresses, types, lengths, more than its credit.
    pub bad_packets: AtomicU64,
    /// Connections that were refused for want of a taker or of room.
    pub refused: AtomicU64,
    /// Host programs turned away: another user, too many, no line that means anything.
    pub refused_programs: AtomicU64,
}

impl VsockMetrics {
    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl Metrics for VsockMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("connections", &self.connections),
            ("opened", &self.opened),
            ("rx_bytes", &self.rx_bytes),
            ("tx_bytes", &self.tx_bytes),
            ("rx_packets", &self.rx_packets),
            ("tx_packets", &self.tx_packets),
            ("bad_packets", &self.bad_packets),
            ("refused", &self.refused),
            ("refused_programs", &self.refused_programs),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
    }
}
