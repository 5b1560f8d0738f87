//! Globals of a program with one thread.

use core::cell::RefCell;

/// A `RefCell` that may be a `static`.
pub struct Global<T>(RefCell<T>);

// SAFETY: the probe runs on one processor; ring 3, where all of the Rust runs, is never
// interrupted (its IF is 0), and the ring-0 stub touches no Rust data. So there is one
// thread, and `RefCell` guards against re-entry.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Runs `f` on the value; a nested call panics.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}
