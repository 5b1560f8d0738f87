//! One connection to a frontend: vhost-user messages in, queues of a shard out.
//!
//! `vhost-user-backend` refuses in-flight descriptors, so this implements `vhost`'s
//! handler itself. Every message is hostile: an error ends the connection, and with
//! it every queue, once what is in flight has completed.
//!
//! A queue starts when it has size, rings and kick and is enabled, and stops
//! (drained) whenever one of these is about to change.

mod frozen;
mod handler;

pub use frozen::{Frozen, Record};

use crate::config;
use crate::dirty::{DirtyLog, QueueLog};
use crate::disk::Disk;
use crate::inflight::Region;
use crate::memory::{Memory, Trust};
use crate::queue::Addresses;
use crate::shard::{Call, DeviceId, QueueStart, Shard};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};

/// Gives and takes the secret in an in-flight region's private page.
pub trait Secrets: Send {
    /// A new region is about to be handed out: put the secret there.
    fn fill(&mut self, region: &Region) -> std::result::Result<(), String>;
    /// The session has a region, new or given back: the disk that its secret opens.
    fn open(&mut self, region: &Region) -> std::result::Result<Arc<Disk>, String>;
    /// The frontend has the region, and a queue is about to start.
    fn begin(&mut self) -> std::result::Result<(), String>;
    /// The session ended; the region is about to be forgotten.
    fn close(&mut self, region: &Region);
}

/// What a session serves.
pub enum Served {
    /// A disk with nothing secret.
    Plain(Arc<Disk>),
    /// A disk that only the in-flight region opens; the first is its outside.
    Sealed(Arc<Disk>, Box<dyn Secrets>),
}

#[derive(Default)]
struct Vring {
    size: u32,
    addresses: Option<Addresses>,
    /// Guest address of the used ring, where it shall be logged.
    log_used: Option<u64>,
    base: u16,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    enabled: bool,
    runs: bool,
}

/// One connection's state.
pub struct Session {
    shard: Shard,
    disk: Arc<Disk>,
    secrets: Option<Box<dyn Secrets>>,
    trust: Trust,
    device: Option<DeviceId>,
    features: u64,
    protocol_features: u64,
    memory: Memory,
    rings: Vec<Vring>,
    inflight: Option<Arc<Region>>,
    log: Option<Arc<DirtyLog>>,
}

impl Session {
    /// A session of `served` on `shard`.
    #[must_use]
    pub fn new(shard: Shard, served: Served, trust: Trust) -> Self {
        let (disk, secrets) = match served {
            Served::Plain(disk) => (disk, None),
            Served::Sealed(disk, secrets) => (disk, Some(secrets)),
        };
        Self {
            rings: (0..disk.queues).map(|_| Vring::default()).collect(),
            shard,
            disk,
            secrets,
            trust,
            device: None,
            features: 0,
            protocol_features: 0,
            memory: Memory::default(),
            inflight: None,
            log: None,
        }
    }

    /// Ends the session once nothing of it is in flight.
    pub fn end(&mut self) {
        self.remove_device();
        if let (Some(secrets), Some(region)) = (&mut self.secrets, self.inflight.take()) {
            secrets.close(&region);
        }
    }

