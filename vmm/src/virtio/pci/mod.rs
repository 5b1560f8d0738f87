//! The PCI transport (virtio 1.3 §4.1), modern only, one BAR:
//!
//! ```text
//! 0x0000 common configuration (common.rs)   0x3000 notify: queue q at +4q, ioeventfd
//! 0x1000 ISR status                         0x4000 MSI-X table
//! 0x2000 device configuration               0x5000 MSI-X pending bits
//! ```
//! Each structure has a page of its own, so a guest can map one (the probe maps the
//! notify page to ring 3) without the others. There is no INTx: a driver uses MSI-X
//! or polls.

mod caps;
mod common;
mod function;

pub use function::VirtioPci;

/// Common configuration.
pub(in crate::virtio) const COMMON: u64 = 0x0000;
/// ISR status.
pub(in crate::virtio) const ISR: u64 = 0x1000;
/// The device's own configuration.
pub(in crate::virtio) const DEVICE: u64 = 0x2000;
/// Notifications.
pub(in crate::virtio) const NOTIFY: u64 = 0x3000;
/// The MSI-X table.
const MSIX_TABLE: u64 = 0x4000;
/// MSI-X pending bits.
const MSIX_PENDING: u64 = 0x5000;
/// Size of the BAR.
const BAR_BYTES: u64 = 0x8000;
/// Room for each structure.
const PAGE: u64 = 0x1000;
/// `notify_off_multiplier`.
pub(in crate::virtio) const NOTIFY_STEP: u32 = 4;
