//! NAT gateways: many private addresses behind one Elastic IP.
//!
//! ```text
//!            its node has it            DeleteNatGateway        its node has it no more
//!   pending ────────────────▶ available ────────────────▶ deleting ────────────▶ deleted
//!       └──▶ failed ──DeleteNatGateway──▶ deleted          (gone from sight after an hour)
//! ```
//! One has an interface of its own in its subnet, which its Elastic IP is associated with,
//! and which is nobody else's to change. What only the subnet's or address's state forbids
//! is told by the gateway, not by the call (EC2 API reference: `NatGateway`, `FailureCode`).

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::private_addresses::Wanted;
use super::{Ctx, launch, place, present, quotas, subnets, tags};
use crate::core::{Core, Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Most gateways of a zone (AWS's Service Quotas), for accounts of the profile `ec2`.
const MOST_OF_A_ZONE: usize = 5;

fn state_name(state: NatState) -> &'static str {
    match state {
        NatState::Pending => "pending",
        NatState::Available => "available",
        NatState::Failed => "failed",
        NatState::Deleting => "deleting",
        NatState::Deleted => "deleted",
    }
}

fn show(view: &View, scope: &Scope, row: &NatGateway) -> Value {
    let association = view
        .get::<Address>(scope, &row.allocation)
        .and_then(|address| address.association.as_ref())
        .filter(|held| Some(held.interface) == row.interface);
    let mut address = json!({"AllocationId": row.allocation.to_string(), "IsPrimary": true});
    let mut put = |name: &str, text: Option<String>| {
        if let Some(text) = text {
            address[name] = text.into();
        }
    };
    put("NetworkInterfaceId", row.interface.map(|id| id.to_string()));
    put("PrivateIp", row.private_ip.map(|ip| ip.to_string()));
    put("PublicIp", row.public_ip.map(|ip| ip.to_string()));
    put("AssociationId", association.map(|held| held.id.to_string()));
    let status = match row.state {
        NatState::Pending => "associating",
        NatState::Available => "succeeded",
        NatState::Failed => "failed",
        NatState::Deleting => "disassociating",
        NatState::Deleted => "succeeded",
    };
    put("Status", Some(status.to_owned()));
    let mut item = json!({
        "NatGatewayId": row.id.to_string(),
        "VpcId": row.vpc.to_string(),
        "SubnetId": row.subnet.to_string(),
        "State": state_name(row.state),
        "ConnectivityType": "public",
        "AvailabilityMode": "zonal",
        "CreateTime": present::timestamp(row.created_at_s),
        "NatGatewayAddresses": [address],
        "Tags": tag_set(&row.tags),
    });
    if let Some((code, message)) = &row.failure {
        item["FailureCode"] = code.as_str().into();
        item["FailureMessage"] = message.as_str().into();
    }
    if let Some(at_s) = row.deleted_at_s {
        item["DeleteTime"] = present::timestamp(at_s);
    }
    item
}

/// DescribeNatGateways.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<NatGateway> {
        member: "NatGateways",
        paths: &[],
        parse: NatGatewayId::parse,
        not_found: |text| NatGatewayId::not_found(text),
    };
    describe(ctx, action, request, kind, show).await
}

/// A NAT gateway of the caller's that is not deleted.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<NatGateway>, ApiError> {
    tx.get::<NatGateway>(&NatGatewayId::parse(text)?)
        .filter(|row| row.state != NatState::Deleted)
        .ok_or_else(|| NatGatewayId::not_found(text))
}

/// The error for what is a NAT gateway's or an instance-connect endpoint's, and not the
/// caller's to change.
pub fn not_yours() -> ApiError {
    let mut error = ApiError::new(
        "AuthFailure",
        "You do not have permission to access the specified resource.",
    );
    error.status = 400;
    error
}

