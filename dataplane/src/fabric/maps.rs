//! The kernel's maps, by name and form.

use std::fmt;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::XdpMapError;
use aya::maps::{
    Array, ArrayOfMaps, DevMap, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray,
};
use aya::programs::ProgramFd;
use aya::{Ebpf, Pod};
use ocs_dataplane_shared::directory::{endpoint_cell, host_cell, tap_cell};
use ocs_dataplane_shared::flow::BUCKET_WORDS;
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    self, AclClassKey, AclRuleKey, Endpoint, EndpointKey, FIRST_PORT_SLOT, FLOW_BUCKETS,
    ForwarderKey, Host, NAT_BUCKETS, Place, PrefixKey, REASONS, Route, RuleKey, Service, Tap,
    Uplink,
};
use ocs_dataplane_shared::limit::{Limits, METER_WORDS};
use ocs_dataplane_shared::log::{LogKey, LogRecord};

mod directory;
mod reading;

pub(super) use reading::{present, read_devices};

use directory::{Directory, Names};

use super::bpf;
use super::bpffs::Pins;
use super::contents::{Change, Tables};
use super::error::{FabricError, map};
use crate::compiler::{Entries, Prefixed};

/// Every map of the object.
pub(super) const NAMES: [&str; 39] = [
    TAPS,
    TAP_NAMES.cells,
    TAP_NAMES.entries,
    TAP_NAMES.far,
    ENDPOINTS,
    ENDPOINT_NAMES.cells,
    ENDPOINT_NAMES.entries,
    ENDPOINT_NAMES.far,
    PORTS_IPV6,
    ENDPOINTS_IPV6,
    ROUTES_IPV6,
    PLACES_IPV6,
    PUBLICS_IPV6,
    SECRETS,
    STRANGERS,
    FORWARDERS,
    SERVICES,
    RULES,
    PLACES,
    ROUTES,
    ACL_CLASSES,
    ACL_RULES,
    PUBLICS,
    HOSTS,
    HOST_NAMES.cells,
    HOST_NAMES.entries,
    HOST_NAMES.far,
    UPLINKS,
    FLOWS,
    NATS,
    LIMITS,
    METERS,
    FLOW_LOGS,
    CAPTURES,
    STAGES,
    BUFFER_STAGES,
    COUNTERS,
    DEVICES,
    INTERFACES,
];
const TAPS: &str = "TAPS";
pub(super) const ENDPOINTS: &str = "ENDPOINTS";
const TAP_NAMES: Names = Names {
    cells: "TAP_CELLS",
    entries: "TAP_KNOWN",
    far: "TAP_FAR",
};
const ENDPOINT_NAMES: Names = Names {
    cells: "ENDPOINT_CELLS",
    entries: "ENDPOINT_KNOWN",
    far: "ENDPOINT_FAR",
};
const HOST_NAMES: Names = Names {
    cells: "HOST_CELLS",
    entries: "HOST_KNOWN",
    far: "HOST_FAR",
};
const PORTS_IPV6: &str = "PORTS_IPV6";
pub(super) const ENDPOINTS_IPV6: &str = "ENDPOINTS_IPV6";
const ROUTES_IPV6: &str = "ROUTES_IPV6";
const PLACES_IPV6: &str = "PLACES_IPV6";
const PUBLICS_IPV6: &str = "PUBLICS_IPV6";
pub(super) const SECRETS: &str = "SECRETS";
const STRANGERS: &str = "STRANGERS";
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
pub(super) const FLOWS: &str = "FLOWS";
pub(super) const NATS: &str = "NATS";
const LIMITS: &str = "LIMITS";
const METERS: &str = "METERS";
pub(super) const FLOW_LOGS: &str = "FLOW_LOGS";
pub(super) const CAPTURES: &str = "CAPTURES";
const STAGES: &str = "STAGES";
const BUFFER_STAGES: &str = "BUFFER_STAGES";
const INTERFACES: &str = "INTERFACES";
const COUNTERS: &str = "COUNTERS";
pub(super) const DEVICES: &str = "DEVICES";

/// A key or value of [`layout`], as bytes for the kernel.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub(super) T);

