//! EBS encryption by default, an account's setting in a region: volumes and copies made
//! while it is on are encrypted. There is one key, the host's; EC2 calls its like
//! `alias/aws/ebs`.

use super::Ctx;
use crate::core::Tx;
use crate::rows::Settings;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// EC2's name of the key that nobody had to make.
const KEY: &str = "alias/aws/ebs";

/// Is what the caller makes encrypted even if it does not say so?
pub fn encrypt(tx: &Tx<'_>) -> bool {
    let row = tx.get::<Settings>(&Settings::NAME.to_owned());
    row.is_some_and(|row| row.encrypt_by_default)
}

#[derive(Deserialize)]
struct Nothing {}

/// EnableEbsEncryptionByDefault and DisableEbsEncryptionByDefault.
///
/// # Errors
/// EC2's codes.
pub async fn set(ctx: &Ctx, action: &str, request: Value, on: bool) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = tx.get::<Settings>(&Settings::NAME.to_owned());
        let mut row = row.as_deref().cloned().unwrap_or_default();
        row.encrypt_by_default = on;
        tx.put(row)?;
        Ok(json!({"EbsEncryptionByDefault": on}))
    })
    .await
}

/// GetEbsEncryptionByDefault.
///
/// # Errors
/// EC2's codes.
pub async fn get(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|view| {
        let row = view.get::<Settings>(&ctx.scope, &Settings::NAME.to_owned());
        let on = row.is_some_and(|row| row.encrypt_by_default);
        Ok(json!({"EbsEncryptionByDefault": on, "SseType": "sse-ebs"}))
    })
    .await
}

/// GetEbsDefaultKmsKeyId, and ResetEbsDefaultKmsKeyId, which changes nothing.
///
/// # Errors
/// EC2's codes.
pub async fn key(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|_| Ok(json!({"KmsKeyId": KEY}))).await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    kms_key_id: String,
}

/// ModifyEbsDefaultKmsKeyId: there is no other key.
///
/// # Errors
/// `InvalidKmsKey.NotFound`.
pub async fn modify_key(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    ctx.read(|_| {
        if params.kms_key_id == KEY {
            return Ok(json!({"KmsKeyId": KEY}));
        }
        Err(ApiError::new(
            "InvalidKmsKey.NotFound",
            format!("The KMS key '{}' does not exist.", params.kms_key_id),
        ))
    })
    .await
}
