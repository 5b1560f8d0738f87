//! The engine: one loop that owns all units, and at most one job at a time for each.
//!
//! ```text
//!  session ── desired ──▶ ┌────────┐ ── plan ──▶ job (blocking thread) ──┐
//!  pidfd ──── exited ───▶ │ engine │                                     │
//!  timer ──── wake ─────▶ └───▲────┘ ◀──────────── done ─────────────────┘
//!                             └── outbox: what is observed
//! ```
//! Nothing here polls but for CPU credits that may soon be spent: a unit at rest costs a pidfd, a
//! connection to its VMM and some memory.

use super::cpu_credits::{self, CpuCredits};
use super::desired::{Changed, Slice};
use super::error::EffectError;
use super::machine::{Body, Machine};
use super::outbox::Outbox;
use super::owner::RunDir;
use super::plan::Step;
use super::policy::Surroundings;
use super::snapshots::SnapshotUnit;
use super::units::Unit;
use super::volumes::VolumeUnit;
use ocs_node_api as api;
use ocs_storaged_api::{SnapshotStatus, VolumeStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Launches at once: more would only share the same CPUs.
const LAUNCHES_AT_ONCE: usize = 4;
/// Other steps at once.
const JOBS_AT_ONCE: usize = 16;
/// Copies of snapshots that run at once: each may use the whole disk.
const COPIES_AT_ONCE: usize = 2;
/// First and longest wait before a failed step is tried again.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(10);

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
    Snapshot(
        api::VolumeSnapshot,
        bool,
        Result<Option<SnapshotStatus>, EffectError>,
    ),
    WakeSnapshot(String),
    Swept(Vec<VolumeStatus>),
    NotSwept(u32),
    Policy(Result<Vec<Carried>, EffectError>),
}

/// Id and generation of a NAT gateway or an instance-connect endpoint, and whether it shall be
/// there.
type Carried = (String, u64, bool);

