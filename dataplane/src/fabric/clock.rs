//! The frequency of jiffies, which the kernel tells nobody.

use std::time::{Duration, Instant};

use ocs_dataplane_shared::layout::Timeouts;

use super::error::FabricError;
use super::programs::Programs;

/// Every `CONFIG_HZ` that x86 and arm64 kernels offer.
const FREQUENCIES: [u32; 4] = [100, 250, 300, 1000];
const MEASURE: Duration = Duration::from_millis(100);

/// EC2 User Guide, "Idle connection tracking timeout": the defaults.
const TCP_ESTABLISHED_S: u32 = 432_000;
const UDP_S: u32 = 30;
const UDP_STREAM_S: u32 = 180;

/// Measures the frequency; gives the default timeouts in it.
pub(super) fn timeouts(programs: &Programs) -> Result<Timeouts, FabricError> {
    let began = Instant::now();
    let first = programs.jiffies()?;
    std::thread::sleep(MEASURE);
    let last = programs.jiffies()?;
    let elapsed_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let measured = last.saturating_sub(first).saturating_mul(1_000_000) / elapsed_us.max(1);
    let hz = FREQUENCIES
        .into_iter()
        .min_by_key(|hz| u64::from(*hz).abs_diff(measured))
        .filter(|hz| measured > u64::from(*hz) / 2 && measured < u64::from(*hz) * 2)
        .ok_or(FabricError::Clock { measured })?;
    Ok(Timeouts {
        hz,
        tcp_established: TCP_ESTABLISHED_S * hz,
        udp: UDP_S * hz,
        udp_stream: UDP_STREAM_S * hz,
    })
}
