//! A machine that boots the kernel its own disk holds, through the disk's backend.

mod common;

use common::storaged::Storaged;
use common::{Bench, Vmm, probe_path, wait_for};
use ocs_storaged_api::VolumeKind;
use ocs_vmm_spec::control::{Reply, Request, RunState};
use ocs_vmm_spec::exit::ExitReason;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A file system whose kernel is the probe guest, with orders where a menu has them.
fn disk_with_probe(image: &Path, orders: &str) {
    let folder = tempfile::tempdir().unwrap();
    let boot = folder.path().join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    fs::copy(probe_path(), boot.join("vmlinuz-1.0")).unwrap();
    let menu = format!("menuentry 'probe' {{\n linux /boot/vmlinuz-1.0 {orders}\n}}\n");
    fs::write(boot.join("grub/grub.cfg"), menu).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(folder.path())
        .arg(image)
        .arg("32M")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status()
        .expect("mke2fs, of Debian's e2fsprogs");
    assert!(made.success());
}

fn bench() -> Bench {
    let mut bench = Bench::new(&[]);
    bench.spec["boot"] = json!({"disk": "root"});
    bench.spec["block"] = json!([{
        "id": "root", "listener": {"path": bench.path("blk.sock")}, "backend_uid": 0, "queues": 2,
    }]);
    bench
}

fn attach(bench: &Bench, storaged: &Storaged, kind: VolumeKind) {
    storaged.attach_image("root", kind, bench.path("blk.sock"), "disk.img");
}

fn storaged(bench: &Bench, orders: &str) -> Storaged {
    let storaged = Storaged::start(bench.dir.path());
    disk_with_probe(&bench.path("storaged/images/disk.img"), orders);
    storaged
}

fn stop(mut vmm: Vmm) {
    vmm.control().ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn the_kernel_comes_from_the_disk_which_the_guest_then_uses() {
    for kind in [VolumeKind::Persistent, VolumeKind::Ephemeral] {
        let bench = bench();
        let mut vmm = bench.start();
        let storaged = storaged(&bench, "orders=disk 0 fill 1MiB;disk 0 verify 1MiB");
        let Reply::Status { state, .. } = vmm.control().ask(&Request::Status) else {
            panic!("no status");
        };
        assert_eq!(state, RunState::Waiting);
        attach(&bench, &storaged, kind);
        let console = vmm.wait_console("verify bytes=1048576 ok");
        assert!(console.contains("size_bytes=67108864"), "{console}");
        let mut control = vmm.control();
        assert_eq!(control.counter("block.root.connects"), 1);
        assert_eq!(control.counter("block.root.failed_rings"), 0);
        stop(vmm);
    }
}

#[test]
fn what_the_spec_says_stands_behind_the_disk_s_own_command_line() {
    let mut bench = bench();
    bench.spec["boot"]["cmdline"] = json!("orders=disk 0 fill 8MiB;disk 0 verify 8MiB");
    let mut vmm = bench.start();
    let storaged = storaged(&bench, "quiet");
    attach(&bench, &storaged, VolumeKind::Ephemeral);
    vmm.wait_console("verify bytes=8388608 ok");
    stop(vmm);
}

#[test]
fn a_backend_that_dies_before_or_during_the_reading_is_waited_for() {
    let mut bench = bench();
    bench.spec["boot"]["cmdline"] = json!("orders=disk 0 fill 1MiB;disk 0 verify 1MiB");
    let mut vmm = bench.start();
    let mut storaged = storaged(&bench, "quiet");
    attach(&bench, &storaged, VolumeKind::Persistent);
    // Wherever it dies: at the handshake, in the kernel's file, or when the guest runs.
    for _ in 0..4 {
        storaged.kill_and_restart();
    }
    vmm.wait_console("verify bytes=1048576 ok");
    stop(vmm);
}

#[test]
fn a_disk_without_a_kernel_ends_the_machine_by_name() {
    let bench = bench();
    let vmm = bench.start();
    let storaged = Storaged::start(bench.dir.path());
    storaged.attach("root", VolumeKind::Persistent, bench.path("blk.sock"));
    let (status, stderr, record) = vmm.finish();
    assert!(!status.success());
    assert_eq!(record.reason, ExitReason::Error);
    assert_eq!(
        record.message,
        "boot.disk: no kernel is on it: no ext4 file system in 1 partitions"
    );
    assert!(stderr.contains("boot.disk: "), "{stderr}");
}

#[test]
fn a_machine_that_waits_for_its_kernel_can_be_stopped_but_not_saved() {
    let bench = bench();
    let mut vmm = bench.start();
    let mut control = vmm.control();
    wait_for("the wait", || {
        let Reply::Status { state, .. } = control.ask(&Request::Status) else {
            return None;
        };
        (state == RunState::Waiting).then_some(())
    });
    let files = ["state", "memory"].map(|name| fs::File::create(bench.path(name)).unwrap());
    let fds = [&files[0], &files[1]].map(std::os::fd::AsFd::as_fd);
    let reply = control.pass(
        r#"{"cmd":"snapshot","state":{"fd":0},"memory":{"fd":1}}"#,
        &fds,
    );
    let Reply::Error { message } = reply else {
        panic!("{reply:?}");
    };
    assert!(message.contains("boot.disk"), "{message}");
    stop(vmm);
}

#[test]
fn a_disk_that_is_taken_away_before_it_was_read_ends_the_machine_by_name() {
    let bench = bench();
    let mut vmm = bench.start();
    let mut control = vmm.control();
    let id = "root".to_owned();
    let reply = control.ask(&Request::RemoveBlock { id, force: false });
    assert_eq!(reply, Reply::Ok);
    let (_, _, record) = vmm.finish();
    assert_eq!(record.reason, ExitReason::Error);
    assert_eq!(
        record.message,
        "boot.disk: was taken away before its kernel was read"
    );
}
