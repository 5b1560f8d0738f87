//! Neighbour discovery, answered in place (RFC 4861), as ARP is: a network has no multicast,
//! so nobody else hears.
//!
//! The router is every subnet's, at a link-local address; every endpoint of the subnet has
//! the Ethernet address that the mapping says. An address that nobody has stays silent, and
//! so does the search for duplicates: no address is anyone else's.

use super::layout::{Address6, Port, ROUTER_ADDRESS, address};
use super::parse::{DESTINATION, HEADER_LEN, HOP_LIMIT, Ipv6, SOURCE, load_address};
use super::{endpoint, own_endpoint, store_ethernet, too_big};
use crate::checksum::Sum;
use crate::layout::{Direction, ROUTER_MAC, Reason, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_LEN, ETH_TYPE, ETHERTYPE_IPV6, ICMPV6, Part};

const LENGTH: usize = ETH_LEN + 4;
pub(super) const MESSAGE: usize = ETH_LEN + HEADER_LEN;
pub(super) const CHECKSUM: usize = MESSAGE + 2;
pub(super) const TARGET: usize = MESSAGE + 8;
const OPTION: usize = MESSAGE + 24;

pub(super) const SOLICITATION: u16 = u16::from_ne_bytes([135, 0]);
const ADVERTISEMENT: u16 = u16::from_ne_bytes([136, 0]);
const ROUTER_SOLICITATION: u16 = u16::from_ne_bytes([133, 0]);
const ROUTER_ADVERTISEMENT: u16 = u16::from_ne_bytes([134, 0]);
/// A router's advertisement with two options.
const ROUTER_MESSAGE: usize = 16 + 8 + 8;
/// Its hop limit, its flags "managed" and "other" (RFC 4861 §4.2), and the seconds that it
/// is there for.
const ROUTER_SAYS: u32 = u32::from_ne_bytes([64, 0xc0, 0x07, 0x08]);
/// An option of 8 bytes that holds the MTU (RFC 4861 §4.6.4).
const MTU_OPTION: u32 = u32::from_ne_bytes([5, 1, 0, 0]);
const VERSION: u32 = 0x6000_0000;
/// Flags of an advertisement (RFC 4861 §4.4).
const ROUTER_FLAG: u32 = 0x8000_0000;
pub(super) const SOLICITED: u32 = 0x4000_0000;
pub(super) const OVERRIDE: u32 = 0x2000_0000;
/// An option of 8 bytes that holds an Ethernet address (RFC 2464 §6).
const SOURCE_MAC: u16 = u16::from_ne_bytes([1, 1]);
const TARGET_MAC: u16 = u16::from_ne_bytes([2, 1]);
/// A message that has crossed no router (RFC 4861 §7.1.1).
pub(super) const NO_HOPS: u8 = 255;

/// Words of the longest message that is answered with: an error with its quote.
pub(super) const CHECKSUM_WORDS: usize = (8 + too_big::QUOTE) / 4;

pub(super) const UNSPECIFIED: Address6 = [0; 4];
const ALL_NODES: Address6 = address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Whether a packet is for the port's link: to or from a link-local address or none
/// (RFC 4291 §2.5), to many, or of neighbour discovery. No such packet is sent on.
#[inline(always)]
pub(super) fn is_for_link(packet: &(impl Packet + ?Sized), ip: &Ipv6) -> bool {
    is_many(&ip.destination)
        || is_link_local(&ip.destination)
        || is_link_local(&ip.source)
        || ip.source == UNSPECIFIED
        || (ip.protocol == ICMPV6
            && ip.part != Part::Later
            && matches!(packet.load_u8(ip.payload), Some(133..=137)))
}

#[inline(always)]
pub(super) fn is_many(address: &Address6) -> bool {
    address[0].to_ne_bytes()[0] == 0xff
}

