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
//! Start reading at [`Spec`].

pub mod console;
pub mod control;
pub mod exit;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Opened by the VMM before it drops anything it could still open with.
    Path(PathBuf),
    /// Already open; the number as inherited across `execve`.
    Fd(RawFd),
}

/// One instance, whole: what `ocs-vmm --spec FILE` or `--spec-fd N` reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// PCI with MSI-X: what stock systems look for, with hot-plug and snapshots.
    #[default]
    Pci,
    /// MMIO, announced by ACPI as `LNRO0005`: 8 devices at most, neither hot-plug nor
    /// snapshots.
    Mmio,
}

/// A kernel, or a disk that has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// At most 2,047 bytes; behind the disk's own.
    #[serde(default)]
    pub cmdline: String,
}

/// The serial port's output: a [`console`] ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The ring file; the VMM creates or continues it.
    pub ring: Source,
    /// Bytes of output kept, 4 KiB to 1 MiB. EC2 keeps 64 KiB.
    pub capacity_bytes: u32,
}

/// A virtio-net device on a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Names the interface in logs and metrics.
    pub id: String,
    /// A descriptor of a non-blocking tap opened `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`
    /// (header size 12), or by path the *name* of a tap to open, for use by hand.
    pub tap: Source,
    /// `02:00:00:00:00:01` form.
    pub mac: String,
    /// Offered to the guest by `VIRTIO_NET_F_MTU`.
    pub mtu: u16,
    /// What the guest may send; frames over it wait in its queue.
    #[serde(default)]
    pub transmit: TransmitLimits,
    /// Offer checksum and segmentation offloads both ways. Only for a tap whose packet path
    /// keeps their metadata (TCX does; XDP redirection loses it silently), from the first
    /// frame on: the guest then chooses by itself what it uses.
    #[serde(default)]
    pub offloads: bool,
}

/// The host's entropy for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rng {
    /// At most, and as much in a burst; 1 KiB to 64 MiB.
    #[serde(default = "Rng::default_bytes_per_s")]
    pub bytes_per_s: u32,
}

impl Rng {
    fn default_bytes_per_s() -> u32 {
        64 * 1024
    }
}

/// A console beside the serial port, with its output in the same ring: `hvc0` in Linux.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// What the guest reads: a pipe, a terminal, a socket; none: nothing.
    #[serde(default)]
    pub input: Option<Source>,
}

/// Memory that the guest gives back: by itself what it does not use (free-page reporting), and
/// on request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Asked for at start, in MiB; at least 16 MiB of memory remain.
    #[serde(default)]
    pub target_mib: u32,
}

impl Balloon {
    /// Whether a guest of `memory_mib` can be asked for `target_mib`.
    pub fn check_target(target_mib: u32, memory_mib: u64) -> Result<(), SpecError> {
        must(
            u64::from(target_mib) + 16 <= memory_mib,
            "balloon.target_mib",
            format!("{target_mib} leaves less than 16 of {memory_mib} MiB"),
        )
    }
}

/// Sockets between the guest and programs of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address, 3 or more.
    pub guest_cid: u32,
    /// A *listening* Unix socket. A program connects and writes `CONNECT port` or
    /// `ACCEPT port` and a newline; see the VMM's README.
    pub listener: Source,
    /// Programs of another user (`SO_PEERCRED`) are turned away.
    pub uid: u32,
}

/// Limits of what a guest sends, each with a burst that it starts with; none: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransmitLimits {
    /// In bytes of Ethernet frames.
    #[serde(default)]
    pub bytes: Option<RateLimit>,
    /// In frames.
    #[serde(default)]
    pub packets: Option<RateLimit>,
}

/// One limit: `burst` at once, and `per_s` a second from then on, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// 1 to 10¹⁵.
    pub per_s: u64,
    /// 1 to 10¹⁵.
    pub burst: u64,
}

impl TransmitLimits {
    /// Checks its bounds; `field` is where it stands, such as `net[0].transmit`.
    pub fn check(&self, field: &str) -> Result<(), SpecError> {
        const BOUNDS: std::ops::RangeInclusive<u64> = 1..=1_000_000_000_000_000;
        for (name, limit) in [("bytes", self.bytes), ("packets", self.packets)] {
            let Some(limit) = limit else { continue };
            for (part, value) in [("per_s", limit.per_s), ("burst", limit.burst)] {
                must(
                    BOUNDS.contains(&value),
                    format!("{field}.{name}.{part}"),
                    format!("{value} is not in 1..=10^15"),
                )?;
            }
        }
        Ok(())
    }
}

