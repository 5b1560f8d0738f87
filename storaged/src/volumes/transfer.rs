//! Disks from files and to files: import and export.
//!
//! ```text
//!  import  file ─▶ Reader ─▶ new layer (under a new key) ─▶ synced ─▶ NAME.map on it
//!  export  NAME.map, its layers, their keys ─▶ Writer ─▶ file, synced
//! ```
//! The file is a descriptor that came with the request: storaged opens nothing of its
//! peers. An import that ends before its map is there leaves a layer that nobody names,
//! removed at once or, after a crash, at the next start; the volume holds what it held.

use super::content;
use super::refusal::{Refused, check_name, failed, not_found, refused};
use super::table::Record;
use super::volume::Store;
use super::{MAX_BYTES, Volumes};
use crate::cow::log::{LayerRef, Trust};
use crate::cow::map::{GRAIN_BYTES, Map, Place};
use crate::cow::store;
use crate::crypt::{Key, is_zero};
use ocs_disk_image::{CHUNK_BYTES, Format, ImageError, Reader, Writer};
use ocs_storaged_api::{ErrorCode, VolumeKind, VolumeName};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

// An image's chunk becomes a grain.
const _: () = assert!(CHUNK_BYTES as u64 == GRAIN_BYTES);

/// Says whether to go on.
pub(super) type GoOn<'a> = &'a dyn Fn() -> io::Result<()>;

impl Volumes {
    /// Replaces what a volume holds by the disk in `file`.
    pub(super) fn import(
        &self,
        volume: &VolumeName,
        format: Format,
        file: Option<File>,
    ) -> Result<(), Refused> {
        let name = check_name(volume)?;
        let file = given(file)?;
        let _claim = self.claim(name);
        let (record, _) = self.find(name).ok_or_else(|| not_found(name))?;
        if record.kind == VolumeKind::Ephemeral {
            let why = format!("{name} is an instance store, which begins as an image or empty");
            return Err(refused(ErrorCode::Invalid, why));
        }
        self.check_idle(name, &record)?;
        let reader = Reader::open(file, format, record.size_bytes).map_err(of_file)?;
        let known = |other: &str| self.store.table().volumes().contains_key(other);
        self.store
            .import(name, &record, &reader, &|| self.goes_on(), &known)
            .map_err(of_file)
    }

    /// Writes what a volume or a snapshot holds to `file`.
    pub(super) fn export(
        &self,
        of: &VolumeName,
        format: Format,
        decrypt: bool,
        file: Option<File>,
    ) -> Result<(), Refused> {
        let name = check_name(of)?;
        let file = given(file)?;
        let _claim = self.claim(name);
        let snapshot = self.store.table().snapshots().get(name).cloned();
        let (size_bytes, encrypted, trust) = match snapshot {
            Some(row) => (row.size_bytes, row.encrypted, Trust::Committed),
            None => {
                let (record, _) = self.find(name).ok_or_else(|| not_found(name))?;
                if record.kind == VolumeKind::Ephemeral {
                    let why = format!("{name} is an instance store, whose key leaves it never");
                    return Err(refused(ErrorCode::Invalid, why));
                }
                self.check_idle(name, &record)?;
                let trust = Trust::Since(self.store.boot);
                (record.size_bytes, record.encrypted, trust)
            }
        };
        if encrypted && !decrypt {
            let why = format!("decrypt: {name} is encrypted, and the file would not be");
            return Err(refused(ErrorCode::Invalid, why));
        }
        self.store
            .export(name, size_bytes, trust, format, &file, &|| self.goes_on())
            .map_err(of_file)
    }

    /// Refuses a volume that a VMM has or may have at any moment.
    fn check_idle(&self, name: &str, record: &Record) -> Result<(), Refused> {
        match &record.attached {
            None => Ok(()),
            Some(attached) => {
                let socket = attached.socket.display();
                let why = format!("{name} is attached to {socket}: detach it, or take a snapshot");
                Err(refused(ErrorCode::Conflict, why))
            }
        }
    }

    pub(super) fn goes_on(&self) -> io::Result<()> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(io::Error::other(
                "another storaged takes over; ask that one",
            ));
        }
        Ok(())
    }
}

fn given(file: Option<File>) -> Result<File, Refused> {
    let file = file.ok_or_else(|| refused(ErrorCode::Invalid, "file: none came along"))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        _ => Err(refused(ErrorCode::Invalid, "file: not a regular file")),
    }
}

fn of_file(error: ImageError) -> Refused {
    match error {
        ImageError::Io(error) => failed("file", &error),
        other => refused(ErrorCode::Invalid, format!("file: {other}")),
    }
}

