//! DescribeInstances and DescribeInstanceStatus.

use super::list::{Query, lookup};
use super::params::Filter;
use super::{Ctx, present};
use crate::config::zone_id;
use crate::rows::*;
use crate::view::View;
use crate::wire::shown::shown;
use crate::wire::{ApiError, Shown, Tree as _, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    instance_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    include_all_instances: bool,
}

/// Where filter names of DescribeInstances lead.
const PATHS: super::filters::Paths = &[
    ("affinity", "Placement.Affinity"),
    ("availability-zone", "Placement.AvailabilityZone"),
    ("availability-zone-id", "Placement.AvailabilityZoneId"),
    (
        "block-device-mapping.attach-time",
        "BlockDeviceMappings.Ebs.AttachTime",
    ),
    (
        "block-device-mapping.delete-on-termination",
        "BlockDeviceMappings.Ebs.DeleteOnTermination",
    ),
    (
        "block-device-mapping.device-name",
        "BlockDeviceMappings.DeviceName",
    ),
    (
        "block-device-mapping.status",
        "BlockDeviceMappings.Ebs.Status",
    ),
    (
        "block-device-mapping.volume-id",
        "BlockDeviceMappings.Ebs.VolumeId",
    ),
    ("dns-name", "PublicDnsName"),
    ("ip-address", "PublicIpAddress"),
    (
        "network-interface.addresses.association.public-ip",
        "NetworkInterfaces.PrivateIpAddresses.Association.PublicIp",
    ),
    (
        "network-interface.association.public-ip",
        "NetworkInterfaces.Association.PublicIp",
    ),
    (
        "hibernation-options.configured",
        "HibernationOptions.Configured",
    ),
    ("instance-state-code", "State.Code"),
    ("instance-state-name", "State.Name"),
    ("instance.group-id", "SecurityGroups.GroupId"),
    ("instance.group-name", "SecurityGroups.GroupName"),
    ("launch-index", "AmiLaunchIndex"),
    ("metadata-options.http-tokens", "MetadataOptions.HttpTokens"),
    (
        "metadata-options.http-put-response-hop-limit",
        "MetadataOptions.HttpPutResponseHopLimit",
    ),
    (
        "metadata-options.http-endpoint",
        "MetadataOptions.HttpEndpoint",
    ),
    (
        "metadata-options.instance-metadata-tags",
        "MetadataOptions.InstanceMetadataTags",
    ),
    ("monitoring-state", "Monitoring.State"),
    (
        "network-interface.addresses.primary",
        "NetworkInterfaces.PrivateIpAddresses.Primary",
    ),
    (
        "network-interface.addresses.private-ip-address",
        "NetworkInterfaces.PrivateIpAddresses.PrivateIpAddress",
    ),
    (
        "network-interface.attachment.attach-time",
        "NetworkInterfaces.Attachment.AttachTime",
    ),
    (
        "network-interface.attachment.attachment-id",
        "NetworkInterfaces.Attachment.AttachmentId",
    ),
    (
        "network-interface.attachment.delete-on-termination",
        "NetworkInterfaces.Attachment.DeleteOnTermination",
    ),
    (
        "network-interface.attachment.device-index",
        "NetworkInterfaces.Attachment.DeviceIndex",
    ),
    ("network-interface.attachment.instance-id", "InstanceId"),
    (
        "network-interface.attachment.status",
        "NetworkInterfaces.Attachment.Status",
    ),
    (
        "network-interface.availability-zone",
        "Placement.AvailabilityZone",
    ),
    (
        "network-interface.description",
        "NetworkInterfaces.Description",
    ),
    (
        "network-interface.group-id",
        "NetworkInterfaces.Groups.GroupId",
    ),
    (
        "network-interface.group-name",
        "NetworkInterfaces.Groups.GroupName",
    ),
    (
        "network-interface.mac-address",
        "NetworkInterfaces.MacAddress",
    ),
    (
        "network-interface.network-interface-id",
        "NetworkInterfaces.NetworkInterfaceId",
    ),
    ("network-interface.owner-id", "NetworkInterfaces.OwnerId"),
    (
        "network-interface.private-dns-name",
        "NetworkInterfaces.PrivateDnsName",
    ),
    (
        "network-interface.private-ip-address",
        "NetworkInterfaces.PrivateIpAddress",
    ),
    (
        "network-interface.source-dest-check",
        "NetworkInterfaces.SourceDestCheck",
    ),
    ("network-interface.status", "NetworkInterfaces.Status"),
    ("network-interface.subnet-id", "NetworkInterfaces.SubnetId"),
    ("network-interface.vpc-id", "NetworkInterfaces.VpcId"),
    ("placement-group-name", "Placement.GroupName"),
    (
        "private-dns-name-options.hostname-type",
        "PrivateDnsNameOptions.HostnameType",
    ),
    (
        "private-dns-name-options.enable-resource-name-dns-a-record",
        "PrivateDnsNameOptions.EnableResourceNameDnsARecord",
    ),
    ("reason", "StateTransitionReason"),
    ("state-reason-code", "StateReason.Code"),
    ("state-reason-message", "StateReason.Message"),
    ("tenancy", "Placement.Tenancy"),
];

