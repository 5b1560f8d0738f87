//! From a decoded request to typed parameters. A parameter that the type does
//! not have is refused by name: nothing is ignored in silence. Those in
//! [`DEFAULTS`] pass where they carry the value that EC2 would assume anyway.

use crate::wire::{ApiError, Model, ShapeId, Value};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Parameters (action, path without list indices) and EC2's default.
pub const DEFAULTS: &[(&str, &str, &str)] = &[
    ("CreateVolume", "MultiAttachEnabled", "false"),
    ("ModifyVolume", "MultiAttachEnabled", "false"),
    (
        "DescribeVolumesModifications",
        "IncludeManagedResources",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "RequesterPeeringConnectionOptions.AllowDnsResolutionFromRemoteVpc",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "RequesterPeeringConnectionOptions.AllowEgressFromLocalClassicLinkToRemoteVpc",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "RequesterPeeringConnectionOptions.AllowEgressFromLocalVpcToRemoteClassicLink",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "RequesterPeeringConnectionOptions.AllowMultipathResilience",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "AccepterPeeringConnectionOptions.AllowDnsResolutionFromRemoteVpc",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "AccepterPeeringConnectionOptions.AllowEgressFromLocalClassicLinkToRemoteVpc",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "AccepterPeeringConnectionOptions.AllowEgressFromLocalVpcToRemoteClassicLink",
        "false",
    ),
    (
        "ModifyVpcPeeringConnectionOptions",
        "AccepterPeeringConnectionOptions.AllowMultipathResilience",
        "false",
    ),
    // Nothing shows a screen.
    ("GetConsoleScreenshot", "WakeUp", "false"),
    ("GetConsoleScreenshot", "WakeUp", "true"),
    ("CreateSnapshots", "Location", "regional"),
    ("CopySnapshot", "KmsKeyId", "alias/aws/ebs"),
    ("CopyImage", "KmsKeyId", "alias/aws/ebs"),
    ("RegisterImage", "VirtualizationType", "hvm"),
    ("RegisterImage", "EnaSupport", "false"),
    ("DeregisterImage", "DeleteAssociatedSnapshots", "false"),
    ("RunInstances", "EbsOptimized", "false"),
    ("RunInstances", "EnablePrimaryIpv6", "false"),
    ("RunInstances", "Placement.Tenancy", "default"),
    ("RunInstances", "HibernationOptions.Configured", "false"),
    ("RunInstances", "EnclaveOptions.Enabled", "false"),
    ("RunInstances", "MaintenanceOptions.AutoRecovery", "default"),
    (
        "RunInstances",
        "CapacityReservationSpecification.CapacityReservationPreference",
        "open",
    ),
    (
        "RunInstances",
        "PrivateDnsNameOptions.HostnameType",
        "ip-name",
    ),
    (
        "RunInstances",
        "PrivateDnsNameOptions.EnableResourceNameDnsARecord",
        "false",
    ),
    (
        "RunInstances",
        "PrivateDnsNameOptions.EnableResourceNameDnsAAAARecord",
        "false",
    ),
    (
        "RunInstances",
        "NetworkPerformanceOptions.BandwidthWeighting",
        "default",
    ),
    (
        "RunInstances",
        "NetworkInterfaces.InterfaceType",
        "interface",
    ),
    ("RunInstances", "NetworkInterfaces.NetworkCardIndex", "0"),
    ("ModifyInstanceAttribute", "EbsOptimized.Value", "false"),
    ("CreateVpc", "InstanceTenancy", "default"),
    ("CreateKeyPair", "KeyFormat", "pem"),
    ("AllocateAddress", "Domain", "vpc"),
    ("AllocateAddress", "PublicIpv4Pool", "amazon"),
    ("CreateNetworkInterface", "InterfaceType", "interface"),
    ("CreateInstanceConnectEndpoint", "PreserveClientIp", "false"),
    ("CreateInstanceConnectEndpoint", "IpAddressType", "ipv4"),
    ("ModifyInstanceConnectEndpoint", "PreserveClientIp", "false"),
    ("ModifyInstanceConnectEndpoint", "IpAddressType", "ipv4"),
    ("CreateNatGateway", "ConnectivityType", "public"),
    ("CreateNatGateway", "AvailabilityMode", "zonal"),
    ("CreateNatGateway", "SecondaryPrivateIpAddressCount", "0"),
    ("AssignPrivateIpAddresses", "Ipv4PrefixCount", "0"),
    ("CreateNetworkInterface", "EnablePrimaryIpv6", "false"),
    ("AttachNetworkInterface", "NetworkCardIndex", "0"),
    (
        "ModifyNetworkInterfaceAttribute",
        "EnablePrimaryIpv6",
        "false",
    ),
    ("CreatePlacementGroup", "SpreadLevel", "rack"),
    ("DescribeLaunchTemplateVersions", "ResolveAlias", "false"),
    ("CreateLaunchTemplateVersion", "ResolveAlias", "false"),
    (
        "DescribeLaunchTemplates",
        "IncludeManagedResources",
        "false",
    ),
    ("DescribeLaunchTemplates", "IncludeManagedResources", "true"),
    (
        "DescribeLaunchTemplateVersions",
        "IncludeManagedResources",
        "false",
    ),
    (
        "DescribeLaunchTemplateVersions",
        "IncludeManagedResources",
        "true",
    ),
    ("CreateSubnet", "Ipv6Native", "false"),
    ("CreateDefaultSubnet", "Ipv6Native", "false"),
    ("ModifySubnetAttribute", "EnableDns64.Value", "false"),
    (
        "ModifySubnetAttribute",
        "MapCustomerOwnedIpOnLaunch.Value",
        "false",
    ),
    (
        "ModifySubnetAttribute",
        "DisableLniAtDeviceIndex.Value",
        "true",
    ),
    (
        "ModifySubnetAttribute",
        "PrivateDnsHostnameTypeOnLaunch",
        "ip-name",
    ),
    (
        "ModifySubnetAttribute",
        "EnableResourceNameDnsARecordOnLaunch.Value",
        "false",
    ),
    (
        "ModifySubnetAttribute",
        "EnableResourceNameDnsAAAARecordOnLaunch.Value",
        "false",
    ),
    // It has no other.
    ("DescribeAddressesAttribute", "Attribute", "domain-name"),
    // Either value gives the same here.
    ("GetConsoleOutput", "Latest", "false"),
    ("GetConsoleOutput", "Latest", "true"),
    ("DescribeImages", "IncludeDeprecated", "true"),
    ("DescribeImages", "IncludeDisabled", "true"),
    ("DescribeRegions", "AllRegions", "true"),
    ("DescribeAvailabilityZones", "AllAvailabilityZones", "true"),
    (
        "DescribeNetworkInterfaces",
        "IncludeManagedResources",
        "true",
    ),
    ("DescribeInstances", "IncludeManagedResources", "true"),
    ("DescribeInstanceStatus", "IncludeManagedResources", "true"),
    ("DescribeVolumes", "IncludeManagedResources", "true"),
    ("StopInstances", "Hibernate", "false"),
    ("StopInstances", "Force", "false"),
    ("StopInstances", "SkipOsShutdown", "false"),
    ("TerminateInstances", "Force", "false"),
    ("TerminateInstances", "SkipOsShutdown", "false"),
    ("DescribeImages", "IncludeDeprecated", "false"),
    ("DescribeImages", "IncludeDisabled", "false"),
    ("DescribeRegions", "AllRegions", "false"),
    ("DescribeAvailabilityZones", "AllAvailabilityZones", "false"),
    (
        "DescribeNetworkInterfaces",
        "IncludeManagedResources",
        "false",
    ),
    ("DescribeInstances", "IncludeManagedResources", "false"),
    ("DescribeInstanceStatus", "IncludeManagedResources", "false"),
    ("DescribeVolumes", "IncludeManagedResources", "false"),
];

