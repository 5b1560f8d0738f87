//! A frame that can be read and written at any offset, without ever leaving it.

#[cfg(not(target_arch = "bpf"))]
use alloc::vec::Vec;

use crate::checksum::Delta;
use crate::layout::{Direction, Front};
use crate::parse::{ETH_LEN, ETH_SOURCE, ETH_TYPE};
use crate::vxlan::{OVERHEAD, Outer};

/// What lies where an Ethernet header and the fixed part of an IPv4 header would; as it lies
/// in memory.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The Ethernet source's first four bytes.
    pub source_front: u32,
    /// Its other two.
    pub source_rest: u16,
    /// The EtherType.
    pub ether_type: u16,
    /// IP's version and header length.
    pub version: u8,
    /// Total length.
    pub length: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// Bytes of a [`Head`].
pub const HEAD_BYTES: usize = ETH_LEN + 20;

impl Head {
    /// Whether its Ethernet source is this.
    #[inline(always)]
    #[must_use]
    pub fn is_from(&self, mac: [u8; 6]) -> bool {
        let [a, b, c, d, e, f] = mac;
        self.source_front == u32::from_ne_bytes([a, b, c, d])
            && self.source_rest == u16::from_ne_bytes([e, f])
    }
}

/// Bytes of a frame. Every access is checked against its end; beyond it reads give
/// `None` and writes do nothing but say so.
pub trait Packet {
    /// Length of the frame in bytes.
    fn len(&self) -> usize;

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets that it becomes on the way: 1 unless it is to be cut into segments.
    #[inline(always)]
    fn segments(&self) -> u64 {
        1
    }

    /// Length of the longest of them in bytes.
    #[inline(always)]
    fn segment_len(&self) -> usize {
        self.len()
    }

    /// Length of all of them in bytes.
    #[inline(always)]
    fn segments_len(&self) -> u64 {
        self.len() as u64
    }

    /// Whether its checksum may be left to others, who take it to lie where it does behind an
    /// IP header without options.
    #[inline(always)]
    fn may_be_unfinished(&self) -> bool {
        false
    }

    /// Changes the checksum at `at`, above the IP header, for what a change of addresses does
    /// to it, or with `addresses` false of what it covers itself.
    #[inline(always)]
    fn change_checksum(&mut self, at: usize, delta: Delta, _addresses: bool) -> Option<()> {
        delta.store(self, at)
    }

    /// [`Self::change_checksum`] of UDP, where 0 says that there is none (RFC 768).
    #[inline(always)]
    fn change_udp_checksum(&mut self, at: usize, delta: Delta, _addresses: bool) -> Option<()> {
        match self.load_u16(at)? {
            0 => Some(()),
            old => {
                let new = delta.apply(old);
                self.store_u16(at, if new == 0 { 0xffff } else { new })
            }
        }
    }

    /// Shows the frame to one who watches the port, if anyone does.
    #[inline(always)]
    fn capture(&self, _slot: u32, _direction: Direction) {}

    /// The byte at `at`.
    fn load_u8(&self, at: usize) -> Option<u8>;
    /// Two bytes at `at`, as they lie in memory.
    fn load_u16(&self, at: usize) -> Option<u16>;
    /// Four bytes at `at`, as they lie in memory.
    fn load_u32(&self, at: usize) -> Option<u32>;
    /// Eight bytes at `at`, as they lie in memory.
    fn load_u64(&self, at: usize) -> Option<u64>;

    /// The frame's head, compared with the frame's end but once.
    #[inline(always)]
    fn load_head(&self) -> Option<Head> {
        Some(Head {
            source_front: self.load_u32(ETH_SOURCE)?,
            source_rest: self.load_u16(ETH_SOURCE + 4)?,
            ether_type: self.load_u16(ETH_TYPE)?,
            version: self.load_u8(ETH_LEN)?,
            length: self.load_u16(ETH_LEN + 2)?,
            id: self.load_u16(ETH_LEN + 4)?,
            fragment: self.load_u16(ETH_LEN + 6)?,
            ttl: self.load_u8(ETH_LEN + 8)?,
            protocol: self.load_u8(ETH_LEN + 9)?,
            source: self.load_u32(ETH_LEN + 12)?,
            destination: self.load_u32(ETH_LEN + 16)?,
        })
    }

