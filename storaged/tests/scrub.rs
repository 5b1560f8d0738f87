//! Scrubbing: what rots in a frozen layer is found and named, and nothing else is.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{Reply, Request, Scrub, VolumeKind};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const G: u64 = 64 * 1024;
/// As fast as it goes, again and again.
const FAST: [&str; 4] = ["--scrub-bytes-s", "100000000000", "--scrub-pause-s", "0"];

fn scrub(host: &Host) -> Scrub {
    match host.ask(&Request::Scrub).unwrap() {
        Reply::Scrub { scrub } => scrub,
        other => panic!("{other:?}"),
    }
}

/// Waits for two whole passes: the second began after this was asked.
fn passed(host: &Host) -> Scrub {
    let before = scrub(host).passes;
    wait("two passes", || {
        Some(scrub(host)).filter(|now| now.passes >= before + 2)
    })
}

/// The layer that holds `needle`, and where.
fn find(host: &Host, needle: &[u8]) -> (PathBuf, u64) {
    let mut places = host.files(".layer").into_iter().filter_map(|path| {
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(needle.len()).position(|w| w == needle)?;
        Some((path, at as u64))
    });
    places.next().expect("some layer holds it")
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_flipped_bit_is_found_and_named_and_nothing_else_is() {
    let mut host = Host::with(0, &FAST);
    let image = pattern(9, 1 << 20);
    std::fs::write(host.dir.path().join("images/os"), &image).unwrap();
    host.put("vol-1", 16 * MIB, VolumeKind::Persistent, Some("os"))
        .unwrap();
    let (mut guest, listener) = host.guest("vol-1");
    assert_eq!(guest.write_at(4 * MIB, &pattern(1, 200_704)), 0);
    host.snapshot("snap-1", "vol-1").unwrap();
    guest.attach(accept(&listener));
    // Also while the guest goes on, above what is frozen.
    for n in 0..40 {
        let other = pattern(100 + n, 4096);
        assert_eq!(guest.write_at(8 * MIB + n * 4096, &other), 0);
    }
    let clean = passed(&host);
    assert_eq!(clean.sealed_bytes, MIB + 4 * G, "image and snapshot, once");
    assert!(clean.checked_bytes >= 2 * clean.sealed_bytes);
    assert_eq!((&clean.damage[..], clean.damaged_sums), (&[][..], 0));
    // One bit of what both have.
    let (layer, at) = find(&host, &pattern(1, 4096)[1000..1040]);
    flip(&layer, at);
    let found = passed(&host).damage;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(layer.file_name().unwrap().to_str().unwrap(), found[0].layer);
    assert_eq!(found[0].offset, 4 * MIB);
    let of: Vec<&str> = found[0].of.iter().map(|name| name.0.as_str()).collect();
    assert_eq!(of, ["snap-1", "vol-1"]);
    assert_eq!(host.list()[0].damaged_bytes, G);
    assert_eq!(host.snapshots()[0].damaged_bytes, G);
    flip(&layer, at);
    assert_eq!(passed(&host).damage, [], "as it was");
    // Of an image.
    let (shared, in_image) = find(&host, &image[500_000..500_040]);
    flip(&shared, in_image);
    assert_eq!(passed(&host).damage[0].offset, 500_000 / G * G);
    flip(&shared, in_image);
    // Data that is gone.
    let bytes = std::fs::read(&layer).unwrap();
    let file = File::options().write(true).open(&layer).unwrap();
    file.set_len(4 * MIB).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    assert_eq!(passed(&host).damage.len(), 4);
    file.write_all_at(&bytes[4 << 20..], 4 * MIB).unwrap();
    assert_eq!(passed(&host).damage, []);
    // A checksum of its own.
    let sums = layer.with_extension("sums");
    flip(&sums, 4 * MIB / G * 8 + 2);
    let again = passed(&host);
    assert_eq!((again.damage.len(), again.damaged_sums), (0, 1));
    // A new storaged holds all to the old checksums.
    host.daemon.kill();
    host.daemon = Host::start_with(&host.dir, 0, &FAST);
    guest.attach(accept(&listener));
    assert_eq!(passed(&host).sealed_bytes, 0);
    // A map.
    host.put_of("vol-2", 16 * MIB, Some("snap-1"), false)
        .unwrap();
    let map = host.files("vol-2.map").remove(0);
    flip(&map, 100);
    let maps = passed(&host).damaged_maps;
    assert_eq!(
        maps.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(),
        ["vol-2"]
    );
    flip(&map, 100);
    assert_eq!(passed(&host).damaged_maps, []);
    host.delete("vol-2");
    // What is freed is not missed, and leaves no checksums.
    assert_eq!(guest.write_at(4 * MIB, &pattern(2, 2 * G as usize)), 0);
    host.delete_snapshot("snap-1");
    let freed = passed(&host);
    assert_eq!((freed.damage.len(), freed.damaged_sums), (0, 0));
    host.delete("vol-1");
    passed(&host);
    assert!(host.files(".layer").is_empty() && host.files(".sums").is_empty());
}

#[test]
fn a_pace_is_held_and_none_is_none() {
    let host = Host::with(0, &["--scrub-bytes-s", "655360", "--scrub-pause-s", "0"]);
    std::fs::write(host.dir.path().join("images/os"), pattern(9, 4 << 20)).unwrap();
    host.put("vol-1", 16 * MIB, VolumeKind::Persistent, Some("os"))
        .unwrap();
    wait("a start", || (scrub(&host).checked_bytes > 0).then_some(()));
    let (began, before) = (std::time::Instant::now(), scrub(&host).checked_bytes);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let read = scrub(&host).checked_bytes - before;
    let most = 655_360.0 * began.elapsed().as_secs_f64() + 2.0 * G as f64;
    assert!(read as f64 <= most, "{read} of {most}");
    let host = Host::with(0, &["--scrub-bytes-s", "0"]);
    assert_eq!(scrub(&host), Scrub::default());
}

#[test]
fn it_makes_way_for_guests_on_the_disk() {
    const BYTES_S: u64 = 8 << 20;
    let pace = BYTES_S.to_string();
    let host = Host::with(0, &["--scrub-bytes-s", &pace, "--scrub-pause-s", "0"]);
    std::fs::write(host.dir.path().join("images/os"), pattern(9, 4 << 20)).unwrap();
    host.put("vol-1", 16 * MIB, VolumeKind::Persistent, Some("os"))
        .unwrap();
    let (mut guest, _listener) = host.guest("vol-1");
    wait("a start", || (scrub(&host).checked_bytes > 0).then_some(()));
    let (began, before) = (std::time::Instant::now(), scrub(&host).checked_bytes);
    let mut n = 0;
    while began.elapsed() < std::time::Duration::from_secs(1) {
        assert_eq!(guest.write_at(8 * MIB + n % 1024 * 4096, &[1; 4096]), 0);
        n += 1;
    }
    let read = scrub(&host).checked_bytes - before;
    // Some of the guest's pauses may be long enough to count as none.
    let most = BYTES_S as f64 / 4.0 * began.elapsed().as_secs_f64();
    assert!(read > 0 && (read as f64) < most, "{read} of {most}");
}
