//! Where a port or memory access of a vCPU goes.

use crate::ioapic::Ioapic;
use crate::layout;
use crate::legacy::power::{self, Power, PowerRequest};
use crate::legacy::rtc::{self, Rtc};
use crate::legacy::serial::SerialPort;
use crate::pci::hotplug::{self, Hotplug};
use crate::pci::root::{self, PciRoot};
use crate::virtio::mmio::MmioBus;
use std::sync::atomic::{AtomicU64, Ordering};

/// Exits that reached the VMM.
#[derive(Debug, Default)]
pub struct BusMetrics {
    /// Port accesses.
    pub port_exits: AtomicU64,
    /// Memory accesses.
    pub mmio_exits: AtomicU64,
    /// Accesses that no device answers.
    pub unclaimed: AtomicU64,
}

/// All devices by address.
pub struct Bus {
    /// Interrupt lines.
    pub ioapic: Ioapic,
    /// COM1.
    pub serial: SerialPort,
    /// The clock.
    pub rtc: Rtc,
    /// Sleep, reset, button.
    pub power: Power,
    /// Everything behind the root bridge.
    pub pci: PciRoot,
    /// Devices that are not.
    pub mmio: MmioBus,
    /// Its hot-plug registers.
    pub hotplug: Hotplug,
    /// Counters.
    pub metrics: BusMetrics,
}

const COM1_LAST: u16 = layout::COM1 + 7;
const RTC_DATA: u16 = rtc::INDEX_PORT + 1;
const ECAM_END: u64 = layout::ECAM + layout::ECAM_BYTES;
const IOAPIC: u64 = layout::IOAPIC as u64;
const IOAPIC_END: u64 = IOAPIC + layout::IOAPIC_BYTES;

impl Bus {
    /// `in`: unclaimed ports read as ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        count(&self.metrics.port_exits);
        data.fill(0xff);
        if (root::ADDRESS_PORT..=root::DATA_LAST).contains(&port) {
            return self.pci.port_read(port, data);
        }
        if (hotplug::FIRST_PORT..=hotplug::LAST_PORT).contains(&port) {
            return self.hotplug.read(port, data);
        }
        let Some(first) = data.first_mut() else {
            return;
        };
        match port {
            layout::COM1..=COM1_LAST => *first = self.serial.read(low(port - layout::COM1)),
            rtc::INDEX_PORT..=RTC_DATA => *first = self.rtc.read(port - rtc::INDEX_PORT),
            power::I8042_PORT | power::SLEEP_CONTROL_PORT..=power::EVENT_PORT => {
                *first = self.power.read(port);
            }
            _ => count(&self.metrics.unclaimed),
        }
    }

    /// `out`; what the guest asked of the machine, if it did.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        count(&self.metrics.port_exits);
        if (root::ADDRESS_PORT..=root::DATA_LAST).contains(&port) {
            self.pci.port_write(port, data);
            return None;
        }
        if (hotplug::FIRST_PORT..=hotplug::LAST_PORT).contains(&port) {
            for slot in self.hotplug.write(port, data) {
                self.pci.remove(slot);
            }
            return None;
        }
        let value = *data.first()?;
        match port {
            layout::COM1..=COM1_LAST => {
                // A string write (`rep outsb`) arrives as one exit with many bytes.
                for value in data {
                    self.serial.write(low(port - layout::COM1), *value);
                }
            }
            rtc::INDEX_PORT..=RTC_DATA => self.rtc.write(port - rtc::INDEX_PORT, value),
            power::I8042_PORT | power::SLEEP_CONTROL_PORT..=power::EVENT_PORT => {
                return self.power.write(port, value);
            }
            _ => count(&self.metrics.unclaimed),
        }
        None
    }

    /// A load from memory that is not RAM: unclaimed addresses read as ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        count(&self.metrics.mmio_exits);
        data.fill(0xff);
        let claimed = match address {
            layout::ECAM..ECAM_END => {
                self.pci.ecam_read(address - layout::ECAM, data);
                true
            }
            IOAPIC..IOAPIC_END => {
                self.ioapic.read(address - IOAPIC, data);
                true
            }
            _ => self.pci.bar_read(address, data) || self.mmio.read(address, data),
        };
        if !claimed {
            count(&self.metrics.unclaimed);
        }
    }

    /// A store to memory that is not RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        count(&self.metrics.mmio_exits);
        let claimed = match address {
            layout::ECAM..ECAM_END => {
                self.pci.ecam_write(address - layout::ECAM, data);
                true
            }
            IOAPIC..IOAPIC_END => {
                self.ioapic.write(address - IOAPIC, data);
                true
            }
            _ => self.pci.bar_write(address, data) || self.mmio.write(address, data),
        };
        if !claimed {
            count(&self.metrics.unclaimed);
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Register offsets are below eight.
fn low(offset: u16) -> u8 {
    u8::try_from(offset).unwrap_or(u8::MAX)
}
