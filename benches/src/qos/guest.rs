//! A guest of a volume: random reads through one virtqueue of sealed memory, sleeping
//! on the interrupt between them, as a stock driver does.
//!
//! Not by the crate `virtio-driver`, with which the block area meets both daemons: that one
//! connects, and shares memory that anyone may truncate. Under a node storaged connects, to
//! sealed memory.

use anyhow::{Context, Result, ensure};
use ocs_storaged::memory::{Mapping, Trust, sealed_memfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Proto};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of the queue: three a request.
const QUEUE: u16 = 512;
const DESC: u64 = 0;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADERS: u64 = 0x6000;
const DATA: u64 = 0x10_0000;
/// Where requests put what they read; they share it, since nobody looks at it.
const DATA_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const READ: u32 = 0;
const WRITE: u32 = 1;
const DEVICE_WRITES: u16 = 2;
const NEXT: u16 = 1;

/// What a guest does.
#[derive(Clone, Copy)]
pub struct Load {
    /// Requests at once, at most 128.
    pub depth: usize,
    /// Bytes of each.
    pub bytes: u64,
    /// The volume's size.
    pub size_bytes: u64,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// When each request completed, since the beginning.
    pub at: Vec<Duration>,
    /// How long each took, in the same order.
    pub took: Vec<Duration>,
}

impl Outcome {
    /// The 99th percentile of how long a request took, in µs.
    pub fn p99_us(&self) -> f64 {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = took.len() * 99 / 100;
        took.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1e6)
    }

    /// Requests that completed from `from` to `to`.
    pub fn between(&self, from: Duration, to: Duration) -> usize {
        self.at
            .iter()
            .filter(|at| from <= **at && **at < to)
            .count()
    }
}

/// A guest with one queue.
pub struct Guest {
    map: Mapping,
    file: File,
    kick: EventFd,
    call: EventFd,
    frontend: Option<Frontend>,
    avail: u16,
    used: u16,
    random: u64,
}

impl Guest {
    /// A guest whose device is served over `stream`.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let bytes = DATA + DATA_BYTES;
        let file = sealed_memfd("bench-guest", bytes)?;
        let mut guest = Self {
            map: Mapping::new(&file, 0, bytes, Trust::SealedOnly)?,
            file,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            frontend: None,
            avail: 0,
            used: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        let frontend = guest.attach(stream).context("vhost-user")?;
        guest.frontend = Some(frontend);
        Ok(guest)
    }

