//! Windows of memory through which encrypted volumes pass their bytes, and grains
//! those that are merged.

use std::io;

/// Bytes of one window: a piece of a request, which never crosses a multiple of this.
pub const WINDOW_BYTES: usize = crate::qos::PIECE_BYTES;
/// Windows of a device; a piece that finds none waits for its turn.
pub const WINDOWS: u16 = 32;

/// Some windows: page-aligned, touched only as far as they are used.
pub struct Bounce {
    base: *mut u8,
    count: u16,
    free: Vec<u16>,
}

// SAFETY: the mapping belongs to this value, as a box's memory does.
unsafe impl Send for Bounce {}

impl Bounce {
    fn bytes(&self) -> usize {
        WINDOW_BYTES * usize::from(self.count)
    }

    /// No windows, for devices without encryption.
    #[must_use]
    pub fn none() -> Self {
        Self {
            base: std::ptr::null_mut(),
            count: 0,
            free: Vec::new(),
        }
    }

    /// `count` windows, all free.
    pub fn new(count: u16) -> io::Result<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        let bytes = WINDOW_BYTES * usize::from(count);
        // SAFETY: a fresh anonymous mapping aliases nothing, and the advice touches
        // that mapping alone.
        let base = unsafe {
            let base = mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?;
            madvise(base, bytes, Advice::LinuxDontDump)?;
            base
        };
        Ok(Self {
            base: base.cast(),
            count,
            free: (0..count).collect(),
        })
    }

    /// Takes a free window.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Gives a window back.
    pub fn give(&mut self, window: u16) {
        self.free.push(window);
    }

    /// Address of a window that [`Self::take`] gave.
    #[must_use]
    pub fn at(&self, window: u16) -> *mut u8 {
        // SAFETY: windows given out are below `count`.
        unsafe { self.base.add(WINDOW_BYTES * usize::from(window)) }
    }

    /// The first `len` bytes of a window, while no operation of the kernel uses it.
    #[must_use]
    #[expect(
        clippy::mut_from_ref,
        reason = "a window has one owner, the slot that took it"
    )]
    pub fn slice(&self, window: u16, len: usize) -> &mut [u8] {
        let len = len.min(WINDOW_BYTES);
        // SAFETY: inside the mapping; the slot that took the window is its only user.
        unsafe { std::slice::from_raw_parts_mut(self.at(window), len) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: the mapping made in `new`, which nothing uses any more: a
            // device is dropped only when none of its requests is in flight.
            let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.bytes()) };
        }
    }
}
