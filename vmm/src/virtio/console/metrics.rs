//! Counters of the console.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic since start.
#[derive(Debug, Default)]
pub struct ConsoleMetrics {
    /// Bytes that the guest wrote.
    pub written_bytes: AtomicU64,
    /// Bytes that the ring did not take.
    pub lost_bytes: AtomicU64,
    /// Bytes that the guest was given.
    pub read_bytes: AtomicU64,
}

impl Metrics for ConsoleMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("written_bytes", &self.written_bytes),
            ("lost_bytes", &self.lost_bytes),
            ("read_bytes", &self.read_bytes),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
    }
}
