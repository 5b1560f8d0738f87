//! What the maps hold at the moment, and each step that changes it.

use std::collections::{BTreeMap, BTreeSet};

use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    ATOM, AclClassKey, AclRuleKey, Endpoint, EndpointKey, ForwarderKey, Identity, Place, PrefixKey,
    Route, RuleKey, Service, Tap,
};
use ocs_dataplane_shared::limit::Limits;

use super::error::FabricError;
use crate::compiler::{Entries, Prefixed};

/// What the maps hold. Each change is made to the maps first, so this is never ahead of
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) entries: Entries,
    /// Slots that have a flow table.
    pub(super) tables: BTreeSet<u32>,
}

impl Entries {
    /// Entries of each map.
    pub(super) fn sizes(&self) -> BTreeMap<String, usize> {
        [
            ("TAPS", self.taps.len()),
            ("ENDPOINTS", self.endpoints.len()),
            ("FORWARDERS", self.forwarders.len()),
            ("SERVICES", self.services.len()),
            ("PUBLICS", self.publics.len()),
            ("RULES", self.rules.len()),
            ("PLACES", self.places.len()),
            ("ROUTES", self.routes.len()),
            ("ACL_CLASSES", self.acl_classes.len()),
            ("ACL_RULES", self.acl_rules.len()),
            ("PORTS_IPV6", self.ports_ipv6.len()),
            ("ENDPOINTS_IPV6", self.endpoints_ipv6.len()),
            ("ROUTES_IPV6", self.routes_ipv6.len()),
            ("PLACES_IPV6", self.places_ipv6.len()),
            ("PUBLICS_IPV6", self.publics_ipv6.len()),
            ("DEVICES", self.devices.len()),
            ("NATS", self.nats.len()),
            ("LIMITS", self.limits.len()),
        ]
        .map(|(name, size)| (name.to_owned(), size))
        .into()
    }

    /// Hosts that have an endpoint, by underlay address.
    pub(super) fn hosts(&self) -> BTreeSet<u32> {
        let hosts = self.all_endpoints().map(|endpoint| endpoint.host);
        hosts.filter(|host| *host != 0).collect()
    }

    /// Endpoints of both families.
    fn all_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let ipv6 = self.endpoints_ipv6.values().map(|endpoint| &endpoint.is);
        self.endpoints.values().chain(ipv6)
    }

    /// Numbers that some address is judged by.
    pub(super) fn numbers(&self) -> BTreeSet<u32> {
        let taps = self.taps.values().map(|tap| tap.identity);
        let endpoints = self.all_endpoints().map(|endpoint| endpoint.identity);
        let places = self.places.values().map(|place| Identity {
            set: 0,
            atom: place.atom,
        });
        let places_ipv6 = self.places_ipv6.values().map(|place| Identity {
            set: 0,
            atom: place.is.atom,
        });
        taps.chain(endpoints)
            .chain(places)
            .chain(places_ipv6)
            .flat_map(|Identity { set, atom }| [set, atom])
            .collect()
    }
}

/// An element of a map, to be written, or with `None` or `false` deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Tap(u32, Option<Tap>),
    Endpoint(EndpointKey, Option<Endpoint>),
    EndpointIpv6(ipv6::EndpointKey, Option<ipv6::Endpoint>),
    /// What a slot's port is in IPv6.
    PortIpv6(u32, Option<ipv6::Port>),
    Forwarder(ForwarderKey, Option<u32>),
    Service(u32, Option<Service>),
    Public(u32, Option<EndpointKey>),
    Rule(Prefixed<RuleKey>, Option<u32>),
    Place(Prefixed<PrefixKey>, Option<Place>),
    Route(Prefixed<PrefixKey>, Option<Route>),
    RouteIpv6(Prefixed<ipv6::PrefixKey>, Option<Route>),
    PlaceIpv6(Prefixed<ipv6::PrefixKey>, Option<ipv6::Place>),
    PublicIpv6(ipv6::Address6, Option<u32>),
    AclClass(Prefixed<AclClassKey>, Option<u32>),
    AclRule(Prefixed<AclRuleKey>, Option<u32>),
    /// A slot's interface; in the taps' namespace.
    Device(u32, Option<u32>),
    /// A slot's flow table, empty, counters of zero and full credits.
    Table(u32, bool),
    /// How fast a slot may be; what it has spent stays, on whose meters ever.
    Limits(u32, Option<Limits>),
    /// A NAT gateway's table, empty, and counters of zero.
    Nat(u32, bool),
}

