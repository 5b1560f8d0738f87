//! Checksum and segmentation offloads: what is offered, and what a driver's choice means.
//!
//! ```text
//!  HOST_*   the guest sends frames whose checksum or segmentation is left to us:
//!           its header goes to the tap as it is, and the kernel checks it
//!  GUEST_*  the guest takes such frames: the tap is told (TUNSETOFFLOAD)
//! ```
//! A driver that accepts none gets and sends only finished frames, whatever its headers say.

/// `VIRTIO_NET_F_CSUM`: of what the guest sends.
const CSUM: u64 = 1 << 0;
/// `VIRTIO_NET_F_GUEST_CSUM`: of what it receives.
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;

/// What is offered where the packet path keeps the metadata.
pub(super) const OFFERED: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;

/// `TUN_F_*` of `linux/if_tun.h`.
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;
const TUN_F_TSO_ECN: u32 = 8;

/// An IP packet's largest size.
const MAX_SEGMENTED_BYTES: usize = 65_535;

/// What a driver chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads(u64);

impl Offloads {
    /// By the features that it accepted.
    pub fn new(features: u64) -> Self {
        Self(features & OFFERED)
    }

    /// May the guest's frames be unfinished?
    pub fn sends(self) -> bool {
        self.0 & (CSUM | HOST_TSO4 | HOST_TSO6) != 0
    }

    /// The largest packet that the guest may send, on a link of `mtu`.
    pub fn packet_bytes(self, mtu: usize) -> usize {
        match self.0 & (HOST_TSO4 | HOST_TSO6) {
            0 => mtu,
            _ => MAX_SEGMENTED_BYTES,
        }
    }

    /// What the tap may hand to it. Segmentation needs the checksum feature (§5.1.3.1).
    pub fn tap_flags(self) -> u32 {
        if self.0 & GUEST_CSUM == 0 {
            return 0;
        }
        [
            (GUEST_CSUM, TUN_F_CSUM),
            (GUEST_TSO4, TUN_F_TSO4),
            (GUEST_TSO6, TUN_F_TSO6),
            (GUEST_ECN, TUN_F_TSO_ECN),
        ]
        .into_iter()
        .filter(|(feature, _)| self.0 & feature != 0)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_means_what_the_specification_says() {
        let none = Offloads::new(!OFFERED);
        assert_eq!(none, Offloads::default());
        assert_eq!((none.sends(), none.tap_flags()), (false, 0));
        assert_eq!(none.packet_bytes(1500), 1500);
        let all = Offloads::new(u64::MAX);
        assert_eq!((all.sends(), all.tap_flags()), (true, 15));
        assert_eq!(all.packet_bytes(1500), 65_535);
        let receive_only = Offloads::new(GUEST_CSUM | GUEST_TSO6);
        assert_eq!((receive_only.sends(), receive_only.tap_flags()), (false, 5));
        let without_checksum = Offloads::new(GUEST_TSO4 | GUEST_ECN);
        assert_eq!(without_checksum.tap_flags(), 0);
    }
}
