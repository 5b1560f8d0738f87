//! A token bucket in whole numbers: no rate drifts, however often it is asked.
//!
//! The balance is kept in 10⁻⁹ tokens, so that a rate in tokens a second times a time
//! in nanoseconds is exact. A request begins when the balance is above zero and is
//! charged in full, which may leave a debt: the mean rate is exact whatever the size
//! of requests, and one that is larger than the bucket still passes.

use std::num::NonZeroU64;

const NANO: i128 = 1_000_000_000;

/// A bucket that fills at a rate up to a depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    per_s: NonZeroU64,
    depth: i128,
    balance: i128,
    at_ns: u64,
}

impl Bucket {
    /// A full bucket of `depth` tokens that gains `per_s` tokens a second.
    #[must_use]
    pub fn new(per_s: NonZeroU64, depth: u64, now_ns: u64) -> Self {
        let depth = i128::from(depth) * NANO;
        Self {
            per_s,
            depth,
            balance: depth,
            at_ns: now_ns,
        }
    }

    /// When a request may begin: `None` if at once, else a time after `now_ns`.
    #[must_use]
    pub fn ready_at(&mut self, now_ns: u64) -> Option<u64> {
        self.settle(now_ns);
        if self.balance > 0 {
            return None;
        }
        // The first nanosecond at whose end there is more than nothing.
        let wait = -self.balance / i128::from(self.per_s.get()) + 1;
        Some(now_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// Takes `tokens`, on credit if need be.
    pub fn charge(&mut self, tokens: u64, now_ns: u64) {
        self.settle(now_ns);
        self.balance -= i128::from(tokens) * NANO;
    }

    /// Goes on at another rate and depth, with the tokens or the debt that it has.
    pub fn change(&mut self, per_s: NonZeroU64, depth: u64, now_ns: u64) {
        self.settle(now_ns);
        self.per_s = per_s;
        self.depth = i128::from(depth) * NANO;
        self.balance = self.balance.min(self.depth);
    }

    /// Whole tokens left; none while in debt.
    #[must_use]
    pub fn tokens(&mut self, now_ns: u64) -> u64 {
        self.settle(now_ns);
        u64::try_from(self.balance / NANO).unwrap_or(0)
    }

    /// Leaves at most `tokens`.
    pub fn keep(&mut self, tokens: u64) {
        self.balance = self.balance.min(i128::from(tokens) * NANO);
    }

    /// Adds `tokens`, up to its depth.
    pub fn grant(&mut self, tokens: u64, now_ns: u64) {
        self.settle(now_ns);
        self.balance = (self.balance + i128::from(tokens) * NANO).min(self.depth);
    }

    /// How fast it fills.
    #[must_use]
    pub fn per_s(&self) -> NonZeroU64 {
        self.per_s
    }

    fn settle(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let gained = i128::from(passed) * i128::from(self.per_s.get());
        self.balance = (self.balance + gained).min(self.depth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    /// Tokens taken in `seconds` by one who always wants `cost` and looks every
    /// `step_ns`, or when told to.
    fn taken(per_s: u64, depth: u64, cost: u64, seconds: u64, step_ns: u64) -> u64 {
        let mut bucket = Bucket::new(rate(per_s), depth, 0);
        let (mut now, mut sum) = (0, 0);
        while now < seconds * 1_000_000_000 {
            match bucket.ready_at(now) {
                None => {
                    bucket.charge(cost, now);
                    sum += cost;
                }
                Some(at) => now = at.max(now + step_ns),
            }
        }
        sum
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Over ten seconds: the rate, a depth and a request more at most, and nothing less.
        #[test]
        fn the_rate_is_exact(per_s in 10u64..100_000, cost in 1u64..2000, step_ns in 0u64..1_000_000) {
            let depth = (per_s / 50).max(1);
            let sum = taken(per_s, depth, cost, 10, step_ns);
            prop_assert!(sum >= per_s * 10, "{sum} of {per_s}");
            prop_assert!(sum <= per_s * 10 + depth + cost, "{sum} of {per_s}");
        }

        /// However time is cut up, the balance is that of one whole step, and of the
        /// naive sum with fractions.
        #[test]
        fn steps_do_not_matter(per_s in 1u64..1 << 40, steps in prop::collection::vec((0u64..1 << 30, 0u64..1000), 1..50)) {
            let mut bucket = Bucket::new(rate(per_s), 1 << 50, 0);
            bucket.charge(1 << 50, 0);
            let (mut now, mut charged) = (0u64, 0u64);
            for (step, tokens) in steps {
                now += step;
                bucket.charge(tokens, now);
                charged += tokens;
            }
            let naive = i128::from(now) * i128::from(per_s) - i128::from(charged) * NANO;
            prop_assert_eq!(bucket.balance, naive);
        }
    }

    #[test]
    fn the_time_it_names_is_the_first_that_serves() {
        for (per_s, cost) in [(3, 7), (1000, 1), (99_999, 12), (1 << 30, 1 << 20)] {
            let mut bucket = Bucket::new(rate(per_s), 1, 5);
            bucket.charge(cost, 5);
            let at = bucket.ready_at(5).unwrap();
            assert!(bucket.clone().ready_at(at - 1).is_some());
            assert_eq!(bucket.ready_at(at), None);
        }
    }

    #[test]
    fn a_change_holds_at_once_and_time_never_runs_back() {
        let mut bucket = Bucket::new(rate(10), 1, 0);
        bucket.charge(100, 0);
        bucket.change(rate(100_000), 1000, 1_000_000_000);
        let at = bucket.ready_at(1_000_000_000).unwrap();
        assert!(at < 1_001_000_000, "a debt of {at} ns at the new rate");
        assert!(bucket.ready_at(7).is_some(), "an older clock gains nothing");
    }
}
