//! The messages, one by one.

use super::{Session, Vring, call, eventfd, refuse};
use crate::config;
use crate::dirty::DirtyLog;
use crate::inflight::{Region, region_bytes};
use crate::memory::Memory;
use crate::queue::{Addresses, MAX_QUEUE_SIZE};
use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures as Proto,
};

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
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        self.stop(index)?;
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let ring = self.ring(index)?;
        ring.addresses = Some(Addresses { desc, avail, used });
        ring.log_used = logged.then_some(log);
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
            | Proto::LOG_SHMFD
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
        self.protocol_features = features;
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

    fn set_log_base(&mut self, given: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::new(&file, given.mmap_offset, given.mmap_size, self.trust);
        let log = Arc::new(log.map_err(refuse)?);
        self.while_stopped(|s| {
            s.log = Some(log);
            Ok(())
        })
    }
}
