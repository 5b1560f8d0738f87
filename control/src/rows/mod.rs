//! The rows of the store: one type a kind of resource, JSON on disk.
//!
//! Keys: `REGION/ACCOUNT/KIND/ID`; rows of no region and no account have `-`
//! in both places. What a tenant sees is made from rows by `ec2`.

pub mod addresses;
pub mod ids;
pub mod instance;
pub mod launching;
pub mod network;
pub mod routing;
pub mod storage;
pub mod system;

pub use addresses::*;
pub use ids::*;
pub use instance::*;
pub use launching::*;
pub use network::*;
pub use routing::*;
pub use storage::*;
pub use system::*;

use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, str::FromStr, sync::Arc};

/// Tags of a resource.
pub type Tags = std::collections::BTreeMap<String, String>;

/// Whose and where a row is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// Region name, or `-`.
    pub region: Arc<str>,
    /// Account id, or `-`.
    pub account: Arc<str>,
}

impl Scope {
    /// A tenant's share of a region.
    pub fn new(region: &str, account: &str) -> Self {
        Self {
            region: region.into(),
            account: account.into(),
        }
    }

    /// Where the rows live that belong to no region and no account.
    pub fn global() -> Self {
        Self::new("-", "-")
    }
}

/// A kind of row.
pub trait Record: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What names one of them within its scope.
    type Id: Ord + Clone + fmt::Display + FromStr + Send + Sync;
    /// Its place in the key.
    const KIND: &'static str;
    /// Its name.
    fn id(&self) -> Self::Id;
}

macro_rules! records {
    ($($type:ty: $kind:literal, $id:ty, $($field:ident).+;)*) => {$(
        impl Record for $type {
            type Id = $id;
            const KIND: &'static str = $kind;
            fn id(&self) -> $id {
                self.$($field).+.clone()
            }
        }
    )*};
}

records! {
    Instance: "instance", InstanceId, id;
    Reservation: "reservation", ReservationId, id;
    Volume: "volume", VolumeId, id;
    Snapshot: "snapshot", SnapshotId, id;
    OwnImage: "image", ImageId, id;
    Interface: "interface", InterfaceId, id;
    Group: "group", GroupId, id;
    Vpc: "vpc", VpcId, id;
    Subnet: "subnet", SubnetId, id;
    SubnetReservation: "subnet-reservation", SubnetReservationId, id;
    Addresses: "addresses", SubnetId, subnet;
    Gateway: "gateway", GatewayId, id;
    EgressGateway: "egress-gateway", EgressGatewayId, id;
    NatGateway: "nat", NatGatewayId, id;
    ConnectEndpoint: "connect", ConnectEndpointId, id;
    RouteTable: "routes", RouteTableId, id;
    Acl: "acl", AclId, id;
    DhcpOptions: "dhcp", DhcpOptionsId, id;
    Address: "address", AllocationId, id;
    Peering: "peering", PeeringId, id;
    PrefixList: "prefixes", PrefixListId, id;
    KeyPair: "keypair", KeyPairId, id;
    LaunchTemplate: "template", LaunchTemplateId, id;
    TemplateVersion: "template-version", TemplateVersionId, id;
    PlacementGroup: "placement", PlacementGroupId, id;
    Token: "token", String, key;
    Settings: "settings", String, name;
    Node: "node", String, name;
    RemovedNode: "removed-node", String, name;
    Counter: "counter", String, name;
    Account: "account", String, id;
    AccessKey: "key", String, id;
}

/// A row's key.
pub fn key<T: Record>(scope: &Scope, id: &T::Id) -> String {
    format!("{}/{}/{}/{id}", scope.region, scope.account, T::KIND)
}

/// The parts of a key: scope, kind, id.
pub fn parse_key(key: &str) -> Option<(Scope, &str, &str)> {
    let mut parts = key.splitn(4, '/');
    let (region, account) = (parts.next()?, parts.next()?);
    Some((Scope::new(region, account), parts.next()?, parts.next()?))
}
