//! To and from the outside: as it is, since each address is its own everywhere.
//!
//! ```text
//!  port ── route ─┬ ROUTE_OUTSIDE ─────┬─ ACL, tracker, rules ──▶ next hop outside
//!                 └ ROUTE_EGRESS_ONLY ─┘
//!  outside ── solicitation for an address of this host ──▶ answered in place
//!          ── to one ── its table's route to the source ─┬ ROUTE_OUTSIDE ───▶ deliver
//!                                                        ├ ROUTE_EGRESS_ONLY: what is tracked
//!                                                        └ no such: dropped
//!          ── all else ──▶ the host's own
//! ```
//!
//! Nothing but an address in `PUBLICS_IPV6` is let in or answered for.

use super::layout::{Address6, SERVICES, stranger};
use super::neighbour::{
    MESSAGE, NO_HOPS, OVERRIDE, SOLICITATION, SOLICITED, TARGET, UNSPECIFIED, advertise,
    is_link_local, is_many,
};
use super::parse::{self, Ipv6, load_address};
use super::peer::{self, Known};
use super::{decrement_hop_limit, endpoint, own_endpoint, route};
use crate::deliver::{Arrival, deliver};
use crate::judge::{Asked, Peer};
use crate::layout::{
    Address, Direction, OUTSIDE_IPV6, OUTSIDE_SLOT, ROUTE_EGRESS_ONLY, ROUTE_OUTSIDE, Reason, Tap,
    UPLINK_SLOT,
};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_SOURCE, ICMPV6, Part};
use crate::route::Way;
use crate::verifier::{blur, forget_number};
use crate::{forward, limit, vxlan};

/// Where a frame of IPv6 goes on that came from the outside, or from the uplink. Where an
/// interface of its own leads outside, the uplink's is the host's own.
#[inline(always)]
pub(crate) fn stage(maps: &impl Maps, slot: u32) -> Action {
    if slot == UPLINK_SLOT && maps.uplink(OUTSIDE_SLOT).is_some() {
        return Action::Pass;
    }
    Action::Stage {
        stage: OUTSIDE_IPV6,
        slot,
    }
}

