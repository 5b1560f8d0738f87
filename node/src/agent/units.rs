//! The engine's units: one an instance, planned for whenever something happens to it.

use super::drivers;
use super::engine::{Engine, Event, backoff};
use super::error::EffectError;
use super::machine::{Body, Machine};
use super::owner::ProcessId;
use super::plan::{End, Goal, Step, Volumes, Want, observe, plan};
use super::process::Process;
use super::volumes;
use ocs_node_api as api;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Launches further apart than this have nothing to do with each other.
const LAUNCH_MEMORY: Duration = Duration::from_secs(60);
/// A VMM that waits for its backends runs as soon as they are there.
const CONFIRM_AGAIN: Duration = Duration::from_millis(200);

/// One instance.
#[derive(Default)]
pub(super) struct Unit {
    pub(super) desired: Option<api::Instance>,
    pub(super) body: Body,
    pub(super) busy: bool,
    /// What is desired has changed, perhaps without its generation: what follows from other
    /// objects, as the MTU does from hosts' uplinks.
    pub(super) retell: bool,
    /// Something happened that only a survey can tell.
    pub(super) stale: bool,
    pub(super) watched: Option<ProcessId>,
    pub(super) failures: u32,
    /// Why the last step failed.
    pub(super) trouble: String,
    pub(super) not_before: Option<Instant>,
    pub(super) launches: u32,
    pub(super) last_launch: Option<Instant>,
    pub(super) wake_at: Option<Instant>,
}

