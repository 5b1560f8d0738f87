//! Volumes and snapshots as maps over layers: made, grown, let go.
//!
//! ```text
//!  make     layer (empty) ─▶ NAME.map
//!  let go   (table) ─▶ layers' grains that no map has: freed ─▶ NAME.map
//! ```
//! Who uses a layer is never written down: it follows from the maps. So nothing can
//! be counted wrongly, snapshots go in any order, and a map that the table does not
//! name is itself the note of what is still to be let go.

use super::content;
use super::volume::Store;
use crate::cow::log::{LayerRef, Recovered, Trust};
use crate::cow::map::{GRAIN_BYTES, MAX_LAYERS, Map, Place, grains};
use crate::cow::store::{self, map_path, sync_dir};
use crate::scrub;
use std::fs::File;
use std::io;

/// What a volume begins as.
#[derive(Clone, Copy, Debug)]
pub enum Base<'a> {
    /// Zeros.
    Nothing,
    /// A layer that holds an image.
    Image(&'a str),
    /// A snapshot.
    Snapshot(&'a str),
}

/// Leaves out layers that no grain lies in; the last stays.
pub(super) fn compact(layers: &mut Vec<LayerRef>, map: &mut Map) {
    let mut used = vec![false; layers.len()];
    if let Some(last) = used.last_mut() {
        *last = true;
    }
    for index in map.runs().filter_map(|(_, _, place)| place.index()) {
        used[index] = true;
    }
    if used.iter().all(|used| *used) {
        return;
    }
    let mut moved = vec![Place::ZERO; layers.len()];
    let kept = moved.iter_mut().zip(&used).filter(|(_, used)| **used);
    for (index, (to, _)) in kept.enumerate() {
        *to = Place::layer(index);
    }
    let runs: Vec<_> = map.runs().collect();
    for (first, count, place) in runs {
        if let Some(index) = place.index() {
            map.set(first, count, moved[index]);
        }
    }
    let mut keep = used.into_iter();
    layers.retain(|_| keep.next().unwrap_or(true));
}

pub(super) fn full(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, why.to_owned())
}

impl Store {
    /// Does volume `name` have a map?
    #[must_use]
    pub fn is_layered(&self, name: &str) -> bool {
        map_path(&self.dir, name).exists()
    }

    /// Makes the map of volume `name`; `key` is its own layer's, wrapped. The caller
    /// holds [`Store::layers`].
    pub fn make(
        &self,
        name: &str,
        size_bytes: u64,
        base: Base,
        key: Option<String>,
    ) -> io::Result<()> {
        let (mut layers, mut map) = self.begun(size_bytes, base)?;
        compact(&mut layers, &mut map);
        self.top_off(name, size_bytes, layers, map, key)
    }

    /// The layers and the map of `base`, for a volume or snapshot of `size_bytes`.
    pub(super) fn begun(&self, size_bytes: u64, base: Base) -> io::Result<(Vec<LayerRef>, Map)> {
        Ok(match base {
            Base::Nothing => (Vec::new(), Map::new(size_bytes)),
            Base::Image(layer) => {
                let file = File::open(self.dir.join(layer))?;
                let shared = LayerRef {
                    file: layer.to_owned(),
                    key: None,
                };
                (vec![shared], store::map_of(&file, size_bytes)?)
            }
            Base::Snapshot(snapshot) => {
                let (found, _) = store::load(&self.dir, snapshot, Trust::Committed)?;
                let mut map = found.map;
                map.grow(size_bytes);
                (found.layers, map)
            }
        })
    }

    /// Puts an empty layer on top of `layers` and writes the map of `name`.
    pub(super) fn top_off(
        &self,
        name: &str,
        size_bytes: u64,
        mut layers: Vec<LayerRef>,
        map: Map,
        key: Option<String>,
    ) -> io::Result<()> {
        if layers.len() >= MAX_LAYERS {
            return Err(full("the volume stands on 255 layers; delete snapshots"));
        }
        let file = store::create_layer(&self.dir, size_bytes)?;
        layers.push(LayerRef {
            file: file.clone(),
            key,
        });
        let saved = store::save(&self.dir, name, self.boot, size_bytes, &layers, &map);
        self.or_drop(name, &file, saved).map(drop)
    }

    /// Passes on how the map of `name` was saved that names `layer`, a new one; which goes
    /// after an error, unless the map is there and only its syncing failed.
    pub(super) fn or_drop<T, E>(
        &self,
        name: &str,
        layer: &str,
        saved: Result<T, E>,
    ) -> Result<T, E> {
        let names_it = || -> io::Result<bool> {
            let (found, _) = match self.is_layered(name) {
                true => store::load(&self.dir, name, Trust::Committed)?,
                false => return Ok(false),
            };
            Ok(found.layers.iter().any(|named| named.file == layer))
        };
        if saved.is_err()
            && let Err(error) = names_it().and_then(|named| match named {
                true => Ok(()),
                false => remove(&self.dir.join(layer)),
            })
        {
            tracing::error!(name, layer, %error, "stays until the next start");
        }
        saved
    }

    /// The state of volume `name`, which nobody serves; synced. A volume without a map
    /// has its file as its only layer from now on, under a second name.
    pub(super) fn settled(&self, name: &str, size_bytes: u64) -> io::Result<Recovered> {
        if !self.is_layered(name) {
            let raw = content::path(&self.dir, name);
            let file = File::options().read(true).write(true).open(&raw)?;
            file.set_len(grains(size_bytes) * GRAIN_BYTES)?;
            file.sync_all()?;
            let layer = store::layer_name()?;
            std::fs::hard_link(&raw, self.dir.join(&layer))?;
            let layers = [LayerRef {
                file: layer.clone(),
                key: None,
            }];
            let saved = sync_dir(&self.dir)
                .and_then(|()| store::map_of(&file, size_bytes))
                .and_then(|map| store::save(&self.dir, name, self.boot, size_bytes, &layers, &map));
            self.or_drop(name, &layer, saved)?;
            content::remove(&self.dir, name)?;
        }
        let (found, _) = store::load(&self.dir, name, Trust::Since(self.boot))?;
        let own = found.layers.last().ok_or(io::ErrorKind::InvalidData)?;
        File::open(self.dir.join(&own.file))?.sync_data()?;
        Ok(found)
    }

