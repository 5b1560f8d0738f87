//! The kernel's maps as packet logic asks them, each question written down.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ocs_dataplane_shared::Maps;
use ocs_dataplane_shared::flow::Bucket;
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    AclClassKey, AclRuleKey, Address, Direction, Endpoint, EndpointKey, ForwarderKey, Host, Place,
    PrefixKey, Reason, Route, RuleKey, Service, Tap, Uplink,
};
use ocs_dataplane_shared::limit::{Limits, Meter};
use ocs_dataplane_shared::log::LogKey;

use super::super::error::FabricError;
use super::super::maps::KernelMaps;

/// What was asked, and the answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen {
    /// Who has an address of a network.
    Endpoint(u32, IpAddr, Option<Endpoint>),
    /// A slot's flows, before its rules.
    Flows(u32),
    /// Whether a rule allows it.
    Rule(RuleKey, bool),
    /// What a table says of the way to the address.
    Route(u32, Option<Route>),
    /// Whether a network ACL allows it, seen from its subnet.
    Acl(Direction, bool),
}

/// Values that live as long as the list: the logic asks for references.
struct Kept<T>(OnceCell<Box<(T, Kept<T>)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(OnceCell::new())
    }
}

impl<T> Kept<T> {
    fn keep(&self, value: T) -> &T {
        match self.0.get() {
            Some(link) => link.1.keep(value),
            None => &self.0.get_or_init(|| Box::new((value, Self::default()))).0,
        }
    }
}

/// The maps at one moment; a copy of each value that was asked for.
pub(super) struct View<'a> {
    maps: &'a KernelMaps,
    now: u64,
    taps: Kept<Tap>,
    endpoints: Kept<Endpoint>,
    ports_ipv6: Kept<ipv6::Port>,
    secrets: Kept<ipv6::Secret>,
    endpoints_ipv6: Kept<ipv6::Endpoint>,
    buckets: Kept<Bucket>,
    hosts: Kept<Host>,
    acl_side: Cell<Direction>,
    seen: RefCell<Vec<Seen>>,
    refused: RefCell<Option<Reason>>,
    failed: RefCell<Option<FabricError>>,
}

impl<'a> View<'a> {
    pub(super) fn new(maps: &'a KernelMaps, now: u64) -> Self {
        Self {
            maps,
            now,
            taps: Kept::default(),
            endpoints: Kept::default(),
            ports_ipv6: Kept::default(),
            secrets: Kept::default(),
            endpoints_ipv6: Kept::default(),
            buckets: Kept::default(),
            hosts: Kept::default(),
            acl_side: Cell::new(Direction::Egress),
            seen: RefCell::default(),
            refused: RefCell::default(),
            failed: RefCell::default(),
        }
    }

    /// What was asked, and the reason that would have been counted.
    pub(super) fn end(self) -> Result<(Vec<Seen>, Option<Reason>), FabricError> {
        match self.failed.into_inner() {
            Some(error) => Err(error),
            None => Ok((self.seen.into_inner(), self.refused.into_inner())),
        }
    }

    fn saw(&self, seen: Seen) {
        self.seen.borrow_mut().push(seen);
    }

    /// An answer, or nothing and the error kept for the end.
    fn found<T: Default>(&self, answer: Result<T, FabricError>) -> T {
        answer.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            T::default()
        })
    }
}

