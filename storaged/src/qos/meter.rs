//! What a request counts as: EC2's I/O accounting for SSD volumes.
//!
//! "A single 1,024 KiB I/O operation counts as 4 operations (1,024÷256=4), while 8
//! contiguous I/O operations at 32 KiB each count as 1 operation (8×32=256). However,
//! 8 random non-contiguous I/O operations at 32 KiB each count as 8" (Amazon EBS I/O
//! characteristics and monitoring).

/// Which way bytes go; only neighbours of one direction are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Read,
    /// From the guest.
    Write,
}

/// The operation that the next neighbour may still be part of.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    end: u64,
    bytes: u64,
}

/// Counts one volume's operations.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    unit: u64,
    open: [Open; 2],
}

impl Meter {
    /// One that counts each begun `unit` bytes as an operation.
    #[must_use]
    pub fn new(unit: u64) -> Self {
        Self {
            unit: unit.max(1),
            open: [Open::default(); 2],
        }
    }

    /// Operations that a transfer of `len` bytes at `offset` adds.
    pub fn count(&mut self, direction: Direction, offset: u64, len: u64) -> u64 {
        let open = &mut self.open[usize::from(direction == Direction::Write)];
        let merged = if open.bytes > 0 && open.end == offset {
            open.bytes
        } else {
            0
        };
        let total = merged + len;
        let before = merged.div_ceil(self.unit);
        let after = total.div_ceil(self.unit);
        *open = Open {
            end: offset.wrapping_add(len),
            bytes: match total % self.unit {
                // Full: the next neighbour begins an operation.
                0 => 0,
                part => part,
            },
        };
        after - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Read, Write};
    use proptest::prelude::*;

    const UNIT: u64 = 256 << 10;

    #[test]
    fn the_documented_examples() {
        let mut meter = Meter::new(UNIT);
        assert_eq!(meter.count(Read, 0, 1 << 20), 4);
        let contiguous: u64 = (0..8)
            .map(|n| meter.count(Write, (n << 15) + 77 * UNIT, 32 << 10))
            .sum();
        assert_eq!(contiguous, 1);
        let random: u64 = (0..8).map(|n| meter.count(Read, n << 30, 32 << 10)).sum();
        assert_eq!(random, 8);
        // Reads between writes do not part the writes.
        let mut sum = 0;
        for n in 0..64 {
            sum += meter.count(Write, n << 12, 4096);
            assert_eq!(meter.count(Read, n << 22, 4096), 1);
        }
        assert_eq!(sum, 1);
        assert_eq!(meter.count(Write, 64 << 12, 4096), 1);
    }

    proptest! {
        /// One long run, however cut, is its length in units; strangers count each.
        #[test]
        fn runs_count_by_length(cuts in prop::collection::vec(1u64..1 << 20, 1..50), start in 0u64..1 << 40) {
            let mut meter = Meter::new(UNIT);
            let (mut at, mut sum) = (start, 0);
            for len in &cuts {
                sum += meter.count(Read, at, *len);
                at += len;
            }
            prop_assert_eq!(sum, (at - start).div_ceil(UNIT));
            let mut meter = Meter::new(UNIT);
            for len in &cuts {
                at += (1 << 41) + len;
                prop_assert_eq!(meter.count(Write, at, *len), len.div_ceil(UNIT));
            }
        }
    }
}
