//! A frame from a guest: whose it is, and where it may go.

use crate::layout::{
    Address, Direction, EndpointKey, Identity, METADATA_ADDRESS, MTU, RESPONDER_SLOT, Reason, Tap,
};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{self, ETH_LEN, ETH_SOURCE, ETH_TYPE, ETHERTYPE_ARP, ETHERTYPE_IPV4};
use crate::{arp, forward, limit, service};

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
    limit::police(packet, maps, tap.slot, Direction::Egress)?;
    let source = packet.load_mac(ETH_SOURCE).ok_or(Reason::Malformed)?;
    let ether_type = packet.load_u16(ETH_TYPE).ok_or(Reason::Malformed)?;
    if source != tap.mac {
        return Err(Reason::Spoofed);
    }
    if packet.len() > ETH_LEN + MTU {
        return Err(Reason::TooLong);
    }
    match ether_type {
        ETHERTYPE_IPV4 => {
            let ip = parse::ipv4(packet, ETH_LEN).ok_or(Reason::Malformed)?;
            if ip.destination == METADATA_ADDRESS || service::is_dhcp(packet, &ip) {
                return service::to_responder(packet, tap, &ip);
            }
            let sender = identity_of(maps, tap, ip.source).ok_or(Reason::Spoofed)?;
            forward::to_endpoint(packet, maps, tap, sender, &ip)
        }
        ETHERTYPE_ARP => arp::answer(packet, maps, tap),
        _ => Err(Reason::EtherType),
    }
}

/// What an address of the port is judged by. `None`: the address isn't the port's.
#[inline(always)]
pub(crate) fn identity_of(maps: &impl Maps, tap: &Tap, address: Address) -> Option<Identity> {
    if address == tap.address {
        return Some(tap.identity);
    }
    let key = EndpointKey {
        vni: tap.vni,
        address,
    };
    match maps.endpoint(&key) {
        Some(endpoint) if endpoint.slot == tap.slot => Some(endpoint.identity),
        _ => None,
    }
}
