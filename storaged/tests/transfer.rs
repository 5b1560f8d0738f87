//! Import and export: QEMU is the judge of files, a guest of volumes.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{Client, ErrorCode, Format, Reply, Request, VolumeKind, VolumeName};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB;
use VolumeKind::Persistent;

/// Runs qemu-img (Debian: qemu-utils), which must succeed.
fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output();
    let output = output.expect("qemu-img is needed: apt-get install qemu-utils");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {error}");
}

/// A raw disk with data, zeros and holes, and its qcow2.
fn disks(dir: &Path, options: &[&str]) -> (PathBuf, PathBuf) {
    let (raw, qcow2) = (dir.join("disk.raw"), dir.join("disk.qcow2"));
    let file = File::create(&raw).unwrap();
    file.set_len(SIZE - MIB).unwrap();
    for (at, bytes) in [
        (0, pattern(1, 70_000)),
        (3 * MIB + 512, b"attack at dawn, ".repeat(20_000)),
        (8 * MIB, vec![0; 100_000]),
        (SIZE - MIB - 512, pattern(2, 512)),
    ] {
        file.write_all_at(&bytes, at).unwrap();
    }
    let args = ["convert", "-f", "raw", "-O", "qcow2"];
    qemu_img(&[&args[..], options, &[path(&raw), path(&qcow2)]].concat());
    (raw, qcow2)
}

fn import(host: &Host, volume: &str, format: Format, from: &Path) -> Result<(), String> {
    let volume = VolumeName(volume.into());
    let request = Request::Import { volume, format };
    host.ask_on(&request, &File::open(from).unwrap())
}

fn export(host: &Host, of: &str, format: Format, decrypt: bool, to: &Path) -> Result<(), String> {
    let request = Request::Export {
        of: VolumeName(of.into()),
        format,
        decrypt,
    };
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true);
    host.ask_on(&request, &file.open(to).unwrap())
}

fn compare(a: (&str, &Path), b: (&str, &Path)) {
    for (format, file) in [a, b] {
        if format == "qcow2" {
            qemu_img(&["check", "-f", "qcow2", path(file)]);
        }
    }
    qemu_img(&["compare", "-f", a.0, "-F", b.0, path(a.1), path(b.1)]);
}

#[test]
fn what_is_imported_is_served_and_exported_alike() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (n, options) in [
        &[][..],
        &["-c"],
        &["-o", "compat=0.10,cluster_size=512"],
        &["-c", "-o", "cluster_size=2M"],
    ]
    .iter()
    .enumerate()
    {
        let (raw, qcow2) = disks(dir.path(), options);
        let name = format!("vol-{n}");
        let encrypted = n == 1;
        host.put_of(&name, SIZE, None, encrypted).unwrap();
        import(&host, &name, Format::Qcow2, &qcow2).unwrap();
        if encrypted {
            assert!(!host.holds(b"attack at dawn, "));
            let refused = export(&host, &name, Format::Raw, false, &at("no"));
            assert!(refused.unwrap_err().contains("decrypt: vol-1 is encrypted"));
        }
        export(&host, &name, Format::Qcow2, encrypted, &at("out.qcow2")).unwrap();
        compare(("raw", &raw), ("qcow2", &at("out.qcow2")));
        // As raw, again in, and again out.
        export(&host, &name, Format::Raw, encrypted, &at("out.raw")).unwrap();
        compare(("qcow2", &qcow2), ("raw", &at("out.raw")));
        import(&host, &name, Format::Raw, &at("out.raw")).unwrap();
        let (mut guest, listener) = host.guest(&name);
        let expected = std::fs::read(&raw).unwrap();
        for offset in (0..SIZE - MIB).step_by(128 * 1024) {
            let part = &expected[offset as usize..][..128 * 1024];
            assert!(guest.read_at(offset, 128 * 1024) == part, "{options:?}");
        }
        assert_eq!(guest.read_at(SIZE - MIB, 4096), [0; 4096]);
        // What the guest changes then is in the next file, and so is a snapshot's.
        assert_eq!(guest.write_at(5 * MIB + 512, &pattern(7, 4096)), 0);
        let snapshot = format!("snap-{n}");
        host.snapshot(&snapshot, &name).unwrap();
        guest.attach(accept(&listener));
        assert_eq!(guest.write_at(5 * MIB + 512, &pattern(8, 4096)), 0);
        let busy = export(&host, &name, Format::Raw, encrypted, &at("no"));
        assert!(busy.unwrap_err().contains("is attached to"));
        let busy = import(&host, &name, Format::Raw, &raw);
        assert!(busy.unwrap_err().contains("is attached to"));
        let mut wanted = expected;
        wanted.resize(SIZE as usize, 0);
        for (of, seed) in [(&snapshot, 7), (&name, 8)] {
            wanted[5 * MIB as usize + 512..][..4096].copy_from_slice(&pattern(seed, 4096));
            std::fs::write(at("wanted.raw"), &wanted).unwrap();
            if seed == 8 {
                host.detach(&name);
            }
            export(&host, of, Format::Qcow2, encrypted, &at("out.qcow2")).unwrap();
            compare(("raw", &at("wanted.raw")), ("qcow2", &at("out.qcow2")));
        }
        // A snapshot keeps what an import replaces; when it goes, so does the space.
        import(&host, &name, Format::Qcow2, &qcow2).unwrap();
        host.put_of("of", SIZE, Some(&snapshot), encrypted).unwrap();
        export(&host, "of", Format::Raw, encrypted, &at("out.raw")).unwrap();
        wanted[5 * MIB as usize + 512..][..4096].copy_from_slice(&pattern(7, 4096));
        assert!(std::fs::read(at("out.raw")).unwrap() == wanted);
        for gone in ["of", &name] {
            host.delete(gone);
        }
        host.delete_snapshot(&snapshot);
        assert!(host.files(".layer").is_empty() && host.files(".map").is_empty());
    }
}

