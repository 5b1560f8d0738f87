//! The control socket: one JSON [`Request`] a line in, one JSON [`Reply`] a line out.
//!
//! Versioned with [`PROTOCOL_VERSION`]: node N drives VMM N-1, so members are
//! only ever added, and an unknown command answers [`Reply::Error`].
//!
//! A request that brings files along passes them as descriptors (`SCM_RIGHTS`) with its
//! first byte; inside it `{"fd": 0}` names the first of them. Paths are refused: a
//! running VMM opens nothing.
//!
//! Hot-plug: `add_block`, `add_net` → `status` until the device is `plugged` (and
//! `driven`, if the caller cares) → `remove_…` → `status` until the device is no longer
//! listed. Asking again is harmless and reminds a guest that did not listen.
//!
//! Whoever acts on what drivers do asks `await_change` instead of asking `status` again and again.

use crate::{Block, Net, Source, TransmitLimits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version that [`Reply::Status`] states.
///
/// 2: hot-plug, [`Reply::Status`]'s `devices`. 3: [`Request::AwaitChange`],
/// [`Request::WithdrawOffloads`], [`DeviceStatus::features`].
pub const PROTOCOL_VERSION: u32 = 3;
/// Features of virtio-net by which frames are left unfinished, `VIRTIO_NET_F_*` (virtio 1.3
/// §5.1.3): `CSUM`, `GUEST_CSUM`, `GUEST_TSO4`, `GUEST_TSO6`, `GUEST_ECN`, `HOST_TSO4`,
/// `HOST_TSO6`, `HOST_ECN`.
pub const NET_OFFLOADS: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13;
/// A longer line ends the connection.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// More descriptors with one request end the connection.
pub const MAX_DESCRIPTORS: usize = 4;

/// What a caller may ask of a running VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Request {
    /// Answers [`Reply::Status`].
    Status,
    /// Answers [`Reply::Status`] once its `changes` is not `seen`: a device or a driver came or
    /// went. What the connection brings meanwhile is answered after that.
    AwaitChange {
        /// [`Reply::Status`]'s `changes`, as it was seen last.
        seen: u64,
    },
    /// Stops all vCPUs; idempotent.
    Pause,
    /// Lets them run again; idempotent.
    Resume,
    /// Presses the power button (ACPI), EC2's graceful stop. Answers at once.
    PowerButton,
    /// Ends the VMM cleanly: vCPUs stopped, rings stopped, exit record written.
    Stop,
    /// Answers [`Reply::Metrics`]. A guest with a balloon is asked for new statistics, which the
    /// next such request shows.
    Metrics,
    /// Saves the machine into two passed files, which are emptied first. It stands still
    /// meanwhile, and goes on if it ran. Answers [`Reply::Snapshot`].
    Snapshot {
        /// Where the state goes.
        state: Source,
        /// Where the memory goes: a sparse file that can be mapped.
        memory: Source,
        /// Only the pages that changed since the last snapshot, which asked for `track`.
        #[serde(default)]
        differential: bool,
        /// Log what changes from now on, so that a differential one can follow.
        #[serde(default)]
        track: bool,
    },
    /// Moves the machine to the VMM that was started with the other end of `socket` (see
    /// [`crate::Spec::incoming`]), on this host. Its guest runs until what is left can be sent
    /// in the downtime; then this process ends. Answers [`Reply::Migrated`], or an error, and
    /// then the guest runs here as before.
    Migrate {
        /// A passed, connected `SOCK_STREAM` Unix socket.
        socket: Source,
        /// How long the guest may stand still, in ms.
        downtime_ms: u32,
    },
    /// Asks the guest for so much of its memory, more or less than before; how much it gave is
    /// the counter `balloon.actual_bytes`.
    Balloon {
        /// At least 16 MiB of memory remain.
        target_mib: u32,
    },
    /// Adds a disk, whose `listener` is a passed descriptor. The guest finds it once the
    /// backend has connected.
    AddBlock {
        /// The disk; its id is unlike that of any other device.
        block: Block,
    },
    /// Takes a disk away: asks the guest to let it go.
    RemoveBlock {
        /// Of the disk.
        id: String,
        /// Do not wait for the guest: what it has not written yet is lost.
        #[serde(default)]
        force: bool,
    },
    /// Adds an interface, whose `tap` is a passed descriptor.
    AddNet {
        /// The interface; its id is unlike that of any other device.
        net: Net,
    },
    /// Changes what an interface may send, or all together, at once; buckets start full.
    LimitNet {
        /// Of the interface; none: [`crate::Spec::transmit`].
        #[serde(default)]
        id: Option<String>,
        /// In place of those that it had.
        transmit: TransmitLimits,
    },
    /// Offers an interface's driver no offloads ([`NET_OFFLOADS`]) from now on, so that its frames
    /// are finished ones, both ways, for as long as this VMM lives. Refused, and nothing changes,
    /// unless a driver is ready that accepted none: it would be using them.
    WithdrawOffloads {
        /// Of the interface.
        id: String,
    },
    /// Takes an interface away: asks the guest to let it go.
    RemoveNet {
        /// Of the interface.
        id: String,
        /// Do not wait for the guest.
        #[serde(default)]
        force: bool,
    },
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// virtio-net.
    Net,
    /// virtio-blk.
    Block,
    /// virtio-rng.
    Rng,
    /// virtio-console.
    Console,
    /// virtio-balloon.
    Balloon,
    /// virtio-vsock.
    Vsock,
}

