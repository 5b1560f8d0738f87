//! Volumes: made, attached, detached, modified.
//!
//! ```text
//!   creating ─UP─▶ available ─Attach─▶ in-use (attaching ─disks─▶ attached)
//!                      ▲                    │ Detach
//!                      └──────── disks ◀── in-use (detaching)
//! ```
//! Whether an instance has a disk is what its node says of its disks' generation.

use super::params::TagSpecification;
use super::present::timestamp;
use super::volume_types::{self, Asked};
use super::{Ctx, ebs_defaults, modifications, place, present, tags};
use crate::catalogue::RootType;
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// Most block devices of an instance.
const MAX_DEVICES: usize = 24;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    availability_zone: Option<String>,
    size: Option<i64>,
    snapshot_id: Option<String>,
    volume_type: Option<String>,
    iops: Option<i64>,
    throughput: Option<i64>,
    encrypted: Option<bool>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// What a new volume begins as.
#[derive(Debug)]
pub struct Source {
    /// A file of the image folder, or nothing.
    pub image: String,
    /// The snapshot that a caller sees.
    pub snapshot: Option<SnapshotId>,
    /// It is a row, at this node.
    pub node: Option<String>,
    /// Least size.
    pub size_gib: u32,
    /// The snapshot is encrypted.
    pub encrypted: bool,
    /// What an instance boots that has this as its root.
    pub boot: Option<BootFiles>,
}

/// Finds a snapshot that the caller may use: its own, one shared with it, or an
/// image's.
///
/// # Errors
/// `InvalidSnapshot.NotFound`, `IncorrectState`.
pub fn source(ctx: &Ctx, tx: &Tx<'_>, text: &str) -> Result<Source, ApiError> {
    source_in(ctx, tx, ctx.region(), text)
}

/// The same in another region.
///
/// # Errors
/// As [`source`].
pub fn source_in(ctx: &Ctx, tx: &Tx<'_>, region: &str, text: &str) -> Result<Source, ApiError> {
    let id = SnapshotId::parse(text)?;
    if let Some(image) = ctx
        .core
        .images()
        .images
        .iter()
        .find(|image| image.root_type == RootType::Ebs && image.snapshot(region) == id)
    {
        return Ok(Source {
            image: image.root_image.clone(),
            snapshot: Some(id),
            node: None,
            size_gib: image.root_size_gib,
            encrypted: false,
            boot: Some(BootFiles {
                kernel: image.kernel.clone(),
                initrd: image.initrd.clone(),
                cmdline: image.cmdline.clone(),
                architecture: image.architecture.clone(),
            }),
        });
    }
    let row =
        super::snapshots::visible(tx, region, id).ok_or_else(|| SnapshotId::not_found(text))?;
    if row.state != SnapshotState::Completed {
        return Err(ApiError::new(
            "IncorrectState",
            format!("Snapshot '{id}' is '{}'.", row.state.name()),
        ));
    }
    Ok(Source {
        image: String::new(),
        snapshot: Some(id),
        node: Some(row.node.clone()),
        size_gib: row.size_gib,
        encrypted: row.encrypted,
        boot: row.boot.clone(),
    })
}

