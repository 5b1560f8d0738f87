//! Starts `ocs-vmm` with a small payload and talks to it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod dhcp;
pub mod payload;
pub mod saved;
pub mod storaged;
pub mod tap;

use ocs_vmm_spec::control::{DeviceStatus, Reply, Request};
use ocs_vmm_spec::exit::ExitRecord;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far beyond what anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the emulated host has the kernels that `stock.rs` boots.
pub const STOCK_GUESTS: &str = "OCS_STOCK_GUESTS";

/// Waits until `done` gives a value.
pub fn wait_for<T>(what: &str, done: impl FnMut() -> Option<T>) -> T {
    wait_and_say(&|| what.to_owned(), done)
}

/// Likewise, with something to say in the end that is not known yet.
fn wait_and_say<T>(what: &dyn Fn() -> String, mut done: impl FnMut() -> Option<T>) -> T {
    // The emulated host is slow, and slower still where others work.
    let patience = match std::env::var_os(STOCK_GUESTS) {
        Some(_) => 9 * PATIENCE,
        None => PATIENCE,
    };
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "no {} within {patience:?}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder with a kernel and a spec that names files in it.
pub struct Bench {
    pub dir: TempDir,
    pub spec: Value,
}

impl Bench {
    pub fn new(kernel: &[u8]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ocs-vmm-")
            .tempdir()
            .unwrap();
        fs::write(dir.path().join("kernel"), kernel).unwrap();
        let at = |name: &str| json!({"path": dir.path().join(name)});
        let spec = json!({
            "version": 1, "id": "i-test", "vcpus": 1, "memory_mib": 64,
            "boot": {"kernel": at("kernel")},
            "serial": {"ring": at("ring"), "capacity_bytes": 65536},
            "control": at("control.sock"),
            "exit_record": at("exit.json"),
        });
        Self { dir, spec }
    }

    /// With the probe guest, and orders on its command line.
    pub fn probe(orders: &str) -> Self {
        let mut bench = Self::new(&fs::read(probe_path()).unwrap());
        bench.spec["boot"]["cmdline"] = json!(format!("orders={orders}"));
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self) -> Command {
        let spec = self.path("spec.json");
        fs::write(&spec, self.spec.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocs-vmm"));
        command
            .arg("--spec")
            .arg(spec)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    pub fn start(&self) -> Vmm {
        self.adopt(self.command().spawn().unwrap())
    }

    /// Takes a VMM that the test started itself.
    pub fn adopt(&self, child: Child) -> Vmm {
        Vmm {
            child,
            dir: self.dir.path().to_owned(),
        }
    }

    /// What the guest wrote so far.
    pub fn console(&self) -> String {
        console(self.dir.path())
    }
}

pub fn console(dir: &Path) -> String {
    File::open(dir.join("ring"))
        .and_then(|file| ocs_vmm_spec::console::read(&file))
        .map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The artefact that tests with a real guest need.
pub fn probe_path() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/artifacts/ocs-probe.elf");
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask build`",
        path.display()
    );
    path
}

/// A running VMM, killed with the value.
pub struct Vmm {
    pub child: Child,
    dir: PathBuf,
}

impl Vmm {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end: status, stderr, exit record.
    pub fn finish(mut self) -> (ExitStatus, String, ExitRecord) {
        let status = wait_for("end of the VMM", || self.child.try_wait().unwrap());
        let mut stderr = String::new();
        if let Some(pipe) = &mut self.child.stderr {
            pipe.read_to_string(&mut stderr).unwrap();
        }
        let record = fs::read(self.dir.join("exit.json")).unwrap();
        let record = serde_json::from_slice(&record).unwrap_or_else(|e| {
            panic!(
                "exit record {:?}: {e}; {stderr}",
                String::from_utf8_lossy(&record)
            )
        });
        (status, stderr, record)
    }

    pub fn control(&mut self) -> Control {
        let path = self.dir.join("control.sock");
        let stream = wait_for("control socket", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the VMM ended");
            UnixStream::connect(&path).ok()
        });
        Control(BufReader::new(stream))
    }

    pub fn wait_console(&mut self, text: &str) -> String {
        self.wait_console_unless(text, &[])
    }

    /// The console once it holds `text`, or one of the others.
    pub fn wait_console_unless(&mut self, text: &str, others: &[&str]) -> String {
        let dir = self.dir.clone();
        let what = || format!("{text:?} on the console: {}", console(&dir));
        wait_and_say(&what, || {
            let console = console(&dir);
            if console.contains(text) || others.iter().any(|other| console.contains(other)) {
                return Some(console);
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut stderr = String::new();
                let pipe = self.child.stderr.take();
                let _ = pipe.map(|mut pipe| pipe.read_to_string(&mut stderr));
                // A filter that was too narrow says so in the kernel's log.
                let log = Command::new("dmesg").output().map(|out| out.stdout);
                let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
                let log = log.lines().rfind(|line| line.contains("syscall="));
                panic!("the VMM ended ({status}): {stderr}; console: {console}; {log:?}");
            }
            None
        })
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the control socket.
pub struct Control(BufReader<UnixStream>);

impl Control {
    pub fn ask(&mut self, request: &Request) -> Reply {
        self.line(&serde_json::to_string(request).unwrap())
    }

    pub fn line(&mut self, line: &str) -> Reply {
        self.pass(line, &[])
    }

    /// With descriptors, which `{"fd": N}` names by their place.
    pub fn pass(&mut self, line: &str, fds: &[BorrowedFd<'_>]) -> Reply {
        let line = format!("{line}\n");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let bytes = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(self.0.get_ref(), &bytes, &mut ancillary, SendFlags::empty()).unwrap();
        assert_eq!(sent, line.len());
        let mut reply = String::new();
        self.0.read_line(&mut reply).unwrap();
        serde_json::from_str(&reply).unwrap_or_else(|e| panic!("{reply:?}: {e}"))
    }

    /// The devices that status lists.
    pub fn devices(&mut self) -> BTreeMap<String, DeviceStatus> {
        let Reply::Status { devices, .. } = self.ask(&Request::Status) else {
            panic!("no status");
        };
        devices
    }

    pub fn counter(&mut self, name: &str) -> u64 {
        let Reply::Metrics { counters } = self.ask(&Request::Metrics) else {
            panic!("no metrics");
        };
        *counters
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {counters:?}"))
    }
}
