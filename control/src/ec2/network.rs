//! What is in VPCs, described by ids or all: the one way for every kind of row,
//! and the kinds that have no file of their own.

use super::Ctx;
use super::filters::Paths;
use super::list::{Query, lookup, tag_set};
use super::params::Filter;
use crate::rows::*;
use crate::view::{Kept, View};
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Each of these actions calls its ids by another name.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(
        default,
        alias = "VpcIds",
        alias = "SubnetIds",
        alias = "NetworkInterfaceIds",
        alias = "InternetGatewayIds",
        alias = "RouteTableIds",
        alias = "NetworkAclIds",
        alias = "DhcpOptionsIds",
        alias = "PrefixListIds"
    )]
    ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// What is particular to one kind.
pub struct Kind<T: Record> {
    /// How the action's answer calls the list.
    pub member: &'static str,
    /// Where filter names lead.
    pub paths: Paths,
    /// Parses an id.
    pub parse: fn(&str) -> Result<T::Id, ApiError>,
    /// The error for an id that names nothing.
    pub not_found: fn(&str) -> ApiError,
}

/// Describes rows by their ids, or all.
///
/// # Errors
/// EC2's codes.
pub async fn describe<T: Kept>(
    ctx: &Ctx,
    action: &str,
    request: Value,
    kind: Kind<T>,
    show: impl Fn(&View, &Scope, &T) -> Value,
) -> Result<Value, ApiError>
where
    T::Id: Copy,
{
    let params: Describe = ctx.params(action, request)?;
    let query = Query {
        action,
        member: kind.member,
        by_id: !params.ids.is_empty(),
        filters: &params.filters,
        paths: kind.paths,
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let mut rows: Vec<Arc<T>> = lookup(
            &params.ids,
            kind.parse,
            |id| view.get::<T>(scope, &id).cloned(),
            kind.not_found,
        )?;
        if params.ids.is_empty() {
            rows = view.all::<T>(scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id());
        rows.dedup_by_key(|row| row.id());
        query.answer(
            rows.iter()
                .map(|row| (row.id().to_string(), show(view, scope, row))),
        )
    })
    .await
}

/// DescribeInternetGateways.
///
/// # Errors
/// EC2's codes.
pub async fn gateways(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Gateway> {
        member: "InternetGateways",
        paths: &[
            ("attachment.state", "Attachments.State"),
            ("attachment.vpc-id", "Attachments.VpcId"),
        ],
        parse: GatewayId::parse,
        not_found: |text| GatewayId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        let attachment = row
            .vpc
            .map(|vpc| json!({"State": "available", "VpcId": vpc.to_string()}));
        json!({
            "InternetGatewayId": row.id.to_string(),
            "OwnerId": *scope.account,
            "Attachments": attachment.into_iter().collect::<Vec<_>>(),
            "Tags": tag_set(&row.tags),
        })
    })
    .await
}

/// DescribeRouteTables.
///
/// # Errors
/// EC2's codes.
pub async fn route_tables(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
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
            ("route.gateway-id", "Routes.GatewayId"),
            ("route.origin", "Routes.Origin"),
            ("route.state", "Routes.State"),
        ],
        parse: RouteTableId::parse,
        not_found: |text| RouteTableId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        let route = |cidr: String, gateway: String, origin: &str| {
            json!({
                "DestinationCidrBlock": cidr, "GatewayId": gateway,
                "Origin": origin, "State": "active",
            })
        };
        let mut routes = vec![route(
            row.local.to_string(),
            "local".to_owned(),
            "CreateRouteTable",
        )];
        if let Some(gateway) = row.default_gateway {
            routes.push(route(
                "0.0.0.0/0".to_owned(),
                gateway.to_string(),
                "CreateRoute",
            ));
        }
        let main = row.main.map(|association| {
            json!({
                "Main": true,
                "RouteTableAssociationId": association.to_string(),
                "RouteTableId": row.id.to_string(),
                "AssociationState": {"State": "associated"},
            })
        });
        json!({
            "RouteTableId": row.id.to_string(),
            "OwnerId": *scope.account,
            "VpcId": row.vpc.to_string(),
            "Associations": main.into_iter().collect::<Vec<_>>(),
            "PropagatingVgws": [],
            "Routes": routes,
            "Tags": tag_set(&row.tags),
        })
    })
    .await
}

/// DescribeNetworkAcls.
///
/// # Errors
/// EC2's codes.
pub async fn acls(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Acl> {
        member: "NetworkAcls",
        paths: &[
            (
                "association.association-id",
                "Associations.NetworkAclAssociationId",
            ),
            ("association.network-acl-id", "Associations.NetworkAclId"),
            ("association.subnet-id", "Associations.SubnetId"),
            ("default", "IsDefault"),
            ("entry.cidr", "Entries.CidrBlock"),
            ("entry.egress", "Entries.Egress"),
            ("entry.protocol", "Entries.Protocol"),
            ("entry.rule-action", "Entries.RuleAction"),
            ("entry.rule-number", "Entries.RuleNumber"),
        ],
        parse: AclId::parse,
        not_found: |text| AclId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        let entry = |egress: bool, number: i32, action: &str| {
            json!({
                "CidrBlock": "0.0.0.0/0", "Egress": egress, "Protocol": "-1",
                "RuleAction": action, "RuleNumber": number,
            })
        };
        let associations = row.associations.iter().map(|(id, subnet)| {
            json!({
                "NetworkAclAssociationId": id.to_string(),
                "NetworkAclId": row.id.to_string(),
                "SubnetId": subnet.to_string(),
            })
        });
        json!({
            "NetworkAclId": row.id.to_string(),
            "OwnerId": *scope.account,
            "VpcId": row.vpc.to_string(),
            "IsDefault": row.default,
            "Associations": associations.collect::<Vec<_>>(),
            "Entries": [
                entry(true, 100, "allow"), entry(true, 32_767, "deny"),
                entry(false, 100, "allow"), entry(false, 32_767, "deny"),
            ],
            "Tags": tag_set(&row.tags),
        })
    })
    .await
}
