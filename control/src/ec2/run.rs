//! RunInstances.
//!
//! ```text
//!   parameters ─ resolve ─▶ Plan (image, type, subnet, groups, disks)
//!       │                      │ one transaction: token, capacity, addresses, rows
//!       └─ digest ─▶ token     ▼
//!                           launch ─▶ the reservation, as DescribeInstances shows it
//! ```

use super::launch::{Disks, Plan, launch};
use super::params::TagSpecification;
use super::{Ctx, disks, groups, instances, metadata, present, tags, token, types};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use base64::Engine as _;
use serde::Deserialize;
use std::net::Ipv4Addr;
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
    user_data: Option<String>,
    client_token: Option<String>,
    placement: Option<Placement>,
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
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInterface {
    device_index: Option<i64>,
    subnet_id: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    private_ip_address: Option<String>,
    description: Option<String>,
}

/// Kinds that a launch makes and can tag.
const TAGGED: &[&str] = &["instance", "volume", "network-interface"];

/// RunInstances.
///
/// # Errors
/// EC2's codes; `InsufficientInstanceCapacity` where `MinCount` does not fit.
pub async fn run(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let digest = token::digest(&request);
    let params: Params = ctx.params(action, request)?;
    check_user_data(&params)?;
    let (min, max) = counts(&params)?;
    let token = token::key(action, params.client_token.as_deref())?;
    let (reservation, ids) = ctx
        .write(|tx| {
            if let Some(used) = token.as_ref().and_then(|key| tx.get::<Token>(key)) {
                return token::repeat(tx, &used, &digest);
            }
            let plan = plan(ctx, tx, &params)?;
            let (reservation, instances) = launch(ctx, tx, &plan, min, max)?;
            if let Some(key) = &token {
                tx.put(Token {
                    key: key.clone(),
                    digest: digest.clone(),
                    reservation,
                    instances: instances.clone(),
                    at_s: now_s(),
                })?;
            }
            Ok((reservation, instances))
        })
        .await?;
    ctx.read(|view| {
        let rows = ids
            .iter()
            .filter_map(|id| view.get::<Instance>(&ctx.scope, id));
        let shown = rows
            .map(|row| present::instance(view, &ctx.scope, row))
            .collect();
        Ok(instances::reservation(
            &reservation.to_string(),
            ctx.account(),
            shown,
        ))
    })
    .await
}

fn check_user_data(params: &Params) -> Result<(), ApiError> {
    let Some(text) = &params.user_data else {
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
    let images = ctx.core.images();
    let image = images
        .find(ctx.region(), ImageId::parse(text)?)
        .ok_or_else(|| {
            ApiError::new(
                "InvalidAMIID.NotFound",
                format!("The image id '[{text}]' does not exist"),
            )
        })?;
    if let Some(name) = &params.key_name {
        return Err(ApiError::new(
            "InvalidKeyPair.NotFound",
            format!("The key pair '{name}' does not exist"),
        ));
    }
    let kind = types::find(params.instance_type.as_deref().unwrap_or(types::DEFAULT))?;
    let interface = interface(params)?;
    let subnet_text = interface
        .and_then(|i| i.subnet_id.as_ref())
        .or(params.subnet_id.as_ref());
    let subnet = subnet(ctx, tx, params, subnet_text.map(String::as_str))?;
    let vpc = tx
        .get::<Vpc>(&subnet.vpc)
        .ok_or_else(|| VpcId::not_found(subnet.vpc))?;
    let address = interface.and_then(|i| i.private_ip_address.as_ref());
    let private_ip = address.or(params.private_ip_address.as_ref()).map(|text| {
        text.parse::<Ipv4Addr>()
            .map_err(|_| ApiError::value(text, "PrivateIpAddress", "Invalid IPv4 address."))
    });
    let disks: Disks = disks::plan(image, ctx.region(), kind, &params.block_device_mappings)?;
    Ok(Plan {
        groups: group_ids(tx, params, interface, &subnet)?,
        zone: subnet.zone.clone(),
        subnet: subnet.id,
        vpc: vpc.id,
        kind,
        boot: Boot {
            image: image.id(ctx.region()),
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            cmdline: image.cmdline.clone(),
            instance_store: image.root_type == crate::catalogue::RootType::InstanceStore,
            architecture: image.architecture.clone(),
        },
        root_device: image.root_device().to_owned(),
        disks,
        private_ip: private_ip.transpose()?,
        description: interface
            .and_then(|i| i.description.clone())
            .unwrap_or_default(),
        metadata: metadata::resolve(tx, params.metadata_options.as_ref(), image)?,
        user_data: params.user_data.clone().unwrap_or_default(),
        client_token: params.client_token.clone().unwrap_or_default(),
        disable_termination: params.disable_api_termination,
        disable_stop: params.disable_api_stop,
        terminate_on_shutdown: params.instance_initiated_shutdown_behavior.as_deref()
            == Some("terminate"),
        instance_tags: tags::on_create(&params.tag_specifications, "instance", TAGGED)?,
        volume_tags: tags::on_create(&params.tag_specifications, "volume", TAGGED)?,
        interface_tags: tags::on_create(&params.tag_specifications, "network-interface", TAGGED)?,
    })
}

/// The one network interface that a request may describe.
fn interface(params: &Params) -> Result<Option<&NetworkInterface>, ApiError> {
    let Some(first) = params.network_interfaces.first() else {
        return Ok(None);
    };
    let instance_level = !params.security_group_ids.is_empty()
        || !params.security_groups.is_empty()
        || params.subnet_id.is_some()
        || params.private_ip_address.is_some();
    if instance_level {
        return Err(ApiError::combination(
            "Network interfaces and an instance-level subnet ID, private IP address or security \
             groups may not be specified on the same request",
        ));
    }
    if params.network_interfaces.len() > 1 || first.device_index != Some(0) {
        return Err(match first.device_index {
            None => ApiError::missing("NetworkInterface.1.DeviceIndex"),
            Some(_) => ApiError::unsupported_parameter("NetworkInterface.2"),
        });
    }
    Ok(Some(first))
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
    let free = |subnet: &Subnet| tx.get::<Addresses>(&subnet.id).map_or(0, |a| a.free());
    tx.view
        .all::<Subnet>(&tx.scope)
        .filter(|subnet| subnet.default && zone.is_none_or(|zone| *zone == subnet.zone))
        .max_by_key(|subnet| (free(subnet), std::cmp::Reverse(subnet.zone.clone())))
        .cloned()
        .ok_or_else(|| {
            ApiError::new(
                "MissingInput",
                "No subnets found for the default VPC. Please specify a subnet.",
            )
        })
}

fn group_ids(
    tx: &Tx<'_>,
    params: &Params,
    interface: Option<&NetworkInterface>,
    subnet: &Subnet,
) -> Result<Vec<GroupId>, ApiError> {
    let named = interface.map_or(&params.security_group_ids, |interface| &interface.groups);
    if !params.security_groups.is_empty() && params.subnet_id.is_some() {
        return Err(ApiError::combination(
            "The parameter groupName cannot be used with the parameter subnet",
        ));
    }
    let mut texts = named.clone();
    for name in &params.security_groups {
        texts.push(groups::one(tx, None, Some(name))?.id.to_string());
    }
    if texts.is_empty() {
        let default = tx
            .view
            .all::<Group>(&tx.scope)
            .find(|group| group.vpc == subnet.vpc && group.name == "default");
        texts.extend(default.map(|group| group.id.to_string()));
    }
    groups::named(tx, &texts, subnet.vpc, subnet.id)
}
