//! The memory of a snapshot in a file that can be mapped as it is.
//!
//! ```text
//!  0      header: magic, format, id, parent, bytes of memory, where the table is, checksums
//!  4096   guest memory at its own offset; what is not in the table is a hole
//!  end    table: one entry an extent: offset, bytes, crc32
//! ```
//! A full file has no parent, and its holes are zeros. A differential file names its parent and
//! holds the pages that changed since; it is mapped on top of it, page by page. Integers are
//! little-endian.
//!
//! The header and the table are checked when a file is opened, the extents against their
//! checksums only by [`MemoryFile::verify`]: to read all memory is what a restore avoids.
//! While a machine runs from a file, nobody may change it; one that is cut short kills the
//! machine (SIGBUS), as a failing disk would.

use crate::memory::log::PAGE_BYTES;
use crate::persist::checksum;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 8] = b"OCSMEM\r\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 80;
/// Where guest memory begins: a page, so that it can be mapped.
pub const START: u64 = PAGE_BYTES as u64;
/// No extent is longer, so that a reader's buffer is bounded.
pub const MAX_EXTENT_BYTES: usize = 256 << 10;
const ENTRY_BYTES: usize = 16;
/// The spec's limit of memory, in bytes.
const MAX_MEMORY_BYTES: u64 = 16 << 40;

/// Names one snapshot's memory for ever: 128 random bits.
pub type SnapshotId = [u8; 16];

/// Why a file is not a snapshot's memory that this VMM can map.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// Another kind of file.
    #[error("is not a snapshot's memory")]
    NotMemory,
    /// A newer layout.
    #[error("has format {0}, and this VMM reads {FORMAT}")]
    Format(u32),
    /// Bytes changed since they were written.
    #[error("has a {0} that does not match its checksum")]
    Checksum(&'static str),
    /// Cut short or inconsistent.
    #[error("is malformed: {0}")]
    Malformed(String),
    /// The system failed.
    #[error("cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// A run of pages that the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in guest memory.
    pub at: u64,
    /// Its length, whole pages.
    pub bytes: u32,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

/// An opened file.
#[derive(Debug)]
pub struct MemoryFile {
    /// The file.
    pub file: File,
    /// Its own name.
    pub id: SnapshotId,
    /// The snapshot whose changes it holds; `None`: it is whole.
    pub parent: Option<SnapshotId>,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// What it holds, in order.
    pub extents: Vec<Extent>,
}

impl MemoryFile {
    /// Reads and checks header and table.
    pub fn open(file: File) -> Result<Self, MemoryFileError> {
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0)
            .map_err(|_| MemoryFileError::NotMemory)?;
        if !head.starts_with(MAGIC) {
            return Err(MemoryFileError::NotMemory);
        }
        if word(&head, 8) != FORMAT {
            return Err(MemoryFileError::Format(word(&head, 8)));
        }
        if word(&head, 76) != checksum(&[&head[..76]]) {
            return Err(MemoryFileError::Checksum("header"));
        }
        let (mut id, mut parent) = ([0; 16], [0; 16]);
        id.copy_from_slice(&head[16..32]);
        parent.copy_from_slice(&head[32..48]);
        let memory_bytes = long(&head, 48);
        let table_at = long(&head, 56);
        let count = long(&head, 64);
        let malformed = |why: String| MemoryFileError::Malformed(why);
        let whole = memory_bytes > 0
            && memory_bytes <= MAX_MEMORY_BYTES
            && memory_bytes.is_multiple_of(PAGE_BYTES as u64);
        if !whole || count > memory_bytes / PAGE_BYTES as u64 {
            return Err(malformed(format!(
                "{count} extents of {memory_bytes} bytes of memory"
            )));
        }
        let table_bytes = count * ENTRY_BYTES as u64;
        let len = file.metadata()?.len();
        if table_at < START + memory_bytes || table_at.checked_add(table_bytes) != Some(len) {
            return Err(malformed(format!(
                "{len} bytes long, with a table of {table_bytes} at {table_at}"
            )));
        }
        let mut table = vec![0; usize::try_from(table_bytes).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut table, table_at)?;
        if word(&head, 72) != checksum(&[&table]) {
            return Err(MemoryFileError::Checksum("table of extents"));
        }
        let extents: Vec<Extent> = table
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| Extent {
                at: long(entry, 0),
                bytes: word(entry, 8),
                crc: word(entry, 12),
            })
            .collect();
        let mut end = 0;
        for extent in &extents {
            let bytes = extent.bytes as usize;
            let fits = extent.at >= end
                && extent.at.is_multiple_of(PAGE_BYTES as u64)
                && bytes.is_multiple_of(PAGE_BYTES)
                && (PAGE_BYTES..=MAX_EXTENT_BYTES).contains(&bytes)
                && extent
                    .at
                    .checked_add(bytes as u64)
                    .is_some_and(|end| end <= memory_bytes);
            if !fits {
                return Err(malformed(format!("{bytes} bytes at {:#x}", extent.at)));
            }
            end = extent.at + bytes as u64;
        }
        Ok(Self {
            file,
            id,
            parent: (parent != [0; 16]).then_some(parent),
            memory_bytes,
            extents,
        })
    }

    /// Reads all that the file holds and compares it with the checksums.
    pub fn verify(&self) -> Result<(), MemoryFileError> {
        let mut buffer = vec![0; MAX_EXTENT_BYTES];
        for extent in &self.extents {
            let bytes = &mut buffer[..extent.bytes as usize];
            self.file.read_exact_at(bytes, START + extent.at)?;
            if checksum(&[bytes]) != extent.crc {
                return Err(MemoryFileError::Malformed(format!(
                    "{} bytes at {:#x} do not match their checksum",
                    extent.bytes, extent.at
                )));
            }
        }
        Ok(())
    }
}

