//! CopyImage: an image of copies of another one's snapshots.

use super::{check_name, not_found, unavailable, visible};
use crate::catalogue::RootType;
use crate::core::{Tx, now_s};
use crate::ec2::params::TagSpecification;
use crate::ec2::snapshots::copies::{row_of, source_region};
use crate::ec2::volumes::source_in;
use crate::ec2::{Ctx, ebs_defaults, snapshots, tags};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Copy {
    name: String,
    source_image_id: String,
    source_region: String,
    description: Option<String>,
    encrypted: Option<bool>,
    #[serde(default)]
    copy_image_tags: bool,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// An image as it would be if it were the caller's own.
fn template(ctx: &Ctx, tx: &Tx<'_>, region: &str, text: &str) -> Result<OwnImage, ApiError> {
    let id = ImageId::parse(text)?;
    let images = ctx.core.images();
    let Some(image) = images.find(region, id) else {
        let there = Scope::new(region, ctx.account());
        let (owner, row) = visible(tx.view, &there, id).ok_or_else(|| not_found(text))?;
        if super::state(tx.view, &owner, &row) != "available" {
            return Err(unavailable(id));
        }
        let mut row = row.as_ref().clone();
        if owner != there {
            row.tags = Tags::new();
        }
        return Ok(row);
    };
    if image.root_type != RootType::Ebs {
        return Err(ApiError::new(
            "UnsupportedOperation",
            format!("The image '{id}' has its root on an instance store."),
        ));
    }
    Ok(OwnImage {
        id,
        name: image.name.clone(),
        description: image.description.clone(),
        boot: BootFiles {
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            cmdline: image.cmdline.clone(),
            architecture: image.architecture.clone(),
        },
        imds_support: image.imds_support.clone(),
        root_device: image.root_device().to_owned(),
        devices: vec![ImageDevice {
            device: image.root_device().to_owned(),
            snapshot: Some(image.snapshot(region)),
            size_gib: image.root_size_gib,
            volume_type: "gp2".to_owned(),
            iops: None,
            throughput_mib_s: None,
            delete_on_termination: true,
            encrypted: false,
        }],
        source_instance: None,
        source_image: None,
        created_at_s: 0,
        shared_with: BTreeSet::new(),
        standing: Standing::default(),
        tags: Tags::new(),
    })
}

/// CopyImage: who may launch an image may copy it if its snapshots are shared, too.
///
/// # Errors
/// `InvalidRegion`, `InvalidAMIID.NotFound`, `InvalidRequest`, and EC2's other codes.
pub async fn copy(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Copy = ctx.params(action, request)?;
    let region = source_region(ctx, &params.source_region)?;
    let kinds = &["image", "snapshot"];
    let image_tags = tags::on_create(&params.tag_specifications, "image", kinds)?;
    let snapshot_tags = tags::on_create(&params.tag_specifications, "snapshot", kinds)?;
    ctx.write(|tx| {
        let from = template(ctx, tx, region, &params.source_image_id)?;
        check_name(tx, &params.name)?;
        let (id, source) = (ImageId::random(), from.id);
        let encrypt = params.encrypted == Some(true) || ebs_defaults::encrypt(tx);
        let mut devices = from.devices;
        for device in &mut devices {
            device.encrypted |= encrypt;
            let Some(snapshot) = device.snapshot else {
                continue;
            };
            let of = source_in(ctx, tx, region, &snapshot.to_string()).map_err(|_| {
                ApiError::new(
                    "InvalidRequest",
                    "You do not have permission to access the storage of this ami",
                )
            })?;
            let text = format!(
                "Copied for DestinationAmi {id} from SourceAmi {source} for SourceSnapshot \
                 {snapshot}."
            );
            let row = row_of(ctx, tx, &of, &text, encrypt, &snapshot_tags)?;
            device.snapshot = Some(row.id);
            tx.put(row)?;
        }
        let mut all = Tags::new();
        if params.copy_image_tags {
            all.extend(from.tags);
        }
        all.extend(image_tags.clone());
        let description = match params.description.as_deref() {
            Some(text) => snapshots::description(Some(text))?,
            None => from.description,
        };
        tx.put(OwnImage {
            id,
            name: params.name.clone(),
            description,
            boot: from.boot,
            imds_support: from.imds_support,
            root_device: from.root_device,
            devices,
            source_instance: None,
            source_image: Some((region.to_owned(), source)),
            created_at_s: now_s(),
            shared_with: BTreeSet::new(),
            standing: Standing::default(),
            tags: tags::limited(all)?,
        })?;
        Ok(json!({"ImageId": id.to_string()}))
    })
    .await
}
