//! The durable table: `volumes.json`, the truth about what exists and is attached.
//!
//! Replaced whole: temporary file, fsync, rename, fsync of the folder. A reader
//! finds the old table or the new one, never a mixture.

use ocs_storaged_api::{Limits, VolumeKind, VolumeLimits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const FILE: &str = "volumes.json";
/// Most volumes of one storaged.
pub const MAX_VOLUMES: usize = 4096;

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its size.
    pub size_bytes: u64,
    /// How it keeps its bytes.
    pub kind: VolumeKind,
    /// The image it began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// To whom it shall be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
    /// Which key it was laid down under ([`crate::crypt::Key::check`], hexadecimal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
    /// A guest may have written to it: from now on a lost key is lost data.
    #[serde(default)]
    pub served: bool,
    /// What it is held to.
    #[serde(default, skip_serializing_if = "VolumeLimits::is_default")]
    pub limits: VolumeLimits,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Where the VMM listens.
    pub socket: PathBuf,
    /// Served with `VIRTIO_BLK_F_RO`.
    pub read_only: bool,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file system refused.
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, io::Error),
    /// Not a table.
    #[error("{0} is not a volume table: {1}")]
    Parse(PathBuf, serde_json::Error),
    /// Another version's table.
    #[error("{0} has version {1}; this storaged reads version {VERSION}")]
    Version(PathBuf, u32),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    volumes: BTreeMap<String, Record>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, Limits>,
}

/// The table, in memory as it is on disk.
pub struct Table {
    dir: PathBuf,
    volumes: BTreeMap<String, Record>,
    groups: BTreeMap<String, Limits>,
}

impl Table {
    /// Reads the table in `dir`; no file is an empty table.
    pub fn load(dir: &Path) -> Result<Self, TableError> {
        let path = dir.join(FILE);
        let (volumes, groups) = match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes)
                    .map_err(|error| TableError::Parse(path.clone(), error))?;
                if stored.version != VERSION {
                    return Err(TableError::Version(path, stored.version));
                }
                (stored.volumes, stored.groups)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) => return Err(TableError::Read(path, error)),
        };
        Ok(Self {
            dir: dir.to_owned(),
            volumes,
            groups,
        })
    }

    /// The volumes, by name.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<String, Record> {
        &self.volumes
    }

    /// The limits that volumes share, by name.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<String, Limits> {
        &self.groups
    }

    /// Changes the volumes, durably; on error nothing changed.
    pub fn update(&mut self, change: impl FnOnce(&mut BTreeMap<String, Record>)) -> io::Result<()> {
        let mut volumes = self.volumes.clone();
        change(&mut volumes);
        self.replace(volumes, self.groups.clone())
    }

    /// Changes the groups, durably; on error nothing changed.
    pub fn update_groups(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<String, Limits>),
    ) -> io::Result<()> {
        let mut groups = self.groups.clone();
        change(&mut groups);
        self.replace(self.volumes.clone(), groups)
    }

    fn replace(
        &mut self,
        volumes: BTreeMap<String, Record>,
        groups: BTreeMap<String, Limits>,
    ) -> io::Result<()> {
        let stored = Stored {
            version: VERSION,
            volumes,
            groups,
        };
        let temporary = self.dir.join(format!("{FILE}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.dir.join(FILE))?;
        sync_dir(&self.dir)?;
        (self.volumes, self.groups) = (stored.volumes, stored.groups);
        Ok(())
    }
}

/// Makes renames and unlinks in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            size_bytes: 4096,
            kind: VolumeKind::Persistent,
            image: None,
            attached: Some(Attached {
                socket: "/run/x.sock".into(),
                read_only: true,
            }),
            key_check: None,
            served: false,
            limits: VolumeLimits::default(),
        }
    }

    #[test]
    fn a_change_is_there_after_a_restart_and_half_a_change_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(dir.path()).unwrap();
        table
            .update(|v| drop(v.insert("vol-1".into(), record())))
            .unwrap();
        std::fs::write(dir.path().join("volumes.json.tmp"), b"{\"vers").unwrap();
        let again = Table::load(dir.path()).unwrap();
        assert_eq!(again.volumes()["vol-1"], record());
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(table.update(BTreeMap::clear).is_err());
        assert_eq!(table.volumes().len(), 1);
    }

    #[test]
    fn other_versions_and_garbage_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, b"{\"version\":2,\"volumes\":{}}").unwrap();
        assert!(matches!(
            Table::load(dir.path()),
            Err(TableError::Version(_, 2))
        ));
        std::fs::write(&path, b"garbage").unwrap();
        assert!(matches!(
            Table::load(dir.path()),
            Err(TableError::Parse(..))
        ));
    }
}
