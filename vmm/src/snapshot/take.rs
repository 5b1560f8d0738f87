//! Writes a machine into two files.

use super::memory_file::{MAX_EXTENT_BYTES, MemoryWriter, SnapshotId};
use super::{MACHINE_SECTION, MACHINE_VERSION, MachineState, SnapshotError};
use crate::machine::Machine;
use crate::memory::dirty::DirtyPages;
use crate::memory::log::{PAGE_BYTES, runs};
use crate::memory::{self, GuestRam};
use crate::persist::{State, Writer};
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::io::{self, Write};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Which pages go into the memory file.
pub enum Pages<'a> {
    /// All that are not zero.
    All,
    /// Those that changed since the snapshot `parent`.
    Changed {
        /// What the file is a difference to.
        parent: SnapshotId,
        /// The pages.
        pages: &'a DirtyPages,
    },
}

/// Saves a paused `machine`; bytes of memory written.
pub fn write(
    machine: &Machine,
    id: SnapshotId,
    pages: &Pages<'_>,
    state_file: &mut File,
    memory_file: &File,
) -> Result<u64, SnapshotError> {
    let ram = machine.ram();
    let state = save(machine, id)?;
    let io = |what| move |source| SnapshotError::File { what, source };
    let mut writer =
        MemoryWriter::new(memory_file, memory::bytes(ram)).map_err(io("memory file"))?;
    let parent = match pages {
        Pages::All => {
            write_all(ram, &mut writer).map_err(io("memory file"))?;
            None
        }
        Pages::Changed { parent, pages } => {
            write_changed(ram, pages, &mut writer).map_err(io("memory file"))?;
            Some(*parent)
        }
    };
    let written = writer.written_bytes();
    writer.finish(id, parent).map_err(io("memory file"))?;
    let io = io("state file");
    state_file.set_len(0).map_err(io)?;
    state_file.write_all(&state).map_err(io)?;
    state_file.sync_data().map_err(io)?;
    Ok(written)
}

/// The state of a paused machine whose memory is, or will be, `memory`.
pub fn save(machine: &Machine, memory: SnapshotId) -> Result<Vec<u8>, SnapshotError> {
    let refuse = |part: &str, problem: String| SnapshotError::Part {
        part: part.to_owned(),
        problem,
    };
    let mut writer = Writer::default();
    let whole = MachineState {
        vcpus: machine.vcpu_count(),
        memory_bytes: memory::bytes(machine.ram()),
        memory,
    };
    let state = State::encode(MACHINE_VERSION, &whole).map_err(|e| refuse("machine", e))?;
    writer.add(MACHINE_SECTION, &state);
    machine.with_parts(|parts| {
        for (name, part) in parts {
            let state = part.save().map_err(|e| refuse(name, e))?;
            writer.add(name, &state);
        }
        Ok::<(), SnapshotError>(())
    })?;
    Ok(writer.finish())
}

fn write_all(ram: &GuestRam, writer: &mut MemoryWriter<'_>) -> io::Result<()> {
    let mut buffer = vec![0; MAX_EXTENT_BYTES];
    let mut start = 0;
    for region in ram.iter() {
        let mut at = 0;
        while let Some(range) = next_data(ram, region, at)? {
            at = range.start;
            while at < range.end {
                let bytes = (range.end - at).min(MAX_EXTENT_BYTES as u64) as usize;
                let chunk = &mut buffer[..bytes];
                region
                    .read_slice(chunk, MemoryRegionAddress(at))
                    .map_err(io::Error::other)?;
                for run in non_zero(chunk) {
                    writer.write(start + at + run.start as u64, &chunk[run])?;
                }
                at += bytes as u64;
            }
        }
        start += region.len();
    }
    Ok(())
}

fn write_changed(
    ram: &GuestRam,
    pages: &DirtyPages,
    writer: &mut MemoryWriter<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_EXTENT_BYTES];
    let mut start = 0;
    for (region, words) in ram.iter().zip(pages) {
        for run in runs(words, MAX_EXTENT_BYTES) {
            let end = run.end.min(region.len());
            let chunk = &mut buffer[..(end - run.start) as usize];
            region
                .read_slice(chunk, MemoryRegionAddress(run.start))
                .map_err(io::Error::other)?;
            writer.write(start + run.start, chunk)?;
        }
        start += region.len();
    }
    Ok(())
}

/// The next part of `region`, from `at` on, that may hold something. Pages of shared memory
/// that nobody touched are holes, and reading them would fill them.
pub fn next_data<R: GuestMemoryRegion>(
    ram: &GuestRam,
    region: &R,
    at: u64,
) -> io::Result<Option<std::ops::Range<u64>>> {
    let len = region.len();
    if at >= len {
        return Ok(None);
    }
    let Some(file) = region.file_offset().filter(|_| memory::is_shared(ram)) else {
        return Ok(Some(at..len));
    };
    let begin = file.start();
    let data = match seek(file.file(), SeekFrom::Data(begin + at)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if data >= begin + len {
        return Ok(None);
    }
    let hole = seek(file.file(), SeekFrom::Hole(data))?;
    let page = PAGE_BYTES as u64;
    let end = (hole - begin).next_multiple_of(page).min(len);
    Ok(Some((data - begin) / page * page..end))
}

/// Runs of pages in `chunk` that are not all zero.
fn non_zero(chunk: &[u8]) -> Vec<std::ops::Range<usize>> {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, page) in chunk.chunks(PAGE_BYTES).enumerate() {
        if *page == ZEROS[..page.len()] {
            continue;
        }
        let start = index * PAGE_BYTES;
        match found.last_mut() {
            Some(last) if last.end == start => last.end += page.len(),
            _ => found.push(start..start + page.len()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::memory_file::MemoryFile;
    use vm_memory::GuestAddress;

    #[test]
    fn untouched_and_zero_pages_are_not_written_nor_filled() {
        let ram = memory::create_in_small_pages(64);
        ram.write_obj(7u8, GuestAddress(0x10_0000)).unwrap();
        ram.write_slice(&[0; 8192], GuestAddress(0x20_0000))
            .unwrap();
        ram.write_slice(&[9; 300 << 10], GuestAddress(0x300_0000))
            .unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut writer = MemoryWriter::new(&file, memory::bytes(&ram)).unwrap();
        write_all(&ram, &mut writer).unwrap();
        writer.finish([1; 16], None).unwrap();
        let opened = MemoryFile::open(file).unwrap();
        let spans: Vec<_> = opened.extents.iter().map(|e| (e.at, e.bytes)).collect();
        assert_eq!(
            spans,
            [
                (0x10_0000, 0x1000),
                (0x300_0000, 256 << 10),
                (0x304_0000, 44 << 10)
            ]
        );
        let region = ram.iter().next().unwrap();
        let memfd = region.file_offset().unwrap().file();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&memfd.metadata().unwrap());
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks: holes were filled");
    }
}
