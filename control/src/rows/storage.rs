//! Snapshots, and images that tenants made.

use super::{ImageId, InstanceId, SnapshotId, Tags, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Files of the node's image folder that a root volume is booted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFiles {
    /// Kernel.
    pub kernel: String,
    /// Initial RAM disk or nothing.
    pub initrd: String,
    /// Kernel command line.
    pub cmdline: String,
    /// `x86_64`.
    pub architecture: String,
}

/// What a volume is to become, and was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modification {
    /// The volume's generation with which it is so.
    pub generation: u64,
    /// It is so.
    pub done: bool,
    /// Before.
    pub original: Performance,
    /// After.
    pub target: Performance,
    /// Unix seconds.
    pub started_at_s: i64,
    /// Unix seconds.
    pub ended_at_s: Option<i64>,
}

/// Size, type and what the type provides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Performance {
    /// `Size`.
    pub size_gib: u32,
    /// `gp2`, …
    pub volume_type: String,
    /// `Iops` where the type has it.
    pub iops: Option<u32>,
    /// `Throughput` where the type has it.
    pub throughput_mib_s: Option<u32>,
}

/// A snapshot's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// To be taken.
    Pending,
    /// Taken.
    Completed,
    /// It could not be.
    Error,
    /// Desired absent; tenants see it no more.
    Deleting,
}

impl SnapshotState {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Error | Self::Deleting => "error",
        }
    }
}

/// What a snapshot is a copy of: another snapshot, a file of the image folder, or zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCopy {
    /// The snapshot, which may be gone since.
    pub snapshot: Option<SnapshotId>,
    /// The file, or nothing.
    pub image: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The volume that it is of, which may be gone.
    pub volume: VolumeId,
    /// The node that holds it; nothing where it is lost.
    pub node: String,
    /// `VolumeSize`.
    pub size_gib: u32,
    /// What its maker says.
    pub description: String,
    /// Its state.
    pub state: SnapshotState,
    /// Why it is in error.
    pub message: String,
    /// Grows with each change of what the node is to do.
    pub generation: u64,
    /// Unix seconds.
    pub started_at_s: i64,
    /// Unix seconds.
    pub completed_at_s: Option<i64>,
    /// Encrypted at rest.
    pub encrypted: bool,
    /// Bytes that are not zeros.
    pub full_bytes: u64,
    /// Bytes that changed since the volume's snapshot before.
    pub changed_bytes: u64,
    /// Taken before this instance runs with so many reboots.
    pub while_down: Option<(InstanceId, u64)>,
    /// Taken at the same instant: these, of those volumes.
    #[serde(default)]
    pub with: Vec<(SnapshotId, VolumeId)>,
    /// It is of no volume, but a copy.
    #[serde(default)]
    pub copy: Option<SnapshotCopy>,
    /// What an instance boots that has this as its root.
    pub boot: Option<BootFiles>,
    /// Accounts that may make volumes of it; `all` is everybody.
    pub shared_with: BTreeSet<String>,
    /// Its tags.
    pub tags: Tags,
}

/// A device of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDevice {
    /// `/dev/sda1`.
    pub device: String,
    /// What it begins as, or zeros.
    pub snapshot: Option<SnapshotId>,
    /// `VolumeSize`.
    pub size_gib: u32,
    /// `gp2`, …
    pub volume_type: String,
    /// `Iops` where it was chosen.
    #[serde(default)]
    pub iops: Option<u32>,
    /// `Throughput` where the type has it.
    #[serde(default)]
    pub throughput_mib_s: Option<u32>,
    /// It ends with the instance.
    pub delete_on_termination: bool,
    /// Encrypted at rest.
    pub encrypted: bool,
}

/// Whether an image is kept from being deregistered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// It is not.
    #[default]
    Off,
    /// It is; with a cooldown for a day more after that is taken away.
    On {
        /// With a cooldown.
        cooldown: bool,
    },
    /// Until then, in Unix seconds.
    Until(i64),
}

/// What an image's owner says of its use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Unix seconds from which on it is deprecated.
    pub deprecated_at_s: Option<i64>,
    /// Nobody may launch it.
    pub disabled: bool,
    /// Whether it may be deregistered.
    pub protection: Protection,
}

/// An image that a tenant made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnImage {
    /// Its id.
    pub id: ImageId,
    /// Its name, unique in account and region.
    pub name: String,
    /// What its maker says.
    pub description: String,
    /// What is booted.
    pub boot: BootFiles,
    /// `v2.0`: instances require metadata tokens unless told otherwise.
    pub imds_support: String,
    /// `/dev/sda1`.
    pub root_device: String,
    /// Its devices, the root first.
    pub devices: Vec<ImageDevice>,
    /// The instance that it was made from.
    pub source_instance: Option<InstanceId>,
    /// The region and the image that it is a copy of.
    #[serde(default)]
    pub source_image: Option<(String, ImageId)>,
    /// Unix seconds.
    pub created_at_s: i64,
    /// Accounts that may launch it; `all` is everybody.
    pub shared_with: BTreeSet<String>,
    /// What its owner says of its use.
    #[serde(default)]
    pub standing: Standing,
    /// Its tags.
    pub tags: Tags,
}
