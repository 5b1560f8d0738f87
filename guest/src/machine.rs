//! What the boot protocol and the firmware tables say: memory, command line, ACPI.

use core::ptr::addr_of;
use ocs_probe_logic::acpi::{Acpi, AcpiError, Memory};

/// `struct hvm_start_info` (Xen's public/arch-x86/hvm/start_info.h), version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;
const ENTRY_BYTES: usize = 24;
const MAX_ENTRIES: usize = 64;
const MAX_CMDLINE: usize = 2048;
const RAM: u32 = 1;

/// RAM and firmware tables: everything mapped that is no device. Below the first
/// MMIO hole that any of the machines has, so reading it has no side effects.
const READABLE_END: u64 = 0xb000_0000;

struct Mapped;

impl Memory for Mapped {
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        if address == 0 || address.checked_add(len as u64)? > READABLE_END {
            return None;
        }
        // SAFETY: the range is mapped one to one, is not device memory, and holds what
        // the boot loader wrote, which nobody changes while the tables are read.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, len) })
    }
}

unsafe extern "C" {
    static boot_start_info: u32;
}

/// What the boot loader handed over.
#[derive(Clone, Copy)]
pub struct Start {
    info: Option<StartInfo>,
}

impl Start {
    /// Reads the structure that %ebx named at entry.
    pub fn get() -> Self {
        // SAFETY: stub.S wrote this aligned word before ring 3 began.
        let address = unsafe { addr_of!(boot_start_info).read_volatile() };
        let info = Mapped
            .bytes(address.into(), size_of::<StartInfo>())
            // SAFETY: the slice has the structure's size, and any bits are valid in it.
            .map(|bytes| unsafe { bytes.as_ptr().cast::<StartInfo>().read_unaligned() })
            .filter(|info| info.magic == MAGIC);
        Self { info }
    }

    /// Start and length of each piece of RAM.
    fn ram(&self) -> impl Iterator<Item = (u64, u64)> {
        let map = self
            .info
            .filter(|info| info.version >= 1)
            .and_then(|info| {
                let entries = (info.memmap_entries as usize).min(MAX_ENTRIES);
                Mapped.bytes(info.memmap_paddr, entries * ENTRY_BYTES)
            })
            .unwrap_or_default();
        let (entries, _) = map.as_chunks::<ENTRY_BYTES>();
        entries.iter().filter_map(|entry| {
            let word = |at: usize| entry[at..].first_chunk().copied();
            let kind = u32::from_le_bytes(entry[16..].first_chunk().copied()?);
            (kind == RAM).then_some((u64::from_le_bytes(word(0)?), u64::from_le_bytes(word(8)?)))
        })
    }

    /// RAM in MiB, rounded up: firmware keeps some KiB of it for itself.
    pub fn memory_mib(&self) -> u64 {
        self.ram()
            .fold(0u64, |sum, (_, len)| sum.saturating_add(len))
            .div_ceil(1 << 20)
    }

    /// Bytes of RAM from `address` on; 2 MiB where the loader gave no map.
    pub fn memory_behind(&self, address: u64) -> usize {
        self.ram()
            .find(|(start, len)| *start <= address && address < start.saturating_add(*len))
            .and_then(|(start, len)| usize::try_from(start.saturating_add(len) - address).ok())
            .unwrap_or(2 << 20)
    }

    /// The command line up to its NUL.
    pub fn cmdline(&self) -> &'static [u8] {
        let bytes = self
            .info
            .and_then(|info| Mapped.bytes(info.cmdline_paddr, MAX_CMDLINE))
            .unwrap_or_default();
        let len = bytes.iter().position(|b| *b == 0).unwrap_or(0);
        &bytes[..len]
    }

    /// Follows the RSDP.
    pub fn acpi(&self) -> Result<Acpi, AcpiError> {
        let info = self.info.ok_or(AcpiError::BadRsdp)?;
        Acpi::read(&Mapped, info.rsdp_paddr)
    }
}
