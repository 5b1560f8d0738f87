//! Machines that are saved, and go on in other processes.

mod common;

use common::payload::{elf, halt, print, wait_port};
use common::saved::{clone_of, last_number, receiver_of, snapshot, start_inheriting};
use common::storaged::Storaged;
use common::{Bench, Vmm, dhcp, tap, wait_for};
use ocs_storaged_api::VolumeKind;
use ocs_vmm_spec::control::{Reply, Request, RunState};
use ocs_vmm_spec::exit::ExitReason;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Starts with a tap that the VMM inherits.
fn start_with(bench: &Bench, tap: &File) -> Vmm {
    start_inheriting(bench, vec![tap.as_raw_fd()])
}

/// Bytes of the VMM's mappings of `file` that it has read, and that it has written.
fn resident(vmm: &Vmm, file: &Path) -> (u64, u64) {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (mut ours, mut read, mut written) = (false, 0, 0);
    for line in smaps.lines() {
        if line.contains('-') && line.as_bytes()[0].is_ascii_hexdigit() {
            ours = line.ends_with(file.to_str().unwrap());
        }
        let kib = |name: &str| {
            let rest = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
            rest.trim().parse::<u64>().ok()
        };
        if ours {
            read += kib("Rss:").unwrap_or(0) << 10;
            written += kib("Private_Dirty:").unwrap_or(0) << 10;
        }
    }
    (read, written)
}

/// `mov esi, at; mov edi, 16; again: mov al, [esi]; out 0x3f8, al; inc esi; dec edi; jnz again`
fn dump_generation() -> Vec<u8> {
    let mut code = vec![0xbe];
    code.extend_from_slice(&0xf_f000u32.to_le_bytes());
    code.extend_from_slice(&[0xbf, 16, 0, 0, 0]);
    code.extend_from_slice(&[0x66, 0xba, 0xf8, 0x03]);
    code.extend_from_slice(&[0x8a, 0x06, 0xee, 0x46, 0x4f, 0x75, 0xf9]);
    code
}

fn raw_console(bench: &Bench) -> Vec<u8> {
    File::open(bench.path("ring"))
        .and_then(|file| ocs_vmm_spec::console::read(&file))
        .map(|(bytes, _)| bytes)
        .unwrap_or_default()
}

#[test]
fn every_clone_goes_on_at_once_with_a_generation_of_its_own() {
    let code = [
        print("up"),
        wait_port(0x603),
        dump_generation(),
        print("!"),
        halt(),
    ]
    .concat();
    let mut bench = Bench::new(&elf(&code));
    bench.spec["memory_mib"] = json!(512);
    let mut vmm = bench.start();
    vmm.wait_console("up");
    let mut control = vmm.control();
    let (written, _) = snapshot(&mut control, bench.dir.path(), "a", "");
    assert!(
        written < 1 << 20,
        "{written} bytes of an almost empty machine"
    );
    // It goes on, and can be saved again.
    let Reply::Status { state, .. } = control.ask(&Request::Status) else {
        panic!("no status");
    };
    assert_eq!(state, RunState::Running);
    snapshot(&mut control, bench.dir.path(), "b", "");
    drop(vmm);

    let mut generations = Vec::new();
    let clones: Vec<(Bench, Vmm)> = (0..4)
        .map(|_| {
            let clone = clone_of(&bench, "a", &["a"]);
            let vmm = clone.start();
            (clone, vmm)
        })
        .collect();
    for (clone, vmm) in &clones {
        let console = wait_for("a generation on the console", || {
            let console = raw_console(clone);
            (console.len() >= 17).then_some(console)
        });
        assert_eq!(console.last(), Some(&b'!'), "{console:02x?}");
        let generation = console[..16].to_vec();
        assert!(!generations.contains(&generation));
        generations.push(generation);
        let (read, written) = resident(vmm, &bench.path("a.memory"));
        assert!(read < 1 << 20 && written < 256 << 10, "{read} {written}");
    }
}

#[test]
fn a_paused_machine_is_saved_paused_and_one_of_several_vcpus_too() {
    let count = [print("."), vec![0xeb, 0xf7]].concat();
    let mut bench = Bench::new(&elf(&count));
    bench.spec["vcpus"] = json!(3);
    let mut vmm = bench.start();
    vmm.wait_console("...");
    let mut control = vmm.control();
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    let exits = control.counter("cpu.port_exits");
    snapshot(&mut control, bench.dir.path(), "a", "");
    assert_eq!(control.counter("cpu.port_exits"), exits);
    assert_eq!(control.ask(&Request::Resume), Reply::Ok);
    wait_for("more exits", || {
        (control.counter("cpu.port_exits") > exits).then_some(())
    });
    let clone = clone_of(&bench, "a", &["a"]);
    let mut vmm = clone.start();
    vmm.wait_console("...");
}

