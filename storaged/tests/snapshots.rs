//! Layers: volumes of images and snapshots, under load, under keys, under SIGKILL.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{ErrorCode, Reply, Request, VolumeKind, VolumeName};

const MIB: u64 = 1 << 20;
const G: u64 = 64 * 1024;
use VolumeKind::Persistent;

fn resize(host: &Host, name: &str, size_bytes: u64) -> Result<Reply, ErrorCode> {
    host.ask(&Request::ResizeVolume {
        volume: VolumeName(name.into()),
        size_bytes,
    })
}

#[test]
fn volumes_of_one_image_share_it_and_nothing_else() {
    let mut host = Host::new();
    let image = pattern(9, 6 << 20);
    std::fs::write(host.dir.path().join("images/large"), &image).unwrap();
    host.put("vol-1", 64 * MIB, Persistent, Some("large"))
        .unwrap();
    let one = host.used_bytes();
    host.put("vol-2", 64 * MIB, Persistent, Some("large"))
        .unwrap();
    let (mut a, _listener_a) = host.guest("vol-1");
    let (mut b, listener_b) = host.guest("vol-2");
    assert!(host.used_bytes() < one + MIB, "the image is there once");
    // Cuts a grain; crosses from one into the next and out of the image.
    let mut expected = image.clone();
    expected.resize(8 << 20, 0);
    for (offset, len) in [
        (512, 1024),
        (G - 512, 4096),
        ((6 << 20) - 8192, 200_704),
        (3 * G, 2 * G as usize),
    ] {
        let bytes = pattern(offset, len);
        assert_eq!(a.write_at(offset, &bytes), 0);
        expected[offset as usize..offset as usize + len].copy_from_slice(&bytes);
    }
    assert_eq!(
        a.zeroes(T_WRITE_ZEROES, 5 * G - 4096, 2 * G + 8192, true),
        0
    );
    expected[5 * G as usize - 4096..7 * G as usize + 4096].fill(0);
    for at in (0..8 << 20).step_by(128 * 1024) {
        assert!(
            a.read_at(at, 128 * 1024) == expected[at as usize..at as usize + 128 * 1024],
            "{at}"
        );
    }
    assert!(b.read_at(0, 128 * 1024) == image[..128 * 1024]);
    assert!(b.read_at((6 << 20) - 65536, 65536) == image[(6 << 20) - 65536..]);
    assert_eq!(b.read_at(40 * MIB, 65536), vec![0; 65536]);
    // Nor does it follow its file, which an operator may replace.
    std::fs::write(host.dir.path().join("images/large"), b"other").unwrap();
    host.crash();
    b.attach(accept(&listener_b));
    assert!(b.read_at(0, 128 * 1024) == image[..128 * 1024]);
    host.delete("vol-1");
    host.delete("vol-2");
    assert!(host.files(".layer").is_empty());
}

#[test]
fn an_image_that_is_not_what_its_name_says_is_refused() {
    let host = Host::new();
    let name = "sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    std::fs::write(host.dir.path().join("images").join(name), "abd").unwrap();
    assert_eq!(
        host.put("vol-1", MIB, Persistent, Some(name)),
        Err(ErrorCode::Io)
    );
    assert!(host.files(".layer").is_empty());
    std::fs::write(host.dir.path().join("images").join(name), "abc").unwrap();
    host.put("vol-1", MIB, Persistent, Some(name)).unwrap();
    assert!(host.files(".tmp").is_empty());
}

