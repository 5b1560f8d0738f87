//! A snapshot's files, made by somebody else: the state's sections, each part's own bytes, the
//! memory file's header and table.
//!
//! What a part takes, it gives back as it was. Checksums are not guessed but made to fit, so that
//! what lies behind them is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_vmm::legacy::rtc::Rtc;
use ocs_vmm::lifecycle::Lifecycle;
use ocs_vmm::pci::root::PciRoot;
use ocs_vmm::persist::{Sections, State, Writer};
use ocs_vmm::snapshot::memory_file::{MAX_EXTENT_BYTES, MemoryFile, MemoryWriter};
use ocs_vmm::snapshot::restore::Loading;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

/// Inputs write over each other's: making one anew takes most of an input's time.
static FILE: LazyLock<File> =
    LazyLock::new(|| File::from(memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memfd")));

fuzz_target!(
    |data: (&[u8], Vec<(u8, u16, Vec<u8>)>, Vec<(u32, u16)>, &[u8])| {
        let (raw, sections, extents, patch) = data;
        let _ = Sections::parse(raw);
        let _ = Loading::parse(raw);
        if !sections.is_empty() {
            parts(&sections);
        }
        if !extents.is_empty() || !patch.is_empty() {
            memory(&extents, patch);
        }
    }
);

/// Sections that are well formed, with contents that may not be.
fn parts(sections: &[(u8, u16, Vec<u8>)]) {
    let names = ["machine", "rtc", "pci"];
    let mut writer = Writer::default();
    for (name, version, bytes) in sections {
        let state = State {
            version: version % 3,
            bytes: bytes.clone(),
        };
        let name = names[usize::from(*name) % names.len()];
        writer.add(name, &state);
        let part: &dyn Lifecycle = match name {
            "rtc" => &Rtc::default(),
            "pci" => &PciRoot::default(),
            _ => continue,
        };
        if part.load(&state).is_ok() {
            let again = part.save().expect("a loaded part can be saved");
            part.load(&again).expect("what was saved can be loaded");
            assert_eq!(part.save().expect("twice"), again);
        }
    }
    let bytes = writer.finish();
    let distinct: std::collections::BTreeSet<_> =
        sections.iter().map(|(name, _, _)| name % 3).collect();
    let parsed = Sections::parse(&bytes);
    assert_eq!(
        parsed.is_ok(),
        distinct.len() == sections.len(),
        "{parsed:?}"
    );
    let _ = Loading::parse(&bytes);
}

/// A file whose checksums hold opens only if its extents are in order and inside memory.
fn memory(extents: &[(u32, u16)], patch: &[u8]) {
    const PAGE: u64 = 4096;
    const MEMORY_BYTES: u64 = 1 << 20;
    let file = &*FILE;
    let mut writer = MemoryWriter::new(file, MEMORY_BYTES).expect("an empty file");
    let (mut end, mut good) = (0, true);
    for (page, pages) in extents.iter().take(16) {
        let at = u64::from(page % 512) * PAGE;
        // Few are long, which costs more than it shows.
        let most = if pages >> 8 == 0xff { 64 } else { 2 };
        let bytes = u64::from(pages % most + 1) * PAGE;
        let chunk = vec![1; (bytes as usize).min(MAX_EXTENT_BYTES)];
        writer.write(at, &chunk).expect("room");
        good &= at >= end && at + chunk.len() as u64 <= MEMORY_BYTES;
        end = at + chunk.len() as u64;
    }
    writer.finish([1; 16], None).expect("room");
    let opened = MemoryFile::open(file.try_clone().expect("a descriptor"));
    assert_eq!(opened.is_ok(), good, "{opened:?}");
    if let Ok(opened) = opened {
        assert!(
            opened
                .extents
                .iter()
                .all(|e| e.at + u64::from(e.bytes) <= MEMORY_BYTES)
        );
    }
    // Any change of the header is refused, or changes nothing.
    if !patch.is_empty() {
        let patch = &patch[..patch.len().min(100)];
        file.write_all_at(patch, 0).expect("room");
        let _ = MemoryFile::open(file.try_clone().expect("a descriptor"));
    }
}