/// Parses a request that the model has checked.
///
/// # Errors
/// `UnsupportedOperation` naming the first parameter that is not honoured.
pub fn parse<T: DeserializeOwned>(action: &str, mut request: Value) -> Result<T, ApiError> {
    if let Some(object) = request.as_object_mut() {
        // `Ctx` has taken these.
        object.remove("DryRun");
        object.remove("ClientToken");
    }
    let mut ignored = Vec::new();
    let typed: T = serde_ignored::deserialize(&request, |path| ignored.push(path.to_string()))
        .map_err(|error| {
            // The model has checked types: only what our types narrow is left.
            ApiError::new(
                "InvalidParameterValue",
                format!("A parameter is invalid: {error}"),
            )
        })?;
    for path in ignored {
        // Options show in a path as `?`.
        let parts: Vec<&str> = path.split('.').filter(|part| *part != "?").collect();
        let leaves = leaves(&request, &parts);
        for (leaf, value) in leaves {
            let plain: Vec<&str> = leaf
                .iter()
                .map(String::as_str)
                .filter(|p| p.parse::<u32>().is_err())
                .collect();
            let plain = plain.join(".");
            let default = DEFAULTS.iter().any(|(on, path, default)| {
                *on == action && *path == plain && *default == text_of(&value)
            });
            if !default {
                return Err(ApiError::unsupported_parameter(&query_name(action, &leaf)));
            }
        }
    }
    Ok(typed)
}

