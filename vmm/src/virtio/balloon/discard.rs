//! Gives guest memory back to the host.

use crate::memory::GuestRam;
use std::io;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Pages are counted in this size whatever the guest's or the host's is (§5.5.6).
pub const PAGE_BYTES: u64 = 4096;

/// Pages next to each other, collected so that one call discards many.
#[derive(Debug, Default)]
pub struct Run {
    start: u64,
    bytes: u64,
}

impl Run {
    /// Adds a page; what was collected if this one does not lie next to it.
    pub fn add(&mut self, at: u64) -> Option<(u64, u64)> {
        if self.bytes > 0 && at == self.start.wrapping_add(self.bytes) {
            self.bytes += PAGE_BYTES;
            return None;
        }
        // Linux takes pages from the top down.
        if self.bytes > 0 && at.checked_add(PAGE_BYTES) == Some(self.start) {
            self.start = at;
            self.bytes += PAGE_BYTES;
            return None;
        }
        let next = Self {
            start: at,
            bytes: PAGE_BYTES,
        };
        std::mem::replace(self, next).end()
    }

    /// What was collected last.
    pub fn end(self) -> Option<(u64, u64)> {
        (self.bytes > 0).then_some((self.start, self.bytes))
    }
}

/// Discards whole pages inside `bytes` at `at`; the guest reads zeros there afterwards, or, in
/// memory restored from a snapshot, what that holds.
///
/// # Errors
/// `InvalidInput` where the range is not inside one region of the guest's memory.
pub fn discard(ram: &GuestRam, at: u64, bytes: u64) -> io::Result<u64> {
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = at.checked_add(bytes).ok_or_else(outside)?;
    let region = ram.find_region(GuestAddress(at)).ok_or_else(outside)?;
    let (start, len) = (region.start_addr().0, region.len());
    if end > start + len {
        return Err(outside());
    }
    let first = at.next_multiple_of(PAGE_BYTES);
    let last = end / PAGE_BYTES * PAGE_BYTES;
    if first >= last {
        return Ok(0);
    }
    let offset = usize::try_from(first - start).map_err(io::Error::other)?;
    let count = usize::try_from(last - first).map_err(io::Error::other)?;
    // Shared memory: out of the file, for all who map it. Private memory: out of this mapping.
    let advice = if region.flags() & libc::MAP_SHARED != 0 {
        libc::MADV_REMOVE
    } else {
        libc::MADV_DONTNEED
    };
    let host = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range is inside a live mapping of guest memory (checked above) and page-aligned,
    // since mappings are. This process never holds references into guest memory, only raw
    // accesses, to which pages that turn to zeros are a racing guest's stores.
    if unsafe { libc::madvise(host.cast(), count, advice) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // A differential snapshot must hold the zeros.
    region.bitmap().mark_dirty(offset, count);
    Ok(last - first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    #[test]
    fn discarded_pages_read_as_zeros_and_are_the_hosts_again() {
        let ram = memory::create_in_small_pages(16);
        let file = ram.iter().next().unwrap().file_offset().unwrap().file();
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        ram.write_slice(&[7; 1 << 20], GuestAddress(1 << 20))
            .unwrap();
        let full = blocks();
        assert_eq!(full, 2048);
        // Half a page at both ends stays.
        let done = discard(&ram, (1 << 20) + 2048, (1 << 20) - 4096).unwrap();
        assert_eq!(done, (1 << 20) - 8192);
        assert_eq!(blocks(), 16);
        let byte = |at: u64| ram.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!((byte(1 << 20), byte((1 << 20) + 4096)), (7, 0));
        for (at, bytes) in [(u64::MAX, 1), (16 << 20, 4096), ((16 << 20) - 4096, 8192)] {
            assert!(discard(&ram, at, bytes).is_err(), "{at:#x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Runs cover the same pages as were added, each once.
        #[test]
        fn runs_hold_what_was_added(pages in proptest::collection::vec(0..32u64, 0..64)) {
            let mut run = Run::default();
            let mut covered = Vec::new();
            let mut cover = |range: Option<(u64, u64)>| {
                if let Some((start, bytes)) = range {
                    covered.extend((start..start + bytes).step_by(PAGE_BYTES as usize));
                }
            };
            for page in &pages {
                cover(run.add(page * PAGE_BYTES));
            }
            cover(run.end());
            covered.sort_unstable();
            let mut added: Vec<u64> = pages.iter().map(|page| page * PAGE_BYTES).collect();
            added.sort_unstable();
            prop_assert_eq!(covered, added);
        }
    }
}
