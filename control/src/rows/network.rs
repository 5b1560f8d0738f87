//! VPCs and what is in them.

use super::{
    AttachmentId, CidrAssociationId, ConnectEndpointId, DhcpOptionsId, GroupId, InstanceId,
    InterfaceId, NatGatewayId, PeeringId, PrefixListId, RuleId, SubnetCidrAssociationId, SubnetId,
    Tags, VpcId,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A virtual private cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// The account's default one in its region.
    pub default: bool,
    /// Its virtual network, unique in the installation.
    pub vni: u32,
    /// Its DHCP options; nothing: none at all, which EC2 calls `default`.
    pub dhcp_options: Option<DhcpOptionsId>,
    /// Further blocks of addresses.
    #[serde(default)]
    pub more_cidrs: Vec<(CidrAssociationId, Ipv4Net)>,
    /// Its IPv6 blocks.
    #[serde(default)]
    pub ipv6: Vec<(CidrAssociationId, Ipv6Net)>,
    /// `enableDnsSupport`.
    #[serde(default = "yes")]
    pub dns_support: bool,
    /// `enableDnsHostnames`.
    #[serde(default)]
    pub dns_hostnames: bool,
    /// `enableNetworkAddressUsageMetrics`.
    #[serde(default)]
    pub usage_metrics: bool,
    /// Its tags.
    pub tags: Tags,
}

fn yes() -> bool {
    true
}

impl Vpc {
    /// All its blocks, the primary one first.
    pub fn cidrs(&self) -> impl Iterator<Item = Ipv4Net> {
        std::iter::once(self.cidr).chain(self.more_cidrs.iter().map(|(_, cidr)| *cidr))
    }
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Zone name.
    pub zone: String,
    /// The default one of its zone.
    pub default: bool,
    /// `MapPublicIpOnLaunch`.
    pub map_public: bool,
    /// Its IPv6 block, a /64.
    #[serde(default)]
    pub ipv6: Option<(SubnetCidrAssociationId, Ipv6Net)>,
    /// `AssignIpv6AddressOnCreation`.
    #[serde(default)]
    pub assign_ipv6: bool,
    /// Its tags.
    pub tags: Tags,
}

impl Subnet {
    /// Its IPv6 block.
    pub fn ipv6_block(&self) -> Option<Ipv6Net> {
        self.ipv6.map(|(_, block)| block)
    }
}

/// A network interface's attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAttachment {
    /// Its id.
    pub id: AttachmentId,
    /// The instance.
    pub instance: InstanceId,
    /// Its place there.
    pub device_index: u32,
    /// It ends with the instance.
    pub delete_on_termination: bool,
    /// Unix seconds.
    pub at_s: i64,
    /// The instance's generation with which it is there; 0: it is.
    #[serde(default)]
    pub attaching: u64,
    /// The instance's generation with which it is gone; 0: it stays.
    #[serde(default)]
    pub detaching: u64,
    /// It goes without the guest's consent.
    #[serde(default)]
    pub force: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its id.
    pub id: InterfaceId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Zone name.
    pub zone: String,
    /// Its MAC address.
    pub mac: String,
    /// Its primary private address.
    pub private_ip: Ipv4Addr,
    /// Its other private addresses.
    #[serde(default)]
    pub secondary: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    #[serde(default)]
    pub ipv6: Vec<Ipv6Addr>,
    /// Its security groups.
    pub groups: Vec<GroupId>,
    /// `Description`.
    pub description: String,
    /// `SourceDestCheck`.
    pub source_dest_check: bool,
    /// What it is attached to.
    pub attachment: Option<InterfaceAttachment>,
    /// The NAT gateway that it belongs to, and lives as long as.
    #[serde(default)]
    pub nat_gateway: Option<NatGatewayId>,
    /// The instance-connect endpoint that it belongs to, and lives as long as.
    #[serde(default)]
    pub connect_endpoint: Option<ConnectEndpointId>,
    /// The attachment that ended last, and when, Unix seconds.
    #[serde(default)]
    pub left: Option<Box<(InterfaceAttachment, i64)>>,
    /// Gets a public address at each start.
    #[serde(default)]
    pub wants_public: bool,
    /// The public address that it has until its instance stops, gets an Elastic IP or
    /// ends.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// Its tags.
    pub tags: Tags,
}