    /// Grows volume `name`, which nobody serves.
    pub fn grow(&self, name: &str, size_bytes: u64) -> io::Result<()> {
        if !self.is_layered(name) {
            let raw = content::path(&self.dir, name);
            let file = File::options().write(true).open(raw)?;
            file.set_len(size_bytes)?;
            return file.sync_all();
        }
        let mut found = self.settled(name, size_bytes)?;
        let own = found.layers.last().ok_or(io::ErrorKind::InvalidData)?;
        let file = File::options().write(true).open(self.dir.join(&own.file))?;
        file.set_len(grains(size_bytes) * GRAIN_BYTES)?;
        file.sync_all()?;
        found.map.grow(size_bytes);
        store::save(
            &self.dir,
            name,
            self.boot,
            size_bytes,
            &found.layers,
            &found.map,
        )
        .map(drop)
    }

    /// Lets go of what only the map of `name` has, then of the map; done if there is
    /// none. The caller holds [`Store::layers`]; `volumes` are the names that have a
    /// layer of their own.
    pub fn let_go(&self, name: &str, volumes: &dyn Fn(&str) -> bool) -> io::Result<()> {
        if !self.is_layered(name) {
            return Ok(());
        }
        let layers = match store::load(&self.dir, name, Trust::Committed) {
            Ok((found, _)) => found.layers,
            // It never was whole, or is damaged: then its layers, if nobody else's,
            // go at the next start.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(name, %error, "the map is damaged");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        self.free_unused(&layers, Some(name), volumes)?;
        remove(&map_path(&self.dir, name))?;
        sync_dir(&self.dir)
    }

    /// Frees what no map but that of `gone` has of `layers`. The caller holds
    /// [`Store::layers`].
    pub fn free_unused(
        &self,
        layers: &[LayerRef],
        gone: Option<&str>,
        volumes: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        let mut users: Vec<Option<Map>> = layers.iter().map(|_| None).collect();
        let mut growing = vec![false; layers.len()];
        for other in self
            .maps()?
            .iter()
            .filter(|other| Some(other.as_str()) != gone)
        {
            // Its commits must be durable before we free what they gave up.
            File::open(map_path(&self.dir, other))?.sync_data()?;
            let (found, _) = store::load(&self.dir, other, Trust::Committed)?;
            for (at, layer) in found.layers.iter().enumerate() {
                let Some(index) = layers.iter().position(|l| l.file == layer.file) else {
                    continue;
                };
                growing[index] |= at + 1 == found.layers.len() && volumes(other);
                let len = std::fs::metadata(self.dir.join(&layer.file))?.len();
                let used = users[index].get_or_insert_with(|| Map::new(len));
                for (first, count, _) in found.map.runs().filter(|r| r.2 == Place::layer(at)) {
                    used.set(first, count, Place::layer(0));
                }
            }
        }
        for ((layer, used), growing) in layers.iter().zip(users).zip(growing) {
            let path = self.dir.join(&layer.file);
            match used {
                None => scrub::remove_layer(&path)?,
                Some(_) if growing => {}
                Some(used) => free(&path, &used)?,
            }
        }
        Ok(())
    }

    /// The names that have maps.
    pub fn maps(&self) -> io::Result<Vec<String>> {
        self.names(".map")
    }

    fn names(&self, suffix: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(suffix).map(str::to_owned));
        }
        Ok(names)
    }

    /// Removes what crashes left of maps and layers. `volumes` and `snapshots` know
    /// the table's names.
    pub fn collect_layers(
        &self,
        volumes: &dyn Fn(&str) -> bool,
        snapshots: &dyn Fn(&str) -> bool,
    ) -> io::Result<usize> {
        let mut collected = 0;
        for name in self.maps()? {
            if !volumes(&name) && !snapshots(&name) {
                self.let_go(&name, volumes)?;
                collected += 1;
            }
        }
        let mut used = std::collections::BTreeSet::new();
        for name in self.maps()? {
            match store::load(&self.dir, &name, Trust::Committed) {
                Ok((found, _)) => used.extend(found.layers.into_iter().map(|l| l.file)),
                Err(error) => {
                    // Whose layers they are is unknown: better too many than too few.
                    tracing::error!(name, %error, "layers are not collected");
                    return Ok(collected);
                }
            }
        }
        for name in self.names(".layer")? {
            let file = format!("{name}.layer");
            if !used.contains(&file) {
                scrub::remove_layer(&self.dir.join(file))?;
                collected += 1;
            }
        }
        for name in self.names(".sums")? {
            if !self.dir.join(format!("{name}.layer")).exists() {
                remove(&self.dir.join(format!("{name}.sums")))?;
                collected += 1;
            }
        }
        Ok(collected)
    }
}

/// Removes a file; done if it is not there.
pub fn remove(path: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Frees all grains of a frozen layer that `used` does not have.
fn free(path: &std::path::Path, used: &Map) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let all = grains(file.metadata()?.len());
    for (first, count, place) in used.runs() {
        if place == Place::ZERO && first < all {
            let count = count.min(all - first);
            scrub::sums::forget(path, first, count)?;
            store::punch(&file, first, count)?;
        }
    }
    Ok(())
}
