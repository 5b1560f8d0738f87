//! The kernel's maps, by name and form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::XdpMapError;
use aya::maps::{
    Array, ArrayOfMaps, DevMap, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray,
};
use aya::programs::ProgramFd;
use aya::{Ebpf, Pod};
use ocs_dataplane_shared::flow::{BUCKET_WORDS, Bucket};
use ocs_dataplane_shared::layout::{
    self, ACL_BITS, ACL_CLASS_BITS, AclClassKey, AclRuleKey, Direction, Endpoint, EndpointKey,
    FIRST_PORT_SLOT, FLOW_BUCKETS, ForwarderKey, Host, NAT_BUCKETS, PREFIX_BITS, Place, PrefixKey,
    REASONS, RULE_BITS, Reason, Route, RuleKey, Service, Tap, Uplink,
};
use ocs_dataplane_shared::limit::{Limits, METER_WORDS, Meters};
use ocs_dataplane_shared::log::{LogKey, LogRecord};

use super::bpffs::Pins;
use super::contents::{Change, Contents, Tables};
use super::error::{FabricError, map};
use super::{Counters, bpf};
use crate::compiler::{Entries, Prefixed};

/// Every map of the object.
pub(super) const NAMES: [&str; 21] = [
    TAPS,
    ENDPOINTS,
    FORWARDERS,
    SERVICES,
    RULES,
    PLACES,
    ROUTES,
    ACL_CLASSES,
    ACL_RULES,
    PUBLICS,
    HOSTS,
    UPLINKS,
    FLOWS,
    NATS,
    LIMITS,
    METERS,
    FLOW_LOGS,
    CAPTURES,
    STAGES,
    COUNTERS,
    DEVICES,
];
const TAPS: &str = "TAPS";
const ENDPOINTS: &str = "ENDPOINTS";
const FORWARDERS: &str = "FORWARDERS";
const SERVICES: &str = "SERVICES";
const RULES: &str = "RULES";
const PLACES: &str = "PLACES";
const ROUTES: &str = "ROUTES";
const ACL_CLASSES: &str = "ACL_CLASSES";
const ACL_RULES: &str = "ACL_RULES";
const PUBLICS: &str = "PUBLICS";
const HOSTS: &str = "HOSTS";
const UPLINKS: &str = "UPLINKS";
const FLOWS: &str = "FLOWS";
const NATS: &str = "NATS";
const LIMITS: &str = "LIMITS";
const METERS: &str = "METERS";
pub(super) const FLOW_LOGS: &str = "FLOW_LOGS";
pub(super) const CAPTURES: &str = "CAPTURES";
const STAGES: &str = "STAGES";
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
impl Plain for ForwarderKey {}
impl Plain for PrefixKey {}
impl Plain for Place {}
impl Plain for Route {}
impl Plain for AclClassKey {}
impl Plain for AclRuleKey {}
impl Plain for Host {}
impl Plain for Uplink {}

// SAFETY: the types marked `Plain` are `repr(C)` structures of integers whose fields fill
// them (`layout` asserts their sizes).
unsafe impl<T: Plain> Pod for Raw<T> {}

/// A flow table's bucket as words.
type BucketWords = [u64; BUCKET_WORDS];
/// A port's flow log; the words of a [`LogRecord`].
pub(super) type LogTable = HashMap<MapData, Raw<LogKey>, [u64; size_of::<LogRecord>() / 8]>;
/// A slot's meters as words.
type MeterWords = [u64; METER_WORDS];

/// A map of [`layout`]'s keys and values.
type Hash<Key, Value> = HashMap<MapData, Raw<Key>, Raw<Value>>;
/// A prefix tree of them.
type Trie<Key, Value> = LpmTrie<MapData, Raw<Key>, Value>;
/// A map of tables.
type TableMap = ArrayOfMaps<MapData, Array<MapData, BucketWords>>;

