//! A request's guest memory: passed in order, copied, cut into pieces.

use super::slot::Slot;
use crate::qos::PIECE_BYTES;
use crate::request::{Kind, STATUS_OK};

impl Slot {
    /// Is it too large to be served in one go?
    #[must_use]
    pub fn is_large(&self) -> bool {
        let transfer = matches!(self.kind, Kind::Read(_) | Kind::Write(_));
        transfer && piece_bytes(self.offset()) < self.data_bytes
    }

    /// Makes it a request in pieces, of which none has begun.
    pub fn split(&mut self) {
        (self.first, self.done) = (0, 0);
        (self.pieces, self.outcome) = (1, STATUS_OK);
    }

    /// Moves its next piece into `piece`; true if that was the last.
    pub fn cut(&mut self, piece: &mut Self) -> bool {
        let offset = self.offset() + self.done;
        let mut left = piece_bytes(offset).min(self.data_bytes - self.done);
        piece.kind = match self.kind {
            Kind::Write(_) => Kind::Write(offset),
            _ => Kind::Read(offset),
        };
        (piece.device, piece.queue, piece.head) = (self.device, self.queue, self.head);
        (piece.status, piece.dsync) = (self.status, self.dsync);
        piece.data_bytes = left;
        piece.iovecs.clear();
        self.done += left;
        self.pieces += 1;
        while left > 0
            && let Some(iov) = self.iovecs.get(self.first)
        {
            let part = iov.iov_len.min(left as usize);
            piece.iovecs.push(libc::iovec {
                iov_base: iov.iov_base,
                iov_len: part,
            });
            left -= part as u64;
            self.skip(part);
        }
        self.done >= self.data_bytes
    }

    /// Copies `n` bytes between `host` and the guest's next bytes, and passes them.
    pub(super) fn copy(&mut self, mut host: *mut u8, mut n: usize, to_guest: bool) {
        while n > 0 && self.first < self.iovecs.len() {
            let iov = &self.iovecs[self.first];
            let part = iov.iov_len.min(n);
            let guest = iov.iov_base.cast::<u8>();
            // SAFETY: `part` bytes lie in the piece (guest memory inside a live
            // mapping) and in the caller's buffer; the two never overlap. The guest
            // may race and then gets torn bytes, which are its own.
            unsafe {
                if to_guest {
                    std::ptr::copy_nonoverlapping(host, guest, part);
                } else {
                    std::ptr::copy_nonoverlapping(guest, host, part);
                }
                host = host.add(part);
            }
            n -= part;
            self.skip(part);
        }
    }

    /// Passes `n` bytes of guest memory.
    pub(super) fn skip(&mut self, mut n: usize) {
        while n > 0
            && let Some(iov) = self.iovecs.get_mut(self.first)
        {
            let part = iov.iov_len.min(n);
            // SAFETY: part <= iov_len, so the pointer stays in or just past the piece.
            iov.iov_base = unsafe { iov.iov_base.cast::<u8>().add(part) }.cast();
            iov.iov_len -= part;
            n -= part;
            if iov.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

/// Bytes of the piece that begins at `offset`, if the request is long enough.
fn piece_bytes(offset: u64) -> u64 {
    PIECE_BYTES as u64 - offset % PIECE_BYTES as u64
}
