//! The DSDT: what a guest cannot find by itself (ACPI 6.5 §6, PCI Firmware 3.3 §4).

use crate::layout;
use crate::legacy::{power, rtc};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify,
    ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};

/// `Notify` value for "the button was pressed" (§5.6.6).
const BUTTON_PRESSED: u8 = 0x80;

/// All definitions behind the table header.
pub(super) fn body(vcpus: u8) -> Vec<u8> {
    let mut out = Vec::new();
    pci(&mut out);
    legacy(&mut out);
    power_button(&mut out);
    processors(&mut out, vcpus);
    // \_S5: the sleep type that means "off".
    Name::new("_S5_".into(), &Package::new(vec![&power::S5_SLEEP_TYPE])).to_aml_bytes(&mut out);
    out
}

/// The root bridge: bus 0, one memory window, no I/O window, no INTx routing (MSI-X only).
fn pci(out: &mut Vec<u8>) {
    let base = low32(layout::PCI_WINDOW);
    let last = low32(layout::PCI_WINDOW + layout::PCI_WINDOW_BYTES - 1);
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &IO::new(0xcf8, 0xcf8, 1, 8),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        base,
                        last,
                        None::<u32>,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
    // Linux trusts MCFG only where a motherboard device reserves the same range.
    Device::new(
        "_SB_.ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    low32(layout::ECAM),
                    low32(layout::ECAM_BYTES),
                )]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// COM1 and the RTC.
fn legacy(out: &mut Vec<u8>) {
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::COM1, layout::COM1, 1, 8),
                    &Interrupt::new(true, true, false, false, layout::COM1_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
    Device::new(
        "_SB_.RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(rtc::INDEX_PORT, rtc::INDEX_PORT, 1, 2)]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// A generic event device (§5.6.9) that reads and clears the event port and tells
/// the power button, if its bit was set.
fn power_button(out: &mut Vec<u8>) {
    Device::new(
        "_SB_.PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    )
    .to_aml_bytes(out);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::POWER_GSI,
                )]),
            ),
            &OpRegion::new(
                "EVTR".into(),
                OpRegionSpace::SystemIO,
                &power::EVENT_PORT,
                &ONE,
            ),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("EVTS")),
                    &And::new(&Local(1), &Local(0), &power::EVENT_BUTTON),
                    &If::new(
                        &Local(1),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &BUTTON_PRESSED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// One processor device per CPU, matched to the MADT by `_UID`.
fn processors(out: &mut Vec<u8>, vcpus: u8) {
    let devices: Vec<Processor> = (0..vcpus).map(Processor).collect();
    Scope::new(
        "_SB_".into(),
        devices.iter().map(|cpu| cpu as &dyn Aml).collect(),
    )
    .to_aml_bytes(out);
}

struct Processor(u8);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            format!("C{:03}", self.0).as_str().into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0007"),
                &Name::new("_UID".into(), &self.0),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Everything described here lies below 4 GiB.
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
