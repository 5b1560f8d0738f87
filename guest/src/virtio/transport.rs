//! `virtio_drivers::Transport` over PCI (virtio 1.3 §4.1).
//!
//! Not the crate's own, since that never programs MSI-X vectors and reads the doorbell's
//! place by two register accesses, each an exit, before every kick. Here a kick is one
//! store, which an ioeventfd takes.

use super::pci::Function;
use crate::hal::Mmio;
use core::mem::size_of;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// Registers of `virtio_pci_common_cfg` (§4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    pub const LEN: usize = 0x38;
}

const MAX_QUEUES: usize = 2;
const RING_INDIRECT_DESC: u64 = 1 << 28;
const RING_EVENT_IDX: u64 = 1 << 29;
const NO_VECTOR: u16 = 0xffff;

/// Why a function cannot be driven.
#[derive(Clone, Copy, Debug)]
pub enum TransportError {
    /// The structure of this `cfg_type` is missing, too small or in no usable BAR.
    Structure(u8),
    /// No MSI-X capability, or its table is in no usable BAR.
    NoMsix,
}

impl core::fmt::Display for TransportError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Structure(kind) => write!(f, "no usable virtio structure {kind}"),
            Self::NoMsix => f.write_str("no usable MSI-X"),
        }
    }
}

/// One virtio function. Queue 0 and the configuration interrupt by MSI-X message 0, other
/// queues do not.
pub struct PciTransport {
    kind: u16,
    common: Mmio,
    notify: Mmio,
    notify_multiplier: u32,
    isr: Mmio,
    config: Option<Mmio>,
    doorbells: [Option<Mmio>; MAX_QUEUES],
    /// Accepted, if offered, on top of what the driver asks for.
    extra_features: u64,
    offered: u64,
}

impl PciTransport {
    /// Finds the structures and routes message 0 to `vector`.
    pub fn new(
        function: &Function,
        vector: u8,
        extra_features: u64,
    ) -> Result<Self, TransportError> {
        let structure = |kind, len| {
            function
                .virtio(kind)
                .filter(|cap| cap.window.len() >= len)
                .ok_or(TransportError::Structure(kind))
        };
        let notify = structure(NOTIFY, 2)?;
        let mut transport = Self {
            kind: function.kind,
            common: structure(COMMON, common::LEN)?.window,
            notify: notify.window,
            notify_multiplier: notify.extra,
            isr: structure(ISR, 1)?.window,
            config: function.virtio(DEVICE).map(|cap| cap.window),
            doorbells: [None; MAX_QUEUES],
            extra_features,
            offered: 0,
        };
        if !function.enable_msix(vector) {
            return Err(TransportError::NoMsix);
        }
        transport.offered = transport.read_device_features();
        Ok(transport)
    }

    /// Whether the device offers a feature that is among the accepted ones.
    pub fn has(&self, feature: u64) -> bool {
        self.offered & feature != 0
    }
}

impl Transport for PciTransport {
    fn device_type(&self) -> DeviceType {
        if self.kind == 1 {
            DeviceType::Network
        } else {
            DeviceType::Block
        }
    }

    /// Without the features that the probe's simple queues do not want: suppression by
    /// flags is enough, and buffers are contiguous.
    fn read_device_features(&mut self) -> u64 {
        let half = |select| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(common::DEVICE_FEATURE))
        };
        (half(0) | half(1) << 32) & !(RING_INDIRECT_DESC | RING_EVENT_IDX)
    }

    fn write_driver_features(&mut self, features: u64) {
        let features = features | (self.offered & self.extra_features);
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.common.write32(common::DRIVER_FEATURE_SELECT, select);
            self.common.write32(common::DRIVER_FEATURE, half as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.read16(common::QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        if let Some(Some(doorbell)) = self.doorbells.get(usize::from(queue)) {
            doorbell.write16(0, queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.common.read8(common::DEVICE_STATUS).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.common
            .write8(common::DEVICE_STATUS, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let common = self.common;
        // A reset forgets it, so it goes with the queues.
        common.write16(common::CONFIG_MSIX_VECTOR, 0);
        common.write16(common::QUEUE_SELECT, queue);
        common.write16(common::QUEUE_SIZE, size as u16);
        common.write16(
            common::QUEUE_MSIX_VECTOR,
            if queue == 0 { 0 } else { NO_VECTOR },
        );
        let places = [
            (common::QUEUE_DESC, descriptors),
            (common::QUEUE_DRIVER, driver_area),
            (common::QUEUE_DEVICE, device_area),
        ];
        for (register, address) in places {
            common.write32(register, address as u32);
            common.write32(register + 4, (address >> 32) as u32);
        }
        let offset =
            usize::from(common.read16(common::QUEUE_NOTIFY_OFF)) * self.notify_multiplier as usize;
        if let Some(doorbell) = self.doorbells.get_mut(usize::from(queue)) {
            *doorbell = self.notify.part(offset, 2);
        }
        common.write16(common::QUEUE_ENABLE, 1);
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.read16(common::QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.isr.read8(0).into())
    }

    fn read_config_generation(&self) -> u32 {
        self.common.read8(common::CONFIG_GENERATION).into()
    }

    /// Accesses are as wide as the field (§4.1.3.1), 64-bit ones in halves.
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let config = self.config.ok_or(Error::ConfigSpaceMissing)?;
        let window = config
            .part(offset, size_of::<T>())
            .ok_or(Error::ConfigSpaceTooSmall)?;
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        match bytes.len() {
            2 => bytes.copy_from_slice(&window.read16(0).to_le_bytes()),
            4 | 8 => {
                for (index, word) in bytes.chunks_mut(4).enumerate() {
                    word.copy_from_slice(&window.read32(4 * index).to_le_bytes());
                }
            }
            _ => {
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = window.read8(index);
                }
            }
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let config = self.config.ok_or(Error::ConfigSpaceMissing)?;
        let window = config
            .part(offset, size_of::<T>())
            .ok_or(Error::ConfigSpaceTooSmall)?;
        for (index, byte) in value.as_bytes().iter().enumerate() {
            window.write8(index, *byte);
        }
        Ok(())
    }
}
