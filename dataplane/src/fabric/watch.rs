//! Watching a port: its frames as they pass, its flows as they are logged.
//!
//! The programs look for a ring or a table of the port's slot; where there is none they do
//! nothing. So whoever is not watched pays a look-up in an array, and a watcher that
//! falls behind loses what it does not read and nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use aya::maps::{Map, MapData, RingBuf};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};
use ocs_dataplane_shared::capture::Captured;
use ocs_dataplane_shared::layout::Direction;
use ocs_dataplane_shared::log::{LOG_FLOWS, LogKey};

use crate::compiler::Entries;

use super::error::{FabricError, map};
use super::maps::{CAPTURES, FLOW_LOGS, KernelMaps, LogTable, Raw, present};

/// Bytes of a capture's ring: what may wait to be read, some 2,700 frames.
const RING_BYTES: u32 = 4 << 20;

/// A frame that a port sent or received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When, on the monotonic clock.
    pub time_ns: u64,
    /// Seen from the port.
    pub direction: Direction,
    /// Its length; `bytes` may be less.
    pub length: u32,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// Frames of one port, until it is ended.
pub struct Capture {
    pub(super) slot: u32,
    pub(super) id: u32,
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// The next frame, if one waits.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let item = self.ring.next()?;
        let word = |at: usize| {
            item.get(at..at + 4)?
                .try_into()
                .ok()
                .map(u32::from_ne_bytes)
        };
        let time_ns = u64::from_ne_bytes(item.first_chunk().copied()?);
        let (length, shown, direction) = (word(8)?, word(12)?, word(16)?);
        let bytes = item.get(std::mem::offset_of!(Captured, bytes)..)?;
        let shown = usize::try_from(shown).ok()?.min(bytes.len());
        Some(Frame {
            time_ns,
            direction: if direction == Direction::Egress as u32 {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            length,
            bytes: bytes[..shown].to_vec(),
        })
    }
}

impl AsFd for Capture {
    /// Readable when frames wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Starts to watch a slot, in place of whoever watched it before.
pub(super) fn capture(maps: &mut KernelMaps, slot: u32) -> Result<Capture, FabricError> {
    let kind = bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
    let form = aya_obj::Map::new_from_params(kind, 0, 0, RING_BYTES, 0);
    let ring = MapData::create(form, "capture", None).map_err(map(CAPTURES))?;
    let id = ring.info().map_err(map(CAPTURES))?.id();
    maps.captures.set(slot, &ring, 0).map_err(map(CAPTURES))?;
    let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(map(CAPTURES))?;
    Ok(Capture { slot, id, ring })
}

/// Ends a capture, unless another has taken its place.
pub(super) fn end_capture(maps: &KernelMaps, capture: &Capture) -> Result<(), FabricError> {
    let ring = present(maps.captures.get(&capture.slot, 0)).map_err(map(CAPTURES))?;
    let Some(ring) = ring else {
        return Ok(());
    };
    if ring.info().map_err(map(CAPTURES))?.id() == capture.id {
        maps.remove_capture(capture.slot)?;
    }
    Ok(())
}

/// One flow of a port between two readings of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port of TCP and UDP, else 0.
    pub source_port: u16,
    /// Destination port of TCP and UDP, else 0.
    pub destination_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Whether it passed the port's rules.
    pub accepted: bool,
    /// IP packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the first passed.
    pub first: SystemTime,
    /// When the last did.
    pub last: SystemTime,
}

/// What a port's log was told since it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowLog {
    /// Its flows.
    pub records: Vec<FlowRecord>,
    /// Packets of flows that found no room, or whose addresses are gone.
    pub skipped_packets: u64,
}

fn table() -> Result<LogTable, FabricError> {
    let room = u32::try_from(LOG_FLOWS).unwrap_or(u32::MAX);
    let mut table = LogTable::create(room, BPF_F_NO_PREALLOC).map_err(map(FLOW_LOGS))?;
    table
        .insert(Raw(LogKey::SKIPPED), [0; 4], 0)
        .map_err(map(FLOW_LOGS))?;
    Ok(table)
}

