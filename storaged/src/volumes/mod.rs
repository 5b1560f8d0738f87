//! Volumes: what the control socket asks for, made so and kept so.
//!
//! ```text
//!  put       file, or layer and map ─▶ table               no table entry: collected
//!  attach    table ─▶ attachment                           resumed from the table
//!  detach    table ─▶ hang up, drain
//!  delete    table ─▶ hang up, drain ─▶ key ─▶ file        file left: collected
//!  import    layer ─▶ map in place of what was            no map: collected
//!  snapshot  hang up, drain ─▶ maps ─▶ table ─▶ connect    no table entry: let go
//!  copy      map ─▶ layer under a key ─▶ map ─▶ table      no table entry: let go
//! ```
//! The table is written first where something ends and last where it begins, so a
//! crash between two steps leaves garbage that the next start collects, and never a
//! volume that is named and not there. Requests for one volume run one by one.

mod attachment;
mod claims;
mod content;
mod copies;
mod credits;
mod erasure;
mod freeze;
mod handover;
mod images;
mod keys;
mod layered;
mod limits;
mod put;
mod refusal;
mod snapshots;
pub mod table;
mod transfer;
mod volume;

use crate::cow::log::BootId;
use crate::crypt::Key;
use crate::handover::{Moved, Taking};
use crate::qos::{self, Group, Qos};
use crate::scrub::{self, Findings};
use crate::shard::Shard;
use attachment::Attachment;
use credits::CreditFile;
pub use credits::INTERVAL as CREDITS_INTERVAL;
use ocs_storaged_api::{
    ErrorCode, Reply, Request, VolumeKind, VolumeLimits, VolumeName, VolumeStatus,
};
use refusal::{Refused, check_name, failed, key_lost, not_found, refused};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use table::{Attached, Record, Table};
pub use volume::Store;
use volume::Volume;

const BLOCK_BYTES: u64 = 4096;
const MAX_BYTES: u64 = 16 << 40;
/// Most snapshots of one storaged.
const MAX_SNAPSHOTS: usize = 16_384;
/// `sun_path` with its closing zero.
const MAX_SOCKET_BYTES: usize = 107;

/// Why storaged cannot start on its state.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The table is unreadable.
    #[error(transparent)]
    Table(#[from] table::TableError),
    /// The folder is.
    #[error("{0} cannot be used: {1}")]
    Dir(PathBuf, io::Error),
}

#[derive(Default)]
struct Live {
    volumes: BTreeMap<String, Arc<Volume>>,
    attachments: BTreeMap<String, Attachment>,
    claimed: BTreeSet<String>,
    groups: BTreeMap<String, Arc<Group>>,
}

/// All volumes of one storaged.
pub struct Volumes {
    store: Arc<Store>,
    shards: Vec<Shard>,
    next_shard: AtomicUsize,
    credits: CreditFile,
    live: Mutex<Live>,
    released: Condvar,
    /// Read by each request, written by the hand-over, which none outlives.
    gate: RwLock<()>,
    /// A hand-over waits: what takes long ends.
    closing: AtomicBool,
    findings: Arc<Findings>,
}

impl Volumes {
    /// Reads the table in `dir`, collects what crashes left, and resumes every
    /// attachment: on the connections that another storaged gives, where it does.
    pub fn start(
        dir: &Path,
        images: &Path,
        shards: Vec<Shard>,
        boot: BootId,
        taking: Option<Taking>,
    ) -> Result<Self, StartError> {
        let broken = |error| StartError::Dir(dir.to_owned(), error);
        let table = Table::load(dir)?;
        let store = Arc::new(Store {
            dir: dir.to_owned(),
            images: images.to_owned(),
            boot,
            wrap: Box::new(keys::NodeKey::open(dir).map_err(broken)?),
            known: images::Known::default(),
            layers: Mutex::new(()),
            table: Mutex::new(table),
        });
        let records = store.table().volumes().clone();
        let snapshots = store.table().snapshots().clone();
        let plain = |name: &str| records.contains_key(name) && !store.is_layered(name);
        // What another one still serves is not looked at; it has left no garbage.
        let collected = if taking.is_some() {
            0
        } else {
            content::collect(dir, plain).map_err(broken)?
                + store
                    .collect_layers(&|name| records.contains_key(name), &|name| {
                        snapshots.contains_key(name)
                    })
                    .map_err(broken)?
        };
        tracing::info!(
            volumes = records.len(),
            snapshots = snapshots.len(),
            collected,
            "table read"
        );
        let credits = CreditFile::new(dir, boot);
        let past = credits.read();
        let groups = store.table().groups().clone();
        let groups = groups
            .iter()
            .map(|(name, limits)| {
                let (since_ns, credits) = past.group(name);
                let group = Group::new(limits, since_ns);
                if let Some(credits) = credits {
                    group.keep(&credits);
                }
                (name.clone(), Arc::new(group))
            })
            .collect();
        let volumes = Self {
            store,
            shards,
            next_shard: AtomicUsize::new(0),
            credits,
            live: Mutex::default(),
            released: Condvar::new(),
            gate: RwLock::new(()),
            closing: AtomicBool::new(false),
            findings: Arc::default(),
        };
        volumes.live().groups = groups;
        for (name, record) in &records {
            let (since_ns, credits) = past.volume(name);
            let volume = volumes.enliven(name, None, &record.limits, since_ns);
            if let Some(credits) = credits {
                volume.qos.keep(&credits);
            }
        }
        if let Some(taking) = taking {
            volumes.take_over(taking, &past);
        }
        volumes.save_credits(false);
        volumes.connect_all(&records).map_err(broken)?;
        Ok(volumes)
    }

