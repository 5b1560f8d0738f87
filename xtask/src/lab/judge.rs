//! Independent judges of storaged: QEMU's `vhost-user-blk-pci`, Debian's kernel, and in it
//! fio, which verifies what it wrote, also past a SIGKILL of storaged.

use super::kernels::{Flavour, Kernel};
use super::stock::NEWEST;
use super::tree::Tree;
use crate::build::Profile;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMORY: &str = "512M";
const DISK_BYTES: u64 = 64 << 20;
/// A TCG guest is slow, and so is a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the guest has to say, in this order.
const VERDICTS: [&str; 5] = [
    "fio: small verified",
    "fio: mixed verified",
    "fio: killed verified",
    "fio: discarded, 0 bytes left",
    "fio: done",
];

/// Runs the guest; what it said, or an error with it.
pub fn run() -> Result<String> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let kernel = Kernel::get(NEWEST, Flavour::Cloud)?;
    let initrd = Tree::new(&["dev", "proc", "sys", "tmp"])?;
    initrd.modules(&kernel, &["virtio_blk"])?;
    initrd.program("fio")?;
    initrd.script("init", include_str!("l2-fio.sh"))?;
    fs::write(at("initrd"), initrd.archive()?)?;
    fs::File::create(at("disk"))?.set_len(DISK_BYTES)?;
    let mut storaged = storaged(folder.path())?;
    let console = at("console");
    let mut qemu = Guarded(
        Command::new("qemu-system-x86_64")
            // One thread for both processors: a kernel that patches its code while the other one
            // runs it hits its own breakpoints under two.
            .args(["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max"])
            .args(["-smp", "2", "-m", MEMORY, "-display", "none", "-no-reboot"])
            .args(["-nic", "none", "-append", "console=ttyS0 quiet panic=-1"])
            // Sealed against shrinking and growing, which storaged insists on.
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=m,size={MEMORY},share=on,seal=on"
            ))
            .args(["-machine", "memory-backend=m"])
            .arg("-kernel")
            .arg(kernel.vmlinux())
            .arg("-initrd")
            .arg(at("initrd"))
            .arg("-chardev")
            .arg(format!(
                "socket,id=c,path={},reconnect=1",
                at("blk.sock").display()
            ))
            .args(["-device", "vhost-user-blk-pci,chardev=c,num-queues=2"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start QEMU")?,
    );
    let said = || fs::read_to_string(&console).unwrap_or_default();
    let began = Instant::now();
    let mut killed = false;
    while qemu.0.try_wait()?.is_none() {
        if began.elapsed() > PATIENCE {
            bail!("the guest does not end:\n{}", said());
        }
        std::thread::sleep(Duration::from_millis(50));
        if !killed && said().contains("now storaged may die") {
            killed = true;
            // In the midst of the third run.
            std::thread::sleep(Duration::from_millis(700));
            drop(storaged);
            storaged = self::storaged(folder.path())?;
        }
    }
    drop(storaged);
    let said = said();
    let mut rest = said.as_str();
    for verdict in VERDICTS {
        let at = rest.find(verdict);
        let at = at.with_context(|| format!("the guest did not say {verdict:?}:\n{said}"))?;
        rest = &rest[at..];
    }
    ensure!(killed && !said.contains("I/O error"), "{said}");
    let lines = said.lines().filter(|line| line.starts_with("fio: "));
    Ok(lines.map(|line| format!("{}\n", line.trim_end())).collect())
}

/// A storaged that serves `disk` to who connects to `blk.sock`.
fn storaged(folder: &Path) -> Result<Guarded> {
    let socket = folder.join("blk.sock");
    let _ = fs::remove_file(&socket);
    let child = Command::new(Profile::Debug.folder().join("ocs-storaged"))
        .arg("serve")
        .arg("--listen")
        .arg(&socket)
        .arg("--file")
        .arg(folder.join("disk"))
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start ocs-storaged")?;
    let child = Guarded(child);
    let began = Instant::now();
    while !socket.exists() {
        ensure!(began.elapsed() < PATIENCE, "ocs-storaged does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

/// A child that is killed and reaped when dropped.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