#[test]
fn a_snapshot_under_load_is_one_instant() {
    let host = Host::new();
    host.put("vol-1", 16 * MIB, Persistent, None).unwrap();
    let (mut guest, listener) = host.guest("vol-1");
    let done = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            for n in 0..6 {
                host.snapshot(&format!("snap-{n}"), "vol-1").unwrap();
                done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        // One write at a time, each naming its number: an instant is a prefix.
        let mut number = 0u64;
        while done.load(std::sync::atomic::Ordering::SeqCst) < 6 {
            number += 1;
            let at = place(number);
            guest.bytes(Guest::data_at(0), 4096).fill(0);
            guest.write(Guest::data_at(0), number);
            guest.submit(0, T_OUT, at / 512, 4096);
            wait("completion", || {
                if listener.set_nonblocking(true).is_ok()
                    && let Ok((stream, _)) = listener.accept()
                {
                    stream.set_nonblocking(false).unwrap();
                    // It may be hung up on once more at any point.
                    let _ = guest.attach_with(stream, 1);
                }
                guest.poll().pop().map(|(_, status)| assert_eq!(status, 0))
            });
        }
        taker.join().unwrap();
    });
    assert_eq!(host.snapshots().len(), 6);
    let mut last = 0;
    for n in 0..6 {
        let name = format!("of-{n}");
        host.put_of(&name, 16 * MIB, Some(&format!("snap-{n}")), false)
            .unwrap();
        let (mut guest, _listener) = host.guest(&name);
        let blocks: Vec<u64> = (0..4096u64)
            .map(|block| {
                let bytes = guest.read_at(block * 4096, 512);
                u64::from_le_bytes(bytes[..8].try_into().unwrap())
            })
            .collect();
        let newest = *blocks.iter().max().unwrap();
        assert!(newest >= last, "later snapshots hold no less");
        last = newest;
        let mut expected = vec![0u64; 4096];
        for number in 1..=newest {
            expected[(place(number) / 4096) as usize] = number;
        }
        assert!(blocks == expected, "snapshot {n} at {newest}");
        host.delete(&name);
    }
    assert!(last > 0);
}

/// Where write `number` goes.
fn place(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 4096 * 4096
}

#[test]
fn snapshots_go_in_any_order_and_take_their_space_along() {
    // Of each of 4 snapshots: a grain of its own; one that the next one changed.
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let mut host = Host::new();
        host.put("vol-1", 32 * MIB, Persistent, None).unwrap();
        let (mut guest, listener) = host.guest("vol-1");
        let mut state = vec![0u8; 32];
        let mut states = Vec::new();
        for n in 0..4u8 {
            for block in [n, n + 1, 20 + n, 31] {
                assert_eq!(
                    guest.write_at(u64::from(block) * MIB, &vec![n + 1; 2 * G as usize]),
                    0
                );
                state[usize::from(block)] = n + 1;
            }
            host.snapshot(&format!("snap-{n}"), "vol-1").unwrap();
            guest.attach(accept(&listener));
            states.push(state.clone());
        }
        let changed: Vec<u64> = host
            .snapshots()
            .iter()
            .map(|s| s.changed_bytes / G)
            .collect();
        assert_eq!(changed, [8, 8, 8, 8], "incremental");
        assert_eq!(host.snapshots()[3].full_bytes / G, 2 * 10);
        let check = |host: &Host, n: usize| {
            host.put_of("of", 32 * MIB, Some(&format!("snap-{n}")), false)
                .unwrap();
            let (mut guest, _listener) = host.guest("of");
            for (block, value) in states[n].iter().enumerate() {
                let bytes = guest.read_at(block as u64 * MIB + G, 4096);
                assert!(
                    bytes.iter().all(|b| b == value),
                    "{order:?}: snapshot {n}, block {block}"
                );
            }
            host.delete("of");
            std::fs::remove_file(host.dir.path().join("of.sock")).unwrap();
        };
        for (at, gone) in order.into_iter().enumerate() {
            let before = host.used_bytes();
            if at == 1 {
                // The volume may go before its snapshots.
                host.delete("vol-1");
            }
            host.delete_snapshot(&format!("snap-{gone}"));
            if at == 2 {
                host.crash();
            }
            for left in &order[at + 1..] {
                check(&host, *left);
            }
            assert!(host.used_bytes() <= before, "{order:?}, {at}");
        }
        assert!(
            host.files(".layer").is_empty() && host.files(".map").is_empty(),
            "{order:?}"
        );
    }
}

