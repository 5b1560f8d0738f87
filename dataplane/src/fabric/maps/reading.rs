//! What the maps hold, as the programs find it and as a successor does.

use std::collections::{BTreeMap, BTreeSet};

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{DevMap, MapData, MapError};
use ocs_dataplane_shared::flow::Bucket;
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    ACL_BITS, ACL_CLASS_BITS, AclClassKey, AclRuleKey, Direction, Endpoint, EndpointKey,
    FIRST_PORT_SLOT, ForwarderKey, Host, PREFIX_BITS, Place, PrefixKey, REASONS, RULE_BITS, Reason,
    Route, RuleKey, Tap,
};
use ocs_dataplane_shared::limit::{Limits, Meters};

use super::{
    ACL_CLASSES, ACL_RULES, COUNTERS, DEVICES, ENDPOINTS, ENDPOINTS_IPV6, FLOWS, FORWARDERS, HOSTS,
    KernelMaps, LIMITS, METERS, NATS, PLACES, PLACES_IPV6, PORTS_IPV6, PUBLICS, PUBLICS_IPV6,
    Plain, ROUTES, ROUTES_IPV6, RULES, Raw, SECRETS, SERVICES, STRANGERS, TAPS, TableMap, Trie,
};
use crate::compiler::{Entries, Prefixed};
use crate::fabric::Counters;
use crate::fabric::contents::Contents;
use crate::fabric::error::{FabricError, map};

