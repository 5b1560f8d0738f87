//! A disk that somebody else made, of which a kernel is wanted.
//!
//! Its file system begins as one that `mke2fs` made, without checksums, so that what lies behind
//! them is reached; the input says what is changed. A kernel that is found is loaded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_vmm::boot::disk::load_own_kernel;
use ocs_vmm::memory::{self, GuestRam};
use std::sync::LazyLock;

static RAM: LazyLock<GuestRam> = LazyLock::new(|| memory::create(16).expect("memory"));

/// 128 KiB of ext4 with blocks of 1 KiB: `/boot` has two kernels, a menu and an entry.
const PLAIN: &[u8] = include_bytes!("../data/boot_disk.ext4");
/// The table's place, and that of its first partition.
const TABLE_BYTES: usize = 34 * 512;

fuzz_target!(|data: (bool, Vec<(u16, u8)>, &[u8])| {
    let (has_table, changes, table) = data;
    let mut disk = vec![0; if has_table { TABLE_BYTES } else { 0 }];
    disk.extend_from_slice(PLAIN);
    let base = disk.len() - PLAIN.len();
    for (at, value) in changes.iter().take(64) {
        // Most of what is read lies in the first 64 KiB.
        disk[base + usize::from(*at)] = *value;
    }
    if has_table {
        gpt(&mut disk, table);
    }
    let _ = load_own_kernel(&RAM, Box::new(disk), "quiet");
});

/// A table whose checksums hold, around what `table` says in its header and first entry.
fn gpt(disk: &mut [u8], table: &[u8]) {
    let sectors = disk.len() as u64 / 512;
    let mut entries = vec![0; 32 * 512];
    entries[0] = 1;
    entries[32..40].copy_from_slice(&34u64.to_le_bytes());
    entries[40..48].copy_from_slice(&(sectors - 1).to_le_bytes());
    let mut header = [0u8; 92];
    header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    for (at, value) in table.iter().enumerate().take(32) {
        match at {
            0..16 => header[72 + at] ^= value,
            _ => entries[32 + at - 16] ^= value,
        }
    }
    let sum = crc32fast::hash(&entries);
    header[88..].copy_from_slice(&sum.to_le_bytes());
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[512..604].copy_from_slice(&header);
    disk[1024..1024 + entries.len()].copy_from_slice(&entries);
}