#[test]
fn a_key_hides_a_volume_and_all_that_begins_as_it() {
    let mut host = Host::new();
    let secret = pattern(77, 64);
    let planted = secret.repeat(1024);
    host.put_of("vol-1", 8 * MIB, None, true).unwrap();
    let (mut guest, listener) = host.guest("vol-1");
    assert_eq!(guest.write_at(MIB, &planted), 0);
    assert_eq!(
        guest.write_at(2 * MIB + 512, &[0x5a; 1024]),
        0,
        "cuts a block"
    );
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    assert!(!host.holds(&secret));
    // Without storaged and its VMM: persistent, unlike an instance store.
    host.crash();
    guest = Guest::new();
    guest.attach(accept(&listener));
    assert!(guest.read_at(MIB, planted.len()) == planted);
    host.snapshot("snap-1", "vol-1").unwrap();
    assert_eq!(
        host.put_of("plain", 8 * MIB, Some("snap-1"), false),
        Err(ErrorCode::Invalid)
    );
    host.put_of("vol-2", 9 * MIB, Some("snap-1"), true).unwrap();
    let (mut second, _listener) = host.guest("vol-2");
    assert!(second.read_at(MIB, planted.len()) == planted);
    assert_eq!(second.write_at(MIB + 512, &[1; 512]), 0);
    assert!(second.read_at(MIB + 1024, planted.len() - 1024) == planted[1024..]);
    assert_eq!(second.read_at(2 * MIB + 512, 1024), [0x5a; 1024]);
    assert_eq!(second.read_at(2 * MIB + 4096, 4096), [0; 4096]);
    // A key of its own over a snapshot that has none.
    host.put("vol-3", 8 * MIB, Persistent, None).unwrap();
    let (mut third, _listener) = host.guest("vol-3");
    assert_eq!(third.write_at(0, &pattern(3, 65536)), 0);
    host.snapshot("snap-3", "vol-3").unwrap();
    host.put_of("vol-4", 8 * MIB, Some("snap-3"), true).unwrap();
    let (mut fourth, _listener) = host.guest("vol-4");
    assert_eq!(fourth.read_at(0, 65536), pattern(3, 65536));
    assert_eq!(fourth.write_at(8192, &planted[..4096]), 0);
    assert_eq!(fourth.read_at(0, 8192), pattern(3, 65536)[..8192]);
    assert!(fourth.read_at(8192, 4096) == planted[..4096]);
    assert!(!host.holds(&secret), "nor in any layer");
    let listed = host.list();
    let keyed: Vec<bool> = listed.iter().map(|v| v.encrypted).collect();
    assert_eq!(keyed, [true, true, false, true]);
}

#[test]
fn a_discard_returns_space_and_a_volume_grows() {
    let host = Host::new();
    host.put("vol-1", 32 * MIB, Persistent, None).unwrap();
    let (mut guest, listener) = host.guest("vol-1");
    for at in 0..32 {
        assert_eq!(guest.write_at(at * MIB, &pattern(at, 256 * 1024)), 0);
    }
    host.snapshot("snap-1", "vol-1").unwrap();
    guest.attach(accept(&listener));
    for at in 0..32 {
        assert_eq!(guest.write_at(at * MIB, &pattern(at + 100, 256 * 1024)), 0);
    }
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    let before = host.used_bytes();
    assert_eq!(guest.zeroes(T_DISCARD, 0, 16 * MIB, false), 0);
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    assert!(
        host.used_bytes() + 3 * MIB < before,
        "16 of 32 × 256 KiB are free"
    );
    assert_eq!(
        guest.read_at(MIB, 65536),
        vec![0; 65536],
        "not what lies below"
    );
    assert!(guest.read_at(20 * MIB, 65536) == pattern(120, 65536));
    assert_eq!(resize(&host, "vol-1", 16 * MIB), Err(ErrorCode::Invalid));
    for _ in 0..2 {
        resize(&host, "vol-1", 40 * MIB).unwrap();
    }
    guest.attach(accept(&listener));
    assert_eq!(guest.config(8)[..8], (40 * MIB / 512).to_le_bytes());
    assert_eq!(guest.write_at(40 * MIB - 4096, &[9; 4096]), 0);
    assert_eq!(guest.read_at(33 * MIB, 4096), [0; 4096]);
    host.put_of("of", 40 * MIB, Some("snap-1"), false).unwrap();
    let (mut old, _listener) = host.guest("of");
    assert!(old.read_at(MIB, 65536) == pattern(1, 65536));
    assert_eq!(old.read_at(36 * MIB, 4096), [0; 4096]);
}