/// CreateVolume.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let zone = params
        .availability_zone
        .clone()
        .ok_or_else(|| ApiError::missing("AvailabilityZone"))?;
    if !ctx.core.config.zones_of(ctx.region()).contains(&zone) {
        return Err(ApiError::new(
            "InvalidZone.NotFound",
            format!("The zone '{zone}' does not exist."),
        ));
    }
    let tags = tags::on_create(&params.tag_specifications, "volume", &["volume"])?;
    ctx.write(|tx| {
        let source = params
            .snapshot_id
            .as_deref()
            .map(|text| source(ctx, tx, text))
            .transpose()?;
        let least = source.as_ref().map(|source| source.size_gib);
        let size = params.size.or(least.map(i64::from)).ok_or_else(|| {
            ApiError::new(
                "MissingParameter",
                "The request must contain the parameter size/snapshot",
            )
        })?;
        let asked = Asked {
            volume_type: params.volume_type.clone().unwrap_or("gp2".to_owned()),
            iops: params.iops,
            throughput_mib_s: params.throughput,
        };
        let given = volume_types::give(&asked, size)?;
        let size_gib = u32::try_from(size).unwrap_or(u32::MAX);
        if let Some(least) = least.filter(|least| size_gib < *least) {
            let why = format!("It must not be below the snapshot's {least} GiB.");
            return Err(ApiError::value(size_gib, "Size", &why));
        }
        let sealed = source.as_ref().is_some_and(|source| source.encrypted);
        let node = source.as_ref().and_then(|source| source.node.clone());
        let row = Volume {
            id: VolumeId::random(),
            zone: zone.clone(),
            node: match node {
                Some(node) => node,
                None => place::any(&ctx.core, tx).ok_or_else(|| place::insufficient(&zone))?,
            },
            size_gib,
            volume_type: given.volume_type,
            iops: given.iops,
            throughput_mib_s: given.throughput_mib_s,
            image: source.as_ref().map(|s| s.image.clone()).unwrap_or_default(),
            snapshot: source.as_ref().and_then(|source| source.snapshot),
            of_snapshot: source.as_ref().is_some_and(|s| s.node.is_some()),
            encrypted: sealed || params.encrypted == Some(true) || ebs_defaults::encrypt(tx),
            boot: source.as_ref().and_then(|source| source.boot.clone()),
            modification: None,
            auto_enable_io: false,
            state: VolumeState::Creating,
            generation: 1,
            created_at_s: now_s(),
            attachment: None,
            tags: tags.clone(),
        };
        let shown = present::volume(&row);
        tx.put(row)?;
        Ok(shown)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attach {
    device: String,
    instance_id: String,
    volume_id: String,
}

fn find(tx: &Tx<'_>, text: &str) -> Result<Volume, ApiError> {
    let id = VolumeId::parse(text)?;
    let row = tx
        .get::<Volume>(&id)
        .ok_or_else(|| VolumeId::not_found(id))?;
    Ok(row.as_ref().clone())
}

fn find_instance(tx: &Tx<'_>, text: &str) -> Result<Instance, ApiError> {
    let id = InstanceId::parse(text)?;
    let row = tx
        .get::<Instance>(&id)
        .ok_or_else(|| InstanceId::not_found(id))?;
    Ok(row.as_ref().clone())
}

fn incorrect(why: String) -> ApiError {
    ApiError::new("IncorrectState", why)
}

/// Is this what EC2 takes for a device's name?
pub fn is_device(device: &str) -> bool {
    let letters = device.strip_prefix("/dev/").unwrap_or(device);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (2..=10).contains(&letters.len()) && letters.bytes().all(plain)
}

/// AttachVolume.
///
/// # Errors
/// `VolumeInUse`, `IncorrectState`, `InvalidVolume.ZoneMismatch`, and others.
pub async fn attach(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attach = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut volume = find(tx, &params.volume_id)?;
        let mut instance = find_instance(tx, &params.instance_id)?;
        check_attach(&volume, &instance, &params.device)?;
        instance.generation += 1;
        instance.mappings.push(Mapping {
            device: params.device.clone(),
            volume: volume.id,
        });
        volume.state = VolumeState::InUse;
        volume.attachment = Some(VolumeAttachment {
            instance: instance.id,
            device: params.device.clone(),
            delete_on_termination: false,
            at_s: now_s(),
            attaching: if instance.state.is_up() {
                instance.generation
            } else {
                0
            },
            detaching: 0,
        });
        let mut shown = present::attachment(&volume);
        shown["State"] = "attaching".into();
        tx.put(volume)?;
        tx.put(instance)?;
        Ok(shown)
    })
    .await
}

