//! What this cloud has none of, listed: tools that ask before they go on are told "none",
//! as EC2 tells an account that never made any.

use super::Ctx;
use super::list::{Query, lookup, tag_set};
use super::params::Filter;
use crate::rows::{Vpc, VpcId};
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// Action, how its answer calls the list, EC2's code for an id that names nothing.
const NONE: [(&str, &str, &str); 8] = [
    (
        "DescribeCapacityReservations",
        "CapacityReservations",
        "InvalidCapacityReservationId.NotFound",
    ),
    (
        "DescribeCarrierGateways",
        "CarrierGateways",
        "InvalidCarrierGatewayID.NotFound",
    ),
    (
        "DescribeClassicLinkInstances",
        "Instances",
        "InvalidInstanceID.NotLinkable",
    ),
    ("DescribeFlowLogs", "FlowLogs", "InvalidFlowLogId.NotFound"),
    ("DescribeHosts", "Hosts", "InvalidHostID.NotFound"),
    (
        "DescribeReservedInstances",
        "ReservedInstances",
        "InvalidReservedInstancesId.NotFound",
    ),
    (
        "DescribeVpcEndpoints",
        "VpcEndpoints",
        "InvalidVpcEndpointId.NotFound",
    ),
    (
        "DescribeVpnGateways",
        "VpnGateways",
        "InvalidVpnGatewayID.NotFound",
    ),
];

/// Is this one of them?
pub fn knows(action: &str) -> bool {
    NONE.iter().any(|(name, ..)| *name == action)
}

/// Each of these actions calls its ids and its filters by another name.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(
        default,
        alias = "CapacityReservationIds",
        alias = "CarrierGatewayIds",
        alias = "FlowLogIds",
        alias = "HostIds",
        alias = "InstanceIds",
        alias = "ReservedInstancesIds",
        alias = "VpcEndpointIds",
        alias = "VpcIds",
        alias = "VpnGatewayIds"
    )]
    ids: Vec<String>,
    #[serde(default, alias = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(rename = "OfferingClass")]
    _offering_class: Option<Json>,
    #[serde(rename = "OfferingType")]
    _offering_type: Option<Json>,
}

impl Describe {
    fn query<'a>(&'a self, action: &'a str, member: &'a str) -> Query<'a> {
        Query {
            action,
            member,
            by_id: !self.ids.is_empty(),
            filters: &self.filters,
            paths: &[],
            max_results: self.max_results,
            next_token: self.next_token.as_deref(),
        }
    }
}

/// None of them.
///
/// # Errors
/// The kind's code for every id.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let entry = NONE.iter().find(|(name, ..)| *name == action);
    let (_, member, code) = entry.ok_or_else(|| ApiError::internal(&action))?;
    let query = params.query(action, member);
    ctx.read(|_| match params.ids.first() {
        Some(id) => Err(ApiError::new(
            *code,
            format!("The ID '{id}' does not exist"),
        )),
        None => query.answer([]),
    })
    .await
}

/// DescribeVpcClassicLink: no VPC has it.
///
/// # Errors
/// EC2's codes.
pub async fn classic_link(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    vpcs(ctx, action, request, |vpc| {
        json!({
            "VpcId": vpc.id.to_string(),
            "ClassicLinkEnabled": false,
            "Tags": tag_set(&vpc.tags),
        })
    })
    .await
}

/// DescribeVpcClassicLinkDnsSupport: no VPC has it.
///
/// # Errors
/// EC2's codes.
pub async fn classic_link_dns(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    vpcs(
        ctx,
        action,
        request,
        |vpc| json!({"VpcId": vpc.id.to_string(), "ClassicLinkDnsSupported": false}),
    )
    .await
}

async fn vpcs(
    ctx: &Ctx,
    action: &str,
    request: Value,
    show: impl Fn(&Vpc) -> Value,
) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    ctx.read(|view| {
        let named = lookup(
            &params.ids,
            VpcId::parse,
            |id| view.get::<Vpc>(&ctx.scope, &id).cloned(),
            |text| VpcId::not_found(text),
        )?;
        let mut rows = match named.is_empty() {
            true => view.all::<Vpc>(&ctx.scope).cloned().collect(),
            false => named,
        };
        rows.sort_by_key(|row| row.id);
        let items = rows.iter().map(|row| (row.id.to_string(), show(row)));
        params.query(action, "Vpcs").answer(items)
    })
    .await
}
