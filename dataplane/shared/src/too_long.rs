//! What is longer than its way: never lost in silence (RFC 1191).

use crate::checksum::Sum;
use crate::layout::{Direction, ROUTER_MAC, Reason, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_LEN, ETH_SOURCE, ETH_TYPE, ETHERTYPE_IPV4, ICMP, Ipv4, Part, TCP, UDP};
use crate::vxlan::Header;

/// IPv4 and ICMP headers in front of what is quoted.
const FRONT: usize = 20 + 8;
const ICMP_AT: usize = ETH_LEN + 20;
/// The longest IPv4 header and 8 bytes, in 16-bit words, behind an ICMP header.
const WORDS: usize = (8 + 60 + 8) / 2;
/// An ICMP header, and an IPv4 header without options.
const WORDS_TO_QUOTE: usize = (8 + 20) / 2;
/// Destination unreachable, fragmentation needed (RFC 792).
const FRAGMENTATION_NEEDED: u16 = u16::from_ne_bytes([3, 4]);

/// Whether a frame is longer than its port may send.
#[inline(always)]
pub(crate) fn is(packet: &(impl Packet + ?Sized), tap: &Tap) -> bool {
    packet.segment_len() > ETH_LEN + usize::from(tap.mtu)
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
    let quote = Quote::of(packet, ip).ok_or(Reason::TooLong)?;
    write(packet, tap, ip, &quote).ok_or(Reason::TooLong)?;
    maps.count(tap.slot, Direction::Egress, Reason::TooLong);
    Ok(Action::Bounce)
}

/// What is quoted of a packet.
struct Quote {
    /// Its IP header and some bytes.
    len: usize,
    /// Where those bytes hold a checksum that someone will finish: what is there now.
    unfinished: Option<u16>,
}

impl Quote {
    #[inline(always)]
    fn of(packet: &(impl Packet + ?Sized), ip: &Ipv4) -> Option<Self> {
        let header = ip.payload - ETH_LEN;
        if !packet.may_be_unfinished() || !matches!(ip.protocol, TCP | UDP) {
            return Some(Self {
                len: header + 8,
                unfinished: None,
            });
        }
        // The place of a checksum that is left to others cannot be cut off.
        let (len, at) = if ip.protocol == TCP {
            (header + 20, 16)
        } else {
            (header + 8, 6)
        };
        let found = packet.load_u16(ip.payload + at)?;
        let pseudo = Sum::default()
            .long(ip.source)
            .long(ip.destination)
            .word(u16::from(ip.protocol).to_be())
            .word((ip.payload_len as u16).to_be());
        Some(Self {
            len,
            unfinished: (found == !pseudo.checksum()).then_some(found),
        })
    }
}

#[inline(always)]
fn write(packet: &mut (impl Packet + ?Sized), tap: &Tap, ip: &Ipv4, quote: &Quote) -> Option<()> {
    let quoted = quote.len;
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
    let summed = match quote.unfinished {
        // Whatever is above the quoted IP header, once its checksum is right it adds up to
        // what that began with, taken away.
        Some(found) => {
            sum = sum.word(!found);
            WORDS_TO_QUOTE
        }
        None => WORDS,
    };
    for word in 0..summed {
        // The frame ends where the quote does.
        let Some(value) = packet.load_u16(ICMP_AT + 2 * word) else {
            break;
        };
        sum = sum.word(value);
    }
    packet.store_u16(ICMP_AT + 2, sum.checksum())
}
