//! The limit: the same reads by fio, without virtio in between.

use super::client::BLOCK_BYTES;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Random `O_DIRECT` reads by io_uring at `depth` for `time`; answers IOPS and
/// fio's CPU a request in µs.
pub fn random_read(file: &Path, depth: usize, time: Duration) -> Result<Vec<f64>> {
    let output = Command::new("fio")
        .args(["--name=raw", "--rw=randread", "--ioengine=io_uring"])
        .args(["--direct=1", "--readonly", "--time_based", "--norandommap"])
        .args(["--output-format=json", "--allow_file_create=0"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--bs={BLOCK_BYTES}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={}ms", time.as_millis()))
        .output()
        .context("cannot start fio")?;
    ensure!(
        output.status.success(),
        "fio: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let figure = |path: &str| {
        let value = report.pointer(path).and_then(serde_json::Value::as_f64);
        value.with_context(|| format!("fio's report has no {path}"))
    };
    let cpu_percent = figure("/jobs/0/usr_cpu")? + figure("/jobs/0/sys_cpu")?;
    let ran_us = figure("/jobs/0/job_runtime")? * 1e3;
    let cpu_us = cpu_percent / 100.0 * ran_us / figure("/jobs/0/read/total_ios")?;
    Ok(vec![figure("/jobs/0/read/iops")?, cpu_us])
}
