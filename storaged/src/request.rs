//! From a descriptor chain to a request: pure, no I/O, nothing trusted.
//!
//! The frame is virtio 1.3 §5.2.6's `virtio_blk_req`: 16 bytes of header first in
//! the readable part, one status byte last in the writable part. How descriptors
//! cut these up is the driver's choice (§2.7.4), so the header may span several.

use crate::queue::Descriptor;

/// Sectors are 512 bytes whatever block size is offered.
pub const SECTOR_BYTES: u64 = 512;
/// Length of the request header.
pub const HEADER_BYTES: usize = 16;
/// Length of the serial that `GET_ID` returns.
pub const ID_BYTES: u64 = 20;
/// Most sectors in one discard or write-zeroes request (1 GiB).
pub const MAX_ZERO_SECTORS: u32 = 1 << 21;

/// `VIRTIO_BLK_S_OK`.
pub const STATUS_OK: u8 = 0;
/// `VIRTIO_BLK_S_IOERR`.
pub const STATUS_IOERR: u8 = 1;
/// `VIRTIO_BLK_S_UNSUPP`.
pub const STATUS_UNSUPP: u8 = 2;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const ZEROES_UNMAP: u32 = 1;

/// A piece of guest memory, by guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes, never zero.
    pub len: u32,
}

/// What a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read into the data segments from this byte on.
    Read(u64),
    /// Write the data segments from this byte on.
    Write(u64),
    /// Make completed writes durable.
    Flush,
    /// The volume's serial.
    GetId,
    /// These bytes are no longer needed.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// These bytes shall read as zeros.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The space may be given back.
        unmap: bool,
    },
    /// Answer with this status and do nothing.
    Refuse(u8),
}

/// A request, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it asks.
    pub kind: Kind,
    /// Where the status byte goes.
    pub status: u64,
    /// Bytes of data in the segments.
    pub data_bytes: u64,
    /// Bytes of the writable part, status included: what the used ring may report.
    pub writable_bytes: u32,
}

/// Why a chain is no request at all: there is no place for a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A readable descriptor follows a writable one (§2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// No writable byte for the status.
    #[error("the chain has no writable byte for a status")]
    NoStatus,
    /// The chain's lengths exceed 32 bits (§2.7.5.2).
    #[error("the chain is longer than 4 GiB")]
    TooLong,
}

/// What the device allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Discard and write-zeroes were negotiated.
    pub zeroes: bool,
}

