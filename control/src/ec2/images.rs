//! Images.

use super::Ctx;
use super::list::{Query, lookup};
use super::params::Filter;
use crate::catalogue::{Image, RootType, SYSTEM_ACCOUNT};
use crate::rows::ImageId;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    image_ids: Vec<String>,
    #[serde(default)]
    owners: Vec<String>,
    #[serde(default)]
    executable_users: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeImages: all images are the system account's and public.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    for owner in &params.owners {
        let number = owner.len() == 12 && owner.bytes().all(|b| b.is_ascii_digit());
        if !number
            && !matches!(
                owner.as_str(),
                "self" | "amazon" | "aws-marketplace" | "aws-backup-vault"
            )
        {
            return Err(ApiError::new(
                "InvalidUserID.Malformed",
                format!("Invalid user id: \"{owner}\""),
            ));
        }
    }
    let owned = params.owners.is_empty()
        || params
            .owners
            .iter()
            .any(|owner| owner == "amazon" || owner == SYSTEM_ACCOUNT);
    let public = params.executable_users.is_empty()
        || params.executable_users.iter().any(|user| user == "all");
    let query = Query {
        action,
        member: "Images",
        by_id: !params.image_ids.is_empty(),
        filters: &params.filters,
        paths: &[
            (
                "block-device-mapping.delete-on-termination",
                "BlockDeviceMappings.Ebs.DeleteOnTermination",
            ),
            (
                "block-device-mapping.device-name",
                "BlockDeviceMappings.DeviceName",
            ),
            (
                "block-device-mapping.encrypted",
                "BlockDeviceMappings.Ebs.Encrypted",
            ),
            (
                "block-device-mapping.snapshot-id",
                "BlockDeviceMappings.Ebs.SnapshotId",
            ),
            (
                "block-device-mapping.volume-size",
                "BlockDeviceMappings.Ebs.VolumeSize",
            ),
            (
                "block-device-mapping.volume-type",
                "BlockDeviceMappings.Ebs.VolumeType",
            ),
            ("is-public", "Public"),
            ("manifest-location", "ImageLocation"),
            ("owner-alias", "ImageOwnerAlias"),
        ],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    let (images, region) = (ctx.core.images(), ctx.region());
    let mut shown: Vec<&Image> = lookup(
        &params.image_ids,
        ImageId::parse,
        |id| images.find(region, id),
        |ids| {
            ApiError::new(
                "InvalidAMIID.NotFound",
                format!("The image id '[{ids}]' does not exist"),
            )
        },
    )?;
    if params.image_ids.is_empty() {
        shown = images.images.iter().collect();
    }
    let mut items: Vec<(String, Value)> = shown
        .into_iter()
        .filter(|_| owned && public)
        .map(|image| (image.id(region).to_string(), present(image, region)))
        .collect();
    items.sort_by(|a, b| a.0.cmp(&b.0));
    items.dedup_by(|a, b| a.0 == b.0);
    let answer = query.answer(items)?;
    ctx.read(|_| Ok(answer)).await
}

fn present(image: &Image, region: &str) -> Value {
    let ebs = image.root_type == RootType::Ebs;
    let mut item = json!({
        "ImageId": image.id(region).to_string(),
        "Name": image.name,
        "Description": image.description,
        "ImageLocation": format!("amazon/{}", image.name),
        "ImageOwnerAlias": "amazon",
        "OwnerId": SYSTEM_ACCOUNT,
        "ImageType": "machine",
        "State": "available",
        "Public": true,
        "Architecture": image.architecture,
        "CreationDate": image.created_at,
        "Hypervisor": "xen",
        "VirtualizationType": "hvm",
        "RootDeviceName": image.root_device(),
        "RootDeviceType": if ebs { "ebs" } else { "instance-store" },
        "EnaSupport": false,
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "BlockDeviceMappings": [],
        "ProductCodes": [],
        "Tags": [],
    });
    if ebs {
        item["BlockDeviceMappings"] = json!([{
            "DeviceName": image.root_device(),
            "Ebs": {
                "DeleteOnTermination": true,
                "SnapshotId": image.snapshot(region).to_string(),
                "VolumeSize": image.root_size_gib,
                "VolumeType": "gp2",
                "Encrypted": false,
            },
        }]);
    }
    if !image.imds_support.is_empty() {
        item["ImdsSupport"] = image.imds_support.clone().into();
    }
    item
}
