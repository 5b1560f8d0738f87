//! The split virtqueue (virtio 1.3 §2.7), device side, with in-flight tracking.
//!
//! ```text
//! pop ──▶ head ──▶ chain ──▶ (request runs) ──▶ push ──▶ publish ──▶ call?
//!  │ marks head in flight                        │ stages   │ used.idx, then clears
//!  └────────────── inflight region ◀─────────────┴──────────┘
//! ```
//!
//! Own code because it is the hot path: the three rings are translated once at
//! start, a request costs a handful of loads and stores, and the order of writes
//! to ring and in-flight region is what survives a SIGKILL.

#![expect(
    clippy::cast_ptr_alignment,
    reason = "`start` checks each ring's alignment; offsets are multiples of their word"
)]

use crate::inflight::QueueInflight;
use crate::memory::Memory;
use std::sync::atomic::{AtomicU16, Ordering, fence};

/// Largest queue served.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Longest chain served, indirect descriptors included.
pub const MAX_CHAIN: usize = 1024;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const DESCRIPTOR_BYTES: u64 = 16;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// Where the frontend put a queue, in its own addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// Why a queue cannot go on; only a restart by the driver helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Not a power of two up to [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two in 1..={MAX_QUEUE_SIZE}")]
    Size(u32),
    /// A ring is outside of shared memory or misaligned.
    #[error("the {0} ring is not in shared memory or not aligned")]
    Ring(&'static str),
    /// More chains offered than fit.
    #[error("the available index is {0} ahead of the device")]
    AvailIndex(u16),
    /// A head that names no descriptor.
    #[error("descriptor {0} is not in the table")]
    Index(u16),
    /// A head that is being served already.
    #[error("descriptor {0} was offered while in flight")]
    Busy(u16),
    /// A chain that is longer than its table or [`MAX_CHAIN`].
    #[error("the chain at descriptor {0} has a loop or is too long")]
    Loop(u16),
    /// An indirect table that is not one.
    #[error("the indirect table at {0:#x} is malformed or not in shared memory")]
    Indirect(u64),
}

/// A running queue.
pub struct Queue {
    size: u16,
    desc: *const u8,
    avail: *const u8,
    used: *mut u8,
    next_avail: u16,
    next_used: u16,
    published: u16,
    staged: Vec<u16>,
    busy: Vec<bool>,
    event_idx: bool,
    inflight: Option<QueueInflight>,
}

// SAFETY: the pointers lie in mappings that the owner of the queue keeps alive
// beside it; the queue is used by one thread at a time.
unsafe impl Send for Queue {}

impl Queue {
    /// Starts a queue and returns the heads to serve again, oldest first.
    ///
    /// Without an in-flight region it goes on at `base`. The mappings of `memory`
    /// must outlive the queue.
    pub fn start(
        memory: &Memory,
        size: u32,
        at: &Addresses,
        base: u16,
        event_idx: bool,
        inflight: Option<QueueInflight>,
    ) -> Result<(Self, Vec<u16>), QueueError> {
        let size16 = u16::try_from(size)
            .ok()
            .filter(|s| s.is_power_of_two() && *s <= MAX_QUEUE_SIZE)
            .ok_or(QueueError::Size(size))?;
        let n = u64::from(size16);
        let ring = |name, addr: u64, len, align: u64| {
            memory
                .translate_user(addr, len)
                .filter(|p| (*p as u64).is_multiple_of(align))
                .ok_or(QueueError::Ring(name))
        };
        let mut queue = Self {
            size: size16,
            desc: ring("descriptor", at.desc, n * DESCRIPTOR_BYTES, 16)?,
            avail: ring("available", at.avail, 6 + 2 * n, 2)?,
            used: ring("used", at.used, 6 + 8 * n, 4)?,
            next_avail: base,
            next_used: 0,
            published: 0,
            staged: Vec::with_capacity(usize::from(size16)),
            busy: vec![false; usize::from(size16)],
            event_idx,
            inflight,
        };
        queue.next_used = queue.used_index().load(Ordering::Acquire);
        queue.published = queue.next_used;
        let mut replay = Vec::new();
        if let Some(inflight) = &mut queue.inflight
            && let Some(heads) = inflight.recover(queue.next_used, size16)
        {
            queue.next_avail = queue.next_used.wrapping_add(heads.len() as u16);
            for head in &heads {
                queue.busy[usize::from(*head)] = true;
            }
            replay = heads;
        }
        Ok((queue, replay))
    }

    /// The next chain that the driver offers.
    pub fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        let ahead = self.avail_index().wrapping_sub(self.next_avail);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.size {
            return Err(QueueError::AvailIndex(ahead));
        }
        let slot = usize::from(self.next_avail % self.size);
        // SAFETY: slot < size; the available ring spans 6 + 2 * size bytes.
        let head = unsafe { self.avail.add(4 + 2 * slot).cast::<u16>().read_volatile() };
        let head = u16::from_le(head);
        let busy = self
            .busy
            .get_mut(usize::from(head))
            .ok_or(QueueError::Index(head))?;
        if std::mem::replace(busy, true) {
            return Err(QueueError::Busy(head));
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.begin(head);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Does the driver offer something?
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.avail_index() != self.next_avail
    }