/// Writes a file, extent by extent in rising order; valid only once finished.
pub struct MemoryWriter<'a> {
    file: &'a File,
    memory_bytes: u64,
    extents: Vec<Extent>,
}

impl<'a> MemoryWriter<'a> {
    /// Begins with an empty `file`: one that holds something is refused by [`Self::finish`]'s
    /// reader, not by this.
    pub fn new(file: &'a File, memory_bytes: u64) -> io::Result<Self> {
        file.set_len(0)?;
        Ok(Self {
            file,
            memory_bytes,
            extents: Vec::new(),
        })
    }

    /// Writes whole pages, at most [`MAX_EXTENT_BYTES`], behind all that were written before.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(bytes.len() <= MAX_EXTENT_BYTES && bytes.len().is_multiple_of(PAGE_BYTES));
        self.file.write_all_at(bytes, START + at)?;
        self.extents.push(Extent {
            at,
            bytes: u32::try_from(bytes.len()).map_err(io::Error::other)?,
            crc: checksum(&[bytes]),
        });
        Ok(())
    }

    /// Bytes of memory written so far.
    pub fn written_bytes(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.bytes)).sum()
    }

    /// Writes table and header, in this order, and makes all of it durable.
    pub fn finish(self, id: SnapshotId, parent: Option<SnapshotId>) -> io::Result<()> {
        let mut table = Vec::with_capacity(self.extents.len() * ENTRY_BYTES);
        for extent in &self.extents {
            table.extend_from_slice(&extent.at.to_le_bytes());
            table.extend_from_slice(&extent.bytes.to_le_bytes());
            table.extend_from_slice(&extent.crc.to_le_bytes());
        }
        let table_at = START + self.memory_bytes;
        // The file is as long as memory even where its end is a hole: it is mapped whole.
        self.file.set_len(table_at)?;
        self.file.write_all_at(&table, table_at)?;
        self.file.sync_data()?;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&FORMAT.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&id);
        head.extend_from_slice(&parent.unwrap_or_default());
        for long in [self.memory_bytes, table_at, self.extents.len() as u64] {
            head.extend_from_slice(&long.to_le_bytes());
        }
        head.extend_from_slice(&checksum(&[&table]).to_le_bytes());
        let crc = checksum(&[&head]);
        head.extend_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&head, 0)?;
        self.file.sync_data()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY_BYTES: u64 = 1 << 20;
    const ID: SnapshotId = [7; 16];

    fn written() -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = MemoryWriter::new(&file, MEMORY_BYTES).unwrap();
        writer.write(0x2000, &[1; PAGE_BYTES]).unwrap();
        writer.write(0x8000, &[2; 3 * PAGE_BYTES]).unwrap();
        assert_eq!(writer.written_bytes(), 4 * PAGE_BYTES as u64);
        writer.finish(ID, None).unwrap();
        file
    }

    fn refusal(file: &File) -> String {
        MemoryFile::open(file.try_clone().unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_stays_sparse() {
        let file = written();
        let opened = MemoryFile::open(file.try_clone().unwrap()).unwrap();
        assert_eq!((opened.id, opened.parent), (ID, None));
        assert_eq!(opened.memory_bytes, MEMORY_BYTES);
        let spans: Vec<_> = opened.extents.iter().map(|e| (e.at, e.bytes)).collect();
        assert_eq!(spans, [(0x2000, 0x1000), (0x8000, 0x3000)]);
        opened.verify().unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 < MEMORY_BYTES / 4, "{blocks} blocks");

        file.write_all_at(&[9], START + 0x9000).unwrap();
        let error = opened.verify().unwrap_err().to_string();
        assert!(error.contains("12288 bytes at 0x8000"), "{error}");
    }

    #[test]
    fn what_is_damaged_is_named() {
        let file = written();
        file.write_all_at(&[9], 60).unwrap();
        assert!(refusal(&file).contains("header"), "{}", refusal(&file));

        let file = written();
        file.write_all_at(&[9], START + MEMORY_BYTES).unwrap();
        assert!(refusal(&file).contains("table"), "{}", refusal(&file));

        let file = written();
        file.set_len(START + MEMORY_BYTES).unwrap();
        assert!(refusal(&file).contains("malformed"), "{}", refusal(&file));

        let file = written();
        file.write_all_at(&[2], 8).unwrap();
        assert_eq!(refusal(&file), "has format 2, and this VMM reads 1");

        let file = tempfile::tempfile().unwrap();
        assert_eq!(refusal(&file), "is not a snapshot's memory");

        // Not finished: the header is written last.
        let file = tempfile::tempfile().unwrap();
        let mut writer = MemoryWriter::new(&file, MEMORY_BYTES).unwrap();
        writer.write(0, &[1; PAGE_BYTES]).unwrap();
        assert_eq!(refusal(&file), "is not a snapshot's memory");
    }

    #[test]
    fn extents_out_of_order_or_bounds_are_refused() {
        for (first, second) in [(0x8000, 0x2000), (0x8000, 0x8000), (0, MEMORY_BYTES)] {
            let file = tempfile::tempfile().unwrap();
            let mut writer = MemoryWriter::new(&file, MEMORY_BYTES).unwrap();
            for at in [first, second] {
                writer.write(at, &[1; PAGE_BYTES]).unwrap();
            }
            writer.finish(ID, Some([8; 16])).unwrap();
            assert!(
                refusal(&file).contains("malformed"),
                "{first:#x} {second:#x}"
            );
        }
    }
}
