//! Counters of one block device's connection; requests are counted by the backend.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic since start.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Backends accepted.
    pub connects: AtomicU64,
    /// Backends lost.
    pub disconnects: AtomicU64,
    /// Peers of another uid.
    pub refused_peers: AtomicU64,
    /// Backends that could not be agreed with.
    pub failed_handshakes: AtomicU64,
    /// Requests that went through the bounce region.
    pub bounced_requests: AtomicU64,
    /// Bytes copied for them.
    pub bounced_bytes: AtomicU64,
    /// Rings that a connected backend would not start or stop.
    pub failed_rings: AtomicU64,
}

impl BlockMetrics {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Metrics for BlockMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("connects", &self.connects),
            ("disconnects", &self.disconnects),
            ("refused_peers", &self.refused_peers),
            ("failed_handshakes", &self.failed_handshakes),
            ("failed_rings", &self.failed_rings),
            ("bounced_requests", &self.bounced_requests),
            ("bounced_bytes", &self.bounced_bytes),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
    }
}
