//! Snapshots: taken, shared, deleted; `copies` makes them of others, `list` shows them.

pub mod copies;
pub mod list;
pub mod sharing;

pub use list::{describe, present};
pub use sharing::{ALL, Permissions, flat, is_shared, permissions};

use super::params::TagSpecification;
use super::{Ctx, public_blocks, tags};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Longest description.
const MAX_DESCRIPTION: usize = 255;

/// Checks a description.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn description(text: Option<&str>) -> Result<String, ApiError> {
    let text = text.unwrap_or_default();
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(ApiError::value(
            text,
            "Description",
            "It exceeds 255 characters.",
        ));
    }
    Ok(text.to_owned())
}

/// A snapshot of a region that the caller may use.
pub fn visible(tx: &Tx<'_>, region: &str, id: SnapshotId) -> Option<Arc<Snapshot>> {
    let own = Scope::new(region, &tx.scope.account);
    let row = match tx.get_in::<Snapshot>(&own, &id) {
        Some(row) => row,
        None => {
            let (scope, row) = tx.view.find::<Snapshot>(&id)?;
            let usable = scope.region == own.region
                && sharing::is_usable(tx.view, scope, &row.shared_with, &tx.scope.account);
            usable.then(|| Arc::clone(row))?
        }
    };
    (row.state != SnapshotState::Deleting).then_some(row)
}

/// A snapshot of a volume, to be taken now; or before `while_down` runs again.
pub fn row_of(volume: &Volume, description: &str, tags: &Tags) -> Snapshot {
    Snapshot {
        id: SnapshotId::random(),
        volume: volume.id,
        node: volume.node.clone(),
        size_gib: volume.size_gib,
        description: description.to_owned(),
        state: SnapshotState::Pending,
        message: String::new(),
        generation: 1,
        started_at_s: now_s(),
        completed_at_s: None,
        encrypted: volume.encrypted,
        full_bytes: 0,
        changed_bytes: 0,
        while_down: None,
        with: Vec::new(),
        copy: None,
        boot: volume.boot.clone(),
        shared_with: BTreeSet::new(),
        tags: tags.clone(),
    }
}

