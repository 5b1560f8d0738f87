//! The checksums of a frozen layer, in a file beside it.
//!
//! `NAME.sums` belongs to `NAME.layer`: a record of 8 bytes a grain, at 8 times its
//! number. `| crc of the grain 4 | crc of the number and of that crc 4 |`; zeros where
//! there is none. Records stand alone, so none can be torn into another, and one that
//! was lost with the host is made again.

use crate::cow::map::GRAIN_BYTES;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a record.
pub const RECORD_BYTES: u64 = 8;

/// What is known of a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Nothing yet.
    None,
    /// It has this checksum.
    Is(u32),
    /// Its record is damaged.
    Damaged,
}

/// The checksums of one layer.
pub struct Sums(File);

/// Where the checksums of `layer` are.
#[must_use]
pub fn path(layer: &Path) -> PathBuf {
    layer.with_extension("sums")
}

/// The checksum of a grain's bytes at rest.
#[must_use]
pub fn of(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn record(grain: u64, crc: u32) -> [u8; RECORD_BYTES as usize] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&grain.to_le_bytes());
    hasher.update(&crc.to_le_bytes());
    let mut record = [0; RECORD_BYTES as usize];
    record[..4].copy_from_slice(&crc.to_le_bytes());
    record[4..].copy_from_slice(&hasher.finalize().to_le_bytes());
    record
}

/// Reads a record of `grain`.
#[must_use]
pub fn decode(grain: u64, bytes: [u8; RECORD_BYTES as usize]) -> Sum {
    let crc = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    match bytes {
        bytes if bytes == [0; RECORD_BYTES as usize] => Sum::None,
        bytes if bytes == record(grain, crc) => Sum::Is(crc),
        _ => Sum::Damaged,
    }
}

impl Sums {
    /// Those of `layer`, none at first.
    pub fn open(layer: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        Ok(Self(options.mode(0o600).open(path(layer))?))
    }

    /// What is known of `count` grains from `first` on.
    pub fn get(&self, first: u64, count: usize) -> io::Result<Vec<Sum>> {
        let mut bytes = vec![0; count * RECORD_BYTES as usize];
        let mut done = 0;
        // What is past the end of the file is none.
        while done < bytes.len() {
            let at = first * RECORD_BYTES + done as u64;
            match self.0.read_at(&mut bytes[done..], at)? {
                0 => break,
                n => done += n,
            }
        }
        let (records, _) = bytes.as_chunks();
        let known = records.iter().zip(first..);
        Ok(known.map(|(bytes, grain)| decode(grain, *bytes)).collect())
    }

    /// Keeps a grain's checksum.
    pub fn put(&self, grain: u64, crc: u32) -> io::Result<()> {
        self.0
            .write_all_at(&record(grain, crc), grain * RECORD_BYTES)
    }

    /// Makes them durable.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }
}

/// Forgets grains of `layer` that are about to be freed.
pub fn forget(layer: &Path, first: u64, count: u64) -> io::Result<()> {
    let file = match File::options().write(true).open(path(layer)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let (at, len) = (first * RECORD_BYTES, count * RECORD_BYTES);
    Ok(fallocate(&file, flags, at, len)?)
}

// A page of records speaks of this much of a layer.
const _: () = assert!(GRAIN_BYTES * 4096 / RECORD_BYTES == 32 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_of_its_grain_and_any_change_of_it_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("x.layer");
        let sums = Sums::open(&layer).unwrap();
        assert_eq!(sums.get(5, 2).unwrap(), [Sum::None, Sum::None]);
        for (grain, crc) in [(5, 0), (6, 7), (9, u32::MAX)] {
            sums.put(grain, crc).unwrap();
        }
        let known = [Sum::None, Sum::Is(0), Sum::Is(7), Sum::None, Sum::None];
        assert_eq!(sums.get(4, 5).unwrap(), known);
        let bytes = record(6, 7);
        assert_eq!(decode(7, bytes), Sum::Damaged, "of another grain");
        for bit in 0..64 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(6, flipped), Sum::Damaged);
        }
        forget(&layer, 5, 2).unwrap();
        assert_eq!(sums.get(4, 6).unwrap()[..5], [Sum::None; 5]);
        assert_eq!(sums.get(9, 1).unwrap(), [Sum::Is(u32::MAX)]);
        forget(&dir.path().join("none.layer"), 0, 1).unwrap();
    }
}
