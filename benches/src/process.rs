//! Child processes: started, accounted, and never left behind.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The folder that this program runs from.
pub fn own_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell this program's path")?;
    Ok(exe.parent().unwrap_or(Path::new(".")).to_owned())
}

/// A program of the release build.
pub fn program(bin_dir: &Path, name: &str) -> Result<PathBuf> {
    let program = bin_dir.join(name);
    ensure!(
        program.exists(),
        "{} is missing: run `cargo xtask build --release`",
        program.display()
    );
    Ok(program)
}

/// A child that is killed and reaped when dropped.
pub struct Guarded(Child);

impl Guarded {
    /// Starts `command` without terminal; its errors go to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let log = std::fs::File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until `ready`, without sleeping when `spin`; an early end is an error.
    pub fn wait_until(
        &mut self,
        time_out: Duration,
        spin: bool,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if spin {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
            if start.elapsed() > Duration::from_millis(20)
                && let Some(status) = self.0.try_wait()?
            {
                bail!("ended early: {status}");
            }
            if start.elapsed() > time_out {
                bail!("not ready after {} s", time_out.as_secs());
            }
        }
        Ok(())
    }

    /// Asks it to end by SIGTERM and waits; an end with an error, or none, is one here.
    pub fn stop(&mut self, time_out: Duration) -> Result<()> {
        let start = Instant::now();
        if self.0.try_wait()?.is_none() {
            let pid = rustix::process::Pid::from_child(&self.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        loop {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "it ended with {status}");
                return Ok(());
            }
            ensure!(
                start.elapsed() < time_out,
                "it has not ended after {} s",
                time_out.as_secs()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// CPU time of all its threads so far, in µs (`/proc/PID/task/*/schedstat`).
    pub fn cpu_us(&self) -> Result<f64> {
        let mut total_ns = 0u64;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let ns = text.split_whitespace().next().unwrap_or("0");
            total_ns += ns.parse::<u64>().context("schedstat is not a number")?;
        }
        Ok(total_ns as f64 / 1e3)
    }

    /// Resident memory that no other process shares and that is not in mappings of
    /// `guest_memory`, in KiB.
    pub fn private_kib(&self, guest_memory: &str) -> Result<f64> {
        self.resident_kib(guest_memory, &["Private_Clean:", "Private_Dirty:"])
    }

    /// Resident memory that is not the guest's (mappings of `memfd:` left out), in KiB.
    pub fn overhead_rss_kib(&self, guest_memory: &str) -> Result<f64> {
        self.resident_kib(guest_memory, &["Rss:"])
    }

    fn resident_kib(&self, guest_memory: &str, lines: &[&str]) -> Result<f64> {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid()))?;
        let (mut total, mut skip) = (0u64, false);
        for line in smaps.lines() {
            if line.as_bytes().first().is_some_and(u8::is_ascii_hexdigit) && line.contains('-') {
                skip = line.contains(guest_memory);
            } else if !skip
                && let Some(rest) = lines.iter().find_map(|name| line.strip_prefix(name))
            {
                total += rest
                    .trim()
                    .trim_end_matches(" kB")
                    .parse::<u64>()
                    .unwrap_or(0);
            }
        }
        Ok(total as f64)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
