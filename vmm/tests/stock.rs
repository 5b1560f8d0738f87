//! Debian's kernels as Debian ships them, in the emulated host (`cargo xtask lab vmm`): disk
//! and network under load, hot-plug of both, reboot, power button.
//!
//! The guest is `xtask/src/lab/l2-vmm.sh`. The devices that the VMM serves by itself are in
//! `stock/hosted.rs`; snapshots, clones and migration in `stock/moves.rs`; what a start costs in
//! exits, beside QEMU's microvm, in `stock/exits.rs`.

mod common;
#[path = "stock/exits.rs"]
mod exits;
#[path = "stock/hosted.rs"]
mod hosted;
#[path = "stock/moves.rs"]
mod moves;

use common::storaged::Storaged;
use common::{Bench, Control, STOCK_GUESTS, Vmm, wait_for};
use libtest_mimic::{Arguments, Trial};
use ocs_storaged_api::VolumeKind;
use ocs_vmm::virtio::net::tap::Tap;
use ocs_vmm_spec::control::{Reply, Request};
use ocs_vmm_spec::exit::ExitReason;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a machine ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Reboot,
    PowerButton,
}

fn main() {
    let mut trials = Vec::new();
    let Some(guests) = std::env::var_os(STOCK_GUESTS).map(PathBuf::from) else {
        // `cargo xtask lab vmm` runs them, and so does the lab layer.
        libtest_mimic::run(&Arguments::from_args(), trials).exit();
    };
    serve_echo();
    for series in ["6.12", "6.1"] {
        for (vcpus, transport, end) in [
            (1, "pci", End::PowerButton),
            (2, "pci", End::Reboot),
            (1, "mmio", End::Reboot),
            (2, "mmio", End::PowerButton),
        ] {
            let guests = guests.clone();
            let name = format!("debian_{series}_{vcpus}_vcpus_{transport}");
            let trial = Trial::test(name, move || {
                machine(&guests, series, vcpus, transport, end);
                Ok(())
            });
            trials.push(trial);
        }
    }
    for (series, vcpus) in [("6.12", 2), ("6.1", 1)] {
        let guests = guests.clone();
        let name = format!("debian_{series}_{vcpus}_vcpus_rng_console_balloon_vsock");
        let trial = Trial::test(name, move || {
            hosted::machine(&guests, series, vcpus);
            Ok(())
        });
        trials.push(trial);
    }
    // One of eight, and all of them in a long run.
    let all = std::env::var_os("OCS_LONG").is_some();
    for series in ["6.12", "6.1"] {
        for (vcpus, transport) in [(2, "pci"), (1, "pci"), (2, "mmio"), (1, "mmio")] {
            if !all && (series, vcpus, transport) != ("6.12", 2, "pci") {
                continue;
            }
            let guests = guests.clone();
            let name = format!("debian_{series}_{vcpus}_vcpus_{transport}_saved_cloned_and_moved");
            let trial = Trial::test(name, move || {
                moves::machine(&guests, series, vcpus, transport);
                Ok(())
            });
            trials.push(trial);
        }
    }
    trials.push({
        let guests = guests.clone();
        Trial::test("debian_6.12_exits_of_a_quiet_start", move || {
            exits::against_microvm(&guests, all);
            Ok(())
        })
    });
    trials.push(Trial::test("debian_6.12_on_a_disk", move || {
        own_kernel(&guests);
        Ok(())
    }));
    if let Some((number, of)) = share() {
        let mut at = 0..trials.len();
        trials.retain(|_| at.next().is_some_and(|at| at % of == number));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Which share of the tests this process runs, of how many; none: it runs them all.
fn share() -> Option<(usize, usize)> {
    let text = std::env::var("OCS_STOCK_SHARE").ok()?;
    let (number, of) = text.split_once('/').expect("a share is NUMBER/OF");
    Some((number.parse().unwrap(), of.parse().unwrap()))
}

/// A disk as Debian's installer leaves it boots with nothing beside it.
fn own_kernel(guests: &Path) {
    let _tap = tap("stock0", "10.9.0.1");
    let mut bench = Bench::new(&[]);
    bench.spec["boot"] = json!({"disk": "root", "cmdline": "hotplug=none end=reboot"});
    bench.spec["memory_mib"] = json!(384);
    bench.spec["net"] = json!([{
        "id": "eni0", "tap": {"path": "stock0"}, "mac": "02:00:00:00:00:01", "mtu": 1500,
    }]);
    let listener = json!({"path": bench.path("root.sock")});
    bench.spec["block"] = json!([{"id": "root", "listener": listener, "backend_uid": 0}]);
    let mut vmm = bench.start();
    let storaged = Storaged::start(bench.dir.path());
    std::fs::copy(guests.join("disk"), bench.path("storaged/images/disk")).unwrap();
    let socket = bench.path("root.sock");
    storaged.attach_image("root", VolumeKind::Persistent, socket, "disk");
    let console = said(&mut vmm, "stock: ready");
    assert!(console.contains("stock: kernel=6.12."), "{console}");
    assert!(
        console.contains("stock: disk vda sectors=131072 "),
        "{console}"
    );
    let (_, stderr, record) = vmm.finish();
    assert_eq!(record.reason, ExitReason::GuestReset, "{stderr}");
    assert!(record.message.contains("asked for a reset"), "{record:?}");
}

fn machine(guests: &Path, series: &str, vcpus: u8, transport: &str, end: End) {
    let _taps = [tap("stock0", "10.9.0.1"), tap("stock1", "10.9.1.1")];
    let has_hot_plug = transport == "pci";
    let mode = [
        (end == End::Reboot, " end=reboot"),
        (!has_hot_plug, " hotplug=none"),
    ];
    let mode: String = mode.iter().filter(|m| m.0).map(|m| m.1).collect();
    let mut bench = stock(guests, series, mode.trim_start());
    bench.spec["vcpus"] = json!(vcpus);
    bench.spec["transport"] = json!(transport);
    bench.spec["memory_mib"] = json!(256);
    let net = json!({
        "id": "eni0", "tap": {"path": "stock0"}, "mac": "02:00:00:00:00:01", "mtu": 1500,
        // The host's own stack takes unfinished frames, as a packet path that keeps them would.
        "offloads": vcpus == 2,
    });
    bench.spec["net"] = json!([net]);
    let listener = json!({"path": bench.path("root.sock")});
    let root = json!({
        "id": "root", "listener": listener, "backend_uid": 0, "queues": vcpus,
    });
    bench.spec["block"] = json!([root]);

    let mut vmm = bench.start();
    let storaged = Storaged::start(bench.dir.path());
    storaged.attach("root", VolumeKind::Persistent, bench.path("root.sock"));
    let console = said(&mut vmm, "stock: ready");
    assert!(
        console.contains(&format!("stock: kernel={series}.")),
        "{console}"
    );
    assert!(console.contains(&format!(" cpus={vcpus}")), "{console}");
    // A queue a vCPU, each with an interrupt of its own.
    let last = format!("virtio1-req.{};", vcpus - 1);
    let expected = if has_hot_plug {
        last.as_str()
    } else {
        "virtio1;"
    };
    assert!(console.contains(expected), "no {expected} {console}");
    for ok in [
        "stock: disk vda sectors=131072 ",
        "stock: net eth0 bytes=2097152 ",
    ] {
        assert!(console.contains(ok), "{ok}: {console}");
    }
    let mut control = vmm.control();
    assert!(control.counter("net.eni0.rx_interrupts") > 0);
    if has_hot_plug {
        hot_plug(&bench, &mut vmm, &mut control, &storaged);
    }

    let expected = match end {
        End::Reboot => ExitReason::GuestReset,
        End::PowerButton => {
            said(&mut vmm, "stock: waiting for the button");
            assert_eq!(control.ask(&Request::PowerButton), Reply::Ok);
            ExitReason::GuestShutdown
        }
    };
    let (status, stderr, record) = vmm.finish();
    let console = bench.console();
    assert!(
        status.success() && record.reason == expected,
        "{record:?} {stderr}: {console}"
    );
    // Not by running into something that faults three times.
    let asked = record.message.contains("asked for a reset");
    assert_eq!(asked, end == End::Reboot, "{record:?}");
    for line in console.lines().filter(|line| line.contains("stock: ")) {
        println!("    {}", line.trim_end());
    }
}

/// A disk and an interface come, are used, and go.
fn hot_plug(bench: &Bench, vmm: &mut Vmm, control: &mut Control, storaged: &Storaged) {
    let socket = bench.path("hot.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let block = json!({"id": "hot", "listener": {"fd": 0}, "backend_uid": 0});
    let request = json!({"cmd": "add_block", "block": block}).to_string();
    assert_eq!(control.pass(&request, &[listener.as_fd()]), Reply::Ok);
    storaged.attach("hot", VolumeKind::Ephemeral, socket);
    said(vmm, "stock: disk vdb sectors=131072 ");
    assert!(control.devices()["hot"].driven);
    let id = "hot".to_owned();
    assert_eq!(
        control.ask(&Request::RemoveBlock { id, force: false }),
        Reply::Ok
    );
    said(vmm, "stock: vdb gone");
    wait_gone(control, "hot");

    let tap = Tap::open(Path::new("stock1")).unwrap();
    let net = json!({"id": "eni1", "tap": {"fd": 0}, "mac": "02:00:00:00:00:02", "mtu": 1500});
    let request = json!({"cmd": "add_net", "net": net}).to_string();
    assert_eq!(control.pass(&request, &[tap.as_fd()]), Reply::Ok);
    drop(tap);
    said(vmm, "stock: net eth1 bytes=2097152 ");
    let id = "eni1".to_owned();
    assert_eq!(
        control.ask(&Request::RemoveNet { id, force: false }),
        Reply::Ok
    );
    said(vmm, "stock: eth1 gone");
    wait_gone(control, "eni1");
}

fn wait_gone(control: &mut Control, id: &str) {
    wait_for("end of the device", || {
        (!control.devices().contains_key(id)).then_some(())
    });
}

/// The command line of every guest, but for what it is to do.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// A machine with a kernel of `series` whose guest does what `mode` says.
fn stock(guests: &Path, series: &str, mode: &str) -> Bench {
    let mut bench = Bench::new(&[]);
    let file = |name: &str| json!({"path": guests.join(format!("{name}-{series}"))});
    let cmdline = format!("{CMDLINE} {mode}");
    bench.spec["boot"] =
        json!({"kernel": file("vmlinux"), "initrd": file("initrd"), "cmdline": cmdline});
    bench
}

/// What a guest says when something went wrong.
const UNWANTED: [&str; 6] = [
    "MISMATCH",
    "BUG:",
    "Oops",
    "Call Trace",
    "Fatal",
    "is not in",
];

/// The console once it holds `text`, unless something went wrong before.
fn said(vmm: &mut Vmm, text: &str) -> String {
    let console = vmm.wait_console_unless(text, &UNWANTED);
    assert!(console.contains(text), "no {text:?}: {console}");
    console
}

/// A tap of this host, gone with the value.
struct HostTap(&'static str);

fn tap(name: &'static str, address: &str) -> HostTap {
    ip(&format!("tuntap add {name} mode tap vnet_hdr"));
    let tap = HostTap(name);
    ip(&format!("address add {address}/24 dev {name}"));
    ip(&format!("link set {name} up"));
    tap
}

/// Echoes on port 9000 what a peer sends, once it has said all.
fn serve_echo() {
    let listener = TcpListener::bind("0.0.0.0:9000").unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Nobody waits for one whose machine was ended before it had said all.
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // A peer that went away asks again.
                let _ = stream
                    .read_to_end(&mut bytes)
                    .and_then(|_| stream.write_all(&bytes));
            });
        }
    });
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

impl Drop for HostTap {
    fn drop(&mut self) {
        ip(&format!("link delete {}", self.0));
    }
}