#[inline(always)]
pub(super) fn is_link_local(address: &Address6) -> bool {
    let [first, second, ..] = address[0].to_ne_bytes();
    first == 0xfe && second & 0xc0 == 0x80
}

/// Turns a question of the port into its answer.
#[inline(always)]
pub(super) fn answer(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    own: &Port,
    ip: &Ipv6,
) -> Result<Action, Reason> {
    if !is_link_local(&ip.source)
        && ip.source != UNSPECIFIED
        && own_endpoint(maps, tap, &ip.source).is_none()
    {
        return Err(Reason::Spoofed);
    }
    if ip.protocol != ICMPV6 || ip.part != Part::Whole || ip.payload != MESSAGE {
        return Err(Reason::ArpUnanswered);
    }
    if ip.payload_len < 8 {
        return Err(Reason::Malformed);
    }
    let kind = packet.load_u16(MESSAGE).ok_or(Reason::Malformed)?;
    if kind != SOLICITATION && kind != ROUTER_SOLICITATION {
        return Err(Reason::ArpUnanswered);
    }
    if ip.hop_limit != NO_HOPS {
        return Err(Reason::Malformed);
    }
    if kind == ROUTER_SOLICITATION {
        advertise_router(packet, tap, ip).ok_or(Reason::Malformed)?;
        maps.count(tap.slot, Direction::Egress, Reason::Answered);
        return Ok(Action::Bounce);
    }
    if ip.payload_len < 24 {
        return Err(Reason::Malformed);
    }
    if ip.source == UNSPECIFIED {
        return Err(Reason::ArpUnanswered);
    }
    let target = load_address(packet, TARGET).ok_or(Reason::Malformed)?;
    let (mac, flags) = if target == ROUTER_ADDRESS {
        (ROUTER_MAC, ROUTER_FLAG | SOLICITED | OVERRIDE)
    } else {
        let mac = owner_of(maps, tap, own, &target).ok_or(Reason::ArpUnanswered)?;
        (mac, SOLICITED | OVERRIDE)
    };
    advertise(packet, tap.mac, ip, &target, mac, flags).ok_or(Reason::Malformed)?;
    maps.count(tap.slot, Direction::Egress, Reason::Answered);
    Ok(Action::Bounce)
}

/// The Ethernet address that stands for another of the port's subnet.
#[inline(always)]
fn owner_of(maps: &impl Maps, tap: &Tap, own: &Port, target: &Address6) -> Option<[u8; 6]> {
    if !own.is_near(target) {
        return None;
    }
    endpoint(maps, tap.vni, target)
        .filter(|endpoint| endpoint.is.slot != tap.slot)
        .map(|endpoint| endpoint.is.mac)
}

/// Makes the solicitation an advertisement (RFC 4861 §4.4). What asks many names itself in
/// an option, in whose place the answer is; what asks the neighbour itself need not, and
/// then the answer needs none.
#[inline(always)]
pub(super) fn advertise(
    packet: &mut (impl Packet + ?Sized),
    to: [u8; 6],
    ip: &Ipv6,
    target: &Address6,
    mac: [u8; 6],
    flags: u32,
) -> Option<()> {
    let named = ip.payload_len >= 32 && packet.load_u16(OPTION)? == SOURCE_MAC;
    if !named && is_many(&ip.destination) {
        return None;
    }
    let length = if named { 32 } else { 24 };
    packet.truncate(MESSAGE + length)?;
    store_ethernet(packet, to, mac)?;
    packet.store_u16(LENGTH, (length as u16).to_be())?;
    store_address(packet, SOURCE, target)?;
    store_address(packet, DESTINATION, &ip.source)?;
    packet.store_u16(MESSAGE, ADVERTISEMENT)?;
    packet.store_u16(CHECKSUM, 0)?;
    packet.store_u32(MESSAGE + 4, flags.to_be())?;
    if named {
        packet.store_u16(OPTION, TARGET_MAC)?;
        packet.store_mac(OPTION + 2, mac)?;
    }
    store_checksum(packet, length, Sum::default(), CHECKSUM_WORDS)
}

