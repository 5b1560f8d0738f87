//! The packet that is asked about, as a guest would send it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ocs_dataplane_shared::layout::ROUTER_MAC;
use ocs_dataplane_shared::parse::{ICMP, ICMPV6, TCP, UDP};

use crate::fabric::error::FabricError;
use crate::model::Port;

/// A packet that might be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// One of the port's addresses.
    pub source: IpAddr,
    /// Whom it is for; of the same IP.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Source port of TCP and UDP.
    pub source_port: u16,
    /// Destination port of TCP and UDP; type and code of ICMP; else 0.
    pub destination_port: u16,
}

/// The first packet of a flow, on its way to the port's router.
pub(super) fn frame(port: &Port, packet: Packet) -> Result<Vec<u8>, FabricError> {
    let above = above(packet);
    let ip = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ipv4(source, destination, packet.protocol, &above)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ipv6(source, destination, packet.protocol, &above)
        }
        (source, destination) => {
            return Err(FabricError::TwoIps {
                source_address: source,
                destination,
            });
        }
    };
    Ok([&ROUTER_MAC, &port.mac.0, &ip[..]].concat())
}

/// What is above its IP header. Checksums are nobody's to check on the way.
fn above(packet: Packet) -> Vec<u8> {
    let ports = [
        packet.source_port.to_be_bytes(),
        packet.destination_port.to_be_bytes(),
    ]
    .concat();
    match packet.protocol {
        // A SYN (RFC 9293 §3.1).
        TCP => [&ports[..], &[0; 8], &[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        UDP => [&ports[..], &[0, 8, 0, 0]].concat(),
        ICMP | ICMPV6 => [&ports[2..], &[0; 6]].concat(),
        _ => vec![0; 8],
    }
}

/// EtherType and packet (RFC 791 §3.1).
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, above: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + above.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0x08, 0x00, 0x45, 0];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend_from_slice(&source.octets());
    bytes.extend_from_slice(&destination.octets());
    bytes.extend_from_slice(above);
    bytes
}

/// EtherType and packet (RFC 8200 §3).
fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, above: &[u8]) -> Vec<u8> {
    let length = u16::try_from(above.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0x86, 0xdd, 0x60, 0, 0, 0];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[next, 64]);
    bytes.extend_from_slice(&source.octets());
    bytes.extend_from_slice(&destination.octets());
    bytes.extend_from_slice(above);
    bytes
}
