//! To the responder: DHCP, the metadata service and the resolver.
//!
//! The responder tells guests apart by address alone, and addresses of networks overlap.
//! So a port's packets reach it from the port's *service address*, which is unique on
//! the host. No rule of a group holds for them, as in EC2.
//!
//! It has one address, whichever of the resolver's the guest asked: who asked at
//! 169.254.169.253 comes to a port of its own, so that the answer finds back.

use crate::layout::{
    METADATA_ADDRESS, RESOLVER_ADDRESS, RESPONDER_SLOT, Reason, SVC0_MAC, SVC1_MAC, Tap,
};
use crate::maps::Action;
use crate::packet::Packet;
use crate::parse::{ETH_SOURCE, Ipv4, Part, TCP, UDP, transport};
use crate::rewrite::{readdress, repoint};

/// DHCP client's port (RFC 2131 §4.1) as it lies in a packet.
pub(crate) const DHCP_CLIENT: u16 = 68u16.to_be();
/// DHCP server's port as it lies in a packet.
pub(crate) const DHCP_SERVER: u16 = 67u16.to_be();
/// Both, as they lie in a packet to the server.
const CLIENT_TO_SERVER: u32 = u32::from_be_bytes([0, 68, 0, 67]).to_be();
/// HTTP's port as it lies in a packet.
pub(crate) const HTTP: u16 = 80u16.to_be();
/// DNS's port (RFC 1035 §4.2) as it lies in a packet.
pub(crate) const DNS: u16 = 53u16.to_be();
/// Where the responder hears those who asked at 169.254.169.253, as it lies in a packet.
pub(crate) const DNS_LINK_LOCAL: u16 = crate::layout::DNS_LINK_LOCAL_PORT.to_be();

/// Whether an address is the resolver's, as a port sees it.
#[inline(always)]
pub(crate) fn is_resolver(tap: &Tap, address: u32) -> bool {
    address == RESOLVER_ADDRESS || (tap.resolver != 0 && address == tap.resolver)
}

/// Whether a packet is a DHCP client's.
#[inline(always)]
pub(crate) fn is_dhcp(packet: &(impl Packet + ?Sized), ip: &Ipv4) -> bool {
    if ip.protocol != UDP || ip.part == Part::Later {
        return false;
    }
    matches!(packet.load_u32(ip.payload), Some(CLIENT_TO_SERVER))
}

/// Rewrites a packet for the responder.
#[inline(always)]
pub(crate) fn to_responder(
    packet: &mut (impl Packet + ?Sized),
    tap: &Tap,
    ip: &Ipv4,
) -> Result<Action, Reason> {
    if ip.part != Part::Whole {
        return Err(Reason::Fragment);
    }
    let ports = transport(packet, ip).ok_or(Reason::Malformed)?;
    let dhcp =
        ip.protocol == UDP && ports.source == DHCP_CLIENT && ports.destination == DHCP_SERVER;
    let resolver = is_resolver(tap, ip.destination);
    let metadata = !resolver && ip.protocol == TCP && ports.destination == HTTP;
    let dns = resolver && matches!(ip.protocol, TCP | UDP) && ports.destination == DNS;
    if ip.source != tap.address && !(dhcp && ip.source == 0) {
        return Err(Reason::Spoofed);
    }
    if !dhcp && !metadata && !dns {
        return Err(Reason::NotServed);
    }
    if dns && ip.destination == RESOLVER_ADDRESS {
        repoint(packet, ip, ip.payload + 2, DNS, DNS_LINK_LOCAL).ok_or(Reason::Malformed)?;
    }
    readdress(packet, ip, tap.service, METADATA_ADDRESS).ok_or(Reason::Malformed)?;
    packet.store_mac(0, SVC1_MAC).ok_or(Reason::Malformed)?;
    packet
        .store_mac(ETH_SOURCE, SVC0_MAC)
        .ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: RESPONDER_SLOT,
        from: tap.slot,
    })
}