/// Parses `chain`. `read` copies guest memory and says whether it could; data
/// segments are left in `segments`, which is cleared first.
pub fn parse(
    chain: &[Descriptor],
    limits: &Limits,
    segments: &mut Vec<Segment>,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Result<Parsed, FrameError> {
    segments.clear();
    let split = chain
        .iter()
        .position(|d| d.writable)
        .ok_or(FrameError::NoStatus)?;
    let (readable, writable) = chain.split_at(split);
    if writable.iter().any(|d| !d.writable) {
        return Err(FrameError::Order);
    }
    let total = |part: &[Descriptor]| {
        part.iter()
            .try_fold(0u32, |sum, d| sum.checked_add(d.len))
            .ok_or(FrameError::TooLong)
    };
    let (readable_bytes, writable_bytes) = (total(readable)?, total(writable)?);
    let last = writable
        .iter()
        .rev()
        .find(|d| d.len > 0)
        .ok_or(FrameError::NoStatus)?;
    let status = last
        .addr
        .checked_add(u64::from(last.len) - 1)
        .ok_or(FrameError::NoStatus)?;
    let mut parsed = Parsed {
        kind: Kind::Refuse(STATUS_IOERR),
        status,
        data_bytes: 0,
        writable_bytes,
    };
    let mut header = [0u8; HEADER_BYTES];
    if readable_bytes < HEADER_BYTES as u32 || !gather(readable, &mut header, &mut read) {
        return Ok(parsed);
    }
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
    let out_bytes = u64::from(readable_bytes) - HEADER_BYTES as u64;
    let in_bytes = u64::from(writable_bytes) - 1;
    let refuse = Kind::Refuse(STATUS_IOERR);
    parsed.kind = match word(0) {
        T_IN if out_bytes == 0 => range(sector, in_bytes, limits).map_or(refuse, Kind::Read),
        T_OUT if in_bytes == 0 && !limits.read_only => {
            range(sector, out_bytes, limits).map_or(refuse, Kind::Write)
        }
        T_IN | T_OUT => refuse,
        T_FLUSH => Kind::Flush,
        T_GET_ID if in_bytes >= ID_BYTES => Kind::GetId,
        T_GET_ID => refuse,
        T_DISCARD | T_WRITE_ZEROES if !limits.zeroes => Kind::Refuse(STATUS_UNSUPP),
        T_DISCARD | T_WRITE_ZEROES if limits.read_only || out_bytes != 16 => refuse,
        kind @ (T_DISCARD | T_WRITE_ZEROES) => {
            let mut both = [0u8; HEADER_BYTES + 16];
            if gather(readable, &mut both, &mut read) {
                zeroes(kind == T_DISCARD, &both[HEADER_BYTES..], limits)
            } else {
                refuse
            }
        }
        _ => Kind::Refuse(STATUS_UNSUPP),
    };
    match parsed.kind {
        Kind::Read(_) => data(writable, 0, in_bytes, segments),
        Kind::GetId => data(writable, 0, ID_BYTES, segments),
        Kind::Write(_) => data(readable, HEADER_BYTES as u64, out_bytes, segments),
        _ => {}
    }
    parsed.data_bytes = segments.iter().map(|s| u64::from(s.len)).sum();
    Ok(parsed)
}

/// Checks a transfer of `len` bytes at `sector`; its first byte if it lies inside.
fn range(sector: u64, len: u64, limits: &Limits) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    let inside = offset.checked_add(len)? <= limits.size_bytes;
    (inside && len.is_multiple_of(SECTOR_BYTES)).then_some(offset)
}

/// Reads one `virtio_blk_discard_write_zeroes` segment.
fn zeroes(discard: bool, bytes: &[u8], limits: &Limits) -> Kind {
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
    let (sectors, flags) = (word(8), word(12));
    // §5.2.6.2: unknown flags, and unmap in a discard, are unsupported.
    if flags & !ZEROES_UNMAP != 0 || (discard && flags != 0) {
        return Kind::Refuse(STATUS_UNSUPP);
    }
    let len = u64::from(sectors) * SECTOR_BYTES;
    match range(sector, len, limits) {
        Some(offset) if sectors <= MAX_ZERO_SECTORS && discard => Kind::Discard { offset, len },
        Some(offset) if sectors <= MAX_ZERO_SECTORS => Kind::WriteZeroes {
            offset,
            len,
            unmap: flags & ZEROES_UNMAP != 0,
        },
        _ => Kind::Refuse(STATUS_IOERR),
    }
}

/// Fills `into` from the first bytes of `part`.
fn gather(
    part: &[Descriptor],
    into: &mut [u8],
    read: &mut impl FnMut(u64, &mut [u8]) -> bool,
) -> bool {
    let mut at = 0;
    for d in part {
        let n = (d.len as usize).min(into.len() - at);
        if n > 0 && !read(d.addr, &mut into[at..at + n]) {
            return false;
        }
        at += n;
    }
    at == into.len()
}

/// Puts `len` bytes of `part`, `skip` bytes in, into `segments`.
fn data(part: &[Descriptor], mut skip: u64, mut len: u64, segments: &mut Vec<Segment>) {
    for d in part {
        let whole = u64::from(d.len);
        let skipped = skip.min(whole);
        skip -= skipped;
        let n = (whole - skipped).min(len);
        if n > 0 {
            segments.push(Segment {
                addr: d.addr.wrapping_add(skipped),
                len: n as u32,
            });
            len -= n;
        }
    }
}

#[cfg(test)]
mod tests;
