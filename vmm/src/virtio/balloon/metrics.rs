//! Counters of the balloon, and what the guest last said of its own memory.

use crate::virtio::Metrics;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The guest's statistics by tag (§5.5.6.4).
pub const STATISTICS: [&str; 10] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "caches_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
];

/// Monotonic since start, but for those of the guest and the two sizes.
#[derive(Debug, Default)]
pub struct BalloonMetrics {
    /// Size that the guest was asked for, in bytes.
    pub target_bytes: AtomicU64,
    /// Size that the guest says the balloon has.
    pub actual_bytes: AtomicU64,
    /// Given back by inflating.
    pub inflated_bytes: AtomicU64,
    /// Taken again by deflating.
    pub deflated_bytes: AtomicU64,
    /// Given back by reporting.
    pub reported_bytes: AtomicU64,
    /// Ranges that the kernel did not take back.
    pub failed_discards: AtomicU64,
    /// What the guest last said, by tag.
    pub guest: [AtomicU64; STATISTICS.len()],
    /// Times that it said so.
    pub guest_reports: AtomicU64,
}

impl Metrics for BalloonMetrics {
    fn report(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("target_bytes", &self.target_bytes),
            ("actual_bytes", &self.actual_bytes),
            ("inflated_bytes", &self.inflated_bytes),
            ("deflated_bytes", &self.deflated_bytes),
            ("reported_bytes", &self.reported_bytes),
            ("failed_discards", &self.failed_discards),
            ("guest_reports", &self.guest_reports),
        ] {
            out.insert(format!("{prefix}.{name}"), counter.load(Ordering::Relaxed));
        }
        for (name, value) in STATISTICS.iter().zip(&self.guest) {
            let value = value.load(Ordering::Relaxed);
            out.insert(format!("{prefix}.guest.{name}"), value);
        }
    }
}
