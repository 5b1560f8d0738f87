//! The few facts the probe takes from ACPI's tables (ACPI 6.5 §5.2): ECAM from MCFG,
//! CPUs from MADT, sleep and reset registers from FADT, `_S5` from the DSDT's bytes.

/// Physical memory, as far as it may be read.
pub trait Memory {
    /// `len` bytes at `address`, or `None` where there is no such memory.
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]>;
}

/// A table longer than this is refused.
const MAX_TABLE_BYTES: usize = 1 << 20;
/// More tables than this are not looked at.
const MAX_TABLES: usize = 64;

/// Why there is nothing to be learnt from ACPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No `RSD PTR ` signature, or a checksum that does not sum to 0.
    BadRsdp,
    /// RSDT or XSDT are not readable or not valid.
    BadRoot,
}

impl core::fmt::Display for AcpiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadRsdp => "no valid RSDP",
            Self::BadRoot => "no valid RSDT or XSDT",
        })
    }
}

/// PCI configuration space in memory (PCI Firmware Specification 3.3 §4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Physical address of bus `first_bus`.
    pub base: u64,
    /// First bus that it decodes.
    pub first_bus: u8,
    /// Last bus that it decodes.
    pub last_bus: u8,
}

/// A register that power management writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// I/O port.
    Port(u16),
    /// Physical address.
    Memory(u64),
}

/// What the tables say. Each field is `None` where its table is absent or not valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acpi {
    /// The first MCFG entry of segment 0.
    pub ecam: Option<Ecam>,
    /// MADT's PCAT_COMPAT: there is a pair of 8259 interrupt controllers as well.
    pub legacy_pic: bool,
    /// Enabled local APICs.
    pub cpus: Option<u16>,
    /// Address of the first I/O APIC, with its first interrupt number.
    pub io_apic: Option<(u64, u32)>,
    /// Sleep control register of hardware-reduced ACPI (§4.8.3.7).
    pub sleep_control: Option<Register>,
    /// PM1a control register of full ACPI (§4.8.3.2.1).
    pub pm1a_control: Option<u16>,
    /// Sleep type of S5.
    pub s5: Option<u8>,
    /// Reset register and the value to write (§4.8.3.6).
    pub reset: Option<(Register, u8)>,
    /// OEM id of the FADT.
    pub oem_id: [u8; 6],
}

impl Acpi {
    /// Follows the RSDP at `rsdp`.
    pub fn read(memory: &impl Memory, rsdp: u64) -> Result<Self, AcpiError> {
        let root = Root::find(memory, rsdp)?;
        let mut acpi = Self::default();
        for index in 0..root.entries.len() / root.width {
            if index >= MAX_TABLES {
                break;
            }
            let entry = &root.entries[index * root.width..(index + 1) * root.width];
            let address = if root.width == 8 {
                u64_at(entry, 0)
            } else {
                u32_at(entry, 0).map(u64::from)
            };
            let Some(table) = address.and_then(|a| table_at(memory, a)) else {
                continue;
            };
            match &table[..4] {
                b"MCFG" => acpi.ecam = acpi.ecam.or_else(|| ecam(table)),
                b"APIC" => acpi.madt(table),
                b"FACP" => acpi.fadt(memory, table),
                _ => {}
            }
        }
        Ok(acpi)
    }

    /// §5.2.12: entries of type 0 (local APIC), 1 (I/O APIC) and 9 (x2APIC).
    fn madt(&mut self, table: &[u8]) {
        const PCAT_COMPAT: u32 = 1;
        self.legacy_pic = u32_at(table, 40).is_some_and(|flags| flags & PCAT_COMPAT != 0);
        let mut cpus = 0u16;
        let mut rest = table.get(44..).unwrap_or_default();
        while let [kind, len, ..] = *rest {
            let len = usize::from(len);
            if len < 2 || len > rest.len() {
                break;
            }
            let (entry, tail) = rest.split_at(len);
            let flags = match kind {
                0 => u32_at(entry, 4),
                9 => u32_at(entry, 8),
                _ => None,
            };
            cpus = cpus.saturating_add(u16::from(flags.is_some_and(|f| f & 1 != 0)));
            if kind == 1 && self.io_apic.is_none() {
                self.io_apic = u32_at(entry, 4).map(u64::from).zip(u32_at(entry, 8));
            }
            rest = tail;
        }
        self.cpus = Some(cpus);
    }

