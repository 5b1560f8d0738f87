//! The Linux x86 boot protocol, 64-bit entry (Documentation/arch/x86/boot.rst).

use super::{Entry, Initrd, memory_map, write};
use crate::error::{Error, Result};
use crate::layout;
use crate::memory::{self, GuestRam};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

/// `xloadflags`: the kernel has the 64-bit entry point at +0x200.
const XLF_KERNEL_64: u16 = 1;
/// The first protocol version with `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
/// "Undefined" boot loader id.
const LOADER_OTHER: u8 = 0xff;

/// Checks that this VMM can start the kernel, and says where.
pub(super) fn check_header(header: &setup_header, loaded_at: u64, ram: &GuestRam) -> Result<Entry> {
    let fail = |problem: String| {
        Err(Error::Boot {
            field: "boot.kernel",
            problem,
        })
    };
    let (version, flags, init_size) = (header.version, header.xloadflags, header.init_size);
    if version < MIN_VERSION || flags & XLF_KERNEL_64 == 0 {
        return fail(format!(
            "has no 64-bit entry (boot protocol {version:#x}, xloadflags {flags:#x})"
        ));
    }
    let end = loaded_at + u64::from(init_size);
    if end > memory::low_end(ram) {
        return fail(format!(
            "needs memory up to {end:#x}, more than the guest has"
        ));
    }
    Ok(Entry::Linux64 {
        ip: loaded_at + 0x200,
    })
}

/// Writes `boot_params`.
pub(super) fn write_zero_page(
    ram: &GuestRam,
    header: setup_header,
    cmdline: &str,
    initrd: Option<Initrd>,
) -> Result<()> {
    let max = header.cmdline_size;
    let cmdline_bytes = u32::try_from(cmdline.len()).unwrap_or(u32::MAX);
    if cmdline_bytes > max {
        return Err(Error::Boot {
            field: "boot.cmdline",
            problem: format!("has {cmdline_bytes} bytes and the kernel takes {max}"),
        });
    }
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: layout::ACPI_TABLES,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = low32(layout::CMDLINE);
    params.hdr.cmdline_size = cmdline_bytes;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low32(initrd.at);
        params.hdr.ramdisk_size = low32(initrd.bytes);
    }
    for (slot, range) in params.e820_table.iter_mut().zip(memory_map(ram)) {
        *slot = boot_e820_entry {
            addr: range.at,
            size: range.bytes,
            r#type: range.kind,
        };
        params.e820_entries += 1;
    }
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(|e| Error::Boot {
            field: "memory_mib",
            problem: format!("cannot write the zero page: {e}"),
        })?;
    write_page_tables(ram)
}

/// Identity-maps the first GiB with 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let directory_pointers = layout::PAGE_TABLES + 0x1000;
    let directory = layout::PAGE_TABLES + 0x2000;
    let link = |to: u64| (to | PRESENT_WRITABLE).to_le_bytes();
    write(ram, &link(directory_pointers), layout::PAGE_TABLES)?;
    write(ram, &link(directory), directory_pointers)?;
    let pages: Vec<u8> = (0..512u64)
        .flat_map(|n| ((n << 21) | PRESENT_WRITABLE | LARGE).to_le_bytes())
        .collect();
    write(ram, &pages, directory)
}

/// Low memory ends below 4 GiB, so what lies in it has 32-bit addresses and sizes.
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
