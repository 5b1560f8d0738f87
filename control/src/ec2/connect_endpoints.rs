//! Instance-connect endpoints: a way to any port of a VPC's instances, from outside the VPC
//! and through its rules.
//!
//! ```text
//!                      its node has it           Delete…            its node has it no more
//!   create-in-progress ──────────────▶ create-complete ──▶ delete-in-progress ──▶ delete-complete
//!       └──▶ create-failed          Modify… │  ▲
//!                                update-in-progress ──▶ update-complete
//! ```
//! One has an interface of its own in its subnet, with its own groups, which is nobody else's
//! to change: rules of both sides decide on each connection, as on any other's. What a tunnel
//! may be opened to is in `fronts/tunnel.rs`.

mod way;

pub use way::{Destination, Way, way};

use super::list::tag_set;
use super::nat_gateways::take_away;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::private_addresses::Wanted;
use super::{Ctx, groups, launch, place, present, quotas, subnets, tags};
use crate::config::zone_id;
use crate::core::{Core, Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// Most of an account's in a region, of the profile `ec2`. A VPC has one, whatever the profile
/// (EC2 User Guide, "Quotas for EC2 Instance Connect Endpoint").
const MOST: usize = 5;
const KIND: &str = "instance-connect-endpoint";

fn show(host: &str, view: &View, scope: &Scope, row: &ConnectEndpoint) -> Value {
    let id = row.id.to_string();
    let mut item = json!({
        "OwnerId": *scope.account,
        "InstanceConnectEndpointId": id,
        "InstanceConnectEndpointArn": groups::arn(scope, KIND, &id),
        "State": row.state.name(),
        // Who reaches this front by its scheme's own port need not name it.
        "DnsName": host.strip_suffix(":443").unwrap_or(host),
        "NetworkInterfaceIds": [row.interface.to_string()],
        "VpcId": row.vpc.to_string(),
        "SubnetId": row.subnet.to_string(),
        "CreatedAt": present::timestamp(row.created_at_s),
        "PreserveClientIp": false,
        "IpAddressType": "ipv4",
        "Tags": tag_set(&row.tags),
    });
    if row.state == ConnectState::CreateFailed {
        item["StateMessage"] = "There is no host that can carry it.".into();
    }
    if let Some(interface) = view.get::<Interface>(scope, &row.interface) {
        let ids = interface.groups.iter().map(ToString::to_string);
        item["SecurityGroupIds"] = ids.collect::<Vec<_>>().into();
    }
    if let Some(subnet) = view.get::<Subnet>(scope, &row.subnet) {
        item["AvailabilityZone"] = subnet.zone.clone().into();
        item["AvailabilityZoneId"] = zone_id(&subnet.zone).into();
    }
    item
}

/// DescribeInstanceConnectEndpoints.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<ConnectEndpoint> {
        member: "InstanceConnectEndpoints",
        paths: &[],
        parse: ConnectEndpointId::parse,
        not_found: |text| ConnectEndpointId::not_found(text),
    };
    describe(ctx, action, request, kind, |view, scope, row| {
        show(&ctx.host, view, scope, row)
    })
    .await
}

