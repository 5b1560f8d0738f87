//! Network interfaces: made, attached, changed, detached, deleted.
//!
//! ```text
//!                attach             node has it
//!   available ───────────▶ attaching ──────▶ attached
//!       ▲ node has it not                       │ detach
//!       └──────────────── detaching ◀───────────┘
//! ```
//! With a stopped instance both are done at once.

use super::network::{Kind, describe};
use super::params::{Is, TagSpecification};
use super::private_addresses::{self, PrivateIp, Wanted};
use super::{Ctx, groups, ipv6_addresses, launch, present, public, quotas, subnets, tags, types};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// DescribeNetworkInterfaces.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Interface> {
        member: "NetworkInterfaces",
        paths: &[
            ("addresses.primary", "PrivateIpAddresses.Primary"),
            (
                "addresses.private-ip-address",
                "PrivateIpAddresses.PrivateIpAddress",
            ),
            ("attachment.instance-owner-id", "Attachment.InstanceOwnerId"),
            ("group-id", "Groups.GroupId"),
            ("group-name", "Groups.GroupName"),
            ("ipv6-addresses.ipv6-address", "Ipv6Addresses.Ipv6Address"),
        ],
        parse: InterfaceId::parse,
        not_found: |text| InterfaceId::not_found(text),
    };
    describe(ctx, action, request, kind, present::interface).await
}

/// An interface of the caller's.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<Interface>, ApiError> {
    tx.get::<Interface>(&InterfaceId::parse(text)?)
        .ok_or_else(|| InterfaceId::not_found(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    subnet_id: String,
    description: Option<String>,
    private_ip_address: Option<String>,
    #[serde(default)]
    private_ip_addresses: Vec<PrivateIp>,
    secondary_private_ip_address_count: Option<i64>,
    #[serde(default)]
    ipv6_addresses: Vec<ipv6_addresses::Asked>,
    ipv6_address_count: Option<i64>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateNetworkInterface.
///
/// # Errors
/// `InvalidIPAddress.InUse`, `InsufficientFreeAddressesInSubnet`, ….
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let wanted = Wanted::asked(
        params.private_ip_address.as_ref(),
        &params.private_ip_addresses,
        params.secondary_private_ip_address_count,
    )?;
    let ipv6 = ipv6_addresses::Wanted::asked(&params.ipv6_addresses, params.ipv6_address_count)?;
    let kind = "network-interface";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        quotas::room_for_one::<Interface>(tx)?;
        let subnet = subnets::one(tx, &params.subnet_id)?;
        let groups = groups::or_default(tx, &params.groups, subnet.vpc, subnet.id)?;
        private_addresses::room_anywhere(wanted.total().max(ipv6.total(&subnet)))?;
        let mut addresses = launch::addresses_of(tx, subnet.id)?;
        let row = Interface {
            description: params.description.clone().unwrap_or_default(),
            tags: tags.clone(),
            ipv6: ipv6_addresses::take(tx, &mut None, &subnet, &ipv6)?,
            ..launch::interface(&subnet, &mut addresses, &wanted, groups)?
        };
        let mut answer = json!({"NetworkInterface": present::interface(tx.view, &tx.scope, &row)});
        answer["NetworkInterface"]["Status"] = "pending".into();
        tx.put(addresses)?;
        tx.put(row)?;
        Ok(ctx.with_client_token(answer))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    network_interface_id: String,
}

/// The error for an interface that an instance has.
pub fn in_use(id: InterfaceId) -> ApiError {
    ApiError::new(
        "InvalidNetworkInterface.InUse",
        format!("Interface '{id}' is currently in use."),
    )
}

/// DeleteNetworkInterface.
///
/// # Errors
/// `InvalidNetworkInterface.InUse`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = one(tx, &params.network_interface_id)?;
        if row.attachment.is_some() || row.is_managed() {
            return Err(in_use(row.id));
        }
        for address in tx.rows::<Address>() {
            if address
                .association
                .as_ref()
                .is_some_and(|a| a.interface == row.id)
            {
                tx.put(Address {
                    association: None,
                    ..address.as_ref().clone()
                })?;
            }
        }
        if let Some(address) = row.public_ip {
            public::give_back(&ctx.core, tx, address)?;
        }
        let mut addresses = launch::addresses_of(tx, row.subnet)?;
        row.private_ips().for_each(|ip| addresses.give_back(ip));
        tx.put(addresses)?;
        tx.delete::<Interface>(&row.id);
        Ok(json!({}))
    })
    .await
}

