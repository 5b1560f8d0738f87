//! Ethernet, IPv4 and the first bytes above it.
//!
//! ```text
//! 0          6          12     14                34 (+ options)
//! │ dst MAC  │ src MAC  │ type │ IPv4 header     │ TCP, UDP, ICMP …
//! ```

use crate::ipv6;
use crate::packet::{Head, Packet};

/// Ethernet header's length.
pub const ETH_LEN: usize = 14;
/// Offset of the Ethernet source.
pub const ETH_SOURCE: usize = 6;
/// Offset of the EtherType.
pub const ETH_TYPE: usize = 12;
/// IPv4's EtherType as it lies in a packet.
pub const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
/// IPv6's EtherType as it lies in a packet.
pub const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
/// ARP's EtherType as it lies in a packet.
pub const ETHERTYPE_ARP: u16 = 0x0806u16.to_be();

/// Version and header length of an IPv4 header without options.
pub const WITHOUT_OPTIONS: u8 = 0x45;
/// Offset of the IPv4 total length.
pub const IP_LENGTH: usize = ETH_LEN + 2;
/// Offset of the IPv4 TTL.
pub const IP_TTL: usize = ETH_LEN + 8;
/// Offset of the IPv4 header checksum.
pub const IP_CHECKSUM: usize = ETH_LEN + 10;
/// Offset of the IPv4 source.
pub const IP_SOURCE: usize = ETH_LEN + 12;
/// Offset of the IPv4 destination.
pub const IP_DESTINATION: usize = ETH_LEN + 16;

/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number (RFC 4443 §1).
pub const ICMPV6: u8 = 58;
/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An IP header whose lengths have been checked against the frame: of IPv4 (RFC 791 §3.1),
/// or of IPv6 with numbers in place of its addresses ([`crate::ipv6`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Which IP.
    pub family: Family,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Protocol number; of IPv6 the last next-header field.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Identification.
    pub id: u32,
    /// What of a datagram this is.
    pub part: Part,
    /// Offset of the payload in the frame.
    pub payload: usize,
    /// Length of the payload.
    pub payload_len: usize,
}

/// An [`Ip`] of IPv4.
pub type Ipv4 = Ip;

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What of a datagram a packet is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// Its first fragment: it has the ports.
    First = 1,
    /// A later fragment: it has no ports.
    Later = 2,
}

/// Reads the IPv4 header behind the Ethernet header. `None`: it is cut short or contradicts
/// itself or the frame.
#[inline(always)]
pub fn ipv4(packet: &(impl Packet + ?Sized)) -> Option<Ipv4> {
    ipv4_of(&packet.load_head()?, packet.len())
}

/// Reads the IPv4 header in the head of a frame of `frame_len` bytes. `None`: as of [`ipv4`].
#[inline(always)]
pub fn ipv4_of(head: &Head, frame_len: usize) -> Option<Ipv4> {
    let Head {
        version,
        ttl,
        protocol,
        id,
        source,
        destination,
        ..
    } = *head;
    let header_len = usize::from(version & 0x0f) * 4;
    let total_len = usize::from(u16::from_be(head.length));
    let fragment = u16::from_be(head.fragment);
    if version >> 4 != 4 || header_len < 20 || total_len < header_len {
        return None;
    }
    if ETH_LEN + total_len > frame_len {
        return None;
    }
    // A later fragment that would overwrite the TCP header of its first (RFC 3128).
    if protocol == TCP && matches!(fragment & FRAGMENT_OFFSET, 1 | 2) {
        return None;
    }
    let part = if fragment & FRAGMENT_OFFSET != 0 {
        Part::Later
    } else if fragment & MORE_FRAGMENTS != 0 {
        Part::First
    } else {
        Part::Whole
    };
    Some(Ipv4 {
        family: Family::V4,
        source,
        destination,
        protocol,
        ttl,
        id: u32::from(id),
        part,
        payload: ETH_LEN + header_len,
        payload_len: total_len - header_len,
    })
}

/// What a flow is told apart by, above the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Source port; of ICMP queries the identifier; else 0.
    pub source: u16,
    /// Destination port; of ICMP queries the identifier; else 0.
    pub destination: u16,
    /// What a rule's port is compared with, in network order: the destination port; of
    /// ICMP type and code; else 0.
    pub rule_port: u16,
    /// What it is to a flow.
    pub role: Role,
}

/// What a packet is to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A TCP segment with these flags.
    Tcp(TcpFlags),
    /// Any datagram: either side may begin.
    Datagram,
    /// An ICMP query of this type: it begins a flow.
    Query(u8),
    /// The answer to an ICMP query of this type: it never does.
    Answer(u8),
    /// An ICMP error, about the packet quoted at this offset.
    Error {
        /// Where the quoted IP header begins.
        quote: usize,
    },
    /// An ICMP message that stands for itself.
    Notice,
}

