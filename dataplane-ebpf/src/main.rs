//! The XDP programs: they hand the kernel's packet and maps to `ocs-dataplane-shared`,
//! which decides.
//!
//! ```text
//!  tap     ──▶ port ──┬─▶ DEVICES[slot]  another guest's tap
//!                     ├─▶ DEVICES[0]     svc0, to the responder
//!                     ├─▶ DEVICES[1]     to another host
//!                     ├─▶ DEVICES[2]     to the outside
//!                     ├─▶ back           ARP, ICMP about what is too long
//!                     └─▶ port_ipv6 ─┬─▶ as above
//!                                    └─▶ port_ipv6_out ──▶ DEVICES[2]
//!  svc0    ──▶ svc  ────▶ DEVICES[slot]  the guest that asked
//!  svc1    ──▶ pass                      makes the veth pair deliver redirected frames
//!  tap     ──▶ port_buffer ──┬─▶ INTERFACES[slot], or by onward to another host
//!                            └─▶ port_ipv6_buffer, port_ipv6_out_buffer ──▶ as above
//!  uplink  ──▶ uplink ──┬▶ DEVICES[slot]
//!                       ├▶ uplink_ipv6 ──▶ DEVICES[slot]
//!                       └▶ the host's own
//!                       ├▶ outside_ipv6 ─▶ DEVICES[slot], back, or the host's own
//!  outside ──▶ outside ──┬▶ DEVICES[slot]
//!                        └▶ outside_ipv6 ─▶ DEVICES[slot], or back
//! ```
//!
//! Whatever is not sent on is dropped: no frame of a guest reaches a network stack.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod buffer;
mod bytes;
mod frame;
mod kernel_maps;

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use ocs_dataplane_shared::layout::{
    Direction, OUTSIDE_IPV6, OUTSIDE_SLOT, Reason, TRANSLATE, UPLINK_SLOT,
};
use ocs_dataplane_shared::{Action, Maps, Packet, guest, ipv6, responder, uplink as from_uplink};

use buffer::Buffer;
use frame::Frame;
use kernel_maps::{BUFFER_STAGES, DEVICES, INTERFACES, KernelMaps, STAGES};

/// On each tap: frames from the guest.
#[xdp]
#[inline(always)]
pub fn port(context: XdpContext) -> u32 {
    let ifindex = context.ingress_ifindex() as u32;
    let action = guest::receive(&mut Frame::new(&context), &KernelMaps, ifindex);
    go_on(&context, action);
    carry_out(action)
}

/// On a tap whose guest may leave checksums and segmentation to us: `port`'s twin, which
/// keeps what is known of a frame.
#[classifier]
#[inline(always)]
pub fn port_buffer(context: TcContext) -> i32 {
    let ifindex = interface(&context);
    let action = guest::receive(&mut Buffer::new(&context), &KernelMaps, ifindex);
    go_on_buffer(&context, action);
    carry_out_buffer(&context, action)
}

/// `translate`'s twin.
#[classifier]
#[inline(always)]
pub fn translate_buffer(context: TcContext) -> i32 {
    let ifindex = interface(&context);
    let action = guest::translate(&mut Buffer::new(&context), &KernelMaps, ifindex);
    carry_out_buffer(&context, action)
}

/// `port_ipv6`'s twin.
#[classifier]
#[inline(always)]
pub fn port_ipv6_buffer(context: TcContext) -> i32 {
    let ifindex = interface(&context);
    let action = ipv6::receive(&mut Buffer::new(&context), &KernelMaps, ifindex);
    go_on_buffer(&context, action);
    carry_out_buffer(&context, action)
}

/// `port_ipv6_out`'s twin.
#[classifier]
#[inline(always)]
pub fn port_ipv6_out_buffer(context: TcContext) -> i32 {
    let ifindex = interface(&context);
    let action = ipv6::outside::send(&mut Buffer::new(&context), &KernelMaps, ifindex);
    carry_out_buffer(&context, action)
}

/// On the uplink's end of a pair of which the other is among the taps: to the uplink, which a
/// classifier there cannot reach.
#[classifier]
pub fn onward(_context: TcContext) -> i32 {
    match KernelMaps.uplink(UPLINK_SLOT) {
        // SAFETY: the helper takes numbers alone.
        Some(uplink) => unsafe { bpf_redirect(uplink.ifindex, 0) as i32 },
        None => TC_ACT_SHOT as i32,
    }
}

/// Where `port` goes on to with what a NAT gateway of this host sends: a program of its
/// own, since a program's stack is small.
#[xdp]
#[inline(always)]
pub fn translate(context: XdpContext) -> u32 {
    let ifindex = context.ingress_ifindex() as u32;
    let action = guest::translate(&mut Frame::new(&context), &KernelMaps, ifindex);
    carry_out(action)
}

/// Where `port` goes on to with IPv6.
#[xdp]
#[inline(always)]
pub fn port_ipv6(context: XdpContext) -> u32 {
    let ifindex = context.ingress_ifindex() as u32;
    let action = ipv6::receive(&mut Frame::new(&context), &KernelMaps, ifindex);
    go_on(&context, action);
    carry_out(action)
}

/// Where `port_ipv6` goes on to with what leaves the host.
#[xdp]
#[inline(always)]
pub fn port_ipv6_out(context: XdpContext) -> u32 {
    let ifindex = context.ingress_ifindex() as u32;
    let action = ipv6::outside::send(&mut Frame::new(&context), &KernelMaps, ifindex);
    carry_out(action)
}

