//! Counts what happens to devices, and wakes whoever waits for it.

use crate::error::Result;
use crate::irq::{borrow, new_event};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// Devices and drivers that came and went.
pub struct Changes {
    count: AtomicU64,
    event: EventFd,
}

impl Changes {
    /// None yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            count: AtomicU64::new(0),
            event: new_event()?,
        })
    }

    /// There was one, and what it changed can be seen or will be, under the lock that the caller
    /// holds.
    pub fn note(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // A full counter already means "signalled".
        let _ = self.event.write(1);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Takes the signal that there were some.
    pub fn take_signal(&self) {
        // Without one there is nothing to take.
        let _ = self.event.read();
    }
}

impl AsFd for Changes {
    /// Readable when there were some.
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.event)
    }
}
