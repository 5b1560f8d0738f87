//! The limit: the same reads by raw io_uring, without virtio in between.

use super::client::BLOCK_BYTES;
use anyhow::{Result, ensure};
use io_uring::{IoUring, opcode, types};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

#[repr(C, align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK_BYTES]);

/// Random `O_DIRECT` reads at `depth` for `time`; answers IOPS.
pub fn random_read(file: &Path, depth: usize, time: Duration) -> Result<f64> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(file)?;
    let blocks = file.metadata()?.len() / BLOCK_BYTES as u64;
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(u32::try_from(depth)?.next_power_of_two())?;
    let mut buffers = vec![Block([0; BLOCK_BYTES]); depth];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut entry = |slot: usize, buffers: &mut [Block]| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        opcode::Read::new(
            types::Fd(file.as_raw_fd()),
            buffers[slot].0.as_mut_ptr(),
            BLOCK_BYTES as u32,
        )
        .offset(random % blocks * BLOCK_BYTES as u64)
        .build()
        .user_data(slot as u64)
    };
    for slot in 0..depth {
        let read = entry(slot, &mut buffers);
        // SAFETY: each slot's buffer lives until the ring is drained below.
        unsafe { ring.submission().push(&read)? };
    }
    let start = Instant::now();
    let mut done = 0u64;
    while start.elapsed() < time {
        ring.submit_and_wait(1)?;
        let finished: Vec<_> = ring
            .completion()
            .map(|c| (c.user_data(), c.result()))
            .collect();
        for (slot, result) in finished {
            ensure!(result == BLOCK_BYTES as i32, "a raw read failed: {result}");
            done += 1;
            let read = entry(slot as usize, &mut buffers);
            // SAFETY: the request that used this slot's buffer has completed.
            unsafe { ring.submission().push(&read)? };
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    ring.submit_and_wait(depth)?;
    Ok(done as f64 / elapsed)
}
