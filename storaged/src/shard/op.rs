//! Operations on files and eventfds: as entries of the ring, or at once.

use super::Call;
use crate::disk::FileBacking;
use io_uring::{opcode, squeue, types};
use std::os::fd::AsRawFd;

/// An operation on the device's file.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// `preadv`.
    Readv(Vector),
    /// `pwritev`; durable on completion where `dsync`.
    Writev(Vector),
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate {
        /// `FALLOC_FL_…`.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// All of it must read as zeros; else it is advice (discard).
        must: bool,
    },
}

impl Op {
    /// Gives bytes back; they read as zeros.
    #[must_use]
    pub fn punch(offset: u64, len: u64, must: bool) -> Self {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        Self::Allocate {
            mode,
            offset,
            len,
            must,
        }
    }

    /// Makes bytes read as zeros and keeps their space.
    #[must_use]
    pub fn zero(offset: u64, len: u64) -> Self {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        Self::Allocate {
            mode,
            offset,
            len,
            must: true,
        }
    }
}

/// Where a transfer goes.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    /// Past the page cache.
    pub direct: bool,
    /// Durable on completion.
    pub dsync: bool,
    /// The pieces, valid until the operation completed.
    pub iov: *const libc::iovec,
    /// How many.
    pub count: u32,
    /// Offset in the file.
    pub offset: u64,
}

/// What is added to an eventfd.
static ONE: u64 = 1;

/// Adds one to an eventfd, by the ring.
pub fn signal(call: &Call) -> squeue::Entry {
    let fd = types::Fd(call.file.as_raw_fd());
    opcode::Write::new(fd, (&raw const ONE).cast(), 8).build()
}

/// Adds one to an eventfd at once.
pub fn signal_now(call: &Call) {
    // A full counter already wakes its reader.
    let _ = rustix::io::write(&call.file, &ONE.to_ne_bytes());
}

/// The descriptor that serves a transfer.
fn descriptor(file: &FileBacking, direct: bool) -> i32 {
    match &file.direct {
        Some(fd) if direct => fd.as_raw_fd(),
        _ => file.buffered.as_raw_fd(),
    }
}

/// `op` for the ring.
pub fn entry(op: &Op, file: &FileBacking) -> squeue::Entry {
    let fd = |v: &Vector| types::Fd(descriptor(file, v.direct));
    match op {
        Op::Readv(v) => opcode::Readv::new(fd(v), v.iov, v.count)
            .offset(v.offset)
            .build(),
        Op::Writev(v) => opcode::Writev::new(fd(v), v.iov, v.count)
            .offset(v.offset)
            .rw_flags(if v.dsync { libc::RWF_DSYNC } else { 0 })
            .build(),
        Op::Sync => opcode::Fsync::new(types::Fd(file.buffered.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Op::Allocate {
            mode, offset, len, ..
        } => opcode::Fallocate::new(types::Fd(file.buffered.as_raw_fd()), *len)
            .offset(*offset)
            .mode(*mode)
            .build(),
    }
}

/// `op` at once, by a system call; bytes or `-errno`.
pub fn run(op: &Op, file: &FileBacking) -> i32 {
    let fd = file.buffered.as_raw_fd();
    // SAFETY: the vectors point to live memory, as their slot's contract says.
    let result = unsafe {
        match *op {
            Op::Readv(v) => libc::preadv(fd, v.iov, v.count as i32, v.offset as i64),
            Op::Writev(v) => libc::pwritev(fd, v.iov, v.count as i32, v.offset as i64),
            Op::Sync => libc::fdatasync(fd) as isize,
            Op::Allocate {
                mode, offset, len, ..
            } => libc::fallocate(fd, mode, offset as i64, len as i64) as isize,
        }
    };
    if result < 0 {
        return -std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}