/// The first page of 64 MiB in which the layers `names`, on each other, are not the file `whole`.
fn first_difference(dir: &Path, names: &[&str], whole: &str) -> Option<usize> {
    const PAGE: usize = 4096;
    let mut layered = vec![0u8; 64 << 20];
    for name in names {
        let layer = File::open(dir.join(format!("{name}.memory"))).unwrap();
        let layer = ocs_vmm::snapshot::memory_file::MemoryFile::open(layer).unwrap();
        layer.verify().unwrap();
        for extent in &layer.extents {
            let at = usize::try_from(extent.at).unwrap();
            let into = &mut layered[at..at + extent.bytes as usize];
            layer.file.read_exact_at(into, 4096 + extent.at).unwrap();
        }
    }
    let base = std::fs::read(dir.join(format!("{whole}.memory"))).unwrap();
    (0..layered.len() / PAGE)
        .find(|page| layered[page * PAGE..][..PAGE] != base[(page + 1) * PAGE..][..PAGE])
}

#[test]
fn differences_lie_on_what_they_differ_from() {
    // Writes its counter to memory at 16 MiB, page after page, and says so.
    // mov edi, 0x1000000; again: inc dword [edi]; add edi, 4096; mov dx, 0x3f8; mov al, '.';
    // out dx, al; jmp again
    let code = [
        print("up"),
        vec![0xbf, 0, 0, 0, 1],
        vec![0xff, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0],
        vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xef],
    ]
    .concat();
    let bench = Bench::new(&elf(&code));
    let mut vmm = bench.start();
    vmm.wait_console("..........");
    let mut control = vmm.control();
    let dir = bench.dir.path();
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    let refusal = {
        let (state, memory) = (
            File::create(dir.join("x")).unwrap(),
            File::create(dir.join("y")).unwrap(),
        );
        let line = r#"{"cmd":"snapshot","state":{"fd":0},"memory":{"fd":1},"differential":true}"#;
        control.pass(line, &[state.as_fd(), memory.as_fd()])
    };
    assert!(
        matches!(&refusal, Reply::Error { message } if message.contains("track")),
        "{refusal:?}"
    );
    snapshot(&mut control, dir, "a", r#","track":true"#);
    let mut names = vec!["a"];
    for name in ["b", "c"] {
        assert_eq!(control.ask(&Request::Resume), Reply::Ok);
        let exits = control.counter("cpu.port_exits");
        wait_for("more pages", || {
            (control.counter("cpu.port_exits") > exits + 5).then_some(())
        });
        assert_eq!(control.ask(&Request::Pause), Reply::Ok);
        let more = r#","differential":true,"track":true"#;
        let (written, _) = snapshot(&mut control, dir, name, more);
        assert!((5 * 4096..32 << 20).contains(&written), "{name}: {written}");
        names.push(name);
    }
    // The same machine, saved whole: the layers must come to the same memory.
    snapshot(&mut control, dir, "whole", "");
    assert_eq!(first_difference(dir, &names, "whole"), None);

    let clone = clone_of(&bench, "c", &names);
    let mut vmm = clone.start();
    vmm.wait_console("...");
    // Layers that do not belong together, or a state of another time, are refused.
    for (state, memory, named) in [
        (
            "c",
            &["a", "c"][..],
            "restore.memory[1]: is a difference to snapshot",
        ),
        (
            "b",
            &["a", "b", "c"][..],
            "restore.memory[2]: is of snapshot",
        ),
        ("a", &["b"][..], "restore.memory[0]: is a difference"),
    ] {
        let (status, stderr, _) = clone_of(&bench, state, memory).start().finish();
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains(named), "{stderr}");
    }
}

#[test]
fn another_machine_or_a_damaged_snapshot_is_refused_by_name() {
    let bench = Bench::new(&elf(&[print("up"), halt()].concat()));
    let mut vmm = bench.start();
    vmm.wait_console("up");
    snapshot(&mut vmm.control(), bench.dir.path(), "a", "");
    type Spoil = fn(&mut Bench, &Path);
    let cases: [(&str, Spoil); 6] = [
        ("vcpus: the state is of a machine with 1", |clone, _| {
            clone.spec["vcpus"] = json!(2);
        }),
        (
            "memory_mib: the state is of a machine with 64",
            |clone, _| {
                clone.spec["memory_mib"] = json!(128);
            },
        ),
        ("the state has no section pci.1", |clone, _| {
            let block = json!([{
                "id": "v", "listener": {"path": clone.path("b")}, "backend_uid": 0,
            }]);
            clone.spec["block"] = block;
        }),
        ("does not match its checksum", |_, dir| {
            let mut state = std::fs::read(dir.join("a.state")).unwrap();
            let last = state.len() - 1;
            state[last] ^= 1;
            std::fs::write(dir.join("a.state"), state).unwrap();
        }),
        ("has format 9", |_, dir| {
            let mut state = std::fs::read(dir.join("a.state")).unwrap();
            state[8] = 9;
            std::fs::write(dir.join("a.state"), state).unwrap();
        }),
        ("restore.memory[0]: is malformed", |_, dir| {
            let memory = File::options().write(true).open(dir.join("a.memory"));
            memory.unwrap().set_len(1 << 20).unwrap();
        }),
    ];
    for (named, spoil) in cases {
        let mut clone = clone_of(&bench, "a", &["a"]);
        let dir = clone.dir.path().to_owned();
        for file in ["a.state", "a.memory"] {
            std::fs::copy(bench.path(file), dir.join(file)).unwrap();
        }
        clone.spec["restore"] = json!({
            "state": {"path": dir.join("a.state")}, "memory": [{"path": dir.join("a.memory")}],
        });
        spoil(&mut clone, &dir);
        let (status, stderr, _) = clone.start().finish();
        assert_eq!(status.code(), Some(1), "{named}: {stderr}");
        assert!(stderr.contains(named), "{named}: {stderr}");
    }
}

