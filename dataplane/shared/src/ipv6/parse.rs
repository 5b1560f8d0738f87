//! IPv6 and what may lie between it and what it carries.
//!
//! ```text
//! 14                 54
//! │ IPv6 header 40 B │ hop-by-hop, routing, destination, fragment … │ TCP, UDP, ICMPv6 …
//!                      at most 4
//! ```

use super::layout::Address6;
use crate::packet::Packet;
use crate::parse::{ETH_LEN, Family, ICMPV6, Ip, Part, Role, TCP, Transport, UDP, message};
use crate::verifier::{blur, forget, forget_number};

/// Length of an IPv6 header.
pub const HEADER_LEN: usize = 40;
/// Offset of the hop limit.
pub(super) const HOP_LIMIT: usize = ETH_LEN + 7;
/// Offset of the source.
pub(super) const SOURCE: usize = ETH_LEN + 8;
/// Offset of the destination.
pub(super) const DESTINATION: usize = ETH_LEN + 24;

/// Headers that may stand in front of the payload; more are refused.
const MAX_EXTENSIONS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

const MORE_FRAGMENTS: u16 = 0x0001;
const FRAGMENT_OFFSET: u16 = 0xfff8;

/// Where a payload may begin, a power of two: four headers of 2,048 bytes fit below.
const MAX_OFFSET: usize = 16_384;

/// An IPv6 header (RFC 8200 §3) and the extension headers that follow, whose lengths have
/// been checked against the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source address.
    pub source: Address6,
    /// Destination address.
    pub destination: Address6,
    /// The last next-header field.
    pub protocol: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Identification of a fragment's datagram.
    pub id: u32,
    /// What of a datagram this is.
    pub part: Part,
    /// Offset of the payload in the frame.
    pub payload: usize,
    /// Length of the payload.
    pub payload_len: usize,
}

impl Ipv6 {
    /// The same with numbers for addresses.
    #[inline(always)]
    pub(super) fn numbered(&self, source: u32, destination: u32) -> Ip {
        Ip {
            family: Family::V6,
            source,
            destination,
            protocol: self.protocol,
            ttl: self.hop_limit,
            id: self.id,
            part: self.part,
            payload: self.payload,
            payload_len: self.payload_len,
        }
    }
}

/// Reads an address.
#[inline(always)]
pub(super) fn load_address(packet: &(impl Packet + ?Sized), at: usize) -> Option<Address6> {
    Some([
        packet.load_u32(at)?,
        packet.load_u32(at + 4)?,
        packet.load_u32(at + 8)?,
        packet.load_u32(at + 12)?,
    ])
}

/// What follows an IPv6 header.
struct Chain {
    next: u8,
    at: usize,
    end: usize,
    id: u32,
    part: Part,
}

/// Reads the IPv6 header behind the Ethernet header. `None`: it is cut short, contradicts
/// itself or the frame, or is followed by what no honest sender puts there.
#[inline(always)]
pub fn ipv6(packet: &(impl Packet + ?Sized)) -> Option<Ipv6> {
    let ip = plain(packet)?;
    let mut chain = Chain {
        next: ip.protocol,
        at: ip.payload,
        end: ip.payload + ip.payload_len,
        id: 0,
        part: Part::Whole,
    };
    for place in 0..MAX_EXTENSIONS {
        if !is_extension(chain.next) {
            break;
        }
        // Whoever finishes the frame takes what is above IPv6 to follow its header at once, and
        // could write over a header that was looked at here. A fragment has no such end, and
        // its header nothing there but its identification.
        if packet.may_be_unfinished() && (chain.next != FRAGMENT || packet.segments() > 1) {
            return None;
        }
        skip(packet, &mut chain, place)?;
    }
    if is_extension(chain.next) {
        return None;
    }
    if chain.at > chain.end {
        return None;
    }
    // Whatever headers there were, the verifier goes on once.
    let any = u64::from(ip.source[3]);
    let payload = forget::<MAX_OFFSET>(chain.at, any);
    let part = match blur(chain.part as u8, any) {
        0 => Part::Whole,
        1 => Part::First,
        _ => Part::Later,
    };
    Some(Ipv6 {
        protocol: blur(chain.next, any),
        id: forget_number(u64::from(chain.id), any) as u32,
        part,
        payload,
        payload_len: forget_number((chain.end - chain.at) as u64, any) as usize,
        ..ip
    })
}

