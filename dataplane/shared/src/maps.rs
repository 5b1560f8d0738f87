//! What packet logic asks of the maps, and what it decides.

use crate::flow::Bucket;
use crate::ipv6::layout as ipv6;
use crate::layout::{
    AclClassKey, AclRuleKey, Address, Direction, Endpoint, EndpointKey, ForwarderKey, Host, Place,
    PrefixKey, Reason, Route, RuleKey, Service, Tap, Uplink,
};
use crate::limit::{Limits, Meter};
use crate::log::LogKey;

/// What is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    Drop,
    /// It is the host's own.
    Pass,
    /// Back out of the interface it came in on.
    Bounce,
    /// On in another program: [`crate::layout::TRANSLATE`] and so on. Where that of IPv6 is
    /// not, nobody has such addresses, and what came from the uplink is the host's own.
    Stage {
        /// Which.
        stage: u32,
        /// The slot that the frame came from.
        slot: u32,
    },
    /// Out of another port's interface, which is counted there once it worked.
    Redirect {
        /// Whose.
        slot: u32,
        /// Whose frame it was; 0 is the responder.
        from: u32,
    },
}

/// The tables of [`crate::layout`].
pub trait Maps {
    /// Who sends on an interface.
    fn tap(&self, ifindex: u32) -> Option<&Tap>;
    /// Who receives at an address.
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint>;
    /// The address of an endpoint that forwards.
    fn forwarder(&self, key: &ForwarderKey) -> Option<Address>;
    /// What a port is in IPv6; nothing if it has no such addresses.
    fn port_ipv6(&self, slot: u32) -> Option<&ipv6::Port>;
    /// Who receives at an IPv6 address.
    fn endpoint_ipv6(&self, key: &ipv6::EndpointKey) -> Option<&ipv6::Endpoint>;
    /// The way to an IPv6 address.
    fn route_ipv6(&self, key: &ipv6::PrefixKey) -> Option<Route>;
    /// What a network sees of an IPv6 address.
    fn place_ipv6(&self, key: &ipv6::PrefixKey) -> Option<ipv6::Place>;
    /// The network of an IPv6 address that is reached from outside.
    fn public_ipv6(&self, address: &ipv6::Address6) -> Option<u32>;
    /// What numbers of IPv6 addresses outside are made with.
    fn secret(&self) -> Option<&ipv6::Secret>;
    /// Notes for flow logs what a number stands for.
    fn name(&self, number: Address, address: &ipv6::Address6);
    /// Whose a service address is.
    fn service(&self, address: Address) -> Option<&Service>;
    /// The value of the longest prefix of `key` that is a rule; 0: none is.
    fn rule(&self, key: &RuleKey) -> u32;
    /// What a network sees of an address.
    fn place(&self, key: &PrefixKey) -> Option<Place>;
    /// The way to an address.
    fn route(&self, key: &PrefixKey) -> Option<Route>;
    /// Which of an ACL's entries count for an address.
    fn acl_class(&self, key: &AclClassKey) -> Option<u32>;
    /// What an ACL says.
    fn acl_allows(&self, key: &AclRuleKey) -> bool;
    /// Whose a public address is.
    fn public(&self, address: Address) -> Option<EndpointKey>;
    /// How to reach another host.
    fn host(&self, address: Address) -> Option<&Host>;
    /// What an interface that is no port's is.
    fn uplink(&self, slot: u32) -> Option<&Uplink>;
    /// A bucket of a port's flow table.
    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket>;
    /// A bucket of a NAT gateway's table.
    fn nat_bucket(&self, slot: u32, index: u32) -> Option<&Bucket>;
    /// How fast a port may go.
    fn limits(&self, slot: u32) -> Option<&Limits>;
    /// What is spent on a slot's meters one way.
    fn meter(&self, slot: u32, direction: Direction) -> Option<&Meter>;
    /// Whether a port's flows are logged.
    fn is_logged(&self, slot: u32) -> bool;
    /// Adds packets to a port's log.
    fn log(&self, slot: u32, key: &LogKey, packets: u64, bytes: u64);
    /// Jiffies since boot; not 0.
    fn now(&self) -> u64;
    /// Counts a packet.
    fn count(&self, slot: u32, direction: Direction, reason: Reason);
}