#[test]
fn what_cannot_be_imported_is_named_and_changes_nothing() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let (raw, qcow2) = disks(dir.path(), &["-c"]);
    host.put("vol-1", SIZE, Persistent, None).unwrap();
    host.put("vol-2", SIZE - 2 * MIB, Persistent, None).unwrap();
    host.put("e-1", SIZE, VolumeKind::Ephemeral, None).unwrap();
    import(&host, "vol-1", Format::Raw, &raw).unwrap();
    let before = host.files("");
    let bad = dir.path().join("bad.qcow2");
    let sound = std::fs::read(&qcow2).unwrap();
    let word = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let l1 = word(40) as usize;
    let patched = |at: usize, bytes: &[u8]| {
        let mut all = sound.clone();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        all
    };
    for (bytes, name) in [
        (sound[..60].to_vec(), "the header at 0 needs 72"),
        (sound[..sound.len() / 2].to_vec(), "past the file's end"),
        (patched(8, &[0, 0, 0, 0, 0, 0, 1, 0]), "backing_file_offset"),
        (patched(20, &[0, 0, 0, 30]), "cluster_bits"),
        (patched(36, &[0; 4]), "l1_size"),
        (patched(40, &[0xff; 8]), "l1_table_offset"),
        (patched(l1, &[0x80, 0, 0, 0, 0, 1, 0, 1]), "L1 entry 0"),
        (patched(79, &[4]), "external data file"),
        (b"garbage".repeat(100), "magic"),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        let error = import(&host, "vol-1", Format::Qcow2, &bad).unwrap_err();
        assert!(error.contains(name), "{name}: {error}");
        assert!(host.files("") == before, "{name}");
    }
    let large = import(&host, "vol-2", Format::Qcow2, &qcow2).unwrap_err();
    assert!(large.contains("size: the image has"), "{large}");
    let store = import(&host, "e-1", Format::Raw, &raw).unwrap_err();
    assert!(store.contains("instance store"), "{store}");
    let folder = import(&host, "vol-1", Format::Raw, dir.path()).unwrap_err();
    assert!(folder.contains("not a regular file"), "{folder}");
    let volume = VolumeName("vol-1".into());
    let format = Format::Raw;
    let none = host.ask(&Request::Import { volume, format });
    assert_eq!(none, Err(ErrorCode::Invalid));
    let out = dir.path().join("out.raw");
    export(&host, "vol-1", Format::Raw, false, &out).unwrap();
    compare(("raw", &raw), ("raw", &out));
}

/// Asks for an import and lets `meanwhile` happen; was it answered, and done?
fn during(host: &mut Host, raw: &Path, delay_ms: u64, meanwhile: impl FnOnce(&mut Host)) -> bool {
    let socket = host.dir.path().join("control.sock");
    drop(host.client());
    let file = File::open(raw).unwrap();
    let asking = std::thread::spawn(move || {
        let request = Request::Import {
            volume: VolumeName("vol-1".into()),
            format: Format::Raw,
        };
        let mut client = Client::connect(&socket, PATIENCE)?;
        client.call_on(&request, file.as_fd())
    });
    std::thread::sleep(std::time::Duration::from_millis(delay_ms));
    meanwhile(host);
    matches!(asking.join().unwrap(), Ok(Reply::Ok))
}

#[test]
fn killed_at_any_moment_of_an_import_a_volume_is_what_it_was_or_shall_be() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("large.raw");
    std::fs::write(&raw, pattern(3, 24 << 20)).unwrap();
    let out = dir.path().join("out.raw");
    host.put("vol-1", 24 * MIB, Persistent, None).unwrap();
    let mut done = 0;
    for (n, delay_ms) in [0, 2, 5, 10, 20, 40, 80, 160, 320].into_iter().enumerate() {
        // From a plain file, and from layers.
        let (mut guest, _listener) = host.guest("vol-1");
        let before = pattern(n as u64 + 10, 4096);
        assert_eq!(guest.write_at(0, &before), 0);
        host.detach("vol-1");
        std::fs::remove_file(host.dir.path().join("vol-1.sock")).unwrap();
        let answered = during(&mut host, &raw, delay_ms, Host::crash);
        export(&host, "vol-1", Format::Raw, false, &out).unwrap();
        let now = std::fs::read(&out).unwrap();
        if now == std::fs::read(&raw).unwrap() {
            done += 1;
        } else {
            assert!(!answered && now[..4096] == before, "{delay_ms}");
        }
        let layers = host.files(".layer").len() + host.files(".raw").len();
        assert_eq!(layers, 1, "{delay_ms}: nothing is left over");
        assert!(host.files(".tmp").is_empty());
    }
    // An upgrade does not wait for an import; what it cuts off leaves nothing either.
    let answered = during(&mut host, &raw, 1, |host| {
        let mut old = host.upgrade();
        assert!(old.0.wait().unwrap().success());
        drop(host.client());
    });
    assert!(host.files(".layer").len() + host.files(".raw").len() == 1);
    println!("{done} of 9 kills came too late; the upgrade did: {answered}");
}
