//! A stock kernel that is moved, saved, restored and cloned while it rewrites its disk and keeps
//! a stream (`xtask/src/lab/l2-moves.rs`).
//!
//! ```text
//!  first ─ migrate ─▶ moved ─ snapshot a, goes on, snapshot b ─▶ restored ─ power button
//!                                     └─▶ four clones, each with a tap and a disk of its own
//! ```

use super::common::saved::{clone_of, last_number, receiver_of, snapshot, start_inheriting};
use super::common::storaged::Storaged;
use super::common::{Bench, Control, PATIENCE, Vmm, tap, wait_for};
use super::{UNWANTED, said, stock};
use ocs_storaged_api::VolumeKind;
use ocs_vmm_spec::control::{Reply, Request};
use ocs_vmm_spec::exit::ExitReason;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

const CLONES: usize = 4;
/// Rewrites of the disk after which all of it was verified, and records of the stream.
const ENOUGH: u64 = 70;

pub fn machine(guests: &Path, series: &str, vcpus: u8, transport: &str) {
    let (tap, _host) = tap::make_with_echo();
    let mut bench = stock(guests, series, "moves=test");
    bench.spec["vcpus"] = json!(vcpus);
    bench.spec["transport"] = json!(transport);
    bench.spec["memory_mib"] = json!(192);
    bench.spec["rng"] = json!({"bytes_per_s": 65536});
    bench.spec["net"] = net(&tap, 1);
    place(&mut bench);
    let storaged = Storaged::start(bench.dir.path());
    let mut first = start_inheriting(&bench, vec![tap.as_raw_fd()]);
    storaged.attach("vol-1", VolumeKind::Persistent, bench.path("disk.sock"));
    said(&mut first, "stock: moves disk=");
    progress(&bench, (0, 0));

    let (moved_bench, mut moved) = migrate(&bench, &tap, first, &storaged);
    let console = progress(&moved_bench, reached(&bench));
    assert!(!console.contains("stock: fork"), "{console}");
    let mut control = moved.control();
    let memory = moved_bench.dir.path();
    save(&mut control, memory, &storaged, "a");
    let cloned = reached(&moved_bench);
    assert_eq!(control.ask(&Request::Resume), Reply::Ok);
    progress(&moved_bench, reached(&moved_bench));
    save(&mut control, memory, &storaged, "b");
    let stood = reached(&moved_bench);
    drop(moved);
    storaged.detach("vol-1");

    let mut restored_bench = clone_of(&moved_bench, "b", &["b"]);
    place(&mut restored_bench);
    let mut restored = start_inheriting(&restored_bench, vec![tap.as_raw_fd()]);
    storaged.attach_snapshot("vol-b", restored_bench.path("disk.sock"), "snap-b");
    if has_vmgenid(series) {
        said(&mut restored, "stock: fork urandom=");
    }
    said(&mut restored, "stock: moves disk=");
    progress(&restored_bench, stood);
    let mut control = restored.control();
    assert!(control.counter("block.disk.bounced_requests") > ENOUGH);
    for fault in ["block.disk.faults", "net.eni.faults", "rng.faults"] {
        assert_eq!(control.counter(fault), 0, "{fault}");
    }
    assert_eq!(control.ask(&Request::PowerButton), Reply::Ok);
    let (status, stderr, record) = restored.finish();
    let console = restored_bench.console();
    assert!(
        status.success() && record.reason == ExitReason::GuestShutdown,
        "{record:?} {stderr}: {console}"
    );
    clones(&moved_bench, cloned, &storaged, has_vmgenid(series));
}

/// Debian's 6.1 cloud kernel is built without: its clones repeat random numbers.
fn has_vmgenid(series: &str) -> bool {
    series != "6.1"
}

fn net(tap: &File, number: usize) -> Value {
    json!([{
        "id": "eni", "tap": {"fd": tap.as_raw_fd()}, "mac": mac(number), "mtu": 1500,
        // The host's own stack takes unfinished frames.
        "offloads": true,
    }])
}

fn mac(number: usize) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

