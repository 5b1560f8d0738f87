//! Images that tenants make: of instances; of snapshots (`register`), of images (`copies`).
//!
//! An image is available once all of its snapshots are. It keeps what is booted: the
//! files that its root's origin was booted by.

mod attributes;
mod copies;
mod register;
pub mod standing;

pub use attributes::{attribute, modify, reset};
pub use copies::copy;
pub use register::register;

use super::launch::NewVolume;
use super::params::TagSpecification;
use super::snapshots::{self, is_shared};
use super::volume_types::Asked;
use super::volumes::{Source, source};
use super::{Ctx, tags};
use crate::catalogue::{Image, RootType};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a launch takes from an image.
pub struct Template {
    /// Its id.
    pub id: ImageId,
    /// What is booted.
    pub boot: BootFiles,
    /// `v2.0`: instances require metadata tokens unless told otherwise.
    pub imds_support: String,
    /// `/dev/sda1`.
    pub root_device: String,
    /// Its volumes, the root first if it is one.
    pub volumes: Vec<NewVolume>,
    /// Its root, where that is an instance-store disk.
    pub store: Option<StoreDisk>,
}

fn not_found(text: &str) -> ApiError {
    ApiError::new(
        "InvalidAMIID.NotFound",
        format!("The image id '[{text}]' does not exist"),
    )
}

fn unavailable(id: ImageId) -> ApiError {
    ApiError::new(
        "InvalidAMIID.Unavailable",
        format!("The image ID '{id}' is not available"),
    )
}

/// Finds an image that the caller may launch.
///
/// # Errors
/// `InvalidAMIID.NotFound`, `InvalidAMIID.Unavailable`.
pub fn template(ctx: &Ctx, tx: &Tx<'_>, text: &str) -> Result<Template, ApiError> {
    let id = ImageId::parse(text)?;
    if let Some(image) = ctx.core.images().find(ctx.region(), id) {
        return public(ctx, tx, image);
    }
    let (account, row) = visible(tx.view, &tx.scope, id).ok_or_else(|| not_found(text))?;
    if state(tx.view, &account, &row) != "available" {
        return Err(unavailable(id));
    }
    let volumes = row
        .devices
        .iter()
        .map(|device| of_device(tx, &account, device))
        .collect::<Result<_, ApiError>>()?;
    Ok(Template {
        id,
        boot: row.boot.clone(),
        imds_support: row.imds_support.clone(),
        root_device: row.root_device.clone(),
        volumes,
        store: None,
    })
}

/// A public image of the catalogue.
fn public(ctx: &Ctx, tx: &Tx<'_>, image: &Image) -> Result<Template, ApiError> {
    let (mut volumes, mut store) = (Vec::new(), None);
    let device = image.root_device().to_owned();
    match image.root_type {
        RootType::Ebs => volumes.push(NewVolume {
            device: device.clone(),
            size_gib: image.root_size_gib,
            kind: Asked::default(),
            delete_on_termination: true,
            source: Some(source(ctx, tx, &image.snapshot(ctx.region()).to_string())?),
            encrypted: false,
            asked: false,
        }),
        RootType::InstanceStore => {
            store = Some(StoreDisk {
                device: device.clone(),
                virtual_name: String::new(),
                size_bytes: u64::from(image.root_size_gib) << 30,
                image: image.root_image.clone(),
            });
        }
    }
    Ok(Template {
        id: image.id(ctx.region()),
        boot: BootFiles {
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            cmdline: image.cmdline.clone(),
            architecture: image.architecture.clone(),
        },
        imds_support: image.imds_support.clone(),
        root_device: device,
        volumes,
        store,
    })
}

