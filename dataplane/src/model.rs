//! What the packet path shall do, in words of networks, endpoints and groups.
//!
//! The caller states the whole of it; [the loader](crate) makes the maps equal.
//! Nothing here knows of EC2: a group is a name, a network a VNI.

use ipnet::IpNet;
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

/// Everything the packet path of this host shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Ports on this host.
    pub ports: BTreeMap<PortId, Port>,
    /// Groups that a port, or a rule of such a group, names.
    pub groups: BTreeMap<GroupId, Group>,
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
    /// The only source addresses that pass.
    pub addresses: BTreeSet<IpAddr>,
    /// The subnet; its first address is the gateway that ARP answers for.
    pub subnet: IpNet,
    /// Groups whose rules hold for it.
    pub groups: BTreeSet<GroupId>,
    /// The unique link-local address under which the responder knows it.
    pub service_address: Ipv4Addr,
    /// How fast it may be.
    pub rate: Rate,
}

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
    /// Addresses of ports in that group, in the same network.
    Group(GroupId),
}
