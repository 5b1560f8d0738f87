//! Resource ids: EC2's prefix and 17 hexadecimal digits from the kernel's CSPRNG,
//! one Rust type a kind.

use crate::wire::ApiError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

const DIGITS: usize = 17;
/// Ids that EC2 gave out until 2018 had 8 digits: well-formed, but no longer in use.
const OLD_DIGITS: usize = 8;

/// What an id's text turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadId {
    /// Not an id of this kind.
    Malformed,
    /// An id of the old form.
    Old,
}

fn parse(prefix: &str, text: &str) -> Result<u128, BadId> {
    let digits = text.strip_prefix(prefix).ok_or(BadId::Malformed)?;
    let plain = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match (plain, digits.len()) {
        (true, DIGITS) => u128::from_str_radix(digits, 16).map_err(|_| BadId::Malformed),
        (true, OLD_DIGITS) => Err(BadId::Old),
        _ => Err(BadId::Malformed),
    }
}

/// 68 random bits.
///
/// # Panics
/// If the kernel has no random numbers, on which all security rests.
fn random() -> u128 {
    let mut bytes = [0; 16];
    if let Err(error) = getrandom::fill(&mut bytes) {
        panic!("the kernel gives no random numbers: {error}");
    }
    u128::from_le_bytes(bytes) >> (128 - 4 * DIGITS)
}

/// 68 bits made of a text: for ids that are the same at every start.
fn derived(text: &str) -> u128 {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let bits = digest
        .as_ref()
        .iter()
        .take(16)
        .fold(0_u128, |bits, b| bits << 8 | u128::from(*b));
    bits >> (128 - 4 * DIGITS)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $malformed:literal, $missing:literal, $noun:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// What its text starts with.
            pub const PREFIX: &'static str = $prefix;

            /// A new id.
            pub fn random() -> Self {
                Self(random())
            }

            /// The id that belongs to a text for ever.
            pub fn derived(text: &str) -> Self {
                Self(derived(text))
            }

            /// The error for an id that names nothing.
            pub fn not_found(text: impl fmt::Display) -> ApiError {
                ApiError::new($missing, format!("The {} '{text}' does not exist", $noun))
            }

            /// Parses a caller's text.
            ///
            /// # Errors
            /// EC2's `…Malformed` code, or its `…NotFound` for an id of the old form.
            pub fn parse(text: &str) -> Result<Self, ApiError> {
                match parse($prefix, text) {
                    Ok(bits) => Ok(Self(bits)),
                    Err(BadId::Old) => Err(Self::not_found(text)),
                    Err(BadId::Malformed) => Err(ApiError::new(
                        $malformed,
                        format!("Invalid id: \"{text}\" (expecting \"{}...\")", $prefix),
                    )),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{:017x}", $prefix, self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                parse($prefix, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(|_| {
                    serde::de::Error::custom(format!("{text:?} is not an id {}…", $prefix))
                })
            }
        }
    )*};
}

