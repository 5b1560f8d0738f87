//! What is desired of a node, from rows.

use super::endpoints::{Changes, Horizon};
use super::heard::Heard;
use super::machine::instance;
use super::networks;
use crate::ec2::volume_types;
use crate::rows::{
    self, ConnectEndpointId, GroupId, InstanceId, InterfaceId, NatGatewayId, Record as _, Scope,
    SnapshotState, State, VolumeId, VolumeState, VpcId, parse_key,
};
use crate::store::Revision;
use crate::view::View;
use ocs_node_api as api;
use std::collections::{BTreeMap, BTreeSet};

/// MTU of a VPC's networks where no node's uplink carries less.
const MTU: u32 = 1500;

/// What a node has been told of.
#[derive(Debug, Default)]
pub struct Told {
    instances: Heard<InstanceId>,
    volumes: Heard<VolumeId>,
    /// Generations of groups.
    groups: BTreeMap<GroupId, u64>,
    /// Networks of VPCs.
    networks: BTreeMap<(Scope, VpcId), api::Network>,
    /// NAT gateways that it carries.
    nats: BTreeMap<(Scope, NatGatewayId), api::NatGateway>,
    /// Instance-connect endpoints that it carries.
    endpoints: BTreeMap<(Scope, ConnectEndpointId), api::ConnectEndpoint>,
    /// Interfaces on other nodes.
    horizon: Horizon,
    /// The MTU of its instances' interfaces.
    mtu: u32,
}

/// Everything desired of a node.
pub fn snapshot(view: &View, node: &str, told: &mut Told) -> api::Snapshot {
    *told = Told::default();
    let mut snapshot = api::Snapshot {
        revision: view.revision,
        ..Default::default()
    };
    told.mtu = mtu(view);
    for (scope, _) in view.shards() {
        for row in view
            .all::<rows::Instance>(scope)
            .filter(|row| row.node == node && row.state != State::Terminated)
        {
            let message = instance(view, scope, row);
            let news = told.instances.news(row.id, message);
            snapshot.instances.extend(news);
            let groups = &mut snapshot.security_groups;
            tell_groups(view, scope, &row.interfaces, told, groups);
            let networks = &mut snapshot.networks;
            tell_network(view, scope, row.vpc, true, told, networks);
        }
        for row in view.all::<rows::NatGateway>(scope) {
            let (networks, list) = (&mut snapshot.networks, &mut snapshot.nat_gateways);
            tell_nat(view, scope, node, row, told, networks, list);
        }
        for row in view.all::<rows::ConnectEndpoint>(scope) {
            if tell_endpoint(
                view,
                scope,
                node,
                row,
                told,
                &mut snapshot.connect_endpoints,
            ) {
                let groups = &mut snapshot.security_groups;
                tell_groups(view, scope, &[row.interface], told, groups);
                tell_network(view, scope, row.vpc, true, told, &mut snapshot.networks);
            }
        }
        let volumes = view
            .all::<rows::Volume>(scope)
            .filter(|row| row.node == node);
        let news = volumes.filter_map(|row| told.volumes.news(row.id, Some(volume(row))));
        snapshot.volumes.extend(news);
        let frozen = view
            .all::<rows::Snapshot>(scope)
            .filter(|row| row.node == node);
        snapshot
            .volume_snapshots
            .extend(frozen.map(|row| frozen_volume(row)));
    }
    let networks = told.networks.keys();
    snapshot.remote_endpoints = told.horizon.look(view, node, networks, Changes::all());
    snapshot
}

