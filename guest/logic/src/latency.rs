//! Latencies as a histogram of bounded size and bounded error.

/// Values below this are exact; above, each power of two has this many buckets, so that
/// a bucket is at most 1/16 wide.
const FINE: u64 = 16;
const BUCKETS: usize = 512;

/// Counts of latencies in microseconds.
#[derive(Debug)]
pub struct Latency {
    counts: [u32; BUCKETS],
    /// How many were recorded.
    pub total: u64,
    /// The largest.
    pub max_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
            max_us: 0,
        }
    }
}

impl Latency {
    /// Takes one value in.
    pub fn record(&mut self, us: u64) {
        self.counts[bucket(us)] = self.counts[bucket(us)].saturating_add(1);
        self.total += 1;
        self.max_us = self.max_us.max(us);
    }

    /// The value below or at which `percent` of all are, at most 1/16 too large.
    #[must_use]
    pub fn percentile_us(&self, percent: u64) -> u64 {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return last_of(index).min(self.max_us);
            }
        }
        self.max_us
    }
}

fn bucket(us: u64) -> usize {
    if us < FINE {
        return us as usize;
    }
    let shift = us.ilog2() - FINE.ilog2();
    let fine = (us >> shift) - FINE;
    ((u64::from(shift) + 1) * FINE + fine).min(BUCKETS as u64 - 1) as usize
}

/// The largest value in a bucket.
fn last_of(index: usize) -> u64 {
    let index = index as u64;
    if index < FINE {
        return index;
    }
    let shift = index / FINE - 1;
    ((index % FINE + FINE + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn no_values_have_no_percentile() {
        assert_eq!(Latency::default().percentile_us(99), 0);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_list(
            mut values in proptest::collection::vec(0u64..1 << 30, 1..200),
            percent in 1u64..=100,
        ) {
            let mut latency = Latency::default();
            values.iter().for_each(|us| latency.record(*us));
            values.sort_unstable();
            let at = (values.len() as u64 * percent).div_ceil(100).max(1) as usize - 1;
            let found = latency.percentile_us(percent);
            prop_assert!(found >= values[at]);
            prop_assert!(found <= values[at] + values[at] / 16);
            prop_assert_eq!(latency.max_us, *values.last().unwrap());
        }

        #[test]
        fn a_bucket_ends_where_the_next_begins(us in 0u64..1 << 34) {
            let all: Vec<usize> = [us, last_of(bucket(us)), last_of(bucket(us)) + 1].map(bucket).into();
            prop_assert_eq!(all[0], all[1]);
            prop_assert_eq!(all[0] + 1, all[2]);
        }
    }
}
