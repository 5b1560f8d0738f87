//! RunInstances.
//!
//! ```text
//!   parameters ─ resolve ─▶ Plan (image, type, subnet, groups, disks)
//!       │                      │ one transaction: token, capacity, addresses, rows
//!       └─ digest ─▶ token     ▼
//!                           launch ─▶ the reservation, as DescribeInstances shows it
//! ```

use super::launch::{Disks, Nic, NicSource, Plan, Public, launch};
use super::params::TagSpecification;
use super::private_addresses::{self, PrivateIp, Wanted};
use super::{
    Ctx, amis, cpu_credits, disks, groups, instances, interfaces, ipv6_addresses, keys, metadata,
    place, placement_groups, present, quotas, tags, templates, types,
};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Shown, Value};
use base64::Engine as _;
use serde::Deserialize;
use std::sync::Arc;

/// Most user data, decoded.
const MAX_USER_DATA_BYTES: usize = 16_384;

/// What is honoured of the request; see `params` for what becomes of the rest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Params {
    image_id: Option<String>,
    instance_type: Option<String>,
    min_count: i64,
    max_count: i64,
    key_name: Option<String>,
    #[serde(default)]
    security_group_ids: Vec<String>,
    #[serde(default)]
    security_groups: Vec<String>,
    subnet_id: Option<String>,
    private_ip_address: Option<String>,
    #[serde(default)]
    ipv6_addresses: Vec<ipv6_addresses::Asked>,
    ipv6_address_count: Option<i64>,
    user_data: Option<String>,
    placement: Option<Placement>,
    monitoring: Option<Monitoring>,
    credit_specification: Option<Credits>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default)]
    block_device_mappings: Vec<disks::Mapping>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterface>,
    metadata_options: Option<metadata::Request>,
    #[serde(default)]
    disable_api_termination: bool,
    #[serde(default)]
    disable_api_stop: bool,
    instance_initiated_shutdown_behavior: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Placement {
    availability_zone: Option<String>,
    group_name: Option<String>,
    group_id: Option<String>,
    partition_number: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Monitoring {
    enabled: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credits {
    cpu_credits: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInterface {
    device_index: Option<i64>,
    subnet_id: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    private_ip_address: Option<String>,
    #[serde(default)]
    private_ip_addresses: Vec<PrivateIp>,
    secondary_private_ip_address_count: Option<i64>,
    #[serde(default)]
    ipv6_addresses: Vec<ipv6_addresses::Asked>,
    ipv6_address_count: Option<i64>,
    network_interface_id: Option<String>,
    delete_on_termination: Option<bool>,
    description: Option<String>,
    associate_public_ip_address: Option<bool>,
}

/// Kinds that a launch makes and can tag.
const TAGGED: &[&str] = &["instance", "volume", "network-interface"];

/// RunInstances.
///
/// # Errors
/// EC2's codes; `InsufficientInstanceCapacity` where `MinCount` does not fit.
pub async fn run(ctx: &Ctx, action: &str, request: Value) -> Result<Shown, ApiError> {
    let templated = ctx
        .core
        .peek(|view| templates::apply(view, &ctx.scope, request));
    let (request, template_tags) = templated?;
    let params: Params = ctx.params(action, request)?;
    check_user_data(params.user_data.as_deref())?;
    let (min, max) = counts(&params)?;
    let act = |tx: &mut Tx<'_>| {
        let mut plan = plan(ctx, tx, &params)?;
        plan.instance_tags.extend(template_tags.clone());
        quotas::room_for_vcpus(tx, plan.kind.vcpus.saturating_mul(min))?;
        launch(ctx, tx, &plan, min, max)
    };
    ctx.write_and_show(act, |view, (reservation, ids)| {
        let rows = ids
            .iter()
            .filter_map(|id| view.get::<Instance>(&ctx.scope, id));
        let shown = rows
            .map(|row| present::instance(view, &ctx.scope, row))
            .collect();
        instances::reservation(reservation.to_string(), ctx.account(), shown)
    })
    .await
}

/// User data is base64 of at most 16 KiB.
///
/// # Errors
/// `InvalidUserData.Malformed`, `InvalidParameterValue`.
pub fn check_user_data(text: Option<&str>) -> Result<(), ApiError> {
    let Some(text) = text else {
        return Ok(());
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| {
            ApiError::new(
                "InvalidUserData.Malformed",
                "Invalid BASE64 encoding of user data.",
            )
        })?;
    if bytes.len() > MAX_USER_DATA_BYTES {
        return Err(ApiError::new(
            "InvalidParameterValue",
            "User data is limited to 16384 bytes",
        ));
    }
    Ok(())
}

fn counts(params: &Params) -> Result<(u32, u32), ApiError> {
    let whole = |count: i64, name: &str| {
        u32::try_from(count)
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| ApiError::value(count, name, "It must be greater than 0."))
    };
    let (min, max) = (
        whole(params.min_count, "MinCount")?,
        whole(params.max_count, "MaxCount")?,
    );
    if min > max {
        return Err(ApiError::value(
            min,
            "MinCount",
            "It must not exceed MaxCount.",
        ));
    }
    Ok((min, max))
}

fn plan(ctx: &Ctx, tx: &Tx<'_>, params: &Params) -> Result<Plan, ApiError> {
    let text = params
        .image_id
        .as_deref()
        .ok_or_else(|| ApiError::missing("ImageId"))?;
    let template = amis::template(ctx, tx, text)?;
    let key = params.key_name.as_deref().map(|name| keys::named(tx, name));
    let kind = types::find(params.instance_type.as_deref().unwrap_or(types::DEFAULT))?;
    let (zone, nics) = nics(ctx, tx, params, kind)?;
    let metadata = metadata::resolve(tx, params.metadata_options.as_ref(), &template.imds_support)?;
    let boot = Boot {
        image: template.id,
        kernel: template.boot.kernel.clone(),
        initrd: template.boot.initrd.clone(),
        cmdline: template.boot.cmdline.clone(),
        instance_store: template.store.is_some(),
        architecture: template.boot.architecture.clone(),
    };
    let root_device = template.root_device.clone();
    let disks: Disks = disks::plan(ctx, tx, template, kind, &params.block_device_mappings)?;
    Ok(Plan {
        nics,
        zone,
        kind,
        key: key.transpose()?,
        monitoring: params
            .monitoring
            .as_ref()
            .and_then(|m| m.enabled)
            .unwrap_or(false),
        credits: credits(tx, params, kind)?,
        placement: placement(tx, params)?,
        boot,
        root_device,
        disks,
        metadata,
        user_data: params.user_data.clone().unwrap_or_default(),
        client_token: ctx.client_token().to_owned(),
        disable_termination: params.disable_api_termination,
        disable_stop: params.disable_api_stop,
        terminate_on_shutdown: params.instance_initiated_shutdown_behavior.as_deref()
            == Some("terminate"),
        instance_tags: tags::on_create(&params.tag_specifications, "instance", TAGGED)?,
        volume_tags: tags::on_create(&params.tag_specifications, "volume", TAGGED)?,
        interface_tags: tags::on_create(&params.tag_specifications, "network-interface", TAGGED)?,
    })
}

/// `CpuCredits`, which only burstable types have.
fn credits(
    tx: &Tx<'_>,
    params: &Params,
    kind: types::InstanceType,
) -> Result<Option<String>, ApiError> {
    let asked = params.credit_specification.as_ref();
    let Some(text) = asked.and_then(|credits| credits.cpu_credits.clone()) else {
        return Ok(cpu_credits::default(tx, kind));
    };
    cpu_credits::check(&text)?;
    if !kind.burstable() {
        return Err(ApiError::combination(format!(
            "The parameter creditSpecification is not supported for the instance type {}.",
            kind.name
        )));
    }
    Ok(Some(text))
}

fn placement(tx: &Tx<'_>, params: &Params) -> Result<Option<place::Wish>, ApiError> {
    let Some(asked) = &params.placement else {
        return Ok(None);
    };
    let group =
        placement_groups::named(tx, asked.group_name.as_deref(), asked.group_id.as_deref())?;
    let partition = asked.partition_number.map(|number| {
        let most = group.as_ref().map_or(0, |group| group.partitions);
        u32::try_from(number)
            .ok()
            .filter(|number| (1..=most).contains(number))
            .ok_or_else(|| {
                ApiError::value(
                    number,
                    "PartitionNumber",
                    "The group has no such partition.",
                )
            })
    });
    let partition = partition.transpose()?;
    Ok(group.map(|group| (group, partition)))
}

/// The interfaces of each instance, and the zone that they are in.
fn nics(
    ctx: &Ctx,
    tx: &Tx<'_>,
    params: &Params,
    kind: types::InstanceType,
) -> Result<(String, Vec<Nic>), ApiError> {
    let ipv6 = ipv6_addresses::Wanted::asked(&params.ipv6_addresses, params.ipv6_address_count)?;
    if params.network_interfaces.is_empty() {
        let subnet = subnet(ctx, tx, params, params.subnet_id.as_deref())?;
        let wanted = Wanted::asked(params.private_ip_address.as_ref(), &[], None)?;
        ipv6.check(&subnet, kind)?;
        let source = NicSource::New {
            groups: group_ids(tx, params, &subnet)?,
            subnet: Arc::clone(&subnet),
            wanted,
            ipv6,
            description: String::new(),
            public: public(ctx, &subnet, None)?,
        };
        let nic = Nic {
            index: 0,
            delete_on_termination: true,
            source,
        };
        return Ok((subnet.zone.clone(), vec![nic]));
    }
    let instance_level = !params.security_group_ids.is_empty()
        || !params.security_groups.is_empty()
        || params.subnet_id.is_some()
        || params.private_ip_address.is_some()
        || ipv6.named.len() + usize::try_from(ipv6.count.unwrap_or(0)).unwrap_or(0) > 0;
    if instance_level {
        return Err(ApiError::combination(
            "Network interfaces and an instance-level subnet ID, private IP address or security \
             groups may not be specified on the same request",
        ));
    }
    if params.network_interfaces.len() > usize::try_from(kind.network.0).unwrap_or(usize::MAX) {
        return Err(ApiError::new(
            "AttachmentLimitExceeded",
            format!(
                "Interface count {} exceeds the limit for {}",
                params.network_interfaces.len(),
                kind.name
            ),
        ));
    }
    let mut nics = Vec::with_capacity(params.network_interfaces.len());
    let mut place: Option<(String, VpcId)> = None;
    for (number, asked) in (1..).zip(&params.network_interfaces) {
        let (nic, zone, vpc) = nic(ctx, tx, params, kind, asked, number)?;
        let first = place.get_or_insert((zone.clone(), vpc));
        if *first != (zone, vpc) {
            return Err(ApiError::combination(
                "All network interfaces of an instance must be in one availability zone and VPC.",
            ));
        }
        nics.push(nic);
    }
    nics.sort_by_key(|nic| nic.index);
    if nics.windows(2).any(|pair| pair[0].index == pair[1].index) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            "Each network interface must have a device index of its own.",
        ));
    }
    if nics.first().is_none_or(|nic| nic.index != 0) {
        return Err(ApiError::new(
            "InvalidParameterCombination",
            "When specifying network interfaces, you must include a device at index 0.",
        ));
    }
    let zone = place.map(|(zone, _)| zone);
    Ok((zone.unwrap_or_default(), nics))
}

