//! Client tokens: the same token with the same parameters gives the same answer,
//! for one account, region and action, over restarts. [`super::Ctx::write`] sees
//! to it for every action whose request has the member.

use crate::core::{Tx, now_s};
use crate::fronts::sigv4::{hex, sha256_hex};
use crate::rows::{Instance, InstanceId, ReservationId, Token};
use crate::wire::{ApiError, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest client token.
const MAX_TOKEN: usize = 64;

/// A call's token.
#[derive(Debug, Clone)]
pub struct Claim {
    /// As the caller wrote it.
    pub text: String,
    key: String,
    digest: String,
}

impl Claim {
    /// The token of a request, if it has one.
    ///
    /// # Errors
    /// `InvalidParameterValue` for one that is too long or not ASCII.
    pub fn of(action: &str, request: &Value) -> Result<Option<Self>, ApiError> {
        let Some(text) = request.get("ClientToken").and_then(Value::as_str) else {
            return Ok(None);
        };
        if text.len() > MAX_TOKEN || !text.is_ascii() {
            return Err(ApiError::value(
                text,
                "ClientToken",
                "At most 64 ASCII characters are allowed.",
            ));
        }
        Ok(Some(Self {
            text: text.to_owned(),
            key: format!("{action}.{}", hex(text.as_bytes())),
            digest: digest(request),
        }))
    }

    /// What the call gave that used this token before, if one did.
    ///
    /// # Errors
    /// `IdempotentParameterMismatch`, `IdempotentInstanceTerminated`.
    pub fn repeat<R: DeserializeOwned>(&self, tx: &Tx<'_>) -> Result<Option<R>, ApiError> {
        let Some(used) = tx.get::<Token>(&self.key) else {
            return Ok(None);
        };
        if used.digest != self.digest {
            return Err(ApiError::new(
                "IdempotentParameterMismatch",
                "The client token was used with different parameters.",
            ));
        }
        let ended = |id: &InstanceId| {
            tx.get::<Instance>(id)
                .is_none_or(|row| row.state.is_ending())
        };
        if !used.instances.is_empty() && used.instances.iter().all(ended) {
            return Err(ApiError::new(
                "IdempotentInstanceTerminated",
                "The client token belongs to an instance that has been terminated.",
            ));
        }
        serde_json::from_value(used.answer.clone())
            .map(Some)
            .map_err(|error| ApiError::internal(&error))
    }

    /// Remembers what a call gave.
    ///
    /// # Errors
    /// Only those of writing a row.
    pub fn keep<R: Serialize>(&self, tx: &mut Tx<'_>, result: &R) -> Result<(), ApiError> {
        let answer = serde_json::to_value(result).map_err(|error| ApiError::internal(&error))?;
        // RunInstances gives what it made; other actions give their answer.
        let launched = serde_json::from_value::<(ReservationId, Vec<InstanceId>)>(answer.clone());
        tx.put(Token {
            key: self.key.clone(),
            digest: self.digest.clone(),
            answer,
            instances: launched.map(|(_, ids)| ids).unwrap_or_default(),
            at_s: now_s(),
        })
    }
}

/// A hash of all parameters but the token, the same from both fronts.
fn digest(request: &Value) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(object) => {
                let mut members: Vec<_> = object.iter().collect();
                members.sort_by(|a, b| a.0.cmp(b.0));
                members
                    .into_iter()
                    .map(|(name, value)| (name.clone(), sorted(value)))
                    .collect()
            }
            Value::Array(elements) => elements.iter().map(sorted).collect(),
            scalar => scalar.clone(),
        }
    }
    let mut request = request.clone();
    if let Some(object) = request.as_object_mut() {
        object.shift_remove("ClientToken");
        object.shift_remove("DryRun");
    }
    sha256_hex(sorted(&request).to_string().as_bytes())
}
