//! Volumes.

use super::list::{Query, lookup};
use super::params::{Filter, Is};
use super::{Ctx, present};
use crate::core::Tx;
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
    let paths = &[
        ("attachment.attach-time", "Attachments.AttachTime"),
        (
            "attachment.delete-on-termination",
            "Attachments.DeleteOnTermination",
        ),
        ("attachment.device", "Attachments.Device"),
        ("attachment.instance-id", "Attachments.InstanceId"),
        ("attachment.status", "Attachments.State"),
        ("status", "State"),
    ];
    described(ctx, action, &params, "Volumes", paths, |row| {
        Some(present::volume(row))
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
        if row.state == VolumeState::Error {
            // Nobody has anything of it to delete.
            tx.delete::<Volume>(&id);
        } else if row.state != VolumeState::Deleting {
            let mut row = row.as_ref().clone();
            row.state = VolumeState::Deleting;
            row.generation += 1;
            tx.put(row)?;
        }
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeAttribute {
    volume_id: String,
    attribute: String,
}

/// DescribeVolumeAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: DescribeAttribute = ctx.params(action, request)?;
    ctx.read(|view| {
        let id = VolumeId::parse(&params.volume_id)?;
        let row = view
            .get::<Volume>(&ctx.scope, &id)
            .ok_or_else(|| VolumeId::not_found(id))?;
        let id = id.to_string();
        match params.attribute.as_str() {
            "autoEnableIO" => {
                Ok(json!({"VolumeId": id, "AutoEnableIO": {"Value": row.auto_enable_io}}))
            }
            "productCodes" => Ok(json!({"VolumeId": id, "ProductCodes": []})),
            other => Err(ApiError::value(other, "attribute", "Unknown attribute.")),
        }
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyAttribute {
    volume_id: String,
    #[serde(rename = "AutoEnableIO")]
    auto_enable_io: Option<Is<bool>>,
}

/// ModifyVolumeAttribute: autoEnableIO, which is kept and told. No volume's I/O is ever
/// disabled here, so there is nothing that it would enable.
///
/// # Errors
/// EC2's codes.
pub async fn modify_attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: ModifyAttribute = ctx.params(action, request)?;
    let on = params.auto_enable_io.as_ref();
    let on = on.ok_or_else(|| ApiError::missing("AutoEnableIO"))?.value;
    ctx.write(|tx| {
        let mut row = one(tx, &params.volume_id)?.as_ref().clone();
        row.auto_enable_io = on;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// EnableVolumeIO: it is enabled.
///
/// # Errors
/// EC2's codes.
pub async fn enable_io(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    let id = VolumeId::parse(&params.volume_id)?;
    ctx.read(|view| {
        let row = view.get::<Volume>(&ctx.scope, &id);
        row.map(|_| json!({}))
            .ok_or_else(|| VolumeId::not_found(id))
    })
    .await
}

fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<Volume>, ApiError> {
    let id = VolumeId::parse(text)?;
    tx.get::<Volume>(&id).ok_or_else(|| VolumeId::not_found(id))
}

/// DescribeVolumeStatus.
///
/// # Errors
/// EC2's codes.
pub async fn status(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let paths = &[
        ("volume-status.status", "VolumeStatus.Status"),
        ("volume-status.details-name", "VolumeStatus.Details.Name"),
        (
            "volume-status.details-status",
            "VolumeStatus.Details.Status",
        ),
    ];
    described(ctx, action, &params, "VolumeStatuses", paths, |row| {
        let (status, io) = match row.state {
            VolumeState::Error => ("impaired", "failed"),
            _ => ("ok", "passed"),
        };
        Some(json!({
            "VolumeId": row.id.to_string(),
            "AvailabilityZone": row.zone,
            "AvailabilityZoneId": crate::config::zone_id(&row.zone),
            "Actions": [],
            "Events": [],
            "VolumeStatus": {
                "Status": status,
                "Details": [
                    {"Name": "io-enabled", "Status": io},
                    {"Name": "io-performance", "Status": "not-applicable"},
                ],
            },
        }))
    })
    .await
}

/// DescribeVolumesModifications.
///
/// # Errors
/// EC2's codes.
pub async fn modifications(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    described(ctx, action, &params, "VolumesModifications", &[], |row| {
        row.modification
            .is_some()
            .then(|| super::modifications::modification(row))
    })
    .await
}

async fn described(
    ctx: &Ctx,
    action: &str,
    params: &Describe,
    member: &str,
    paths: super::filters::Paths,
    shown: impl Fn(&Volume) -> Option<Value>,
) -> Result<Value, ApiError> {
    let query = Query {
        action,
        member,
        by_id: !params.volume_ids.is_empty(),
        filters: &params.filters,
        paths,
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let rows = chosen(ctx, view, &params.volume_ids)?;
        let items = rows
            .iter()
            .filter_map(|row| Some((row.id.to_string(), shown(row)?)));
        query.answer(items)
    })
    .await
}

/// The volumes of some ids, or all.
fn chosen(
    ctx: &Ctx,
    view: &crate::view::View,
    ids: &[String],
) -> Result<Vec<Arc<Volume>>, ApiError> {
    let mut rows: Vec<Arc<Volume>> = lookup(
        ids,
        VolumeId::parse,
        |id| view.get::<Volume>(&ctx.scope, &id).cloned(),
        |text| VolumeId::not_found(text),
    )?;
    if ids.is_empty() {
        rows = view.all::<Volume>(&ctx.scope).cloned().collect();
    }
    rows.sort_by_key(|row| row.id);
    rows.dedup_by_key(|row| row.id);
    Ok(rows)
}