/// Whether an instance's only interface gets a public address, by what its caller said.
fn public(ctx: &Ctx, subnet: &Subnet, wish: Option<bool>) -> Result<Public, ApiError> {
    match wish {
        Some(true) if ctx.core.config.public_addresses.is_empty() => Err(ApiError::new(
            "UnsupportedOperation",
            "This cloud has no public addresses: AssociatePublicIpAddress is not supported.",
        )),
        Some(true) => Ok(Public::Asked),
        None if subnet.map_public => Ok(Public::BySubnet),
        Some(false) | None => Ok(Public::No),
    }
}

fn nic(
    ctx: &Ctx,
    tx: &Tx<'_>,
    params: &Params,
    kind: types::InstanceType,
    asked: &NetworkInterface,
    number: u32,
) -> Result<(Nic, String, VpcId), ApiError> {
    let parameter = |name: &str| format!("NetworkInterface.{number}.{name}");
    let only = params.network_interfaces.len() == 1;
    if asked.associate_public_ip_address == Some(true) {
        if !only {
            return Err(ApiError::combination(
                "The associatePublicIPAddress parameter cannot be specified when launching with \
                 multiple network interfaces.",
            ));
        }
        if asked.network_interface_id.is_some() || asked.device_index != Some(0) {
            return Err(ApiError::combination(
                "The associatePublicIPAddress parameter can only be specified for a new network \
                 interface at device index 0.",
            ));
        }
    }
    let index = asked
        .device_index
        .ok_or_else(|| ApiError::missing(&parameter("DeviceIndex")))?;
    let index = u32::try_from(index).map_err(|_| {
        ApiError::value(index, &parameter("DeviceIndex"), "It must not be negative.")
    })?;
    let Some(text) = &asked.network_interface_id else {
        let subnet = subnet(ctx, tx, params, asked.subnet_id.as_deref())?;
        let wanted = Wanted::asked(
            asked.private_ip_address.as_ref(),
            &asked.private_ip_addresses,
            asked.secondary_private_ip_address_count,
        )?;
        private_addresses::room(kind, wanted.total())?;
        let ipv6 = ipv6_addresses::Wanted::asked(&asked.ipv6_addresses, asked.ipv6_address_count)?;
        ipv6.check(&subnet, kind)?;
        let source = NicSource::New {
            groups: groups::or_default(tx, &asked.groups, subnet.vpc, subnet.id)?,
            subnet: Arc::clone(&subnet),
            wanted,
            ipv6,
            description: asked.description.clone().unwrap_or_default(),
            public: match (only, asked.associate_public_ip_address) {
                (true, wish) => public(ctx, &subnet, wish)?,
                (false, _) => Public::No,
            },
        };
        let nic = Nic {
            index,
            delete_on_termination: asked.delete_on_termination.unwrap_or(true),
            source,
        };
        return Ok((nic, subnet.zone.clone(), subnet.vpc));
    };
    let more = asked.subnet_id.is_some()
        || !asked.groups.is_empty()
        || asked.private_ip_address.is_some()
        || !asked.private_ip_addresses.is_empty()
        || asked.secondary_private_ip_address_count.is_some()
        || !asked.ipv6_addresses.is_empty()
        || asked.ipv6_address_count.is_some_and(|count| count != 0)
        || asked.description.is_some();
    if more {
        return Err(ApiError::combination(
            "A network interface that exists may not be given a subnet, groups, a description or \
             an address.",
        ));
    }
    if asked.delete_on_termination == Some(true) {
        return Err(ApiError::combination(
            "A network interface may not specify a network interface ID and delete on termination as true",
        ));
    }
    let row = interfaces::one(tx, text)?;
    if row.attachment.is_some() || row.is_managed() {
        return Err(interfaces::in_use(row.id));
    }
    private_addresses::room(kind, row.private_ips().count().max(row.ipv6.len()))?;
    let (zone, vpc) = (row.zone.clone(), row.vpc);
    let nic = Nic {
        index,
        delete_on_termination: false,
        source: NicSource::Existing(row),
    };
    Ok((nic, zone, vpc))
}