/// Has these snapshots taken at one instant.
pub fn together(rows: &mut [Snapshot]) {
    let all: Vec<_> = rows.iter().map(|row| (row.id, row.volume)).collect();
    for row in rows {
        row.with = all.iter().filter(|of| of.0 != row.id).copied().collect();
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    volume_id: String,
    description: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateSnapshot.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let tags = tags::on_create(&params.tag_specifications, "snapshot", &["snapshot"])?;
    let description = description(params.description.as_deref())?;
    ctx.write(|tx| {
        let id = VolumeId::parse(&params.volume_id)?;
        let volume = tx
            .get::<Volume>(&id)
            .ok_or_else(|| VolumeId::not_found(id))?;
        if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
            return Err(ApiError::new(
                "IncorrectState",
                format!("Volume '{id}' is '{}'.", volume.state.name()),
            ));
        }
        let row = row_of(&volume, &description, &tags);
        let shown = present(&row, ctx.account());
        tx.put(row)?;
        Ok(shown)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateMany {
    description: Option<String>,
    instance_specification: InstanceSpecification,
    copy_tags_from_source: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceSpecification {
    instance_id: Option<String>,
    #[serde(default)]
    exclude_boot_volume: bool,
    #[serde(default)]
    exclude_data_volume_ids: Vec<String>,
}

impl InstanceSpecification {
    /// The volumes of the instance that are to be frozen.
    fn volumes(&self, tx: &Tx<'_>) -> Result<Vec<Arc<Volume>>, ApiError> {
        let text = self.instance_id.as_deref();
        let text = text.ok_or_else(|| ApiError::missing("InstanceSpecification.InstanceId"))?;
        let id = InstanceId::parse(text)?;
        let instance = tx
            .get::<Instance>(&id)
            .filter(|row| row.state != State::Terminated)
            .ok_or_else(|| InstanceId::not_found(id))?;
        if !matches!(instance.state, State::Running | State::Stopped) {
            return Err(ApiError::new(
                "IncorrectState",
                format!("Instance '{id}' is '{}'.", instance.state.name()),
            ));
        }
        let mut without = Vec::new();
        for text in &self.exclude_data_volume_ids {
            let volume = VolumeId::parse(text)?;
            let mapping = instance.mappings.iter().find(|m| m.volume == volume);
            if mapping.is_none_or(|m| m.device == instance.root_device) {
                return Err(ApiError::value(
                    text,
                    "ExcludeDataVolumeId",
                    "It is no data volume of the instance.",
                ));
            }
            without.push(volume);
        }
        let root = |mapping: &Mapping| mapping.device == instance.root_device;
        let mappings = instance.mappings.iter();
        let wanted = mappings.filter(|m| !(self.exclude_boot_volume && root(m)));
        let wanted = wanted.filter(|m| !without.contains(&m.volume));
        let found: Option<Vec<_>> = wanted.map(|m| tx.get::<Volume>(&m.volume)).collect();
        found.filter(|found| !found.is_empty()).ok_or_else(|| {
            ApiError::value(id, "InstanceId", "It has no volumes to take snapshots of.")
        })
    }
}

/// CreateSnapshots: of an instance's volumes, all at one instant.
///
/// # Errors
/// EC2's codes.
pub async fn create_many(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: CreateMany = ctx.params(action, request)?;
    let tags = tags::on_create(&params.tag_specifications, "snapshot", &["snapshot"])?;
    let description = description(params.description.as_deref())?;
    ctx.write(|tx| {
        let mut rows = Vec::new();
        for volume in params.instance_specification.volumes(tx)? {
            let mut all = Tags::new();
            if params.copy_tags_from_source.is_some() {
                all.extend(volume.tags.clone());
            }
            all.extend(tags.clone());
            rows.push(row_of(&volume, &description, &tags::limited(all)?));
        }
        together(&mut rows);
        let mut shown: Vec<Value> = rows.iter().map(|row| present(row, ctx.account())).collect();
        for item in shown.iter_mut().filter_map(Value::as_object_mut) {
            // Of several at once EC2 does not show it.
            item.remove("StorageTier");
        }
        for row in rows {
            tx.put(row)?;
        }
        Ok(json!({"Snapshots": shown}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    snapshot_id: String,
}

/// DeleteSnapshot.
///
/// # Errors
/// `InvalidSnapshot.InUse`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = own(tx.view, &tx.scope, &params.snapshot_id)?;
        let id = row.id;
        let user = tx.view.all::<OwnImage>(&tx.scope).find(|image| {
            image
                .devices
                .iter()
                .any(|device| device.snapshot == Some(id))
        });
        if let Some(image) = user {
            return Err(ApiError::new(
                "InvalidSnapshot.InUse",
                format!("The snapshot {id} is currently in use by {}", image.id),
            ));
        }
        if row.node.is_empty() {
            // Nobody has anything of it to delete.
            tx.delete::<Snapshot>(&id);
            return Ok(json!({}));
        }
        row.state = SnapshotState::Deleting;
        row.generation += 1;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

fn own(view: &View, scope: &Scope, text: &str) -> Result<Snapshot, ApiError> {
    let id = SnapshotId::parse(text)?;
    view.get::<Snapshot>(scope, &id)
        .filter(|row| row.state != SnapshotState::Deleting)
        .map(|row| row.as_ref().clone())
        .ok_or_else(|| SnapshotId::not_found(id))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    snapshot_id: String,
    attribute: String,
}

fn unknown_attribute(attribute: &str) -> ApiError {
    ApiError::value(attribute, "attribute", "Unknown attribute.")
}

/// DescribeSnapshotAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    ctx.read(|view| {
        let row = own(view, &ctx.scope, &params.snapshot_id)?;
        let id = row.id.to_string();
        match params.attribute.as_str() {
            "createVolumePermission" => Ok(json!({
                "SnapshotId": id,
                "CreateVolumePermissions": permissions(&row.shared_with),
            })),
            "productCodes" => Ok(json!({"SnapshotId": id, "ProductCodes": []})),
            other => Err(unknown_attribute(other)),
        }
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyAttribute {
    snapshot_id: String,
    attribute: Option<String>,
    create_volume_permission: Option<Permissions>,
    operation_type: Option<String>,
    #[serde(default)]
    user_ids: Vec<String>,
    #[serde(default)]
    group_names: Vec<String>,
}

/// ModifySnapshotAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn modify_attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: ModifyAttribute = ctx.params(action, request)?;
    if let Some(other) = params
        .attribute
        .as_deref()
        .filter(|a| *a != "createVolumePermission")
    {
        return Err(unknown_attribute(other));
    }
    let flat = flat(
        params.operation_type.as_deref(),
        &params.user_ids,
        &params.group_names,
    )?;
    ctx.write(|tx| {
        let mut row = own(tx.view, &tx.scope, &params.snapshot_id)?;
        let before = row.shared_with.clone();
        flat.apply(&mut row.shared_with)?;
        if let Some(permissions) = &params.create_volume_permission {
            permissions.apply(&mut row.shared_with)?;
        }
        public_blocks::check_snapshot(tx, &before, &row.shared_with)?;
        if row.encrypted && row.shared_with.contains(ALL) {
            return Err(ApiError::new(
                "OperationNotPermitted",
                format!("Encrypted snapshot '{}' cannot be public.", row.id),
            ));
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// ResetSnapshotAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn reset_attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    if params.attribute != "createVolumePermission" {
        return Err(unknown_attribute(&params.attribute));
    }
    ctx.write(|tx| {
        let mut row = own(tx.view, &tx.scope, &params.snapshot_id)?;
        row.shared_with.clear();
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}
