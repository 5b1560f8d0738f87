//! Persistent volumes: each is put or deleted at storaged, and reported.

use super::blocks::Definition;
use super::engine::{Engine, Event, backoff};
use super::error::{Doing, EffectError};
use super::machine::Machine;
use super::owner::RunDir;
use super::plan::Volumes;
use ocs_node_api as api;
use ocs_storaged_api::{Burst, Limits, Rate, VolumeKind, VolumeLimits, VolumeStatus};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// One volume as the engine holds it.
#[derive(Debug, Default)]
pub(super) struct VolumeUnit {
    state: State,
    busy: bool,
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unknown,
    /// It is, as this generation wants it; zero: as an earlier run of the node did.
    Present(u64),
    /// storaged will not make it; tried again at another generation.
    Refused(u64),
}

/// The persistent volumes of an instance.
pub(super) fn of(desired: &api::Instance) -> Vec<String> {
    desired
        .attachments
        .iter()
        .map(|attachment| attachment.volume_id.clone())
        .collect()
}

impl Engine {
    /// How the volumes of an instance stand.
    pub(super) fn volumes_of(&self, desired: &api::Instance) -> Volumes {
        let mut all = Volumes::Ready;
        if self.is_frozen_while_down(&desired.id) {
            all = Volumes::Pending;
        }
        for id in of(desired) {
            match self.volumes.get(&id).map(|unit| unit.state) {
                Some(State::Present(_)) => {}
                Some(State::Refused(_)) => return Volumes::Refused,
                Some(State::Unknown) | None => all = Volumes::Pending,
            }
        }
        all
    }

    /// Sweeps storaged, again and again until it answers; then [`Self::on_swept`].
    pub(super) fn sweep(&self, failures: u32) {
        let (machine, events) = (Arc::clone(&self.machine), self.events.clone());
        tokio::spawn(async move {
            if failures > 0 {
                tokio::time::sleep(backoff(failures)).await;
            }
            let swept = tokio::task::spawn_blocking(move || sweep(&machine)).await;
            let event = match swept {
                Ok(Ok(volumes)) => Event::Swept(volumes),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "storaged is away; no instance is launched");
                    Event::NotSwept(failures + 1)
                }
                Err(_) => Event::NotSwept(failures + 1),
            };
            let _ = events.send(event);
        });
    }

    /// storaged has these and nothing that is nobody's: launches may begin.
    pub(super) fn on_swept(&mut self, volumes: Vec<VolumeStatus>) {
        self.swept = true;
        for volume in volumes {
            if self.slice.volumes.contains_key(&volume.volume.0) {
                let unit = self.volumes.entry(volume.volume.0).or_default();
                unit.state = State::Present(0);
            }
        }
        for id in self.slice.volumes.keys().cloned().collect::<Vec<_>>() {
            self.reconsider_volume(&id);
        }
        for id in self.slice.snapshots.keys().cloned().collect::<Vec<_>>() {
            self.reconsider_snapshot(&id);
        }
        self.reconsider_all();
    }

    /// Puts or deletes volume `id` if that is next.
    pub(super) fn reconsider_volume(&mut self, id: &str) {
        let Some(desired) = self.slice.volumes.get(id).cloned() else {
            // Nobody's; its bytes are a tenant's, and stay until somebody says ABSENT.
            self.volumes.remove(id);
            return;
        };
        let absent = desired.desired() == api::Desired::Absent;
        let (in_use, waited_for) = (self.is_in_use(id), self.is_to_be_frozen(id));
        let unit = self.volumes.entry(id.to_owned()).or_default();
        if unit.busy || unit.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        if !absent {
            match unit.state {
                State::Present(generation) if generation == desired.generation => {
                    self.outbox
                        .volume(id, desired.generation, api::Phase::Up, String::new());
                    return;
                }
                State::Refused(generation) if generation == desired.generation => return,
                State::Present(_) | State::Refused(_) | State::Unknown => {}
            }
        } else if in_use || waited_for {
            return;
        }
        unit.busy = true;
        let (machine, events, permits, id) = (
            Arc::clone(&self.machine),
            self.events.clone(),
            Arc::clone(&self.jobs),
            id.to_owned(),
        );
        tokio::spawn(async move {
            let permit = permits.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let result = if absent {
                    machine.blocks.delete(&id)
                } else {
                    machine.blocks.put(&definition(&desired))
                };
                drop(permit);
                let _ = events.send(Event::Volume(id, desired.generation, absent, result));
            });
        });
    }

    /// Is a volume to begin as snapshot `id`?
    pub(super) fn is_to_be_begun_as(&self, id: &str) -> bool {
        let made = |volume: &str| {
            let state = self.volumes.get(volume).map(|unit| unit.state);
            matches!(state, Some(State::Present(_) | State::Refused(_)))
        };
        self.slice.volumes.values().any(|row| {
            row.snapshot == id && row.desired() == api::Desired::Present && !made(&row.id)
        })
    }

    /// What came of it.
    pub(super) fn on_volume_done(
        &mut self,
        id: &str,
        generation: u64,
        absent: bool,
        result: Result<(), EffectError>,
    ) {
        let begun_as = self.slice.volumes.get(id).map(|row| row.snapshot.clone());
        self.on_volume_seen(id, generation, absent, result);
        if let Some(snapshot) = begun_as {
            self.reconsider_snapshot(&snapshot);
        }
    }

    fn on_volume_seen(
        &mut self,
        id: &str,
        generation: u64,
        absent: bool,
        result: Result<(), EffectError>,
    ) {
        let Some(unit) = self.volumes.get_mut(id) else {
            return;
        };
        unit.busy = false;
        match result {
            Ok(()) if absent => {
                self.volumes.remove(id);
                self.slice.volumes.remove(id);
                self.outbox
                    .volume(id, generation, api::Phase::Gone, String::new());
                return;
            }
            Ok(()) => {
                unit.failures = 0;
                unit.state = State::Present(generation);
            }
            Err(EffectError::Permanent(why)) if !absent => {
                tracing::error!(volume = id, why, "cannot be made");
                // What is there and cannot be changed is there.
                unit.state = match unit.state {
                    State::Present(_) => State::Present(generation),
                    State::Unknown | State::Refused(_) => State::Refused(generation),
                };
                self.outbox.volume(id, generation, api::Phase::Failed, why);
            }
            Err(error) => {
                tracing::warn!(volume = id, %error, "will be tried again");
                unit.failures += 1;
                let at = Instant::now() + backoff(unit.failures);
                unit.not_before = Some(at);
                let (events, id) = (self.events.clone(), id.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep_until(at.into()).await;
                    let _ = events.send(Event::WakeVolume(id));
                });
                return;
            }
        }
        self.reconsider_volume(id);
        for instance in self.waiting_for(id) {
            self.reconsider(&instance);
        }
    }
}

