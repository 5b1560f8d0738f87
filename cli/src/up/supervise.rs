//! Keeps parts running: a part that ends is started again, ever later if it
//! keeps ending.

use super::parts::Start;
use super::{STOP_GRACE, log};
use crate::part::Part;
use crate::state::State;
use anyhow::{Context, Result};
use rustix::fs::Mode;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A part that ran this long starts with the first pause again.
const STEADY: Duration = Duration::from_secs(30);
/// So many ends make a start a failure.
const FAILING_ENDS: u32 = 5;
const LOG_CHECK: Duration = Duration::from_secs(5);

/// All supervised parts.
pub struct Supervisor {
    state: State,
    kept: VecDeque<Kept>,
}

/// One supervised part: the task that runs it, and what it shall run.
struct Kept {
    part: Part,
    wanted: watch::Sender<Option<Start>>,
    ends: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Supervises nothing yet.
    pub fn new(state: &State) -> Self {
        Self {
            state: state.clone(),
            kept: VecDeque::new(),
        }
    }

    /// Starts a part and keeps it running.
    pub fn start(&mut self, start: Start) {
        let part = start.part;
        let (wanted, follow) = watch::channel(Some(start));
        let files = Files {
            lock: self.state.lock(part),
            log: self.state.log(part),
        };
        let ends = Arc::default();
        let task = tokio::spawn(keep(part, files, follow, Arc::clone(&ends)));
        self.kept.push_front(Kept {
            part,
            wanted,
            ends,
            task,
        });
    }

    /// The first part that keeps ending.
    pub fn failing(&self) -> Option<Part> {
        let failing = |kept: &&Kept| kept.ends.load(Ordering::Relaxed) >= FAILING_ENDS;
        self.kept.iter().find(failing).map(|kept| kept.part)
    }

    /// Has the part ended of itself?
    pub fn has_ended(&self, part: Part) -> bool {
        let ended = |kept: &Kept| kept.part == part && kept.ends.load(Ordering::Relaxed) > 0;
        self.kept.iter().any(ended)
    }

    /// Runs the part with other arguments from its next start on.
    pub fn replace(&self, start: Start) {
        if let Some(kept) = self.kept.iter().find(|kept| kept.part == start.part) {
            kept.wanted.send_replace(Some(start));
        }
    }

    /// Stops all parts, the last started first.
    pub async fn stop_all(&mut self) -> Result<()> {
        while let Some(kept) = self.kept.front() {
            self.stop(kept.part).await?;
        }
        Ok(())
    }

    /// Stops a part for good, by force if it does not obey.
    pub async fn stop(&mut self, part: Part) -> Result<()> {
        let Some(at) = self.kept.iter().position(|kept| kept.part == part) else {
            return Ok(());
        };
        let Some(kept) = self.kept.remove(at) else {
            return Ok(());
        };
        kept.wanted.send_replace(None);
        kept.task
            .await
            .with_context(|| format!("stopping {}", part.program()))
    }
}

struct Files {
    lock: PathBuf,
    log: PathBuf,
}

async fn keep(
    part: Part,
    files: Files,
    mut wanted: watch::Receiver<Option<Start>>,
    ends: Arc<AtomicU32>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(start) = wanted.borrow_and_update().clone() else {
            return;
        };
        let began = Instant::now();
        match spawn(&start, &files) {
            Ok(mut child) => {
                info!(part = part.name(), pid = child.id(), "started");
                if !watch_over(part, &mut child, &files, &mut wanted).await {
                    end(part, child).await;
                    return;
                }
            }
            Err(error) => error!(part = part.name(), %error, "cannot be started"),
        }
        if began.elapsed() >= STEADY {
            pause = FIRST_PAUSE;
        }
        warn!(part = part.name(), ?pause, log = %files.log.display(), "starting again");
        ends.fetch_add(1, Ordering::Relaxed);
        // A stop, or the supervisor's own end.
        if timeout(pause, wanted.wait_for(Option::is_none))
            .await
            .is_ok()
        {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Until the child ends by itself (true) or shall end (false).
async fn watch_over(
    part: Part,
    child: &mut Child,
    files: &Files,
    wanted: &mut watch::Receiver<Option<Start>>,
) -> bool {
    loop {
        tokio::select! {
            status = child.wait() => {
                match status {
                    Ok(status) => warn!(part = part.name(), %status, "ended"),
                    Err(error) => error!(part = part.name(), %error, "cannot be waited for"),
                }
                return true;
            }
            stop = wanted.wait_for(Option::is_none) => {
                // An error means that the supervisor itself is gone: the same.
                drop(stop);
                return false;
            }
            () = sleep(LOG_CHECK) => {
                if let Err(error) = log::cut(&files.log, log::MAX_BYTES) {
                    warn!(%error, log = %files.log.display(), "cutting a log");
                }
            }
        }
    }
}

async fn end(part: Part, mut child: Child) {
    let pid = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid
        // Not reaped yet, so the pid is still the child's.
        && kill_process(pid, Signal::TERM).is_ok()
        && timeout(STOP_GRACE, child.wait()).await.is_ok()
    {
        info!(part = part.name(), "stopped");
        return;
    }
    warn!(part = part.name(), "killing a part that does not end");
    if let Err(error) = child.kill().await {
        error!(part = part.name(), %error, "cannot be killed");
    }
}

/// Starts a part in a session of its own, with nothing inherited but its log.
fn spawn(start: &Start, files: &Files) -> io::Result<Child> {
    log::cut(&files.log, log::MAX_BYTES)?;
    let lock = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&files.lock)?;
    let mut command = std::process::Command::new(&start.program);
    command
        .args(&start.arguments)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log::open(&files.log)?)
        .stderr(log::open(&files.log)?);
    for name in ["PATH", "RUST_LOG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(id) = start.identity {
        command.uid(id).gid(id);
    }
    let is_root = start.identity.is_none();
    // SAFETY: between fork and exec only async-signal-safe calls are made, and
    // nothing is allocated: setsid, umask, close_range, prctl, getpid, write.
    unsafe {
        command.pre_exec(move || prepare(&lock, is_root));
    }
    Command::from(command).spawn()
}

/// In the child: leave the terminal's session, so that Ctrl-C is ours alone; make no
/// file or socket that others may write; keep nothing that our own caller left open,
/// which a part would hold for days; say who we are before anyone could be killed
/// without a trace; give up gaining privileges.
fn prepare(lock: &File, is_root: bool) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let keep_till_exec = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: only sets a flag of this process's descriptors.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, keep_till_exec) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut pid = [0u8; 16];
    let mut rest = &mut pid[..];
    io::Write::write_fmt(
        &mut rest,
        format_args!("{}\n", rustix::process::getpid().as_raw_nonzero()),
    )?;
    let left = rest.len();
    rustix::io::write(lock, &pid[..pid.len() - left])?;
    if !is_root {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
