//! DescribeSnapshots: the caller's, those shared with it, and those that public images
//! begin as.

use super::sharing::{ALL, is_shared, is_usable};
use crate::catalogue::{Image, RootType, SYSTEM_ACCOUNT};
use crate::ec2::Ctx;
use crate::ec2::list::{Query, lookup, tag_set};
use crate::ec2::params::Filter;
use crate::ec2::present::timestamp;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

/// A snapshot as EC2 shows it.
pub fn present(row: &Snapshot, owner: &str) -> Value {
    let done = row.state == SnapshotState::Completed;
    let mut item = json!({
        "SnapshotId": row.id.to_string(),
        "VolumeId": row.volume.to_string(),
        "VolumeSize": row.size_gib,
        "State": row.state.name(),
        "Progress": if done { "100%" } else { "0%" },
        "StartTime": timestamp(row.started_at_s),
        "OwnerId": owner,
        "Description": row.description,
        "Encrypted": row.encrypted,
        "StorageTier": "standard",
        "Tags": tag_set(&row.tags),
    });
    if !row.message.is_empty() {
        item["StateMessage"] = row.message.clone().into();
    }
    if let Some(at_s) = row.completed_at_s {
        item["CompletionTime"] = timestamp(at_s);
        item["FullSnapshotSizeInBytes"] = row.full_bytes.into();
    }
    item
}

/// The snapshot that a public image begins as.
fn of_image(image: &Image, region: &str) -> Value {
    json!({
        "SnapshotId": image.snapshot(region).to_string(),
        "VolumeId": "vol-ffffffffffffffff0",
        "VolumeSize": image.root_size_gib,
        "State": "completed",
        "Progress": "100%",
        "StartTime": image.created_at,
        "OwnerId": SYSTEM_ACCOUNT,
        "OwnerAlias": "amazon",
        "Description": image.description,
        "Encrypted": false,
        "StorageTier": "standard",
        "Tags": [],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    snapshot_ids: Vec<String>,
    #[serde(default)]
    owner_ids: Vec<String>,
    #[serde(default)]
    restorable_by_user_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// One snapshot that a caller may see: id, owner, with whom it is shared, itself.
type Seen = (SnapshotId, String, BTreeSet<String>, Value);

fn seen(ctx: &Ctx, view: &View) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    let images = ctx.core.images();
    for image in images
        .images
        .iter()
        .filter(|i| i.root_type == RootType::Ebs)
    {
        all.push((
            image.snapshot(ctx.region()),
            SYSTEM_ACCOUNT.to_owned(),
            BTreeSet::from([ALL.to_owned()]),
            of_image(image, ctx.region()),
        ));
    }
    for (scope, _) in view
        .shards()
        .filter(|(scope, _)| scope.region == ctx.scope.region)
    {
        let mine = scope.account == ctx.scope.account;
        for row in view.all::<Snapshot>(scope) {
            let usable = mine || is_usable(view, scope, &row.shared_with, ctx.account());
            if usable && row.state != SnapshotState::Deleting {
                let shown = present(row, &scope.account);
                all.push((
                    row.id,
                    scope.account.to_string(),
                    row.shared_with.clone(),
                    shown,
                ));
            }
        }
    }
    all.sort_by_key(|seen| seen.0);
    all
}

/// DescribeSnapshots.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "Snapshots",
        by_id: !params.snapshot_ids.is_empty(),
        filters: &params.filters,
        paths: &[("status", "State"), ("owner-alias", "OwnerAlias")],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let mut all = seen(ctx, view);
        if !params.snapshot_ids.is_empty() {
            let ids = lookup(
                &params.snapshot_ids,
                SnapshotId::parse,
                |id| all.iter().find(|seen| seen.0 == id).map(|seen| seen.0),
                |text| SnapshotId::not_found(text),
            )?;
            all.retain(|seen| ids.contains(&seen.0));
        }
        let restorable = |seen: &Seen| {
            params.restorable_by_user_ids.iter().any(|name| {
                let account = if name == "self" { ctx.account() } else { name };
                seen.1 == account || seen.2.contains(name) || is_shared(&seen.2, account)
            })
        };
        all.retain(|seen| {
            (params.owner_ids.is_empty() || ctx.names_owner(&params.owner_ids, &seen.1))
                && (params.restorable_by_user_ids.is_empty() || restorable(seen))
        });
        query.answer(all.into_iter().map(|seen| (seen.0.to_string(), seen.3)))
    })
    .await
}
