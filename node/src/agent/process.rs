//! VMM processes that may be ours: found, proven, signalled and outlived.
//!
//! The node is not their parent after its own restart, so nothing here waits for
//! a child: a pidfd names the process, and its exit record's lock (`flock`, held
//! by the open file description that the VMM inherits before it is even
//! executed) proves its death to whoever can take it.

use super::owner::{Owner, ProcessId, RunDir};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// The environment variable that holds [`Owner::nonce`].
pub const NONCE_VARIABLE: &str = "OCS_NONCE";
/// How long a process may stand between fork and exec before that is an error.
const EXEC_PATIENCE: Duration = Duration::from_secs(10);

/// A process held by its pidfd: the number cannot come to mean another.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
}

impl Process {
    /// The process `id`, if it lives.
    pub fn open(id: ProcessId) -> io::Result<Option<Self>> {
        let found = Self::open_pid(id.pid)?;
        Ok(found.filter(|p| p.id.start_ticks == id.start_ticks && !p.has_exited()))
    }

    /// Whatever process has the number `pid` now.
    pub fn open_pid(pid: i32) -> io::Result<Option<Self>> {
        let Some(number) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            other => other?,
        };
        let start_ticks = match start_ticks(pid) {
            Err(e) if is_gone(&e) => return Ok(None),
            other => other?,
        };
        let id = ProcessId { pid, start_ticks };
        Ok(Some(Self { id, pidfd }))
    }

    /// Its number and start time.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Whether it has ended (reaped or not).
    #[must_use]
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(n) if n > 0)
    }

    /// Collects its exit status if it is a child of ours that has ended.
    pub fn reap(&self) {
        // Not our child (adopted): ECHILD, and its parent reaps it.
        let _ = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }

    /// Ends it, now.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// A pidfd of its own for the caller to wait on.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }
}

/// The process that runs in `run`, if one does. Decides also where the node died
/// between starting it and writing its number down.
pub fn find(run: &RunDir, owner: &Owner, boot_id: &str) -> io::Result<Option<Process>> {
    if owner.boot_id != boot_id {
        return Ok(None);
    }
    if let Some(id) = owner.process {
        return Process::open(id);
    }
    let patience = Instant::now() + EXEC_PATIENCE;
    while !lock_is_free(&run.exit_record())? {
        if let Some(process) = find_by_nonce(&owner.nonce)? {
            return Ok(Some(process));
        }
        if Instant::now() > patience {
            return Err(io::Error::other(format!(
                "{} is locked by a process that does not carry its nonce",
                run.exit_record().display()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Whether nobody holds the exit record open any more.
fn lock_is_free(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The process whose environment holds `nonce`.
fn find_by_nonce(nonce: &str) -> io::Result<Option<Process>> {
    let wanted = format!("{NONCE_VARIABLE}={nonce}");
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        if carries(pid, &wanted)
            && let Some(process) = Process::open_pid(pid)?
            // The number may have changed hands since the first look.
            && carries(pid, &wanted)
            && !process.has_exited()
        {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

fn carries(pid: i32, variable: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == variable.as_bytes()))
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)): start time in clock ticks.
fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold anything.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// This boot of the host (random(4)).
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::layout::Layout;
    use std::collections::{BTreeMap, BTreeSet};
    use std::process::Command;

    struct Killed(std::process::Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper(nonce: &str) -> Killed {
        Killed(
            Command::new("sleep")
                .arg("1000")
                .env(NONCE_VARIABLE, nonce)
                .spawn()
                .unwrap(),
        )
    }

    fn owner(nonce: &str) -> Owner {
        Owner {
            generation: 1,
            starts: 1,
            reboots: 0,
            nonce: nonce.to_owned(),
            boot_id: boot_id().unwrap(),
            volumes: BTreeSet::new(),
            plugged: BTreeMap::new(),
            taps: BTreeMap::new(),
            process: None,
            up_since_s: None,
        }
    }

    #[test]
    fn a_process_is_known_by_number_and_start_time() {
        let child = sleeper("x");
        let pid = i32::try_from(child.0.id()).unwrap();
        let id = Process::open_pid(pid).unwrap().unwrap().id();
        assert!(Process::open(id).unwrap().is_some());
        let other = ProcessId {
            start_ticks: id.start_ticks + 1,
            ..id
        };
        assert!(Process::open(other).unwrap().is_none());
        let held = Process::open(id).unwrap().unwrap();
        held.kill().unwrap();
        while !held.has_exited() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // A zombie is not alive.
        assert!(Process::open(id).unwrap().is_none());
        held.reap();
        assert!(Process::open_pid(pid).unwrap().is_none());
        held.kill().unwrap();
    }

    #[test]
    fn an_unrecorded_process_is_found_by_nonce_while_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::of(&Layout::new(dir.path()), "i-1");
        run.create().unwrap();
        let nonce = format!("nonce-{}", std::process::id());
        let owner = owner(&nonce);
        let boot = boot_id().unwrap();
        assert!(find(&run, &owner, &boot).unwrap().is_none(), "no record");

        let record = File::create(run.exit_record()).unwrap();
        assert!(find(&run, &owner, &boot).unwrap().is_none(), "unlocked");
        flock(&record, FlockOperation::LockExclusive).unwrap();
        let child = sleeper(&nonce);
        let found = find(&run, &owner, &boot).unwrap().unwrap();
        assert_eq!(found.id().pid, i32::try_from(child.0.id()).unwrap());
        assert!(find(&run, &owner, "another boot").unwrap().is_none());
        drop(child);
        drop(record);
        assert!(find(&run, &owner, &boot).unwrap().is_none());
    }
}
