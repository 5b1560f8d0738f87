//! What the packet path shall do, in words of networks, endpoints and groups.
//!
//! The caller states the whole of it; [the loader](crate) makes the maps equal.
//! Nothing here knows of EC2: a group is a name, a network a VNI.

use ipnet::{IpNet, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// A VXLAN network identifier (RFC 7348 §5), 1 to 2^24-1: one per VPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(pub u32);

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// Names a security group; unique over all networks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub String);

/// Names a port (an ENI); unique over all networks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub String);

/// Names a route table; unique over all networks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub String);

/// Names a network ACL; unique over all networks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AclId(pub String);

/// Everything the packet path of this host shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Ports on this host.
    pub ports: BTreeMap<PortId, Port>,
    /// Groups that a port, or a rule of such a group, names.
    pub groups: BTreeMap<GroupId, Group>,
    /// What networks of this host's ports are beyond those ports.
    pub networks: BTreeMap<Vni, Network>,
    /// Route tables that a port or NAT gateway names.
    pub tables: BTreeMap<TableId, RouteTable>,
    /// Network ACLs that a port or NAT gateway names.
    pub acls: BTreeMap<AclId, Acl>,
    /// Ports on other hosts, by each of their addresses.
    pub remotes: BTreeMap<(Vni, IpAddr), Remote>,
    /// NAT gateways on this host; their ids are ports' ids, too.
    pub nats: BTreeMap<PortId, Nat>,
}

/// A network's surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Its own address space: what has these addresses is never outside.
    pub cidrs: BTreeSet<IpNet>,
    /// Address space of networks that it is peered with.
    pub peers: BTreeMap<IpNet, Vni>,
}

/// A port on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// That host's underlay address; frames from elsewhere are not its.
    pub host: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Groups that it is in.
    pub groups: BTreeSet<GroupId>,
    /// Whether it sends and hears for addresses that are not its own.
    pub forwards: bool,
}

/// The way to each address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteTable {
    /// The longest prefix that covers an address decides; what none covers is dropped.
    pub routes: BTreeMap<IpNet, Target>,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To whoever of the network has the address.
    Local,
    /// Nowhere.
    Blackhole,
    /// To whoever of the network has this IPv4 address, and forwards.
    NextHop(IpAddr),
    /// To whoever of a peered network has the address.
    Peer(Vni),
    /// Out of the host: of IPv4 from a public address, of IPv6 from the own.
    Outside,
    /// The same of IPv6, for flows that begin here alone; of IPv4 nowhere.
    EgressOnly,
}

/// A network ACL: for what crosses a subnet's border, without memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    /// By direction (seen from the subnet) and number: the first that matches decides; what
    /// none matches is denied.
    pub entries: BTreeMap<(Direction, u32), AclEntry>,
}

/// An entry of a network ACL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AclEntry {
    /// Which packets.
    pub traffic: Traffic,
    /// Of the other side.
    pub cidr: IpNet,
    /// Whether they pass.
    pub allow: bool,
}

/// A NAT gateway on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Its network.
    pub vni: Vni,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its own address, which routes name.
    pub address: Ipv4Addr,
    /// The address that it gives to what it sends out.
    pub public: Option<Ipv4Addr>,
    /// Its subnet.
    pub subnet: IpNet,
    /// Its subnet's ACL; without one everything passes.
    pub acl: Option<AclId>,
}

/// How long a port's flows are remembered when idle
/// (EC2 API reference: `ConnectionTrackingSpecification`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// TCP, established: 60 to 432,000.
    pub tcp_established_s: u32,
    /// UDP, until the second answer: 30 to 60.
    pub udp_s: u32,
    /// UDP, after it: 60 to 180.
    pub udp_stream_s: u32,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            tcp_established_s: 432_000,
            udp_s: 30,
            udp_stream_s: 180,
        }
    }
}

/// A port: one ENI's end on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The tap's interface index in the taps' namespace.
    pub ifindex: u32,
    /// Its network.
    pub vni: Vni,
    /// The only source MAC that passes.
    pub mac: Mac,
    /// Its addresses, its primary IPv4 address before all others of IPv4.
    pub addresses: Vec<IpAddr>,
    /// The subnet; its first address is the gateway that ARP answers for.
    pub subnet: IpNet,
    /// The subnet's IPv6 block, a /64 or larger; without one it has no IPv6 addresses.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// Groups whose rules hold for it.
    pub groups: BTreeSet<GroupId>,
    /// The unique link-local address under which the responder knows it.
    pub service_address: Ipv4Addr,
    /// Its network's resolver, beside 169.254.169.253.
    pub resolver: Option<Ipv4Addr>,
    /// How fast it may be.
    pub rate: Rate,
    /// Ports of one meter have their rate together; without one it is this port's alone.
    pub meter: Option<MeterId>,
    /// Its subnet's route table; without one its own network is all that it reaches.
    pub table: Option<TableId>,
    /// Its subnet's ACL; without one everything passes.
    pub acl: Option<AclId>,
    /// Whether it sends from and hears for its own addresses alone.
    pub source_dest_check: bool,
    /// The public address that stands for each of its own outside.
    pub publics: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// How long its flows are remembered.
    pub tracking: Tracking,
    /// The longest IP packet that it may send.
    pub mtu: u16,
}

/// What ports spend on together, by the caller's name for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeterId(pub String);

/// How fast a port may send, and how fast receive: each has accounts of its own
/// (EC2 User Guide, "Amazon EC2 instance network bandwidth"). Bytes are those of frames,
/// from the Ethernet header on. 0: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bits a second that it may always have.
    pub baseline_bps: u64,
    /// Bits a second that it may have while it has credits.
    pub peak_bps: u64,
    /// Bytes that it can have saved by staying below the baseline; it begins with them.
    pub credit_bytes: u64,
    /// Packets a second.
    pub packets_per_s: u64,
}

/// A group's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// What is allowed; everything else is denied.
    pub rules: BTreeSet<Rule>,
}

/// One allowance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Which way.
    pub direction: Direction,
    /// Which packets.
    pub traffic: Traffic,
    /// With whom.
    pub peer: Peer,
}

/// Seen from the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the port.
    Ingress,
    /// From the port.
    Egress,
}

/// A set of packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Traffic {
    /// Every protocol.
    All,
    /// Every packet of an IP protocol.
    Protocol(u8),
    /// TCP (6) or UDP (17) to a destination port in `from..=to`.
    Ports {
        /// 6 or 17.
        protocol: u8,
        /// First port.
        from: u16,
        /// Last port.
        to: u16,
    },
    /// ICMP (1) or ICMPv6 (58) of a type and code; `None` is any.
    Icmp {
        /// 1 or 58.
        protocol: u8,
        /// Type.
        kind: Option<u8>,
        /// Code.
        code: Option<u8>,
    },
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// Addresses of a prefix.
    Cidr(IpNet),
    /// Addresses of ports in that group, of the same network or of one it is peered with.
    Group(GroupId),
}