/// The scalars at and below a path, with their paths.
fn leaves(request: &Value, path: &[&str]) -> Vec<(Vec<String>, Value)> {
    let mut at = request;
    for part in path {
        let next = match part.parse::<usize>() {
            Ok(index) => at.get(index),
            Err(_) => at.get(part),
        };
        at = next.unwrap_or(&Value::Null);
    }
    let mut found = Vec::new();
    descend(
        at,
        path.iter().map(|part| (*part).to_owned()).collect(),
        &mut found,
    );
    found
}

fn descend(value: &Value, path: Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
    let below = |part: String| [path.clone(), vec![part]].concat();
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                descend(value, below(name.clone()), found);
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                descend(value, below(index.to_string()), found);
            }
        }
        scalar => found.push((path, scalar.clone())),
    }
}

fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// A path of member names as the query protocol writes it.
fn query_name(action: &str, path: &[String]) -> String {
    let model = crate::wire::ec2();
    let mut shape = model
        .operations
        .get(action)
        .and_then(|operation| operation.input);
    let mut parts = Vec::with_capacity(path.len());
    for part in path {
        match part.parse::<usize>() {
            Ok(index) => parts.push((index + 1).to_string()),
            Err(_) => {
                let (name, next) = step(model, shape, part);
                parts.push(name);
                shape = next;
            }
        }
    }
    parts.join(".")
}

fn step(model: &Model, shape: Option<ShapeId>, part: &str) -> (String, Option<ShapeId>) {
    use crate::wire::shapes::Shape;
    let structure = match shape.map(|shape| (shape, model.shape(shape))) {
        Some((_, Shape::List { member, .. })) => Some(*member),
        Some((shape, _)) => Some(shape),
        None => None,
    };
    let member = structure.and_then(|s| model.members(s).iter().find(|member| member.name == part));
    member.map_or_else(
        || (part.to_owned(), None),
        |m| (m.query.clone(), Some(m.shape)),
    )
}

/// `X.Value`, EC2's way to tell no value from a default one.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Is<T> {
    /// The value.
    pub value: T,
}

/// `Filter.N`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Filter {
    /// Its name.
    pub name: Option<String>,
    /// Its values, one of which has to match.
    #[serde(default)]
    pub values: Vec<String>,
}

/// `Tag.N`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tag {
    /// Its key.
    pub key: Option<String>,
    /// Its value.
    pub value: Option<String>,
}

/// `TagSpecification.N`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TagSpecification {
    /// What is tagged.
    pub resource_type: Option<String>,
    /// With what.
    #[serde(default)]
    pub tags: Vec<Tag>,
}
