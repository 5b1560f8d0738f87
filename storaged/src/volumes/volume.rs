//! A volume while storaged runs: its key, its counters, its connection.

use super::content;
use super::images::Known;
use super::keys::Wrap;
use super::layered::Base;
use super::table::{Record, Table};
use crate::cow::log::BootId;
use crate::cow::store;
use crate::crypt::{KEY_BYTES, Key};
use crate::disk::{Backing, Disk, FileBacking, Layered, Stats, serial};
use crate::inflight::{PRIVATE_USED, Region};
use crate::qos::Qos;
use crate::session::{Secrets, Served};
use crate::shard::Shard;
use ocs_storaged_api::VolumeKind;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zeroize::{Zeroize, Zeroizing};

/// Queues offered to a guest.
const QUEUES: u16 = 8;
/// Begins the private page of an ephemeral volume's in-flight region.
const MAGIC: [u8; 8] = *b"OCSXTS1\0";

/// What all volumes share.
pub struct Store {
    /// The folder of `volumes.json` and the volumes' files.
    pub dir: PathBuf,
    /// Where first contents come from.
    pub images: PathBuf,
    /// What exists.
    pub table: Mutex<Table>,
    /// This boot of the host.
    pub boot: BootId,
    /// What keeps data keys at rest.
    pub wrap: Box<dyn Wrap>,
    /// Images whose layer is known.
    pub known: Known,
    /// Held by who changes which maps have a layer.
    pub layers: Mutex<()>,
}

impl Store {
    /// The table; a panic elsewhere cannot have torn it, since it is replaced whole.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to change which maps have a layer.
    pub fn layers(&self) -> MutexGuard<'_, ()> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays down the first content of a volume: a plain file where it is zeros and has
    /// no wrapped key, else a layer of its own over what it begins as.
    pub fn lay(&self, name: &str, record: &Record) -> io::Result<()> {
        let _layers = self.layers();
        let image = match &record.image {
            Some(image) => Some(self.image_layer(image)?),
            None => None,
        };
        let base = match (&image, &record.snapshot) {
            (Some(layer), _) => Base::Image(layer),
            (None, Some(snapshot)) => Base::Snapshot(snapshot),
            (None, None) if record.encrypted => Base::Nothing,
            (None, None) => return content::lay(&self.dir, name, record.size_bytes),
        };
        let key = match record.encrypted {
            true => Some(self.wrap.generate()?),
            false => None,
        };
        self.make(name, record.size_bytes, base, key)
    }