/// What the rows of some keys mean for a node; nothing if nothing.
pub fn delta(
    view: &View,
    node: &str,
    keys: &[String],
    revision: Revision,
    told: &mut Told,
) -> Option<api::Delta> {
    let mut delta = api::Delta {
        revision,
        ..Default::default()
    };
    let mut instances: BTreeSet<(Scope, InstanceId)> = BTreeSet::new();
    let mut vpcs: BTreeSet<(Scope, VpcId)> = BTreeSet::new();
    let mut changes = Changes::default();
    for key in keys.iter().collect::<BTreeSet<_>>() {
        let Some((scope, kind, id)) = parse_key(key) else {
            continue;
        };
        let concerned = networks::concerned(view, &scope, kind, id);
        vpcs.extend(concerned.into_iter().map(|vpc| (scope.clone(), vpc)));
        match kind {
            rows::Node::KIND => changes.nodes = true,
            rows::Instance::KIND => instances.extend(id.parse().ok().map(|id| (scope, id))),
            rows::Interface::KIND => {
                let Ok(id) = id.parse() else { continue };
                changes.interfaces.insert((scope.clone(), id));
                let row = view.get::<rows::Interface>(&scope, &id);
                let attached = row.and_then(|row| row.attachment.as_ref());
                instances.extend(attached.map(|attachment| (scope.clone(), attachment.instance)));
            }
            rows::Volume::KIND => {
                let Ok(id) = id.parse() else { continue };
                let row = view.get::<rows::Volume>(&scope, &id);
                let message = row.filter(|row| row.node == node).map(|row| volume(row));
                delta.volumes.extend(told.volumes.news(id, message));
            }
            rows::Snapshot::KIND => {
                let row = id
                    .parse()
                    .ok()
                    .and_then(|id| view.get::<rows::Snapshot>(&scope, &id));
                delta.volume_snapshots.extend(
                    row.filter(|row| row.node == node)
                        .map(|row| frozen_volume(row)),
                );
            }
            rows::Group::KIND => {
                if let Ok(id) = id.parse::<GroupId>() {
                    group_changed(view, &scope, id, told, &mut delta);
                }
            }
            _ => {}
        }
    }
    if changes.nodes && told.mtu != mtu(view) {
        told.mtu = mtu(view);
        instances.extend(all_instances(view, node));
        vpcs.extend(told.endpoints.keys().filter_map(|(scope, id)| {
            let row = view.get::<rows::ConnectEndpoint>(scope, id)?;
            Some((scope.clone(), row.vpc))
        }));
    }
    for (scope, id) in instances {
        let row = view.get::<rows::Instance>(&scope, &id);
        let interfaces = row.iter().flat_map(|row| &row.interfaces);
        let interfaces = interfaces.map(|interface| (scope.clone(), *interface));
        changes.interfaces.extend(interfaces);
        let row = row.filter(|row| row.node == node);
        let message = row.and_then(|row| instance(view, &scope, row));
        delta.instances.extend(told.instances.news(id, message));
        if let Some(row) = row {
            let groups = &mut delta.security_groups;
            tell_groups(view, &scope, &row.interfaces, told, groups);
            tell_network(view, &scope, row.vpc, true, told, &mut delta.networks);
        }
    }
    for (scope, vpc) in &vpcs {
        let rows = view.all::<rows::NatGateway>(scope);
        for row in rows.filter(|row| row.vpc == *vpc) {
            let (networks, list) = (&mut delta.networks, &mut delta.nat_gateways);
            tell_nat(view, scope, node, row, told, networks, list);
        }
        let rows = view.all::<rows::ConnectEndpoint>(scope);
        for row in rows.filter(|row| row.vpc == *vpc) {
            if tell_endpoint(view, scope, node, row, told, &mut delta.connect_endpoints) {
                let groups = &mut delta.security_groups;
                tell_groups(view, scope, &[row.interface], told, groups);
                tell_network(view, scope, row.vpc, true, told, &mut delta.networks);
            }
        }
    }
    for (scope, vpc) in vpcs {
        let gone = tell_network(view, &scope, vpc, false, told, &mut delta.networks);
        delta.networks_gone.extend(gone);
    }
    changes.networks = !(delta.networks.is_empty() && delta.networks_gone.is_empty());
    let networks = told.networks.keys();
    delta.remote_endpoints = told.horizon.look(view, node, networks, changes);
    let nothing = delta.instances.is_empty()
        && delta.volumes.is_empty()
        && delta.volume_snapshots.is_empty()
        && delta.security_groups.is_empty()
        && delta.security_groups_gone.is_empty()
        && delta.networks.is_empty()
        && delta.networks_gone.is_empty()
        && delta.nat_gateways.is_empty()
        && delta.connect_endpoints.is_empty()
        && delta.remote_endpoints.is_empty();
    (!nothing).then_some(delta)
}

