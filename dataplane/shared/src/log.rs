//! What passed or was refused between a port and others, flow by flow: the source of VPC
//! flow logs.
//!
//! A port that is logged has a table of its own, so a scan of one port's skips records of
//! that port alone. The loader puts an empty table in a full one's place and reads the
//! old one at leisure.

use crate::layout::Address;
use crate::maps::Maps;
use crate::packet::Packet;
use crate::parse::{ETH_LEN, Ip, TCP, Transport, UDP};
use crate::word::Word;

/// Flows of one port between two readings of its log.
pub const LOG_FLOWS: usize = 8192;

/// Key of a port's table in `FLOW_LOGS`: what a record of AWS's is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey {
    /// Source address, or the number of an IPv6 address.
    pub source: Address,
    /// Destination address, likewise.
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

    /// Adds packets.
    #[inline(always)]
    pub fn add(&self, packets: u64, bytes: u64, now: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
        self.last.store(now);
    }
}

/// Adds an IP packet to a port's log, if one is kept.
#[inline(always)]
pub(crate) fn record(
    packet: &(impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
    ip: &Ip,
    ports: &Transport,
    accepted: bool,
) {
    if !maps.is_logged(slot) {
        return;
    }
    let named = if matches!(ip.protocol, TCP | UDP) {
        u32::from(ports.source) << 16 | u32::from(ports.destination)
    } else {
        0
    };
    let packets = packet.segments();
    let bytes = packet.segments_len() - packets * ETH_LEN as u64;
    let what = packets << 48 | bytes << 16 | u64::from(accepted) << 8 | u64::from(ip.protocol);
    let peers = u64::from(ip.source) << 32 | u64::from(ip.destination);
    write(maps, slot, peers, named, what);
}

/// Not inlined: a function of its own has a stack of its own, of which a program has little.
#[inline(never)]
fn write(maps: &impl Maps, slot: u32, peers: u64, named: u32, what: u64) {
    let key = LogKey {
        source: (peers >> 32) as u32,
        destination: peers as u32,
        source_port: (named >> 16) as u16,
        destination_port: named as u16,
        protocol: what as u8,
        accepted: (what >> 8) as u8,
        reserved: 0,
    };
    maps.log(slot, &key, what >> 48, what >> 16 & 0xffff_ffff);
}
