//! The engine: one loop that owns all units, and at most one job at a time for each.
//!
//! ```text
//!  session ── desired ──▶ ┌────────┐ ── plan ──▶ job (blocking thread) ──┐
//!  pidfd ──── exited ───▶ │ engine │                                     │
//!  timer ──── wake ─────▶ └───▲────┘ ◀──────────── done ─────────────────┘
//!                             └── outbox: what is observed
//! ```
//! Nothing here polls: a unit at rest costs a pidfd and some memory.

use super::desired::{Changed, Slice};
use super::error::EffectError;
use super::machine::{Body, Machine};
use super::outbox::Outbox;
use super::owner::{ProcessId, RunDir};
use super::plan::{End, Goal, Step, Want, observe, plan};
use super::process::Process;
use super::volumes::{self, VolumeUnit};
use ocs_node_api as api;
use ocs_storaged_api::VolumeStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc};

/// Launches at once: more would only share the same CPUs.
const LAUNCHES_AT_ONCE: usize = 4;
/// Other steps at once.
const JOBS_AT_ONCE: usize = 16;
/// First and longest wait before a failed step is tried again.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(10);
/// Launches further apart than this have nothing to do with each other.
const LAUNCH_MEMORY: Duration = Duration::from_secs(60);

/// What control may say to the engine.
#[derive(Debug)]
pub enum Word {
    /// All that is desired.
    Snapshot(api::Snapshot),
    /// What changed.
    Delta(api::Delta),
}

/// What happens to the engine.
pub(super) enum Event {
    Done(String, Box<Body>, Step, Result<(), EffectError>),
    Exited(String),
    Wake(String),
    Volume(String, u64, bool, Result<(), EffectError>),
    WakeVolume(String),
    Swept(Vec<VolumeStatus>),
    NotSwept(u32),
    Policy(Result<(), EffectError>),
}

/// One instance.
#[derive(Default)]
struct Unit {
    desired: Option<api::Instance>,
    body: Body,
    busy: bool,
    /// Something happened that only a survey can tell.
    stale: bool,
    watched: Option<ProcessId>,
    failures: u32,
    not_before: Option<Instant>,
    launches: u32,
    last_launch: Option<Instant>,
    wake_at: Option<Instant>,
}

/// The engine's state.
pub struct Engine {
    pub(super) machine: Arc<Machine>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) slice: Slice,
    pub(super) volumes: BTreeMap<String, VolumeUnit>,
    units: BTreeMap<String, Unit>,
    host_stopping: bool,
    launches: Arc<Semaphore>,
    pub(super) jobs: Arc<Semaphore>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    policy_failures: u32,
    /// storaged has nothing that is nobody's.
    pub(super) swept: bool,
}

impl Engine {
    /// Finds everything that is there and adopts it; tells the packet path first of all.
    pub async fn start(
        machine: Arc<Machine>,
        outbox: Arc<Outbox>,
        host_stopping: bool,
    ) -> anyhow::Result<Self> {
        let (events, inbox) = mpsc::unbounded_channel();
        let slice = Slice::load(&machine.config.layout.slice())?;
        let mut engine = Self {
            machine,
            outbox,
            slice,
            volumes: BTreeMap::new(),
            units: BTreeMap::new(),
            host_stopping,
            launches: Arc::new(Semaphore::new(LAUNCHES_AT_ONCE)),
            jobs: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
            events,
            inbox,
            policy_failures: 0,
            swept: false,
        };
        engine.survey_all().await?;
        engine
            .machine
            .board
            .set_groups(&engine.slice.security_groups);
        engine.settle();
        engine.sweep(0);
        engine.reconsider_all();
        Ok(engine)
    }

    async fn survey_all(&mut self) -> anyhow::Result<()> {
        let mut ids: BTreeSet<String> = RunDir::ids(&self.machine.config.layout)?
            .into_iter()
            .collect();
        ids.extend(self.machine.ledger.ids());
        ids.extend(self.slice.instances.keys().cloned());
        let machine = Arc::clone(&self.machine);
        let surveyed = tokio::task::spawn_blocking(move || {
            ids.into_iter()
                .map(|id| {
                    let body = machine.survey(&id, &Body::default());
                    (id, body)
                })
                .collect::<Vec<_>>()
        })
        .await?;
        for (id, body) in surveyed {
            let body = body?;
            let desired = self.slice.instances.get(&id).cloned();
            if let Some(desired) = &desired {
                self.machine.adopt(desired, &body);
            }
            if body.process.is_some() {
                tracing::info!(instance = id, claimed = desired.is_some(), "adopted");
            }
            let unit = Unit {
                desired,
                body,
                ..Unit::default()
            };
            self.units.insert(id, unit);
        }
        Ok(())
    }

