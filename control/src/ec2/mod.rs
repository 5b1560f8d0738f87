//! EC2's semantics: what each action means, told in rows.
//!
//! ```text
//!   dispatch ─▶ params (what is honoured; all else refused by name)
//!            ─▶ a transaction or a look at the view
//!            ─▶ present (rows as EC2 shows them) ─▶ list (filters, pages)
//! ```
//!
//! Start reading at `run`, the longest path.

pub mod absent;
pub mod account;
pub mod acls;
pub mod addresses;
pub mod amis;
pub mod attributes;
pub mod connect_endpoints;
pub mod console;
pub mod cpu_credits;
pub mod defaults;
pub mod dhcp_options;
pub mod disks;
pub mod ebs_defaults;
pub mod egress_gateways;
pub mod filters;
pub mod gateways;
pub mod groups;
pub mod images;
pub mod instances;
pub mod interfaces;
pub mod ipv6_addresses;
pub mod ipv6_blocks;
pub mod keyformat;
pub mod keys;
pub mod launch;
pub mod lifecycle;
pub mod list;
pub mod metadata;
pub mod modifications;
pub mod monitoring;
pub mod nat_gateways;
pub mod network;
pub mod params;
pub mod peer_groups;
pub mod peerings;
pub mod permissions;
pub mod place;
pub mod placement_groups;
pub mod prefix_lists;
pub mod present;
pub mod private_addresses;
pub mod public;
pub mod public_blocks;
pub mod quotas;
pub mod regions;
pub mod route_entries;
pub mod routes;
pub mod rule_changes;
pub mod rules;
pub mod run;
pub mod snapshots;
pub mod storage;
pub mod subnet_reservations;
pub mod subnets;
pub mod tags;
pub mod templates;
pub mod token;
pub mod types;
pub mod volume_types;
pub mod volumes;
pub mod vpcs;

use crate::catalogue::SYSTEM_ACCOUNT;
use crate::core::{Core, Tx};
use crate::fronts::sigv4::Identity;
use crate::rows::Scope;
use crate::view::View;
use crate::wire::shown::shown;
use crate::wire::{ApiError, Shown, Value};
use serde::Serialize;
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
    token: Option<token::Claim>,
}

