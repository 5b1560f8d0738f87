//! virtio-blk between the probe guest and `ocs-storaged`, through its restarts.

mod common;

use common::saved::last_number;
use common::storaged::Storaged;
use common::{Bench, Vmm, wait_for};
use ocs_storaged_api::{Request, VolumeKind, VolumeName};
use ocs_vmm_spec::control;
use serde_json::json;

fn bench(orders: &str, backend_uid: u32) -> Bench {
    let mut bench = Bench::probe(orders);
    bench.spec["block"] = json!([{
        "id": "vol1", "listener": {"path": bench.path("blk.sock")}, "backend_uid": backend_uid,
    }]);
    bench
}

fn start(bench: &Bench, kind: VolumeKind) -> (Vmm, Storaged) {
    let vmm = bench.start();
    let storaged = Storaged::start(bench.dir.path());
    storaged.attach("vol-1", kind, bench.path("blk.sock"));
    (vmm, storaged)
}

#[test]
fn a_guest_writes_its_disk_and_reads_it_back() {
    let bench = bench("disk 0 fill 8MiB;disk 0 verify 8MiB", 0);
    let (mut vmm, _storaged) = start(&bench, VolumeKind::Persistent);
    let console = vmm.wait_console("verify bytes=8388608 ok");
    assert!(console.contains("size_bytes=67108864"), "{console}");
    vmm.control().ask(&control::Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn a_guest_sees_that_its_disk_has_grown() {
    let bench = bench(
        "disk 0 grown 65MiB;disk 0 fill 65MiB;disk 0 verify 65MiB",
        0,
    );
    let (mut vmm, storaged) = start(&bench, VolumeKind::Persistent);
    let console = vmm.wait_console("read_only=0");
    assert!(console.contains("size_bytes=67108864"), "{console}");
    storaged.ask(&Request::ResizeVolume {
        volume: VolumeName("vol-1".to_owned()),
        size_bytes: 65 << 20,
    });
    let console = vmm.wait_console("verify bytes=68157440 ok");
    // The driver was told, once.
    let told = "grown size_bytes=68157440 generation=1";
    assert!(console.contains(told), "{console}");
    vmm.control().ask(&control::Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn a_guest_under_load_survives_kills_of_its_backend() {
    for kind in [VolumeKind::Persistent, VolumeKind::Ephemeral] {
        let mut bench = bench("disk 0 loop 1MiB", 0);
        // Two queues in the inflight region, of which the guest uses one.
        bench.spec["block"][0]["queues"] = json!(2);
        let (mut vmm, mut storaged) = start(&bench, kind);
        vmm.wait_console("loop rounds=");
        let mut control = vmm.control();
        for kills in 1..=5 {
            let before = last_number(&bench.console(), "rounds").unwrap();
            storaged.kill_and_restart();
            wait_for("reconnection", || {
                (control.counter("block.vol1.connects") > kills).then_some(())
            });
            let after = wait_for("rounds after a kill", || {
                last_number(&bench.console(), "rounds").filter(|rounds| *rounds > before + 1)
            });
            assert!(after > before);
        }
        let console = bench.console();
        assert_eq!(last_number(&console, "errors"), Some(0), "{console}");
        assert_eq!(control.counter("block.vol1.faults"), 0);
        assert_eq!(control.counter("block.vol1.failed_handshakes"), 0);
        assert_eq!(control.counter("block.vol1.failed_rings"), 0);
        control.ask(&control::Request::Stop);
        assert!(vmm.finish().0.success());
    }
}

#[test]
fn a_backend_of_another_uid_is_refused() {
    let bench = bench("idle", 12_345);
    let (mut vmm, _storaged) = start(&bench, VolumeKind::Persistent);
    let mut control = vmm.control();
    wait_for("refusals", || {
        (control.counter("block.vol1.refused_peers") > 0).then_some(())
    });
    assert_eq!(control.counter("block.vol1.connects"), 0);
    assert_eq!(bench.console(), "", "the guest ran without its disk");
}

/// How often the threads other than vCPUs went to sleep: one that never wakes makes no call.
fn sleeps(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut found: Vec<(String, u64)> = tasks
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .map(|status| {
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            let count = value("voluntary_ctxt_switches:").parse().unwrap();
            (value("Name:"), count)
        })
        .filter(|(name, _)| !name.starts_with("vcpu"))
        .collect();
    found.sort();
    found
}

#[test]
fn requests_wake_no_thread_of_the_vmm() {
    let bench = bench("disk 0 loop 1MiB", 0);
    let (mut vmm, _storaged) = start(&bench, VolumeKind::Persistent);
    vmm.wait_console("loop rounds=");
    let rounds = || last_number(&bench.console(), "rounds");
    let (before, slept) = (rounds().unwrap(), sleeps(vmm.pid()));
    assert!(
        slept.iter().any(|(name, _)| name.starts_with("blk-")),
        "{slept:?}"
    );
    // 1 MiB written and read in pieces of 64 KiB: 32 requests and a flush a round.
    let after = wait_for("rounds", || rounds().filter(|rounds| *rounds > before + 10));
    assert_eq!(
        sleeps(vmm.pid()),
        slept,
        "{} requests",
        33 * (after - before)
    );
    vmm.control().ask(&control::Request::Stop);
    assert!(vmm.finish().0.success());
}
