//! One emulated host, from start to end.

use super::qmp::{self, Monitor};
use super::snapshot::Snapshot;
use super::terminal::RawTerminal;
use crate::sh;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// The folder that is `/lab` there.
pub struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    /// An empty one, gone when dropped.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ocs-lab-").tempdir()?;
        Ok(Self { folder })
    }

    /// Its path on this machine.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A TCP port of this machine that leads to one of the emulated host's.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// On 127.0.0.1 here.
    pub here: u16,
    /// On 10.0.2.15 there.
    pub there: u16,
}

/// QEMU, ended when dropped.
pub struct Qemu {
    child: Child,
    sockets: PathBuf,
}

impl Qemu {
    /// Starts QEMU with the lab's one set of devices: a snapshot fits no other.
    ///
    /// It has one CPU. With two, emulated in parallel, one may still run what the other has
    /// rewritten (kernels patch their own code), and now and then a kernel oopses or hangs for
    /// it, the emulated host's or its guest's. Guests have two CPUs all the same, in turns.
    pub fn start(
        vmlinux: &Path,
        initramfs: &Path,
        work: &Work,
        forwards: &[Forward],
        extra: &[&str],
    ) -> Result<Self> {
        let sockets = work.path().join(".qemu");
        fs::create_dir_all(&sockets)?;
        let show = |path: &Path| path.display().to_string();
        let forwards: String = forwards
            .iter()
            .map(|f| format!(",hostfwd=tcp:127.0.0.1:{}-10.0.2.15:{}", f.here, f.there))
            .collect();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,-pku",
        ])
        .args([
            "-smp",
            "1",
            "-m",
            "3G",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-kernel", &show(vmlinux), "-initrd", &show(initramfs)])
        .args([
            "-append",
            "console=ttyS0 mitigations=off nokaslr quiet panic=-1",
        ])
        .args([
            "-serial",
            &format!("file:{}", show(&work.path().join("boot.log"))),
        ])
        .args([
            "-serial",
            &format!("unix:{},server=on,wait=off", show(&sockets.join("line"))),
        ])
        .args([
            "-qmp",
            &format!("unix:{},server=on,wait=off", show(&sockets.join("qmp"))),
        ])
        .args([
            "-fsdev",
            "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
        .args([
            "-fsdev",
            &format!(
                "local,id=work,path={},security_model=none",
                show(work.path())
            ),
        ])
        .args(["-device", "virtio-9p-pci,fsdev=work,mount_tag=work"])
        .args(["-netdev", &format!("user,id=net,restrict=on{forwards}")])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(work.path().join("qemu.log"))?);
        let child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
        Ok(Self { child, sockets })
    }

    /// Has it ended by itself?
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its monitor.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.sockets.join("qmp"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only on a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A restored host that has not been told what to run.
pub struct Session<'a> {
    work: &'a Work,
    line: UnixStream,
    token: String,
    _qemu: Qemu,
}

impl<'a> Session<'a> {
    /// Restores the snapshot.
    pub fn start(snapshot: &Snapshot, work: &'a Work, forwards: &[Forward]) -> Result<Self> {
        let qemu = Qemu::start(
            &snapshot.vmlinux,
            &snapshot.initramfs,
            work,
            forwards,
            &["-incoming", "defer"],
        )?;
        let restore = || -> Result<UnixStream> {
            let mut monitor = qemu.monitor()?;
            let uri = format!("exec:cat '{}'", snapshot.memory.display());
            monitor.execute("migrate-incoming", &json!({ "uri": uri }))?;
            monitor.migrated()?;
            let line = qmp::wait_for(&qemu.sockets.join("line"))?;
            monitor.execute("cont", &json!({}))?;
            Ok(line)
        };
        let line = restore().with_context(|| log_of(work, "qemu.log"))?;
        let token = format!("{:x}{:x}", std::process::id(), now_ns()?);
        Ok(Self {
            work,
            line,
            token,
            _qemu: qemu,
        })
    }

    /// Runs a line of shell there; its output goes to `out`. Yields its exit code.
    pub fn run(&mut self, line: &str, out: &mut dyn Write) -> Result<u8> {
        self.begin(&format!(
            "exec </dev/null\ncd '{}'\n{line}\n",
            sh::folder()?.display()
        ))?;
        let mut lines = BufReader::new(self.line.try_clone()?);
        let marker = format!("lab-exit {} ", self.token);
        let mut held = Vec::new();
        loop {
            let mut bytes = Vec::new();
            if lines.read_until(b'\n', &mut bytes)? == 0 {
                bail!(
                    "the emulated host ended by itself\n{}",
                    log_of(self.work, "boot.log")
                );
            }
            if let Some(code) = String::from_utf8_lossy(&bytes).strip_prefix(&marker) {
                // The newline in front of the marker is ours.
                held.pop();
                out.write_all(&held)?;
                out.flush()?;
                return code.trim().parse().context("the exit code is no number");
            }
            out.write_all(&held)?;
            out.flush()?;
            held = bytes;
        }
    }

    /// A shell on this terminal. Yields its exit code.
    pub fn shell(&mut self) -> Result<u8> {
        self.begin(&format!(
            "stty sane -F /dev/ttyS1\ncd '{}'\nexec setsid sh -c 'exec sh -i <>/dev/ttyS1 >&0 2>&0'\n",
            sh::folder()?.display()
        ))?;
        let _raw = RawTerminal::enter()?;
        let mut to_lab = self.line.try_clone()?;
        // Ends with this process: a thread in read(2) on a terminal cannot be told to.
        std::thread::spawn(move || std::io::copy(&mut std::io::stdin(), &mut to_lab));
        let marker = format!("lab-exit {} ", self.token);
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        loop {
            let count = self.line.read(&mut buffer)?;
            if count == 0 {
                bail!("the emulated host ended by itself");
            }
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if let Some((_, code)) = seen.split_once(&marker) {
                return Ok(code.trim().parse().unwrap_or(0));
            }
            std::io::stdout().write_all(&buffer[..count])?;
            std::io::stdout().flush()?;
            let keep = seen.len().saturating_sub(2 * marker.len());
            seen = seen.chars().skip(keep).collect();
        }
    }

    fn begin(&mut self, script: &str) -> Result<()> {
        fs::write(self.work.path().join("command"), script)?;
        let now_s = now_ns()? / 1_000_000_000;
        writeln!(self.line, "{now_s} {}", self.token).context("the emulated host takes no command")
    }
}

fn now_ns() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

/// The end of one of the session's logs, for an error message.
pub fn log_of(work: &Work, name: &str) -> String {
    let text = fs::read(work.path().join(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(15).collect();
    format!(
        "{name}:\n{}",
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    )
}
