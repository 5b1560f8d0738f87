//! Copies of snapshots, and snapshots of several volumes at one instant.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{ErrorCode, Origin, Request, SnapshotOf, VolumeKind, VolumeName};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const MIB: u64 = 1 << 20;
/// What one request moves.
const PIECE: usize = 64 * 1024;
use VolumeKind::Persistent;

fn of(snapshot: &str) -> Origin {
    Origin::Snapshot(VolumeName(snapshot.into()))
}

fn request(name: &str, of: Origin, size_bytes: u64, encrypted: bool) -> Request {
    Request::CopySnapshot {
        snapshot: VolumeName(name.into()),
        of,
        size_bytes,
        encrypted,
    }
}

fn copy(
    host: &Host,
    name: &str,
    of: Origin,
    size_bytes: u64,
    encrypted: bool,
) -> Result<(), ErrorCode> {
    host.ask(&request(name, of, size_bytes, encrypted))
        .map(drop)
}

/// A volume of 8 MiB with `bytes` at 1 MiB, frozen as `snap-1`.
fn frozen(host: &Host, bytes: &[u8]) {
    host.put("vol-1", 8 * MIB, Persistent, None).unwrap();
    let (mut guest, _listener) = host.guest("vol-1");
    for (at, piece) in (MIB..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
        assert_eq!(guest.write_at(at, piece), 0);
    }
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    host.snapshot("snap-1", "vol-1").unwrap();
}

/// What a new volume of a snapshot holds at 1 MiB.
fn held(host: &Host, snapshot: &str, encrypted: bool, len: usize) -> Vec<u8> {
    let name = format!("of-{snapshot}");
    host.put_of(&name, 8 * MIB, Some(snapshot), encrypted)
        .unwrap();
    let (mut guest, _listener) = host.guest(&name);
    let pieces = (0..len).step_by(PIECE);
    let bytes = pieces.flat_map(|at| guest.read_at(MIB + at as u64, PIECE.min(len - at)));
    let bytes = bytes.collect();
    drop(guest);
    host.delete(&name);
    bytes
}

#[test]
fn a_copy_outlives_what_it_is_of_and_costs_no_space_before() {
    let host = Host::new();
    let bytes = pattern(1, 512 * 1024);
    frozen(&host, &bytes);
    let before = host.used_bytes();
    for _ in 0..2 {
        copy(&host, "copy-1", of("snap-1"), 8 * MIB, false).unwrap();
    }
    copy(&host, "copy-2", of("copy-1"), 8 * MIB, false).unwrap();
    assert!(
        host.used_bytes() < before + 256 * 1024,
        "the layer is shared"
    );
    let listed = host.snapshots();
    let full: Vec<u64> = listed.iter().map(|s| s.full_bytes).collect();
    assert_eq!(full, [512 * 1024; 3]);
    host.delete_snapshot("snap-1");
    host.delete("vol-1");
    assert_eq!(held(&host, "copy-1", false, bytes.len()), bytes);
    host.delete_snapshot("copy-1");
    assert_eq!(held(&host, "copy-2", true, bytes.len()), bytes);
    host.delete_snapshot("copy-2");
    assert!(host.files(".layer").is_empty() && host.files(".map").is_empty());
}

#[test]
fn an_encrypted_copy_has_all_of_its_bytes_under_a_key() {
    let mut host = Host::new();
    let secret = pattern(77, 192 * 1024);
    frozen(&host, &secret);
    let needle = &secret[65536..65536 + 4096];
    assert!(host.holds(needle), "the volume is plain");
    copy(&host, "sealed", of("snap-1"), 8 * MIB, true).unwrap();
    host.delete_snapshot("snap-1");
    host.delete("vol-1");
    assert!(!host.holds(needle), "nothing of it is left");
    host.crash();
    assert_eq!(
        host.put_of("plain", 8 * MIB, Some("sealed"), false),
        Err(ErrorCode::Invalid)
    );
    assert_eq!(held(&host, "sealed", true, secret.len()), secret);
    // Of one that has keys it shares them; a volume's own plain layer below is copied.
    assert_eq!(
        copy(&host, "again", of("sealed"), 8 * MIB, false),
        Err(ErrorCode::Invalid)
    );
    let before = host.used_bytes();
    copy(&host, "again", of("sealed"), 8 * MIB, true).unwrap();
    assert!(host.used_bytes() < before + 64 * 1024);
    assert!(host.snapshots().iter().all(|s| s.encrypted));
    assert!(!host.holds(needle));
}

