//! The run directory: everything of one run of one instance, and its `owner.json`.
//!
//! ```text
//! run/instances/ID/   owner.json   who runs here: written before the process is
//!                                  started (intent), completed after
//!                     exit.json    the VMM's last words; its lock is its life
//!                     spec.json    control.sock   blk-N.sock   vmm.log
//! ```
//! The directory is made first and removed last: while it exists, something of
//! the run may exist, and [`Owner`] names all of it.

use super::durable::{self, Lasts};
use super::layout::{Layout, is_plain_id};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `owner.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The desired generation that the run was made from.
    pub generation: u64,
    /// `Instance.starts` of it.
    pub starts: u64,
    /// `Instance.reboots` of it.
    pub reboots: u64,
    /// In the VMM's environment; unique to this run.
    pub nonce: String,
    /// The boot of the host in which it was made.
    pub boot_id: String,
    /// Volumes at storaged that may be attached to it.
    pub volumes: BTreeSet<String>,
    /// Of those, the ones that came while it ran, and the number of each one's socket.
    #[serde(default)]
    pub plugged: BTreeMap<String, usize>,
    /// Interface index of each ENI's tap, once made.
    pub taps: BTreeMap<String, u32>,
    /// The process, once started.
    pub process: Option<ProcessId>,
    /// When a vCPU was first seen to run, Unix seconds.
    pub up_since_s: Option<i64>,
}

/// A process beyond doubt: pid numbers are used again, start times are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// `/proc/PID/stat` field 22, in clock ticks since boot.
    pub start_ticks: u64,
}

/// An instance's run directory, there or not.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// That of instance `id`.
    #[must_use]
    pub fn of(layout: &Layout, id: &str) -> Self {
        Self {
            path: layout.instances().join(id),
        }
    }

    /// The instances that have one.
    pub fn ids(layout: &Layout) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(layout.instances()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            if let Some(id) = entry?.file_name().to_str().filter(|n| is_plain_id(n)) {
                ids.push(id.to_owned());
            }
        }
        Ok(ids)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes it, traversable by all (storaged connects to `blk-N.sock`), listable by none.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.path)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o711))
    }

    /// The VMM's exit record.
    #[must_use]
    pub fn exit_record(&self) -> PathBuf {
        self.path.join("exit.json")
    }

    /// The VMM's control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The listening socket of block device `index`.
    #[must_use]
    pub fn block_socket(&self, index: usize) -> PathBuf {
        self.path.join(format!("blk-{index}.sock"))
    }

    /// What the VMM was told, for people.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.path.join("spec.json")
    }

    /// The VMM's standard error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// Who runs here. A damaged or missing file is `None`: it was being made,
    /// so that no process can have been started.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        durable::read(&self.owner_file()).ok().flatten()
    }

    /// States who runs here.
    pub fn set_owner(&self, owner: &Owner) -> io::Result<()> {
        durable::replace(&self.owner_file(), owner, Lasts::ThisBoot)
    }

    /// Removes it with all it holds, `owner.json` last.
    pub fn remove(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let owner = self.owner_file();
        for entry in entries {
            let path = entry?.path();
            if path != owner {
                durable::remove(&path, Lasts::ThisBoot)?;
            }
        }
        durable::remove(&owner, Lasts::ThisBoot)?;
        fs::remove_dir(&self.path)
    }

    fn owner_file(&self) -> PathBuf {
        self.path.join("owner.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_comes_and_goes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let run = RunDir::of(&layout, "i-1");
        assert_eq!(RunDir::ids(&layout).unwrap(), Vec::<String>::new());
        assert_eq!(run.owner(), None);
        run.create().unwrap();
        let owner = Owner {
            generation: 1,
            starts: 1,
            reboots: 0,
            nonce: "n".into(),
            boot_id: "b".into(),
            volumes: BTreeSet::new(),
            plugged: BTreeMap::new(),
            taps: BTreeMap::new(),
            process: None,
            up_since_s: None,
        };
        run.set_owner(&owner).unwrap();
        fs::write(run.log(), "x").unwrap();
        assert_eq!(run.owner(), Some(owner));
        assert_eq!(RunDir::ids(&layout).unwrap(), ["i-1"]);
        run.remove().unwrap();
        run.remove().unwrap();
        assert!(!run.exists());
    }
}