/// A virtio-blk device served by a vhost-user backend that connects to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// `VIRTIO_BLK_T_GET_ID` serial, at most 20 bytes; EC2 shows the volume id without dash.
    pub id: String,
    /// A *listening* Unix socket. The backend connects, again after each of its restarts.
    pub listener: Source,
    /// Peers of another uid (`SO_PEERCRED`) are refused.
    pub backend_uid: u32,
    /// Queues offered, 1 to 16, if the backend serves as many: one a vCPU is best. A machine
    /// that is to be restored from a snapshot, or cloned, has one.
    #[serde(default = "one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

/// Why a spec is refused; the message names the field.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON of this shape.
    #[error("the spec is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A field holds a value that the VMM does not serve.
    #[error("{field}: {problem}")]
    Field {
        /// The field's path, such as `net[0].mac`.
        field: String,
        /// What is wrong with it, with the value.
        problem: String,
    },
}

impl Spec {
    /// Parses and checks a spec.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_slice(json)?;
        spec.check()?;
        Ok(spec)
    }

    fn check_boot(&self, boot: &Boot) -> Result<(), SpecError> {
        must(
            boot.cmdline.len() <= 2047,
            "boot.cmdline",
            "is longer than 2047 bytes",
        )?;
        let Some(disk) = &boot.disk else {
            return must(
                boot.kernel.is_some(),
                "boot.kernel",
                "is missing, and so is boot.disk",
            );
        };
        must(
            boot.kernel.is_none() && boot.initrd.is_none(),
            "boot.disk",
            "cannot be with boot.kernel or boot.initrd",
        )?;
        must(
            self.block.iter().any(|block| block.id == *disk),
            "boot.disk",
            format!("{disk:?} is no disk of this machine"),
        )
    }

    /// Checks every bound that the field docs state.
    pub fn check(&self) -> Result<(), SpecError> {
        must(
            self.version == SPEC_VERSION,
            "version",
            format!(
                "this VMM reads version {SPEC_VERSION}, not {}",
                self.version
            ),
        )?;
        must(
            !self.id.is_empty() && self.id.len() <= 64,
            "id",
            "must have 1 to 64 bytes",
        )?;
        must(
            (1..=64).contains(&self.vcpus),
            "vcpus",
            format!("{} is not in 1..=64", self.vcpus),
        )?;
        must(
            (16..=16 << 20).contains(&self.memory_mib),
            "memory_mib",
            format!("{} is not in 16..=16777216", self.memory_mib),
        )?;
        must(
            self.transport == Transport::Pci || (self.restore.is_none() && self.incoming.is_none()),
            "transport",
            "mmio cannot be restored",
        )?;
        must(
            self.transport == Transport::Pci || self.net.len() + self.block.len() <= 8,
            "transport",
            "mmio has places for 8 devices",
        )?;
        match (&self.boot, &self.restore) {
            (_, _) if self.incoming.is_some() => must(
                self.boot.is_none() && self.restore.is_none(),
                "incoming",
                "cannot be with boot or restore",
            )?,
            (None, None) => must(false, "boot", "is missing, and so are restore and incoming")?,
            (Some(_), Some(_)) => must(false, "restore", "cannot be with boot")?,
            (Some(boot), None) => self.check_boot(boot)?,
            (None, Some(restore)) => must(
                (1..=MAX_MEMORY_FILES).contains(&restore.memory.len()),
                "restore.memory",
                format!(
                    "{} files, not 1 to {MAX_MEMORY_FILES}",
                    restore.memory.len()
                ),
            )?,
        }
        must(
            self.balloon.is_none() || self.restore.is_none(),
            "balloon",
            "cannot be restored: it gives back blocks of the memory's file, which is the snapshot",
        )?;
        must(
            (4096..=1 << 20).contains(&self.serial.capacity_bytes),
            "serial.capacity_bytes",
            format!("{} is not in 4096..=1048576", self.serial.capacity_bytes),
        )?;
        must(
            self.net.len() + self.block.len() <= 26,
            "block",
            "more than 26 disks and interfaces in all",
        )?;
        let mut ids = BTreeSet::new();
        for (i, net) in self.net.iter().enumerate() {
            net.check(&format!("net[{i}]"))?;
            unique(&mut ids, &format!("net[{i}].id"), &net.id)?;
        }
        for (i, block) in self.block.iter().enumerate() {
            block.check(&format!("block[{i}]"))?;
            unique(&mut ids, &format!("block[{i}].id"), &block.id)?;
        }
        for (id, present) in [
            (RNG, self.rng.is_some()),
            (CONSOLE, self.console.is_some()),
            (BALLOON, self.balloon.is_some()),
            (VSOCK, self.vsock.is_some()),
        ] {
            if present {
                unique(&mut ids, id, id)?;
            }
        }
        if let Some(rng) = &self.rng {
            must(
                (1024..=64 << 20).contains(&rng.bytes_per_s),
                "rng.bytes_per_s",
                format!("{} is not in 1024..=67108864", rng.bytes_per_s),
            )?;
        }
        if let Some(balloon) = &self.balloon {
            Balloon::check_target(balloon.target_mib, self.memory_mib)?;
        }
        if let Some(vsock) = &self.vsock {
            must(
                (3..u32::MAX).contains(&vsock.guest_cid),
                "vsock.guest_cid",
                format!("{} is not in 3..=4294967294", vsock.guest_cid),
            )?;
        }
        let mut seen = BTreeMap::new();
        for (field, source) in self.sources() {
            if let Source::Fd(fd) = source
                && let Some(other) = seen.insert(fd, field.clone())
            {
                return must(
                    false,
                    field,
                    format!("descriptor {fd} is already {other}'s"),
                );
            }
        }
        Ok(())
    }

    /// Every [`Source`] with its field's path.
    pub fn sources(&self) -> Vec<(String, &Source)> {
        let mut all = vec![("serial.ring".to_owned(), &self.serial.ring)];
        if let Some(boot) = &self.boot {
            all.extend(boot.kernel.iter().map(|s| ("boot.kernel".to_owned(), s)));
            all.extend(boot.initrd.iter().map(|s| ("boot.initrd".to_owned(), s)));
        }
        if let Some(restore) = &self.restore {
            all.push(("restore.state".to_owned(), &restore.state));
            for (i, file) in restore.memory.iter().enumerate() {
                all.push((format!("restore.memory[{i}]"), file));
            }
        }
        let optional = [
            ("incoming", &self.incoming),
            ("control", &self.control),
            ("exit_record", &self.exit_record),
            ("kvm", &self.kvm),
        ];
        let console = self.console.as_ref().and_then(|c| c.input.as_ref());
        all.extend(console.map(|source| ("console.input".to_owned(), source)));
        let vsock = self.vsock.as_ref().map(|vsock| &vsock.listener);
        all.extend(vsock.map(|source| ("vsock.listener".to_owned(), source)));
        for (field, source) in optional {
            all.extend(source.iter().map(|source| (field.to_owned(), source)));
        }
        for (i, net) in self.net.iter().enumerate() {
            all.push((format!("net[{i}].tap"), &net.tap));
        }
        for (i, block) in self.block.iter().enumerate() {
            all.push((format!("block[{i}].listener"), &block.listener));
        }
        all
    }
}

