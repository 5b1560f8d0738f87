//! Transmit limits: frames wait in the guest's queue until they may go.
//!
//! ```text
//!  level grows by rate × time, exactly, up to burst
//!  a frame goes while level ≥ min(its cost, burst), and level falls by its cost
//! ```
//! Levels are integers of a billionth of a byte or packet, so that nothing is lost by
//! rounding however often they are looked at; a frame larger than the burst leaves a
//! debt. Thus a backlogged guest sends exactly rate × time + burst, and there is no
//! interval within which it does not.

use ocs_vmm_spec::{RateLimit, TransmitLimits};

/// Billionths in one.
const ONE: i128 = 1_000_000_000;
/// Waits are this long at least, where the burst holds what comes in meanwhile: one timer
/// then serves many frames.
const COALESCE_NS: u64 = 250_000;

/// One limit.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate_per_s: u64,
    burst: u64,
    level: i128,
    at_ns: u64,
}

impl Bucket {
    /// Full at `now_ns`.
    pub fn new(limit: RateLimit, now_ns: u64) -> Self {
        Self {
            rate_per_s: limit.per_s,
            burst: limit.burst,
            level: i128::from(limit.burst) * ONE,
            at_ns: now_ns,
        }
    }

    /// Brings the level up to date.
    pub(crate) fn refill(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let full = i128::from(self.burst) * ONE;
        let grown = self.level + i128::from(self.rate_per_s) * i128::from(passed_ns);
        self.level = grown.min(full);
    }

    /// How long until a frame of `cost` may go, in ns; 0 if it may now.
    pub(crate) fn wait_ns(&self, cost: u64) -> u64 {
        let missing = i128::from(cost.min(self.burst)) * ONE - self.level;
        if missing <= 0 {
            return 0;
        }
        let rate = i128::from(self.rate_per_s.max(1));
        u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX)
    }

    /// Takes what goes.
    pub(crate) fn spend(&mut self, cost: u64) {
        self.level -= i128::from(cost) * ONE;
    }

    /// In which the bucket fills half.
    fn half_ns(&self) -> u64 {
        let half = u128::from(self.burst) * 500_000_000 / u128::from(self.rate_per_s.max(1));
        u64::try_from(half).unwrap_or(u64::MAX)
    }
}

