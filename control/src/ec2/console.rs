//! GetConsoleOutput, asked of the node that holds the console ring; and what EC2
//! tells beside it of an instance that is none of Windows and has no UEFI.

use super::{Ctx, present};
use crate::gateway::fleet::AskError;
use crate::rows::{Instance, InstanceId, State};
use crate::wire::{ApiError, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocs_node_api::Answer;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Longest that EC2's answer may be before encoding.
const MAX_BYTES: usize = 65_536;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Params {
    instance_id: String,
}

async fn one(ctx: &Ctx, text: &str) -> Result<Arc<Instance>, ApiError> {
    let id = InstanceId::parse(text)?;
    ctx.read(|view| {
        view.get::<Instance>(&ctx.scope, &id)
            .cloned()
            .ok_or_else(|| InstanceId::not_found(id))
    })
    .await
}

/// GetConsoleOutput. An instance whose console nobody has (yet, or any more)
/// has empty output.
///
/// # Errors
/// EC2's codes; `InternalError` while the node cannot be asked.
pub async fn output(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Params = ctx.params(action, request)?;
    let row = one(ctx, &params.instance_id).await?;
    let id = row.id;
    let mut item = json!({"InstanceId": id.to_string()});
    let answer = match ctx.core.fleet.console(&row.node, &id.to_string()).await {
        Ok(answer) => answer,
        // Not made yet, or no longer kept.
        Err(AskError::Refused(_)) if row.state == State::Pending || row.state.is_ending() => {
            Answer::default()
        }
        Err(error) => {
            let mut refused = ApiError::internal(&error);
            refused.message = format!("The console of '{id}' cannot be read now: {error}.");
            return Err(refused);
        }
    };
    let bytes = answer.console_output;
    let newest = &bytes[bytes.len().saturating_sub(MAX_BYTES)..];
    item["Output"] = STANDARD.encode(newest).into();
    item["Timestamp"] = present::timestamp(if answer.console_at_s > 0 {
        answer.console_at_s
    } else {
        row.launched_at_s
    });
    Ok(item)
}

/// GetPasswordData: only Windows instances have any.
///
/// # Errors
/// EC2's codes.
pub async fn password(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Params = ctx.params(action, request)?;
    let row = one(ctx, &params.instance_id).await?;
    Ok(json!({
        "InstanceId": row.id.to_string(),
        "PasswordData": "",
        "Timestamp": present::timestamp(row.launched_at_s),
    }))
}

/// GetInstanceUefiData: no instance boots by UEFI.
///
/// # Errors
/// `UnsupportedOperation` for every instance that there is.
pub async fn uefi(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Params = ctx.params(action, request)?;
    let row = one(ctx, &params.instance_id).await?;
    Err(ApiError::new(
        "UnsupportedOperation",
        format!(
            "The instance '{}' boots in legacy-bios mode and has no UEFI data.",
            row.id
        ),
    ))
}

/// GetConsoleScreenshot: no instance has a screen.
///
/// # Errors
/// `UnsupportedOperation` for every instance that there is.
pub async fn screenshot(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Params = ctx.params(action, request)?;
    let row = one(ctx, &params.instance_id).await?;
    Err(ApiError::new(
        "UnsupportedOperation",
        format!(
            "The instance '{}' has a serial console and no screen.",
            row.id
        ),
    ))
}

/// GetSerialConsoleAccessStatus: EC2's interactive serial console is not offered; what a
/// console says is read by GetConsoleOutput.
///
/// # Errors
/// EC2's codes.
pub async fn serial(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    #[derive(Deserialize)]
    struct Nothing {}
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|_| Ok(json!({"SerialConsoleAccessEnabled": false, "ManagedBy": "account"})))
        .await
}