impl DeviceKind {
    /// As in JSON and in the names of counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "block",
            Self::Rng => crate::RNG,
            Self::Console => crate::CONSOLE,
            Self::Balloon => crate::BALLOON,
            Self::Vsock => crate::VSOCK,
        }
    }
}

/// How far a device has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// A disk whose backend has never connected.
    Waiting,
    /// On the bus, and the guest was told.
    Plugged,
    /// The guest was asked to let it go.
    Leaving,
    /// Off the bus; its backend is being parted from. Then it is no longer listed.
    Gone,
}

/// One device, in [`Reply::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceStatus {
    /// What it is.
    pub kind: DeviceKind,
    /// Its device number on PCI bus 0.
    pub slot: u8,
    /// How far it has come.
    pub state: DeviceState,
    /// Does a driver of the guest use it now?
    pub driven: bool,
    /// The virtio features that this driver accepted (version 3); 0 without one.
    #[serde(default)]
    pub features: u64,
}

impl DeviceStatus {
    /// Is it an interface whose driver sends and takes finished frames alone?
    #[must_use]
    pub fn declined_offloads(&self) -> bool {
        self.kind == DeviceKind::Net && self.driven && self.features & NET_OFFLOADS == 0
    }
}

/// What the VMM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The command took effect.
    Ok,
    /// The command was refused, and why in one sentence.
    Error {
        /// One sentence.
        message: String,
    },
    /// To [`Request::Status`].
    Status {
        /// [`PROTOCOL_VERSION`].
        protocol: u32,
        /// [`crate::Spec::id`].
        id: String,
        /// The run state now.
        state: RunState,
        /// Block devices by id: is a backend connected now?
        block_connected: BTreeMap<String, bool>,
        /// Devices by id, those that come and go included (version 2).
        #[serde(default)]
        devices: BTreeMap<String, DeviceStatus>,
        /// Times that a device or a driver came or went (version 3).
        #[serde(default)]
        changes: u64,
        /// `CLOCK_MONOTONIC` at entry of the process, in ns.
        started_ns: u64,
        /// `CLOCK_MONOTONIC` when the first vCPU was first told to run, in ns.
        first_run_ns: u64,
    },
    /// To [`Request::Snapshot`].
    Snapshot {
        /// Names the memory file for ever.
        id: String,
        /// Bytes of guest memory in it.
        written_bytes: u64,
        /// How long the guest stood still, in µs.
        paused_us: u64,
    },
    /// To [`Request::Migrate`].
    Migrated {
        /// Rounds of pages while the guest ran.
        rounds: u32,
        /// Bytes of guest memory sent.
        sent_bytes: u64,
        /// How long the guest stood still, in µs.
        paused_us: u64,
    },
    /// To [`Request::Metrics`]: counters by dotted name, such as `net.eni-1.rx_frames`.
    Metrics {
        /// Monotonic counters since start.
        counters: BTreeMap<String, u64>,
    },
}

/// A VMM's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The guest was not started yet: a block device's backend has never connected (see
    /// [`Reply::Status`]'s `block_connected`). There is no time-out; a caller sets its own.
    Waiting,
    /// vCPUs run.
    Running,
    /// vCPUs are held.
    Paused,
    /// On its way out.
    Stopping,
}
