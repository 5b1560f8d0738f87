//! How packets of a VPC find their way, as nodes are told of it.

use crate::ec2::routes::is_active;
use crate::rows::{self, ConnectState, NatState, PeeringState, Scope, SubnetId, Target, VpcId};
use crate::view::{Kept, View};
use ocs_node_api as api;

/// A VPC's route tables, ACLs and active peerings; nothing where it is gone.
pub fn network(view: &View, scope: &Scope, id: VpcId) -> Option<api::Network> {
    let vpc = view.get::<rows::Vpc>(scope, &id)?;
    let tables = view.all::<rows::RouteTable>(scope);
    let tables = tables.filter(|table| table.vpc == id);
    let acls = view.all::<rows::Acl>(scope).filter(|acl| acl.vpc == id);
    let peers = view.all::<rows::Peering>(scope).filter_map(|peering| {
        let peer = match peering.state {
            PeeringState::Active if peering.requester == id => peering.accepter,
            PeeringState::Active if peering.accepter == id => peering.requester,
            _ => return None,
        };
        let peer = view.get::<rows::Vpc>(scope, &peer)?;
        Some(api::Peering {
            peer_vni: peer.vni,
            peer_cidrs: peer.cidrs().map(|cidr| cidr.to_string()).collect(),
        })
    });
    Some(api::Network {
        vni: vpc.vni,
        route_tables: tables.map(|row| table(view, scope, vpc, row)).collect(),
        network_acls: acls.map(|row| acl(row)).collect(),
        peerings: peers.collect(),
        cidrs: blocks(vpc).collect(),
    })
}

/// All blocks of a VPC, of either IP.
fn blocks(vpc: &rows::Vpc) -> impl Iterator<Item = String> {
    let ipv6 = vpc.ipv6.iter().map(|(_, block)| block.to_string());
    vpc.cidrs().map(|cidr| cidr.to_string()).chain(ipv6)
}

fn table(view: &View, scope: &Scope, vpc: &rows::Vpc, row: &rows::RouteTable) -> api::RouteTable {
    let local = blocks(vpc).map(|destination_cidr| api::Route {
        destination_cidr,
        target: Some(api::route::Target::Local(true)),
    });
    let others = row.routes.iter().map(|route| api::Route {
        destination_cidr: route.destination.to_string(),
        target: Some(target(view, scope, vpc, &route.target)),
    });
    api::RouteTable {
        id: row.id.to_string(),
        routes: local.chain(others).collect(),
    }
}

fn target(view: &View, scope: &Scope, vpc: &rows::Vpc, target: &Target) -> api::route::Target {
    use api::route::Target as To;
    let found = match target {
        _ if !is_active(view, scope, vpc.id, target) => None,
        Target::Gateway(_) => Some(To::InternetGateway(true)),
        Target::EgressGateway(_) => Some(To::EgressOnly(true)),
        Target::Interface(id) => view
            .get::<rows::Interface>(scope, id)
            .map(|row| To::NextHopIp(row.private_ip.to_string())),
        Target::Nat(id) => view
            .get::<rows::NatGateway>(scope, id)
            .and_then(|row| Some(To::NextHopIp(row.private_ip?.to_string()))),
        Target::Peering(id) => view.get::<rows::Peering>(scope, id).and_then(|row| {
            let peer = if row.requester == vpc.id {
                row.accepter
            } else {
                row.requester
            };
            let peer = view.get::<rows::Vpc>(scope, &peer)?;
            Some(To::PeerVni(peer.vni))
        }),
    };
    found.unwrap_or(To::Blackhole(true))
}

/// A NAT gateway, as the node that carries it is told of it; nothing where it could not be
/// made, or is no more.
pub fn nat_gateway(view: &View, scope: &Scope, row: &rows::NatGateway) -> Option<api::NatGateway> {
    let desired = match row.state {
        NatState::Pending | NatState::Available => api::Desired::Present,
        NatState::Deleting => api::Desired::Absent,
        NatState::Failed | NatState::Deleted => return None,
    };
    let interface = view.get::<rows::Interface>(scope, &row.interface?)?;
    let vpc = view.get::<rows::Vpc>(scope, &row.vpc)?;
    let subnet = view.get::<rows::Subnet>(scope, &row.subnet)?;
    let (route_table, network_acl) = ways(view, scope, row.vpc, row.subnet);
    Some(api::NatGateway {
        id: row.id.to_string(),
        generation: row.generation,
        desired: desired.into(),
        vni: vpc.vni,
        mac: interface.mac.clone(),
        private_ip: interface.private_ip.to_string(),
        public_ip: row.public_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        subnet_cidr: subnet.cidr.to_string(),
        route_table,
        network_acl,
    })
}