/// Marks types without padding, for which every pattern of bytes is a value.
trait Plain: Copy + 'static {}
impl Plain for Tap {}
impl Plain for Endpoint {}
impl Plain for EndpointKey {}
impl Plain for ipv6::Port {}
impl Plain for ipv6::Endpoint {}
impl Plain for ipv6::EndpointKey {}
impl Plain for ipv6::PrefixKey {}
impl Plain for ipv6::Place {}
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
    /// Who sends, for a successor to read; programs go by the directory.
    taps: Hash<u32, Tap>,
    tap_directory: Directory<u32, Tap>,
    /// Who receives, likewise.
    endpoints: Hash<EndpointKey, Endpoint>,
    endpoint_directory: Directory<EndpointKey, Endpoint>,
    ports_ipv6: Array<MapData, Raw<ipv6::Port>>,
    endpoints_ipv6: Hash<ipv6::EndpointKey, ipv6::Endpoint>,
    routes_ipv6: Trie<ipv6::PrefixKey, Raw<Route>>,
    places_ipv6: Trie<ipv6::PrefixKey, Raw<ipv6::Place>>,
    publics_ipv6: HashMap<MapData, ipv6::Address6, u32>,
    secrets: Array<MapData, ipv6::Secret>,
    strangers: HashMap<MapData, u32, ipv6::Address6>,
    forwarders: HashMap<MapData, Raw<ForwarderKey>, u32>,
    services: HashMap<MapData, u32, Raw<Service>>,
    rules: Trie<RuleKey, u32>,
    places: Trie<PrefixKey, Raw<Place>>,
    routes: Trie<PrefixKey, Raw<Route>>,
    acl_classes: Trie<AclClassKey, u32>,
    acl_rules: Trie<AclRuleKey, u32>,
    publics: HashMap<MapData, u32, Raw<EndpointKey>>,
    hosts: Hash<u64, Host>,
    host_directory: Directory<u64, Host>,
    uplinks: HashMap<MapData, u32, Raw<Uplink>>,
    flows: TableMap,
    nats: TableMap,
    limits: Array<MapData, Raw<Limits>>,
    meters: Array<MapData, MeterWords>,
    pub(super) flow_logs: ArrayOfMaps<MapData, LogTable>,
    pub(super) captures: ArrayOfMaps<MapData, MapData>,
    stages: ProgramArray<MapData>,
    buffer_stages: ProgramArray<MapData>,
    /// What `devices` says, for programs to which that is closed.
    interfaces: Array<MapData, u32>,
    counters: PerCpuArray<MapData, Raw<layout::Counters>>,
    devices: DevMap<MapData>,
    /// Some of them once more, to delete from.
    flows_data: MapData,
    nats_data: MapData,
    flow_tables: ArrayOfMaps<MapData, MapData>,
    nat_tables: ArrayOfMaps<MapData, MapData>,
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

fn directory<K: Plain + Ord, V: Plain + PartialEq>(
    object: &mut Ebpf,
    names: Names,
    cell_of: fn(&K) -> u32,
) -> Result<Directory<K, V>, FabricError> {
    Ok(Directory::new(
        take(object, names.cells)?,
        take(object, names.entries)?,
        take(object, names.far)?,
        names,
        cell_of,
    ))
}

/// Makes a change to a map of the loader's and to the directory that programs go by.
fn put_both<K: Plain + Ord, V: Plain + PartialEq>(
    hash: &mut Hash<K, V>,
    directory: &mut Directory<K, V>,
    key: K,
    value: Option<V>,
    name: &'static str,
) -> Result<(), FabricError> {
    let Some(value) = value else {
        directory.remove(&key)?;
        return put(hash, Raw(key), None, name);
    };
    let prepared = directory.prepare(key, value)?;
    if let Err(error) = put(hash, Raw(key), Some(Raw(value)), name) {
        directory.discard(prepared);
        return Err(error);
    }
    directory.publish(key, prepared)
}

impl KernelMaps {
    /// Makes the directories say what the maps hold. Before programs that go by them run.
    pub(super) fn adopt(&mut self, entries: &Entries) -> Result<(), FabricError> {
        self.tap_directory.adopt(&entries.taps)?;
        self.endpoint_directory.adopt(&entries.endpoints)?;
        let hosts = self.hosts()?.into_iter();
        let hosts = hosts.map(|(address, host)| (address.into(), host));
        self.host_directory.adopt(&hosts.collect())
    }

