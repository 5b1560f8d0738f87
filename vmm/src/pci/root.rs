//! The root bus: finds the function behind a configuration or BAR access.

use super::config::{CONFIG_BYTES, ConfigSpace, Identity};
use crate::layout;
use crate::lifecycle::Lifecycle;
use crate::persist::State;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Configuration mechanism 1 (PCI local bus 3.0 §3.2.2.3.2): address …
pub const ADDRESS_PORT: u16 = 0xcf8;
/// … and the last byte of data.
pub const DATA_LAST: u16 = 0xcff;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// BARs are handed out in steps of this.
const BAR_STEP: u64 = 0x8000;
/// Device numbers of a bus.
const SLOTS: u8 = 32;

/// One device's only function.
pub trait Function: Lifecycle {
    /// Reads configuration space.
    fn config_read(&self, offset: usize, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: usize, data: &[u8]);
    /// Where its BAR answers now.
    fn bar(&self) -> Option<u64>;
    /// Size of its BAR.
    fn bar_bytes(&self) -> u64;
    /// Reads inside its BAR.
    fn bar_read(&self, offset: u64, data: &mut [u8]);
    /// Writes inside its BAR.
    fn bar_write(&self, offset: u64, data: &[u8]);
}

/// A device number on the bus, 1 to 31: 0 is the host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8);

impl Slot {
    /// All that a device can take.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..SLOTS).map(Self)
    }

    /// The device number.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its bit in the registers of [`super::hotplug`].
    pub fn bit(self) -> u32 {
        1 << self.0
    }

    /// Where the BAR of a device that is there from the start begins.
    pub fn initial_bar(self) -> u64 {
        layout::PCI_WINDOW + u64::from(self.0 - 1) * BAR_STEP
    }
}

type Functions = [Option<Arc<dyn Function>>; SLOTS as usize];

/// The bus. Device 0 is the host bridge, alone where virtio is over MMIO.
pub struct PciRoot {
    functions: RwLock<Functions>,
    address: AtomicU32,
}

impl Default for PciRoot {
    fn default() -> Self {
        let bridge: Arc<dyn Function> = Arc::new(HostBridge::new());
        let mut functions = Functions::default();
        functions[0] = Some(bridge);
        Self {
            functions: RwLock::new(functions),
            address: AtomicU32::new(0),
        }
    }
}

impl PciRoot {
    /// Puts `function` into `slot`, for the guest to find.
    pub fn insert(&self, slot: Slot, function: Arc<dyn Function>) {
        if let Some(place) = self.write().get_mut(usize::from(slot.0)) {
            *place = Some(function);
        }
    }

    /// Takes out what is in `slot`: the guest reads ones there from now on.
    pub fn remove(&self, slot: Slot) {
        if let Some(place) = self.write().get_mut(usize::from(slot.0)) {
            *place = None;
        }
    }

