//! What the control socket asks for of snapshots, and of volumes' sizes.
//!
//! A volume that is served is frozen, or grown, in a pause of its service: its VMM is
//! hung up on once nothing is in flight, and connected to again. The guest's requests
//! wait meanwhile; what it sees is a slow disk for some milliseconds. Whatever had
//! completed before is in the snapshot, nothing that began after; of several volumes
//! that are frozen together that holds for all of them at once.

use super::freeze::Wanted;
use super::refusal::{Refused, check_name, failed, not_found, refused};
use super::table::Snapshot;
use super::{MAX_BYTES, MAX_SNAPSHOTS, Volumes};
use ocs_storaged_api::{ErrorCode, Reply, SnapshotOf, SnapshotStatus, VolumeKind, VolumeName};
use std::collections::BTreeSet;
use std::io;

/// Most snapshots of one instant: more than an instance has disks.
const MAX_TOGETHER: usize = 64;

impl Snapshot {
    /// Refuses a repeat that asks for something else.
    pub(super) fn is_another(&self, name: &str) -> Refused {
        let Self {
            volume, size_bytes, ..
        } = self;
        let how = match (&self.copy_of, self.encrypted) {
            (None, _) => "snapshot",
            (Some(_), false) => "copy",
            (Some(_), true) => "encrypted copy",
        };
        let why = format!("{name} is there: the {how} of {volume:?}, of {size_bytes} bytes");
        refused(ErrorCode::Conflict, why)
    }
}

impl Volumes {
    /// Runs `change` while nobody serves these volumes, which the caller has claimed. All
    /// of them rest at once: what one's guest began after another's last request had
    /// completed waits, so that no change sees an effect without its cause.
    fn pause<T>(
        &self,
        names: &[&str],
        change: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, Refused> {
        let mut served = Vec::new();
        for name in names {
            let (record, volume) = self.find(name).ok_or_else(|| not_found(name))?;
            served.extend(record.attached.map(|attached| (*name, volume, attached)));
        }
        for name in names {
            self.hang_up(name);
        }
        let outcome = change();
        let mut lost = None;
        for (name, volume, attached) in served {
            if let Err(error) = self.connect(name, &volume, &attached, None) {
                lost = Some(failed(name, &error));
            }
        }
        match (outcome, lost) {
            (Ok(value), None) => Ok(value),
            (Ok(_), Some(refused)) => Err(refused),
            (Err(error), _) => Err(failed(&names.join(", "), &error)),
        }
    }

    pub(super) fn put_snapshot(
        &self,
        snapshot: &VolumeName,
        volume: &VolumeName,
        with: &[SnapshotOf],
    ) -> Result<(), Refused> {
        let (snapshot, name) = (check_name(snapshot)?, check_name(volume)?);
        let mut wanted = vec![(name, snapshot)];
        for other in with {
            wanted.push((check_name(&other.volume)?, check_name(&other.snapshot)?));
        }
        wanted.sort_unstable();
        if wanted.len() > MAX_TOGETHER || wanted.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            let why = format!("with: at most {MAX_TOGETHER} snapshots, one a volume");
            return Err(refused(ErrorCode::Invalid, why));
        }
        let _claims = self.claim_all(
            wanted
                .iter()
                .flat_map(|(name, snapshot)| [*name, *snapshot]),
        );
        if let Some(known) = self.store.table().snapshots().get(snapshot) {
            return if known.volume == name && known.copy_of.is_none() {
                Ok(())
            } else {
                Err(known.is_another(snapshot))
            };
        }
        let mut freezing = Vec::new();
        for (volume, snapshot) in wanted {
            let (record, _) = self.find(volume).ok_or_else(|| not_found(volume))?;
            if record.kind == VolumeKind::Ephemeral {
                let why = format!("{volume} is an instance store, which has no snapshots");
                return Err(refused(ErrorCode::Invalid, why));
            }
            freezing.push(Wanted {
                volume,
                size_bytes: record.size_bytes,
                encrypted: record.encrypted,
                snapshot,
            });
        }
        let _layers = self.store.layers();
        self.check_new_snapshots(freezing.iter().map(|wanted| wanted.snapshot))?;
        let names: Vec<&str> = freezing.iter().map(|wanted| wanted.volume).collect();
        for name in &names {
            self.store
                .presync(name)
                .map_err(|error| failed(name, &error))?;
        }
        self.pause(&names, || self.store.freeze(&freezing))
    }

    /// Refuses snapshots that cannot come to be; the caller holds the layers.
    pub(super) fn check_new_snapshots<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(), Refused> {
        let table = self.store.table();
        let mut new = BTreeSet::new();
        for name in names {
            if table.volumes().contains_key(name) {
                let why = format!("there is a volume of the name {name}");
                return Err(refused(ErrorCode::Conflict, why));
            }
            if table.snapshots().contains_key(name) || !new.insert(name) {
                let why = format!("there is a snapshot of the name {name}");
                return Err(refused(ErrorCode::Conflict, why));
            }
        }
        if table.snapshots().len() + new.len() > MAX_SNAPSHOTS {
            let why = format!("there are {MAX_SNAPSHOTS} snapshots");
            return Err(refused(ErrorCode::Full, why));
        }
        Ok(())
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
        self.pause(&[name], || {
            self.store.grow(name, size_bytes)?;
            self.store.table().update(|contents| {
                if let Some(record) = contents.volumes.get_mut(name) {
                    record.size_bytes = size_bytes;
                }
            })
        })
    }
}
