//! An instance as its node is to have it: machine, interfaces, metadata.

use super::desired::mtu;
use super::networks;
use crate::config::zone_id;
use crate::ec2::attributes::user_data;
use crate::ec2::defaults::private_dns;
use crate::ec2::dhcp_options::OWN_RESOLVER;
use crate::ec2::present::{public_ip, public_name, public_of};
use crate::ec2::types;
use crate::rows::{self, Scope, State};
use crate::view::View;
use base64::Engine as _;
use ocs_node_api as api;
use std::collections::HashMap;

/// An instance as its node is to have it; nothing where nothing of it is left.
pub fn instance(view: &View, scope: &Scope, row: &rows::Instance) -> Option<api::Instance> {
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
        cpu_credits: types::find(&row.instance_type)
            .ok()
            .and_then(|kind| cpu_credits(kind, row)),
        force_detach: forced(view, scope, row),
    })
}

/// What a burstable type earns, and what EC2 gives a start: T2 instances have launch
/// credits while `standard`, and lose their credits at a stop.
fn cpu_credits(kind: types::InstanceType, row: &rows::Instance) -> Option<api::CpuCredits> {
    let earned = kind.credits_per_hour_milli()?;
    let unlimited = row.credits.as_deref().unwrap_or(kind.default_credits()) == "unlimited";
    let t2 = kind.name.starts_with("t2.");
    let launch = if t2 && !unlimited { 30_000 } else { 0 };
    Some(api::CpuCredits {
        earned_per_hour_milli: earned,
        at_start_milli: launch * u64::from(kind.vcpus),
        most_milli: earned * 24,
        survive_stop: !t2,
        unlimited,
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

/// An interface as its node is told of it.
pub(super) fn interface(
    view: &View,
    scope: &Scope,
    id: &rows::InterfaceId,
) -> Option<api::NetworkInterface> {
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
    let public = row.private_ips().filter_map(|private_ip| {
        let (public_ip, _) = public_of(view, scope, row, private_ip)?;
        Some(api::PublicAddress {
            private_ip: private_ip.to_string(),
            public_ip: public_ip.to_string(),
        })
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
        no_dns: !vpc.dns_support,
        no_resolver: option("domain-name-servers").is_empty(),
        route_table,
        network_acl,
        public_addresses: public.collect(),
        secondary_private_ips: row.secondary.iter().map(ToString::to_string).collect(),
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
        ipv6_addresses: row.ipv6.iter().map(ToString::to_string).collect(),
        subnet_ipv6_cidr: subnet
            .ipv6_block()
            .map(|block| block.to_string())
            .unwrap_or_default(),
        vpc_ipv6_cidrs: vpc
            .ipv6
            .iter()
            .map(|(_, block)| block.to_string())
            .collect(),
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
        http_protocol_ipv6: row.metadata.ipv6,
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
