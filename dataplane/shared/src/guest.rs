//! A frame from a guest: whose it is, and where it may go.

use crate::layout::{Direction, METADATA_ADDRESS, PORT_IPV6, RESPONDER_SLOT, Reason, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{
    self, ETH_TYPE, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, WITHOUT_OPTIONS,
};
use crate::{arp, forward, limit, service, too_long};

/// Decides on a frame that came in on `ifindex`, and rewrites it to fit.
#[inline(always)]
pub fn receive(packet: &mut (impl Packet + ?Sized), maps: &impl Maps, ifindex: u32) -> Action {
    let Some(tap) = maps.tap(ifindex) else {
        maps.count(RESPONDER_SLOT, Direction::Egress, Reason::NoPort);
        return Action::Drop;
    };
    packet.capture(tap.slot, Direction::Egress);
    match decide(packet, maps, tap) {
        Ok(action) => limit::deliver(packet, maps, action),
        // Asked last, so that IPv4 does not pay for it.
        Err(Reason::EtherType) if is_ipv6(packet) => Action::Stage {
            stage: PORT_IPV6,
            slot: tap.slot,
        },
        Err(reason) => {
            maps.count(tap.slot, Direction::Egress, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn is_ipv6(packet: &(impl Packet + ?Sized)) -> bool {
    matches!(packet.load_u16(ETH_TYPE), Some(ETHERTYPE_IPV6))
}

#[inline(always)]
fn decide(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
) -> Result<Action, Reason> {
    limit::police(packet, maps, tap.slot, Direction::Egress)?;
    let head = packet.load_head().ok_or(Reason::Malformed)?;
    if !head.is_from(tap.mac) {
        return Err(Reason::Spoofed);
    }
    match head.ether_type {
        ETHERTYPE_IPV4 => {
            if packet.may_be_unfinished() && head.version != WITHOUT_OPTIONS {
                return Err(Reason::Malformed);
            }
            let ip = parse::ipv4_of(&head, packet.len()).ok_or(Reason::Malformed)?;
            let served = ip.destination == METADATA_ADDRESS
                || service::is_resolver(tap, ip.destination)
                || service::is_dhcp(packet, &ip);
            if served {
                if too_long::is(packet, tap) {
                    return Err(Reason::TooLong);
                }
                return service::to_responder(packet, tap, &ip);
            }
            forward::from_port(packet, maps, tap, &ip)
        }
        ETHERTYPE_ARP => arp::answer(packet, maps, tap),
        _ => Err(Reason::EtherType),
    }
}

/// Goes on where [`receive`] said [`TRANSLATE`](crate::layout::TRANSLATE).
#[inline(always)]
pub fn translate(packet: &mut (impl Packet + ?Sized), maps: &impl Maps, ifindex: u32) -> Action {
    let Some(tap) = maps.tap(ifindex) else {
        return Action::Drop;
    };
    let translated = parse::ipv4(packet)
        .ok_or(Reason::Malformed)
        .and_then(|ip| forward::by_gateway(packet, maps, tap, &ip));
    match translated {
        Ok(action) => action,
        Err(reason) => {
            maps.count(tap.slot, Direction::Egress, reason);
            Action::Drop
        }
    }
}
