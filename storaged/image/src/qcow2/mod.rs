//! qcow2: tables that say where in the file each cluster of the disk lies.
//!
//! ```text
//!  header ─▶ L1 table ─▶ L2 tables ─▶ clusters: data, deflated, zeros or none
//!         └▶ refcount table ─▶ refcount blocks: how often each cluster is used
//! ```
//! A reader needs no refcounts, nor the internal snapshots that they are for: it
//! takes the active state. Refused, each by the name of its field: backing files,
//! encryption, external data files, extended L2 entries, compression other than
//! deflate, images marked corrupt, versions other than 2 and 3.
//!
//! All numbers are big-endian.

mod header;
mod read;
mod write;

pub use header::Header;
pub(crate) use write::Layout;

/// How a file begins.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bit 63 of an entry: its cluster is used once. Readers need not know.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is deflated.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry, from version 3 on: the cluster reads as zeros.
const ZERO: u64 = 1;
/// Bits 9 to 55 of an entry: where what it speaks of lies.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