impl Engine {
    /// What came of a step.
    pub(super) fn on_done(
        &mut self,
        id: &str,
        body: Body,
        step: &Step,
        result: Result<(), EffectError>,
    ) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        unit.busy = false;
        unit.body = body;
        match result {
            Ok(()) => {
                unit.failures = 0;
                unit.trouble.clear();
            }
            Err(error) => {
                unit.failures += 1;
                let wait = match step {
                    Step::Confirm => CONFIRM_AGAIN,
                    _ => backoff(unit.failures),
                };
                unit.not_before = Some(Instant::now() + wait);
                // A survey that failed is still owed.
                unit.stale |= matches!(step, Step::Rest);
                unit.trouble = error.to_string();
                tracing::warn!(instance = id, ?step, %error, "will be tried again");
            }
        }
        if matches!(step, Step::Launch) {
            let now = Instant::now();
            let apart = unit.last_launch.is_none_or(|t| now - t > LAUNCH_MEMORY);
            unit.launches = if apart { 0 } else { unit.launches + 1 };
            unit.last_launch = Some(now);
            unit.body.seen.retry_at = (unit.launches > 0).then(|| now + backoff(unit.launches));
        }
        let volumes = match (step, &unit.desired) {
            (Step::Clear, Some(desired)) => volumes::of(desired),
            _ => Vec::new(),
        };
        self.watch(id);
        if matches!(step, Step::Clear) {
            self.reconsider_snapshots_of(id);
        }
        self.reconsider(id);
        for volume in volumes {
            self.reconsider_volume(&volume);
        }
    }

    pub(super) fn reconsider_all(&mut self) {
        for id in self.units.keys().cloned().collect::<Vec<_>>() {
            self.reconsider(&id);
        }
    }

    /// Plans for instance `id` and starts what is next.
    pub(super) fn reconsider(&mut self, id: &str) {
        let Some(want) = self.want(id) else { return };
        self.watch(id);
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        if unit.busy {
            return;
        }
        if unit.stale {
            match unit.not_before {
                Some(at) if at > Instant::now() => self.wake(id, at),
                _ => self.survey(id),
            }
            return;
        }
        if std::mem::take(&mut unit.retell)
            && let Some(run) = unit.body.seen.run.as_mut()
        {
            run.told = None;
        }
        if want.generation > 0 {
            let mut observed = observe(&want, &unit.body.seen);
            if matches!(observed.phase, api::Phase::Starting | api::Phase::Stopping) {
                observed.message.clone_from(&unit.trouble);
            }
            self.outbox.instance(id, want.generation, observed);
        }
        let now = Instant::now();
        let step = match (plan(&want, &unit.body.seen, now), unit.not_before) {
            (Step::Rest, _) => Step::Rest,
            (_, Some(at)) if at > now => Step::WaitUntil(at),
            (step, _) => step,
        };
        match step {
            Step::Rest => self.drop_if_gone(id, &want),
            Step::Launch | Step::Erase if !self.swept => {}
            Step::WaitUntil(at) => self.wake(id, at),
            step => self.work(id, step),
        }
    }

    /// What is wanted of instance `id`; `None`: control has never spoken, so that
    /// nothing may be destroyed for want of a claim.
    fn want(&self, id: &str) -> Option<Want> {
        let unit = self.units.get(id)?;
        let Some(desired) = &unit.desired else {
            let goal = match (self.slice.revision, self.host_stopping) {
                (0, false) => return None,
                (0, true) => Goal::Stop,
                _ => Goal::Absent,
            };
            return Some(Want {
                generation: 0,
                goal,
                starts: 0,
                reboots: 0,
                volumes: Volumes::Ready,
                host_stopping: self.host_stopping,
            });
        };
        let goal = match desired.desired() {
            api::Desired::Running => Goal::Run,
            api::Desired::Stopped => Goal::Stop,
            api::Desired::Absent => Goal::Absent,
            api::Desired::Present | api::Desired::Unspecified => {
                tracing::error!(instance = id, desired = desired.desired, "not understood");
                return None;
            }
        };
        Some(Want {
            generation: desired.generation,
            goal,
            starts: desired.starts,
            reboots: desired.reboots,
            volumes: self.volumes_of(desired),
            host_stopping: self.host_stopping,
        })
    }

    /// Whether a run of any instance may hold volume `id`.
    pub(super) fn is_in_use(&self, id: &str) -> bool {
        self.units.values().any(|unit| {
            unit.body.seen.run.is_some()
                && unit
                    .desired
                    .as_ref()
                    .is_some_and(|d| volumes::of(d).iter().any(|v| v == id))
        })
    }

    /// Instances that wait for volume `id`.
    pub(super) fn waiting_for(&self, id: &str) -> Vec<String> {
        self.units
            .iter()
            .filter(|(_, unit)| {
                unit.body.seen.run.is_none()
                    && unit
                        .desired
                        .as_ref()
                        .is_some_and(|d| volumes::of(d).iter().any(|v| v == id))
            })
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn drop_if_gone(&mut self, id: &str, want: &Want) {
        let nothing = self
            .units
            .get(id)
            .is_some_and(|u| u.body.seen.run.is_none() && u.body.seen.page.is_none());
        if want.goal == Goal::Absent && nothing {
            self.units.remove(id);
            self.slice.instances.remove(id);
        }
    }

    fn wake(&mut self, id: &str, at: Instant) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        if unit.wake_at.is_some_and(|set| set <= at) {
            return;
        }
        unit.wake_at = Some(at);
        let (events, id) = (self.events.clone(), id.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            let _ = events.send(Event::Wake(id));
        });
    }

    fn survey(&mut self, id: &str) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        unit.stale = false;
        unit.busy = true;
        let before = unit.body.clone();
        let (machine, events, id) = (
            Arc::clone(&self.machine),
            self.events.clone(),
            id.to_owned(),
        );
        tokio::task::spawn_blocking(move || {
            let (body, result) = match machine.survey(&id, &before) {
                Ok(body) => (body, Ok(())),
                Err(error) => (before, Err(error)),
            };
            let _ = events.send(Event::Done(id, Box::new(body), Step::Rest, result));
        });
    }

    fn work(&mut self, id: &str, step: Step) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        unit.busy = true;
        // Until the job is done the unit shows what the job began with.
        let mut body = unit.body.clone();
        let desired = unit.desired.clone();
        let permits = match step {
            Step::Launch | Step::Confirm => &self.launches,
            _ => &self.jobs,
        };
        let (machine, events, permits, id) = (
            Arc::clone(&self.machine),
            self.events.clone(),
            Arc::clone(permits),
            id.to_owned(),
        );
        tokio::spawn(async move {
            let permit = permits.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                tracing::debug!(instance = id, ?step, "step");
                let result = machine.execute(&id, &step, desired.as_ref(), &mut body);
                let result = result.or_else(|e| give_up(&machine, &id, &step, &mut body, e));
                drop(permit);
                let _ = events.send(Event::Done(id, Box::new(body), step, result));
            });
        });
    }

    /// Waits for the unit's process to end, and hears of its guest's drivers until then; once.
    fn watch(&mut self, id: &str) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        let Some(process) = unit.body.process.clone() else {
            return;
        };
        if unit.watched == Some(process.id()) {
            return;
        }
        unit.watched = Some(process.id());
        let (events, id) = (self.events.clone(), id.to_owned());
        let hearing = tokio::spawn(drivers::hear(Arc::clone(&self.machine), id.clone()));
        tokio::spawn(async move {
            if let Err(error) = until_exit(&process).await {
                tracing::error!(instance = id, %error, "cannot watch the VMM");
            }
            hearing.abort();
            process.reap();
            let _ = events.send(Event::Exited(id));
        });
    }
}

/// A failed step: what came of it is surveyed, and a launch that cannot succeed ends the start.
fn give_up(
    machine: &Machine,
    id: &str,
    step: &Step,
    body: &mut Body,
    error: EffectError,
) -> Result<(), EffectError> {
    let before = std::mem::take(body);
    *body = match machine.survey(id, &before) {
        Ok(body) => body,
        Err(worse) => {
            *body = before;
            return Err(worse);
        }
    };
    let (Step::Launch, EffectError::Permanent(why)) = (step, &error) else {
        return Err(error);
    };
    tracing::error!(instance = id, why, "cannot be launched");
    let Some(starts) = body.seen.page.as_ref().map(|page| page.starts) else {
        return Err(error);
    };
    let end = End {
        starts,
        failed: body.seen.been_up != Some(starts),
        reason_code: "Server.InternalError".to_owned(),
        message: why.clone(),
    };
    machine.execute(id, &Step::End(end), None, body)
}

async fn until_exit(process: &Process) -> std::io::Result<()> {
    // A pidfd is readable once its process has ended (pidfd_open(2)).
    let pidfd = process.pidfd()?;
    // SAFETY: an owned descriptor answers `as_raw_fd` with one number for as long
    // as it lives, and the registration owns it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
        .map_err(std::io::Error::from)?;
    let _ready = pidfd.readable().await?;
    Ok(())
}