/// The maps that the loader writes.
pub(super) struct KernelMaps {
    taps: HashMap<MapData, u32, Raw<Tap>>,
    endpoints: Hash<EndpointKey, Endpoint>,
    forwarders: HashMap<MapData, Raw<ForwarderKey>, u32>,
    services: HashMap<MapData, u32, Raw<Service>>,
    rules: Trie<RuleKey, u32>,
    places: Trie<PrefixKey, Raw<Place>>,
    routes: Trie<PrefixKey, Raw<Route>>,
    acl_classes: Trie<AclClassKey, u32>,
    acl_rules: Trie<AclRuleKey, u32>,
    publics: HashMap<MapData, u32, Raw<EndpointKey>>,
    hosts: HashMap<MapData, u32, Raw<Host>>,
    uplinks: HashMap<MapData, u32, Raw<Uplink>>,
    flows: TableMap,
    nats: TableMap,
    limits: Array<MapData, Raw<Limits>>,
    meters: Array<MapData, MeterWords>,
    pub(super) flow_logs: ArrayOfMaps<MapData, LogTable>,
    pub(super) captures: ArrayOfMaps<MapData, MapData>,
    stages: ProgramArray<MapData>,
    counters: PerCpuArray<MapData, Raw<layout::Counters>>,
    devices: DevMap<MapData>,
    /// Some of them once more, to delete from.
    flows_data: MapData,
    nats_data: MapData,
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
        let data = |name| MapData::from_pin(pins.map(name)).map_err(map(name));
        Ok(Self {
            taps: take(object, TAPS)?,
            endpoints: take(object, ENDPOINTS)?,
            forwarders: take(object, FORWARDERS)?,
            services: take(object, SERVICES)?,
            rules: take(object, RULES)?,
            places: take(object, PLACES)?,
            routes: take(object, ROUTES)?,
            acl_classes: take(object, ACL_CLASSES)?,
            acl_rules: take(object, ACL_RULES)?,
            publics: take(object, PUBLICS)?,
            hosts: take(object, HOSTS)?,
            uplinks: take(object, UPLINKS)?,
            flows: take(object, FLOWS)?,
            nats: take(object, NATS)?,
            limits: take(object, LIMITS)?,
            meters: take(object, METERS)?,
            flow_logs: take(object, FLOW_LOGS)?,
            captures: take(object, CAPTURES)?,
            stages: take(object, STAGES)?,
            counters: take(object, COUNTERS)?,
            devices: take(object, DEVICES)?,
            flows_data: data(FLOWS)?,
            nats_data: data(NATS)?,
            flow_logs_data: data(FLOW_LOGS)?,
            captures_data: data(CAPTURES)?,
            devices_data: data(DEVICES)?,
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
        for entry in self.forwarders.iter() {
            let (Raw(key), address) = entry.map_err(map(FORWARDERS))?;
            entries.forwarders.insert(key, address);
        }
        for entry in self.services.iter() {
            let (address, Raw(service)) = entry.map_err(map(SERVICES))?;
            entries.services.insert(address, service);
        }
        for entry in self.publics.iter() {
            let (address, Raw(key)) = entry.map_err(map(PUBLICS))?;
            entries.publics.insert(address, key);
        }
        entries.rules = read_trie(&self.rules, RULES, |value| value)?;
        entries.places = read_trie(&self.places, PLACES, |Raw(value)| value)?;
        entries.routes = read_trie(&self.routes, ROUTES, |Raw(value)| value)?;
        entries.acl_classes = read_trie(&self.acl_classes, ACL_CLASSES, |value| value)?;
        entries.acl_rules = read_trie(&self.acl_rules, ACL_RULES, |value| value)?;
        entries.devices = self.read_devices()?;
        entries.nats = read_tables(&self.nats, NATS)?;
        for slot in FIRST_PORT_SLOT..self.limits.len() {
            let Raw(limits) = self.limits.get(&slot, 0).map_err(map(LIMITS))?;
            if limits != Limits::default() {
                entries.limits.insert(slot, limits);
            }
        }
        let tables = read_tables(&self.flows, FLOWS)?;
        Ok(Contents { entries, tables })
    }

    fn read_devices(&self) -> Result<BTreeMap<u32, u32>, FabricError> {
        let mut found = BTreeMap::new();
        for slot in FIRST_PORT_SLOT..self.devices.len() {
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

    /// What a rule says, as the programs find it; 0: there is none.
    pub(super) fn rule(&self, key: &RuleKey) -> Result<u32, FabricError> {
        let found = find(&self.rules, *key, RULE_BITS, RULES)?;
        Ok(found.unwrap_or(0))
    }

    /// What a network sees of an address.
    pub(super) fn place(&self, key: &PrefixKey) -> Result<Option<Place>, FabricError> {
        let found = find(&self.places, *key, PREFIX_BITS, PLACES)?;
        Ok(found.map(|Raw(place)| place))
    }

    /// The way to an address.
    pub(super) fn route(&self, key: &PrefixKey) -> Result<Option<Route>, FabricError> {
        let found = find(&self.routes, *key, PREFIX_BITS, ROUTES)?;
        Ok(found.map(|Raw(route)| route))
    }

    /// Which of an ACL's entries count.
    pub(super) fn acl_class(&self, key: &AclClassKey) -> Result<Option<u32>, FabricError> {
        find(&self.acl_classes, *key, ACL_CLASS_BITS, ACL_CLASSES)
    }

    /// What an ACL says.
    pub(super) fn acl_allows(&self, key: &AclRuleKey) -> Result<bool, FabricError> {
        let found = find(&self.acl_rules, *key, ACL_BITS, ACL_RULES)?;
        Ok(found.is_some_and(|verdict| verdict != 0))
    }

    /// The address of an endpoint that forwards.
    pub(super) fn forwarder(&self, key: &ForwarderKey) -> Result<Option<u32>, FabricError> {
        present(self.forwarders.get(&Raw(*key), 0)).map_err(map(FORWARDERS))
    }

    /// Whose a public address is.
    pub(super) fn public(&self, address: u32) -> Result<Option<EndpointKey>, FabricError> {
        let found = present(self.publics.get(&address, 0)).map_err(map(PUBLICS))?;
        Ok(found.map(|Raw(key)| key))
    }

    /// How to reach another host.
    pub(super) fn host(&self, address: u32) -> Result<Option<Host>, FabricError> {
        let found = present(self.hosts.get(&address, 0)).map_err(map(HOSTS))?;
        Ok(found.map(|Raw(host)| host))
    }

    /// A copy of a bucket of a NAT gateway's table.
    pub(super) fn nat_bucket(&self, slot: u32, index: u32) -> Result<Option<Bucket>, FabricError> {
        match present(self.nats.get(&slot, 0)).map_err(map(NATS))? {
            Some(table) => Ok(Some(Bucket::from(table.get(&index, 0).map_err(map(NATS))?))),
            None => Ok(None),
        }
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

    /// Sets the program that others go on to at a stage.
    pub(super) fn set_stage(&mut self, stage: u32, program: &ProgramFd) -> Result<(), FabricError> {
        self.stages.set(stage, program, 0).map_err(map(STAGES))
    }

    /// Sets or clears the interface of one of the host's own slots; in its namespace.
    pub(super) fn set_own_device(
        &mut self,
        slot: u32,
        ifindex: Option<u32>,
    ) -> Result<(), FabricError> {
        self.put_device(slot, ifindex)
    }

    /// Says what an interface that is no port's is.
    pub(super) fn set_uplink(
        &mut self,
        slot: u32,
        uplink: Option<Uplink>,
    ) -> Result<(), FabricError> {
        match uplink {
            Some(uplink) => self.uplinks.insert(slot, Raw(uplink), 0),
            None => absent_is_fine(self.uplinks.remove(&slot)),
        }
        .map_err(map(UPLINKS))
    }

    /// Says how to reach another host, or no longer.
    pub(super) fn set_host(&mut self, address: u32, host: Option<Host>) -> Result<(), FabricError> {
        match host {
            Some(host) => self.hosts.insert(address, Raw(host), 0),
            None => absent_is_fine(self.hosts.remove(&address)),
        }
        .map_err(map(HOSTS))
    }

    /// How other hosts are reached.
    pub(super) fn hosts(&self) -> Result<BTreeMap<u32, Host>, FabricError> {
        let mut found = BTreeMap::new();
        for entry in self.hosts.iter() {
            let (address, Raw(host)) = entry.map_err(map(HOSTS))?;
            found.insert(address, host);
        }
        Ok(found)
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
    fn make(&mut self, change: &Change) -> Result<(), FabricError> {
        match *change {
            Change::Tap(key, value) => put(&mut self.taps, key, value.map(Raw), TAPS),
            Change::Endpoint(key, value) => {
                put(&mut self.endpoints, Raw(key), value.map(Raw), ENDPOINTS)
            }
            Change::Forwarder(key, value) => put(&mut self.forwarders, Raw(key), value, FORWARDERS),
            Change::Service(key, value) => put(&mut self.services, key, value.map(Raw), SERVICES),
            Change::Public(key, value) => put(&mut self.publics, key, value.map(Raw), PUBLICS),
            Change::Rule(key, value) => put_prefix(&mut self.rules, key, value, RULES),
            Change::Place(key, value) => put_prefix(&mut self.places, key, value.map(Raw), PLACES),
            Change::Route(key, value) => put_prefix(&mut self.routes, key, value.map(Raw), ROUTES),
            Change::AclClass(key, value) => {
                put_prefix(&mut self.acl_classes, key, value, ACL_CLASSES)
            }
            Change::AclRule(key, value) => put_prefix(&mut self.acl_rules, key, value, ACL_RULES),
            Change::Device(slot, ifindex) => self.put_device(slot, ifindex),
            Change::Table(slot, true) => {
                make_table(&mut self.flows, slot, FLOW_BUCKETS, FLOWS)?;
                self.meters
                    .set(slot, [0; METER_WORDS], 0)
                    .map_err(map(METERS))?;
                self.clear_counters(slot)
            }
            Change::Limits(slot, limits) => self
                .limits
                .set(slot, Raw(limits.unwrap_or_default()), 0)
                .map_err(map(LIMITS)),
            Change::Nat(slot, true) => {
                make_table(&mut self.nats, slot, NAT_BUCKETS, NATS)?;
                self.clear_counters(slot)
            }
            Change::Table(slot, false) => {
                // A slot's next port is nobody's to watch.
                self.remove_capture(slot)?;
                self.remove_flow_log(slot)?;
                bpf::delete_element(&self.flows_data, slot, FLOWS)
            }
            Change::Nat(slot, false) => bpf::delete_element(&self.nats_data, slot, NATS),
        }
    }
}

impl KernelMaps {
    fn clear_counters(&mut self, slot: u32) -> Result<(), FabricError> {
        let cpus = self.counters.get(&slot, 0).map_err(map(COUNTERS))?.len();
        let zero = Raw(layout::Counters {
            cells: [0; 2 * REASONS],
        });
        let zeros = aya::maps::PerCpuValues::try_from(vec![zero; cpus])
            .map_err(|source| map(COUNTERS)(MapError::IoError(source)))?;
        self.counters.set(slot, zeros, 0).map_err(map(COUNTERS))
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

fn put<Key: Pod, Value: Pod>(
    hash: &mut HashMap<MapData, Key, Value>,
    key: Key,
    value: Option<Value>,
    name: &'static str,
) -> Result<(), FabricError> {
    match value {
        Some(value) => hash.insert(key, value, 0),
        None => absent_is_fine(hash.remove(&key)),
    }
    .map_err(map(name))
}

fn put_prefix<K: Plain, Value: Pod>(
    trie: &mut Trie<K, Value>,
    (key, bits): Prefixed<K>,
    value: Option<Value>,
    name: &'static str,
) -> Result<(), FabricError> {
    let key = Key::new(bits, Raw(key));
    match value {
        Some(value) => trie.insert(&key, value, 0),
        None => absent_is_fine(trie.remove(&key)),
    }
    .map_err(map(name))
}

fn find<K: Plain, Value: Pod>(
    trie: &Trie<K, Value>,
    key: K,
    bits: u32,
    name: &'static str,
) -> Result<Option<Value>, FabricError> {
    present(trie.get(&Key::new(bits, Raw(key)), 0)).map_err(map(name))
}

fn read_trie<K: Plain + Ord, Value: Pod, Plainer>(
    trie: &Trie<K, Value>,
    name: &'static str,
    value_of: impl Fn(Value) -> Plainer,
) -> Result<BTreeMap<Prefixed<K>, Plainer>, FabricError> {
    let mut found = BTreeMap::new();
    for entry in trie.iter() {
        let (key, value) = entry.map_err(map(name))?;
        let Raw(data) = key.data();
        found.insert((data, key.prefix_len()), value_of(value));
    }
    Ok(found)
}

fn read_tables(tables: &TableMap, name: &'static str) -> Result<BTreeSet<u32>, FabricError> {
    let mut found = BTreeSet::new();
    for slot in FIRST_PORT_SLOT..tables.len() {
        match tables.get(&slot, 0) {
            Ok(_) => {
                found.insert(slot);
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(map(name)(error)),
        }
    }
    Ok(found)
}

fn make_table(
    tables: &mut TableMap,
    slot: u32,
    buckets: usize,
    name: &'static str,
) -> Result<(), FabricError> {
    let buckets = u32::try_from(buckets).unwrap_or(u32::MAX);
    let table = Array::<MapData, BucketWords>::create(buckets, 0).map_err(map(name))?;
    tables.set(slot, &table, 0).map_err(map(name))
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
