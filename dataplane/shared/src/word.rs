//! A 64-bit word that CPUs share: an atomic that compiles for BPF.
//!
//! The instruction set has compare-and-swap since version 3 and single-copy atomic loads
//! and stores always (RFC 9669 §5.3), but rustc's BPF targets hide the former and LLVM's
//! back end cannot select the latter. There, and only there, an intrinsic and volatile
//! accesses stand in for the methods.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering;

/// A word shared by CPUs. Loads and stores are relaxed; exchanges are full barriers.
#[repr(transparent)]
#[derive(Debug, Default)]
pub(crate) struct Word(AtomicU64);

impl Word {
    pub(crate) const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Word {
    pub(crate) fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Replaces `old` by `new`; whether it was there.
    pub(crate) fn replace(&self, old: u64, new: u64) -> bool {
        self.0
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Adds; whatever others add meanwhile is added, too.
    pub(crate) fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
}

#[cfg(target_arch = "bpf")]
impl Word {
    #[inline(always)]
    pub(crate) fn load(&self) -> u64 {
        // SAFETY: the pointer is to a live, aligned word; an aligned 64-bit access is one
        // access.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store(&self, value: u64) {
        // SAFETY: as in `load`; every other access is as single.
        unsafe { self.0.as_ptr().write_volatile(value) }
    }

    /// Replaces `old` by `new`; whether it was there.
    #[inline(always)]
    pub(crate) fn replace(&self, old: u64, new: u64) -> bool {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        // SAFETY: as in `load`.
        let (_, done) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.0.as_ptr(),
                old,
                new,
            )
        };
        done
    }

    /// Adds; whatever others add meanwhile is added, too.
    #[inline(always)]
    pub(crate) fn add(&self, value: u64) {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        // SAFETY: as in `load`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.as_ptr(), value) };
    }
}
