//! Puts a kernel into guest memory and says how the first CPU enters it.
//!
//! ```text
//!  kernel file ─┬─ ELF with a PVH note ──▶ pvh.rs    32-bit entry, %ebx = start info
//!               └─ bzImage ──────────────▶ linux.rs  64-bit entry, %rsi = zero page
//!  or the one that a disk holds: disk/
//!  acpi.rs + dsdt.rs ─▶ tables at 0xe0000, named by both    reset.rs ─▶ the way out in real mode
//!  smbios.rs ─▶ tables at 0xf0000, if the spec says what the machine is
//! ```

pub mod acpi;
pub mod disk;
mod dsdt;
pub mod generation;
mod linux;
mod pvh;
pub mod reset;
pub mod smbios;

use crate::error::{Error, Result};
use crate::layout;
use crate::memory::{self, GuestRam};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};

/// How the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Xen PVH boot ABI (docs/misc/pvh.pandoc in Xen): 32-bit protected mode, no paging.
    Pvh {
        /// Physical address of the first instruction.
        ip: u64,
    },
    /// Linux x86 boot protocol §1.15, 64-bit.
    Linux64 {
        /// Physical address of the first instruction.
        ip: u64,
    },
}

/// What a guest boots from.
pub struct Payload<'a, K, I> {
    /// ELF or bzImage.
    pub kernel: K,
    /// Optional initial RAM disk.
    pub initrd: Option<I>,
    /// The command line, without NUL.
    pub cmdline: &'a str,
}

/// Bytes that go to guest memory as they are.
pub trait Blob {
    /// How many there are.
    fn bytes(&mut self) -> io::Result<u64>;
    /// Puts all `bytes` of them at `at`.
    fn fill(&mut self, ram: &GuestRam, at: GuestAddress, bytes: usize) -> io::Result<()>;
}

impl Blob for File {
    fn bytes(&mut self) -> io::Result<u64> {
        let end = self.seek(SeekFrom::End(0))?;
        self.rewind()?;
        Ok(end)
    }

    fn fill(&mut self, ram: &GuestRam, at: GuestAddress, bytes: usize) -> io::Result<()> {
        ram.read_exact_volatile_from(at, self, bytes)
            .map_err(io::Error::other)
    }
}

/// Where the initrd was put.
#[derive(Clone, Copy, Debug)]
struct Initrd {
    at: u64,
    bytes: u64,
}

/// One range of the memory map, in the type numbers that e820 and PVH share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MemoryRange {
    at: u64,
    bytes: u64,
    kind: u32,
}

const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Loads all of `payload`; ACPI tables are expected at [`layout::ACPI_TABLES`].
pub fn load<K, I>(ram: &GuestRam, mut payload: Payload<'_, K, I>) -> Result<Entry>
where
    K: Read + ReadVolatile + Seek,
    I: Blob,
{
    let kernel_error = |problem: String| Error::Boot {
        field: "boot.kernel",
        problem,
    };
    let mut magic = [0u8; 4];
    payload
        .kernel
        .read_exact(&mut magic)
        .map_err(|e| kernel_error(format!("cannot be read: {e}")))?;
    write_cmdline(ram, payload.cmdline)?;

    if magic == *b"\x7fELF" {
        let loaded = Elf::load(ram, None, &mut payload.kernel, None)
            .map_err(|e| kernel_error(format!("cannot be loaded as ELF: {e}")))?;
        let PvhBootCapability::PvhEntryPresent(ip) = loaded.pvh_boot_cap else {
            return Err(kernel_error("is an ELF file without a PVH note".to_owned()));
        };
        if !ram.address_in_range(ip) {
            let problem = format!("begins at {:#x}, where the guest has no memory", ip.0);
            return Err(kernel_error(problem));
        }
        let initrd = load_initrd(ram, payload.initrd, loaded.kernel_end, u64::MAX)?;
        pvh::write_start_info(ram, initrd)?;
        Ok(Entry::Pvh { ip: ip.0 })
    } else {
        let loaded = BzImage::load(
            ram,
            None,
            &mut payload.kernel,
            Some(GuestAddress(layout::HIGH_RAM)),
        )
        .map_err(|e| kernel_error(format!("is neither ELF nor a usable bzImage: {e}")))?;
        let header = loaded
            .setup_header
            .ok_or_else(|| kernel_error("has no setup header".to_owned()))?;
        let entry = linux::check_header(&header, loaded.kernel_load.0, ram)?;
        let kernel_end = loaded
            .kernel_end
            .max(loaded.kernel_load.0 + u64::from(header.init_size));
        let initrd = load_initrd(
            ram,
            payload.initrd,
            kernel_end,
            u64::from(header.initrd_addr_max),
        )?;
        linux::write_zero_page(ram, header, payload.cmdline, initrd)?;
        Ok(entry)
    }
}

/// Writes the descriptor table that the boot CPU's segments come from.
pub fn write_gdt(ram: &GuestRam, entry: Entry) -> Result<()> {
    write(ram, &crate::cpu::gdt(entry), layout::GDT)
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<()> {
    let mut bytes = cmdline.as_bytes().to_vec();
    if bytes.contains(&0) {
        return Err(Error::Boot {
            field: "boot.cmdline",
            problem: "contains a NUL".to_owned(),
        });
    }
    bytes.push(0);
    write(ram, &bytes, layout::CMDLINE)
}

/// Puts the initrd as high as possible in low memory, page-aligned.
fn load_initrd(
    ram: &GuestRam,
    initrd: Option<impl Blob>,
    kernel_end: u64,
    highest: u64,
) -> Result<Option<Initrd>> {
    let Some(mut blob) = initrd else {
        return Ok(None);
    };
    let fail = |problem: String| Error::Boot {
        field: "boot.initrd",
        problem,
    };
    let bytes = blob
        .bytes()
        .map_err(|e| fail(format!("cannot be measured: {e}")))?;
    let end = memory::low_end(ram).min(highest.saturating_add(1));
    let at = end
        .checked_sub(bytes)
        .map(|at| at & !0xfff)
        .filter(|at| bytes > 0 && *at >= kernel_end)
        .ok_or_else(|| {
            fail(format!(
                "its {bytes} bytes do not fit between the kernel's end at {kernel_end:#x} and {end:#x}"
            ))
        })?;
    let count = usize::try_from(bytes).map_err(|e| fail(e.to_string()))?;
    blob.fill(ram, GuestAddress(at), count)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    Ok(Some(Initrd { at, bytes }))
}

/// What the guest is told of its memory.
fn memory_map(ram: &GuestRam) -> Vec<MemoryRange> {
    let range = |at, end: u64, kind| MemoryRange {
        at,
        bytes: end - at,
        kind,
    };
    let mut map = vec![
        range(0, layout::LOW_RAM_END, RAM),
        range(layout::ACPI_TABLES, layout::HIGH_RAM, RESERVED),
        range(layout::HIGH_RAM, memory::low_end(ram), RAM),
        range(layout::ECAM, layout::ECAM + layout::ECAM_BYTES, RESERVED),
    ];
    map.extend(ram.iter().skip(1).map(|region| MemoryRange {
        at: region.start_addr().0,
        bytes: region.len(),
        kind: RAM,
    }));
    map
}

fn write(ram: &GuestRam, bytes: &[u8], at: u64) -> Result<()> {
    ram.write_slice(bytes, GuestAddress(at))
        .map_err(|e| Error::Boot {
            field: "memory_mib",
            problem: format!("cannot write boot data at {at:#x}: {e}"),
        })
}

#[cfg(test)]
mod tests;