/// Gives the disk a socket in the machine's own folder.
fn place(bench: &mut Bench) {
    bench.spec["block"] = json!([{
        "id": "disk", "listener": {"path": bench.path("disk.sock")}, "backend_uid": 0,
        "queues": bench.spec["vcpus"],
    }]);
}

/// How far disk and stream are.
fn reached(bench: &Bench) -> (u64, u64) {
    let console = bench.console();
    let number = |name| last_number(&console, name).unwrap_or(0);
    (number("disk"), number("net"))
}

/// Waits until both got on well beyond `from`; the console.
fn progress(bench: &Bench, from: (u64, u64)) -> String {
    let began = Instant::now();
    wait_for("rewrites and records", || {
        let console = bench.console();
        assert!(
            began.elapsed() < 2 * PATIENCE,
            "no progress beyond {from:?}: {console}"
        );
        for bad in UNWANTED.iter().chain(&["the stream is broken"]) {
            assert!(!console.contains(bad), "{console}");
        }
        let (disk, net) = reached(bench);
        (disk > from.0 + ENOUGH && net > from.1 + ENOUGH).then_some(console)
    })
}

/// Moves `first` to another process, and its volume with it.
fn migrate(bench: &Bench, tap: &File, mut first: Vmm, storaged: &Storaged) -> (Bench, Vmm) {
    let (here, there) = UnixStream::pair().unwrap();
    let mut to = receiver_of(bench, &there);
    place(&mut to);
    let moved = start_inheriting(&to, vec![tap.as_raw_fd(), there.as_raw_fd()]);
    drop(there);
    // The emulated host carries a few MB/s, and less while another runs beside it.
    let line = r#"{"cmd":"migrate","socket":{"fd":0},"downtime_ms":2000}"#;
    let reply = first.control().pass(line, &[here.as_fd()]);
    let Reply::Migrated {
        rounds,
        sent_bytes,
        paused_us,
    } = reply
    else {
        panic!("{reply:?}: {}", bench.console());
    };
    println!("    moved: rounds={rounds} sent_bytes={sent_bytes} paused_us={paused_us}");
    assert_eq!(first.finish().2.reason, ExitReason::Migrated);
    storaged.detach("vol-1");
    storaged.attach("vol-1", VolumeKind::Persistent, to.path("disk.sock"));
    (to, moved)
}

/// Saves the machine and, while it stands still, its volume; it stands still afterwards.
fn save(control: &mut Control, dir: &Path, storaged: &Storaged, name: &str) {
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    let (written, _) = snapshot(control, dir, name, "");
    storaged.snapshot("vol-1", &format!("snap-{name}"));
    println!("    saved: memory_bytes={written}");
}

/// Four machines go on from one snapshot, in which they were as far as `stood`, at once.
fn clones(saved: &Bench, stood: (u64, u64), storaged: &Storaged, forks: bool) {
    let clones: Vec<_> = (0..CLONES)
        .map(|index| {
            let (tap, host) = tap::make_with_echo();
            let mut bench = clone_of(saved, "a", &["a"]);
            bench.spec["net"] = net(&tap, 2 + index);
            place(&mut bench);
            let vmm = start_inheriting(&bench, vec![tap.as_raw_fd()]);
            let socket = bench.path("disk.sock");
            storaged.attach_snapshot(&format!("vol-clone-{index}"), socket, "snap-a");
            (bench, vmm, tap, host)
        })
        .collect();
    let mut random = BTreeSet::new();
    for (index, (bench, mut vmm, _tap, _host)) in clones.into_iter().enumerate() {
        said(&mut vmm, "stock: clone mac=");
        let console = progress(&bench, stood);
        assert!(
            console.contains(&format!("stock: clone mac={}", mac(2 + index))),
            "{console}"
        );
        let fork = console.lines().find(|line| line.contains("stock: fork"));
        random.extend(fork.map(|line| line.trim_end().to_owned()));
    }
    let wanted = if forks { CLONES } else { 0 };
    assert_eq!(random.len(), wanted, "{random:?}");
    random.iter().for_each(|line| println!("    {line}"));
}