/// Whether an interface is a NAT gateway's or an instance-connect endpoint's.
pub fn has(tx: &Tx<'_>, interface: InterfaceId) -> bool {
    tx.get::<Interface>(&interface)
        .is_some_and(|row| row.is_managed())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    subnet_id: Option<String>,
    allocation_id: Option<String>,
    private_ip_address: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateNatGateway: a public one.
///
/// # Errors
/// `NatGatewayLimitExceeded`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kind = "natgateway";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    let required =
        |text: &Option<String>, name: &str| text.clone().ok_or_else(|| ApiError::missing(name));
    let subnet = required(&params.subnet_id, "SubnetId")?;
    let allocation = required(&params.allocation_id, "AllocationId")?;
    let wanted = params.private_ip_address.as_deref().map(|text| {
        text.parse::<Ipv4Addr>()
            .map_err(|_| ApiError::value(text, "PrivateIpAddress", "Invalid IPv4 address."))
    });
    let wanted = Wanted::one(wanted.transpose()?);
    ctx.write(|tx| {
        let subnet = subnets::one(tx, &subnet)?;
        let address = tx
            .get::<Address>(&AllocationId::parse(&allocation)?)
            .ok_or_else(|| AllocationId::not_found(&allocation))?;
        room(tx, &subnet)?;
        let mut row = NatGateway {
            id: NatGatewayId::random(),
            vpc: subnet.vpc,
            subnet: subnet.id,
            node: String::new(),
            allocation: address.id,
            interface: None,
            private_ip: None,
            public_ip: None,
            state: NatState::Pending,
            generation: 1,
            failure: None,
            created_at_s: now_s(),
            deleted_at_s: None,
            tags: tags.clone(),
        };
        let mut answer = ctx.with_client_token(json!({}));
        match plug(ctx, tx, &mut row, &subnet, &address, &wanted) {
            Ok(()) => {}
            Err(error) if is_its_own(&error) => {
                row.state = NatState::Failed;
                row.failure = Some((error.code.to_string(), error.message));
            }
            Err(error) => return Err(error),
        }
        answer["NatGateway"] = show(tx.view, &tx.scope, &row);
        answer["NatGateway"]["State"] = "pending".into();
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

/// A failure that the gateway tells of.
fn is_its_own(error: &ApiError) -> bool {
    matches!(
        error.code.as_ref(),
        "Gateway.NotAttached" | "InsufficientFreeAddressesInSubnet" | "Resource.AlreadyAssociated"
    )
}

fn room(tx: &Tx<'_>, subnet: &Subnet) -> Result<(), ApiError> {
    let here = |row: &&Arc<NatGateway>| {
        let counts = !matches!(row.state, NatState::Failed | NatState::Deleted);
        let at = tx.view.get::<Subnet>(&tx.scope, &row.subnet);
        counts && at.is_some_and(|at| at.zone == subnet.zone)
    };
    let rows = tx.view.all::<NatGateway>(&tx.scope);
    if quotas::limits(tx) == Limits::Ec2 && rows.filter(here).count() >= MOST_OF_A_ZONE {
        return Err(ApiError::new(
            "NatGatewayLimitExceeded",
            format!(
                "Performing this operation would exceed the limit of {MOST_OF_A_ZONE} NAT gateways"
            ),
        ));
    }
    Ok(())
}

/// Gives a gateway its interface, its addresses and its node.
fn plug(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    row: &mut NatGateway,
    subnet: &Subnet,
    address: &Address,
    wanted: &Wanted,
) -> Result<(), ApiError> {
    let gateways = tx.rows::<Gateway>();
    if !gateways.iter().any(|row| row.vpc == Some(subnet.vpc)) {
        return Err(ApiError::new(
            "Gateway.NotAttached",
            format!("Network {} has no Internet gateway attached", subnet.vpc),
        ));
    }
    if address.association.is_some() {
        return Err(ApiError::new(
            "Resource.AlreadyAssociated",
            format!("Elastic IP address [{}] is already associated", address.id),
        ));
    }
    row.node = carrier(&ctx.core, tx).ok_or_else(|| {
        ApiError::new(
            "InsufficientCapacity",
            "There is no host that can carry a NAT gateway now.",
        )
    })?;
    let mut addresses = launch::addresses_of(tx, subnet.id)?;
    let interface = Interface {
        description: format!("Interface for NAT Gateway {}", row.id),
        source_dest_check: false,
        nat_gateway: Some(row.id),
        ..launch::interface(subnet, &mut addresses, wanted, Vec::new())?
    };
    row.interface = Some(interface.id);
    row.private_ip = Some(interface.private_ip);
    row.public_ip = Some(address.public_ip);
    tx.put(addresses)?;
    tx.put(Address {
        association: Some(AddressAssociation {
            id: AddressAssociationId::random(),
            interface: interface.id,
            private_ip: None,
        }),
        ..address.clone()
    })?;
    tx.put(interface)
}

/// The node that carries fewest gateways of those that answer for public addresses; where
/// none does, any.
fn carrier(core: &Core, tx: &Tx<'_>) -> Option<String> {
    let carried =
        |row: &NatGateway, node: &Node| row.node == node.name && row.deleted_at_s.is_none();
    place::lightest(core, tx, |node| node.outside, carried).or_else(|| place::any(core, tx))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    nat_gateway_id: String,
}

/// DeleteNatGateway: routes to it lead nowhere from now on.
///
/// # Errors
/// `NatGatewayNotFound`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.nat_gateway_id)?.as_ref().clone();
        let answer = json!({"NatGatewayId": row.id.to_string()});
        match row.state {
            NatState::Pending | NatState::Available => {
                row.state = NatState::Deleting;
                row.deleted_at_s = Some(now_s());
                row.generation += 1;
            }
            NatState::Failed => {
                row.state = NatState::Deleted;
                row.deleted_at_s = Some(now_s());
            }
            NatState::Deleting | NatState::Deleted => return Ok(answer),
        }
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

/// Its node has it no more: its interface and its addresses are free.
///
/// # Errors
/// Only those of writing a row.
pub fn unplug(tx: &mut Tx<'_>, scope: &Scope, row: &NatGateway) -> Result<(), ApiError> {
    if let Some(id) = row.interface {
        take_away(tx, scope, id)?;
    }
    let address = tx.get_in::<Address>(scope, &row.allocation);
    let held = |address: &Arc<Address>| {
        let association = address.association.as_ref();
        association.is_some_and(|held| Some(held.interface) == row.interface)
    };
    match address.filter(held) {
        Some(address) => tx.put_in(
            scope,
            Address {
                association: None,
                ..address.as_ref().clone()
            },
        ),
        None => Ok(()),
    }
}

/// Takes an interface of this cloud's own away; its address is free.
///
/// # Errors
/// Only those of writing a row.
pub fn take_away(tx: &mut Tx<'_>, scope: &Scope, id: InterfaceId) -> Result<(), ApiError> {
    let Some(interface) = tx.get_in::<Interface>(scope, &id) else {
        return Ok(());
    };
    if let Some(addresses) = tx.get_in::<Addresses>(scope, &interface.subnet) {
        let mut addresses = addresses.as_ref().clone();
        addresses.give_back(interface.private_ip);
        tx.put_in(scope, addresses)?;
    }
    tx.delete_in::<Interface>(scope, &id);
    Ok(())
}

/// Its node comes no more: another carries it from now on, under the same addresses; what was
/// translated there is forgotten. Where no other can, it fails.
///
/// # Errors
/// Only those of writing a row.
pub fn move_on(
    core: &Core,
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &NatGateway,
) -> Result<(), ApiError> {
    let mut new = row.clone();
    new.generation += 1;
    match carrier(core, tx) {
        _ if row.state == NatState::Deleting => new.state = NatState::Deleted,
        Some(node) => new.node = node,
        None => {
            new.state = NatState::Failed;
            new.failure = Some((
                "InternalError".to_owned(),
                "Network Gateway encountered an error, please try again later".to_owned(),
            ));
        }
    }
    if !new.state.is_carried() {
        unplug(tx, scope, row)?;
    }
    tx.put_in(scope, new)
}
