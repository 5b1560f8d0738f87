//! Elastic IP addresses: allocated from the operator's public blocks, associated
//! with a network interface's private address.

use super::list::{Query, lookup, tag_set};
use super::params::{Filter, TagSpecification};
use super::{Ctx, interfaces, nat_gateways, public, quotas, tags};
use crate::core::{Core, Tx};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::net::Ipv4Addr;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Allocate {
    address: Option<String>,
    network_border_group: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// AllocateAddress.
///
/// # Errors
/// `InsufficientAddressCapacity`, `AddressLimitExceeded`, ….
pub async fn allocate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Allocate = ctx.params(action, request)?;
    check_border_group(ctx, params.network_border_group.as_deref())?;
    let kind = "elastic-ip";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    let wanted = params.address.as_deref().map(|text| {
        text.parse::<Ipv4Addr>()
            .map_err(|_| ApiError::value(text, "Address", "It is not an IPv4 address."))
    });
    let wanted = wanted.transpose()?;
    let region = ctx.region();
    ctx.write(|tx| {
        quotas::room_for_one::<Address>(tx)?;
        let Some(public_ip) = public::take(&ctx.core, tx, wanted)? else {
            return Err(match wanted {
                Some(wanted) => ApiError::new(
                    "InvalidAddress.NotFound",
                    format!("Address '{wanted}' is not available."),
                ),
                None => public::insufficient(),
            });
        };
        let row = Address {
            id: AllocationId::random(),
            public_ip,
            association: None,
            tags: tags.clone(),
        };
        let answer = json!({
            "AllocationId": row.id.to_string(),
            "PublicIp": public_ip.to_string(),
            "Domain": "vpc",
            "PublicIpv4Pool": "amazon",
            "NetworkBorderGroup": region,
        });
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Which {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    network_border_group: Option<String>,
}

/// A region is one network border group, which has its name.
fn check_border_group(ctx: &Ctx, given: Option<&str>) -> Result<(), ApiError> {
    match given.filter(|given| *given != ctx.region()) {
        Some(other) => Err(ApiError::value(
            other,
            "NetworkBorderGroup",
            "There is no such network border group.",
        )),
        None => Ok(()),
    }
}

fn by_ip(view: &View, scope: &Scope, text: &str) -> Result<Arc<Address>, ApiError> {
    let ip: Ipv4Addr = text
        .parse()
        .map_err(|_| ApiError::value(text, "PublicIp", "Invalid IPv4 address."))?;
    view.all::<Address>(scope)
        .find(|row| row.public_ip == ip)
        .cloned()
        .ok_or_else(|| {
            ApiError::new(
                "InvalidAddress.NotFound",
                format!("Address '{text}' not found."),
            )
        })
}

impl Which {
    fn find(&self, tx: &Tx<'_>) -> Result<Arc<Address>, ApiError> {
        match (&self.allocation_id, &self.public_ip) {
            (Some(_), Some(_)) => Err(ApiError::combination(
                "You may specify public IP or allocation id, but not both in the same call",
            )),
            (Some(text), None) => tx
                .get::<Address>(&AllocationId::parse(text)?)
                .ok_or_else(|| AllocationId::not_found(text)),
            (None, Some(text)) => by_ip(tx.view, &tx.scope, text),
            (None, None) => Err(ApiError::new(
                "MissingParameter",
                "Either public IP or allocation id must be specified",
            )),
        }
    }
}

/// ReleaseAddress: not while it is associated.
///
/// # Errors
/// `InvalidIPAddress.InUse`, and EC2's other codes.
pub async fn release(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Which = ctx.params(action, request)?;
    check_border_group(ctx, params.network_border_group.as_deref())?;
    ctx.write(|tx| {
        let row = params.find(tx)?;
        if row.association.is_some() {
            return Err(ApiError::new(
                "InvalidIPAddress.InUse",
                format!("Address {} is in use.", row.public_ip),
            ));
        }
        public::give_back(&ctx.core, tx, row.public_ip)?;
        tx.delete::<Address>(&row.id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associate {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    private_ip_address: Option<String>,
    #[serde(default)]
    allow_reassociation: bool,
}

/// AssociateAddress: with an interface, or an instance's primary one. One that is
/// associated elsewhere moves unless the caller says that it may not.
///
/// # Errors
/// `Resource.AlreadyAssociated`, `Gateway.NotAttached`, ….
pub async fn associate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Associate = ctx.params(action, request)?;
    let which = Which {
        allocation_id: params.allocation_id.clone(),
        public_ip: params.public_ip.clone(),
        network_border_group: None,
    };
    ctx.write(|tx| {
        let mut row = which.find(tx)?.as_ref().clone();
        let interface = match (&params.network_interface_id, &params.instance_id) {
            (Some(_), Some(_)) => {
                return Err(ApiError::combination(
                    "You may specify an instance or a network interface, but not both.",
                ));
            }
            (Some(text), None) => interfaces::one(tx, text)?,
            (None, Some(text)) => {
                let id = InstanceId::parse(text)?;
                let row = tx.get::<Instance>(&id);
                let row = row.ok_or_else(|| InstanceId::not_found(text))?;
                let primary = row
                    .interfaces
                    .first()
                    .and_then(|id| tx.get::<Interface>(id));
                primary.ok_or_else(|| {
                    ApiError::new(
                        "IncorrectInstanceState",
                        format!("The instance '{id}' is not in a valid state for this operation."),
                    )
                })?
            }
            (None, None) => return Err(ApiError::missing("NetworkInterfaceId")),
        };
        let private_ip = match params.private_ip_address.as_ref() {
            None => interface.private_ip,
            Some(text) => interface
                .private_ips()
                .find(|ip| ip.to_string() == *text)
                .ok_or_else(|| {
                    let why = "It is not an address of the network interface.";
                    ApiError::value(text, "PrivateIpAddress", why)
                })?,
        };
        let secondary = Some(private_ip).filter(|ip| *ip != interface.private_ip);
        let held = row.association.as_ref().map(|held| held.interface);
        if held
            .into_iter()
            .chain([interface.id])
            .any(|id| nat_gateways::has(tx, id))
        {
            return Err(nat_gateways::not_yours());
        }
        let gateways = tx.rows::<Gateway>();
        if !gateways
            .iter()
            .any(|gateway| gateway.vpc == Some(interface.vpc))
        {
            return Err(ApiError::new(
                "Gateway.NotAttached",
                format!(
                    "Network {} is not attached to any internet gateway",
                    interface.vpc
                ),
            ));
        }
        let previous = row.association.as_ref().map(|held| held.interface);
        let at = row
            .association
            .as_ref()
            .map(|held| (held.interface, held.private_ip));
        if at.is_some_and(|at| at != (interface.id, secondary)) && !params.allow_reassociation {
            return Err(ApiError::new(
                "Resource.AlreadyAssociated",
                format!(
                    "resource {} is already associated with associate-id {}",
                    row.id,
                    row.association
                        .as_ref()
                        .map(|a| a.id.to_string())
                        .unwrap_or_default()
                ),
            ));
        }
        // Another that stands for the private address gives way, as in EC2.
        if secondary.is_none() && interface.public_ip.is_some() {
            let mut holder = interface.as_ref().clone();
            public::release(&ctx.core, tx, &mut holder)?;
            tx.put(holder)?;
        }
        for other in tx.rows::<Address>() {
            let here = other
                .association
                .as_ref()
                .is_some_and(|a| (a.interface, a.private_ip) == (interface.id, secondary));
            if here && other.id != row.id {
                tx.put(Address {
                    association: None,
                    ..other.as_ref().clone()
                })?;
            }
        }
        let id = AddressAssociationId::random();
        row.association = Some(AddressAssociation {
            id,
            interface: interface.id,
            private_ip: secondary,
        });
        tx.put(row)?;
        for interface in previous.into_iter().chain([interface.id]) {
            retell(&ctx.core, tx, interface)?;
        }
        Ok(json!({"AssociationId": id.to_string()}))
    })
    .await
}

/// Has the node told anew of an interface whose public address changed. Of a running
/// instance, one that lost its Elastic IP gets an address of its own again.
fn retell(core: &Core, tx: &mut Tx<'_>, id: InterfaceId) -> Result<(), ApiError> {
    let Some(interface) = tx.get::<Interface>(&id) else {
        return Ok(());
    };
    let attachment = interface.attachment.as_ref();
    let instance = attachment.and_then(|held| tx.get::<Instance>(&held.instance));
    let Some(row) = instance.filter(|row| row.state != State::Terminated) else {
        return Ok(());
    };
    let stands = |held: &AddressAssociation| held.interface == id && held.private_ip.is_none();
    let has_elastic = tx
        .rows::<Address>()
        .iter()
        .any(|row| row.association.as_ref().is_some_and(stands));
    if row.state.is_up() && !has_elastic {
        let mut interface = interface.as_ref().clone();
        public::assign(core, tx, &mut interface)?;
        tx.put(interface)?;
    }
    let mut row = row.as_ref().clone();
    row.generation += 1;
    tx.put(row)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Disassociate {
    association_id: Option<String>,
    public_ip: Option<String>,
}

/// DisassociateAddress.
///
/// # Errors
/// `InvalidAssociationID.NotFound`, and EC2's other codes.
pub async fn disassociate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Disassociate = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = match (&params.association_id, &params.public_ip) {
            (Some(text), _) => {
                let id = AddressAssociationId::parse(text)?;
                let rows = tx.rows::<Address>();
                let has =
                    |row: &&Arc<Address>| row.association.as_ref().is_some_and(|a| a.id == id);
                let found = rows.iter().find(has).cloned();
                found.ok_or_else(|| AddressAssociationId::not_found(text))?
            }
            (None, Some(text)) => by_ip(tx.view, &tx.scope, text)?,
            (None, None) => return Err(ApiError::missing("AssociationId")),
        };
        let mut row = row.as_ref().clone();
        let held = row.association.take();
        if held
            .as_ref()
            .is_some_and(|held| nat_gateways::has(tx, held.interface))
        {
            return Err(nat_gateways::not_yours());
        }
        tx.put(row)?;
        if let Some(held) = held {
            retell(&ctx.core, tx, held.interface)?;
        }
        Ok(json!({}))
    })
    .await
}

fn present(view: &View, scope: &Scope, row: &Address) -> Value {
    let mut item = json!({
        "AllocationId": row.id.to_string(),
        "PublicIp": row.public_ip.to_string(),
        "Domain": "vpc",
        "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": *scope.region,
        "Tags": tag_set(&row.tags),
    });
    let Some(held) = &row.association else {
        return item;
    };
    item["AssociationId"] = held.id.to_string().into();
    item["NetworkInterfaceId"] = held.interface.to_string().into();
    item["NetworkInterfaceOwnerId"] = (*scope.account).into();
    if let Some(interface) = view.get::<Interface>(scope, &held.interface) {
        let private_ip = held.private_ip.unwrap_or(interface.private_ip);
        item["PrivateIpAddress"] = private_ip.to_string().into();
        if let Some(attachment) = &interface.attachment {
            item["InstanceId"] = attachment.instance.to_string().into();
        }
    }
    item
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    allocation_ids: Vec<String>,
    #[serde(default)]
    public_ips: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

/// DescribeAddresses.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let all = params.allocation_ids.is_empty() && params.public_ips.is_empty();
    let query = Query {
        action,
        member: "Addresses",
        by_id: !all,
        filters: &params.filters,
        paths: &[("network-interface-owner-id", "NetworkInterfaceOwnerId")],
        max_results: None,
        next_token: None,
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let mut rows: Vec<Arc<Address>> = lookup(
            &params.allocation_ids,
            AllocationId::parse,
            |id| view.get::<Address>(scope, &id).cloned(),
            |text| AllocationId::not_found(text),
        )?;
        for text in &params.public_ips {
            rows.push(by_ip(view, scope, text)?);
        }
        if all {
            rows = view.all::<Address>(scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        query.answer(
            rows.iter()
                .map(|row| (row.id.to_string(), present(view, scope, row))),
        )
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    #[serde(default)]
    allocation_ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeAddressesAttribute: no address has a name of its own.
///
/// # Errors
/// EC2's codes.
pub async fn attributes(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attributes = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "Addresses",
        by_id: false,
        filters: &[],
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        lookup(
            &params.allocation_ids,
            AllocationId::parse,
            |id| view.get::<Address>(&ctx.scope, &id).cloned(),
            |text| AllocationId::not_found(text),
        )?;
        query.answer([])
    })
    .await
}