    /// Scrubs from now on.
    pub fn scrub(&self, pace: scrub::Pace) -> io::Result<()> {
        let (store, findings) = (Arc::clone(&self.store), Arc::clone(&self.findings));
        scrub::start(store, findings, pace, self.shards[0].watch())
    }

    /// Hangs up everywhere and waits until nothing is in flight.
    pub fn end(&self) {
        let attachments = std::mem::take(&mut self.live().attachments);
        attachments.into_values().for_each(Attachment::stop);
        self.save_credits(true);
    }

    /// Makes it so, or refuses. `file` came with the request.
    pub fn handle(&self, request: &Request, file: Option<File>) -> Reply {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let outcome = match request {
            Request::PutVolume {
                volume,
                size_bytes,
                kind,
                image,
                snapshot,
                encrypted,
            } => self.put(
                volume,
                Record {
                    size_bytes: *size_bytes,
                    kind: *kind,
                    image: image.clone(),
                    snapshot: snapshot.as_ref().map(|name| name.0.clone()),
                    encrypted: *encrypted,
                    attached: None,
                    key_check: None,
                    key_traces: Vec::new(),
                    served: false,
                    limits: VolumeLimits::default(),
                },
            ),
            Request::Attach {
                volume,
                socket,
                read_only,
            } => self.attach(volume, socket, *read_only),
            Request::Detach { volume } => self.detach(volume),
            Request::DeleteVolume { volume } => self.delete(volume),
            Request::SetLimits { volume, limits } => self.set_limits(volume, limits),
            Request::SetGroup { group, limits } => self.set_group(group, limits),
            Request::ResizeVolume { volume, size_bytes } => self.resize(volume, *size_bytes),
            Request::PutSnapshot {
                snapshot,
                volume,
                with,
            } => self.put_snapshot(snapshot, volume, with),
            Request::CopySnapshot {
                snapshot,
                of,
                size_bytes,
                encrypted,
            } => self.copy_snapshot(snapshot, of, *size_bytes, *encrypted),
            Request::DeleteSnapshot { snapshot } => self.delete_snapshot(snapshot),
            Request::Import { volume, format } => self.import(volume, *format, file),
            Request::Export {
                of,
                format,
                decrypt,
            } => self.export(of, *format, *decrypt, file),
            Request::AttestErasure { volume } => match self.attest_erasure(volume) {
                Ok(erasure) => return Reply::Erasure { erasure },
                Err(refused) => Err(refused),
            },
            Request::List => return self.list(),
            Request::ListSnapshots => return self.list_snapshots(),
            Request::Scrub => {
                let scrub = self.findings.status();
                return Reply::Scrub { scrub };
            }
            Request::HandOver { .. } => Err(refused(
                ErrorCode::Invalid,
                "hand_over: not on this connection",
            )),
        };
        match outcome {
            Ok(()) => Reply::Ok,
            Err(Refused { code, message }) => Reply::Error { code, message },
        }
    }

    fn attach(&self, name: &VolumeName, socket: &Path, read_only: bool) -> Result<(), Refused> {
        let name = check_name(name)?;
        if !socket.is_absolute() || socket.as_os_str().len() > MAX_SOCKET_BYTES {
            return Err(refused(
                ErrorCode::Invalid,
                format!(
                    "socket: {} is not an absolute path of up to {MAX_SOCKET_BYTES} bytes",
                    socket.display()
                ),
            ));
        }
        let _claim = self.claim(name);
        let (record, volume) = self.find(name).ok_or_else(|| not_found(name))?;
        if volume.is_key_lost(&record, record.attached.is_some()) {
            return Err(key_lost(name));
        }
        let wanted = Attached {
            socket: socket.to_owned(),
            read_only,
        };
        match &record.attached {
            Some(attached) if *attached == wanted => {}
            Some(attached) => {
                return Err(refused(
                    ErrorCode::Conflict,
                    format!("{name} is attached to {}", attached.socket.display()),
                ));
            }
            None => self.set_attached(name, Some(wanted.clone()))?,
        }
        if self.live().attachments.contains_key(name) {
            return Ok(());
        }
        self.save_credits(false);
        self.connect(name, &volume, &wanted, None)
            .map_err(|error| failed(name, &error))
    }