/// Starts a slot's log, unless it has one.
pub(super) fn start_log(maps: &mut KernelMaps, slot: u32) -> Result<(), FabricError> {
    if present(maps.flow_logs.get(&slot, 0))
        .map_err(map(FLOW_LOGS))?
        .is_none()
    {
        maps.flow_logs
            .set(slot, &table()?, 0)
            .map_err(map(FLOW_LOGS))?;
    }
    Ok(())
}

/// What tells when a jiffy was.
pub(super) struct Clock {
    pub(super) jiffies: u64,
    pub(super) hz: u32,
}

impl Clock {
    fn time(&self, jiffies: u64) -> SystemTime {
        let ago_ms = self.jiffies.saturating_sub(jiffies) * 1_000 / u64::from(self.hz.max(1));
        SystemTime::now() - Duration::from_millis(ago_ms)
    }
}

/// An address as it lies in a packet.
fn from_packet(address: [u32; 4]) -> Ipv6Addr {
    let bytes = address.map(u32::to_ne_bytes);
    bytes.as_flattened().try_into().map_or_else(
        |_| Ipv6Addr::UNSPECIFIED,
        |bytes: [u8; 16]| Ipv6Addr::from(bytes),
    )
}

/// Addresses by what stands for them in a log.
pub(super) struct Addresses(BTreeMap<u32, Ipv6Addr>);

impl Addresses {
    /// Those of a host with these entries.
    pub(super) fn of_host(entries: &Entries) -> Self {
        let endpoints = entries.endpoints_ipv6.iter();
        let numbered = endpoints.map(|(key, endpoint)| (endpoint.number, from_packet(key.address)));
        Self(numbered.collect())
    }

    /// The addresses of a record. IPv4's are themselves, and one at least is a host's; numbers
    /// of IPv6's are no IPv4 host's. `None`: a number whose address the host knows no more.
    fn of(&self, maps: &KernelMaps, key: &LogKey) -> Result<Option<[IpAddr; 2]>, FabricError> {
        let ends = [key.source, key.destination];
        let is_number = |raw: &u32| matches!(raw.to_ne_bytes(), [0 | 224.., ..]);
        if !ends.iter().all(is_number) {
            let address = |raw: u32| IpAddr::V4(Ipv4Addr::from(raw.to_ne_bytes()));
            return Ok(Some(ends.map(address)));
        }
        let mut found = [IpAddr::V6(Ipv6Addr::UNSPECIFIED); 2];
        for (found, number) in found.iter_mut().zip(ends) {
            let address = match self.0.get(&number) {
                Some(address) => *address,
                None => match maps.stranger(number)? {
                    Some(address) => from_packet(address),
                    None => return Ok(None),
                },
            };
            *found = IpAddr::V6(address);
        }
        Ok(Some(found))
    }
}

/// Takes what a slot's log was told; `None`: it has none. The kernel returns from the
/// exchange when no program uses the old table any more, so no packet is lost between.
pub(super) fn take_log(
    maps: &mut KernelMaps,
    slot: u32,
    clock: &Clock,
    addresses: &Addresses,
) -> Result<Option<FlowLog>, FabricError> {
    let Some(old) = present(maps.flow_logs.get(&slot, 0)).map_err(map(FLOW_LOGS))? else {
        return Ok(None);
    };
    maps.flow_logs
        .set(slot, &table()?, 0)
        .map_err(map(FLOW_LOGS))?;
    let mut log = FlowLog::default();
    for entry in old.iter() {
        let (Raw(key), [packets, bytes, first, last]) = entry.map_err(map(FLOW_LOGS))?;
        if key == LogKey::SKIPPED {
            log.skipped_packets = packets;
            continue;
        }
        let Some([source, destination]) = addresses.of(maps, &key)? else {
            log.skipped_packets += packets;
            continue;
        };
        log.records.push(FlowRecord {
            source,
            destination,
            source_port: u16::from_be(key.source_port),
            destination_port: u16::from_be(key.destination_port),
            protocol: key.protocol,
            accepted: key.accepted != 0,
            packets,
            bytes,
            first: clock.time(first),
            last: clock.time(last.max(first)),
        });
    }
    Ok(Some(log))
}
