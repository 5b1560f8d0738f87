//! One request on its way, or one piece of a large one: the state machine between a
//! parsed request and its status.
//!
//! ```text
//! large      cut into pieces at multiples of 64 KiB of the volume, each as below
//! plain      begin ─▶ readv/writev ─▶ (rest after a short transfer) ─▶ Done
//! encrypted  begin ─▶ read   file ─▶ window, decrypt ─▶ guest
//!                     write  guest ─▶ window, encrypt ─▶ file; a piece that cuts a
//!                            block is read and decrypted first, and runs alone
//! ```
//! It performs nothing itself: each step yields an [`Op`] that the shard runs on its
//! ring, or at once where the file is in RAM. Where a volume has layers, the op takes
//! its way through [`crate::cow`], which may do less of it than asked, as a file may.

use super::bounce::Bounce;
use super::op::{Op, Vector};
use crate::cow::detour::Detour;
use crate::crypt::{BLOCK_BYTES, Key};
use crate::disk::{DIRECT_ALIGN, Disk, FileBacking};
use crate::request::{ID_BYTES, Kind, STATUS_IOERR, STATUS_OK, STATUS_UNSUPP};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Run this and call [`Slot::advance`] with its result.
    Submit(Op),
    /// Complete the request with this status.
    Done(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Straight between guest and file, or no data at all.
    Plain,
    /// Window: file → bounce, for the guest.
    Reading,
    /// Window: file → bounce, to be merged with the guest's bytes.
    Filling,
    /// Window: bounce → file.
    Writing,
}

/// A request or a piece on its way. Boxed by the shard: `window_iov` is read by the kernel.
pub struct Slot {
    /// The device's index in the shard.
    pub device: usize,
    /// The queue it came from.
    pub queue: u16,
    /// Its chain's head.
    pub head: u16,
    /// What it asks.
    pub kind: Kind,
    /// Where its status goes; inside a mapping that its queue keeps.
    pub status: *mut u8,
    /// Guest memory still to be transferred, inside the same mapping.
    pub iovecs: Vec<libc::iovec>,
    /// Data bytes in all.
    pub data_bytes: u64,
    /// Writes are durable on completion (no `VIRTIO_BLK_F_FLUSH`).
    pub dsync: bool,
    /// Its operation's way through a volume's layers.
    pub detour: Detour,
    /// The request that this is a piece of; itself, if it is whole.
    pub parent: usize,
    /// Of a request in pieces: how many have not ended, those not begun being one.
    pub pieces: u32,
    /// Of a request in pieces: the status so far.
    pub outcome: u8,
    pub(super) first: usize,
    pub(super) done: u64,
    buffered: bool,
    phase: Phase,
    window: Option<u16>,
    window_iov: libc::iovec,
    window_at: u64,
    window_len: usize,
    window_done: usize,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            device: 0,
            queue: 0,
            head: 0,
            kind: Kind::Flush,
            status: std::ptr::null_mut(),
            iovecs: Vec::new(),
            data_bytes: 0,
            dsync: false,
            parent: 0,
            pieces: 0,
            outcome: STATUS_OK,
            detour: Detour::default(),
            first: 0,
            done: 0,
            buffered: false,
            phase: Phase::Plain,
            window: None,
            window_iov: EMPTY,
            window_at: 0,
            window_len: 0,
            window_done: 0,
        }
    }
}

impl Slot {
    /// Must it run alone on its device? It reads, changes and writes a block whose
    /// other bytes another write might be changing.
    #[must_use]
    pub fn needs_exclusive(&self, disk: &Disk) -> bool {
        match self.kind {
            Kind::Write(offset) => {
                key(disk).is_some() && !(offset | self.data_bytes).is_multiple_of(BLOCK)
            }
            _ => false,
        }
    }

    /// How large a window it needs; zero: none.
    #[must_use]
    pub fn window_bytes(&self, disk: &Disk) -> u64 {
        match self.kind {
            Kind::Read(offset) | Kind::Write(offset) if key(disk).is_some() => {
                let end = offset + self.data_bytes;
                end.next_multiple_of(BLOCK) - (offset - offset % BLOCK)
            }
            _ => 0,
        }
    }

    /// Gives back the window, if it has one.
    pub fn take_window(&mut self) -> Option<u16> {
        self.window.take()
    }

