//! Instances, the reservations they come in, and their volumes.

use super::{
    BootFiles, GroupId, ImageId, InstanceId, InterfaceId, Modification, ReservationId, SnapshotId,
    SubnetId, Tags, VolumeId, VpcId,
};
use serde::{Deserialize, Serialize};

/// An instance's state, EC2's names and codes (API reference, `InstanceState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Desired running, not yet up.
    Pending,
    /// Up.
    Running,
    /// Desired absent, not yet gone.
    ShuttingDown,
    /// Gone; the row is kept for an hour.
    Terminated,
    /// Desired stopped, not yet down.
    Stopping,
    /// Down.
    Stopped,
}

impl State {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// EC2's code.
    pub fn code(self) -> u16 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    /// It is, or is to be, up.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }

    /// It is, or is to be, gone.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Terminated)
    }
}

/// What an instance boots, copied from the image so that it outlives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The image.
    pub image: ImageId,
    /// Kernel, a file of the node's image folder.
    pub kernel: String,
    /// Initial RAM disk or nothing.
    pub initrd: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Its root is on an instance store.
    pub instance_store: bool,
    /// `x86_64`.
    pub architecture: String,
}

/// A volume's place in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// `/dev/sda1`.
    pub device: String,
    /// The volume.
    pub volume: VolumeId,
}

/// An instance-store disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreDisk {
    /// `/dev/sdb`.
    pub device: String,
    /// `ephemeral0`, …; nothing for the root.
    pub virtual_name: String,
    /// Size.
    pub size_bytes: u64,
    /// First content, a file of the node's image folder, or nothing.
    pub image: String,
}

/// Metadata options (`InstanceMetadataOptionsResponse`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// `HttpEndpoint`.
    pub enabled: bool,
    /// `HttpTokens` is `required`.
    pub tokens_required: bool,
    /// `HttpPutResponseHopLimit`.
    pub hop_limit: u32,
    /// `InstanceMetadataTags`.
    pub tags: bool,
    /// `HttpProtocolIpv6`.
    #[serde(default)]
    pub ipv6: bool,
}

/// `StateReason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// `Client.UserInitiatedShutdown`, …
    pub code: String,
    /// The same with a sentence.
    pub message: String,
}

/// An instance: what is desired of it and the facts observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The call that made it.
    pub reservation: ReservationId,
    /// Its number within that call.
    pub launch_index: u32,
    /// What it boots.
    pub boot: Boot,
    /// `t2.micro`, …
    pub instance_type: String,
    /// Virtual CPUs reserved at its node.
    pub vcpus: u32,
    /// Memory reserved at its node.
    pub memory_mib: u64,
    /// Zone name.
    pub zone: String,
    /// The node that owns it.
    pub node: String,
    /// Desired and observed in one: see [`State`].
    pub state: State,
    /// Grows with each change of what the node is to do.
    pub generation: u64,
    /// The generation of the last change of `state` that we asked for; reports
    /// on earlier ones are out of date.
    pub state_generation: u64,
    /// It has been up at least once.
    pub has_run: bool,
    /// How often it was told to start.
    pub starts: u64,
    /// How often it was told to reboot.
    pub reboots: u64,
    /// Capacity at its node is held for it.
    pub reserved: bool,
    /// Unix seconds of the last start.
    pub launched_at_s: i64,
    /// Unix seconds when it was gone.
    pub terminated_at_s: Option<i64>,
    /// Why it is stopped or gone.
    pub reason: Option<Reason>,
    /// `StateTransitionReason`.
    pub transition: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its primary private address.
    pub private_ip: std::net::Ipv4Addr,
    /// Its network interfaces by device index.
    pub interfaces: Vec<InterfaceId>,
    /// Interfaces that are to leave it, and are not gone yet.
    #[serde(default)]
    pub leaving: Vec<InterfaceId>,
    /// Groups of its primary interface, kept for terminated instances.
    pub groups: Vec<GroupId>,
    /// Its volumes in device order.
    pub mappings: Vec<Mapping>,
    /// Volumes that are to leave it, and are not gone yet.
    #[serde(default)]
    pub detaching: Vec<VolumeId>,
    /// Of those, the ones that go without the guest's consent.
    #[serde(default)]
    pub force_detach: Vec<VolumeId>,
    /// Its instance-store disks.
    pub store_disks: Vec<StoreDisk>,
    /// `/dev/sda1`.
    pub root_device: String,
    /// Metadata options.
    pub metadata: MetadataOptions,
    /// Its key pair's name, or nothing.
    #[serde(default)]
    pub key_name: String,
    /// That key pair's public half, kept when the key pair is deleted.
    #[serde(default)]
    pub public_key: String,
    /// User data of its own, base64, in place of its reservation's.
    #[serde(default)]
    pub user_data: Option<String>,
    /// `Monitoring` is on.
    #[serde(default)]
    pub monitoring: bool,
    /// `CpuCredits` that its caller asked for.
    #[serde(default)]
    pub credits: Option<String>,
    /// Its placement group.
    #[serde(default)]
    pub placement_group: Option<super::PlacementGroupId>,
    /// Its partition there, from 1.
    #[serde(default)]
    pub partition: Option<u32>,
    /// `DisableApiTermination`.
    pub disable_termination: bool,
    /// `DisableApiStop`.
    pub disable_stop: bool,
    /// `InstanceInitiatedShutdownBehavior` is `terminate`.
    pub terminate_on_shutdown: bool,
    /// The caller's token.
    pub client_token: String,
    /// Its tags.
    pub tags: Tags,
}