/// The instances that a call names, or all.
pub fn named(view: &View, scope: &Scope, ids: &[String]) -> Result<Vec<Arc<Instance>>, ApiError> {
    if ids.is_empty() {
        return Ok(view.all::<Instance>(scope).cloned().collect());
    }
    let mut found = lookup(
        ids,
        InstanceId::parse,
        |id| view.get::<Instance>(scope, &id).cloned(),
        |text| InstanceId::not_found(text),
    )?;
    found.sort_by_key(|row| row.id);
    found.dedup_by_key(|row| row.id);
    Ok(found)
}

/// DescribeInstances: instances by id, then grouped by reservation.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Shown, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "Reservations",
        by_id: !params.instance_ids.is_empty(),
        filters: &params.filters,
        paths: PATHS,
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    let page = query.page()?;
    ctx.read(|view| {
        let named = match query.by_id {
            true => named(view, &ctx.scope, &params.instance_ids)?,
            false => Vec::new(),
        };
        // Of all that there are a page makes its own alone.
        let after = page.after().and_then(|key| key.parse().ok());
        let all = view.after::<Instance>(&ctx.scope, after);
        let rows = named
            .iter()
            .chain(all.take(if query.by_id { 0 } else { usize::MAX }));
        // With its reservation's members, for filters of those; they are taken off again.
        let items = rows.map(|row| {
            let mut item = present::instance(view, &ctx.scope, row);
            item["ReservationId"] = row.reservation.to_string().into();
            item["OwnerId"] = ctx.account().to_owned().into();
            (row.id.to_string(), item)
        });
        let (instances, token) = page.fill(items);
        let mut reservations: Vec<(Shown, Vec<Shown>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for mut instance in instances {
            // The two that were put on last.
            let id = match &mut instance {
                Shown::Object(members) => {
                    members.pop();
                    members.pop().map_or(Shown::Null, |(_, id)| id)
                }
                _ => Shown::Null,
            };
            let key = id.text().unwrap_or_default().into_owned();
            let place = *places.entry(key).or_insert_with(|| {
                reservations.push((id, Vec::new()));
                reservations.len() - 1
            });
            reservations[place].1.push(instance);
        }
        let reservations = reservations
            .into_iter()
            .map(|(id, instances)| reservation(id, ctx.account(), instances));
        let mut answer = shown!({"Reservations": reservations.collect::<Shown>()});
        if let Some(token) = token {
            answer["NextToken"] = token.into();
        }
        Ok(answer)
    })
    .await
}

/// A reservation with its instances.
pub fn reservation(id: impl Into<Shown>, owner: &str, instances: Vec<Shown>) -> Shown {
    shown!({
        "Groups": [],
        "Instances": instances,
        "OwnerId": owner.to_owned(),
        "ReservationId": id.into(),
    })
}

/// Where filter names of DescribeInstanceStatus lead.
const STATUS_PATHS: super::filters::Paths = &[
    ("instance-state-code", "InstanceState.Code"),
    ("instance-state-name", "InstanceState.Name"),
    (
        "instance-status.reachability",
        "InstanceStatus.Details.Status",
    ),
    ("instance-status.status", "InstanceStatus.Status"),
    ("system-status.reachability", "SystemStatus.Details.Status"),
    ("system-status.status", "SystemStatus.Status"),
    ("attached-ebs-status.status", "AttachedEbsStatus.Status"),
];

/// DescribeInstanceStatus: running ones unless all are asked for. The system's
/// status is impaired while the instance's node is out of reach.
///
/// # Errors
/// EC2's codes.
pub async fn status(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "InstanceStatuses",
        by_id: !params.instance_ids.is_empty(),
        filters: &params.filters,
        paths: STATUS_PATHS,
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let rows = named(view, &ctx.scope, &params.instance_ids)?;
        let shown = rows
            .iter()
            .filter(|row| params.include_all_instances || row.state == State::Running)
            .map(|row| (row.id.to_string(), status_item(ctx, row)));
        query.answer(shown)
    })
    .await
}

fn status_item(ctx: &Ctx, row: &Instance) -> Value {
    let check = match (row.state, ctx.core.fleet.reachable(&row.node)) {
        (State::Running, true) => ("ok", "passed"),
        (State::Running, false) => ("impaired", "failed"),
        (State::Pending, _) => ("initializing", "initializing"),
        _ => ("not-applicable", ""),
    };
    let summary = |(status, detail): (&str, &str)| {
        if detail.is_empty() {
            return json!({"Status": status, "Details": []});
        }
        json!({"Status": status, "Details": [{"Name": "reachability", "Status": detail}]})
    };
    json!({
        "AvailabilityZone": row.zone,
        "AvailabilityZoneId": zone_id(&row.zone),
        "InstanceId": row.id.to_string(),
        "InstanceState": present::state(row.state),
        "InstanceStatus": summary(check),
        "SystemStatus": summary(check),
        "Events": [],
    })
}
