//! The four processes that `ocs up` runs, and how to find one that already runs.

use crate::state::State;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A part's name; its program is `ocs-NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The control plane.
    Control,
    /// The block daemon.
    Storaged,
    /// DHCP and metadata.
    Responder,
    /// The host agent.
    Node,
}

impl Part {
    /// In the order in which they are started; they stop in the reverse order.
    pub const ALL: [Self; 4] = [Self::Control, Self::Storaged, Self::Responder, Self::Node];

    /// Its name in paths and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Storaged => "storaged",
            Self::Responder => "responder",
            Self::Node => "node",
        }
    }

    /// The program's file name.
    pub fn program(self) -> String {
        format!("ocs-{}", self.name())
    }
}

/// A part that runs, held so that its pid cannot come to mean another process.
pub struct Running {
    /// Its process id.
    pub pid: u32,
    process: OwnedFd,
}

impl Running {
    /// The process that holds `part` of `state`, whoever started it.
    pub fn find(state: &State, part: Part) -> Option<Self> {
        let text = fs::read_to_string(state.lock(part)).ok()?;
        let pid: u32 = text.trim().parse().ok()?;
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        // First the descriptor, then the look at who it is: in this order a
        // reused pid is noticed.
        let process = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        is_part(&command, state, part).then_some(Self { pid, process })
    }

    /// Asks it to end and, after `grace`, ends it.
    pub fn stop(self, grace: Duration) -> io::Result<()> {
        for (signal, patience) in [
            (Signal::TERM, grace),
            (Signal::KILL, Duration::from_secs(10)),
        ] {
            match pidfd_send_signal(&self.process, signal) {
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                other => other?,
            }
            if self.ends_within(patience)? {
                return Ok(());
            }
        }
        Err(io::Error::other(format!(
            "process {} survives SIGKILL",
            self.pid
        )))
    }

    /// Whether it ends within `patience`: a pidfd is readable once it has.
    pub fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a command line (`/proc/PID/cmdline`) is that of `part` of `state`.
fn is_part(command: &[u8], state: &State, part: Part) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    let program = words
        .next()
        .and_then(|path| path.rsplit(|b| *b == b'/').next());
    // By whole names: /srv/ocs2 is not below /srv/ocs.
    let is_ours = |word: &[u8]| Path::new(OsStr::from_bytes(word)).starts_with(state.root());
    program == Some(part.program().as_bytes()) && words.any(is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_state_s_own_part_is_recognised() {
        let state = State::at(Path::new("/srv/ocs")).unwrap();
        let ours = b"/opt/bin/ocs-node\0--state\0/srv/ocs\0";
        assert!(is_part(ours, &state, Part::Node));
        assert!(!is_part(ours, &state, Part::Control));
        for other in ["/srv/other", "/srv/ocs2", "/srv/ocs.old/ocs"] {
            let command = format!("/opt/bin/ocs-node\0--state\0{other}\0");
            assert!(!is_part(command.as_bytes(), &state, Part::Node), "{other}");
        }
        let below = b"/opt/bin/ocs-storaged\0--state\0/srv/ocs/storaged\0";
        assert!(is_part(below, &state, Part::Storaged));
        assert!(!is_part(
            b"/bin/sh\0-c\0ocs-node /srv/ocs\0",
            &state,
            Part::Node
        ));
        assert!(!is_part(b"", &state, Part::Node));
    }

    #[test]
    fn a_running_part_is_found_and_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(folder.path()).unwrap();
        fs::create_dir_all(folder.path().join("run")).unwrap();
        // A shell under the part's name stands for the part; it ignores SIGTERM.
        let program = folder.path().join("ocs-storaged");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut child = std::process::Command::new(&program)
            .args(["-c", "trap '' TERM; while :; do sleep 1; done"])
            .arg(folder.path())
            .spawn()
            .unwrap();
        assert!(Running::find(&state, Part::Storaged).is_none());
        fs::write(state.lock(Part::Storaged), format!("{}\n", child.id())).unwrap();
        let found = loop {
            // Between fork and exec the child still has our command line.
            if let Some(found) = Running::find(&state, Part::Storaged) {
                break found;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(found.pid, child.id());
        found.stop(Duration::from_millis(50)).unwrap();
        child.wait().unwrap();
        assert!(Running::find(&state, Part::Storaged).is_none());
    }
}
