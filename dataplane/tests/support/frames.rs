//! Frames, built by hand.

use std::net::Ipv4Addr;

use ocs_dataplane::shared::checksum::checksum;
use ocs_dataplane::shared::layout::ROUTER_MAC;

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const SYN_ACK: u8 = 0x12;
pub const FIN_ACK: u8 = 0x11;
pub const RST: u8 = 0x04;

/// An end of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct End<A = Ipv4Addr> {
    pub mac: [u8; 6],
    pub ip: A,
    pub port: u16,
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// What an IPv4 header says beyond the usual.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub ttl: u8,
    pub id: u16,
    pub fragment: u16,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            ttl: 64,
            id: 0,
            fragment: 0x4000,
        }
    }
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, header: Header, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a packet of 64 KiB at most");
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&header.id.to_be_bytes());
    packet.extend_from_slice(&header.fragment.to_be_bytes());
    packet.extend_from_slice(&[header.ttl, protocol, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_ne_bytes());
    packet.extend_from_slice(payload);
    packet
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&from.octets());
    bytes.extend_from_slice(&to.octets());
    bytes.extend_from_slice(&[0, protocol]);
    let length = u16::try_from(payload.len()).expect("a segment of 64 KiB at most");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    checksum(&bytes)
}

/// Sequence and acknowledgement number of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub sequence: u32,
    pub acknowledged: u32,
}

pub const ONES: Numbers = Numbers {
    sequence: 1,
    acknowledged: 1,
};

pub fn tcp_segment(from: End, to: End, flags: u8, numbers: Numbers, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&from.port.to_be_bytes());
    segment.extend_from_slice(&to.port.to_be_bytes());
    segment.extend_from_slice(&numbers.sequence.to_be_bytes());
    segment.extend_from_slice(&numbers.acknowledged.to_be_bytes());
    segment.extend_from_slice(&[0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend_from_slice(data);
    let sum = pseudo(from.ip, to.ip, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_ne_bytes());
    segment
}

pub fn udp_datagram(from: End, to: End, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&from.port.to_be_bytes());
    datagram.extend_from_slice(&to.port.to_be_bytes());
    let length = u16::try_from(8 + data.len()).expect("a datagram of 64 KiB at most");
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    let sum = pseudo(from.ip, to.ip, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_ne_bytes());
    datagram
}

pub fn tcp(from: End, to: End, flags: u8) -> Vec<u8> {
    tcp_at(from, to, flags, ONES, b"")
}

pub fn tcp_at(from: End, to: End, flags: u8, numbers: Numbers, data: &[u8]) -> Vec<u8> {
    let segment = tcp_segment(from, to, flags, numbers, data);
    let packet = ipv4(from.ip, to.ip, 6, Header::default(), &segment);
    ethernet(to.mac, from.mac, 0x0800, &packet)
}

pub fn udp(from: End, to: End, data: &[u8]) -> Vec<u8> {
    let datagram = udp_datagram(from, to, data);
    let packet = ipv4(from.ip, to.ip, 17, Header::default(), &datagram);
    ethernet(to.mac, from.mac, 0x0800, &packet)
}

pub fn icmp_message(kind: u8, code: u8, id: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message.extend_from_slice(data);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    message
}

pub fn icmp(from: End, to: End, kind: u8, code: u8, id: u16, data: &[u8]) -> Vec<u8> {
    let message = icmp_message(kind, code, id, data);
    let packet = ipv4(from.ip, to.ip, 1, Header::default(), &message);
    ethernet(to.mac, from.mac, 0x0800, &packet)
}

/// An ARP request, or with `operation` 2 a reply.
pub fn arp(from: End, operation: u8, target: Ipv4Addr) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
    payload.extend_from_slice(&from.mac);
    payload.extend_from_slice(&from.ip.octets());
    payload.extend_from_slice(&[0; 6]);
    payload.extend_from_slice(&target.octets());
    ethernet([0xff; 6], from.mac, 0x0806, &payload)
}

/// The responder as guests see it.
pub fn metadata(port: u16) -> End {
    End {
        mac: ROUTER_MAC,
        ip: Ipv4Addr::new(169, 254, 169, 254),
        port,
    }
}

/// Whether the IPv4 header's and, of whole TCP, UDP and ICMP packets, the payload's
/// checksums are right.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let packet = &frame[14..];
    let header = usize::from(packet[0] & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let payload = &packet[header..length];
    let from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
    let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
    let above = match packet[9] {
        1 => checksum(payload),
        protocol => pseudo(from, to, protocol, payload),
    };
    checksum(&packet[..header]) == 0 && above == 0
}

/// What is above the IPv4 header of a frame.
pub fn payload(frame: &[u8]) -> &[u8] {
    &frame[34..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))]
}

pub fn source(frame: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29])
}

pub fn destination(frame: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33])
}

/// The sum over an IPv4 header with its checksum: 0 if that is right.
pub fn header_sum(packet: &[u8]) -> u16 {
    checksum(&packet[..usize::from(packet[0] & 0x0f) * 4])
}
