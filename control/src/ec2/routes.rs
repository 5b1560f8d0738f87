//! Route tables: which way a subnet's packets go.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::vpcs::{has_dependencies, retell};
use super::{Ctx, subnets, tags, vpcs};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Whether a route leads somewhere; else its packets are dropped.
pub fn is_active(view: &View, scope: &Scope, vpc: VpcId, target: &Target) -> bool {
    match target {
        Target::Gateway(id) => view
            .get::<Gateway>(scope, id)
            .is_some_and(|row| row.vpc == Some(vpc)),
        Target::EgressGateway(id) => view
            .get::<EgressGateway>(scope, id)
            .is_some_and(|row| row.vpc == vpc),
        Target::Interface(id) => view
            .get::<Interface>(scope, id)
            .is_some_and(|row| row.attachment.is_some()),
        Target::Peering(id) => view
            .get::<Peering>(scope, id)
            .is_some_and(|row| row.state == PeeringState::Active),
        Target::Nat(id) => view
            .get::<NatGateway>(scope, id)
            .is_some_and(|row| matches!(row.state, NatState::Pending | NatState::Available)),
    }
}

fn show_route(view: &View, scope: &Scope, vpc: VpcId, route: &Route) -> Value {
    let state = if is_active(view, scope, vpc, &route.target) {
        "active"
    } else {
        "blackhole"
    };
    let destination = match route.destination {
        IpNet::V4(_) => "DestinationCidrBlock",
        IpNet::V6(_) => "DestinationIpv6CidrBlock",
    };
    let mut item = json!({
        destination: route.destination.to_string(),
        "Origin": "CreateRoute",
        "State": state,
    });
    match &route.target {
        Target::Gateway(id) => item["GatewayId"] = id.to_string().into(),
        Target::EgressGateway(id) => {
            item["EgressOnlyInternetGatewayId"] = id.to_string().into();
        }
        Target::Peering(id) => item["VpcPeeringConnectionId"] = id.to_string().into(),
        Target::Nat(id) => item["NatGatewayId"] = id.to_string().into(),
        Target::Interface(id) => {
            item["NetworkInterfaceId"] = id.to_string().into();
            let attachment = view.get::<Interface>(scope, id);
            if let Some(attachment) = attachment.and_then(|row| row.attachment.as_ref()) {
                item["InstanceId"] = attachment.instance.to_string().into();
                item["InstanceOwnerId"] = (*scope.account).into();
            }
        }
    }
    item
}

fn present(view: &View, scope: &Scope, row: &RouteTable) -> Value {
    let vpc = view.get::<Vpc>(scope, &row.vpc);
    let blocks: Vec<Ipv4Net> = match vpc {
        Some(vpc) => vpc.cidrs().collect(),
        None => vec![row.local],
    };
    let local = blocks.iter().map(|cidr| {
        json!({
            "DestinationCidrBlock": cidr.to_string(), "GatewayId": "local",
            "Origin": "CreateRouteTable", "State": "active",
        })
    });
    let ipv6 = vpc.into_iter().flat_map(|vpc| &vpc.ipv6).map(|(_, block)| {
        json!({
            "DestinationIpv6CidrBlock": block.to_string(), "GatewayId": "local",
            "Origin": "CreateRouteTable", "State": "active",
        })
    });
    let others = row
        .routes
        .iter()
        .map(|route| show_route(view, scope, row.vpc, route));
    let main = row.main.map(|id| (id, None));
    let own = row
        .associations
        .iter()
        .map(|(id, subnet)| (*id, Some(*subnet)));
    let associations = main.into_iter().chain(own).map(|(id, subnet)| {
        let mut item = json!({
            "Main": subnet.is_none(),
            "RouteTableAssociationId": id.to_string(),
            "RouteTableId": row.id.to_string(),
            "AssociationState": {"State": "associated"},
        });
        if let Some(subnet) = subnet {
            item["SubnetId"] = subnet.to_string().into();
        }
        item
    });
    json!({
        "RouteTableId": row.id.to_string(),
        "OwnerId": *scope.account,
        "VpcId": row.vpc.to_string(),
        "Associations": associations.collect::<Vec<_>>(),
        "PropagatingVgws": [],
        "Routes": local.chain(ipv6).chain(others).collect::<Vec<_>>(),
        "Tags": tag_set(&row.tags),
    })
}

/// DescribeRouteTables.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<RouteTable> {
        member: "RouteTables",
        paths: &[
            ("association.main", "Associations.Main"),
            (
                "association.route-table-association-id",
                "Associations.RouteTableAssociationId",
            ),
            ("association.route-table-id", "Associations.RouteTableId"),
            ("association.subnet-id", "Associations.SubnetId"),
            ("association.gateway-id", "Associations.GatewayId"),
            (
                "route.destination-cidr-block",
                "Routes.DestinationCidrBlock",
            ),
            (
                "route.destination-ipv6-cidr-block",
                "Routes.DestinationIpv6CidrBlock",
            ),
            (
                "route.egress-only-internet-gateway-id",
                "Routes.EgressOnlyInternetGatewayId",
            ),
            ("route.gateway-id", "Routes.GatewayId"),
            ("route.instance-id", "Routes.InstanceId"),
            ("route.nat-gateway-id", "Routes.NatGatewayId"),
            ("route.origin", "Routes.Origin"),
            ("route.state", "Routes.State"),
            (
                "route.vpc-peering-connection-id",
                "Routes.VpcPeeringConnectionId",
            ),
        ],
        parse: RouteTableId::parse,
        not_found: |text| RouteTableId::not_found(text),
    };
    describe(ctx, action, request, kind, present).await
}

