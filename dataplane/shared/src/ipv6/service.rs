//! To the responder and back: DHCPv6, the metadata service and the resolver.
//!
//! ```text
//!  guest                            responder
//!  fe80::IID ── ff02::1:2 ─┐        SERVICES:s:IID ─▶ METADATA   DHCPv6
//!  A:IID ────── METADATA ──┼──────▶ SERVICES:s:IID ─▶ METADATA   HTTP
//!  A:IID ────── RESOLVER ──┘        SERVICES:s:IID ─▶ RESOLVER   DNS
//! ```
//! Who renews its addresses hears the router, too: the responder sends its advertisement, since
//! programs answer and send nothing of their own, and a router that is not heard of for half an
//! hour is none (RFC 4861 §6.3.4).
//!
//! The guest's address becomes one that is made of its port's service address `s` and of its
//! own last half. So the responder tells guests apart as it does by IPv4 ([`crate::service`]),
//! and the way back is in the address: the first half is the link's, where DHCPv6 answers, and
//! for all else that of the port's addresses, of which each may ask.

use super::layout::{
    ALL_DHCP, Address6, METADATA_ADDRESS, Port, RESOLVER_ADDRESS, ROUTER_ADDRESS, SERVICES,
};
use super::parse::{self, DESTINATION, Ipv6, SOURCE};
use super::{own_endpoint, store_ethernet};
use crate::checksum::Delta;
use crate::layout::{RESPONDER_SLOT, ROUTER_MAC, Reason, SVC0_MAC, SVC1_MAC, Service, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ICMPV6, Part, TCP, Transport, UDP, transport};
use crate::service::{DNS, HTTP};
use crate::too_long;

/// DHCPv6 client's port (RFC 8415 §7.2) as it lies in a packet.
const CLIENT: u16 = 546u16.to_be();
/// DHCPv6 server's port as it lies in a packet.
const SERVER: u16 = 547u16.to_be();
/// A router's advertisement (RFC 4861 §4.2).
const ADVERTISEMENT: u8 = 134;
/// The first half of a link-local address.
const LINK: [u32; 2] = [u32::from_ne_bytes([0xfe, 0x80, 0, 0]), 0];

/// Whether a packet is for a service: to an address of theirs, or to all DHCP servers.
#[inline(always)]
pub(super) fn is_for_service(ip: &Ipv6) -> bool {
    ip.destination[0] == SERVICES || ip.destination == ALL_DHCP
}

/// Rewrites a packet for the responder.
#[inline(always)]
pub(super) fn to_responder(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    own: &Port,
    ip: &Ipv6,
) -> Result<Action, Reason> {
    if too_long::is(packet, tap) {
        return Err(Reason::TooLong);
    }
    let dhcp = ip.destination == ALL_DHCP;
    let near = if dhcp {
        LINK
    } else {
        [own.address[0], own.address[1]]
    };
    if ip.source[0] != near[0] || ip.source[1] != near[1] {
        return Err(Reason::Spoofed);
    }
    if !dhcp && own_endpoint(maps, tap, &ip.source).is_none() {
        return Err(Reason::Spoofed);
    }
    let ports = ports(packet, ip)?;
    let is_served = match ip.protocol {
        UDP if dhcp => ports.source == CLIENT && ports.destination == SERVER,
        TCP if ip.destination == METADATA_ADDRESS => ports.destination == HTTP,
        TCP | UDP => ip.destination == RESOLVER_ADDRESS && ports.destination == DNS,
        _ => false,
    };
    if !is_served {
        return Err(Reason::NotServed);
    }
    let source = [SERVICES, tap.service, ip.source[2], ip.source[3]];
    let destination = if dhcp {
        METADATA_ADDRESS
    } else {
        ip.destination
    };
    readdress(packet, ip, &source, &destination).ok_or(Reason::Malformed)?;
    store_ethernet(packet, SVC1_MAC, SVC0_MAC).ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: RESPONDER_SLOT,
        from: tap.slot,
    })
}

/// Rewrites the responder's answer for who asked.
#[inline(always)]
pub(crate) fn from_responder(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
) -> Result<Action, Reason> {
    // The responder has no use for extensions, and what has any is of no protocol here.
    let ip = parse::plain(packet).ok_or(Reason::Malformed)?;
    if ip.destination[0] != SERVICES {
        return Err(Reason::NoPort);
    }
    let service: &Service = maps.service(ip.destination[1]).ok_or(Reason::NoPort)?;
    let own = maps.port_ipv6(service.slot).ok_or(Reason::NoPort)?;
    let ports = ports(packet, &ip)?;
    let dhcp = ip.protocol == UDP && ports.source == SERVER && ports.destination == CLIENT;
    let advertisement = ip.protocol == ICMPV6 && packet.load_u8(ip.payload) == Some(ADVERTISEMENT);
    let is_served = match ip.protocol {
        UDP if dhcp => ip.source == METADATA_ADDRESS,
        ICMPV6 if advertisement => ip.source == METADATA_ADDRESS,
        TCP if ports.source == HTTP => ip.source == METADATA_ADDRESS,
        TCP | UDP => ip.source == RESOLVER_ADDRESS && ports.source == DNS,
        _ => false,
    };
    if !is_served {
        return Err(Reason::NotServed);
    }
    let (source, near) = if dhcp || advertisement {
        (ROUTER_ADDRESS, LINK)
    } else {
        (ip.source, [own.address[0], own.address[1]])
    };
    let destination = [near[0], near[1], ip.destination[2], ip.destination[3]];
    readdress(packet, &ip, &source, &destination).ok_or(Reason::Malformed)?;
    store_ethernet(packet, service.mac, ROUTER_MAC).ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: service.slot,
        from: RESPONDER_SLOT,
    })
}

#[inline(always)]
fn ports(packet: &(impl Packet + ?Sized), ip: &Ipv6) -> Result<Transport, Reason> {
    if ip.part != Part::Whole {
        return Err(Reason::Fragment);
    }
    transport(packet, &ip.numbered(0, 0)).ok_or(Reason::Malformed)
}

/// Changes the addresses of a packet of TCP, UDP or ICMPv6.
#[inline(always)]
fn readdress(
    packet: &mut (impl Packet + ?Sized),
    ip: &Ipv6,
    source: &Address6,
    destination: &Address6,
) -> Option<()> {
    let mut delta = Delta::default();
    for word in 0..4 {
        delta = delta
            .long(ip.source[word], source[word])
            .long(ip.destination[word], destination[word]);
        packet.store_u32(SOURCE + 4 * word, source[word])?;
        packet.store_u32(DESTINATION + 4 * word, destination[word])?;
    }
    match ip.protocol {
        TCP => packet.change_checksum(ip.payload + 16, delta, true),
        ICMPV6 => packet.change_checksum(ip.payload + 2, delta, true),
        _ => packet.change_udp_checksum(ip.payload + 6, delta, true),
    }
}