/// Goes on where [`super::receive`] said [`PORT_IPV6_OUT`](crate::layout::PORT_IPV6_OUT).
#[inline(always)]
pub fn send(packet: &mut (impl Packet + ?Sized), maps: &impl Maps, ifindex: u32) -> Action {
    let Some(tap) = maps.tap(ifindex) else {
        return Action::Drop;
    };
    match from_port(packet, maps, tap) {
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            maps.count(tap.slot, Direction::Egress, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn from_port(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
) -> Result<Action, Reason> {
    let ip = parse::ipv6(packet).ok_or(Reason::Malformed)?;
    let own = own_endpoint(maps, tap, &ip.source).ok_or(Reason::Spoofed)?;
    // It may be another by now.
    let route = route::by_table(maps, tap.table, &ip.destination).ok_or(Reason::NoRoute)?;
    if !route::leads_out(&route) {
        return Err(Reason::NoRoute);
    }
    let place = peer::place(maps, tap.vni, &ip.destination);
    let Known { number, peer } = peer::outside(maps, &place, &ip.destination)?;
    peer::name(maps, tap.slot, number, &ip.destination);
    let sender = Peer {
        address: own.number,
        identity: own.is.identity,
        scope: 0,
    };
    let way = Way {
        receiver: None,
        vni: 0,
        peer,
        crosses: true,
        enters: false,
    };
    let ip = ip.numbered(own.number, number);
    forward::by_way(packet, maps, tap, &ip, sender, way, maps.now())
}

/// Goes on where [`stage`] said.
#[inline(always)]
pub fn receive(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Action {
    let slot = if maps.uplink(OUTSIDE_SLOT).is_some() {
        OUTSIDE_SLOT
    } else {
        UPLINK_SLOT
    };
    let slot = forget_number(u64::from(slot), maps.now()) as u32;
    match decide(packet, maps, slot) {
        Ok(Action::Pass) if slot == OUTSIDE_SLOT => {
            vxlan::count(maps, slot, Reason::NoEndpoint);
            Action::Drop
        }
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            vxlan::count(maps, slot, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn decide(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
) -> Result<Action, Reason> {
    let Some(plain) = parse::plain(packet) else {
        return Ok(Action::Pass);
    };
    if plain.protocol == ICMPV6
        && plain.hop_limit == NO_HOPS
        && matches!(packet.load_u16(MESSAGE), Some(SOLICITATION))
    {
        return answer(packet, maps, slot, &plain);
    }
    let Some(vni) = maps.public_ipv6(&plain.destination) else {
        return Ok(Action::Pass);
    };
    let ip = parse::ipv6(packet).ok_or(Reason::Malformed)?;
    let receiver = endpoint(maps, vni, &ip.destination)
        .filter(|endpoint| endpoint.is.host == 0)
        .ok_or(Reason::NoEndpoint)?;
    if ip.hop_limit <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let Known { number, peer } = sender(maps, vni, &ip.source)?;
    // Whichever it is, the verifier goes on once.
    let any = u64::from(number);
    let open = is_open(maps, receiver.is.slot, &ip.source)?;
    let policy = if open { receiver.is.identity.set } else { 0 };
    let policy = forget_number(u64::from(policy), any) as u32;
    let may_begin = blur(u8::from(open), any) != 0;
    let about = quoted_destination(packet, maps, &ip);
    let ip = ip.numbered(number, receiver.number);
    decrement_hop_limit(packet, &ip).ok_or(Reason::Malformed)?;
    let asked = Asked::read_about(packet, &ip, false, about).ok_or(Reason::Malformed)?;
    let arrival = Arrival {
        receiver: &receiver.is,
        sender: peer,
        crosses: true,
        from: slot,
        policy,
        may_begin,
    };
    peer::name(maps, receiver.is.slot, number, &plain.source);
    deliver(packet, maps, &arrival, &ip, &asked, None, maps.now())
}

/// Someone outside. An address of the network or of a peer does not come from there, nor
/// one that is no host's (RFC 4291 §2.5): of many, of a link, unspecified, the own, or an
/// IPv4 address in disguise.
#[inline(always)]
fn sender(maps: &impl Maps, vni: u32, address: &Address6) -> Result<Known, Reason> {
    let place = peer::place(maps, vni, address);
    if place.is.vni != 0
        || is_many(address)
        || is_link_local(address)
        || address[0] == SERVICES
        || address[0] == 0
    {
        return Err(Reason::Spoofed);
    }
    peer::outside(maps, &place, address)
}

/// Whether flows may begin outside: by the route that leads back there.
#[inline(always)]
fn is_open(maps: &impl Maps, slot: u32, source: &Address6) -> Result<bool, Reason> {
    let own = maps.port_ipv6(slot).ok_or(Reason::NoEndpoint)?;
    let route = route::by_table(maps, own.table, source).ok_or(Reason::NoRoute)?;
    match route.kind {
        ROUTE_OUTSIDE => Ok(true),
        ROUTE_EGRESS_ONLY => Ok(false),
        _ => Err(Reason::Blackhole),
    }
}

/// The number of the address to which a packet went that an ICMPv6 error quotes: whoever stands
/// on its way may speak of it.
#[inline(always)]
fn quoted_destination(
    packet: &(impl Packet + ?Sized),
    maps: &impl Maps,
    ip: &Ipv6,
) -> Option<Address> {
    if ip.protocol != ICMPV6 || ip.part == Part::Later || ip.payload_len < 8 {
        return None;
    }
    if !matches!(packet.load_u8(ip.payload)?, 1..=4) {
        return None;
    }
    // Behind 8 bytes of ICMPv6.
    let quoted = load_address(packet, ip.payload + 8 + 24)?;
    Some(stranger(maps.secret()?, &quoted))
}

/// Answers a solicitation for an address of this host (RFC 4861 §7.2.4). `Pass`: it is for
/// none, or not well formed, and so the host's own.
#[inline(always)]
fn answer(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
    ip: &Ipv6,
) -> Result<Action, Reason> {
    let Some(uplink) = maps.uplink(slot) else {
        return Ok(Action::Pass);
    };
    if ip.payload_len < 24 || ip.source == UNSPECIFIED {
        return Ok(Action::Pass);
    }
    let Some(target) = load_address(packet, TARGET) else {
        return Ok(Action::Pass);
    };
    let ours = maps
        .public_ipv6(&target)
        .and_then(|vni| endpoint(maps, vni, &target))
        .is_some_and(|endpoint| endpoint.is.host == 0);
    let Some(asker) = packet.load_mac(ETH_SOURCE).filter(|_| ours) else {
        return Ok(Action::Pass);
    };
    advertise(packet, asker, ip, &target, uplink.mac, SOLICITED | OVERRIDE)
        .ok_or(Reason::Malformed)?;
    maps.count(slot, Direction::Egress, Reason::Answered);
    Ok(Action::Bounce)
}
