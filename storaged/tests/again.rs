//! Requests for snapshots that fail halfway, come twice or meet.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{ErrorCode, Origin, Request, SnapshotOf, VolumeKind, VolumeName};
use std::os::unix::net::UnixListener;

const MIB: u64 = 1 << 20;
use VolumeKind::Persistent;

fn name(name: &str) -> VolumeName {
    VolumeName(name.into())
}

fn copy(host: &Host, to: &str, of: &Origin, bytes: u64, key: bool) -> Result<(), ErrorCode> {
    let request = Request::CopySnapshot {
        snapshot: name(to),
        of: of.clone(),
        size_bytes: bytes,
        encrypted: key,
    };
    host.ask(&request).map(drop)
}

/// `snap-a` of `vol-a`, and `snap-b` of `vol-b` with it.
fn both(host: &Host) -> Result<(), ErrorCode> {
    let request = Request::PutSnapshot {
        snapshot: name("snap-a"),
        volume: name("vol-a"),
        with: vec![SnapshotOf {
            snapshot: name("snap-b"),
            volume: name("vol-b"),
        }],
    };
    host.ask(&request).map(drop)
}

/// What each map says of its volume: its size, layers and where its grains lie.
fn maps(host: &Host) -> Vec<(String, Vec<String>, Vec<u8>)> {
    use ocs_storaged::cow::{log::Trust, store};
    let of = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (found, _) = store::load(path.parent().unwrap(), &name, Trust::Committed).unwrap();
        let mut map = Vec::new();
        found.map.encode(&mut map);
        (
            name,
            found.layers.into_iter().map(|l| l.file).collect(),
            map,
        )
    };
    host.files(".map").into_iter().map(of).collect()
}

fn flushed(guest: &mut Guest, at: u64, seed: u64) {
    assert_eq!(guest.write_at(at, &pattern(seed, 65536)), 0);
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
}

/// What a new volume of a snapshot holds at its start.
fn held(host: &Host, snapshot: &str) -> Vec<u8> {
    let volume = format!("of-{snapshot}");
    host.put_of(&volume, 64 * MIB, Some(snapshot), true)
        .unwrap();
    let (mut guest, _listener) = host.guest(&volume);
    let bytes = guest.read_at(0, 65536);
    host.delete(&volume);
    std::fs::remove_file(host.dir.path().join(format!("{volume}.sock"))).unwrap();
    bytes
}

#[test]
fn a_group_that_cannot_be_frozen_whole_is_not_frozen_at_all() {
    let host = Host::new();
    let state = host.dir.path().join("state");
    let serve = |volume: &str, encrypted: bool| -> (Guest, UnixListener) {
        host.put_of(volume, 64 * MIB, None, encrypted).unwrap();
        host.guest(volume)
    };
    let (mut a, listener_a) = serve("vol-a", true);
    let (mut b, listener_b) = serve("vol-b", false);
    for (guest, seed) in [(&mut a, 1), (&mut b, 2)] {
        flushed(guest, 0, seed);
    }
    // A folder in the place of a temporary file, so that the file cannot be written: the
    // second volume's map, the second snapshot's, the table.
    for obstacle in ["vol-b.map.tmp", "snap-b.map.tmp", "volumes.json.tmp"] {
        // A volume that never had a snapshot has no map until it is to be frozen.
        let before = (maps(&host), host.files(".layer"));
        std::fs::create_dir(state.join(obstacle)).unwrap();
        for _ in 0..2 {
            assert_eq!(both(&host), Err(ErrorCode::Io), "{obstacle}");
            a.attach(accept(&listener_a));
            b.attach(accept(&listener_b));
        }
        let (mut after, layers) = (maps(&host), host.files(".layer"));
        if !before.0.iter().any(|(name, ..)| name == "vol-b") && obstacle != "vol-b.map.tmp" {
            let (_, of_b, _) = after.pop().unwrap();
            assert_eq!((of_b.len(), layers.len()), (1, before.1.len() + 1));
        } else {
            assert_eq!(layers, before.1, "{obstacle}");
        }
        assert!(after == before.0, "{obstacle}: {:?}", host.files(".map"));
        assert!(host.snapshots().is_empty());
        std::fs::remove_dir(state.join(obstacle)).unwrap();
    }
    // Served as before, on the layers that they had.
    for (guest, seed) in [(&mut a, 1), (&mut b, 2)] {
        assert!(guest.read_at(0, 65536) == pattern(seed, 65536));
        flushed(guest, MIB, seed + 2);
    }
    for _ in 0..2 {
        both(&host).unwrap();
    }
    for (guest, listener) in [(&mut a, &listener_a), (&mut b, &listener_b)] {
        guest.attach(accept(listener));
        flushed(guest, 0, 9);
    }
    assert!(held(&host, "snap-a") == pattern(1, 65536));
    assert!(held(&host, "snap-b") == pattern(2, 65536));
    for (guest, seed) in [(&mut a, 1), (&mut b, 2)] {
        assert!(guest.read_at(MIB, 65536) == pattern(seed + 2, 65536));
        assert!(guest.read_at(0, 65536) == pattern(9, 65536));
    }
    drop((a, b));
    for volume in ["vol-a", "vol-b"] {
        host.delete(volume);
    }
    for snapshot in ["snap-a", "snap-b"] {
        host.delete_snapshot(snapshot);
    }
    assert_eq!(
        (host.files(".layer"), host.files(".map")),
        Default::default()
    );
}

