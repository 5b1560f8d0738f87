//! What both fronts do with a decoded request.

use super::sigv4::{self, Identity};
use crate::accounts::Sealer;
use crate::core::{Core, now_s};
use crate::ec2::{self, Ctx};
use crate::rows::{AccessKey, Scope};
use crate::wire::{self, ApiError, Model, Value, validate};
use std::sync::Arc;

/// What a front needs.
pub struct Front {
    /// The core.
    pub core: Arc<Core>,
    /// Opens secrets.
    pub sealer: Sealer,
}

impl Front {
    /// Verifies a request's signature, region and service.
    ///
    /// # Errors
    /// EC2's or STS's codes.
    pub fn authenticate(&self, request: &sigv4::Request<'_>) -> Result<Identity, ApiError> {
        let identity = sigv4::verify(request, now_s(), |id| {
            let key = self.core.peek(|view| {
                view.get::<AccessKey>(&Scope::global(), &id.to_owned())
                    .cloned()
            })?;
            Some((key.account.clone(), self.sealer.secret(&key)?))
        })?;
        let wrong = |what: &str| {
            let code = if identity.service == "sts" {
                "SignatureDoesNotMatch"
            } else {
                "AuthFailure"
            };
            Err(ApiError::new(
                code,
                format!("Credential should be scoped to {what}"),
            ))
        };
        if !matches!(identity.service.as_str(), "ec2" | "sts") {
            return wrong("correct service: 'ec2'.");
        }
        if !self.core.config.has_region(&identity.region) {
            return wrong(&format!("a valid region, not '{}'.", identity.region));
        }
        Ok(identity)
    }

    /// Runs an action.
    ///
    /// # Errors
    /// EC2's codes.
    pub async fn execute(
        &self,
        identity: &Identity,
        action: &str,
        request: Value,
        request_id: &str,
        host: &str,
    ) -> Result<Value, ApiError> {
        let model = model_of(&identity.service);
        let Some(operation) = model.operations.get(action) else {
            return Err(not_offered(model, action));
        };
        validate::request(model, operation.input, &request)?;
        let core = Arc::clone(&self.core);
        let ctx = Ctx::new(core, identity, request_id, host, action, &request)?;
        let answer = ec2::dispatch(&ctx, action, request).await;
        match &answer {
            Ok(value) => {
                let strangers = validate::strangers(model, operation.output, value);
                debug_assert!(strangers.is_empty(), "{action} answers {strangers:?}");
                tracing::info!(action, account = identity.account, request_id, "answered");
            }
            Err(error) => {
                tracing::info!(action, account = identity.account, request_id, code = %error.code, "refused");
            }
        }
        answer
    }
}

/// The tables of a service.
pub fn model_of(service: &str) -> &'static Model {
    if service == "sts" {
        wire::sts()
    } else {
        wire::ec2()
    }
}

/// The error for an action that is not in the tables.
pub fn not_offered(model: &Model, action: &str) -> ApiError {
    if model.unoffered.contains(action) {
        return ApiError::new(
            "UnsupportedOperation",
            format!("The action {action} is not supported by this cloud."),
        );
    }
    ApiError::new(
        "InvalidAction",
        format!("The action {action} is not valid for this web service."),
    )
}

/// A request id in AWS's form, a random UUID.
pub fn request_id() -> String {
    let mut bytes = [0_u8; 16];
    // Without random numbers the id is all zeros: it identifies nothing secret.
    let _ = getrandom::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = sigv4::hex(&bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}
