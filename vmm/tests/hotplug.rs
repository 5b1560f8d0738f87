//! Disks and interfaces that come and go while the probe guest runs.

mod common;

use common::storaged::Storaged;
use common::{Bench, Control, Vmm, dhcp, tap, wait_for};
use ocs_storaged_api::VolumeKind;
use ocs_vmm_spec::control::{DeviceKind, DeviceState, Reply, Request};
use serde_json::json;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;

fn add_block(control: &mut Control, id: &str, listener: &UnixListener) -> Reply {
    let block = json!({"id": id, "listener": {"fd": 0}, "backend_uid": 0});
    let request = json!({"cmd": "add_block", "block": block}).to_string();
    control.pass(&request, &[listener.as_fd()])
}

fn add_net(control: &mut Control, id: &str, tap: &File) -> Reply {
    let net = json!({"id": id, "tap": {"fd": 0}, "mac": "02:00:00:00:00:01", "mtu": 1500});
    let request = json!({"cmd": "add_net", "net": net}).to_string();
    control.pass(&request, &[tap.as_fd()])
}

fn remove_block(control: &mut Control, id: &str, force: bool) {
    let id = id.to_owned();
    assert_eq!(control.ask(&Request::RemoveBlock { id, force }), Reply::Ok);
}

fn wait_gone(control: &mut Control, id: &str) {
    wait_for("end of the device", || {
        (!control.devices().contains_key(id)).then_some(())
    });
}

/// Descriptors and threads of the VMM.
fn held(vmm: &Vmm) -> [usize; 2] {
    ["fd", "task"].map(|what| {
        let folder = format!("/proc/{}/{what}", vmm.pid());
        std::fs::read_dir(folder).unwrap().count()
    })
}

/// A guest that runs, without devices yet, and what its VMM holds.
fn ready(bench: &Bench) -> (Vmm, Control, [usize; 2]) {
    let mut vmm = bench.start();
    vmm.wait_console("ready");
    let mut control = vmm.control();
    // The connection counts from its first answer.
    assert_eq!(control.devices().len(), 0);
    let before = held(&vmm);
    (vmm, control, before)
}

/// Nothing is left of what went: a thread that has been joined may still be listed for a moment.
fn wait_released(vmm: &Vmm, before: [usize; 2]) {
    wait_for("descriptors and threads as before", || {
        (held(vmm) == before).then_some(())
    });
}

