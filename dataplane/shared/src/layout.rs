//! The maps: their keys, values and sizes.
//!
//! ```text
//! TAPS       interface           → Tap        who sends on it
//! ENDPOINTS  (vni, address)      → Endpoint   who receives
//! SERVICES   service address     → Service    whose the responder's answer is
//! RULES      RuleKey, prefixes   → 1          what is allowed
//! FLOWS      slot → [Bucket]                  what is tracked, a table per port
//! DEVICES    slot → interface                 where to redirect to
//! LIMITS     slot → limit::Limits    how fast it may go
//! METERS     slot → limit::Meters    what it has spent of that
//! FLOW_LOGS  slot → {LogKey → LogRecord}  what its log is told; none: no log
//! CAPTURES   slot → ring of Captured      who watches its frames; none: nobody
//! COUNTERS   slot → Counters, per CPU
//! ```
//!
//! A *slot* numbers a port on this host. The numbers are reused; tables and counters of
//! a slot start empty each time. Slot 0 is the responder's.

/// Grows with each change of a key, a value or a map; part of every pin's path.
pub const LAYOUT_VERSION: u32 = 2;

/// Slots, slot 0 included.
pub const MAX_SLOTS: usize = 4096;
/// Addresses of all networks that this host knows.
pub const MAX_ENDPOINTS: usize = 131_072;
/// Entries of all policies on this host.
pub const MAX_RULES: usize = 1_048_576;
/// Buckets of one port's flow table; a power of two.
pub const FLOW_BUCKETS: usize = 512;

/// The responder's slot.
pub const RESPONDER_SLOT: u32 = 0;

/// Source of every frame that a guest gets from beyond its subnet, and of ARP answers
/// for the gateway.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x01];
/// `svc0`, the taps' end of the pair that leads to the responder.
pub const SVC0_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x02];
/// `svc1`, the responder's end.
pub const SVC1_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x03];
/// Where the metadata service listens, in every network.
pub const METADATA: [u8; 4] = [169, 254, 169, 254];

/// The longest IPv4 packet that a network carries.
pub const MTU: usize = 1500;

/// An IPv4 address as it lies in a packet.
pub type Address = u32;

/// [`METADATA`] as it lies in a packet.
pub const METADATA_ADDRESS: Address = Address::from_ne_bytes(METADATA);

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
    /// What `address` is judged by.
    pub identity: Identity,
    /// Its flows' timeouts.
    pub timeouts: Timeouts,
    /// The only source that passes.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Key of `ENDPOINTS`.
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
    /// Its slot.
    pub slot: u32,
    /// What it is judged by.
    pub identity: Identity,
    /// Its flows' timeouts.
    pub timeouts: Timeouts,
    /// Where its frames go.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// `SERVICES`: whose a service address is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The port's slot.
    pub slot: u32,
    /// The port's first address.
    pub address: Address,
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
    /// Answered in place (ARP).
    Answered = "answered",
    /// It came in on an interface, or for a service address, that no policy names.
    NoPort = "no_port",
    /// It ends before its headers do, or a length field lies.
    Malformed = "malformed",
    /// Neither ARP nor IPv4.
    EtherType = "ether_type",
    /// The source address, IP or Ethernet, is not the port's.
    Spoofed = "spoofed",
    /// An ARP question that nobody here answers.
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
    assert!(size_of::<Tap>() == 60);
    assert!(size_of::<Endpoint>() == 36);
    assert!(size_of::<Service>() == 16);
};
