//! What the control socket asks for of snapshots, and of volumes' sizes.
//!
//! A volume that is served is frozen, or grown, in a pause of its service: its VMM is
//! hung up on once nothing is in flight, and connected to again. The guest's requests
//! wait meanwhile; what it sees is a slow disk for some milliseconds. Whatever had
//! completed before is in the snapshot, nothing that began after.

use super::refusal::{Refused, check_name, failed, not_found, refused};
use super::table::Snapshot;
use super::{MAX_BYTES, MAX_SNAPSHOTS, Volumes};
use ocs_storaged_api::{ErrorCode, Reply, SnapshotStatus, VolumeKind, VolumeName};
use std::io;

impl Volumes {
    /// Runs `change` while nobody serves volume `name`, which the caller has claimed.
    fn pause<T>(&self, name: &str, change: impl FnOnce() -> io::Result<T>) -> Result<T, Refused> {
        let (record, volume) = self.find(name).ok_or_else(|| not_found(name))?;
        self.hang_up(name);
        let outcome = change();
        if let Some(attached) = &record.attached {
            self.connect(name, &volume, attached, None)
                .map_err(|error| failed(name, &error))?;
        }
        outcome.map_err(|error| failed(name, &error))
    }

    pub(super) fn put_snapshot(
        &self,
        snapshot: &VolumeName,
        volume: &VolumeName,
    ) -> Result<(), Refused> {
        let (snapshot, name) = (check_name(snapshot)?, check_name(volume)?);
        // Always the volume first: two that wait for each other cannot be.
        let _claim = self.claim(name);
        if let Some(known) = self.store.table().snapshots().get(snapshot) {
            return if known.volume == name {
                Ok(())
            } else {
                let why = format!("{snapshot} is a snapshot of {}", known.volume);
                Err(refused(ErrorCode::Conflict, why))
            };
        }
        let (record, _) = self.find(name).ok_or_else(|| not_found(name))?;
        if record.kind == VolumeKind::Ephemeral {
            let why = format!("{name} is an instance store, which has no snapshots");
            return Err(refused(ErrorCode::Invalid, why));
        }
        let _layers = self.store.layers();
        if self.store.table().volumes().contains_key(snapshot) {
            let why = format!("there is a volume of the name {snapshot}");
            return Err(refused(ErrorCode::Conflict, why));
        }
        if self.store.table().snapshots().len() >= MAX_SNAPSHOTS {
            let why = format!("there are {MAX_SNAPSHOTS} snapshots");
            return Err(refused(ErrorCode::Full, why));
        }
        self.store
            .presync(name)
            .map_err(|error| failed(name, &error))?;
        let frozen = self.pause(name, || {
            self.store.freeze(name, record.size_bytes, snapshot)
        })?;
        let row = Snapshot {
            volume: name.to_owned(),
            size_bytes: record.size_bytes,
            encrypted: record.encrypted,
            changed_bytes: frozen.changed_bytes,
            full_bytes: frozen.full_bytes,
        };
        self.store
            .table()
            .update(|contents| drop(contents.snapshots.insert(snapshot.to_owned(), row)))
            .map_err(|error| failed("the table", &error))
    }

    pub(super) fn delete_snapshot(&self, snapshot: &VolumeName) -> Result<(), Refused> {
        let name = check_name(snapshot)?;
        let _claim = self.claim(name);
        let _layers = self.store.layers();
        if !self.store.table().snapshots().contains_key(name) {
            return Ok(());
        }
        self.store
            .table()
            .update(|contents| drop(contents.snapshots.remove(name)))
            .map_err(|error| failed("the table", &error))?;
        self.let_go(name)
    }

    /// Lets go of the map of `name`; the caller holds the layers.
    pub(super) fn let_go(&self, name: &str) -> Result<(), Refused> {
        let known = |other: &str| self.store.table().volumes().contains_key(other);
        self.store
            .let_go(name, &known)
            .map_err(|error| failed(name, &error))
    }

    pub(super) fn list_snapshots(&self) -> Reply {
        let snapshots = self.store.table().snapshots().clone();
        let status = |(name, row): (String, Snapshot)| SnapshotStatus {
            damaged_bytes: self.findings.damaged_bytes(&name),
            snapshot: VolumeName(name),
            volume: VolumeName(row.volume),
            size_bytes: row.size_bytes,
            encrypted: row.encrypted,
            changed_bytes: row.changed_bytes,
            full_bytes: row.full_bytes,
        };
        Reply::Snapshots {
            snapshots: snapshots.into_iter().map(status).collect(),
        }
    }

    pub(super) fn resize(&self, volume: &VolumeName, size_bytes: u64) -> Result<(), Refused> {
        let name = check_name(volume)?;
        super::put::check_size(size_bytes)?;
        let _claim = self.claim(name);
        let (record, _) = self.find(name).ok_or_else(|| not_found(name))?;
        if record.size_bytes == size_bytes {
            return Ok(());
        }
        if record.kind == VolumeKind::Ephemeral || record.size_bytes > size_bytes {
            let why = format!(
                "size_bytes: {name} has {} and only grows, to {MAX_BYTES} at most",
                record.size_bytes
            );
            return Err(refused(ErrorCode::Invalid, why));
        }
        // The table before the VMM is connected to again, which asks for the size.
        self.pause(name, || {
            self.store.grow(name, size_bytes)?;
            self.store.table().update(|contents| {
                if let Some(record) = contents.volumes.get_mut(name) {
                    record.size_bytes = size_bytes;
                }
            })
        })
    }
}
