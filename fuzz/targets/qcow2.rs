//! A qcow2 file as anyone may hand it in.
//!
//! What is read is chunks in order inside the disk, no more than the file can hold, and
//! written again it is the same disk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_disk_image::{CHUNK_BYTES, Format, ImageError, Reader, Writer};

/// Disks past this are not read: their zeros alone would take the time.
const LIMIT_BYTES: u64 = 4 << 20;
/// Deflate makes at most this many bytes of one.
const DEFLATE: usize = 1032;

/// The disk in `bytes`, as chunks.
fn read(bytes: &[u8]) -> Result<(u64, Vec<(u64, Vec<u8>)>), ImageError> {
    let reader = Reader::open(bytes, Format::Qcow2, LIMIT_BYTES)?;
    let mut chunks: Vec<(u64, Vec<u8>)> = Vec::new();
    let outcome = reader.chunks(|at, chunk| {
        chunks.push((at, chunk.to_vec()));
        Ok::<_, ImageError>(())
    });
    let size_bytes = reader.size_bytes();
    let mut free_from = 0;
    for (at, chunk) in &chunks {
        assert!(*at >= free_from && at % CHUNK_BYTES as u64 == 0);
        let len = (size_bytes - at).min(CHUNK_BYTES as u64) as usize;
        assert!(chunk.len() == len && chunk.iter().any(|b| *b != 0));
        free_from = at + len as u64;
    }
    // A chunk takes a byte that is not zero, and each is of the file or deflated.
    assert!(chunks.len() <= bytes.len() * DEFLATE);
    outcome.map(|()| (size_bytes, chunks))
}

fuzz_target!(|bytes: &[u8]| {
    let Ok((size_bytes, chunks)) = read(bytes) else {
        return;
    };
    let mut again = Vec::new();
    let mut writer = Writer::new(&mut again, Format::Qcow2, size_bytes).unwrap();
    for (at, chunk) in &chunks {
        writer.put(*at, chunk).unwrap();
    }
    writer.finish().unwrap();
    assert!(read(&again).unwrap() == (size_bytes, chunks));
});
