//! Where things lie in the guest's physical memory, ports and interrupts.
//!
//! ```text
//! 0x0000_0500  GDT                     0xc000_0000  PCI memory window (BARs)
//! 0x0000_6000  PVH start info          0xe000_0000  PCI configuration (ECAM, bus 0)
//! 0x0000_7000  memory map, zero page   0xfec0_0000  IOAPIC
//! 0x0000_9000  page tables (bzImage)   0xfee0_0000  local APICs
//! 0x0002_0000  command line            0xe010_0000  virtio over MMIO
//!                                      0xfffb_c000  identity map, TSS (Intel)
//! 0x000e_0000  ACPI tables           0x1_0000_0000  RAM above 3 GiB
//! 0x000f_0000  SMBIOS tables
//! 0x000f_f000  generation id, reset vector
//! 0x0010_0000  kernel … initrd … end of low RAM
//! ```

/// The global descriptor table of the boot CPU.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH boot ABI; module list behind it.
pub const PVH_START_INFO: u64 = 0x6000;
/// The PVH module list (the initrd).
pub const PVH_MODULES: u64 = 0x6040;
/// The PVH memory map; with a bzImage, the zero page.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack of a 64-bit entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// First of three page-table pages for the 64-bit entry.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// End of conventional memory.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// RSDP, then the other ACPI tables, below [`SMBIOS`].
pub const ACPI_TABLES: u64 = 0xe_0000;
/// SMBIOS anchor and tables; where BIOSes have them.
pub const SMBIOS: u64 = 0xf_0000;
/// The generation id (VMGenID), on the last page of that room.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Where a processor in real mode begins (f000:fff0), with room for 16 bytes.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the room for ACPI tables, start of "high" memory.
pub const HIGH_RAM: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest, and the PCI window begins.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Size of the PCI window.
pub const PCI_WINDOW_BYTES: u64 = 0x2000_0000;
/// Enhanced configuration access (PCI Express base 6.0 §7.2.2), bus 0 only.
pub const ECAM: u64 = 0xe000_0000;
/// 32 devices × 8 functions × 4 KiB.
pub const ECAM_BYTES: u64 = 1 << 20;
/// Virtio devices beside PCI, a page each.
pub const VIRTIO_MMIO: u64 = 0xe010_0000;
/// The IOAPIC, a page.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Its size.
pub const IOAPIC_BYTES: u64 = 0x1000;
/// KVM's in-kernel local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that Intel hosts need to run real-mode guests.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages, likewise.
pub const TSS: usize = 0xfffb_d000;
/// RAM that did not fit below [`PCI_WINDOW`] goes on here.
pub const RAM_ABOVE_4G: u64 = 1 << 32;

/// COM1.
pub const COM1: u16 = 0x3f8;
/// COM1's interrupt.
pub const COM1_GSI: u8 = 4;
/// The interrupt of the power button and of PCI hot-plug (edge, active high).
pub const EVENT_GSI: u8 = 5;
/// Virtio devices beside PCI have their pins from here on.
pub const FIRST_DEVICE_PIN: u8 = 6;
