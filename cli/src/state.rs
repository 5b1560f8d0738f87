//! The state folder: what lies where, and whose it is (ARCHITECTURE.md, "State on disk").

use crate::part::Part;
use anyhow::{Context, Result, bail, ensure};
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// User ids that no distribution hands out (systemd, `UIDS-GIDS.md`: unused from
/// 1,879,048,192 to 2,147,483,647); each installation takes a range of its own.
const FIRST_UID: u32 = 1_900_000_000;
const UIDS_PER_INSTALLATION: u32 = 100_000;
const INSTALLATIONS: u64 = 2_000;

/// One installation's state folder.
#[derive(Clone, Debug)]
pub struct State {
    root: PathBuf,
}

/// Whom the parts run as.
#[derive(Clone, Copy, Debug)]
pub struct Uids {
    /// The first of the installation's user ids.
    pub base: u32,
}

impl Uids {
    /// The uid and gid of `part`; the node is root.
    pub fn of(self, part: Part) -> u32 {
        match part {
            Part::Control => self.base + 1,
            Part::Responder => self.base + 2,
            Part::Storaged => self.base + 3,
            Part::Node => 0,
        }
    }
}

impl State {
    /// The state folder at `root`, which need not exist.
    pub fn at(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: std::path::absolute(root)?,
        })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// The file that holds a part's pid.
    pub fn lock(&self, part: Part) -> PathBuf {
        self.root.join("run").join(format!("{}.lock", part.name()))
    }

    /// A part's log.
    pub fn log(&self, part: Part) -> PathBuf {
        self.root.join("log").join(format!("{}.log", part.name()))
    }

    /// The first user id: what was chosen when the state was made, for files
    /// belong to it; else `asked`, else one derived from the folder's path.
    pub fn uids(&self, asked: Option<u32>) -> Result<Uids> {
        let path = self.path("uid-base");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let base = text
                    .trim()
                    .parse()
                    .with_context(|| format!("{} holds no number", path.display()))?;
                if let Some(asked) = asked.filter(|asked| *asked != base) {
                    bail!("--uid-base {asked}: this state was made with {base}");
                }
                Ok(Uids { base })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let base = asked.unwrap_or_else(|| self.own_range());
                ensure!(
                    (1000..=u32::MAX - UIDS_PER_INSTALLATION).contains(&base),
                    "--uid-base {base}: must be 1000 or more, with {UIDS_PER_INSTALLATION} after it"
                );
                write_whole(&path, format!("{base}\n").as_bytes(), 0o644, 0)?;
                Ok(Uids { base })
            }
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn own_range(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.root.hash(&mut hasher);
        let number = u32::try_from(hasher.finish() % INSTALLATIONS).unwrap_or(0);
        FIRST_UID + number * UIDS_PER_INSTALLATION
    }

    /// Makes every folder that a part expects to find, with its owner and mode.
    pub fn make_folders(&self, uids: Uids) -> Result<()> {
        let (control, storaged) = (uids.of(Part::Control), uids.of(Part::Storaged));
        let responder = uids.of(Part::Responder);
        for (folder, owner, group, mode) in [
            ("", 0, 0, 0o755),
            ("control", control, control, 0o700),
            ("node", 0, 0, 0o700),
            ("images", 0, 0, 0o755),
            ("storaged", storaged, storaged, 0o700),
            ("pki", 0, 0, 0o755),
            ("pki/identity", 0, 0, 0o755),
            ("log", 0, 0, 0o700),
            ("run", 0, 0, 0o755),
            ("run/control", control, control, 0o700),
            ("run/storaged", storaged, storaged, 0o700),
            ("run/responder", 0, responder, 0o750),
            ("run/instances", 0, 0, 0o711),
            ("run/console", 0, 0, 0o700),
        ] {
            let path = self.path(folder);
            let make = || {
                fs::create_dir_all(&path)?;
                chown(&path, Some(owner), Some(group))?;
                fs::set_permissions(&path, Permissions::from_mode(mode))
            };
            make().with_context(|| format!("making {}", path.display()))?;
        }
        Ok(())
    }

    /// Refuses a place that the parts, which are not root, could not reach.
    pub fn check_reachable(&self) -> Result<()> {
        for folder in self.root.ancestors().skip(1) {
            let Ok(metadata) = fs::metadata(folder) else {
                continue;
            };
            ensure!(
                metadata.permissions().mode() & 0o001 != 0,
                "--state {}: unprivileged parts cannot pass {}; choose a folder whose parents all may be entered",
                self.root.display(),
                folder.display()
            );
        }
        Ok(())
    }

    /// Removes `run/`; refuses while something is mounted below it.
    pub fn remove_run(&self) -> Result<()> {
        let run = self.path("run");
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let below = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .find(|mount| Path::new(mount).starts_with(&run));
        if let Some(mount) = below {
            bail!("{mount} is still mounted; {} is kept", run.display());
        }
        match fs::remove_dir_all(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| run.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Replaces `path` whole, for `owner` alone to write.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32, owner: u32) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let write = || {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file: File = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&part)?;
        if owner != 0 {
            std::os::unix::fs::fchown(&file, Some(owner), Some(owner))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn folders_belong_to_their_parts_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(&folder.path().join("state")).unwrap();
        fs::create_dir(state.root()).unwrap();
        let uids = state.uids(Some(70_000)).unwrap();
        for _ in 0..2 {
            state.make_folders(uids).unwrap();
        }
        for (below, uid, gid, mode) in [
            ("control", 70_001, 70_001, 0o700),
            ("storaged", 70_003, 70_003, 0o700),
            ("run/responder", 0, 70_002, 0o750),
            ("run/instances", 0, 0, 0o711),
        ] {
            let is = fs::metadata(state.path(below)).unwrap();
            assert_eq!(
                (is.uid(), is.gid(), is.mode() & 0o777),
                (uid, gid, mode),
                "{below}"
            );
        }
    }

    #[test]
    fn a_state_keeps_the_ids_it_was_made_with() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(folder.path()).unwrap();
        let chosen = state.uids(None).unwrap().base;
        assert!((FIRST_UID..2_147_483_647 - UIDS_PER_INSTALLATION).contains(&chosen));
        assert_eq!(state.uids(None).unwrap().base, chosen);
        let error = state.uids(Some(70_000)).unwrap_err().to_string();
        assert!(error.contains(&chosen.to_string()), "{error}");
    }

    #[test]
    fn a_place_behind_a_private_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("private");
        fs::create_dir(&private).unwrap();
        fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
        let state = State::at(&private.join("state")).unwrap();
        let error = state.check_reachable().unwrap_err().to_string();
        assert!(error.contains("private"), "{error}");
    }
}