impl Net {
    /// Checks its bounds; `field` is where it stands, such as `net[0]`.
    pub fn check(&self, field: &str) -> Result<(), SpecError> {
        must(
            parse_mac(&self.mac).is_some_and(|m| m[0] & 1 == 0),
            format!("{field}.mac"),
            format!("{:?} is not a unicast MAC address", self.mac),
        )?;
        must(
            (576..=9216).contains(&self.mtu),
            format!("{field}.mtu"),
            format!("{} is not in 576..=9216", self.mtu),
        )?;
        self.transmit.check(&format!("{field}.transmit"))
    }
}

impl Block {
    /// Checks its bounds; `field` is where it stands, such as `block[0]`.
    pub fn check(&self, field: &str) -> Result<(), SpecError> {
        must(
            !self.id.is_empty() && self.id.len() <= 20 && self.id.is_ascii(),
            format!("{field}.id"),
            format!("{:?} is not 1 to 20 ASCII bytes", self.id),
        )?;
        must(
            (1..=16).contains(&self.queues),
            format!("{field}.queues"),
            format!("{} is not in 1..=16", self.queues),
        )
    }
}

fn must(ok: bool, field: impl Into<String>, problem: impl Into<String>) -> Result<(), SpecError> {
    if ok {
        return Ok(());
    }
    Err(SpecError::Field {
        field: field.into(),
        problem: problem.into(),
    })
}

fn unique<'a>(ids: &mut BTreeSet<&'a str>, field: &str, id: &'a str) -> Result<(), SpecError> {
    let new = ids.insert(id);
    must(new, field, format!("{id:?} is another device's"))
}

