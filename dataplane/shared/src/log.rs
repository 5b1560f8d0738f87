//! What passed or was refused between a port and others, flow by flow: the source of VPC
//! flow logs.
//!
//! A port that is logged has a table of its own, so a scan of one port's skips records of
//! that port alone. The loader puts an empty table in a full one's place and reads the
//! old one at leisure.

use crate::layout::Address;
use crate::maps::Maps;
use crate::packet::Packet;
use crate::parse::{Ipv4, Part, TCP, UDP, transport};
use crate::word::Word;

/// Flows of one port between two readings of its log.
pub const LOG_FLOWS: usize = 8192;

/// Key of a port's table in `FLOW_LOGS`: what a record of AWS's is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port of TCP and UDP, else 0; as it lies in a packet.
    pub source_port: u16,
    /// Destination port of TCP and UDP, else 0; as it lies in a packet.
    pub destination_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// 1: accepted, 0: refused.
    pub accepted: u8,
    /// Zero.
    pub reserved: u16,
}

impl LogKey {
    /// Counts packets of flows that found no room.
    pub const SKIPPED: Self = Self {
        source: 0,
        destination: 0,
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        accepted: 0,
        reserved: u16::MAX,
    };
}

/// Value of a port's table in `FLOW_LOGS`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct LogRecord {
    packets: Word,
    bytes: Word,
    first: Word,
    last: Word,
}

impl LogRecord {
    /// A record of nothing yet.
    #[inline(always)]
    #[must_use]
    pub fn beginning(now: u64) -> Self {
        Self {
            first: Word::new(now),
            ..Self::default()
        }
    }

    /// Adds a packet.
    #[inline(always)]
    pub fn add(&self, bytes: u64, now: u64) {
        self.packets.add(1);
        self.bytes.add(bytes);
        self.last.store(now);
    }
}

/// Adds an IP packet to a port's log, if one is kept. Its ports are read anew: they are
/// known only to those who decide, and only of what they decide.
#[inline(always)]
pub(crate) fn record(
    packet: &(impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
    ip: &Ipv4,
    accepted: bool,
) {
    if !maps.is_logged(slot) {
        return;
    }
    let mut key = LogKey {
        source: ip.source,
        destination: ip.destination,
        protocol: ip.protocol,
        accepted: u8::from(accepted),
        ..LogKey::default()
    };
    if ip.part != Part::Later
        && matches!(ip.protocol, TCP | UDP)
        && let Some(ports) = transport(packet, ip)
    {
        key.source_port = ports.source;
        key.destination_port = ports.destination;
    }
    maps.log(slot, &key, (packet.len() - crate::parse::ETH_LEN) as u64);
}
