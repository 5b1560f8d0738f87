//! PCI through ECAM: finds virtio functions, places BARs that firmware left alone, and
//! programs MSI-X.
//!
//! Each access to configuration space is an exit to the VMM, so only what is needed is
//! read, once.

use crate::hal::Mmio;
use crate::lapic;
use alloc::vec::Vec;
use ocs_probe_logic::acpi::Ecam;

const VENDOR_VIRTIO: u16 = 0x1af4;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
const MAX_CAPABILITIES: usize = 32;
const MEMORY_AND_BUS_MASTER: u16 = 0b110;
const PAGE: u64 = 0x1000;

/// Where BARs go that have no address below 4 GiB yet: the 256 MiB below ECAM, which
/// is inside the PCI window of every machine that leaves this to the guest.
const WINDOW_BYTES: u64 = 256 << 20;
/// Configuration space of one bus, and the end of what stub.S maps.
const BUS_BYTES: u64 = 1 << 20;
const MAPPED_END: u64 = 1 << 32;

/// Buses of ECAM.
pub struct Root {
    ecam: Ecam,
    next_bar: u64,
}

/// A virtio function with its configuration space.
pub struct Function {
    config: Mmio,
    /// Virtio device type: 1 is net, 2 is block.
    pub kind: u16,
    /// Its device number on bus 0.
    pub slot: u8,
    bars: [Option<Mmio>; 6],
    /// Capabilities: offset, id, bytes 2 and 3.
    capabilities: Vec<(u8, u8, [u8; 2])>,
}

/// A `virtio_pci_cap` (virtio 1.3 §4.1.4).
#[derive(Clone, Copy)]
pub struct VirtioCapability {
    /// The window that it describes.
    pub window: Mmio,
    /// The word behind it: the notification multiplier, if it is of that kind.
    pub extra: u32,
}

impl Root {
    /// Configuration space at `ecam`, if its bus 0 is mapped: below 4 GiB.
    pub fn new(ecam: Ecam) -> Option<Self> {
        let mapped = ecam.first_bus == 0
            && (WINDOW_BYTES..=MAPPED_END - BUS_BYTES).contains(&ecam.base)
            && ecam.base.is_multiple_of(BUS_BYTES);
        mapped.then_some(Self {
            ecam,
            next_bar: ecam.base - WINDOW_BYTES,
        })
    }

    /// All virtio functions of bus 0, where every machine that starts the probe has them.
    pub fn virtio_functions(&mut self) -> Vec<Function> {
        let mut functions = Vec::new();
        for slot in 0..32 {
            functions.extend(self.functions_of(slot));
        }
        functions
    }

    /// The virtio functions of one device.
    pub fn functions_of(&mut self, slot: u8) -> Vec<Function> {
        let first = self.config(slot, 0);
        if first.read32(0) == u32::MAX {
            return Vec::new();
        }
        let several = first.read8(0x0e) & 0x80 != 0;
        (0..if several { 8 } else { 1 })
            .filter_map(|function| self.function(slot, function))
            .collect()
    }

    fn config(&self, device: u8, function: u8) -> Mmio {
        let at = u64::from(device) << 15 | u64::from(function) << 12;
        // SAFETY: MCFG names configuration space there, bus 0 of it lies below 4 GiB
        // (checked in `new`), and `at` stays inside of bus 0.
        unsafe { Mmio::new(self.ecam.base + at, 4096) }
    }

    fn function(&mut self, slot: u8, function: u8) -> Option<Function> {
        let config = self.config(slot, function);
        let id = config.read32(0);
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        let kind = match device {
            0x1000 => 1,
            0x1001 => 2,
            0x1041..=0x107f => device - 0x1040,
            _ => return None,
        };
        if vendor != VENDOR_VIRTIO || !matches!(kind, 1 | 2) {
            return None;
        }
        let capabilities = capabilities(config);
        let mut function = Function {
            config,
            kind,
            slot,
            bars: [None; 6],
            capabilities,
        };
        for index in function.bars_in_use() {
            function.bars[index] = self.bar(config, index);
        }
        config.write16(4, config.read16(4) | MEMORY_AND_BUS_MASTER);
        Some(function)
    }

