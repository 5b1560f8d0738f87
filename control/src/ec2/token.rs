//! Client tokens: the same token with the same parameters gives the same answer,
//! for one account, region and action, over restarts.

use crate::core::Tx;
use crate::fronts::sigv4::{hex, sha256_hex};
use crate::rows::{Instance, InstanceId, ReservationId, Token};
use crate::wire::{ApiError, Value};

/// Longest client token.
const MAX_TOKEN: usize = 64;

/// The answer to a token that was used before.
///
/// # Errors
/// `IdempotentParameterMismatch`, `IdempotentInstanceTerminated`.
pub fn repeat(
    tx: &Tx<'_>,
    used: &Token,
    digest: &str,
) -> Result<(ReservationId, Vec<InstanceId>), ApiError> {
    if used.digest != digest {
        return Err(ApiError::new(
            "IdempotentParameterMismatch",
            "The client token was used with different parameters.",
        ));
    }
    let ended = |id: &InstanceId| {
        tx.get::<Instance>(id)
            .is_none_or(|row| row.state.is_ending())
    };
    if used.instances.iter().all(ended) {
        return Err(ApiError::new(
            "IdempotentInstanceTerminated",
            "The client token belongs to an instance that has been terminated.",
        ));
    }
    Ok((used.reservation, used.instances.clone()))
}

/// The key of a token's row.
///
/// # Errors
/// `InvalidParameterValue` for one that is too long or not ASCII.
pub fn key(action: &str, token: Option<&str>) -> Result<Option<String>, ApiError> {
    match token {
        Some(token) if token.len() > MAX_TOKEN || !token.is_ascii() => Err(ApiError::value(
            token,
            "ClientToken",
            "At most 64 ASCII characters are allowed.",
        )),
        Some(token) => Ok(Some(format!("{action}.{}", hex(token.as_bytes())))),
        None => Ok(None),
    }
}

/// A hash of all parameters but the token, the same from both fronts.
pub fn digest(request: &Value) -> String {
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