/// A route table of the caller's.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<RouteTable>, ApiError> {
    tx.get::<RouteTable>(&RouteTableId::parse(text)?)
        .ok_or_else(|| RouteTableId::not_found(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    vpc_id: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateRouteTable: with the local route alone.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kind = "route-table";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        let vpc = vpcs::one(tx, &params.vpc_id)?;
        let row = RouteTable {
            id: RouteTableId::random(),
            vpc: vpc.id,
            local: vpc.cidr,
            main: None,
            associations: Vec::new(),
            routes: Vec::new(),
            tags: tags.clone(),
        };
        let answer = json!({"RouteTable": present(tx.view, &tx.scope, &row)});
        tx.put(row)?;
        Ok(ctx.with_client_token(answer))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    route_table_id: String,
}

/// DeleteRouteTable: not a main one, nor one that subnets use.
///
/// # Errors
/// `DependencyViolation`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = one(tx, &params.route_table_id)?;
        if row.main.is_some() || !row.associations.is_empty() {
            return Err(has_dependencies("routeTable", row.id));
        }
        tx.delete::<RouteTable>(&row.id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associate {
    route_table_id: String,
    subnet_id: Option<String>,
}

/// AssociateRouteTable: a subnet has one table of its own at most.
///
/// # Errors
/// `Resource.AlreadyAssociated`, and EC2's other codes.
pub async fn associate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Associate = ctx.params(action, request)?;
    let text = params
        .subnet_id
        .as_deref()
        .ok_or_else(|| ApiError::missing("SubnetId"))?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.route_table_id)?.as_ref().clone();
        let subnet = subnets::one(tx, text)?;
        if subnet.vpc != row.vpc {
            return Err(ApiError::value(
                text,
                "subnetId",
                "The route table and the subnet belong to different networks.",
            ));
        }
        for table in tx.rows::<RouteTable>() {
            let held = table
                .associations
                .iter()
                .find(|(_, held)| *held == subnet.id);
            match held {
                Some((id, _)) if table.id == row.id => {
                    return Ok(associated("AssociationId", *id));
                }
                Some((id, _)) => {
                    return Err(ApiError::new(
                        "Resource.AlreadyAssociated",
                        format!(
                            "the specified association for route table {} conflicts with an \
                             existing association {id}",
                            row.id
                        ),
                    ));
                }
                None => {}
            }
        }
        let id = RouteAssociationId::random();
        row.associations.push((id, subnet.id));
        let vpc = row.vpc;
        tx.put(row)?;
        retell(tx, vpc)?;
        Ok(associated("AssociationId", id))
    })
    .await
}

fn associated(member: &str, id: RouteAssociationId) -> Value {
    json!({member: id.to_string(), "AssociationState": {"State": "associated"}})
}

/// The table that has an association.
fn holder(tx: &Tx<'_>, id: RouteAssociationId) -> Result<Arc<RouteTable>, ApiError> {
    let holds = |table: &&Arc<RouteTable>| {
        table.main == Some(id) || table.associations.iter().any(|(known, _)| *known == id)
    };
    let tables = tx.rows::<RouteTable>();
    let table = tables.iter().find(holds);
    table
        .cloned()
        .ok_or_else(|| RouteAssociationId::not_found(id))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Association {
    association_id: String,
}

/// DisassociateRouteTable: the subnet goes back to the main table.
///
/// # Errors
/// `InvalidParameterValue` for a main association, and EC2's other codes.
pub async fn disassociate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Association = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = RouteAssociationId::parse(&params.association_id)?;
        let mut row = holder(tx, id)?.as_ref().clone();
        if row.main == Some(id) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("cannot disassociate the main route table association {id}"),
            ));
        }
        row.associations.retain(|(known, _)| *known != id);
        let vpc = row.vpc;
        tx.put(row)?;
        retell(tx, vpc)?;
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReplaceAssociation {
    association_id: String,
    route_table_id: String,
}

/// ReplaceRouteTableAssociation: also makes another table the main one.
///
/// # Errors
/// EC2's codes.
pub async fn replace_association(
    ctx: &Ctx,
    action: &str,
    request: Value,
) -> Result<Value, ApiError> {
    let params: ReplaceAssociation = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = RouteAssociationId::parse(&params.association_id)?;
        let mut old = holder(tx, id)?.as_ref().clone();
        let new = one(tx, &params.route_table_id)?;
        if new.vpc != old.vpc {
            return Err(ApiError::value(
                &params.route_table_id,
                "routeTableId",
                "The route tables belong to different networks.",
            ));
        }
        if new.id == old.id {
            return Ok(associated("NewAssociationId", id));
        }
        let mut new = new.as_ref().clone();
        let fresh = RouteAssociationId::random();
        if old.main == Some(id) {
            (old.main, new.main) = (None, Some(fresh));
        } else {
            let subnet = old.associations.iter().find(|(known, _)| *known == id);
            let subnet = subnet.map(|(_, subnet)| *subnet);
            old.associations.retain(|(known, _)| *known != id);
            new.associations
                .extend(subnet.map(|subnet| (fresh, subnet)));
        }
        let vpc = old.vpc;
        tx.put(old)?;
        tx.put(new)?;
        retell(tx, vpc)?;
        Ok(associated("NewAssociationId", fresh))
    })
    .await
}
