//! Block devices of a launch: the image's, and what the request says of them.

use super::amis::Template;
use super::launch::{Disks, NewVolume};
use super::types::InstanceType;
use super::volume_types::Asked;
use super::volumes::{is_device, source};
use super::{Ctx, ebs_defaults};
use crate::core::Tx;
use crate::rows::StoreDisk;
use crate::wire::ApiError;
use serde::Deserialize;

/// Most block devices of an instance.
const MAX_DEVICES: usize = 24;

/// `BlockDeviceMapping.N`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mapping {
    device_name: Option<String>,
    virtual_name: Option<String>,
    no_device: Option<String>,
    ebs: Option<Ebs>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ebs {
    delete_on_termination: Option<bool>,
    volume_size: Option<i64>,
    volume_type: Option<String>,
    iops: Option<i64>,
    throughput: Option<i64>,
    snapshot_id: Option<String>,
    encrypted: Option<bool>,
}

/// What an image and a request's mappings make together.
///
/// # Errors
/// `InvalidBlockDeviceMapping`, `InvalidParameterCombination`, ….
pub fn plan(
    ctx: &Ctx,
    tx: &Tx<'_>,
    template: Template,
    kind: InstanceType,
    mappings: &[Mapping],
) -> Result<Disks, ApiError> {
    if template.store.is_some() && kind.disks.0 == 0 {
        return Err(ApiError::combination(format!(
            "The instance type {} has no instance storage, which the image's root device needs.",
            kind.name
        )));
    }
    let mut disks = Disks {
        volumes: template.volumes,
        store: template.store.into_iter().collect(),
    };
    for mapping in mappings {
        apply(ctx, tx, &template.root_device, kind, mapping, &mut disks)?;
    }
    if disks.volumes.len() + disks.store.len() > MAX_DEVICES {
        return Err(bad(&format!(
            "An instance has at most {MAX_DEVICES} block devices."
        )));
    }
    let encrypt = ebs_defaults::encrypt(tx);
    for volume in &mut disks.volumes {
        volume.given()?;
        volume.encrypted |= encrypt;
    }
    Ok(disks)
}

fn bad(why: &str) -> ApiError {
    ApiError::new("InvalidBlockDeviceMapping", why)
}

fn apply(
    ctx: &Ctx,
    tx: &Tx<'_>,
    root_device: &str,
    kind: InstanceType,
    mapping: &Mapping,
    disks: &mut Disks,
) -> Result<(), ApiError> {
    let device = mapping
        .device_name
        .as_deref()
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.DeviceName"))?;
    if !is_device(device) {
        return Err(bad(&format!("'{device}' is not a valid device name.")));
    }
    let root = device == root_device;
    let stored = disks.store.iter().any(|disk| disk.device == device);
    let asked = disks.volumes.iter().any(|v| v.device == device && v.asked);
    if (stored && !root) || asked {
        return Err(bad(&format!(
            "The device '{device}' is used in more than one block-device mapping."
        )));
    }
    match (&mapping.no_device, &mapping.virtual_name, &mapping.ebs) {
        (Some(_), None, None) if !root => {
            disks.volumes.retain(|volume| volume.device != device);
            Ok(())
        }
        (None, Some(name), None) if !root => {
            let number = name
                .strip_prefix("ephemeral")
                .and_then(|n| n.parse::<u32>().ok());
            let number = number
                .filter(|n| *n < 24)
                .ok_or_else(|| bad(&format!("Invalid virtual name '{name}'.")))?;
            // EC2 leaves out disks that the type does not have.
            let used = disks.store.iter().any(|disk| disk.virtual_name == *name);
            if used {
                return Err(bad(&format!(
                    "The virtual name '{name}' is used more than once."
                )));
            }
            if number < kind.disks.0 {
                disks.store.push(StoreDisk {
                    device: device.to_owned(),
                    virtual_name: name.clone(),
                    size_bytes: kind.disk_bytes(),
                    image: String::new(),
                });
            }
            Ok(())
        }
        (None, None, Some(_)) if stored => Err(bad(&format!(
            "'{device}' is the root device and on an instance store."
        ))),
        (None, None, Some(ebs)) => volume(ctx, tx, device, ebs, root, disks),
        _ => Err(bad(&format!(
            "The mapping of '{device}' names neither one volume nor one disk."
        ))),
    }
}

fn volume(
    ctx: &Ctx,
    tx: &Tx<'_>,
    device: &str,
    ebs: &Ebs,
    root: bool,
    disks: &mut Disks,
) -> Result<(), ApiError> {
    let known = disks.volumes.iter().position(|v| v.device == device);
    let mut new = match known {
        Some(at) => disks.volumes.remove(at),
        None => NewVolume {
            device: device.to_owned(),
            size_gib: 0,
            kind: Asked::default(),
            delete_on_termination: false,
            source: None,
            encrypted: false,
            asked: true,
        },
    };
    new.asked = true;
    if let Some(text) = &ebs.snapshot_id {
        let from = source(ctx, tx, text)?;
        if root && new.source.as_ref().and_then(|s| s.snapshot) != from.snapshot {
            return Err(bad("The snapshot of the root device is the image's."));
        }
        new.size_gib = new.size_gib.max(from.size_gib);
        new.source = Some(from);
    }
    if let Some(size) = ebs.volume_size {
        let least = new.source.as_ref().map_or(1, |source| source.size_gib);
        let snapshot = new.source.as_ref().and_then(|source| source.snapshot);
        // Bounds are the type's, below.
        new.size_gib = u32::try_from(size)
            .map_err(|_| ApiError::value(size, "VolumeSize", "It must be a number of GiB."))?;
        if new.size_gib > 0 && new.size_gib < least {
            return Err(bad(&format!(
                "Volume of size {size}GB is smaller than snapshot '{}', expect size>= {least}GB",
                snapshot.map(|id| id.to_string()).unwrap_or_default()
            )));
        }
    }
    if new.size_gib == 0 && ebs.volume_size.is_none() {
        return Err(ApiError::missing("BlockDeviceMapping.1.Ebs.VolumeSize"));
    }
    let chosen = ebs.volume_type.is_some() || ebs.iops.is_some() || ebs.throughput.is_some();
    if chosen {
        new.kind = Asked {
            volume_type: ebs.volume_type.clone().unwrap_or(new.kind.volume_type),
            iops: ebs.iops,
            throughput_mib_s: ebs.throughput,
        };
    }
    new.encrypted |= ebs.encrypted == Some(true);
    new.delete_on_termination = ebs
        .delete_on_termination
        .unwrap_or(known.is_some() && new.delete_on_termination);
    disks
        .volumes
        .insert(known.unwrap_or(disks.volumes.len()), new);
    Ok(())
}