/// Undoes what no run and no page of the ledger names: attachments to run
/// directories that are no more, instance stores of runs that are over. Answers
/// what is left. No launch and no erasure may go on meanwhile.
fn sweep(machine: &Machine) -> Result<Vec<VolumeStatus>, EffectError> {
    let mut listed = machine.blocks.list()?;
    let layout = &machine.config.layout;
    let stores: BTreeSet<String> = machine
        .ledger
        .ids()
        .iter()
        .filter_map(|id| machine.ledger.get(id))
        .flat_map(|record| record.stores)
        .collect();
    let held: BTreeSet<String> = RunDir::ids(layout)
        .doing("run directories")?
        .iter()
        .filter_map(|id| RunDir::of(layout, id).owner())
        .flat_map(|owner| owner.volumes)
        .collect();
    for volume in &listed {
        let name = &volume.volume.0;
        if volume.kind == VolumeKind::Ephemeral && !stores.contains(name) {
            tracing::warn!(volume = name, "an instance store of no instance: deleted");
            machine.blocks.delete(name)?;
        } else if volume.attached.is_some() && !stores.contains(name) && !held.contains(name) {
            tracing::warn!(volume = name, "attached to no instance: detached");
            machine.blocks.detach(name)?;
        }
    }
    listed.retain(|v| v.kind == VolumeKind::Persistent);
    Ok(listed)
}

fn definition(desired: &api::Volume) -> Definition {
    let named = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    Definition {
        name: desired.id.clone(),
        size_bytes: desired.size_bytes,
        kind: VolumeKind::Persistent,
        image: named(&desired.image),
        snapshot: named(&desired.snapshot),
        encrypted: desired.encrypted,
        limits: Some(limits(desired.limits.unwrap_or_default())),
    }
}

/// As storaged has them.
fn limits(wanted: api::VolumeLimits) -> VolumeLimits {
    let burst = (wanted.burst_iops > wanted.iops).then_some(Burst {
        per_s: wanted.burst_iops,
        credits: wanted.burst_credits,
    });
    let rate = |per_s: u64, burst| (per_s > 0).then_some(Rate { per_s, burst });
    VolumeLimits {
        limits: Limits {
            iops: rate(wanted.iops, burst),
            bytes: rate(wanted.bytes_per_s, None),
            io_bytes: Some(wanted.io_bytes).filter(|bytes| *bytes > 0),
        },
        ..VolumeLimits::default()
    }
}
