//! Makes `control/model/*.json` and `control/proto/*.proto` from AWS's published
//! service models, as botocore ships them: `gen-ec2 BOTOCORE_DIR CONTROL_DIR`.
//!
//! ```text
//!   botocore/data/ec2/…/service-2.json ─┐            ┌─▶ model/ec2.json   shapes of what we offer
//!                                       ├─ extract ──┤
//!   botocore/data/sts/…/service-2.json ─┘            └─▶ proto/ec2.proto  the same, for gRPC
//! ```
//!
//! Names, members and wire names are facts; the documentation is left behind,
//! save the names of the filters that an action documents.

mod extract;
mod proto;
#[cfg(test)]
mod vectors;

use anyhow::{Context, Result, bail};
use std::{fs, io::Read, path::Path};

/// The EC2 actions on offer. Adding one here and running the generator makes it
/// decodable; `ec2::dispatch` has to know it too, which a test checks.
const EC2_ACTIONS: &[&str] = &[
    "AcceptVpcPeeringConnection",
    "AllocateAddress",
    "AssignIpv6Addresses",
    "AssignPrivateIpAddresses",
    "AssociateAddress",
    "AssociateDhcpOptions",
    "AssociateRouteTable",
    "AssociateSubnetCidrBlock",
    "AssociateVpcCidrBlock",
    "AttachInternetGateway",
    "AttachNetworkInterface",
    "AttachVolume",
    "AuthorizeSecurityGroupEgress",
    "AuthorizeSecurityGroupIngress",
    "CopyImage",
    "CopySnapshot",
    "CreateDefaultSubnet",
    "CreateDefaultVpc",
    "CreateDhcpOptions",
    "CreateEgressOnlyInternetGateway",
    "CreateImage",
    "CreateInstanceConnectEndpoint",
    "CreateInternetGateway",
    "CreateKeyPair",
    "CreateLaunchTemplate",
    "CreateLaunchTemplateVersion",
    "CreateManagedPrefixList",
    "CreateNatGateway",
    "CreateNetworkAcl",
    "CreateNetworkAclEntry",
    "CreateNetworkInterface",
    "CreatePlacementGroup",
    "CreateRoute",
    "CreateRouteTable",
    "CreateSecurityGroup",
    "CreateSnapshot",
    "CreateSnapshots",
    "CreateSubnet",
    "CreateSubnetCidrReservation",
    "CreateTags",
    "CreateVolume",
    "CreateVpc",
    "CreateVpcPeeringConnection",
    "DeleteDhcpOptions",
    "DeleteEgressOnlyInternetGateway",
    "DeleteInstanceConnectEndpoint",
    "DeleteInternetGateway",
    "DeleteKeyPair",
    "DeleteLaunchTemplate",
    "DeleteLaunchTemplateVersions",
    "DeleteManagedPrefixList",
    "DeleteNatGateway",
    "DeleteNetworkAcl",
    "DeleteNetworkAclEntry",
    "DeleteNetworkInterface",
    "DeletePlacementGroup",
    "DeleteRoute",
    "DeleteRouteTable",
    "DeleteSecurityGroup",
    "DeleteSnapshot",
    "DeleteSubnet",
    "DeleteSubnetCidrReservation",
    "DeleteTags",
    "DeleteVolume",
    "DeleteVpc",
    "DeleteVpcPeeringConnection",
    "DeregisterImage",
    "DescribeAccountAttributes",
    "DescribeAddresses",
    "DescribeAddressesAttribute",
    "DescribeAggregateIdFormat",
    "DescribeAvailabilityZones",
    "DescribeCapacityReservations",
    "DescribeCarrierGateways",
    "DescribeClassicLinkInstances",
    "DescribeDhcpOptions",
    "DescribeEgressOnlyInternetGateways",
    "DescribeFlowLogs",
    "DescribeHosts",
    "DescribeIamInstanceProfileAssociations",
    "DescribeIdFormat",
    "DescribeImageAttribute",
    "DescribeImages",
    "DescribeInstanceAttribute",
    "DescribeInstanceConnectEndpoints",
    "DescribeInstanceCreditSpecifications",
    "DescribeInstanceStatus",
    "DescribeInstanceTypeOfferings",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeInternetGateways",
    "DescribeKeyPairs",
    "DescribeLaunchTemplateVersions",
    "DescribeLaunchTemplates",
    "DescribeManagedPrefixLists",
    "DescribeNatGateways",
    "DescribeNetworkAcls",
    "DescribeNetworkInterfaceAttribute",
    "DescribeNetworkInterfaces",
    "DescribePlacementGroups",
    "DescribePrefixLists",
    "DescribeRegions",
    "DescribeReservedInstances",
    "DescribeRouteTables",
    "DescribeSecurityGroupReferences",
    "DescribeSecurityGroupRules",
    "DescribeSecurityGroups",
    "DescribeSnapshotAttribute",
    "DescribeSnapshots",
    "DescribeStaleSecurityGroups",
    "DescribeSubnets",
    "DescribeTags",
    "DescribeVolumeAttribute",
    "DescribeVolumeStatus",
    "DescribeVolumes",
    "DescribeVolumesModifications",
    "DescribeVpcAttribute",
    "DescribeVpcClassicLink",
    "DescribeVpcClassicLinkDnsSupport",
    "DescribeVpcEndpoints",
    "DescribeVpcPeeringConnections",
    "DescribeVpcs",
    "DescribeVpnGateways",
    "DetachInternetGateway",
    "DetachNetworkInterface",
    "DetachVolume",
    "DisableEbsEncryptionByDefault",
    "DisableImage",
    "DisableImageBlockPublicAccess",
    "DisableImageDeprecation",
    "DisableImageDeregistrationProtection",
    "DisableSnapshotBlockPublicAccess",
    "DisassociateAddress",
    "DisassociateRouteTable",
    "DisassociateSubnetCidrBlock",
    "DisassociateVpcCidrBlock",
    "EnableEbsEncryptionByDefault",
    "EnableImage",
    "EnableImageBlockPublicAccess",
    "EnableImageDeprecation",
    "EnableImageDeregistrationProtection",
    "EnableSnapshotBlockPublicAccess",
    "EnableVolumeIO",
    "GetConsoleOutput",
    "GetConsoleScreenshot",
    "GetDefaultCreditSpecification",
    "GetEbsDefaultKmsKeyId",
    "GetEbsEncryptionByDefault",
    "GetImageBlockPublicAccessState",
    "GetInstanceMetadataDefaults",
    "GetInstanceUefiData",
    "GetLaunchTemplateData",
    "GetManagedPrefixListAssociations",
    "GetManagedPrefixListEntries",
    "GetPasswordData",
    "GetSecurityGroupsForVpc",
    "GetSerialConsoleAccessStatus",
    "GetSnapshotBlockPublicAccessState",
    "GetSubnetCidrReservations",
    "ImportKeyPair",
    "ModifyDefaultCreditSpecification",
    "ModifyEbsDefaultKmsKeyId",
    "ModifyImageAttribute",
    "ModifyInstanceAttribute",
    "ModifyInstanceConnectEndpoint",
    "ModifyInstanceCreditSpecification",
    "ModifyInstanceMetadataDefaults",
    "ModifyInstanceMetadataOptions",
    "ModifyLaunchTemplate",
    "ModifyManagedPrefixList",
    "ModifyNetworkInterfaceAttribute",
    "ModifySecurityGroupRules",
    "ModifySnapshotAttribute",
    "ModifySubnetAttribute",
    "ModifyVolume",
    "ModifyVolumeAttribute",
    "ModifyVpcAttribute",
    "ModifyVpcPeeringConnectionOptions",
    "MonitorInstances",
    "RebootInstances",
    "RegisterImage",
    "RejectVpcPeeringConnection",
    "ReleaseAddress",
    "ReplaceNetworkAclAssociation",
    "ReplaceNetworkAclEntry",
    "ReplaceRoute",
    "ReplaceRouteTableAssociation",
    "ReportInstanceStatus",
    "ResetEbsDefaultKmsKeyId",
    "ResetImageAttribute",
    "ResetInstanceAttribute",
    "ResetNetworkInterfaceAttribute",
    "ResetSnapshotAttribute",
    "RestoreManagedPrefixListVersion",
    "RevokeSecurityGroupEgress",
    "RevokeSecurityGroupIngress",
    "RunInstances",
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
    "UnassignIpv6Addresses",
    "UnassignPrivateIpAddresses",
    "UnmonitorInstances",
    "UpdateSecurityGroupRuleDescriptionsEgress",
    "UpdateSecurityGroupRuleDescriptionsIngress",
];