#[test]
fn a_copy_is_repeated_by_all_that_it_was_asked_with() {
    let mut host = Host::new();
    for image in ["snap-1", "vol-1"] {
        std::fs::write(host.dir.path().join("images").join(image), image).unwrap();
    }
    host.put("vol-1", MIB, Persistent, None).unwrap();
    host.snapshot("snap-1", "vol-1").unwrap();
    host.snapshot("snap-2", "vol-1").unwrap();
    let (snapshot, image) = (
        Origin::Snapshot(name("snap-1")),
        Origin::Image("snap-1".into()),
    );
    let other = Origin::Snapshot(name("snap-2"));
    copy(&host, "copy-1", &snapshot, MIB, false).unwrap();
    copy(&host, "copy-2", &image, MIB, true).unwrap();
    copy(&host, "copy-3", &Origin::Zeros, MIB, false).unwrap();
    copy(&host, "copy-4", &Origin::Image("vol-1".into()), MIB, false).unwrap();
    let there = host.snapshots();
    for crash in [false, true] {
        if crash {
            host.crash();
        }
        let conflict = Err(ErrorCode::Conflict);
        for (to, of, bytes, key, expected) in [
            ("copy-1", &snapshot, MIB, false, Ok(())),
            ("copy-1", &image, MIB, false, conflict),
            ("copy-1", &other, MIB, false, conflict),
            ("copy-1", &Origin::Zeros, MIB, false, conflict),
            ("copy-1", &snapshot, 2 * MIB, false, conflict),
            ("copy-1", &snapshot, MIB, true, conflict),
            ("copy-2", &image, MIB, true, Ok(())),
            ("copy-2", &snapshot, MIB, true, conflict),
            ("copy-2", &image, MIB, false, conflict),
            ("copy-3", &Origin::Zeros, MIB, false, Ok(())),
            ("copy-3", &Origin::Zeros, 2 * MIB, false, conflict),
            // A volume's own snapshot is no copy.
            (
                "snap-1",
                &Origin::Image("vol-1".into()),
                MIB,
                false,
                conflict,
            ),
        ] {
            let case = format!("{to} of {of:?}, {bytes} bytes, encrypted: {key}");
            assert_eq!(copy(&host, to, of, bytes, key), expected, "{case}");
        }
        assert_eq!(
            host.snapshot("copy-4", "vol-1"),
            conflict,
            "nor the reverse"
        );
    }
    assert_eq!(host.snapshots(), there);
}

#[test]
fn two_that_put_one_name_are_one_after_the_other() {
    let host = Host::new();
    for volume in ["vol-a", "vol-b"] {
        host.put(volume, 64 * MIB, Persistent, None).unwrap();
    }
    let (mut a, _listener_a) = host.guest("vol-a");
    let (mut b, _listener_b) = host.guest("vol-b");
    for at in (0..32 * MIB).step_by(65536) {
        assert_eq!(a.write_at(at, &pattern(1 + at, 65536)), 0);
    }
    flushed(&mut b, 0, 2);
    host.snapshot("snap-a", "vol-a").unwrap();
    // A sealed copy takes its time; meanwhile a volume and a snapshot are to have its name.
    let of = Origin::Snapshot(name("snap-a"));
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy(&host, "same", &of, 64 * MIB, true));
        wait("the copy to begin", || host.files("same.map").pop());
        let frozen = scope.spawn(|| host.snapshot("same", "vol-b"));
        let volume = scope.spawn(|| host.put_of("same", MIB, None, true));
        assert_eq!(copying.join().unwrap(), Ok(()));
        assert_eq!(frozen.join().unwrap(), Err(ErrorCode::Conflict));
        assert_eq!(volume.join().unwrap(), Err(ErrorCode::Conflict));
    });
    assert!(held(&host, "same") == pattern(1, 65536), "it is the copy");
    assert!(b.read_at(0, 65536) == pattern(2, 65536));
}