    fn detach(&self, name: &VolumeName) -> Result<(), Refused> {
        let name = check_name(name)?;
        let _claim = self.claim(name);
        if let Some((record, _)) = self.find(name) {
            if record.attached.is_some() {
                self.set_attached(name, None)?;
            }
            self.hang_up(name);
        }
        Ok(())
    }

    fn delete(&self, name: &VolumeName) -> Result<(), Refused> {
        let name = check_name(name)?;
        let _claim = self.claim(name);
        if let Some((record, volume)) = self.find(name) {
            let erased = self.store.erased(name, &record);
            self.store
                .table()
                .update(|contents| {
                    contents.volumes.remove(name);
                    contents.remember(name, erased);
                })
                .map_err(|error| failed("the table", &error))?;
            volume.destroy_key();
            self.hang_up(name);
            self.live().volumes.remove(name);
        }
        let _layers = self.store.layers();
        if !self.store.table().snapshots().contains_key(name) {
            self.let_go(name)?;
        }
        content::remove(&self.store.dir, name).map_err(|error| failed(name, &error))
    }

    fn list(&self) -> Reply {
        let records = self.store.table().volumes().clone();
        let live = self.live().volumes.clone();
        let status = |(name, record): (String, Record)| {
            let volume = live.get(&name)?;
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            Some(VolumeStatus {
                key_lost: volume.is_key_lost(&record, record.attached.is_some()),
                damaged_bytes: self.findings.damaged_bytes(&name),
                volume: VolumeName(name),
                size_bytes: record.size_bytes,
                kind: record.kind,
                image: record.image,
                snapshot: record.snapshot.map(VolumeName),
                encrypted: record.encrypted || record.kind == VolumeKind::Ephemeral,
                attached: record.attached.map(|a| a.socket),
                connected: volume.connected.load(Ordering::Relaxed),
                limits: record.limits,
                credits: volume.qos.credits(0, qos::now_ns()),
                throttled: count(&volume.stats.throttled),
                reads: count(&volume.stats.reads),
                writes: count(&volume.stats.writes),
                flushes: count(&volume.stats.flushes),
                errors: count(&volume.stats.errors),
            })
        };
        Reply::Volumes {
            volumes: records.into_iter().filter_map(status).collect(),
        }
    }

    fn set_attached(&self, name: &str, attached: Option<Attached>) -> Result<(), Refused> {
        let change = |contents: &mut table::Contents| {
            if let Some(record) = contents.volumes.get_mut(name) {
                record.attached = attached;
            }
        };
        self.store
            .table()
            .update(change)
            .map_err(|error| failed("the table", &error))
    }

    fn connect(
        &self,
        name: &str,
        volume: &Arc<Volume>,
        attached: &Attached,
        moved: Option<Moved>,
    ) -> io::Result<()> {
        let served = Arc::clone(volume);
        let attachment = Attachment::start(
            name,
            attached.socket.clone(),
            volume.shard.clone(),
            Arc::clone(&volume.connected),
            Box::new(move || served.serve()),
            moved,
        )?;
        self.live().attachments.insert(name.to_owned(), attachment);
        Ok(())
    }

    fn hang_up(&self, name: &str) {
        let attachment = self.live().attachments.remove(name);
        if let Some(attachment) = attachment {
            attachment.stop();
        }
    }

    /// Puts a volume of the table to life, which earns credits since that time.
    fn enliven(
        &self,
        name: &str,
        key: Option<Key>,
        limits: &VolumeLimits,
        since_ns: u64,
    ) -> Arc<Volume> {
        let turn = self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let shard = self.shards[turn].clone();
        let qos = Qos::new(limits, self.group(limits), since_ns);
        let store = Arc::clone(&self.store);
        let volume = Arc::new(Volume::new(name, store, shard, key, qos));
        let kept = Arc::clone(&volume);
        self.live().volumes.insert(name.to_owned(), kept);
        volume
    }

    fn find(&self, name: &str) -> Option<(Record, Arc<Volume>)> {
        let record = self.store.table().volumes().get(name).cloned()?;
        let volume = self.live().volumes.get(name).cloned()?;
        Some((record, volume))
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