/// What the instances of one RunInstances call share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its id.
    pub id: ReservationId,
    /// User data, base64 as it came.
    pub user_data: String,
}

/// A volume's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Desired present, not yet there.
    Creating,
    /// There and attached.
    InUse,
    /// There and attached to nothing.
    Available,
    /// Desired absent.
    Deleting,
    /// Its host is gone, and its bytes with it.
    Error,
}

impl VolumeState {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::InUse => "in-use",
            Self::Available => "available",
            Self::Deleting => "deleting",
            Self::Error => "error",
        }
    }
}

/// A volume's attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// The instance.
    pub instance: InstanceId,
    /// `/dev/sda1`.
    pub device: String,
    /// It ends with the instance.
    pub delete_on_termination: bool,
    /// Unix seconds.
    pub at_s: i64,
    /// The instance's generation with which it is there; 0: it is.
    #[serde(default)]
    pub attaching: u64,
    /// The instance's generation with which it is gone; 0: it stays.
    #[serde(default)]
    pub detaching: u64,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Zone name.
    pub zone: String,
    /// The node that holds it; nothing where it is lost.
    pub node: String,
    /// `Size`.
    pub size_gib: u32,
    /// `gp2`, …
    pub volume_type: String,
    /// `Iops` where the type has it.
    pub iops: Option<u32>,
    /// `Throughput`, MiB/s, where the type has it.
    #[serde(default)]
    pub throughput_mib_s: Option<u32>,
    /// First content: a file of the node's image folder, or nothing.
    pub image: String,
    /// The snapshot that stands for that content.
    pub snapshot: Option<SnapshotId>,
    /// It begins as that snapshot, not as a file.
    #[serde(default)]
    pub of_snapshot: bool,
    /// Encrypted at rest.
    #[serde(default)]
    pub encrypted: bool,
    /// What an instance boots that has this as its root.
    #[serde(default)]
    pub boot: Option<BootFiles>,
    /// The last ModifyVolume.
    #[serde(default)]
    pub modification: Option<Box<Modification>>,
    /// Its state.
    pub state: VolumeState,
    /// Grows with each change of what the node is to do.
    pub generation: u64,
    /// Unix seconds.
    pub created_at_s: i64,
    /// What it is attached to.
    pub attachment: Option<VolumeAttachment>,
    /// `autoEnableIO`.
    #[serde(default)]
    pub auto_enable_io: bool,
    /// Its tags.
    pub tags: Tags,
}
