//! A block request as a driver wrote it: the header, its lengths, its sectors.
//!
//! What the parser accepts lies inside the volume and inside the chain's buffers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_storaged::queue::Descriptor;
use ocs_storaged::request::{Kind, Limits, parse};

const MEMORY_BYTES: u64 = 4096;

fuzz_target!(|data: (Vec<(u16, u16, bool)>, bool, bool, u16, Vec<u8>)| {
    let (chain, read_only, zeroes, blocks, memory) = data;
    let chain: Vec<Descriptor> = chain
        .iter()
        .take(64)
        .map(|(addr, len, writable)| Descriptor {
            addr: u64::from(*addr) % MEMORY_BYTES,
            len: u32::from(*len),
            writable: *writable,
        })
        .collect();
    let limits = Limits {
        size_bytes: u64::from(blocks) * 4096,
        read_only,
        zeroes,
    };
    let read = |at: u64, into: &mut [u8]| {
        let at = at as usize;
        memory
            .get(at..at + into.len())
            .map(|bytes| into.copy_from_slice(bytes))
            .is_some()
    };
    let mut segments = Vec::new();
    let Ok(request) = parse(&chain, &limits, &mut segments, read) else {
        return;
    };
    let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
    match request.kind {
        Kind::Read(at) => assert!(at + bytes <= limits.size_bytes),
        Kind::Write(at) => assert!(!read_only && at + bytes <= limits.size_bytes),
        _ => {}
    }
    for segment in &segments {
        assert!(chain.iter().any(|d| {
            d.addr <= segment.addr
                && segment.addr + u64::from(segment.len) <= d.addr + u64::from(d.len)
        }));
    }
});
