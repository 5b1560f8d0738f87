//! What is desired of a node, from rows.

use super::endpoints::{Changes, Horizon};
use super::networks;
use crate::config::zone_id;
use crate::ec2::attributes::user_data;
use crate::ec2::defaults::private_dns;
use crate::ec2::dhcp_options::OWN_RESOLVER;
use crate::ec2::present::{public_ip, public_name};
use crate::ec2::{types, volume_types};
use crate::rows::{
    self, GroupId, InstanceId, Record as _, Scope, SnapshotState, State, VolumeState, VpcId,
    parse_key,
};
use crate::store::Revision;
use crate::view::View;
use base64::Engine as _;
use ocs_node_api as api;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// MTU of a VPC's networks where no node's uplink carries less.
const MTU: u32 = 1500;

/// What a node has been told of.
#[derive(Debug, Default)]
pub struct Told {
    /// Generations of groups.
    groups: BTreeMap<GroupId, u64>,
    /// Networks of VPCs.
    networks: BTreeMap<(Scope, VpcId), api::Network>,
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
            snapshot.instances.extend(instance(view, scope, row));
            tell_groups(view, scope, row, told, &mut snapshot.security_groups);
            let networks = &mut snapshot.networks;
            tell_network(view, scope, row.vpc, true, told, networks);
        }
        let volumes = view
            .all::<rows::Volume>(scope)
            .filter(|row| row.node == node);
        snapshot.volumes.extend(volumes.map(|row| volume(row)));
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
                let row = id
                    .parse()
                    .ok()
                    .and_then(|id| view.get::<rows::Volume>(&scope, &id));
                delta
                    .volumes
                    .extend(row.filter(|row| row.node == node).map(|row| volume(row)));
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
    }
    for (scope, id) in instances {
        let row = view.get::<rows::Instance>(&scope, &id);
        let interfaces = row.iter().flat_map(|row| &row.interfaces);
        let interfaces = interfaces.map(|interface| (scope.clone(), *interface));
        changes.interfaces.extend(interfaces);
        if let Some(row) = row.filter(|row| row.node == node) {
            delta.instances.extend(instance(view, &scope, row));
            tell_groups(view, &scope, row, told, &mut delta.security_groups);
            tell_network(view, &scope, row.vpc, true, told, &mut delta.networks);
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
fn mtu(view: &View) -> u32 {
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

/// The groups of an instance's interfaces that the node does not know yet.
fn tell_groups(
    view: &View,
    scope: &Scope,
    row: &rows::Instance,
    told: &mut Told,
    list: &mut Vec<api::SecurityGroup>,
) {
    let interfaces = row
        .interfaces
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
    }
}

/// An instance as its node is told of it; nothing once it is gone.
fn instance(view: &View, scope: &Scope, row: &rows::Instance) -> Option<api::Instance> {
    let desired = match row.state {
        State::Pending | State::Running => api::Desired::Running,
        State::Stopping | State::Stopped => api::Desired::Stopped,
        State::ShuttingDown => api::Desired::Absent,
        State::Terminated => return None,
    };
    let attachments = row.mappings.iter().map(|mapping| api::Attachment {
        volume_id: mapping.volume.to_string(),
        device_name: mapping.device.clone(),
        read_only: false,
    });
    let stores = (0_u32..)
        .zip(&row.store_disks)
        .map(|(index, disk)| api::InstanceStore {
            index,
            device_name: disk.device.clone(),
            size_bytes: disk.size_bytes,
            image: disk.image.clone(),
            root: disk.device == row.root_device,
        });
    let interfaces = row
        .interfaces
        .iter()
        .filter_map(|id| interface(view, scope, id));
    Some(api::Instance {
        id: row.id.to_string(),
        generation: row.generation,
        desired: desired.into(),
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        image: Some(api::Image {
            id: row.boot.image.to_string(),
            kernel: row.boot.kernel.clone(),
            initrd: row.boot.initrd.clone(),
            cmdline: row.boot.cmdline.clone(),
        }),
        attachments: attachments.collect(),
        network_interfaces: interfaces.collect(),
        metadata: Some(metadata(view, scope, row)),
        reboots: row.reboots,
        instance_stores: stores.collect(),
        terminate_on_shutdown: row.terminate_on_shutdown,
        starts: row.starts,
        network_rate: types::find(&row.instance_type)
            .ok()
            .map(|kind| network_rate(kind.bandwidth)),
        force_detach: forced(view, scope, row),
    })
}

/// What leaves an instance without its guest's consent.
fn forced(view: &View, scope: &Scope, row: &rows::Instance) -> Vec<String> {
    let cards = row.leaving.iter().filter(|id| {
        let row = view.get::<rows::Interface>(scope, id);
        let attachment = row.and_then(|row| row.attachment.as_ref());
        attachment.is_some_and(|attachment| attachment.force)
    });
    let volumes = row.force_detach.iter().map(ToString::to_string);
    volumes.chain(cards.map(ToString::to_string)).collect()
}

fn network_rate(bandwidth: types::Bandwidth) -> api::NetworkRate {
    api::NetworkRate {
        baseline_bps: bandwidth.baseline_bps(),
        peak_bps: bandwidth.peak_bps(),
        credit_bytes: bandwidth.credit_bytes(),
        packets_per_s: bandwidth.packets_per_s(),
    }
}

fn interface(view: &View, scope: &Scope, id: &rows::InterfaceId) -> Option<api::NetworkInterface> {
    let row = view.get::<rows::Interface>(scope, id)?;
    let vpc = view.get::<rows::Vpc>(scope, &row.vpc)?;
    let subnet = view.get::<rows::Subnet>(scope, &row.subnet)?;
    let options = vpc.dhcp_options.as_ref();
    let options = options.and_then(|id| view.get::<rows::DhcpOptions>(scope, id));
    let option = |name: &str| -> Vec<String> {
        let found = options.and_then(|row| row.options.iter().find(|(key, _)| key == name));
        found.map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let mut servers = option("domain-name-servers");
    servers.retain(|server| server != OWN_RESOLVER);
    let (route_table, network_acl) = networks::ways(view, scope, row.vpc, row.subnet);
    let public = public_ip(view, scope, row.id).map(|public_ip| api::PublicAddress {
        private_ip: row.private_ip.to_string(),
        public_ip: public_ip.to_string(),
    });
    Some(api::NetworkInterface {
        id: row.id.to_string(),
        vni: vpc.vni,
        mac: row.mac.clone(),
        private_ip: row.private_ip.to_string(),
        subnet_cidr: subnet.cidr.to_string(),
        vpc_cidr: vpc.cidr.to_string(),
        security_groups: row.groups.iter().map(ToString::to_string).collect(),
        source_dest_check: row.source_dest_check,
        mtu: mtu(view),
        domain_name: option("domain-name").pop().unwrap_or_default(),
        no_resolver: option("domain-name-servers").is_empty(),
        route_table,
        network_acl,
        public_addresses: public.into_iter().collect(),
        domain_name_servers: servers,
        ntp_servers: option("ntp-servers"),
        netbios_name_servers: option("netbios-name-servers"),
        netbios_node_type: option("netbios-node-type")
            .pop()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        subnet_id: row.subnet.to_string(),
        device_index: row.attachment.as_ref().map_or(0, |held| held.device_index),
        security_group_names: row
            .groups
            .iter()
            .filter_map(|id| Some(view.get::<rows::Group>(scope, id)?.name.clone()))
            .collect(),
        vpc_cidrs: vpc.cidrs().map(|cidr| cidr.to_string()).collect(),
        hostname: private_dns(row.private_ip, &scope.region),
        public_hostname: public_name(view, scope, row).unwrap_or_default(),
        ..Default::default()
    })
}

fn metadata(view: &View, scope: &Scope, row: &rows::Instance) -> api::Metadata {
    // Checked when it came.
    let user_data = user_data(view, scope, row)
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
        .unwrap_or_default();
    let placement = row.placement_group.as_ref();
    let placement = placement.and_then(|id| view.get::<rows::PlacementGroup>(scope, id));
    let primary = row.interfaces.first();
    let primary = primary.and_then(|id| view.get::<rows::Interface>(scope, id));
    let group_name = |id| {
        view.get::<rows::Group>(scope, id)
            .map(|group| group.name.clone())
    };
    api::Metadata {
        account_id: scope.account.to_string(),
        ami_id: row.boot.image.to_string(),
        instance_type: row.instance_type.clone(),
        region: scope.region.to_string(),
        availability_zone: row.zone.clone(),
        availability_zone_id: zone_id(&row.zone),
        reservation_id: row.reservation.to_string(),
        ami_launch_index: row.launch_index,
        hostname: private_dns(row.private_ip, &scope.region),
        public_ip: primary
            .and_then(|interface| public_ip(view, scope, interface.id))
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
        public_hostname: primary
            .and_then(|interface| public_name(view, scope, interface))
            .unwrap_or_default(),
        user_data,
        security_group_names: row.groups.iter().filter_map(group_name).collect(),
        vpc_id: row.vpc.to_string(),
        subnet_id: row.subnet.to_string(),
        key_name: row.key_name.clone(),
        public_key: row.public_key.clone(),
        placement_group_name: placement
            .map(|group| group.name.clone())
            .unwrap_or_default(),
        partition_number: row.partition.unwrap_or(0),
        http_endpoint_enabled: row.metadata.enabled,
        http_tokens_required: row.metadata.tokens_required,
        http_put_response_hop_limit: row.metadata.hop_limit,
        instance_metadata_tags: row.metadata.tags,
        tags: row
            .tags
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        launch_time_s: row.launched_at_s,
        block_device_mapping: block_devices(row),
    }
}

/// As the metadata service calls devices: `ami`, `root`, `ebsN`, `ephemeralN`.
fn block_devices(row: &rows::Instance) -> HashMap<String, String> {
    let short = |device: &str| device.trim_start_matches("/dev/").to_owned();
    let mut devices = HashMap::from([
        ("ami".to_owned(), short(&row.root_device)),
        ("root".to_owned(), row.root_device.clone()),
    ]);
    let others = row
        .mappings
        .iter()
        .filter(|mapping| mapping.device != row.root_device);
    devices.extend(
        (1..)
            .zip(others)
            .map(|(n, mapping)| (format!("ebs{n}"), short(&mapping.device))),
    );
    let disks = row
        .store_disks
        .iter()
        .filter(|disk| !disk.virtual_name.is_empty());
    devices.extend(disks.map(|disk| (disk.virtual_name.clone(), short(&disk.device))));
    devices
}
