//! Disks that `mke2fs` made, and disks that somebody made to hurt.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

const MIB: usize = 1 << 20;

/// A file system of 4 MiB with what `fill` puts into a folder.
fn ext4(options: &[&str], fill: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    fs::create_dir_all(root.join("boot")).unwrap();
    fill(&root);
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-E", "root_owner=0:0"])
        .args(options)
        .arg("-d")
        .args([&root, &image])
        .arg("4M")
        .stdout(std::process::Stdio::null())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status()
        .expect("mke2fs, of Debian's e2fsprogs");
    assert!(made.success());
    fs::read(image).unwrap()
}

/// Two kernels; the newer one is 300,000 bytes.
fn two_kernels(root: &Path) {
    for (name, content) in [
        ("vmlinuz-6.1.0-9", vec![9; 10]),
        ("vmlinuz-6.1.0-10", vec![10; 300_000]),
        ("initrd.img-6.1.0-10", vec![7; 5001]),
    ] {
        fs::write(root.join("boot").join(name), content).unwrap();
    }
}

static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| ext4(&["-t", "ext4"], two_kernels));

/// `partitions` behind a table, with unique ids 1, 2, …
fn gpt(partitions: &[&[u8]]) -> Vec<u8> {
    let mut disk = vec![0; MIB];
    let mut table = vec![0; 128 * 128];
    for (number, content) in partitions.iter().enumerate() {
        let entry = &mut table[number * 128..][..128];
        let (first, sectors) = (disk.len() / 512, content.len() / 512);
        entry[..16].fill(0xaf);
        entry[16] = number as u8 + 1;
        entry[32..40].copy_from_slice(&(first as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&((first + sectors - 1) as u64).to_le_bytes());
        disk.extend_from_slice(content);
    }
    disk.resize(disk.len() + MIB, 0);
    let mut header = [0u8; 92];
    header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
    header[24] = 1;
    header[72] = 2;
    header[80..84].copy_from_slice(&128u32.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    header[88..].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
    let checksum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    disk[512..604].copy_from_slice(&header);
    disk[1024..1024 + table.len()].copy_from_slice(&table);
    disk
}

fn found(disk: Vec<u8>) -> Found {
    find(Box::new(disk)).unwrap()
}

fn refused(disk: Vec<u8>) -> String {
    find(Box::new(disk)).unwrap_err()
}

#[test]
fn the_newest_kernel_of_a_bare_file_system_is_found() {
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext4", "-b", "1024", "-O", "^64bit"],
        &["-t", "ext4", "-O", "^metadata_csum,^orphan_file"],
        &["-t", "ext2", "-b", "1024"],
    ] {
        let found = found(ext4(options, two_kernels));
        assert_eq!(found.kernel, vec![10; 300_000], "{options:?}");
        assert_eq!(found.cmdline, "root=/dev/vda ro console=ttyS0");
        let mut initrds = Initrds(found.initrds);
        assert_eq!(initrds.bytes().unwrap(), 5001);
        let ram = crate::memory::create(16).unwrap();
        initrds.fill(&ram, GuestAddress(4096), 5001).unwrap();
        let mut content = vec![0; 5002];
        ram.read_slice(&mut content, GuestAddress(4096)).unwrap();
        assert_eq!(content[..5001], [7; 5001]);
        assert_eq!(content[5001], 0);
    }
}

#[test]
fn a_partition_is_found_and_named_as_root() {
    let fat = vec![0xeb; MIB];
    let found = found(gpt(&[&fat, &PLAIN]));
    assert_eq!(found.kernel.len(), 300_000);
    assert_eq!(
        found.cmdline,
        "root=PARTUUID=00000002-0000-0000-0000-000000000000 ro console=ttyS0"
    );
}

#[test]
fn menus_name_files_from_the_root_of_their_file_system_or_from_boot() {
    // A partition that a running system mounts at /boot, as Fedora has it.
    let own = ext4(&["-t", "ext4"], |root| {
        fs::create_dir_all(root.join("loader/entries")).unwrap();
        fs::write(root.join("vmlinuz-6"), "kernel").unwrap();
        fs::write(root.join("a"), "12345").unwrap();
        fs::write(root.join("b"), "123").unwrap();
        let entry = "version 6\nlinux /vmlinuz-6\ninitrd /a /boot/b\noptions root=UUID=7 ro\n";
        fs::write(root.join("loader/entries/x.conf"), entry).unwrap();
    });
    let one = found(gpt(&[&own]));
    assert_eq!(
        (&one.kernel[..], &one.cmdline[..]),
        (&b"kernel"[..], "root=UUID=7 ro")
    );
    assert_eq!(Initrds(one.initrds).bytes().unwrap(), 8 + 3);
    // Debian's: all in one file system; links are followed inside of it.
    let debian = ext4(&["-t", "ext4"], |root| {
        two_kernels(root);
        std::os::unix::fs::symlink("vmlinuz-6.1.0-9", root.join("boot/vmlinuz")).unwrap();
        fs::create_dir_all(root.join("boot/grub")).unwrap();
        let menu = "menuentry 'x' {\n linux /boot/vmlinuz root=UUID=3 ro\n}\n";
        fs::write(root.join("boot/grub/grub.cfg"), menu).unwrap();
    });
    let one = found(debian);
    assert_eq!(
        (one.kernel, &one.cmdline[..]),
        (vec![9; 10], "root=UUID=3 ro")
    );
}

#[test]
fn what_was_not_unmounted_is_read_through_its_journal_or_refused() {
    // `needs_recovery` of a journal that is empty: nothing to replay.
    let mut disk = ext4(
        &[
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,^orphan_file",
            "-J",
            "size=1",
        ],
        two_kernels,
    );
    disk[1024 + 0x60] |= 4;
    let outcome = find(Box::new(disk));
    assert!(
        outcome.is_ok() || outcome.as_ref().unwrap_err().contains("ournal"),
        "{outcome:?}"
    );
}

#[test]
fn hostile_disks_are_refused_by_name() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut disk = PLAIN.clone();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    };
    let looped = ext4(&["-t", "ext4"], |root| {
        for (link, to) in [("vmlinuz-1", "vmlinuz-2"), ("vmlinuz-2", "vmlinuz-1")] {
            std::os::unix::fs::symlink(to, root.join("boot").join(link)).unwrap();
        }
    });
    let huge = ext4(&["-t", "ext4"], |root| {
        let file = fs::File::create(root.join("boot/vmlinuz-1")).unwrap();
        file.set_len(1 << 40).unwrap();
    });
    let endless = {
        let link = |root: &Path| {
            std::os::unix::fs::symlink("vmlinuz", root.join("boot/vmlinuz-1")).unwrap();
        };
        let image = tempfile::NamedTempFile::new().unwrap();
        fs::write(image.path(), ext4(&["-t", "ext4"], link)).unwrap();
        let made = Command::new("debugfs")
            .args([
                "-w",
                "-R",
                "set_inode_field /boot/vmlinuz-1 size 0x10000000000",
            ])
            .arg(image.path())
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("debugfs, of Debian's e2fsprogs");
        assert!(made.status.success(), "{made:?}");
        fs::read(image.path()).unwrap()
    };
    let many = ext4(&["-t", "ext4", "-N", "5000", "-b", "1024"], |root| {
        for n in 0..4200 {
            fs::write(root.join("boot").join(format!("f{n}")), "").unwrap();
        }
    });
    let outside = {
        let mut disk = gpt(&[&PLAIN]);
        disk.truncate(MIB + 512);
        disk
    };
    let mut bent = gpt(&[&PLAIN]);
    bent[1024 + 40] ^= 1;
    let mut cut = PLAIN.clone();
    cut.truncate(MIB);
    for (what, disk, expected) in [
        ("empty", vec![0; 100], "hold nothing"),
        ("zeros", vec![0; MIB], "no ext4 file system"),
        ("cut", cut, "blocks in"),
        ("blocks", patched(1024 + 4, &[0xff; 4]), "blocks in"),
        (
            "block size",
            patched(1024 + 0x18, &[16, 0, 0, 0]),
            "of 2^16 KiB each",
        ),
        (
            "groups",
            patched(1024 + 0x20, &[0, 0, 0, 0]),
            "cannot be read",
        ),
        ("checksum", patched(1024 + 0x68, &[9; 4]), "cannot be read"),
        (
            "no kernel",
            ext4(&["-t", "ext4"], |_| {}),
            "the disk has none",
        ),
        ("loop", looped, "vmlinuz-2: too many levels"),
        ("endless link", endless, "path is too long"),
        ("huge", huge, "more than 134217728"),
        ("many files", many, "more than 4096 files"),
        ("outside", outside, "partition 1 at sectors"),
        ("table", bent, "entries with a wrong checksum"),
    ] {
        let problem = refused(disk);
        assert!(problem.contains(expected), "{what}: {problem}");
    }
}