#[test]
fn a_tcp_stream_outlives_its_process() {
    let (tap, host) = tap::make_with_echo();
    let mut bench = Bench::probe("stream 172.31.0.1:7777");
    bench.spec["net"] = json!([{
        "id": "eni-1", "tap": {"fd": tap.as_raw_fd()}, "mac": "02:00:00:00:00:01", "mtu": 1500,
    }]);
    let mut vmm = start_with(&bench, &tap);
    dhcp::serve(&host);
    vmm.wait_console("stream: 172.31.0.1:7777 alive");
    let mut control = vmm.control();
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    snapshot(&mut control, bench.dir.path(), "a", "");
    let before = last_number(&bench.console(), "records").unwrap();
    drop(vmm);

    let clone = clone_of(&bench, "a", &["a"]);
    let mut vmm = start_with(&clone, &tap);
    let after = wait_for("records after the restore", || {
        last_number(&clone.console(), "records").filter(|records| *records > before + 10)
    });
    assert!(after > before);
    let console = vmm.wait_console("alive");
    assert!(!console.contains("broken"), "{console}");
    assert_eq!(vmm.control().counter("net.eni-1.faults"), 0);
}

#[test]
fn a_disk_under_load_goes_on_through_the_bounce_region() {
    let mut bench = Bench::probe("disk 0 loop 1MiB");
    bench.spec["block"] = one_disk(&bench);
    let storaged = Storaged::start(bench.dir.path());
    let mut vmm = bench.start();
    storaged.attach("vol-1", VolumeKind::Persistent, bench.path("blk.sock"));
    vmm.wait_console("loop rounds=");
    // It stands still with its disk's contents: what comes later would not fit together.
    let mut control = vmm.control();
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    snapshot(&mut control, bench.dir.path(), "a", "");
    let before = last_number(&bench.console(), "rounds").unwrap();
    drop(vmm);
    storaged.detach("vol-1");

    let mut clone = clone_of(&bench, "a", &["a"]);
    clone.spec["block"] = one_disk(&clone);
    let mut vmm = clone.start();
    let mut control = vmm.control();
    let Reply::Status { state, .. } = control.ask(&Request::Status) else {
        panic!("no status");
    };
    assert_eq!(state, RunState::Waiting);
    storaged.attach("vol-1", VolumeKind::Persistent, clone.path("blk.sock"));
    wait_for("rounds after the restore", || {
        last_number(&clone.console(), "rounds").filter(|rounds| *rounds > before + 2)
    });
    let console = vmm.wait_console("loop rounds=");
    assert_eq!(last_number(&console, "errors"), Some(0), "{console}");
    assert!(control.counter("block.vol1.bounced_requests") > 0);
    assert_eq!(control.counter("block.vol1.faults"), 0);

    // A clone can be saved and continued, too, while its disk works.
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    snapshot(&mut control, clone.dir.path(), "b", "");
    let before = last_number(&clone.console(), "rounds").unwrap();
    assert_eq!(control.ask(&Request::Resume), Reply::Ok);
    wait_for("rounds after a pause", || {
        last_number(&clone.console(), "rounds").filter(|rounds| *rounds > before + 2)
    });
    assert_eq!(last_number(&clone.console(), "errors"), Some(0));
}

fn one_disk(bench: &Bench) -> Value {
    json!([{
        "id": "vol1", "listener": {"path": bench.path("blk.sock")}, "backend_uid": 0,
    }])
}

