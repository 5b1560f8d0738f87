//! A split virtqueue in use (virtio 1.3 §2.7), whatever the driver put into it.
//!
//! Ring arithmetic is `virtio-queue`'s; the walk along a descriptor chain is ours,
//! since a chain that breaks the rules must stop the device and not end quietly:
//!
//! * a descriptor index or an indirect table outside its bounds,
//! * more descriptors than the queue has (a loop),
//! * a buffer that is empty or outside guest memory,
//! * a readable buffer behind a writable one, or an indirect table inside another.

use super::Position;
use crate::memory::{GuestRam, log_of};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: u64 = 16;
/// The driver wants no interrupts (§2.7.6), without EVENT_IDX.
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// How a driver broke the rules of a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The available ring runs ahead of itself, or lies outside memory.
    #[error("the available ring is not usable: {0}")]
    Available(virtio_queue::Error),
    /// The used ring cannot be written.
    #[error("the used ring is not usable: {0}")]
    Used(virtio_queue::Error),
    /// An index outside the descriptor table.
    #[error("descriptor {index} is outside a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// The table's size.
        size: u16,
    },
    /// A loop.
    #[error("a chain has more than {0} descriptors")]
    Loop(u16),
    /// A buffer or table outside memory, or of a forbidden length.
    #[error("a buffer of {len} bytes at {at:#x} is not usable")]
    Buffer {
        /// Guest address.
        at: u64,
        /// Length.
        len: u32,
    },
    /// A rule of the device's own.
    #[error("the driver {0}")]
    Protocol(&'static str),
    /// Readable behind writable, or indirect inside indirect.
    #[error("descriptor flags {0:#x} are out of order")]
    Order(u16),
}

/// The buffers of one chain, as this process can address them.
///
/// They point into guest memory, which stays mapped as long as the [`GuestRam`]
/// of the queue that filled them.
#[derive(Default)]
pub struct Buffers {
    /// For the device to read.
    pub readable: Vec<libc::iovec>,
    /// For the device to write.
    pub writable: Vec<libc::iovec>,
    readable_bytes: usize,
    writable_bytes: usize,
}

// SAFETY: the pointers are into a shared mapping that any thread may access; the struct itself
// owns nothing.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Bytes for the device to read.
    pub fn readable_bytes(&self) -> usize {
        self.readable_bytes
    }

    /// Bytes for the device to write.
    pub fn writable_bytes(&self) -> usize {
        self.writable_bytes
    }

    /// Copies what lies from `offset` on for the device to read into `data`; how much that was.
    pub fn read_at(&self, offset: usize, data: &mut [u8]) -> usize {
        each_part(&self.readable, offset, data.len(), |at, part, len| {
            // SAFETY: `part` is `len` bytes of mapped guest memory (see the struct), `data` has as
            // many from `at` on; a guest that stores to them meanwhile spoils its own bytes.
            unsafe { std::ptr::copy(part, data.as_mut_ptr().add(at), len) };
        })
    }

    /// Copies `data` to what the device may write, from `offset` on; how much of it had room.
    pub fn write_at(&self, offset: usize, data: &[u8]) -> usize {
        each_part(&self.writable, offset, data.len(), |at, part, len| {
            // SAFETY: as in `read_at`, the other way round.
            unsafe { std::ptr::copy(data.as_ptr().add(at), part, len) };
        })
    }

    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.readable_bytes = 0;
        self.writable_bytes = 0;
    }
}

/// Calls `act` with each piece of `buffers` inside `len` bytes from `offset` on: its place in
/// those, its address, its length. Yields the bytes in all.
fn each_part(
    buffers: &[libc::iovec],
    offset: usize,
    len: usize,
    mut act: impl FnMut(usize, *mut u8, usize),
) -> usize {
    let (mut skip, mut done) = (offset, 0);
    for buffer in buffers {
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let count = (buffer.iov_len - skip).min(len - done);
        if count == 0 {
            break;
        }
        let part = buffer.iov_base.cast::<u8>().wrapping_add(skip);
        act(done, part, count);
        done += count;
        skip = 0;
    }
    done
}

/// A queue, its memory and its two events.
pub struct VirtQueue {
    queue: Queue,
    ram: GuestRam,
    kick: Arc<EventFd>,
    call: Option<EventFd>,
}

impl VirtQueue {
    /// Wraps a queue that [`Queue::is_valid`] accepted.
    pub fn new(queue: Queue, ram: GuestRam, kick: Arc<EventFd>, call: Option<EventFd>) -> Self {
        Self {
            queue,
            ram,
            kick,
            call,
        }
    }

    /// The driver's eventfd to the device.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The device's eventfd to the driver, unless the driver wants none.
    pub fn call(&self) -> Option<&EventFd> {
        self.call.as_ref()
    }

