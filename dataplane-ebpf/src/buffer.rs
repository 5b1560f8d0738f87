//! A socket buffer as a [`Packet`]: what a guest leaves to us to finish stays known of it.
//!
//! Its checksum may be missing, and it may be longer than any frame, to be cut into
//! segments; the kernel does both where the receiver cannot. Only its first bytes lie
//! between `data` and `data_end`.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use ocs_dataplane_shared::capture::{CAPTURE_BYTES, Captured};
use ocs_dataplane_shared::checksum::Delta;
use ocs_dataplane_shared::layout::Direction;
use ocs_dataplane_shared::packet::{Head, Packet};
use ocs_dataplane_shared::parse::{ETH_LEN, ETH_SOURCE, ETH_TYPE, ETHERTYPE_IPV6, TCP};
use ocs_dataplane_shared::verifier::forget_number as forget;
use ocs_dataplane_shared::vxlan::{OVERHEAD, Outer};

use crate::bytes::{Bytes, bytes_of_packet, opaque};
use crate::kernel_maps::CAPTURES;

/// The longest headers that are looked at: those that an ICMP error quotes behind its own; of
/// IPv4 with options, of IPv6 with a fragment header.
const LOOKED_AT: usize = ETH_LEN + 40 + 8 + 40 + 8 + 8;
const LOOKED_AT_IPV4: usize = ETH_LEN + 20 + 8 + 60 + 8;
const _: () = assert!(LOOKED_AT >= LOOKED_AT_IPV4);

/// A traffic classifier's frame.
pub struct Buffer {
    context: *mut __sk_buff,
    bytes: Bytes,
    /// Segments that it becomes.
    segments: u64,
    /// Length of the longest.
    segment_len: u64,
    /// Length of all.
    segments_len: u64,
}

impl Buffer {
    /// The frame of a run.
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        let len = u64::from(context.len());
        let mut buffer = Self {
            context: context.skb.skb,
            bytes: Bytes::between(context.data(), context.data_end()),
            segments: 1,
            segment_len: len,
            segments_len: len,
        };
        let wanted = (len as usize).min(LOOKED_AT);
        if opaque(buffer.bytes.len()) < wanted {
            // SAFETY: the context is the one that the kernel gave to this run.
            let pulled = unsafe { bpf_skb_pull_data(buffer.context, wanted as u32) };
            // If that fails what is missing cannot be read.
            let _short = buffer.refresh(pulled);
        }
        buffer.measure(len);
        // Whichever way it went, the verifier goes on with the same from here.
        let _same = buffer.refresh(0);
        for number in [
            &mut buffer.segments,
            &mut buffer.segment_len,
            &mut buffer.segments_len,
        ] {
            *number = forget(*number, len);
        }
        buffer
    }

    /// Finds what it is to be cut into.
    #[inline(always)]
    fn measure(&mut self, len: u64) {
        // SAFETY: the context is the one that the kernel gave to this run.
        let payload = unsafe { u64::from((*self.context).gso_size) };
        if payload == 0 {
            return;
        }
        let headers = self.headers();
        self.segments = len.saturating_sub(headers).div_ceil(payload).max(1);
        self.segment_len = headers + payload;
        self.segments_len = len + (self.segments - 1) * headers;
    }

    #[inline(always)]
    fn refresh(&mut self, result: i64) -> Option<()> {
        let context = TcContext::new(self.context);
        self.bytes = Bytes::between(context.data(), context.data_end());
        if result == 0 { Some(()) } else { None }
    }

    /// Bytes of headers that each segment has.
    #[inline(always)]
    fn headers(&self) -> u64 {
        let (protocol_at, transport_at) = match self.bytes.load(ETH_TYPE) {
            Some(ETHERTYPE_IPV6) => (ETH_LEN + 6, ETH_LEN + 40),
            _ => (ETH_LEN + 9, ETH_LEN + 20),
        };
        let protocol: u8 = self.bytes.load(protocol_at).unwrap_or(0);
        let transport = match self.bytes.load::<u8>(transport_at + 12) {
            Some(offset) if protocol == TCP => u64::from(offset >> 4) * 4,
            _ => 8,
        };
        transport_at as u64 + transport
    }

    /// Writes the frame's first bytes, and what is to be said of it.
    ///
    /// # Safety
    ///
    /// `to` can be written.
    #[inline(always)]
    unsafe fn show(&self, to: *mut Captured, direction: Direction) {
        let length = self.len();
        let shown = length.min(CAPTURE_BYTES);
        // SAFETY: the caller vouches for `to`, whose `bytes` have room for `shown`; the
        // helpers read the frame and the clock.
        unsafe {
            (*to).time_ns = bpf_ktime_get_ns();
            (*to).length = length as u32;
            (*to).direction = direction as u32;
            (*to).reserved = 0;
            let context = self.context.cast();
            let bytes = (&raw mut (*to).bytes).cast();
            let copied = shown > 0 && bpf_skb_load_bytes(context, 0, bytes, shown as u32) == 0;
            (*to).shown = if copied { shown as u32 } else { 0 };
        }
    }

    /// Changes a checksum unless it is left to others: then only what addresses add to it,
    /// which is there already.
    #[inline(always)]
    fn replace(&mut self, at: usize, delta: Delta, addresses: bool, flags: u32) -> Option<()> {
        let flags = u64::from(flags | if addresses { BPF_F_PSEUDO_HDR } else { 0 });
        let sum = u64::from(delta.sum());
        // SAFETY: the context is the one that the kernel gave to this run.
        let done = unsafe { bpf_l4_csum_replace(self.context, at as u32, 0, sum, flags) };
        self.refresh(done)
    }
}