fn all_instances<'a>(
    view: &'a View,
    node: &'a str,
) -> impl Iterator<Item = (Scope, InstanceId)> + 'a {
    view.shards().flat_map(move |(scope, _)| {
        let rows = view.all::<rows::Instance>(scope);
        let rows = rows.filter(move |row| row.node == node);
        rows.map(|row| (scope.clone(), row.id))
    })
}

/// The longest IP packet that every node carries to every other.
pub fn mtu(view: &View) -> u32 {
    let nodes = view.all::<rows::Node>(&Scope::global());
    let carried = nodes.map(|node| node.guest_mtu).filter(|mtu| *mtu != 0);
    carried.min().unwrap_or(MTU).min(MTU)
}

fn group_changed(view: &View, scope: &Scope, id: GroupId, told: &mut Told, delta: &mut api::Delta) {
    if !told.groups.contains_key(&id) {
        return;
    }
    match view.get::<rows::Group>(scope, &id) {
        Some(row) => {
            if told.groups.insert(id, row.generation) != Some(row.generation) {
                delta.security_groups.push(group(view, scope, row));
            }
        }
        None => {
            told.groups.remove(&id);
            delta.security_groups_gone.push(id.to_string());
        }
    }
}

/// A VPC's network, where the node knows the VPC (or is to know it) and not this
/// state of it. Gives the number of a network that is gone.
fn tell_network(
    view: &View,
    scope: &Scope,
    vpc: VpcId,
    new: bool,
    told: &mut Told,
    list: &mut Vec<api::Network>,
) -> Option<u32> {
    let key = (scope.clone(), vpc);
    let known = told.networks.get(&key);
    if known.is_none() && !new {
        return None;
    }
    match networks::network(view, scope, vpc) {
        None => told.networks.remove(&key).map(|network| network.vni),
        Some(network) => {
            if known != Some(&network) {
                list.push(network.clone());
                told.networks.insert(key, network);
            }
            None
        }
    }
}

/// A NAT gateway of the node's, unless this is how the node knows it.
fn tell_nat(
    view: &View,
    scope: &Scope,
    node: &str,
    row: &rows::NatGateway,
    told: &mut Told,
    networks: &mut Vec<api::Network>,
    list: &mut Vec<api::NatGateway>,
) {
    let key = (scope.clone(), row.id);
    if row.node != node {
        return;
    }
    let Some(gateway) = networks::nat_gateway(view, scope, row) else {
        told.nats.remove(&key);
        return;
    };
    tell_network(view, scope, row.vpc, true, told, networks);
    if told.nats.get(&key) != Some(&gateway) {
        list.push(gateway.clone());
        told.nats.insert(key, gateway);
    }
}

/// An instance-connect endpoint of the node's, unless this is how the node knows it; whether
/// the node is to have it.
fn tell_endpoint(
    view: &View,
    scope: &Scope,
    node: &str,
    row: &rows::ConnectEndpoint,
    told: &mut Told,
    list: &mut Vec<api::ConnectEndpoint>,
) -> bool {
    let key = (scope.clone(), row.id);
    let desired = networks::connect_endpoint(view, scope, row).filter(|_| row.node == node);
    let Some(endpoint) = desired else {
        told.endpoints.remove(&key);
        return false;
    };
    if told.endpoints.get(&key) != Some(&endpoint) {
        list.push(endpoint.clone());
        told.endpoints.insert(key, endpoint);
    }
    true
}