    /// Where it stands, given that nothing is in flight.
    pub fn position(&self) -> Position {
        Position {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Goes on from `position`.
    pub fn set_position(&mut self, position: Position) {
        self.queue.set_next_avail(position.next_avail);
        self.queue.set_next_used(position.next_used);
    }

    /// The ring's addresses and size.
    pub fn ring(&self) -> &Queue {
        &self.queue
    }

    /// Takes the next chain and fills `buffers`; the chain's head, `None` if there is none.
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, QueueError> {
        buffers.clear();
        let head = self
            .queue
            .iter(&self.ram)
            .map_err(QueueError::Available)?
            .next()
            .map(|chain| chain.head_index());
        let Some(head) = head else {
            return Ok(None);
        };
        let table = GuestAddress(self.queue.desc_table());
        walk(&self.ram, table, self.queue.size(), head, buffers)?;
        Ok(Some(head))
    }

    /// Puts the chain that was popped last back, unused.
    pub fn undo_pop(&mut self) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Gives a chain back with `written` bytes.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.log(head);
        self.queue
            .add_used(&self.ram, head, written)
            .map_err(QueueError::Used)
    }

    /// Marks what the chain gave the device to write, while a dirty log is on: a kernel call
    /// may have filled it, which marks nothing. A driver that changed the chain meanwhile has
    /// changed what its own snapshot holds.
    fn log(&self, head: u16) {
        if !self.ram.iter().any(|region| log_of(region).is_on()) {
            return;
        }
        let mut buffers = Buffers::default();
        let table = GuestAddress(self.queue.desc_table());
        // A chain that does not end well is marked as far as it goes.
        let _ = walk(&self.ram, table, self.queue.size(), head, &mut buffers);
        for buffer in &buffers.writable {
            let at = buffer.iov_base as usize;
            for region in self.ram.iter() {
                if let Some(offset) = at.checked_sub(region.as_ptr() as usize) {
                    log_of(region).mark_dirty(offset, buffer.iov_len);
                }
            }
        }
    }

    /// Interrupts the driver if it asked for that.
    pub fn notify(&mut self) -> Result<bool, QueueError> {
        let wanted = if self.queue.event_idx_enabled() {
            self.queue
                .needs_notification(&self.ram)
                .map_err(QueueError::Used)?
        } else {
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags: u16 = self
                .ram
                .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                .map_err(|e| QueueError::Available(virtio_queue::Error::GuestMemory(e)))?;
            u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted && let Some(call) = &self.call {
            // A full counter already means "signalled".
            let _ = call.write(1);
        }
        Ok(wanted)
    }

    /// Asks for a kick when more chains come; true if some came meanwhile.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        self.queue
            .enable_notification(&self.ram)
            .map_err(QueueError::Used)
    }

    /// Says that kicks are not needed now.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        self.queue
            .disable_notification(&self.ram)
            .map_err(QueueError::Used)
    }
}

/// Follows a chain from `head`.
fn walk(
    ram: &GuestRam,
    table: GuestAddress,
    size: u16,
    head: u16,
    buffers: &mut Buffers,
) -> Result<(), QueueError> {
    let (mut table, mut table_size, mut index) = (table, size, head);
    let mut indirect = false;
    // Indirect chains too are limited to the queue's size (§2.7.5.3.1).
    for _ in 0..=size {
        if index >= table_size {
            return Err(QueueError::Index {
                index,
                size: table_size,
            });
        }
        let at = table
            .checked_add(u64::from(index) * DESCRIPTOR_BYTES)
            .ok_or(QueueError::Buffer {
                at: table.0,
                len: 0,
            })?;
        let descriptor: Descriptor = ram
            .read_obj(at)
            .map_err(|_| QueueError::Buffer { at: at.0, len: 16 })?;
        let flags = descriptor.flags();
        if flags & F_INDIRECT != 0 {
            if indirect || flags & (F_NEXT | F_WRITE) != 0 {
                return Err(QueueError::Order(flags));
            }
            let (bytes, at) = (descriptor.len(), descriptor.addr());
            let entries = u16::try_from(bytes / 16).unwrap_or(u16::MAX);
            if bytes == 0 || bytes % 16 != 0 {
                return Err(QueueError::Buffer {
                    at: at.0,
                    len: bytes,
                });
            }
            (table, table_size, index, indirect) = (at, entries, 0, true);
            continue;
        }
        add(ram, descriptor, buffers)?;
        if flags & F_NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next();
    }
    Err(QueueError::Loop(size))
}

/// Adds one buffer.
fn add(ram: &GuestRam, descriptor: Descriptor, buffers: &mut Buffers) -> Result<(), QueueError> {
    let (at, len) = (descriptor.addr(), descriptor.len());
    let bad = || QueueError::Buffer { at: at.0, len };
    let bytes = usize::try_from(len).map_err(|_| bad())?;
    if bytes == 0 {
        return Err(bad());
    }
    let slice = ram.get_slice(at, bytes).map_err(|_| bad())?;
    let buffer = libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: bytes,
    };
    if descriptor.flags() & F_WRITE != 0 {
        buffers.writable.push(buffer);
        buffers.writable_bytes += bytes;
    } else if buffers.writable.is_empty() {
        buffers.readable.push(buffer);
        buffers.readable_bytes += bytes;
    } else {
        return Err(QueueError::Order(descriptor.flags()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
