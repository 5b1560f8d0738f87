//! storaged's interface: one JSON [`Request`] a line in, one [`Reply`] a line
//! out, over a Unix socket that serves root and storaged's own uid alone.
//!
//! Every request states what shall be (level-triggered) and may be repeated.
//! What it states is durable before the reply: a restarted storaged carries on
//! from its own table with nobody alive above it.

mod client;
pub mod erasure;
mod limits;

pub use client::{Client, ClientError};
pub use limits::{Burst, Credits, IO_BYTES, Limits, Rate, VolumeLimits};
pub use ocs_disk_image::Format;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The form of [`Request::HandOver`].
pub const HAND_OVER: u32 = 1;

/// A volume's name: EC2's `vol-…` for persistent volumes, `i-…-ephemeral0` for
/// instance store. `[a-z0-9-]`, 1 to 64 bytes; it becomes a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeName(pub String);

/// How a volume keeps its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// Survives detach, restart and stop.
    Persistent,
    /// Instance store: XTS-AES-256 under a key that lives in memory only, in
    /// storaged and in the inflight region that the VMM holds for it, so that it
    /// outlives a restart of storaged and dies with both (host crash, stop).
    Ephemeral,
}

/// What a caller may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Request {
    /// The volume shall exist with this size, kind and first content. Existing
    /// with the same values: done; with others: refused.
    PutVolume {
        /// Its name.
        volume: VolumeName,
        /// Its size, a multiple of 4,096, at most 16 TiB.
        size_bytes: u64,
        /// How it keeps its bytes.
        kind: VolumeKind,
        /// First content: a file name in storaged's images folder. Zeros otherwise.
        #[serde(default)]
        image: Option<String>,
        /// First content: a snapshot, at once whatever its size.
        #[serde(default)]
        snapshot: Option<VolumeName>,
        /// A persistent volume's bytes lie under a key of its own, wrapped by the
        /// node's. Ephemeral volumes always have a key.
        #[serde(default)]
        encrypted: bool,
    },
    /// The volume shall be served to the VMM that listens on `socket`, now and
    /// after every restart of either side, until detached.
    Attach {
        /// Its name.
        volume: VolumeName,
        /// Where the VMM listens.
        socket: PathBuf,
        /// Serve it with `VIRTIO_BLK_F_RO`.
        #[serde(default)]
        read_only: bool,
    },
    /// The volume shall be served to nobody. Answers once no request is in flight.
    Detach {
        /// Its name.
        volume: VolumeName,
    },
    /// The volume shall not exist: detached, key destroyed, bytes gone.
    DeleteVolume {
        /// Its name.
        volume: VolumeName,
    },
    /// The volume shall be held to these limits, from now on and after a restart.
    SetLimits {
        /// Its name.
        volume: VolumeName,
        /// All of its limits; those absent end.
        limits: VolumeLimits,
    },
    /// The volumes of this group shall be held to these limits together. A group is
    /// there from its first limits until it has none; it ends when no volume names it.
    SetGroup {
        /// Its name: `[a-z0-9-]`, 1 to 64 bytes; an instance's id, say.
        group: String,
        /// All of its limits; with none at all the group ends.
        limits: Limits,
    },
    /// A persistent volume shall have this size, which is not below what it has. Its
    /// guest, if any, waits for some milliseconds.
    ResizeVolume {
        /// Its name.
        volume: VolumeName,
        /// Its size, as in `PutVolume`.
        size_bytes: u64,
    },
    /// The snapshot shall exist: what the volume held at one instant of this call. Its
    /// guest, if any, waits for some milliseconds. A snapshot outlives its volume.
    PutSnapshot {
        /// Its name, which no volume has.
        snapshot: VolumeName,
        /// The volume that it is of.
        volume: VolumeName,
        /// Snapshots of other volumes, new ones, that are taken with it: all of them
        /// hold what was at the same instant, and all of them come to be or none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        with: Vec<SnapshotOf>,
    },
    /// The snapshot shall exist, and hold what another one holds, or an image. Neither
    /// needs the other from then on. One that was asked for otherwise is refused.
    CopySnapshot {
        /// Its name, which no volume has.
        snapshot: VolumeName,
        /// What it is a copy of.
        of: Origin,
        /// Its size: that of the snapshot; at least that of the image.
        size_bytes: u64,
        /// All of its bytes lie under keys: those that do not are copied, under a new
        /// one, which takes its time. A copy of an encrypted snapshot is encrypted.
        #[serde(default)]
        encrypted: bool,
    },
    /// The snapshot shall not exist; volumes that began as it stay as they are.
    DeleteSnapshot {
        /// Its name.
        snapshot: VolumeName,
    },
    /// A persistent volume that is attached to nobody shall hold the disk in the file
    /// that comes with the request ([`Client::call_on`]), and zeros behind it. Until
    /// the answer it holds what it held.
    Import {
        /// Its name.
        volume: VolumeName,
        /// What the file is.
        format: Format,
    },
    /// The file that comes with the request shall hold the disk of a volume that is
    /// attached to nobody, or of a snapshot.
    Export {
        /// Its name.
        of: VolumeName,
        /// What the file becomes.
        format: Format,
        /// If it is encrypted: the file may hold it as it is without its key.
        #[serde(default)]
        decrypt: bool,
    },
    /// Answers [`Reply::Erasure`] of an instance store that is deleted, or whose key both
    /// holders lost; one that is in use is refused.
    AttestErasure {
        /// Its name.
        volume: VolumeName,
    },
    /// Answers [`Reply::Volumes`].
    List,
    /// Answers [`Reply::Snapshots`].
    ListSnapshots,
    /// Answers [`Reply::Scrub`].
    Scrub,
    /// Between storageds: the caller takes over everything, sessions with VMMs and
    /// this socket included. What follows on the connection is theirs alone.
    HandOver {
        /// The caller's form of it, [`HAND_OVER`]; another one is refused.
        form: u32,
    },
}