/// The groups of interfaces that the node does not know yet.
fn tell_groups(
    view: &View,
    scope: &Scope,
    interfaces: &[InterfaceId],
    told: &mut Told,
    list: &mut Vec<api::SecurityGroup>,
) {
    let interfaces = interfaces
        .iter()
        .filter_map(|id| view.get::<rows::Interface>(scope, id));
    for id in interfaces.flat_map(|interface| &interface.groups) {
        if let Some(row) = view.get::<rows::Group>(scope, id)
            && told.groups.insert(*id, row.generation) != Some(row.generation)
        {
            list.push(group(view, scope, row));
        }
    }
}

fn group(view: &View, scope: &Scope, row: &rows::Group) -> api::SecurityGroup {
    let rules = row.rules.iter().flat_map(|rule| {
        let peers = peers(view, scope, &rule.peer);
        peers.into_iter().map(|peer| api::Rule {
            egress: rule.egress,
            protocol: rule.protocol,
            from_port: rule.from_port,
            to_port: rule.to_port,
            peer: Some(peer),
        })
    });
    api::SecurityGroup {
        id: row.id.to_string(),
        generation: row.generation,
        vni: row.vni,
        rules: rules.collect(),
    }
}

/// Whom a rule is about: nodes know blocks and groups, and prefix lists by their
/// blocks.
fn peers(view: &View, scope: &Scope, peer: &rows::Peer) -> Vec<api::rule::Peer> {
    match peer {
        rows::Peer::Cidr(cidr) => vec![api::rule::Peer::Cidr(cidr.to_string())],
        rows::Peer::Group(id) => vec![api::rule::Peer::SecurityGroup(id.to_string())],
        rows::Peer::PrefixList(id) => {
            let list = view.get::<rows::PrefixList>(scope, id);
            let entries = list.and_then(|list| list.versions.last());
            let blocks = entries.into_iter().flatten();
            blocks
                .map(|entry| api::rule::Peer::Cidr(entry.cidr.to_string()))
                .collect()
        }
    }
}

fn volume(row: &rows::Volume) -> api::Volume {
    let desired = match row.state {
        VolumeState::Deleting => api::Desired::Absent,
        _ => api::Desired::Present,
    };
    api::Volume {
        id: row.id.to_string(),
        generation: row.generation,
        desired: desired.into(),
        size_bytes: u64::from(row.size_gib) << 30,
        image: row.image.clone(),
        snapshot: match row.snapshot {
            Some(id) if row.of_snapshot => id.to_string(),
            _ => String::new(),
        },
        encrypted: row.encrypted,
        limits: Some(volume_types::limits(
            &row.volume_type,
            row.size_gib,
            row.iops,
            row.throughput_mib_s,
        )),
    }
}

fn frozen_volume(row: &rows::Snapshot) -> api::VolumeSnapshot {
    let desired = match row.state {
        SnapshotState::Deleting => api::Desired::Absent,
        _ => api::Desired::Present,
    };
    let (while_down, while_down_reboots) = match row.while_down {
        Some((instance, reboots)) => (instance.to_string(), reboots),
        None => (String::new(), 0),
    };
    api::VolumeSnapshot {
        id: row.id.to_string(),
        generation: row.generation,
        desired: desired.into(),
        volume_id: row.volume.to_string(),
        while_down,
        while_down_reboots,
        with: row
            .with
            .iter()
            .map(|(id, volume)| api::SnapshotOf {
                id: id.to_string(),
                volume_id: volume.to_string(),
            })
            .collect(),
        copy: row.copy.as_ref().map(|copy| api::SnapshotCopy {
            snapshot: copy.snapshot.map(|id| id.to_string()).unwrap_or_default(),
            image: copy.image.clone(),
            size_bytes: u64::from(row.size_gib) << 30,
            encrypted: row.encrypted,
        }),
    }
}
