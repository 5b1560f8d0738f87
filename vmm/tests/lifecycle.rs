//! A machine's life, with guests of a few bytes.

mod common;

use common::payload::{
    elf, halt, out_byte, power_off, print, real_mode_reset, triple_fault, wait_port,
};
use common::{Bench, wait_for};
use ocs_vmm_spec::control::{PROTOCOL_VERSION, Reply, Request, RunState};
use ocs_vmm_spec::exit::ExitReason;
use serde_json::json;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};

fn state(reply: &Reply) -> RunState {
    let Reply::Status { state, .. } = reply else {
        panic!("no status: {reply:?}");
    };
    *state
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: signals a child of this test that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, 0);
}

#[test]
fn a_guest_prints_and_powers_off() {
    let bench = Bench::new(&elf(&[print("hello\n"), power_off(), halt()].concat()));
    let (status, _, record) = bench.start().finish();
    assert!(status.success());
    assert_eq!(record.reason, ExitReason::GuestShutdown);
    assert_eq!(bench.console(), "hello\n");
}

#[test]
fn the_probe_counts_time_as_kvm_does() {
    let bench = Bench::probe("idle");
    let console = bench.start().wait_console("\n");
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let vcpu = kvm.create_vm().unwrap().create_vcpu(0).unwrap();
    let khz = format!(" tsc_khz={}", vcpu.get_tsc_khz().unwrap());
    let boot = console.lines().next().unwrap();
    assert!(boot.ends_with(&khz), "{boot}, not{khz}");
}

#[test]
fn one_to_sixty_four_vcpus_start_and_stop() {
    for vcpus in [1, 2, 64] {
        let mut bench = Bench::new(&elf(&[print("hello\n"), halt()].concat()));
        bench.spec["vcpus"] = json!(vcpus);
        let mut vmm = bench.start();
        vmm.wait_console("hello\n");
        let threads = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
        assert!(threads.count() > vcpus, "a thread a vCPU");
        let mut control = vmm.control();
        assert_eq!(control.ask(&Request::Pause), Reply::Ok);
        assert_eq!(control.ask(&Request::Resume), Reply::Ok);
        assert_eq!(control.ask(&Request::Stop), Reply::Ok);
        assert!(vmm.finish().0.success());
    }
}

#[test]
fn every_way_to_reset_is_a_reset() {
    for (how, code) in [
        ("ACPI", out_byte(0x602, 1)),
        ("i8042", out_byte(0x64, 0xfe)),
        ("triple fault", triple_fault()),
        ("the reset vector", real_mode_reset(0)),
    ] {
        let bench = Bench::new(&elf(&[code, halt()].concat()));
        let (status, stderr, record) = bench.start().finish();
        assert!(status.success(), "{how}: {stderr}");
        assert_eq!(record.reason, ExitReason::GuestReset, "{how}: {record:?}");
        let asked = record.message.contains("asked for a reset");
        assert_eq!(asked, how != "triple fault", "{how}: {record:?}");
    }
}

