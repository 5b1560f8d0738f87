//! The memory-mapped transport (virtio 1.3 §4.2), for guests without PCI: a translation of its
//! registers into those of [`VirtioPci`], which keeps all state.
//!
//! ```text
//!  guest ─ register ─▶ VirtioMmio ─ common or device configuration ─▶ VirtioPci
//!  guest ─ QueueNotify = q (ioeventfd, matched by value) ─▶ the kick of queue q
//!  every vector's eventfd ──▶ the device's one pin of the IOAPIC (edge)
//! ```
//! A backend in another process raises the pin without a word to this one, so nobody could
//! keep a bit of `InterruptStatus` for queues: it always says that there may be used
//! buffers. A guest finds the devices by ACPI (`LNRO0005`). There is no hot-plug, and no PCI.

use super::pci::{COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STEP, VirtioPci};
use crate::error::{Error, Result};
use crate::ioapic::Ioapic;
use crate::layout;
use crate::pci::root::{Function, Slot};
use std::sync::{Arc, PoisonError, RwLock};

/// Room for one device.
pub const WINDOW: u64 = 0x1000;
/// Devices at most, each with a pin of the IOAPIC.
const PINS: u8 = 8;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"OCSV");

const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const CONFIG: u64 = 0x100;
/// In `InterruptStatus` and `InterruptACK`.
const CONFIG_CHANGED: u32 = 2;

/// The same registers here and in PCI's common configuration (§4.1.4.3): here, there, width.
const REGISTERS: &[(u64, u64, usize)] = &[
    (0x10, 0x04, 4),
    (0x14, 0x00, 4),
    (0x20, 0x0c, 4),
    (0x24, 0x08, 4),
    (0x30, QUEUE_SELECT, 2),
    (0x34, 0x18, 2),
    (0x38, 0x18, 2),
    (QUEUE_READY, 0x1c, 2),
    (0x70, 0x14, 1),
    (0x80, 0x20, 4),
    (0x84, 0x24, 4),
    (0x90, 0x28, 4),
    (0x94, 0x2c, 4),
    (0xa0, 0x30, 4),
    (0xa4, 0x34, 4),
    (0xfc, 0x15, 1),
];
/// In common configuration.
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_VECTOR: u64 = 0x1a;

/// Where the device of `slot` answers, and its pin, if there is one for it.
pub fn place(slot: Slot) -> Option<(u64, u8)> {
    let index = slot.number() - 1;
    let at = layout::VIRTIO_MMIO + u64::from(index) * WINDOW;
    (index < PINS).then_some((at, layout::FIRST_DEVICE_PIN + index))
}

/// One device.
pub struct VirtioMmio {
    at: u64,
    function: Arc<VirtioPci>,
}

impl VirtioMmio {
    /// Puts the device of `slot`, which is not on the PCI bus, in its place.
    pub fn new(function: Arc<VirtioPci>, slot: Slot, ioapic: &Ioapic) -> Result<Self> {
        let (at, pin) = place(slot).ok_or_else(|| Error::Device {
            device: function.id().to_owned(),
            problem: format!("transport mmio has places for {PINS} devices"),
        })?;
        function.leave_pci(at + QUEUE_NOTIFY);
        for event in function.vector_events()? {
            ioapic.connect(pin, event);
        }
        Ok(Self { at, function })
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            return self.function.bar_read(DEVICE + (offset - CONFIG), data);
        }
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let value = match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.function.kind().into(),
            0x0c => VENDOR,
            INTERRUPT_STATUS => 1 | self.from(ISR, 1),
            // There is no shared memory: all ones (§4.2.2).
            0xb0..=0xbc => u32::MAX,
            _ => match register(offset) {
                Some((there, width)) => self.from(COMMON + there, width),
                None => 0,
            },
        };
        *word = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            INTERRUPT_ACK => {
                if value & CONFIG_CHANGED != 0 {
                    self.function.acknowledge_config();
                }
            }
            // Those that KVM did not catch.
            QUEUE_NOTIFY => {
                let at = NOTIFY + u64::from(value) * u64::from(NOTIFY_STEP);
                if u64::from(value) < WINDOW / u64::from(NOTIFY_STEP) {
                    self.function.bar_write(at, &word);
                }
            }
            // A queue ends with the device's reset.
            QUEUE_READY if value == 0 => {}
            _ => {
                let Some((there, width)) = register(offset) else {
                    return;
                };
                if offset == QUEUE_READY {
                    self.give_vector();
                }
                self.function
                    .bar_write(COMMON + there, word.get(..width).unwrap_or(&word));
            }
        }
    }

    /// A register of `width` bytes.
    fn from(&self, at: u64, width: usize) -> u32 {
        let mut word = [0; 4];
        if let Some(bytes) = word.get_mut(..width) {
            self.function.bar_read(at, bytes);
        }
        u32::from_le_bytes(word)
    }

    /// Lets the selected queue interrupt: each has a vector of its own.
    fn give_vector(&self) {
        let vector = self.from(COMMON + QUEUE_SELECT, 2).wrapping_add(1);
        let [low, high, ..] = vector.to_le_bytes();
        self.function.bar_write(COMMON + QUEUE_VECTOR, &[low, high]);
    }
}

fn register(offset: u64) -> Option<(u64, usize)> {
    REGISTERS
        .iter()
        .find(|(here, ..)| *here == offset)
        .map(|(_, there, width)| (*there, *width))
}

/// The devices by address.
#[derive(Default)]
pub struct MmioBus(RwLock<Vec<Arc<VirtioMmio>>>);

impl MmioBus {
    /// Adds one.
    pub fn insert(&self, device: VirtioMmio) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::new(device));
    }

    /// The devices by number, for snapshots.
    pub fn functions(&self) -> Vec<(usize, Arc<dyn Function>)> {
        let devices = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let functions = devices.iter().map(|device| {
            let function: Arc<dyn Function> = Arc::<VirtioPci>::clone(&device.function);
            function
        });
        (1..).zip(functions).collect()
    }

    /// Reads a register; false where there is no device.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.find(address)
            .map(|(device, offset)| device.read(offset, data))
            .is_some()
    }

    /// Writes a register; false where there is no device.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.find(address)
            .map(|(device, offset)| device.write(offset, data))
            .is_some()
    }

    fn find(&self, address: u64) -> Option<(Arc<VirtioMmio>, u64)> {
        let devices = self.0.read().unwrap_or_else(PoisonError::into_inner);
        devices.iter().find_map(|device| {
            let offset = address.checked_sub(device.at)?;
            (offset < WINDOW).then(|| (Arc::clone(device), offset))
        })
    }
}

#[cfg(test)]
mod tests;
