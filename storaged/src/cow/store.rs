//! Maps and layers as files of one folder.
//!
//! `NAME.map` is a map, `….layer` a layer. Each is whole before anything names it,
//! and a map is replaced whole.

use super::head::Head;
use super::log::{BootId, LayerRef, Recovered, Tail, Trust, checkpoint, recover};
use super::map::{GRAIN_BYTES, Map, Place, grains};
use crate::crypt::Key;
use crate::disk::FileBacking;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Larger maps are not read (16 TiB, every grain apart, and its log).
const MAX_MAP_BYTES: u64 = 1 << 32;

/// Gives the key of a layer, which may be the volume's own; `None` where it is plain.
pub type Keys<'a> = &'a dyn Fn(&LayerRef, bool) -> io::Result<Option<Key>>;

/// The map of `name`.
#[must_use]
pub fn map_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.map"))
}

/// Makes renames and unlinks in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A new file for writing, only ours to read.
pub fn create(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: {why}", path.display()),
    )
}

/// Reads the map of `name`; `whole` says that nothing lies behind its log.
pub fn load(dir: &Path, name: &str, trust: Trust) -> io::Result<(Recovered, bool)> {
    let path = map_path(dir, name);
    if std::fs::metadata(&path)?.len() > MAX_MAP_BYTES {
        return Err(damaged(&path, "too long"));
    }
    let bytes = std::fs::read(&path)?;
    let recovered = recover(&bytes, trust).map_err(|why| damaged(&path, why))?;
    let whole = recovered.tail.at == bytes.len() as u64;
    Ok((recovered, whole))
}

/// Writes the map of `name`, in the place of one that may be there.
pub fn save(
    dir: &Path,
    name: &str,
    boot: BootId,
    size_bytes: u64,
    layers: &[LayerRef],
    map: &Map,
) -> io::Result<Tail> {
    let (bytes, tail) = checkpoint(boot, size_bytes, layers, map);
    let temporary = dir.join(format!("{name}.map.tmp"));
    let outcome = create(&temporary)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, map_path(dir, name)))
        .and_then(|()| sync_dir(dir));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    outcome.map(|()| tail)
}

/// A new layer's name; no other layer has it.
pub fn layer_name() -> io::Result<String> {
    let mut id = [0u8; 12];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let hex = id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok(format!("{hex}.layer"))
}

/// Makes an empty layer for a volume of `size_bytes`.
pub fn create_layer(dir: &Path, size_bytes: u64) -> io::Result<String> {
    let name = layer_name()?;
    let path = dir.join(&name);
    let outcome = create(&path).and_then(|file| {
        file.set_len(grains(size_bytes) * GRAIN_BYTES)?;
        file.sync_all()?;
        sync_dir(dir)
    });
    if outcome.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    outcome.map(|()| name)
}

/// Opens the map of `name` for serving. What its writer's death left is made good.
pub fn open(
    dir: &Path,
    name: &str,
    boot: BootId,
    read_only: bool,
    durable: bool,
    keys: Keys,
) -> io::Result<Head> {
    let (found, whole) = load(dir, name, Trust::Since(boot))?;
    let mut layers = Vec::with_capacity(found.layers.len());
    for (index, layer) in found.layers.iter().enumerate() {
        let shared = index + 1 < found.layers.len();
        let path = dir.join(&layer.file);
        let file = FileBacking::open(&path, read_only || shared, keys(layer, !shared)?, durable)?;
        layers.push(Arc::new(file));
    }
    let path = map_path(dir, name);
    let (tail, committed) = if whole && found.boot == boot {
        (found.tail, found.committed)
    } else {
        let own = layers.last().ok_or(io::ErrorKind::InvalidData)?;
        settle(own, &found, read_only)?;
        let map = &found.map;
        let tail = save(dir, name, boot, found.size_bytes, &found.layers, map)?;
        (tail, 0)
    };
    let file = FileBacking::open(&path, read_only, None, durable)?;
    Head::new(layers, found.map, file, tail, committed)
}

/// What the map says of the last layer is durable, and what it took back is freed.
fn settle(own: &FileBacking, found: &Recovered, read_only: bool) -> io::Result<()> {
    let top = Place::layer(found.layers.len() - 1);
    for (first, count) in found.reverted.iter().filter(|_| !read_only) {
        for grain in *first..first + count {
            if found.map.get(grain) != top {
                punch(&own.buffered, grain, 1)?;
            }
        }
    }
    own.buffered.sync_data()
}

/// Gives the space of grains back.
pub fn punch(file: &File, first: u64, count: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(
        file,
        flags,
        first * GRAIN_BYTES,
        count * GRAIN_BYTES,
    )?)
}

/// Calls `each` with every range of data in `file`, in order: start and end.
pub fn extents(file: &File, mut each: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        each(start, at)?;
    }
}

/// The map of a volume of `size_bytes` whose bytes are all in `file`, its only layer.
pub fn map_of(file: &File, size_bytes: u64) -> io::Result<Map> {
    let mut map = Map::new(size_bytes);
    extents(file, |start, end| {
        let first = start / GRAIN_BYTES;
        map.set(first, end.div_ceil(GRAIN_BYTES) - first, Place::layer(0));
        Ok(())
    })?;
    Ok(map)
}
