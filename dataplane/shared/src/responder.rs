//! A frame from the responder: whom it answers.

use crate::ipv6::service;
use crate::layout::{
    Direction, METADATA_ADDRESS, RESOLVER_ADDRESS, RESPONDER_SLOT, ROUTER_MAC, Reason, Service,
};
use crate::limit;
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{
    self, ETH_SOURCE, ETH_TYPE, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4, Part, TCP, UDP, transport,
};
use crate::rewrite::{readdress, repoint};
use crate::service::{DHCP_CLIENT, DHCP_SERVER, DNS, DNS_LINK_LOCAL, HTTP};

/// Offset of a BOOTP message's `ciaddr` behind its UDP header (RFC 951 §3).
const BOOTP_CIADDR: usize = 8 + 12;
const BROADCAST: u32 = u32::MAX;

/// Decides on a frame that came in on `svc0`, and rewrites it to fit.
#[inline(always)]
pub fn receive(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Action {
    match decide(packet, maps) {
        Ok(action) => limit::deliver(packet, maps, action),
        Err(reason) => {
            maps.count(RESPONDER_SLOT, Direction::Egress, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn decide(packet: &mut (impl Packet + ?Sized), maps: &impl Maps) -> Result<Action, Reason> {
    let ether_type = packet.load_u16(ETH_TYPE).ok_or(Reason::Malformed)?;
    match ether_type {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_IPV6 => return service::from_responder(packet, maps),
        _ => return Err(Reason::EtherType),
    }
    let ip = parse::ipv4(packet).ok_or(Reason::Malformed)?;
    if ip.source != METADATA_ADDRESS {
        return Err(Reason::Spoofed);
    }
    if ip.part != Part::Whole {
        return Err(Reason::Fragment);
    }
    let service = maps.service(ip.destination).ok_or(Reason::NoPort)?;
    let (source, destination) = as_the_guest_sees(packet, &ip, service)?;
    if source == RESOLVER_ADDRESS {
        repoint(packet, &ip, ip.payload, DNS_LINK_LOCAL, DNS).ok_or(Reason::Malformed)?;
    }
    readdress(packet, &ip, source, destination).ok_or(Reason::Malformed)?;
    packet.store_mac(0, service.mac).ok_or(Reason::Malformed)?;
    packet
        .store_mac(ETH_SOURCE, ROUTER_MAC)
        .ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: service.slot,
        from: RESPONDER_SLOT,
    })
}

/// Whom the guest asked, and where it listens: at its address, and for DHCP, before it has
/// one, everywhere (RFC 2131 §4.1).
#[inline(always)]
fn as_the_guest_sees(
    packet: &(impl Packet + ?Sized),
    ip: &Ipv4,
    service: &Service,
) -> Result<(u32, u32), Reason> {
    let ports = transport(packet, ip).ok_or(Reason::Malformed)?;
    if ip.protocol == TCP && ports.source == HTTP {
        return Ok((METADATA_ADDRESS, service.address));
    }
    if matches!(ip.protocol, TCP | UDP) && ports.source == DNS && service.resolver != 0 {
        return Ok((service.resolver, service.address));
    }
    if matches!(ip.protocol, TCP | UDP) && ports.source == DNS_LINK_LOCAL {
        return Ok((RESOLVER_ADDRESS, service.address));
    }
    if ip.protocol == UDP && ports.source == DHCP_SERVER && ports.destination == DHCP_CLIENT {
        let client = packet
            .load_u32(ip.payload + BOOTP_CIADDR)
            .ok_or(Reason::Malformed)?;
        let guest = if client == 0 {
            BROADCAST
        } else {
            service.address
        };
        return Ok((METADATA_ADDRESS, guest));
    }
    Err(Reason::NotServed)
}
