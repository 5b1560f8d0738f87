//! VPCs and what is in them.

use super::{
    AclAssociationId, AclId, AddressAssociationId, AllocationId, AttachmentId, CidrAssociationId,
    DhcpOptionsId, GatewayId, GroupId, InstanceId, InterfaceId, PeeringId, PrefixListId,
    RouteAssociationId, RouteTableId, RuleId, SubnetId, Tags, VpcId,
};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

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
    /// Its tags.
    pub tags: Tags,
}

/// Which addresses of a subnet, or of a public block, are taken: one value, compared
/// and swapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The subnet.
    pub subnet: SubnetId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Offsets from the network's address that are held, in order.
    pub taken: Vec<u32>,
    /// A public block, all of which is given out, in turn from this offset: what was
    /// given back rests as long as it can. Nothing: a subnet.
    #[serde(default)]
    pub next: Option<u32>,
}

/// Addresses that EC2 keeps at the start and at the end of each subnet.
const KEPT: (u32, u32) = (4, 1);

impl Addresses {
    /// The offsets that may be given.
    fn range(&self) -> std::ops::Range<u32> {
        let size = 1 << (32 - u32::from(self.cidr.prefix_len()).max(1));
        match self.next {
            Some(_) => 0..size,
            None => KEPT.0..size.saturating_sub(KEPT.1),
        }
    }

    /// How many are free.
    pub fn free(&self) -> u32 {
        let taken = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        (self.range().len() as u32).saturating_sub(taken)
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()).wrapping_add(offset))
    }

    /// Takes the lowest free one; of a public block, the next.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let range = self.range();
        let first = self.next.unwrap_or(range.start).min(range.end);
        let (offset, place) = self
            .free_in(first..range.end)
            .or_else(|| self.free_in(range.start..first))?;
        self.taken.insert(place, offset);
        if self.next.is_some() {
            self.next = Some(offset + 1);
        }
        Some(self.address(offset))
    }

    /// The lowest free offset of a range, and its place among those taken.
    fn free_in(&self, range: std::ops::Range<u32>) -> Option<(u32, usize)> {
        let mut offset = range.start;
        let mut place = self.taken.partition_point(|taken| *taken < offset);
        while self.taken.get(place) == Some(&offset) {
            (offset, place) = (offset + 1, place + 1);
        }
        (offset < range.end).then_some((offset, place))
    }

    /// Takes a certain one; false if it is taken, kept or elsewhere.
    pub fn take_this(&mut self, address: Ipv4Addr) -> bool {
        if !self.cidr.contains(&address) {
            return false;
        }
        let offset = u32::from(address) - u32::from(self.cidr.network());
        match self.taken.binary_search(&offset) {
            Err(place) if self.range().contains(&offset) => {
                self.taken.insert(place, offset);
                true
            }
            _ => false,
        }
    }

    /// Gives one back.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        let offset = u32::from(address).wrapping_sub(u32::from(self.cidr.network()));
        if let Ok(place) = self.taken.binary_search(&offset) {
            self.taken.remove(place);
        }
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
    /// Its security groups.
    pub groups: Vec<GroupId>,
    /// `Description`.
    pub description: String,
    /// `SourceDestCheck`.
    pub source_dest_check: bool,
    /// What it is attached to.
    pub attachment: Option<InterfaceAttachment>,
    /// The attachment that ended last, and when, Unix seconds.
    #[serde(default)]
    pub left: Option<(InterfaceAttachment, i64)>,
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
    /// Its attachment has ended.
    pub fn part(&mut self, now_s: i64) {
        self.left = self.attachment.take().map(|held| (held, now_s));
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

/// An internet gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Its id.
    pub id: GatewayId,
    /// The VPC that it is attached to.
    pub vpc: Option<VpcId>,
    /// Its tags.
    pub tags: Tags,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// An internet gateway.
    Gateway(GatewayId),
    /// A network interface.
    Interface(InterfaceId),
    /// A peering connection.
    Peering(PeeringId),
}

/// A route beside the local ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Whose way it is.
    pub destination: Ipv4Net,
    /// Where it leads.
    pub target: Target,
}

/// A route table; its local routes follow from its VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Its id.
    pub id: RouteTableId,
    /// Its VPC.
    pub vpc: VpcId,
    /// The VPC's first block.
    pub local: Ipv4Net,
    /// Its association as the VPC's main table.
    pub main: Option<RouteAssociationId>,
    /// Subnets that use it rather than the main one.
    #[serde(default)]
    pub associations: Vec<(RouteAssociationId, SubnetId)>,
    /// Its routes, one a destination.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Its tags.
    pub tags: Tags,
}

/// An entry of a network ACL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclEntry {
    /// Out, not in.
    pub egress: bool,
    /// `RuleNumber`: the lowest that matches decides.
    pub number: u16,
    /// IP protocol, -1 for all.
    pub protocol: i32,
    /// First port, or ICMP type; -1 for all.
    pub from_port: i32,
    /// Last port, or ICMP code; -1 for all.
    pub to_port: i32,
    /// The other side.
    pub cidr: IpNet,
    /// Allow, not deny.
    pub allow: bool,
}