    /// The window of a memory BAR, which gets an address if it has none that is mapped.
    fn bar(&mut self, config: Mmio, index: usize) -> Option<Mmio> {
        let at = 0x10 + 4 * index;
        let low = config.read32(at);
        if low & 1 != 0 {
            return None;
        }
        let wide = low & 0b110 == 0b100 && index < 5;
        let high = if wide { config.read32(at + 4) } else { 0 };
        let command = config.read16(4);
        config.write16(4, command & !0b11);
        config.write32(at, u32::MAX);
        let mask = config.read32(at) & !0xf;
        config.write32(at, low);
        let len = u64::from(mask.wrapping_neg());
        let mut address = u64::from(low & !0xf);
        let placed = if mask == 0 {
            None
        } else if address == 0 || high != 0 {
            address = self.next_bar.next_multiple_of(len.max(PAGE));
            let end = address + len;
            (end <= self.ecam.base).then(|| {
                self.next_bar = end;
                config.write32(at, address as u32);
                if wide {
                    config.write32(at + 4, 0);
                }
                // SAFETY: the BAR now decodes this range, which no other one has.
                unsafe { Mmio::new(address, len as usize) }
            })
        } else {
            // SAFETY: the VMM made the BAR decode this range, below 4 GiB.
            Some(unsafe { Mmio::new(address, len as usize) })
        };
        config.write16(4, command);
        placed
    }
}

fn capabilities(config: Mmio) -> Vec<(u8, u8, [u8; 2])> {
    const HAS_CAPABILITIES: u16 = 1 << 4;
    let mut found = Vec::new();
    if config.read16(6) & HAS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = config.read8(0x34) & !3;
    while at >= 0x40 && found.len() < MAX_CAPABILITIES {
        let [id, next, low, high] = config.read32(at.into()).to_le_bytes();
        found.push((at, id, [low, high]));
        at = next & !3;
    }
    found
}

impl Function {
    /// BARs that a virtio or MSI-X capability points into, each once.
    fn bars_in_use(&self) -> Vec<usize> {
        let mut bars: Vec<usize> = self
            .capabilities
            .iter()
            .filter_map(|(at, id, _)| match *id {
                CAPABILITY_VENDOR => Some(self.config.read8(usize::from(*at) + 4)),
                CAPABILITY_MSIX => Some(self.config.read8(usize::from(*at) + 4) & 7),
                _ => None,
            })
            .map(usize::from)
            .filter(|bar| *bar < 6)
            .collect();
        bars.sort_unstable();
        bars.dedup();
        bars
    }

    /// The first virtio capability of a kind that lies inside its BAR.
    pub fn virtio(&self, kind: u8) -> Option<VirtioCapability> {
        self.capabilities
            .iter()
            .filter(|(_, id, [_, cfg_type])| *id == CAPABILITY_VENDOR && *cfg_type == kind)
            .find_map(|(at, _, [len, _])| {
                let at = usize::from(*at);
                let bar = self.bars.get(usize::from(self.config.read8(at + 4)))?;
                let offset = self.config.read32(at + 8) as usize;
                let size = self.config.read32(at + 12) as usize;
                Some(VirtioCapability {
                    window: (*bar)?.part(offset, size)?,
                    extra: if *len >= 20 {
                        self.config.read32(at + 16)
                    } else {
                        0
                    },
                })
            })
    }

    /// Sends MSI-X message 0 to this processor as `vector` (PCI 3.0 §6.8.2) and masks
    /// none; false if the function has no MSI-X.
    pub fn enable_msix(&self, vector: u8) -> bool {
        const ENABLE: u16 = 1 << 15;
        const FUNCTION_MASK: u16 = 1 << 14;
        let Some((at, _, control)) = self
            .capabilities
            .iter()
            .find(|(_, id, _)| *id == CAPABILITY_MSIX)
        else {
            return false;
        };
        let at = usize::from(*at);
        let table = self.config.read32(at + 4);
        let bar = self.bars.get(table as usize & 7).copied().flatten();
        let Some(entry) = bar.and_then(|bar| bar.part((table & !7) as usize, 16)) else {
            return false;
        };
        let control = u16::from_le_bytes(*control) & !FUNCTION_MASK;
        self.config
            .write16(at + 2, control | ENABLE | FUNCTION_MASK);
        entry.write32(0, 0xfee0_0000 | u32::from(lapic::id()) << 12);
        entry.write32(4, 0);
        entry.write32(8, vector.into());
        entry.write32(12, 0);
        self.config.write16(at + 2, control | ENABLE);
        true
    }
}
