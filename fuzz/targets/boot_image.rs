//! A kernel file that somebody else made, loaded into guest memory.
//!
//! What loads has an entry inside of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_vmm::boot::{Entry, Payload, load};
use ocs_vmm::memory::{self, GuestRam};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Seek, Write};
use std::sync::LazyLock;

const MEMORY_MIB: u64 = 16;

static RAM: LazyLock<GuestRam> = LazyLock::new(|| memory::create(MEMORY_MIB).expect("memory"));

/// Kernels that load, of which the input says what is changed: ELF with a PVH note, bzImage.
const PLAIN: [&[u8]; 2] = [
    include_bytes!("../data/kernel.elf"),
    include_bytes!("../data/kernel.bzimage"),
];

fuzz_target!(|data: (u8, Vec<(u16, u8)>, u16, &[u8], &[u8])| {
    let (kind, changes, keep, initrd, raw) = data;
    let mut kernel = match PLAIN.get(usize::from(kind % 4)) {
        Some(plain) => plain.to_vec(),
        None => raw.to_vec(),
    };
    for (at, value) in changes.iter().take(64) {
        let len = kernel.len().max(1);
        if let Some(byte) = kernel.get_mut(usize::from(*at) % len) {
            *byte = *value;
        }
    }
    if kind & 0x80 != 0 {
        kernel.truncate(keep.into());
    }
    let payload = Payload {
        kernel: file(&kernel),
        initrd: (!initrd.is_empty()).then(|| file(initrd)),
        cmdline: "console=ttyS0",
    };
    if let Ok(Entry::Pvh { ip } | Entry::Linux64 { ip }) = load(&RAM, payload) {
        assert!(ip < MEMORY_MIB << 20, "entry {ip:#x} outside of memory");
    }
});

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("memory for the input");
    file.rewind().expect("a file");
    file
}
