//! The inflight region: which requests the backend had begun (vhost-user,
//! "Inflight I/O tracking").
//!
//! The backend makes it, we keep it, and a restarted backend gets it back with the
//! same size and offset. It may be larger than the queue needs: what lies behind the
//! queue's part is the backend's own and is never touched here.

use super::QUEUE_SIZE;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use vhost::vhost_user::message::VhostUserInflight;

/// Header and one 16-byte entry a descriptor (`QueueRegionSplit`, `DescStateSplit`).
const QUEUE_BYTES: u64 = 16 + 16 * QUEUE_SIZE as u64;
/// From the beginning of one queue's part to that of the next, as backends lay them out.
const QUEUE_STRIDE: u64 = QUEUE_BYTES.next_multiple_of(64);
/// No backend needs more.
const MAX_BYTES: u64 = 16 << 20;

/// The region.
pub struct Inflight {
    /// Size, offset and queue dimensions as the backend stated them.
    pub info: VhostUserInflight,
    file: File,
}

impl Inflight {
    /// What to ask a new backend for.
    pub fn wanted(queues: u16) -> VhostUserInflight {
        VhostUserInflight::new(0, 0, queues, QUEUE_SIZE)
    }

    /// Checks and keeps what it made.
    pub fn new(info: VhostUserInflight, file: File) -> io::Result<Self> {
        let end = info.mmap_offset.saturating_add(info.mmap_size);
        let len = file.metadata()?.len();
        let others = u64::from(info.num_queues.saturating_sub(1));
        let least = QUEUE_STRIDE * others + QUEUE_BYTES;
        if !(least..=MAX_BYTES).contains(&info.mmap_size) || end > len {
            return Err(io::Error::other(format!(
                "an inflight region of {} bytes at {} in a file of {len} cannot hold {} queues of {QUEUE_SIZE}",
                info.mmap_size, info.mmap_offset, info.num_queues
            )));
        }
        Ok(Self { info, file })
    }

    /// A second handle of it.
    pub fn share(&self) -> io::Result<(VhostUserInflight, OwnedFd)> {
        Ok((self.info, self.file.try_clone()?.into()))
    }

    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Forgets all requests: the driver reset the device and will not look for them.
    pub fn clear(&self) -> io::Result<()> {
        const ZEROS: [u8; QUEUE_BYTES as usize] = [0; QUEUE_BYTES as usize];
        for queue in 0..u64::from(self.info.num_queues) {
            let at = self.info.mmap_offset + queue * QUEUE_STRIDE;
            self.file.write_all_at(&ZEROS, at)?;
        }
        Ok(())
    }
}
