//! IPv6 frames, built by hand.

use std::net::Ipv6Addr;

use ocs_dataplane::model::Port;
use ocs_dataplane::shared::checksum::checksum;
use ocs_dataplane::shared::ipv6::layout::ROUTER;
use ocs_dataplane::shared::layout::ROUTER_MAC;

use super::frames::{self, ethernet};

pub const ETHERTYPE: u16 = 0x86dd;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const FRAGMENT: u8 = 44;
/// Where the payload of a packet without extension headers begins in its frame.
pub const PAYLOAD: usize = 54;

pub type End = frames::End<Ipv6Addr>;

/// A port's first IPv6 address as an end.
pub fn end(port: &Port, at: u16) -> End {
    let ip = port.addresses.iter().find_map(|address| match address {
        std::net::IpAddr::V6(ip) => Some(*ip),
        std::net::IpAddr::V4(_) => None,
    });
    End {
        mac: port.mac.0,
        ip: ip.expect("an IPv6 address"),
        port: at,
    }
}

/// Gives a port an address, in a /64 of its own.
pub fn give(port: &mut Port, address: Ipv6Addr) {
    let subnet = ipnet::Ipv6Net::new(address, 64).expect("a prefix").trunc();
    port.ipv6_subnet = Some(subnet);
    port.addresses.push(address.into());
}

pub fn router() -> End {
    End {
        mac: ROUTER_MAC,
        ip: Ipv6Addr::from(ROUTER),
        port: 0,
    }
}

pub fn packet(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a packet of 64 KiB at most");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[next, hops]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(payload);
    packet
}

pub fn frame(from: End, to: End, next: u8, payload: &[u8]) -> Vec<u8> {
    let packet = packet(from.ip, to.ip, next, 64, payload);
    ethernet(to.mac, from.mac, ETHERTYPE, &packet)
}

/// The checksum of what is above IPv6, with its pseudo-header (RFC 8200 §8.1).
pub fn sum(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&from.octets());
    bytes.extend_from_slice(&to.octets());
    let length = u32::try_from(payload.len()).expect("a packet of 64 KiB at most");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, next]);
    bytes.extend_from_slice(payload);
    checksum(&bytes)
}

pub fn udp_datagram(from: End, to: End, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&from.port.to_be_bytes());
    datagram.extend_from_slice(&to.port.to_be_bytes());
    let length = u16::try_from(8 + data.len()).expect("a datagram of 64 KiB at most");
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    let sum = sum(from.ip, to.ip, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_ne_bytes());
    datagram
}

pub fn tcp_segment(from: End, to: End, flags: u8) -> Vec<u8> {
    tcp_segment_with(from, to, flags, &[])
}

/// A segment whose data has sequence number 1.
pub fn tcp_segment_with(from: End, to: End, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&from.port.to_be_bytes());
    segment.extend_from_slice(&to.port.to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend_from_slice(data);
    let sum = sum(from.ip, to.ip, TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_ne_bytes());
    segment
}

pub fn icmp_message(from: End, to: End, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(rest);
    let sum = sum(from.ip, to.ip, ICMPV6, &message);
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    message
}

pub fn udp(from: End, to: End, data: &[u8]) -> Vec<u8> {
    frame(from, to, UDP, &udp_datagram(from, to, data))
}

pub fn tcp(from: End, to: End, flags: u8) -> Vec<u8> {
    frame(from, to, TCP, &tcp_segment(from, to, flags))
}

/// An echo request, or with `kind` 129 the reply.
pub fn echo(from: End, to: End, kind: u8, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let message = icmp_message(from, to, kind, 0, &[high, low, 0, 1]);
    frame(from, to, ICMPV6, &message)
}

/// An error about a frame.
pub fn error(from: End, to: End, kind: u8, about: &[u8]) -> Vec<u8> {
    let rest = [&[0; 4], &about[14..]].concat();
    frame(from, to, ICMPV6, &icmp_message(from, to, kind, 0, &rest))
}

/// A fragment header in front of a part of a datagram.
pub fn fragment(next: u8, offset: u16, more: bool, id: u32, part: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(part);
    bytes
}

/// A neighbour solicitation to all who might be `target` (RFC 4861 §4.3).
pub fn solicitation(from: End, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let many = End {
        mac: [0x33, 0x33, 0xff, a, b, c],
        ip: Ipv6Addr::new(
            0xff02,
            0,
            0,
            0,
            0,
            1,
            0xff00 | u16::from(a),
            u16::from_be_bytes([b, c]),
        ),
        port: 0,
    };
    let mut rest = vec![0; 4];
    rest.extend_from_slice(&target.octets());
    rest.extend_from_slice(&[1, 1]);
    rest.extend_from_slice(&from.mac);
    to_neighbour(from, many, 135, &rest)
}

/// A message of neighbour discovery.
pub fn to_neighbour(from: End, to: End, kind: u8, rest: &[u8]) -> Vec<u8> {
    let message = icmp_message(from, to, kind, 0, rest);
    let packet = packet(from.ip, to.ip, ICMPV6, 255, &message);
    ethernet(to.mac, from.mac, ETHERTYPE, &packet)
}

/// Whether the checksum above the header of a packet without extension headers is right.
pub fn checksum_holds(frame: &[u8]) -> bool {
    let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
    let (from, to) = (source(frame), destination(frame));
    sum(from, to, frame[20], &frame[PAYLOAD..PAYLOAD + length]) == 0
}

pub fn source(frame: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).expect("an address"))
}

pub fn destination(frame: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(&frame[38..54]).expect("an address"))
}

/// A guest's link-local address.
pub fn link_local(end: End) -> End {
    let [a, b, c, d, e, f] = end.mac.map(u16::from);
    let id = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
    End {
        ip: Ipv6Addr::new(0xfe80, 0, 0, 0, id[0], id[1], id[2], id[3]),
        ..end
    }
}

pub const SYN: u8 = frames::SYN;