/// Makes the solicitation a router's advertisement (RFC 4861 §4.2): the router is the way to
/// everywhere, addresses come by DHCPv6 alone, and the MTU is the port's.
#[inline(always)]
fn advertise_router(packet: &mut (impl Packet + ?Sized), tap: &Tap, ip: &Ipv6) -> Option<()> {
    // A solicitation has 8 bytes at least; what is in them is written anew.
    packet.truncate(MESSAGE + 8)?;
    packet.push(ROUTER_MESSAGE - 8)?;
    store_ethernet(packet, tap.mac, ROUTER_MAC)?;
    let to = if ip.source == UNSPECIFIED {
        ALL_NODES
    } else {
        ip.source
    };
    store_header(packet, ROUTER_MESSAGE as u16, &to)?;
    packet.store_u16(MESSAGE, ROUTER_ADVERTISEMENT)?;
    packet.store_u16(CHECKSUM, 0)?;
    packet.store_u32(MESSAGE + 4, ROUTER_SAYS)?;
    packet.store_u32(MESSAGE + 8, 0)?;
    packet.store_u32(MESSAGE + 12, 0)?;
    packet.store_u16(MESSAGE + 16, SOURCE_MAC)?;
    packet.store_mac(MESSAGE + 18, ROUTER_MAC)?;
    packet.store_u32(MESSAGE + 24, MTU_OPTION)?;
    packet.store_u32(MESSAGE + 28, u32::from(tap.mtu).to_be())?;
    store_checksum(packet, ROUTER_MESSAGE, Sum::default(), CHECKSUM_WORDS)
}

/// Writes the EtherType and IPv6 header of an ICMPv6 message of the router's.
#[inline(always)]
pub(super) fn store_header(
    packet: &mut (impl Packet + ?Sized),
    length: u16,
    to: &Address6,
) -> Option<()> {
    packet.store_u16(ETH_TYPE, ETHERTYPE_IPV6)?;
    packet.store_u32(ETH_LEN, VERSION.to_be())?;
    packet.store_u16(LENGTH, length.to_be())?;
    packet.store_u8(HOP_LIMIT - 1, ICMPV6)?;
    packet.store_u8(HOP_LIMIT, NO_HOPS)?;
    store_address(packet, SOURCE, &ROUTER_ADDRESS)?;
    store_address(packet, DESTINATION, to)
}

/// Writes the checksum of a message of `length` bytes, of which no more than `words` count, and
/// `rest` (RFC 4443 §2.3).
#[inline(always)]
pub(super) fn store_checksum(
    packet: &mut (impl Packet + ?Sized),
    length: usize,
    rest: Sum,
    words: usize,
) -> Option<()> {
    let mut sum = pseudo(packet, rest, length, ICMPV6)?;
    for word in 0..words {
        // The frame ends where the message does.
        let Some(value) = packet.load_u32(MESSAGE + 4 * word) else {
            break;
        };
        sum = sum.long(value);
    }
    packet.store_u16(CHECKSUM, sum.checksum())
}

/// Adds what a packet's IPv6 header adds to a checksum above it (RFC 8200 §8.1).
#[inline(always)]
pub(super) fn pseudo(
    packet: &(impl Packet + ?Sized),
    mut sum: Sum,
    length: usize,
    protocol: u8,
) -> Option<Sum> {
    sum = sum
        .long((length as u32).to_be())
        .long(u32::from(protocol).to_be());
    for word in 0..8 {
        sum = sum.long(packet.load_u32(SOURCE + 4 * word)?);
    }
    Some(sum)
}

#[inline(always)]
fn store_address(packet: &mut (impl Packet + ?Sized), at: usize, address: &Address6) -> Option<()> {
    for (index, word) in address.iter().enumerate() {
        packet.store_u32(at + 4 * index, *word)?;
    }
    Some(())
}