    fn attach(&self, stream: UnixStream) -> Result<Frontend> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let base = self.map.at(0, 1).context("no memory")? as u64;
        let mut frontend = Frontend::from_stream(stream, 1);
        frontend.set_owner()?;
        let features = frontend.get_features()?;
        frontend.set_features(features)?;
        frontend.get_protocol_features()?;
        frontend.set_protocol_features(Proto::MQ | Proto::CONFIG | Proto::REPLY_ACK)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: DATA + DATA_BYTES,
            userspace_addr: base,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }])?;
        frontend.set_vring_num(0, QUEUE)?;
        frontend.set_vring_base(0, 0)?;
        frontend.set_vring_addr(
            0,
            &VringConfigData {
                queue_max_size: QUEUE,
                queue_size: QUEUE,
                flags: 0,
                desc_table_addr: base + DESC,
                used_ring_addr: base + USED,
                avail_ring_addr: base + AVAIL,
                log_addr: None,
            },
        )?;
        frontend.set_vring_call(0, &self.call)?;
        frontend.set_vring_kick(0, &self.kick)?;
        frontend.set_vring_enable(0, true)?;
        Ok(frontend)
    }

    /// Reads at random for `time`, then waits for what is under way.
    pub fn read(&mut self, load: &Load, time: Duration) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let start = Instant::now();
        let mut began = vec![Duration::ZERO; load.depth];
        self.begin(load);
        let mut left = load.depth;
        while left > 0 {
            ensure!(self.wait(PATIENCE)?, "nothing completed");
            let now = start.elapsed();
            let mut finished = [0; 128];
            let count = self.reap(&mut finished)?;
            for slot in finished.into_iter().take(count) {
                outcome.at.push(now);
                outcome.took.push(now - began[slot]);
                if now < time {
                    began[slot] = now;
                    self.submit_read(slot, load);
                } else {
                    left -= 1;
                }
            }
            self.notify();
        }
        Ok(outcome)
    }

    /// Reads at random for `time`: how many completed in it.
    pub fn count(&mut self, load: &Load, time: Duration) -> Result<usize> {
        let start = Instant::now();
        self.begin(load);
        let mut count = 0;
        loop {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(count);
            }
            self.wait(left)?;
            count += self.go_on(load)?;
        }
    }

    /// Begins `load.depth` random reads.
    pub fn begin(&mut self, load: &Load) {
        for slot in 0..load.depth {
            self.submit_read(slot, load);
        }
        self.notify();
    }

    /// Begins one random read anew for each that completed; how many those were.
    pub fn go_on(&mut self, load: &Load) -> Result<usize> {
        let mut finished = [0; 128];
        let count = self.reap(&mut finished)?;
        for slot in finished.into_iter().take(count) {
            self.submit_read(slot, load);
        }
        self.notify();
        Ok(count)
    }

    /// Writes all of a volume of `size_bytes`, so that no hole is left to be read.
    pub fn fill(&mut self, size_bytes: u64) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        for at in (0..size_bytes).step_by(CHUNK as usize) {
            for word in 0..CHUNK / 8 {
                let value = (at + word).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                self.put(DATA + word * 8, value);
            }
            self.submit(WRITE, 0, at, CHUNK);
            self.notify();
            let mut finished = [0; 128];
            while self.reap(&mut finished)? == 0 {
                ensure!(self.wait(PATIENCE)?, "a write does not complete");
            }
        }
        Ok(())
    }

    /// Of a random part of the volume.
    fn submit_read(&mut self, slot: usize, load: &Load) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let offset = self.random % (load.size_bytes / load.bytes) * load.bytes;
        self.submit(READ, slot, offset, load.bytes);
    }

    fn submit(&mut self, kind: u32, slot: usize, offset: u64, bytes: u64) {
        let header = HEADERS + 64 * slot as u64;
        self.put(header, kind);
        self.put(header + 4, 0u32);
        self.put(header + 8, offset / 512);
        self.put(header + 32, 0xffu8);
        let data = DATA + (slot as u64 * bytes) % DATA_BYTES;
        let head = 3 * slot as u16;
        let part = |index: u16, at: u64, len: u32, flags: u16| {
            let desc = DESC + 16 * u64::from(index);
            self.put(desc, at);
            self.put(desc + 8, len);
            self.put(desc + 12, flags);
            self.put(desc + 14, index + 1);
        };
        let written = if kind == READ { DEVICE_WRITES } else { 0 };
        part(head, header, 16, NEXT);
        part(head + 1, data, bytes as u32, NEXT | written);
        part(head + 2, header + 32, 1, DEVICE_WRITES);
        self.put(AVAIL + 4 + 2 * u64::from(self.avail % QUEUE), head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows what was submitted; kicks if the device asked for it.
    fn notify(&mut self) {
        let old = self.index(AVAIL + 2).swap(self.avail, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.index(USED + 4 + 8 * u64::from(QUEUE));
        // virtio 1.3 §2.7.10: the device wants a notification as soon as `event` is passed.
        let passed = self
            .avail
            .wrapping_sub(event.load(Ordering::Acquire))
            .wrapping_sub(1);
        if passed < self.avail.wrapping_sub(old) {
            // A full counter has already woken its reader.
            let _ = self.kick.write(1);
        }
    }

    /// Slots whose requests completed since the last call.
    fn reap(&mut self, finished: &mut [usize; 128]) -> Result<usize> {
        let mut count = 0;
        let end = self.index(USED + 2).load(Ordering::Acquire);
        while self.used != end && count < finished.len() {
            let at = USED + 4 + 8 * u64::from(self.used % QUEUE);
            let slot = usize::from(self.get::<u16>(at)) / 3;
            let status = self.get::<u8>(HEADERS + 64 * slot as u64 + 32);
            ensure!(status == 0, "a request ended with status {status}");
            finished[count] = slot;
            count += 1;
            self.used = self.used.wrapping_add(1);
        }
        Ok(count)
    }

    /// Sleeps until something completed; false if nothing did for that long.
    fn wait(&self, most: Duration) -> Result<bool> {
        // Interrupt me at the next one (VIRTIO_RING_F_EVENT_IDX).
        self.index(AVAIL + 4 + 2 * u64::from(QUEUE))
            .store(self.used, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.index(USED + 2).load(Ordering::Acquire) != self.used {
            return Ok(true);
        }
        // SAFETY: the descriptor is open as long as `self` is.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let mut fds = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
        let came = poll(&mut fds, Some(&Timespec::try_from(most)?))? > 0;
        let _ = self.call.read();
        Ok(came)
    }

    fn put<T>(&self, offset: u64, value: T) {
        let at = self.map.at(offset, size_of::<T>() as u64);
        // SAFETY: inside the mapping; unaligned stores are allowed by the call.
        at.map(|at| unsafe { at.cast::<T>().write_unaligned(value) })
            .expect("offsets are this file's own");
    }

    fn get<T>(&self, offset: u64) -> T {
        let at = self.map.at(offset, size_of::<T>() as u64);
        // SAFETY: inside the mapping; only plain integers are read.
        at.map(|at| unsafe { at.cast::<T>().read_unaligned() })
            .expect("offsets are this file's own")
    }

    fn index(&self, offset: u64) -> &AtomicU16 {
        let at = self.map.at(offset, 2).expect("offsets are this file's own");
        // SAFETY: inside the mapping, which lives as long as `self`, and even.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }
}