    fn remove_device(&mut self) {
        if let Some(device) = self.device.take()
            && let Err(error) = self.shard.remove(device)
        {
            tracing::error!(%error, "device not removed");
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Vring> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
            .ok_or_else(|| refuse(format!("queue {index} does not exist")))
    }

    /// Stops queue `index` if it runs, keeping where it would go on.
    fn stop(&mut self, index: u32) -> Result<()> {
        let (shard, device) = (self.shard.clone(), self.device);
        let ring = self.ring(index)?;
        if std::mem::take(&mut ring.runs)
            && let Some(device) = device
            && let Some(base) = shard.stop(device, index as u16).map_err(refuse)?
        {
            ring.base = base;
        }
        Ok(())
    }

    /// Starts queue `index` if it has all it needs.
    fn try_start(&mut self, index: u32) -> Result<()> {
        let trust = self.trust;
        let (features, memory) = (self.features, self.memory.clone());
        let region = self.inflight.clone();
        let log = self.log.clone();
        let ring = self.ring(index)?;
        let (Some(addresses), Some(kick), true, false) =
            (ring.addresses, &ring.kick, ring.enabled, ring.runs)
        else {
            return Ok(());
        };
        if ring.size == 0 {
            return Ok(());
        }
        let inflight = match region {
            Some(region) => Some(
                region
                    .queue(index as u16)
                    .ok_or_else(|| refuse(format!("queue {index} has no in-flight part")))?,
            ),
            None => None,
        };
        // A frontend may accept to be logged long before it hands a log over.
        let log = log.filter(|_| features & config::LOG_ALL != 0);
        let log = log.map(|log| QueueLog {
            log,
            used: ring.log_used,
        });
        let event = |file: &Option<File>| match file {
            Some(file) => call(file.try_clone().map_err(refuse)?, trust).map(Some),
            None => Ok(None),
        };
        let (call, err) = (event(&ring.call)?, event(&ring.err)?);
        let start = QueueStart {
            memory: Arc::new(memory),
            size: ring.size,
            addresses,
            base: ring.base,
            event_idx: features & config::RING_EVENT_IDX != 0,
            flush: features & config::FLUSH != 0,
            zeroes: features & (config::DISCARD | config::WRITE_ZEROES) != 0,
            inflight,
            log,
            kick: kick.try_clone().map_err(refuse)?,
            call,
            err,
        };
        if let Some(secrets) = &mut self.secrets {
            if self.inflight.is_none() {
                return Err(refuse("an encrypted volume needs an in-flight region"));
            }
            secrets.begin().map_err(refuse)?;
        }
        let device = match self.device {
            Some(device) => device,
            None => {
                let device = self.shard.add(Arc::clone(&self.disk)).map_err(refuse)?;
                *self.device.insert(device)
            }
        };
        self.shard
            .start(device, index as u16, start)
            .map_err(refuse)?;
        self.ring(index)?.runs = true;
        Ok(())
    }

    /// Applies `change` while no queue runs, then starts again what ran.
    fn while_stopped(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let ran: Vec<u32> = (0..self.rings.len())
            .filter(|i| self.rings[*i].runs)
            .map(|i| i as u32)
            .collect();
        for index in &ran {
            self.stop(*index)?;
        }
        change(self)?;
        for index in ran {
            self.try_start(index)?;
        }
        Ok(())
    }

    /// Tracks requests in `region` from now on, and opens the disk with its secret.
    fn track(&mut self, region: Region) -> Result<()> {
        self.while_stopped(|s| {
            if let Some(secrets) = &mut s.secrets {
                s.disk = secrets.open(&region).map_err(refuse)?;
            }
            s.remove_device();
            s.inflight = Some(Arc::new(region));
            Ok(())
        })
    }

    fn map(&self, region: &VhostUserMemoryRegion, file: &File) -> Result<crate::memory::Region> {
        crate::memory::Region::new(
            region.guest_phys_addr,
            region.user_addr,
            region.memory_size,
            file,
            region.mmap_offset,
            self.trust,
        )
        .map_err(refuse)
    }
}

/// A call eventfd in the form the shard wants.
fn call(file: File, trust: Trust) -> Result<Call> {
    let flags = fcntl_getfl(&file).map_err(refuse)?;
    let blocking = !flags.contains(OFlags::NONBLOCK);
    if blocking && trust == Trust::SealedOnly {
        fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(refuse)?;
    }
    Ok(Call {
        file,
        plain: blocking && trust == Trust::Frontend,
    })
}

/// Only an eventfd may be kicked or called: nothing else is safe to poll and write.
fn eventfd(file: Option<File>) -> Result<Option<File>> {
    if let Some(file) = &file {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if link.map_err(refuse)?.as_os_str() != "anon_inode:[eventfd]" {
            return Err(refuse("a kick or call descriptor is not an eventfd"));
        }
    }
    Ok(file)
}

fn refuse(why: impl std::fmt::Display) -> Error {
    tracing::warn!(%why, "message refused");
    Error::ReqHandlerError(std::io::Error::other(why.to_string()))
}
