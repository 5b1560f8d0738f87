//! Transmit limits: frames wait in the guest's queue until they may go.
//!
//! ```text
//!  level grows by rate × time, exactly, up to burst
//!  a frame goes while level ≥ min(its cost, burst), and level falls by its cost
//! ```
//! Levels are integers of a billionth of a byte or packet, so that nothing is lost by
//! rounding however often they are looked at; a frame larger than the burst leaves a
//! debt. Thus a backlogged guest sends exactly rate × time + burst, and there is no
//! interval within which it does not. A peak over a baseline are two such levels, both of
//! which a frame must find: while the credits last (the baseline's burst) the peak alone
//! holds frames back.

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

    /// With `left` of its burst.
    fn with(mut self, left: u64) -> Self {
        self.level = self.level.min(i128::from(left) * ONE);
        self
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

/// What a frame takes of the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes on the wire.
    pub bytes: u64,
    /// Packets on the wire: segments, of a frame that is to be cut.
    pub packets: u64,
}

impl From<u64> for Cost {
    /// Of a frame of so many bytes that goes as it is.
    fn from(bytes: u64) -> Self {
        Self { bytes, packets: 1 }
    }
}

/// Limits that hold together: a frame goes when it may by all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shaper {
    peak: Option<Bucket>,
    baseline: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Shaper {
    /// Full buckets at `now_ns`, but for the credits where the limits say how many there are.
    pub fn new(limits: &TransmitLimits, now_ns: u64) -> Self {
        let full = |limit: Option<RateLimit>| limit.map(|limit| Bucket::new(limit, now_ns));
        Self {
            peak: full(limits.bytes),
            baseline: full(limits.baseline).map(|bucket| match limits.credits {
                Some(left) => bucket.with(left),
                None => bucket,
            }),
            packets: full(limits.packets),
        }
    }

    /// Is there a limit at all?
    pub fn is_limited(&self) -> bool {
        self.buckets(0.into()).next().is_some()
    }

    /// Whole bytes of credits, if there is a baseline; none in debt.
    pub fn credits(&self) -> Option<u64> {
        let level = self.baseline?.level.max(0) / ONE;
        Some(u64::try_from(level).unwrap_or(u64::MAX))
    }

    /// Brings the levels up to date.
    pub fn refill(&mut self, now_ns: u64) {
        for (bucket, _) in self.buckets_mut(0.into()) {
            bucket.refill(now_ns);
        }
    }

    /// In how many ns to look again whether a frame may go; 0: it may now.
    pub fn wait_ns(&self, frame: impl Into<Cost>) -> u64 {
        let waits = self.buckets(frame.into());
        let wait_ns = waits.map(|(bucket, cost)| bucket.wait_ns(cost)).max();
        match wait_ns.unwrap_or(0) {
            0 => 0,
            wait_ns => {
                let rooms = self.buckets(0.into()).map(|(bucket, _)| bucket.half_ns());
                wait_ns.max(COALESCE_NS.min(rooms.min().unwrap_or(0)))
            }
        }
    }

    /// Takes what a frame costs that goes.
    pub fn spend(&mut self, frame: impl Into<Cost>) {
        for (bucket, cost) in self.buckets_mut(frame.into()) {
            bucket.spend(cost);
        }
    }

    /// The limits that there are, and what a frame costs of each.
    fn buckets(&self, frame: Cost) -> impl Iterator<Item = (&Bucket, u64)> {
        let bytes = [&self.peak, &self.baseline].into_iter().flatten();
        let bytes = bytes.map(move |bucket| (bucket, frame.bytes));
        let packets = self.packets.iter();
        bytes.chain(packets.map(move |bucket| (bucket, frame.packets)))
    }

    fn buckets_mut(&mut self, frame: Cost) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let bytes = [&mut self.peak, &mut self.baseline].into_iter().flatten();
        let bytes = bytes.map(move |bucket| (bucket, frame.bytes));
        let packets = self.packets.iter_mut();
        bytes.chain(packets.map(move |bucket| (bucket, frame.packets)))
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
    #[derive(Clone)]
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
            credits in (1u64..10_000_000_000, 1u64..20_000),
            packets in (1u64..2_000_000_000, 1u64..8),
            frames in proptest::collection::vec((0u64..400, 1u64..3_000), 1..40),
        ) {
            let limits = TransmitLimits {
                bytes: limit(bytes.0, bytes.1),
                baseline: limit(credits.0, credits.1),
                packets: limit(packets.0, packets.1),
                ..TransmitLimits::default()
            };
            let mut shaper = Shaper::new(&limits, 0);
            let naive = |(rate, burst): (u64, u64)| Naive {
                rate: rate.into(),
                burst: burst.into(),
                level: i128::from(burst) * ONE,
            };
            // Bytes twice, then packets.
            let mut naives = [naive(bytes), naive(credits), naive(packets)];
            let goes = |naives: &[Naive; 3], bytes: u64| {
                let costs = [bytes, bytes, 1];
                naives.iter().zip(costs).all(|(naive, cost)| naive.admit(cost.into()))
            };
            let mut now = 0;
            for (pause, cost) in frames {
                for _ in 0..pause {
                    naives.iter_mut().for_each(Naive::tick);
                }
                now += pause;
                shaper.refill(now);
                let exact_wait = shaper.buckets(cost.into()).map(|(b, cost)| b.wait_ns(cost)).max().unwrap();
                prop_assert_eq!(shaper.wait_ns(cost) == 0, goes(&naives, cost));
                if goes(&naives, cost) {
                    shaper.spend(cost);
                    for (naive, cost) in naives.iter_mut().zip([cost, cost, 1]) {
                        naive.level -= i128::from(cost) * ONE;
                    }
                } else if exact_wait < 2_000 {
                    let mut ahead = naives.clone();
                    for tick in 1..=exact_wait {
                        ahead.iter_mut().for_each(Naive::tick);
                        prop_assert_eq!(goes(&ahead, cost), tick == exact_wait);
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
            let limits = TransmitLimits { bytes: limit(per_s, burst), ..TransmitLimits::default() };
            let mut shaper = Shaper::new(&limits, 0);
            let (now, sent) = backlog(&mut shaper, FRAME, 5_000_000, late_ns);
            let allowed = u128::from(burst) + u128::from(per_s) * u128::from(now) / 1_000_000_000;
            prop_assert!(u128::from(sent) <= allowed + 1);
            prop_assert!(u128::from(sent) + u128::from(FRAME + burst) >= allowed, "{} of {}", sent, allowed);
        }
    }

    /// Sends frames until `end_ns`, looking again as late as that; when that was, and what went.
    fn backlog(shaper: &mut Shaper, frame: u64, end_ns: u64, late_ns: u64) -> (u64, u64) {
        let (mut now, mut sent) = (0, 0);
        while now < end_ns {
            shaper.refill(now);
            match shaper.wait_ns(frame) {
                0 => {
                    shaper.spend(frame);
                    sent += frame;
                }
                wait_ns => now += wait_ns + late_ns,
            }
        }
        (now, sent)
    }

    /// 40 MB/s while 10 MB of credits last, which are spent at 30 MB/s above the baseline of
    /// 10 MB/s; then that, for ever.
    #[test]
    fn credits_carry_the_peak_and_then_the_baseline_is_left() {
        const FRAME: u64 = 1_500;
        const MB: u64 = 1_000_000;
        let limits = TransmitLimits {
            bytes: limit(40 * MB, 40 * FRAME),
            baseline: limit(10 * MB, 10 * MB),
            packets: None,
            ..TransmitLimits::default()
        };
        for (end_ms, allowed) in [
            (100, 4 * MB),
            (300, 12 * MB),
            (1_000, 20 * MB),
            (3_000, 40 * MB),
        ] {
            let mut shaper = Shaper::new(&limits, 0);
            let (_, sent) = backlog(&mut shaper, FRAME, end_ms * 1_000_000, 0);
            let range = allowed - 20 * FRAME..=allowed + 60 * FRAME;
            assert!(range.contains(&sent), "{sent} of {allowed} in {end_ms} ms");
        }
        // What a pause saves, it can spend.
        let mut shaper = Shaper::new(&limits, 0);
        backlog(&mut shaper, FRAME, 1_000_000_000, 0);
        shaper.refill(1_600_000_000);
        let saved = (0..).find(|_| {
            shaper.baseline.as_mut().unwrap().spend(FRAME);
            shaper.baseline.unwrap().wait_ns(FRAME) > 0
        });
        assert!((3_990..=4_001).contains(&saved.unwrap()), "{saved:?}");
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
        let limits = TransmitLimits {
            bytes: limit(1_000, 100),
            ..TransmitLimits::default()
        };
        let mut shaper = Shaper::new(&limits, 0);
        assert_eq!(shaper.wait_ns(1_500), 0);
        shaper.spend(1_500);
        // 1,400 bytes of debt and the burst of 100: 1.5 s.
        assert_eq!(shaper.wait_ns(1_500), 1_500_000_000);
        shaper.refill(1_500_000_000);
        assert_eq!(shaper.wait_ns(1_500), 0);
        shaper.spend(1_500);
        // A clock that goes backwards changes nothing.
        shaper.refill(0);
        assert_eq!(shaper.wait_ns(100), 1_500_000_000);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut shaper = Shaper::new(&TransmitLimits::default(), 0);
        assert!(!shaper.is_limited());
        shaper.spend(u64::MAX);
        assert_eq!(shaper.wait_ns(u64::MAX), 0);
    }

    #[test]
    fn segments_count_as_packets() {
        let limits = TransmitLimits {
            packets: limit(1_000, 50),
            ..TransmitLimits::default()
        };
        let mut shaper = Shaper::new(&limits, 0);
        let frame = Cost {
            bytes: 60_000,
            packets: 45,
        };
        assert_eq!(shaper.wait_ns(frame), 0);
        shaper.spend(frame);
        assert!(shaper.wait_ns(frame) >= 40_000_000);
    }

    #[test]
    fn credits_are_those_that_were_left() {
        let rate = |per_s, burst| Some(RateLimit { per_s, burst });
        let limits = TransmitLimits {
            bytes: rate(1_000_000, 10_000),
            baseline: rate(1_000, 50_000),
            credits: Some(2_000),
            packets: None,
        };
        let mut shaper = Shaper::new(&limits, 0);
        assert_eq!(shaper.credits(), Some(2_000));
        shaper.spend(1_500);
        shaper.refill(1_000_000_000);
        assert_eq!(shaper.credits(), Some(1_500));
        // A frame beyond them leaves a debt, which nobody inherits.
        shaper.spend(4_000);
        assert_eq!(shaper.credits(), Some(0));
        // No more than there may be.
        let rich = TransmitLimits {
            credits: Some(u64::MAX),
            ..limits
        };
        assert_eq!(Shaper::new(&rich, 0).credits(), Some(50_000));
        let flat = TransmitLimits {
            baseline: None,
            ..limits
        };
        assert_eq!(Shaper::new(&flat, 0).credits(), None);
    }
}
