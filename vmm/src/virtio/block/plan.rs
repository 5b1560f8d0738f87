//! What a backend is told of a ring: the guest's own, or the one of the bounce region.

use super::Active;
use super::bounce::Bounce;
use super::session::SessionError;
use crate::memory::dirty::BackendLog;
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

/// `VHOST_VRING_F_LOG`: note what is written to the used ring, too.
const RING_LOG: u32 = 1;

/// One ring, ready to be started.
pub struct Plan<'a> {
    /// Accepted by whoever drives the ring.
    pub features: u64,
    /// What the backend maps.
    pub regions: Vec<VhostUserMemoryRegionInfo>,
    /// Sizes and addresses of the ring.
    pub addresses: VringConfigData,
    /// Where it begins.
    pub base: u16,
    /// It was served before.
    pub resumed: bool,
    /// Driver to device.
    pub kick: &'a EventFd,
    /// Device to driver.
    pub call: &'a EventFd,
    /// Where the backend notes what it writes.
    pub log: Option<&'a BackendLog>,
}

impl<'a> Plan<'a> {
    /// The guest's own ring, in memory that the backend maps. `no_call` stands in for an
    /// interrupt that the driver does not want.
    pub fn direct(
        active: &'a Active,
        resumed: bool,
        no_call: &'a EventFd,
        log: Option<&'a BackendLog>,
    ) -> Result<Self, SessionError> {
        let queue = active.queue.ring();
        let mut regions = Vec::new();
        for region in active.ram.iter() {
            let region = VhostUserMemoryRegionInfo::from_guest_region(region);
            regions.push(region.map_err(|source| SessionError::Protocol {
                what: "describe guest memory",
                source,
            })?);
        }
        let host = |guest: u64| {
            active
                .ram
                .get_host_address(GuestAddress(guest))
                .map(|at| at as u64)
                .map_err(|e| SessionError::Lacks(format!("cannot reach the ring: {e}")))
        };
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: if log.is_some() { RING_LOG } else { 0 },
            desc_table_addr: host(queue.desc_table())?,
            used_ring_addr: host(queue.used_ring())?,
            avail_ring_addr: host(queue.avail_ring())?,
            log_addr: log.map(|_| queue.used_ring()),
        };
        Ok(Self {
            features: active.features,
            regions,
            addresses,
            base: if resumed { active.used_index()? } else { 0 },
            resumed,
            kick: active.queue.kick(),
            call: active.queue.call().unwrap_or(no_call),
            log,
        })
    }

    /// The ring of the bounce region, of which only one side is the guest's.
    pub fn bounced(active: &Active, bounce: &'a Bounce) -> Self {
        let (size, [desc, avail, used]) = bounce.ring();
        Self {
            features: active.features & !(F_EVENT_IDX | F_INDIRECT_DESC),
            regions: vec![bounce.region()],
            addresses: VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: desc,
                used_ring_addr: used,
                avail_ring_addr: avail,
                log_addr: None,
            },
            base: bounce.base(),
            resumed: true,
            kick: bounce.kick(),
            call: bounce.call(),
            log: None,
        }
    }
}

impl Active {
    /// The used index in guest memory: what was popped behind it is in flight.
    pub(super) fn used_index(&self) -> Result<u16, SessionError> {
        let ring = self.queue.ring();
        let index = ring.used_idx(&self.ram, std::sync::atomic::Ordering::Acquire);
        index
            .map(|index| index.0)
            .map_err(|e| SessionError::Lacks(format!("cannot be told where the ring stands: {e}")))
    }
}
