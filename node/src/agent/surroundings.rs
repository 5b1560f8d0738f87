//! VPCs, other nodes' ENIs and NAT gateways in the packet path's words.
//!
//! What cannot be translated denies: a route that is not valid leads nowhere, an ACL that
//! is unknown lets nothing pass.

use super::{Surroundings, named, traffic};
use ipnet::IpNet;
use ocs_dataplane::model::{
    Acl, AclEntry, AclId, Direction, GroupId, Mac, Nat, Network, Policy, PortId, Remote,
    RouteTable, TableId, Target, Vni,
};
use ocs_node_api as api;
use std::net::IpAddr;

/// Adds them to a policy that has its ports.
pub(super) fn add(policy: &mut Policy, around: &Surroundings) {
    for gateway in around.nats.values() {
        if gateway.desired() != api::Desired::Present {
            continue;
        }
        match nat(gateway, around) {
            Some(nat) => {
                policy.nats.insert(PortId(gateway.id.clone()), nat);
            }
            None => tracing::error!(?gateway, "a NAT gateway is not valid; it passes nothing"),
        }
    }
    for desired in around.networks.values() {
        policy.networks.insert(Vni(desired.vni), network(desired));
        for table in &desired.route_tables {
            let id = TableId(table.id.clone());
            policy.tables.insert(id, route_table(table));
        }
        for desired in &desired.network_acls {
            policy.acls.insert(AclId(desired.id.clone()), acl(desired));
        }
    }
    for endpoint in around.remotes.values() {
        match remote(endpoint) {
            Some((key, remote)) => {
                policy.remotes.insert(key, remote);
            }
            None => tracing::error!(?endpoint, "an endpoint is not valid; it is not reached"),
        }
    }
    remove_what_is_here(policy);
    let ports = policy.ports.values();
    let tables: Vec<TableId> = ports
        .clone()
        .filter_map(|port| port.table.clone())
        .collect();
    let acls = ports.filter_map(|port| port.acl.clone());
    let acls: Vec<AclId> = acls
        .chain(policy.nats.values().filter_map(|nat| nat.acl.clone()))
        .collect();
    for table in tables {
        policy.tables.entry(table).or_default();
    }
    for acl in acls {
        policy.acls.entry(acl).or_default();
    }
}

/// An address that is here is nowhere else, whatever control has not yet heard of.
fn remove_what_is_here(policy: &mut Policy) {
    for port in policy.ports.values() {
        for address in &port.addresses {
            policy.remotes.remove(&(port.vni, *address));
        }
    }
    for nat in policy.nats.values() {
        policy.remotes.remove(&(nat.vni, nat.address.into()));
    }
}

fn network(desired: &api::Network) -> Network {
    let mut network = Network::default();
    for cidr in &desired.cidrs {
        match cidr.parse::<IpNet>() {
            Ok(cidr) => {
                network.cidrs.insert(cidr.trunc());
            }
            Err(_) => tracing::error!(vni = desired.vni, cidr, "a CIDR block is not valid"),
        }
    }
    for peering in &desired.peerings {
        for cidr in &peering.peer_cidrs {
            match cidr.parse::<IpNet>() {
                Ok(cidr) => {
                    network.peers.insert(cidr.trunc(), Vni(peering.peer_vni));
                }
                Err(_) => tracing::error!(vni = desired.vni, cidr, "a peer's CIDR is not valid"),
            }
        }
    }
    network
}

fn route_table(desired: &api::RouteTable) -> RouteTable {
    let mut table = RouteTable::default();
    for route in &desired.routes {
        let Ok(destination) = route.destination_cidr.parse::<IpNet>() else {
            tracing::error!(table = desired.id, ?route, "a route is not valid; left out");
            continue;
        };
        let target = target(route).unwrap_or_else(|| {
            tracing::error!(
                table = desired.id,
                ?route,
                "a route is not valid; it leads nowhere"
            );
            Target::Blackhole
        });
        table.routes.insert(destination.trunc(), target);
    }
    table
}

fn target(route: &api::Route) -> Option<Target> {
    use api::route::Target as Desired;
    Some(match route.target.as_ref()? {
        Desired::Local(true) => Target::Local,
        Desired::NextHopIp(address) => Target::NextHop(address.parse().ok()?),
        Desired::PeerVni(vni) => Target::Peer(Vni(*vni)),
        Desired::InternetGateway(true) => Target::Outside,
        Desired::EgressOnly(true) => Target::EgressOnly,
        Desired::Blackhole(_)
        | Desired::Local(false)
        | Desired::InternetGateway(false)
        | Desired::EgressOnly(false) => Target::Blackhole,
    })
}

/// An entry that is not valid denies what it might have meant: everything after it.
fn acl(desired: &api::NetworkAcl) -> Acl {
    let mut acl = Acl::default();
    for entry in &desired.entries {
        let direction = if entry.egress {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        let valid = acl_entry(entry).unwrap_or_else(|| {
            tracing::error!(
                acl = desired.id,
                ?entry,
                "an entry is not valid; it denies all"
            );
            AclEntry {
                traffic: ocs_dataplane::model::Traffic::All,
                cidr: IpNet::from(ipnet::Ipv4Net::default()),
                allow: false,
            }
        });
        acl.entries.insert((direction, entry.rule_number), valid);
    }
    acl
}

fn acl_entry(desired: &api::NetworkAclEntry) -> Option<AclEntry> {
    Some(AclEntry {
        traffic: traffic(desired.protocol, desired.from_port, desired.to_port)?,
        cidr: desired.cidr.parse::<IpNet>().ok()?.trunc(),
        allow: desired.allow,
    })
}

fn remote(desired: &api::RemoteEndpoint) -> Option<((Vni, IpAddr), Remote)> {
    let remote = Remote {
        host: desired.host.parse().ok()?,
        mac: Mac(ocs_vmm_spec::parse_mac(&desired.mac)?),
        groups: desired
            .security_groups
            .iter()
            .cloned()
            .map(GroupId)
            .collect(),
        forwards: desired.forwards,
    };
    Some(((Vni(desired.vni), desired.ip.parse().ok()?), remote))
}

/// A gateway whose subnet has no way out has no public address either.
fn nat(desired: &api::NatGateway, around: &Surroundings) -> Option<Nat> {
    let network = around.networks.get(&desired.vni);
    let tables = network
        .into_iter()
        .flat_map(|network| &network.route_tables);
    let leads_out = tables
        .filter(|table| table.id == desired.route_table)
        .flat_map(|table| &table.routes)
        .any(|route| target(route) == Some(Target::Outside));
    let public = match desired.public_ip.as_str() {
        "" => None,
        address => Some(address.parse().ok()?),
    };
    Some(Nat {
        vni: Vni(desired.vni),
        mac: Mac(ocs_vmm_spec::parse_mac(&desired.mac)?),
        address: desired.private_ip.parse().ok()?,
        public: public.filter(|_| leads_out),
        subnet: desired.subnet_cidr.parse().ok()?,
        acl: named(&desired.network_acl).map(AclId),
    })
}
