//! Requests of a guest whose memory no backend can see, through a region that it can.
//!
//! ```text
//!  guest's ring ─ pop ─▶ request ─ copy ─▶ slot ─▶ our ring ─▶ backend
//!  guest's ring ◀ push ─ status  ◀ copy ── slot ◀─ our ring ◀─ backend
//! ```
//! A machine restored from files has private memory ([`crate::memory`]). Its disk's thread takes
//! the guest's requests itself and hands them on in one of [`SLOTS`] slots of [`DATA_BYTES`] each,
//! which lie with a ring of our own in one sealed, shared region of about 1 MiB: that, and not
//! the guest, is what the backend maps. A request that is larger than a slot goes piece by piece;
//! when all slots are taken the guest waits, and its queues take turns. The price is one copy and
//! two switches of thread a request.

use crate::irq::borrow;
use crate::virtio::queue::{Buffers, QueueError, VirtQueue};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering, fence};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

/// Requests under way at a time.
const SLOTS: usize = 16;
/// Data of one piece of a request.
pub(super) const DATA_BYTES: usize = 64 << 10;
/// Three descriptors a slot: header, data, status.
const PARTS: usize = 3;
/// Size of our ring: the next power of two.
const RING: usize = (SLOTS * PARTS).next_power_of_two();
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const FIRST_SLOT: usize = 0x3000;
/// Header and status have a page before the data.
const DATA: usize = 0x1000;
const STATUS: usize = 0x800;
const SLOT_BYTES: usize = DATA + DATA_BYTES;
const REGION_BYTES: usize = FIRST_SLOT + SLOTS * SLOT_BYTES;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const USED_F_NO_NOTIFY: u16 = 1;
const HEADER_BYTES: usize = 16;
pub(super) const SECTOR_BYTES: usize = 512;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;

/// The region, our ring in it, and the requests that are in its slots.
pub struct Bounce {
    map: MmapRegion<()>,
    kick: EventFd,
    call: EventFd,
    slots: [Option<Request>; SLOTS],
    next_avail: u16,
    next_used: u16,
    /// The guest's queue whose turn is next, by place.
    turn: usize,
}

/// A guest's request, whole, of which a piece is in a slot.
struct Request {
    /// The place of its queue.
    queue: usize,
    head: u16,
    buffers: Buffers,
    kind: u32,
    sector: u64,
    /// Into the guest's memory.
    reads: bool,
    data_bytes: usize,
    done_bytes: usize,
    piece_bytes: usize,
}

/// What the pump did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pumped {
    /// Requests that ended.
    pub requests: u64,
    /// Bytes copied either way.
    pub bytes: u64,
    /// Queues, a bit each by place, in which requests ended.
    queues: u32,
}

impl Pumped {
    fn count(&mut self, queue: usize) {
        self.requests += 1;
        self.queues |= 1 << queue;
    }
}

