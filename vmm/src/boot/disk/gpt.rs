//! The partitions of a disk: a GUID partition table (UEFI 2.10 §5.3), or none.

use std::io;

/// Logical blocks of virtio disks.
const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 92;
/// The specification's least is 16 KiB; 128 entries of 128 bytes are what everybody makes.
const MAX_TABLE_BYTES: u64 = 1 << 20;

/// One partition, or the disk as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// For messages.
    pub name: String,
    /// Its first byte on the disk.
    pub start: u64,
    /// How long it is.
    pub bytes: u64,
    /// How Linux finds it as a root.
    pub root: String,
}

/// Reads the primary table. A disk without one is a single file system.
pub(super) fn partitions(
    disk_bytes: u64,
    mut read_at: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Vec<Partition>, String> {
    let whole = Partition {
        name: "the disk".to_owned(),
        start: 0,
        bytes: disk_bytes,
        root: "/dev/vda".to_owned(),
    };
    let sectors = disk_bytes / SECTOR_BYTES;
    if sectors < 3 {
        return Err(format!("its {disk_bytes} bytes hold nothing"));
    }
    let mut header = [0; HEADER_BYTES];
    read_at(SECTOR_BYTES, &mut header).map_err(|e| e.to_string())?;
    if &header[..8] != b"EFI PART" {
        return Ok(vec![whole]);
    }
    let fail = |problem: &str| Err(format!("its partition table {problem}"));
    if word(&header, 12) as usize != HEADER_BYTES {
        return fail("has a header of an unknown size");
    }
    let claimed = word(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header) != claimed {
        return fail("has a header with a wrong checksum");
    }
    let (at, count, size) = (
        long(&header, 72),
        u64::from(word(&header, 80)),
        u64::from(word(&header, 84)),
    );
    let table_bytes = count * size;
    if size < 128 || table_bytes > MAX_TABLE_BYTES || at >= sectors {
        return fail(&format!(
            "has {count} entries of {size} bytes at sector {at}"
        ));
    }
    let mut table = vec![0; usize::try_from(table_bytes).map_err(|e| e.to_string())?];
    read_at(at * SECTOR_BYTES, &mut table).map_err(|e| e.to_string())?;
    if crc32fast::hash(&table) != word(&header, 88) {
        return fail("has entries with a wrong checksum");
    }
    let mut found = Vec::new();
    let entry_bytes = usize::try_from(size).map_err(|e| e.to_string())?;
    for (entry, number) in table.chunks_exact(entry_bytes).zip(1u32..) {
        if entry[..16].iter().all(|byte| *byte == 0) {
            continue;
        }
        let (first, last) = (long(entry, 32), long(entry, 40));
        if first > last || last >= sectors {
            return fail(&format!(
                "has partition {number} at sectors {first} to {last} of {sectors}"
            ));
        }
        found.push(Partition {
            name: format!("partition {number}"),
            start: first * SECTOR_BYTES,
            bytes: (last - first + 1) * SECTOR_BYTES,
            root: format!("PARTUUID={}", guid(&entry[16..32])),
        });
    }
    Ok(found)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// In the form of `blkid`: the first three groups are little-endian.
fn guid(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (place, index) in order.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&place) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[index]));
    }
    text
}
