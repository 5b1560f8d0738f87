//! The kernel's frame as a [`Packet`].

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use ocs_dataplane_shared::capture::{CAPTURE_BYTES, Captured};
use ocs_dataplane_shared::layout::{Direction, Front};
use ocs_dataplane_shared::packet::{HEAD_BYTES, Head, Packet};
use ocs_dataplane_shared::parse::{ETH_LEN, ETH_SOURCE, ETH_TYPE};

use crate::kernel_maps::CAPTURES;

/// A frame between `data` and `data_end`.
///
/// The verifier wants the very pointer that is used compared with `data_end`. The
/// compiler would compare one sum and use another that it knows to be equal, so
/// [`opaque`] hides from it how the pointer came to be.
pub struct Frame {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame of an XDP program's run.
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self {
            context: context.ctx,
            start: context.data(),
            end: context.data_end(),
        }
    }

    /// Moves the frame's start. All pointers into it end with this.
    #[inline(always)]
    fn move_start(&mut self, by: i32) -> Option<()> {
        // SAFETY: the context is the one that the kernel gave to this run.
        let moved = unsafe { bpf_xdp_adjust_head(self.context, by) };
        self.refresh(moved)
    }

    #[inline(always)]
    fn refresh(&mut self, result: i64) -> Option<()> {
        let context = XdpContext { ctx: self.context };
        self.start = context.data();
        self.end = context.data_end();
        if result == 0 { Some(()) } else { None }
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

    /// Writes the frame's first bytes, and what is to be said of it.
    ///
    /// # Safety
    ///
    /// `to` can be written.
    #[inline(always)]
    unsafe fn show(&self, to: *mut Captured, direction: Direction) {
        // Compared as a number: the verifier learns nothing from two pointers that differ.
        let length = opaque(self.end - self.start);
        let shown = length.min(CAPTURE_BYTES);
        // SAFETY: the caller vouches for `to`, whose `bytes` have room for `shown`; the
        // helpers read the frame and the clock.
        unsafe {
            (*to).time_ns = bpf_ktime_get_ns();
            (*to).length = length as u32;
            (*to).direction = direction as u32;
            (*to).reserved = 0;
            let copied = shown > 0
                && bpf_xdp_load_bytes(self.context, 0, (&raw mut (*to).bytes).cast(), shown as u32)
                    == 0;
            (*to).shown = if copied { shown as u32 } else { 0 };
        }
    }

    /// Writes eight bytes, as they lie in memory.
    #[inline(always)]
    pub fn store_u64(&mut self, at: usize, value: u64) -> Option<()> {
        self.store(at, value)
    }
}

/// Reads within bytes that [`Frame::at`] has checked.
#[inline(always)]
fn within<T: Copy, const BYTES: usize>(start: *mut [u8; BYTES], at: usize) -> T {
    debug_assert!(at + size_of::<T>() <= BYTES);
    // SAFETY: as in `Frame::load`.
    unsafe { *start.cast::<u8>().add(at).cast::<T>() }
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
    fn capture(&self, slot: u32, direction: Direction) {
        if let Some(ring) = CAPTURES.get(slot)
            && let Some(mut entry) = ring.reserve(0)
        {
            let captured = entry.as_mut_ptr();
            // SAFETY: `captured` is an entry's memory, which is ours until it is submitted.
            unsafe { self.show(captured, direction) };
            entry.submit(0);
        }
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
    fn load_u64(&self, at: usize) -> Option<u64> {
        self.load(at)
    }

    #[inline(always)]
    fn load_head(&self) -> Option<Head> {
        let start = self.at::<[u8; HEAD_BYTES]>(0)?;
        Some(Head {
            source_front: within(start, ETH_SOURCE),
            source_rest: within(start, ETH_SOURCE + 4),
            ether_type: within(start, ETH_TYPE),
            version: within(start, ETH_LEN),
            length: within(start, ETH_LEN + 2),
            id: within(start, ETH_LEN + 4),
            fragment: within(start, ETH_LEN + 6),
            ttl: within(start, ETH_LEN + 8),
            protocol: within(start, ETH_LEN + 9),
            source: within(start, ETH_LEN + 12),
            destination: within(start, ETH_LEN + 16),
        })
    }

    #[inline(always)]
    fn load_mac(&self, at: usize) -> Option<[u8; 6]> {
        let start = self.at::<[u8; 6]>(at)?;
        let [a, b, c, d] = within::<u32, 6>(start, 0).to_ne_bytes();
        let [e, f] = within::<u16, 6>(start, 4).to_ne_bytes();
        Some([a, b, c, d, e, f])
    }

    #[inline(always)]
    fn store_mac(&mut self, at: usize, mac: [u8; 6]) -> Option<()> {
        let start = self.at::<[u8; 6]>(at)?;
        let [a, b, c, d, e, f] = mac;
        // SAFETY: as in `store`.
        unsafe {
            *start.cast::<u32>() = u32::from_ne_bytes([a, b, c, d]);
            *start.cast::<u32>().add(1).cast::<u16>() = u16::from_ne_bytes([e, f]);
        }
        Some(())
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

    #[inline(always)]
    fn push(&mut self, bytes: usize) -> Option<()> {
        self.move_start(-(bytes as i32))
    }

    #[inline(always)]
    fn pull(&mut self, bytes: usize) -> Option<()> {
        self.move_start(bytes as i32)
    }

    #[inline(always)]
    fn wrap(&mut self, front: &Front, rest: u16) -> Option<()> {
        self.push(size_of::<Front>() + 2)?;
        // Compared once for all.
        let start = self.at::<[u8; size_of::<Front>() + 2]>(0)?;
        let words = start.cast::<u32>();
        for (index, word) in front.iter().enumerate() {
            // SAFETY: as in `store`; the words and the half lie within what `at` has checked.
            unsafe { *words.add(index) = *word };
        }
        // SAFETY: as above.
        unsafe { *words.add(front.len()).cast::<u16>() = rest };
        Some(())
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        let by = len as i32 - self.len() as i32;
        if by > 0 {
            return None;
        }
        // SAFETY: the context is the one that the kernel gave to this run.
        let cut = unsafe { bpf_xdp_adjust_tail(self.context, by) };
        self.refresh(cut)
    }
}
