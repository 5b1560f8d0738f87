//! virtio-net between the probe guest and a tap: frames both ways, by DHCP.

mod common;

use common::dhcp::{self, SERVER_MAC};
use common::{Bench, tap};
use ocs_vmm_spec::control::{Reply, Request};
use serde_json::json;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

#[test]
fn a_guest_gets_its_address_over_an_inherited_tap() {
    let (tap, host) = tap::make();
    let mut bench = Bench::probe("");
    bench.spec["net"] = json!([{
        "id": "eni-1", "tap": {"fd": tap.as_raw_fd()}, "mac": "02:00:00:00:00:01", "mtu": 1500,
        "offloads": true,
    }]);
    let fd = tap.as_raw_fd();
    let mut command = bench.command();
    // SAFETY: only clears a flag of a descriptor that stays open in this process.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(fd, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let mut vmm = bench.adopt(command.spawn().unwrap());
    // Whoever waits hears that the driver is ready, and what it declined.
    let mut waiting = vmm.control();
    let mut seen = 0;
    loop {
        let Reply::Status {
            devices, changes, ..
        } = waiting.ask(&Request::AwaitChange { seen })
        else {
            panic!("no status");
        };
        assert_ne!(changes, seen);
        seen = changes;
        if devices["eni-1"].driven {
            assert!(devices["eni-1"].declined_offloads(), "{devices:?}");
            break;
        }
    }
    let withdraw = |id: &str| Request::WithdrawOffloads { id: id.to_owned() };
    assert_eq!(waiting.ask(&withdraw("eni-1")), Reply::Ok);
    let Reply::Error { message } = waiting.ask(&withdraw("eni-2")) else {
        panic!("there is no such interface");
    };
    assert!(message.contains("eni-2"), "{message}");
    dhcp::serve(&host);
    let console = vmm.wait_console("dhcp: address=172.31.0.5/20");
    assert!(
        console.contains("mac=02:00:00:00:00:01 mtu=1500"),
        "{console}"
    );

    // Frames larger than the MTU, broadcast storms and runts arrive, or are counted.
    let mut control = vmm.control();
    let before = control.counter("net.eni-1.rx_frames");
    let mut broadcast = vec![0xff; 6];
    broadcast.extend_from_slice(&SERVER_MAC);
    broadcast.resize(60, 0);
    for _ in 0..1000 {
        host.send(&broadcast);
    }
    common::wait_for("frames", || {
        (control.counter("net.eni-1.rx_frames") > before + 100).then_some(())
    });
    assert_eq!(control.counter("net.eni-1.faults"), 0);
    assert_eq!(control.counter("net.eni-1.tx_errors"), 0);
    assert!(control.counter("net.eni-1.rx_interrupts") > 0);
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}