#[test]
fn the_control_socket_pauses_resumes_and_stops() {
    // Counts on the console as long as it runs.
    let count = [print("."), vec![0xeb, 0xf7]].concat();
    let bench = Bench::new(&elf(&count));
    let mut vmm = bench.start();
    vmm.wait_console("...");
    let mut control = vmm.control();
    let Reply::Status {
        protocol,
        id,
        state: running,
        started_ns,
        first_run_ns,
        ..
    } = control.ask(&Request::Status)
    else {
        panic!("no status");
    };
    assert_eq!((protocol, id.as_str()), (PROTOCOL_VERSION, "i-test"));
    assert_eq!(running, RunState::Running);
    assert!(started_ns > 0 && first_run_ns > started_ns);

    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    assert_eq!(control.ask(&Request::Pause), Reply::Ok);
    assert_eq!(state(&control.ask(&Request::Status)), RunState::Paused);
    let before = control.counter("cpu.port_exits");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(control.counter("cpu.port_exits"), before);
    assert_eq!(control.ask(&Request::Resume), Reply::Ok);
    wait_for("more exits", || {
        (control.counter("cpu.port_exits") > before).then_some(())
    });
    assert!(matches!(
        control.line(r#"{"cmd":"fly"}"#),
        Reply::Error { message } if message.contains("fly")
    ));
    assert_eq!(control.ask(&Request::Stop), Reply::Ok);
    let (status, _, record) = vmm.finish();
    assert!(status.success());
    assert_eq!(record.reason, ExitReason::Stopped);
}

#[test]
fn a_signal_stops_a_halted_or_paused_guest() {
    for pause in [false, true] {
        let bench = Bench::new(&elf(&[print("up"), halt()].concat()));
        let mut vmm = bench.start();
        vmm.wait_console("up");
        if pause {
            vmm.control().ask(&Request::Pause);
        }
        signal(vmm.pid(), libc::SIGTERM);
        let (status, _, record) = vmm.finish();
        assert!(status.success());
        assert_eq!(record.reason, ExitReason::Stopped);
    }
}

#[test]
fn the_power_button_reaches_the_guest() {
    let code = [print("up"), wait_port(0x603), power_off(), halt()].concat();
    let bench = Bench::new(&elf(&code));
    let mut vmm = bench.start();
    vmm.wait_console("up");
    assert_eq!(vmm.control().ask(&Request::PowerButton), Reply::Ok);
    let (_, _, record) = vmm.finish();
    assert_eq!(record.reason, ExitReason::GuestShutdown);
}

#[test]
fn a_missing_backend_holds_the_guest_but_not_the_operator() {
    let mut bench = Bench::new(&elf(&[print("ran"), halt()].concat()));
    bench.spec["block"] = json!([{
        "id": "vol1", "listener": {"path": bench.path("blk.sock")}, "backend_uid": 0,
    }]);
    let mut vmm = bench.start();
    let mut control = vmm.control();
    let Reply::Status {
        state,
        block_connected,
        first_run_ns,
        ..
    } = control.ask(&Request::Status)
    else {
        panic!("no status");
    };
    assert_eq!((state, first_run_ns), (RunState::Waiting, 0));
    assert_eq!(block_connected.get("vol1"), Some(&false));
    assert_eq!(control.ask(&Request::Resume), Reply::Ok);
    assert_eq!(bench.console(), "", "the guest ran without its disk");
    assert_eq!(control.ask(&Request::Stop), Reply::Ok);
    assert_eq!(vmm.finish().2.reason, ExitReason::Stopped);
}

#[test]
fn the_control_socket_hears_nobody_else() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(&elf(&[print("up"), halt()].concat()));
    let mut vmm = bench.start();
    vmm.wait_console("up");
    let socket = bench.path("control.sock");
    for (path, mode) in [(bench.dir.path(), 0o711), (&socket, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let stranger = std::thread::spawn(move || {
        // SAFETY: changes the user of this thread alone, which ends below.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, -1, 54_321, -1) };
        assert_eq!(done, 0, "needs root");
        UnixStream::connect(socket).unwrap()
    });
    let mut stranger = stranger.join().unwrap();
    // Turned away before or after it could write.
    let _ = stranger.write_all(b"{\"cmd\":\"stop\"}\n");
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    assert_eq!(
        state(&vmm.control().ask(&Request::Status)),
        RunState::Running
    );
}

#[test]
fn a_backend_that_does_not_answer_holds_nothing_up_at_the_end() {
    use std::io::Read;
    let mut bench = Bench::new(&elf(&halt()));
    bench.spec["block"] = json!([{
        "id": "vol1", "listener": {"path": bench.path("blk.sock")}, "backend_uid": 0,
    }]);
    let mut vmm = bench.start();
    let mut control = vmm.control();
    let mut backend = UnixStream::connect(bench.path("blk.sock")).unwrap();
    // The first message of the handshake: the VMM now waits for its answer.
    backend.read_exact(&mut [0; 12]).unwrap();
    assert_eq!(state(&control.ask(&Request::Status)), RunState::Waiting);
    assert_eq!(control.ask(&Request::Stop), Reply::Ok);
    assert_eq!(vmm.finish().2.reason, ExitReason::Stopped);
}

#[test]
fn a_log_that_takes_no_more_ends_nothing() {
    let full = bench_log(|_| fs::File::options().write(true).open("/dev/full").unwrap());
    let at_limit = bench_log(|bench| {
        use std::io::Seek;
        let mut log = fs::File::create(bench.path("log")).unwrap();
        log.seek(std::io::SeekFrom::Start(2 << 20)).unwrap();
        log
    });
    for (bench, log) in [full, at_limit] {
        let mut command = bench.command();
        command.env("OCS_LOG", "debug").stderr(log);
        let mut vmm = bench.adopt(command.spawn().unwrap());
        vmm.wait_console("up");
        // The end is logged, too.
        assert_eq!(vmm.control().ask(&Request::Stop), Reply::Ok);
        let (status, _, record) = vmm.finish();
        assert!(status.success(), "{status}");
        assert_eq!(record.reason, ExitReason::Stopped);
    }
}

fn bench_log(log: impl Fn(&Bench) -> fs::File) -> (Bench, fs::File) {
    let bench = Bench::new(&elf(&[print("up"), halt()].concat()));
    let log = log(&bench);
    (bench, log)
}

#[test]
fn a_bad_spec_ends_with_a_sentence_that_names_the_field() {
    let payload = elf(&halt());
    let cases = [
        ("/version", json!(9), "version: this VMM reads version 1"),
        ("/memory_mib", json!(3), "memory_mib: 3 is not"),
        (
            "/boot/kernel",
            json!({"path": "/nonexistent"}),
            "boot.kernel: cannot open /nonexistent",
        ),
        (
            "/boot/kernel",
            json!({"path": "/etc/passwd"}),
            "boot.kernel: is neither ELF nor",
        ),
        (
            "/boot/kernel",
            json!({"fd": 99}),
            "boot.kernel: cannot open descriptor 99",
        ),
        (
            "/boot/kernel",
            json!({"fd": 1}),
            "not an inherited descriptor",
        ),
        (
            "/boot/initrd",
            json!({"path": "/dev/null"}),
            "boot.initrd: its 0 bytes do not fit",
        ),
        ("/kvm", json!({"path": "/dev/null"}), "KVM refused"),
        ("/surprise", json!(1), "unknown field `surprise`"),
        (
            "/net",
            json!([{"id": "n", "tap": {"path": "a-name-of-17-bytes"}, "mac": "02:00:00:00:00:01", "mtu": 1500}]),
            "net[0].tap: cannot open a-name-of-17-bytes",
        ),
        (
            "/net",
            json!([{"id": "n", "tap": {"path": "/"}, "mac": "01:00:00:00:00:01", "mtu": 1500}]),
            "net[0].mac",
        ),
    ];
    for (pointer, value, expected) in cases {
        let mut bench = Bench::new(&payload);
        match pointer.rsplit_once('/') {
            Some(("", key)) => bench.spec[key] = value,
            _ => {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                bench.spec.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        let (status, stderr, record) = bench.start().finish();
        assert_eq!(status.code(), Some(1), "{pointer}");
        assert!(stderr.contains(expected), "{pointer}: {stderr}");
        assert_eq!(record.reason, ExitReason::Error);
        assert!(record.message.contains(expected), "{pointer}: {record:?}");
    }
}

#[test]
fn a_kernel_without_a_pvh_note_or_larger_than_memory_is_refused() {
    let mut no_note = elf(&halt());
    no_note[64 + 56] = 0;
    let mut too_high = elf(&halt());
    too_high[64 + 24..64 + 32].copy_from_slice(&(1u64 << 40).to_le_bytes());
    for (kernel, expected) in [
        (no_note, "without a PVH note"),
        (too_high, "cannot be loaded as ELF"),
        (elf(&halt())[..100].to_vec(), "cannot be loaded as ELF"),
    ] {
        let (status, _, record) = Bench::new(&kernel).start().finish();
        assert_eq!(status.code(), Some(1));
        assert!(record.message.contains(expected), "{record:?}");
    }
}

/// Behind its filters, with a guest that has no driver for any of them.
#[test]
fn devices_without_a_driver_serve_their_host_side() {
    use std::io::{Read, Write};
    let mut bench = Bench::new(&elf(&[print("up"), halt()].concat()));
    bench.spec["rng"] = json!({});
    bench.spec["console"] = json!({});
    bench.spec["balloon"] = json!({"target_mib": 8});
    bench.spec["vsock"] =
        json!({"guest_cid": 3, "listener": {"path": bench.path("vsock")}, "uid": 0});
    let mut vmm = bench.start();
    vmm.wait_console("up");
    let mut waiting = UnixStream::connect(bench.path("vsock")).unwrap();
    waiting.write_all(b"ACCEPT 5\n").unwrap();
    let mut refused = UnixStream::connect(bench.path("vsock")).unwrap();
    refused.write_all(b"CONNECT 5\n").unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap(), 0, "nobody is there");
    let mut control = vmm.control();
    assert_eq!(control.ask(&Request::Balloon { target_mib: 16 }), Reply::Ok);
    assert_eq!(control.counter("balloon.target_bytes"), 16 << 20);
    assert_eq!(control.counter("vsock.refused"), 1);
    assert_eq!(control.counter("rng.requests"), 0);
    let too_much = control.ask(&Request::Balloon { target_mib: 60 });
    assert!(matches!(too_much, Reply::Error { .. }), "{too_much:?}");
    drop(waiting);
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}

#[test]
fn a_vmm_started_as_a_nobody_keeps_nothing() {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::process::CommandExt;
    const UID: u32 = 54_321;

    let mut bench = Bench::new(&elf(&[print("up"), halt()].concat()));
    let kernel = fs::File::open(bench.path("kernel")).unwrap();
    let create = |name: &str| {
        fs::File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(bench.path(name))
            .unwrap()
    };
    let (ring, record) = (create("ring"), create("exit.json"));
    let kvm = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .unwrap();
    let control = UnixListener::bind(bench.path("control.sock")).unwrap();
    let fds = [
        kernel.as_raw_fd(),
        ring.as_raw_fd(),
        record.as_raw_fd(),
        kvm.as_raw_fd(),
        control.as_raw_fd(),
    ];
    bench.spec["boot"]["kernel"] = json!({"fd": fds[0]});
    bench.spec["serial"]["ring"] = json!({"fd": fds[1]});
    bench.spec["exit_record"] = json!({"fd": fds[2]});
    bench.spec["kvm"] = json!({"fd": fds[3]});
    bench.spec["control"] = json!({"fd": fds[4]});
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, bench.spec.to_string().as_bytes()).unwrap();
    drop(writer);
    let spec_fd = reader.into_raw_fd();

    let mut command = bench.command();
    let program = command.get_program().to_owned();
    command = std::process::Command::new(program);
    command
        .arg("--spec-fd")
        .arg(spec_fd.to_string())
        .stderr(std::process::Stdio::piped())
        .uid(UID)
        .gid(UID);
    // SAFETY: only clears a flag of descriptors that stay open in this process.
    unsafe {
        command.pre_exec(move || {
            for fd in fds.into_iter().chain([spec_fd]) {
                libc::fcntl(fd, libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
    let mut vmm = bench.adopt(command.spawn().unwrap());
    vmm.wait_console("up");
    let proc = fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    let field = |name: &str| {
        proc.lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}"))
            .trim()
            .to_owned()
    };
    assert!(field("Uid:").starts_with(&UID.to_string()));
    assert_eq!(field("NoNewPrivs:"), "1");
    for set in ["CapEff:", "CapPrm:", "CapInh:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    let root = fs::read_dir(format!("/proc/{}/root/", vmm.pid())).unwrap();
    assert_eq!(root.count(), 0);
    // In a user namespace of its own it cannot tell root from anybody else, and hears neither.
    signal(vmm.pid(), libc::SIGTERM);
    let (status, _, record) = vmm.finish();
    assert!(status.success());
    assert_eq!(record.reason, ExitReason::Stopped);
}
