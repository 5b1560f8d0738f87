//! Interfaces on other nodes, as a node is told of them: whom its instances can reach, and
//! whose frames it takes from which host.

use crate::rows::{self, InterfaceId, PeeringState, Scope, VpcId};
use crate::view::View;
use ocs_node_api as api;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// An interface, wherever it is.
pub type Key = (Scope, InterfaceId);

/// What a node has been told of others.
#[derive(Debug, Default)]
pub struct Horizon {
    told: BTreeMap<Key, Vec<api::RemoteEndpoint>>,
    /// The node's VPCs and those that they are peered with.
    vpcs: BTreeSet<(Scope, VpcId)>,
    /// Underlay addresses of the other nodes; none where the node has none itself.
    hosts: BTreeMap<String, Ipv4Addr>,
}

/// What may have changed since the last look.
#[derive(Debug, Default)]
pub struct Changes {
    /// The networks that the node knows.
    pub networks: bool,
    /// A node.
    pub nodes: bool,
    /// These interfaces.
    pub interfaces: BTreeSet<Key>,
}

impl Changes {
    /// Nothing is known yet.
    pub fn all() -> Self {
        Self {
            networks: true,
            nodes: true,
            interfaces: BTreeSet::new(),
        }
    }
}

impl Horizon {
    /// What `node` is to be told; `networks` are those that it knows. What is gone comes
    /// first, since its address may be another's by now.
    pub fn look<'a>(
        &mut self,
        view: &View,
        node: &str,
        networks: impl Iterator<Item = &'a (Scope, VpcId)>,
        changes: Changes,
    ) -> Vec<api::RemoteEndpoint> {
        let mut ids = changes.interfaces;
        let mut everything = false;
        if changes.nodes {
            let hosts = hosts(view, node);
            everything |= hosts != self.hosts;
            self.hosts = hosts;
        }
        if changes.networks {
            let vpcs = with_peers(view, networks);
            everything |= vpcs != self.vpcs;
            self.vpcs = vpcs;
        }
        if everything {
            ids.extend(self.told.keys().cloned());
            let scopes: BTreeSet<&Scope> = self.vpcs.iter().map(|(scope, _)| scope).collect();
            for scope in scopes {
                let rows = view.all::<rows::Interface>(scope);
                ids.extend(rows.map(|row| (scope.clone(), row.id)));
            }
        }
        let (mut gone, mut list) = (Vec::new(), Vec::new());
        for key in ids {
            let new = self.endpoints(view, node, &key).unwrap_or_default();
            let old = self.told.remove(&key).unwrap_or_default();
            let left = old
                .iter()
                .filter(|old| new.iter().all(|new| new.ip != old.ip));
            gone.extend(left.map(|old| api::RemoteEndpoint {
                host: String::new(),
                ..old.clone()
            }));
            list.extend(new.iter().filter(|new| !old.contains(new)).cloned());
            if !new.is_empty() {
                self.told.insert(key, new);
            }
        }
        gone.extend(list);
        gone
    }

    /// The interface by each of its addresses, if it is on another node, and the node is to
    /// know it.
    fn endpoints(
        &self,
        view: &View,
        node: &str,
        (scope, id): &Key,
    ) -> Option<Vec<api::RemoteEndpoint>> {
        let row = view.get::<rows::Interface>(scope, id)?;
        if !self.vpcs.contains(&(scope.clone(), row.vpc)) {
            return None;
        }
        let at = match (&row.attachment, &row.nat_gateway, &row.connect_endpoint) {
            (Some(held), ..) => &view.get::<rows::Instance>(scope, &held.instance)?.node,
            (None, Some(id), _) => &view.get::<rows::NatGateway>(scope, id)?.node,
            (None, None, Some(id)) => &view.get::<rows::ConnectEndpoint>(scope, id)?.node,
            (None, None, None) => return None,
        };
        if at == node {
            return None;
        }
        let host = self.hosts.get(at)?;
        let vpc = view.get::<rows::Vpc>(scope, &row.vpc)?;
        let endpoint = |ip: IpAddr| api::RemoteEndpoint {
            vni: vpc.vni,
            ip: ip.to_string(),
            mac: row.mac.clone(),
            host: host.to_string(),
            security_groups: row.groups.iter().map(ToString::to_string).collect(),
            forwards: !row.source_dest_check,
        };
        let private = row.private_ips().map(IpAddr::from);
        let ipv6 = row.ipv6.iter().copied().map(IpAddr::from);
        Some(private.chain(ipv6).map(endpoint).collect())
    }
}

fn hosts(view: &View, node: &str) -> BTreeMap<String, Ipv4Addr> {
    let rows = view.all::<rows::Node>(&Scope::global());
    let mut hosts: BTreeMap<String, Ipv4Addr> = rows
        .filter_map(|row| Some((row.name.clone(), row.underlay?)))
        .collect();
    match hosts.remove(node) {
        Some(_) => hosts,
        None => BTreeMap::new(),
    }
}

fn with_peers<'a>(
    view: &View,
    networks: impl Iterator<Item = &'a (Scope, VpcId)>,
) -> BTreeSet<(Scope, VpcId)> {
    let own: BTreeSet<(Scope, VpcId)> = networks.cloned().collect();
    let mut all = own.clone();
    let scopes: BTreeSet<&Scope> = own.iter().map(|(scope, _)| scope).collect();
    for scope in scopes {
        for row in view.all::<rows::Peering>(scope) {
            let pair = [row.requester, row.accepter].map(|vpc| (scope.clone(), vpc));
            if row.state == PeeringState::Active && pair.iter().any(|vpc| own.contains(vpc)) {
                all.extend(pair);
            }
        }
    }
    all
}
