//! The frequency of jiffies, which the kernel tells nobody.

use std::time::{Duration, Instant};

use super::error::FabricError;
use super::programs::Programs;

/// Every `CONFIG_HZ` that x86 and arm64 kernels offer.
const FREQUENCIES: [u32; 4] = [100, 250, 300, 1000];
const MEASURE: Duration = Duration::from_millis(100);

/// A number that is another, far away, whenever it is asked for.
pub(super) fn elsewhere(programs: &Programs) -> Result<u32, FabricError> {
    let spread = programs.jiffies()?.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(u32::try_from(spread >> 32).unwrap_or_default())
}

/// Measures the frequency.
pub(super) fn hz(programs: &Programs) -> Result<u32, FabricError> {
    let began = Instant::now();
    let first = programs.jiffies()?;
    std::thread::sleep(MEASURE);
    let last = programs.jiffies()?;
    let elapsed_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let measured = last.saturating_sub(first).saturating_mul(1_000_000) / elapsed_us.max(1);
    FREQUENCIES
        .into_iter()
        .min_by_key(|hz| u64::from(*hz).abs_diff(measured))
        .filter(|hz| measured > u64::from(*hz) / 2 && measured < u64::from(*hz) * 2)
        .ok_or(FabricError::Clock { measured })
}
