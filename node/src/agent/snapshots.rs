//! Snapshots: each is taken, copied or deleted at storaged, and reported.
//!
//! One that is to be taken while an instance is down waits for the end of its run, and
//! the next run waits for it. One that something is still to begin as, or that is still
//! to be taken along with another, is deleted after that.

use super::blocks::{Blocks, Copied};
use super::engine::{Engine, Event, backoff};
use super::error::EffectError;
use ocs_node_api as api;
use ocs_storaged_api::{Origin, SnapshotOf, SnapshotStatus, VolumeName};
use std::sync::Arc;
use std::time::Instant;

/// One snapshot as the engine holds it.
#[derive(Debug, Default)]
pub(super) struct SnapshotUnit {
    settled: bool,
    busy: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl Engine {
    /// Is volume `id` still to be frozen?
    pub(super) fn is_to_be_frozen(&self, id: &str) -> bool {
        self.pending_snapshots().any(|row| row.volume_id == id)
    }

    /// Is a volume to be frozen before instance `id` may run again?
    pub(super) fn is_frozen_while_down(&self, id: &str) -> bool {
        self.pending_snapshots().any(|row| row.while_down == id)
    }

    /// Is something else to come first, before snapshot `id` may go?
    fn is_waited_for(&self, id: &str) -> bool {
        self.is_to_be_begun_as(id)
            || self.pending_snapshots().any(|row| {
                row.copy.as_ref().is_some_and(|copy| copy.snapshot == id)
                    || row.with.iter().any(|other| other.id == id)
            })
    }

    fn pending_snapshots(&self) -> impl Iterator<Item = &api::VolumeSnapshot> {
        let settled = |id: &str| self.snapshots.get(id).is_some_and(|unit| unit.settled);
        self.slice
            .snapshots
            .values()
            .filter(move |row| row.desired() == api::Desired::Present && !settled(&row.id))
    }

    /// Those that wait for the end of a run of instance `id`.
    pub(super) fn reconsider_snapshots_of(&mut self, id: &str) {
        let waiting: Vec<String> = self
            .pending_snapshots()
            .filter(|row| row.while_down == id)
            .map(|row| row.id.clone())
            .collect();
        for snapshot in waiting {
            self.reconsider_snapshot(&snapshot);
        }
    }

    /// Takes or deletes snapshot `id` if that is next.
    pub(super) fn reconsider_snapshot(&mut self, id: &str) {
        let Some(desired) = self.slice.snapshots.get(id).cloned() else {
            // Nobody's; its bytes are a tenant's, and stay until somebody says ABSENT.
            self.snapshots.remove(id);
            return;
        };
        let absent = desired.desired() == api::Desired::Absent;
        let runs = (self.units.get(&desired.while_down))
            .and_then(|unit| unit.body.seen.run.as_ref())
            .is_some_and(|run| run.reboots < desired.while_down_reboots);
        let waited_for = absent && self.is_waited_for(id);
        let unit = self.snapshots.entry(id.to_owned()).or_default();
        let waits = waited_for || unit.not_before.is_some_and(|at| at > Instant::now());
        if unit.busy || waits || (!absent && (unit.settled || runs)) {
            return;
        }
        let copy = match (&desired.copy, absent) {
            // One that has to wait is looked at when another ends: it may be unwanted by then.
            (Some(_), false) => match Arc::clone(&self.copies).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return,
            },
            _ => None,
        };
        unit.busy = true;
        let (machine, events, permits, id) = (
            Arc::clone(&self.machine),
            self.events.clone(),
            Arc::clone(&self.jobs),
            id.to_owned(),
        );
        tokio::spawn(async move {
            let permit = match copy {
                Some(permit) => Some(permit),
                None => permits.acquire_owned().await.ok(),
            };
            tokio::task::spawn_blocking(move || {
                let blocks = machine.blocks.as_ref();
                let result = if absent {
                    blocks.delete_snapshot(&id).map(|()| None)
                } else {
                    take(blocks, &desired).map(Some)
                };
                drop(permit);
                let _ = events.send(Event::Snapshot(desired, absent, result));
            });
        });
    }

