//! New volumes: what is refused, and in which order they come to be.

use super::refusal::{Refused, check_name, failed, key_lost, refused};
use super::table::{MAX_VOLUMES, Record};
use super::volume::hex;
use super::{BLOCK_BYTES, MAX_BYTES, Volumes};
use crate::crypt::Key;
use crate::qos;
use ocs_storaged_api::{ErrorCode, VolumeKind, VolumeLimits, VolumeName};
use std::io;

impl Volumes {
    pub(super) fn put(&self, name: &VolumeName, mut wanted: Record) -> Result<(), Refused> {
        let name = check_name(name)?;
        check_size(wanted.size_bytes)?;
        let _claim = self.claim(name);
        if let Some((record, volume)) = self.find(name) {
            // What it may begin as counts only as long as it was not grown.
            let same = |r: &Record| (r.kind, r.image.clone(), r.snapshot.clone(), r.encrypted);
            if record.size_bytes != wanted.size_bytes || same(&record) != same(&wanted) {
                return Err(refused(
                    ErrorCode::Conflict,
                    format!("{name} exists with another size, kind, key or first content"),
                ));
            }
            return if volume.is_key_lost(&record, record.attached.is_some()) {
                Err(key_lost(name))
            } else {
                Ok(())
            };
        }
        self.check_new(name, &wanted)?;
        let key = match wanted.kind {
            VolumeKind::Persistent => None,
            VolumeKind::Ephemeral => {
                Some(Key::generate().map_err(|e| refused(ErrorCode::Io, e.to_string()))?)
            }
        };
        self.store
            .lay(name, &wanted)
            .map_err(|error| failed(name, &error))?;
        wanted.key_check = key.as_ref().map(|key| hex(&key.check()));
        wanted.key_traces = key.as_ref().map(Key::traces).unwrap_or_default();
        self.store
            .table()
            .update(|contents| drop(contents.volumes.insert(name.to_owned(), wanted)))
            .map_err(|error| failed("the table", &error))?;
        self.enliven(name, key, &VolumeLimits::default(), qos::now_ns());
        Ok(())
    }

    /// Refuses a new volume that cannot be.
    fn check_new(&self, name: &str, wanted: &Record) -> Result<(), Refused> {
        let conflict = |why| Err(refused(ErrorCode::Conflict, why));
        let invalid = |why: &str| Err(refused(ErrorCode::Invalid, why));
        let ephemeral = wanted.kind == VolumeKind::Ephemeral;
        if ephemeral && (wanted.encrypted || wanted.snapshot.is_some()) {
            return invalid("an instance store has a key of its own and begins as no snapshot");
        }
        if let Some(image) = &wanted.image {
            if wanted.snapshot.is_some() {
                return invalid("image, snapshot: a volume begins as one of them");
            }
            self.check_image(image, wanted.size_bytes)?;
        }
        let table = self.store.table();
        if table.volumes().len() >= MAX_VOLUMES {
            let why = format!("there are {MAX_VOLUMES} volumes");
            return Err(refused(ErrorCode::Full, why));
        }
        if table.snapshots().contains_key(name) {
            return conflict(format!("there is a snapshot of the name {name}"));
        }
        let Some(from) = &wanted.snapshot else {
            return Ok(());
        };
        let Some(snapshot) = table.snapshots().get(from) else {
            let why = format!("there is no snapshot {from}");
            return Err(refused(ErrorCode::NotFound, why));
        };
        if snapshot.size_bytes > wanted.size_bytes {
            let why = format!(
                "size_bytes: snapshot {from} has {}, the volume {}",
                snapshot.size_bytes, wanted.size_bytes
            );
            return Err(refused(ErrorCode::Invalid, why));
        }
        if snapshot.encrypted && !wanted.encrypted {
            return invalid("encrypted: a volume of an encrypted snapshot is encrypted");
        }
        Ok(())
    }

    pub(super) fn check_image(&self, name: &str, size_bytes: u64) -> Result<(), Refused> {
        let unusable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                refused(ErrorCode::NotFound, format!("there is no image {name:?}"))
            }
            _ => failed(name, &error),
        };
        let file = self.store.image(name).map_err(unusable)?;
        let len = file.metadata().map_err(unusable)?.len();
        if len > size_bytes {
            return Err(refused(
                ErrorCode::Invalid,
                format!("image {name:?} has {len} bytes, the volume {size_bytes}"),
            ));
        }
        Ok(())
    }
}

/// Refuses sizes that no volume has.
pub(super) fn check_size(size_bytes: u64) -> Result<(), Refused> {
    if size_bytes == 0 || size_bytes > MAX_BYTES || !size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(refused(
            ErrorCode::Invalid,
            format!("size_bytes: {size_bytes} is not a multiple of 4096 in 4096..={MAX_BYTES}"),
        ));
    }
    Ok(())
}
