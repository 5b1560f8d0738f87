//! Guest memory, in one of two kinds, backed page by page on first touch.
//!
//! ```text
//!  shared    one sealed memfd, MAP_SHARED ──────────────▶ disk backends map it, too
//!  private   a snapshot's memory file, MAP_PRIVATE ─────▶ a page is read when first touched,
//!            (and its differential layers on top)         copied when first written
//!
//!  file      | low RAM (≤ 3 GiB) | the rest        |
//!               │                   │
//!  guest     0 ─┘             4 GiB ┘
//! ```
//! A machine that starts, or that was migrated here, has shared memory. One that was restored
//! from files has private memory: it runs before its memory is read, and all clones of one
//! snapshot share what none of them wrote. No other process sees private memory, so disk
//! requests go through a bounded shared region ([`crate::virtio::block`]).
//!
//! *Dirty* is the union of three logs, a bit a page: KVM's (the guest's stores), this process's
//! own ([`log`]) and the one that vhost-user backends write.
//!
//! *Page size.* Shared memory asks for pages of 2 MiB and gets them where the host's
//! `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says `advise`; private memory has its
//! file's pages of 4 KiB, which is what clones share.
//!
//! The seals (no shrink, no growth, no more seals) are what a vhost-user backend
//! asks for: it can map the memory without fearing `SIGBUS` from a hostile VMM.

use crate::error::{Error, Result};
use crate::layout;
use log::PageLog;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::sync::Arc;
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

pub mod dirty;
pub mod log;

/// The guest's memory as all threads see it.
pub type GuestRam = GuestMemoryMmap<PageLog>;

/// Makes `mib` MiB of guest memory.
pub fn create(mib: u64) -> Result<GuestRam> {
    let fail = |why: String| Error::Memory { mib, why };
    let bytes = mib << 20;
    let fd = rustix::fs::memfd_create(
        "guest-memory",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .map_err(|e| fail(e.to_string()))?;
    rustix::fs::ftruncate(&fd, bytes).map_err(|e| fail(e.to_string()))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| fail(e.to_string()))?;

    let ram = map(&Arc::new(File::from(fd)), 0, bytes, libc::MAP_SHARED).map_err(fail)?;
    advise(&ram, libc::MADV_HUGEPAGE);
    Ok(ram)
}

/// Likewise, in pages of 4 KiB wherever a test runs: for those that count pages.
#[cfg(test)]
pub fn create_in_small_pages(mib: u64) -> GuestRam {
    let ram = create(mib).unwrap();
    advise(&ram, libc::MADV_NOHUGEPAGE);
    ram
}

/// Says of which size pages shall be: a host grants those of 2 MiB whose `shmem_enabled` is
/// `advise`, and a stock kernel's boot then takes 40 page faults instead of some fifteen thousand.
fn advise(ram: &GuestRam, advice: libc::c_int) {
    for region in ram.iter() {
        let len = usize::try_from(region.len()).unwrap_or(0);
        // SAFETY: the range is the region's own mapping; the advice changes none of its bytes.
        let given = unsafe { libc::madvise(region.as_ptr().cast(), len, advice) };
        if given != 0 {
            // A kernel built without them.
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "pages come as the kernel likes");
        }
    }
}

/// Maps `bytes` of guest memory from `file`, in which it begins at `start`, for this process
/// alone: stores do not reach the file. The file must not shrink.
pub fn map_private(file: &Arc<File>, start: u64, bytes: u64) -> Result<GuestRam> {
    let mib = bytes >> 20;
    map(file, start, bytes, libc::MAP_PRIVATE).map_err(|why| Error::Memory { mib, why })
}

/// Whether other processes can see it.
pub fn is_shared(ram: &GuestRam) -> bool {
    ram.iter()
        .all(|region| region.flags() & libc::MAP_SHARED != 0)
}

/// The log of this process's stores into `region`.
pub fn log_of(region: &GuestRegionMmap<PageLog>) -> &PageLog {
    MmapRegion::bitmap(region)
}

/// Bytes in all.
pub fn bytes(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

fn map(
    file: &Arc<File>,
    start: u64,
    bytes: u64,
    flags: libc::c_int,
) -> std::result::Result<GuestRam, String> {
    let low = bytes.min(layout::PCI_WINDOW);
    let mut ranges = vec![(0, 0, low)];
    if bytes > low {
        ranges.push((layout::RAM_ABOVE_4G, low, bytes - low));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (at, offset, len) in ranges {
        let len = usize::try_from(len).map_err(|e| e.to_string())?;
        let file = FileOffset::from_arc(Arc::clone(file), start + offset);
        let mapping = MmapRegionBuilder::new_with_bitmap(len, PageLog::with_len(len))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags | libc::MAP_NORESERVE)
            .with_file_offset(file)
            .build()
            .map_err(|e| e.to_string())?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(at));
        regions.push(region.ok_or("it does not fit into the address space")?);
    }
    GuestRam::from_regions(regions).map_err(|e| e.to_string())
}

/// End of RAM below the PCI window.
pub fn low_end(ram: &GuestRam) -> u64 {
    ram.iter()
        .next()
        .map_or(0, |region| region.start_addr().0 + region.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_get_seals, ftruncate};

    #[test]
    fn memory_is_sealed_and_not_resident() {
        let ram = create(256).unwrap();
        let region = ram.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert_eq!(
            fcntl_get_seals(file).unwrap(),
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
        );
        assert!(ftruncate(file, 4096).is_err());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert_eq!(blocks, 0);
    }

    #[test]
    fn memory_above_three_gib_continues_at_four() {
        let ram = create(4096).unwrap();
        let regions: Vec<(u64, u64)> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (1 << 32, 1 << 30)]);
        assert_eq!(low_end(&ram), 3 << 30);
    }
}