/// Where `uplink` goes on to with IPv6.
#[xdp]
#[inline(always)]
pub fn uplink_ipv6(context: XdpContext) -> u32 {
    let action = ipv6::receive_uplink(&mut Frame::new(&context), &KernelMaps);
    carry_out(action)
}

/// On `svc0`: frames from the responder.
#[xdp]
#[inline(always)]
pub fn svc(context: XdpContext) -> u32 {
    let action = responder::receive(&mut Frame::new(&context), &KernelMaps);
    carry_out(action)
}

/// On the interface that leads to other hosts, and perhaps to the outside. What is neither
/// another host's frame nor for a public address is the host's own.
#[xdp]
#[inline(always)]
pub fn uplink(context: XdpContext) -> u32 {
    let action = from_uplink::receive(&mut Frame::new(&context), &KernelMaps);
    go_on(&context, action);
    carry_out(action)
}

/// On an interface that leads to the outside alone.
#[xdp]
#[inline(always)]
pub fn outside(context: XdpContext) -> u32 {
    let action = from_uplink::receive_outside(&mut Frame::new(&context), &KernelMaps);
    go_on(&context, action);
    carry_out(action)
}

/// Where `uplink` and `outside` go on to with IPv6 of the outside.
#[xdp]
#[inline(always)]
pub fn outside_ipv6(context: XdpContext) -> u32 {
    let action = ipv6::outside::receive(&mut Frame::new(&context), &KernelMaps);
    carry_out(action)
}

/// On `svc1`: a veth takes redirected frames only while its peer runs a program.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    XDP_PASS
}

/// Writes the jiffies to the first eight bytes, for the loader to find their rate.
#[xdp]
pub fn clock(context: XdpContext) -> u32 {
    // SAFETY: the helper takes no arguments and only reads a counter.
    let now = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    match Frame::new(&context).store_u64(0, now) {
        Some(()) => XDP_PASS,
        None => XDP_ABORTED,
    }
}

/// Goes on in another program if that is the action, and returns if it is not there.
#[inline(always)]
fn go_on(context: &XdpContext, action: Action) {
    if let Action::Stage { stage, slot } = action {
        // SAFETY: the index is in bounds, and the map holds programs of this kind.
        let _absent = unsafe { STAGES.tail_call(context, stage) };
        if stage != TRANSLATE && !is_hosts_own(action) {
            KernelMaps.count(slot, Direction::Egress, Reason::EtherType);
        }
    }
}

/// [`go_on`] of socket buffers.
#[inline(always)]
fn go_on_buffer(context: &TcContext, action: Action) {
    if let Action::Stage { stage, slot } = action {
        // SAFETY: the index is in bounds, and the map holds programs of this kind.
        let _absent = unsafe { BUFFER_STAGES.tail_call(context, stage) };
        if stage != TRANSLATE {
            KernelMaps.count(slot, Direction::Egress, Reason::EtherType);
        }
    }
}

/// Whether a frame that no program is there for is the host's own: IPv6 on the uplink.
#[inline(always)]
fn is_hosts_own(action: Action) -> bool {
    matches!(action, Action::Stage { stage: OUTSIDE_IPV6, slot } if slot != OUTSIDE_SLOT)
}

#[inline(always)]
fn carry_out(action: Action) -> u32 {
    match action {
        Action::Stage { .. } if is_hosts_own(action) => XDP_PASS,
        // A stage is no end: the program is not there.
        Action::Drop | Action::Stage { .. } => XDP_DROP,
        Action::Pass => XDP_PASS,
        Action::Bounce => XDP_TX,
        Action::Redirect { slot, from } => {
            if DEVICES.redirect(slot, 0).is_err() {
                KernelMaps.count(from, Direction::Egress, Reason::NoDevice);
                return XDP_DROP;
            }
            KernelMaps.count(from, Direction::Egress, Reason::Forwarded);
            KernelMaps.count(slot, Direction::Ingress, Reason::Forwarded);
            XDP_REDIRECT
        }
    }
}

#[inline(always)]
fn interface(context: &TcContext) -> u32 {
    // SAFETY: the context is the one that the kernel gave to this run.
    unsafe { (*context.skb.skb).ifindex }
}

#[inline(always)]
fn carry_out_buffer(context: &TcContext, action: Action) -> i32 {
    match action {
        Action::Drop | Action::Stage { .. } | Action::Pass => TC_ACT_SHOT as i32,
        // SAFETY: the helper takes numbers alone.
        Action::Bounce => unsafe { bpf_redirect(interface(context), 0) as i32 },
        Action::Redirect { slot, from } => {
            let ifindex = INTERFACES.get(slot).copied().unwrap_or(0);
            if ifindex == 0 {
                KernelMaps.count(from, Direction::Egress, Reason::NoDevice);
                return TC_ACT_SHOT as i32;
            }
            KernelMaps.count(from, Direction::Egress, Reason::Forwarded);
            KernelMaps.count(slot, Direction::Ingress, Reason::Forwarded);
            let onward = INTERFACES.get(UPLINK_SLOT).copied() == Some(ifindex);
            // SAFETY: the helpers take numbers alone.
            unsafe {
                if onward {
                    bpf_redirect_peer(ifindex, 0) as i32
                } else {
                    bpf_redirect(ifindex, 0) as i32
                }
            }
        }
    }
}

/// The licence that the kernel asks for before it lends its helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