    /// §5.2.9.
    fn fadt(&mut self, memory: &impl Memory, table: &[u8]) {
        const RESET_SUPPORTED: u32 = 1 << 10;
        const HARDWARE_REDUCED: u32 = 1 << 20;
        let Some(flags) = u32_at(table, 112) else {
            return;
        };
        self.oem_id.copy_from_slice(&table[10..16]);
        if flags & RESET_SUPPORTED != 0 {
            self.reset = register(table, 116).zip(table.get(128).copied());
        }
        if flags & HARDWARE_REDUCED != 0 {
            self.sleep_control = register(table, 244);
        } else {
            self.pm1a_control = u32_at(table, 64)
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0);
        }
        let dsdt = u64_at(table, 140)
            .filter(|a| *a != 0)
            .or_else(|| u32_at(table, 40).map(u64::from))
            .and_then(|a| table_at(memory, a));
        self.s5 = dsdt.and_then(s5);
    }
}

/// RSDT (entries of 4 bytes) or XSDT (of 8).
struct Root<'a> {
    entries: &'a [u8],
    width: usize,
}

impl<'a> Root<'a> {
    /// §5.2.5.3: 20 bytes since revision 0, 36 since revision 2.
    fn find(memory: &'a impl Memory, rsdp: u64) -> Result<Self, AcpiError> {
        let v1 = memory
            .bytes(rsdp, 20)
            .filter(|b| b.starts_with(b"RSD PTR ") && sums_to_zero(b))
            .ok_or(AcpiError::BadRsdp)?;
        let v2 = if v1[15] >= 2 {
            memory.bytes(rsdp, 36).filter(|b| sums_to_zero(b))
        } else {
            None
        };
        let xsdt = v2.and_then(|b| u64_at(b, 24)).filter(|a| *a != 0);
        let (address, signature, width) = match xsdt {
            Some(address) => (address, b"XSDT", 8),
            None => (
                u32_at(v1, 16).map(u64::from).ok_or(AcpiError::BadRsdp)?,
                b"RSDT",
                4,
            ),
        };
        let table = table_at(memory, address)
            .filter(|t| t.starts_with(signature))
            .ok_or(AcpiError::BadRoot)?;
        Ok(Self {
            entries: &table[36..],
            width,
        })
    }
}

/// A whole table with a right length and checksum: at least its 36-byte header.
fn table_at(memory: &impl Memory, address: u64) -> Option<&[u8]> {
    let len = usize::try_from(u32_at(memory.bytes(address, 36)?, 4)?).ok()?;
    if !(36..=MAX_TABLE_BYTES).contains(&len) {
        return None;
    }
    memory.bytes(address, len).filter(|t| sums_to_zero(t))
}

fn ecam(table: &[u8]) -> Option<Ecam> {
    let (entries, _) = table.get(44..)?.as_chunks::<16>();
    entries.iter().find_map(|entry| {
        let segment = u16::from_le_bytes([entry[8], entry[9]]);
        (segment == 0 && entry[10] <= entry[11]).then_some(Ecam {
            base: u64_at(entry, 0)?,
            first_bus: entry[10],
            last_bus: entry[11],
        })
    })
}

/// A generic address structure (§5.2.3.2) in memory (0) or I/O space (1).
fn register(table: &[u8], at: usize) -> Option<Register> {
    let address = u64_at(table, at + 4).filter(|a| *a != 0)?;
    match *table.get(at)? {
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Port),
        _ => None,
    }
}

/// `Name (_S5_, Package () { SLP_TYPa, … })`, found by its bytes: there is no AML
/// interpreter here.
fn s5(dsdt: &[u8]) -> Option<u8> {
    const PACKAGE: u8 = 0x12;
    const ZERO: u8 = 0;
    const ONE: u8 = 1;
    const BYTE_PREFIX: u8 = 0x0a;
    let at = dsdt.windows(5).position(|w| w == b"_S5_\x12")? + 4;
    let rest = dsdt.get(at..)?;
    debug_assert_eq!(rest.first(), Some(&PACKAGE));
    // PkgLength: its first byte's upper two bits count the bytes that follow.
    let skip = 1 + 1 + usize::from(rest.get(1)? >> 6) + 1;
    match *rest.get(skip)? {
        ZERO => Some(0),
        ONE => Some(1),
        BYTE_PREFIX => rest.get(skip + 1).copied(),
        _ => None,
    }
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
