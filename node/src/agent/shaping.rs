//! How fast an instance may send, as its VMM is told.
//!
//! ```text
//!  guest ─▶ VMM: shapes to the rate, what is over waits ─▶ packet path: polices at 1.05 × the rate
//! ```
//! The VMM holds back what the packet path would drop, so an honest VMM's frames are never
//! dropped for their rate: its buckets are shallower than those there, and fill more slowly.

use super::ledger::Credits;
use ocs_node_api as api;
use ocs_vmm_spec::{RateLimit, TransmitLimits};

/// What an instance may send at once after a pause: above what a busy host delays its VMM, and
/// below what the packet path has saved in that time.
const BURST_MS: u64 = 40;
/// At low rates at least so much: a few frames.
const BURST_LEAST_BYTES: u64 = 8 * 1024;

/// The limits of all interfaces of an instance together (EC2 User Guide, "Amazon EC2 instance
/// network bandwidth"), with the credits that were `left` by the run before, if there was one,
/// and came since then: a tenant that starts its instance again gains none by it.
pub(super) fn limits(
    rate: &api::NetworkRate,
    left: Option<&Credits>,
    now_s: i64,
) -> TransmitLimits {
    let bytes = |bps: u64, credits: u64| {
        let per_s = bps / 8;
        let burst = (per_s.saturating_mul(BURST_MS) / 1_000).max(BURST_LEAST_BYTES);
        limit(per_s, burst.max(credits))
    };
    let come = |since_s: i64| {
        let passed_s = u64::try_from(now_s.saturating_sub(since_s)).unwrap_or(0);
        (rate.baseline_bps / 8).saturating_mul(passed_s)
    };
    let credits = left.map(|left| left.bytes.saturating_add(come(left.at_s)));
    TransmitLimits {
        credits: credits.map(|credits| credits.min(rate.credit_bytes)),
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
            limits(&rate, None, 0),
            TransmitLimits {
                credits: None,
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
            limits(&flat, None, 0),
            TransmitLimits {
                credits: None,
                bytes: limit(125_000, 8_192),
                baseline: None,
                packets: limit(3, 1),
            }
        );
        assert_eq!(
            limits(&api::NetworkRate::default(), None, 0),
            TransmitLimits::default()
        );
        limits(&rate, None, 0).check("transmit").unwrap();
    }

    #[test]
    fn credits_outlive_a_run_and_grow_at_the_baseline() {
        let rate = api::NetworkRate {
            baseline_bps: 8_000,
            peak_bps: 80_000,
            credit_bytes: 50_000,
            packets_per_s: 0,
        };
        let left = |bytes| {
            Some(Credits {
                bytes,
                at_s: 100,
                run: String::new(),
            })
        };
        for (left, now_s, expected) in [
            (left(0), 100, 0),
            (left(3_000), 110, 13_000),
            (left(3_000), 1_000_000, 50_000),
            // A clock that was set back gives nothing, and takes nothing.
            (left(3_000), 0, 3_000),
            (left(u64::MAX), i64::MAX, 50_000),
        ] {
            assert_eq!(limits(&rate, left.as_ref(), now_s).credits, Some(expected));
        }
        assert_eq!(limits(&rate, None, 100).credits, None);
    }
}
