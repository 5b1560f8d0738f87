//! The client: random 4 KiB reads at a fixed depth through one virtqueue.

use super::daemon::Daemon;
use anyhow::{Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};

/// Bytes of one request.
pub const BLOCK_BYTES: usize = 4096;
/// Every so many requests have their latency kept.
const SAMPLE_EVERY: u64 = 16;

/// Reads at random for `time`; answers IOPS, p99 in µs, the daemon's CPU per request in µs.
pub fn random_read(
    daemon: &Daemon,
    size_bytes: u64,
    depth: usize,
    time: Duration,
) -> Result<Vec<f64>> {
    let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
        | VirtioBlkFeatureFlags::FLUSH.bits();
    let mut transport = connect(daemon, features)?;
    let buffers = Buffers::new(depth)?;
    let mut queue = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 1, 128)?.remove(0);
    transport.map_mem_region(
        buffers.address as usize,
        buffers.bytes,
        buffers.memory.as_raw_fd(),
        0,
    )?;
    let kick = transport.get_submission_notifier(0);
    let completed = transport.get_completion_fd(0);

    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut offset = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % (size_bytes / BLOCK_BYTES as u64) * BLOCK_BYTES as u64
    };
    let mut began = vec![Instant::now(); depth];
    let mut latencies_us: Vec<f64> = Vec::with_capacity(1 << 20);
    let cpu_before = daemon.process.cpu_us()?;
    let start = Instant::now();
    for (slot, at) in began.iter_mut().enumerate() {
        *at = Instant::now();
        // SAFETY: slot `slot` of the buffers belongs to this request alone until it completes.
        unsafe { queue.read_raw(offset(), buffers.slot(slot), BLOCK_BYTES, slot)? };
    }
    queue.set_used_notif_enabled(depth == 1);
    kick.notify()?;
    let mut done = 0u64;
    while start.elapsed() < time {
        let finished: Vec<_> = queue.completions().map(|c| (c.context, c.ret)).collect();
        if finished.is_empty() {
            if depth == 1 {
                // The daemon has made the shared descriptor non-blocking.
                let mut wait = [PollFd::new(&*completed, PollFlags::IN)];
                poll(&mut wait, None)?;
                completed.read()?;
            }
            continue;
        }
        let now = Instant::now();
        for (slot, result) in finished {
            ensure!(result == 0, "a read failed: {result}");
            done += 1;
            if done.is_multiple_of(SAMPLE_EVERY) {
                latencies_us.push((now - began[slot]).as_secs_f64() * 1e6);
            }
            began[slot] = now;
            // SAFETY: the request that used this slot has completed.
            unsafe { queue.read_raw(offset(), buffers.slot(slot), BLOCK_BYTES, slot)? };
        }
        if queue.avail_notif_needed() {
            kick.notify()?;
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cpu_us = daemon.process.cpu_us()? - cpu_before;
    ensure!(done > 0, "no request completed");
    latencies_us.sort_by(f64::total_cmp);
    let p99 = latencies_us
        .get(latencies_us.len() * 99 / 100)
        .copied()
        .unwrap_or(f64::NAN);
    Ok(vec![done as f64 / elapsed, p99, cpu_us / done as f64])
}

/// Connects; a daemon that has bound its socket may not listen yet.
fn connect(daemon: &Daemon, features: u64) -> Result<Box<VirtioBlkTransport>> {
    let path = daemon.socket.to_string_lossy();
    let start = Instant::now();
    loop {
        match VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(&path, features) {
            Ok(transport) => return Ok(Box::new(transport)),
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused
                    && start.elapsed() < Duration::from_secs(5) =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// `depth` buffers in a memfd that both sides map.
struct Buffers {
    memory: std::os::fd::OwnedFd,
    address: *mut u8,
    bytes: usize,
}

impl Buffers {
    fn new(depth: usize) -> Result<Self> {
        let bytes = depth * BLOCK_BYTES;
        let memory = memfd_create("bench-buffers", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, bytes as u64)?;
        // SAFETY: a fresh mapping of a fresh file; nothing else knows its address.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memory,
                0,
            )?
        };
        Ok(Self {
            memory,
            address: address.cast(),
            bytes,
        })
    }

    fn slot(&self, slot: usize) -> *mut u8 {
        assert!((slot + 1) * BLOCK_BYTES <= self.bytes);
        // SAFETY: within the mapping, as asserted.
        unsafe { self.address.add(slot * BLOCK_BYTES) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, whose last user is gone.
        let _ = unsafe { munmap(self.address.cast(), self.bytes) };
    }
}
