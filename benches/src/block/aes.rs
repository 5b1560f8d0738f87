//! The cipher alone, on one core: ours against OpenSSL's.

use anyhow::{Context, Result, ensure};
use ocs_storaged::crypt::{BLOCK_BYTES, Key};
use rustix::time::{ClockId, clock_gettime};
use std::process::Command;
use std::time::Duration;

/// Encrypts blocks in the pieces that storaged does for `time`; answers MiB a second of
/// CPU time, as OpenSSL counts.
pub fn ours(time: Duration) -> Result<Vec<f64>> {
    let key = Key::generate()?;
    let mut piece = vec![7u8; 16 * BLOCK_BYTES];
    let start = cpu_time();
    let mut bytes = 0;
    while cpu_time() - start < time {
        key.encrypt(&mut piece, bytes / BLOCK_BYTES as u64);
        bytes += piece.len() as u64;
    }
    Ok(vec![
        bytes as f64 / (cpu_time() - start).as_secs_f64() / f64::from(1 << 20),
    ])
}

/// `openssl speed` at the same block size for at least a second; answers MiB/s.
pub fn openssl(time: Duration) -> Result<Vec<f64>> {
    let output = Command::new("openssl")
        .args(["speed", "-mr", "-evp", "aes-256-xts", "-bytes"])
        .arg(BLOCK_BYTES.to_string())
        .arg("-seconds")
        .arg(time.as_secs().max(1).to_string())
        .output()
        .context("cannot start openssl")?;
    ensure!(output.status.success(), "openssl: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    // +F:number:cipher:bytes a second
    let rate = text.lines().find(|line| line.starts_with("+F:"));
    let rate = rate.and_then(|line| line.rsplit(':').next());
    let rate: f64 = rate.context("openssl names no rate")?.trim().parse()?;
    Ok(vec![rate / f64::from(1 << 20)])
}

/// Of this thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