const STS_ACTIONS: &[&str] = &["GetCallerIdentity"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [botocore, control] = args.as_slice() else {
        bail!("usage: gen-ec2 BOTOCORE_DIR CONTROL_DIR");
    };
    for (service, version, actions) in [
        ("ec2", "2016-11-15", EC2_ACTIONS),
        ("sts", "2011-06-15", STS_ACTIONS),
    ] {
        let model = read_model(Path::new(botocore), service, version)?;
        let extract = extract::extract(&model, actions)
            .with_context(|| format!("service model of {service}"))?;
        let control = Path::new(control);
        write(
            &control.join(format!("model/{service}.json")),
            &extract.to_text()?,
        )?;
        let proto_path = control.join(format!("proto/{service}.proto"));
        let before = fs::read_to_string(&proto_path).unwrap_or_default();
        write(&proto_path, &proto::render(service, &extract, &before)?)?;
    }
    Ok(())
}

/// Finds and reads `service-2.json`, plain or gzipped, below a botocore checkout,
/// package or data folder.
fn read_model(dir: &Path, service: &str, version: &str) -> Result<serde_json::Value> {
    for base in ["", "data", "botocore/data"] {
        let plain = dir
            .join(base)
            .join(service)
            .join(version)
            .join("service-2.json");
        let gzipped = plain.with_extension("json.gz");
        let bytes = if plain.is_file() {
            fs::read(&plain)?
        } else if gzipped.is_file() {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(fs::File::open(&gzipped)?).read_to_end(&mut bytes)?;
            bytes
        } else {
            continue;
        };
        return serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not JSON", plain.display()));
    }
    bail!(
        "no {service}/{version}/service-2.json[.gz] below {}",
        dir.display()
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {} ({} bytes)", path.display(), text.len());
    Ok(())
}