/// A device of an image as a launch makes it. Who may launch an image may use its
/// snapshots so, whether they are shared or not.
fn of_device(tx: &Tx<'_>, scope: &Scope, device: &ImageDevice) -> Result<NewVolume, ApiError> {
    let source = match device.snapshot {
        None => None,
        Some(id) => {
            let row = tx
                .get_in::<Snapshot>(scope, &id)
                .ok_or_else(|| SnapshotId::not_found(id))?;
            Some(Source {
                image: String::new(),
                snapshot: Some(id),
                node: Some(row.node.clone()),
                size_gib: row.size_gib,
                encrypted: row.encrypted,
                boot: row.boot.clone(),
            })
        }
    };
    Ok(NewVolume {
        device: device.device.clone(),
        size_gib: device.size_gib,
        kind: Asked {
            volume_type: device.volume_type.clone(),
            iops: device.iops.map(i64::from),
            throughput_mib_s: device.throughput_mib_s.map(i64::from),
        },
        delete_on_termination: device.delete_on_termination,
        source,
        encrypted: device.encrypted,
        asked: false,
    })
}

/// An image that a caller may see, and whose it is.
pub fn visible(view: &View, scope: &Scope, id: ImageId) -> Option<(Scope, Arc<OwnImage>)> {
    if let Some(row) = view.get::<OwnImage>(scope, &id) {
        return Some((scope.clone(), Arc::clone(row)));
    }
    let (owner, row) = view.find::<OwnImage>(&id)?;
    let usable = owner.region == scope.region && is_shared(&row.shared_with, &scope.account);
    usable.then(|| (owner.clone(), Arc::clone(row)))
}

/// `pending` until all snapshots are there, `disabled` where its owner says so.
pub fn state(view: &View, owner: &Scope, row: &OwnImage) -> &'static str {
    let states: Vec<SnapshotState> = row
        .devices
        .iter()
        .filter_map(|device| device.snapshot)
        .map(|id| {
            view.get::<Snapshot>(owner, &id)
                .map_or(SnapshotState::Error, |row| row.state)
        })
        .collect();
    if row.standing.disabled {
        "disabled"
    } else if states.iter().all(|s| *s == SnapshotState::Completed) {
        "available"
    } else if states.contains(&SnapshotState::Pending) {
        "pending"
    } else {
        "failed"
    }
}

/// An image as DescribeImages shows it.
pub fn present(view: &View, owner: &Scope, row: &OwnImage) -> Value {
    let devices = row.devices.iter().map(|device| {
        let mut ebs = json!({
            "DeleteOnTermination": device.delete_on_termination,
            "VolumeSize": device.size_gib,
            "VolumeType": device.volume_type,
            "Encrypted": device.encrypted,
        });
        if let Some(id) = device.snapshot {
            ebs["SnapshotId"] = id.to_string().into();
        }
        json!({"DeviceName": device.device, "Ebs": ebs})
    });
    let mut item = json!({
        "ImageId": row.id.to_string(),
        "Name": row.name,
        "Description": row.description,
        "ImageLocation": format!("{}/{}", owner.account, row.name),
        "OwnerId": &*owner.account,
        "ImageType": "machine",
        "State": state(view, owner, row),
        "Public": row.shared_with.contains(snapshots::ALL),
        "Architecture": row.boot.architecture,
        "CreationDate": super::present::timestamp(row.created_at_s),
        "Hypervisor": "xen",
        "VirtualizationType": "hvm",
        "RootDeviceName": row.root_device,
        "RootDeviceType": "ebs",
        "EnaSupport": false,
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "BlockDeviceMappings": devices.collect::<Vec<_>>(),
        "ProductCodes": [],
        "Tags": super::list::tag_set(&row.tags),
    });
    if !row.imds_support.is_empty() {
        item["ImdsSupport"] = row.imds_support.clone().into();
    }
    standing::show(row, &mut item);
    if let Some(instance) = row.source_instance {
        item["SourceInstanceId"] = instance.to_string().into();
    }
    if let Some((region, image)) = &row.source_image {
        item["SourceImageId"] = image.to_string().into();
        item["SourceImageRegion"] = region.clone().into();
    }
    item
}

