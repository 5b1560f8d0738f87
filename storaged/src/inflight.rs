//! The in-flight region: what lets a killed storaged lose no request.
//!
//! A memfd that the frontend keeps (vhost-user: "Inflight I/O tracking", split
//! virtqueues). storaged lays it out; behind the queues' part lies one page of its
//! own, [`Region::write_private`], which holds an ephemeral volume's key.
//!
//! ```text
//! | queue 0 | queue 1 | … | pad to a page | private page |
//! queue: | features u64 | version u16 | desc_num u16 | last_batch_head u16 |
//!        | used_idx u16 | desc_num × { inflight u8, pad, next u16, counter u64 } |
//! ```
//! The frontend can write all of it, so every value read is bounds-checked; a lie
//! can only repeat or drop requests of the liar.

#![expect(
    clippy::cast_ptr_alignment,
    reason = "the mapping is page-aligned and every offset is a multiple of its word"
)]

use crate::memory::{Mapping, MemoryError, Trust, sealed_memfd};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

/// Length of the private page.
pub const PRIVATE_BYTES: u64 = 4096;
/// Bytes of it in use.
pub const PRIVATE_USED: usize = 72;
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const OFFSET_VERSION: usize = 8;
const OFFSET_DESC_NUM: usize = 10;
const OFFSET_LAST_BATCH_HEAD: usize = 12;
const OFFSET_USED_IDX: usize = 14;

/// Bytes of one queue's part, aligned so that queues share no cache line.
fn queue_bytes(size: u16) -> u64 {
    (HEADER_BYTES as u64 + ENTRY_BYTES as u64 * u64::from(size)).next_multiple_of(64)
}

/// Bytes of a region for `queues` queues of `size`.
#[must_use]
pub fn region_bytes(queues: u16, size: u16) -> u64 {
    (queue_bytes(size) * u64::from(queues)).next_multiple_of(PRIVATE_BYTES) + PRIVATE_BYTES
}

/// A mapped in-flight region.
pub struct Region {
    map: Mapping,
    file: File,
    offset: u64,
    queues: u16,
    size: u16,
}

impl Region {
    /// A new region and the memfd to hand to the frontend.
    pub fn create(queues: u16, size: u16) -> Result<(Self, File), MemoryError> {
        let file = sealed_memfd("ocs-inflight", region_bytes(queues, size))?;
        Ok((Self::open(&file, 0, queues, size)?, file))
    }

    /// The region that the frontend gives back.
    pub fn open(file: &File, offset: u64, queues: u16, size: u16) -> Result<Self, MemoryError> {
        let map = Mapping::new(file, offset, region_bytes(queues, size), Trust::SealedOnly)?;
        Ok(Self {
            map,
            file: file.try_clone()?,
            offset,
            queues,
            size,
        })
    }

