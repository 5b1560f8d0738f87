//! The maps: their keys, values and sizes.
//!
//! ```text
//! TAPS         interface             → Tap        who sends on it
//! ENDPOINTS    (vni, address)        → Endpoint   who receives, here or on another host
//! FORWARDERS   (vni, Ethernet addr.) → address    who may send and hear for others
//! SERVICES     service address       → Service    whose the responder's answer is
//! RULES        RuleKey, prefixes     → allowance  what groups allow
//! PLACES       (vni, prefix)         → Place      what a network sees of an address
//! ROUTES       (table, prefix)       → Route      the way to an address
//! ACL_CLASSES  (ACL, prefix)         → class      which of an ACL's entries count
//! ACL_RULES    AclRuleKey, prefixes  → verdict    what an ACL says
//! PUBLICS      public address        → (vni, address)
//! HOSTS        underlay address      → Host       how to reach another host
//!              (programs find these three through directories: `directory.rs`)
//! UPLINKS      slot                  → Uplink     what an interface to the outside is
//! FLOWS        slot → [Bucket]                    what is tracked, a table per port
//! NATS         slot → [Bucket]                    what is translated, a table per gateway
//! DEVICES      slot → interface                   where to redirect to
//! INTERFACES   slot → interface                   the same for what is no XDP program
//! STAGES       TRANSLATE … → program              where a program goes on
//! BUFFER_STAGES                                   the same for what is no XDP program
//! LIMITS       slot → limit::Limits               how fast it may go
//! METERS       slot → limit::Meters               what it has spent of that
//! FLOW_LOGS    slot → {LogKey → LogRecord}        what its log is told; none: no log
//! CAPTURES     slot → ring of Captured            who watches its frames; none: nobody
//! COUNTERS     slot → Counters, per CPU
//!
//! PORTS_IPV6, ENDPOINTS_IPV6, ROUTES_IPV6, PLACES_IPV6, PUBLICS_IPV6, SECRETS, STRANGERS:
//! `ipv6/layout.rs`
//! ```
//!
//! A *slot* numbers a port on this host. The numbers are reused; tables and counters of
//! a slot start empty each time. The first three are the host's own.

/// Grows with each change of a key, a value or a map; part of every pin's path. What a
/// successor of another layout finds in it whatever else changes: `DEVICES`; the keys of
/// `ENDPOINTS` and `ENDPOINTS_IPV6` and the first word of their values, a slot and a number;
/// that `FLOWS` and `NATS` have tables by slot.
pub const LAYOUT_VERSION: u32 = 9;
/// The first layout with flow tables of this one's buckets, whose flows are carried over.
/// Whoever changes a bucket keeps how the one before is read.
pub const FLOWS_SINCE: u32 = 1;
/// Flags of flow tables: the loader shares their memory with the programs
/// (`BPF_F_MMAPABLE` of linux/bpf.h). Layouts before 7 had none, and their tables are read
/// element by element.
pub const TABLE_FLAGS: u32 = 1 << 10;

/// Slots, the host's own included.
pub const MAX_SLOTS: usize = 4096;
/// Addresses of all networks that this host knows.
pub const MAX_ENDPOINTS: usize = 131_072;
/// Entries of all policies on this host.
pub const MAX_RULES: usize = 1_048_576;
/// Buckets of one port's flow table; a power of two.
pub const FLOW_BUCKETS: usize = 512;

/// Routes of all tables on this host.
pub const MAX_ROUTES: usize = 131_072;
/// Prefixes of all networks on this host.
pub const MAX_PLACES: usize = 262_144;
/// Entries of all network ACLs on this host.
pub const MAX_ACL_RULES: usize = 262_144;
/// Other hosts.
pub const MAX_HOSTS: usize = 16_384;
/// Buckets of one NAT gateway's table, a power of two: a way for each of its ports.
pub const NAT_BUCKETS: usize = 8192;

/// IPv6 routes of all tables on this host.
pub const MAX_ROUTES_IPV6: usize = 65_536;
/// IPv6 prefixes of all networks on this host.
pub const MAX_PLACES_IPV6: usize = 65_536;
/// IPv6 addresses outside that flow logs name.
pub const MAX_STRANGERS: usize = 16_384;

/// Programs that others go on to.
pub const MAX_STAGES: usize = 8;
/// The one that translates for NAT gateways.
pub const TRANSLATE: u32 = 0;
/// The one for a port's IPv6.
pub const PORT_IPV6: u32 = 1;
/// The one for other hosts' IPv6.
pub const UPLINK_IPV6: u32 = 2;
/// The one for IPv6 from the outside.
pub const OUTSIDE_IPV6: u32 = 3;
/// The one for what a port's IPv6 sends outside.
pub const PORT_IPV6_OUT: u32 = 4;