fn check_attach(volume: &Volume, instance: &Instance, device: &str) -> Result<(), ApiError> {
    let id = volume.id;
    if volume.attachment.is_some() {
        return Err(ApiError::new(
            "VolumeInUse",
            format!("{id} is already attached to an instance"),
        ));
    }
    if volume.state != VolumeState::Available {
        return Err(incorrect(format!(
            "Volume '{id}' is '{}'.",
            volume.state.name()
        )));
    }
    if !matches!(instance.state, State::Running | State::Stopped) {
        return Err(incorrect(format!(
            "Instance '{}' is not 'running'.",
            instance.id
        )));
    }
    if volume.zone != instance.zone {
        return Err(ApiError::new(
            "InvalidVolume.ZoneMismatch",
            format!(
                "The volume '{id}' is not in the same availability zone as instance '{}'",
                instance.id
            ),
        ));
    }
    if volume.node != instance.node {
        return Err(ApiError::new(
            "UnsupportedOperation",
            format!(
                "The volume '{id}' and the instance '{}' are on different hosts.",
                instance.id
            ),
        ));
    }
    if !is_device(device) {
        return Err(ApiError::value(
            device,
            "device",
            &format!("{device} is not a valid EBS device name."),
        ));
    }
    let taken = instance.mappings.iter().any(|m| m.device == device)
        || instance
            .store_disks
            .iter()
            .any(|disk| disk.device == device);
    if taken {
        let why = format!("Attachment point {device} is already in use");
        return Err(ApiError::value(device, "device", &why));
    }
    if instance.mappings.len() + instance.store_disks.len() >= MAX_DEVICES {
        return Err(ApiError::new(
            "AttachmentLimitExceeded",
            format!(
                "Instance '{}' has {MAX_DEVICES} block devices.",
                instance.id
            ),
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Detach {
    volume_id: String,
    instance_id: Option<String>,
    device: Option<String>,
    #[serde(default)]
    force: bool,
}

/// DetachVolume.
///
/// # Errors
/// `IncorrectState`, `InvalidAttachment.NotFound`, `OperationNotPermitted`.
pub async fn detach(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Detach = ctx.params(action, request)?;
    if let Some(text) = &params.instance_id {
        InstanceId::parse(text)?;
    }
    ctx.write(|tx| {
        let mut volume = find(tx, &params.volume_id)?;
        let id = volume.id;
        let Some(attachment) = volume.attachment.clone() else {
            let why = format!("Volume '{id}' is in the '{}' state.", volume.state.name());
            return Err(incorrect(why));
        };
        let other_instance = params
            .instance_id
            .as_ref()
            .is_some_and(|text| *text != attachment.instance.to_string());
        let other_device = params.device.as_ref().is_some_and(|d| *d != attachment.device);
        if other_instance || other_device {
            return Err(ApiError::new(
                "InvalidAttachment.NotFound",
                format!("The volume '{id}' is not attached so; it is attached to instance '{}' as device '{}'.", attachment.instance, attachment.device),
            ));
        }
        let mut instance = find_instance(tx, &attachment.instance.to_string())?;
        if instance.state.is_up() && instance.root_device == attachment.device {
            return Err(ApiError::new(
                "OperationNotPermitted",
                format!("Unable to detach root volume '{id}' from instance '{}'", instance.id),
            ));
        }
        if attachment.detaching != 0 && !params.force {
            return Err(incorrect(format!("Volume '{id}' is in the 'detaching' state.")));
        }
        instance.generation += 1;
        instance.mappings.retain(|mapping| mapping.volume != id);
        if instance.state == State::Stopped {
            volume.attachment = None;
            volume.state = VolumeState::Available;
        } else {
            if !instance.detaching.contains(&id) {
                instance.detaching.push(id);
            }
            if params.force && !instance.force_detach.contains(&id) {
                instance.force_detach.push(id);
            }
            if let Some(attachment) = &mut volume.attachment {
                attachment.detaching = instance.generation;
            }
        }
        let shown = json!({
            "VolumeId": id.to_string(),
            "InstanceId": attachment.instance.to_string(),
            "Device": attachment.device,
            "State": "detaching",
            "AttachTime": timestamp(attachment.at_s),
            "DeleteOnTermination": attachment.delete_on_termination,
        });
        tx.put(volume)?;
        tx.put(instance)?;
        Ok(shown)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    volume_id: String,
    size: Option<i64>,
    volume_type: Option<String>,
    iops: Option<i64>,
    throughput: Option<i64>,
}

/// ModifyVolume.
///
/// # Errors
/// `IncorrectState`, `IncorrectModificationState`, `InvalidParameterValue`.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = find(tx, &params.volume_id)?;
        let id = row.id;
        if !matches!(row.state, VolumeState::Available | VolumeState::InUse) {
            return Err(incorrect(format!(
                "Volume '{id}' is '{}'.",
                row.state.name()
            )));
        }
        if row.modification.as_ref().is_some_and(|m| !m.done) {
            return Err(ApiError::new(
                "IncorrectModificationState",
                format!("Volume '{id}' is being modified."),
            ));
        }
        let original = modifications::of(&row);
        let same = params
            .volume_type
            .as_ref()
            .is_none_or(|t| *t == row.volume_type);
        // What gp2 has follows from its size.
        let kept = |value: Option<u32>| value.filter(|_| same && row.volume_type != "gp2");
        let asked = Asked {
            volume_type: params
                .volume_type
                .clone()
                .unwrap_or(row.volume_type.clone()),
            iops: params.iops.or(kept(row.iops).map(i64::from)),
            throughput_mib_s: params
                .throughput
                .or(kept(row.throughput_mib_s).map(i64::from)),
        };
        let size = params.size.unwrap_or(i64::from(row.size_gib));
        let given = volume_types::give(&asked, size)?;
        let size_gib = u32::try_from(size).unwrap_or(u32::MAX);
        if size_gib < row.size_gib {
            return Err(ApiError::new(
                "InvalidParameterValue",
                "New size cannot be smaller than existing size",
            ));
        }
        row.generation += 1;
        row.size_gib = size_gib;
        row.volume_type = given.volume_type;
        (row.iops, row.throughput_mib_s) = (given.iops, given.throughput_mib_s);
        let target = modifications::of(&row);
        row.modification = Some(Box::new(Modification {
            generation: row.generation,
            done: false,
            original,
            target,
            started_at_s: now_s(),
            ended_at_s: None,
        }));
        let shown = modifications::modification(&row);
        tx.put(row)?;
        Ok(json!({"VolumeModification": shown}))
    })
    .await
}
