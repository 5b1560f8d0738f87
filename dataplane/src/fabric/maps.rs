//! The kernel's maps, by name and form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::XdpMapError;
use aya::maps::{Array, ArrayOfMaps, DevMap, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use ocs_dataplane_shared::flow::{BUCKET_WORDS, Bucket};
use ocs_dataplane_shared::layout::{
    self, Direction, Endpoint, EndpointKey, FLOW_BUCKETS, REASONS, RESPONDER_SLOT, RULE_BITS,
    Reason, RuleKey, Service, Tap,
};
use ocs_dataplane_shared::limit::{Limits, METER_WORDS, Meters};
use ocs_dataplane_shared::log::{LogKey, LogRecord};

use super::bpffs::Pins;
use super::contents::{Contents, Tables};
use super::error::{FabricError, map};
use super::{Counters, bpf};
use crate::compiler::Entries;

/// Every map of the object.
pub(super) const NAMES: [&str; 11] = [
    TAPS, ENDPOINTS, SERVICES, RULES, FLOWS, LIMITS, METERS, FLOW_LOGS, CAPTURES, COUNTERS, DEVICES,
];
const TAPS: &str = "TAPS";
const ENDPOINTS: &str = "ENDPOINTS";
const SERVICES: &str = "SERVICES";
const RULES: &str = "RULES";
const FLOWS: &str = "FLOWS";
const LIMITS: &str = "LIMITS";
const METERS: &str = "METERS";
pub(super) const FLOW_LOGS: &str = "FLOW_LOGS";
pub(super) const CAPTURES: &str = "CAPTURES";
const COUNTERS: &str = "COUNTERS";
const DEVICES: &str = "DEVICES";

/// A key or value of [`layout`], as bytes for the kernel.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub(super) T);

/// Marks types without padding, for which every pattern of bytes is a value.
trait Plain: Copy + 'static {}
impl Plain for Tap {}
impl Plain for Endpoint {}
impl Plain for EndpointKey {}
impl Plain for Service {}
impl Plain for RuleKey {}
impl Plain for layout::Counters {}
impl Plain for Limits {}
impl Plain for LogKey {}

// SAFETY: the types marked `Plain` are `repr(C)` structures of integers whose fields fill
// them (`layout` asserts their sizes).
unsafe impl<T: Plain> Pod for Raw<T> {}

/// A flow table's bucket as words.
type BucketWords = [u64; BUCKET_WORDS];
/// A port's flow log; the words of a [`LogRecord`].
pub(super) type LogTable = HashMap<MapData, Raw<LogKey>, [u64; size_of::<LogRecord>() / 8]>;
/// A slot's meters as words.
type MeterWords = [u64; METER_WORDS];

/// The maps that the loader writes.
pub(super) struct KernelMaps {
    taps: HashMap<MapData, u32, Raw<Tap>>,
    endpoints: HashMap<MapData, Raw<EndpointKey>, Raw<Endpoint>>,
    services: HashMap<MapData, u32, Raw<Service>>,
    rules: LpmTrie<MapData, Raw<RuleKey>, u32>,
    flows: ArrayOfMaps<MapData, Array<MapData, BucketWords>>,
    limits: Array<MapData, Raw<Limits>>,
    meters: Array<MapData, MeterWords>,
    pub(super) flow_logs: ArrayOfMaps<MapData, LogTable>,
    pub(super) captures: ArrayOfMaps<MapData, MapData>,
    counters: PerCpuArray<MapData, Raw<layout::Counters>>,
    devices: DevMap<MapData>,
    /// Some of them once more, to delete from.
    flows_data: MapData,
    flow_logs_data: MapData,
    captures_data: MapData,
    devices_data: MapData,
}

impl fmt::Debug for KernelMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelMaps").finish_non_exhaustive()
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, FabricError> {
    let found = object
        .take_map(name)
        .ok_or(FabricError::Object { kind: "map", name })?;
    T::try_from(found).map_err(map(name))
}

impl KernelMaps {
    /// Takes the maps out of an object.
    pub(super) fn take(object: &mut Ebpf, pins: &Pins) -> Result<Self, FabricError> {
        Ok(Self {
            taps: take(object, TAPS)?,
            endpoints: take(object, ENDPOINTS)?,
            services: take(object, SERVICES)?,
            rules: take(object, RULES)?,
            flows: take(object, FLOWS)?,
            limits: take(object, LIMITS)?,
            meters: take(object, METERS)?,
            flow_logs: take(object, FLOW_LOGS)?,
            captures: take(object, CAPTURES)?,
            counters: take(object, COUNTERS)?,
            devices: take(object, DEVICES)?,
            flows_data: MapData::from_pin(pins.map(FLOWS)).map_err(map(FLOWS))?,
            flow_logs_data: MapData::from_pin(pins.map(FLOW_LOGS)).map_err(map(FLOW_LOGS))?,
            captures_data: MapData::from_pin(pins.map(CAPTURES)).map_err(map(CAPTURES))?,
            devices_data: MapData::from_pin(pins.map(DEVICES)).map_err(map(DEVICES))?,
        })
    }

    /// What the maps hold, whoever wrote it.
    pub(super) fn read(&self) -> Result<Contents, FabricError> {
        let mut entries = Entries::default();
        for entry in self.taps.iter() {
            let (ifindex, Raw(tap)) = entry.map_err(map(TAPS))?;
            entries.taps.insert(ifindex, tap);
        }
        for entry in self.endpoints.iter() {
            let (Raw(key), Raw(endpoint)) = entry.map_err(map(ENDPOINTS))?;
            entries.endpoints.insert(key, endpoint);
        }
        for entry in self.services.iter() {
            let (address, Raw(service)) = entry.map_err(map(SERVICES))?;
            entries.services.insert(address, service);
        }
        for key in self.rules.keys() {
            let key = key.map_err(map(RULES))?;
            let Raw(rule) = key.data();
            entries.rules.insert((rule, key.prefix_len()));
        }
        entries.devices = self.read_devices()?;
        let mut tables = BTreeSet::new();
        for slot in 1..self.flows.len() {
            match self.flows.get(&slot, 0) {
                Ok(_) => {
                    tables.insert(slot);
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map(FLOWS)(error)),
            }
        }
        for slot in 1..self.limits.len() {
            let Raw(limits) = self.limits.get(&slot, 0).map_err(map(LIMITS))?;
            if limits != Limits::default() {
                entries.limits.insert(slot, limits);
            }
        }
        Ok(Contents { entries, tables })
    }

    fn read_devices(&self) -> Result<BTreeMap<u32, u32>, FabricError> {
        let mut found = BTreeMap::new();
        for slot in RESPONDER_SLOT + 1..self.devices.len() {
            match self.devices.get(slot, 0) {
                Ok(device) => {
                    found.insert(slot, device.if_index);
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map(DEVICES)(error)),
            }
        }
        Ok(found)
    }

    /// Ends whatever watches a slot.
    pub(super) fn remove_capture(&self, slot: u32) -> Result<(), FabricError> {
        bpf::delete_element(&self.captures_data, slot, CAPTURES)
    }

    /// Ends a slot's flow log.
    pub(super) fn remove_flow_log(&self, slot: u32) -> Result<(), FabricError> {
        bpf::delete_element(&self.flow_logs_data, slot, FLOW_LOGS)
    }

    /// What a slot has spent.
    pub(super) fn meters(&self, slot: u32) -> Result<Meters, FabricError> {
        let words = self.meters.get(&slot, 0).map_err(map(METERS))?;
        Ok(Meters::from(words))
    }

    /// What an interface is, as the programs find it.
    pub(super) fn tap(&self, ifindex: u32) -> Result<Option<Tap>, FabricError> {
        let found = self.taps.get(&ifindex, 0);
        Ok(present(found).map_err(map(TAPS))?.map(|Raw(tap)| tap))
    }

    /// Who has an address, as the programs find it.
    pub(super) fn endpoint(&self, key: &EndpointKey) -> Result<Option<Endpoint>, FabricError> {
        let found = self.endpoints.get(&Raw(*key), 0);
        Ok(present(found).map_err(map(ENDPOINTS))?.map(|Raw(one)| one))
    }

    /// Whether any prefix of a key is a rule, as the programs find it.
    pub(super) fn allows(&self, key: &RuleKey) -> Result<bool, FabricError> {
        let found = self.rules.get(&Key::new(RULE_BITS, Raw(*key)), 0);
        Ok(present(found).map_err(map(RULES))?.is_some())
    }

    /// A copy of a bucket of a slot's flow table.
    pub(super) fn bucket(&self, slot: u32, index: u32) -> Result<Option<Bucket>, FabricError> {
        match present(self.flows.get(&slot, 0)).map_err(map(FLOWS))? {
            Some(table) => Ok(Some(Bucket::from(
                table.get(&index, 0).map_err(map(FLOWS))?,
            ))),
            None => Ok(None),
        }
    }

    /// Sets the responder's interface; in the taps' namespace.
    pub(super) fn set_responder_device(&mut self, ifindex: u32) -> Result<(), FabricError> {
        self.put_device(RESPONDER_SLOT, Some(ifindex))
    }

    /// A slot's counters, over all CPUs.
    pub(super) fn counters(&self, slot: u32) -> Result<Counters, FabricError> {
        let values = self.counters.get(&slot, 0).map_err(map(COUNTERS))?;
        let mut found = Counters::default();
        for direction in [Direction::Ingress, Direction::Egress] {
            for reason in Reason::ALL {
                let cell = direction as usize * REASONS + *reason as usize;
                let packets = values
                    .iter()
                    .filter_map(|Raw(counters)| counters.cells.get(cell))
                    .sum::<u64>();
                if packets != 0 {
                    found.packets.insert((direction, *reason), packets);
                }
            }
        }
        Ok(found)
    }
}

impl Tables for KernelMaps {
    fn put_tap(&mut self, ifindex: u32, tap: Option<Tap>) -> Result<(), FabricError> {
        match tap {
            Some(tap) => self.taps.insert(ifindex, Raw(tap), 0),
            None => absent_is_fine(self.taps.remove(&ifindex)),
        }
        .map_err(map(TAPS))
    }

    fn put_endpoint(
        &mut self,
        key: EndpointKey,
        endpoint: Option<Endpoint>,
    ) -> Result<(), FabricError> {
        match endpoint {
            Some(endpoint) => self.endpoints.insert(Raw(key), Raw(endpoint), 0),
            None => absent_is_fine(self.endpoints.remove(&Raw(key))),
        }
        .map_err(map(ENDPOINTS))
    }

    fn put_service(&mut self, address: u32, service: Option<Service>) -> Result<(), FabricError> {
        match service {
            Some(service) => self.services.insert(address, Raw(service), 0),
            None => absent_is_fine(self.services.remove(&address)),
        }
        .map_err(map(SERVICES))
    }

    fn add_rule(&mut self, (key, bits): (RuleKey, u32)) -> Result<(), FabricError> {
        self.rules
            .insert(&Key::new(bits, Raw(key)), 1, 0)
            .map_err(map(RULES))
    }

    fn remove_rule(&mut self, (key, bits): (RuleKey, u32)) -> Result<(), FabricError> {
        absent_is_fine(self.rules.remove(&Key::new(bits, Raw(key)))).map_err(map(RULES))
    }

    fn make_table(&mut self, slot: u32) -> Result<(), FabricError> {
        let buckets = u32::try_from(FLOW_BUCKETS).unwrap_or(u32::MAX);
        let table = Array::<MapData, BucketWords>::create(buckets, 0).map_err(map(FLOWS))?;
        self.flows.set(slot, &table, 0).map_err(map(FLOWS))?;
        self.meters
            .set(slot, [0; METER_WORDS], 0)
            .map_err(map(METERS))?;
        let cpus = self.counters.get(&slot, 0).map_err(map(COUNTERS))?.len();
        let zero = Raw(layout::Counters {
            cells: [0; 2 * REASONS],
        });
        let zeros = aya::maps::PerCpuValues::try_from(vec![zero; cpus])
            .map_err(|source| map(COUNTERS)(MapError::IoError(source)))?;
        self.counters.set(slot, zeros, 0).map_err(map(COUNTERS))
    }

    fn put_limits(&mut self, slot: u32, limits: Option<Limits>) -> Result<(), FabricError> {
        self.limits
            .set(slot, Raw(limits.unwrap_or_default()), 0)
            .map_err(map(LIMITS))
    }

    fn remove_table(&mut self, slot: u32) -> Result<(), FabricError> {
        // A slot's next port is nobody's to watch.
        self.remove_capture(slot)?;
        self.remove_flow_log(slot)?;
        bpf::delete_element(&self.flows_data, slot, FLOWS)
    }

    // One that is gone is no error: its VMM ended, and whoever made the policy will hear
    // of it. Packets to it are dropped and counted.
    fn put_device(&mut self, slot: u32, ifindex: Option<u32>) -> Result<(), FabricError> {
        let Some(ifindex) = ifindex else {
            return bpf::delete_element(&self.devices_data, slot, DEVICES);
        };
        match self.devices.set(slot, ifindex, None, 0) {
            Ok(()) => Ok(()),
            Err(XdpMapError::MapError(MapError::SyscallError(error)))
                if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                tracing::warn!(slot, ifindex, "interface is gone");
                Ok(())
            }
            Err(error) => Err(FabricError::Link {
                name: format!("{DEVICES} to interface {ifindex}"),
                reason: error.to_string(),
            }),
        }
    }
}

pub(super) fn present<T>(found: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}