impl Maps for View<'_> {
    fn tap(&self, ifindex: u32) -> Option<&Tap> {
        let tap = self.found(self.maps.tap(ifindex))?;
        Some(self.taps.keep(tap))
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        let endpoint = self.found(self.maps.endpoint(key));
        let address = Ipv4Addr::from(key.address.to_ne_bytes());
        self.saw(Seen::Endpoint(key.vni, address.into(), endpoint));
        Some(self.endpoints.keep(endpoint?))
    }

    fn port_ipv6(&self, slot: u32) -> Option<&ipv6::Port> {
        let port = self.found(self.maps.port_ipv6(slot))?;
        Some(self.ports_ipv6.keep(port))
    }

    fn endpoint_ipv6(&self, key: &ipv6::EndpointKey) -> Option<&ipv6::Endpoint> {
        let endpoint = self.found(self.maps.endpoint_ipv6(key));
        let address = Ipv6Addr::from(ipv6::bytes(&key.address));
        let is = endpoint.map(|endpoint| endpoint.is);
        self.saw(Seen::Endpoint(key.vni, address.into(), is));
        Some(self.endpoints_ipv6.keep(endpoint?))
    }

    fn route_ipv6(&self, key: &ipv6::PrefixKey) -> Option<Route> {
        let route = self.found(self.maps.route_ipv6(key));
        self.saw(Seen::Route(key.scope, route));
        route
    }

    fn place_ipv6(&self, key: &ipv6::PrefixKey) -> Option<ipv6::Place> {
        self.found(self.maps.place_ipv6(key))
    }

    // What comes in from outside is not explained.
    fn public_ipv6(&self, _address: &ipv6::Address6) -> Option<u32> {
        None
    }

    fn secret(&self) -> Option<&ipv6::Secret> {
        let secret = self.found(self.maps.secret().map(Some))?;
        Some(self.secrets.keep(secret))
    }

    fn name(&self, _number: Address, _address: &ipv6::Address6) {}

    // The responder's answers are not explained.
    fn service(&self, _address: Address) -> Option<&Service> {
        None
    }

    fn forwarder(&self, key: &ForwarderKey) -> Option<Address> {
        self.found(self.maps.forwarder(key))
    }

    fn rule(&self, key: &RuleKey) -> u32 {
        let value = self.found(self.maps.rule(key));
        self.saw(Seen::Rule(*key, value != 0));
        value
    }

    fn place(&self, key: &PrefixKey) -> Option<Place> {
        self.found(self.maps.place(key))
    }

    fn route(&self, key: &PrefixKey) -> Option<Route> {
        let route = self.found(self.maps.route(key));
        self.saw(Seen::Route(key.scope, route));
        route
    }

    fn acl_class(&self, key: &AclClassKey) -> Option<u32> {
        let direction = if key.direction & 1 == Direction::Egress as u32 {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        self.acl_side.set(direction);
        let class = self.found(self.maps.acl_class(key));
        if class.is_none() {
            self.saw(Seen::Acl(direction, false));
        }
        class
    }

    fn acl_allows(&self, key: &AclRuleKey) -> bool {
        let allowed = self.found(self.maps.acl_allows(key));
        self.saw(Seen::Acl(self.acl_side.get(), allowed));
        allowed
    }

    fn public(&self, address: Address) -> Option<EndpointKey> {
        self.found(self.maps.public(address))
    }

    fn host(&self, address: Address) -> Option<&Host> {
        let host = self.found(self.maps.host(address))?;
        Some(self.hosts.keep(host))
    }

    // What comes in from other hosts is not explained.
    fn uplink(&self, _slot: u32) -> Option<&Uplink> {
        None
    }

    fn nat_bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        let bucket = self.found(self.maps.nat_bucket(slot, index))?;
        Some(self.buckets.keep(bucket))
    }

    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        self.saw(Seen::Flows(slot));
        let bucket = self.found(self.maps.bucket(slot, index))?;
        Some(self.buckets.keep(bucket))
    }

    // What is asked about is not sent, so it costs nothing.
    fn limits(&self, _slot: u32) -> Option<&Limits> {
        None
    }

    fn meter(&self, _slot: u32, _direction: Direction) -> Option<&Meter> {
        None
    }

    fn is_logged(&self, _slot: u32) -> bool {
        false
    }

    fn log(&self, _slot: u32, _key: &LogKey, _packets: u64, _bytes: u64) {}

    fn now(&self) -> u64 {
        self.now
    }

    fn count(&self, _slot: u32, _direction: Direction, reason: Reason) {
        *self.refused.borrow_mut() = Some(reason);
    }
}
