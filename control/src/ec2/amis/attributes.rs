//! Attributes of images: described, modified, reset.

use super::{own, present, standing, unavailable};
use crate::ec2::snapshots::{self, Permissions, permissions};
use crate::ec2::{Ctx, public_blocks};
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    image_id: String,
    attribute: String,
}

fn unknown(attribute: &str) -> ApiError {
    ApiError::value(attribute, "attribute", "Unknown attribute.")
}

/// DescribeImageAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    ctx.read(|view| {
        let row = own(view, &ctx.scope, &params.image_id)?;
        let mut answer = json!({"ImageId": row.id.to_string()});
        match params.attribute.as_str() {
            "description" => answer["Description"] = json!({"Value": row.description}),
            "launchPermission" => answer["LaunchPermissions"] = permissions(&row.shared_with),
            "productCodes" => answer["ProductCodes"] = json!([]),
            "blockDeviceMapping" => {
                let shown = present(view, &ctx.scope, &row);
                answer["BlockDeviceMappings"] = shown["BlockDeviceMappings"].clone();
            }
            "deregistrationProtection" => {
                answer["DeregistrationProtection"] = json!({"Value": standing::protection(&row)});
            }
            "imdsSupport" => answer["ImdsSupport"] = json!({"Value": row.imds_support}),
            other => return Err(unknown(other)),
        }
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Text {
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    image_id: String,
    attribute: Option<String>,
    description: Option<Text>,
    value: Option<String>,
    launch_permission: Option<Permissions>,
    operation_type: Option<String>,
    #[serde(default)]
    user_ids: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
}

/// ModifyImageAttribute: description, launchPermission.
///
/// # Errors
/// EC2's codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let flat = snapshots::flat(
        params.operation_type.as_deref(),
        &params.user_ids,
        &params.user_groups,
    )?;
    ctx.write(|tx| {
        let mut row = own(tx.view, &tx.scope, &params.image_id)?;
        match params.attribute.as_deref() {
            Some("description") => {
                row.description = snapshots::description(params.value.as_deref())?;
            }
            Some("launchPermission") | None => {}
            Some(other) => return Err(unknown(other)),
        }
        if let Some(text) = &params.description {
            row.description = snapshots::description(text.value.as_deref())?;
        }
        let before = row.shared_with.clone();
        flat.apply(&mut row.shared_with)?;
        if let Some(permissions) = &params.launch_permission {
            permissions.apply(&mut row.shared_with)?;
        }
        if row.standing.disabled && !row.shared_with.is_empty() {
            return Err(unavailable(row.id));
        }
        public_blocks::check_image(tx, &before, &row.shared_with)?;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// ResetImageAttribute: launchPermission.
///
/// # Errors
/// EC2's codes.
pub async fn reset(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    if params.attribute != "launchPermission" {
        return Err(unknown(&params.attribute));
    }
    ctx.write(|tx| {
        let mut row = own(tx.view, &tx.scope, &params.image_id)?;
        row.shared_with.clear();
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}