    /// Opens an image by file name.
    pub fn image(&self, name: &str) -> io::Result<std::fs::File> {
        use rustix::fs::{Mode, OFlags, open};
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = if plain {
            std::fs::File::from(open(self.images.join(name), flags, Mode::empty())?)
        } else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// A volume while storaged runs. What outlives storaged is its [`Record`].
pub struct Volume {
    name: String,
    store: Arc<Store>,
    /// The shard that serves it.
    pub shard: Shard,
    /// What happened so far.
    pub stats: Arc<Stats>,
    /// What it is held to.
    pub qos: Arc<Qos>,
    /// A VMM is connected now.
    pub connected: Arc<AtomicBool>,
    key: Mutex<Option<Key>>,
    key_lost: AtomicBool,
    deleted: AtomicBool,
}

impl Volume {
    /// A volume of the table, with its key where it was just made.
    #[must_use]
    pub fn new(name: &str, store: Arc<Store>, shard: Shard, key: Option<Key>, qos: Qos) -> Self {
        Self {
            name: name.to_owned(),
            store,
            shard,
            stats: Arc::default(),
            qos: Arc::new(qos),
            connected: Arc::default(),
            key: Mutex::new(key),
            key_lost: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
        }
    }

    /// Are its bytes lost, since nobody holds its key any more? `attached`: a VMM
    /// that was connected before storaged's restart may still bring it.
    #[must_use]
    pub fn is_key_lost(&self, record: &Record, attached: bool) -> bool {
        let absent = record.kind == VolumeKind::Ephemeral && record.served && self.key().is_none();
        absent && (!attached || self.key_lost.load(Ordering::Relaxed))
    }

    /// Destroys the key; the in-flight region's copy is wiped when its session ends.
    pub fn destroy_key(&self) {
        self.deleted.store(true, Ordering::Relaxed);
        *self.key() = None;
    }

    /// What a new connection is served.
    pub fn serve(self: &Arc<Self>) -> io::Result<Served> {
        let record = self.record().ok_or(io::ErrorKind::NotFound)?;
        let disk = self.disk(&record, None)?;
        Ok(match record.kind {
            VolumeKind::Persistent => Served::Plain(disk),
            VolumeKind::Ephemeral => Served::Sealed(disk, Box::new(EphemeralKey(Arc::clone(self)))),
        })
    }

    fn disk(&self, record: &Record, key: Option<Key>) -> io::Result<Arc<Disk>> {
        let read_only = record.attached.as_ref().is_some_and(|a| a.read_only);
        let durable = record.kind == VolumeKind::Persistent;
        // Without its key an ephemeral volume shows its size and no byte.
        let backing = if durable || key.is_some() {
            self.open(read_only, key, durable)?
        } else {
            Backing::Null
        };
        Ok(Arc::new(Disk {
            serial: serial(&self.name),
            size_bytes: record.size_bytes,
            read_only,
            queues: QUEUES,
            backing,
            stats: Arc::clone(&self.stats),
            qos: Arc::clone(&self.qos),
        }))
    }

    fn open(&self, read_only: bool, key: Option<Key>, durable: bool) -> io::Result<Backing> {
        let dir = &self.store.dir;
        if !self.store.is_layered(&self.name) {
            let path = content::path(dir, &self.name);
            let file = FileBacking::open(&path, read_only, key, durable)?;
            return Ok(Backing::File(file));
        }
        let boot = self.store.boot;
        let head = store::open(
            dir,
            &self.name,
            boot,
            read_only,
            durable,
            &|layer, own| match &layer.key {
                Some(wrapped) => self.store.wrap.unwrap(wrapped).map(Some),
                None => Ok(key.clone().filter(|_| own)),
            },
        )?;
        Ok(Backing::Layered(Layered::new(head)))
    }

    fn record(&self) -> Option<Record> {
        self.store.table().volumes().get(&self.name).cloned()
    }

    fn key(&self) -> MutexGuard<'_, Option<Key>> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), String> {
        let update = |contents: &mut super::table::Contents| {
            contents.volumes.get_mut(&self.name).map(change);
        };
        self.store
            .table()
            .update(update)
            .map_err(|error| format!("the table cannot be written: {error}"))
    }

    /// The key for a VMM that has none yet. A volume that no guest ever wrote to is
    /// laid down anew under a new one.
    fn key_or_new(&self) -> Result<Key, String> {
        if let Some(key) = &*self.key() {
            return Ok(key.clone());
        }
        let record = self.record().ok_or("the volume is deleted")?;
        if record.served {
            self.key_lost.store(true, Ordering::Relaxed);
            return Err("the volume's key is lost".into());
        }
        let key = Key::generate().map_err(|error| error.to_string())?;
        self.store
            .lay(&self.name, &record)
            .map_err(|error| format!("the volume cannot be laid down: {error}"))?;
        self.update(|r| {
            r.key_check = Some(hex(&key.check()));
            r.key_traces = key.traces();
        })?;
        *self.key() = Some(key.clone());
        Ok(key)
    }

    /// The key that a VMM brought, if it is the one of this volume.
    fn adopt(&self, page: &[u8; PRIVATE_USED]) -> Result<Key, String> {
        let record = self.record().ok_or("the volume is deleted")?;
        let mut raw = Zeroizing::new([0u8; KEY_BYTES]);
        raw.copy_from_slice(&page[MAGIC.len()..]);
        let key = Key::new(&raw).map_err(|error| error.to_string())?;
        let known = record.key_check == Some(hex(&key.check()));
        if page[..MAGIC.len()] != MAGIC || !known {
            if self.key().is_none() {
                self.key_lost.store(true, Ordering::Relaxed);
            }
            return Err("the in-flight region does not hold the volume's key".into());
        }
        *self.key() = Some(key.clone());
        Ok(key)
    }
}

/// An ephemeral volume's key in the in-flight region's private page.
struct EphemeralKey(Arc<Volume>);

impl Secrets for EphemeralKey {
    fn fill(&mut self, region: &Region) -> Result<(), String> {
        let key = self.0.key_or_new()?;
        let mut page = Zeroizing::new([0u8; PRIVATE_USED]);
        page[..MAGIC.len()].copy_from_slice(&MAGIC);
        page[MAGIC.len()..].copy_from_slice(key.raw());
        region.write_private(&page);
        Ok(())
    }

    fn open(&mut self, region: &Region) -> Result<Arc<Disk>, String> {
        let mut page = Zeroizing::new([0u8; PRIVATE_USED]);
        region.read_private(&mut page);
        let key = self.0.adopt(&page)?;
        page.zeroize();
        let record = self.0.record().ok_or("the volume is deleted")?;
        self.0
            .disk(&record, Some(key))
            .map_err(|error| format!("the volume cannot be opened: {error}"))
    }

    fn begin(&mut self) -> Result<(), String> {
        // Durable before the first write can be: from here a lost key is lost data.
        // Not earlier: the frontend might have died before it held the region.
        match self.0.record() {
            Some(record) if record.served => Ok(()),
            _ => self.0.update(|record| record.served = true),
        }
    }

    fn close(&mut self, region: &Region) {
        if self.0.deleted.load(Ordering::Relaxed) {
            region.write_private(&[0; PRIVATE_USED]);
        }
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
