//! What is next for one instance: a pure function of what is wanted and what is seen.
//!
//! ```text
//!            Launch            Confirm            Publish
//!  nothing ─────────▶ started ─────────▶ running ─────────▶ rest (UP)
//!     ▲                  │ ended            │ ended, or not wanted: Power, Stop, Kill
//!     │                  ▼                  ▼
//!     │◀──── Clear ──── dead ◀──────────────┘      End: durably "not again this start"
//!     │
//!     ├── Erase (instance stores, where the start is over)
//!     └── Forget (where nothing may remain)
//! ```
//! Any step may be cut off at any instant. The next survey sees how far it came,
//! and the plan goes on from there, so no step needs to know what came before it.

use ocs_node_api::Phase;
use ocs_vmm_spec::exit::{ExitReason, ExitRecord};
use std::time::{Duration, Instant};

/// How long a VMM may take to obey `Stop` before it is killed.
pub const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What shall become of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A VMM runs.
    Run,
    /// No VMM; what is persistent is kept.
    Stop,
    /// Nothing remains.
    Absent,
}

/// How the volumes that an instance attaches stand, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volumes {
    /// All are there.
    Ready,
    /// One is being made.
    Pending,
    /// storaged will not make one.
    Refused,
}

/// One instance as desired, as far as a plan depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Of the desired object.
    pub generation: u64,
    /// What shall become of it.
    pub goal: Goal,
    /// Which start (`Instance.starts`).
    pub starts: u64,
    /// How many reboots (`Instance.reboots`).
    pub reboots: u64,
    /// How its volumes stand.
    pub volumes: Volumes,
    /// The host goes down: every run ends with `Server.ScheduledStop`.
    pub host_stopping: bool,
}

/// One instance as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its page in the ledger.
    pub page: Option<Page>,
    /// Its run directory.
    pub run: Option<Run>,
    /// No launch before this.
    pub retry_at: Option<Instant>,
    /// The start in which it has been up.
    pub been_up: Option<u64>,
}

/// What a plan depends on of [`super::ledger::Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The start whose instance stores may exist.
    pub starts: u64,
    /// Instance stores may exist.
    pub stores: bool,
    /// The run that ended of itself.
    pub ended: Option<End>,
}

/// A run's end that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The start that ended.
    pub starts: u64,
    /// It never came up.
    pub failed: bool,
    /// EC2's StateReason code.
    pub reason_code: String,
    /// One sentence.
    pub message: String,
}

/// A run: what `owner.json` and the process say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which start it belongs to.
    pub starts: u64,
    /// Reboots when it was launched.
    pub reboots: u64,
    /// A vCPU has been seen to run.
    pub up: bool,
    /// The process.
    pub vmm: Vmm,
    /// The generation that the packet path and the responder were told.
    pub told: Option<u64>,
    /// What the VMM was asked to do about its end, and until when it may take.
    pub asked: Option<(Ask, Instant)>,
}

/// The process of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// None was started, or the host has been booted since: no one's fault.
    Absent,
    /// It runs.
    Alive,
    /// It ended; its last words, if it had time for any.
    Dead(Option<ExitRecord>),
}

/// Ways to end a VMM, each sterner than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// The guest's power button.
    Power,
    /// The VMM's control socket.
    Stop,
    /// SIGKILL.
    Kill,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All is as wanted.
    Rest,
    /// Nothing until then, or an event.
    WaitUntil(Instant),
    /// Make a run: directory, sockets, taps, policy, process.
    Launch,
    /// Wait until a vCPU runs.
    Confirm,
    /// Tell the packet path and the responder of this generation.
    Publish,
    /// Ask the VMM to end.
    Ask(Ask),
    /// Note durably that this start is over.
    End(End),
    /// Undo the run: volumes detached, ports closed, cgroup and directory gone.
    Clear,
    /// Destroy the instance stores.
    Erase,
    /// Remove console and ledger page.
    Forget,
}

impl Want {
    /// This start ended of itself.
    fn is_over(&self, seen: &Seen) -> bool {
        seen.page
            .as_ref()
            .and_then(|page| page.ended.as_ref())
            .is_some_and(|end| end.starts == self.starts)
    }

    fn wants_run(&self, seen: &Seen) -> bool {
        self.goal == Goal::Run && !self.is_over(seen) && !self.host_stopping
    }
}

/// The next step towards `want` from `seen`.
#[must_use]
pub fn plan(want: &Want, seen: &Seen, now: Instant) -> Step {
    if want.host_stopping && want.goal == Goal::Run && !want.is_over(seen) {
        return Step::End(End {
            starts: want.starts,
            failed: false,
            reason_code: "Server.ScheduledStop".to_owned(),
            message: "the host was shut down".to_owned(),
        });
    }
    match &seen.run {
        None => without_run(want, seen, now),
        Some(run) => with_run(want, seen, run, now),
    }
}