    /// Takes the maps out of an object.
    pub(super) fn take(object: &mut Ebpf, pins: &Pins) -> Result<Self, FabricError> {
        let data = |name| MapData::from_pin(pins.map(name)).map_err(map(name));
        Ok(Self {
            taps: take(object, TAPS)?,
            tap_directory: directory(object, TAP_NAMES, |ifindex| tap_cell(*ifindex))?,
            endpoints: take(object, ENDPOINTS)?,
            endpoint_directory: directory(object, ENDPOINT_NAMES, endpoint_cell)?,
            ports_ipv6: take(object, PORTS_IPV6)?,
            endpoints_ipv6: take(object, ENDPOINTS_IPV6)?,
            routes_ipv6: take(object, ROUTES_IPV6)?,
            places_ipv6: take(object, PLACES_IPV6)?,
            publics_ipv6: take(object, PUBLICS_IPV6)?,
            secrets: take(object, SECRETS)?,
            strangers: take(object, STRANGERS)?,
            forwarders: take(object, FORWARDERS)?,
            services: take(object, SERVICES)?,
            rules: take(object, RULES)?,
            places: take(object, PLACES)?,
            routes: take(object, ROUTES)?,
            acl_classes: take(object, ACL_CLASSES)?,
            acl_rules: take(object, ACL_RULES)?,
            publics: take(object, PUBLICS)?,
            hosts: take(object, HOSTS)?,
            host_directory: directory(object, HOST_NAMES, |address| host_cell(*address as u32))?,
            uplinks: take(object, UPLINKS)?,
            flows: take(object, FLOWS)?,
            nats: take(object, NATS)?,
            limits: take(object, LIMITS)?,
            meters: take(object, METERS)?,
            flow_logs: take(object, FLOW_LOGS)?,
            captures: take(object, CAPTURES)?,
            stages: take(object, STAGES)?,
            buffer_stages: take(object, BUFFER_STAGES)?,
            interfaces: take(object, INTERFACES)?,
            counters: take(object, COUNTERS)?,
            devices: take(object, DEVICES)?,
            flows_data: data(FLOWS)?,
            nats_data: data(NATS)?,
            flow_tables: tables(data(FLOWS)?, FLOWS)?,
            nat_tables: tables(data(NATS)?, NATS)?,
            flow_logs_data: data(FLOW_LOGS)?,
            captures_data: data(CAPTURES)?,
            devices_data: data(DEVICES)?,
        })
    }

    /// Ports' flow tables, to share their memory.
    pub(super) fn flow_tables(&self) -> &ArrayOfMaps<MapData, MapData> {
        &self.flow_tables
    }

    /// NAT gateways' tables, likewise.
    pub(super) fn nat_tables(&self) -> &ArrayOfMaps<MapData, MapData> {
        &self.nat_tables
    }

    /// Ends whatever watches a slot.
    pub(super) fn remove_capture(&self, slot: u32) -> Result<(), FabricError> {
        bpf::delete_element(&self.captures_data, slot, CAPTURES)
    }

    /// Ends a slot's flow log.
    pub(super) fn remove_flow_log(&self, slot: u32) -> Result<(), FabricError> {
        bpf::delete_element(&self.flow_logs_data, slot, FLOW_LOGS)
    }

    /// Sets the program that others go on to at a stage.
    pub(super) fn set_stage(&mut self, stage: u32, program: &ProgramFd) -> Result<(), FabricError> {
        self.stages.set(stage, program, 0).map_err(map(STAGES))
    }

    /// [`Self::set_stage`] of programs of socket buffers.
    pub(super) fn set_buffer_stage(
        &mut self,
        stage: u32,
        program: &ProgramFd,
    ) -> Result<(), FabricError> {
        let set = self.buffer_stages.set(stage, program, 0);
        set.map_err(map(BUFFER_STAGES))
    }

    /// Sets or clears the interface of one of the host's own slots; in its namespace.
    pub(super) fn set_own_device(
        &mut self,
        slot: u32,
        ifindex: Option<u32>,
    ) -> Result<(), FabricError> {
        self.put_device(slot, ifindex)
    }