impl Store {
    /// The disk of `reader` is what volume `name`, which nobody serves, holds; `volumes`
    /// are the names that have a layer of their own.
    fn import(
        &self,
        name: &str,
        record: &Record,
        reader: &Reader<File>,
        go_on: GoOn,
        volumes: &dyn Fn(&str) -> bool,
    ) -> Result<(), ImageError> {
        let wrapped = match record.encrypted {
            true => Some(self.wrap.generate()?),
            false => None,
        };
        let layer = store::create_layer(&self.dir, record.size_bytes)?;
        let put = || -> Result<Vec<LayerRef>, ImageError> {
            let map = self.pour(&layer, record.size_bytes, wrapped.as_deref(), reader, go_on)?;
            let _layers = self.layers();
            let old = if self.is_layered(name) {
                store::load(&self.dir, name, Trust::Committed)?.0.layers
            } else {
                Vec::new()
            };
            let own = [LayerRef {
                file: layer.clone(),
                key: wrapped.clone(),
            }];
            let size_bytes = record.size_bytes;
            store::save(&self.dir, name, self.boot, size_bytes, &own, &map)?;
            Ok(old)
        };
        let old = self.or_drop(name, &layer, put())?;
        // The volume is what it shall be; what it was goes now or, whole layers and the
        // plain file, at the next start.
        let _layers = self.layers();
        let freed =
            content::remove(&self.dir, name).and_then(|()| self.free_unused(&old, None, volumes));
        if let Err(error) = freed {
            tracing::error!(volume = name, %error, "what an import replaced stays");
        }
        Ok(())
    }

    /// Writes the disk of `reader` to a new layer; returns the map of it alone.
    fn pour(
        &self,
        layer: &str,
        size_bytes: u64,
        wrapped: Option<&str>,
        reader: &Reader<File>,
        go_on: GoOn,
    ) -> Result<Map, ImageError> {
        let key = wrapped.map(|key| self.wrap.unwrap(key)).transpose()?;
        let file = File::options().write(true).open(self.dir.join(layer))?;
        let mut map = Map::new(size_bytes);
        let mut bytes = vec![0; CHUNK_BYTES];
        reader.chunks(|at, chunk| {
            go_on()?;
            bytes[..chunk.len()].copy_from_slice(chunk);
            bytes[chunk.len()..].fill(0);
            if let Some(key) = &key {
                key.encrypt(&mut bytes, at / crate::crypt::BLOCK_BYTES as u64);
            }
            file.write_all_at(&bytes, at)?;
            map.set(at / GRAIN_BYTES, 1, Place::layer(0));
            Ok::<_, ImageError>(())
        })?;
        file.sync_all()?;
        Ok(map)
    }

    /// Writes what `name` holds, which nobody serves, to `file`.
    fn export(
        &self,
        name: &str,
        size_bytes: u64,
        trust: Trust,
        format: Format,
        file: &File,
        go_on: GoOn,
    ) -> Result<(), ImageError> {
        let mut writer = Writer::new(file, format, size_bytes)?;
        if self.is_layered(name) {
            let (found, _) = store::load(&self.dir, name, trust)?;
            let layers = found.layers.iter().map(|layer| self.layer(layer));
            let layers = layers.collect::<io::Result<Vec<_>>>()?;
            let mut bytes = vec![0; CHUNK_BYTES];
            for (first, count, place) in found.map.runs() {
                let Some(layer) = place.index().and_then(|index| layers.get(index)) else {
                    continue;
                };
                for grain in first..first + count {
                    go_on()?;
                    read_grain(layer, grain, &mut bytes)?;
                    let at = grain * GRAIN_BYTES;
                    let len = (size_bytes - at).min(GRAIN_BYTES) as usize;
                    if !is_zero(&bytes[..len]) {
                        writer.put(at, &bytes[..len])?;
                    }
                }
            }
        } else {
            let raw = File::open(content::path(&self.dir, name))?;
            Reader::open(raw, Format::Raw, MAX_BYTES)?.chunks(|at, chunk| {
                go_on()?;
                writer.put(at, chunk)
            })?;
        }
        writer.finish()?;
        Ok(file.sync_all()?)
    }

    pub(super) fn layer(&self, layer: &LayerRef) -> io::Result<(File, Option<Key>)> {
        let key = layer.key.as_deref().map(|key| self.wrap.unwrap(key));
        Ok((File::open(self.dir.join(&layer.file))?, key.transpose()?))
    }
}

/// Reads a grain of a layer; what is past the layer's end is zeros.
pub(super) fn read_grain(
    (file, key): &(File, Option<Key>),
    grain: u64,
    into: &mut [u8],
) -> io::Result<()> {
    let at = grain * GRAIN_BYTES;
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    into[done..].fill(0);
    if let Some(key) = key {
        key.decrypt(into, at / crate::crypt::BLOCK_BYTES as u64);
    }
    Ok(())
}