/// The same of a packet whose extension headers, if it has any, are its payload.
#[inline(always)]
pub(super) fn plain(packet: &(impl Packet + ?Sized)) -> Option<Ipv6> {
    let version = packet.load_u8(ETH_LEN)?;
    let length = usize::from(u16::from_be(packet.load_u16(ETH_LEN + 4)?));
    let next = packet.load_u8(ETH_LEN + 6)?;
    let hop_limit = packet.load_u8(HOP_LIMIT)?;
    let source = load_address(packet, SOURCE)?;
    let destination = load_address(packet, DESTINATION)?;
    let at = ETH_LEN + HEADER_LEN;
    if version >> 4 != 6 || at + length > packet.len() {
        return None;
    }
    Some(Ipv6 {
        source,
        destination,
        protocol: next,
        hop_limit,
        id: 0,
        part: Part::Whole,
        payload: at,
        payload_len: length,
    })
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Goes past an extension header.
#[inline(always)]
fn skip(packet: &(impl Packet + ?Sized), chain: &mut Chain, place: usize) -> Option<()> {
    let at = chain.at;
    let next = packet.load_u8(at)?;
    let length = usize::from(packet.load_u8(at + 1)?) * 8 + 8;
    match chain.next {
        // First or not at all (RFC 8200 §4.1).
        HOP_BY_HOP if place != 0 => return None,
        // Type 0 is an attack (RFC 5095), and no other has a meaning here.
        ROUTING => return None,
        FRAGMENT => {
            // What is cut has no extensions of its own: a later fragment would not say what
            // its first was judged by.
            if is_extension(next) {
                return None;
            }
            let offset = u16::from_be(packet.load_u16(at + 2)?);
            chain.id = packet.load_u32(at + 4)?;
            chain.part = if offset & FRAGMENT_OFFSET != 0 {
                Part::Later
            } else if offset & MORE_FRAGMENTS != 0 {
                Part::First
            } else {
                Part::Whole
            };
            // It would overwrite the TCP header of its first (RFC 3128).
            if next == TCP && matches!(offset >> 3, 1 | 2) {
                return None;
            }
            chain.next = next;
            chain.at = at + 8;
            return Some(());
        }
        _ => {}
    }
    chain.next = next;
    chain.at = at + length;
    Some(())
}

/// Reads an ICMPv6 message (RFC 4443; numbers: IANA "ICMPv6 Parameters").
#[inline(always)]
pub(crate) fn icmp(
    packet: &(impl Packet + ?Sized),
    at: usize,
    payload_len: usize,
) -> Option<Transport> {
    if payload_len < 8 {
        return None;
    }
    let kind = packet.load_u8(at)?;
    // An echo is told from others by its protocol; its type is IPv4's (RFC 792).
    let role = match kind {
        128 => Role::Query(8),
        129 => Role::Answer(8),
        1..=4 => Role::Error { quote: at + 8 },
        _ => Role::Notice,
    };
    message(packet, at, role)
}

/// Reads the packet that an ICMPv6 error quotes, if it is one that the error's receiver sent
/// to the error's sender, or to the address of number `about`. `ip` is the error's. The quote's
/// lengths speak of the packet that was, so they are not checked.
#[inline(always)]
pub(crate) fn quoted(
    packet: &(impl Packet + ?Sized),
    at: usize,
    ip: &Ip,
    about: Option<u32>,
) -> Option<(Ip, Transport)> {
    if packet.load_u8(at)? >> 4 != 6 {
        return None;
    }
    for word in 0..4 {
        let (from, to) = (SOURCE + 4 * word, DESTINATION + 4 * word);
        if packet.load_u32(at + 8 + 4 * word)? != packet.load_u32(to)? {
            return None;
        }
        if about.is_none() && packet.load_u32(at + 24 + 4 * word)? != packet.load_u32(from)? {
            return None;
        }
    }
    let mut protocol = packet.load_u8(at + 6)?;
    let mut payload = at + HEADER_LEN;
    if protocol == FRAGMENT {
        // Ports so far behind could lie where a tunnelled packet has its checksum.
        if packet.may_be_unfinished() {
            return None;
        }
        let offset = u16::from_be(packet.load_u16(payload + 2)?);
        if offset & FRAGMENT_OFFSET != 0 {
            return None;
        }
        protocol = packet.load_u8(payload)?;
        payload += 8;
    }
    let payload = forget::<MAX_OFFSET>(payload, u64::from(ip.source));
    let datagram = |source, destination| Transport {
        source,
        destination,
        rule_port: 0,
        role: Role::Datagram,
    };
    let transport = match protocol {
        TCP | UDP => datagram(packet.load_u16(payload)?, packet.load_u16(payload + 2)?),
        ICMPV6 => icmp(packet, payload, 8)?,
        _ => datagram(0, 0),
    };
    let inner = Ip {
        family: Family::V6,
        source: ip.destination,
        destination: about.unwrap_or(ip.source),
        protocol,
        ttl: 0,
        id: 0,
        part: Part::Whole,
        payload,
        payload_len: 8,
    };
    Some((inner, transport))
}
