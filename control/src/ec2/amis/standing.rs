//! Whether an image may be found, launched and deregistered: deprecation, disabling,
//! protection.

use super::own;
use crate::core::now_s;
use crate::ec2::{Ctx, present, snapshots};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How long an image stays protected after its protection with a cooldown is taken away.
const COOLDOWN_S: i64 = 86_400;
const MINUTE_S: i64 = 60;
const YEAR_S: i64 = 365 * 86_400;
/// The latest time at which an image may become deprecated, from now.
const LATEST_YEARS: i64 = 10;
/// When public images become deprecated at the latest, from their making.
const PUBLIC_YEARS: i64 = 2;

/// When an image is deprecated, in Unix seconds; public ones are so in the end.
pub fn deprecated_at_s(row: &OwnImage) -> Option<i64> {
    let public = row.shared_with.contains(snapshots::ALL);
    let latest = public.then_some(row.created_at_s + PUBLIC_YEARS * YEAR_S);
    [row.standing.deprecated_at_s, latest]
        .into_iter()
        .flatten()
        .min()
}

/// Adds to an image as DescribeImages shows it.
pub fn show(row: &OwnImage, item: &mut Value) {
    if let Some(at_s) = deprecated_at_s(row) {
        item["DeprecationTime"] = present::timestamp(at_s);
    }
    item["DeregistrationProtection"] = protection(row).into();
}

/// An image's protection in EC2's words.
pub fn protection(row: &OwnImage) -> &'static str {
    match row.standing.protection {
        Protection::On { cooldown: true } => "enabled-with-cooldown",
        Protection::On { cooldown: false } => "enabled-without-cooldown",
        Protection::Until(at_s) if now_s() < at_s => "enabled-with-cooldown",
        Protection::Off | Protection::Until(_) => "disabled",
    }
}

/// An image may be deregistered.
///
/// # Errors
/// `OperationNotPermitted`.
pub fn unprotected(row: &OwnImage) -> Result<(), ApiError> {
    match protection(row) {
        "disabled" => Ok(()),
        _ => Err(ApiError::new(
            "OperationNotPermitted",
            format!("The image '{}' is protected from deregistration.", row.id),
        )),
    }
}

/// Changes the standing of an image of the caller's.
async fn change(
    ctx: &Ctx,
    image: &str,
    edit: impl Fn(&View, &Scope, &mut OwnImage) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    ctx.write(|tx| {
        let mut row = own(tx.view, &tx.scope, image)?;
        edit(tx.view, &tx.scope, &mut row)?;
        tx.put(row)?;
        Ok(json!({"Return": true}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    image_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Deprecate {
    image_id: String,
    deprecate_at: String,
}

/// A time to come, in Unix seconds, to the minute.
fn future_s(text: &str) -> Result<i64, ApiError> {
    let why = |why: &str| ApiError::value(text, "DeprecateAt", why);
    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| why("This is no time."))?;
    let at_s = at.unix_timestamp();
    match at_s - now_s() {
        ahead if ahead < 0 => Err(why("It is in the past.")),
        ahead if ahead > LATEST_YEARS * YEAR_S => Err(why("It is more than 10 years ahead.")),
        _ => Ok((at_s + MINUTE_S / 2).div_euclid(MINUTE_S) * MINUTE_S),
    }
}

/// EnableImageDeprecation: from then on others find the image by its id, or if they ask for
/// deprecated ones.
///
/// # Errors
/// EC2's codes.
pub async fn deprecate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Deprecate = ctx.params(action, request)?;
    let at_s = future_s(&params.deprecate_at)?;
    change(ctx, &params.image_id, |_, _, row| {
        row.standing.deprecated_at_s = Some(at_s);
        Ok(())
    })
    .await
}

/// DisableImageDeprecation: what follows from an image being public stays.
///
/// # Errors
/// EC2's codes.
pub async fn undeprecate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    change(ctx, &params.image_id, |_, _, row| {
        row.standing.deprecated_at_s = None;
        Ok(())
    })
    .await
}

/// DisableImage: nobody launches it, and those that it was shared with lose it.
///
/// # Errors
/// `InvalidAMIID.Unavailable`, and EC2's other codes.
pub async fn disable(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    change(ctx, &params.image_id, |view, scope, row| {
        if !matches!(super::state(view, scope, row), "available" | "disabled") {
            return Err(super::unavailable(row.id));
        }
        row.standing.disabled = true;
        row.shared_with.clear();
        Ok(())
    })
    .await
}

/// EnableImage: it may be launched again; whom it was shared with is forgotten.
///
/// # Errors
/// EC2's codes.
pub async fn enable(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    change(ctx, &params.image_id, |_, _, row| {
        row.standing.disabled = false;
        Ok(())
    })
    .await
}

/// The model has `Return` of these two as a text.
fn in_words(_: Value) -> Value {
    json!({"Return": "true"})
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Protect {
    image_id: String,
    #[serde(default)]
    with_cooldown: bool,
}

/// EnableImageDeregistrationProtection.
///
/// # Errors
/// EC2's codes.
pub async fn protect(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Protect = ctx.params(action, request)?;
    change(ctx, &params.image_id, |_, _, row| {
        let cooldown = params.with_cooldown;
        row.standing.protection = Protection::On { cooldown };
        Ok(())
    })
    .await
    .map(in_words)
}

/// DisableImageDeregistrationProtection: with a cooldown it ends in a day.
///
/// # Errors
/// EC2's codes.
pub async fn unprotect(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    change(ctx, &params.image_id, |_, _, row| {
        row.standing.protection = match row.standing.protection {
            Protection::On { cooldown: true } => Protection::Until(now_s() + COOLDOWN_S),
            Protection::On { cooldown: false } => Protection::Off,
            ending => ending,
        };
        Ok(())
    })
    .await
    .map(in_words)
}