/// The engine's state.
pub struct Engine {
    pub(super) machine: Arc<Machine>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) slice: Slice,
    pub(super) volumes: BTreeMap<String, VolumeUnit>,
    pub(super) snapshots: BTreeMap<String, SnapshotUnit>,
    pub(super) units: BTreeMap<String, Unit>,
    pub(super) host_stopping: bool,
    pub(super) launches: Arc<Semaphore>,
    pub(super) jobs: Arc<Semaphore>,
    /// Copies may take hours; nothing else waits behind them.
    pub(super) copies: Arc<Semaphore>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    policy_failures: u32,
    pub(super) cpu_credits: CpuCredits,
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
        let cpu_credits = CpuCredits::load(&machine);
        let mut engine = Self {
            machine,
            outbox,
            slice,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            units: BTreeMap::new(),
            host_stopping,
            launches: Arc::new(Semaphore::new(LAUNCHES_AT_ONCE)),
            jobs: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
            copies: Arc::new(Semaphore::new(COPIES_AT_ONCE)),
            events,
            inbox,
            policy_failures: 0,
            cpu_credits,
            swept: false,
        };
        engine.survey_all().await?;
        engine.destroy_strays().await?;
        engine.tell_network();
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

    /// VMMs whose run directory is gone: nobody can speak for them.
    async fn destroy_strays(&self) -> anyhow::Result<()> {
        let machine = Arc::clone(&self.machine);
        let mut strays = machine.cgroups.ids()?;
        strays.retain(|id| {
            let unit = self.units.get(id);
            unit.is_none_or(|unit| unit.body.seen.run.is_none())
        });
        let destroy = move || {
            for id in strays {
                tracing::warn!(instance = id, "a VMM without a run directory: destroyed");
                machine.destroy_stray(&id)?;
            }
            Ok::<_, EffectError>(())
        };
        Ok(tokio::task::spawn_blocking(destroy).await??)
    }

    /// Runs until `words` ends.
    pub async fn run(mut self, mut words: mpsc::Receiver<Word>) {
        let mut tick = tokio::time::interval(cpu_credits::TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = tick.tick() => self.tick_cpu_credits(),
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
            Word::Snapshot(snapshot) => {
                let mut changed = self.slice.replace(snapshot);
                changed.instances.extend(self.units.keys().cloned());
                changed
            }
            Word::Delta(delta) => self.slice.merge(delta),
        }
    }

    /// Policy at once; the rest once the slice lasts, lest a restarted node finds
    /// instances that it does not remember being told of.
    async fn act_on(&mut self, changed: Changed) {
        if changed.network {
            self.tell_network();
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
        for id in changed.snapshots {
            self.reconsider_snapshot(&id);
        }
        for id in changed.instances {
            let unit = self.units.entry(id.clone()).or_default();
            unit.not_before = None;
            match self.slice.instances.get(&id) {
                Some(desired) => {
                    let before = unit.desired.replace(desired.clone());
                    unit.retell |= before.is_some_and(|before| before != *desired);
                }
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
            Event::Snapshot(desired, absent, result) => {
                self.on_snapshot_done(&desired, absent, result);
            }
            Event::WakeSnapshot(id) => self.reconsider_snapshot(&id),
            Event::Policy(Ok(carried)) => {
                self.policy_failures = 0;
                self.report_carried(&carried);
            }
            Event::Policy(Err(error)) => {
                tracing::error!(%error, "the packet path does not take the policy");
                self.policy_failures += 1;
                self.settle_after(backoff(self.policy_failures));
            }
        }
    }

    /// Tells control of NAT gateways and instance-connect endpoints that the packet path has, or
    /// no longer has.
    fn report_carried(&mut self, carried: &[Carried]) {
        for (id, generation, present) in carried {
            if *present {
                self.outbox.carried(id, *generation, api::Phase::Up);
                continue;
            }
            self.outbox.carried(id, *generation, api::Phase::Gone);
            let same = |now: u64| now == *generation;
            if self
                .slice
                .nat_gateways
                .get(id)
                .is_some_and(|now| same(now.generation))
            {
                self.slice.nat_gateways.remove(id);
            }
            let endpoints = &mut self.slice.connect_endpoints;
            if endpoints.get(id).is_some_and(|now| same(now.generation)) {
                endpoints.remove(id);
            }
        }
    }

    /// What control is to hear of once the packet path has what was stated.
    fn carried(&self) -> Vec<Carried> {
        let present = i32::from(api::Desired::Present);
        let nats = self.slice.nat_gateways.values();
        let nats = nats.map(|row| (row.id.clone(), row.generation, row.desired == present));
        let endpoints = self.slice.connect_endpoints.values();
        nats.chain(endpoints.map(|row| (row.id.clone(), row.generation, row.desired == present)))
            .collect()
    }

    /// States what the packet path is to know besides the ENIs of instances.
    fn tell_network(&self) {
        let endpoints = match self.host_stopping {
            true => BTreeMap::new(),
            false => self.slice.connect_endpoints.clone(),
        };
        self.machine.endpoints.desire(endpoints);
        self.machine.board.set_surroundings(Surroundings {
            groups: self.slice.security_groups.clone(),
            networks: self.slice.networks.clone(),
            remotes: self.slice.remote_endpoints.clone(),
            nats: self.slice.nat_gateways.clone(),
        });
    }

    fn settle(&self) {
        self.settle_after(Duration::ZERO);
    }

    fn settle_after(&self, delay: Duration) {
        let (machine, events) = (Arc::clone(&self.machine), self.events.clone());
        let carried = self.carried();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let settled = tokio::task::spawn_blocking(move || machine.settle()).await;
            let settled = settled.unwrap_or_else(|e| Err(EffectError::Transient(e.to_string())));
            let _ = events.send(Event::Policy(settled.map(|()| carried)));
        });
    }
}

/// 100 ms, doubled with each failure, to 10 s.
pub(super) fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(1 << failures.clamp(1, 16).saturating_sub(1))
        .min(BACKOFF_LONGEST)
}