#[test]
fn an_image_can_be_copied() {
    let host = Host::new();
    let image = pattern(9, 3 << 20);
    std::fs::write(host.dir.path().join("images/disk"), &image).unwrap();
    let disk = || Origin::Image("disk".into());
    assert_eq!(
        copy(&host, "small", disk(), MIB, false),
        Err(ErrorCode::Invalid)
    );
    copy(&host, "plain", disk(), 8 * MIB, false).unwrap();
    copy(&host, "sealed", disk(), 8 * MIB, true).unwrap();
    std::fs::remove_file(host.dir.path().join("images/disk")).unwrap();
    let end = &image[1 << 20..];
    assert!(held(&host, "plain", false, end.len()) == end);
    host.delete_snapshot("plain");
    assert!(!host.holds(&image[1 << 20..(1 << 20) + 4096]));
    assert!(held(&host, "sealed", true, end.len()) == end);
    assert_eq!(
        copy(&host, "none", disk(), 8 * MIB, false),
        Err(ErrorCode::NotFound)
    );
    // A disk that begins as nothing has a copy, too.
    for (name, encrypted) in [("empty", false), ("secret", true)] {
        copy(&host, name, Origin::Zeros, 8 * MIB, encrypted).unwrap();
        assert_eq!(held(&host, name, true, 4096), [0; 4096]);
        host.delete_snapshot(name);
    }
    host.delete_snapshot("sealed");
    assert!(host.files(".layer").is_empty());
}

#[test]
fn copies_that_cannot_be_are_refused_and_leave_nothing() {
    let host = Host::new();
    frozen(&host, &[7; 4096]);
    let maps = host.files(".map");
    for (name, origin, size, expected) in [
        ("vol-1", of("snap-1"), 8 * MIB, ErrorCode::Conflict),
        ("snap-1", of("other"), 8 * MIB, ErrorCode::Conflict),
        ("new", of("none"), 8 * MIB, ErrorCode::NotFound),
        ("new", of("snap-1"), 9 * MIB, ErrorCode::Invalid),
        ("new", of("snap-1"), 8 * MIB + 1, ErrorCode::Invalid),
        ("new", of("../snap-1"), 8 * MIB, ErrorCode::Invalid),
        ("New", of("snap-1"), 8 * MIB, ErrorCode::Invalid),
        (
            "new",
            Origin::Image("../x".into()),
            MIB,
            ErrorCode::NotFound,
        ),
    ] {
        let case = format!("{name} {origin:?} {size}");
        assert_eq!(
            copy(&host, name, origin, size, true),
            Err(expected),
            "{case}"
        );
    }
    assert_eq!(host.files(".map"), maps);
}

#[test]
fn a_sealed_copy_is_whole_or_absent_whenever_storaged_is_killed() {
    let mut host = Host::new();
    let bytes = pattern(5, 4 << 20);
    frozen(&host, &bytes);
    for kill in 0..6 {
        let name = format!("copy-{kill}");
        let wanted = request(&name, of("snap-1"), 8 * MIB, true);
        let mut client = host.client();
        let sent = wanted.clone();
        let asking = std::thread::spawn(move || drop(client.call(&sent)));
        std::thread::sleep(std::time::Duration::from_millis(kill * 9));
        host.crash();
        asking.join().unwrap();
        let there = host.snapshots().iter().any(|s| s.snapshot.0 == name);
        let map = host.files(&format!("{name}.map"));
        assert_eq!(there, !map.is_empty(), "{name}");
        host.ask(&wanted).unwrap();
        assert!(held(&host, &name, true, bytes.len()) == bytes, "{name}");
        host.delete_snapshot(&name);
        // The volume's own layer, and the snapshot's.
        assert_eq!(host.files(".layer").len(), 2, "{name}");
    }
}