/// Reads `02:00:00:00:00:01`.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> serde_json::Value {
        serde_json::json!({
            "version": 1, "id": "i-1", "vcpus": 1, "memory_mib": 64,
            "boot": {"kernel": {"path": "probe.elf"}}, "restore": null, "cpu": "host",
            "serial": {"ring": {"fd": 7}, "capacity_bytes": 65536},
            "net": [{"id": "eni-1", "tap": {"fd": 8}, "mac": "02:00:00:00:00:01", "mtu": 1500,
                     "transmit": {}}],
            "block": [{"id": "vol1", "listener": {"path": "/x"}, "backend_uid": 0, "queues": 1}],
            "rng": {"bytes_per_s": 4096}, "console": {}, "balloon": {"target_mib": 8},
            "vsock": {"guest_cid": 3, "listener": {"fd": 9}, "uid": 0},
        })
    }

    #[test]
    fn a_good_spec_survives_a_round_trip() {
        let spec = Spec::parse(good().to_string().as_bytes()).unwrap();
        assert_eq!(spec.serial.ring, Source::Fd(7));
        let again = Spec::parse(&serde_json::to_vec(&spec).unwrap()).unwrap();
        assert_eq!(spec, again);
    }

    #[test]
    fn each_bad_field_is_named() {
        for (pointer, value, named) in [
            ("/version", serde_json::json!(2), "version"),
            ("/vcpus", serde_json::json!(65), "vcpus"),
            ("/memory_mib", serde_json::json!(1), "memory_mib"),
            ("/boot", serde_json::json!(null), "boot: is missing"),
            ("/boot", serde_json::json!({}), "boot.kernel: is missing"),
            (
                "/boot",
                serde_json::json!({"disk": "vol2"}),
                "boot.disk: \"vol2\" is no disk",
            ),
            (
                "/boot",
                serde_json::json!({"disk": "vol1", "kernel": {"fd": 10}}),
                "boot.disk: cannot be with",
            ),
            (
                "/restore",
                serde_json::json!({"state": {"fd": 9}, "memory": [{"fd": 10}]}),
                "restore: cannot be with boot",
            ),
            ("/cpu", serde_json::json!("x86-64-v9"), "x86-64-v9"),
            (
                "/net/0/mac",
                serde_json::json!("03:00:00:00:00:01"),
                "net[0].mac",
            ),
            ("/net/0/mtu", serde_json::json!(100), "net[0].mtu"),
            (
                "/net/0/transmit",
                serde_json::json!({"packets": {"per_s": 0, "burst": 1}}),
                "net[0].transmit.packets.per_s",
            ),
            ("/block/0/queues", serde_json::json!(0), "block[0].queues"),
            ("/block/0/id", serde_json::json!(""), "block[0].id"),
            ("/block/0/id", serde_json::json!("eni-1"), "block[0].id"),
            ("/rng/bytes_per_s", serde_json::json!(1), "rng.bytes_per_s"),
            (
                "/balloon/target_mib",
                serde_json::json!(49),
                "balloon.target_mib",
            ),
            ("/vsock/guest_cid", serde_json::json!(2), "vsock.guest_cid"),
            (
                "/vsock/listener",
                serde_json::json!({"fd": 8}),
                "descriptor",
            ),
            (
                "/serial/capacity_bytes",
                serde_json::json!(1),
                "serial.capacity_bytes",
            ),
            (
                "/net/0/tap",
                serde_json::json!({"fd": 7}),
                "descriptor 7 is already serial.ring's",
            ),
        ] {
            let mut json = good();
            *json.pointer_mut(pointer).unwrap() = value;
            let error = Spec::parse(json.to_string().as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(named), "{pointer}: {error}");
        }
        let mut json = good();
        json["boot"] = serde_json::json!(null);
        json["restore"] = serde_json::json!({"state": {"fd": 9}, "memory": [{"fd": 10}]});
        let error = Spec::parse(json.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("balloon: cannot"), "{error}");
        json["balloon"] = serde_json::json!(null);
        json["block"] = serde_json::json!([]);
        json["restore"] = serde_json::json!({"state": {"fd": 9}, "memory": []});
        let error = Spec::parse(json.to_string().as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("restore.memory: 0 files"),
            "{error}"
        );
        let mut json = good();
        json["surprise"] = serde_json::json!(1);
        assert!(
            Spec::parse(json.to_string().as_bytes())
                .unwrap_err()
                .to_string()
                .contains("surprise")
        );
    }
}
