//! A directory as the loader keeps it; what it is, `ocs_dataplane_shared::directory` says.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData};
use ocs_dataplane_shared::directory::Known;

use super::reading::present;
use super::{Plain, Raw, absent_is_fine};
use crate::fabric::bpf;
use crate::fabric::error::{FabricError, map};

impl<K: Plain, V: Plain> Plain for Known<K, V> {}
impl Plain for u32 {}
impl Plain for u64 {}

/// The names of a directory's maps.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub(super) cells: &'static str,
    pub(super) entries: &'static str,
    pub(super) far: &'static str,
}

/// A directory.
pub(super) struct Directory<K: Plain, V: Plain> {
    pub(super) cells: Array<MapData, u32>,
    pub(super) entries: Array<MapData, Raw<Known<K, V>>>,
    pub(super) far: HashMap<MapData, Raw<K>, u32>,
    names: Names,
    cell_of: fn(&K) -> u32,
    /// Where each key is.
    places: BTreeMap<K, Place>,
    /// Whose each cell is.
    owners: BTreeMap<u32, K>,
    /// Entries that no program can see.
    free: Vec<u32>,
    /// Entries that one may still see.
    left: Vec<u32>,
}

/// Where a key's entry is, and whether its cell leads there.
#[derive(Clone, Copy)]
struct Place {
    entry: u32,
    far: bool,
}

/// An entry that is written, and that nothing leads to yet.
#[must_use]
pub(super) struct Prepared(u32);

impl<K: Plain + Ord, V: Plain + PartialEq> Directory<K, V> {
    pub(super) fn new(
        cells: Array<MapData, u32>,
        entries: Array<MapData, Raw<Known<K, V>>>,
        far: HashMap<MapData, Raw<K>, u32>,
        names: Names,
        cell_of: fn(&K) -> u32,
    ) -> Self {
        Self {
            cells,
            entries,
            far,
            names,
            cell_of,
            places: BTreeMap::new(),
            owners: BTreeMap::new(),
            free: Vec::new(),
            left: Vec::new(),
        }
    }

    /// Finds what a predecessor left of this, and makes it say all of `known`.
    pub(super) fn adopt(&mut self, known: &BTreeMap<K, V>) -> Result<(), FabricError> {
        for key in known.keys() {
            let cell = (self.cell_of)(key);
            let at = self.cells.get(&cell, 0).map_err(map(self.names.cells))?;
            if at != 0 && self.entry(at)?.key == *key {
                self.owners.insert(cell, *key);
                let place = Place {
                    entry: at,
                    far: false,
                };
                self.places.insert(*key, place);
            } else if let Some(at) = self.far_of(key)? {
                let place = Place {
                    entry: at,
                    far: true,
                };
                self.places.insert(*key, place);
            }
        }
        let used: std::collections::BTreeSet<u32> =
            self.places.values().map(|place| place.entry).collect();
        self.left = (1..self.entries.len())
            .filter(|at| !used.contains(at))
            .collect();
        for (key, value) in known {
            if self.get(key)? != Some(*value) {
                let prepared = self.prepare(*key, *value)?;
                self.publish(*key, prepared)?;
            }
        }
        Ok(())
    }

    /// What the programs find.
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, FabricError> {
        let cell = (self.cell_of)(key);
        let at = self.cells.get(&cell, 0).map_err(map(self.names.cells))?;
        if at != 0 {
            let known = self.entry(at)?;
            if known.key == *key {
                return Ok(Some(known.value));
            }
        }
        match self.far_of(key)? {
            Some(at) => Ok(Some(self.entry(at)?.value)),
            None => Ok(None),
        }
    }

    fn entry(&self, at: u32) -> Result<Known<K, V>, FabricError> {
        let Raw(known) = self.entries.get(&at, 0).map_err(map(self.names.entries))?;
        Ok(known)
    }

    fn far_of(&self, key: &K) -> Result<Option<u32>, FabricError> {
        present(self.far.get(&Raw(*key), 0)).map_err(map(self.names.far))
    }

    /// Writes an entry for a key, which [`Self::publish`] lets the programs find.
    pub(super) fn prepare(&mut self, key: K, value: V) -> Result<Prepared, FabricError> {
        if self.free.is_empty() {
            // Whoever saw one of these before it was left has ended by then.
            bpf::wait_for_programs()?;
            self.free.append(&mut self.left);
        }
        let Some(at) = self.free.pop() else {
            return Err(FabricError::Full {
                map: self.names.entries,
            });
        };
        let known = Raw(Known { key, value });
        if let Err(error) = self.entries.set(at, known, 0) {
            self.free.push(at);
            return Err(map(self.names.entries)(error));
        }
        Ok(Prepared(at))
    }

    /// Forgets an entry that is not to be found after all.
    pub(super) fn discard(&mut self, Prepared(at): Prepared) {
        self.free.push(at);
    }

    /// Lets the programs find an entry.
    pub(super) fn publish(&mut self, key: K, Prepared(at): Prepared) -> Result<(), FabricError> {
        let cell = (self.cell_of)(&key);
        let owner = self.owners.get(&cell);
        let before = self.places.get(&key).copied();
        let far = match before {
            Some(place) => place.far,
            None => owner.is_some(),
        };
        let led = if far {
            let set = self.far.insert(Raw(key), at, 0);
            set.map_err(map(self.names.far))
        } else {
            let set = self.cells.set(cell, at, 0);
            set.map_err(map(self.names.cells))
        };
        if let Err(error) = led {
            self.free.push(at);
            return Err(error);
        }
        if !far {
            self.owners.insert(cell, key);
        }
        let place = Place { entry: at, far };
        self.places.insert(key, place);
        self.left.extend(before.map(|place| place.entry));
        Ok(())
    }

    /// Lets the programs find nothing of a key.
    pub(super) fn remove(&mut self, key: &K) -> Result<(), FabricError> {
        let Some(place) = self.places.get(key).copied() else {
            return Ok(());
        };
        let cell = (self.cell_of)(key);
        if place.far {
            absent_is_fine(self.far.remove(&Raw(*key))).map_err(map(self.names.far))?;
        } else {
            self.cells.set(cell, 0, 0).map_err(map(self.names.cells))?;
            self.owners.remove(&cell);
        }
        self.places.remove(key);
        self.left.push(place.entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
