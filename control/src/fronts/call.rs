//! What both fronts do with a decoded request.

use super::sigv4::{self, Identity};
use super::throttle::Throttle;
use super::tunnel::Tunnels;
use crate::accounts::Sealer;
use crate::audit::{Audit, Trail};
use crate::core::{Core, now_s};
use crate::ec2::{self, Ctx};
use crate::rows::{AccessKey, Account, Scope};
use crate::wire::{self, ApiError, Model, Shown, Value, validate};
use std::sync::Arc;
use std::time::SystemTime;

/// Services whose actions both fronts run.
pub const SERVICES: &[&str] = &["ec2", "sts"];

/// What a front needs.
pub struct Front {
    /// The core.
    pub core: Arc<Core>,
    /// Opens secrets.
    pub sealer: Arc<Sealer>,
    /// Writes every call down.
    pub audit: Audit,
    /// Bounds request rates.
    pub throttle: Throttle,
    /// Bounds tunnels.
    pub tunnels: Tunnels,
}

impl Front {
    /// Begins a call: nothing is served that cannot be written down.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn begin(&self, trail: &Trail) -> Result<(), ApiError> {
        if self.audit.ready() {
            return Ok(());
        }
        tracing::error!(trail.request_id, "refused: the audit log cannot be written");
        Err(unavailable())
    }

    /// Ends a call: its answer leaves once it is written down.
    pub fn end<T>(&self, trail: &Trail, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at_us = elapsed.map_or(0, |elapsed| {
            i128::try_from(elapsed.as_micros()).unwrap_or(0)
        });
        let code = answer.as_ref().err().map(|error| error.code.clone());
        match self.audit.record(trail, code.as_deref(), at_us) {
            Ok(()) => answer,
            Err(_) => Err(unavailable()),
        }
    }

    /// Verifies a request's signature and region, and that it is for one of these services,
    /// and says in `trail` whose it is.
    ///
    /// # Errors
    /// EC2's or STS's codes.
    pub fn authenticate(
        &self,
        request: &sigv4::Request<'_>,
        services: &[&str],
        trail: &mut Trail,
    ) -> Result<Identity, ApiError> {
        let identity = sigv4::verify(request, now_s(), |id| {
            let key = self.core.peek(|view| {
                view.get::<AccessKey>(&Scope::global(), &id.to_owned())
                    .cloned()
            })?;
            Some((key.account.clone(), self.sealer.secret(&key)?))
        })?;
        trail.account.clone_from(&identity.account);
        trail.access_key.clone_from(&identity.access_key);
        trail.region.clone_from(&identity.region);
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
        if !services.contains(&identity.service.as_str()) {
            return wrong(&format!("correct service: '{}'.", services[0]));
        }
        if !self.core.config.has_region(&identity.region) {
            return wrong(&format!("a valid region, not '{}'.", identity.region));
        }
        Ok(identity)
    }

    /// Runs an action, and says in `trail` what it was.
    ///
    /// # Errors
    /// EC2's codes.
    pub async fn execute(
        &self,
        identity: &Identity,
        action: &str,
        request: Value,
        trail: &mut Trail,
        host: &str,
    ) -> Result<Shown, ApiError> {
        action.clone_into(&mut trail.action);
        trail.parameters = request.clone();
        let request_id = trail.request_id.as_str();
        let model = model_of(&identity.service);
        let Some(operation) = model.operations.get(action) else {
            return Err(not_offered(model, action));
        };
        let account = self.core.peek(|view| {
            view.get::<Account>(&Scope::global(), &identity.account)
                .map(|row| row.limits)
        });
        let (limits, region) = (account.unwrap_or_default(), &identity.region);
        self.throttle
            .admit(limits, &identity.account, region, action, &request)?;
        validate::request(model, operation.input, &request)?;
        let core = Arc::clone(&self.core);
        let ctx = Ctx::new(core, identity, request_id, host, action, &request)?;
        let answer = ec2::dispatch(&ctx, action, request).await;
        match &answer {
            Ok(value) => {
                // A slip of ours, which tests find: too dear to look for in each answer.
                if cfg!(debug_assertions) {
                    let strangers =
                        validate::strangers(model, operation.output, &value.clone().into());
                    assert!(strangers.is_empty(), "{action} answers {strangers:?}");
                }
                tracing::info!(action, account = identity.account, request_id, "answered");
            }
            Err(error) => {
                tracing::info!(action, account = identity.account, request_id, code = %error.code, "refused");
            }
        }
        answer
    }
}

fn unavailable() -> ApiError {
    ApiError::new(
        "Unavailable",
        "The service is unavailable; please try again.",
    )
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
