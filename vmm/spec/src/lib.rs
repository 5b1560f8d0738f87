//! The VMM's interface: what a caller hands to `ocs-vmm` and what it gets back.
//!
//! ```text
//!  caller ── spec (JSON, file or descriptor) ──▶ ocs-vmm
//!  caller ◀─▶ control socket (one JSON object a line) ◀─▶ ocs-vmm     [control]
//!  caller ◀── console ring (mapped file) ──────── serial port        [console]
//!  caller ◀── exit record (written last) ──────── ocs-vmm            [exit]
//! ```
//!
//! Everything a running VMM needs arrives open: a [`Source`] is a path when a
//! person starts the VMM by hand and a descriptor number when `ocs-node` does.
//! Both are published as JSON schemas, `spec.schema.json` and `control.schema.json`, which a
//! test holds to these types. Start reading at [`Spec`].

mod check;
pub mod console;
pub mod control;
mod devices;
pub mod exit;
mod smbios;

pub use check::SpecError;
pub use devices::{Balloon, Block, Console, Net, RateLimit, Rng, TransmitLimits, Vsock, parse_mac};

pub use smbios::Smbios;

use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Ids of the devices of which there is at most one.
pub const RNG: &str = "rng";
/// See [`RNG`].
pub const CONSOLE: &str = "console";
/// See [`RNG`].
pub const BALLOON: &str = "balloon";
/// See [`RNG`].
pub const VSOCK: &str = "vsock";

/// A whole memory file and what may lie on it; each costs mappings.
pub const MAX_MEMORY_FILES: usize = 16;
/// The version of [`Spec`] that this crate reads and writes.
pub const SPEC_VERSION: u32 = 1;

/// A file or socket, by path or as an inherited descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Opened by the VMM before it drops anything it could still open with.
    Path(PathBuf),
    /// Already open; the number as inherited across `execve`.
    Fd(RawFd),
}

/// One instance, whole: what `ocs-vmm --spec FILE` or `--spec-fd N` reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// [`SPEC_VERSION`]; another number is refused by name.
    pub version: u32,
    /// Shown in logs and reports, at most 64 bytes.
    pub id: String,
    /// 1–64.
    pub vcpus: u8,
    /// Guest memory in MiB, 16 or more. One sealed memfd, backed lazily.
    pub memory_mib: u64,
    /// What the guest starts from, unless it is restored.
    #[serde(default)]
    pub boot: Option<Boot>,
    /// What the guest goes on from, instead of `boot`.
    #[serde(default)]
    pub restore: Option<Restore>,
    /// A connected `SOCK_STREAM` Unix socket whose other end [`control::Request::Migrate`] is
    /// given: the guest goes on from what comes, instead of `boot`.
    #[serde(default)]
    pub incoming: Option<Source>,
    /// Which CPU the guest sees.
    #[serde(default)]
    pub cpu: Cpu,
    /// The first serial port.
    pub serial: Serial,
    /// How the guest reaches its devices.
    #[serde(default)]
    pub transport: Transport,
    /// Network interfaces, in PCI order.
    #[serde(default)]
    pub net: Vec<Net>,
    /// What all interfaces together may send, beside the limits that each of them has.
    #[serde(default)]
    pub transmit: TransmitLimits,
    /// Block devices, in PCI order behind the network interfaces.
    #[serde(default)]
    pub block: Vec<Block>,
    /// A listening `SOCK_STREAM` Unix socket for [`control`]; a path is bound by the VMM.
    #[serde(default)]
    pub control: Option<Source>,
    /// Where the [`exit`] record goes, opened for writing at start.
    #[serde(default)]
    pub exit_record: Option<Source>,
    /// `/dev/kvm`, open for reading and writing; none: opened by that path.
    #[serde(default)]
    pub kvm: Option<Source>,
    /// virtio-rng, behind the block devices in PCI order.
    #[serde(default)]
    pub rng: Option<Rng>,
    /// virtio-console, next.
    #[serde(default)]
    pub console: Option<Console>,
    /// virtio-balloon, next.
    #[serde(default)]
    pub balloon: Option<Balloon>,
    /// virtio-vsock, next.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// How far the VMM leaves its host.
    #[serde(default)]
    pub jail: Jail,
}

/// Which of the jail's walls the VMM builds around itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Jail {
    /// An empty file system, IPC and UTS namespaces of its own, no capability, landlock,
    /// a filter a thread; or no start. Takes `CAP_SYS_ADMIN` or a user namespace.
    #[default]
    Full,
    /// The same without the namespaces: for a person on a host that allows neither.
    WithoutNamespaces,
}

/// A machine's earlier life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The state that [`control::Request::Snapshot`] wrote.
    pub state: Source,
    /// The memory: a whole file, then differential ones in order. They are mapped, not read:
    /// nobody may change them while a machine runs from them. Any number of machines may.
    pub memory: Vec<Source>,
    /// Read all memory and compare it with its checksums first.
    #[serde(default)]
    pub verify: bool,
}

/// Which CPU the guest sees. One that is the same on all hosts of a fleet lets a snapshot
/// continue on any of them; a host that lacks something is refused by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Cpu {
    /// The host's, as KVM can virtualise it.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// x86-64-v2 of the psABI, with AES and PCLMULQDQ.
    #[serde(rename = "x86-64-v2")]
    X8664V2,
    /// x86-64-v3 of the psABI, with AES, PCLMULQDQ, RDRAND, RDSEED, ADX, SMEP, SMAP, FSGSBASE.
    #[serde(rename = "x86-64-v3")]
    X8664V3,
}

/// A virtio transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// PCI with MSI-X: what stock systems look for, with hot-plug.
    #[default]
    Pci,
    /// MMIO, announced by ACPI as `LNRO0005`: 8 devices at most, no hot-plug.
    Mmio,
}

impl Transport {
    /// What stands before a kernel's command line. With virtio over MMIO there is a host bridge
    /// and nothing behind it, so Linux need not look early for chipsets with faults.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Pci => "",
            Self::Mmio => "pci=noearly ",
        }
    }
}

/// A kernel, or a disk that has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// ELF with a PVH note (Xen PVH boot ABI), or a Linux bzImage (64-bit boot protocol).
    #[serde(default)]
    pub kernel: Option<Source>,
    /// Placed high in low memory.
    #[serde(default)]
    pub initrd: Option<Source>,
    /// Instead of both: the id of a [`Block`] whose own kernel, initrd and command line are read
    /// from its ext4 `/boot` (UAPI boot loader entries, `grub.cfg`, `vmlinuz-*`) at each start.
    #[serde(default)]
    pub disk: Option<String>,
    /// At most 2,047 bytes; behind the disk's own, and with transport `mmio` behind `pci=noearly`.
    #[serde(default)]
    pub cmdline: String,
    /// What the machine says that it is; none: it has no SMBIOS tables.
    #[serde(default)]
    pub smbios: Option<Smbios>,
}

/// The serial port's output: a [`console`] ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The ring file; the VMM creates or continues it.
    pub ring: Source,
    /// Bytes of output kept, 4 KiB to 1 MiB. EC2 keeps 64 KiB.
    pub capacity_bytes: u32,
}

#[cfg(test)]
mod tests;
