//! Scrubbing: layers that no longer change are read again and again, slowly, and held to
//! the checksums that they had at first.
//!
//! ```text
//!  maps ─▶ frozen layers ─▶ grain by grain, past the page cache
//!                            │ no checksum yet ─▶ seal it      [sums]
//!                            └ another one     ─▶ damage: layer, offset, who has it
//! ```
//! Images' layers and those below a snapshot never change, so a checksum of theirs can
//! be taken at leisure, without a lock that a guest's request would meet, and holds for
//! ever. What a volume's last layer holds does change; it has no checksums until a
//! snapshot freezes it, and neither has a volume that never had one.
//!
//! It makes way: while guests use the disk it reads an eighth as fast, a grain at a time,
//! so the most that a request waits for it is one grain now and then.
//!
//! Live layers are left out for good reason: a checksum beside a block that is written in
//! place is one more write to order and to flush before each acknowledged flush, twice the
//! work of every small one. Who wants a live volume's bytes checked snapshots it.
//!
//! A layer is sealed by the first pass after it froze; what rots before is sealed as it
//! is. Bytes are summed as they lie on the disk: no key is needed.
//!
//! Freeing a grain forgets its checksum first. Both that and a look at a grain happen
//! under [`Store::layers`], so none is held to what was freed meanwhile.

pub mod sums;

use crate::cow::log::{Recovered, Trust};
use crate::cow::map::{GRAIN_BYTES, Place};
use crate::cow::store;
use crate::disk::FileBacking;
use crate::shard::share::Watch;
use crate::volumes::Store;
use ocs_storaged_api::{Damage, Scrub, VolumeName};
use rustix::fs::{SeekFrom, seek};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sums::{RECORD_BYTES, Sum, Sums};

/// Grains that are looked up at once: a page of records.
const GROUP: u64 = 4096 / RECORD_BYTES;
/// Between passes, however short a pause is asked for.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// While guests use the disk it has this part of its pace.
const BESIDE_GUESTS: u64 = 8;
/// Most damaged grains that are named.
const MAX_NAMED: usize = 1024;

/// How fast, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes read a second, at most.
    pub bytes_s: u64,
    /// From the end of one pass to the start of the next.
    pub pause: Duration,
}

impl Pace {
    /// How long to rest after a grain.
    fn rest(&self, in_use: bool) -> Duration {
        let part = if in_use { BESIDE_GUESTS } else { 1 };
        Duration::from_nanos(GRAIN_BYTES * 1_000_000_000 * part / self.bytes_s.max(1))
    }
}

/// What scrubbing has found since this storaged started.
#[derive(Default)]
pub struct Findings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    passes: u64,
    checked_bytes: u64,
    sealed_bytes: u64,
    damaged_sums: u64,
    unreadable: u64,
    damage: BTreeMap<(String, u64), Vec<String>>,
    damaged_maps: BTreeSet<String>,
}

impl Findings {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to tell.
    pub fn status(&self) -> Scrub {
        let inner = self.lock();
        let named = |((layer, grain), of): (&(String, u64), &Vec<String>)| Damage {
            layer: layer.clone(),
            offset: grain * GRAIN_BYTES,
            of: of.iter().cloned().map(VolumeName).collect(),
        };
        Scrub {
            passes: inner.passes,
            checked_bytes: inner.checked_bytes,
            sealed_bytes: inner.sealed_bytes,
            damaged_sums: inner.damaged_sums,
            unreadable: inner.unreadable,
            damage: inner.damage.iter().map(named).collect(),
            damaged_maps: inner.damaged_maps.iter().cloned().map(VolumeName).collect(),
        }
    }

    /// Bytes that `name` has of damaged grains.
    #[must_use]
    pub fn damaged_bytes(&self, name: &str) -> u64 {
        let inner = self.lock();
        let has = |of: &&Vec<String>| of.iter().any(|other| other == name);
        inner.damage.values().filter(has).count() as u64 * GRAIN_BYTES
    }
}

