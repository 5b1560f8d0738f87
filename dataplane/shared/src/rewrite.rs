//! Addresses and ports, changed with the checksums that cover them.

use crate::checksum::Delta;
use crate::packet::Packet;
use crate::parse::{ICMP, IP_CHECKSUM, IP_DESTINATION, IP_SOURCE, Ipv4, Part, TCP, UDP};

/// Changes a packet's addresses.
#[inline(always)]
pub(crate) fn readdress(
    packet: &mut (impl Packet + ?Sized),
    ip: &Ipv4,
    source: u32,
    destination: u32,
) -> Option<()> {
    let delta = Delta::default()
        .long(ip.source, source)
        .long(ip.destination, destination);
    packet.store_u32(IP_SOURCE, source)?;
    packet.store_u32(IP_DESTINATION, destination)?;
    delta.store(packet, IP_CHECKSUM)?;
    // ICMP's checksum does not cover addresses.
    if ip.part == Part::Later || ip.protocol == ICMP {
        return Some(());
    }
    above(packet, ip, delta, true)
}

/// Changes a port, or an ICMP query's identifier, that lies at `at`.
#[inline(always)]
pub(crate) fn repoint(
    packet: &mut (impl Packet + ?Sized),
    ip: &Ipv4,
    at: usize,
    old: u16,
    new: u16,
) -> Option<()> {
    packet.store_u16(at, new)?;
    above(packet, ip, Delta::default().word(old, new), false)
}

/// Changes the checksum above the IPv4 header.
#[inline(always)]
fn above(
    packet: &mut (impl Packet + ?Sized),
    ip: &Ipv4,
    delta: Delta,
    addresses: bool,
) -> Option<()> {
    match ip.protocol {
        TCP => packet.change_checksum(ip.payload + 16, delta, addresses),
        ICMP => packet.change_checksum(ip.payload + 2, delta, addresses),
        UDP => packet.change_udp_checksum(ip.payload + 6, delta, addresses),
        _ => Some(()),
    }
}

/// A change of the packet that an ICMP error quotes.
pub(crate) struct Quote {
    /// Where the address is in its IPv4 header.
    address_at: usize,
    address: (u32, u32),
    /// Where the port is behind it, and what becomes of it.
    port: Option<(usize, u16, u16)>,
}

impl Quote {
    /// Its source changes.
    #[inline(always)]
    pub(crate) fn source(old: u32, new: u32) -> Self {
        Self {
            address_at: 12,
            address: (old, new),
            port: None,
        }
    }

    /// Its destination changes.
    #[inline(always)]
    pub(crate) fn destination(old: u32, new: u32) -> Self {
        Self {
            address_at: 16,
            address: (old, new),
            port: None,
        }
    }

    /// So does the port, or an ICMP query's identifier, that lies `at` bytes behind its
    /// IPv4 header.
    #[inline(always)]
    pub(crate) fn with_port(self, at: usize, old: u16, new: u16) -> Self {
        Self {
            port: Some((at, old, new)),
            ..self
        }
    }
}

/// Changes what an ICMP error quotes at `quote`, and the error's checksum. The quoted
/// transport checksum is left: it may be cut off, and nobody can verify it.
#[inline(always)]
pub(crate) fn requote(
    packet: &mut (impl Packet + ?Sized),
    ip: &Ipv4,
    quote: usize,
    change: &Quote,
) -> Option<()> {
    let (old, new) = change.address;
    let header_len = usize::from(packet.load_u8(quote)? & 0x0f) * 4;
    let address = packet.load_u32(quote + change.address_at)?;
    if address != old {
        return None;
    }
    packet.store_u32(quote + change.address_at, new)?;
    let moved = Delta::default().long(old, new);
    let old_sum = packet.load_u16(quote + 10)?;
    let new_sum = moved.apply(old_sum);
    packet.store_u16(quote + 10, new_sum)?;
    let mut delta = moved.word(old_sum, new_sum);
    if let Some((at, old, new)) = change.port {
        packet.store_u16(quote + header_len + at, new)?;
        delta = delta.word(old, new);
    }
    delta.store(packet, ip.payload + 2)
}
