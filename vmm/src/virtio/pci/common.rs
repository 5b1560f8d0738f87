//! Common configuration (virtio 1.3 §4.1.4.3): the registers through which a driver
//! negotiates features and sets queues up. Pure state; `function.rs` acts on it.

use super::super::{F_EVENT_IDX, F_VERSION_1, STATUS_NEEDS_RESET};
use crate::pci::msix::NO_VECTOR;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use virtio_queue::{Queue, QueueT};

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
/// Bits that a driver may set (§2.1).
const STATUS_DRIVER_BITS: u8 = 0x80 | 0xf;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC_LOW: u64 = 0x20;
const QUEUE_DESC_HIGH: u64 = 0x24;
const QUEUE_DRIVER_LOW: u64 = 0x28;
const QUEUE_DRIVER_HIGH: u64 = 0x2c;
const QUEUE_DEVICE_LOW: u64 = 0x30;
const QUEUE_DEVICE_HIGH: u64 = 0x34;

/// What a write asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing more.
    None,
    /// The register or width does not exist.
    Bad,
    /// The driver is ready: activate the device.
    Activate,
    /// The driver wrote 0 to the status.
    Reset,
}

/// One queue as the driver describes it.
pub(super) struct QueueSetup {
    /// Addresses, size, "enabled".
    pub queue: Queue,
    /// MSI-X vector.
    pub vector: u16,
}

/// The registers.
pub(super) struct CommonConfig {
    /// Shared with whoever may set NEEDS_RESET.
    pub status: Arc<AtomicU8>,
    /// MSI-X vector of configuration changes.
    pub config_vector: u16,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// The queues.
    pub queues: Vec<QueueSetup>,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    /// Counts changes of the device's configuration (§2.5.1).
    pub generation: u8,
}