fn subnet(
    ctx: &Ctx,
    tx: &Tx<'_>,
    params: &Params,
    named: Option<&str>,
) -> Result<Arc<Subnet>, ApiError> {
    let zone = params
        .placement
        .as_ref()
        .and_then(|placement| placement.availability_zone.as_ref());
    if let Some(zone) = zone
        && !ctx.core.config.zones_of(ctx.region()).contains(zone)
    {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("Invalid availability zone: [{zone}]"),
        ));
    }
    if let Some(text) = named {
        let id = SubnetId::parse(text)?;
        let subnet = tx
            .get::<Subnet>(&id)
            .ok_or_else(|| SubnetId::not_found(text))?;
        if zone.is_some_and(|zone| *zone != subnet.zone) {
            return Err(ApiError::value(
                zone.map_or("", String::as_str),
                "availabilityZone",
                &format!("Subnet '{id}' is in the availability zone {}.", subnet.zone),
            ));
        }
        return Ok(subnet);
    }
    // The default subnet of the zone, or of that with the most free addresses.
    let vpc = groups::default_vpc(tx.view, &tx.scope)?;
    let free = |subnet: &Subnet| tx.get::<Addresses>(&subnet.id).map_or(0, |a| a.free());
    tx.view
        .all::<Subnet>(&tx.scope)
        .filter(|subnet| subnet.default && zone.is_none_or(|zone| *zone == subnet.zone))
        .max_by_key(|subnet| (free(subnet), std::cmp::Reverse(subnet.zone.clone())))
        .cloned()
        .ok_or_else(|| {
            ApiError::new(
                "MissingInput",
                format!(
                    "No subnets found for the default VPC '{}'. Please specify a subnet.",
                    vpc.id
                ),
            )
        })
}

fn group_ids(tx: &Tx<'_>, params: &Params, subnet: &Subnet) -> Result<Vec<GroupId>, ApiError> {
    if !params.security_groups.is_empty() && params.subnet_id.is_some() {
        return Err(ApiError::combination(
            "The parameter groupName cannot be used with the parameter subnet",
        ));
    }
    let mut texts = params.security_group_ids.clone();
    for name in &params.security_groups {
        texts.push(groups::one(tx, None, Some(name))?.id.to_string());
    }
    groups::or_default(tx, &texts, subnet.vpc, subnet.id)
}
