//! Copies of snapshots and images: snapshots with a life of their own.
//!
//! ```text
//!  share   map of the origin ─▶ COPY.map          names the same layers: at once
//!  seal    grains that lie under no key ─▶ new layer, new key ─▶ synced ─▶ COPY.map
//! ```
//! Who uses a layer follows from the maps, so a map of its own is all that a copy needs
//! to outlive what it is of. A copy that ends before the table names it is let go of, at
//! once or at the next start.

use super::layered::{Base, compact, full};
use super::refusal::{Refused, check_name, failed, refused};
use super::table::Snapshot;
use super::transfer::{GoOn, read_grain};
use super::volume::Store;
use super::{Volumes, put};
use crate::cow::log::{LayerRef, Trust};
use crate::cow::map::{GRAIN_BYTES, MAX_LAYERS, Map, Place};
use crate::cow::store;
use crate::crypt::is_zero;
use ocs_storaged_api::{ErrorCode, Origin, VolumeName};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

impl Volumes {
    pub(super) fn copy_snapshot(
        &self,
        snapshot: &VolumeName,
        of: &Origin,
        size_bytes: u64,
        encrypted: bool,
    ) -> Result<(), Refused> {
        let name = check_name(snapshot)?;
        put::check_size(size_bytes)?;
        let from = match of {
            Origin::Snapshot(from) => check_name(from)?,
            Origin::Image(image) => image.as_str(),
            Origin::Zeros => "",
        };
        let _claim = self.claim(name);
        if let Some(known) = self.store.table().snapshots().get(name) {
            let same = known.copy_of.as_ref() == Some(of)
                && (known.size_bytes, known.encrypted) == (size_bytes, encrypted);
            return if same {
                Ok(())
            } else {
                Err(known.is_another(name))
            };
        }
        let full_bytes = self.share(name, of, size_bytes, encrypted)?;
        let sealed = if encrypted {
            let known = |other: &str| self.store.table().volumes().contains_key(other);
            self.store
                .seal(name, size_bytes, &|| self.goes_on(), &known)
                .map_err(|error| failed(name, &error))
        } else {
            Ok(())
        };
        let row = Snapshot {
            volume: from.to_owned(),
            copy_of: Some(of.clone()),
            size_bytes,
            encrypted,
            changed_bytes: full_bytes,
            full_bytes,
        };
        let kept = sealed.and_then(|()| {
            self.store
                .table()
                .update(|contents| drop(contents.snapshots.insert(name.to_owned(), row)))
                .map_err(|error| failed("the table", &error))
        });
        if kept.is_err() {
            let _layers = self.store.layers();
            self.let_go(name)?;
        }
        kept
    }

    /// Writes a map for `name` that names the layers of its origin; how many bytes of it
    /// are not zeros.
    fn share(
        &self,
        name: &str,
        of: &Origin,
        size_bytes: u64,
        encrypted: bool,
    ) -> Result<u64, Refused> {
        let _layers = self.store.layers();
        self.check_new_snapshots(std::iter::once(name))?;
        let layer;
        let base = match of {
            Origin::Snapshot(from) => {
                let row = self.store.table().snapshots().get(&from.0).cloned();
                let row = row.ok_or_else(|| {
                    let why = format!("there is no snapshot {}", from.0);
                    refused(ErrorCode::NotFound, why)
                })?;
                if row.size_bytes != size_bytes {
                    let why = format!("size_bytes: {} has {}", from.0, row.size_bytes);
                    return Err(refused(ErrorCode::Invalid, why));
                }
                if row.encrypted && !encrypted {
                    let why = "encrypted: a copy of an encrypted snapshot is encrypted";
                    return Err(refused(ErrorCode::Invalid, why));
                }
                Base::Snapshot(&from.0)
            }
            Origin::Image(image) => {
                self.check_image(image, size_bytes)?;
                layer = self
                    .store
                    .image_layer(image)
                    .map_err(|error| failed(image, &error))?;
                Base::Image(&layer)
            }
            Origin::Zeros => Base::Nothing,
        };
        let store = &self.store;
        let copied = store.begun(size_bytes, base).and_then(|(layers, map)| {
            let full = map.grains() - map.count(Place::ZERO);
            if layers.is_empty() {
                // A map names one at least.
                store.top_off(name, size_bytes, layers, map, None)?;
            } else {
                store::save(&store.dir, name, store.boot, size_bytes, &layers, &map)?;
            }
            Ok(full * GRAIN_BYTES)
        });
        copied.map_err(|error| failed(name, &error))
    }
}

impl Store {
    /// What snapshot `name`, which the table does not name yet, has in layers without a
    /// key is in one of its own from now on, under a new key; `volumes` are the names
    /// that have a layer of their own.
    fn seal(
        &self,
        name: &str,
        size_bytes: u64,
        go_on: GoOn,
        volumes: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        let (found, _) = store::load(&self.dir, name, Trust::Committed)?;
        let (mut layers, mut map) = (found.layers.clone(), found.map);
        let plain = |place: Place| place.index().is_some_and(|at| layers[at].key.is_none());
        let runs: Vec<_> = map.runs().filter(|(_, _, place)| plain(*place)).collect();
        if runs.is_empty() {
            return Ok(());
        }
        if layers.len() >= MAX_LAYERS {
            return Err(full("the snapshot stands on 255 layers"));
        }
        let wrapped = self.wrap.generate()?;
        let own = LayerRef {
            file: store::create_layer(&self.dir, size_bytes)?,
            key: Some(wrapped),
        };
        let layer = own.file.clone();
        let saved = self
            .pour_sealed(&layers, &own, &runs, &mut map, go_on)
            .and_then(|()| {
                layers.push(own);
                compact(&mut layers, &mut map);
                let _layers = self.layers();
                store::save(&self.dir, name, self.boot, size_bytes, &layers, &map)?;
                self.free_unused(&found.layers, None, volumes)
            });
        self.or_drop(name, &layer, saved)
    }

    /// Copies `runs` from `layers` to the layer `own`, and has the map say so.
    fn pour_sealed(
        &self,
        layers: &[LayerRef],
        own: &LayerRef,
        runs: &[(u64, u64, Place)],
        map: &mut Map,
        go_on: GoOn,
    ) -> io::Result<()> {
        let key = own.key.as_deref().ok_or(io::ErrorKind::InvalidInput)?;
        let key = self.wrap.unwrap(key)?;
        let to = File::options().write(true).open(self.dir.join(&own.file))?;
        let place = Place::layer(layers.len());
        let mut bytes = vec![0; GRAIN_BYTES as usize];
        for (first, count, from) in runs {
            let Some(index) = from.index() else { continue };
            let from = self.layer(&layers[index])?;
            for grain in *first..first + count {
                go_on()?;
                read_grain(&from, grain, &mut bytes)?;
                if is_zero(&bytes) {
                    map.set(grain, 1, Place::ZERO);
                    continue;
                }
                let at = grain * GRAIN_BYTES;
                key.encrypt(&mut bytes, at / crate::crypt::BLOCK_BYTES as u64);
                to.write_all_at(&bytes, at)?;
                map.set(grain, 1, place);
            }
        }
        to.sync_all()
    }
}