    /// Reads the chain at `head` into `chain`.
    pub fn chain(
        &self,
        head: u16,
        memory: &Memory,
        chain: &mut Vec<Descriptor>,
    ) -> Result<(), QueueError> {
        chain.clear();
        let (mut table, mut entries, mut index) = (self.desc, self.size, head);
        let mut indirect = false;
        let mut left = entries;
        loop {
            if index >= entries {
                return Err(QueueError::Index(index));
            }
            if left == 0 || chain.len() >= MAX_CHAIN {
                return Err(QueueError::Loop(head));
            }
            left -= 1;
            // SAFETY: index < entries and `table` spans `entries` descriptors.
            let raw = unsafe {
                table
                    .add(usize::from(index) * DESCRIPTOR_BYTES as usize)
                    .cast::<[u8; 16]>()
                    .read_volatile()
            };
            let word =
                |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
            let addr = u64::from(word(0)) | u64::from(word(4)) << 32;
            let len = word(8);
            let flags = u16::from_le_bytes([raw[12], raw[13]]);
            let next = u16::from_le_bytes([raw[14], raw[15]]);
            if flags & F_INDIRECT != 0 {
                let count = u64::from(len) / DESCRIPTOR_BYTES;
                let bad = indirect
                    || flags & F_NEXT != 0
                    || count == 0
                    || count > MAX_CHAIN as u64
                    || !u64::from(len).is_multiple_of(DESCRIPTOR_BYTES);
                let host = memory.translate(addr, u64::from(len)).filter(|_| !bad);
                table = host.ok_or(QueueError::Indirect(addr))?;
                entries = count as u16;
                left = entries;
                index = 0;
                indirect = true;
                continue;
            }
            chain.push(Descriptor {
                addr,
                len,
                writable: flags & F_WRITE != 0,
            });
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
    }

    /// Stages `head` as used with `len` bytes written; visible after [`Self::publish`].
    pub fn push(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.next_used % self.size);
        let entry = [u32::from(head).to_le(), len.to_le()];
        // SAFETY: slot < size; the used ring spans 6 + 8 * size bytes, 4-aligned.
        unsafe {
            self.used
                .add(4 + 8 * slot)
                .cast::<[u32; 2]>()
                .write_volatile(entry);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.stage(head);
        }
        self.busy[usize::from(head)] = false;
        self.staged.push(head);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows all staged chains to the driver; true if it wants to be told.
    pub fn publish(&mut self) -> bool {
        if self.staged.is_empty() {
            return false;
        }
        self.used_index()
            .store(self.next_used.to_le(), Ordering::Release);
        if let Some(inflight) = &mut self.inflight {
            inflight.commit(&self.staged, self.next_used);
        }
        self.staged.clear();
        let old = std::mem::replace(&mut self.published, self.next_used);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.u16_at(self.avail, 4 + 2 * usize::from(self.size));
            // §2.7.7.2: the index passed the one that the driver waits for.
            self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old)
        } else {
            self.u16_at(self.avail, 0) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver to kick at its next chain; true if one came meanwhile.
    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.want_kick_at(self.next_avail);
            fence(Ordering::SeqCst);
        }
        self.has_more()
    }

    /// Needs no kick from now on: it is looked at.
    pub fn disable_kicks(&mut self) {
        if self.event_idx {
            // An index that the driver has passed.
            self.want_kick_at(self.next_avail.wrapping_sub(1));
        }
    }

    fn want_kick_at(&self, index: u16) {
        // SAFETY: avail_event is the last word of the used ring, 4 + 8 * size in.
        let event =
            unsafe { AtomicU16::from_ptr(self.used.add(4 + 8 * usize::from(self.size)).cast()) };
        event.store(index.to_le(), Ordering::Relaxed);
    }

    /// Bytes of the used ring.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        6 + 8 * u64::from(self.size)
    }

    /// Where the queue goes on when it is started again (`GET_VRING_BASE`).
    #[must_use]
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    fn avail_index(&self) -> u16 {
        // SAFETY: the index is the second word of the available ring, 2-aligned.
        let index = unsafe { AtomicU16::from_ptr(self.avail.add(2).cast_mut().cast()) };
        u16::from_le(index.load(Ordering::Acquire))
    }

    fn used_index(&self) -> &AtomicU16 {
        // SAFETY: the index is the second word of the used ring, 2-aligned, mapped
        // for as long as the queue lives.
        unsafe { AtomicU16::from_ptr(self.used.add(2).cast()) }
    }

    fn u16_at(&self, ring: *const u8, at: usize) -> u16 {
        // SAFETY: callers pass offsets of words inside the ring.
        u16::from_le(unsafe { ring.add(at).cast::<u16>().read_volatile() })
    }
}
