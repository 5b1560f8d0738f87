//! An XDP program's frame as a [`Packet`].

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use ocs_dataplane_shared::capture::{CAPTURE_BYTES, Captured};
use ocs_dataplane_shared::layout::Direction;
use ocs_dataplane_shared::packet::{Head, Packet};
use ocs_dataplane_shared::vxlan::{OVERHEAD, Outer};

use crate::bytes::{Bytes, bytes_of_packet, opaque};
use crate::kernel_maps::CAPTURES;

/// An XDP program's frame.
pub struct Frame {
    context: *mut xdp_md,
    bytes: Bytes,
}

impl Frame {
    /// The frame of an XDP program's run.
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self {
            context: context.ctx,
            bytes: Bytes::between(context.data(), context.data_end()),
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
        self.bytes = Bytes::between(context.data(), context.data_end());
        if result == 0 { Some(()) } else { None }
    }

    /// Writes the frame's first bytes, and what is to be said of it.
    ///
    /// # Safety
    ///
    /// `to` can be written.
    #[inline(always)]
    unsafe fn show(&self, to: *mut Captured, direction: Direction) {
        // Compared as a number: the verifier learns nothing from two pointers that differ.
        let length = opaque(self.bytes.len());
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
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> usize {
        self.bytes.len()
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

    bytes_of_packet!();

    #[inline(always)]
    fn push(&mut self, bytes: usize) -> Option<()> {
        self.move_start(-(bytes as i32))
    }

    #[inline(always)]
    fn pull(&mut self, bytes: usize) -> Option<()> {
        self.move_start(bytes as i32)
    }

    #[inline(always)]
    fn wrap(&mut self, outer: &Outer<'_>) -> Option<()> {
        self.push(OVERHEAD)?;
        self.bytes.store_front(outer)
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
