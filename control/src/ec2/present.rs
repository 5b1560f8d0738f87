//! Rows as EC2 shows them.

use super::defaults::private_dns;
use super::list::tag_set;
use crate::config::zone_id;
use crate::core::now_s;
use crate::rows::*;
use crate::view::View;
use crate::wire::shown::shown;
use crate::wire::{Shown, Tree as _, Value};
use serde_json::json;
use time::OffsetDateTime;

/// Unix seconds in ISO 8601.
pub fn timestamp(at_s: i64) -> Value {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].000Z");
    OffsetDateTime::from_unix_timestamp(at_s)
        .ok()
        .and_then(|at| at.format(&format).ok())
        .map_or(Value::Null, Value::String)
}

/// Unix seconds as in StateTransitionReason.
pub fn gmt(at_s: i64) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] GMT");
    OffsetDateTime::from_unix_timestamp(at_s)
        .ok()
        .and_then(|at| at.format(&format).ok())
        .unwrap_or_default()
}

/// `{Code, Name}`.
pub fn state(state: State) -> Shown {
    shown!({"Code": state.code(), "Name": state.name()})
}

fn group_refs(view: &View, scope: &Scope, groups: &[GroupId]) -> Shown {
    groups
        .iter()
        .map(|id| {
            let group = view.get::<Group>(scope, id);
            let name = group.map_or_else(String::new, |group| group.name.clone());
            shown!({"GroupId": id.to_string(), "GroupName": name})
        })
        .collect()
}

/// An instance as DescribeInstances and RunInstances show it.
pub fn instance(view: &View, scope: &Scope, row: &Instance) -> Shown {
    let mut item = shown!({
        "AmiLaunchIndex": row.launch_index,
        "ImageId": row.boot.image.to_string(),
        "InstanceId": row.id.to_string(),
        "InstanceType": &row.instance_type,
        "LaunchTime": timestamp(row.launched_at_s),
        "Monitoring": {"State": if row.monitoring { "enabled" } else { "disabled" }},
        "Placement": {
            "AvailabilityZone": &row.zone,
            "AvailabilityZoneId": zone_id(&row.zone),
            "GroupName": "",
            "Tenancy": "default",
        },
        "PrivateDnsName": "",
        "ProductCodes": [],
        "PublicDnsName": "",
        "State": state(row.state),
        "StateTransitionReason": &row.transition,
        "Architecture": &row.boot.architecture,
        "BlockDeviceMappings": [],
        "ClientToken": &row.client_token,
        "EbsOptimized": false,
        "EnaSupport": false,
        "Hypervisor": "xen",
        "NetworkInterfaces": [],
        "RootDeviceName": &row.root_device,
        "RootDeviceType": if row.boot.instance_store { "instance-store" } else { "ebs" },
        "SecurityGroups": [],
        "Tags": tag_set(&row.tags),
        "VirtualizationType": "hvm",
        "CpuOptions": {"CoreCount": row.vcpus, "ThreadsPerCore": 1},
        "CapacityReservationSpecification": {"CapacityReservationPreference": "open"},
        "HibernationOptions": {"Configured": false},
        "MetadataOptions": metadata_options(&row.metadata),
        "EnclaveOptions": {"Enabled": false},
        "BootMode": "legacy-bios",
        "CurrentInstanceBootMode": "legacy-bios",
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "MaintenanceOptions": {"AutoRecovery": "default"},
    });
    if !row.key_name.is_empty() {
        item["KeyName"] = (&row.key_name).into();
    }
    if let Some(group) = row.placement_group {
        item["Placement"]["GroupId"] = group.to_string().into();
        if let Some(group) = view.get::<PlacementGroup>(scope, &group) {
            item["Placement"]["GroupName"] = (&group.name).into();
        }
        if let Some(partition) = row.partition {
            item["Placement"]["PartitionNumber"] = partition.into();
        }
    }
    if let Some(reason) = &row.reason {
        item["StateReason"] = shown!({"Code": &reason.code, "Message": &reason.message});
    }
    if row.state == State::Terminated {
        return item;
    }
    item["PrivateDnsName"] = private_dns(row.private_ip, &scope.region).into();
    item["PrivateIpAddress"] = row.private_ip.to_string().into();
    item["PrivateDnsNameOptions"] = shown!({
        "HostnameType": "ip-name",
        "EnableResourceNameDnsARecord": false,
        "EnableResourceNameDnsAAAARecord": false,
    });
    let primary = row.interfaces.first();
    if let Some(ip) = primary.and_then(|id| public_ip(view, scope, *id)) {
        item["PublicIpAddress"] = ip.to_string().into();
        let interface = primary.and_then(|id| view.get::<Interface>(scope, id));
        if let Some(name) = interface.and_then(|row| public_name(view, scope, row)) {
            item["PublicDnsName"] = name.into();
        }
    }
    item["SubnetId"] = row.subnet.to_string().into();
    item["VpcId"] = row.vpc.to_string().into();
    item["SecurityGroups"] = group_refs(view, scope, &row.groups);
    let interface = primary.and_then(|id| view.get::<Interface>(scope, id));
    if let Some(address) = interface.and_then(|row| row.ipv6.first()) {
        item["Ipv6Address"] = address.to_string().into();
    }
    item["SourceDestCheck"] = interface.is_none_or(|row| row.source_dest_check).into();
    item["BlockDeviceMappings"] = row
        .mappings
        .iter()
        .filter_map(|mapping| {
            let volume = view.get::<Volume>(scope, &mapping.volume)?;
            let attachment = volume.attachment.as_ref()?;
            Some(shown!({
                "DeviceName": &mapping.device,
                "Ebs": {
                    "AttachTime": timestamp(attachment.at_s),
                    "DeleteOnTermination": attachment.delete_on_termination,
                    "Status": attachment_status(volume),
                    "VolumeId": mapping.volume.to_string(),
                },
            }))
        })
        .collect();
    item["NetworkInterfaces"] = row
        .interfaces
        .iter()
        .chain(&row.leaving)
        .filter_map(|id| {
            Some(instance_interface(
                view,
                scope,
                view.get::<Interface>(scope, id)?,
            ))
        })
        .collect();
    item
}