impl Ctx {
    /// A call of an identity; `DryRun` and `ClientToken` are taken from the request.
    ///
    /// # Errors
    /// `InvalidParameterValue` for a client token that is none.
    pub fn new(
        core: Arc<Core>,
        identity: &Identity,
        request_id: &str,
        host: &str,
        action: &str,
        request: &Value,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            core,
            scope: Scope::new(&identity.region, &identity.account),
            request_id: request_id.to_owned(),
            host: host.to_owned(),
            dry_run: request
                .get("DryRun")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            token: token::Claim::of(action, request)?,
        })
    }

    /// The caller's token, or nothing.
    pub fn client_token(&self) -> &str {
        self.token.as_ref().map_or("", |token| &token.text)
    }

    /// An answer that also tells the caller's token, where there is one.
    pub fn with_client_token(&self, mut answer: Value) -> Value {
        if !self.client_token().is_empty() {
            answer["ClientToken"] = self.client_token().into();
        }
        answer
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

    /// Do an `Owner` parameter's names mean this account? `self` is the caller, `amazon` this
    /// cloud itself.
    pub fn names_owner(&self, names: &[String], account: &str) -> bool {
        names.iter().any(|name| match name.as_str() {
            "self" => account == self.account(),
            "amazon" => account == SYSTEM_ACCOUNT,
            name => name == account,
        })
    }

    /// Runs a transaction; a call whose client token was used before gives what
    /// that call gave, and changes nothing.
    ///
    /// # Errors
    /// Those of `act`; `DryRunOperation`, with nothing written.
    pub async fn write<R: Serialize + DeserializeOwned>(
        &self,
        act: impl FnMut(&mut Tx<'_>) -> Result<R, ApiError>,
    ) -> Result<R, ApiError> {
        self.write_and_show(act, |_, result| result).await
    }

    /// Likewise; answers with what `show` makes of the view as the transaction left it.
    ///
    /// # Errors
    /// As [`Ctx::write`].
    pub async fn write_and_show<R: Serialize + DeserializeOwned, S>(
        &self,
        mut act: impl FnMut(&mut Tx<'_>) -> Result<R, ApiError>,
        show: impl FnOnce(&View, R) -> S,
    ) -> Result<S, ApiError> {
        let decide = |tx: &mut Tx<'_>| {
            let Some(token) = &self.token else {
                return act(tx).and_then(|result| self.unless_dry(result));
            };
            if let Some(result) = token.repeat(tx)? {
                return Ok(result);
            }
            let result = act(tx)?;
            token.keep(tx, &result)?;
            self.unless_dry(result)
        };
        self.core.write_and_show(&self.scope, decide, show).await
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
pub async fn dispatch(ctx: &Ctx, action: &str, request: Value) -> Result<Shown, ApiError> {
    if action == "GetCallerIdentity" {
        return Ok(shown!({
            "UserId": ctx.account().to_owned(),
            "Account": ctx.account().to_owned(),
            "Arn": format!("arn:aws:iam::{}:root", ctx.account()),
        }));
    }
    defaults::ensure(ctx).await?;
    let answer = match action {
        "AcceptVpcPeeringConnection" => peerings::accept(ctx, action, request).await,
        "AllocateAddress" => addresses::allocate(ctx, action, request).await,
        "AssignIpv6Addresses" => ipv6_addresses::assign(ctx, action, request).await,
        "AssignPrivateIpAddresses" => private_addresses::assign(ctx, action, request).await,
        "AssociateAddress" => addresses::associate(ctx, action, request).await,
        "AssociateDhcpOptions" => dhcp_options::associate(ctx, action, request).await,
        "AssociateRouteTable" => routes::associate(ctx, action, request).await,
        "AssociateSubnetCidrBlock" => ipv6_blocks::associate(ctx, action, request).await,
        "AssociateVpcCidrBlock" => vpcs::associate(ctx, action, request).await,
        "AttachInternetGateway" => gateways::attach(ctx, action, request).await,
        "AttachNetworkInterface" => interfaces::attach(ctx, action, request).await,
        "AttachVolume" => volumes::attach(ctx, action, request).await,
        "CreateImage" => amis::create(ctx, action, request).await,
        "CreateSnapshot" => snapshots::create(ctx, action, request).await,
        "CreateVolume" => volumes::create(ctx, action, request).await,
        "DeleteSnapshot" => snapshots::delete(ctx, action, request).await,
        "DeregisterImage" => amis::deregister(ctx, action, request).await,
        "DescribeImageAttribute" => amis::attribute(ctx, action, request).await,
        "DescribeSnapshotAttribute" => snapshots::attribute(ctx, action, request).await,
        "DescribeSnapshots" => snapshots::describe(ctx, action, request).await,
        "DescribeVolumeAttribute" => storage::attribute(ctx, action, request).await,
        "DescribeVolumeStatus" => storage::status(ctx, action, request).await,
        "DescribeVolumesModifications" => storage::modifications(ctx, action, request).await,
        "DetachVolume" => volumes::detach(ctx, action, request).await,
        "ModifyImageAttribute" => amis::modify(ctx, action, request).await,
        "ModifySnapshotAttribute" => snapshots::modify_attribute(ctx, action, request).await,
        "ModifyVolume" => volumes::modify(ctx, action, request).await,
        "EnableImageDeprecation" => amis::standing::deprecate(ctx, action, request).await,
        "DisableImageDeprecation" => amis::standing::undeprecate(ctx, action, request).await,
        "DisableImage" => amis::standing::disable(ctx, action, request).await,
        "EnableImage" => amis::standing::enable(ctx, action, request).await,
        "EnableImageDeregistrationProtection" => {
            amis::standing::protect(ctx, action, request).await
        }
        "DisableImageDeregistrationProtection" => {
            amis::standing::unprotect(ctx, action, request).await
        }
        "RegisterImage" => amis::register(ctx, action, request).await,
        "ResetImageAttribute" => amis::reset(ctx, action, request).await,
        "ResetSnapshotAttribute" => snapshots::reset_attribute(ctx, action, request).await,
        "AuthorizeSecurityGroupEgress" => rules::authorize(ctx, action, request, true).await,
        "AuthorizeSecurityGroupIngress" => rules::authorize(ctx, action, request, false).await,
        "CreateDefaultSubnet" => subnets::create_default(ctx, action, request).await,
        "CreateDefaultVpc" => vpcs::create_default(ctx, action, request).await,
        "CreateDhcpOptions" => dhcp_options::create(ctx, action, request).await,
        "CreateEgressOnlyInternetGateway" => egress_gateways::create(ctx, action, request).await,
        "CreateInstanceConnectEndpoint" => connect_endpoints::create(ctx, action, request).await,
        "CreateInternetGateway" => gateways::create(ctx, action, request).await,
        "CreateKeyPair" => keys::create(ctx, action, request).await,
        "CreateLaunchTemplate" => templates::create(ctx, action, request).await,
        "CreateLaunchTemplateVersion" => templates::create_version(ctx, action, request).await,
        "CreateManagedPrefixList" => prefix_lists::create(ctx, action, request).await,
        "CreateNatGateway" => nat_gateways::create(ctx, action, request).await,
        "CreateNetworkAcl" => acls::create(ctx, action, request).await,
        "CreateNetworkAclEntry" => acls::put_entry(ctx, action, request, false).await,
        "CreateNetworkInterface" => interfaces::create(ctx, action, request).await,
        "CreatePlacementGroup" => placement_groups::create(ctx, action, request).await,
        "CreateRoute" => route_entries::put(ctx, action, request, false).await,
        "CreateRouteTable" => routes::create(ctx, action, request).await,
        "CreateSecurityGroup" => groups::create(ctx, action, request).await,
        "CreateSubnet" => subnets::create(ctx, action, request).await,
        "CreateSubnetCidrReservation" => subnet_reservations::create(ctx, action, request).await,
        "DeleteSubnetCidrReservation" => subnet_reservations::delete(ctx, action, request).await,
        "GetSubnetCidrReservations" => subnet_reservations::get(ctx, action, request).await,
        "CreateTags" => tags::create(ctx, action, request).await,
        "CreateVpc" => vpcs::create(ctx, action, request).await,
        "CreateVpcPeeringConnection" => peerings::create(ctx, action, request).await,
        "DeleteDhcpOptions" => dhcp_options::delete(ctx, action, request).await,
        "DeleteEgressOnlyInternetGateway" => egress_gateways::delete(ctx, action, request).await,
        "DeleteInstanceConnectEndpoint" => connect_endpoints::delete(ctx, action, request).await,
        "DeleteInternetGateway" => gateways::delete(ctx, action, request).await,
        "DeleteKeyPair" => keys::delete(ctx, action, request).await,
        "DeleteLaunchTemplate" => templates::delete(ctx, action, request).await,
        "DeleteLaunchTemplateVersions" => templates::delete_versions(ctx, action, request).await,
        "DeleteManagedPrefixList" => prefix_lists::delete(ctx, action, request).await,
        "DeleteNatGateway" => nat_gateways::delete(ctx, action, request).await,
        "DeleteNetworkAcl" => acls::delete(ctx, action, request).await,
        "DeleteNetworkAclEntry" => acls::delete_entry(ctx, action, request).await,
        "DeleteNetworkInterface" => interfaces::delete(ctx, action, request).await,
        "DeletePlacementGroup" => placement_groups::delete(ctx, action, request).await,
        "DeleteRoute" => route_entries::delete(ctx, action, request).await,
        "DeleteRouteTable" => routes::delete(ctx, action, request).await,
        "DeleteSecurityGroup" => groups::delete(ctx, action, request).await,
        "DeleteSubnet" => subnets::delete(ctx, action, request).await,
        "DeleteTags" => tags::delete(ctx, action, request).await,
        "DeleteVolume" => storage::delete_volume(ctx, action, request).await,
        "DeleteVpc" => vpcs::delete(ctx, action, request).await,
        "DeleteVpcPeeringConnection" => peerings::delete(ctx, action, request).await,
        "DescribeAccountAttributes" => account::attributes(ctx, action, request).await,
        "DescribeAddresses" => addresses::list(ctx, action, request).await,
        "DescribeAddressesAttribute" => addresses::attributes(ctx, action, request).await,
        "DescribeAvailabilityZones" => regions::zones(ctx, action, request).await,
        "DescribeDhcpOptions" => dhcp_options::list(ctx, action, request).await,
        "DescribeEgressOnlyInternetGateways" => egress_gateways::list(ctx, action, request).await,
        "DescribeIamInstanceProfileAssociations" => {
            account::profile_associations(ctx, action, request).await
        }
        "DescribeImages" => images::describe(ctx, action, request).await,
        "DescribeInstanceAttribute" => attributes::describe(ctx, action, request).await,
        "DescribeInstanceConnectEndpoints" => connect_endpoints::list(ctx, action, request).await,
        "DescribeInstanceCreditSpecifications" => cpu_credits::describe(ctx, action, request).await,
        "DescribeInstanceStatus" => instances::status(ctx, action, request).await,
        "DescribeInstanceTypeOfferings" => types::offerings(ctx, action, request).await,
        "DescribeInstanceTypes" => types::describe(ctx, action, request).await,
        "DescribeInstances" => return instances::describe(ctx, action, request).await,
        "DescribeInternetGateways" => gateways::list(ctx, action, request).await,
        "DescribeKeyPairs" => keys::describe(ctx, action, request).await,
        "DescribeLaunchTemplateVersions" => {
            templates::describe_versions(ctx, action, request).await
        }
        "DescribeLaunchTemplates" => templates::describe(ctx, action, request).await,
        "DescribeManagedPrefixLists" => prefix_lists::list(ctx, action, request).await,
        "DescribeNatGateways" => nat_gateways::list(ctx, action, request).await,
        "DescribeNetworkAcls" => acls::list(ctx, action, request).await,
        "DescribeNetworkInterfaceAttribute" => interfaces::attribute(ctx, action, request).await,
        "DescribeNetworkInterfaces" => interfaces::list(ctx, action, request).await,
        "DescribePlacementGroups" => placement_groups::describe(ctx, action, request).await,
        "DescribePrefixLists" => prefix_lists::services(ctx, action, request).await,
        "DescribeRegions" => regions::regions(ctx, action, request).await,
        "DescribeRouteTables" => routes::list(ctx, action, request).await,
        "DescribeSecurityGroupRules" => rules::describe(ctx, action, request).await,
        "DescribeSecurityGroups" => groups::describe(ctx, action, request).await,
        "DescribeSubnets" => subnets::list(ctx, action, request).await,
        "DescribeTags" => tags::describe(ctx, action, request).await,
        "DescribeVolumes" => storage::volumes(ctx, action, request).await,
        "DescribeVpcAttribute" => vpcs::attribute(ctx, action, request).await,
        "DescribeVpcPeeringConnections" => peerings::list(ctx, action, request).await,
        "DescribeVpcs" => vpcs::list(ctx, action, request).await,
        "DetachInternetGateway" => gateways::detach(ctx, action, request).await,
        "DetachNetworkInterface" => interfaces::detach(ctx, action, request).await,
        "DisassociateAddress" => addresses::disassociate(ctx, action, request).await,
        "DisassociateRouteTable" => routes::disassociate(ctx, action, request).await,
        "DisassociateSubnetCidrBlock" => ipv6_blocks::disassociate(ctx, action, request).await,
        "DisassociateVpcCidrBlock" => vpcs::disassociate(ctx, action, request).await,
        "GetConsoleOutput" => console::output(ctx, action, request).await,
        "GetInstanceMetadataDefaults" => metadata::get_defaults(ctx, action, request).await,
        "GetInstanceUefiData" => console::uefi(ctx, action, request).await,
        "GetLaunchTemplateData" => templates::data(ctx, action, request).await,
        "GetManagedPrefixListEntries" => prefix_lists::entries(ctx, action, request).await,
        "GetPasswordData" => console::password(ctx, action, request).await,
        "ImportKeyPair" => keys::import(ctx, action, request).await,
        "ModifyInstanceAttribute" => attributes::modify(ctx, action, request).await,
        "ModifyInstanceMetadataDefaults" => metadata::modify_defaults(ctx, action, request).await,
        "ModifyInstanceMetadataOptions" => attributes::modify_metadata(ctx, action, request).await,
        "ModifyLaunchTemplate" => templates::modify(ctx, action, request).await,
        "ModifyManagedPrefixList" => prefix_lists::modify(ctx, action, request).await,
        "ModifyNetworkInterfaceAttribute" => interfaces::modify(ctx, action, request).await,
        "ModifySecurityGroupRules" => rule_changes::modify(ctx, action, request).await,
        "ModifySubnetAttribute" => subnets::modify(ctx, action, request).await,
        "ModifyVpcAttribute" => vpcs::modify(ctx, action, request).await,
        "MonitorInstances" => monitoring::set(ctx, action, request, true).await,
        "CopyImage" => amis::copy(ctx, action, request).await,
        "CopySnapshot" => snapshots::copies::copy(ctx, action, request).await,
        "CreateSnapshots" => snapshots::create_many(ctx, action, request).await,
        "EnableEbsEncryptionByDefault" => ebs_defaults::set(ctx, action, request, true).await,
        "DisableEbsEncryptionByDefault" => ebs_defaults::set(ctx, action, request, false).await,
        "GetEbsEncryptionByDefault" => ebs_defaults::get(ctx, action, request).await,
        "GetEbsDefaultKmsKeyId" => ebs_defaults::key(ctx, action, request).await,
        "ResetEbsDefaultKmsKeyId" => ebs_defaults::key(ctx, action, request).await,
        "ModifyEbsDefaultKmsKeyId" => ebs_defaults::modify_key(ctx, action, request).await,
        "ResetInstanceAttribute" => attributes::reset(ctx, action, request).await,
        "ModifyVolumeAttribute" => storage::modify_attribute(ctx, action, request).await,
        "EnableVolumeIO" => storage::enable_io(ctx, action, request).await,
        "RestoreManagedPrefixListVersion" => prefix_lists::restore(ctx, action, request).await,
        "GetManagedPrefixListAssociations" => {
            prefix_lists::associations(ctx, action, request).await
        }
        "ModifyVpcPeeringConnectionOptions" => peerings::options(ctx, action, request).await,
        "GetSerialConsoleAccessStatus" => console::serial(ctx, action, request).await,
        "GetConsoleScreenshot" => console::screenshot(ctx, action, request).await,
        "DescribeIdFormat" => account::id_format(ctx, action, request).await,
        "DescribeAggregateIdFormat" => account::aggregate_id_format(ctx, action, request).await,
        "DescribeVpcClassicLink" => absent::classic_link(ctx, action, request).await,
        "DescribeVpcClassicLinkDnsSupport" => absent::classic_link_dns(ctx, action, request).await,
        "GetSecurityGroupsForVpc" => groups::of_vpc(ctx, action, request).await,
        "DescribeSecurityGroupReferences" => peer_groups::references(ctx, action, request).await,
        "DescribeStaleSecurityGroups" => peer_groups::stale(ctx, action, request).await,
        "ReportInstanceStatus" => monitoring::report(ctx, action, request).await,
        "GetSnapshotBlockPublicAccessState" => public_blocks::snapshots(ctx, action, request).await,
        "EnableSnapshotBlockPublicAccess" => {
            public_blocks::block_snapshots(ctx, action, request).await
        }
        "DisableSnapshotBlockPublicAccess" => {
            public_blocks::unblock_snapshots(ctx, action, request).await
        }
        "GetImageBlockPublicAccessState" => public_blocks::images(ctx, action, request).await,
        "EnableImageBlockPublicAccess" => public_blocks::block_images(ctx, action, request).await,
        "DisableImageBlockPublicAccess" => {
            public_blocks::unblock_images(ctx, action, request).await
        }
        "ModifyInstanceConnectEndpoint" => connect_endpoints::modify(ctx, action, request).await,
        "ModifyInstanceCreditSpecification" => cpu_credits::modify(ctx, action, request).await,
        "GetDefaultCreditSpecification" => cpu_credits::get_default(ctx, action, request).await,
        "ModifyDefaultCreditSpecification" => {
            cpu_credits::modify_default(ctx, action, request).await
        }
        "RebootInstances" => lifecycle::reboot(ctx, action, request).await,
        "RejectVpcPeeringConnection" => peerings::reject(ctx, action, request).await,
        "ReleaseAddress" => addresses::release(ctx, action, request).await,
        "ReplaceNetworkAclAssociation" => acls::replace_association(ctx, action, request).await,
        "ReplaceNetworkAclEntry" => acls::put_entry(ctx, action, request, true).await,
        "ReplaceRoute" => route_entries::put(ctx, action, request, true).await,
        "ReplaceRouteTableAssociation" => routes::replace_association(ctx, action, request).await,
        "ResetNetworkInterfaceAttribute" => interfaces::reset(ctx, action, request).await,
        "RevokeSecurityGroupEgress" => rules::revoke(ctx, action, request, true).await,
        "RevokeSecurityGroupIngress" => rules::revoke(ctx, action, request, false).await,
        "RunInstances" => return run::run(ctx, action, request).await,
        "StartInstances" => lifecycle::start(ctx, action, request).await,
        "StopInstances" => lifecycle::stop(ctx, action, request).await,
        "TerminateInstances" => lifecycle::terminate(ctx, action, request).await,
        "UnassignIpv6Addresses" => ipv6_addresses::unassign(ctx, action, request).await,
        "UnassignPrivateIpAddresses" => private_addresses::unassign(ctx, action, request).await,
        "UnmonitorInstances" => monitoring::set(ctx, action, request, false).await,
        "UpdateSecurityGroupRuleDescriptionsEgress" => {
            rule_changes::describe(ctx, action, request, true).await
        }
        "UpdateSecurityGroupRuleDescriptionsIngress" => {
            rule_changes::describe(ctx, action, request, false).await
        }
        _ if absent::knows(action) => absent::list(ctx, action, request).await,
        _ => Err(ApiError::new(
            "UnsupportedOperation",
            format!("The action {action} is not supported by this cloud."),
        )),
    };
    answer.map(Shown::from)
}
