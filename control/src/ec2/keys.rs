//! Key pairs. The private half is made, told once and forgotten.

use super::keyformat::{self, Public};
use super::list::{Query, lookup, tag_set};
use super::params::{Filter, TagSpecification};
use super::{Ctx, present, quotas, tags};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Most letters of a name.
const MAX_NAME: usize = 255;
/// Longest public key that is taken: a 16-kbit RSA key in any form.
const MAX_MATERIAL_BYTES: usize = 16_384;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    key_name: String,
    key_type: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Import {
    key_name: String,
    public_key_material: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateKeyPair: 2048-bit RSA or Ed25519.
///
/// # Errors
/// `InvalidKeyPair.Duplicate`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let rsa = params.key_type.as_deref() != Some("ed25519");
    let name = params.key_name.clone();
    let made = tokio::task::spawn_blocking(move || {
        if rsa {
            keyformat::new_rsa()
        } else {
            keyformat::new_ed25519(&name)
        }
    })
    .await
    .map_err(|error| ApiError::internal(&error))?
    .map_err(|error| ApiError::internal(&error))?;
    let (row, mut answer) = row(&params.key_name, made.public, &params.tag_specifications)?;
    answer["KeyMaterial"] = made.private.into();
    add(ctx, row).await?;
    Ok(answer)
}

/// ImportKeyPair: an OpenSSH line, RFC 4716, or DER in base64.
///
/// # Errors
/// `InvalidKey.Format`, `InvalidKeyPair.Duplicate`, and EC2's other codes.
pub async fn import(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Import = ctx.params(action, request)?;
    let bytes = STANDARD
        .decode(&params.public_key_material)
        .ok()
        .filter(|bytes| bytes.len() <= MAX_MATERIAL_BYTES);
    let public = bytes.as_deref().and_then(keyformat::parse).ok_or_else(|| {
        ApiError::new(
            "InvalidKey.Format",
            "Key is not in valid OpenSSH public key format",
        )
    })?;
    let (row, answer) = row(&params.key_name, public, &params.tag_specifications)?;
    add(ctx, row).await?;
    Ok(answer)
}

fn row(
    name: &str,
    public: Public,
    specifications: &[TagSpecification],
) -> Result<(KeyPair, Value), ApiError> {
    let plain = |c: char| c.is_ascii_graphic() || c == ' ';
    if name.chars().count() > MAX_NAME || !name.chars().all(plain) || name.trim() != name {
        return Err(ApiError::value(
            name,
            "KeyName",
            "At most 255 ASCII characters without spaces at the ends are allowed.",
        ));
    }
    let row = KeyPair {
        id: KeyPairId::random(),
        name: name.to_owned(),
        kind: public.kind.to_owned(),
        fingerprint: public.fingerprint,
        public_key: public.line,
        created_at_s: now_s(),
        tags: tags::on_create(specifications, "key-pair", &["key-pair"])?,
    };
    let answer = json!({
        "KeyPairId": row.id.to_string(),
        "KeyName": row.name,
        "KeyFingerprint": row.fingerprint,
        "Tags": tag_set(&row.tags),
    });
    Ok((row, answer))
}

async fn add(ctx: &Ctx, row: KeyPair) -> Result<(), ApiError> {
    ctx.write(|tx| {
        if by_name(tx.view, &tx.scope, &row.name).is_some() {
            return Err(ApiError::new(
                "InvalidKeyPair.Duplicate",
                format!("The keypair already exists: '{}'.", row.name),
            ));
        }
        quotas::room_for_one::<KeyPair>(tx)?;
        tx.put(row.clone())
    })
    .await
}

fn by_name<'a>(view: &'a View, scope: &Scope, name: &str) -> Option<&'a Arc<KeyPair>> {
    view.all::<KeyPair>(scope).find(|row| row.name == name)
}

/// The key pair of a name, for a launch.
///
/// # Errors
/// `InvalidKeyPair.NotFound`.
pub fn named(tx: &Tx<'_>, name: &str) -> Result<Arc<KeyPair>, ApiError> {
    by_name(tx.view, &tx.scope, name)
        .cloned()
        .ok_or_else(|| KeyPairId::not_found(name))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    key_name: Option<String>,
    key_pair_id: Option<String>,
}

/// DeleteKeyPair: one that is not there is no error, as in EC2.
///
/// # Errors
/// `MissingParameter` where neither name nor id is given.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = match (&params.key_name, &params.key_pair_id) {
            (None, None) => return Err(ApiError::missing("KeyName")),
            (_, Some(text)) => KeyPairId::parse(text)
                .ok()
                .and_then(|id| tx.get::<KeyPair>(&id)),
            (Some(name), None) => by_name(tx.view, &tx.scope, name).cloned(),
        };
        let Some(row) = row else {
            return Ok(json!({"Return": true}));
        };
        if params
            .key_name
            .as_ref()
            .is_some_and(|name| *name != row.name)
        {
            return Err(ApiError::combination(
                "The parameters KeyName and KeyPairId name different key pairs.",
            ));
        }
        tx.delete::<KeyPair>(&row.id);
        Ok(json!({"Return": true, "KeyPairId": row.id.to_string()}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    key_names: Vec<String>,
    #[serde(default)]
    key_pair_ids: Vec<String>,
    #[serde(default)]
    include_public_key: bool,
    #[serde(default)]
    filters: Vec<Filter>,
}

/// DescribeKeyPairs.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let all = params.key_names.is_empty() && params.key_pair_ids.is_empty();
    let query = Query {
        action,
        member: "KeyPairs",
        by_id: !all,
        filters: &params.filters,
        paths: &[("fingerprint", "KeyFingerprint")],
        max_results: None,
        next_token: None,
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let mut rows: Vec<Arc<KeyPair>> = lookup(
            &params.key_pair_ids,
            KeyPairId::parse,
            |id| view.get::<KeyPair>(scope, &id).cloned(),
            |text| KeyPairId::not_found(text),
        )?;
        for name in &params.key_names {
            let row = by_name(view, scope, name).ok_or_else(|| KeyPairId::not_found(name))?;
            rows.push(Arc::clone(row));
        }
        if all {
            rows = view.all::<KeyPair>(scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        query.answer(rows.iter().map(|row| {
            let mut item = json!({
                "KeyPairId": row.id.to_string(),
                "KeyName": row.name,
                "KeyType": row.kind,
                "KeyFingerprint": row.fingerprint,
                "CreateTime": present::timestamp(row.created_at_s),
                "Tags": tag_set(&row.tags),
            });
            if params.include_public_key {
                item["PublicKey"] = format!("{} {}", row.public_key, row.name).into();
            }
            (row.id.to_string(), item)
        }))
    })
    .await
}
