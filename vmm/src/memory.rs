//! Guest memory: one sealed memfd, mapped shared, backed page by page on first touch.
//!
//! ```text
//!  memfd   | low RAM (≤ 3 GiB) | the rest        |
//!             │                   │
//!  guest   0 ─┘             4 GiB ┘
//! ```
//! The seals (no shrink, no growth, no more seals) are what a vhost-user backend
//! asks for: it can map the memory without fearing `SIGBUS` from a hostile VMM.

use crate::error::{Error, Result};
use crate::layout;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::sync::Arc;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The guest's memory as all threads see it.
pub type GuestRam = GuestMemoryMmap<()>;

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

    let file = Arc::new(File::from(fd));
    let low = bytes.min(layout::PCI_WINDOW);
    let mut ranges = vec![(0, 0, low)];
    if bytes > low {
        ranges.push((layout::RAM_ABOVE_4G, low, bytes - low));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (at, offset, len) in ranges {
        let len = usize::try_from(len).map_err(|e| fail(e.to_string()))?;
        regions.push((
            GuestAddress(at),
            len,
            Some(FileOffset::from_arc(Arc::clone(&file), offset)),
        ));
    }
    GuestRam::from_ranges_with_files(regions).map_err(|e| fail(e.to_string()))
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
