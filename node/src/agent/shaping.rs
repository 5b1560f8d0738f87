//! How fast an instance may send, as its VMM is told.
//!
//! ```text
//!  guest ─▶ VMM: shapes to the rate, what is over waits ─▶ packet path: polices at 1.05 × the rate
//! ```
//! The VMM holds back what the packet path would drop, so an honest VMM's frames are never
//! dropped for their rate: its buckets are shallower than those there, and fill more slowly.

use ocs_node_api as api;
use ocs_vmm_spec::{RateLimit, TransmitLimits};

/// What an instance may send at once after a pause: above what a busy host delays its VMM, and
/// below what the packet path has saved in that time.
const BURST_MS: u64 = 40;
/// At low rates at least so much: a few frames.
const BURST_LEAST_BYTES: u64 = 8 * 1024;

/// The limits of all interfaces of an instance together (EC2 User Guide, "Amazon EC2 instance
/// network bandwidth").
pub(super) fn limits(rate: &api::NetworkRate) -> TransmitLimits {
    let bytes = |bps: u64, credits: u64| {
        let per_s = bps / 8;
        let burst = (per_s.saturating_mul(BURST_MS) / 1_000).max(BURST_LEAST_BYTES);
        limit(per_s, burst.max(credits))
    };
    TransmitLimits {
        bytes: bytes(rate.peak_bps, 0),
        baseline: bytes(rate.baseline_bps, rate.credit_bytes).filter(|_| {
            // Without a peak above it the baseline says nothing that the peak does not.
            rate.peak_bps == 0 || rate.peak_bps > rate.baseline_bps
        }),
        packets: limit(
            rate.packets_per_s,
            rate.packets_per_s.saturating_mul(BURST_MS) / 1_000,
        ),
    }
}

fn limit(per_s: u64, burst: u64) -> Option<RateLimit> {
    (per_s > 0).then_some(RateLimit {
        per_s,
        burst: burst.max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_kept_where_there_is_a_peak() {
        // t3.nano's.
        let rate = api::NetworkRate {
            baseline_bps: 32_000_000,
            peak_bps: 5_000_000_000,
            credit_bytes: 186_300_000_000,
            packets_per_s: 1_220_703,
        };
        let limit = |per_s, burst| Some(RateLimit { per_s, burst });
        assert_eq!(
            limits(&rate),
            TransmitLimits {
                bytes: limit(625_000_000, 25_000_000),
                baseline: limit(4_000_000, 186_300_000_000),
                packets: limit(1_220_703, 48_828),
            }
        );
        let flat = api::NetworkRate {
            baseline_bps: 1_000_000,
            peak_bps: 1_000_000,
            credit_bytes: 0,
            packets_per_s: 3,
        };
        assert_eq!(
            limits(&flat),
            TransmitLimits {
                bytes: limit(125_000, 8_192),
                baseline: None,
                packets: limit(3, 1),
            }
        );
        assert_eq!(
            limits(&api::NetworkRate::default()),
            TransmitLimits::default()
        );
        limits(&rate).check("transmit").unwrap();
    }
}
