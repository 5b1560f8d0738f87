//! Frames by the batch: one `io_uring_enter` reads or writes up to [`BATCH`] of them.
//!
//! ```text
//!  worker ─ READV or WRITEV, RWF_NOWAIT ─▶ submission queue ─ enter ─▶ tap, in line
//!                                                                       │
//!  worker ◀──────── results, in the order asked ◀── completion queue ◀──┘
//! ```
//! One ring serves all interfaces of the event thread; between two batches it is empty.
//! It is made disabled, restricted, then enabled: it can do nothing but read and write
//! registered files, and only [`TapRing::adopt`] can register one, which the event
//! thread's filter allows. No operation waits: a tap that has nothing or takes nothing
//! says so at once (`RWF_NOWAIT`), which also keeps its XDP programs native.

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Frames moved by one system call at most.
pub const BATCH: usize = 32;
/// Interfaces at most: one a slot of the bus.
const TAPS: usize = 31;
const BATCH_U32: u32 = 32;
/// `IORING_REGISTER_FILES_UPDATE`, all that may be registered once the ring is enabled.
pub(crate) const REGISTER_FILES_UPDATE: u8 = 6;

/// The ring and the places for taps in it.
pub struct TapRing {
    ring: IoUring,
    free: VecDeque<u32>,
}

/// Shared by the interfaces of one thread.
pub type SharedRing = Arc<Mutex<TapRing>>;

/// A tap's place in the ring, given back when dropped.
pub struct Place {
    ring: SharedRing,
    index: u32,
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the tap.
    Read,
    /// To the tap.
    Write,
}

impl TapRing {
    /// A ring for the thread that calls this, and no other.
    pub fn new() -> io::Result<SharedRing> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_submit_all()
            .build(BATCH_U32)?;
        let submitter = ring.submitter();
        submitter.register_files(&[-1; TAPS])?;
        let fixed = squeue::Flags::FIXED_FILE.bits();
        submitter.register_restrictions(&mut [
            Restriction::register_op(REGISTER_FILES_UPDATE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Arc::new(Mutex::new(Self {
            ring,
            free: (0..).take(TAPS).collect(),
        })))
    }

    /// Gives `tap` a place.
    pub fn adopt(shared: &SharedRing, tap: impl AsFd) -> io::Result<Place> {
        let mut ring = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || io::Error::other("there are too many interfaces");
        let index = *ring.free.front().ok_or_else(full)?;
        let fd = tap.as_fd().as_raw_fd();
        ring.ring.submitter().register_files_update(index, &[fd])?;
        ring.free.pop_front();
        Ok(Place {
            ring: Arc::clone(shared),
            index,
        })
    }

    /// Moves one frame a list of buffers; the results are bytes or negative errors.
    fn batch<'a>(
        &mut self,
        index: u32,
        way: Way,
        frames: impl Iterator<Item = &'a [libc::iovec]>,
        results: &mut [i32; BATCH],
    ) -> io::Result<()> {
        let mut count = 0;
        {
            let mut queue = self.ring.submission();
            for (number, buffers) in (0u64..).zip(frames.take(BATCH)) {
                let (at, len) = (buffers.as_ptr(), u32::try_from(buffers.len()).unwrap_or(0));
                let tap = types::Fixed(index);
                let entry = match way {
                    Way::Read => opcode::Readv::new(tap, at, len)
                        .rw_flags(libc::RWF_NOWAIT)
                        .build(),
                    Way::Write => opcode::Writev::new(tap, at, len)
                        .rw_flags(libc::RWF_NOWAIT)
                        .build(),
                };
                // SAFETY: the vectors were made by the queue's walk over guest memory that is
                // mapped for as long as the caller's queue exists, and the call below returns
                // only when all entries have completed. The guest may race with the kernel's
                // stores, as with a device's DMA; nobody looks at the bytes as Rust values.
                unsafe { queue.push(&entry.user_data(number)) }.map_err(io::Error::other)?;
                count += 1;
            }
        }
        results.fill(-libc::EIO);
        let mut left = count;
        while left > 0 {
            match self.ring.submit_and_wait(left) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
            for done in self.ring.completion() {
                left = left.saturating_sub(1);
                if let Some(result) = usize::try_from(done.user_data())
                    .ok()
                    .and_then(|number| results.get_mut(number))
                {
                    *result = done.result();
                }
            }
        }
        Ok(())
    }
}

impl Place {
    /// Moves one frame a list of buffers, [`BATCH`] at most, by one system call.
    pub fn batch<'a>(
        &self,
        way: Way,
        frames: impl Iterator<Item = &'a [libc::iovec]>,
        results: &mut [i32; BATCH],
    ) -> io::Result<()> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.batch(self.index, way, frames, results)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        match ring
            .ring
            .submitter()
            .register_files_update(self.index, &[-1])
        {
            Ok(_) => ring.free.push_back(self.index),
            Err(error) => tracing::error!(%error, "a tap's place in the ring is lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_does_nothing_but_read_and_write_registered_files() {
        let shared = TapRing::new().unwrap();
        let mut ring = shared.lock().unwrap();
        let file = tempfile::tempfile().unwrap();
        let fd = types::Fd(file.as_raw_fd());
        let byte = 0u8;
        let vector = libc::iovec {
            iov_base: (&raw const byte).cast_mut().cast(),
            iov_len: 1,
        };
        let path = c"/";
        for forbidden in [
            opcode::Nop::new().build(),
            opcode::Writev::new(fd, &raw const vector, 1).build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Fsync::new(types::Fixed(0)).build(),
        ] {
            // SAFETY: what the entry points to outlives its completion below.
            unsafe { ring.ring.submission().push(&forbidden).unwrap() };
            ring.ring.submit_and_wait(1).unwrap();
            let results: Vec<i32> = ring.ring.completion().map(|done| done.result()).collect();
            assert_eq!(results, [-libc::EACCES]);
        }
        assert!(ring.ring.submitter().register_files(&[-1]).is_err());
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}
