//! What is in VPCs, described by ids or all: the one way for every kind of row.

use super::Ctx;
use super::filters::Paths;
use super::list::{Query, lookup};
use super::params::Filter;
use crate::rows::*;
use crate::view::{Kept, View};
use crate::wire::{ApiError, Value};
use serde::Deserialize;
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
        alias = "EgressOnlyInternetGatewayIds",
        alias = "NatGatewayIds",
        alias = "InstanceConnectEndpointIds",
        alias = "RouteTableIds",
        alias = "NetworkAclIds",
        alias = "DhcpOptionsIds",
        alias = "PrefixListIds",
        alias = "VpcPeeringConnectionIds"
    )]
    ids: Vec<String>,
    #[serde(default, alias = "Filter")]
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