/// An instance whose interfaces may change.
fn changeable(tx: &Tx<'_>, id: InstanceId) -> Result<Instance, ApiError> {
    let row = tx
        .get::<Instance>(&id)
        .ok_or_else(|| InstanceId::not_found(id))?;
    match row.state {
        State::Stopped | State::Running => Ok(row.as_ref().clone()),
        _ => Err(ApiError::new(
            "IncorrectInstanceState",
            format!("The instance '{id}' is not in the 'running' or 'stopped' state."),
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attach {
    network_interface_id: String,
    instance_id: String,
    device_index: i64,
}

/// AttachNetworkInterface.
///
/// # Errors
/// `AttachmentLimitExceeded`, `InvalidNetworkInterface.InUse`, ….
pub async fn attach(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attach = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.network_interface_id)?.as_ref().clone();
        let mut instance = changeable(tx, InstanceId::parse(&params.instance_id)?)?;
        if row.attachment.is_some() || row.is_managed() {
            return Err(in_use(row.id));
        }
        if (&row.zone, row.vpc) != (&instance.zone, instance.vpc) {
            return Err(ApiError::new(
                "InvalidParameterCombination",
                "You may not attach a network interface to an instance if they are not in the same availability zone and VPC",
            ));
        }
        let (most, _) = types::find(&instance.instance_type)?.network;
        if instance.interfaces.len() + instance.leaving.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            return Err(ApiError::new(
                "AttachmentLimitExceeded",
                format!("Interface count {} exceeds the limit for {}", most + 1, instance.instance_type),
            ));
        }
        let kind = types::find(&instance.instance_type)?;
        private_addresses::room(kind, row.private_ips().count().max(row.ipv6.len()))?;
        let index = u32::try_from(params.device_index).map_err(|_| {
            ApiError::value(params.device_index, "deviceIndex", "It must not be negative.")
        })?;
        let index_of = |id: &InterfaceId| {
            tx.get::<Interface>(id)?.attachment.as_ref().map(|attachment| attachment.device_index)
        };
        let indices: Vec<Option<u32>> = instance.interfaces.iter().map(index_of).collect();
        let leaving = instance.leaving.iter().map(index_of).any(|held| held == Some(index));
        if leaving || indices.contains(&Some(index)) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("Instance '{}' already has an interface attached at device index '{index}'.", instance.id),
            ));
        }
        let place = indices.iter().filter(|known| **known < Some(index)).count();
        instance.generation += 1;
        let attachment = InterfaceAttachment {
            id: AttachmentId::random(),
            instance: instance.id,
            device_index: index,
            delete_on_termination: false,
            at_s: now_s(),
            attaching: if instance.state == State::Running { instance.generation } else { 0 },
            detaching: 0,
            force: false,
        };
        let answer = json!({"AttachmentId": attachment.id.to_string(), "NetworkCardIndex": 0});
        instance.interfaces.insert(place, row.id);
        row.attachment = Some(attachment);
        tx.put(row)?;
        tx.put(instance)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Detach {
    attachment_id: String,
    #[serde(default)]
    force: bool,
}