impl Interface {
    /// All its private addresses, the primary one first.
    pub fn private_ips(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.private_ip).chain(self.secondary.iter().copied())
    }

    /// It belongs to something of this cloud's, and is not its owner's to change.
    pub fn is_managed(&self) -> bool {
        self.nat_gateway.is_some() || self.connect_endpoint.is_some()
    }

    /// Its attachment has ended.
    pub fn part(&mut self, now_s: i64) {
        self.left = self.attachment.take().map(|held| Box::new((held, now_s)));
    }
}

/// Whom a rule lets in, or out to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Addresses.
    Cidr(IpNet),
    /// Interfaces of a group.
    Group(GroupId),
    /// Addresses of a prefix list.
    PrefixList(PrefixListId),
}

/// A security group's rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its id.
    pub id: RuleId,
    /// Out, not in.
    pub egress: bool,
    /// IP protocol, -1 for all.
    pub protocol: i32,
    /// First port, or ICMP type; -1 for all.
    pub from_port: i32,
    /// Last port, or ICMP code; -1 for all.
    pub to_port: i32,
    /// Whom it concerns.
    pub peer: Peer,
    /// Where it is a group of another VPC: that VPC, and the peering when the rule was made.
    #[serde(default)]
    pub beyond: Option<(VpcId, PeeringId)>,
    /// `Description`.
    pub description: Option<String>,
    /// Its tags.
    pub tags: Tags,
}

impl Rule {
    /// Two rules that let the same packets pass: EC2 keeps only one.
    pub fn same_as(&self, other: &Self) -> bool {
        self.egress == other.egress
            && self.protocol == other.protocol
            && self.from_port == other.from_port
            && self.to_port == other.to_port
            && self.peer == other.peer
    }
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Its VPC.
    pub vpc: VpcId,
    /// The VPC's virtual network.
    pub vni: u32,
    /// `GroupName`, unique in the VPC.
    pub name: String,
    /// `GroupDescription`.
    pub description: String,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Grows with each change of its rules.
    pub generation: u64,
    /// Its tags.
    pub tags: Tags,
}

/// A set of DHCP options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOptions {
    /// Its id.
    pub id: DhcpOptionsId,
    /// Options by name.
    pub options: Vec<(String, Vec<String>)>,
    /// Those that new VPCs get.
    #[serde(default)]
    pub default: bool,
    /// Its tags.
    pub tags: Tags,
}

/// A block of a prefix list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixEntry {
    /// The block.
    pub cidr: IpNet,
    /// `Description`.
    pub description: Option<String>,
}

/// A prefix list: blocks of addresses under one name, in versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixList {
    /// Its id.
    pub id: PrefixListId,
    /// `PrefixListName`.
    pub name: String,
    /// `IPv6`, not `IPv4`.
    pub v6: bool,
    /// Most entries: what it counts as among a group's rules.
    pub max_entries: u32,
    /// Number of the newest version, from 1.
    pub version: u64,
    /// Entries of the newest versions, the newest last.
    pub versions: Vec<Vec<PrefixEntry>>,
    /// Its tags.
    pub tags: Tags,
}

/// Versions of a prefix list whose entries are kept.
const KEPT_VERSIONS: usize = 20;

impl PrefixList {
    /// These are its entries from now on.
    pub fn push(&mut self, entries: Vec<PrefixEntry>) {
        self.version += 1;
        self.versions.push(entries);
        let surplus = self.versions.len().saturating_sub(KEPT_VERSIONS);
        self.versions.drain(..surplus);
    }

    /// The entries of a version, where they are still kept.
    pub fn entries(&self, version: u64) -> Option<&[PrefixEntry]> {
        let back = usize::try_from(self.version.checked_sub(version)?).ok()?;
        let place = self.versions.len().checked_sub(back + 1)?;
        self.versions.get(place).map(Vec::as_slice)
    }
}
