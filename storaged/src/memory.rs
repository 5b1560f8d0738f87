//! Guest memory as the frontend shares it: sealed memfds, mapped and bounds-checked.
//!
//! A region's file is mapped once. With `F_SEAL_SHRINK`, `F_SEAL_GROW` and
//! `F_SEAL_SEAL` set and the size checked against `fstat`, no later act of the
//! frontend can take a page away from under the mapping (a punched hole reads as
//! zeros), so neither the rings nor a copy can raise SIGBUS.

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::sync::Arc;

/// Most regions a frontend may share; `SET_MEM_TABLE` carries at most 32 descriptors.
pub const MAX_REGIONS: usize = 64;
const PAGE_BYTES: u64 = 4096;

/// Which files are accepted as shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Memfds sealed against shrinking, growing and further sealing.
    SealedOnly,
    /// Any file, from a frontend that is trusted not to truncate it: benches only.
    Frontend,
}

/// Why shared memory is refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file could still be truncated, or is no memfd.
    #[error("shared memory is not a memfd sealed against shrink, grow and seal (seals: {0:#x})")]
    NotSealed(u32),
    /// The range does not fit in the file.
    #[error("a region of {len} bytes at offset {offset} exceeds its file of {size} bytes")]
    Size {
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// The file's size.
        size: u64,
    },
    /// Two regions share addresses.
    #[error("the region at guest address {0:#x} overlaps another")]
    Overlap(u64),
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// No such region to remove.
    #[error("there is no region at guest address {0:#x}")]
    Unknown(u64),
    /// The system refused.
    #[error("shared memory cannot be mapped: {0}")]
    Os(#[from] rustix::io::Errno),
    /// Too many descriptors are open.
    #[error("shared memory cannot be kept: {0}")]
    Io(#[from] std::io::Error),
}

/// A shared mapping, unmapped on drop.
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain shared memory, alive until drop; every access to it
// goes through raw pointers whose users state their own contract.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference only reads `base` and `len`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` at `offset`, readable and writable.
    pub fn new(file: &File, offset: u64, len: u64, trust: Trust) -> Result<Self, MemoryError> {
        if trust == Trust::SealedOnly {
            let needed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            let seals = fcntl_get_seals(file).map_err(|_| MemoryError::NotSealed(0))?;
            if !seals.contains(needed) {
                return Err(MemoryError::NotSealed(seals.bits()));
            }
        }
        let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        let fits = offset
            .checked_add(len)
            .is_some_and(|end| end <= size && offset.is_multiple_of(PAGE_BYTES) && len > 0);
        let bytes = usize::try_from(len).ok().filter(|_| fits);
        let Some(bytes) = bytes else {
            return Err(MemoryError::Size { offset, len, size });
        };
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                offset,
            )?
        };
        Ok(Self {
            base: base.cast(),
            len: bytes,
        })
    }

    /// Address of `len` bytes at `offset`, if they lie inside.
    #[must_use]
    pub fn at(&self, offset: u64, len: u64) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: `offset <= end <= self.len`, inside the mapping.
        Some(unsafe { self.base.add(offset as usize) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are exactly what mmap returned, unmapped once.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// One region of a guest's physical memory.
#[derive(Clone)]
pub struct Region {
    /// Guest physical address.
    pub guest: u64,
    /// The frontend's own address of it, in which rings are named.
    pub user: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where it begins in its file.
    pub offset: u64,
    file: Arc<File>,
    map: Arc<Mapping>,
}

impl Region {
    /// Maps `file` as a region.
    pub fn new(
        guest: u64,
        user: u64,
        len: u64,
        file: &File,
        offset: u64,
        trust: Trust,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            guest,
            user,
            len,
            offset,
            map: Arc::new(Mapping::new(file, offset, len, trust)?),
            file: Arc::new(file.try_clone()?),
        })
    }

    /// Its file, for another process to map.
    pub fn file(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }
}

/// A guest's memory: disjoint regions, sorted by guest address.
#[derive(Clone, Default)]
pub struct Memory {
    regions: Vec<Region>,
}

