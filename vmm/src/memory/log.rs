//! Which pages this process wrote: the VMM's own share of "dirty".
//!
//! Every store through [`super::GuestRam`] marks its pages here while the log is on, and so
//! does [`crate::virtio::queue::VirtQueue::push`] for the buffers that a kernel call filled.
//! Off, a store costs one relaxed load more than without it.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes of a page, the grain of every dirty log (KVM's, vhost-user's and this).
pub const PAGE_BYTES: usize = 4096;
const PAGES_PER_WORD: usize = 64;

/// One region's log, a bit a page.
#[derive(Debug, Default)]
pub struct PageLog {
    bytes: usize,
    on: AtomicBool,
    /// Made when first turned on: most machines never are migrated.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl PageLog {
    /// From now on stores are marked.
    pub fn start(&self) {
        self.words.get_or_init(|| {
            let words = self.bytes.div_ceil(PAGE_BYTES).div_ceil(PAGES_PER_WORD);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        });
        self.on.store(true, Ordering::SeqCst);
    }

    /// Stores are not marked any more, and what was marked is forgotten.
    pub fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
        self.take(&mut Vec::new());
    }

    /// Is it on? Who fills memory by the kernel's hand asks before it looks for pages.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Adds the marked pages to `into`, a bit a page, and unmarks them. A store is marked after
    /// it was made, so a page that changes meanwhile is marked again.
    pub fn take(&self, into: &mut Vec<u64>) {
        let Some(words) = self.words.get() else {
            return;
        };
        into.resize(into.len().max(words.len()), 0);
        for (sum, word) in into.iter_mut().zip(words) {
            if word.load(Ordering::Relaxed) != 0 {
                *sum |= word.swap(0, Ordering::AcqRel);
            }
        }
    }
}

impl<'a> WithBitmapSlice<'a> for PageLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for PageLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 || !self.is_on() {
            return;
        }
        let Some(words) = self.words.get() else {
            return;
        };
        let first = offset / PAGE_BYTES;
        let last = offset.saturating_add(len - 1) / PAGE_BYTES;
        for page in first..=last {
            match words.get(page / PAGES_PER_WORD) {
                Some(word) => word.fetch_or(1 << (page % PAGES_PER_WORD), Ordering::Release),
                None => return,
            };
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        let word = self.words.get().and_then(|w| w.get(page / PAGES_PER_WORD));
        word.is_some_and(|w| w.load(Ordering::Acquire) >> (page % PAGES_PER_WORD) & 1 != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for PageLog {
    fn with_len(bytes: usize) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }
}

/// The runs of marked pages in `words`, as byte ranges from the first page on, none longer
/// than `most` bytes.
pub fn runs(words: &[u64], most: usize) -> impl Iterator<Item = Range<u64>> + '_ {
    let marked = |page: usize| {
        let word = words.get(page / PAGES_PER_WORD);
        word.is_some_and(|word| word >> (page % PAGES_PER_WORD) & 1 != 0)
    };
    let pages = words.len() * PAGES_PER_WORD;
    let most_pages = (most / PAGE_BYTES).max(1);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < pages && !marked(at) {
            // Whole words of clean pages are the common case.
            let empty = at.is_multiple_of(PAGES_PER_WORD) && words[at / PAGES_PER_WORD] == 0;
            at += if empty { PAGES_PER_WORD } else { 1 };
        }
        let start = at;
        while at < pages && marked(at) && at - start < most_pages {
            at += 1;
        }
        (at > start).then(|| (start * PAGE_BYTES) as u64..(at * PAGE_BYTES) as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn stores_are_marked_while_on_and_each_is_told_once() {
        let ram = memory::create(16).unwrap();
        let region = ram.iter().next().unwrap();
        let log = memory::log_of(region);
        let taken = || {
            let mut words = Vec::new();
            memory::log_of(region).take(&mut words);
            runs(&words, usize::MAX).collect::<Vec<_>>()
        };
        ram.write_obj(1u8, GuestAddress(0x1000)).unwrap();
        assert!(taken().is_empty());
        log.start();
        ram.write_slice(&[1; 2], GuestAddress(0x2fff)).unwrap();
        ram.write_obj(1u64, GuestAddress(0xff_fff8)).unwrap();
        assert_eq!(taken(), [0x2000..0x4000, 0xff_f000..0x100_0000]);
        assert!(taken().is_empty());
        ram.write_obj(1u8, GuestAddress(0)).unwrap();
        log.stop();
        ram.write_obj(1u8, GuestAddress(0x5000)).unwrap();
        assert!(taken().is_empty());
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_the_marked_pages(
            words in proptest::collection::vec(prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>()], 0..5),
            most_pages in 1usize..70,
        ) {
            let mut seen = vec![0u64; words.len()];
            let mut end = 0;
            for run in runs(&words, most_pages * PAGE_BYTES) {
                prop_assert!(run.start >= end && run.end > run.start);
                prop_assert!(run.end - run.start <= (most_pages * PAGE_BYTES) as u64);
                end = run.end;
                for page in run.start / 4096..run.end / 4096 {
                    seen[page as usize / 64] |= 1 << (page % 64);
                }
            }
            prop_assert_eq!(seen, words);
        }
    }
}
