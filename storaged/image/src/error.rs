//! Why a file is no image that we read.

use std::io;

/// Why a file is no image that we read; names what is wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A field of the header.
    #[error("qcow2 header, {field}: {value:#x} {why}")]
    Field {
        /// Its name in the format's description.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// An entry of a table.
    #[error("qcow2 {table} entry {index}: {value:#x} {why}")]
    Entry {
        /// L1 or L2.
        table: &'static str,
        /// Its number, in L2 tables counted over all of them.
        index: u64,
        /// What it holds.
        value: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// The disk is larger than what it is to fill.
    #[error("size: the image has {size_bytes} bytes, at most {limit_bytes} are wanted")]
    Size {
        /// The disk's size.
        size_bytes: u64,
        /// The most there may be.
        limit_bytes: u64,
    },
    /// The file ends before what it says it holds.
    #[error("the file is cut: {what} at {at} needs {len} bytes, the file has {has}")]
    Cut {
        /// What lies there.
        what: &'static str,
        /// Where.
        at: u64,
        /// Its length.
        len: u64,
        /// The file's length.
        has: u64,
    },
    /// The file, or where its content goes, cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}