#[test]
fn a_disk_comes_is_used_and_goes_again_and_again() {
    let orders = "disk 0 await;disk 0 fill 2MiB 7;disk 0 verify 2MiB 7;disk 0 loop 1MiB";
    let bench = Bench::probe(orders);
    let storaged = Storaged::start(bench.dir.path());
    let (mut vmm, mut control, before) = ready(&bench);

    for round in 1..=3 {
        let socket = bench.path(&format!("hot-{round}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(add_block(&mut control, "hot", &listener), Reply::Ok);
        drop(listener);
        let device = &control.devices()["hot"];
        assert_eq!(
            (device.kind, device.state, device.slot, device.driven),
            (DeviceKind::Block, DeviceState::Waiting, 1, false),
            "no guest sees a disk without a backend"
        );
        storaged.attach(&format!("hot-{round}"), VolumeKind::Ephemeral, socket);
        wait_for("a driver", || control.devices()["hot"].driven.then_some(()));
        assert_eq!(control.devices()["hot"].state, DeviceState::Plugged);
        if round == 1 {
            let console = vmm.wait_console("disk: 0 loop rounds=");
            assert!(
                console.contains("disk: 0 verify bytes=2097152 ok"),
                "{console}"
            );
            assert_eq!(control.counter("block.hot.faults"), 0);
        }
        // The first one goes under load.
        remove_block(&mut control, "hot", false);
        wait_gone(&mut control, "hot");
        wait_for("what the guest says of it", || {
            (bench.console().matches("disk: index=0 gone").count() == round).then_some(())
        });
        wait_released(&vmm, before);
    }
    let console = bench.console();
    let sizes = console.matches("size_bytes=67108864").count();
    assert_eq!(sizes, 3, "{console}");
    assert!(
        !console.contains("MISMATCH") && !console.contains("panic"),
        "{console}"
    );
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn a_disk_is_taken_by_force_or_before_its_backend_came() {
    let bench = Bench::probe("disk 0 await;disk 0 loop 1MiB");
    let storaged = Storaged::start(bench.dir.path());
    let (mut vmm, mut control, before) = ready(&bench);

    let listener = UnixListener::bind(bench.path("idle.sock")).unwrap();
    assert_eq!(add_block(&mut control, "idle", &listener), Reply::Ok);
    remove_block(&mut control, "idle", false);
    wait_gone(&mut control, "idle");

    let socket = bench.path("hot.sock");
    assert_eq!(
        add_block(&mut control, "hot", &UnixListener::bind(&socket).unwrap()),
        Reply::Ok
    );
    storaged.attach("hot", VolumeKind::Persistent, socket);
    vmm.wait_console("disk: 0 loop rounds=");
    remove_block(&mut control, "hot", true);
    wait_gone(&mut control, "hot");
    vmm.wait_console("disk: index=0 gone");
    drop(listener);
    wait_released(&vmm, before);
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn an_interface_comes_carries_frames_and_goes() {
    let bench = Bench::probe("idle");
    let (vmm, mut control, before) = ready(&bench);
    for round in 1..=2 {
        let (tap, host) = tap::make();
        assert_eq!(add_net(&mut control, "eni", &tap), Reply::Ok);
        drop(tap);
        dhcp::serve(&host);
        wait_for("an address", || {
            let leases = bench
                .console()
                .matches("dhcp: address=172.31.0.5/20")
                .count();
            (leases >= round).then_some(())
        });
        assert!(control.devices()["eni"].driven);
        assert!(control.counter("net.eni.rx_frames") > 0);
        let id = "eni".to_owned();
        let request = Request::RemoveNet {
            id,
            force: round == 2,
        };
        assert_eq!(control.ask(&request), Reply::Ok);
        wait_gone(&mut control, "eni");
        wait_released(&vmm, before);
    }
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn what_cannot_be_plugged_is_refused_by_name() {
    let mut bench = Bench::probe("idle");
    bench.spec["block"] = json!([]);
    let (mut vmm, mut control, before) = ready(&bench);
    let listener = UnixListener::bind(bench.path("one.sock")).unwrap();
    assert_eq!(add_block(&mut control, "one", &listener), Reply::Ok);
    let mut refused = |line: serde_json::Value, fds: &[std::os::fd::BorrowedFd<'_>], why: &str| {
        let reply = control.pass(&line.to_string(), fds);
        let Reply::Error { message } = &reply else {
            panic!("{line}: {reply:?}");
        };
        assert!(message.contains(why), "{line}: {message}");
    };
    let block = |id: &str, listener: serde_json::Value| {
        let block = json!({"id": id, "listener": listener, "backend_uid": 0});
        json!({"cmd": "add_block", "block": block})
    };
    let null = File::open("/dev/null").unwrap();
    refused(block("two", json!({"path": "/x"})), &[], "opens nothing");
    refused(block("two", json!({"fd": 0})), &[], "no such descriptor");
    refused(
        block("two", json!({"fd": 0})),
        &[null.as_fd()],
        "block.listener",
    );
    refused(
        block("one", json!({"fd": 0})),
        &[listener.as_fd()],
        "device with this id",
    );
    refused(block("", json!({"fd": 0})), &[listener.as_fd()], "block.id");
    let net = json!({"id": "n", "tap": {"fd": 0}, "mac": "02:00:00:00:00:01", "mtu": 1500});
    refused(
        json!({"cmd": "add_net", "net": net}),
        &[null.as_fd()],
        "tap cannot serve",
    );
    refused(
        json!({"cmd": "remove_net", "id": "one"}),
        &[],
        "no net device",
    );
    refused(
        json!({"cmd": "remove_block", "id": "none"}),
        &[],
        "no block device",
    );
    remove_block(&mut control, "one", false);
    wait_gone(&mut control, "one");
    wait_released(&vmm, before);

    // Too many descriptors end the connection, and nothing is kept of them.
    let many = [null.as_fd(); 8];
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        vmm.control()
            .pass(&block("two", json!({"fd": 0})).to_string(), &many)
    }));
    assert!(lost.is_err());
    wait_for("descriptors closed", || {
        (held(&vmm) == before).then_some(())
    });
    assert!(null.as_raw_fd() > 2);
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}