    /// What came of it.
    pub(super) fn on_snapshot_done(
        &mut self,
        desired: &api::VolumeSnapshot,
        absent: bool,
        result: Result<Option<SnapshotStatus>, EffectError>,
    ) {
        self.settle_snapshot(desired, absent, result);
        if desired.copy.is_some() && !absent {
            self.reconsider_copies();
        }
    }

    /// Begins copies that waited for others to end.
    fn reconsider_copies(&mut self) {
        let waiting = self.pending_snapshots().filter(|row| row.copy.is_some());
        let waiting: Vec<String> = waiting.map(|row| row.id.clone()).collect();
        for id in waiting {
            if self.copies.available_permits() == 0 {
                return;
            }
            self.reconsider_snapshot(&id);
        }
    }

    fn settle_snapshot(
        &mut self,
        desired: &api::VolumeSnapshot,
        absent: bool,
        result: Result<Option<SnapshotStatus>, EffectError>,
    ) {
        let (id, generation) = (desired.id.as_str(), desired.generation);
        let Some(unit) = self.snapshots.get_mut(id) else {
            return;
        };
        unit.busy = false;
        let observed = match result {
            Ok(None) => {
                self.snapshots.remove(id);
                self.slice.snapshots.remove(id);
                observed(id, api::Phase::Gone)
            }
            Ok(Some(status)) => {
                unit.settled = true;
                api::ObservedSnapshot {
                    changed_bytes: status.changed_bytes,
                    full_bytes: status.full_bytes,
                    ..observed(id, api::Phase::Up)
                }
            }
            Err(EffectError::Permanent(message)) if !absent => {
                tracing::error!(snapshot = id, message, "cannot be taken");
                unit.settled = true;
                api::ObservedSnapshot {
                    message,
                    ..observed(id, api::Phase::Failed)
                }
            }
            Err(error) => {
                tracing::warn!(snapshot = id, %error, "will be tried again");
                unit.failures += 1;
                let at = Instant::now() + backoff(unit.failures);
                unit.not_before = Some(at);
                let (events, id) = (self.events.clone(), id.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep_until(at.into()).await;
                    let _ = events.send(Event::WakeSnapshot(id));
                });
                return;
            }
        };
        self.outbox.snapshot(generation, observed);
        if !absent {
            // It may be deleted already, and so may its volume; its instance may run.
            self.reconsider_snapshot(id);
            self.reconsider_volume(&desired.volume_id);
            self.reconsider(&desired.while_down);
        }
        // Those that waited for it.
        for other in &desired.with {
            self.reconsider_snapshot(&other.id);
        }
        if let Some(copy) = &desired.copy {
            self.reconsider_snapshot(&copy.snapshot);
        }
    }
}

fn observed(id: &str, phase: api::Phase) -> api::ObservedSnapshot {
    api::ObservedSnapshot {
        id: id.to_owned(),
        phase: phase.into(),
        ..api::ObservedSnapshot::default()
    }
}

/// Takes or copies it, unless it is there; how large it is.
fn take(blocks: &dyn Blocks, desired: &api::VolumeSnapshot) -> Result<SnapshotStatus, EffectError> {
    match &desired.copy {
        None => {
            let with = desired.with.iter().filter(|other| other.id != desired.id);
            let with = with.map(|other| SnapshotOf {
                snapshot: VolumeName(other.id.clone()),
                volume: VolumeName(other.volume_id.clone()),
            });
            blocks.snapshot(&desired.id, &desired.volume_id, with.collect())?;
        }
        Some(copy) => {
            let of = match (copy.snapshot.as_str(), copy.image.as_str()) {
                ("", "") => Origin::Zeros,
                ("", image) => Origin::Image(image.to_owned()),
                (snapshot, _) => Origin::Snapshot(VolumeName(snapshot.to_owned())),
            };
            let copied = Copied {
                of,
                size_bytes: copy.size_bytes,
                encrypted: copy.encrypted,
            };
            blocks.copy(&desired.id, &copied)?;
        }
    }
    blocks
        .snapshots()?
        .into_iter()
        .find(|status| status.snapshot.0 == desired.id)
        .ok_or_else(|| EffectError::Transient(format!("{} is gone again", desired.id)))
}