/// Flags of a TCP segment (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// The sender has no more to say.
    #[inline(always)]
    #[must_use]
    pub fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// It synchronises sequence numbers.
    #[inline(always)]
    #[must_use]
    pub fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// It ends the connection.
    #[inline(always)]
    #[must_use]
    pub fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// It asks for a connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }
}

/// Reads what is above the IP header of a packet that is not a later fragment.
#[inline(always)]
pub fn transport(packet: &(impl Packet + ?Sized), ip: &Ip) -> Option<Transport> {
    let at = ip.payload;
    match ip.protocol {
        TCP => {
            if ip.payload_len < 20 {
                return None;
            }
            let [data_offset, flags] = packet.load_u16(at + 12)?.to_ne_bytes();
            let data_offset = data_offset >> 4;
            if data_offset < 5 || usize::from(data_offset) * 4 > ip.payload_len {
                return None;
            }
            Some(ports(packet.load_u32(at)?, Role::Tcp(TcpFlags(flags))))
        }
        UDP => {
            if ip.payload_len < 8 {
                return None;
            }
            let [a, b, c, d, e, f, ..] = packet.load_u64(at)?.to_ne_bytes();
            let length = usize::from(u16::from_be_bytes([e, f]));
            if length < 8 || (ip.part == Part::Whole && length > ip.payload_len) {
                return None;
            }
            Some(ports(u32::from_ne_bytes([a, b, c, d]), Role::Datagram))
        }
        ICMP if ip.family == Family::V4 => icmp(packet, ip),
        ICMPV6 if ip.family == Family::V6 => ipv6::parse::icmp(packet, ip.payload, ip.payload_len),
        _ => Some(Transport {
            source: 0,
            destination: 0,
            rule_port: 0,
            role: Role::Datagram,
        }),
    }
}

/// What is above the IPv4 header, by its ports.
#[inline(always)]
fn ports(both: u32, role: Role) -> Transport {
    let [a, b, c, d] = both.to_ne_bytes();
    let destination = u16::from_ne_bytes([c, d]);
    Transport {
        source: u16::from_ne_bytes([a, b]),
        destination,
        rule_port: destination,
        role,
    }
}

/// Reads an ICMP message (RFC 792; numbers: IANA "ICMP Parameters").
#[inline(always)]
fn icmp(packet: &(impl Packet + ?Sized), ip: &Ipv4) -> Option<Transport> {
    if ip.payload_len < 8 {
        return None;
    }
    let at = ip.payload;
    let kind = packet.load_u8(at)?;
    let role = match kind {
        8 | 13 | 15 | 17 => Role::Query(kind),
        0 => Role::Answer(8),
        14 | 16 | 18 => Role::Answer(kind - 1),
        3 | 4 | 11 | 12 => Role::Error { quote: at + 8 },
        _ => Role::Notice,
    };
    message(packet, at, role)
}

/// What an ICMP message of either IP is to a flow: an echo's number in its ports' place; a
/// rule asks for its type and code.
#[inline(always)]
pub(crate) fn message(packet: &(impl Packet + ?Sized), at: usize, role: Role) -> Option<Transport> {
    let id = match role {
        Role::Query(_) | Role::Answer(_) => packet.load_u16(at + 4)?,
        _ => 0,
    };
    Some(Transport {
        source: id,
        destination: id,
        rule_port: packet.load_u16(at)?,
        role,
    })
}

/// Reads the ports of a packet that an ICMP error quotes: an IPv4 header and 8 bytes
/// (RFC 792). Its lengths speak of the packet that was, so they are not checked.
#[inline(always)]
pub fn quoted(packet: &(impl Packet + ?Sized), at: usize) -> Option<(Ipv4, Transport)> {
    let version = packet.load_u8(at)?;
    let header_len = usize::from(version & 0x0f) * 4;
    if version >> 4 != 4 || header_len < 20 {
        return None;
    }
    // Ports behind options could lie where a tunnelled packet has its checksum.
    if packet.may_be_unfinished() && header_len != 20 {
        return None;
    }
    let ip = Ipv4 {
        family: Family::V4,
        source: packet.load_u32(at + 12)?,
        destination: packet.load_u32(at + 16)?,
        protocol: packet.load_u8(at + 9)?,
        ttl: packet.load_u8(at + 8)?,
        id: u32::from(packet.load_u16(at + 4)?),
        part: Part::Whole,
        payload: at + header_len,
        payload_len: 8,
    };
    let fragment = u16::from_be(packet.load_u16(at + 6)?);
    if fragment & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let transport = match ip.protocol {
        TCP | UDP => Transport {
            source: packet.load_u16(ip.payload)?,
            destination: packet.load_u16(ip.payload + 2)?,
            rule_port: 0,
            role: Role::Datagram,
        },
        ICMP => icmp(packet, &ip)?,
        _ => Transport {
            source: 0,
            destination: 0,
            rule_port: 0,
            role: Role::Datagram,
        },
    };
    Some((ip, transport))
}
