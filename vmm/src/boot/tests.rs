//! Kernel images that somebody else made.

use super::*;
use proptest::prelude::*;
use std::io::Write;
use vm_memory::Bytes;

/// An ELF header, one loadable segment and a PVH note.
fn elf() -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0x10_0000u64, 64, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, offset, at, len) in [(1u32, 196u64, 0x10_0000u64, 8u64), (4, 176, 0, 20)] {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&7u32.to_le_bytes());
        for word in [offset, at, at, len, len, 4] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&[0xf4; 8]);
    out
}

/// A bzImage header of protocol 2.15 and a little "kernel".
fn bzimage() -> Vec<u8> {
    let mut out = vec![0u8; 2048];
    out[0x1f1] = 1;
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    out[0x211] = 1;
    out[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    out[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
    out[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
    out[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    out[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    out
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn load_bytes(kernel: &[u8], initrd: Option<&[u8]>) -> (Result<Entry>, GuestRam) {
    let ram = memory::create(16).unwrap();
    let payload = Payload {
        kernel: file(kernel),
        initrd: initrd.map(file),
        cmdline: "console=ttyS0",
    };
    (load(&ram, payload), ram)
}

#[test]
fn an_elf_kernel_gets_its_start_info() {
    let (entry, ram) = load_bytes(&elf(), Some(&[7; 5000]));
    assert_eq!(entry.unwrap(), Entry::Pvh { ip: 0x10_0000 });
    let word = |at: u64| -> u64 { ram.read_obj(GuestAddress(at)).unwrap() };
    let info = layout::PVH_START_INFO;
    assert_eq!(word(info), 1 << 32 | 0x336e_c578);
    assert_eq!(word(info + 24), layout::CMDLINE);
    assert_eq!(word(info + 32), layout::ACPI_TABLES);
    let initrd = word(word(info + 16));
    assert_eq!((initrd, word(word(info + 16) + 8)), (0xff_e000, 5000));
    assert_eq!(word(initrd), 0x0707_0707_0707_0707);
    let first = word(info + 40);
    assert_eq!((word(first), word(first + 8)), (0, layout::LOW_RAM_END));
}

#[test]
fn a_bzimage_gets_its_zero_page() {
    let (entry, ram) = load_bytes(&bzimage(), None);
    assert_eq!(entry.unwrap(), Entry::Linux64 { ip: 0x10_0200 });
    let zero = layout::ZERO_PAGE;
    let cmdline: u32 = ram.read_obj(GuestAddress(zero + 0x228)).unwrap();
    assert_eq!(u64::from(cmdline), layout::CMDLINE);
    let rsdp: u64 = ram.read_obj(GuestAddress(zero + 0x70)).unwrap();
    assert_eq!(rsdp, layout::ACPI_TABLES);
    let ranges: u8 = ram.read_obj(GuestAddress(zero + 0x1e8)).unwrap();
    assert_eq!(ranges, 4);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut large = bzimage();
    large[0x260..0x264].copy_from_slice(&(1u32 << 30).to_le_bytes());
    let mut old = bzimage();
    old[0x206] = 0;
    let big = vec![0; 15 << 20];
    let big = [big, vec![0; 1 << 19]].concat();
    let mut outside = elf();
    let entry = outside.len() - 12;
    outside[entry..entry + 4].copy_from_slice(&0x6a10_0000u32.to_le_bytes());
    for (kernel, initrd, expected) in [
        (
            outside,
            None,
            "begins at 0x6a100000, where the guest has no memory",
        ),
        (large, None, "needs memory up to"),
        (old, None, "has no 64-bit entry"),
        (elf(), Some(&big[..]), "do not fit between"),
        (bzimage(), Some(&big[..]), "do not fit between"),
    ] {
        let error = load_bytes(&kernel, initrd).0.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any image loads or is refused.
    #[test]
    fn fuzz_kernel_images(
        is_elf in any::<bool>(),
        changes in proptest::collection::vec(
            (0..700usize, prop_oneof![any::<u8>(), Just(0u8), Just(0xff), Just(0x7f)]), 0..12),
        keep in 0..2048usize,
    ) {
        let mut image = if is_elf { elf() } else { bzimage() };
        let len = image.len();
        for (at, value) in changes {
            image[at % len] = value;
        }
        if keep < len / 2 {
            image.truncate(keep);
        }
        let _ = load_bytes(&image, Some(&[1; 100])).0;
    }
}
