//! The console ring: the last N bytes that a guest wrote to its serial port.
//!
//! ```text
//! 0        8          12   16            24         64
//! | magic  | capacity | 0  | written (u64)| reserved | capacity bytes, a ring ... |
//! ```
//! Little endian. `written` counts every byte since creation; byte `n` of the
//! output is at `64 + n % capacity`. The writer stores
//! the bytes and then `written`, so a reader needs no word with the writer and
//! the output of a killed VMM can still be read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The first eight bytes of a ring file.
pub const MAGIC: [u8; 8] = *b"OCSCON1\0";
/// Where the ring begins.
pub const HEADER_BYTES: u64 = 64;
/// Where the count of bytes written lies.
pub const WRITTEN_OFFSET: u64 = 16;

/// Appends to a ring file.
pub struct RingWriter {
    file: File,
    capacity: u64,
    written: u64,
}

impl RingWriter {
    /// Continues the ring in `file`, or lays a new one of `capacity_bytes` where
    /// the file holds none of that capacity.
    pub fn open(file: File, capacity_bytes: u32) -> io::Result<Self> {
        let capacity = u64::from(capacity_bytes);
        let mut header = [0u8; HEADER_BYTES as usize];
        let whole = file.metadata()?.len() == HEADER_BYTES + capacity
            && file.read_exact_at(&mut header, 0).is_ok()
            && header[..8] == MAGIC
            && header[8..12] == capacity_bytes.to_le_bytes();
        let written = if whole {
            u64_at(&header, WRITTEN_OFFSET as usize)
        } else {
            header = [0; HEADER_BYTES as usize];
            header[..8].copy_from_slice(&MAGIC);
            header[8..12].copy_from_slice(&capacity_bytes.to_le_bytes());
            file.set_len(0)?;
            file.set_len(HEADER_BYTES + capacity)?;
            file.write_all_at(&header, 0)?;
            0
        };
        Ok(Self {
            file,
            capacity,
            written,
        })
    }

    /// The file, laid out, with the ring's capacity and the count of bytes written: for a
    /// writer that maps it.
    #[must_use]
    pub fn into_parts(self) -> (File, u64, u64) {
        (self.file, self.capacity, self.written)
    }

    /// Appends `bytes`, overwriting the oldest.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = self.written % self.capacity;
            let n = rest.len().min((self.capacity - at) as usize);
            self.file.write_all_at(&rest[..n], HEADER_BYTES + at)?;
            self.written += n as u64;
            rest = &rest[n..];
        }
        self.file
            .write_all_at(&self.written.to_le_bytes(), WRITTEN_OFFSET)
    }
}

/// The output still held, oldest byte first, and the count of all bytes ever written.
pub fn read(file: &File) -> io::Result<(Vec<u8>, u64)> {
    let mut header = [0u8; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0)?;
    let capacity = u64::from(u32::from_le_bytes([
        header[8], header[9], header[10], header[11],
    ]));
    if header[..8] != MAGIC || capacity == 0 || capacity > 1 << 20 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a console ring",
        ));
    }
    let written = u64_at(&header, WRITTEN_OFFSET as usize);
    let mut ring = vec![0u8; capacity as usize];
    file.read_exact_at(&mut ring, HEADER_BYTES)?;
    if written <= capacity {
        ring.truncate(written as usize);
    } else {
        ring.rotate_left((written % capacity) as usize);
    }
    Ok((ring, written))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn a_ring_keeps_the_newest_bytes_in_order() {
        let file = file();
        let mut ring = RingWriter::open(file.try_clone().unwrap(), 4096).unwrap();
        let all: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for chunk in all.chunks(777) {
            ring.write(chunk).unwrap();
        }
        let (held, written) = read(&file).unwrap();
        assert_eq!(written, 10_000);
        assert_eq!(held, all[10_000 - 4096..]);
    }

    #[test]
    fn a_reopened_ring_continues() {
        let file = file();
        RingWriter::open(file.try_clone().unwrap(), 4096)
            .unwrap()
            .write(b"one ")
            .unwrap();
        RingWriter::open(file.try_clone().unwrap(), 4096)
            .unwrap()
            .write(b"two")
            .unwrap();
        assert_eq!(read(&file).unwrap(), (b"one two".to_vec(), 7));
    }

    #[test]
    fn garbage_is_not_a_ring() {
        let file = file();
        file.write_all_at(&[7; 128], 0).unwrap();
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
