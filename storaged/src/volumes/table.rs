//! The durable table: `volumes.json`, the truth about what exists and is attached.
//!
//! Replaced whole: temporary file, fsync, rename, fsync of the folder. A reader
//! finds the old table or the new one, never a mixture.

use super::refusal::is_name;
use crate::cow::store::sync_dir;
use ocs_storaged_api::erasure::Trace;
use ocs_storaged_api::{Limits, Origin, VolumeKind, VolumeLimits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const FILE: &str = "volumes.json";
/// Most volumes of one storaged.
pub const MAX_VOLUMES: usize = 4096;
/// Most erasures that are remembered.
pub const MAX_ERASED: usize = 4096;

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
    /// The snapshot it began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Its bytes lie under a key of its own, wrapped by the node's (persistent
    /// volumes; ephemeral ones are encrypted in any case).
    #[serde(default)]
    pub encrypted: bool,
    /// To whom it shall be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
    /// Which key it was laid down under ([`crate::crypt::Key::check`], hexadecimal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
    /// What that key can be told by once it is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_traces: Vec<Trace>,
    /// A guest may have written to it: from now on a lost key is lost data.
    #[serde(default)]
    pub served: bool,
    /// What it is held to.
    #[serde(default, skip_serializing_if = "VolumeLimits::is_default")]
    pub limits: VolumeLimits,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The volume that it is of, or the snapshot or image that it is a copy of; which may
    /// be gone.
    pub volume: String,
    /// What it is a copy of, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<Origin>,
    /// That volume's size.
    pub size_bytes: u64,
    /// Its bytes are encrypted, and those of volumes made from it.
    #[serde(default)]
    pub encrypted: bool,
    /// Bytes in grains that changed since the volume's snapshot before.
    pub changed_bytes: u64,
    /// Bytes in grains that are not zeros.
    pub full_bytes: u64,
}

/// An instance store that was: what its erasure is attested by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// What its key could be told by.
    pub traces: Vec<Trace>,
    /// The files that held its bytes.
    pub files: Vec<String>,
    /// What its bytes at rest looked like.
    #[serde(flatten)]
    pub looks: Looks,
}

/// What bytes at rest look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looks {
    /// Blocks with data.
    pub blocks: u64,
    /// Of those, looked at.
    pub sampled: u64,
    /// Of those, not explained by a uniform distribution.
    pub plain: u64,
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
    /// What it holds is no table of ours.
    #[error("{0} {1}")]
    Decode(PathBuf, DecodeError),
}

/// Why bytes are no table of ours.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not a table.
    #[error("is not a volume table: {0}")]
    Parse(#[from] serde_json::Error),
    /// Another version's table.
    #[error("has version {0}; this storaged reads version {VERSION}")]
    Version(u32),
    /// A name that becomes a file's, and may not.
    #[error("has the name {0:?}")]
    Name(String),
}

/// All that a table says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The volumes, by name.
    pub volumes: BTreeMap<String, Record>,
    /// The snapshots, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Instance stores that were, by name; the last [`MAX_ERASED`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub erased: BTreeMap<String, Erased>,
    /// The limits that volumes share, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Limits>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    #[serde(flatten)]
    contents: Contents,
}

impl Contents {
    /// From a table's bytes, whatever they are.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Stored { version, contents } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (volumes, snapshots) = (contents.volumes.keys(), contents.snapshots.keys());
        match volumes.chain(snapshots).find(|name| !is_name(name)) {
            Some(name) => Err(DecodeError::Name(name.clone())),
            None => Ok(contents),
        }
    }

    /// Remembers an erasure, and forgets the oldest where there are too many.
    pub fn remember(&mut self, name: &str, erased: Option<Erased>) {
        if let Some(erased) = erased {
            self.erased.insert(name.to_owned(), erased);
        }
        while self.erased.len() > MAX_ERASED {
            let oldest = self.erased.iter().min_by_key(|(_, erased)| erased.at_s);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.erased.remove(&oldest);
        }
    }

    /// What [`Self::decode`] reads.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let stored = Stored {
            version: VERSION,
            contents: self.clone(),
        };
        Ok(serde_json::to_vec(&stored)?)
    }
}

/// The table, in memory as it is on disk.
pub struct Table {
    dir: PathBuf,
    contents: Contents,
    /// Another storaged reads it now: nothing may change.
    pub closed: bool,
}

impl Table {
    /// Reads the table in `dir`; no file is an empty table.
    pub fn load(dir: &Path) -> Result<Self, TableError> {
        let path = dir.join(FILE);
        let contents = match std::fs::read(&path) {
            Ok(bytes) => {
                Contents::decode(&bytes).map_err(|error| TableError::Decode(path, error))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => return Err(TableError::Read(path, error)),
        };
        Ok(Self {
            dir: dir.to_owned(),
            contents,
            closed: false,
        })
    }

    /// All that it says.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The volumes, by name.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<String, Record> {
        &self.contents.volumes
    }

    /// The snapshots, by name.
    #[must_use]
    pub fn snapshots(&self) -> &BTreeMap<String, Snapshot> {
        &self.contents.snapshots
    }

    /// What is remembered of an instance store that was.
    #[must_use]
    pub fn erased(&self, name: &str) -> Option<Erased> {
        self.contents.erased.get(name).cloned()
    }

    /// The limits that volumes share, by name.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<String, Limits> {
        &self.contents.groups
    }

    /// Changes the table, durably; on error nothing changed.
    pub fn update(&mut self, change: impl FnOnce(&mut Contents)) -> io::Result<()> {
        if self.closed {
            return Err(io::Error::other("another storaged takes over"));
        }
        let mut contents = self.contents.clone();
        change(&mut contents);
        let temporary = self.dir.join(format!("{FILE}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(&contents.encode()?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.dir.join(FILE))?;
        sync_dir(&self.dir)?;
        self.contents = contents;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            size_bytes: 4096,
            kind: VolumeKind::Persistent,
            image: None,
            snapshot: None,
            encrypted: false,
            attached: Some(Attached {
                socket: "/run/x.sock".into(),
                read_only: true,
            }),
            key_check: None,
            key_traces: Vec::new(),
            served: false,
            limits: VolumeLimits::default(),
        }
    }

    #[test]
    fn a_change_is_there_after_a_restart_and_half_a_change_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(dir.path()).unwrap();
        table
            .update(|c| drop(c.volumes.insert("vol-1".into(), record())))
            .unwrap();
        std::fs::write(dir.path().join("volumes.json.tmp"), b"{\"vers").unwrap();
        let again = Table::load(dir.path()).unwrap();
        assert_eq!(again.volumes()["vol-1"], record());
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(table.update(|c| c.volumes.clear()).is_err());
        assert_eq!(table.volumes().len(), 1);
    }

    #[test]
    fn other_versions_and_garbage_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, b"{\"version\":2,\"volumes\":{}}").unwrap();
        assert!(matches!(
            Table::load(dir.path()),
            Err(TableError::Decode(_, DecodeError::Version(2)))
        ));
        std::fs::write(&path, b"garbage").unwrap();
        assert!(matches!(
            Table::load(dir.path()),
            Err(TableError::Decode(_, DecodeError::Parse(_)))
        ));
        let escape = b"{\"version\":1,\"volumes\":{},\"snapshots\":{\"../x\":{\"volume\":\"\",\"size_bytes\":1,\"changed_bytes\":0,\"full_bytes\":0}}}";
        std::fs::write(&path, escape).unwrap();
        assert!(matches!(
            Table::load(dir.path()),
            Err(TableError::Decode(_, DecodeError::Name(_)))
        ));
    }
}
