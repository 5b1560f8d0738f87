//! The header, and what of it we accept.

use super::MAGIC;
use crate::{ImageError, Source};

/// `cluster_bits` that the format allows: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU's own limits on tables, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_REFCOUNT_ORDER: u64 = 6;
const VERSION_2_BYTES: u64 = 72;
const VERSION_3_BYTES: u64 = 104;

/// Bits of `incompatible_features`, and what each means for us.
const INCOMPATIBLE: [(u64, &str); 4] = [
    (1 << 1, "marks the image corrupt"),
    (1 << 2, "wants an external data file"),
    (1 << 3, "wants a compression other than deflate"),
    (1 << 4, "wants extended L2 entries"),
];
/// Refcounts may be wrong; a reader needs none.
const DIRTY: u64 = 1;

/// A header that was checked.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has 2 to the power of this bytes.
    pub cluster_bits: u32,
    /// The disk's size.
    pub size_bytes: u64,
    /// Where the L1 table is.
    pub l1_at: u64,
    /// How many entries of it speak of the disk.
    pub l1_entries: u64,
    /// The file's length when it was opened.
    pub file_bytes: u64,
}

fn field<T>(field: &'static str, value: u64, why: &'static str) -> Result<T, ImageError> {
    Err(ImageError::Field { field, value, why })
}

impl Header {
    /// Reads and checks the header.
    pub fn read(source: &impl Source) -> Result<Self, ImageError> {
        let has = source.len()?;
        let mut bytes = [0u8; VERSION_3_BYTES as usize];
        let len = has.min(VERSION_3_BYTES);
        source.read_exact_at(&mut bytes[..len as usize], 0)?;
        let u32_at = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u64::from(u32::from_be_bytes(word))
        };
        let u64_at = |at: usize| u32_at(at) << 32 | u32_at(at + 4);
        if has < 4 || bytes[..4] != MAGIC {
            return field("magic", u32_at(0), "is not qcow2's");
        }
        let cut = |len| ImageError::Cut {
            what: "the header",
            at: 0,
            len,
            has,
        };
        if has < VERSION_2_BYTES {
            return Err(cut(VERSION_2_BYTES));
        }
        let version = u32_at(4);
        match version {
            2 => {}
            3 if has < VERSION_3_BYTES => return Err(cut(VERSION_3_BYTES)),
            3 => check_version_3(u64_at(72), u32_at(96), u32_at(100))?,
            other => return field("version", other, "is neither 2 nor 3"),
        }
        if u64_at(8) != 0 {
            return field("backing_file_offset", u64_at(8), "names a backing file");
        }
        let cluster_bits = u32_at(20) as u32;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return field("cluster_bits", u32_at(20), "is not in 9..=21");
        }
        let cluster = 1u64 << cluster_bits;
        let size_bytes = u64_at(24);
        if size_bytes > crate::MAX_BYTES {
            return field("size", size_bytes, "is more than 16 TiB");
        }
        if u32_at(32) != 0 {
            return field("crypt_method", u32_at(32), "wants encryption");
        }
        let (l1_size, l1_at) = (u32_at(36), u64_at(40));
        let l1_entries = size_bytes.div_ceil(cluster * (cluster / 8));
        if l1_size * 8 > MAX_L1_BYTES {
            return field("l1_size", l1_size, "is more than 32 MiB of entries");
        }
        if l1_size < l1_entries {
            return field("l1_size", l1_size, "is less than the disk needs");
        }
        if l1_at % cluster != 0 || (l1_at == 0 && l1_entries > 0) {
            return field("l1_table_offset", l1_at, "is not the start of a cluster");
        }
        if l1_at
            .checked_add(l1_entries * 8)
            .is_none_or(|end| end > has)
        {
            return field("l1_table_offset", l1_at, "is a table past the file's end");
        }
        if u64_at(48) % cluster != 0 {
            let why = "is not the start of a cluster";
            return field("refcount_table_offset", u64_at(48), why);
        }
        if u32_at(56) << cluster_bits > MAX_REFCOUNT_TABLE_BYTES {
            return field("refcount_table_clusters", u32_at(56), "is more than 8 MiB");
        }
        Ok(Self {
            version: version as u32,
            cluster_bits,
            size_bytes,
            l1_at,
            l1_entries,
            file_bytes: has,
        })
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
}

fn check_version_3(incompatible: u64, order: u64, length: u64) -> Result<(), ImageError> {
    for (bit, why) in INCOMPATIBLE {
        if incompatible & bit != 0 {
            return field("incompatible_features", incompatible, why);
        }
    }
    let known = INCOMPATIBLE.iter().fold(DIRTY, |all, (bit, _)| all | bit);
    if incompatible & !known != 0 {
        return field("incompatible_features", incompatible, "has unknown bits");
    }
    if order > MAX_REFCOUNT_ORDER {
        return field("refcount_order", order, "is more than 6");
    }
    if length < VERSION_3_BYTES || !length.is_multiple_of(8) {
        let why = "is less than 104 or no multiple of 8";
        return field("header_length", length, why);
    }
    Ok(())
}
