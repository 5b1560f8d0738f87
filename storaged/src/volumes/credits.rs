//! Burst credits over a restart: `credits.json`, replaced whole.
//!
//! ```text
//!  every half minute, if it would say something new    what is left, less all that can be
//!  before a volume may spend what no file knows of     spent in a minute
//!  an orderly end, a hand-over                         what is left: `exact`
//! ```
//! So what is read after a crash is never more than there was; at most a minute's worth at
//! the highest rate is lost, and what was earned since. Credits earned while storaged was
//! away count after an orderly end, on the same boot of the host.

use super::Volumes;
use super::table::Contents;
use crate::cow::log::BootId;
use crate::cow::store::sync_dir;
use crate::qos;
use ocs_storaged_api::Credits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often the file is looked after.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// What could be spent in so long is left out of a file that a crash may leave: twice
/// [`INTERVAL`], since it may be late.
const RESERVE_S: u64 = 60;
const VERSION: u32 = 1;
const FILE: &str = "credits.json";

/// The credits of all that have any, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Nothing was spent since.
    exact: bool,
    volumes: BTreeMap<String, Credits>,
    groups: BTreeMap<String, Credits>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    boot: BootId,
    /// On the monotonic clock of that boot.
    at_ns: u64,
    #[serde(flatten)]
    kept: Kept,
}

/// What a file said.
#[derive(Debug, Default)]
pub struct Past {
    /// There was one, and it cannot be understood: nobody has credits.
    garbled: bool,
    /// Since when credits are earned.
    since_ns: u64,
    kept: Kept,
}

impl Past {
    /// Of a volume: since when it earns, and what it had, if that is known.
    pub fn volume(&self, name: &str) -> (u64, Option<Credits>) {
        (self.since_ns, self.of(&self.kept.volumes, name))
    }

    /// Of a group.
    pub fn group(&self, name: &str) -> (u64, Option<Credits>) {
        (self.since_ns, self.of(&self.kept.groups, name))
    }

    fn of(&self, all: &BTreeMap<String, Credits>, name: &str) -> Option<Credits> {
        all.get(name).copied().or(self.garbled.then_some(Credits {
            iops: Some(0),
            bytes: Some(0),
        }))
    }
}

/// The file, and what it was last made to say.
pub struct CreditFile {
    dir: PathBuf,
    boot: BootId,
    last: Mutex<Kept>,
}

impl CreditFile {
    /// The one in `dir`.
    pub fn new(dir: &Path, boot: BootId) -> Self {
        Self {
            dir: dir.to_owned(),
            boot,
            last: Mutex::default(),
        }
    }

    /// What it says; no file says nothing.
    pub fn read(&self) -> Past {
        let now_ns = qos::now_ns();
        let path = self.dir.join(FILE);
        let stored = std::fs::read(&path).map(|bytes| serde_json::from_slice::<Stored>(&bytes));
        let stored = match stored {
            Ok(Ok(stored)) if stored.version == VERSION => stored,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Past {
                    since_ns: now_ns,
                    ..Past::default()
                };
            }
            _ => {
                tracing::error!(path = %path.display(), "burst credits are lost");
                return Past {
                    garbled: true,
                    since_ns: now_ns,
                    ..Past::default()
                };
            }
        };
        let earned = stored.kept.exact && stored.boot == self.boot;
        Past {
            garbled: false,
            since_ns: if earned {
                stored.at_ns.min(now_ns)
            } else {
                now_ns
            },
            kept: stored.kept,
        }
    }

    /// Makes it say `kept`, durably, if it does not.
    fn write(&self, kept: Kept) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == kept {
            return Ok(());
        }
        let stored = Stored {
            version: VERSION,
            boot: self.boot,
            at_ns: qos::now_ns(),
            kept,
        };
        let temporary = self.dir.join(format!("{FILE}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.dir.join(FILE))?;
        sync_dir(&self.dir)?;
        *last = stored.kept;
        Ok(())
    }
}

impl Volumes {
    /// Looks after the file; asked every [`INTERVAL`].
    pub fn keep_credits(&self) {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.save_credits(false);
    }

    /// Writes the file: what is left if `exact`, that is, if nobody can spend any more.
    pub(super) fn save_credits(&self, exact: bool) {
        let contents = self.store.table().contents().clone();
        let kept = self.credits(&contents, exact);
        if let Err(error) = self.credits.write(kept) {
            tracing::error!(%error, "burst credits are not kept");
        }
    }

    fn credits(&self, contents: &Contents, exact: bool) -> Kept {
        let now_ns = qos::now_ns();
        let reserve_s = if exact { 0 } else { RESERVE_S };
        let live = self.live();
        let volumes = live.volumes.iter().filter_map(|(name, volume)| {
            let record = contents.volumes.get(name)?;
            // One that is attached to nobody spends nothing.
            let reserve_s = record.attached.as_ref().map_or(0, |_| reserve_s);
            let credits = volume.qos.credits(reserve_s, now_ns);
            (credits != Credits::default()).then(|| (name.clone(), credits))
        });
        let groups = live.groups.iter().filter_map(|(name, group)| {
            let credits = group.credits(reserve_s, now_ns);
            (credits != Credits::default()).then(|| (name.clone(), credits))
        });
        Kept {
            exact,
            volumes: volumes.collect(),
            groups: groups.collect(),
        }
    }

    /// Gives back what the file of a storaged that still served left out of it, now that it
    /// has said what is left; `before` is what everyone began with.
    pub(super) fn settle_credits(&self, before: &Past) {
        let after = self.credits.read();
        if !after.kept.exact {
            return;
        }
        let now_ns = qos::now_ns();
        let live = self.live();
        let more = |had: Option<&Credits>, has: &Credits| {
            let had = had.copied().unwrap_or_default();
            let more = |had: Option<u64>, has: Option<u64>| Some(has?.saturating_sub(had?));
            Credits {
                iops: more(had.iops, has.iops),
                bytes: more(had.bytes, has.bytes),
            }
        };
        for (name, has) in &after.kept.volumes {
            if let Some(volume) = live.volumes.get(name) {
                let more = more(before.kept.volumes.get(name), has);
                volume.qos.grant(&more, now_ns);
            }
        }
        for (name, has) in &after.kept.groups {
            if let Some(group) = live.groups.get(name) {
                group.grant(&more(before.kept.groups.get(name), has), now_ns);
            }
        }
    }
}