impl Packet for Buffer {
    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is the one that the kernel gave to this run.
        unsafe { (*self.context).len as usize }
    }

    #[inline(always)]
    fn segments(&self) -> u64 {
        self.segments
    }

    #[inline(always)]
    fn segment_len(&self) -> usize {
        self.segment_len as usize
    }

    #[inline(always)]
    fn segments_len(&self) -> u64 {
        self.segments_len
    }

    #[inline(always)]
    fn may_be_unfinished(&self) -> bool {
        true
    }

    #[inline(always)]
    fn change_checksum(&mut self, at: usize, delta: Delta, addresses: bool) -> Option<()> {
        self.replace(at, delta, addresses, 0)
    }

    #[inline(always)]
    fn change_udp_checksum(&mut self, at: usize, delta: Delta, addresses: bool) -> Option<()> {
        self.replace(at, delta, addresses, BPF_F_MARK_MANGLED_0)
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
        // SAFETY: the context is the one that the kernel gave to this run.
        let pushed = unsafe { bpf_skb_change_head(self.context, bytes as u32, 0) };
        self.refresh(pushed)
    }

    #[inline(always)]
    fn wrap(&mut self, outer: &Outer<'_>) -> Option<()> {
        const WRAPPED_AT: usize = OVERHEAD;
        let to = self.bytes.load_mac(0)?;
        let by = self.bytes.load_mac(ETH_SOURCE)?;
        let ether_type: u16 = self.bytes.load(ETH_TYPE)?;
        // Room between Ethernet's header and IP's, which becomes known as what is wrapped,
        // behind an Ethernet header of its own: so the kernel can cut it into segments, and
        // finish the checksum of each, whose length already leaves room for all this.
        // SAFETY: the context is the one that the kernel gave to this run.
        let made = unsafe {
            bpf_skb_adjust_room(
                self.context,
                WRAPPED_AT as i32,
                BPF_ADJ_ROOM_MAC,
                u64::from(
                    BPF_F_ADJ_ROOM_FIXED_GSO
                        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
                        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
                        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
                ) | (ETH_LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT,
            )
        };
        self.refresh(made)?;
        self.bytes.store_front(outer)?;
        self.bytes.store_mac(WRAPPED_AT, to)?;
        self.bytes.store_mac(WRAPPED_AT + ETH_SOURCE, by)?;
        self.bytes.store(WRAPPED_AT + ETH_TYPE, ether_type)
    }

    // Nothing that a guest sends is unwrapped.
    #[inline(always)]
    fn pull(&mut self, _bytes: usize) -> Option<()> {
        None
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        // SAFETY: the context is the one that the kernel gave to this run.
        let cut = unsafe { bpf_skb_change_tail(self.context, len as u32, 0) };
        self.refresh(cut)
    }
}