/// Scrubs for as long as the process lives.
pub fn start(
    store: Arc<Store>,
    findings: Arc<Findings>,
    pace: Pace,
    watch: Watch,
) -> io::Result<()> {
    let scrubber = Scrubber {
        store,
        findings,
        pace,
        watch,
    };
    std::thread::Builder::new()
        .name("scrub".into())
        .stack_size(256 * 1024)
        .spawn(move || scrubber.run())
        .map(drop)
}

struct Scrubber {
    store: Arc<Store>,
    findings: Arc<Findings>,
    pace: Pace,
    watch: Watch,
}

/// A grain in memory, aligned as direct reads want it.
#[repr(C, align(4096))]
struct Grain([u8; GRAIN_BYTES as usize]);

/// A layer that is looked at.
struct Layer<'a> {
    name: &'a str,
    file: FileBacking,
    sums: Sums,
    grains: u64,
}

impl Scrubber {
    fn run(&self) {
        let mut grain = Box::new(Grain([0; GRAIN_BYTES as usize]));
        loop {
            match self.pass(&mut grain) {
                Ok(()) => self.findings.lock().passes += 1,
                Err(error) => tracing::error!(%error, "a scrub was cut short"),
            }
            std::thread::sleep(self.pace.pause.max(LEAST_PAUSE));
        }
    }

    fn pass(&self, grain: &mut Grain) -> io::Result<()> {
        let layers = self.frozen()?;
        let gone = |layer: &String| !layers.contains(layer);
        let mut inner = self.findings.lock();
        inner.damage.retain(|(layer, _), _| !gone(layer));
        drop(inner);
        for name in &layers {
            match self.layer(name, grain) {
                Ok(()) => {}
                // It went meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::error!(layer = name, %error, "not scrubbed"),
            }
        }
        Ok(())
    }

    /// The layers that never change: all but the last ones of volumes.
    fn frozen(&self) -> io::Result<BTreeSet<String>> {
        let _layers = self.store.layers();
        let (mut all, mut live) = (BTreeSet::new(), BTreeSet::new());
        let mut damaged = BTreeSet::new();
        for name in self.store.maps()? {
            let Ok((found, _)) = self.load(&name, &mut damaged) else {
                continue;
            };
            let snapshot = self.store.table().snapshots().contains_key(&name);
            let last = found.layers.last().filter(|_| !snapshot);
            live.extend(last.map(|layer| layer.file.clone()));
            all.extend(found.layers.into_iter().map(|layer| layer.file));
        }
        self.findings.lock().damaged_maps = damaged;
        Ok(all.difference(&live).cloned().collect())
    }

    /// A map, unless it is damaged: then nobody is served its last layer, and what it
    /// shares is in others.
    fn load(&self, name: &str, damaged: &mut BTreeSet<String>) -> io::Result<(Recovered, bool)> {
        store::load(&self.store.dir, name, Trust::Committed).inspect_err(|error| {
            tracing::error!(name, %error, "a map is not what it was");
            damaged.insert(name.to_owned());
        })
    }

    fn layer(&self, name: &str, grain: &mut Grain) -> io::Result<()> {
        let path = self.store.dir.join(name);
        let layer = {
            // Lest checksums are made for a layer that was just removed.
            let _layers = self.store.layers();
            let file = FileBacking::open(&path, true, None, true)?;
            Layer {
                name,
                grains: file.buffered.metadata()?.len() / GRAIN_BYTES,
                sums: Sums::open(&path)?,
                file,
            }
        };
        let mut at = 0;
        while let Some(group) = next(&layer, at)? {
            let first = group * GROUP;
            let count = GROUP.min(layer.grains - first);
            for number in first..first + count {
                if self.look(&layer, number, grain)? {
                    let in_use = self.watch.in_use(crate::qos::now_ns());
                    std::thread::sleep(self.pace.rest(in_use));
                }
            }
            at = first + count;
        }
        layer.sums.sync()
    }