#[test]
fn what_a_backend_writes_is_in_the_difference() {
    let mut bench = Bench::probe("disk 0 loop 4MiB");
    bench.spec["block"] = one_disk(&bench);
    let storaged = Storaged::start(bench.dir.path());
    let mut vmm = bench.start();
    storaged.attach("vol-1", VolumeKind::Ephemeral, bench.path("blk.sock"));
    vmm.wait_console("loop rounds=");
    let mut control = vmm.control();
    let dir = bench.dir.path();
    // Its disk reads into memory in every phase: before the logs, while they are on, between.
    snapshot(&mut control, dir, "a", r#","track":true"#);
    let rounds = |more: u64| {
        let before = last_number(&bench.console(), "rounds").unwrap();
        wait_for("rounds", || {
            last_number(&bench.console(), "rounds").filter(|rounds| *rounds > before + more)
        });
    };
    rounds(2);
    snapshot(
        &mut control,
        dir,
        "b",
        r#","differential":true,"track":true"#,
    );
    rounds(1);
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    snapshot(
        &mut control,
        dir,
        "c",
        r#","differential":true,"track":true"#,
    );
    snapshot(&mut control, dir, "whole", "");
    assert_eq!(first_difference(dir, &["a", "b", "c"], "whole"), None);
    assert_eq!(control.ask(&Request::Resume), Reply::Ok);
    rounds(1);
    assert_eq!(last_number(&bench.console(), "errors"), Some(0));
}

#[test]
fn a_machine_moves_with_its_stream_and_its_disk() {
    let (tap, host) = tap::make_with_echo();
    let mut bench = Bench::probe("stream 172.31.0.1:7777;disk 0 loop 1MiB");
    bench.spec["net"] = json!([{
        "id": "eni-1", "tap": {"fd": tap.as_raw_fd()}, "mac": "02:00:00:00:00:01", "mtu": 1500,
    }]);
    bench.spec["block"] = one_disk(&bench);
    let storaged = Storaged::start(bench.dir.path());
    let mut vmm = start_with(&bench, &tap);
    // Its key is in memory alone: in the region that goes along.
    storaged.attach("vol-1", VolumeKind::Ephemeral, bench.path("blk.sock"));
    dhcp::serve(&host);
    vmm.wait_console("alive");
    vmm.wait_console("loop rounds=");

    let (here, there) = UnixStream::pair().unwrap();
    let mut to = receiver_of(&bench, &there);
    to.spec["block"] = one_disk(&to);
    let mut moved = start_inheriting(&to, vec![tap.as_raw_fd(), there.as_raw_fd()]);
    drop(there);
    let line = r#"{"cmd":"migrate","socket":{"fd":0},"downtime_ms":100}"#;
    let reply = vmm.control().pass(line, &[here.as_fd()]);
    let Reply::Migrated {
        rounds, sent_bytes, ..
    } = reply
    else {
        panic!("{reply:?}");
    };
    assert!(
        rounds >= 1 && sent_bytes > 256 << 10,
        "{rounds} {sent_bytes}"
    );
    let before = last_number(&bench.console(), "records").unwrap();
    assert_eq!(vmm.finish().2.reason, ExitReason::Migrated);
    storaged.detach("vol-1");
    storaged.attach("vol-1", VolumeKind::Ephemeral, to.path("blk.sock"));

    wait_for("records after the move", || {
        last_number(&to.console(), "records").filter(|records| *records > before + 10)
    });
    assert!(!to.console().contains("broken"), "{}", to.console());
    let console = moved.wait_console("loop rounds=");
    assert_eq!(last_number(&console, "errors"), Some(0), "{console}");
    let mut control = moved.control();
    assert_eq!(control.counter("block.vol1.bounced_requests"), 0);
    assert_eq!(control.counter("block.vol1.faults"), 0);
}

#[test]
fn a_move_that_fails_leaves_the_machine_where_it_was() {
    let count = [print("."), vec![0xeb, 0xf7]].concat();
    let bench = Bench::new(&elf(&count));
    let mut vmm = bench.start();
    vmm.wait_console("...");
    let mut control = vmm.control();
    let line = r#"{"cmd":"migrate","socket":{"fd":0},"downtime_ms":100}"#;
    // Nobody at the other end, then a machine of another size.
    let (here, there) = UnixStream::pair().unwrap();
    drop(there);
    assert!(matches!(
        control.pass(line, &[here.as_fd()]),
        Reply::Error { .. }
    ));
    let (here, there) = UnixStream::pair().unwrap();
    let mut to = receiver_of(&bench, &there);
    to.spec["memory_mib"] = json!(128);
    let other = start_inheriting(&to, vec![there.as_raw_fd()]);
    drop(there);
    let reply = control.pass(line, &[here.as_fd()]);
    assert!(
        matches!(&reply, Reply::Error { message } if message.contains("the spec expects")),
        "{reply:?}"
    );
    assert_eq!(other.finish().0.code(), Some(1));
    let exits = control.counter("cpu.port_exits");
    wait_for("more exits", || {
        (control.counter("cpu.port_exits") > exits).then_some(())
    });
}
