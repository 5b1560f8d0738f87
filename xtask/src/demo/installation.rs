//! One `ocs up` with a state folder of its own, stopped and looked over when dropped.

use super::aws::Aws;
use super::leftovers;
use crate::sh;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running installation.
pub struct Installation {
    child: Child,
    folder: tempfile::TempDir,
}

impl Installation {
    /// Starts `ocs up` from the binaries in `binaries`.
    pub fn start(binaries: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ocs-demo-").tempdir()?;
        open_to_all(folder.path())?;
        let log = fs::File::create(folder.path().join("up.log"))?;
        let child = Command::new(binaries.join("ocs"))
            .arg("up")
            .arg("--state")
            .arg(folder.path().join("state"))
            .args(["--listen", "127.0.0.1:0", "--write-env"])
            .arg(folder.path().join("env"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start `ocs up`")?;
        Ok(Self { child, folder })
    }

    /// Waits until it serves.
    pub fn serving(&mut self) -> Result<Aws> {
        let until = Instant::now() + START_LIMIT;
        while Instant::now() < until {
            if let Ok(env) = fs::read_to_string(self.folder.path().join("env")) {
                return Ok(Aws::new(&env));
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("`ocs up` ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "`ocs up` does not serve after {START_LIMIT:?}:\n{}",
            self.log()
        )
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The process that runs as `part` now.
    pub fn part(&self, part: &str) -> Result<i32> {
        let lock = self.state().join("run").join(format!("{part}.lock"));
        let text =
            fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{} holds no process id: {text:?}", lock.display()))
    }

    /// Sends `signal` to a part. Yields its process id.
    pub fn signal(&self, part: &str, signal: i32) -> Result<i32> {
        let pid = self.part(part)?;
        send(pid, signal)?;
        Ok(pid)
    }

    /// Waits until another process than `old` runs as `part`.
    pub fn replaced(&self, part: &str, old: i32, limit: Duration) -> Result<i32> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            match self.part(part) {
                Ok(pid) if pid != old && Path::new(&format!("/proc/{pid}")).exists() => {
                    return Ok(pid);
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        bail!(
            "no new {part} {limit:?} after {old} was killed:\n{}",
            self.log()
        )
    }

    /// Ctrl-C: waits for a clean end.
    pub fn stop(&mut self) -> Result<()> {
        send(i32::try_from(self.child.id())?, libc::SIGINT)?;
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.success(),
                    "`ocs up` ended with {status}:\n{}",
                    self.log()
                );
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "`ocs up` still runs {STOP_LIMIT:?} after SIGINT:\n{}",
            self.log()
        )
    }

    /// The end of what it logged.
    fn log(&self) -> String {
        let text = fs::read(self.folder.path().join("up.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Copies its logs and its parts' to `folder`, for whoever looks into a failure.
    pub fn keep_logs(&self, folder: &Path) {
        let copy = || -> Result<()> {
            fs::create_dir_all(folder)?;
            fs::copy(self.folder.path().join("up.log"), folder.join("up.log"))?;
            for entry in fs::read_dir(self.state().join("log"))?.filter_map(Result::ok) {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
            Ok(())
        };
        match copy() {
            Ok(()) => sh::say(&format!("the logs are in {}", folder.display())),
            Err(error) => sh::say(&format!("not all logs could be kept: {error:#}")),
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.stop()
        {
            sh::say(&format!("{error:#}"));
            // It cannot be asked any more; its end fails only if it has ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        leftovers::sweep(&self.state());
    }
}

/// kill(2).
pub fn send(pid: i32, signal: i32) -> Result<()> {
    ensure!(pid > 1, "{pid} is no process of ours");
    // SAFETY: kill has no memory effects (kill(2)).
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot send signal {signal} to {pid}"));
    }
    Ok(())
}

/// Parts run under uids of their own and must reach the folders under it.
fn open_to_all(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