/// An instance-connect endpoint, likewise.
pub fn connect_endpoint(
    view: &View,
    scope: &Scope,
    row: &rows::ConnectEndpoint,
) -> Option<api::ConnectEndpoint> {
    let desired = match row.state {
        ConnectState::DeleteInProgress => api::Desired::Absent,
        state if state.is_carried() => api::Desired::Present,
        _ => return None,
    };
    Some(api::ConnectEndpoint {
        id: row.id.to_string(),
        generation: row.generation,
        desired: desired.into(),
        network_interface: Some(super::machine::interface(view, scope, &row.interface)?),
        account_id: scope.account.to_string(),
    })
}

fn acl(row: &rows::Acl) -> api::NetworkAcl {
    let entries = row.entries.iter().map(|entry| api::NetworkAclEntry {
        egress: entry.egress,
        rule_number: entry.number.into(),
        protocol: entry.protocol,
        from_port: entry.from_port,
        to_port: entry.to_port,
        cidr: entry.cidr.to_string(),
        allow: entry.allow,
    });
    api::NetworkAcl {
        id: row.id.to_string(),
        entries: entries.collect(),
    }
}

/// Ids of a subnet's route table and ACL.
pub fn ways(view: &View, scope: &Scope, vpc: VpcId, subnet: SubnetId) -> (String, String) {
    let tables = || {
        view.all::<rows::RouteTable>(scope)
            .filter(|table| table.vpc == vpc)
    };
    let uses = |table: &&std::sync::Arc<rows::RouteTable>| {
        table.associations.iter().any(|(_, held)| *held == subnet)
    };
    let own = tables().find(uses);
    let table = own.or_else(|| tables().find(|table| table.main.is_some()));
    let mut acls = view.all::<rows::Acl>(scope);
    let acl = acls.find(|acl| acl.associations.iter().any(|(_, held)| *held == subnet));
    (
        table.map(|row| row.id.to_string()).unwrap_or_default(),
        acl.map(|row| row.id.to_string()).unwrap_or_default(),
    )
}

/// The VPCs whose networks the row of a key bears on. A row that is gone, a gateway
/// that was detached, a peering that ended no longer say where: any may be meant.
pub fn concerned(view: &View, scope: &Scope, kind: &str, id: &str) -> Vec<VpcId> {
    use rows::Record as _;
    let vpc = match kind {
        rows::Vpc::KIND => return id.parse().into_iter().collect(),
        rows::RouteTable::KIND => vpc_of(view, scope, id, |row: &rows::RouteTable| row.vpc),
        rows::EgressGateway::KIND => vpc_of(view, scope, id, |row: &rows::EgressGateway| row.vpc),
        rows::Acl::KIND => vpc_of(view, scope, id, |row: &rows::Acl| row.vpc),
        rows::NatGateway::KIND => vpc_of(view, scope, id, |row: &rows::NatGateway| row.vpc),
        rows::ConnectEndpoint::KIND => {
            vpc_of(view, scope, id, |row: &rows::ConnectEndpoint| row.vpc)
        }
        rows::Interface::KIND => vpc_of(view, scope, id, |row: &rows::Interface| row.vpc),
        rows::Gateway::KIND | rows::Peering::KIND => None,
        _ => return Vec::new(),
    };
    match vpc {
        Some(vpc) => vec![vpc],
        None => view.all::<rows::Vpc>(scope).map(|vpc| vpc.id).collect(),
    }
}

fn vpc_of<T: Kept>(
    view: &View,
    scope: &Scope,
    id: &str,
    vpc: impl Fn(&T) -> VpcId,
) -> Option<VpcId> {
    let id = id.parse().ok()?;
    view.get::<T>(scope, &id).map(|row| vpc(row))
}