    /// Runs until `words` ends.
    pub async fn run(mut self, mut words: mpsc::Receiver<Word>) {
        loop {
            tokio::select! {
                word = words.recv() => {
                    let Some(word) = word else { return };
                    let mut changed = self.hear(word);
                    while let Ok(word) = words.try_recv() {
                        changed.merge(self.hear(word));
                    }
                    self.act_on(changed).await;
                }
                Some(event) = self.inbox.recv() => self.on(event),
            }
        }
    }

    /// Runs until no instance has a process or a run directory, or `patience` is over.
    /// True: all is down.
    pub async fn run_down(mut self, patience: Duration) -> bool {
        let until = tokio::time::Instant::now() + patience;
        while self.units.values().any(|u| {
            let over = u.body.seen.page.as_ref().is_none_or(|p| !p.stores);
            u.busy || u.body.seen.run.is_some() || !over
        }) {
            match tokio::time::timeout_at(until, self.inbox.recv()).await {
                Ok(Some(event)) => self.on(event),
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    fn hear(&mut self, word: Word) -> Changed {
        match word {
            Word::Snapshot(snapshot) => self.slice.replace(snapshot),
            Word::Delta(delta) => self.slice.merge(delta),
        }
    }

    /// Policy at once; the rest once the slice lasts, lest a restarted node finds
    /// instances that it does not remember being told of.
    async fn act_on(&mut self, changed: Changed) {
        if changed.groups {
            self.machine.board.set_groups(&self.slice.security_groups);
            self.settle();
        }
        let (slice, path) = (self.slice.clone(), self.machine.config.layout.slice());
        let mut saved = tokio::task::spawn_blocking(move || slice.save(&path)).await;
        while !matches!(saved, Ok(Ok(()))) {
            tracing::error!(error = ?saved, "the slice cannot be kept; nothing new is begun");
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (slice, path) = (self.slice.clone(), self.machine.config.layout.slice());
            saved = tokio::task::spawn_blocking(move || slice.save(&path)).await;
        }
        for id in changed.volumes {
            self.reconsider_volume(&id);
        }
        for id in changed.instances {
            let unit = self.units.entry(id.clone()).or_default();
            unit.not_before = None;
            match self.slice.instances.get(&id) {
                Some(desired) => unit.desired = Some(desired.clone()),
                None => {
                    tracing::warn!(instance = id, "desired by nobody: destroying it");
                    if let Some(desired) = unit.desired.as_mut() {
                        desired.desired = api::Desired::Absent.into();
                        desired.generation = 0;
                    }
                }
            }
            self.reconsider(&id);
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Done(id, body, step, result) => self.on_done(&id, *body, &step, result),
            Event::Exited(id) => {
                if let Some(unit) = self.units.get_mut(&id) {
                    unit.stale = true;
                    unit.watched = None;
                }
                self.reconsider(&id);
            }
            Event::Wake(id) => {
                if let Some(unit) = self.units.get_mut(&id) {
                    unit.wake_at = None;
                }
                self.reconsider(&id);
            }
            Event::Volume(id, generation, absent, result) => {
                self.on_volume_done(&id, generation, absent, result);
            }
            Event::Swept(volumes) => self.on_swept(volumes),
            Event::NotSwept(failures) => self.sweep(failures),
            Event::WakeVolume(id) => self.reconsider_volume(&id),
            Event::Policy(Ok(())) => self.policy_failures = 0,
            Event::Policy(Err(error)) => {
                tracing::error!(%error, "the packet path does not take the policy");
                self.policy_failures += 1;
                self.settle_after(backoff(self.policy_failures));
            }
        }
    }

    fn on_done(&mut self, id: &str, body: Body, step: &Step, result: Result<(), EffectError>) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        unit.busy = false;
        unit.body = body;
        match result {
            Ok(()) => unit.failures = 0,
            Err(error) => {
                unit.failures += 1;
                unit.not_before = Some(Instant::now() + backoff(unit.failures));
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
            self.survey(id);
            return;
        }
        if want.generation > 0 {
            self.outbox
                .instance(id, want.generation, observe(&want, &unit.body.seen));
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
                volumes_ready: true,
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
            volumes_ready: self.volumes_ready(desired),
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

    /// Waits for the unit's process to end, once.
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
        tokio::spawn(async move {
            if let Err(error) = until_exit(&process).await {
                tracing::error!(instance = id, %error, "cannot watch the VMM");
            }
            process.reap();
            let _ = events.send(Event::Exited(id));
        });
    }

    fn settle(&self) {
        self.settle_after(Duration::ZERO);
    }

    fn settle_after(&self, delay: Duration) {
        let (machine, events) = (Arc::clone(&self.machine), self.events.clone());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let settled = tokio::task::spawn_blocking(move || machine.board.settle()).await;
            let settled = settled.unwrap_or_else(|e| Err(EffectError::Transient(e.to_string())));
            let _ = events.send(Event::Policy(settled));
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
        message: format!("Server.InternalError: {why}"),
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

/// 100 ms, doubled with each failure, to 10 s.
pub(super) fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(1 << failures.clamp(1, 16).saturating_sub(1))
        .min(BACKOFF_LONGEST)
}