/// Both limits of an interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shaper {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Shaper {
    /// Full buckets at `now_ns`.
    pub fn new(limits: &TransmitLimits, now_ns: u64) -> Self {
        Self {
            bytes: limits.bytes.map(|limit| Bucket::new(limit, now_ns)),
            packets: limits.packets.map(|limit| Bucket::new(limit, now_ns)),
        }
    }

    /// Is there a limit at all?
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.packets.is_some()
    }

    /// Brings the levels up to date.
    pub fn refill(&mut self, now_ns: u64) {
        for bucket in [&mut self.bytes, &mut self.packets].into_iter().flatten() {
            bucket.refill(now_ns);
        }
    }

    /// Lets a frame go (`None`), or says in how many ns to look again.
    pub fn admit(&mut self, frame_bytes: u64) -> Option<u64> {
        let mut buckets = [(&mut self.bytes, frame_bytes), (&mut self.packets, 1)];
        let wait_ns = buckets
            .iter()
            .filter_map(|(bucket, cost)| bucket.as_ref().map(|b| b.wait_ns(*cost)))
            .max()
            .unwrap_or(0);
        if wait_ns > 0 {
            let room_ns = buckets
                .iter()
                .filter_map(|(bucket, _)| bucket.as_ref().map(Bucket::half_ns))
                .min()
                .unwrap_or(0);
            return Some(wait_ns.max(COALESCE_NS.min(room_ns)));
        }
        for (bucket, cost) in &mut buckets {
            if let Some(bucket) = bucket {
                bucket.spend(*cost);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(per_s: u64, burst: u64) -> Option<RateLimit> {
        Some(RateLimit { per_s, burst })
    }

    /// The same, a nanosecond at a time.
    struct Naive {
        rate: i128,
        burst: i128,
        level: i128,
    }

    impl Naive {
        fn tick(&mut self) {
            self.level = (self.level + self.rate).min(self.burst * ONE);
        }

        fn admit(&self, cost: i128) -> bool {
            self.level >= cost.min(self.burst) * ONE
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Looked at whenever one likes, the buckets admit what a model that counts every
        /// nanosecond admits, and the wait that they name is the first at which it does.
        #[test]
        fn admits_what_a_naive_model_admits(
            bytes in (1u64..20_000_000_000, 1u64..5_000),
            packets in (1u64..2_000_000_000, 1u64..8),
            frames in proptest::collection::vec((0u64..400, 1u64..3_000), 1..40),
        ) {
            let limits = TransmitLimits {
                bytes: limit(bytes.0, bytes.1),
                packets: limit(packets.0, packets.1),
            };
            let mut shaper = Shaper::new(&limits, 0);
            let naive = |(rate, burst): (u64, u64)| Naive {
                rate: rate.into(),
                burst: burst.into(),
                level: i128::from(burst) * ONE,
            };
            let (mut by_bytes, mut by_packets) = (naive(bytes), naive(packets));
            let mut now = 0;
            for (pause, cost) in frames {
                for _ in 0..pause {
                    by_bytes.tick();
                    by_packets.tick();
                }
                now += pause;
                shaper.refill(now);
                let goes = by_bytes.admit(cost.into()) && by_packets.admit(1);
                let exact_wait = shaper.bytes.unwrap().wait_ns(cost)
                    .max(shaper.packets.unwrap().wait_ns(1));
                let answer = shaper.admit(cost);
                prop_assert_eq!(answer.is_none(), goes);
                if goes {
                    by_bytes.level -= i128::from(cost) * ONE;
                    by_packets.level -= ONE;
                } else if exact_wait < 2_000 {
                    let ahead = |n: &Naive| Naive { ..*n };
                    let (mut b, mut p) = (ahead(&by_bytes), ahead(&by_packets));
                    for tick in 1..=exact_wait {
                        b.tick();
                        p.tick();
                        prop_assert_eq!(b.admit(cost.into()) && p.admit(1), tick == exact_wait);
                    }
                }
            }
        }

        /// A guest that always has a frame sends rate × time + burst, to the byte, however
        /// late its timer fires, as long as the burst covers the lateness.
        #[test]
        fn a_backlog_is_sent_at_the_exact_rate(
            per_s in 1_000_000u64..200_000_000, late_ns in 0u64..100_000,
        ) {
            const FRAME: u64 = 1_000;
            let burst = 4 * FRAME + per_s / 1_000;
            let limits = TransmitLimits { bytes: limit(per_s, burst), packets: None };
            let mut shaper = Shaper::new(&limits, 0);
            let (mut now, mut sent) = (0u64, 0u64);
            while now < 5_000_000 {
                shaper.refill(now);
                match shaper.admit(FRAME) {
                    None => sent += FRAME,
                    Some(wait) => now += wait + late_ns,
                }
            }
            let allowed = u128::from(burst) + u128::from(per_s) * u128::from(now) / 1_000_000_000;
            prop_assert!(u128::from(sent) <= allowed + 1);
            prop_assert!(u128::from(sent) + u128::from(FRAME + burst) >= allowed, "{} of {}", sent, allowed);
        }
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
        let limits = TransmitLimits {
            bytes: limit(1_000, 100),
            packets: None,
        };
        let mut shaper = Shaper::new(&limits, 0);
        assert_eq!(shaper.admit(1_500), None);
        // 1,400 bytes of debt and the burst of 100: 1.5 s.
        assert_eq!(shaper.admit(1_500), Some(1_500_000_000));
        shaper.refill(1_500_000_000);
        assert_eq!(shaper.admit(1_500), None);
        // A clock that goes backwards changes nothing.
        shaper.refill(0);
        assert_eq!(shaper.admit(100), Some(1_500_000_000));
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut shaper = Shaper::new(&TransmitLimits::default(), 0);
        assert!(!shaper.is_limited());
        assert!((0..1000).all(|_| shaper.admit(u64::MAX).is_none()));
    }
}
