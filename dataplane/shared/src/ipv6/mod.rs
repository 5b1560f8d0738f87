//! IPv6 of networks, and from there out.
//!
//! ```text
//!  port ── EtherType ──▶ stage PORT_IPV6    parse ─┬─ neighbour  answered in place
//!                                                  ├─ service    to the responder
//!                                                  ├─ route ─ numbers ─▶ forward::by_way
//!                                                  └─ route ─▶ stage PORT_IPV6_OUT
//!                                                             numbers ─▶ forward::by_way
//!  uplink ─ VXLAN of IPv6 ─▶ stage UPLINK_IPV6  unwrap ─ numbers ─▶ deliver
//!         └ IPv6 ──────────▶ stage OUTSIDE_IPV6 outside ─ numbers ─▶ deliver
//! ```
//!
//! An address is looked up once, among those that the host knows, and from then on goes by
//! its *number*, which stands where an IPv4 address would: tracker, rules, network ACLs and
//! flow log are the very same code and maps for both. No number is an IPv4 address, since
//! an endpoint's lies in 0.0.0.0/8, and none is given to another address while 2^24 others
//! are left; that of an address outside is a hash with a secret, in 224.0.0.0/3.
//!
//! Programs of their own, called last, keep IPv4's as they are, and their stack theirs.

pub mod layout;
mod neighbour;
pub mod outside;
pub mod parse;
mod peer;
mod route;
pub(crate) mod service;
mod too_big;

use crate::deliver::{Arrival, deliver};
use crate::forward;
use crate::judge::{Asked, Peer};
use crate::layout::{Direction, PORT_IPV6_OUT, Reason, Tap, UPLINK_SLOT};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{self as frame, ETH_SOURCE, Ip};
use crate::verifier::blur;
use crate::{limit, too_long, vxlan};

use layout::{Address6, Endpoint, EndpointKey, Port};
use parse::Ipv6;

/// Goes on where [`crate::guest::receive`] said [`PORT_IPV6`](crate::layout::PORT_IPV6).
#[inline(always)]
pub fn receive(packet: &mut (impl Packet + ?Sized), maps: &impl Maps, ifindex: u32) -> Action {
    let Some(tap) = maps.tap(ifindex) else {
        return Action::Drop;
    };
    match decide(packet, maps, tap) {
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            maps.count(tap.slot, Direction::Egress, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn decide(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
) -> Result<Action, Reason> {
    let own = maps.port_ipv6(tap.slot).ok_or(Reason::EtherType)?;
    let ip = parse::ipv6(packet).ok_or(Reason::Malformed)?;
    if service::is_for_service(&ip) {
        return service::to_responder(packet, maps, tap, own, &ip);
    }
    if neighbour::is_for_link(packet, &ip) {
        return neighbour::answer(packet, maps, tap, own, &ip);
    }
    from_port(packet, maps, tap, own, &ip)
}

#[inline(always)]
fn from_port(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    own: &Port,
    ip: &Ipv6,
) -> Result<Action, Reason> {
    let sender = own_endpoint(maps, tap, &ip.source).ok_or(Reason::Spoofed)?;
    if too_long::is(packet, tap) {
        return too_big::answer(packet, maps, tap, ip);
    }
    let Some(found) = route::find(maps, tap, own, ip)? else {
        return Ok(Action::Stage {
            stage: PORT_IPV6_OUT,
            slot: tap.slot,
        });
    };
    let sender = Peer {
        address: sender.number,
        identity: sender.is.identity,
        scope: 0,
    };
    let ip = ip.numbered(sender.address, found.number);
    forward::by_way(packet, maps, tap, &ip, sender, found.way, maps.now())
}

/// Goes on where [`crate::uplink::receive`] said [`UPLINK_IPV6`](crate::layout::UPLINK_IPV6).
#[inline(always)]
pub fn receive_uplink(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Action {
    match from_host(packet, maps) {
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            vxlan::count(maps, UPLINK_SLOT, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn from_host(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Result<Action, Reason> {
    let outer = frame::ipv4(packet).ok_or(Reason::Malformed)?;
    let (vni, _) = vxlan::look_inside(packet, &outer)?;
    packet.pull(vxlan::OVERHEAD).ok_or(Reason::Malformed)?;
    let to = packet.load_mac(0).ok_or(Reason::Malformed)?;
    let ip = parse::ipv6(packet).ok_or(Reason::Malformed)?;
    let sender = endpoint(maps, vni, &ip.source)
        .filter(|endpoint| endpoint.is.host == outer.source)
        .ok_or(Reason::OuterSource)?;
    let receiver = endpoint(maps, vni, &ip.destination)
        .filter(|endpoint| endpoint.is.host == 0 && endpoint.is.mac == to)
        .ok_or(Reason::NoEndpoint)?;
    let arrival = Arrival {
        receiver: &receiver.is,
        sender: Peer {
            address: sender.number,
            identity: sender.is.identity,
            scope: 0,
        },
        crosses: enters(maps, receiver, &ip.source),
        from: UPLINK_SLOT,
        policy: receiver.is.identity.set,
        may_begin: true,
    };
    let ip = ip.numbered(sender.number, receiver.number);
    let asked = Asked::read(packet, &ip, true).ok_or(Reason::Malformed)?;
    deliver(packet, maps, &arrival, &ip, &asked, None, maps.now())
}

#[inline(always)]
fn endpoint<'a>(maps: &'a impl Maps, vni: u32, address: &Address6) -> Option<&'a Endpoint> {
    maps.endpoint_ipv6(&EndpointKey {
        vni,
        address: *address,
    })
}

/// What the port itself is at an address. `None`: the address isn't the port's.
#[inline(always)]
fn own_endpoint<'a>(maps: &'a impl Maps, tap: &Tap, address: &Address6) -> Option<&'a Endpoint> {
    endpoint(maps, tap.vni, address).filter(|endpoint| endpoint.is.slot == tap.slot)
}

/// Whether an address is beyond the subnet of a receiver here.
#[inline(always)]
fn enters(maps: &impl Maps, receiver: &Endpoint, source: &Address6) -> bool {
    let far = maps
        .port_ipv6(receiver.is.slot)
        .is_none_or(|port| !port.is_near(source));
    blur(u8::from(far), u64::from(source[3])) != 0
}

/// Takes one hop.
#[inline(always)]
pub(crate) fn decrement_hop_limit(packet: &mut (impl Packet + ?Sized), ip: &Ip) -> Option<()> {
    packet.store_u8(parse::HOP_LIMIT, ip.ttl.wrapping_sub(1))
}

/// Ethernet addresses of a frame that a port gets from its router.
#[inline(always)]
fn store_ethernet(packet: &mut (impl Packet + ?Sized), to: [u8; 6], from: [u8; 6]) -> Option<()> {
    packet.store_mac(0, to)?;
    packet.store_mac(ETH_SOURCE, from)
}
