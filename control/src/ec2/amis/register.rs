//! RegisterImage: an image of snapshots.

use super::check_name;
use crate::core::{Tx, now_s};
use crate::ec2::params::TagSpecification;
use crate::ec2::volume_types::{self, Asked};
use crate::ec2::volumes::{Source, is_device, source};
use crate::ec2::{Ctx, snapshots, tags};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Register {
    name: Option<String>,
    description: Option<String>,
    architecture: Option<String>,
    root_device_name: Option<String>,
    imds_support: Option<String>,
    #[serde(default)]
    block_device_mappings: Vec<Device>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Device {
    device_name: Option<String>,
    ebs: Option<Ebs>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ebs {
    snapshot_id: Option<String>,
    volume_size: Option<i64>,
    volume_type: Option<String>,
    delete_on_termination: Option<bool>,
}

/// RegisterImage, from snapshots. What is booted is what the root's origin booted.
///
/// # Errors
/// EC2's codes.
pub async fn register(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Register = ctx.params(action, request)?;
    let name = params
        .name
        .as_deref()
        .ok_or_else(|| ApiError::missing("Name"))?;
    let root = params
        .root_device_name
        .as_deref()
        .ok_or_else(|| ApiError::missing("RootDeviceName"))?;
    let tags = tags::on_create(&params.tag_specifications, "image", &["image"])?;
    let description = snapshots::description(params.description.as_deref())?;
    ctx.write(|tx| {
        check_name(tx, name)?;
        let (mut devices, mut boot) = (Vec::new(), None);
        for mapping in &params.block_device_mappings {
            let (device, from) = registered(ctx, tx, mapping)?;
            if device.device == root {
                boot = from.and_then(|from| from.boot);
                devices.insert(0, device);
            } else {
                devices.push(device);
            }
        }
        let boot = boot.ok_or_else(|| {
            ApiError::new(
                "InvalidBlockDeviceMapping",
                format!(
                    "The root device '{root}' has no snapshot that an instance has booted from."
                ),
            )
        })?;
        if let Some(other) = params
            .architecture
            .as_deref()
            .filter(|a| *a != boot.architecture)
        {
            return Err(ApiError::value(
                other,
                "architecture",
                "The snapshot has another.",
            ));
        }
        let row = OwnImage {
            id: ImageId::random(),
            name: name.to_owned(),
            description: description.clone(),
            boot,
            imds_support: params.imds_support.clone().unwrap_or_default(),
            root_device: root.to_owned(),
            devices,
            source_instance: None,
            source_image: None,
            created_at_s: now_s(),
            shared_with: BTreeSet::new(),
            standing: Standing::default(),
            tags: tags.clone(),
        };
        let id = row.id.to_string();
        tx.put(row)?;
        Ok(json!({"ImageId": id}))
    })
    .await
}

fn registered(
    ctx: &Ctx,
    tx: &Tx<'_>,
    mapping: &Device,
) -> Result<(ImageDevice, Option<Source>), ApiError> {
    let bad = |why: String| ApiError::new("InvalidBlockDeviceMapping", why);
    let device = mapping
        .device_name
        .clone()
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.DeviceName"))?;
    if !is_device(&device) {
        return Err(bad(format!("'{device}' is not a valid device name.")));
    }
    let ebs = mapping
        .ebs
        .as_ref()
        .ok_or_else(|| bad(format!("The mapping of '{device}' names no volume.")))?;
    let from = match &ebs.snapshot_id {
        Some(text) if tx.get::<Snapshot>(&SnapshotId::parse(text)?).is_none() => {
            return Err(SnapshotId::not_found(text));
        }
        Some(text) => Some(source(ctx, tx, text)?),
        None => None,
    };
    let least = from.as_ref().map(|from| i64::from(from.size_gib));
    let size = ebs.volume_size.or(least).unwrap_or(0);
    let given = volume_types::give(
        &Asked {
            volume_type: ebs.volume_type.clone().unwrap_or("gp2".to_owned()),
            ..Asked::default()
        },
        size,
    )?;
    if least.is_some_and(|least| size < least) {
        return Err(bad(format!(
            "The volume of '{device}' is smaller than its snapshot."
        )));
    }
    let made = ImageDevice {
        device,
        snapshot: from.as_ref().and_then(|from| from.snapshot),
        size_gib: u32::try_from(size).unwrap_or(u32::MAX),
        volume_type: given.volume_type,
        iops: None,
        throughput_mib_s: None,
        delete_on_termination: ebs.delete_on_termination.unwrap_or(true),
        encrypted: from.as_ref().is_some_and(|from| from.encrypted),
    };
    Ok((made, from))
}
