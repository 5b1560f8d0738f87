//! The daemon: control protocol, attachments, restarts and keys.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{
    Client, ErrorCode, Limits, Rate, Reply, Request, VolumeKind, VolumeLimits, VolumeName,
};

const MIB: u64 = 1 << 20;
use VolumeKind::{Ephemeral, Persistent};

#[test]
fn every_request_may_be_repeated_and_a_contradiction_is_refused() {
    let host = Host::new();
    std::fs::write(host.dir.path().join("images/small"), pattern(5, 10_000)).unwrap();
    for _ in 0..2 {
        host.put("vol-1", MIB, Persistent, Some("small")).unwrap();
    }
    assert_eq!(
        host.put("vol-1", 2 * MIB, Persistent, Some("small")),
        Err(ErrorCode::Conflict)
    );
    assert_eq!(
        host.put("vol-1", MIB, Persistent, None),
        Err(ErrorCode::Conflict)
    );
    assert_eq!(
        host.put("vol-2", MIB, Persistent, Some("none")),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(
        host.put("vol-2", MIB, Persistent, Some("../state/lock")),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(
        host.put("vol-2", 4096, Persistent, Some("small")),
        Err(ErrorCode::Invalid)
    );
    assert_eq!(
        host.put("vol-2", 5000, Persistent, None),
        Err(ErrorCode::Invalid)
    );
    assert_eq!(
        host.put("../x", 4096, Persistent, None),
        Err(ErrorCode::Invalid)
    );
    assert_eq!(host.attach("vol-2", "x.sock"), Err(ErrorCode::NotFound));
    let listener = host.listen("a.sock");
    for _ in 0..2 {
        host.attach("vol-1", "a.sock").unwrap();
    }
    assert_eq!(host.attach("vol-1", "b.sock"), Err(ErrorCode::Conflict));
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.read_at(0, 9728), pattern(5, 10_000)[..9728]);
    assert_eq!(guest.write_at(MIB - 4096, &[3; 4096]), 0);
    let status = &host.list()[0];
    assert_eq!(
        (status.reads, status.writes, status.connected),
        (1, 1, true)
    );
    for _ in 0..2 {
        host.detach("vol-1");
    }
    assert!(!host.list()[0].connected);
    assert_eq!(host.list()[0].attached, None);
    assert_eq!(host.files("vol-1.map").len(), 1);
    for _ in 0..2 {
        host.delete("vol-1");
    }
    assert!(host.list().is_empty());
    assert!(host.files(".map").is_empty() && host.files(".layer").is_empty());
}

#[test]
fn bad_lines_are_answered_and_long_ones_end_the_connection() {
    use std::io::{Read, Write};
    let host = Host::new();
    drop(host.client());
    let mut stream =
        std::os::unix::net::UnixStream::connect(host.dir.path().join("control.sock")).unwrap();
    stream.write_all(b"{\"cmd\":\"fly\"}\n").unwrap();
    stream.write_all(&[b'x'; 20_000]).unwrap();
    let mut text = String::new();
    // The rest of the long line was not read, so the end may be a reset.
    let _ = stream.read_to_string(&mut text);
    assert_eq!(text.matches("\"invalid\"").count(), 2, "{text}");
    assert!(host.list().is_empty());
}

#[test]
fn a_killed_daemon_resumes_with_nobody_above_and_collects_leftovers() {
    let mut host = Host::new();
    host.put("vol-1", MIB, Persistent, None).unwrap();
    let listener = host.listen("a.sock");
    host.attach("vol-1", "a.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.write_at(0, &[1; 4096]), 0);
    // What a crash within put and within delete leaves.
    std::fs::write(host.file("vol-2"), b"renamed, not in the table").unwrap();
    std::fs::write(host.dir.path().join("state/vol-3.tmp"), b"half").unwrap();
    host.crash();
    guest.attach(accept(&listener));
    assert_eq!(guest.read_at(0, 4096), [1; 4096]);
    assert!(!host.file("vol-2").exists());
    assert!(!host.dir.path().join("state/vol-3.tmp").exists());
    assert!(host.list()[0].connected);
}

#[test]
fn sigterm_drains_and_ends_cleanly() {
    let mut host = Host::new();
    host.put("vol-1", MIB, Persistent, None).unwrap();
    let listener = host.listen("a.sock");
    host.attach("vol-1", "a.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    for slot in 0..SLOTS {
        guest.submit(slot, T_OUT, 0, 65536);
    }
    // SAFETY: a signal to our own child.
    unsafe { libc::kill(host.daemon.0.id() as i32, libc::SIGTERM) };
    assert!(host.daemon.0.wait().unwrap().success());
    assert!(!host.dir.path().join("control.sock").exists());
    host.daemon = Host::start(&host.dir, host.uid);
    guest.attach(accept(&listener));
    let mut done = 0;
    wait("all", || {
        done += guest
            .poll()
            .iter()
            .filter(|(_, status)| *status == 0)
            .count();
        (done == SLOTS).then_some(())
    });
}

#[test]
fn it_serves_without_privileges_and_in_its_sandbox() {
    let mut host = Host::of_uid(54_321);
    let listener = host.listen("a.sock");
    let socket = host.dir.path().join("a.sock");
    std::os::unix::fs::chown(&socket, Some(host.uid), None).unwrap();
    for (name, kind) in [("vol-1", Persistent), ("e-1", Ephemeral)] {
        host.put(name, MIB, kind, None).unwrap();
        host.attach(name, "a.sock").unwrap();
        let mut guest = Guest::new();
        guest.attach(accept(&listener));
        assert_eq!(guest.write_at(0, &[1; 4096]), 0);
        host.crash();
        guest.attach(accept(&listener));
        assert_eq!(guest.read_at(0, 4096), [1; 4096]);
        host.detach(name);
    }
    let status = format!("/proc/{}/status", host.daemon.0.id());
    let status = std::fs::read_to_string(status).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

#[test]
fn killed_at_any_moment_of_put_a_volume_is_whole_or_absent() {
    let mut host = Host::new();
    let image = pattern(3, 24 << 20);
    std::fs::write(host.dir.path().join("images/large"), &image).unwrap();
    let (mut whole, mut absent) = (0, 0);
    for delay_ms in [0, 1, 3, 6, 10, 15, 25, 40, 60, 100, 200, 400] {
        let socket = host.dir.path().join("control.sock");
        drop(host.client());
        let asking = std::thread::spawn(move || {
            let request = Request::PutVolume {
                volume: VolumeName("vol-1".into()),
                size_bytes: 32 * MIB,
                kind: Persistent,
                image: Some("large".into()),
                snapshot: None,
                encrypted: false,
            };
            Client::connect(&socket, PATIENCE).map(|mut c| c.call(&request))
        });
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        host.crash();
        let answer = asking.join().unwrap();
        let volumes = host.list();
        let files: Vec<_> = std::fs::read_dir(host.dir.path().join("state"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["lock", "node.key", "volumes.json"].contains(&name.as_str()))
            .collect();
        if volumes.is_empty() {
            absent += 1;
            assert!(
                !matches!(answer, Ok(Ok(Reply::Ok))),
                "durable before the answer"
            );
            assert!(files.is_empty(), "{files:?}");
        } else {
            whole += 1;
            // Its map, its own layer and the image's, perhaps with checksums by now.
            let sums = files.iter().filter(|name| name.ends_with(".sums")).count();
            assert_eq!(files.len() - sums, 3, "{files:?}");
            assert!(sums <= 1, "{files:?}");
            let (mut guest, _listener) = host.guest("vol-1");
            let at = (delay_ms << 12) % (16 << 20);
            assert!(guest.read_at(at, 65536) == image[at as usize..at as usize + 65536]);
            host.delete("vol-1");
            std::fs::remove_file(host.dir.path().join("vol-1.sock")).unwrap();
        }
    }
    assert!(whole + absent == 12);
}

#[test]
fn verified_random_writes_survive_sigkill() {
    let mut host = Host::new();
    host.put("vol-1", 8 * MIB, Persistent, None).unwrap();
    let listener = host.listen("a.sock");
    host.attach("vol-1", "a.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    survive_kills(&mut host, &listener, &mut guest, kills(), None);
}

#[test]
fn an_ephemeral_volume_survives_its_daemon_and_shows_no_plaintext() {
    let mut host = Host::new();
    std::fs::write(host.dir.path().join("images/small"), [0x77; 10_000]).unwrap();
    host.put("e-1", 8 * MIB, Ephemeral, Some("small")).unwrap();
    // Never served: laid down anew under a new key.
    host.crash();
    let listener = host.listen("a.sock");
    host.attach("e-1", "a.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.read_at(0, 9728), [0x77; 9728]);
    assert_eq!(
        guest.read_at(4 * MIB, 65536),
        vec![0; 65536],
        "never written"
    );
    let secret = b"attack at dawn, ";
    let planted = secret.repeat(4096);
    assert_eq!(guest.write_at(4 * MIB, &planted), 0);
    // A write that cuts blocks at both ends.
    assert_eq!(guest.write_at(4 * MIB + 512, &[0x11; 70 * 512]), 0);
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    let mut expected = planted.clone();
    expected[512..71 * 512].fill(0x11);
    assert_eq!(guest.read_at(4 * MIB, planted.len()), expected);
    // Neighbours in one block, all in flight at once.
    for slot in 0..SLOTS {
        guest.bytes(Guest::data_at(slot), 512).fill(slot as u8);
        guest.submit(slot, T_OUT, 6 * 2048 + slot as u64, 512);
    }
    let mut done = 0;
    wait("neighbours", || {
        done += guest
            .poll()
            .iter()
            .filter(|(_, status)| *status == 0)
            .count();
        (done == SLOTS).then_some(())
    });
    let neighbours = guest.read_at(6 * MIB, SLOTS * 512);
    for (slot, bytes) in neighbours.chunks(512).enumerate() {
        assert_eq!(bytes, [slot as u8; 512]);
    }
    survive_kills(&mut host, &listener, &mut guest, kills() / 4, None);
    assert_eq!(guest.read_at(4 * MIB, planted.len()), expected);
    assert_eq!(guest.zeroes(T_DISCARD, 4 * MIB, 8192, false), 0);
    assert_eq!(guest.read_at(4 * MIB, 8192), vec![0; 8192]);
    // The image is no secret; what the guest wrote is.
    assert!(!host.holds(secret) && !host.holds(&[0x11; 16]));
    let key_page = || {
        use std::os::unix::fs::FileExt;
        let (layout, file) = guest.inflight.as_ref().unwrap();
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, layout.mmap_size - 4096)
            .unwrap();
        page
    };
    assert_ne!(key_page(), [0; 4096]);
    host.delete("e-1");
    assert_eq!(key_page(), [0; 4096], "the VMM's copy is wiped");
    assert_eq!(host.files(".map"), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn when_both_holders_die_the_key_is_lost_and_only_delete_helps() {
    let mut host = Host::new();
    host.put("e-1", MIB, Ephemeral, None).unwrap();
    let listener = host.listen("a.sock");
    host.attach("e-1", "a.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.write_at(0, &[5; 4096]), 0);
    // A new VMM (a reboot) gets the key from storaged …
    guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.read_at(0, 4096), [5; 4096]);
    // … and none when storaged died with it.
    host.crash();
    guest = Guest::new();
    assert!(guest.attach_with(accept(&listener), 1).is_err());
    wait("key lost", || host.list()[0].key_lost.then_some(()));
    assert_eq!(
        host.put("e-1", MIB, Ephemeral, None),
        Err(ErrorCode::KeyLost)
    );
    assert_eq!(host.attach("e-1", "a.sock"), Err(ErrorCode::KeyLost));
    host.delete("e-1");
    host.put("e-1", MIB, Ephemeral, None).unwrap();
    let listener = host.listen("b.sock");
    host.attach("e-1", "b.sock").unwrap();
    guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.read_at(0, 4096), [0; 4096]);
    // A garbled key opens nothing.
    let (layout, file) = guest.inflight.as_ref().unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(&[9; 72], layout.mmap_size - 4096)
        .unwrap();
    host.crash();
    assert!(guest.attach_with(accept(&listener), 1).is_err());
}

fn capped(iops: u64, group: Option<&str>) -> VolumeLimits {
    VolumeLimits {
        limits: Limits {
            iops: Some(Rate::steady(iops)),
            ..Limits::default()
        },
        group: group.map(str::to_owned),
        weight: None,
    }
}

#[test]
fn limits_are_checked_durable_and_effective_at_once() {
    let mut host = Host::new();
    let set = |host: &Host, name: &str, limits: VolumeLimits| {
        host.ask(&Request::SetLimits {
            volume: VolumeName(name.into()),
            limits,
        })
    };
    let group = |host: &Host, limits: Limits| {
        host.ask(&Request::SetGroup {
            group: "i-1".into(),
            limits,
        })
    };
    assert_eq!(
        set(&host, "vol-1", capped(9, None)),
        Err(ErrorCode::NotFound)
    );
    host.put("vol-1", 1 << 20, VolumeKind::Persistent, None)
        .unwrap();
    assert_eq!(
        set(&host, "vol-1", capped(0, None)),
        Err(ErrorCode::Invalid)
    );
    let grouped = capped(1, Some("i-1"));
    assert_eq!(
        set(&host, "vol-1", grouped.clone()),
        Err(ErrorCode::NotFound)
    );
    group(&host, capped(1000, None).limits).unwrap();
    set(&host, "vol-1", grouped.clone()).unwrap();
    set(&host, "vol-1", grouped.clone()).unwrap();
    assert_eq!(host.list()[0].limits, grouped);
    assert_eq!(
        group(&host, Limits::default()),
        Err(ErrorCode::Conflict),
        "it has a member"
    );
    host.crash();
    assert_eq!(host.list()[0].limits, grouped);
    // One a second: the second of two requests waits until the limits end.
    let listener = host.listen("blk.sock");
    host.attach("vol-1", "blk.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    guest.submit(0, T_IN, 0, 4096);
    guest.submit(1, T_IN, 1024, 4096);
    guest.submit(2, T_IN, 512, 4096);
    wait("a wait", || (host.list()[0].throttled > 0).then_some(()));
    set(&host, "vol-1", VolumeLimits::default()).unwrap();
    let mut left = 3;
    wait("all", || {
        left -= guest.poll().len();
        (left == 0).then_some(())
    });
    group(&host, Limits::default()).unwrap();
    host.crash();
    assert_eq!(host.list()[0].limits, VolumeLimits::default());
}
