//! EC2's semantics: what each action means, told in rows.
//!
//! ```text
//!   dispatch ─▶ params (what is honoured; all else refused by name)
//!            ─▶ a transaction or a look at the view
//!            ─▶ present (rows as EC2 shows them) ─▶ list (filters, pages)
//! ```
//!
//! Start reading at `run`, the longest path.

pub mod attributes;
pub mod console;
pub mod defaults;
pub mod disks;
pub mod filters;
pub mod groups;
pub mod images;
pub mod instances;
pub mod launch;
pub mod lifecycle;
pub mod list;
pub mod metadata;
pub mod network;
pub mod params;
pub mod permissions;
pub mod place;
pub mod present;
pub mod regions;
pub mod rules;
pub mod run;
pub mod storage;
pub mod tags;
pub mod token;
pub mod types;

use crate::core::{Core, Tx};
use crate::fronts::sigv4::Identity;
use crate::rows::Scope;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// One call: who asks, where, and the core.
pub struct Ctx {
    /// The core.
    pub core: Arc<Core>,
    /// The caller's account and region.
    pub scope: Scope,
    /// The id that the answer carries.
    pub request_id: String,
    /// Host and port that the caller reached us by.
    pub host: String,
    dry_run: bool,
}

impl Ctx {
    /// A call of an identity; `DryRun` is taken from the request.
    pub fn new(
        core: Arc<Core>,
        identity: &Identity,
        request_id: &str,
        host: &str,
        request: &Value,
    ) -> Self {
        Self {
            core,
            scope: Scope::new(&identity.region, &identity.account),
            request_id: request_id.to_owned(),
            host: host.to_owned(),
            dry_run: request
                .get("DryRun")
                .and_then(Value::as_bool)
                .unwrap_or(false),
        }
    }

    /// Region name.
    pub fn region(&self) -> &str {
        &self.scope.region
    }

    /// Account id.
    pub fn account(&self) -> &str {
        &self.scope.account
    }

    /// Typed parameters; those that `T` does not have are refused by name,
    /// unless they carry EC2's default.
    ///
    /// # Errors
    /// `UnsupportedOperation`.
    pub fn params<T: DeserializeOwned>(&self, action: &str, request: Value) -> Result<T, ApiError> {
        params::parse(action, request)
    }

    /// Answers from the view.
    ///
    /// # Errors
    /// Those of `look`; `DryRunOperation`.
    pub async fn read<R>(
        &self,
        look: impl FnOnce(&View) -> Result<R, ApiError>,
    ) -> Result<R, ApiError> {
        let result = self.core.read(look).await?;
        self.unless_dry(result)
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// Those of `act`; `DryRunOperation`, with nothing written.
    pub async fn write<R>(
        &self,
        mut act: impl FnMut(&mut Tx<'_>) -> Result<R, ApiError>,
    ) -> Result<R, ApiError> {
        self.core
            .write(&self.scope, |tx| {
                act(tx).and_then(|result| self.unless_dry(result))
            })
            .await
    }

    fn unless_dry<R>(&self, result: R) -> Result<R, ApiError> {
        if self.dry_run {
            return Err(ApiError::new(
                "DryRunOperation",
                "Request would have succeeded, but DryRun flag is set.",
            ));
        }
        Ok(result)
    }
}

/// Runs an action on a decoded and checked request.
///
/// # Errors
/// EC2's codes.
pub async fn dispatch(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    if action == "GetCallerIdentity" {
        return Ok(serde_json::json!({
            "UserId": ctx.account(),
            "Account": ctx.account(),
            "Arn": format!("arn:aws:iam::{}:root", ctx.account()),
        }));
    }
    defaults::ensure(ctx).await?;
    match action {
        "AuthorizeSecurityGroupEgress" => rules::authorize(ctx, action, request, true).await,
        "AuthorizeSecurityGroupIngress" => rules::authorize(ctx, action, request, false).await,
        "CreateSecurityGroup" => groups::create(ctx, action, request).await,
        "CreateTags" => tags::create(ctx, action, request).await,
        "DeleteSecurityGroup" => groups::delete(ctx, action, request).await,
        "DeleteTags" => tags::delete(ctx, action, request).await,
        "DeleteVolume" => storage::delete_volume(ctx, action, request).await,
        "DescribeAvailabilityZones" => regions::zones(ctx, action, request).await,
        "DescribeDhcpOptions" => network::dhcp_options(ctx, action, request).await,
        "DescribeImages" => images::describe(ctx, action, request).await,
        "DescribeInstanceAttribute" => attributes::describe(ctx, action, request).await,
        "DescribeInstanceStatus" => instances::status(ctx, action, request).await,
        "DescribeInstanceTypes" => types::describe(ctx, action, request).await,
        "DescribeInstances" => instances::describe(ctx, action, request).await,
        "DescribeInternetGateways" => network::gateways(ctx, action, request).await,
        "DescribeNetworkAcls" => network::acls(ctx, action, request).await,
        "DescribeNetworkInterfaces" => network::interfaces(ctx, action, request).await,
        "DescribeRegions" => regions::regions(ctx, action, request).await,
        "DescribeRouteTables" => network::route_tables(ctx, action, request).await,
        "DescribeSecurityGroupRules" => rules::describe(ctx, action, request).await,
        "DescribeSecurityGroups" => groups::describe(ctx, action, request).await,
        "DescribeSubnets" => network::subnets(ctx, action, request).await,
        "DescribeTags" => tags::describe(ctx, action, request).await,
        "DescribeVolumes" => storage::volumes(ctx, action, request).await,
        "DescribeVpcs" => network::vpcs(ctx, action, request).await,
        "GetConsoleOutput" => console::output(ctx, action, request).await,
        "GetInstanceMetadataDefaults" => metadata::get_defaults(ctx, action, request).await,
        "ModifyInstanceAttribute" => attributes::modify(ctx, action, request).await,
        "ModifyInstanceMetadataOptions" => attributes::modify_metadata(ctx, action, request).await,
        "ModifyInstanceMetadataDefaults" => metadata::modify_defaults(ctx, action, request).await,
        "RebootInstances" => lifecycle::reboot(ctx, action, request).await,
        "RevokeSecurityGroupEgress" => rules::revoke(ctx, action, request, true).await,
        "RevokeSecurityGroupIngress" => rules::revoke(ctx, action, request, false).await,
        "RunInstances" => run::run(ctx, action, request).await,
        "StartInstances" => lifecycle::start(ctx, action, request).await,
        "StopInstances" => lifecycle::stop(ctx, action, request).await,
        "TerminateInstances" => lifecycle::terminate(ctx, action, request).await,
        _ => Err(ApiError::new(
            "UnsupportedOperation",
            format!("The action {action} is not supported by this cloud."),
        )),
    }
}
