//! The ways of a VPC's packets: gateways, route tables, network ACLs, peerings.

use super::{
    AclAssociationId, AclId, AllocationId, ConnectEndpointId, EgressGatewayId, GatewayId,
    InterfaceId, NatGatewayId, PeeringId, RouteAssociationId, RouteTableId, SubnetId, Tags, VpcId,
};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

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

/// An egress-only internet gateway: out for IPv6, and answers back. It is of one VPC for life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressGateway {
    /// Its id.
    pub id: EgressGatewayId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its tags.
    pub tags: Tags,
}

/// A NAT gateway's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatState {
    /// Its node does not have it yet.
    Pending,
    /// It translates.
    Available,
    /// It could not be made.
    Failed,
    /// Its node has it still.
    Deleting,
    /// It is no more.
    Deleted,
}

impl NatState {
    /// Its node has it, or is to have it.
    pub fn is_carried(self) -> bool {
        matches!(self, Self::Pending | Self::Available | Self::Deleting)
    }
}

/// A NAT gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatGateway {
    /// Its id.
    pub id: NatGatewayId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The node that carries it.
    pub node: String,
    /// Its Elastic IP address.
    pub allocation: AllocationId,
    /// Its interface, with its private address; nothing where it could not be made.
    pub interface: Option<InterfaceId>,
    /// Its private address.
    pub private_ip: Option<Ipv4Addr>,
    /// Its public address.
    pub public_ip: Option<Ipv4Addr>,
    /// Its state.
    pub state: NatState,
    /// Grows with each change that its node is to make.
    pub generation: u64,
    /// Why it could not be made: EC2's code, and a sentence.
    pub failure: Option<(String, String)>,
    /// Unix seconds.
    pub created_at_s: i64,
    /// Unix seconds; nothing while it is there.
    pub deleted_at_s: Option<i64>,
    /// Its tags.
    pub tags: Tags,
}

/// An instance-connect endpoint's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectState {
    /// Its node does not have it yet.
    CreateInProgress,
    /// It connects.
    CreateComplete,
    /// No node could have it.
    CreateFailed,
    /// Its node does not have its new groups yet.
    UpdateInProgress,
    /// It connects, with its new groups.
    UpdateComplete,
    /// Its node has it still.
    DeleteInProgress,
    /// It is no more.
    DeleteComplete,
}

impl ConnectState {
    /// EC2's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateInProgress => "create-in-progress",
            Self::CreateComplete => "create-complete",
            Self::CreateFailed => "create-failed",
            Self::UpdateInProgress => "update-in-progress",
            Self::UpdateComplete => "update-complete",
            Self::DeleteInProgress => "delete-in-progress",
            Self::DeleteComplete => "delete-complete",
        }
    }

    /// Its node has it, or is to have it.
    pub fn is_carried(self) -> bool {
        !matches!(self, Self::CreateFailed | Self::DeleteComplete)
    }

    /// Its node has it.
    pub fn connects(self) -> bool {
        matches!(
            self,
            Self::CreateComplete | Self::UpdateInProgress | Self::UpdateComplete
        )
    }
}

/// An instance-connect endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectEndpoint {
    /// Its id.
    pub id: ConnectEndpointId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The node that carries it.
    pub node: String,
    /// Its interface, with its address and its groups.
    pub interface: InterfaceId,
    /// Its state.
    pub state: ConnectState,
    /// Grows with each change that its node is to make.
    pub generation: u64,
    /// Unix seconds.
    pub created_at_s: i64,
    /// Unix seconds; nothing while it is there.
    pub deleted_at_s: Option<i64>,
    /// Its tags.
    pub tags: Tags,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// An internet gateway.
    Gateway(GatewayId),
    /// An egress-only internet gateway.
    EgressGateway(EgressGatewayId),
    /// A network interface.
    Interface(InterfaceId),
    /// A peering connection.
    Peering(PeeringId),
    /// A NAT gateway.
    Nat(NatGatewayId),
}

/// A route beside the local ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Whose way it is.
    pub destination: IpNet,
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
