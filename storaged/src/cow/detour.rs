//! One operation's way through the layers, where it is more than one operation.

use crate::shard::op::{Op, Vector};

/// How far an operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// One plain operation: its result is the answer.
    #[default]
    Plain,
    /// A shared layer's bytes are read, to be put under this volume's key.
    Transcoding,
    /// A grain that another request claims is waited for.
    Behind,
    /// A window is.
    Windowless,
    /// Claim: the grain's old bytes are read.
    Filling,
    /// Claim: the window is written to the last layer.
    Storing,
    /// Claim: whole grains go straight from the guest to the last layer.
    Passing,
    /// The log is.
    Logging,
    /// Flush: the last layer is synced.
    SyncingTop,
    /// Flush: the log is.
    SyncingLog,
    /// Discard or zeroes: a piece of the last layer is punched or zeroed.
    Punching,
}

/// What is logged, and so what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Then {
    /// A claim.
    #[default]
    Claimed,
    /// Grains of lower layers became nothing.
    Dropped,
    /// A commit.
    Committed,
}

/// An operation on its way. Lies in its request's slot, which does not move.
#[derive(Default)]
pub struct Detour {
    pub(super) op: Option<Op>,
    pub(super) state: State,
    pub(super) then: Then,
    /// This request's operation on the ring writes the log.
    pub(super) leads: bool,
    /// Guest memory (or a window) of the piece under way.
    pub(super) pieces: Vec<libc::iovec>,
    pub(super) passed: usize,
    /// First grain of a claim or drop, and how many.
    pub(super) grain: u64,
    pub(super) count: u64,
    /// Bytes of the operation that this piece answers for.
    pub(super) answers: u64,
    pub(super) window: Option<u16>,
    pub(super) window_iov: Option<libc::iovec>,
    pub(super) done: usize,
    /// `O_DIRECT` was refused.
    pub(super) buffered: bool,
    /// Discard or zeroes: how far.
    pub(super) cursor: u64,
    /// Flush: the frame to commit through.
    pub(super) through: u64,
}

/// Bytes in `pieces`.
pub(super) fn total(pieces: &[libc::iovec]) -> u64 {
    pieces.iter().map(|piece| piece.iov_len as u64).sum()
}

/// The pieces that a vector names.
pub(super) fn pieces(vector: &Vector) -> &[libc::iovec] {
    // SAFETY: a vector's pieces are valid until its operation completed, and nothing
    // writes them meanwhile.
    unsafe { std::slice::from_raw_parts(vector.iov, vector.count as usize) }
}

impl Detour {
    /// Keeps the first `len` bytes of `vector`'s pieces.
    pub(super) fn keep(&mut self, vector: &Vector, len: u64) {
        self.pieces.clear();
        self.passed = 0;
        let mut left = len as usize;
        for piece in pieces(vector) {
            if left == 0 {
                break;
            }
            let part = piece.iov_len.min(left);
            self.pieces.push(libc::iovec {
                iov_base: piece.iov_base,
                iov_len: part,
            });
            left -= part;
        }
    }

    /// Passes `n` bytes of the pieces kept.
    pub(super) fn pass(&mut self, mut n: usize) {
        while n > 0
            && let Some(piece) = self.pieces.get_mut(self.passed)
        {
            let part = piece.iov_len.min(n);
            // SAFETY: part <= iov_len, so the pointer stays in or just past the piece.
            piece.iov_base = unsafe { piece.iov_base.cast::<u8>().add(part) }.cast();
            piece.iov_len -= part;
            n -= part;
            if piece.iov_len == 0 {
                self.passed += 1;
            }
        }
    }

    /// `vector` for the pieces that are left.
    pub(super) fn rest(&self, vector: &Vector, offset: u64) -> Vector {
        let rest = &self.pieces[self.passed.min(self.pieces.len())..];
        Vector {
            iov: rest.as_ptr(),
            count: rest.len() as u32,
            offset,
            ..*vector
        }
    }

    /// Calls `each` with the address and length of every piece kept.
    pub(super) fn each(&self, mut each: impl FnMut(*mut u8, usize)) {
        for piece in &self.pieces {
            each(piece.iov_base.cast(), piece.iov_len);
        }
    }
}
