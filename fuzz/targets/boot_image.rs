//! A kernel file that somebody else made, loaded into guest memory.
//!
//! What loads has an entry inside of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_vmm::boot::{Blob, Entry, Payload, load};
use ocs_vmm::memory::{self, GuestRam};
use std::io::{self, Cursor};
use std::sync::LazyLock;
use vm_memory::{Bytes, GuestAddress};

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
        kernel: Cursor::new(kernel),
        initrd: (!initrd.is_empty()).then_some(Initrd(initrd)),
        cmdline: "console=ttyS0",
    };
    if let Ok(Entry::Pvh { ip } | Entry::Linux64 { ip }) = load(&RAM, payload) {
        assert!(ip < MEMORY_MIB << 20, "entry {ip:#x} outside of memory");
    }
});

struct Initrd<'a>(&'a [u8]);

impl Blob for Initrd<'_> {
    fn bytes(&mut self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn fill(&mut self, ram: &GuestRam, at: GuestAddress, bytes: usize) -> io::Result<()> {
        assert_eq!(bytes, self.0.len());
        ram.write_slice(self.0, at).map_err(io::Error::other)
    }
}
