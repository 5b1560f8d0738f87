//! Disk images as files, read and written chunk by chunk: raw, and qcow2 as QEMU
//! documents it (docs/interop/qcow2.txt).
//!
//! ```text
//!  file ──▶ Reader ──▶ chunks of 64 KiB that are not all zeros, in order ──▶ Writer ──▶ file
//! ```
//! What is read is hostile: every field is checked before it is used, nothing is
//! followed out of the file (no backing file, no external data file), memory is bounded
//! by two clusters and one table, and what comes out by what the file can hold.
//! Start reading at [`Reader::chunks`]; [`qcow2`] has the format.

#![forbid(unsafe_code)]

mod error;
mod file;
pub mod qcow2;
mod reader;
mod writer;

pub use error::ImageError;
pub use file::{Sink, Source};
pub use reader::Reader;
pub use writer::Writer;

use serde::{Deserialize, Serialize};

/// Bytes of a chunk, the unit in which images are read and written.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Larger images are refused: 16 TiB.
pub const MAX_BYTES: u64 = 16 << 40;

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3; written as version 3.
    Qcow2,
}

impl Format {
    /// What `source` is by its first bytes. Only for a file that its giver chose: a
    /// guest can write any first bytes to its raw disk.
    pub fn guess(source: &impl Source) -> std::io::Result<Self> {
        let mut magic = [0; 4];
        let is = source.len()? >= 4 && {
            source.read_exact_at(&mut magic, 0)?;
            magic == qcow2::MAGIC
        };
        Ok(if is { Self::Qcow2 } else { Self::Raw })
    }
}

impl std::str::FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            other => Err(format!("{other:?} is neither raw nor qcow2")),
        }
    }
}
