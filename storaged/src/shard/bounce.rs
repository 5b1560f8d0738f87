//! Windows of memory through which encrypted volumes pass their bytes, and grains
//! those that are merged.

use std::io;

/// Bytes of a large window: a piece of a request, which never crosses a multiple of this.
pub const LARGE_BYTES: usize = crate::qos::PIECE_BYTES;
/// Bytes of a small one: a block.
const SMALL_BYTES: usize = crate::crypt::BLOCK_BYTES;
/// Some windows of either size: page-aligned, touched only as far as they are used.
pub struct Bounce {
    base: *mut u8,
    /// How many there are of the large ones, which come first, and of the small ones.
    counts: (u16, u16),
    large: Vec<u16>,
    small: Vec<u16>,
}

// SAFETY: the mapping belongs to this value, as a box's memory does.
unsafe impl Send for Bounce {}

impl Bounce {
    fn bytes((large, small): (u16, u16)) -> usize {
        LARGE_BYTES * usize::from(large) + SMALL_BYTES * usize::from(small)
    }

    /// No windows, for devices without encryption.
    #[must_use]
    pub fn none() -> Self {
        Self {
            base: std::ptr::null_mut(),
            counts: (0, 0),
            large: Vec::new(),
            small: Vec::new(),
        }
    }

    /// So many large and small windows, all free.
    pub fn new(large: u16, small: u16) -> io::Result<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        let bytes = Self::bytes((large, small));
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
            counts: (large, small),
            large: (0..large).collect(),
            small: (large..large + small).collect(),
        })
    }

    /// Takes a free window for that many bytes.
    pub fn take(&mut self, bytes: u64) -> Option<u16> {
        if bytes <= SMALL_BYTES as u64 {
            self.small.pop()
        } else {
            self.large.pop()
        }
    }

    /// Gives a window back.
    pub fn give(&mut self, window: u16) {
        if window < self.counts.0 {
            self.large.push(window);
        } else {
            self.small.push(window);
        }
    }

    /// A window's first byte, and how many it has.
    fn place(&self, window: u16) -> (usize, usize) {
        let n = usize::from(window);
        match n.checked_sub(usize::from(self.counts.0)) {
            None => (LARGE_BYTES * n, LARGE_BYTES),
            Some(n) => (
                LARGE_BYTES * usize::from(self.counts.0) + SMALL_BYTES * n,
                SMALL_BYTES,
            ),
        }
    }

    /// Address of a window that [`Self::take`] gave.
    #[must_use]
    pub fn at(&self, window: u16) -> *mut u8 {
        // SAFETY: windows given out are below the counts, inside the mapping.
        unsafe { self.base.add(self.place(window).0) }
    }

    /// The first `len` bytes of a window, while no operation of the kernel uses it.
    #[must_use]
    #[expect(
        clippy::mut_from_ref,
        reason = "a window has one owner, the slot that took it"
    )]
    pub fn slice(&self, window: u16, len: usize) -> &mut [u8] {
        let len = len.min(self.place(window).1);
        // SAFETY: inside the mapping; the slot that took the window is its only user.
        unsafe { std::slice::from_raw_parts_mut(self.at(window), len) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: the mapping made in `new`, which nothing uses any more: a
            // device is dropped only when none of its requests is in flight.
            let _ = unsafe { rustix::mm::munmap(self.base.cast(), Self::bytes(self.counts)) };
        }
    }
}
