//! A frame that can be read and written at any offset, without ever leaving it.

#[cfg(not(target_arch = "bpf"))]
use alloc::vec::Vec;

use crate::layout::Direction;

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

    /// Shows the frame to one who watches the port, if anyone does.
    #[inline(always)]
    fn capture(&self, _slot: u32, _direction: Direction) {}

    /// The byte at `at`.
    fn load_u8(&self, at: usize) -> Option<u8>;
    /// Two bytes at `at`, as they lie in memory.
    fn load_u16(&self, at: usize) -> Option<u16>;
    /// Four bytes at `at`, as they lie in memory.
    fn load_u32(&self, at: usize) -> Option<u32>;

    /// Writes a byte.
    fn store_u8(&mut self, at: usize, value: u8) -> Option<()>;
    /// Writes two bytes, as they lie in memory.
    fn store_u16(&mut self, at: usize, value: u16) -> Option<()>;
    /// Writes four bytes, as they lie in memory.
    fn store_u32(&mut self, at: usize, value: u32) -> Option<()>;

    /// Makes room for `bytes` more at the front. What is in them is not said; what was at
    /// offset 0 is now at `bytes`. On `None` the frame may not be sent on.
    fn push(&mut self, bytes: usize) -> Option<()>;
    /// Takes `bytes` off the front.
    fn pull(&mut self, bytes: usize) -> Option<()>;
    /// Cuts the frame to `len` bytes.
    fn truncate(&mut self, len: usize) -> Option<()>;

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
