//! The console ring as the serial port writes it: mapped, so that a byte costs no
//! system call (layout: [`ocs_vmm_spec::console`]).

use ocs_vmm_spec::console::{HEADER_BYTES, RingWriter, WRITTEN_OFFSET};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// The ring as several devices write it, each piece whole.
#[derive(Clone)]
pub struct ConsoleRing(Arc<Mutex<MappedRing>>);

impl ConsoleRing {
    /// Shares `ring`.
    pub fn new(ring: MappedRing) -> Self {
        Self(Arc::new(Mutex::new(ring)))
    }

    /// Appends `bytes`, overwriting the oldest.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.write(bytes)
    }
}

/// Appends to a ring file through a mapping.
pub struct MappedRing {
    map: MmapRegion<()>,
    capacity: usize,
    written: u64,
}

impl MappedRing {
    /// Takes over from `writer`.
    ///
    /// The file gets all its blocks first: a store to one that a full disk could not give would
    /// be SIGBUS.
    pub fn new(writer: RingWriter) -> io::Result<Self> {
        let (file, capacity, written) = writer.into_parts();
        let bytes = HEADER_BYTES + capacity;
        let len = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: works on a descriptor that is open for the call.
        let failed = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), len).map_err(io::Error::other)?;
        Ok(Self {
            map,
            capacity: usize::try_from(capacity).map_err(io::Error::other)?,
            written,
        })
    }

    /// Appends `bytes`, overwriting the oldest: first the bytes, then their count.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let capacity = self.capacity as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = usize::try_from(self.written % capacity).map_err(io::Error::other)?;
            let (now, later) = rest.split_at(rest.len().min(self.capacity - at));
            let start = HEADER_BYTES as usize + at;
            let slice = self
                .map
                .get_slice(start, now.len())
                .map_err(io::Error::other)?;
            slice.copy_from(now);
            self.written = self.written.wrapping_add(now.len() as u64);
            rest = later;
        }
        self.map
            .as_volatile_slice()
            .store(
                self.written.to_le(),
                WRITTEN_OFFSET as usize,
                Ordering::Release,
            )
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocs_vmm_spec::console;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn readers_see_the_newest_bytes_and_the_next_vmm_continues() {
        let file = tempfile::tempfile().unwrap();
        let all: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for half in all.chunks(5_000) {
            let writer = RingWriter::open(file.try_clone().unwrap(), 4096).unwrap();
            let mut ring = MappedRing::new(writer).unwrap();
            for chunk in half.chunks(777) {
                ring.write(chunk).unwrap();
            }
        }
        let (held, written) = console::read(&file).unwrap();
        assert_eq!(written, 10_000);
        assert_eq!(held, all[10_000 - 4096..]);
    }

    #[test]
    fn a_mapped_ring_has_all_its_blocks() {
        let file = tempfile::tempfile().unwrap();
        let writer = RingWriter::open(file.try_clone().unwrap(), 1 << 20).unwrap();
        let _ring = MappedRing::new(writer).unwrap();
        let allocated = file.metadata().unwrap().blocks() * 512;
        assert!(allocated >= HEADER_BYTES + (1 << 20), "{allocated}");
    }
}
