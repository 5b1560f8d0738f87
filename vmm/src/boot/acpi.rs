//! ACPI tables (ACPI 6.5 §5.2): hardware-reduced, so no SCI, no PM timer, no GPE.
//!
//! ```text
//!  RSDP ─▶ XSDT ─┬▶ FADT ─▶ DSDT (dsdt.rs)
//!                ├▶ MADT   local APICs, one IOAPIC
//!                └▶ MCFG   ECAM of bus 0, if there is PCI
//! ```

use super::{dsdt, write};
use crate::error::Result;
use crate::layout;
use crate::legacy::power;
use crate::memory::GuestRam;
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"OCSVMM";
const TABLE: [u8; 8] = *b"OCSMICRO";
const REVISION: u32 = 1;
/// FADT boot architecture flags (§5.2.9.3): no VGA.
const NO_VGA: u16 = 1 << 2;

/// Writes all tables, the RSDP at [`layout::ACPI_TABLES`]; `mmio_devices` is how many virtio
/// devices there are, in a machine without PCI.
pub fn write_tables(ram: &GuestRam, vcpus: u8, mmio_devices: Option<usize>) -> Result<()> {
    let mut tables = Vec::new();
    let mut place = |bytes: Vec<u8>| {
        tables.resize(tables.len().next_multiple_of(16), 0);
        let at = layout::ACPI_TABLES + RSDP_ROOM + tables.len() as u64;
        tables.extend_from_slice(&bytes);
        at
    };

    let mut definition = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    definition.append_slice(&dsdt::body(vcpus, mmio_devices));
    let dsdt_at = place(definition.as_slice().to_vec());
    let fadt_at = place(bytes(&fadt(dsdt_at)));
    let madt_at = place(bytes(&madt(vcpus)));
    let mut found = vec![fadt_at, madt_at];
    if mmio_devices.is_none() {
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        mcfg.add_ecam(layout::ECAM, 0, 0, 0);
        found.push(place(bytes(&mcfg)));
    }
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for at in found {
        xsdt.add_entry(at);
    }
    let xsdt_at = place(bytes(&xsdt));

    write(ram, &bytes(&Rsdp::new(OEM, xsdt_at)), layout::ACPI_TABLES)?;
    write(ram, &tables, layout::ACPI_TABLES + RSDP_ROOM)
}

const RSDP_ROOM: u64 = 64;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn fadt(dsdt_at: u64) -> impl Aml {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt_at)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    table.iapc_boot_arch = NO_VGA.into();
    table.reset_reg = port(power::RESET_PORT);
    table.reset_value = power::RESET_VALUE;
    table.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    table.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    table.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut table = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for cpu in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(vcpus, layout::IOAPIC, 0));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use vm_memory::{Bytes, GuestAddress};

    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let mut header = [0u8; 36];
        ram.read_slice(&mut header, GuestAddress(at)).unwrap();
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let mut bytes = vec![0; len as usize];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        bytes
    }

    #[test]
    fn tables_link_up_and_sum_to_zero() {
        link_up(None, &[b"FACP", b"APIC", b"MCFG"]);
        link_up(Some(8), &[b"FACP", b"APIC"]);
    }

    fn link_up(mmio_devices: Option<usize>, expected: &[&[u8; 4]]) {
        let ram = memory::create(16).unwrap();
        write_tables(&ram, 64, mmio_devices).unwrap();
        let mut rsdp = [0u8; 36];
        ram.read_slice(&mut rsdp, GuestAddress(layout::ACPI_TABLES))
            .unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&ram, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        let found: Vec<Vec<u8>> = xsdt[36..]
            .chunks(8)
            .map(|at| table(&ram, u64::from_le_bytes(at.try_into().unwrap())))
            .collect();
        let names: Vec<&[u8]> = found.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, expected);
        let dsdt_at = u64::from_le_bytes(found[0][140..148].try_into().unwrap());
        let dsdt = table(&ram, dsdt_at);
        assert_eq!(&dsdt[..4], b"DSDT");
        let has_bus = dsdt.windows(4).any(|name| name == b"PCI0");
        assert_eq!(has_bus, mmio_devices.is_none());
        let mut end = [0u8; 8];
        ram.read_slice(&mut end, GuestAddress(layout::SMBIOS - 8))
            .unwrap();
        assert_eq!(end, [0; 8], "the tables overran their room");
    }
}
