//! Images.

use super::list::{Query, lookup};
use super::params::Filter;
use super::snapshots::{ALL, is_shared};
use super::{Ctx, amis};
use crate::catalogue::{Image, RootType, SYSTEM_ACCOUNT};
use crate::rows::{ImageId, OwnImage};
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

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

/// DescribeImages: the system account's, the caller's, and those shared with it.
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
    ctx.read(|view| {
        let mut all = seen(ctx, view);
        if !params.image_ids.is_empty() {
            let ids = lookup(
                &params.image_ids,
                ImageId::parse,
                |id| all.iter().find(|seen| seen.0 == id).map(|seen| seen.0),
                |ids| {
                    ApiError::new(
                        "InvalidAMIID.NotFound",
                        format!("The image id '[{ids}]' does not exist"),
                    )
                },
            )?;
            all.retain(|seen| ids.contains(&seen.0));
        }
        let executable = |seen: &Seen| {
            params
                .executable_users
                .iter()
                .any(|user| match user.as_str() {
                    ALL => seen.2.contains(ALL),
                    "self" => seen.2.contains(ctx.account()),
                    account => seen.2.contains(account),
                })
        };
        all.retain(|seen| {
            (params.owners.is_empty() || ctx.names_owner(&params.owners, &seen.1))
                && (params.executable_users.is_empty() || executable(seen))
        });
        query.answer(all.into_iter().map(|seen| (seen.0.to_string(), seen.3)))
    })
    .await
}

/// One image that a caller may see: id, owner, who may launch it, itself.
type Seen = (ImageId, String, BTreeSet<String>, Value);

fn seen(ctx: &Ctx, view: &View) -> Vec<Seen> {
    let (images, region) = (ctx.core.images(), ctx.region());
    let public = |image: &Image| {
        let all = BTreeSet::from([ALL.to_owned()]);
        let shown = present(image, region);
        (image.id(region), SYSTEM_ACCOUNT.to_owned(), all, shown)
    };
    let mut all: Vec<Seen> = images.images.iter().map(public).collect();
    for (scope, _) in view.shards().filter(|(scope, _)| *scope.region == *region) {
        let mine = scope.account == ctx.scope.account;
        for row in view.all::<OwnImage>(scope) {
            if mine || is_shared(&row.shared_with, ctx.account()) {
                let shown = amis::present(view, scope, row);
                let owner = scope.account.to_string();
                all.push((row.id, owner, row.shared_with.clone(), shown));
            }
        }
    }
    all.sort_by_key(|seen| seen.0);
    all
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
