//! What is longer than its way: never lost in silence (RFC 1191).

use crate::checksum::Sum;
use crate::layout::{Direction, ROUTER_MAC, Reason, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_LEN, ETH_SOURCE, ETH_TYPE, ETHERTYPE_IPV4, ICMP, Ipv4, Part};
use crate::vxlan::Header;

/// IPv4 and ICMP headers in front of what is quoted.
const FRONT: usize = 20 + 8;
const ICMP_AT: usize = ETH_LEN + 20;
/// The longest IPv4 header and 8 bytes, in 16-bit words, behind an ICMP header.
const WORDS: usize = (8 + 60 + 8) / 2;
/// Destination unreachable, fragmentation needed (RFC 792).
const FRAGMENTATION_NEEDED: u16 = u16::from_ne_bytes([3, 4]);

/// Whether a frame is longer than its port may send.
#[inline(always)]
pub(crate) fn is(packet: &(impl Packet + ?Sized), tap: &Tap) -> bool {
    packet.len() > ETH_LEN + usize::from(tap.mtu)
}

/// Turns a packet into the ICMP error that tells its sender how long it may be.
#[inline(always)]
pub(crate) fn answer(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    ip: &Ipv4,
) -> Result<Action, Reason> {
    // None about an ICMP message, which could be an error, or a later fragment (RFC 1122
    // §3.2.2).
    if ip.protocol == ICMP || ip.part == Part::Later {
        return Err(Reason::TooLong);
    }
    let quoted = ip.payload - ETH_LEN + 8;
    write(packet, tap, ip, quoted).ok_or(Reason::TooLong)?;
    maps.count(tap.slot, Direction::Egress, Reason::TooLong);
    Ok(Action::Bounce)
}

#[inline(always)]
fn write(packet: &mut (impl Packet + ?Sized), tap: &Tap, ip: &Ipv4, quoted: usize) -> Option<()> {
    packet.push(FRONT)?;
    packet.truncate(ETH_LEN + FRONT + quoted)?;
    packet.store_mac(0, tap.mac)?;
    packet.store_mac(ETH_SOURCE, ROUTER_MAC)?;
    packet.store_u16(ETH_TYPE, ETHERTYPE_IPV4)?;
    let header = Header {
        length: (FRONT + quoted) as u16,
        fragment: 0,
        protocol: ICMP,
        source: tap.gateway,
        destination: ip.source,
    };
    header.store(packet)?;
    packet.store_u16(ICMP_AT, FRAGMENTATION_NEEDED)?;
    packet.store_u16(ICMP_AT + 2, 0)?;
    packet.store_u16(ICMP_AT + 4, 0)?;
    packet.store_u16(ICMP_AT + 6, tap.mtu.to_be())?;
    let mut sum = Sum::default();
    for word in 0..WORDS {
        // The frame ends where the quote does.
        let Some(value) = packet.load_u16(ICMP_AT + 2 * word) else {
            break;
        };
        sum = sum.word(value);
    }
    packet.store_u16(ICMP_AT + 2, sum.checksum())
}