/// Metadata options with their state.
pub fn metadata_options(options: &MetadataOptions) -> Shown {
    let on = |on: bool| if on { "enabled" } else { "disabled" };
    shown!({
        "State": "applied",
        "HttpTokens": if options.tokens_required { "required" } else { "optional" },
        "HttpPutResponseHopLimit": options.hop_limit,
        "HttpEndpoint": on(options.enabled),
        "HttpProtocolIpv6": on(options.ipv6),
        "InstanceMetadataTags": on(options.tags),
    })
}

/// The public address of an interface's primary private one: an Elastic IP, or its own.
pub fn public_ip(view: &View, scope: &Scope, id: InterfaceId) -> Option<std::net::Ipv4Addr> {
    let row = view.get::<Interface>(scope, &id)?;
    public_of(view, scope, row, row.private_ip).map(|(public, _)| public)
}

/// The public address that stands for a private one of an interface, and whether it is an
/// Elastic IP.
pub fn public_of(
    view: &View,
    scope: &Scope,
    row: &Interface,
    private_ip: std::net::Ipv4Addr,
) -> Option<(std::net::Ipv4Addr, bool)> {
    let primary = private_ip == row.private_ip;
    let stands = |held: &AddressAssociation| {
        held.interface == row.id && held.private_ip.unwrap_or(row.private_ip) == private_ip
    };
    let elastic = view
        .all::<Address>(scope)
        .find(|address| address.association.as_ref().is_some_and(stands));
    match elastic {
        Some(address) => Some((address.public_ip, true)),
        None => row.public_ip.filter(|_| primary).map(|own| (own, false)),
    }
}

/// The public name of an interface, where its VPC gives such names.
pub fn public_name(view: &View, scope: &Scope, row: &Interface) -> Option<String> {
    let named = |vpc: &&std::sync::Arc<Vpc>| vpc.dns_hostnames;
    view.get::<Vpc>(scope, &row.vpc).filter(named)?;
    Some(public_dns(public_ip(view, scope, row.id)?, &scope.region))
}

/// EC2's name for a public address.
fn public_dns(ip: std::net::Ipv4Addr, region: &str) -> String {
    let zone = match region {
        "us-east-1" => "compute-1".to_owned(),
        _ => format!("{region}.compute"),
    };
    format!(
        "ec2-{}.{zone}.amazonaws.com",
        ip.to_string().replace('.', "-")
    )
}

/// An instance that has never been up.
fn is_new(view: &View, scope: &Scope, id: InstanceId) -> bool {
    view.get::<Instance>(scope, &id)
        .is_some_and(|row| row.state == State::Pending && !row.has_run)
}

fn instance_interface(view: &View, scope: &Scope, row: &Interface) -> Shown {
    let ipv6 = row.ipv6.iter().map(ipv6_address);
    let mut item = shown!({
        "NetworkInterfaceId": row.id.to_string(),
        "VpcId": row.vpc.to_string(),
        "SubnetId": row.subnet.to_string(),
        "Description": &row.description,
        "OwnerId": scope.account.to_string(),
        "Status": if row.attachment.is_some() { "in-use" } else { "available" },
        "MacAddress": &row.mac,
        "PrivateIpAddress": row.private_ip.to_string(),
        "PrivateDnsName": private_dns(row.private_ip, &scope.region),
        "SourceDestCheck": row.source_dest_check,
        "Groups": group_refs(view, scope, &row.groups),
        "InterfaceType": "interface",
        "Ipv6Addresses": ipv6.collect::<Vec<Shown>>(),
    });
    let addresses: Vec<Shown> = row
        .private_ips()
        .map(|ip| private_address(view, scope, row, ip))
        .collect();
    if let Some(association) = addresses
        .first()
        .and_then(|first| first.member("Association"))
    {
        item["Association"] = association.clone();
    }
    item["PrivateIpAddresses"] = addresses.into();
    if let Some(attachment) = &row.attachment {
        let status = match attachment {
            held if held.detaching != 0 => "detaching",
            held if held.attaching != 0 || is_new(view, scope, held.instance) => "attaching",
            _ => "attached",
        };
        item["Attachment"] = interface_attachment(attachment, status);
    }
    item
}

