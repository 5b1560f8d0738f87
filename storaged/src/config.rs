//! What the device offers: feature bits and configuration space (virtio 1.3 §5.2).

use crate::disk::Disk;
use crate::request::MAX_ZERO_SECTORS;

/// `VHOST_F_LOG_ALL`: writes into guest memory are noted in the frontend's log.
pub const LOG_ALL: u64 = 1 << 26;
/// `VIRTIO_RING_F_INDIRECT_DESC`.
pub const RING_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_RING_F_EVENT_IDX`.
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_BLK_F_SEG_MAX`.
pub const SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
pub const READ_ONLY: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`.
pub const BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`.
pub const FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`.
pub const TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_MQ`.
pub const MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`.
pub const DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const WRITE_ZEROES: u64 = 1 << 14;

/// Logical blocks, as EC2's volumes have; images with 512-byte partition tables need it.
const LOGICAL_BYTES: u32 = 512;
/// A physical block is 2³ logical ones: the unit of encryption and of most file systems.
const PHYSICAL_EXPONENT: u8 = 3;
/// Most data segments of a request: what fits a queue of 128 beside header and status.
const SEGMENTS: u32 = 126;
/// Length of `struct virtio_blk_config` up to `write_zeroes_may_unmap` and padding.
pub const CONFIG_BYTES: usize = 60;

/// The features offered for `disk`.
#[must_use]
pub fn features(disk: &Disk) -> u64 {
    let always = LOG_ALL | VERSION_1 | RING_EVENT_IDX | RING_INDIRECT | PROTOCOL_FEATURES;
    let block = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | MQ;
    let writes = if disk.read_only {
        READ_ONLY
    } else {
        DISCARD | WRITE_ZEROES
    };
    always | block | writes
}

/// The configuration space, little endian.
#[must_use]
pub fn space(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let mut space = [0u8; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk.size_bytes / 512).to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &LOGICAL_BYTES.to_le_bytes());
    put(24, &[PHYSICAL_EXPONENT, 0]);
    put(26, &(1u16 << PHYSICAL_EXPONENT).to_le_bytes());
    put(34, &disk.queues.to_le_bytes());
    // Discard and write-zeroes: one segment a request, best in physical blocks.
    put(36, &MAX_ZERO_SECTORS.to_le_bytes());
    put(40, &1u32.to_le_bytes());
    put(44, &(1u32 << PHYSICAL_EXPONENT).to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    put(56, &[1]);
    space
}
