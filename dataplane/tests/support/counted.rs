//! The maps in memory, with an eye on how often each is asked.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ocs_dataplane::shared::flow::Bucket;
use ocs_dataplane::shared::layout::{
    AclClassKey, AclRuleKey, Address, Direction, Endpoint, EndpointKey, ForwarderKey, Host, Place,
    PrefixKey, Reason, Route, RuleKey, Service, Tap, Uplink,
};
use ocs_dataplane::shared::limit::{Limits, Meter};
use ocs_dataplane::shared::log::LogKey;
use ocs_dataplane::shared::{Action, Maps, guest, ipv6};

use super::memory::Memory;

/// How often a packet asked each map, by what it asked for.
pub type Lookups = BTreeMap<&'static str, u32>;

struct Counted<'a> {
    memory: &'a Memory,
    lookups: RefCell<Lookups>,
}

impl Counted<'_> {
    fn asked(&self, what: &'static str) {
        *self.lookups.borrow_mut().entry(what).or_default() += 1;
    }
}

/// Sends a frame from a port; what becomes of it, and what that asked for.
pub fn send(memory: &Memory, ifindex: u32, frame: &[u8]) -> (Action, Lookups) {
    let counted = Counted {
        memory,
        lookups: RefCell::default(),
    };
    let mut frame = frame.to_vec();
    let mut action = guest::receive(&mut frame, &counted, ifindex);
    if let Action::Stage { .. } = action {
        action = ipv6::receive(&mut frame, &counted, ifindex);
    }
    (action, counted.lookups.into_inner())
}

impl Maps for Counted<'_> {
    fn tap(&self, ifindex: u32) -> Option<&Tap> {
        self.asked("tap");
        self.memory.tap(ifindex)
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.asked("endpoint");
        self.memory.endpoint(key)
    }

    fn port_ipv6(&self, slot: u32) -> Option<&ipv6::layout::Port> {
        self.asked("port_ipv6");
        self.memory.port_ipv6(slot)
    }

    fn endpoint_ipv6(&self, key: &ipv6::layout::EndpointKey) -> Option<&ipv6::layout::Endpoint> {
        self.asked("endpoint_ipv6");
        self.memory.endpoint_ipv6(key)
    }

    fn route_ipv6(&self, key: &ipv6::layout::PrefixKey) -> Option<Route> {
        self.asked("route_ipv6");
        self.memory.route_ipv6(key)
    }

    fn place_ipv6(&self, key: &ipv6::layout::PrefixKey) -> Option<ipv6::layout::Place> {
        self.asked("place_ipv6");
        self.memory.place_ipv6(key)
    }

    fn public_ipv6(&self, address: &ipv6::layout::Address6) -> Option<u32> {
        self.asked("public_ipv6");
        self.memory.public_ipv6(address)
    }

    fn secret(&self) -> Option<&ipv6::layout::Secret> {
        self.asked("secret");
        self.memory.secret()
    }

    fn name(&self, number: Address, address: &ipv6::layout::Address6) {
        self.asked("name");
        self.memory.name(number, address);
    }

    fn service(&self, address: Address) -> Option<&Service> {
        self.asked("service");
        self.memory.service(address)
    }

    fn forwarder(&self, key: &ForwarderKey) -> Option<Address> {
        self.asked("forwarder");
        self.memory.forwarder(key)
    }

    fn rule(&self, key: &RuleKey) -> u32 {
        self.asked("rule");
        self.memory.rule(key)
    }

    fn place(&self, key: &PrefixKey) -> Option<Place> {
        self.asked("place");
        self.memory.place(key)
    }

    fn route(&self, key: &PrefixKey) -> Option<Route> {
        self.asked("route");
        self.memory.route(key)
    }

    fn acl_class(&self, key: &AclClassKey) -> Option<u32> {
        self.asked("acl_class");
        self.memory.acl_class(key)
    }

    fn acl_allows(&self, key: &AclRuleKey) -> bool {
        self.asked("acl_allows");
        self.memory.acl_allows(key)
    }

    fn public(&self, address: Address) -> Option<EndpointKey> {
        self.asked("public");
        self.memory.public(address)
    }

    fn host(&self, address: Address) -> Option<&Host> {
        self.asked("host");
        self.memory.host(address)
    }

    fn uplink(&self, slot: u32) -> Option<&Uplink> {
        self.asked("uplink");
        self.memory.uplink(slot)
    }

    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        self.asked("bucket");
        self.memory.bucket(slot, index)
    }

    fn nat_bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        self.asked("nat_bucket");
        self.memory.nat_bucket(slot, index)
    }

    fn limits(&self, slot: u32) -> Option<&Limits> {
        self.asked("limits");
        self.memory.limits(slot)
    }

    fn meter(&self, slot: u32, direction: Direction) -> Option<&Meter> {
        self.asked("meter");
        self.memory.meter(slot, direction)
    }

    fn is_logged(&self, slot: u32) -> bool {
        self.asked("is_logged");
        self.memory.is_logged(slot)
    }

    fn log(&self, slot: u32, key: &LogKey, packets: u64, bytes: u64) {
        self.asked("log");
        self.memory.log(slot, key, packets, bytes);
    }

    fn now(&self) -> u64 {
        self.memory.now()
    }

    fn count(&self, slot: u32, direction: Direction, reason: Reason) {
        self.asked("count");
        self.memory.count(slot, direction, reason);
    }
}