/// The responder's slot.
pub const RESPONDER_SLOT: u32 = 0;
/// The slot of the interface that leads to other hosts.
pub const UPLINK_SLOT: u32 = 1;
/// The slot of the interface that leads to the outside.
pub const OUTSIDE_SLOT: u32 = 2;
/// The first slot that a port may have.
pub const FIRST_PORT_SLOT: u32 = 3;

/// Source of every frame that a guest gets from beyond its subnet, and of ARP answers
/// for the gateway.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x01];
/// `svc0`, the taps' end of the pair that leads to the responder.
pub const SVC0_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x02];
/// `svc1`, the responder's end.
pub const SVC1_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x03];
/// Where the metadata service listens, in every network.
pub const METADATA: [u8; 4] = [169, 254, 169, 254];

/// Where the resolver answers in every network, beside its address in each.
pub const RESOLVER: [u8; 4] = [169, 254, 169, 253];

/// The longest IPv4 packet that a network carries.
pub const MTU: usize = 1500;

/// An IPv4 address as it lies in a packet.
pub type Address = u32;

/// [`METADATA`] as it lies in a packet.
pub const METADATA_ADDRESS: Address = Address::from_ne_bytes(METADATA);

/// Where the responder hears those who asked at [`RESOLVER`].
pub const DNS_LINK_LOCAL_PORT: u16 = 5300;

/// [`RESOLVER`] as it lies in a packet.
pub const RESOLVER_ADDRESS: Address = Address::from_ne_bytes(RESOLVER);

/// How long a port's flows are remembered, in jiffies
/// (EC2 User Guide, "Idle connection tracking timeout").
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Jiffies of a second.
    pub hz: u32,
    /// TCP, established.
    pub tcp_established: u32,
    /// UDP, until the second answer.
    pub udp: u32,
    /// UDP, after it.
    pub udp_stream: u32,
}

/// What a port's packets are judged by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The set of groups it is in: the policy that holds for it, and its name in the
    /// policies of others. 0 matches nothing.
    pub set: u32,
    /// The narrowest of the network's rule prefixes that covers its address, with
    /// [`ATOM`] set. 0 matches nothing.
    pub atom: u32,
}

/// Marks a [`RuleKey::peer`] that is an atom of address space, not a set of groups.
pub const ATOM: u32 = 1 << 31;

/// `TAPS`: who sends on an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// Its slot.
    pub slot: u32,
    /// Its network.
    pub vni: u32,
    /// Its first address: the one that service answers go to.
    pub address: Address,
    /// Its subnet's gateway.
    pub gateway: Address,
    /// Its subnet.
    pub subnet: Address,
    /// Its subnet's mask.
    pub mask: Address,
    /// The address under which the responder knows it.
    pub service: Address,
    /// Its network's resolver; 0: none.
    pub resolver: Address,
    /// What `address` is judged by.
    pub identity: Identity,
    /// Its flows' timeouts.
    pub timeouts: Timeouts,
    /// Its subnet's route table; 0 leads to its own network alone.
    pub table: u32,
    /// Its subnet's network ACL; 0 lets everything pass.
    pub acl: u32,
    /// The longest IP packet that it may send.
    pub mtu: u16,
    /// [`FORWARDS`], [`TRACKS_ALL`].
    pub flags: u16,
    /// The only source that passes.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// In flags: it sends and hears for addresses that are not its own.
pub const FORWARDS: u16 = 1;
/// In flags: it is a NAT gateway.
pub const TRANSLATES: u16 = 2;
/// In flags: its rules leave nothing open both ways, so none need be asked whether they do.
pub const TRACKS_ALL: u16 = 4;

/// Key of `ENDPOINTS`, value of `PUBLICS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The network.
    pub vni: u32,
    /// The address.
    pub address: Address,
}

/// `ENDPOINTS`: who receives at an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Its slot; of one on another host [`UPLINK_SLOT`].
    pub slot: u32,
    /// The underlay address of the host that has it; 0: this one.
    pub host: Address,
    /// What it is judged by.
    pub identity: Identity,
    /// Its flows' timeouts.
    pub timeouts: Timeouts,
    /// Its subnet.
    pub subnet: Address,
    /// Its subnet's mask.
    pub mask: Address,
    /// Its subnet's network ACL; 0 lets everything pass.
    pub acl: u32,
    /// The public address that stands for it outside; 0: none.
    pub public: Address,
    /// Where its frames go.
    pub mac: [u8; 6],
    /// [`FORWARDS`], [`TRANSLATES`], [`TRACKS_ALL`].
    pub flags: u16,
}