    /// Its file, for another process to map.
    pub fn file(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Where it begins in its file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Queues that it tracks.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Entries of each.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Writes the first bytes of storaged's own page, and locks it in memory as far
    /// as the system allows.
    pub fn write_private(&self, bytes: &[u8; PRIVATE_USED]) {
        if let Some(page) = self.private() {
            // SAFETY: the page is PRIVATE_BYTES long and mapped as long as `self`.
            unsafe {
                let _ = rustix::mm::mlock(page.cast(), PRIVATE_BYTES as usize);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), page, bytes.len());
            }
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// Copies the first bytes of storaged's own page.
    pub fn read_private(&self, into: &mut [u8; PRIVATE_USED]) {
        if let Some(page) = self.private() {
            // SAFETY: as in `write_private`; the frontend may race, and garbles its own.
            unsafe { std::ptr::copy_nonoverlapping(page, into.as_mut_ptr(), into.len()) };
        }
    }

    fn private(&self) -> Option<*mut u8> {
        let at = region_bytes(self.queues, self.size) - PRIVATE_BYTES;
        self.map.at(at, PRIVATE_BYTES)
    }

    /// The part of queue `index`, if the region has one.
    #[must_use]
    pub fn queue(self: &Arc<Self>, index: u16) -> Option<QueueInflight> {
        let len = queue_bytes(self.size);
        if index >= self.queues {
            return None;
        }
        Some(QueueInflight {
            base: self.map.at(len * u64::from(index), len)?,
            size: self.size,
            counter: 0,
            _region: Arc::clone(self),
        })
    }
}

/// One queue's part of a [`Region`].
pub struct QueueInflight {
    base: *mut u8,
    size: u16,
    counter: u64,
    _region: Arc<Region>,
}

// SAFETY: `base` points into the mapping that `_region` keeps alive; one thread at
// a time uses it.
unsafe impl Send for QueueInflight {}

impl QueueInflight {
    /// Settles a batch that was half done when its server died, then lists the
    /// heads still in flight, oldest first. `None` for a region never used: the
    /// frontend's own base holds then.
    pub fn recover(&mut self, used_idx: u16, queue_size: u16) -> Option<Vec<u16>> {
        let size = self.size.min(queue_size);
        if self.read_u16(OFFSET_VERSION) != VERSION {
            self.write_u16(OFFSET_DESC_NUM, self.size);
            self.write_u16(OFFSET_USED_IDX, used_idx);
            compiler_fence(Ordering::SeqCst);
            self.write_u16(OFFSET_VERSION, VERSION);
            return None;
        }
        let batch = used_idx.wrapping_sub(self.read_u16(OFFSET_USED_IDX));
        let mut head = self.read_u16(OFFSET_LAST_BATCH_HEAD);
        for _ in 0..batch.min(size) {
            if head >= size {
                break;
            }
            self.set_inflight(head, false);
            head = self.read_u16(self.entry(head) + 6);
        }
        compiler_fence(Ordering::SeqCst);
        self.write_u16(OFFSET_USED_IDX, used_idx);
        let mut heads: Vec<(u64, u16)> = (0..size)
            .filter(|h| self.is_inflight(*h))
            .map(|h| (self.counter_of(h), h))
            .collect();
        heads.sort_unstable();
        self.counter = heads
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        Some(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// `head` is being served.
    pub fn begin(&mut self, head: u16) {
        if head >= self.size {
            return;
        }
        let entry = self.entry(head);
        // SAFETY: the entry lies inside the queue's part and is 8-aligned.
        unsafe {
            self.base
                .add(entry + 8)
                .cast::<u64>()
                .write_volatile(self.counter)
        };
        self.counter = self.counter.wrapping_add(1);
        compiler_fence(Ordering::SeqCst);
        self.set_inflight(head, true);
        compiler_fence(Ordering::SeqCst);
    }

    /// `head` is in the used ring, not yet published.
    pub fn stage(&mut self, head: u16) {
        if head >= self.size {
            return;
        }
        let last = self.read_u16(OFFSET_LAST_BATCH_HEAD);
        self.write_u16(self.entry(head) + 6, last);
        compiler_fence(Ordering::SeqCst);
        self.write_u16(OFFSET_LAST_BATCH_HEAD, head);
        compiler_fence(Ordering::SeqCst);
    }

    /// The used index that covers `heads` is published.
    pub fn commit(&mut self, heads: &[u16], used_idx: u16) {
        compiler_fence(Ordering::SeqCst);
        for &head in heads {
            if head < self.size {
                self.set_inflight(head, false);
            }
        }
        compiler_fence(Ordering::SeqCst);
        self.write_u16(OFFSET_USED_IDX, used_idx);
    }

    fn entry(&self, head: u16) -> usize {
        HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    fn is_inflight(&self, head: u16) -> bool {
        // SAFETY: callers pass head < size; the entry lies inside the queue's part.
        unsafe { self.base.add(self.entry(head)).read_volatile() == 1 }
    }

    fn set_inflight(&mut self, head: u16, on: bool) {
        // SAFETY: as in `is_inflight`.
        unsafe { self.base.add(self.entry(head)).write_volatile(u8::from(on)) };
    }

    fn counter_of(&self, head: u16) -> u64 {
        // SAFETY: as in `is_inflight`; the counter is 8-aligned.
        unsafe {
            self.base
                .add(self.entry(head) + 8)
                .cast::<u64>()
                .read_volatile()
        }
    }

    fn read_u16(&self, at: usize) -> u16 {
        // SAFETY: callers pass even offsets inside the queue's part.
        unsafe { self.base.add(at).cast::<u16>().read_volatile() }
    }

    fn write_u16(&mut self, at: usize, value: u16) {
        // SAFETY: as in `read_u16`.
        unsafe { self.base.add(at).cast::<u16>().write_volatile(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(size: u16) -> (QueueInflight, Arc<Region>, File) {
        let (region, file) = Region::create(2, size).unwrap();
        let region = Arc::new(region);
        (region.queue(1).unwrap(), region, file)
    }

    #[test]
    fn what_began_and_did_not_end_is_listed_in_order() {
        let (mut q, region, file) = two(8);
        assert_eq!(q.recover(5, 8), None);
        for head in [3, 1, 7] {
            q.begin(head);
        }
        q.stage(1);
        q.commit(&[1], 6);
        let again = Arc::new(Region::open(&file, 0, 2, 8).unwrap());
        let mut again = again.queue(1).unwrap();
        assert_eq!(again.recover(6, 8), Some(vec![3, 7]));
        again.begin(1);
        assert_eq!(region.queue(1).unwrap().recover(6, 8), Some(vec![3, 7, 1]));
        assert!(region.queue(2).is_none());
    }

    #[test]
    fn a_batch_published_but_not_cleared_is_settled() {
        let (mut q, region, _file) = two(8);
        q.recover(0, 8);
        for head in [0, 1, 2, 3] {
            q.begin(head);
        }
        q.stage(2);
        q.stage(0);
        // Died after used.idx = 2 and before `commit`.
        assert_eq!(region.queue(1).unwrap().recover(2, 8), Some(vec![1, 3]));
        // Died before used.idx moved: all four run again.
        let (mut q, region, _file) = two(8);
        q.recover(0, 8);
        for head in [0, 1, 2, 3] {
            q.begin(head);
        }
        q.stage(2);
        assert_eq!(
            region.queue(1).unwrap().recover(0, 8),
            Some(vec![0, 1, 2, 3])
        );
    }

    #[test]
    fn a_garbled_region_stays_in_bounds() {
        let (mut q, region, _file) = two(4);
        q.recover(0, 4);
        // SAFETY: the queue's part has 16 + 16 * 4 bytes.
        unsafe { q.base.write_bytes(0xff, 80) };
        q.write_u16(OFFSET_VERSION, VERSION);
        let heads = region.queue(1).unwrap().recover(9, 4).unwrap();
        assert!(heads.len() <= 4);
    }

    #[test]
    fn the_private_page_lies_behind_the_queues() {
        let (_q, region, file) = two(1024);
        region.write_private(&[0x5a; PRIVATE_USED]);
        let mut tail = [0u8; PRIVATE_USED];
        use std::os::unix::fs::FileExt;
        let size = file.metadata().unwrap().len();
        file.read_exact_at(&mut tail, size - PRIVATE_BYTES).unwrap();
        assert_eq!(tail, [0x5a; PRIVATE_USED]);
        tail.fill(0);
        region.read_private(&mut tail);
        assert_eq!(tail, [0x5a; PRIVATE_USED]);
        assert_eq!(region.queue(1).unwrap().recover(0, 1024), None);
    }
}