    /// Writes a byte.
    fn store_u8(&mut self, at: usize, value: u8) -> Option<()>;
    /// Writes two bytes, as they lie in memory.
    fn store_u16(&mut self, at: usize, value: u16) -> Option<()>;
    /// Writes four bytes, as they lie in memory.
    fn store_u32(&mut self, at: usize, value: u32) -> Option<()>;
    /// Writes eight bytes, as they lie in memory.
    fn store_u64(&mut self, at: usize, value: u64) -> Option<()>;

    /// Makes room for `bytes` more at the front. What is in them is not said; what was at
    /// offset 0 is now at `bytes`. On `None` the frame may not be sent on.
    fn push(&mut self, bytes: usize) -> Option<()>;
    /// Takes `bytes` off the front.
    fn pull(&mut self, bytes: usize) -> Option<()>;
    /// Cuts the frame to `len` bytes.
    fn truncate(&mut self, len: usize) -> Option<()>;

    /// Puts an outer header in front of the frame. On `None` the frame may not be sent on.
    #[inline(always)]
    fn wrap(&mut self, outer: &Outer<'_>) -> Option<()> {
        self.push(OVERHEAD)?;
        let (front, rest) = outer.header();
        for (index, word) in front.iter().enumerate() {
            self.store_u64(8 * index, *word)?;
        }
        self.store_u16(size_of::<Front>(), rest)
    }

    /// Reads an Ethernet address.
    #[inline(always)]
    fn load_mac(&self, at: usize) -> Option<[u8; 6]> {
        let [a, b, c, d] = self.load_u32(at)?.to_ne_bytes();
        let [e, f] = self.load_u16(at + 4)?.to_ne_bytes();
        Some([a, b, c, d, e, f])
    }

    /// Writes an Ethernet address.
    #[inline(always)]
    fn store_mac(&mut self, at: usize, mac: [u8; 6]) -> Option<()> {
        let [a, b, c, d, e, f] = mac;
        self.store_u32(at, u32::from_ne_bytes([a, b, c, d]))?;
        self.store_u16(at + 4, u16::from_ne_bytes([e, f]))
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Packet for Vec<u8> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn load_u8(&self, at: usize) -> Option<u8> {
        self.get(at).copied()
    }

    fn load_u16(&self, at: usize) -> Option<u16> {
        let bytes = self.get(at..at.checked_add(2)?)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn load_u32(&self, at: usize) -> Option<u32> {
        let bytes = self.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn load_u64(&self, at: usize) -> Option<u64> {
        let bytes = self.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn store_u8(&mut self, at: usize, value: u8) -> Option<()> {
        *self.get_mut(at)? = value;
        Some(())
    }

    fn store_u16(&mut self, at: usize, value: u16) -> Option<()> {
        let bytes = self.get_mut(at..at.checked_add(2)?)?;
        bytes.copy_from_slice(&value.to_ne_bytes());
        Some(())
    }

    fn store_u32(&mut self, at: usize, value: u32) -> Option<()> {
        let bytes = self.get_mut(at..at.checked_add(4)?)?;
        bytes.copy_from_slice(&value.to_ne_bytes());
        Some(())
    }

    fn store_u64(&mut self, at: usize, value: u64) -> Option<()> {
        let bytes = self.get_mut(at..at.checked_add(8)?)?;
        bytes.copy_from_slice(&value.to_ne_bytes());
        Some(())
    }

    fn push(&mut self, bytes: usize) -> Option<()> {
        self.splice(..0, core::iter::repeat_n(0, bytes));
        Some(())
    }

    fn pull(&mut self, bytes: usize) -> Option<()> {
        (bytes <= self.as_slice().len()).then(|| drop(self.drain(..bytes)))
    }

    fn truncate(&mut self, len: usize) -> Option<()> {
        (len <= self.as_slice().len()).then(|| Vec::truncate(self, len))
    }
}