/// Key of `FORWARDERS`, whose value is the forwarder's own address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwarderKey {
    /// The network.
    pub vni: u32,
    /// The forwarder's Ethernet address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Key of `PLACES` and `ROUTES`, prefix trees over `address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey {
    /// The network, or the route table.
    pub scope: u32,
    /// An address.
    pub address: Address,
}

/// Leading bits of a [`PrefixKey`] before those of its address.
pub const SCOPE_BITS: u32 = 32;
/// All bits of a [`PrefixKey`].
pub const PREFIX_BITS: u32 = 64;

/// `PLACES`: what a network sees of an address that is no endpoint of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The atom it is in, as in [`Identity`].
    pub atom: u32,
    /// The network that the address belongs to: this one, or a peer; 0: the outside.
    pub vni: u32,
}

/// `ROUTES`: the way to an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// [`ROUTE_NETWORK`] and so on.
    pub kind: u32,
    /// The network that goes on, of [`ROUTE_NETWORK`] and [`ROUTE_NEXT_HOP`].
    pub vni: u32,
    /// The next hop's address, of [`ROUTE_NEXT_HOP`].
    pub address: Address,
}

/// Dropped.
pub const ROUTE_BLACKHOLE: u32 = 0;
/// To whoever of a network has the address.
pub const ROUTE_NETWORK: u32 = 1;
/// To an endpoint that forwards.
pub const ROUTE_NEXT_HOP: u32 = 2;
/// Out of the host, from a public address.
pub const ROUTE_OUTSIDE: u32 = 3;
/// The same for IPv6 flows that begin here; none begins outside.
pub const ROUTE_EGRESS_ONLY: u32 = 4;

/// Key of `ACL_CLASSES`, a prefix tree over `address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AclClassKey {
    /// The ACL.
    pub acl: u32,
    /// [`Direction`], seen from the subnet; with [`ACL_IPV6`].
    pub direction: u32,
    /// The other side's address, or the number of its IPv6 address.
    pub address: Address,
}

/// In [`AclClassKey::direction`]: of IPv6.
pub const ACL_IPV6: u32 = 2;

/// Leading bits of an [`AclClassKey`] before those of its address.
pub const ACL_SCOPE_BITS: u32 = 64;
/// All bits of an [`AclClassKey`].
pub const ACL_CLASS_BITS: u32 = 96;

/// Key of `ACL_RULES`, a prefix tree: ACL and class match in whole, the protocol in whole
/// or not at all, the port by its leading bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AclRuleKey {
    /// The ACL.
    pub acl: u32,
    /// What `ACL_CLASSES` gave.
    pub class: u32,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// As in [`RuleKey`].
    pub port: u16,
}

/// Leading bits of an [`AclRuleKey`] that name no protocol.
pub const ACL_BITS_ANY: u32 = 64;
/// Leading bits of an [`AclRuleKey`] that name a protocol, too.
pub const ACL_BITS_PROTOCOL: u32 = 80;
/// All bits of an [`AclRuleKey`].
pub const ACL_BITS: u32 = 96;

/// `HOSTS`: how to reach another host; at addresses 0 and 0.0.0.1, the way to the outside. What goes in
/// front of a frame is ready made (`vxlan.rs`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The outer header's words but for what is the frame's: its length, flow and network.
    pub front: Front,
    /// The sum of what is in its IPv4 header.
    pub sum: u32,
    /// Zero.
    pub reserved: u32,
}

/// Six words of an outer header; two bytes follow.
pub type Front = [u64; 6];

/// The key of `HOSTS` that leads to the outside.
pub const OUTSIDE_HOST: Address = 0;
/// The same for IPv6, whose next hop is another.
pub const OUTSIDE_HOST_IPV6: Address = 1u32.to_be();

/// `UPLINKS`: what an interface to other hosts or to the outside is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// This host's underlay address.
    pub address: Address,
    /// The interface's Ethernet address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// The interface, in its own namespace.
    pub ifindex: u32,
}

/// `SERVICES`: whose a service address is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The port's slot.
    pub slot: u32,
    /// The port's first address.
    pub address: Address,
    /// Its network's resolver; 0: none.
    pub resolver: Address,
    /// The port's Ethernet address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Key of `RULES`, a prefix tree: everything up to `protocol` matches in whole or not at