    /// The functions behind the bridge with their device numbers.
    pub fn functions(&self) -> Vec<(usize, Arc<dyn Function>)> {
        self.read()
            .iter()
            .enumerate()
            .skip(1)
            .filter_map(|(slot, function)| Some((slot, Arc::clone(function.as_ref()?))))
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Functions> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Functions> {
        self.functions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads through the ECAM window.
    pub fn ecam_read(&self, at: u64, data: &mut [u8]) {
        match self.by_ecam(at) {
            Some((function, offset)) => function.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes through the ECAM window.
    pub fn ecam_write(&self, at: u64, data: &[u8]) {
        if let Some((function, offset)) = self.by_ecam(at) {
            function.config_write(offset, data);
        }
    }

    /// Reads the ports of mechanism 1.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        if port >= DATA_PORT {
            match self.by_address(port) {
                Some((function, offset)) => function.config_read(offset, data),
                None => data.fill(0xff),
            }
        } else if port == ADDRESS_PORT && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        }
    }

    /// Writes the ports of mechanism 1.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if port >= DATA_PORT {
            if let Some((function, offset)) = self.by_address(port) {
                function.config_write(offset, data);
            }
        } else if port == ADDRESS_PORT
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.address
                .store(u32::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    /// Reads from the BAR at `address`; false where there is none.
    pub fn bar_read(&self, address: u64, data: &mut [u8]) -> bool {
        self.by_bar(address)
            .map(|(function, offset)| function.bar_read(offset, data))
            .is_some()
    }

    /// Writes to the BAR at `address`; false where there is none.
    pub fn bar_write(&self, address: u64, data: &[u8]) -> bool {
        self.by_bar(address)
            .map(|(function, offset)| function.bar_write(offset, data))
            .is_some()
    }

    fn by_ecam(&self, at: u64) -> Option<(Arc<dyn Function>, usize)> {
        let device = at >> 15 & 0x1f;
        let function = at >> 12 & 0x7;
        let register = at & 0xfff;
        // No function has extended space. Where it reads as ones, Linux looks once, else for
        // each capability that could be there.
        if register >= CONFIG_BYTES as u64 {
            return None;
        }
        self.find(device, function, register)
    }

    fn by_address(&self, port: u16) -> Option<(Arc<dyn Function>, usize)> {
        let address = self.address.load(Ordering::Relaxed);
        if address & ENABLE == 0 || address >> 16 & 0xff != 0 {
            return None;
        }
        let register = u64::from(address & 0xfc) + u64::from(port - DATA_PORT);
        self.find(
            u64::from(address >> 11 & 0x1f),
            u64::from(address >> 8 & 0x7),
            register,
        )
    }

    fn find(&self, device: u64, function: u64, offset: u64) -> Option<(Arc<dyn Function>, usize)> {
        if function != 0 {
            return None;
        }
        let device = usize::try_from(device).ok()?;
        let function = self.read().get(device)?.clone()?;
        Some((function, usize::try_from(offset).ok()?))
    }

    fn by_bar(&self, address: u64) -> Option<(Arc<dyn Function>, u64)> {
        self.read().iter().flatten().find_map(|function| {
            let offset = address.checked_sub(function.bar()?)?;
            (offset < function.bar_bytes()).then(|| (Arc::clone(function), offset))
        })
    }
}

/// The address register of mechanism 1; functions have sections of their own.
const STATE_VERSION: u16 = 1;

impl Lifecycle for PciRoot {
    fn save(&self) -> Result<State, String> {
        State::encode(STATE_VERSION, &self.address.load(Ordering::Relaxed))
    }

    fn load(&self, state: &State) -> Result<(), String> {
        self.address
            .store(state.decode(STATE_VERSION)?, Ordering::Relaxed);
        Ok(())
    }
}

/// A host bridge that does nothing but exist.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Red Hat's generic host bridge, as QEMU's microvm and others present it.
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        }))
    }
}

impl Lifecycle for HostBridge {
    fn save(&self) -> Result<State, String> {
        State::encode(STATE_VERSION, &())
    }
    fn load(&self, state: &State) -> Result<(), String> {
        state.decode(STATE_VERSION)
    }
}

impl Function for HostBridge {
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn config_write(&self, _offset: usize, _data: &[u8]) {}
    fn bar(&self) -> Option<u64> {
        None
    }
    fn bar_bytes(&self) -> u64 {
        0
    }
    fn bar_read(&self, _offset: u64, _data: &mut [u8]) {}
    fn bar_write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_register_round_trips() {
        let root = PciRoot::default();
        root.port_write(ADDRESS_PORT, &(ENABLE | 0x44).to_le_bytes());
        crate::lifecycle::assert_round_trip(&root, &PciRoot::default());
    }

    #[test]
    fn both_mechanisms_find_the_bridge_and_nothing_else() {
        let root = PciRoot::default();
        let mut word = [0; 4];
        root.ecam_read(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0x0008_1b36);
        root.ecam_read(1 << 15, &mut word);
        assert_eq!(word, [0xff; 4], "device 1 is absent");
        root.ecam_read(1 << 12, &mut word);
        assert_eq!(word, [0xff; 4], "function 1 is absent");
        root.ecam_read(0x100, &mut word);
        assert_eq!(word, [0xff; 4], "extended space is absent");

        root.port_write(ADDRESS_PORT, &ENABLE.to_le_bytes());
        root.port_read(DATA_PORT, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0x0008_1b36);
        let mut half = [0; 2];
        root.port_read(DATA_PORT + 2, &mut half);
        assert_eq!(u16::from_le_bytes(half), 0x0008);
        root.port_write(ADDRESS_PORT, &(ENABLE | 1 << 16).to_le_bytes());
        root.port_read(DATA_PORT, &mut word);
        assert_eq!(word, [0xff; 4], "bus 1 is absent");
    }
}
