//! The DSDT: what a guest cannot find by itself (ACPI 6.5 §6, PCI Firmware 3.3 §4).

use crate::layout;
use crate::legacy::{power, rtc};
use crate::pci::hotplug;
use crate::pci::root::Slot;
use crate::virtio::mmio;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall,
    Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
    ZERO,
};

/// `Notify` value for "the button was pressed" (§5.6.6).
const BUTTON_PRESSED: u8 = 0x80;
/// `Notify` value of a new generation id.
const GENERATION_CHANGED: u8 = 0x80;
/// `Notify` value "device check" (§5.6.6).
const DEVICE_CHECK: u8 = 1;
/// `Notify` value "eject request".
const EJECT_REQUEST: u8 = 3;

/// All definitions behind the table header.
pub(super) fn body(vcpus: u8, mmio_devices: Option<usize>) -> Vec<u8> {
    let mut out = Vec::new();
    match mmio_devices {
        Some(count) => {
            for (slot, number) in Slot::all().zip(0..count) {
                virtio_mmio(&mut out, slot, number);
            }
        }
        None => {
            pci(&mut out);
            slots(&mut out);
        }
    }
    legacy(&mut out);
    events(&mut out, mmio_devices.is_none());
    generation(&mut out);
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

/// Every slot of the root bus with `_EJ0`, which makes a stock kernel's `acpiphp` serve
/// it; `PCNT` tells the slots what the hot-plug registers say.
fn slots(out: &mut Vec<u8>) {
    let region = OpRegion::new(
        "PCHP".into(),
        OpRegionSpace::SystemIO,
        &hotplug::FIRST_PORT,
        &(hotplug::LAST_PORT - hotplug::FIRST_PORT + 1),
    );
    let registers = Field::new(
        "PCHP".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"PCIU", 32),
            FieldEntry::Named(*b"PCID", 32),
            FieldEntry::Named(*b"PCEJ", 32),
        ],
    );
    let slots: Vec<SlotDevice> = Slot::all().map(SlotDevice).collect();
    let notify: Vec<SlotNotify> = Slot::all().map(SlotNotify).collect();
    let (arrived, leaving) = (Path::new("PCIU"), Path::new("PCID"));
    let read_arrived = Store::new(&Local(0), &arrived);
    let read_leaving = Store::new(&Local(1), &leaving);
    let mut tell: Vec<&dyn Aml> = vec![&read_arrived, &read_leaving];
    tell.extend(notify.iter().map(|slot| slot as &dyn Aml));
    let tell = Method::new("PCNT".into(), 0, true, tell);
    let mut all: Vec<&dyn Aml> = vec![&region, &registers];
    all.extend(slots.iter().map(|slot| slot as &dyn Aml));
    all.push(&tell);
    Scope::new("_SB_.PCI0".into(), all).to_aml_bytes(out);
}

fn slot_name(slot: Slot) -> String {
    format!("S{:02X}_", slot.number())
}

struct SlotDevice(Slot);

impl Aml for SlotDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let address = u32::from(self.0.number()) << 16;
        Device::new(
            slot_name(self.0).as_str().into(),
            vec![
                &Name::new("_ADR".into(), &address),
                &Name::new("_SUN".into(), &self.0.number()),
                &Method::new(
                    "_EJ0".into(),
                    1,
                    true,
                    vec![&Store::new(&Path::new("PCEJ"), &self.0.bit())],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct SlotNotify(Slot);

impl Aml for SlotNotify {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (device, bit) = (Path::new(&slot_name(self.0)), self.0.bit());
        for (register, value) in [(0, DEVICE_CHECK), (1, EJECT_REQUEST)] {
            And::new(&Local(2), &Local(register), &bit).to_aml_bytes(sink);
            let tell = Notify::new(&device, &value);
            If::new(&Local(2), vec![&tell]).to_aml_bytes(sink);
        }
    }
}

/// A virtio device without PCI, as Linux's `virtio_mmio` looks for it.
fn virtio_mmio(out: &mut Vec<u8>, slot: Slot, number: usize) {
    let Some((at, pin)) = mmio::place(slot) else {
        return;
    };
    Device::new(
        format!("_SB_.VR{number:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &slot.number()),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, low32(at), low32(mmio::WINDOW)),
                    &Interrupt::new(true, true, false, false, pin.into()),
                ]),
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
                    &Interrupt::new(true, true, false, false, layout::COM1_GSI.into()),
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

/// The generation id (Virtual Machine Generation ID, as stock kernels' `vmgenid` driver reads
/// it): `ADDR` says where the 16 bytes are.
fn generation(out: &mut Vec<u8>) {
    let at = low32(layout::GENERATION_ID);
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"OCSV0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&at, &ZERO])),
        ],
    )
    .to_aml_bytes(out);
}

/// A generic event device (§5.6.9) that reads and clears the event port and tells
/// the power button, the generation id and the slots, if there are some, where their bits were set.
fn events(out: &mut Vec<u8>, has_slots: bool) {
    Device::new(
        "_SB_.PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    )
    .to_aml_bytes(out);
    let register = Path::new("EVTS");
    let read = Store::new(&Local(0), &register);
    let (button, generation) = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.VGEN"));
    let press = Notify::new(&button, &BUTTON_PRESSED);
    let renew = Notify::new(&generation, &GENERATION_CHANGED);
    let slots = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
    let mut told: Vec<(&u8, &dyn Aml)> = vec![
        (&power::EVENT_BUTTON, &press),
        (&power::EVENT_GENERATION, &renew),
    ];
    if has_slots {
        told.push((&power::EVENT_PCI, &slots));
    }
    let told: Vec<[Box<dyn Aml + '_>; 2]> = told
        .into_iter()
        .map(|(bit, tell)| -> [Box<dyn Aml + '_>; 2] {
            [
                Box::new(And::new(&Local(1), &Local(0), bit)),
                Box::new(If::new(&Local(1), vec![tell])),
            ]
        })
        .collect();
    let mut handlers: Vec<&dyn Aml> = vec![&read];
    handlers.extend(told.iter().flatten().map(AsRef::as_ref));
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
                    layout::EVENT_GSI.into(),
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
            &Method::new("_EVT".into(), 1, true, handlers),
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
