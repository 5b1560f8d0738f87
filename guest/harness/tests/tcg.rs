//! The image on an emulated CPU: boot, disks, network, orders, the ways to end.

use ocs_probe_harness::{Guest, Network, disk_image};

#[test]
fn disks_keep_what_is_written_and_show_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let first = disk_image(folder.path(), "first", 16 << 20);
    let second = disk_image(folder.path(), "second", 1 << 20);
    let orders = [
        "disk 0 fill 8MiB 7",
        "disk 0 verify 8MiB 7",
        "disk 0 verify 4KiB 8",
        "disk 0 fill 17MiB",
        "disk 0 verify 8MiB 7",
        "disk 1 verify 512",
        "disk 2 verify 512",
        "exit",
    ];
    let mut guest = Guest::start(&orders, Network::None, &[&first, &second]);
    assert!(guest.wait_for_exit().success());
    let lines = guest.lines();
    assert!(lines[0].starts_with("probe: boot version=0.1.0 cpus=1 memory_mib=64 tsc_khz="));
    for expected in [
        "disk: index=0 id=vol0 size_bytes=16777216 read_only=0",
        "disk: index=1 id=vol1 size_bytes=1048576 read_only=0",
        "disk: 0 verify MISMATCH at=0",
        "disk: 0 fill error=out-of-range",
        "disk: 1 verify MISMATCH at=0",
        "disk: 2 error=no-such-disk",
        "power: off",
    ] {
        assert!(
            lines.iter().any(|l| l == expected),
            "{expected}: {lines:#?}"
        );
    }
    // The failed fill wrote its first 16 MiB with seed 1 before it met the disk's end.
    let verified = |l: &&String| l.starts_with("disk: 0 verify bytes=8388608 ok us=");
    assert_eq!(lines.iter().filter(verified).count(), 1);
    let on_disk = std::fs::read(&first).unwrap();
    assert_eq!(
        ocs_probe_logic::pattern::first_mismatch(&on_disk, 1, 0),
        None
    );
}

#[test]
fn benches_report_what_they_did() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk_image(folder.path(), "disk", 1 << 20);
    let orders = [
        "bench disk 0 write 4KiB depth 32 for 300ms",
        "bench disk 0 read 64KiB depth 1 for 300ms",
        "bench disk 1 read 4KiB depth 1 for 300ms",
        "exit",
    ];
    let mut guest = Guest::start(&orders, Network::None, &[&disk]);
    assert!(guest.wait_for_exit().success());
    let lines = guest.lines();
    for (beginning, least_ops) in [
        ("bench: disk 0 write block=4096 depth=32 ops=", 32),
        ("bench: disk 0 read block=65536 depth=1 ops=", 1),
    ] {
        let ops = lines.iter().find_map(|line| {
            line.strip_prefix(beginning)?
                .split(' ')
                .next()?
                .parse()
                .ok()
        });
        assert!(ops.is_some_and(|ops: u64| ops >= least_ops), "{lines:#?}");
    }
    assert!(lines.iter().any(|l| l == "disk: 1 error=no-such-disk"));
}

#[test]
fn orders_come_from_metadata_and_all_run() {
    let orders = [
        "# the network's orders",
        "stream 169.254.160.99:9000",
        "connect 169.254.160.99:9000 every 100ms",
        "connect 169.254.160.99:1 every 1s",
        "ping 169.254.160.77 every 1s",
        "bench tcp 169.254.160.99:9000 for 300ms",
        "http-get http://169.254.160.99/letters",
        "dance",
    ];
    let guest = Guest::start(&orders, Network::User, &[]);
    guest.wait_for("stream: 169.254.160.99:9000 alive records=");
    guest.wait_for("connect: 169.254.160.99:9000 ok us=");
    guest.wait_for("connect: 169.254.160.99:1 ");
    let benched = guest.wait_for("bench: tcp 169.254.160.99:9000 echoed_bytes=");
    assert!(!benched.contains("echoed_bytes=0 "), "{benched}");
    guest.wait_for("ping: 169.254.160.77 timeout ok_total=0 failed_total=1");
    let fetched =
        guest.wait_for("http-get: http://169.254.160.99/letters status=200 bytes=1000000");
    // printf 'a%.0s' $(seq 1000000) | sha256sum
    assert!(
        fetched.contains("sha256=cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
    );
    let lines = guest.lines();
    for expected in [
        "imds: instance-id=i-0123456789abcdef0 local-ipv4=169.254.160.15 v1_status=401",
        "order: 7 error=unknown dance",
        "ready",
    ] {
        assert!(
            lines.iter().any(|l| l == expected),
            "{expected}: {lines:#?}"
        );
    }
    assert!(!lines.iter().any(|l| l.contains("panic")), "{lines:#?}");
}

#[test]
fn an_exception_is_reported_from_ring_3() {
    let mut guest = Guest::start(&["idle"], Network::None, &[]);
    guest.wait_for("ready");
    guest.monitor("nmi");
    guest.wait_for("panic: exception=2 error=0x0 rip=0x");
}

#[test]
fn reset_ends_in_a_reset() {
    let mut guest = Guest::start(&["reset"], Network::None, &[]);
    assert!(guest.wait_for_exit().success());
    guest.wait_for("power: reset");
}