/// A network ACL; what no entry matches is denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl {
    /// Its id.
    pub id: AclId,
    /// Its VPC.
    pub vpc: VpcId,
    /// The VPC's default one.
    pub default: bool,
    /// The subnets that it guards.
    pub associations: Vec<(AclAssociationId, SubnetId)>,
    /// Its entries by direction and number.
    #[serde(default = "everything_passes")]
    pub entries: Vec<AclEntry>,
    /// Its tags.
    pub tags: Tags,
}

/// The entries that a default ACL is made with.
pub fn everything_passes() -> Vec<AclEntry> {
    let all = |egress| AclEntry {
        egress,
        number: 100,
        protocol: -1,
        from_port: -1,
        to_port: -1,
        cidr: IpNet::V4(Ipv4Net::default()),
        allow: true,
    };
    vec![all(false), all(true)]
}

/// An Elastic IP address's association.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressAssociation {
    /// Its id.
    pub id: AddressAssociationId,
    /// The interface whose private address it stands for.
    pub interface: InterfaceId,
}

/// An Elastic IP address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Its id.
    pub id: AllocationId,
    /// The address.
    pub public_ip: Ipv4Addr,
    /// What it is associated with.
    pub association: Option<AddressAssociation>,
    /// Its tags.
    pub tags: Tags,
}

/// A peering connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeeringState {
    /// Asked for.
    Pending,
    /// Packets may pass.
    Active,
    /// Refused.
    Rejected,
    /// Ended.
    Deleted,
}

/// A VPC peering connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peering {
    /// Its id.
    pub id: PeeringId,
    /// The VPC that asked.
    pub requester: VpcId,
    /// The VPC that was asked.
    pub accepter: VpcId,
    /// Its state.
    pub state: PeeringState,
    /// Unix seconds of the last change of state.
    pub changed_at_s: i64,
    /// Its tags.
    pub tags: Tags,
}

impl Peering {
    /// It is, or may become, active.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, PeeringState::Pending | PeeringState::Active)
    }
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

impl PrefixList {
    /// The entries of a version, where they are still kept.
    pub fn entries(&self, version: u64) -> Option<&[PrefixEntry]> {
        let back = usize::try_from(self.version.checked_sub(version)?).ok()?;
        let place = self.versions.len().checked_sub(back + 1)?;
        self.versions.get(place).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn subnet(prefix: u8) -> Addresses {
        let cidr = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 16, 0), prefix);
        Addresses {
            subnet: SubnetId::random(),
            cidr,
            taken: Vec::new(),
            next: None,
        }
    }

    #[test]
    fn a_public_block_is_given_whole_and_in_turn() {
        let mut map = Addresses {
            next: Some(0),
            ..subnet(30)
        };
        let base = map.cidr.network();
        assert_eq!((map.free(), map.take()), (4, Some(base)));
        map.give_back(base);
        let given: Vec<_> = std::iter::from_fn(|| map.take()).collect();
        let offsets: Vec<_> = given
            .iter()
            .map(|ip| u32::from(*ip) - u32::from(base))
            .collect();
        assert_eq!(offsets, [1, 2, 3, 0]);
        map.give_back(given[0]);
        assert!(map.take_this(given[0]) && !map.take_this(given[0]));
    }

    #[test]
    fn a_subnet_runs_out_at_eleven_of_sixteen() {
        let mut map = subnet(28);
        let given: Vec<_> = std::iter::from_fn(|| map.take()).collect();
        assert_eq!(given.len(), 11);
        assert_eq!(given[0], Ipv4Addr::new(172, 31, 16, 4));
        assert_eq!(given[10], Ipv4Addr::new(172, 31, 16, 14));
        assert_eq!(map.free(), 0);
        assert!(!map.take_this(Ipv4Addr::new(172, 31, 16, 15)));
        assert!(!map.take_this(Ipv4Addr::new(172, 31, 17, 5)));
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice(steps in prop::collection::vec((0_u8..3, 0_u32..40), 0..200)) {
            let mut map = subnet(27);
            let mut held = BTreeSet::new();
            for (step, n) in steps {
                let this = Ipv4Addr::from(u32::from(map.cidr.network()) + n);
                match step {
                    0 => if let Some(address) = map.take() {
                        prop_assert!(held.insert(address));
                    },
                    1 => if map.take_this(this) {
                        prop_assert!(held.insert(this));
                    },
                    _ => {
                        map.give_back(this);
                        held.remove(&this);
                    }
                }
                prop_assert_eq!(map.taken.len(), held.len());
                prop_assert_eq!(usize::try_from(map.free()).unwrap(), 27 - held.len());
            }
        }
    }
}