/// Writes a number at the volume's start, through pauses of its service.
fn write_number(guest: &mut Guest, listener: &std::os::unix::net::UnixListener, number: u64) {
    guest.bytes(Guest::data_at(0), 4096).fill(0);
    guest.write(Guest::data_at(0), number);
    guest.submit(0, T_OUT, 0, 4096);
    wait("completion", || {
        if listener.set_nonblocking(true).is_ok()
            && let Ok((stream, _)) = listener.accept()
        {
            stream.set_nonblocking(false).unwrap();
            let _ = guest.attach_with(stream, 1);
        }
        guest.poll().pop().map(|(_, status)| assert_eq!(status, 0))
    });
}

#[test]
fn snapshots_of_several_volumes_are_one_instant() {
    let host = Host::new();
    let named = |kind: &str, n: usize| VolumeName(format!("{kind}-{n}"));
    for name in ["vol-a", "vol-b"] {
        host.put(name, MIB, Persistent, None).unwrap();
    }
    let (mut a, listener_a) = host.guest("vol-a");
    let (mut b, listener_b) = host.guest("vol-b");
    let done = AtomicUsize::new(0);
    const TAKEN: usize = 8;
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            for n in 0..TAKEN {
                let request = Request::PutSnapshot {
                    snapshot: named("b", n),
                    volume: VolumeName("vol-b".into()),
                    with: vec![SnapshotOf {
                        snapshot: named("a", n),
                        volume: VolumeName("vol-a".into()),
                    }],
                };
                for _ in 0..2 {
                    host.ask(&request).unwrap();
                }
                done.fetch_add(1, SeqCst);
            }
        });
        // Each number goes to the first volume, and once it is there to the second.
        let mut number = 0;
        while done.load(SeqCst) < TAKEN {
            number += 1;
            write_number(&mut a, &listener_a, number);
            write_number(&mut b, &listener_b, number);
        }
        taker.join().unwrap();
    });
    assert_eq!(host.snapshots().len(), 2 * TAKEN);
    let held = |snapshot: &VolumeName| {
        let name = format!("of-{}", snapshot.0);
        host.put_of(&name, MIB, Some(&snapshot.0), false).unwrap();
        let (mut guest, _listener) = host.guest(&name);
        let bytes = guest.read_at(0, 512);
        host.delete(&name);
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    let mut last = 0;
    for n in 0..TAKEN {
        let (a, b) = (held(&named("a", n)), held(&named("b", n)));
        assert!(
            b <= a && a <= b + 1,
            "{n}: {a} in the first, {b} in the second"
        );
        assert!(b >= last);
        last = b;
    }
    assert!(last > 0);
}

#[test]
fn snapshots_together_come_to_be_all_or_none() {
    let host = Host::new();
    host.put("vol-a", MIB, Persistent, None).unwrap();
    host.put("vol-b", MIB, Persistent, None).unwrap();
    host.put("e-1", MIB, VolumeKind::Ephemeral, None).unwrap();
    let ask = |snapshot: &str, volume: &str, with: &[(&str, &str)]| {
        let name = |name: &str| VolumeName(name.into());
        let with = with.iter().map(|(snapshot, volume)| SnapshotOf {
            snapshot: name(snapshot),
            volume: name(volume),
        });
        host.ask(&Request::PutSnapshot {
            snapshot: name(snapshot),
            volume: name(volume),
            with: with.collect(),
        })
        .map(drop)
    };
    for (with, expected) in [
        (("y", "none"), ErrorCode::NotFound),
        (("y", "e-1"), ErrorCode::Invalid),
        (("y", "vol-a"), ErrorCode::Invalid),
        (("x", "vol-b"), ErrorCode::Conflict),
        (("vol-b", "vol-b"), ErrorCode::Conflict),
        (("Y", "vol-b"), ErrorCode::Invalid),
    ] {
        assert_eq!(ask("x", "vol-a", &[with]), Err(expected), "{with:?}");
    }
    assert!(host.snapshots().is_empty());
    ask("x", "vol-a", &[("y", "vol-b")]).unwrap();
    host.delete_snapshot("y");
    // It is there, so nothing is taken anew.
    ask("x", "vol-a", &[("y", "vol-b")]).unwrap();
    assert_eq!(host.snapshots().len(), 1);
}
