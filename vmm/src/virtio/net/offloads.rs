//! Checksum and segmentation offloads: what is offered, and what a driver's choice means.
//!
//! ```text
//!  HOST_*   the guest sends frames whose checksum or segmentation is left to us:
//!           of its header goes to the tap what the kernel may do without harm
//!  GUEST_*  the guest takes such frames: the tap is told (TUNSETOFFLOAD)
//! ```
//! A driver that accepts none gets and sends only finished frames, whatever its headers say.

use super::shaper::Cost;
use super::{FRONT_BYTES, HEADER_BYTES};
use ocs_vmm_spec::control::NET_OFFLOADS;

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
/// Whoever asks for their end means all of them.
const _: () = assert!(OFFERED == NET_OFFLOADS);

/// `TUN_F_*` of `linux/if_tun.h`.
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;
const TUN_F_TSO_ECN: u32 = 8;

/// Of a header (§5.1.6): flags, kinds of segmentation.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;
/// Where a header says how long its headers and its segments are, where the checksum begins
/// and how far behind that it goes.
const HEADERS: usize = 2;
const SEGMENT: usize = 4;
const START: usize = 6;
const OFFSET: usize = 8;
/// Where UDP and TCP have their checksums.
const OF_UDP: u16 = 6;
const OF_TCP: u16 = 16;
/// A TCP header without options.
const TCP_BYTES: u64 = 20;
/// Where they begin behind an IPv4 header without options, and behind an IPv6 header without
/// extensions.
const BEHIND_IPV4: u16 = 14 + 20;
const BEHIND_IPV6: u16 = 14 + 40;
/// Where they begin at least in what is tunnelled: UDP, VXLAN, Ethernet, IPv4 lie between.
const TUNNEL: u16 = 8 + 8 + BEHIND_IPV4;
/// EtherTypes, and where a frame has its.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ETHER_TYPE: usize = HEADER_BYTES + 12;

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
    fn sends(self) -> bool {
        self.0 & (CSUM | HOST_TSO4 | HOST_TSO6) != 0
    }

    /// What the tap is told of a frame, by the header that the guest gave it and by its
    /// EtherType; `None`: it may not be sent.
    ///
    /// The kernel writes the checksum where the header says, and after all who look at the
    /// frame. Were that a place of the guest's choice, it could be an address that has been
    /// checked; so it is one where a frame of that EtherType has nothing that anybody checks.
    /// (The frame is looked at no further: the guest may change the rest of it until the
    /// kernel has copied it.)
    pub fn header(self, said: &[u8; FRONT_BYTES]) -> Option<[u8; HEADER_BYTES]> {
        let word = |at: usize| u16::from_le_bytes([said[at], said[at + 1]]);
        let mut header = [0; HEADER_BYTES];
        if !self.sends() {
            return Some(header);
        }
        let unfinished = said[0] & NEEDS_CSUM != 0;
        if unfinished {
            let behind = match u16::from_be_bytes([said[ETHER_TYPE], said[ETHER_TYPE + 1]]) {
                IPV4 => BEHIND_IPV4,
                IPV6 => BEHIND_IPV6,
                _ => return None,
            };
            let start = word(START);
            let begins = start == behind || start >= behind + TUNNEL;
            let fits = begins && matches!(word(OFFSET), OF_UDP | OF_TCP);
            if self.0 & CSUM == 0 || !fits {
                return None;
            }
            header[0] = NEEDS_CSUM;
            header[START..START + 4].copy_from_slice(&said[START..START + 4]);
        }
        let (feature, start) = match said[1] & !GSO_ECN {
            0 => return Some(header),
            GSO_TCPV4 => (HOST_TSO4, BEHIND_IPV4),
            GSO_TCPV6 => (HOST_TSO6, BEHIND_IPV6),
            _ => return None,
        };
        let ecn = said[1] & GSO_ECN == 0 || self.0 & HOST_ECN != 0;
        let of_tcp = unfinished && word(START) == start && word(OFFSET) == OF_TCP;
        if self.0 & feature == 0 || !ecn || !of_tcp || word(SEGMENT) == 0 {
            return None;
        }
        header[1] = said[1];
        header[HEADERS..START].copy_from_slice(&said[HEADERS..START]);
        Some(header)
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

/// What a frame of `frame_bytes` takes of the limits, by the header that the tap is told.
///
/// Each segment repeats the headers. A TCP header counts as one without options, which are at
/// most 40 bytes more a segment: how long it is stands in memory that the guest may change.
pub(super) fn cost(told: &[u8; HEADER_BYTES], frame_bytes: u64) -> Cost {
    let word = |at: usize| u64::from(u16::from_le_bytes([told[at], told[at + 1]]));
    if told[1] == 0 {
        return frame_bytes.into();
    }
    let headers = word(START) + TCP_BYTES;
    let payload = frame_bytes.saturating_sub(headers);
    let packets = payload.div_ceil(word(SEGMENT).max(1)).max(1);
    let bytes = frame_bytes + (packets - 1) * headers;
    Cost { bytes, packets }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEITHER: u16 = 0x0806;

    fn said(flags: u8, gso: u8, [start, offset]: [u16; 2]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        (header[0], header[1]) = (flags, gso);
        for (at, word) in [
            (HEADERS, 54),
            (SEGMENT, 1_448),
            (START, start),
            (OFFSET, offset),
        ] {
            header[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    /// A header in front of a frame.
    fn front(ether_type: u16, header: [u8; HEADER_BYTES]) -> [u8; FRONT_BYTES] {
        let mut front = [0; FRONT_BYTES];
        front[..HEADER_BYTES].copy_from_slice(&header);
        front[ETHER_TYPE..].copy_from_slice(&ether_type.to_be_bytes());
        front
    }

    #[test]
    fn a_checksum_goes_where_nothing_else_is() {
        let all = Offloads::new(u64::MAX);
        let places = [0, 26, 34, 38, 54, 83, 84, 103, 104, 1_000];
        for (ether_type, starts) in [
            (IPV4, &[34, 84, 103, 104, 1_000][..]),
            (IPV6, &[54, 104, 1_000]),
            (NEITHER, &[]),
        ] {
            for start in places {
                for offset in [0, 2, 6, 8, 16, 26] {
                    let fits = starts.contains(&start) && (offset == 6 || offset == 16);
                    let header = said(1, 0, [start, offset]);
                    let told = all.header(&front(ether_type, header));
                    assert_eq!(told.is_some(), fits, "{ether_type:#x} {start} {offset}");
                    let kept =
                        told.is_none_or(|told| told[START..START + 4] == header[START..START + 4]);
                    assert!(kept, "{ether_type:#x} {start} {offset}");
                }
            }
        }
        // Without the flag nothing is written, and nothing said of where.
        for (offloads, header) in [
            (all, said(2, 0, [26, 0])),
            (Offloads::default(), said(1, 1, [34, 16])),
        ] {
            let told = offloads.header(&front(IPV4, header));
            assert_eq!(told.expect("a finished frame"), [0; HEADER_BYTES]);
        }
        let segments = Offloads::new(HOST_TSO4);
        assert_eq!(segments.header(&front(IPV4, said(1, 0, [34, 16]))), None);
    }

    #[test]
    fn only_tcp_is_segmented_and_only_as_agreed() {
        let all = Offloads::new(u64::MAX);
        for (ether_type, header) in [
            (IPV4, said(1, 1, [34, 16])),
            (IPV6, said(1, 4, [54, 16])),
            (IPV6, said(1, 0x84, [54, 16])),
        ] {
            assert_eq!(all.header(&front(ether_type, header)), Some(header));
        }
        for (ether_type, refused) in [
            (IPV4, said(0, 1, [34, 16])),
            (IPV4, said(1, 1, [34, 6])),
            (IPV6, said(1, 1, [54, 16])),
            (IPV6, said(1, 4, [54, 6])),
            (IPV4, said(1, 4, [34, 16])),
            (IPV6, said(1, 4, [104, 16])),
            (IPV4, said(1, 3, [34, 6])),
            (IPV4, said(1, 5, [34, 6])),
            (IPV6, said(1, 5, [54, 6])),
        ] {
            let front = front(ether_type, refused);
            assert_eq!(all.header(&front), None, "{ether_type:#x} {refused:?}");
        }
        let mut endless = said(1, 1, [34, 16]);
        endless[SEGMENT..SEGMENT + 2].fill(0);
        assert_eq!(all.header(&front(IPV4, endless)), None);
        let checksums = Offloads::new(CSUM | HOST_TSO4);
        assert_eq!(checksums.header(&front(IPV6, said(1, 4, [54, 16]))), None);
    }

    #[test]
    fn a_frame_costs_what_its_segments_do() {
        let segmented = said(1, 1, [34, 16]);
        for (payload, packets) in [(0, 1), (1_448, 1), (1_449, 2), (3 * 1_448, 3)] {
            let bytes = packets * 54 + payload;
            assert_eq!(cost(&segmented, 54 + payload), Cost { bytes, packets });
        }
        assert_eq!(cost(&said(1, 0, [34, 16]), 9_000), 9_000.into());
    }

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
