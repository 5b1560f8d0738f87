//! Metadata options: EC2's precedence (request, account default, image, else
//! `optional`), and the account's defaults.

use super::Ctx;
use crate::core::Tx;
use crate::rows::{MetadataOptions, Settings};
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::{Map, json};

/// Hop limits that EC2 takes.
const HOPS: std::ops::RangeInclusive<i64> = 1..=64;

/// `MetadataOptions` of a launch.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request {
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    http_protocol_ipv6: Option<String>,
    instance_metadata_tags: Option<String>,
}

fn check_hops(hops: Option<i64>) -> Result<(), ApiError> {
    match hops.filter(|hops| !HOPS.contains(hops)) {
        Some(hops) => Err(ApiError::value(
            hops,
            "HttpPutResponseHopLimit",
            "It must be from 1 to 64.",
        )),
        None => Ok(()),
    }
}

fn is(text: Option<&String>, word: &str) -> Option<bool> {
    text.map(|text| text == word)
}

/// What a launch gets. Source: EC2 user guide, "Order of precedence for instance
/// metadata options".
///
/// # Errors
/// `InvalidParameterValue` for a hop limit out of bounds.
pub fn resolve(
    tx: &Tx<'_>,
    request: Option<&Request>,
    imds_support: &str,
) -> Result<MetadataOptions, ApiError> {
    let hops = request.and_then(|r| r.http_put_response_hop_limit);
    check_hops(hops)?;
    let account = tx.get::<Settings>(&Settings::NAME.to_owned());
    let account = account.as_deref().cloned().unwrap_or_default();
    let by_image = imds_support == "v2.0";
    let tokens = request.and_then(|r| is(r.http_tokens.as_ref(), "required"));
    let enabled = request.and_then(|r| is(r.http_endpoint.as_ref(), "enabled"));
    let ipv6 = request.and_then(|r| is(r.http_protocol_ipv6.as_ref(), "enabled"));
    let tags = request.and_then(|r| is(r.instance_metadata_tags.as_ref(), "enabled"));
    Ok(MetadataOptions {
        tokens_required: tokens.or(account.tokens_required).unwrap_or(by_image),
        hop_limit: hops
            .and_then(|hops| u32::try_from(hops).ok())
            .or(account.hop_limit)
            .unwrap_or(if by_image { 2 } else { 1 }),
        enabled: enabled.or(account.endpoint).unwrap_or(true),
        tags: tags.or(account.instance_tags).unwrap_or(false),
        ipv6: ipv6.unwrap_or(false),
    })
}

/// Parameters of ModifyInstanceMetadataOptions.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    /// The instance.
    pub instance_id: String,
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    http_protocol_ipv6: Option<String>,
    instance_metadata_tags: Option<String>,
}

impl Change {
    /// Changes what the call names.
    ///
    /// # Errors
    /// `InvalidParameterValue` for a hop limit out of bounds.
    pub fn apply(&self, options: &mut MetadataOptions) -> Result<(), ApiError> {
        check_hops(self.http_put_response_hop_limit)?;
        let set = |slot: &mut bool, text: Option<&String>, word| {
            *slot = is(text, word).unwrap_or(*slot);
        };
        set(
            &mut options.tokens_required,
            self.http_tokens.as_ref(),
            "required",
        );
        set(&mut options.enabled, self.http_endpoint.as_ref(), "enabled");
        let ipv6 = self.http_protocol_ipv6.as_ref();
        set(&mut options.ipv6, ipv6, "enabled");
        set(
            &mut options.tags,
            self.instance_metadata_tags.as_ref(),
            "enabled",
        );
        let hops = self
            .http_put_response_hop_limit
            .and_then(|hops| u32::try_from(hops).ok());
        options.hop_limit = hops.unwrap_or(options.hop_limit);
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Defaults {
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    instance_metadata_tags: Option<String>,
}

/// ModifyInstanceMetadataDefaults: `no-preference` and -1 take a default back.
///
/// # Errors
/// EC2's codes.
pub async fn modify_defaults(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Defaults = ctx.params(action, request)?;
    let hops = params.http_put_response_hop_limit;
    check_hops(hops.filter(|hops| *hops != -1))?;
    let set = |slot: &mut Option<bool>, text: &Option<String>, word: &str| match text.as_deref() {
        None => {}
        Some("no-preference") => *slot = None,
        Some(text) => *slot = Some(text == word),
    };
    ctx.write(|tx| {
        let row = tx.get::<Settings>(&Settings::NAME.to_owned());
        let mut row = row.as_deref().cloned().unwrap_or_default();
        set(&mut row.tokens_required, &params.http_tokens, "required");
        set(&mut row.endpoint, &params.http_endpoint, "enabled");
        set(
            &mut row.instance_tags,
            &params.instance_metadata_tags,
            "enabled",
        );
        if let Some(hops) = hops {
            row.hop_limit = u32::try_from(hops).ok();
        }
        tx.put(row)?;
        Ok(json!({"Return": true}))
    })
    .await
}

/// GetInstanceMetadataDefaults.
///
/// # Errors
/// EC2's codes.
pub async fn get_defaults(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    #[derive(Deserialize)]
    struct Nothing {}
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|view| {
        let mut level = Map::new();
        let row = view.get::<Settings>(&ctx.scope, &Settings::NAME.to_owned());
        if let Some(row) = row {
            let on = |on: bool| Value::from(if on { "enabled" } else { "disabled" });
            let tokens = row.tokens_required;
            let members = [
                (
                    "HttpTokens",
                    tokens.map(|r| Value::from(if r { "required" } else { "optional" })),
                ),
                ("HttpPutResponseHopLimit", row.hop_limit.map(Value::from)),
                ("HttpEndpoint", row.endpoint.map(on)),
                ("InstanceMetadataTags", row.instance_tags.map(on)),
            ];
            for (name, value) in members {
                level.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        Ok(json!({"AccountLevel": level}))
    })
    .await
}
