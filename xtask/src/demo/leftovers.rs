//! What an installation still holds on this machine: looked up in the kernel and on
//! disk, not asked of the installation.

use super::installation::send;
use crate::sh;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Processes whose command line or environment names any of `marks`.
pub fn processes(marks: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // A process may end while we look.
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let text = format!("{line} {}", String::from_utf8_lossy(&read("environ")));
        if pid != std::process::id() && marks.iter().any(|mark| text.contains(mark)) {
            found.push(format!("{pid} {}", line.trim()));
        }
    }
    Ok(found)
}

/// Mounts at or under `folder`.
pub fn mounts(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.display().to_string();
    Ok(fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| at.starts_with(&folder))
        })
        .map(String::from)
        .collect())
}

/// cgroups whose path names any of `marks`.
pub fn cgroups(marks: &[&str]) -> Result<Vec<String>> {
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d"])
        .output()
        .context("cannot start find")?;
    Ok(String::from_utf8_lossy(&found.stdout)
        .lines()
        .filter(|path| marks.iter().any(|mark| path.contains(mark)))
        .map(String::from)
        .collect())
}

/// `ip -brief link` in the namespace of the taps.
pub fn links(state: &Path) -> Result<Vec<String>> {
    let netns = state.join("run/netns/taps");
    let out = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["ip", "-brief", "link"])
        .output()
        .context("cannot start nsenter")?;
    ensure!(
        out.status.success(),
        "cannot list the links in {}: {}",
        netns.display(),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(String::from)
        .collect())
}

/// storaged's own list of volumes, one JSON object each.
pub fn volumes(state: &Path) -> Result<Vec<String>> {
    let socket = state.join("run/storaged/control.sock");
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"{\"cmd\":\"list\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: serde_json::Value = serde_json::from_str(&line)?;
    let volumes = answer["volumes"]
        .as_array()
        .with_context(|| format!("storaged answered {line}"))?;
    Ok(volumes.iter().map(ToString::to_string).collect())
}

/// Everything under `folder`, relative to it.
pub fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if folder.exists() {
        walk(folder, folder, &mut found)?;
    }
    Ok(found)
}

fn walk(top: &Path, folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            walk(top, &path, found)?;
        }
        found.insert(
            path.strip_prefix(top)
                .unwrap_or(&path)
                .display()
                .to_string(),
        );
    }
    Ok(())
}

/// Ends what an installation that failed has left behind, so that a failed demo costs
/// the machine nothing. What cannot be ended is said.
pub fn sweep(state: &Path) {
    let mut marks = vec![state.display().to_string()];
    if let Ok(instances) = fs::read_dir(state.join("run/instances")) {
        marks.extend(
            instances
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())),
        );
    }
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    for process in processes(&marks).unwrap_or_default() {
        sh::say(&format!("left behind and killed: {process}"));
        if let Some(Ok(pid)) = process.split(' ').next().map(str::parse) {
            // It may have ended by now.
            let _ = send(pid, libc::SIGKILL);
        }
    }
    for mount in mounts(state).unwrap_or_default() {
        if let Some(at) = mount.split(' ').nth(4) {
            sh::say(&format!("left behind and unmounted: {at}"));
            sh::succeeds("umount", &["-l", at]);
        }
    }
}

/// Asks `look` until it finds nothing wrong, at most for `limit`.
pub fn until_clean(limit: Duration, look: impl Fn() -> Result<String>) -> Result<String> {
    let until = Instant::now() + limit;
    loop {
        match look() {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
            outcome => return outcome,
        }
    }
}

/// Fails with the list if there is anything on it.
pub fn none(what: &str, found: &[String]) -> Result<()> {
    ensure!(
        found.is_empty(),
        "left behind, {what}:\n{}",
        found.join("\n")
    );
    Ok(())
}