fn without_run(want: &Want, seen: &Seen, now: Instant) -> Step {
    let run = want.wants_run(seen);
    match &seen.page {
        Some(page) if page.stores && !(run && page.starts == want.starts) => Step::Erase,
        Some(_) if want.goal == Goal::Absent => Step::Forget,
        _ if !run || want.volumes == Volumes::Pending => Step::Rest,
        _ if want.volumes == Volumes::Refused => Step::End(End {
            starts: want.starts,
            failed: seen.been_up != Some(want.starts),
            reason_code: "Server.InternalError".to_owned(),
            message: "a volume could not be made".to_owned(),
        }),
        _ => match seen.retry_at {
            Some(at) if at > now => Step::WaitUntil(at),
            _ => Step::Launch,
        },
    }
}

fn with_run(want: &Want, seen: &Seen, run: &Run, now: Instant) -> Step {
    let wanted = want.wants_run(seen) && run.starts == want.starts;
    let current = wanted && run.reboots == want.reboots;
    match &run.vmm {
        Vmm::Absent => Step::Clear,
        Vmm::Dead(words) if current => match end_of(want, seen, words.as_ref()) {
            Some(end) => Step::End(end),
            None => Step::Clear,
        },
        Vmm::Dead(_) => Step::Clear,
        Vmm::Alive if !current => stop(run, now),
        Vmm::Alive if !run.up => Step::Confirm,
        Vmm::Alive if run.told != Some(want.generation) => Step::Publish,
        Vmm::Alive => Step::Rest,
    }
}

/// Presses the button, then asks, then kills.
fn stop(run: &Run, now: Instant) -> Step {
    match run.asked {
        // A guest that has not started has nobody to press a button for.
        None if !run.up => Step::Ask(Ask::Stop),
        None => Step::Ask(Ask::Power),
        Some((_, until)) if until > now => Step::WaitUntil(until),
        Some((Ask::Power, _)) => Step::Ask(Ask::Stop),
        Some((Ask::Stop | Ask::Kill, _)) => Step::Ask(Ask::Kill),
    }
}

/// Whether a death that nobody asked for ends this start; a guest's reset does not.
fn end_of(want: &Want, seen: &Seen, words: Option<&ExitRecord>) -> Option<End> {
    let end = |reason_code: &str, message: String| {
        Some(End {
            starts: want.starts,
            failed: seen.been_up != Some(want.starts),
            reason_code: reason_code.to_owned(),
            message,
        })
    };
    match words {
        Some(words) => match words.reason {
            ExitReason::GuestReset => None,
            ExitReason::GuestShutdown => Some(End {
                failed: false,
                ..end(
                    "Client.InstanceInitiatedShutdown",
                    "Instance initiated shutdown".to_owned(),
                )?
            }),
            ExitReason::Stopped | ExitReason::Migrated | ExitReason::Error => {
                end("Server.InternalError", words.message.clone())
            }
        },
        None => end("Server.InternalError", "the VMM was killed".to_owned()),
    }
}

/// What control is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its phase.
    pub phase: Phase,
    /// Why, where nobody asked for it.
    pub reason_code: String,
    /// One sentence.
    pub message: String,
    /// Of the running VMM.
    pub reboots: u64,
    /// The running VMM has the attachments of this generation; 0: none runs.
    pub disks_generation: u64,
}

/// `seen` in the protocol's words.
#[must_use]
pub fn observe(want: &Want, seen: &Seen) -> Observed {
    let plain = |phase| Observed {
        phase,
        reason_code: String::new(),
        message: String::new(),
        reboots: seen.run.as_ref().map_or(0, |run| run.reboots),
        disks_generation: (seen.run.as_ref())
            .filter(|run| run.up)
            .and_then(|run| run.told)
            .unwrap_or(0),
    };
    if want.wants_run(seen) {
        let up = match &seen.run {
            Some(run) if run.starts == want.starts => run.up || seen.been_up == Some(want.starts),
            // Between two VMMs of one start: a reboot, which EC2 shows as running.
            None => seen.been_up == Some(want.starts),
            Some(_) => false,
        };
        return plain(if up { Phase::Up } else { Phase::Starting });
    }
    let stores = seen.page.as_ref().is_some_and(|page| page.stores);
    match want.goal {
        _ if seen.run.is_some() || stores => plain(Phase::Stopping),
        Goal::Absent if seen.page.is_some() => plain(Phase::Stopping),
        Goal::Absent => plain(Phase::Gone),
        Goal::Stop => plain(Phase::Down),
        Goal::Run => match seen.page.as_ref().and_then(|page| page.ended.as_ref()) {
            Some(end) => Observed {
                reason_code: end.reason_code.clone(),
                message: end.message.clone(),
                ..plain(if end.failed {
                    Phase::Failed
                } else {
                    Phase::Down
                })
            },
            None => plain(Phase::Down),
        },
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