fn ipv6_address(address: &std::net::Ipv6Addr) -> Shown {
    shown!({"Ipv6Address": address.to_string(), "IsPrimaryIpv6": false})
}

fn private_address(
    view: &View,
    scope: &Scope,
    row: &Interface,
    private_ip: std::net::Ipv4Addr,
) -> Shown {
    let mut item = shown!({
        "Primary": private_ip == row.private_ip,
        "PrivateIpAddress": private_ip.to_string(),
        "PrivateDnsName": private_dns(private_ip, &scope.region),
    });
    if let Some((public, elastic)) = public_of(view, scope, row, private_ip) {
        item["Association"] = shown!({
            "IpOwnerId": if elastic { scope.account.to_string() } else { "amazon".to_owned() },
            "PublicIp": public.to_string(),
            "PublicDnsName": public_dns(public, &scope.region),
        });
    }
    item
}

fn interface_attachment(row: &InterfaceAttachment, status: &'static str) -> Shown {
    shown!({
        "AttachmentId": row.id.to_string(),
        "AttachTime": timestamp(row.at_s),
        "DeleteOnTermination": row.delete_on_termination,
        "DeviceIndex": row.device_index,
        "NetworkCardIndex": 0,
        "Status": status,
    })
}

/// How long an attachment that ended is shown as `detached`: who waits for that has
/// minutes to wait once it is gone.
const DETACHED_S: i64 = 5;

/// A network interface as DescribeNetworkInterfaces shows it.
pub fn interface(view: &View, scope: &Scope, row: &Interface) -> Value {
    let mut item = Value::from(instance_interface(view, scope, row));
    item["AvailabilityZone"] = row.zone.clone().into();
    item["RequesterManaged"] = row.is_managed().into();
    if row.is_managed() {
        item["InterfaceType"] = match row.nat_gateway {
            Some(_) => "nat_gateway".into(),
            None => "ec2_instance_connect_endpoint".into(),
        };
        item["Status"] = "in-use".into();
        item["Attachment"] = json!({
            "AttachmentId": AttachmentId::derived(&row.id.to_string()).to_string(),
            "DeleteOnTermination": false,
            "DeviceIndex": 1,
            "InstanceOwnerId": "amazon-aws",
            "Status": "attached",
        });
    }
    item["TagSet"] = tag_set(&row.tags).into();
    let left = row.left.as_deref();
    let left = left.filter(|(_, at_s)| now_s() - at_s < DETACHED_S);
    if let (None, Some((attachment, _))) = (&row.attachment, left) {
        item["Attachment"] = interface_attachment(attachment, "detached").into();
    }
    let left = left.map(|(attachment, _)| attachment);
    if let Some(attachment) = row.attachment.as_ref().or(left) {
        item["Attachment"]["InstanceId"] = attachment.instance.to_string().into();
        item["Attachment"]["InstanceOwnerId"] = (*scope.account).into();
    }
    item
}

fn attachment_status(volume: &Volume) -> &'static str {
    match &volume.attachment {
        Some(attachment) if attachment.detaching != 0 => "detaching",
        Some(attachment) if attachment.attaching != 0 => "attaching",
        _ if volume.state == VolumeState::InUse => "attached",
        _ => "attaching",
    }
}

/// A volume's attachment; null where it has none.
pub fn attachment(row: &Volume) -> Value {
    row.attachment.as_ref().map_or(Value::Null, |attachment| {
        json!({
            "VolumeId": row.id.to_string(),
            "InstanceId": attachment.instance.to_string(),
            "Device": attachment.device,
            "State": attachment_status(row),
            "AttachTime": timestamp(attachment.at_s),
            "DeleteOnTermination": attachment.delete_on_termination,
        })
    })
}

/// A volume.
pub fn volume(row: &Volume) -> Value {
    let mut item = json!({
        "VolumeId": row.id.to_string(),
        "Size": row.size_gib,
        "SnapshotId": row.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        "AvailabilityZone": row.zone,
        "AvailabilityZoneId": zone_id(&row.zone),
        "State": row.state.name(),
        "CreateTime": timestamp(row.created_at_s),
        "VolumeType": row.volume_type,
        "Encrypted": row.encrypted,
        "MultiAttachEnabled": false,
        "Tags": tag_set(&row.tags),
        "Attachments": [],
    });
    if let Some(iops) = row.iops {
        item["Iops"] = iops.into();
    }
    if let Some(throughput) = row.throughput_mib_s {
        item["Throughput"] = throughput.into();
    }
    if row.attachment.is_some() {
        item["Attachments"] = json!([attachment(row)]);
    }
    item
}
