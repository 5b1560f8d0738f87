//! A frame on an interface that leads to other hosts, or to the outside.
//!
//! ```text
//!  VXLAN for this host ── vxlan::unwrap ──┬─ to a NAT gateway ──▶ nat::out
//!                                         └─ to a port ─────────▶ deliver
//!  for a public address ── outside::enter ─┬────────────────────▶ deliver
//!                                          └─ by a NAT gateway ─▶ vxlan::send
//!  IPv6 that is not of another host ──▶ ipv6::outside
//!  all else ──▶ the host's own
//! ```

use crate::deliver::{self, Arrival, deliver};
use crate::judge::Asked;
use crate::layout::{OUTSIDE_SLOT, Reason, TRANSLATES, UPLINK_IPV6, UPLINK_SLOT};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{self, ETH_TYPE, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::{limit, nat, outside, vxlan};

/// Decides on a frame of the interface that leads to other hosts, and perhaps outside.
#[inline(always)]
pub fn receive(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Action {
    match decide(packet, maps) {
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            vxlan::count(maps, UPLINK_SLOT, reason);
            Action::Drop
        }
    }
}

/// Decides on a frame of an interface that leads outside alone.
#[inline(always)]
pub fn receive_outside(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Action {
    match outside::receive(packet, maps, OUTSIDE_SLOT) {
        Ok(Action::Pass) => {
            vxlan::count(maps, OUTSIDE_SLOT, Reason::NoEndpoint);
            Action::Drop
        }
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            vxlan::count(maps, OUTSIDE_SLOT, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn decide(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Result<Action, Reason> {
    if let Some(uplink) = maps.uplink(UPLINK_SLOT)
        && matches!(packet.load_u16(ETH_TYPE), Some(ETHERTYPE_IPV4))
        && let Some(outer) = parse::ipv4(packet)
        && vxlan::is_ours(packet, &outer, uplink)
    {
        return from_host(packet, maps, &outer);
    }
    outside::receive(packet, maps, UPLINK_SLOT)
}

#[inline(always)]
fn from_host(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    outer: &parse::Ipv4,
) -> Result<Action, Reason> {
    let (vni, ether_type) = vxlan::look_inside(packet, outer)?;
    match ether_type {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_IPV6 => {
            return Ok(Action::Stage {
                stage: UPLINK_IPV6,
                slot: UPLINK_SLOT,
            });
        }
        _ => return Err(Reason::EtherType),
    }
    let unwrapped = vxlan::unwrap(packet, maps, outer, vni)?;
    let ip = unwrapped.ip;
    let strict = !unwrapped.sender.forwards;
    let asked = Asked::read(packet, &ip, strict).ok_or(Reason::Malformed)?;
    let now = maps.now();
    if unwrapped.receiver.flags & TRANSLATES != 0 {
        return nat::out(
            packet,
            maps,
            unwrapped.receiver,
            &ip,
            &asked,
            UPLINK_SLOT,
            now,
        );
    }
    let arrival = Arrival {
        receiver: unwrapped.receiver,
        sender: unwrapped.sender.peer,
        crosses: deliver::crosses(unwrapped.receiver, ip.source),
        from: UPLINK_SLOT,
        policy: unwrapped.receiver.identity.set,
        may_begin: true,
    };
    deliver(packet, maps, &arrival, &ip, &asked, None, now)
}
