//! Volumes.

use super::list::{Query, lookup};
use super::params::Filter;
use super::{Ctx, present};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    volume_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeVolumes.
///
/// # Errors
/// EC2's codes.
pub async fn volumes(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "Volumes",
        by_id: !params.volume_ids.is_empty(),
        filters: &params.filters,
        paths: &[
            ("attachment.attach-time", "Attachments.AttachTime"),
            (
                "attachment.delete-on-termination",
                "Attachments.DeleteOnTermination",
            ),
            ("attachment.device", "Attachments.Device"),
            ("attachment.instance-id", "Attachments.InstanceId"),
            ("attachment.status", "Attachments.State"),
            ("status", "State"),
        ],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let mut rows: Vec<Arc<Volume>> = lookup(
            &params.volume_ids,
            VolumeId::parse,
            |id| view.get::<Volume>(&ctx.scope, &id).cloned(),
            |text| VolumeId::not_found(text),
        )?;
        if params.volume_ids.is_empty() {
            rows = view.all::<Volume>(&ctx.scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        query.answer(
            rows.iter()
                .map(|row| (row.id.to_string(), present::volume(row))),
        )
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    volume_id: String,
}

/// DeleteVolume.
///
/// # Errors
/// `VolumeInUse`, and EC2's other codes.
pub async fn delete_volume(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = VolumeId::parse(&params.volume_id)?;
        let row = tx
            .get::<Volume>(&id)
            .ok_or_else(|| VolumeId::not_found(id))?;
        if let Some(attachment) = &row.attachment {
            return Err(ApiError::new(
                "VolumeInUse",
                format!(
                    "Volume {id} is currently attached to {}",
                    attachment.instance
                ),
            ));
        }
        if row.state != VolumeState::Deleting {
            let mut row = row.as_ref().clone();
            row.state = VolumeState::Deleting;
            row.generation += 1;
            tx.put(row)?;
        }
        Ok(json!({}))
    })
    .await
}
