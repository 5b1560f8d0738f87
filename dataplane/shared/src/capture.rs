//! What is shown of a port's frames to one who watches it.

use crate::layout::Direction;

/// Bytes of a frame that are shown at most: all of one of the usual length.
pub const CAPTURE_BYTES: usize = 1520;

/// An entry of a ring in `CAPTURES`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Length of the frame.
    pub length: u32,
    /// Bytes of it that follow.
    pub shown: u32,
    /// [`Direction`], seen from the port: what it sends is shown as it sent it, what it
    /// receives as it receives it.
    pub direction: u32,
    /// Zero.
    pub reserved: u32,
    /// The frame's first bytes.
    pub bytes: [u8; CAPTURE_BYTES],
}

impl Captured {
    /// [`Self::direction`] as what it means.
    #[must_use]
    pub fn direction(&self) -> Direction {
        if self.direction == Direction::Egress as u32 {
            Direction::Egress
        } else {
            Direction::Ingress
        }
    }
}