/// Maps that can be written, element by element.
pub(super) trait Tables {
    /// Makes a change. On an error it has not been made.
    fn make(&mut self, change: &Change) -> Result<(), FabricError>;
}

impl Contents {
    /// The highest number in use, without its [`ATOM`] bit.
    pub(super) fn highest_number(&self) -> u32 {
        let entries = &self.entries;
        let rules = entries.rules.keys();
        entries
            .numbers()
            .into_iter()
            .chain(rules.flat_map(|(rule, _)| [rule.policy, rule.peer]))
            .chain(entries.routes.keys().map(|(key, _)| key.scope))
            .chain(entries.routes_ipv6.keys().map(|(key, _)| key.scope))
            .chain(entries.acl_classes.keys().map(|(key, _)| key.acl))
            .chain(entries.acl_rules.keys().map(|(key, _)| key.acl))
            .map(|number| number & !ATOM)
            .max()
            .unwrap_or(0)
    }

    /// Notes a change; gives the one that undoes it.
    pub(super) fn note(&mut self, change: Change) -> Change {
        let entries = &mut self.entries;
        match change {
            Change::Tap(key, value) => Change::Tap(key, put(&mut entries.taps, key, value)),
            Change::Endpoint(key, value) => {
                Change::Endpoint(key, put(&mut entries.endpoints, key, value))
            }
            Change::EndpointIpv6(key, value) => {
                Change::EndpointIpv6(key, put(&mut entries.endpoints_ipv6, key, value))
            }
            Change::PortIpv6(slot, value) => {
                Change::PortIpv6(slot, put(&mut entries.ports_ipv6, slot, value))
            }
            Change::RouteIpv6(key, value) => {
                Change::RouteIpv6(key, put(&mut entries.routes_ipv6, key, value))
            }
            Change::PlaceIpv6(key, value) => {
                Change::PlaceIpv6(key, put(&mut entries.places_ipv6, key, value))
            }
            Change::PublicIpv6(key, value) => {
                Change::PublicIpv6(key, put(&mut entries.publics_ipv6, key, value))
            }
            Change::Forwarder(key, value) => {
                Change::Forwarder(key, put(&mut entries.forwarders, key, value))
            }
            Change::Service(key, value) => {
                Change::Service(key, put(&mut entries.services, key, value))
            }
            Change::Public(key, value) => {
                Change::Public(key, put(&mut entries.publics, key, value))
            }
            Change::Rule(key, value) => Change::Rule(key, put(&mut entries.rules, key, value)),
            Change::Place(key, value) => Change::Place(key, put(&mut entries.places, key, value)),
            Change::Route(key, value) => Change::Route(key, put(&mut entries.routes, key, value)),
            Change::AclClass(key, value) => {
                Change::AclClass(key, put(&mut entries.acl_classes, key, value))
            }
            Change::AclRule(key, value) => {
                Change::AclRule(key, put(&mut entries.acl_rules, key, value))
            }
            Change::Device(key, value) => {
                Change::Device(key, put(&mut entries.devices, key, value))
            }
            Change::Limits(key, value) => Change::Limits(key, put(&mut entries.limits, key, value)),
            Change::Table(slot, there) => Change::Table(slot, set(&mut self.tables, slot, there)),
            Change::Nat(slot, there) => Change::Nat(slot, set(&mut entries.nats, slot, there)),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

fn set(slots: &mut BTreeSet<u32>, slot: u32, there: bool) -> bool {
    if there {
        !slots.insert(slot)
    } else {
        slots.remove(&slot)
    }
}