/// DetachNetworkInterface.
///
/// # Errors
/// `OperationNotPermitted` for the primary one, `IncorrectState` for one that leaves
/// already (unless it is to be forced), and EC2's other codes.
pub async fn detach(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Detach = ctx.params(action, request)?;
    let id = AttachmentId::parse(&params.attachment_id)?;
    ctx.write(|tx| {
        let rows = tx.rows::<Interface>();
        let found = rows.iter().find_map(|row| {
            let attachment = row.attachment.as_ref().filter(|a| a.id == id)?;
            Some((row, attachment))
        });
        let (row, attachment) = found.ok_or_else(|| AttachmentId::not_found(id))?;
        if attachment.device_index == 0 {
            return Err(ApiError::new(
                "OperationNotPermitted",
                "The network interface at device index 0 and networkCard index 0 cannot be detached.",
            ));
        }
        if attachment.detaching != 0 && !params.force {
            return Err(ApiError::new(
                "IncorrectState",
                format!("The attachment '{id}' is in the 'detaching' state."),
            ));
        }
        let mut instance = changeable(tx, attachment.instance)?;
        let mut row = row.as_ref().clone();
        instance.interfaces.retain(|interface| *interface != row.id);
        instance.generation += 1;
        if instance.state == State::Stopped {
            row.part(now_s());
        } else {
            if !instance.leaving.contains(&row.id) {
                instance.leaving.push(row.id);
            }
            if let Some(held) = &mut row.attachment {
                (held.detaching, held.force) = (instance.generation, params.force);
            }
        }
        tx.put(instance)?;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AttachmentChange {
    attachment_id: Option<String>,
    delete_on_termination: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    network_interface_id: String,
    description: Option<Is<String>>,
    #[serde(default)]
    groups: Vec<String>,
    source_dest_check: Option<Is<bool>>,
    attachment: Option<AttachmentChange>,
}

/// ModifyNetworkInterfaceAttribute: one attribute a call.
///
/// # Errors
/// EC2's codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let given = [
        params.description.is_some(),
        !params.groups.is_empty(),
        params.source_dest_check.is_some(),
        params.attachment.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => return Err(ApiError::missing("attribute")),
        1 => {}
        _ => {
            return Err(ApiError::combination(
                "Fields for multiple attribute types specified.",
            ));
        }
    }
    ctx.write(|tx| {
        let mut row = private_addresses::changeable(tx, &params.network_interface_id)?;
        if let Some(description) = &params.description {
            row.description.clone_from(&description.value);
        }
        if let Some(change) = &params.attachment {
            let wanted = change
                .attachment_id
                .as_deref()
                .ok_or_else(|| ApiError::missing("Attachment.AttachmentId"))?;
            let wanted = AttachmentId::parse(wanted)?;
            let on = change
                .delete_on_termination
                .ok_or_else(|| ApiError::missing("Attachment.DeleteOnTermination"))?;
            let attachment = row.attachment.as_mut().filter(|a| a.id == wanted);
            attachment
                .ok_or_else(|| AttachmentId::not_found(wanted))?
                .delete_on_termination = on;
        }
        if let Some(check) = &params.source_dest_check {
            row.source_dest_check = check.value;
            regroup(tx, &row)?;
        }
        if !params.groups.is_empty() {
            row.groups = groups::named(tx, &params.groups, row.vpc, row.subnet)?;
            regroup(tx, &row)?;
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// Has an interface's instance follow its new groups, check or addresses.
///
/// # Errors
/// Only those of writing a row.
pub fn regroup(tx: &mut Tx<'_>, row: &Interface) -> Result<(), ApiError> {
    let Some(attachment) = &row.attachment else {
        return Ok(());
    };
    let Some(instance) = tx.get::<Instance>(&attachment.instance) else {
        return Ok(());
    };
    let mut instance = instance.as_ref().clone();
    instance.generation += 1;
    if attachment.device_index == 0 {
        instance.groups.clone_from(&row.groups);
    }
    tx.put(instance)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    network_interface_id: String,
    attribute: Option<String>,
}

/// ResetNetworkInterfaceAttribute: the check is on again.
///
/// # Errors
/// EC2's codes.
pub async fn reset(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Reset = ctx.params(action, request)?;
    params
        .source_dest_check
        .as_ref()
        .ok_or_else(|| ApiError::missing("SourceDestCheck"))?;
    ctx.write(|tx| {
        let mut row = private_addresses::changeable(tx, &params.network_interface_id)?;
        row.source_dest_check = true;
        regroup(tx, &row)?;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reset {
    network_interface_id: String,
    source_dest_check: Option<String>,
}

/// DescribeNetworkInterfaceAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    let attribute = params
        .attribute
        .as_deref()
        .ok_or_else(|| ApiError::missing("Attribute"))?;
    ctx.read(|view| {
        let id = InterfaceId::parse(&params.network_interface_id)?;
        let row = view
            .get::<Interface>(&ctx.scope, &id)
            .ok_or_else(|| InterfaceId::not_found(id))?;
        let mut answer = json!({"NetworkInterfaceId": id.to_string()});
        let shown = present::interface(view, &ctx.scope, row);
        match attribute {
            "description" => answer["Description"] = json!({"Value": row.description}),
            "groupSet" => answer["Groups"] = shown["Groups"].clone(),
            "sourceDestCheck" => {
                answer["SourceDestCheck"] = json!({"Value": row.source_dest_check})
            }
            "attachment" => {
                if row.attachment.is_some() {
                    answer["Attachment"] = shown["Attachment"].clone();
                }
            }
            _ => answer["AssociatePublicIpAddress"] = row.wants_public.into(),
        }
        Ok(answer)
    })
    .await
}
