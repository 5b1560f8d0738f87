//! What a launch is to make.

use crate::ec2::private_addresses::Wanted;
use crate::ec2::types::InstanceType;
use crate::ec2::volume_types::{self, Asked, Given};
use crate::ec2::volumes::Source;
use crate::ec2::{ipv6_addresses, place};
use crate::rows::*;
use crate::wire::ApiError;
use std::sync::Arc;
/// A launch, resolved.
#[derive(Debug)]
pub struct Plan {
    /// Type.
    pub kind: InstanceType,
    /// What is booted.
    pub boot: Boot,
    /// `/dev/sda1`.
    pub root_device: String,
    /// Block devices.
    pub disks: Disks,
    /// Zone name.
    pub zone: String,
    /// Network interfaces by device index, the primary one first.
    pub nics: Vec<Nic>,
    /// The key pair, if one was named.
    pub key: Option<Arc<KeyPair>>,
    /// `Monitoring` is on.
    pub monitoring: bool,
    /// `CpuCredits`.
    pub credits: Option<String>,
    /// The placement group, and the partition asked for.
    pub placement: Option<place::Wish>,
    /// Metadata options.
    pub metadata: MetadataOptions,
    /// Base64.
    pub user_data: String,
    /// The caller's token.
    pub client_token: String,
    /// `DisableApiTermination`.
    pub disable_termination: bool,
    /// `DisableApiStop`.
    pub disable_stop: bool,
    /// `InstanceInitiatedShutdownBehavior` is `terminate`.
    pub terminate_on_shutdown: bool,
    /// Tags of instances.
    pub instance_tags: Tags,
    /// Tags of volumes.
    pub volume_tags: Tags,
    /// Tags of interfaces.
    pub interface_tags: Tags,
}

/// A network interface of each instance of a launch.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its device index.
    pub index: u32,
    /// It ends with the instance.
    pub delete_on_termination: bool,
    /// Where it comes from.
    pub source: NicSource,
}

/// Whether an interface gets a public address at its instance's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Public {
    /// None.
    No,
    /// As its subnet has it: one, while there are any.
    BySubnet,
    /// The caller asked for one.
    Asked,
}

/// A new interface, or one that is there.
#[derive(Debug, Clone)]
pub enum NicSource {
    /// To be made.
    New {
        /// Its subnet.
        subnet: Arc<Subnet>,
        /// Its groups.
        groups: Vec<GroupId>,
        /// Its private addresses.
        wanted: Wanted,
        /// Its IPv6 addresses.
        ipv6: ipv6_addresses::Wanted,
        /// `Description`.
        description: String,
        /// It gets a public address.
        public: Public,
    },
    /// An unattached one.
    Existing(Arc<Interface>),
}

impl Nic {
    /// The subnet that it is in.
    pub fn subnet(&self) -> SubnetId {
        match &self.source {
            NicSource::New { subnet, .. } => subnet.id,
            NicSource::Existing(row) => row.subnet,
        }
    }

    /// How many addresses of its subnet it takes.
    pub(super) fn addresses(&self) -> usize {
        match &self.source {
            NicSource::New { wanted, .. } => wanted.total(),
            NicSource::Existing(_) => 0,
        }
    }

    pub(super) fn is_one_of_a_kind(&self) -> bool {
        match &self.source {
            NicSource::New { wanted, ipv6, .. } => {
                wanted.primary.is_some() || !wanted.secondary.is_empty() || !ipv6.named.is_empty()
            }
            NicSource::Existing(_) => true,
        }
    }
}

/// Block devices of each instance of a launch.
#[derive(Debug, Default)]
pub struct Disks {
    /// Volumes in device order, the root first if it is one.
    pub volumes: Vec<NewVolume>,
    /// Instance-store disks, the root first if it is one.
    pub store: Vec<StoreDisk>,
}

/// A volume to make.
#[derive(Debug)]
pub struct NewVolume {
    /// `/dev/sda1`.
    pub device: String,
    /// Size.
    pub size_gib: u32,
    /// Its type and performance.
    pub kind: Asked,
    /// It ends with the instance.
    pub delete_on_termination: bool,
    /// What it begins as; nothing: zeros.
    pub source: Option<Source>,
    /// Encrypted at rest.
    pub encrypted: bool,
    /// The request has a mapping for it; else the image alone has.
    pub asked: bool,
}

impl NewVolume {
    /// Its performance.
    ///
    /// # Errors
    /// Those of [`volume_types::give`].
    pub fn given(&self) -> Result<Given, ApiError> {
        volume_types::give(&self.kind, self.size_gib.into())
    }
}