    /// Looks at one grain, if there is anything to look at.
    fn look(&self, layer: &Layer, number: u64, grain: &mut Grain) -> io::Result<bool> {
        let _layers = self.store.layers();
        let known = layer.sums.get(number, 1)?[0];
        if known == Sum::None && !has_data(&layer.file.buffered, number)? {
            return Ok(false);
        }
        if let Err(error) = read(&layer.file, number, &mut grain.0) {
            tracing::error!(layer = layer.name, offset = number * GRAIN_BYTES, %error, "unreadable");
            self.findings.lock().unreadable += 1;
            self.damaged(layer.name, number)?;
            return Ok(true);
        }
        let sum = sums::of(&grain.0);
        let mut inner = self.findings.lock();
        inner.checked_bytes += GRAIN_BYTES;
        match known {
            Sum::Is(known) if known == sum => {
                inner.damage.remove(&(layer.name.to_owned(), number));
            }
            Sum::Is(_) => {
                drop(inner);
                self.damaged(layer.name, number)?;
            }
            Sum::None | Sum::Damaged => {
                inner.sealed_bytes += GRAIN_BYTES;
                inner.damaged_sums += u64::from(known == Sum::Damaged);
                layer.sums.put(number, sum)?;
            }
        }
        Ok(true)
    }

    /// Names a damaged grain by who has it. The caller holds the layers.
    fn damaged(&self, layer: &str, number: u64) -> io::Result<()> {
        let key = (layer.to_owned(), number);
        if self.findings.lock().damage.contains_key(&key) {
            return Ok(());
        }
        let mut of = Vec::new();
        for name in self.store.maps()? {
            let Ok((found, _)) = self.load(&name, &mut BTreeSet::new()) else {
                continue;
            };
            let index = found.layers.iter().position(|l| l.file == layer);
            if index.is_some_and(|index| found.map.get(number) == Place::layer(index)) {
                of.push(name);
            }
        }
        of.sort();
        let offset = number * GRAIN_BYTES;
        tracing::error!(layer, offset, ?of, "a grain is not what it was");
        let mut inner = self.findings.lock();
        if inner.damage.len() < MAX_NAMED {
            inner.damage.insert(key, of);
        }
        Ok(())
    }
}

/// The next group of grains at or behind grain `at` with data or checksums.
fn next(layer: &Layer, at: u64) -> io::Result<Option<u64>> {
    let data = data(&layer.file.buffered, at * GRAIN_BYTES)?.map(|byte| byte / GRAIN_BYTES);
    let sums = data_of_sums(layer, at)?;
    let first = data.into_iter().chain(sums).min();
    Ok(first
        .filter(|grain| *grain < layer.grains)
        .map(|grain| grain / GROUP))
}

fn data_of_sums(layer: &Layer, at: u64) -> io::Result<Option<u64>> {
    let byte = data(layer.sums.file(), at * RECORD_BYTES)?;
    Ok(byte.map(|byte| byte / RECORD_BYTES))
}

/// Where the first data at or behind `at` is.
fn data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn has_data(file: &File, number: u64) -> io::Result<bool> {
    let at = data(file, number * GRAIN_BYTES)?;
    Ok(at.is_some_and(|at| at < (number + 1) * GRAIN_BYTES))
}

/// Reads a grain from the disk itself where the file system allows.
fn read(file: &FileBacking, number: u64, into: &mut [u8]) -> io::Result<()> {
    let at = number * GRAIN_BYTES;
    if let Some(direct) = &file.direct {
        match direct.read_exact_at(into, at) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            outcome => return outcome,
        }
    }
    file.buffered.read_exact_at(into, at)
}

/// Removes a layer and its checksums; done if they are not there.
pub fn remove_layer(layer: &Path) -> io::Result<()> {
    for path in [layer.to_owned(), sums::path(layer)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
