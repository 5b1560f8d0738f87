//! Makes guest memory of a snapshot's files, and loads the state into a machine that was built
//! as its spec says.

use super::memory_file::{MemoryFile, START};
use super::{MACHINE_SECTION, MACHINE_VERSION, MachineState, SnapshotError};
use crate::machine::Machine;
use crate::memory::{self, GuestRam};
use crate::persist::{MAX_BYTES, Sections};
use ocs_vmm_spec::Spec;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Mappings on top of the base that one machine may have: the kernel allows 65,530 in all.
const MAX_OVERLAYS: usize = 32_000;

/// A checked state.
pub struct Loading {
    /// What machine it is.
    pub machine: MachineState,
    sections: Sections,
}

impl Loading {
    /// Reads a state file.
    pub fn read(file: File) -> Result<Self, SnapshotError> {
        let mut bytes = Vec::new();
        file.take(MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| SnapshotError::File {
                what: "state file",
                source,
            })?;
        Self::parse(&bytes)
    }

    /// Checks a state.
    pub fn parse(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut sections = Sections::parse(bytes)?;
        let machine = sections.decode(MACHINE_SECTION, MACHINE_VERSION)?;
        Ok(Self { machine, sections })
    }

    /// Is it of the machine that `spec` describes? Devices are compared when they are loaded.
    pub fn check(&self, spec: &Spec) -> Result<(), SnapshotError> {
        for (field, state, spec) in [
            ("vcpus", self.machine.vcpus.into(), spec.vcpus.into()),
            (
                "memory_mib",
                self.machine.memory_bytes >> 20,
                spec.memory_mib,
            ),
        ] {
            if state != spec {
                return Err(SnapshotError::Differs { field, state, spec });
            }
        }
        Ok(())
    }

    /// Loads every part of `machine`, which stays paused.
    pub fn load(mut self, machine: &Machine) -> Result<(), SnapshotError> {
        machine.with_parts(|parts| {
            for (name, part) in parts {
                let state = self.sections.take(name)?;
                part.load(&state)
                    .map_err(|problem| crate::persist::refused(name, problem))?;
            }
            Ok::<(), SnapshotError>(())
        })?;
        Ok(self.sections.finish()?)
    }
}

/// Maps a snapshot's memory: a whole file, then differential ones in order. The last must be the
/// one that `wanted` names. With `verify` all of it is read and compared with its checksums.
pub fn map(
    layers: Vec<File>,
    wanted: &MachineState,
    verify: bool,
) -> Result<GuestRam, SnapshotError> {
    let refuse = |index: usize| move |problem: String| SnapshotError::Memory { index, problem };
    let mut opened: Vec<MemoryFile> = Vec::new();
    for (index, file) in layers.into_iter().enumerate() {
        let refuse = refuse(index);
        let layer = MemoryFile::open(file).map_err(|e| refuse(e.to_string()))?;
        if layer.memory_bytes != wanted.memory_bytes {
            return Err(refuse(format!(
                "has {} bytes of memory, and the state {}",
                layer.memory_bytes, wanted.memory_bytes
            )));
        }
        let below = opened.last().map(|layer| layer.id);
        if layer.parent != below {
            return Err(refuse(match (layer.parent, below) {
                (Some(parent), _) => format!(
                    "is a difference to snapshot {}, which is not the file before it",
                    super::hex(&parent)
                ),
                (None, _) => "is whole, and not a difference to the file before it".to_owned(),
            }));
        }
        if verify {
            layer.verify().map_err(|e| refuse(e.to_string()))?;
        }
        opened.push(layer);
    }
    let last = opened.len().saturating_sub(1);
    match opened.last() {
        Some(layer) if layer.id == wanted.memory => {}
        Some(layer) => {
            return Err(refuse(last)(format!(
                "is of snapshot {}, and the state of {}",
                super::hex(&layer.id),
                super::hex(&wanted.memory)
            )));
        }
        None => return Err(refuse(0)("is not named".to_owned())),
    }
    let overlays: usize = opened.iter().skip(1).map(|l| l.extents.len()).sum();
    if overlays > MAX_OVERLAYS {
        return Err(refuse(last)(format!(
            "makes {overlays} pieces with the others, more than {MAX_OVERLAYS}: take a whole snapshot"
        )));
    }
    let mut opened = opened.into_iter();
    let base = opened.next().map(|layer| Arc::new(layer.file));
    let base = base.ok_or_else(|| refuse(0)("is not named".to_owned()))?;
    let ram = memory::map_private(&base, START, wanted.memory_bytes)
        .map_err(|e| refuse(0)(e.to_string()))?;
    for (index, layer) in (1..).zip(opened) {
        overlay(&ram, &layer).map_err(|e| refuse(index)(e.to_string()))?;
    }
    Ok(ram)
}

