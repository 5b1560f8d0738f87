//! Internet checksums, updated in place (RFC 1624).

use crate::packet::Packet;

/// What a change of bytes does to a checksum that covers them.
///
/// One's-complement sums do not care for byte order (RFC 1071 §2), so words are added
/// as they lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// Records that a 16-bit word changed.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u32::from(!old) + u32::from(new))
    }

    /// Records that a 32-bit word changed.
    #[inline(always)]
    #[must_use]
    pub fn long(self, old: u32, new: u32) -> Self {
        let (old_low, old_high) = halves(old);
        let (new_low, new_high) = halves(new);
        self.word(old_low, new_low).word(old_high, new_high)
    }

    /// The sum of the recorded changes, as the kernel's helpers take it.
    #[inline(always)]
    #[must_use]
    pub fn sum(self) -> u32 {
        self.0
    }

    /// The checksum after the recorded changes: `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u32::from(!checksum) + self.0)
    }

    /// Rewrites the checksum at `at`.
    #[inline(always)]
    pub fn store(self, packet: &mut (impl Packet + ?Sized), at: usize) -> Option<()> {
        let old = packet.load_u16(at)?;
        packet.store_u16(at, self.apply(old))
    }
}

#[inline(always)]
fn halves(value: u32) -> (u16, u16) {
    let [a, b, c, d] = value.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

/// Adds the carries back in. Twice is enough for any sum of fewer than 2^16 words.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A sum of words as they lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u32);

impl Sum {
    /// Adds a 16-bit word.
    #[inline(always)]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u32::from(word))
    }

    /// Adds a 32-bit word.
    #[inline(always)]
    #[must_use]
    pub fn long(self, long: u32) -> Self {
        let (low, high) = halves(long);
        self.word(low).word(high)
    }

    /// The sum so far, for [`Self::from_value`] to go on from.
    #[inline(always)]
    #[must_use]
    pub fn value(self) -> u32 {
        self.0
    }

    /// A sum that was [`Self::value`].
    #[inline(always)]
    #[must_use]
    pub fn from_value(value: u32) -> Self {
        Self(value)
    }

    /// The checksum of what was added.
    #[inline(always)]
    #[must_use]
    pub fn checksum(self) -> u16 {
        !fold(self.0)
    }
}

/// The checksum of `bytes` (RFC 1071), for those who build packets.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.first().copied().unwrap_or(0);
        let high = pair.get(1).copied().unwrap_or(0);
        sum = u32::from(fold(sum + u32::from(u16::from_ne_bytes([low, high]))));
    }
    !fold(sum)
}
