//! The dirty log: which pages of guest memory were written, for a frontend that migrates
//! (vhost-user, "Migration" and `VHOST_USER_SET_LOG_BASE`).
//!
//! ```text
//!  bit N of byte M: page 8 M + N of guest physical memory, 4,096 bytes each
//! ```
//! A page is marked after it was written and before the completion is shown, so that a frontend
//! that stops a queue and then reads the log misses nothing. What a chain gave to write is marked
//! whole, by walking it again: a log is rare, and the data path is not burdened with it.

use crate::memory::{Mapping, MemoryError, Trust};
use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

const PAGE_BYTES: u64 = 4096;

/// A frontend's log.
pub struct DirtyLog {
    map: Mapping,
    file: File,
    offset: u64,
    bytes: u64,
}

impl DirtyLog {
    /// Maps `bytes` of `file` at `offset`.
    pub fn new(file: &File, offset: u64, bytes: u64, trust: Trust) -> Result<Self, MemoryError> {
        let map = Mapping::new(file, offset, bytes, trust)?;
        let file = file.try_clone().map_err(|error| {
            let code = error.raw_os_error().unwrap_or(libc::EMFILE);
            MemoryError::Os(rustix::io::Errno::from_raw_os_error(code))
        })?;
        Ok(Self {
            map,
            file,
            offset,
            bytes,
        })
    }

    /// The file, where the log begins in it, and its length: for whoever serves on.
    pub fn parts(&self) -> (&File, u64, u64) {
        (&self.file, self.offset, self.bytes)
    }

    /// Marks `len` bytes at guest address `guest`; what lies beyond the log is the frontend's
    /// loss.
    pub fn mark(&self, guest: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|rest| guest.checked_add(rest)) else {
            return;
        };
        let last = (last / PAGE_BYTES).min(self.bytes.saturating_mul(8).saturating_sub(1));
        for page in guest / PAGE_BYTES..=last {
            let Some(byte) = self.map.at(page / 8, 1) else {
                return;
            };
            // SAFETY: one byte inside the mapping, which this log keeps; every process that shares
            // it uses atomic accesses, as the protocol demands.
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            let bit = 1 << (page % 8);
            if byte.load(Ordering::Relaxed) & bit == 0 {
                byte.fetch_or(bit, Ordering::Release);
            }
        }
    }
}

/// A queue's part in it.
#[derive(Clone)]
pub struct QueueLog {
    /// The log.
    pub log: std::sync::Arc<DirtyLog>,
    /// Guest address of the used ring, where the frontend wants that marked.
    pub used: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::sealed_memfd;

    #[test]
    fn every_touched_page_is_marked_and_none_beyond_the_log() {
        let file = sealed_memfd("log", 4096).unwrap();
        let log = DirtyLog::new(&file, 0, 4, Trust::SealedOnly);
        assert!(log.is_ok(), "any length is fine");
        let log = DirtyLog::new(&file, 0, 4096, Trust::SealedOnly).unwrap();
        let byte = |at: u64| {
            let mut byte = [0];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
            byte[0]
        };
        log.mark(4095, 2);
        assert_eq!(byte(0), 0b11);
        log.mark(4096 * 15, 4096);
        log.mark(4096 * 9 + 100, 4096);
        assert_eq!((byte(0), byte(1)), (0b11, 0b1000_0110));
        log.mark(4096 * 20, 0);
        assert_eq!(byte(2), 0);
        log.mark(4096 * 8 * 4095, u64::MAX / 2);
        assert_eq!(byte(4095), 0xff);
        log.mark(u64::MAX, 5);
        log.mark(4096 * 8 * 4096, 1);
    }
}