impl Memory {
    /// Adds one region.
    pub fn add(&mut self, region: Region) -> Result<(), MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let overlaps = |a: u64, a_len: u64, b: u64, b_len: u64| a < b + b_len && b < a + a_len;
        let ends = |start: u64| start.checked_add(region.len).is_some();
        let clash = !ends(region.guest)
            || !ends(region.user)
            || self.regions.iter().any(|r| {
                overlaps(r.guest, r.len, region.guest, region.len)
                    || overlaps(r.user, r.len, region.user, region.len)
            });
        if clash {
            return Err(MemoryError::Overlap(region.guest));
        }
        let at = self.regions.partition_point(|r| r.guest < region.guest);
        self.regions.insert(at, region);
        Ok(())
    }

    /// Its regions, by guest address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Removes the region that begins at `guest` and has `len` bytes.
    pub fn remove(&mut self, guest: u64, len: u64) -> Result<(), MemoryError> {
        let at = self
            .regions
            .iter()
            .position(|r| r.guest == guest && r.len == len)
            .ok_or(MemoryError::Unknown(guest))?;
        self.regions.remove(at);
        Ok(())
    }

    /// Host address of `len` bytes at guest physical address `guest`, within one region.
    #[must_use]
    pub fn translate(&self, guest: u64, len: u64) -> Option<*mut u8> {
        let after = self.regions.partition_point(|r| r.guest <= guest);
        let region = self.regions.get(after.checked_sub(1)?)?;
        region.map.at(guest - region.guest, len)
    }

    /// Host address of `len` bytes at the frontend's own address `user`.
    #[must_use]
    pub fn translate_user(&self, user: u64, len: u64) -> Option<*mut u8> {
        self.regions
            .iter()
            .find(|r| user >= r.user && user - r.user < r.len)
            .and_then(|r| r.map.at(user - r.user, len))
    }
}

/// A new memfd of `len` bytes, sealed as [`Trust::SealedOnly`] demands.
pub fn sealed_memfd(name: &str, len: u64) -> Result<File, MemoryError> {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, len: u64) -> Region {
        let file = sealed_memfd("t", len).unwrap();
        Region::new(guest, guest + (1 << 40), len, &file, 0, Trust::SealedOnly).unwrap()
    }

    #[test]
    fn translation_stays_inside_one_region() {
        let mut memory = Memory::default();
        memory.add(region(0x10000, 0x2000)).unwrap();
        memory.add(region(0x0, 0x1000)).unwrap();
        let base = memory.translate(0x10000, 1).unwrap() as usize;
        assert_eq!(
            memory.translate(0x11fff, 1).unwrap() as usize,
            base + 0x1fff
        );
        assert_eq!(memory.translate(0x10000, 0x2000).unwrap() as usize, base);
        assert!(memory.translate(0x10000, 0x2001).is_none());
        assert!(memory.translate(0x11fff, 2).is_none());
        assert!(memory.translate(0xfff, 2).is_none());
        assert!(memory.translate(0x1000, 1).is_none());
        assert!(memory.translate(u64::MAX, 2).is_none());
        let user = memory.translate_user((1 << 40) + 0x10010, 4).unwrap() as usize;
        assert_eq!(user, base + 0x10);
        assert!(memory.translate_user(0x10010, 4).is_none());
    }

    #[test]
    fn unsealed_truncatable_and_foreign_files_are_refused() {
        use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
        let open = File::from(memfd_create("t", MemfdFlags::ALLOW_SEALING).unwrap());
        ftruncate(&open, 4096).unwrap();
        let new = |f: &File, len| Mapping::new(f, 0, len, Trust::SealedOnly).map(|_| ());
        assert!(matches!(new(&open, 4096), Err(MemoryError::NotSealed(0))));
        fcntl_add_seals(&open, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(matches!(new(&open, 4096), Err(MemoryError::NotSealed(_))));
        fcntl_add_seals(&open, SealFlags::SEAL).unwrap();
        new(&open, 4096).unwrap();
        assert!(matches!(new(&open, 8192), Err(MemoryError::Size { .. })));
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(4096).unwrap();
        assert!(matches!(new(&disk, 4096), Err(MemoryError::NotSealed(_))));
    }

    #[test]
    fn regions_may_not_overlap() {
        let mut memory = Memory::default();
        memory.add(region(0x1000, 0x2000)).unwrap();
        for clash in [0x0, 0x1000, 0x2000] {
            assert!(matches!(
                memory.add(region(clash, 0x2000)),
                Err(MemoryError::Overlap(_))
            ));
        }
        memory.add(region(0x3000, 0x1000)).unwrap();
        memory.remove(0x1000, 0x2000).unwrap();
        assert!(memory.remove(0x1000, 0x2000).is_err());
    }
}
