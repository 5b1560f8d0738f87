//! Which pages changed: the union of three logs.
//!
//! | who stores | where it is noted |
//! |---|---|
//! | the guest | KVM's log of each memory slot |
//! | this process: queues, device models | [`super::log::PageLog`] of each region |
//! | a vhost-user backend | [`BackendLog`], a bit a page of guest *address*, in shared memory |
//!
//! Each log notes a page after it was stored to, and is emptied when it is read; a page that is
//! stored to while its log is read is in this answer or in the next. A round is complete only
//! while the machine is paused.

use super::log::PAGE_BYTES;
use super::{GuestRam, log_of};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileMemory};

/// Dirty pages of each region, a bit a page from the region's start on.
pub type DirtyPages = Vec<Vec<u64>>;

/// The log that vhost-user backends write (vhost-user, "Logging"): bit N of byte M is page
/// 8 M + N of guest physical memory.
pub struct BackendLog {
    map: MmapRegion<()>,
    bytes: usize,
}

impl BackendLog {
    /// Room for all of `ram`.
    pub fn new(ram: &GuestRam) -> io::Result<Self> {
        let end = ram.last_addr().0 / PAGE_BYTES as u64 / 8 + 1;
        let bytes = end.next_multiple_of(PAGE_BYTES as u64);
        let fd =
            rustix::fs::memfd_create("dirty-log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let map = MmapRegion::from_file(FileOffset::new(File::from(fd), 0), bytes)
            .map_err(io::Error::other)?;
        Ok(Self { map, bytes })
    }

    /// Its memory, for a backend to map.
    pub fn file(&self) -> &File {
        match self.map.file_offset() {
            Some(file) => file.file(),
            // `new` made it from a file.
            None => unreachable!("a backend log without a file"),
        }
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves the bits of the pages from guest address `start` on into `into`.
    fn take(&self, start: u64, into: &mut [u64]) {
        const WORD_BYTES: usize = 8;
        let first = usize::try_from(start / PAGE_BYTES as u64 / 8).unwrap_or(usize::MAX);
        debug_assert!(
            first.is_multiple_of(WORD_BYTES),
            "regions begin at whole words"
        );
        for (index, sum) in into.iter_mut().enumerate() {
            let at = first.saturating_add(index * WORD_BYTES);
            let Ok(word) = self.map.get_atomic_ref::<AtomicU64>(at) else {
                return;
            };
            if word.load(Ordering::Relaxed) != 0 {
                *sum |= u64::from_le(word.swap(0, Ordering::AcqRel));
            }
        }
    }
}

/// All logs of a machine, while they are on; dropping it turns KVM's and our own off.
pub struct DirtyLogs {
    vm: Arc<VmFd>,
    ram: GuestRam,
    backend: Arc<BackendLog>,
}

impl DirtyLogs {
    /// Turns KVM's log and our own on; the caller hands [`Self::backend`] to the devices.
    pub fn start(vm: &Arc<VmFd>, ram: &GuestRam) -> io::Result<Self> {
        let logs = Self {
            vm: Arc::clone(vm),
            ram: ram.clone(),
            backend: Arc::new(BackendLog::new(ram)?),
        };
        ram.iter().for_each(|region| log_of(region).start());
        set_slots(vm, ram, KVM_MEM_LOG_DIRTY_PAGES)?;
        Ok(logs)
    }

    /// For the devices' backends.
    pub fn backend(&self) -> &Arc<BackendLog> {
        &self.backend
    }

    /// What changed since the last call, or since the start.
    pub fn take(&self) -> io::Result<DirtyPages> {
        let mut all = Vec::new();
        for (slot, region) in (0u32..).zip(self.ram.iter()) {
            let bytes = usize::try_from(region.len()).map_err(io::Error::other)?;
            let mut words = self
                .vm
                .get_dirty_log(slot, bytes)
                .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
            self.backend.take(region.start_addr().0, &mut words);
            log_of(region).take(&mut words);
            all.push(words);
        }
        Ok(all)
    }
}

impl Drop for DirtyLogs {
    fn drop(&mut self) {
        self.ram.iter().for_each(|region| log_of(region).stop());
        if let Err(error) = set_slots(&self.vm, &self.ram, 0) {
            tracing::error!(%error, "KVM's dirty log stays on");
        }
    }
}

/// Tells KVM of all memory, with or without its log.
pub fn set_slots(vm: &VmFd, ram: &GuestRam, flags: u32) -> io::Result<()> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is a live mapping of exactly this size, which the machine keeps for
        // as long as the VM exists; slots are distinct and do not overlap.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    }
    Ok(())
}

/// Bytes that `pages` stand for.
pub fn bytes(pages: &DirtyPages) -> u64 {
    let count: u32 = pages.iter().flatten().map(|word| word.count_ones()).sum();
    u64::from(count) * PAGE_BYTES as u64
}
