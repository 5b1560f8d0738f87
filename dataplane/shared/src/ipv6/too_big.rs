//! What is longer than its way: never lost in silence (RFC 4443 §3.2, RFC 8201).

use super::neighbour::{CHECKSUM, CHECKSUM_WORDS, MESSAGE, pseudo, store_checksum, store_header};
use super::parse::{HEADER_LEN, Ipv6};
use super::store_ethernet;
use crate::checksum::Sum;
use crate::layout::{Direction, ROUTER_MAC, Reason, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_LEN, ICMPV6, Part, TCP, UDP};

/// Bytes quoted: an IPv6 header, a fragment header and what tells a flow apart.
pub(super) const QUOTE: usize = HEADER_LEN + 8 + 16;
/// IPv6 and ICMPv6 headers in front of what is quoted.
const FRONT: usize = HEADER_LEN + 8;
const PACKET_TOO_BIG: u16 = u16::from_ne_bytes([2, 0]);

/// Turns a packet into the ICMPv6 error that tells its sender how long it may be.
#[inline(always)]
pub(super) fn answer(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    ip: &Ipv6,
) -> Result<Action, Reason> {
    // None about an error, which an ICMPv6 message could be.
    if ip.protocol == ICMPV6 && ip.part == Part::Later {
        return Err(Reason::TooLong);
    }
    if ip.protocol == ICMPV6 && matches!(packet.load_u8(ip.payload), Some(0..128) | None) {
        return Err(Reason::TooLong);
    }
    let unfinished = unfinished(packet, ip).ok_or(Reason::TooLong)?;
    write(packet, tap, ip, unfinished).ok_or(Reason::TooLong)?;
    maps.count(tap.slot, Direction::Egress, Reason::TooLong);
    Ok(Action::Bounce)
}

/// Where a packet's checksum will be finished by someone: what is there now. It is among what is
/// quoted.
#[inline(always)]
fn unfinished(packet: &(impl Packet + ?Sized), ip: &Ipv6) -> Option<Option<u16>> {
    if !packet.may_be_unfinished() || ip.payload != MESSAGE {
        return Some(None);
    }
    let at = match ip.protocol {
        TCP => MESSAGE + 16,
        UDP => MESSAGE + 6,
        _ => return Some(None),
    };
    let found = packet.load_u16(at)?;
    let pseudo = pseudo(packet, Sum::default(), ip.payload_len, ip.protocol)?;
    Some((found == !pseudo.checksum()).then_some(found))
}

#[inline(always)]
fn write(
    packet: &mut (impl Packet + ?Sized),
    tap: &Tap,
    ip: &Ipv6,
    unfinished: Option<u16>,
) -> Option<()> {
    packet.push(FRONT)?;
    packet.truncate(ETH_LEN + FRONT + QUOTE)?;
    store_ethernet(packet, tap.mac, ROUTER_MAC)?;
    store_header(packet, 8 + QUOTE as u16, &ip.source)?;
    packet.store_u16(MESSAGE, PACKET_TOO_BIG)?;
    packet.store_u16(CHECKSUM, 0)?;
    packet.store_u32(MESSAGE + 4, u32::from(tap.mtu).to_be())?;
    match unfinished {
        // Whatever is above the quoted IPv6 header, once its checksum is right it adds up to
        // what that began with, taken away.
        Some(found) => {
            let rest = Sum::default().word(!found);
            store_checksum(packet, 8 + QUOTE, rest, (8 + HEADER_LEN) / 4)
        }
        None => store_checksum(packet, 8 + QUOTE, Sum::default(), CHECKSUM_WORDS),
    }
}
