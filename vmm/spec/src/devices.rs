//! The devices of a machine.

use crate::Source;
use crate::check::{SpecError, must};
use serde::{Deserialize, Serialize};

/// A virtio-net device on a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// What the guest reads: a pipe, a terminal, a socket; none: nothing.
    #[serde(default)]
    pub input: Option<Source>,
}

/// Memory that the guest gives back: by itself what it does not use (free-page reporting), and
/// on request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// Limits of what a guest sends, each with a burst that it starts with; none: no limit. A
/// frame goes when it may by all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TransmitLimits {
    /// In bytes of Ethernet frames.
    #[serde(default)]
    pub bytes: Option<RateLimit>,
    /// In bytes too: what the guest may always have, while `bytes` is its peak. The `burst` are
    /// its credits, which it saves by staying below.
    #[serde(default)]
    pub baseline: Option<RateLimit>,
    /// How many of the credits there are at the start, in bytes; none: all.
    #[serde(default)]
    pub credits: Option<u64>,
    /// In frames.
    #[serde(default)]
    pub packets: Option<RateLimit>,
}

/// One limit: `burst` at once, and `per_s` a second from then on, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
        for (name, limit) in [
            ("bytes", self.bytes),
            ("baseline", self.baseline),
            ("packets", self.packets),
        ] {
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