impl KernelMaps {
    /// What the maps hold, whoever wrote it.
    pub(in crate::fabric) fn read(&self) -> Result<Contents, FabricError> {
        let mut entries = Entries::default();
        for entry in self.taps.iter() {
            let (Raw(ifindex), Raw(tap)) = entry.map_err(map(TAPS))?;
            entries.taps.insert(ifindex, tap);
        }
        for entry in self.endpoints.iter() {
            let (Raw(key), Raw(endpoint)) = entry.map_err(map(ENDPOINTS))?;
            entries.endpoints.insert(key, endpoint);
        }
        for slot in FIRST_PORT_SLOT..self.ports_ipv6.len() {
            let Raw(port) = self.ports_ipv6.get(&slot, 0).map_err(map(PORTS_IPV6))?;
            if port.is_there() {
                entries.ports_ipv6.insert(slot, port);
            }
        }
        for entry in self.endpoints_ipv6.iter() {
            let (Raw(key), Raw(endpoint)) = entry.map_err(map(ENDPOINTS_IPV6))?;
            entries.endpoints_ipv6.insert(key, endpoint);
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
        entries.routes_ipv6 = read_trie(&self.routes_ipv6, ROUTES_IPV6, |Raw(value)| value)?;
        entries.places_ipv6 = read_trie(&self.places_ipv6, PLACES_IPV6, |Raw(value)| value)?;
        for entry in self.publics_ipv6.iter() {
            let (address, vni) = entry.map_err(map(PUBLICS_IPV6))?;
            entries.publics_ipv6.insert(address, vni);
        }
        entries.acl_classes = read_trie(&self.acl_classes, ACL_CLASSES, |value| value)?;
        entries.acl_rules = read_trie(&self.acl_rules, ACL_RULES, |value| value)?;
        entries.devices = read_devices(&self.devices)?;
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

    /// What a slot has spent.
    pub(in crate::fabric) fn meters(&self, slot: u32) -> Result<Meters, FabricError> {
        let words = self.meters.get(&slot, 0).map_err(map(METERS))?;
        Ok(Meters::from(words))
    }

    /// What an interface is, as the programs find it.
    pub(in crate::fabric) fn tap(&self, ifindex: u32) -> Result<Option<Tap>, FabricError> {
        self.tap_directory.get(&ifindex)
    }

    /// Who has an address, as the programs find it.
    pub(in crate::fabric) fn endpoint(
        &self,
        key: &EndpointKey,
    ) -> Result<Option<Endpoint>, FabricError> {
        self.endpoint_directory.get(key)
    }

    /// What a port is in IPv6.
    pub(in crate::fabric) fn port_ipv6(
        &self,
        slot: u32,
    ) -> Result<Option<ipv6::Port>, FabricError> {
        let found = present(self.ports_ipv6.get(&slot, 0)).map_err(map(PORTS_IPV6))?;
        Ok(found.map(|Raw(port)| port).filter(ipv6::Port::is_there))
    }

    /// Who has an IPv6 address.
    pub(in crate::fabric) fn endpoint_ipv6(
        &self,
        key: &ipv6::EndpointKey,
    ) -> Result<Option<ipv6::Endpoint>, FabricError> {
        let found = present(self.endpoints_ipv6.get(&Raw(*key), 0)).map_err(map(ENDPOINTS_IPV6))?;
        Ok(found.map(|Raw(endpoint)| endpoint))
    }

    /// The way to an IPv6 address.
    pub(in crate::fabric) fn route_ipv6(
        &self,
        key: &ipv6::PrefixKey,
    ) -> Result<Option<Route>, FabricError> {
        let found = find(&self.routes_ipv6, *key, ipv6::PREFIX_BITS, ROUTES_IPV6)?;
        Ok(found.map(|Raw(route)| route))
    }

    /// What a rule says, as the programs find it; 0: there is none.
    pub(in crate::fabric) fn rule(&self, key: &RuleKey) -> Result<u32, FabricError> {
        let found = find(&self.rules, *key, RULE_BITS, RULES)?;
        Ok(found.unwrap_or(0))
    }

    /// What a network sees of an address.
    pub(in crate::fabric) fn place(&self, key: &PrefixKey) -> Result<Option<Place>, FabricError> {
        let found = find(&self.places, *key, PREFIX_BITS, PLACES)?;
        Ok(found.map(|Raw(place)| place))
    }

    /// The way to an address.
    pub(in crate::fabric) fn route(&self, key: &PrefixKey) -> Result<Option<Route>, FabricError> {
        let found = find(&self.routes, *key, PREFIX_BITS, ROUTES)?;
        Ok(found.map(|Raw(route)| route))
    }

    /// Which of an ACL's entries count.
    pub(in crate::fabric) fn acl_class(
        &self,
        key: &AclClassKey,
    ) -> Result<Option<u32>, FabricError> {
        find(&self.acl_classes, *key, ACL_CLASS_BITS, ACL_CLASSES)
    }

    /// What an ACL says.
    pub(in crate::fabric) fn acl_allows(&self, key: &AclRuleKey) -> Result<bool, FabricError> {
        let found = find(&self.acl_rules, *key, ACL_BITS, ACL_RULES)?;
        Ok(found.is_some_and(|verdict| verdict != 0))
    }

    /// The address of an endpoint that forwards.
    pub(in crate::fabric) fn forwarder(
        &self,
        key: &ForwarderKey,
    ) -> Result<Option<u32>, FabricError> {
        present(self.forwarders.get(&Raw(*key), 0)).map_err(map(FORWARDERS))
    }

    /// Whose a public address is.
    pub(in crate::fabric) fn public(
        &self,
        address: u32,
    ) -> Result<Option<EndpointKey>, FabricError> {
        let found = present(self.publics.get(&address, 0)).map_err(map(PUBLICS))?;
        Ok(found.map(|Raw(key)| key))
    }

    /// What a network sees of an IPv6 address.
    pub(in crate::fabric) fn place_ipv6(
        &self,
        key: &ipv6::PrefixKey,
    ) -> Result<Option<ipv6::Place>, FabricError> {
        let found = find(&self.places_ipv6, *key, ipv6::PREFIX_BITS, PLACES_IPV6)?;
        Ok(found.map(|Raw(place)| place))
    }

    /// What numbers of IPv6 addresses outside are made with; nothing but zeros: not set.
    pub(in crate::fabric) fn secret(&self) -> Result<ipv6::Secret, FabricError> {
        self.secrets.get(&0, 0).map_err(map(SECRETS))
    }

    /// The IPv6 address outside that a number stands for in flow logs.
    pub(in crate::fabric) fn stranger(
        &self,
        number: u32,
    ) -> Result<Option<ipv6::Address6>, FabricError> {
        present(self.strangers.get(&number, 0)).map_err(map(STRANGERS))
    }

    /// How to reach another host, as the programs find it.
    pub(in crate::fabric) fn host(&self, address: u32) -> Result<Option<Host>, FabricError> {
        self.host_directory.get(&address.into())
    }

    /// A copy of a bucket of a NAT gateway's table.
    pub(in crate::fabric) fn nat_bucket(
        &self,
        slot: u32,
        index: u32,
    ) -> Result<Option<Bucket>, FabricError> {
        match present(self.nats.get(&slot, 0)).map_err(map(NATS))? {
            Some(table) => Ok(Some(Bucket::from(table.get(&index, 0).map_err(map(NATS))?))),
            None => Ok(None),
        }
    }

    /// A copy of a bucket of a slot's flow table.
    pub(in crate::fabric) fn bucket(
        &self,
        slot: u32,
        index: u32,
    ) -> Result<Option<Bucket>, FabricError> {
        match present(self.flows.get(&slot, 0)).map_err(map(FLOWS))? {
            Some(table) => Ok(Some(Bucket::from(
                table.get(&index, 0).map_err(map(FLOWS))?,
            ))),
            None => Ok(None),
        }
    }

    /// How other hosts are reached.
    pub(in crate::fabric) fn hosts(&self) -> Result<BTreeMap<u32, Host>, FabricError> {
        let mut found = BTreeMap::new();
        for entry in self.hosts.iter() {
            let (Raw(address), Raw(host)) = entry.map_err(map(HOSTS))?;
            found.insert(address as u32, host);
        }
        Ok(found)
    }

    /// A slot's counters, over all CPUs.
    pub(in crate::fabric) fn counters(&self, slot: u32) -> Result<Counters, FabricError> {
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

/// Interfaces by slot.
pub(in crate::fabric) fn read_devices(
    devices: &DevMap<MapData>,
) -> Result<BTreeMap<u32, u32>, FabricError> {
    let mut found = BTreeMap::new();
    for slot in FIRST_PORT_SLOT..devices.len() {
        match devices.get(slot, 0) {
            Ok(device) => {
                found.insert(slot, device.if_index);
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(map(DEVICES)(error)),
        }
    }
    Ok(found)
}

pub(in crate::fabric) fn present<T>(found: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
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