ids! {
    /// An instance.
    InstanceId = "i-", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound", "instance ID";
    /// The instances that one RunInstances call made.
    ReservationId = "r-", "InvalidReservationID.Malformed", "InvalidReservationID.NotFound", "reservation ID";
    /// A volume.
    VolumeId = "vol-", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound", "volume";
    /// A snapshot.
    SnapshotId = "snap-", "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound", "snapshot";
    /// An image.
    ImageId = "ami-", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound", "image id";
    /// A network interface.
    InterfaceId = "eni-", "InvalidNetworkInterfaceId.Malformed", "InvalidNetworkInterfaceID.NotFound", "networkInterface ID";
    /// A network interface's attachment.
    AttachmentId = "eni-attach-", "InvalidAttachmentID.Malformed", "InvalidAttachmentID.NotFound", "attachment ID";
    /// A security group.
    GroupId = "sg-", "InvalidGroupId.Malformed", "InvalidGroup.NotFound", "security group";
    /// A rule of a security group.
    RuleId = "sgr-", "InvalidSecurityGroupRuleId.Malformed", "InvalidSecurityGroupRuleId.NotFound", "security group rule ID";
    /// A VPC.
    VpcId = "vpc-", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound", "vpc ID";
    /// A subnet.
    SubnetId = "subnet-", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound", "subnet ID";
    /// An internet gateway.
    GatewayId = "igw-", "InvalidInternetGatewayId.Malformed", "InvalidInternetGatewayID.NotFound", "internetGateway ID";
    /// An egress-only internet gateway.
    EgressGatewayId = "eigw-", "InvalidEgressOnlyInternetGatewayId.Malformed", "InvalidEgressOnlyInternetGatewayId.NotFound", "egressOnlyInternetGateway ID";
    /// A NAT gateway.
    NatGatewayId = "nat-", "NatGatewayMalformed", "NatGatewayNotFound", "NAT gateway";
    /// An instance-connect endpoint.
    ConnectEndpointId = "eice-", "InvalidInstanceConnectEndpointId.Malformed", "InvalidInstanceConnectEndpointId.NotFound", "instance connect endpoint ID";
    /// A route table.
    RouteTableId = "rtb-", "InvalidRouteTableId.Malformed", "InvalidRouteTableID.NotFound", "routeTable ID";
    /// A route table's association.
    RouteAssociationId = "rtbassoc-", "InvalidAssociationID.Malformed", "InvalidAssociationID.NotFound", "association ID";
    /// A network ACL.
    AclId = "acl-", "InvalidNetworkAclId.Malformed", "InvalidNetworkAclID.NotFound", "networkAcl ID";
    /// A network ACL's association.
    AclAssociationId = "aclassoc-", "InvalidAssociationID.Malformed", "InvalidAssociationID.NotFound", "association ID";
    /// A set of DHCP options.
    DhcpOptionsId = "dopt-", "InvalidDhcpOptionsId.Malformed", "InvalidDhcpOptionID.NotFound", "dhcpOptions ID";
    /// A further address block of a VPC.
    CidrAssociationId = "vpc-cidr-assoc-", "InvalidVpcCidrBlockAssociationId.Malformed", "InvalidVpcCidrBlockAssociationID.NotFound", "vpc CIDR block association ID";
    /// A subnet's IPv6 block.
    SubnetCidrAssociationId = "subnet-cidr-assoc-", "InvalidSubnetCidrBlockAssociationID.Malformed", "InvalidSubnetCidrBlockAssociationID.NotFound", "subnet CIDR block association ID";
    /// A reserved range of a subnet.
    SubnetReservationId = "scr-", "InvalidSubnetCidrReservationID.Malformed", "InvalidSubnetCidrReservationID.NotFound", "subnet CIDR reservation ID";
    /// An Elastic IP address.
    AllocationId = "eipalloc-", "InvalidAllocationID.Malformed", "InvalidAllocationID.NotFound", "allocation ID";
    /// An Elastic IP address's association.
    AddressAssociationId = "eipassoc-", "InvalidAssociationID.Malformed", "InvalidAssociationID.NotFound", "association ID";
    /// A VPC peering connection.
    PeeringId = "pcx-", "InvalidVpcPeeringConnectionId.Malformed", "InvalidVpcPeeringConnectionID.NotFound", "vpcPeeringConnection ID";
    /// A key pair.
    KeyPairId = "key-", "InvalidKeyPair.NotFound", "InvalidKeyPair.NotFound", "key pair";
    /// A launch template.
    LaunchTemplateId = "lt-", "InvalidLaunchTemplateId.Malformed", "InvalidLaunchTemplateId.NotFound", "specified launch template, with template ID";
    /// A prefix list.
    PrefixListId = "pl-", "InvalidPrefixListId.Malformed", "InvalidPrefixListID.NotFound", "prefix list ID";
    /// A placement group.
    PlacementGroupId = "pg-", "InvalidPlacementGroupId.Malformed", "InvalidPlacementGroup.Unknown", "Placement Group";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_ec2s_form() {
        let id = InstanceId::random();
        assert_eq!(id.to_string().len(), "i-".len() + 17);
        assert_eq!(InstanceId::parse(&id.to_string()), Ok(id));
        assert_ne!(id, InstanceId::random());
        let code = |text| InstanceId::parse(text).unwrap_err().code;
        assert_eq!(code("i-1234567g"), "InvalidInstanceID.Malformed");
        assert_eq!(code("vol-01234567890123456"), "InvalidInstanceID.Malformed");
        assert_eq!(code("i-0123456789012345A"), "InvalidInstanceID.Malformed");
        assert_eq!(code(""), "InvalidInstanceID.Malformed");
        assert_eq!(code("i-12345678"), "InvalidInstanceID.NotFound");
    }
}
