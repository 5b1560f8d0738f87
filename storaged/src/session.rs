//! One connection to a frontend: vhost-user messages in, queues of a shard out.
//!
//! `vhost-user-backend` refuses in-flight descriptors, so this implements `vhost`'s
//! handler itself. Every message is hostile: an error ends the connection, and with
//! it every queue, once what is in flight has completed.
//!
//! A queue starts when it has size, rings and kick and is enabled, and stops
//! (drained) whenever one of these is about to change.

use crate::config;
use crate::disk::Disk;
use crate::inflight::{Region, region_bytes};
use crate::memory::{Memory, Trust};
use crate::queue::{Addresses, MAX_QUEUE_SIZE};
use crate::shard::{Call, DeviceId, QueueStart, Shard};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures as Proto,
};

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
    memory: Memory,
    rings: Vec<Vring>,
    inflight: Option<Arc<Region>>,
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
            memory: Memory::default(),
            inflight: None,
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

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.rings.len() as u32 {
            self.stop(index)?;
            *self.ring(index)? = Vring::default();
        }
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::features(&self.disk))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::features(&self.disk) != 0 {
            return Err(refuse(format!(
                "features {features:#x} were not all offered"
            )));
        }
        self.while_stopped(|s| {
            s.features = features;
            // vhost-user, "Ring states": without protocol features rings start enabled.
            if features & config::PROTOCOL_FEATURES == 0 {
                s.rings.iter_mut().for_each(|r| r.enabled = true);
            }
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut memory = Memory::default();
        for (region, file) in regions.iter().zip(&files) {
            memory.add(self.map(region, file)?).map_err(refuse)?;
        }
        self.while_stopped(|s| {
            s.memory = memory;
            Ok(())
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if !num.is_power_of_two() || num > u32::from(MAX_QUEUE_SIZE) {
            return Err(refuse(format!("queue {index} has size {num}")));
        }
        self.stop(index)?;
        self.ring(index)?.size = num;
        self.try_start(index)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        self.stop(index)?;
        self.ring(index)?.addresses = Some(Addresses { desc, avail, used });
        self.try_start(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base =
            u16::try_from(base).map_err(|_| refuse(format!("queue {index} has base {base}")))?;
        self.stop(index)?;
        self.ring(index)?.base = base;
        self.try_start(index)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop(index)?;
        let ring = self.ring(index)?;
        // The ring is stopped until the next kick descriptor (vhost-user, "Ring states").
        ring.kick = None;
        let base = u32::from(ring.base);
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = eventfd(fd)?;
        if fd.is_none() {
            return Err(refuse(format!("queue {index} has no kick descriptor")));
        }
        self.stop(u32::from(index))?;
        self.ring(u32::from(index))?.kick = fd;
        self.try_start(u32::from(index))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = eventfd(fd)?;
        let clone = match &fd {
            Some(file) => Some(call(file.try_clone().map_err(refuse)?, self.trust)?),
            None => None,
        };
        let ring = self.ring(u32::from(index))?;
        ring.call = fd;
        if ring.runs
            && let Some(device) = self.device
        {
            self.shard
                .set_call(device, u16::from(index), clone)
                .map_err(refuse)?;
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = eventfd(fd)?;
        self.stop(u32::from(index))?;
        self.ring(u32::from(index))?.err = fd;
        self.try_start(u32::from(index))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(Proto::MQ
            | Proto::CONFIG
            | Proto::INFLIGHT_SHMFD
            | Proto::REPLY_ACK
            | Proto::CONFIGURE_MEM_SLOTS
            | Proto::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_protocol_features()?.bits() != 0 {
            return Err(refuse(format!(
                "protocol features {features:#x} were not all offered"
            )));
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if !enable {
            self.stop(index)?;
        }
        self.ring(index)?.enabled = enable;
        self.try_start(index)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = config::space(&self.disk);
        let start = offset as usize;
        let end = start.saturating_add(size as usize);
        if end > 256 {
            return Err(refuse(format!("configuration space ends before {end}")));
        }
        // The space reads as zeros behind what this device defines.
        Ok((start..end)
            .map(|at| space.get(at).copied().unwrap_or(0))
            .collect())
    }

    fn set_config(&mut self, offset: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(refuse(format!("configuration byte {offset} is read-only")))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(refuse("this is no GPU"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(refuse("there are no shared objects"))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (asked.num_queues, asked.queue_size);
        if usize::from(queues) > self.rings.len() || size > MAX_QUEUE_SIZE {
            return Err(refuse(format!("{queues} queues of {size} in flight")));
        }
        let (region, file) = Region::create(queues, size).map_err(refuse)?;
        if let Some(secrets) = &mut self.secrets {
            secrets.fill(&region).map_err(refuse)?;
        }
        // In use from here on; a frontend that gives it back at once changes nothing.
        self.track(region)?;
        let bytes = region_bytes(queues, size);
        Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let (queues, size) = (given.num_queues, given.queue_size);
        let fits = usize::from(queues) <= self.rings.len()
            && size <= MAX_QUEUE_SIZE
            && given.mmap_size == region_bytes(queues, size);
        if !fits {
            return Err(refuse(format!(
                "an in-flight region of {} bytes for {queues} queues of {size}",
                given.mmap_size
            )));
        }
        let region = Region::open(&file, given.mmap_offset, queues, size).map_err(refuse)?;
        self.track(region)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(crate::memory::MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let region = self.map(region, &fd)?;
        self.while_stopped(|s| s.memory.add(region).map_err(refuse))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, len) = (region.guest_phys_addr, region.memory_size);
        self.while_stopped(|s| s.memory.remove(guest, len).map_err(refuse))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(refuse("device state is not transferred"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refuse("device state is not transferred"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(refuse("there is no shared memory of the device's"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(refuse("dirty logging is not offered"))
    }
}
