//! Bounds how often something happens: a burst, then a steady rate.

/// A token bucket that stores only when it would be full again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    burst: u64,
    interval_us: u64,
    full_at_us: u64,
}

impl Pace {
    /// `burst` events at once, then one every `interval_us`.
    #[must_use]
    pub const fn new(burst: u64, interval_us: u64) -> Self {
        Self {
            burst,
            interval_us,
            full_at_us: 0,
        }
    }

    /// Takes the right to one event now.
    pub fn take(&mut self, now_us: u64) -> bool {
        let full_at_us = self.full_at_us.max(now_us);
        let used_us = full_at_us - now_us;
        if used_us > (self.burst - 1) * self.interval_us {
            return false;
        }
        self.full_at_us = full_at_us + self.interval_us;
        true
    }

    /// When the next event will be allowed, if it is not now.
    #[must_use]
    pub fn next_at_us(&self) -> u64 {
        self.full_at_us
            .saturating_sub((self.burst - 1) * self.interval_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_then_a_burst_after_a_rest() {
        let mut pace = Pace::new(5, 100);
        let taken =
            |pace: &mut Pace, from: u64, to: u64| (from..to).filter(|now| pace.take(*now)).count();
        assert_eq!(taken(&mut pace, 1000, 1001), 1);
        assert_eq!(taken(&mut pace, 1001, 1005), 4);
        assert_eq!(taken(&mut pace, 1005, 1100), 0);
        assert_eq!(taken(&mut pace, 1100, 2100), 10);
        assert_eq!(taken(&mut pace, 3000, 3010), 5);
    }

    #[test]
    fn the_announced_time_is_the_first_that_works() {
        let mut pace = Pace::new(2, 100);
        assert!(pace.take(50) && pace.take(50) && !pace.take(50));
        let next = pace.next_at_us();
        assert!(!pace.take(next - 1));
        assert!(pace.take(next));
    }
}