/// Checks an image's name: EC2's form, and no other image of the account has it.
fn check_name(tx: &Tx<'_>, name: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if !(3..=128).contains(&name.len()) || !name.chars().all(plain) {
        return Err(ApiError::new(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, \
             numbers, '(', ')', '.', '-', '/' and '_'",
        ));
    }
    let other = tx
        .view
        .all::<OwnImage>(&tx.scope)
        .find(|row| row.name == name);
    match other {
        Some(row) => Err(ApiError::new(
            "InvalidAMIName.Duplicate",
            format!("AMI name {name} is already in use by AMI {}", row.id),
        )),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    instance_id: String,
    name: String,
    description: Option<String>,
    #[serde(default)]
    no_reboot: bool,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateImage: unless told otherwise the instance is rebooted, and its snapshots are
/// taken while it is down.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kinds = &["image", "snapshot"];
    let image_tags = tags::on_create(&params.tag_specifications, "image", kinds)?;
    let snapshot_tags = tags::on_create(&params.tag_specifications, "snapshot", kinds)?;
    let description = snapshots::description(params.description.as_deref())?;
    ctx.write(|tx| {
        let id = InstanceId::parse(&params.instance_id)?;
        let mut instance = tx
            .get::<Instance>(&id)
            .ok_or_else(|| InstanceId::not_found(id))?
            .as_ref()
            .clone();
        check_name(tx, &params.name)?;
        if !matches!(instance.state, State::Running | State::Stopped) {
            return Err(ApiError::new(
                "IncorrectState",
                format!("Instance '{id}' is '{}'.", instance.state.name()),
            ));
        }
        if instance.boot.instance_store {
            return Err(ApiError::value(
                id,
                "instanceId",
                "Instance does not have a volume attached at root.",
            ));
        }
        let reboot = instance.state == State::Running && !params.no_reboot;
        if reboot {
            instance.reboots += 1;
            instance.generation += 1;
        }
        let (mut devices, mut rows) = (Vec::new(), Vec::new());
        let image = ImageId::random();
        let what = format!("Created by CreateImage({id}) for {image}");
        for mapping in &instance.mappings {
            let volume = tx
                .get::<Volume>(&mapping.volume)
                .ok_or_else(|| VolumeId::not_found(mapping.volume))?;
            // What gp2 has follows from its size.
            let chosen = |iops: Option<u32>| iops.filter(|_| volume.volume_type != "gp2");
            let mut row = snapshots::row_of(&volume, &what, &snapshot_tags);
            row.while_down = reboot.then_some((id, instance.reboots));
            devices.push(ImageDevice {
                device: mapping.device.clone(),
                snapshot: Some(row.id),
                size_gib: volume.size_gib,
                volume_type: volume.volume_type.clone(),
                iops: chosen(volume.iops),
                throughput_mib_s: volume.throughput_mib_s,
                delete_on_termination: volume
                    .attachment
                    .as_ref()
                    .is_some_and(|attachment| attachment.delete_on_termination),
                encrypted: volume.encrypted,
            });
            rows.push(row);
        }
        snapshots::together(&mut rows);
        for row in rows {
            tx.put(row)?;
        }
        tx.put(OwnImage {
            id: image,
            name: params.name.clone(),
            description: description.clone(),
            boot: BootFiles {
                kernel: instance.boot.kernel.clone(),
                initrd: instance.boot.initrd.clone(),
                cmdline: instance.boot.cmdline.clone(),
                architecture: instance.boot.architecture.clone(),
            },
            imds_support: String::new(),
            root_device: instance.root_device.clone(),
            devices,
            source_instance: Some(id),
            source_image: None,
            created_at_s: now_s(),
            shared_with: BTreeSet::new(),
            standing: Standing::default(),
            tags: image_tags.clone(),
        })?;
        if reboot {
            tx.put(instance)?;
        }
        Ok(json!({"ImageId": image.to_string()}))
    })
    .await
}

fn own(view: &View, scope: &Scope, text: &str) -> Result<OwnImage, ApiError> {
    let id = ImageId::parse(text)?;
    let row = view.get::<OwnImage>(scope, &id);
    let row = row.ok_or_else(|| not_found(text))?;
    Ok(row.as_ref().clone())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Deregister {
    image_id: String,
}

/// DeregisterImage: its snapshots and instances stay.
///
/// # Errors
/// `OperationNotPermitted`, and EC2's other codes.
pub async fn deregister(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Deregister = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = own(tx.view, &tx.scope, &params.image_id)?;
        standing::unprotected(&row)?;
        tx.delete::<OwnImage>(&row.id);
        Ok(json!({"Return": true}))
    })
    .await
}
