//! Virtio devices: PCI functions, the transport that the crate `virtio-drivers` runs
//! on, and the block driver. The network driver is the crate's.

pub mod disk;
pub mod pci;
pub mod transport;
