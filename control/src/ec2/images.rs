//! Images.

use super::list::{Query, lookup};
use super::params::Filter;
use super::snapshots::{ALL, is_shared};
use super::{Ctx, amis};
use crate::catalogue::{Image, RootType, SYSTEM_ACCOUNT};
use crate::core::now_s;
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
    include_deprecated: bool,
    #[serde(default)]
    include_disabled: bool,
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
        let now_s = now_s();
        if !params.image_ids.is_empty() {
            let ids = lookup(
                &params.image_ids,
                ImageId::parse,
                |id| all.iter().find(|seen| seen.id == id).map(|seen| seen.id),
                |ids| {
                    ApiError::new(
                        "InvalidAMIID.NotFound",
                        format!("The image id '[{ids}]' does not exist"),
                    )
                },
            )?;
            all.retain(|seen| ids.contains(&seen.id));
        }
        let executable = |seen: &Seen| {
            params
                .executable_users
                .iter()
                .any(|user| match user.as_str() {
                    ALL => seen.shared_with.contains(ALL),
                    "self" => seen.shared_with.contains(ctx.account()),
                    account => seen.shared_with.contains(account),
                })
        };
        // Their owner sees deprecated ones, and so does who knows the id.
        let deprecated = |seen: &Seen| {
            let known = seen.owner == ctx.account() || query.by_id;
            !known && seen.deprecated_at_s.is_some_and(|at_s| at_s <= now_s)
        };
        all.retain(|seen| {
            (params.include_deprecated || !deprecated(seen))
                && (params.include_disabled || seen.shown["State"] != "disabled")
                && (params.owners.is_empty() || ctx.names_owner(&params.owners, &seen.owner))
                && (params.executable_users.is_empty() || executable(seen))
        });
        query.answer(
            all.into_iter()
                .map(|seen| (seen.id.to_string(), seen.shown)),
        )
    })
    .await
}

/// One image that a caller may see.
struct Seen {
    id: ImageId,
    owner: String,
    /// Who may launch it.
    shared_with: BTreeSet<String>,
    deprecated_at_s: Option<i64>,
    shown: Value,
}

fn seen(ctx: &Ctx, view: &View) -> Vec<Seen> {
    let (images, region) = (ctx.core.images(), ctx.region());
    let public = |image: &Image| Seen {
        id: image.id(region),
        owner: SYSTEM_ACCOUNT.to_owned(),
        shared_with: BTreeSet::from([ALL.to_owned()]),
        deprecated_at_s: None,
        shown: present(image, region),
    };
    let mut all: Vec<Seen> = images.images.iter().map(public).collect();
    for (scope, _) in view.shards().filter(|(scope, _)| *scope.region == *region) {
        let mine = scope.account == ctx.scope.account;
        for row in view.all::<OwnImage>(scope) {
            if mine || is_shared(&row.shared_with, ctx.account()) {
                all.push(Seen {
                    id: row.id,
                    owner: scope.account.to_string(),
                    shared_with: row.shared_with.clone(),
                    deprecated_at_s: amis::standing::deprecated_at_s(row),
                    shown: amis::present(view, scope, row),
                });
            }
        }
    }
    all.sort_by_key(|seen| seen.id);
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