/// A snapshot to be taken of a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotOf {
    /// Its name.
    pub snapshot: VolumeName,
    /// The volume that it is of.
    pub volume: VolumeName,
}

/// What a snapshot is a copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A snapshot.
    Snapshot(VolumeName),
    /// A file name in storaged's images folder.
    Image(String),
    /// Nothing, as a volume begins that is told neither.
    Zeros,
}

/// What storaged answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is so, durably.
    Ok,
    /// Refused; nothing changed.
    Error {
        /// What kind of refusal.
        code: ErrorCode,
        /// One sentence.
        message: String,
    },
    /// To [`Request::Scrub`].
    Scrub {
        /// What was found.
        scrub: Scrub,
    },
    /// To [`Request::AttestErasure`].
    Erasure {
        /// What storaged knows.
        erasure: Erasure,
    },
    /// To [`Request::List`], by name.
    Volumes {
        /// Every volume.
        volumes: Vec<VolumeStatus>,
    },
    /// To [`Request::ListSnapshots`], by name.
    Snapshots {
        /// Every snapshot.
        snapshots: Vec<SnapshotStatus>,
    },
}

/// What scrubbing has done and found since this storaged started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Times that all was looked at.
    pub passes: u64,
    /// Bytes that were read and held to their checksum, or sealed.
    pub checked_bytes: u64,
    /// Bytes that got a checksum.
    pub sealed_bytes: u64,
    /// Checksums that were damaged themselves, and made anew.
    pub damaged_sums: u64,
    /// Grains that the disk could not read, each time.
    pub unreadable: u64,
    /// What is not what it was, as of its last check.
    pub damage: Vec<Damage>,
    /// Volumes and snapshots whose map is not what it was.
    pub damaged_maps: Vec<VolumeName>,
}

/// A grain of 64 KiB that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The layer's file.
    pub layer: String,
    /// Where in it, and in each volume and snapshot that has it.
    pub offset: u64,
    /// The volumes and snapshots that had it when it was found.
    pub of: Vec<VolumeName>,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not of this shape or a value is out of bounds.
    Invalid,
    /// No volume or image of that name.
    NotFound,
    /// The volume exists with other values, or is attached elsewhere.
    Conflict,
    /// Out of room.
    Full,
    /// An ephemeral volume's key is gone (both holders died); only delete helps.
    KeyLost,
    /// The system refused.
    Io,
}

/// One volume as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub volume: VolumeName,
    /// Its size.
    pub size_bytes: u64,
    /// How it keeps its bytes.
    pub kind: VolumeKind,
    /// The image it began as.
    #[serde(default)]
    pub image: Option<String>,
    /// The snapshot it began as.
    #[serde(default)]
    pub snapshot: Option<VolumeName>,
    /// Its bytes lie under a key.
    #[serde(default)]
    pub encrypted: bool,
    /// The socket it shall be served on.
    #[serde(default)]
    pub attached: Option<PathBuf>,
    /// A VMM is connected now.
    pub connected: bool,
    /// An ephemeral volume whose key both holders lost; only delete helps.
    #[serde(default)]
    pub key_lost: bool,
    /// Bytes of it that scrubbing found damaged, in grains of 64 KiB.
    #[serde(default)]
    pub damaged_bytes: u64,
    /// What it is held to.
    #[serde(default, skip_serializing_if = "VolumeLimits::is_default")]
    pub limits: VolumeLimits,
    /// Burst credits left of its own limits.
    #[serde(default)]
    pub credits: Credits,
    /// Requests that had to wait for a limit.
    #[serde(default)]
    pub throttled: u64,
    /// Requests completed since this storaged started, by kind.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Requests that ended in an error status.
    pub errors: u64,
}

/// What storaged knows of an instance store's end. That its key is gone has to be
/// looked for in memory ([`erasure::Search`]), since storaged cannot know it any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// When its key was destroyed, in seconds since 1970; absent where it is lost and the
    /// volume not deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_at_s: Option<u64>,
    /// What its key can be told by, a half each.
    pub traces: Vec<erasure::Trace>,
    /// Its blocks of 4,096 bytes that held data.
    pub blocks: u64,
    /// Of those, how many were looked at, spread evenly, before they were freed.
    pub blocks_sampled: u64,
    /// Of those, how many a uniform distribution of bytes does not explain.
    pub blocks_plain: u64,
    /// Files that still hold them.
    pub files: Vec<String>,
    /// The storaged that answers.
    pub pid: u32,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its name.
    pub snapshot: VolumeName,
    /// The volume that it is of, or what it is a copy of; which may be gone.
    pub volume: VolumeName,
    /// That volume's size.
    pub size_bytes: u64,
    /// Its bytes lie under the volume's key, and so do those of volumes made from it.
    pub encrypted: bool,
    /// Bytes that changed since the volume's snapshot before, in grains of 64 KiB.
    pub changed_bytes: u64,
    /// Bytes that are not zeros, in grains of 64 KiB.
    pub full_bytes: u64,
    /// Bytes of it that scrubbing found damaged, in grains of 64 KiB.
    #[serde(default)]
    pub damaged_bytes: u64,
}
