//! VMM start to first guest output: `ocs-vmm`, QEMU's microvm, and the floor.
//!
//! A run begins at `fork` and ends when the first byte of the image's serial
//! output is in the file that the VMM writes it to, read by the same spin for
//! all. The image's first act is that output, so what is measured is the VMM.

use crate::alternate::alternate;
use crate::process::{Guarded, own_dir};
use crate::report::{Better, Row};
use crate::restore::Snapshot;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TIME_OUT: Duration = Duration::from_secs(20);
const MEMORY_MIB: u64 = 64;
const OVERHEAD_LIMIT_KIB: f64 = 4096.0;
/// Machines that run at once from one snapshot.
const CLONES: usize = 100;
const CLONES_LIMIT_MS: f64 = 2000.0;

/// Measures the area.
pub fn measure(bin_dir: &Path, probe: &Path, quick: bool) -> Result<Vec<Row>> {
    ensure!(
        probe.exists(),
        "{} is missing: run `cargo xtask build-guest`",
        probe.display()
    );
    let vmm = bin_dir.join("ocs-vmm");
    ensure!(
        vmm.exists(),
        "{} is missing: run `cargo xtask build --release`",
        vmm.display()
    );
    let dir = tempfile::tempdir()?;
    let runs = if quick { 9 } else { 31 };

    let mut ours = || start_ours(&vmm, probe, dir.path());
    let mut peer = || start_qemu(probe, dir.path());
    let mut floor = || start_floor(probe);
    let figures = alternate(runs, &mut [&mut ours, &mut peer, &mut floor])?;

    let snapshot = Snapshot::take(&vmm, dir.path())?;
    let mut restored = || snapshot.restore();
    let mut restore_floor = || snapshot.floor();
    let restores = alternate(runs, &mut [&mut restored, &mut restore_floor])?;
    let (mut clones_ms, mut one_kib, mut many_kib) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if quick { 1 } else { 5 } {
        one_kib.extend(snapshot.clones(1)?.1);
        let (elapsed_ms, held_kib) = snapshot.clones(CLONES)?;
        clones_ms.push(elapsed_ms);
        many_kib.push(crate::report::median(&held_kib));
    }

    let qemu = "qemu-system-x86_64 -M microvm -accel kvm";
    let limit = |metric: usize| crate::report::median(&figures[2][metric]);
    Ok(vec![
        Row::new(
            "start_to_first_instruction_us",
            "us",
            Better::Lower,
            &figures[0][0],
        )
        .against(qemu, &figures[1][0])
        .limited_by(limit(0)),
        Row::new("start_cpu_us", "us", Better::Lower, &figures[0][1])
            .against(qemu, &figures[1][1])
            .limited_by(limit(1)),
        Row::new("overhead_rss_kib", "KiB", Better::Lower, &figures[0][2])
            .limited_by(OVERHEAD_LIMIT_KIB),
        Row::new("overhead_private_kib", "KiB", Better::Lower, &one_kib)
            .limited_by(OVERHEAD_LIMIT_KIB),
        Row::new("overhead_private_100_kib", "KiB", Better::Lower, &many_kib)
            .limited_by(OVERHEAD_LIMIT_KIB),
        Row::new(
            "restore_to_first_instruction_us",
            "us",
            Better::Lower,
            &restores[0][0],
        )
        .limited_by(crate::report::median(&restores[1][0])),
        Row::new("clones_100_running_ms", "ms", Better::Lower, &clones_ms)
            .limited_by(CLONES_LIMIT_MS),
    ])
}

fn start_ours(vmm: &Path, probe: &Path, dir: &Path) -> Result<Vec<f64>> {
    let ring = dir.join("ring");
    let _ = std::fs::remove_file(&ring);
    let spec = dir.join("spec.json");
    let json = serde_json::json!({
        "version": ocs_vmm_spec::SPEC_VERSION, "id": "bench", "vcpus": 1, "memory_mib": MEMORY_MIB,
        "boot": {"kernel": {"path": std::path::absolute(probe)?}},
        "serial": {"ring": {"path": ring}, "capacity_bytes": 65536},
    });
    std::fs::write(&spec, json.to_string())?;
    let start = Instant::now();
    let mut child = Guarded::spawn(
        Command::new(vmm).arg("--spec").arg(&spec),
        &dir.join("ours.log"),
    )?;
    let mut file = None;
    child
        .wait_until(TIME_OUT, true, || has_output(&mut file, &ring))
        .context("ocs-vmm")?;
    let elapsed = start.elapsed();
    Ok(vec![
        us(elapsed),
        child.cpu_us()?,
        child.overhead_rss_kib("memfd:")?,
    ])
}

fn start_qemu(probe: &Path, dir: &Path) -> Result<Vec<f64>> {
    let serial = dir.join("serial");
    let _ = std::fs::remove_file(&serial);
    let start = Instant::now();
    let mut child = Guarded::spawn(
        Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm",
                "-accel",
                "kvm",
                "-cpu",
                // A KVM may list an MSR of this feature that it does not take, and QEMU then aborts.
                "host,-arch-capabilities",
                "-nodefaults",
            ])
            .args([
                "-no-user-config",
                "-display",
                "none",
                "-m",
                &MEMORY_MIB.to_string(),
            ])
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .arg("-kernel")
            .arg(probe),
        &dir.join("peer.log"),
    )?;
    child
        .wait_until(TIME_OUT, true, || {
            std::fs::metadata(&serial).is_ok_and(|m| m.len() > 0)
        })
        .context("qemu-system-x86_64")?;
    Ok(vec![us(start.elapsed()), child.cpu_us()?])
}

/// Whether anything was written to a console ring; `file` keeps it open.
pub fn has_output(file: &mut Option<File>, ring: &Path) -> bool {
    *file = file.take().or_else(|| File::open(ring).ok());
    let mut written = [0u8; 8];
    file.as_ref().is_some_and(|f| {
        f.read_exact_at(&mut written, ocs_vmm_spec::console::WRITTEN_OFFSET)
            .is_ok()
            && u64::from_le_bytes(written) > 0
    })
}

/// The bare start, in a process of its own: time and CPU time in µs.
pub fn start_floor(probe: &Path) -> Result<Vec<f64>> {
    let program = own_dir()?.join("ocs-benches");
    let before = children_cpu_us()?;
    let start = Instant::now();
    let status = Command::new(program).arg("floor").arg(probe).status()?;
    let elapsed = start.elapsed();
    ensure!(status.success(), "the floor failed: {status}");
    Ok(vec![us(elapsed), children_cpu_us()? - before])
}

/// CPU time of reaped children, in µs.
fn children_cpu_us() -> Result<f64> {
    // SAFETY: `rusage` is plain data, and getrusage fills the whole of it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        ensure!(
            libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) == 0,
            "getrusage failed"
        );
        usage
    };
    let time = |t: libc::timeval| t.tv_sec as f64 * 1e6 + t.tv_usec as f64;
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

fn us(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e6
}
