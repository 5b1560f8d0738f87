//! The PVH boot ABI: `hvm_start_info` (Xen's public/arch-x86/hvm/start_info.h).

use super::{Initrd, memory_map, write};
use crate::error::Result;
use crate::layout;
use crate::memory::GuestRam;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// Writes the start info, its module list and memory map.
pub(super) fn write_start_info(ram: &GuestRam, initrd: Option<Initrd>) -> Result<()> {
    let map = memory_map(ram);
    let mut entries = Vec::new();
    for range in &map {
        entries.extend_from_slice(&range.at.to_le_bytes());
        entries.extend_from_slice(&range.bytes.to_le_bytes());
        entries.extend_from_slice(&range.kind.to_le_bytes());
        entries.extend_from_slice(&0u32.to_le_bytes());
    }
    write(ram, &entries, layout::PVH_MEMORY_MAP)?;

    if let Some(initrd) = initrd {
        let mut module = Vec::new();
        for word in [initrd.at, initrd.bytes, 0, 0] {
            module.extend_from_slice(&word.to_le_bytes());
        }
        write(ram, &module, layout::PVH_MODULES)?;
    }

    let modules = initrd.map_or(0, |_| layout::PVH_MODULES);
    let count = u32::try_from(map.len()).unwrap_or(u32::MAX);
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    for word in [
        modules,
        layout::CMDLINE,
        layout::ACPI_TABLES,
        layout::PVH_MEMORY_MAP,
    ] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    for word in [count, 0] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    write(ram, &info, layout::PVH_START_INFO)
}