    /// The first step. A piece is given a window of [`Self::window_bytes`].
    pub fn begin(&mut self, disk: &Disk, bounce: &Bounce, window: Option<u16>) -> Step {
        (self.first, self.done, self.buffered) = (0, 0, false);
        (self.phase, self.window) = (Phase::Plain, window);
        let file = match (disk.backing.file(), self.kind) {
            (_, Kind::Refuse(status)) => return Step::Done(status),
            (_, Kind::GetId) => {
                let mut serial = disk.serial;
                self.copy(serial.as_mut_ptr(), ID_BYTES as usize, true);
                return Step::Done(STATUS_OK);
            }
            (_, Kind::Read(_) | Kind::Write(_)) if self.data_bytes == 0 => {
                return Step::Done(STATUS_OK);
            }
            (None, Kind::Read(_)) => {
                for iov in &self.iovecs {
                    // SAFETY: each piece is guest memory inside a live mapping.
                    unsafe { iov.iov_base.cast::<u8>().write_bytes(0, iov.iov_len) };
                }
                return Step::Done(STATUS_OK);
            }
            (None, _) => return Step::Done(STATUS_OK),
            (Some(file), _) => file,
        };
        match self.kind {
            Kind::Read(_) | Kind::Write(_) if file.key.is_some() => self.first_window(file, bounce),
            Kind::Read(_) | Kind::Write(_) => self.transfer(file),
            _ => self.effect(file),
        }
    }

    /// The next step after an operation ended with `result`: bytes, or `-errno`.
    pub fn advance(&mut self, disk: &Disk, bounce: &Bounce, result: i32) -> Step {
        let Some(file) = disk.backing.file() else {
            return Step::Done(STATUS_IOERR);
        };
        let transfer = matches!(self.kind, Kind::Read(_) | Kind::Write(_));
        if result == -libc::EINTR || result == -libc::EAGAIN {
            return self.again(file, bounce);
        }
        if result == -libc::EINVAL && transfer && !self.buffered && file.direct.is_some() {
            self.buffered = true;
            return self.again(file, bounce);
        }
        if result < 0 {
            let unsupported = result == -libc::EOPNOTSUPP && !transfer;
            return Step::Done(if unsupported {
                STATUS_UNSUPP
            } else {
                STATUS_IOERR
            });
        }
        if !transfer {
            return Step::Done(STATUS_OK);
        }
        let moved = result.unsigned_abs() as usize;
        // A transfer of nothing would go on for ever: the file is shorter than its volume.
        if moved == 0 {
            return Step::Done(STATUS_IOERR);
        }
        match (self.phase, &file.key) {
            (Phase::Plain, _) | (_, None) => {
                self.skip(moved);
                self.done += moved as u64;
                if self.done >= self.data_bytes {
                    return Step::Done(STATUS_OK);
                }
                self.transfer(file)
            }
            (_, Some(key)) => {
                self.window_done += moved;
                if self.window_done < self.window_len {
                    return self.window_op(file, bounce);
                }
                self.window_ended(file, bounce, key)
            }
        }
    }

    fn again(&mut self, file: &FileBacking, bounce: &Bounce) -> Step {
        match (self.kind, self.phase) {
            (Kind::Read(_) | Kind::Write(_), Phase::Plain) => self.transfer(file),
            (Kind::Read(_) | Kind::Write(_), _) => self.window_op(file, bounce),
            _ => self.effect(file),
        }
    }

    /// What moves no data.
    fn effect(&self, file: &FileBacking) -> Step {
        match self.kind {
            Kind::Flush if !file.durable || file.inline => Step::Done(STATUS_OK),
            Kind::Flush => Step::Submit(Op::Sync),
            Kind::Discard { offset, len } => match inner(file, offset, len) {
                Some((offset, len)) => Step::Submit(Op::punch(offset, len, false)),
                None => Step::Done(STATUS_OK),
            },
            Kind::WriteZeroes { len: 0, .. } => Step::Done(STATUS_OK),
            Kind::WriteZeroes { offset, len, .. }
                if file.key.is_some() && !(offset | len).is_multiple_of(BLOCK) =>
            {
                Step::Done(STATUS_UNSUPP)
            }
            Kind::WriteZeroes { offset, len, unmap } if unmap || file.inline => {
                Step::Submit(Op::punch(offset, len, true))
            }
            Kind::WriteZeroes { offset, len, .. } => Step::Submit(Op::zero(offset, len)),
            Kind::Read(_) | Kind::Write(_) | Kind::GetId | Kind::Refuse(_) => {
                Step::Done(STATUS_IOERR)
            }
        }
    }

