//! Block public access: an account's images, and its snapshots, may not be made everybody's
//! in a region; with `block-all-sharing` those that are shared so are hidden as well.

use super::Ctx;
use super::snapshots::ALL;
use crate::core::Tx;
use crate::rows::{Scope, Settings};
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

/// Nothing is blocked.
const UNBLOCKED: &str = "unblocked";
const NEW: &str = "block-new-sharing";
const EVERYTHING: &str = "block-all-sharing";

fn settings(tx: &Tx<'_>) -> Settings {
    let row = tx.get::<Settings>(&Settings::NAME.to_owned());
    row.as_deref().cloned().unwrap_or_default()
}

fn refuse(what: &str) -> ApiError {
    ApiError::new(
        "OperationNotPermitted",
        format!("You can't publicly share {what} while block public access is enabled."),
    )
}

/// A snapshot that was shared with `before` may be shared with `after`.
///
/// # Errors
/// `OperationNotPermitted`.
pub fn check_snapshot(
    tx: &Tx<'_>,
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
) -> Result<(), ApiError> {
    let opened = after.contains(ALL) && !before.contains(ALL);
    match opened && settings(tx).snapshots_public.is_some() {
        true => Err(refuse("snapshots")),
        false => Ok(()),
    }
}

/// The same of an image.
///
/// # Errors
/// `OperationNotPermitted`.
pub fn check_image(
    tx: &Tx<'_>,
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
) -> Result<(), ApiError> {
    let opened = after.contains(ALL) && !before.contains(ALL);
    match opened && settings(tx).block_public_images {
        true => Err(refuse("AMIs")),
        false => Ok(()),
    }
}

/// Are public snapshots of this account hidden from everybody else?
pub fn hides_snapshots(view: &View, owner: &Scope) -> bool {
    let row = view.get::<Settings>(owner, &Settings::NAME.to_owned());
    row.is_some_and(|row| row.snapshots_public.as_deref() == Some(EVERYTHING))
}

#[derive(Deserialize)]
struct Nothing {}

/// GetSnapshotBlockPublicAccessState.
///
/// # Errors
/// EC2's codes.
pub async fn snapshots(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|view| {
        let row = view.get::<Settings>(&ctx.scope, &Settings::NAME.to_owned());
        let state = row.and_then(|row| row.snapshots_public.clone());
        let state = state.unwrap_or_else(|| UNBLOCKED.to_owned());
        Ok(json!({"State": state, "ManagedBy": "account"}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockSnapshots {
    state: String,
}

/// EnableSnapshotBlockPublicAccess.
///
/// # Errors
/// `InvalidParameterValue` for a state that blocks nothing.
pub async fn block_snapshots(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: BlockSnapshots = ctx.params(action, request)?;
    let state = match params.state.as_str() {
        state @ (NEW | EVERYTHING) => state.to_owned(),
        other => {
            let why = format!("Expected {EVERYTHING} or {NEW}.");
            return Err(ApiError::value(other, "State", &why));
        }
    };
    set_snapshots(ctx, Some(state)).await
}

/// DisableSnapshotBlockPublicAccess.
///
/// # Errors
/// EC2's codes.
pub async fn unblock_snapshots(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    set_snapshots(ctx, None).await
}

async fn set_snapshots(ctx: &Ctx, state: Option<String>) -> Result<Value, ApiError> {
    ctx.write(|tx| {
        let mut row = settings(tx);
        row.snapshots_public.clone_from(&state);
        tx.put(row)?;
        Ok(json!({"State": state.as_deref().unwrap_or(UNBLOCKED)}))
    })
    .await
}

/// GetImageBlockPublicAccessState.
///
/// # Errors
/// EC2's codes.
pub async fn images(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|view| {
        let row = view.get::<Settings>(&ctx.scope, &Settings::NAME.to_owned());
        let state = match row.is_some_and(|row| row.block_public_images) {
            true => NEW,
            false => UNBLOCKED,
        };
        Ok(json!({"ImageBlockPublicAccessState": state, "ManagedBy": "account"}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockImages {
    // The model knows one value.
    #[serde(rename = "ImageBlockPublicAccessState")]
    _state: String,
}

/// EnableImageBlockPublicAccess.
///
/// # Errors
/// EC2's codes.
pub async fn block_images(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let _: BlockImages = ctx.params(action, request)?;
    set_images(ctx, true).await
}

/// DisableImageBlockPublicAccess.
///
/// # Errors
/// EC2's codes.
pub async fn unblock_images(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    set_images(ctx, false).await
}

async fn set_images(ctx: &Ctx, on: bool) -> Result<Value, ApiError> {
    ctx.write(|tx| {
        let mut row = settings(tx);
        row.block_public_images = on;
        tx.put(row)?;
        let state = if on { NEW } else { UNBLOCKED };
        Ok(json!({"ImageBlockPublicAccessState": state}))
    })
    .await
}