impl Bounce {
    /// An empty region.
    pub fn new() -> io::Result<Self> {
        let bytes = REGION_BYTES as u64;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("bounce", flags)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals)?;
        let map = MmapRegion::from_file(FileOffset::new(File::from(fd), 0), REGION_BYTES)
            .map_err(io::Error::other)?;
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            map,
            kick: event()?,
            call: event()?,
            slots: Default::default(),
            next_avail: 0,
            next_used: 0,
            turn: 0,
        })
    }

    /// Forgets all requests: the driver did, and no backend serves the ring.
    pub fn reset(&mut self) {
        self.slots = Default::default();
        (self.next_avail, self.next_used) = (0, 0);
        // The ring is all that a backend looks at.
        let zeros = [0u8; FIRST_SLOT];
        self.store(0, &zeros);
    }

    /// What the backend maps: guest address 0 is the region's first byte.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: REGION_BYTES as u64,
            userspace_addr: self.map.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: self
                .map
                .file_offset()
                .map_or(-1, |file| file.file().as_raw_fd()),
        }
    }

    /// Our ring: size, then descriptors, available and used ring in our address space.
    pub fn ring(&self) -> (u16, [u64; 3]) {
        let base = self.map.as_ptr() as u64;
        let at = |offset: usize| base + offset as u64;
        (RING as u16, [at(0), at(AVAIL), at(USED)])
    }

    /// Where a backend that comes again goes on.
    pub fn base(&self) -> u16 {
        self.word(USED + 2).load(Ordering::Acquire)
    }

    /// Signals the backend.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Signalled by the backend.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Is nothing under way?
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Ends what the backend completed and, with `more`, begins what the guest offers.
    pub fn pump(
        &mut self,
        guest: &mut [(u16, VirtQueue)],
        more: bool,
    ) -> Result<Pumped, QueueError> {
        let mut pumped = Pumped::default();
        self.complete(guest, &mut pumped)?;
        if more {
            self.begin(guest, &mut pumped)?;
        }
        for (place, (_, queue)) in guest.iter_mut().enumerate() {
            if pumped.queues & 1 << place != 0 {
                queue.notify()?;
            }
        }
        Ok(pumped)
    }

    fn begin(
        &mut self,
        guest: &mut [(u16, VirtQueue)],
        pumped: &mut Pumped,
    ) -> Result<(), QueueError> {
        for (_, queue) in guest.iter_mut() {
            queue.disable_kicks()?;
        }
        let mut submitted = false;
        // Queues in a row that have nothing more.
        let mut dry = 0;
        while dry < guest.len()
            && let Some(slot) = self.slots.iter().position(Option::is_none)
        {
            let place = self.turn % guest.len();
            let queue = &mut guest[place].1;
            let mut buffers = Buffers::default();
            let Some(head) = queue.pop(&mut buffers)? else {
                if !queue.enable_kicks()? {
                    dry += 1;
                    self.turn = place + 1;
                }
                continue;
            };
            (dry, self.turn) = (0, place + 1);
            match Request::new(place, head, buffers) {
                Ok(request) => {
                    self.slots[slot] = Some(request);
                    self.submit(slot, pumped);
                    submitted = true;
                }
                Err(bad) => {
                    bad.finish(guest, S_IOERR)?;
                    pumped.count(place);
                }
            }
        }
        self.notify_backend(submitted);
        Ok(())
    }

    fn complete(
        &mut self,
        guest: &mut [(u16, VirtQueue)],
        pumped: &mut Pumped,
    ) -> Result<(), QueueError> {
        let mut submitted = false;
        // The backend is not trusted with more than its own ring's worth.
        for _ in 0..RING {
            if self.word(USED + 2).load(Ordering::Acquire) == self.next_used {
                break;
            }
            let entry = USED + 4 + 8 * (usize::from(self.next_used) % RING);
            self.next_used = self.next_used.wrapping_add(1);
            let slot = usize::from(self.word(entry).load(Ordering::Relaxed)) / PARTS;
            let status = self.load_byte(slot_at(slot) + STATUS);
            let Some(request) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            if status == S_OK && request.reads {
                let from = self.map.as_ptr().wrapping_add(slot_at(slot) + DATA);
                request.copy(from);
                pumped.bytes += request.piece_bytes as u64;
            }
            request.done_bytes += request.piece_bytes;
            if status == S_OK && request.done_bytes < request.data_bytes {
                self.submit(slot, pumped);
                submitted = true;
            } else if let Some(request) = self.slots[slot].take() {
                pumped.count(request.queue);
                request.finish(guest, status)?;
            }
        }
        self.notify_backend(submitted);
        Ok(())
    }

    /// Puts the next piece of the request in `slot` into our ring.
    fn submit(&mut self, slot: usize, pumped: &mut Pumped) {
        let at = slot_at(slot);
        let data = self.map.as_ptr().wrapping_add(at + DATA);
        let Some(request) = &mut self.slots[slot] else {
            return;
        };
        request.piece_bytes = (request.data_bytes - request.done_bytes).min(DATA_BYTES);
        let (bytes, reads) = (request.piece_bytes, request.reads);
        if !reads && bytes > 0 {
            request.copy(data);
            pumped.bytes += bytes as u64;
        }
        let sector = request.sector + (request.done_bytes / SECTOR_BYTES) as u64;
        let kind = request.kind;
        self.offer(slot, kind, sector, bytes, reads);
    }

    /// Puts a request with `bytes` of data in `slot` into our ring.
    fn offer(&mut self, slot: usize, kind: u32, sector: u64, bytes: usize, reads: bool) {
        let at = slot_at(slot);
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.store(at, &header);
        self.store(at + STATUS, &[S_IOERR]);
        let first = slot * PARTS;
        let write = if reads { F_WRITE } else { 0 };
        let behind = if bytes > 0 { first + 1 } else { first + 2 };
        self.describe(first, at, HEADER_BYTES, F_NEXT, behind);
        self.describe(first + 1, at + DATA, bytes, F_NEXT | write, first + 2);
        self.describe(first + 2, at + STATUS, 1, F_WRITE, 0);
        let entry = AVAIL + 4 + 2 * (usize::from(self.next_avail) % RING);
        self.word(entry).store(first as u16, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.word(AVAIL + 2)
            .store(self.next_avail, Ordering::Release);
    }

    /// Fills `into`, of [`DATA_BYTES`] at most, from `sector` on, while no guest drives the disk;
    /// false if `backend` went away.
    pub fn read(
        &mut self,
        sector: u64,
        into: &mut [u8],
        backend: BorrowedFd<'_>,
    ) -> io::Result<bool> {
        self.offer(0, T_IN, sector, into.len(), true);
        self.notify_backend(true);
        while self.word(USED + 2).load(Ordering::Acquire) == self.next_used {
            let mut fds = [
                PollFd::from_borrowed_fd(borrow(&self.call), PollFlags::IN),
                PollFd::from_borrowed_fd(backend, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[1].revents().is_empty() {
                return Ok(false);
            }
            // Reading only clears the event.
            let _ = self.call.read();
        }
        self.next_used = self.next_used.wrapping_add(1);
        if self.load_byte(slot_at(0) + STATUS) != S_OK {
            return Err(io::Error::other(format!("sector {sector} cannot be read")));
        }
        let data = self.map.get_slice(slot_at(0) + DATA, into.len());
        data.map_err(io::Error::other)?.copy_to(into);
        Ok(true)
    }

    fn notify_backend(&self, submitted: bool) {
        fence(Ordering::SeqCst);
        let wanted = self.word(USED).load(Ordering::Relaxed) & USED_F_NO_NOTIFY == 0;
        if submitted && wanted {
            // A full counter already means "kicked".
            let _ = self.kick.write(1);
        }
    }

    fn describe(&self, index: usize, at: usize, bytes: usize, flags: u16, next: usize) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&(at as u64).to_le_bytes());
        descriptor[8..12].copy_from_slice(&(bytes as u32).to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&(next as u16).to_le_bytes());
        self.store(index * 16, &descriptor);
    }

    fn store(&self, at: usize, bytes: &[u8]) {
        if let Ok(slice) = self.map.get_slice(at, bytes.len()) {
            slice.copy_from(bytes);
        }
    }

    fn load_byte(&self, at: usize) -> u8 {
        self.map
            .get_ref::<u8>(at)
            .map_or(S_IOERR, |byte| byte.load())
    }

    /// A half word of our ring; x86 is little-endian, as virtio 1 is.
    fn word(&self, at: usize) -> &AtomicU16 {
        const { assert!(cfg!(target_endian = "little")) };
        match self.map.get_atomic_ref(at) {
            Ok(word) => word,
            Err(_) => unreachable!("offsets are constants inside the region"),
        }
    }
}

