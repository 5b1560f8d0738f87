//! The kernel's frame as a [`Packet`].

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use ocs_dataplane_shared::Packet;

/// A frame between `data` and `data_end`.
///
/// The verifier wants the very pointer that is used compared with `data_end`. The
/// compiler would compare one sum and use another that it knows to be equal, so
/// [`opaque`] hides from it how the pointer came to be.
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame of an XDP program's run.
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self {
            start: context.data(),
            end: context.data_end(),
        }
    }

    #[inline(always)]
    fn at<T>(&self, at: usize) -> Option<*mut T> {
        let pointer = opaque(self.start + at);
        if pointer + size_of::<T>() > self.end {
            return None;
        }
        Some(pointer as *mut T)
    }

    #[inline(always)]
    fn load<T: Copy>(&self, at: usize) -> Option<T> {
        // SAFETY: `at` has checked that the bytes are the frame's; `T` is an integer.
        // XDP programs are compiled for kernels that read any alignment, as the verifier
        // checks (BPF_F_ANY_ALIGNMENT is implied on x86-64).
        self.at::<T>(at).map(|pointer| unsafe { *pointer })
    }

    #[inline(always)]
    fn store<T: Copy>(&mut self, at: usize, value: T) -> Option<()> {
        let pointer = self.at::<T>(at)?;
        // SAFETY: as in `load`; the frame is this program's alone while it runs.
        unsafe { *pointer = value };
        Some(())
    }

    /// Writes eight bytes, as they lie in memory.
    #[inline(always)]
    pub fn store_u64(&mut self, at: usize, value: u64) -> Option<()> {
        self.store(at, value)
    }
}

/// The same value, of which the compiler knows nothing.
#[inline(always)]
fn opaque(mut value: usize) -> usize {
    // SAFETY: a register is copied to itself; memory, stack and all else stay as they are.
    // (Without an instruction two lines would claim the same place, which the kernel
    // refuses to load.)
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn load_u8(&self, at: usize) -> Option<u8> {
        self.load(at)
    }

    #[inline(always)]
    fn load_u16(&self, at: usize) -> Option<u16> {
        self.load(at)
    }

    #[inline(always)]
    fn load_u32(&self, at: usize) -> Option<u32> {
        self.load(at)
    }

    #[inline(always)]
    fn store_u8(&mut self, at: usize, value: u8) -> Option<()> {
        self.store(at, value)
    }

    #[inline(always)]
    fn store_u16(&mut self, at: usize, value: u16) -> Option<()> {
        self.store(at, value)
    }

    #[inline(always)]
    fn store_u32(&mut self, at: usize, value: u32) -> Option<()> {
        self.store(at, value)
    }
}