/// Maps what `layer` holds over what is mapped there.
fn overlay(ram: &GuestRam, layer: &MemoryFile) -> std::io::Result<()> {
    let mut start = 0;
    let mut extents = layer.extents.iter().peekable();
    for region in ram.iter() {
        let end = start + region.len();
        while let Some(extent) = extents.next_if(|extent| extent.at < end) {
            let bytes = u64::from(extent.bytes).min(end - extent.at);
            let offset = usize::try_from(extent.at - start).map_err(std::io::Error::other)?;
            let len = usize::try_from(bytes).map_err(std::io::Error::other)?;
            let at = libc::off_t::try_from(START + extent.at).map_err(std::io::Error::other)?;
            // SAFETY: `offset..offset + len` lies inside the region's mapping, which is ours to
            // replace: nothing refers to its bytes yet, and the region unmaps the whole range.
            let mapped = unsafe {
                libc::mmap(
                    region.as_ptr().add(offset).cast(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    layer.file.as_raw_fd(),
                    at,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::log::PAGE_BYTES;
    use crate::snapshot::memory_file::{MemoryWriter, SnapshotId};
    use vm_memory::{Bytes, GuestAddress};

    const BYTES: u64 = 16 << 20;

    fn layer(id: u8, parent: Option<SnapshotId>, pages: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = MemoryWriter::new(&file, BYTES).unwrap();
        for (page, value) in pages {
            writer
                .write(page * PAGE_BYTES as u64, &[*value; PAGE_BYTES])
                .unwrap();
        }
        writer.finish([id; 16], parent).unwrap();
        file
    }

    fn wanted(id: u8) -> MachineState {
        MachineState {
            vcpus: 1,
            memory_bytes: BYTES,
            memory: [id; 16],
        }
    }

    fn refusal(layers: Vec<File>, id: u8) -> String {
        map(layers, &wanted(id), false).unwrap_err().to_string()
    }

    #[test]
    fn layers_lie_on_each_other_and_clones_do_not_see_each_others_stores() {
        let files = || {
            vec![
                layer(1, None, &[(1, 10), (2, 11)]),
                layer(2, Some([1; 16]), &[(2, 22), (5, 0)]),
            ]
        };
        let files = files();
        let again = || files.iter().map(|f| f.try_clone().unwrap()).collect();
        let one = map(again(), &wanted(2), true).unwrap();
        let other = map(again(), &wanted(2), false).unwrap();
        let read = |ram: &GuestRam, page: u64| -> u8 {
            ram.read_obj(GuestAddress(page * PAGE_BYTES as u64))
                .unwrap()
        };
        let pages = |ram: &GuestRam| [0, 1, 2, 3, 5].map(|page| read(ram, page));
        assert_eq!(pages(&one), [0, 10, 22, 0, 0]);
        one.write_obj(99u8, GuestAddress(PAGE_BYTES as u64))
            .unwrap();
        assert_eq!(pages(&one), [0, 99, 22, 0, 0]);
        assert_eq!(pages(&other), [0, 10, 22, 0, 0]);
        assert!(!memory::is_shared(&one));
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let base = || layer(1, None, &[(1, 1)]);
        let next = || layer(2, Some([1; 16]), &[(1, 2)]);
        assert!(refusal(vec![base()], 2).contains("restore.memory[0]: is of snapshot 0101"));
        assert!(refusal(vec![next()], 2).contains("is a difference to snapshot 0101"));
        assert!(refusal(vec![base(), base()], 1).contains("restore.memory[1]: is whole"));
        assert!(refusal(vec![], 1).contains("is not named"));
        let mut small = wanted(1);
        small.memory_bytes = 8 << 20;
        let error = map(vec![base()], &small, false).unwrap_err().to_string();
        assert!(error.contains("16777216 bytes of memory"), "{error}");

        let damaged = base();
        std::os::unix::fs::FileExt::write_all_at(&damaged, &[9], START + 4096).unwrap();
        let lazily = map(vec![damaged.try_clone().unwrap()], &wanted(1), false);
        lazily.unwrap();
        let error = map(vec![damaged], &wanted(1), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("do not match"), "{error}");
    }
}
