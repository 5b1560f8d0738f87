//! What configuration space says of a virtio function (virtio 1.3 §4.1.2–4.1.4).

use super::{BAR_BYTES, COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_STEP, PAGE};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
/// Modern-only devices have revision 1 or more.
const REVISION: u8 = 1;
const VENDOR_SPECIFIC: u8 = 0x09;

const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Offsets of the capabilities that a guest's write has an effect on.
pub(super) struct Capabilities {
    /// MSI-X: message control is at +2.
    pub msix: usize,
    /// `virtio_pci_cfg_cap`: BAR at +4, offset at +8, length at +12, data at +16.
    pub window: usize,
}

/// Lays out the configuration space of a device of type `kind`, its BAR at `base` or to be
/// placed by the guest.
pub(super) fn build(kind: u16, base: Option<u64>, vectors: u16) -> (ConfigSpace, Capabilities) {
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind,
        revision: REVISION,
        class: class(kind),
        subsystem_vendor: VENDOR,
        // Transitional drivers look at this; ours is above their range (§4.1.2.1).
        subsystem: DEVICE_BASE,
    });
    config.set_bar(base, BAR_BYTES);

    let mut table = Vec::new();
    table.extend_from_slice(&(vectors - 1).to_le_bytes());
    table.extend_from_slice(&low32(MSIX_TABLE).to_le_bytes());
    table.extend_from_slice(&low32(MSIX_PENDING).to_le_bytes());
    // Of message control the guest writes "enable" and "function mask".
    let msix = config.add_capability(msix::CAPABILITY, &table, &[0, 0xc0]);

    structure(&mut config, CFG_COMMON, COMMON, PAGE, None);
    structure(&mut config, CFG_NOTIFY, NOTIFY, PAGE, Some(NOTIFY_STEP));
    structure(&mut config, CFG_ISR, ISR, PAGE, None);
    structure(&mut config, CFG_DEVICE, DEVICE, PAGE, None);
    let window = window(&mut config);
    (config, Capabilities { msix, window })
}

/// `struct virtio_pci_cap`, and `notify_off_multiplier` behind it where given.
fn structure(config: &mut ConfigSpace, kind: u8, offset: u64, bytes: u64, extra: Option<u32>) {
    let len: u8 = if extra.is_some() { 20 } else { 16 };
    let mut body = vec![len, kind, 0, 0, 0, 0];
    body.extend_from_slice(&low32(offset).to_le_bytes());
    body.extend_from_slice(&low32(bytes).to_le_bytes());
    if let Some(extra) = extra {
        body.extend_from_slice(&extra.to_le_bytes());
    }
    config.add_capability(VENDOR_SPECIFIC, &body, &[]);
}

/// `struct virtio_pci_cfg_cap` (§4.1.4.9): a window into the BAR.
fn window(config: &mut ConfigSpace) -> usize {
    let mut body = [0u8; 18];
    body[0] = 20;
    body[1] = CFG_PCI;
    let mut writable = [0u8; 18];
    writable[2] = 0xff;
    writable[6..18].fill(0xff);
    config.add_capability(VENDOR_SPECIFIC, &body, &writable)
}

/// Base class, subclass, interface: network, mass storage, or other.
fn class(kind: u16) -> [u8; 3] {
    match kind {
        1 => [0x02, 0x00, 0x00],
        2 => [0x01, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    }
}

/// Offsets inside the BAR are small.
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