/// A disk that claims more than is there, and reads as one that counts.
struct Endless(u64);

impl DiskBytes for Endless {
    fn bytes(&self) -> u64 {
        1 << 50
    }

    fn read_at(&mut self, _at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0 += into.len() as u64;
        into.fill(0xff);
        Ok(())
    }
}

#[test]
fn no_more_is_read_than_the_limit() {
    let mut source = Source {
        disk: Box::new(Endless(0)),
        left_bytes: 10,
    };
    let mut into = [0; 6];
    source.read_at(0, &mut into).unwrap();
    let error = source.read_at(0, &mut into).unwrap_err().to_string();
    assert!(error.contains("more than 4294967296 bytes"), "{error}");
    assert!(find(Box::new(Endless(0))).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    /// Whatever is changed in a file system without checksums: found or refused.
    #[test]
    fn changed_file_systems_are_found_or_refused(
        changes in proptest::collection::vec((0..64usize, 0..1024usize, any::<u8>()), 1..8),
    ) {
        static BARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            ext4(&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^orphan_file"], two_kernels)
        });
        let mut disk = BARE.clone();
        // Superblock, descriptors, bitmaps, the first inodes and folders.
        for (block, at, value) in changes {
            disk[block * 1024 + at] = value;
        }
        let _ = find(Box::new(disk));
    }
}