/// An endpoint of the caller's that is not deleted.
fn one(tx: &Tx<'_>, text: &str) -> Result<ConnectEndpoint, ApiError> {
    tx.get::<ConnectEndpoint>(&ConnectEndpointId::parse(text)?)
        .filter(|row| row.state != ConnectState::DeleteComplete)
        .map(|row| row.as_ref().clone())
        .ok_or_else(|| ConnectEndpointId::not_found(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    subnet_id: String,
    #[serde(default)]
    security_group_ids: Vec<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateInstanceConnectEndpoint.
///
/// # Errors
/// `InstanceConnectEndpointLimitExceeded`: a VPC has one; and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let tags = tags::on_create(&params.tag_specifications, KIND, &[KIND])?;
    ctx.write(|tx| {
        let subnet = subnets::one(tx, &params.subnet_id)?;
        room(tx, subnet.vpc)?;
        let groups = groups::or_default(tx, &params.security_group_ids, subnet.vpc, subnet.id)?;
        let node = carrier(&ctx.core, tx).ok_or_else(|| {
            ApiError::new(
                "InsufficientCapacity",
                "There is no host that can carry an instance connect endpoint now.",
            )
        })?;
        let id = ConnectEndpointId::random();
        let mut addresses = launch::addresses_of(tx, subnet.id)?;
        let interface = Interface {
            description: format!("EC2 Instance Connect Endpoint {id}"),
            connect_endpoint: Some(id),
            ..launch::interface(&subnet, &mut addresses, &Wanted::default(), groups)?
        };
        let row = ConnectEndpoint {
            id,
            vpc: subnet.vpc,
            subnet: subnet.id,
            node,
            interface: interface.id,
            state: ConnectState::CreateInProgress,
            generation: 1,
            created_at_s: now_s(),
            deleted_at_s: None,
            tags: tags.clone(),
        };
        let ids: Vec<String> = interface.groups.iter().map(ToString::to_string).collect();
        let mut shown = show(&ctx.host, tx.view, &tx.scope, &row);
        shown["SecurityGroupIds"] = ids.into();
        let mut answer = json!({"InstanceConnectEndpoint": shown});
        if !ctx.client_token().is_empty() {
            answer["ClientToken"] = ctx.client_token().into();
        }
        tx.put(addresses)?;
        tx.put(interface)?;
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

/// The node that carries fewest.
fn carrier(core: &Core, tx: &Tx<'_>) -> Option<String> {
    let carries =
        |row: &ConnectEndpoint, node: &Node| row.node == node.name && row.state.is_carried();
    place::lightest(core, tx, |_| true, carries)
}

/// Whether there may be one more.
fn room(tx: &Tx<'_>, vpc: VpcId) -> Result<(), ApiError> {
    let rows = tx.rows::<ConnectEndpoint>();
    let held: Vec<_> = rows.iter().filter(|row| row.state.is_carried()).collect();
    let why = match held.iter().find(|row| row.vpc == vpc) {
        Some(row) => format!(
            "The VPC '{vpc}' has the instance connect endpoint '{}'.",
            row.id
        ),
        None if quotas::limits(tx) == Limits::Ec2 && held.len() >= MOST => {
            format!("The maximum number of {MOST} instance connect endpoints has been reached.")
        }
        None => return Ok(()),
    };
    Err(ApiError::new("InstanceConnectEndpointLimitExceeded", why))
}

fn unready(row: &ConnectEndpoint) -> ApiError {
    let (id, state) = (row.id, row.state.name());
    let message = format!("The endpoint '{id}' is in the state '{state}'.");
    ApiError::new("IncorrectState", message)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    instance_connect_endpoint_id: String,
    #[serde(default)]
    security_group_ids: Vec<String>,
}

/// ModifyInstanceConnectEndpoint: its groups. Connections that are there stay, as on any
/// interface.
///
/// # Errors
/// `IncorrectState`, and EC2's other codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.instance_connect_endpoint_id)?;
        if !row.state.connects() {
            return Err(unready(&row));
        }
        if params.security_group_ids.is_empty() {
            return Ok(json!({"Return": true}));
        }
        let interface = tx.get::<Interface>(&row.interface);
        let interface = interface.ok_or_else(|| InterfaceId::not_found(row.interface))?;
        let groups = groups::named(tx, &params.security_group_ids, row.vpc, row.subnet)?;
        tx.put(Interface {
            groups,
            ..interface.as_ref().clone()
        })?;
        row.state = ConnectState::UpdateInProgress;
        row.generation += 1;
        tx.put(row)?;
        Ok(json!({"Return": true}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    instance_connect_endpoint_id: String,
}

/// DeleteInstanceConnectEndpoint: its connections end.
///
/// # Errors
/// EC2's codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.instance_connect_endpoint_id)?;
        if row.state != ConnectState::DeleteInProgress {
            row.state = match row.state {
                ConnectState::CreateFailed => ConnectState::DeleteComplete,
                _ => ConnectState::DeleteInProgress,
            };
            row.deleted_at_s = Some(now_s());
            row.generation += 1;
            tx.put(row.clone())?;
        }
        Ok(json!({"InstanceConnectEndpoint": show(&ctx.host, tx.view, &tx.scope, &row)}))
    })
    .await
}

/// Its node has it as desired, or has it no more.
///
/// # Errors
/// Only those of writing a row.
pub fn seen(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &ConnectEndpoint,
    up: bool,
) -> Result<(), ApiError> {
    let mut new = row.clone();
    new.state = match (row.state, up) {
        (ConnectState::CreateInProgress, true) => ConnectState::CreateComplete,
        (ConnectState::UpdateInProgress, true) => ConnectState::UpdateComplete,
        (ConnectState::DeleteInProgress, false) => {
            take_away(tx, scope, row.interface)?;
            ConnectState::DeleteComplete
        }
        _ => return Ok(()),
    };
    tx.put_in(scope, new)
}

/// Its node comes no more: another carries it from now on, under the same address. Where no
/// other can, it has failed.
///
/// # Errors
/// Only those of writing a row.
pub fn move_on(
    core: &Core,
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &ConnectEndpoint,
) -> Result<(), ApiError> {
    let mut new = row.clone();
    new.generation += 1;
    match carrier(core, tx) {
        _ if row.state == ConnectState::DeleteInProgress => {
            new.state = ConnectState::DeleteComplete
        }
        Some(node) => new.node = node,
        None => new.state = ConnectState::CreateFailed,
    }
    if !new.state.is_carried() {
        take_away(tx, scope, row.interface)?;
    }
    tx.put_in(scope, new)
}