    /// Guest memory straight to or from the file.
    fn transfer(&mut self, file: &FileBacking) -> Step {
        let rest = &self.iovecs[self.first..];
        let offset = self.offset() + self.done;
        let aligned = offset.is_multiple_of(DIRECT_ALIGN)
            && rest.iter().all(|v| {
                (v.iov_base as u64).is_multiple_of(DIRECT_ALIGN)
                    && (v.iov_len as u64).is_multiple_of(DIRECT_ALIGN)
            });
        let vector = Vector {
            direct: aligned && !self.buffered && file.direct.is_some(),
            dsync: self.dsync && file.durable,
            iov: rest.as_ptr(),
            count: rest.len() as u32,
            offset,
        };
        Step::Submit(match self.kind {
            Kind::Write(_) => Op::Writev(vector),
            _ => Op::Readv(vector),
        })
    }

    /// All of a piece passes one window.
    fn first_window(&mut self, file: &FileBacking, bounce: &Bounce) -> Step {
        let at = self.offset();
        let end = at + self.data_bytes;
        self.window_at = at - at % BLOCK;
        let window_end = end.next_multiple_of(BLOCK);
        self.window_len = (window_end - self.window_at) as usize;
        self.window_done = 0;
        let whole = at == self.window_at && window_end == end;
        self.phase = match self.kind {
            Kind::Write(_) if whole => Phase::Writing,
            Kind::Write(_) => Phase::Filling,
            _ => Phase::Reading,
        };
        if self.phase == Phase::Writing {
            self.seal(file, bounce);
        }
        self.window_op(file, bounce)
    }

    /// Takes the window's bytes from the guest and encrypts the window.
    fn seal(&mut self, file: &FileBacking, bounce: &Bounce) {
        let (Some(window), Some(key)) = (self.window, &file.key) else {
            return;
        };
        let (skip, n) = self.window_share();
        // SAFETY: skip + n <= window_len <= the window's size.
        self.copy(unsafe { bounce.at(window).add(skip) }, n, false);
        self.done += n as u64;
        key.encrypt(
            bounce.slice(window, self.window_len),
            self.window_at / BLOCK,
        );
    }

    /// Of the window: how far in the request's bytes begin, and how many they are.
    fn window_share(&self) -> (usize, usize) {
        let at = self.offset() + self.done;
        let skip = (at - self.window_at) as usize;
        let left = self.data_bytes - self.done;
        (skip, (self.window_len - skip).min(left as usize))
    }

    fn window_ended(&mut self, file: &FileBacking, bounce: &Bounce, key: &Key) -> Step {
        let Some(window) = self.window else {
            return Step::Done(STATUS_IOERR);
        };
        match self.phase {
            Phase::Reading => {
                key.decrypt(
                    bounce.slice(window, self.window_len),
                    self.window_at / BLOCK,
                );
                let (skip, n) = self.window_share();
                // SAFETY: skip + n <= window_len <= the window's size.
                self.copy(unsafe { bounce.at(window).add(skip) }, n, true);
                self.done += n as u64;
            }
            Phase::Filling => {
                key.decrypt(
                    bounce.slice(window, self.window_len),
                    self.window_at / BLOCK,
                );
                self.seal(file, bounce);
                (self.phase, self.window_done) = (Phase::Writing, 0);
                return self.window_op(file, bounce);
            }
            Phase::Writing | Phase::Plain => {}
        }
        Step::Done(STATUS_OK)
    }

    fn window_op(&mut self, file: &FileBacking, bounce: &Bounce) -> Step {
        let Some(window) = self.window else {
            return Step::Done(STATUS_IOERR);
        };
        self.window_iov = libc::iovec {
            // SAFETY: window_done <= window_len <= the window's size.
            iov_base: unsafe { bounce.at(window).add(self.window_done) }.cast(),
            iov_len: self.window_len - self.window_done,
        };
        let aligned = (self.window_done as u64).is_multiple_of(DIRECT_ALIGN);
        let vector = Vector {
            direct: aligned && !self.buffered && file.direct.is_some(),
            dsync: self.dsync && file.durable,
            iov: &raw const self.window_iov,
            count: 1,
            offset: self.window_at + self.window_done as u64,
        };
        Step::Submit(match self.phase {
            Phase::Writing => Op::Writev(vector),
            _ => Op::Readv(vector),
        })
    }

    /// Its first byte in the volume.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self.kind {
            Kind::Read(offset) | Kind::Write(offset) => offset,
            _ => 0,
        }
    }
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};
fn key(disk: &Disk) -> Option<&Key> {
    disk.backing.file().and_then(|file| file.key.as_ref())
}

/// The part of a discard that frees whole blocks; encrypted blocks go whole or not.
fn inner(file: &FileBacking, offset: u64, len: u64) -> Option<(u64, u64)> {
    if file.key.is_none() {
        return (len > 0).then_some((offset, len));
    }
    let start = offset.next_multiple_of(BLOCK);
    let end = (offset + len) - (offset + len) % BLOCK;
    (start < end).then_some((start, end - start))
}
