//! Block devices of a launch: the root, further volumes, instance-store disks.

use super::launch::{Disks, NewVolume};
use super::types::InstanceType;
use super::volume_types::{self, Asked};
use crate::catalogue::{Image, RootType};
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
}

/// What an image and a request's mappings make together.
///
/// # Errors
/// `InvalidBlockDeviceMapping`, `InvalidParameterCombination`, ….
pub fn plan(
    image: &Image,
    region: &str,
    kind: InstanceType,
    mappings: &[Mapping],
) -> Result<Disks, ApiError> {
    let mut disks = Disks::default();
    match image.root_type {
        RootType::Ebs => disks.volumes.push(NewVolume {
            device: image.root_device().to_owned(),
            size_gib: image.root_size_gib,
            given: volume_types::give(&Asked::default(), i64::from(image.root_size_gib))?,
            delete_on_termination: true,
            image: image.root_image.clone(),
            snapshot: Some(image.snapshot(region)),
        }),
        RootType::InstanceStore if kind.disks.0 == 0 => {
            return Err(ApiError::combination(format!(
                "The instance type {} has no instance storage, which the image's root device needs.",
                kind.name
            )));
        }
        RootType::InstanceStore => disks.store.push(StoreDisk {
            device: image.root_device().to_owned(),
            virtual_name: String::new(),
            size_bytes: u64::from(image.root_size_gib) << 30,
            image: image.root_image.clone(),
        }),
    }
    for mapping in mappings {
        apply(image, region, kind, mapping, &mut disks)?;
    }
    if disks.volumes.len() + disks.store.len() > MAX_DEVICES {
        return Err(bad(&format!(
            "An instance has at most {MAX_DEVICES} block devices."
        )));
    }
    Ok(disks)
}

fn bad(why: &str) -> ApiError {
    ApiError::new("InvalidBlockDeviceMapping", why)
}

fn apply(
    image: &Image,
    region: &str,
    kind: InstanceType,
    mapping: &Mapping,
    disks: &mut Disks,
) -> Result<(), ApiError> {
    let device = mapping
        .device_name
        .as_deref()
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.DeviceName"))?;
    let letters = device.strip_prefix("/dev/").unwrap_or(device);
    let plain = (2..=10).contains(&letters.len())
        && letters
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !plain {
        return Err(bad(&format!("'{device}' is not a valid device name.")));
    }
    if mapping.no_device.is_some() {
        return Err(ApiError::unsupported_parameter(
            "BlockDeviceMapping.1.NoDevice",
        ));
    }
    let root = device == image.root_device();
    let taken = disks.store.iter().any(|disk| disk.device == device)
        || disks
            .volumes
            .iter()
            .skip(1)
            .any(|volume| volume.device == device);
    if taken {
        return Err(bad(&format!(
            "The device '{device}' is used in more than one block-device mapping."
        )));
    }
    match (&mapping.virtual_name, &mapping.ebs) {
        (Some(name), None) if !root => {
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
        (None, Some(ebs)) => volume(image, region, device, ebs, root, disks),
        _ => Err(bad(&format!(
            "The mapping of '{device}' names neither one volume nor one disk."
        ))),
    }
}

fn volume(
    image: &Image,
    region: &str,
    device: &str,
    ebs: &Ebs,
    root: bool,
    disks: &mut Disks,
) -> Result<(), ApiError> {
    let snapshot = image.snapshot(region);
    let named = ebs
        .snapshot_id
        .as_deref()
        .map(crate::rows::SnapshotId::parse)
        .transpose()?;
    if let Some(named) = named.filter(|named| !root || *named != snapshot) {
        return Err(crate::rows::SnapshotId::not_found(named));
    }
    let asked = Asked {
        volume_type: ebs
            .volume_type
            .clone()
            .unwrap_or_else(|| Asked::default().volume_type),
        iops: ebs.iops,
        throughput_mib_s: ebs.throughput,
    };
    let snapshot_gib = root.then_some(image.root_size_gib);
    let size = match (ebs.volume_size, snapshot_gib) {
        (Some(size), _) => size,
        (None, Some(size)) => i64::from(size),
        (None, None) => {
            return Err(ApiError::missing("BlockDeviceMapping.1.Ebs.VolumeSize"));
        }
    };
    let given = volume_types::give(&asked, size)?;
    let size_gib = u32::try_from(size).unwrap_or(u32::MAX);
    if !root {
        disks.volumes.push(NewVolume {
            device: device.to_owned(),
            size_gib,
            given,
            delete_on_termination: ebs.delete_on_termination.unwrap_or(false),
            image: String::new(),
            snapshot: None,
        });
        return Ok(());
    }
    let Some(first) = disks
        .volumes
        .first_mut()
        .filter(|_| image.root_type == RootType::Ebs)
    else {
        return Err(bad(&format!(
            "'{device}' is the root device and on an instance store."
        )));
    };
    if size_gib < image.root_size_gib {
        return Err(bad(&format!(
            "Volume of size {size}GB is smaller than snapshot '{snapshot}', expect size>= {}GB",
            image.root_size_gib
        )));
    }
    (first.size_gib, first.given) = (size_gib, given);
    first.delete_on_termination = ebs.delete_on_termination.unwrap_or(true);
    Ok(())
}
