//! What a list holds, and who uses it; and EC2's own lists, of which there are none.

use super::uses;
use crate::ec2::Ctx;
use crate::ec2::list::Query;
use crate::ec2::params::Filter;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associations {
    prefix_list_id: String,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// GetManagedPrefixListAssociations: the security groups that have a rule on it.
///
/// # Errors
/// EC2's codes.
pub async fn associations(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Associations = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "PrefixListAssociations",
        by_id: false,
        filters: &[],
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let id = PrefixListId::parse(&params.prefix_list_id)?;
        if view.get::<PrefixList>(&ctx.scope, &id).is_none() {
            return Err(PrefixListId::not_found(id));
        }
        let groups = view.all::<Group>(&ctx.scope);
        let mut ids: Vec<String> = groups
            .filter(|group| uses(group, id))
            .map(|group| group.id.to_string())
            .collect();
        ids.sort();
        query.answer(ids.into_iter().map(|id| {
            let item = json!({"ResourceId": id, "ResourceOwner": ctx.account()});
            (id, item)
        }))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Services {
    #[serde(default)]
    prefix_list_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribePrefixLists: EC2's own lists, of which this cloud has none.
///
/// # Errors
/// `InvalidPrefixListID.NotFound`.
pub async fn services(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Services = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "PrefixLists",
        by_id: !params.prefix_list_ids.is_empty(),
        filters: &params.filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|_| match params.prefix_list_ids.first() {
        Some(text) => {
            PrefixListId::parse(text)?;
            Err(PrefixListId::not_found(text))
        }
        None => query.answer([]),
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entries {
    prefix_list_id: String,
    target_version: Option<u64>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// GetManagedPrefixListEntries.
///
/// # Errors
/// `InvalidParameterValue` for a version that is no longer kept, and EC2's codes.
pub async fn entries(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Entries = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "Entries",
        by_id: false,
        filters: &[],
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let id = PrefixListId::parse(&params.prefix_list_id)?;
        let row = view
            .get::<PrefixList>(&ctx.scope, &id)
            .ok_or_else(|| PrefixListId::not_found(id))?;
        let version = params.target_version.unwrap_or(row.version);
        let entries = row.entries(version).ok_or_else(|| {
            ApiError::value(
                version,
                "TargetVersion",
                "There is no such version, or no longer.",
            )
        })?;
        let mut items: Vec<(String, Value)> = entries
            .iter()
            .map(|entry| {
                let mut item = json!({"Cidr": entry.cidr.to_string()});
                if let Some(description) = &entry.description {
                    item["Description"] = description.clone().into();
                }
                (entry.cidr.to_string(), item)
            })
            .collect();
        items.sort_by(|a, b| a.0.cmp(&b.0));
        query.answer(items)
    })
    .await
}
