//! Configuration space, by both of the ways to it, and BARs wherever the guest puts them.
//!
//! Held to a naive reference: bytes and the bits of them that may change.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_vmm::lifecycle::Lifecycle;
use ocs_vmm::pci::config::{CONFIG_BYTES, ConfigSpace, Identity};
use ocs_vmm::pci::root::{Function, PciRoot, Slot};
use ocs_vmm::persist::State;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

const BAR_BYTES: u64 = 0x8000;

/// The bits that no write changes, and what they are: found by asking a function that nobody uses.
static FIXED: LazyLock<[Vec<u64>; 2]> = LazyLock::new(probe);

/// Kind, slot, place, bytes.
type Access = (u8, u8, u32, Vec<u8>);

/// A function with a BAR and two capabilities; the last access to its BAR.
struct Device {
    config: Mutex<ConfigSpace>,
    last: Mutex<Option<u64>>,
}

impl Device {
    fn new(slot: Slot) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1040 + u16::from(slot.number()),
            revision: 1,
            class: [2, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        });
        config.set_bar(Some(slot.initial_bar()), BAR_BYTES);
        config.add_capability(9, &[1; 14], &[]);
        config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        Self {
            config: Mutex::new(config),
            last: Mutex::default(),
        }
    }

    fn config(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle for Device {
    fn save(&self) -> Result<State, String> {
        Err("is not saved".to_owned())
    }

    fn load(&self, _state: &State) -> Result<(), String> {
        Err("is not loaded".to_owned())
    }
}

impl Function for Device {
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        self.config().write(offset, data);
    }

    fn bar(&self) -> Option<u64> {
        self.config().bar()
    }

    fn bar_bytes(&self) -> u64 {
        BAR_BYTES
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        *self.last.lock().unwrap() = Some(offset);
        data.fill(0x5a);
    }

    fn bar_write(&self, offset: u64, _data: &[u8]) {
        *self.last.lock().unwrap() = Some(offset);
    }
}

fuzz_target!(|accesses: Vec<Access>| {
    let root = PciRoot::default();
    let devices: Vec<(Slot, Arc<Device>)> = Slot::all()
        .take(3)
        .map(|slot| (slot, Arc::new(Device::new(slot))))
        .collect();
    for (slot, device) in &devices {
        root.insert(*slot, Arc::clone(device) as Arc<dyn Function>);
    }
    for (kind, slot, place, data) in accesses.iter().take(64) {
        let (slot, device) = &devices[usize::from(*slot) % devices.len()];
        let data = &data[..data.len().min(8)];
        let offset = u64::from(*place) & 0xfff;
        let ecam = u64::from(slot.number()) << 15 | offset;
        let mut read = vec![0; data.len()];
        match kind % 6 {
            0 => root.ecam_write(ecam, data),
            1 => root.ecam_write(u64::from(*place), data),
            2 => {
                let port = 0xcf8 + (*place & 7) as u16;
                root.port_write(port, data);
                root.port_read(port, &mut read);
            }
            3 => {
                // Both ways show the same.
                let register = *place & 0xfc;
                let address = 1 << 31 | u32::from(slot.number()) << 11 | register;
                root.port_write(0xcf8, &address.to_le_bytes());
                let (mut one, mut other) = ([0; 4], [0; 4]);
                root.port_read(0xcfc, &mut one);
                root.ecam_read(
                    u64::from(slot.number()) << 15 | u64::from(register),
                    &mut other,
                );
                assert_eq!(one, other);
            }
            4 => {
                let bar = device.bar();
                let at = bar.unwrap_or(0).wrapping_add(u64::from(*place) & 0xffff);
                let answered = root.bar_read(at, &mut read);
                let inside = |device: &Device| {
                    let offset = device.bar().and_then(|bar| at.checked_sub(bar));
                    offset.is_some_and(|offset| offset < BAR_BYTES)
                };
                assert_eq!(answered, devices.iter().any(|(_, device)| inside(device)));
            }
            _ => {
                root.bar_write(u64::from(*place) << 4, data);
            }
        }
        for (_, device) in &devices {
            if let Some(last) = device.last.lock().unwrap().take() {
                assert!(last < BAR_BYTES, "{last:#x}");
            }
            assert_eq!(device.bar().unwrap_or(0) % BAR_BYTES, 0);
        }
    }
    // Once is enough: what no write changes, no later write has mended.
    let [fixed, values] = &*FIXED;
    for (slot, device) in &devices {
        let now = words(device);
        // The device id tells functions apart.
        let own = u64::from(slot.number() - 1) << 16;
        for (at, (now, (fixed, value))) in now.iter().zip(fixed.iter().zip(values)).enumerate() {
            let value = if at == 0 { value + own } else { *value };
            assert_eq!((now ^ value) & fixed, 0, "word {at:#x}");
        }
    }
});

/// All of its configuration, 8 bytes at a time: a comparison costs much under the fuzzer.
fn words(device: &Device) -> Vec<u64> {
    let mut bytes = [0; CONFIG_BYTES];
    device.config_read(0, &mut bytes);
    let words = bytes.as_chunks::<8>().0.iter();
    words.map(|word| u64::from_le_bytes(*word)).collect()
}

fn probe() -> [Vec<u64>; 2] {
    let slot = Slot::all().next().expect("a slot");
    let device = Device::new(slot);
    device.config_write(0, &[0xff; CONFIG_BYTES]);
    let ones = words(&device);
    device.config_write(0, &[0; CONFIG_BYTES]);
    let zeros = words(&device);
    let fixed = ones.iter().zip(&zeros).map(|(one, zero)| !(one ^ zero));
    [fixed.collect(), zeros]
}
