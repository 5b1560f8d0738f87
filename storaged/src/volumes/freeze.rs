//! Volumes frozen as snapshots: all of those that are asked for together, or none.
//!
//! ```text
//!  each   top synced ─▶ new layer ─▶ NAME.map on it ─▶ SNAPSHOT.map ─┐
//!  all                                                               └─▶ table
//! ```
//! Nobody serves the volumes meanwhile. So after an error each gets the map back that it
//! had, before a guest writes to its new layer: tries that fail do not pile layers up.

use super::content;
use super::layered::compact;
use super::table::Snapshot;
use super::volume::Store;
use crate::cow::log::{Recovered, Trust};
use crate::cow::map::{GRAIN_BYTES, Place};
use crate::cow::store;
use std::fs::File;
use std::io;

/// A volume to freeze.
pub(super) struct Wanted<'a> {
    pub(super) volume: &'a str,
    pub(super) size_bytes: u64,
    pub(super) encrypted: bool,
    /// The name of what it is frozen as.
    pub(super) snapshot: &'a str,
}

impl Store {
    /// Makes durable what can be before a volume's service pauses.
    pub(super) fn presync(&self, name: &str) -> io::Result<()> {
        if self.is_layered(name) {
            let (found, _) = store::load(&self.dir, name, Trust::Committed)?;
            let own = found.layers.last().ok_or(io::ErrorKind::InvalidData)?;
            return File::open(self.dir.join(&own.file))?.sync_data();
        }
        File::open(content::path(&self.dir, name))?.sync_data()
    }

    /// Freezes volumes, which nobody serves; on error none of the snapshots is there, and
    /// the volumes are what they were. The caller holds [`Store::layers`].
    pub(super) fn freeze(&self, all: &[Wanted]) -> io::Result<()> {
        let mut begun = Vec::new();
        let outcome = self.freeze_each(all, &mut begun).and_then(|rows| {
            self.table()
                .update(|contents| contents.snapshots.extend(rows))
        });
        if outcome.is_err() {
            for (wanted, found) in &begun {
                if let Err(error) = self.unfreeze(wanted, found) {
                    let volume = wanted.volume;
                    tracing::error!(volume, %error, "stands on a layer more than it needs");
                }
            }
        }
        outcome
    }

    /// What each volume was that it began with is in `begun`, also on error.
    fn freeze_each<'a>(
        &self,
        all: &'a [Wanted],
        begun: &mut Vec<(&'a Wanted<'a>, Recovered)>,
    ) -> io::Result<Vec<(String, Snapshot)>> {
        let mut rows = Vec::new();
        for wanted in all {
            let found = self.settled(wanted.volume, wanted.size_bytes)?;
            begun.push((wanted, found.clone()));
            rows.push((wanted.snapshot.to_owned(), self.freeze_one(wanted, found)?));
        }
        Ok(rows)
    }

    fn freeze_one(&self, wanted: &Wanted, found: Recovered) -> io::Result<Snapshot> {
        let (size_bytes, boot) = (wanted.size_bytes, self.boot);
        let top = Place::layer(found.layers.len() - 1);
        let full = found.map.grains() - found.map.count(Place::ZERO);
        let row = Snapshot {
            volume: wanted.volume.to_owned(),
            copy_of: None,
            size_bytes,
            encrypted: wanted.encrypted,
            changed_bytes: found.map.count(top) * GRAIN_BYTES,
            full_bytes: full * GRAIN_BYTES,
        };
        let (mut layers, mut map) = (found.layers.clone(), found.map.clone());
        let key = layers.last().and_then(|own| own.key.clone());
        compact(&mut layers, &mut map);
        // A last layer that holds nothing is not stood upon.
        if layers.len() > 1 && map.count(Place::layer(layers.len() - 1)) == 0 {
            layers.pop();
        }
        // The volume first: what the snapshot names is frozen before it exists.
        self.top_off(wanted.volume, size_bytes, layers, map, key)?;
        let (mut layers, mut map) = (found.layers, found.map);
        compact(&mut layers, &mut map);
        store::save(&self.dir, wanted.snapshot, boot, size_bytes, &layers, &map)?;
        Ok(row)
    }

    /// Takes back what [`Self::freeze_one`] did, whole or in part: the volume is as it was
    /// `found`, and of the snapshot there is nothing.
    fn unfreeze(&self, wanted: &Wanted, found: &Recovered) -> io::Result<()> {
        let known = |other: &str| self.table().volumes().contains_key(other);
        let (now, _) = store::load(&self.dir, wanted.volume, Trust::Committed)?;
        let restored = if now.layers == found.layers {
            Ok(())
        } else {
            let (layers, map) = (&found.layers, &found.map);
            let size_bytes = found.size_bytes;
            store::save(&self.dir, wanted.volume, self.boot, size_bytes, layers, map).map(drop)
        };
        self.let_go(wanted.snapshot, &known)?;
        restored?;
        self.free_unused(&now.layers, None, &known)
    }
}