#[test]
fn requests_for_snapshots_are_checked_and_may_be_repeated() {
    let host = Host::new();
    host.put("vol-1", MIB, Persistent, None).unwrap();
    host.put("e-1", MIB, VolumeKind::Ephemeral, None).unwrap();
    assert_eq!(host.snapshot("snap-1", "none"), Err(ErrorCode::NotFound));
    assert_eq!(host.snapshot("snap-1", "e-1"), Err(ErrorCode::Invalid));
    assert_eq!(host.snapshot("e-1", "vol-1"), Err(ErrorCode::Conflict));
    for _ in 0..2 {
        host.snapshot("snap-1", "vol-1").unwrap();
    }
    assert_eq!(
        host.put("snap-1", MIB, Persistent, None),
        Err(ErrorCode::Conflict)
    );
    assert_eq!(
        host.put_of("x", MIB, Some("none"), false),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(
        host.put_of("x", 4096, Some("snap-1"), false),
        Err(ErrorCode::Invalid)
    );
    for _ in 0..2 {
        host.put_of("vol-2", 2 * MIB, Some("snap-1"), false)
            .unwrap();
    }
    assert_eq!(
        host.put_of("vol-2", 2 * MIB, None, false),
        Err(ErrorCode::Conflict)
    );
    assert_eq!(host.snapshot("snap-1", "vol-2"), Err(ErrorCode::Conflict));
    for _ in 0..2 {
        host.delete_snapshot("snap-1");
    }
    host.put_of("vol-2", 2 * MIB, Some("snap-1"), false)
        .unwrap();
    assert!(host.snapshots().is_empty());
}

#[test]
fn verified_writes_over_layers_survive_sigkill() {
    let mut host = Host::new();
    let image = pattern(4, 4 << 20);
    std::fs::write(host.dir.path().join("images/os"), &image).unwrap();
    host.put("vol-1", 8 * MIB, Persistent, Some("os")).unwrap();
    let (mut guest, listener) = host.guest("vol-1");
    let frozen = survive_kills(&mut host, &listener, &mut guest, kills() / 2, None);
    host.snapshot("snap-1", "vol-1").unwrap();
    guest.attach(accept(&listener));
    // On what is frozen, and while more of it freezes and thaws.
    let windows = survive_kills(&mut host, &listener, &mut guest, kills() / 2, Some("vol-1"));
    // What no slot wrote is the image's still.
    let untouched = |guest: &mut Guest| guest.read_at(2 * MIB, 65536) == image[2 << 20..][..65536];
    assert!(untouched(&mut guest));
    host.put_of("vol-2", 8 * MIB, Some("snap-1"), true).unwrap();
    let (mut other, of_other) = host.guest("vol-2");
    let held = |guest: &mut Guest, windows: &[Vec<u8>]| {
        windows
            .iter()
            .enumerate()
            .all(|(n, window)| guest.read_at((n * window.len()) as u64, window.len()) == *window)
    };
    assert!(held(&mut other, &frozen), "the snapshot is what it was");
    drop(guest);
    survive_kills(&mut host, &of_other, &mut other, kills() / 2, Some("vol-2"));
    assert!(untouched(&mut other));
    let mut guest = Guest::new();
    attach_again(&listener, &mut guest);
    assert!(held(&mut guest, &windows), "as it was left");
}

#[test]
fn killed_at_any_moment_a_snapshot_is_whole_or_absent_and_the_volume_whole() {
    let mut host = Host::new();
    host.put("vol-1", 8 * MIB, Persistent, None).unwrap();
    let (mut guest, listener) = host.guest("vol-1");
    assert_eq!(guest.write_at(MIB, &pattern(1, 65536)), 0);
    for n in 0..12u64 {
        let name = format!("snap-{n}");
        let socket = host.dir.path().join("control.sock");
        drop(host.client());
        let asking = {
            let name = name.clone();
            std::thread::spawn(move || {
                let request = Request::PutSnapshot {
                    snapshot: VolumeName(name),
                    volume: VolumeName("vol-1".into()),
                    with: Vec::new(),
                };
                ocs_storaged_api::Client::connect(&socket, PATIENCE).map(|mut c| c.call(&request))
            })
        };
        std::thread::sleep(std::time::Duration::from_millis(n * n / 4));
        host.crash();
        let answer = asking.join().unwrap();
        // It may have connected once more in between.
        wait("service", || guest.attach_with(accept(&listener), 1).ok());
        assert!(guest.read_at(MIB, 65536) == pattern(1, 65536), "{n}");
        assert_eq!(guest.write_at(2 * MIB + n * 4096, &[n as u8 + 1; 4096]), 0);
        let there = host.snapshots().iter().any(|s| s.snapshot.0 == name);
        assert!(
            there || !matches!(answer, Ok(Ok(Reply::Ok))),
            "durable before the answer"
        );
        if there {
            let of = format!("of-{n}");
            host.put_of(&of, 8 * MIB, Some(&name), false).unwrap();
            let (mut other, _listener) = host.guest(&of);
            assert!(other.read_at(MIB, 65536) == pattern(1, 65536));
            assert_eq!(other.read_at(2 * MIB + n * 4096, 4096), [0; 4096]);
            host.delete(&of);
            host.delete_snapshot(&name);
        }
    }
    host.delete("vol-1");
    assert!(host.files(".layer").is_empty() && host.files(".map").is_empty());
}