    /// Sets the interface of the taps' namespace that leads to that of a slot; 0: none does.
    pub(super) fn set_interface(&mut self, slot: u32, ifindex: u32) -> Result<(), FabricError> {
        let set = self.interfaces.set(slot, ifindex, 0);
        set.map_err(map(INTERFACES))
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

    /// Sets what numbers of IPv6 addresses outside are made with. For good: what is tracked goes
    /// by them.
    pub(super) fn set_secret(&mut self, secret: ipv6::Secret) -> Result<(), FabricError> {
        self.secrets.set(0, secret, 0).map_err(map(SECRETS))
    }

    /// Says how to reach another host, or no longer.
    pub(super) fn set_host(&mut self, address: u32, host: Option<Host>) -> Result<(), FabricError> {
        let directory = &mut self.host_directory;
        put_both(&mut self.hosts, directory, address.into(), host, HOSTS)
    }
}

impl Tables for KernelMaps {
    fn make(&mut self, change: &Change) -> Result<(), FabricError> {
        match *change {
            Change::Tap(key, value) => {
                put_both(&mut self.taps, &mut self.tap_directory, key, value, TAPS)
            }
            Change::Endpoint(key, value) => put_both(
                &mut self.endpoints,
                &mut self.endpoint_directory,
                key,
                value,
                ENDPOINTS,
            ),
            Change::EndpointIpv6(key, value) => put(
                &mut self.endpoints_ipv6,
                Raw(key),
                value.map(Raw),
                ENDPOINTS_IPV6,
            ),
            Change::PortIpv6(slot, port) => self
                .ports_ipv6
                .set(slot, Raw(port.unwrap_or_default()), 0)
                .map_err(map(PORTS_IPV6)),
            Change::RouteIpv6(key, value) => {
                put_prefix(&mut self.routes_ipv6, key, value.map(Raw), ROUTES_IPV6)
            }
            Change::PlaceIpv6(key, value) => {
                put_prefix(&mut self.places_ipv6, key, value.map(Raw), PLACES_IPV6)
            }
            Change::PublicIpv6(key, value) => put(&mut self.publics_ipv6, key, value, PUBLICS_IPV6),
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
            Change::Device(slot, ifindex) => {
                self.set_interface(slot, ifindex.unwrap_or(0))?;
                self.put_device(slot, ifindex)
            }
            Change::Table(slot, true) => {
                make_table(&mut self.flows, slot, FLOW_BUCKETS, FLOWS)?;
                self.meters
                    .set(slot, [0; METER_WORDS], 0)
                    .map_err(map(METERS))?;
                self.clear_counters(slot)
            }
            Change::Limits(slot, limits) => {
                let limits = limits.unwrap_or_default();
                self.keep_spent(slot, &limits)?;
                let set = self.limits.set(slot, Raw(limits), 0);
                set.map_err(map(LIMITS))
            }
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
    /// Where a slot will spend on its own meters and has spent on another's, copies these.
    fn keep_spent(&mut self, slot: u32, limits: &Limits) -> Result<(), FabricError> {
        let Raw(before) = self.limits.get(&slot, 0).map_err(map(LIMITS))?;
        if limits.meter != slot || before.meter == slot || before.meter < FIRST_PORT_SLOT {
            return Ok(());
        }
        let spent = self.meters.get(&before.meter, 0).map_err(map(METERS))?;
        self.meters.set(slot, spent, 0).map_err(map(METERS))
    }

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

/// A map of tables, of whatever form these are.
pub(super) fn tables(
    data: MapData,
    name: &'static str,
) -> Result<ArrayOfMaps<MapData, MapData>, FabricError> {
    let found = Map::from_map_data(data).map_err(map(name))?;
    ArrayOfMaps::try_from(found).map_err(map(name))
}

fn make_table(
    tables: &mut TableMap,
    slot: u32,
    buckets: usize,
    name: &'static str,
) -> Result<(), FabricError> {
    let buckets = u32::try_from(buckets).unwrap_or(u32::MAX);
    let table =
        Array::<MapData, BucketWords>::create(buckets, layout::TABLE_FLAGS).map_err(map(name))?;
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