/// [`CommonConfig`] in a snapshot.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct CommonState {
    status: u8,
    config_vector: u16,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    generation: u8,
    queues: Vec<SetupState>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct SetupState {
    size: u16,
    ready: bool,
    event_idx: bool,
    vector: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl CommonConfig {
    /// Registers after reset, for queues of at most these sizes and `vectors` MSI-X vectors.
    pub fn new(sizes: &[u16], vectors: u16) -> Result<Self, virtio_queue::Error> {
        let mut queues = Vec::new();
        for size in sizes {
            queues.push(QueueSetup {
                queue: Queue::new(*size)?,
                vector: NO_VECTOR,
            });
        }
        Ok(Self {
            status: Arc::new(AtomicU8::new(0)),
            config_vector: NO_VECTOR,
            driver_features: 0,
            queues,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            generation: 0,
        })
    }

    /// All registers as after power-on.
    pub fn reset(&mut self) {
        self.status.store(0, Ordering::SeqCst);
        self.config_vector = NO_VECTOR;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for setup in &mut self.queues {
            setup.queue.reset();
            setup.vector = NO_VECTOR;
        }
    }

    /// The registers, for a snapshot.
    pub fn save(&self) -> CommonState {
        let queues = self.queues.iter().map(|setup| {
            let queue = setup.queue.state();
            SetupState {
                size: queue.size,
                ready: queue.ready,
                event_idx: queue.event_idx_enabled,
                vector: setup.vector,
                desc_table: queue.desc_table,
                avail_ring: queue.avail_ring,
                used_ring: queue.used_ring,
            }
        });
        CommonState {
            status: self.status.load(Ordering::SeqCst),
            config_vector: self.config_vector,
            driver_features: self.driver_features,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            generation: self.generation,
            queues: queues.collect(),
        }
    }

    /// Takes over registers of a device with as many queues. `features` are those offered.
    pub fn load(&mut self, state: &CommonState, features: u64) -> Result<(), String> {
        if state.queues.len() != self.queues.len() {
            return Err(format!(
                "has {} queues, and this device {}",
                state.queues.len(),
                self.queues.len()
            ));
        }
        let missing = state.driver_features & !features;
        if state.status & STATUS_FEATURES_OK != 0 && missing != 0 {
            return Err(format!(
                "uses features {missing:#x} that this device does not offer"
            ));
        }
        for (setup, saved) in self.queues.iter_mut().zip(&state.queues) {
            let state = virtio_queue::QueueState {
                size: saved.size,
                ready: saved.ready,
                event_idx_enabled: saved.event_idx,
                desc_table: saved.desc_table,
                avail_ring: saved.avail_ring,
                used_ring: saved.used_ring,
                ..setup.queue.state()
            };
            setup.queue = Queue::try_from(state).map_err(|e| format!("has a bad queue: {e}"))?;
            setup.vector = bounded(saved.vector, self.vectors);
        }
        let known = STATUS_DRIVER_BITS | STATUS_NEEDS_RESET;
        self.status.store(state.status & known, Ordering::SeqCst);
        self.config_vector = bounded(state.config_vector, self.vectors);
        self.driver_features = state.driver_features;
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.queue_select = state.queue_select;
        self.generation = state.generation;
        Ok(())
    }

    /// A driver's read. `features` are those offered.
    pub fn read(&self, offset: u64, data: &mut [u8], features: u64) {
        let selected = self.queues.get(usize::from(self.queue_select));
        let word = |value: u64| half(value, 0);
        let address =
            |at: fn(&Queue) -> u64, high| selected.map_or(0, |setup| half(at(&setup.queue), high));
        let value: u32 = match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => self.device_feature_select,
            (DEVICE_FEATURE, 4) => half(features, self.device_feature_select),
            (DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select,
            (DRIVER_FEATURE, 4) => half(self.driver_features, self.driver_feature_select),
            (CONFIG_VECTOR, 2) => self.config_vector.into(),
            (NUM_QUEUES, 2) => word(self.queues.len() as u64),
            (DEVICE_STATUS, 1) => self.status.load(Ordering::SeqCst).into(),
            (CONFIG_GENERATION, 1) => self.generation.into(),
            (QUEUE_SELECT, 2) => self.queue_select.into(),
            (QUEUE_SIZE, 2) => selected.map_or(0, |s| s.queue.size().into()),
            (QUEUE_VECTOR, 2) => selected.map_or(NO_VECTOR, |s| s.vector).into(),
            (QUEUE_ENABLE, 2) => selected.map_or(0, |s| s.queue.ready().into()),
            (QUEUE_NOTIFY_OFF, 2) => selected.map_or(0, |_| self.queue_select.into()),
            (QUEUE_DESC_LOW, 4) => address(Queue::desc_table, 0),
            (QUEUE_DESC_HIGH, 4) => address(Queue::desc_table, 1),
            (QUEUE_DRIVER_LOW, 4) => address(Queue::avail_ring, 0),
            (QUEUE_DRIVER_HIGH, 4) => address(Queue::avail_ring, 1),
            (QUEUE_DEVICE_LOW, 4) => address(Queue::used_ring, 0),
            (QUEUE_DEVICE_HIGH, 4) => address(Queue::used_ring, 1),
            (_, 8) if offset.is_multiple_of(4) => {
                let (low, high) = data.split_at_mut(4);
                self.read(offset, low, features);
                self.read(offset + 4, high, features);
                return;
            }
            _ => 0,
        };
        for (slot, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *slot = byte;
        }
    }

    /// A driver's write. `features` are those offered.
    pub fn write(&mut self, offset: u64, data: &[u8], features: u64) -> Action {
        match *data {
            [value] if offset == DEVICE_STATUS => return self.write_status(value, features),
            [low, high] => return self.write_half(offset, u16::from_le_bytes([low, high])),
            [a, b, c, d] => return self.write_word(offset, u32::from_le_bytes([a, b, c, d])),
            [_, _, _, _, _, _, _, _] => {
                let first = self.write(offset, &data[..4], features);
                let second = self.write(offset + 4, &data[4..], features);
                if first == Action::None {
                    return second;
                }
            }
            _ => {}
        }
        Action::Bad
    }

    fn write_status(&mut self, value: u8, features: u64) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let old = self.status.load(Ordering::SeqCst);
        let mut new = value & STATUS_DRIVER_BITS | old & STATUS_NEEDS_RESET;
        if new & STATUS_FEATURES_OK != 0 && old & STATUS_FEATURES_OK == 0 {
            let acceptable =
                self.driver_features & !features == 0 && self.driver_features & F_VERSION_1 != 0;
            if !acceptable {
                new &= !STATUS_FEATURES_OK;
            }
        }
        self.status.store(new, Ordering::SeqCst);
        let ready = STATUS_DRIVER_OK | STATUS_FEATURES_OK;
        if new & ready == ready && old & STATUS_DRIVER_OK == 0 {
            let event_idx = self.driver_features & F_EVENT_IDX != 0;
            for setup in &mut self.queues {
                setup.queue.set_event_idx(event_idx);
            }
            return Action::Activate;
        }
        Action::None
    }

    fn write_half(&mut self, offset: u64, value: u16) -> Action {
        let vector = bounded(value, self.vectors);
        match offset {
            CONFIG_VECTOR => self.config_vector = vector,
            QUEUE_SELECT => self.queue_select = value,
            _ => {
                let Some(setup) = self.selected() else {
                    return Action::Bad;
                };
                match offset {
                    QUEUE_VECTOR => setup.vector = vector,
                    QUEUE_SIZE if setup.queue.try_set_size(value).is_ok() => {}
                    QUEUE_ENABLE if value == 1 => setup.queue.set_ready(true),
                    _ => return Action::Bad,
                }
            }
        }
        Action::None
    }

    fn write_word(&mut self, offset: u64, value: u32) -> Action {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => return self.write_features(value),
            _ => {
                let Some(setup) = self.selected() else {
                    return Action::Bad;
                };
                let queue = &mut setup.queue;
                match offset {
                    QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
                    QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                    QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
                    QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
                    QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
                    QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
                    _ => return Action::Bad,
                }
            }
        }
        Action::None
    }

    fn write_features(&mut self, value: u32) -> Action {
        if self.status.load(Ordering::SeqCst) & STATUS_FEATURES_OK != 0 {
            return Action::Bad;
        }
        let value = u64::from(value);
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            // Features beyond 64 do not exist; accepting none of them is right.
            _ if value == 0 => {}
            _ => return Action::Bad,
        }
        Action::None
    }

    /// The selected queue, while it may still be changed.
    fn selected(&mut self) -> Option<&mut QueueSetup> {
        if self.status.load(Ordering::SeqCst) & STATUS_DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select))
    }
}

/// A vector of the table, or none.
fn bounded(vector: u16, vectors: u16) -> u16 {
    if vector < vectors { vector } else { NO_VECTOR }
}

/// The low or high half of `value`; beyond that there is nothing.
fn half(value: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(shifted).unwrap_or(0)
}

#[cfg(test)]
mod tests;
