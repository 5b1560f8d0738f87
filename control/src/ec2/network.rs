//! VPCs and what is in them, described.

use super::filters::Paths;
use super::list::{Query, lookup, tag_set};
use super::params::Filter;
use super::{Ctx, groups, present};
use crate::config::zone_id;
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
        alias = "DhcpOptionsIds"
    )]
    ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// What is particular to one kind.
struct Kind<T: Record> {
    member: &'static str,
    paths: Paths,
    parse: fn(&str) -> Result<T::Id, ApiError>,
    not_found: fn(&str) -> ApiError,
}

async fn describe<T: Kept>(
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

/// DescribeVpcs.
///
/// # Errors
/// EC2's codes.
pub async fn vpcs(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Vpc> {
        member: "Vpcs",
        paths: &[
            ("cidr", "CidrBlock"),
            (
                "cidr-block-association.cidr-block",
                "CidrBlockAssociationSet.CidrBlock",
            ),
            (
                "cidr-block-association.association-id",
                "CidrBlockAssociationSet.AssociationId",
            ),
            (
                "cidr-block-association.state",
                "CidrBlockAssociationSet.CidrBlockState.State",
            ),
        ],
        parse: VpcId::parse,
        not_found: |text| VpcId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        let association = format!("vpc-cidr-assoc-{}", &row.id.to_string()["vpc-".len()..]);
        json!({
            "VpcId": row.id.to_string(),
            "OwnerId": *scope.account,
            "State": "available",
            "CidrBlock": row.cidr.to_string(),
            "CidrBlockAssociationSet": [{
                "AssociationId": association,
                "CidrBlock": row.cidr.to_string(),
                "CidrBlockState": {"State": "associated"},
            }],
            "DhcpOptionsId": row.dhcp_options.to_string(),
            "InstanceTenancy": "default",
            "IsDefault": row.default,
            "Tags": tag_set(&row.tags),
        })
    })
    .await
}

/// DescribeSubnets.
///
/// # Errors
/// EC2's codes.
pub async fn subnets(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Subnet> {
        member: "Subnets",
        paths: &[
            ("availabilityZone", "AvailabilityZone"),
            ("availabilityZoneId", "AvailabilityZoneId"),
            ("cidr", "CidrBlock"),
            ("cidrBlock", "CidrBlock"),
            ("defaultForAz", "DefaultForAz"),
            ("default-for-az", "DefaultForAz"),
        ],
        parse: SubnetId::parse,
        not_found: |text| SubnetId::not_found(text),
    };
    describe(ctx, action, request, kind, |view, scope, row| {
        json!({
            "SubnetId": row.id.to_string(),
            "SubnetArn": groups::arn(scope, "subnet", &row.id.to_string()),
            "OwnerId": *scope.account,
            "VpcId": row.vpc.to_string(),
            "State": "available",
            "CidrBlock": row.cidr.to_string(),
            "AvailabilityZone": row.zone,
            "AvailabilityZoneId": zone_id(&row.zone),
            "AvailableIpAddressCount":
                view.get::<Addresses>(scope, &row.id).map_or(0, |addresses| addresses.free()),
            "DefaultForAz": row.default,
            "MapPublicIpOnLaunch": row.map_public,
            "MapCustomerOwnedIpOnLaunch": false,
            "AssignIpv6AddressOnCreation": false,
            "Ipv6CidrBlockAssociationSet": [],
            "EnableDns64": false,
            "Ipv6Native": false,
            "PrivateDnsNameOptionsOnLaunch": {
                "HostnameType": "ip-name",
                "EnableResourceNameDnsARecord": false,
                "EnableResourceNameDnsAAAARecord": false,
            },
            "Tags": tag_set(&row.tags),
        })
    })
    .await
}

/// DescribeNetworkInterfaces.
///
/// # Errors
/// EC2's codes.
pub async fn interfaces(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
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
        ],
        parse: InterfaceId::parse,
        not_found: |text| InterfaceId::not_found(text),
    };
    describe(ctx, action, request, kind, present::interface).await
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

/// DescribeDhcpOptions.
///
/// # Errors
/// EC2's codes.
pub async fn dhcp_options(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<DhcpOptions> {
        member: "DhcpOptions",
        paths: &[
            ("key", "DhcpConfigurations.Key"),
            ("value", "DhcpConfigurations.Values.Value"),
        ],
        parse: DhcpOptionsId::parse,
        not_found: |text| DhcpOptionsId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        let options = row.options.iter().map(|(key, values)| {
            let values: Vec<Value> = values.iter().map(|value| json!({"Value": value})).collect();
            json!({"Key": key, "Values": values})
        });
        json!({
            "DhcpOptionsId": row.id.to_string(),
            "OwnerId": *scope.account,
            "DhcpConfigurations": options.collect::<Vec<_>>(),
            "Tags": tag_set(&row.tags),
        })
    })
    .await
}
