//! The emulated host, booted once and kept.
//!
//! It is named after everything that it was made from, so a changed script, kernel
//! or QEMU makes a new one, and older ones are removed.

use super::initramfs;
use super::kernels::{Flavour, Kernel};
use super::session::{Qemu, Work, log_of};
use crate::{places, sh};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// The files that a session starts from.
pub struct Snapshot {
    /// The host's kernel.
    pub vmlinux: PathBuf,
    /// What it booted from.
    pub initramfs: PathBuf,
    /// Its memory and devices, before any mount.
    pub memory: PathBuf,
}

impl Snapshot {
    /// The one in the cache, made if it is not there.
    pub fn get() -> Result<Self> {
        let folder = places::cache()?.join("lab");
        fs::create_dir_all(&folder)?;
        let _lock = lock(&folder)?;
        let kernel = Kernel::get(super::stock::NEWEST, Flavour::Generic)?;
        let qemu = sh::output(Command::new("qemu-system-x86_64").arg("--version"))?;
        let mut hash = DefaultHasher::new();
        (&kernel.package, initramfs::MODULES, initramfs::INIT, qemu).hash(&mut hash);
        // The devices that QEMU is started with are in there.
        include_str!("session.rs").hash(&mut hash);
        let name = format!("{:016x}", hash.finish());
        let snapshot = Self {
            vmlinux: kernel.vmlinux(),
            initramfs: folder.join(format!("{name}.initramfs")),
            memory: folder.join(format!("{name}.memory")),
        };
        if !snapshot.memory.is_file() {
            sh::step(
                "boot the emulated host once, for its snapshot (about 20 s)",
                || {
                    remove_older(&folder)?;
                    fs::write(&snapshot.initramfs, initramfs::build(&kernel)?)?;
                    snapshot.make()
                },
            )?;
        }
        Ok(snapshot)
    }

    fn make(&self) -> Result<()> {
        let work = Work::new()?;
        let mut qemu = Qemu::start(&self.vmlinux, &self.initramfs, &work, &[], &[])?;
        wait_until_ready(&mut qemu, &work)?;
        let scratch = self.memory.with_extension("part");
        let mut monitor = qemu.monitor()?;
        monitor.execute("stop", &json!({}))?;
        // Unthrottled: the default pace is meant for networks.
        monitor.execute("migrate-set-parameters", &json!({ "max-bandwidth": 0 }))?;
        monitor.execute(
            "migrate",
            &json!({ "uri": format!("exec:cat > '{}'", scratch.display()) }),
        )?;
        monitor.migrated()?;
        fs::rename(&scratch, &self.memory).context("cannot keep the snapshot")
    }
}

fn wait_until_ready(qemu: &mut Qemu, work: &Work) -> Result<()> {
    let until = Instant::now() + BOOT_LIMIT;
    while Instant::now() < until {
        let log = fs::read(work.path().join("boot.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        if let Some(problem) = log.lines().find(|line| line.contains("is not in")) {
            bail!("{problem}\n{}", log_of(work, "boot.log"));
        }
        if log.contains("lab: ready") {
            return Ok(());
        }
        if qemu.ended()? {
            bail!(
                "QEMU ended\n{}\n{}",
                log_of(work, "qemu.log"),
                log_of(work, "boot.log")
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!(
        "the emulated host did not boot within {BOOT_LIMIT:?}\n{}",
        log_of(work, "boot.log")
    )
}

fn remove_older(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind != "lock") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// One process at a time makes or looks for a snapshot; released when dropped.
fn lock(folder: &Path) -> Result<fs::File> {
    let file = fs::File::create(folder.join("snapshot.lock"))?;
    // SAFETY: the descriptor is open for as long as `file` lives (flock(2)).
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot lock the lab's cache");
    }
    Ok(file)
}
