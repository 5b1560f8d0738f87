//! Counters of the entropy device.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic since start.
#[derive(Debug, Default)]
pub struct RngMetrics {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Random bytes given.
    pub bytes: AtomicU64,
    /// Times that a request had to wait for the limit.
    pub throttled: AtomicU64,
}

impl Metrics for RngMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("requests", &self.requests),
            ("bytes", &self.bytes),
            ("throttled", &self.throttled),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
    }
}
