//! Memory for secrets: locked, left out of core dumps, zeroized when dropped.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::ops::{Deref, DerefMut};
use zeroize::Zeroize;

/// A `T` in pages of its own that are never swapped, dumped or inherited.
pub struct Locked<T> {
    at: *mut T,
}

// SAFETY: `Locked<T>` owns its `T` as a box does.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as a box's, a shared reference only gives out `&T`.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    const BYTES: usize = size_of::<T>().next_multiple_of(4096);

    /// Moves `value` into locked memory.
    pub fn new(value: T) -> std::io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let at = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                Self::BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // SAFETY: the range is the mapping just made, and zeros until written.
        let guarded = unsafe {
            mlock(at, Self::BYTES)
                .and_then(|()| madvise(at, Self::BYTES, Advice::LinuxDontDump))
                .and_then(|()| madvise(at, Self::BYTES, Advice::LinuxWipeOnFork))
        };
        if let Err(error) = guarded {
            // SAFETY: the mapping just made, which nothing refers to.
            let _ = unsafe { munmap(at, Self::BYTES) };
            return Err(error.into());
        }
        let at = at.cast::<T>();
        // SAFETY: page-aligned, large enough, and ours.
        unsafe { at.write(value) };
        Ok(Self { at })
    }
}

/// Deeper than any function goes that handles a key.
const STACK_BYTES: usize = 16 * 1024;

/// Overwrites what functions that have returned to the caller left on the stack: values
/// that they moved from there are still in it.
#[inline(never)]
pub fn wipe_stack() {
    let mut below = [0u8; STACK_BYTES];
    below.zeroize();
    std::hint::black_box(&mut below);
}

impl<T> Deref for Locked<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: `at` holds a `T` from `new` to `drop`.
        unsafe { &*self.at }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `self` is borrowed uniquely.
        unsafe { &mut *self.at }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: dropped once; afterwards the pages are plain bytes of ours.
        unsafe {
            self.at.drop_in_place();
            std::slice::from_raw_parts_mut(self.at.cast::<u8>(), Self::BYTES).zeroize();
            let _ = munmap(self.at.cast(), Self::BYTES);
        }
    }
}