/// all, `port` by its leading bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// The set of groups whose rule it is.
    pub policy: u32,
    /// Whom it allows: a set of groups, or an atom.
    pub peer: u32,
    /// [`Direction`], seen from the rule's owner.
    pub direction: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port; of ICMP type and code; of others 0. In network order.
    pub port: u16,
}

/// Value of a rule: allowed, and tracked.
pub const RULE_TRACKED: u32 = 1;
/// Value of a rule: allowed, and so open both ways that nothing is tracked.
pub const RULE_OPEN: u32 = 2;

/// Leading bits of a [`RuleKey`] that any rule names.
pub const RULE_BITS_ANY: u32 = 72;
/// Leading bits of a [`RuleKey`] that name a protocol, too.
pub const RULE_BITS_PROTOCOL: u32 = 80;
/// All bits of a [`RuleKey`].
pub const RULE_BITS: u32 = 96;

/// Seen from a port.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the port.
    Ingress = 0,
    /// From the port.
    Egress = 1,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// What became of a packet.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name in metrics.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

reasons! {
    /// It went where it should.
    Forwarded = "forwarded",
    /// Answered in place (ARP, neighbour discovery).
    Answered = "answered",
    /// It came in on an interface, or for a service address, that no policy names.
    NoPort = "no_port",
    /// It ends before its headers do, or a length field lies.
    Malformed = "malformed",
    /// Neither ARP nor IP of a version that the port has addresses of.
    EtherType = "ether_type",
    /// The source address, IP or Ethernet, is not the port's.
    Spoofed = "spoofed",
    /// A question for a neighbour, or to all of a link, that nobody here answers.
    ArpUnanswered = "arp_unanswered",
    /// Longer than the network carries.
    TooLong = "too_long",
    /// No endpoint of the network has that address.
    NoEndpoint = "no_endpoint",
    /// No rule of the sender allows it.
    EgressDenied = "egress_denied",
    /// No rule of the receiver allows it.
    IngressDenied = "ingress_denied",
    /// A later fragment without a tracked first one.
    Fragment = "fragment",
    /// Its time to live ended between two subnets.
    TtlExceeded = "ttl_exceeded",
    /// To or from the responder, but not what it serves.
    NotServed = "not_served",
    /// The flow table's bucket was changing under another CPU's hands.
    FlowBusy = "flow_busy",
    /// The receiver's interface is gone.
    NoDevice = "no_device",
    /// More bytes than the port's bandwidth allows.
    OverBandwidth = "bw_allowance_exceeded",
    /// More packets than the port's packet rate allows.
    OverPackets = "pps_allowance_exceeded",
    /// No route of the subnet's table leads there.
    NoRoute = "no_route",
    /// The route ends there.
    Blackhole = "blackhole",
    /// It was routed to a port that hears for its own addresses only.
    SourceDestCheck = "source_dest_check",
    /// A network ACL denies it.
    AclDenied = "acl_denied",
    /// It came from another host than the one that has its sender.
    OuterSource = "outer_source",
    /// The way to the other host, or to the outside, is not known.
    Unreachable = "unreachable",
    /// It would leave the host, but has no public address.
    NoPublicAddress = "no_public_address",
    /// The NAT gateway has no port left for that destination.
    NatExhausted = "nat_exhausted",
    /// It answers nothing that a NAT gateway sent, or cannot be translated.
    NotTranslated = "not_translated",
    /// It would begin a flow inwards through a gateway that lets flows out alone.
    EgressOnly = "egress_only",
}

/// Reasons that [`Counters`] has room for; a power of two.
pub const REASONS: usize = 32;

/// `COUNTERS`: a port's packets by direction and reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Indexed by direction × [`REASONS`] + reason.
    pub cells: [u64; 2 * REASONS],
}

const _: () = {
    assert!(Reason::ALL.len() <= REASONS);
    assert!(FLOW_BUCKETS.is_power_of_two());
    assert!(size_of::<RuleKey>() * 8 == RULE_BITS as usize);
    assert!(NAT_BUCKETS.is_power_of_two());
    assert!(size_of::<AclRuleKey>() * 8 == ACL_BITS as usize);
    assert!(size_of::<Tap>() == 76);
    assert!(size_of::<Endpoint>() == 56);
    assert!(size_of::<Host>() == 56);
    assert!(size_of::<Service>() == 20);
};
