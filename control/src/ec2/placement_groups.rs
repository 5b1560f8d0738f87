//! Placement groups: how instances spread over hosts; see `place` for what they do.

use super::list::{Query, lookup, tag_set};
use super::params::{Filter, TagSpecification};
use super::{Ctx, groups, quotas, tags};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Most partitions of a group in a zone, as EC2 documents.
const MAX_PARTITIONS: i64 = 7;

fn unknown(name: &str) -> ApiError {
    ApiError::new(
        "InvalidPlacementGroup.Unknown",
        format!("The Placement Group '{name}' is unknown."),
    )
}

fn by_name(view: &View, scope: &Scope, name: &str) -> Option<Arc<PlacementGroup>> {
    let mut rows = view.all::<PlacementGroup>(scope);
    rows.find(|row| row.name == name).cloned()
}

/// The group that a launch names by name or id, if it names one.
///
/// # Errors
/// `InvalidPlacementGroup.Unknown`, and EC2's other codes.
pub fn named(
    tx: &Tx<'_>,
    name: Option<&str>,
    id: Option<&str>,
) -> Result<Option<Arc<PlacementGroup>>, ApiError> {
    match (name, id) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(ApiError::combination(
            "Only one of groupName and groupId may be given.",
        )),
        (Some(name), None) => by_name(tx.view, &tx.scope, name)
            .map(Some)
            .ok_or_else(|| unknown(name)),
        (None, Some(text)) => {
            let id = PlacementGroupId::parse(text)?;
            let row = tx.get::<PlacementGroup>(&id);
            row.map(Some).ok_or_else(|| unknown(text))
        }
    }
}

fn show(scope: &Scope, row: &PlacementGroup) -> Value {
    let mut item = json!({
        "GroupName": row.name,
        "GroupId": row.id.to_string(),
        "GroupArn": groups::arn(scope, "placement-group", &row.name),
        "State": "available",
        "Strategy": row.strategy.name(),
        "Tags": tag_set(&row.tags),
    });
    match row.strategy {
        Strategy::Partition => item["PartitionCount"] = row.partitions.into(),
        Strategy::Spread => item["SpreadLevel"] = "rack".into(),
        Strategy::Cluster => {}
    }
    item
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    group_name: Option<String>,
    strategy: Option<String>,
    partition_count: Option<i64>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreatePlacementGroup.
///
/// # Errors
/// `InvalidPlacementGroup.Duplicate`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let name = params
        .group_name
        .clone()
        .ok_or_else(|| ApiError::missing("groupName"))?;
    if name.len() > 255 || !name.is_ascii() {
        return Err(ApiError::value(
            name,
            "groupName",
            "At most 255 ASCII characters are allowed.",
        ));
    }
    let strategy = match params.strategy.as_deref() {
        None | Some("cluster") => Strategy::Cluster,
        Some("spread") => Strategy::Spread,
        Some(_) => Strategy::Partition,
    };
    let partitions = match (strategy, params.partition_count) {
        (Strategy::Partition, count) => {
            let count = count.unwrap_or(2);
            u32::try_from(count)
                .ok()
                .filter(|_| (1..=MAX_PARTITIONS).contains(&count))
                .ok_or_else(|| {
                    ApiError::value(count, "partitionCount", "It must be from 1 to 7.")
                })?
        }
        (_, Some(_)) => {
            return Err(ApiError::combination(
                "The parameter partitionCount is only supported with the strategy partition.",
            ));
        }
        (_, None) => 0,
    };
    let kind = "placement-group";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        if by_name(tx.view, &tx.scope, &name).is_some() {
            return Err(ApiError::new(
                "InvalidPlacementGroup.Duplicate",
                format!("The Placement Group '{name}' already exists."),
            ));
        }
        quotas::room_for_one::<PlacementGroup>(tx)?;
        let row = PlacementGroup {
            id: PlacementGroupId::random(),
            name: name.clone(),
            strategy,
            partitions,
            tags: tags.clone(),
        };
        let answer = json!({"PlacementGroup": show(&tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    group_name: String,
}

/// DeletePlacementGroup.
///
/// # Errors
/// `InvalidPlacementGroup.InUse`, `InvalidPlacementGroup.Unknown`.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let name = &params.group_name;
        let row = by_name(tx.view, &tx.scope, name).ok_or_else(|| unknown(name))?;
        let mut instances = tx.view.all::<Instance>(&tx.scope);
        if instances.any(|i| i.placement_group == Some(row.id) && i.state != State::Terminated) {
            return Err(ApiError::new(
                "InvalidPlacementGroup.InUse",
                format!("The placement group '{name}' is in use and may not be deleted."),
            ));
        }
        tx.delete::<PlacementGroup>(&row.id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    group_names: Vec<String>,
    #[serde(default)]
    group_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

/// DescribePlacementGroups.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let all = params.group_names.is_empty() && params.group_ids.is_empty();
    let query = Query {
        action,
        member: "PlacementGroups",
        by_id: !all,
        filters: &params.filters,
        paths: &[],
        max_results: None,
        next_token: None,
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let mut rows: Vec<Arc<PlacementGroup>> = lookup(
            &params.group_ids,
            PlacementGroupId::parse,
            |id| view.get::<PlacementGroup>(scope, &id).cloned(),
            unknown,
        )?;
        for name in &params.group_names {
            rows.push(by_name(view, scope, name).ok_or_else(|| unknown(name))?);
        }
        if all {
            rows = view.all::<PlacementGroup>(scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        query.answer(
            rows.iter()
                .map(|row| (row.id.to_string(), show(scope, row))),
        )
    })
    .await
}