fn slot_at(slot: usize) -> usize {
    FIRST_SLOT + slot * SLOT_BYTES
}

impl Request {
    /// Reads the header of a chain; a request that no backend would take comes back as an error.
    fn new(queue: usize, head: u16, buffers: Buffers) -> Result<Self, Self> {
        let (readable, writable) = (buffers.readable_bytes(), buffers.writable_bytes());
        let mut header = [0; HEADER_BYTES];
        if readable >= HEADER_BYTES {
            transfer(
                &buffers.readable,
                0,
                header.as_mut_ptr(),
                HEADER_BYTES,
                false,
            );
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let kind = word(0);
        let (out_bytes, in_bytes) = (
            readable.saturating_sub(HEADER_BYTES),
            writable.saturating_sub(1),
        );
        let request = Self {
            queue,
            head,
            buffers,
            kind,
            sector: u64::from(word(8)) | u64::from(word(12)) << 32,
            reads: in_bytes > 0,
            data_bytes: out_bytes.max(in_bytes),
            done_bytes: 0,
            piece_bytes: 0,
        };
        // What a slot cannot hold goes in pieces, if it is made of sectors.
        let cuts = matches!(kind, T_IN | T_OUT) && request.data_bytes.is_multiple_of(SECTOR_BYTES);
        let fits = request.data_bytes <= DATA_BYTES || cuts;
        let good =
            readable >= HEADER_BYTES && writable > 0 && (out_bytes == 0 || in_bytes == 0) && fits;
        if good { Ok(request) } else { Err(request) }
    }

    /// Copies the piece between the guest's buffers and `slot`.
    fn copy(&self, slot: *mut u8) {
        let (buffers, skip) = match self.reads {
            true => (&self.buffers.writable, self.done_bytes),
            false => (&self.buffers.readable, HEADER_BYTES + self.done_bytes),
        };
        transfer(buffers, skip, slot, self.piece_bytes, self.reads);
    }

    /// Gives the chain back with `status` in its last byte, if it has one.
    fn finish(self, guest: &mut [(u16, VirtQueue)], status: u8) -> Result<(), QueueError> {
        let writable = self.buffers.writable_bytes();
        if let Some(last) = writable.checked_sub(1) {
            let mut byte = status;
            transfer(&self.buffers.writable, last, &raw mut byte, 1, true);
        }
        let read = match (self.reads, status) {
            (true, S_OK) => self.data_bytes,
            _ => 0,
        };
        let written = (read + usize::from(writable > 0)) as u32;
        match guest.get_mut(self.queue) {
            Some((_, queue)) => queue.push(self.head, written),
            // The driver that it is of is gone.
            None => Ok(()),
        }
    }
}

/// Copies `bytes` between `flat` and what lies `skip` bytes into `buffers`; `to_guest` says which
/// way.
fn transfer(buffers: &[libc::iovec], mut skip: usize, flat: *mut u8, bytes: usize, to_guest: bool) {
    let mut done = 0;
    for buffer in buffers {
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let count = (buffer.iov_len - skip).min(bytes - done);
        let guest = buffer.iov_base.cast::<u8>().wrapping_add(skip);
        let flat = flat.wrapping_add(done);
        // SAFETY: the queue's walk found `count` bytes at `guest` in mapped guest memory, which
        // the queue keeps; callers give `bytes` bytes at `flat`, outside guest memory. The guest
        // may race, and then has chosen the bytes itself.
        unsafe {
            match to_guest {
                true => std::ptr::copy_nonoverlapping(flat, guest, count),
                false => std::ptr::copy_nonoverlapping(guest, flat, count),
            }
        }
        done += count;
        skip = 0;
        if done == bytes {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
