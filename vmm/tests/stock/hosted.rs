//! Entropy, second console, balloon and sockets, while disk and network are under load.

use super::common::storaged::Storaged;
use super::common::{Control, wait_for};
use super::{said, stock, tap};
use ocs_storaged_api::VolumeKind;
use ocs_vmm_spec::control::{Reply, Request};
use ocs_vmm_spec::exit::ExitReason;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

const BALLOON_MIB: u32 = 64;

pub fn machine(guests: &Path, series: &str, vcpus: u8) {
    let _echo = tap("stock0", "10.9.0.1");
    let mut bench = stock(guests, series, "hosted=test");
    bench.spec["vcpus"] = json!(vcpus);
    bench.spec["memory_mib"] = json!(384);
    bench.spec["net"] = json!([{
        "id": "eni0", "tap": {"path": "stock0"}, "mac": "02:00:00:00:00:01", "mtu": 1500,
    }]);
    let at = |name: &str| json!({"path": bench.path(name)});
    let (disk, input, sockets) = (at("root.sock"), at("input"), at("vsock.sock"));
    bench.spec["block"] = json!([{"id": "root", "listener": disk, "backend_uid": 0}]);
    bench.spec["rng"] = json!({"bytes_per_s": 65536});
    bench.spec["console"] = json!({"input": input});
    bench.spec["balloon"] = json!({});
    bench.spec["vsock"] = json!({"guest_cid": 7, "listener": sockets, "uid": 0});
    let made = Command::new("mkfifo").arg(bench.path("input")).status();
    assert!(made.unwrap().success());

    let mut vmm = bench.start();
    let storaged = Storaged::start(bench.dir.path());
    storaged.attach("root", VolumeKind::Persistent, bench.path("root.sock"));
    let sockets = bench.path("vsock.sock");
    wait_for("vsock socket", || sockets.exists().then_some(()));
    for _ in 0..4 {
        echo_when_asked(&sockets);
    }
    said(&mut vmm, "stock: second console");
    let mut input = fs::File::options()
        .write(true)
        .open(bench.path("input"))
        .unwrap();
    said(&mut vmm, "stock: load");
    let mut control = vmm.control();
    // The balloon grows while everything else is busy.
    set_balloon(&mut control, BALLOON_MIB);
    input.write_all(b"good morning\n").unwrap();
    said(&mut vmm, "stock: vsock serves 9001");
    talk_to_the_guest(&sockets);
    said(&mut vmm, "stock: heard ");
    said(&mut vmm, "stock: hosted");
    let console = said(&mut vmm, "stock: ready");
    for ok in [
        "stock: rng virtio_rng.0 bytes=65536",
        "stock: second console",
        "stock: heard good morning",
        "stock: vsock bytes=2097152 ",
        "stock: vsock served",
        "stock: disk vda sectors=131072 ",
        "stock: net eth0 bytes=2097152 ",
    ] {
        assert!(console.contains(ok), "{ok}: {console}");
    }
    memory_goes_back(&mut control, vmm.pid());
    assert_eq!(control.counter("vsock.bad_packets"), 0);
    assert_eq!(control.counter("vsock.opened"), 4);
    assert!(control.counter("rng.bytes") >= 65536);

    assert_eq!(control.ask(&Request::PowerButton), Reply::Ok);
    let (status, stderr, record) = vmm.finish();
    let console = bench.console();
    assert!(
        status.success() && record.reason == ExitReason::GuestShutdown,
        "{record:?} {stderr}: {console}"
    );
    for line in console.lines().filter(|line| line.contains("stock: ")) {
        println!("    {}", line.trim_end());
    }
}

fn set_balloon(control: &mut Control, target_mib: u32) {
    assert_eq!(control.ask(&Request::Balloon { target_mib }), Reply::Ok);
}

/// A program of the host's that echoes one connection of the guest's.
fn echo_when_asked(sockets: &Path) {
    let mut stream = UnixStream::connect(sockets).unwrap();
    std::thread::spawn(move || {
        stream.write_all(b"ACCEPT 9000\n").unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        // One of these is not needed, and ends with the machine.
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        assert!(line.starts_with("OK "), "{line}");
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
}

fn talk_to_the_guest(sockets: &Path) {
    let mut stream = UnixStream::connect(sockets).unwrap();
    stream.write_all(b"CONNECT 9001\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line}");
    let sent: Vec<u8> = (0..300_000u32).map(|n| (n * 7) as u8).collect();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
}

/// The host sees it: resident memory shrinks by what the balloon holds, and by what is reported.
fn memory_goes_back(control: &mut Control, pid: u32) {
    let bytes = u64::from(BALLOON_MIB) << 20;
    wait_for("inflated balloon", || {
        (control.counter("balloon.actual_bytes") == bytes).then_some(())
    });
    wait_for("free-page report", || {
        (control.counter("balloon.reported_bytes") > 32 << 20).then_some(())
    });
    let resident = resident_kib(pid);
    let reported = control.counter("balloon.reported_bytes");
    println!("    resident {resident} KiB of 384 MiB, {reported} bytes reported free");
    // What never was touched is not resident either; the fill file's 64 MiB were.
    assert!(
        resident < (384 - u64::from(BALLOON_MIB)) << 10,
        "{resident} KiB"
    );
    set_balloon(control, 0);
    wait_for("deflated balloon", || {
        (control.counter("balloon.actual_bytes") == 0).then_some(())
    });
    assert!(control.counter("balloon.guest.total_bytes") > 0);
    let refused = control.ask(&Request::Balloon { target_mib: 370 });
    assert!(matches!(refused, Reply::Error { .. }), "{refused:?}");
}

/// Pages of the guest's memory that the host holds.
fn resident_kib(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut guest = false;
    let mut sum = 0;
    for line in maps.lines() {
        if line.contains(" rw-s ") || line.contains(" r--p ") || line.contains(" r-xp ") {
            guest = line.contains("memfd:guest-memory");
        } else if guest && let Some(rss) = line.strip_prefix("Rss:") {
            sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum
}
