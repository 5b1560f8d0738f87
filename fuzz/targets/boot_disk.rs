//! A disk that somebody else made, of which a kernel is wanted.
//!
//! Its file system begins as one that `mke2fs` made, without checksums, so that what lies behind
//! them is reached; the input says what is changed. A kernel that is found is loaded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_vmm::boot::disk::{DiskBytes, load_own_kernel};
use ocs_vmm::memory::{self, GuestRam};
use std::io;
use std::sync::LazyLock;

static RAM: LazyLock<GuestRam> = LazyLock::new(|| memory::create(16).expect("memory"));

/// 128 KiB of ext4 with blocks of 1 KiB: `/boot` has two kernels, a menu and an entry.
const PLAIN: &[u8] = include_bytes!("../data/boot_disk.ext4");
/// The table's place, and that of its first partition.
const TABLE_BYTES: usize = 34 * SECTOR;
const SECTOR: usize = 512;

fuzz_target!(|data: (bool, Vec<(u16, u8)>, &[u8])| {
    let (has_table, mut changes, table) = data;
    changes.truncate(64);
    let table = if has_table { gpt(table) } else { Vec::new() };
    let _ = load_own_kernel(&RAM, Box::new(Disk { table, changes }), "quiet");
});

/// The plain file system behind a table, if there is one, with changes: most of what is read lies
/// in its first 64 KiB.
struct Disk {
    table: Vec<u8>,
    changes: Vec<(u16, u8)>,
}

impl DiskBytes for Disk {
    fn bytes(&self) -> u64 {
        (self.table.len() + PLAIN.len()) as u64
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let outside = || io::Error::other("behind the end");
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let of_table = self.table.get(at..).unwrap_or_default();
        let (first, rest) = into.split_at_mut(of_table.len().min(into.len()));
        first.copy_from_slice(&of_table[..first.len()]);
        if rest.is_empty() {
            return Ok(());
        }
        let start = at + first.len() - self.table.len();
        let plain = PLAIN.get(start..start.saturating_add(rest.len()));
        rest.copy_from_slice(plain.ok_or_else(outside)?);
        for (place, value) in &self.changes {
            let place = usize::from(*place).checked_sub(start);
            if let Some(byte) = place.and_then(|place| rest.get_mut(place)) {
                *byte = *value;
            }
        }
        Ok(())
    }
}

/// A table whose checksums hold, around what `table` says in its header and first entry.
fn gpt(table: &[u8]) -> Vec<u8> {
    let sectors = ((TABLE_BYTES + PLAIN.len()) / SECTOR) as u64;
    let mut disk = vec![0; TABLE_BYTES];
    let (headers, entries) = disk.split_at_mut(2 * SECTOR);
    let header = &mut headers[SECTOR..SECTOR + 92];
    entries[0] = 1;
    entries[32..40].copy_from_slice(&34u64.to_le_bytes());
    entries[40..48].copy_from_slice(&(sectors - 1).to_le_bytes());
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
    let sum = crc32fast::hash(entries);
    header[88..].copy_from_slice(&sum.to_le_bytes());
    let sum = crc32fast::hash(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk
}
